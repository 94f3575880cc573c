"""What carries the derivative of q to its draws, leaf by leaf, and whether q's support moves with its parameters."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core
from jaxtyping import Array, Key

from vijax import checks
from vijax.jaxprs._derivative import Flow, flows, merge
from vijax.jaxprs._interpreter import trace
from vijax.types import Draw, Joint, PyTree

NOISE = Flow(smooth=frozenset({"noise"}))
PARAMETER = Flow(smooth=frozenset({"parameter"}))


class Path(NamedTuple):
    """What a sampler's jaxpr says of one leaf.

    Fields:
        broken: what breaks the path derivative, as a phrase that follows "leaf 'z' ", or None.
        parametric: whether it is a continuous draw that parameters reach.
    """

    broken: str | None
    parametric: bool


class Scored(NamedTuple):
    """The leaves of a Joint that need a score.

    Fields:
        names: those without a path, and earlier ones that reach their density through a jump, which the density's
            own derivative would miss.
        moving: why the score of one of `names` has a mean other than zero, as `moving_support` says, or None.
    """

    names: set[Any]
    moving: str | None


def paths(q: Any, draw: Draw, key: Key[Array, ""]) -> dict[str, Path]:
    """Return the path of each leaf of q's draws, by the names that errors use; a bare array is called z.

    A parameter that reaches a leaf through a comparison, argmax, rounding, cast or index is missing from that leaf's
    derivative, and a leaf that noise reaches only so is discrete.
    """
    if isinstance(q, Joint):
        return by_leaf(joint_paths(q, key))
    closed, shape = trace(lambda k: draw.sample(jax.tree.map(lambda s: s[0], draw.seeds(k, 2)), q)[0], key)
    return _leaf_paths(q, shape, flows(closed, [NOISE], PARAMETER))


def joint_paths(q: Joint, key: Key[Array, ""]) -> dict[Any, dict[str, Path]]:
    """Return the paths of each conditional; an earlier leaf counts as a parameter where it carries a derivative."""
    return _conditional_paths(lambda: q, q.names(), key, [], [])


def _conditional_paths(
    joint: Callable[..., Joint],
    names: Sequence[Any],
    key: Key[Array, ""],
    given: list[PyTree],
    given_flows: list[Flow],
) -> dict[Any, dict[str, Path]]:
    """Return the paths of each conditional of the Joint `joint(*given)`, and of those that are Joints themselves.

    Args:
        joint: the leaves given from outside -> the Joint.
        names: of its leaves, in order.
        key: any.
        given: shapes of the leaves given from outside, one pytree for each Joint around this.
        given_flows: how their arrays carry the derivative.
    """
    found: dict[Any, dict[str, Path]] = {}
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
        closed, shape = trace(conditional.sample, key, *inputs)
        if isinstance(conditional.part, Joint):
            inner = _conditional_paths(conditional.at, conditional.part.names(), key, inputs, input_flows)
            found[name] = by_leaf(inner)
        else:
            found[name] = _leaf_paths(conditional.part, shape, flows(closed, [NOISE, *input_flows], PARAMETER))
        carried = all(path.broken is None for path in found[name].values())
        leaf_flows[name] = [PARAMETER if carried else Flow()] * len(jax.tree.leaves(shape))
        shapes[name] = shape
    return found


class _Conditional:
    """One conditional of a Joint as a function of what it is given; `part` is the distribution sampled last."""

    def __init__(self, joint: Callable[..., Joint], name: Any) -> None:
        self.joint, self.name = joint, name
        self.part: Any = None

    def at(self, *given: PyTree) -> Any:
        return self.joint(*given[:-1]).conditional(self.name, given[-1])

    def sample(self, key: Key[Array, ""], *given: PyTree) -> PyTree:
        self.part = self.at(*given)
        return self.part.sample_and_log_prob(seed=key, sample_shape=())[0]


def by_leaf(found: Mapping[Any, Mapping[str, Path]]) -> dict[str, Path]:
    """Return the paths of a Joint's conditionals in one dict, by the names that errors use."""
    return {
        str(name) if leaf == "z" else f"{name}.{leaf}": path
        for name, leaves in found.items()
        for leaf, path in leaves.items()
    }


def _leaf_paths(q: Any, shape: PyTree, of_leaves: Sequence[Flow]) -> dict[str, Path]:
    declared = getattr(q, "reparameterized", None)
    found = {}
    for (name, leaf), flow in zip(checks.named_leaves(shape), of_leaves, strict=True):
        continuous = jnp.issubdtype(leaf.dtype, jnp.inexact) and ("noise" in flow.smooth or bool(declared))
        parametric = continuous and "parameter" in flow.sources()
        found[name] = Path(_broken(leaf, flow, declared=declared), parametric)
    return found


