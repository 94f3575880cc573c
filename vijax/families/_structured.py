"""Families for the leaves of a dict, each possibly given earlier ones."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from vijax.families import _networks as networks
from vijax.types import Family, Joint, PyTree


class Given(NamedTuple):
    """A family whose parameters move with earlier leaves; a part of `structured`, made by `given`."""

    # The leaves it is given, the family of its own leaf, and the widths of the network
    names: tuple[str, ...]
    family: Family
    hidden: tuple[int, ...]


def given(names: str | Sequence[str], family: Family, *, hidden: Sequence[int] = ()) -> Given:
    """Conditional for a part of `structured`: a family whose parameters move with earlier leaves.

        q(z | a) = family(φ + A a + network(a)),   a: the earlier leaves as one vector

    All of φ moves, scales and correlations as well as locations. A and the network's last layer
    start at zero.

    Args:
        names: the earlier leaf or leaves. Latents far from order one make A hard to learn:
            standardize, or `targets.transform`.
        family: any Family, of the leaf that comes later.
        hidden: widths of the network's tanh layers; () is the affine map alone.

    Returns:
        Given, a part of `structured`; params {"family": φ, "affine": A, "network": [layers]}.

    Raises:
        TypeError: for what is no Family.
        ValueError: for no names, and widths below 1.

    Example:
        >>> part = given("tau", vj.families.mean_field())
        >>> family = structured({"tau": vj.families.mean_field(), "theta": part})
        >>> params = family.init(jax.random.key(0), {"tau": 0.0, "theta": jnp.zeros(3)})
        >>> params["theta"]["affine"].shape  # from tau to 3 locations and 3 log-scales
        (1, 6)

    Reference: Ranganath, Tran, Blei, Hierarchical variational models, 2016, arXiv:1511.02386 (the
        structure); Ambrogioni et al., Automatic structured variational inference, 2021,
        arXiv:2002.00643.
    """
    if not isinstance(family, Family):
        raise TypeError(
            f"family must be a Family, such as families.mean_field(), got {family!r:.60}."
        )
    names = (names,) if isinstance(names, str) else tuple(names)
    if not names:
        raise ValueError(
            "names must name at least one earlier leaf; a part without any is its family alone."
        )
    return Given(names, family, networks.widths(hidden))


def structured(parts: Mapping[str, Family | Given]) -> Family:
    """Family over a dict of latents, drawn in order: each part alone, or given earlier parts.

        q(z) = Π_name q(z_name | z_earlier)

    For hierarchies, whose groups depend on what is above them, and for leaves that need families of
    their own.

    Args:
        parts: name -> a Family, of that leaf or subtree, or `given(names, family)`. Gaussian parts
            with affine conditionals (`given(names, mean_field())`) hold every Gaussian whose
            precision, within a part, is diagonal.

    Returns:
        Family: `init(key, like)` with `like` a dict of these names; params {name: params of the
        part}; `dist(params)` is a `types.Joint` of the parts' batch shape (), whose leaves `auto`,
        `factored` and `gdreg` can work on one by one.

    Raises:
        TypeError: for what is neither a Family nor a `given`.
        ValueError: for no parts, a name that is not of an earlier part, (init) a `like` of other
            names.

    Example:
        >>> mean_field = vj.families.mean_field(scale=1.0)
        >>> family = structured({"tau": mean_field, "theta": given("tau", mean_field)})
        >>> params = family.init(jax.random.key(0), {"tau": 0.0, "theta": jnp.zeros(3)})
        >>> log_q = family.dist(params).parts({"tau": 0.0, "theta": jnp.zeros(3)})
        >>> round(float(log_q["theta"]), 3)  # -3/2 log 2π
        -2.757

    Reference: Hoffman, Blei, Structured stochastic variational inference, 2015, arXiv:1404.4114;
        Ambrogioni et al., Automatic structured variational inference, 2021, arXiv:2002.00643.
    """
    parts = dict(parts)
    if not parts:
        raise ValueError("parts must have at least one name -> Family.")
    # A part may be given those written before it alone.
    earlier: list[str] = []
    for name, part in parts.items():
        if not isinstance(part, (Family, Given)):
            raise TypeError(
                f"part '{name}' must be a Family or families.given(names, family), got "
                f"{part!r:.60}."
            )
        late = [n for n in part.names if n not in earlier] if isinstance(part, Given) else []
        if late:
            raise ValueError(
                f"part '{name}' is given {late}, and the parts before it are {earlier}: write a "
                "part after those that it is given."
            )
        earlier.append(name)

    def init(key: Array, like: PyTree) -> PyTree:
        if not isinstance(like, Mapping) or set(like) != set(parts):
            actual = list(like) if isinstance(like, Mapping) else f"a {type(like).__name__}"
            raise ValueError(
                f"like must be a dict with the names of the parts, {list(parts)}, got {actual}."
            )
        keys = jax.random.split(key, len(parts))
        return {
            n: _start(k, part, like, n) for k, (n, part) in zip(keys, parts.items(), strict=True)
        }

    def dist(params: PyTree) -> Joint:
        return Joint({name: _conditional(part, params[name]) for name, part in parts.items()})

    return Family(init, dist)


def _start(key: Array, part: Family | Given, like: PyTree, name: str) -> PyTree:
    if isinstance(part, Family):
        return part.init(key, like[name])
    of_family, of_network = jax.random.split(key)
    params = part.family.init(of_family, like[name])
    # A and the network map the earlier leaves, [inputs], to shifts of all parameters, [outputs].
    vector, _ = ravel_pytree(params)
    inputs = sum(jnp.size(leaf) for n in part.names for leaf in jax.tree.leaves(like[n]))
    sizes = (inputs, *part.hidden, vector.size)
    network = networks.init(of_network, sizes, vector.dtype) if part.hidden else []
    return {
        "family": params,
        "affine": jnp.zeros((inputs, vector.size), vector.dtype),
        "network": network,
    }


def _conditional(part: Family | Given, params: PyTree) -> Any:
    if isinstance(part, Family):
        return part.dist(params)

    def conditional(earlier: PyTree) -> Any:
        # φ as one vector, and the earlier leaves as another, in the order of `names`
        vector, unravel = ravel_pytree(params["family"])
        x = ravel_pytree({n: earlier[n] for n in part.names})[0].astype(vector.dtype)
        # A a + network(a), added to φ as one vector
        shift = x @ params["affine"]
        if part.hidden:
            shift = shift + networks.apply(params["network"], x)
        return part.family.dist(unravel(vector + shift))

    return conditional
