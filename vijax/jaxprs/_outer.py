"""Outer products that nobody wrote: (N,) against (N, 1), which NumPy's rules make (N, N)."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jax.extend import core

from vijax.jaxprs._calls import call_of
from vijax.jaxprs._equations import equations, function_name, inner_jaxprs, shape_of
from vijax.jaxprs._interpreter import Question, interpret
from vijax.jaxprs._outer_axes import (
    LOOPS,
    NOTHING,
    REDUCTIONS,
    RULES,
    Axis,
    Known,
    Shape,
    axes_of,
    axes_of_each,
    broadcast,
    elementwise,
    join,
    of_shape,
)


class Outer(NamedTuple):
    """An outer product by an implicit broadcast.

    Fields:
        short: the shape of the row, (N,).
        long: that of the column, (N, 1).
        place: file:line.
    """

    short: Shape
    long: Shape
    place: str


def accidental_outer(closed: core.ClosedJaxpr) -> Outer | None:
    """Return the first outer product by an implicit broadcast that depends on an input, or None.

    A row, whose new axis NumPy's rules added, meets a column, which came as one: an input or data
    (N, 1). An axis that was added by a call of its own, as in x[:, None], is meant, and so is what
    a jaxpr closes over, as in the kernel of a Gaussian process.

    Example:
        >>> closed = jax.make_jaxpr(lambda x, y: x - y)(jnp.ones(3), jnp.ones((3, 1)))
        >>> accidental_outer(closed)[:2]
        ((3,), (3, 1))
    """
    places = dict(_squares(closed.jaxpr, "a line of a library"))
    if not places:
        return None
    # Those that an input reaches, in the order of the walk.
    reached: list[Outer] = []

    def default(eqn: core.JaxprEqn, ins: list[Known]) -> list[Known]:
        depends, known = any(v.depends for v in ins), axes_of_each(eqn.invars, ins)
        if depends and id(eqn) in places:
            pair = _accident([axes for axes in known if axes])
            if pair is not None:
                reached.append(Outer(*pair, places[id(eqn)]))
        return [Known(depends, elementwise(v, known)) for v in eqn.outvars]

    # A broadcast that restores the axes of a reduction, as keepdims does, is told by its operand.
    made_by: dict[int, core.JaxprEqn] = dict(_reductions(closed.jaxpr))

    def broadcast_in_dim(eqn: core.JaxprEqn, ins: list[Known]) -> list[Known]:
        return [Known(ins[0].depends, broadcast(eqn, axes_of(eqn.invars[0], ins[0]), made_by))]

    question: Question[Known] = Question(
        nothing=NOTHING,
        join=lambda several, _: join(several),
        rules={**RULES, "broadcast_in_dim": broadcast_in_dim},
        default=default,
        choose=lambda which, cases, _: join([*cases, Known(which.depends, None)]),
        opaque=lambda _, several: Known(any(v.depends for v in several), None),
        constant=lambda value: Known(depends=False, axes=of_shape(np.shape(value))),
        into_unknown=True,
        loops=LOOPS,
    )
    inputs = [Known(depends=True, axes=of_shape(shape_of(v))) for v in closed.jaxpr.invars]
    interpret(closed, inputs, question)
    return reached[0] if reached else None


def _accident(operands: Sequence[Sequence[tuple[int, Axis]]]) -> tuple[Shape, Shape] | None:
    """Return the shapes of a row and a column that NumPy's rules, and nobody else, made meet."""
    # Two neighboring axes of equal length n: the row has (1, n) there, the 1 by promotion, and the
    # column (n, 1), with which it came.
    for row in operands:
        for column in operands:
            for i in range(min(len(row), len(column)) - 1):
                (n, own), (_, came) = column[i : i + 2]
                (_, promoted), (m, other) = row[i : i + 2]
                kinds = (promoted, other, own, came)
                if n == m > 1 and kinds == (Axis.PROMOTED, Axis.OWN, Axis.OWN, Axis.CAME):
                    return (
                        tuple(k for k, axis in row if axis is not Axis.PROMOTED),
                        tuple(k if axis is Axis.OWN else 1 for k, axis in column),
                    )
    return None


def _squares(jaxpr: core.Jaxpr, around: str, *, of_jax: bool = False) -> Iterator[tuple[int, str]]:
    """Yield the equations that may make an outer product, by id, and their place."""
    for eqn in jaxpr.eqns:
        shape = shape_of(eqn.outvars[0]) if eqn.outvars else ()
        # Two neighboring axes of one length, of what several operands make.
        square = len(eqn.invars) > 1 and any(n == m > 1 for n, m in pairwise(shape))
        inside = inner_jaxprs(eqn)
        if not (square or inside):
            continue
        # A function of JAX keeps the trace of its first call, from wherever that was.
        place = around if of_jax else call_of(eqn).place or around
        if square:
            yield id(eqn), place
        for inner in inside:
            yield from _squares(inner, place, of_jax=of_jax or function_name(eqn)[1] == "jax")


def _reductions(jaxpr: core.Jaxpr) -> Iterator[tuple[int, core.JaxprEqn]]:
    """Yield every reduction, by the id of its result."""
    for eqn in equations(jaxpr):
        if eqn.primitive.name in REDUCTIONS:
            yield id(eqn.outvars[0]), eqn
