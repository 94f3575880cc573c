"""Whether q's support moves with its parameters, and which leaves of a Joint need a score."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core
from jaxtyping import Array, Key

from vijax.jaxprs._derivative import flows
from vijax.jaxprs._equations import trace
from vijax.jaxprs._flow import Flow, merge
from vijax.jaxprs._paths import PARAMETER, Path
from vijax.types import Joint, PyTree


class Scored(NamedTuple):
    """The leaves of a Joint that need a score.

    Fields:
        names: those without a path, and earlier ones that reach their density through a jump, which
            the density's own derivative would miss.
        moving: why the score of one of `names` has a mean other than zero, as `moving_support`
            says, or None.
    """

    names: set[Any]
    moving: str | None


def moving_support(
    log_prob: core.ClosedJaxpr,
    leaves: Mapping[str, Path],
    given: Sequence[Flow] = (),
) -> str | None:
    """Return why q's support may move with its parameters, or None; where it does, E[score] ≠ 0.

    Its signs: log_prob is -inf where the draw crosses a parameter, does not depend on a parametric
    leaf at all, or cannot be seen into.

    Args:
        log_prob: the jaxpr of q.log_prob, closed over q's parameters, as `trace` or `stopped`
            return it.
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
    scored = {name for name in names if any(path.broken for path in found[name].values())}
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
    """Trace the log-density of one leaf as a function of it, and of the draw for earlier ones."""
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
        return any(flow.broken_by(source) is not None for flow in outputs)

    return {name for at, name in enumerate(earlier) if jumps(f"leaf {at}")}


def _spread(of_names: Mapping[Any, Flow], z: PyTree) -> list[Flow]:
    """Return the flow of every array of a Joint's draw, in the order in which JAX flattens it."""
    order = sorted(z) if isinstance(z, dict) else range(len(z))
    return [of_names.get(name, Flow()) for name in order for _ in jax.tree.leaves(z[name])]
