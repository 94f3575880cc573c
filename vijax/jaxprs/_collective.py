"""Collectives over an axis that has a name outside: what other members, or devices, hold."""

from typing import Any

from jax.extend import core

from vijax.jaxprs._equations import equations
from vijax.jaxprs._interpreter import Question, interpret
from vijax.trees import mesh_axes

# They read what other members along a named axis hold.
COLLECTIVES = frozenset(
    "psum psum2 psum_invariant pmax pmin ppermute pgather all_to_all all_gather "
    "all_gather_invariant all_gather_reduced reduce_scatter psum_scatter".split()
)


def collective(closed: core.ClosedJaxpr, count: int) -> str | None:
    """Return the first collective that the first `count` inputs reach, or None.

    Where JAX tells the axes along which a value differs, as in shard_map, inputs that do not differ
    along an axis are the same for all, and may meet. What shard_map binds within does not count.

    Example:
        >>> mean = jax.make_jaxpr(lambda x: jax.lax.pmax(x, "i"), axis_env=[("i", 2)])(0.0)
        >>> collective(mean, 1)
        'pmax'
    """
    if all(eqn.primitive.name not in COLLECTIVES for eqn in equations(closed.jaxpr)):
        return None  # as nearly always
    reached: list[str] = []
    # For each input, the axes of a mesh along which devices hold different values of it.
    differing = [mesh_axes(v.aval) for v in closed.jaxpr.invars[:count]]

    def rule(eqn: core.JaxprEqn, ins: list[bool]) -> list[bool]:
        if any(ins) and eqn.primitive.name in COLLECTIVES:
            # Under vmap JAX tells no axes of a mesh: then any collective counts.
            known = mesh_axes([v.aval for v in eqn.invars])
            names = set(_names(eqn))
            if not known or any(names & axes for axes in differing):
                reached.append(eqn.primitive.name)
        return [any(ins)] * len(eqn.outvars)

    # What is followed: whether one of the first `count` inputs reaches a value.
    question: Question[bool] = Question(
        nothing=False,
        join=lambda several, _: any(several),
        rules={"shard_map": lambda eqn, ins: [any(ins)] * len(eqn.outvars)},
        default=rule,
        choose=lambda which, cases, _: which or any(cases),
        opaque=lambda _, several: any(several),
        constant=lambda _: False,
        into_unknown=True,
    )
    inputs = [i < count for i in range(len(closed.jaxpr.invars))]
    interpret(closed, inputs, question, [False] * len(closed.consts))
    return reached[0] if reached else None


def _names(eqn: core.JaxprEqn) -> tuple[Any, ...]:
    names = eqn.params.get("axes", eqn.params.get("axis_name", ()))
    return tuple(names) if isinstance(names, (tuple, list, frozenset)) else (names,)
