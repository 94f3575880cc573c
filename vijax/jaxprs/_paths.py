"""What carries q's derivative to its draws, leaf by leaf."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core
from jaxtyping import Array, Key

from vijax import checks
from vijax.jaxprs._derivative import flows
from vijax.jaxprs._equations import trace
from vijax.jaxprs._flow import Flow
from vijax.jaxprs._jumps import jumping_density
from vijax.types import Distribution, Draw, Joint, PyTree

# The sources that are followed to each leaf.
NOISE = Flow(smooth=frozenset({"noise"}))
PARAMETER = Flow(smooth=frozenset({"parameter"}))
# Leaves that were drawn before, without and with their derivative.
DRAWN = Flow(smooth=frozenset({"drawn"}))
_CARRIED = Flow(smooth=frozenset({"drawn", "parameter"}))

# The cure for values of a discrete draw that move.
LOOK_UP = (
    "Let q draw which value it is, and look the value up in log_joint, whose own derivative sees "
    "it move; use gradients.vimco or gradients.auto then."
)


class Path(NamedTuple):
    """What a sampler's jaxpr says of one leaf.

    Fields:
        broken: what breaks the path derivative, as a phrase that follows "leaf 'z' ", or None.
        parametric: whether it is a continuous draw that parameters reach.
        atoms: why the values of a draw that is not continuous move with q's parameters, as a phrase
            that follows "leaf 'z' ", or None.
    """

    broken: str | None
    parametric: bool
    atoms: str | None = None


def paths(q: Distribution, draw: Draw, key: Key[Array, ""]) -> dict[str, Path]:
    """Return the path of each leaf of q's draws, by its name; a bare array is called z.

    A parameter that reaches a leaf through a comparison, argmax, rounding, cast or index is missing
    from that leaf's derivative, and a leaf that noise reaches only so is discrete.

    Args:
        q: the distribution, or a Joint.
        draw: how a draw is made.
        key: any.

    Returns:
        The leaves' paths.

    Example:
        >>> q = vj.families.mean_field().dist({"loc": jnp.zeros(2), "log_scale": jnp.zeros(2)})
        >>> paths(q, vj.draws.iid, jax.random.key(0))["z"]
        Path(broken=None, parametric=True, atoms=None)
    """
    if isinstance(q, Joint):
        return by_leaf(joint_paths(q, key))

    def sample(key: Key[Array, ""]) -> PyTree:
        first = jax.tree.map(lambda seeds: seeds[0], draw.seeds(key, 2))
        return draw.sample(first, q)[0]

    closed, shape = trace(sample, key)
    return leaf_paths(q, shape, closed, [NOISE])


def joint_paths(q: Joint, key: Key[Array, ""]) -> dict[Any, dict[str, Path]]:
    """Return the paths of each conditional.

    An earlier leaf counts as a parameter where it carries a derivative.

    Example:
        >>> normal = vj.families.mean_field().dist
        >>> params = {"loc": jnp.zeros(()), "log_scale": jnp.zeros(())}
        >>> q = vj.types.Joint({"a": normal(params), "b": lambda earlier: normal(params)})
        >>> {name: leaves["z"].broken for name, leaves in joint_paths(q, jax.random.key(0)).items()}
        {'a': None, 'b': None}
    """
    return conditional_paths(lambda: q, q.names(), key, [], [])


def conditional_paths(
    joint: Callable[..., Joint],
    names: Sequence[Any],
    key: Key[Array, ""],
    given: list[PyTree],
    given_flows: list[Flow],
) -> dict[Any, dict[str, Path]]:
    """Return the paths of each conditional of the Joint `joint(*given)`, and of Joints within it.

    Args:
        joint: the leaves given from outside -> the Joint.
        names: of its leaves, in order.
        key: any.
        given: shapes of the leaves given from outside, one pytree for each Joint around this.
        given_flows: how their arrays carry the derivative.
    """
    # Of the leaves that were drawn before: their shapes, and how they carry the derivative.
    by_name: dict[Any, dict[str, Path]] = {}
    shapes: dict[Any, PyTree] = {}
    leaf_flows: dict[Any, list[Flow]] = {}
    for name in names:
        conditional = _Conditional(joint, name)
        inputs = [*given, dict(shapes)]
        # JAX flattens a dict in the order of its sorted names.
        input_flows = [
            *given_flows,
            *(flow for other in sorted(shapes) for flow in leaf_flows[other]),
        ]
        # The leaves are inputs of the trace, so that only what is new to this one is followed.
        closed, shape = trace(conditional.sample, key, *inputs)
        if isinstance(conditional.part, Joint):
            within = conditional.part.names()
            by_name[name] = by_leaf(
                conditional_paths(conditional.at, within, key, inputs, input_flows)
            )
        else:
            by_name[name] = leaf_paths(conditional.part, shape, closed, [NOISE, *input_flows])
        # A leaf with a broken path will be stopped, or scored: it carries nothing on.
        carried = all(path.broken is None for path in by_name[name].values())
        leaf_flows[name] = [_CARRIED if carried else DRAWN] * len(jax.tree.leaves(shape))
        shapes[name] = shape
    return by_name


class _Conditional:
    """One conditional of a Joint as a function of what it is given; `part` is what it was last."""

    def __init__(self, joint: Callable[..., Joint], name: Hashable) -> None:
        self.joint, self.name = joint, name
        self.part: Any = None

    def at(self, *given: PyTree) -> Any:
        return self.joint(*given[:-1]).conditional(self.name, given[-1])

    def sample(self, key: Key[Array, ""], *given: PyTree) -> PyTree:
        self.part = self.at(*given)
        return self.part.sample_and_log_prob(seed=key, sample_shape=())[0]


def by_leaf(conditionals: Mapping[Any, Mapping[str, Path]]) -> dict[str, Path]:
    """Return the paths of a Joint's conditionals in one dict, by the names that errors use.

    Example:
        >>> path = Path(broken=None, parametric=True)
        >>> list(by_leaf({"a": {"z": path}, "b": {"c": path}}))
        ['a', 'b.c']
    """
    return {
        str(name) if leaf == "z" else f"{name}.{leaf}": path
        for name, leaves in conditionals.items()
        for leaf, path in leaves.items()
    }


def leaf_paths(
    q: object, shape: PyTree, closed: core.ClosedJaxpr, inputs: Sequence[Flow]
) -> dict[str, Path]:
    """Return the paths of the leaves that a sampler's jaxpr returns."""
    declared = getattr(q, "reparameterized", None)
    jump = jumping_density(q) if declared is None else None
    # How sources reach the leaves' derivatives, and how they reach their values.
    derivatives = flows(closed, inputs, PARAMETER)
    values = flows(closed, inputs, PARAMETER, values=True)
    leaves = {}
    named = checks.named_leaves(shape)
    for (name, leaf), flow, value in zip(named, derivatives, values, strict=True):
        # Noise moves the value continuously: the draw has a density along this leaf.
        continuous = "noise" in value.smooth or bool(declared)
        real = jnp.issubdtype(leaf.dtype, jnp.inexact)
        parametric = real and continuous and "parameter" in value.sources()
        atoms = _atoms(value) if real and not continuous else None
        broken = _broken(leaf, flow, value, declared=declared)
        leaves[name] = Path(broken or (jump if parametric else None), parametric, atoms)
    return leaves