def _broken(leaf: Any, flow: Flow, *, declared: bool | None) -> str | None:
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return f"is discrete ({leaf.dtype})"
    if declared is not None:
        return None if declared else "comes from a q that declares reparameterized = False"
    if flow.opaque:
        return (
            f"comes through {min(flow.opaque)}, which cannot be analysed: declare q.reparameterized = True if draws "
            "are differentiable in its parameters, False otherwise"
        )
    how = flow.broken_by("parameter")
    if how is not None:
        return (
            f"depends on a parameter through '{how}', whose derivative is zero or missing (if the draw is continuous "
            "there, declare it: families.adapt(q, reparameterized=True))"
        )
    how = flow.broken_by("noise")
    if "noise" not in flow.smooth and how is not None:
        return f"is discrete: its noise arrives only through '{how}'"
    return None


def moving_support(log_prob: core.ClosedJaxpr, leaves: Mapping[str, Path], given: Sequence[Flow] = ()) -> str | None:
    """Return why q's support may move with its parameters, so that its score has a mean other than zero, or None.

    Its signs: log_prob is -inf where the draw crosses a parameter, does not depend on a parametric leaf at all, or
    cannot be seen into.

    Args:
        log_prob: the jaxpr of q.log_prob, closed over q's parameters, as `trace` or `stopped` return it.
        leaves: the paths of the draw's leaves, in order.
        given: the flows of further inputs of log_prob, after the leaves.
    """
    draws = [Flow(smooth=frozenset({"draw", leaf})) for leaf in leaves]
    outputs = flows(log_prob, [*draws, *given], PARAMETER)
    flow = merge(outputs)
    if flow.opaque:
        return f"log_prob comes through {min(flow.opaque)}, which cannot be analysed"
    sources = flow.sources()
    for leaf, path in leaves.items():
        if path.parametric and leaf not in sources:
            return f"leaf '{leaf}' is uniform on a set that depends on q's parameters"
    if any("log" in f.cuts for f in outputs):
        return "log_prob is -inf on a set that depends on q's parameters"
    return None


def scored_leaves(q: Joint, key: Key[Array, ""], found: Mapping[Any, Mapping[str, Path]]) -> Scored:
    """Return which leaves of a Joint need a score, from the paths that `joint_paths` found."""
    names = q.names()
    scored = {name for name, leaves in found.items() if any(path.broken is not None for path in leaves.values())}
    if not scored:
        return Scored(scored, None)
    z = jax.eval_shape(lambda k: q.sample_and_log_prob(seed=k)[0], key)
    densities: dict[Any, core.ClosedJaxpr] = {}
    pending = list(scored)
    while pending:
        name = pending.pop()
        densities[name] = _density(q, z, name)
        more = _jumping(densities[name], z, names[: names.index(name)]) - scored
        scored |= more
        pending.extend(more)
    for name in names:
        if name in scored and any(path.parametric for path in found[name].values()):
            # Earlier leaves that are not stopped carry the parameters here.
            given = {n: Flow() if n in scored else PARAMETER for n in names}
            moving = moving_support(densities[name], found[name], _spread(given, z))
            if moving is not None:
                return Scored(scored, moving)
    return Scored(scored, None)


def _density(q: Joint, z: PyTree, name: Any) -> core.ClosedJaxpr:
    """Trace the log-density of one leaf as a function of that leaf, and of the whole draw for the earlier ones."""
    names = q.names()
    earlier = names[: names.index(name)]

    def log_prob(leaf: PyTree, z: PyTree) -> Array:
        return q.conditional(name, {n: z[n] for n in earlier}).log_prob(leaf)

    return trace(log_prob, z[name], z)[0]


def _jumping(density: core.ClosedJaxpr, z: PyTree, earlier: Sequence[Any]) -> set[Any]:
    """Return which of the earlier leaves reach a density through a jump."""
    sources = {name: Flow(smooth=frozenset({f"leaf {at}"})) for at, name in enumerate(earlier)}
    given = _spread(sources, z)
    own = [Flow()] * (len(density.jaxpr.invars) - len(given))
    outputs = flows(density, [*own, *given], Flow())

    def jumps(source: str) -> bool:
        # What cannot be seen into may jump.
        return any(flow.broken_by(source) or (flow.opaque and source in flow.smooth) for flow in outputs)

    return {name for at, name in enumerate(earlier) if jumps(f"leaf {at}")}


def _spread(of_names: Mapping[Any, Flow], z: PyTree) -> list[Flow]:
    """Return the flow of every array of a Joint's draw, in the order in which JAX flattens it."""
    order = sorted(z) if isinstance(z, dict) else range(len(z))
    return [of_names.get(name, Flow()) for name in order for _ in jax.tree.leaves(z[name])]
