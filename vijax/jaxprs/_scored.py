"""Which leaves of a Joint need a score: those without a path, and what jumps hide from one."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core
from jaxtyping import Array, Key

from vijax.jaxprs._derivative import flows
from vijax.jaxprs._equations import trace
from vijax.jaxprs._flow import Flow
from vijax.jaxprs._paths import Path
from vijax.jaxprs._support import Moving, joint_moves
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
    moving: Moving | None


def scored_leaves(
    q: Joint, key: Key[Array, ""], leaves: Mapping[Any, Mapping[str, Path]]
) -> Scored:
    """Return which leaves of a Joint need a score, from the paths that `joint_paths` found.

    Example:
        >>> normal = vj.families.mean_field().dist
        >>> q = vj.types.Joint({"z": normal({"loc": jnp.zeros(()), "log_scale": jnp.zeros(())})})
        >>> key = jax.random.key(0)
        >>> scored_leaves(q, key, vj.jaxprs.joint_paths(q, key)).names
        set()
    """
    names = q.names()
    scored = {name for name in names if any(path.broken for path in leaves[name].values())}
    if not scored:
        return Scored(scored, None)
    # Where a scored leaf's density jumps in an earlier leaf, that one needs a score too, and so on.
    z = jax.eval_shape(lambda k: q.sample_and_log_prob(seed=k)[0], key)
    pending = list(scored)
    while pending:
        name = pending.pop()
        earlier = names[: names.index(name)]
        more = _jumping(_density(q, z, name), z, earlier) - scored
        scored |= more
        pending.extend(more)
    for name in names:
        if name in scored:
            # Earlier leaves that are not stopped carry the parameters here.
            carrying = [n for n in names if n not in scored]
            moving = joint_moves(
                lambda: q, key, (), (), [name], z, leaves, order=names, carrying=carrying
            )
            if moving is not None:
                return Scored(scored, moving)
    return Scored(scored, None)


def _density(q: Joint, z: PyTree, name: Hashable) -> core.ClosedJaxpr:
    """Trace the log-density of one leaf as a function of it, and of the draw for earlier ones."""
    names = q.names()
    earlier = names[: names.index(name)]

    def log_prob(leaf: PyTree, z: PyTree) -> Array:
        return q.conditional(name, {n: z[n] for n in earlier}).log_prob(leaf)

    return trace(log_prob, z[name], z)[0]


def _jumping(density: core.ClosedJaxpr, z: PyTree, earlier: Sequence[Any]) -> set[Any]:
    """Return which of the earlier leaves reach a density through a jump."""
    # Each earlier leaf is a source of its own.
    sources = {name: Flow(smooth=frozenset({f"leaf {at}"})) for at, name in enumerate(earlier)}
    # Inputs of the trace: the leaf itself, then all of z as JAX flattens it.
    order = sorted(z) if isinstance(z, dict) else range(len(z))
    given = [sources.get(n, Flow()) for n in order for _ in jax.tree.leaves(z[n])]
    own = [Flow()] * (len(density.jaxpr.invars) - len(given))
    outputs = flows(density, [*own, *given], Flow())

    def jumps(source: str) -> bool:
        return any(flow.broken_by(source) is not None for flow in outputs)

    return {name for at, name in enumerate(earlier) if jumps(f"leaf {at}")}