def _atoms(value: Flow) -> str | None:
    """Return why the values of a discrete draw may move; its derivative in them has no score."""
    if "parameter" not in value.smooth:
        return None
    if value.opaque:
        return (
            f"comes through {min(value.opaque)}, which cannot be analysed: declare "
            "q.fixed_support = True, of the distribution of this leaf, if no value that it takes, "
            "and no end of its support, depends on q's parameters"
        )
    return (
        "is discrete, or certain, and takes values that move with q's parameters, a derivative "
        "that no score has"
    )


def _broken(
    leaf: jax.ShapeDtypeStruct, flow: Flow, value: Flow, *, declared: bool | None
) -> str | None:
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return f"is discrete ({leaf.dtype})"
    if declared is not None:
        return None if declared else "comes from a q that declares reparameterized = False"
    if value.opaque:
        return (
            f"comes through {min(value.opaque)}, which cannot be analysed: declare "
            "q.reparameterized = True, of the distribution of this leaf, if draws are "
            "differentiable in its parameters, False otherwise"
        )
    # What parameters reach through a jump has not all of its derivative.
    how = flow.broken_by("parameter")
    if how is None and "parameter" not in value.smooth:
        how = value.broken_by("parameter")  # the derivative that was declared is not the value's
    if how is not None:
        return (
            f"depends on a parameter through '{how}', whose derivative is zero or missing (if the "
            "draw, and log q at the draw, are continuous there, declare it of the distribution of "
            "this leaf: families.adapt(q, reparameterized=True))"
        )
    # Last, what noise reaches through jumps alone is discrete.
    how = value.broken_by("noise")
    if "noise" not in value.smooth and how is not None:
        return f"is discrete: its noise arrives only through '{how}'"
    return None
