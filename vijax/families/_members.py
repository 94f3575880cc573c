"""A member of a family for each of a batch: q of many data, each with parameters of its own."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vijax import checks
from vijax.calls import described
from vijax.families.batched import Members
from vijax.types import Family, PyTree


class _Apart(Members):
    """Members of params that read no latents, so that none of them reads another's."""

    independent_members = True


def members(family: Family) -> Family:
    """A member of one family for each of n data: a family whose q has batch shape [n].

        q(z₁ ... zₙ) = Πₙ q(zₙ; φₙ),     φ: every leaf of the params with a leading axis of data

    Of `full_rank()` or a flow it makes the q of a batch, to refine an encoder's answers or to fit local latents
    without an encoder.

    Args:
        family: of one datum, whose q has batch shape ().

    Returns:
        Family: `init(key, like)` takes leaves [n, *event], each datum's start; params are those of `family`, leaves
        [n, ...]; `dist(params)` has batch shape [n], and its members are known to be independent,
        which `dreg(iwae)` and score estimators ask for.

    Raises:
        TypeError: for what is no Family.
        ValueError: (init, dist) for leaves without one leading axis of data.

    Example:
        >>> family = members(vj.families.full_rank())
        >>> params = family.init(jax.random.key(0), jnp.zeros((5, 3)))  # five data, three latents
        >>> params["lower"].shape, family.dist(params).log_prob(jnp.zeros((5, 3))).shape
        ((5, 3), (5,))

    Reference: Hoffman, Blei, Wang, Paisley, Stochastic variational inference, 2013 (local variational parameters).
    """
    checks.family(family, "family")

    def init(key: Array | None, like: PyTree) -> PyTree:
        n = _number(like, "like")
        like = jax.tree.map(jnp.asarray, like)
        # A family that needs no key may be given none.
        if key is None:
            return jax.vmap(lambda like: family.init(None, like))(like)
        return jax.vmap(family.init)(jax.random.split(key, n), like)

    def dist(params: PyTree) -> Members:
        n = _number(params, "params")
        return _Apart(family.dist, jax.tree.map(jnp.asarray, params), (n,))

    return Family(init, dist)


def _number(tree: PyTree, name: str) -> int:
    """Return how many data there are: the leading axis that all leaves share."""
    sizes = {leaf: jnp.shape(value)[:1] for leaf, value in checks.named_leaves(tree)}
    if len(set(sizes.values())) != 1 or () in sizes.values():
        found = ", ".join(f"{leaf} {size}" for leaf, size in sizes.items()) or described(tree)
        raise ValueError(
            f"every leaf of {name} must begin with one axis of data, got {found}: params of one "
            "datum become those of n by jax.tree.map(lambda leaf: jnp.stack([leaf] * n), params)."
        )
    return int(next(iter(sizes.values()))[0])
