"""Collectives over an axis that has a name outside: what other members, or devices, hold."""

from typing import Any

from jax.extend import core

from vijax.jaxprs._equations import equations
from vijax.jaxprs._interpreter import Question, interpret
from vijax.trees import mesh_axes

COLLECTIVES = frozenset(
    "psum psum2 psum_invariant pmax pmin ppermute pgather all_to_all all_gather "
    "all_gather_invariant all_gather_reduced reduce_scatter psum_scatter".split()
)


def collective(closed: core.ClosedJaxpr, count: int) -> str | None:
    """Return the first collective that the first `count` inputs reach, or None.

    Where JAX tells the axes along which a value differs, as in shard_map, inputs that do not differ
    along an axis are the same for all, and may meet. What shard_map binds within does not count.
    """
    if all(eqn.primitive.name not in COLLECTIVES for eqn in equations(closed.jaxpr)):
        return None  # as nearly always
    found: list[str] = []
    differing = [mesh_axes(v.aval) for v in closed.jaxpr.invars[:count]]

    def rule(eqn: core.JaxprEqn, ins: list[bool]) -> list[bool]:
        if any(ins) and eqn.primitive.name in COLLECTIVES:
            known = mesh_axes([v.aval for v in eqn.invars])
            names = set(_names(eqn))
            if not known or any(names & axes for axes in differing):
                found.append(eqn.primitive.name)
        return [any(ins)] * len(eqn.outvars)

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
    return found[0] if found else None


def _names(eqn: core.JaxprEqn) -> tuple[Any, ...]:
    names = eqn.params.get("axes", eqn.params.get("axis_name", ()))
    return tuple(names) if isinstance(names, (tuple, list, frozenset)) else (names,)
