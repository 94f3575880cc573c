"""Outer products that nobody wrote: (N,) against (N, 1), which NumPy's rules make (N, N)."""

from collections.abc import Iterator, Sequence
from enum import IntEnum
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from jax.extend import core

from vijax.jaxprs._calls import INSTALLED, call_of
from vijax.jaxprs._equations import equations, function_name, inner_jaxprs, shape_of
from vijax.jaxprs._interpreter import Loops, Question, interpret

Shape = tuple[int, ...]
_NEW_ARRAYS = frozenset({"full", "ones", "zeros"})


class Outer(NamedTuple):
    """An outer product that no one asked for.

    Fields:
        short: the shape of the row, (N,).
        long: that of the column, (N, 1).
        place: file:line.
    """

    short: Shape
    long: Shape
    place: str


class _Axis(IntEnum):
    """Where an axis comes from; where several operands share one, the largest holds."""

    FILLED = 0  # a scalar, repeated, or in more axes
    PROMOTED = 1  # added by NumPy's rules, since another operand has more axes
    CAME = 2  # an input or data had it, with length 1
    MAPPED = 3  # added by vmap, or by NumPy's rules under it
    BY_HAND = 4  # added by a call of its own: x[:, None], expand_dims, reshape, keepdims
    OWN = 5  # an axis with a length of its own


class _Axes(NamedTuple):
    """What is known of a variable: whether an input reaches it, and its axes; None: its shape tells."""

    depends: bool
    axes: tuple[_Axis, ...] | None


_NOTHING = _Axes(depends=False, axes=None)


def accidental_outer(closed: core.ClosedJaxpr) -> Outer | None:
    """Return the first outer product by an implicit broadcast that depends on an input, or None.

    It joins a row, whose new axis NumPy's rules added, with a column that came as one: an input or
    data (N, 1). An axis that was added by a call of its own, as in x[:, None], is meant. Axes are
    followed into functions and out of them. What a jaxpr closes over may broadcast against itself:
    in the kernel of a Gaussian process it should.
    """
    places = dict(_squares(closed.jaxpr, "a line of a library"))
    if not places:
        return None
    reached: list[Outer] = []

    def default(eqn: core.JaxprEqn, ins: list[_Axes]) -> list[_Axes]:
        depends, known = any(v.depends for v in ins), _known(eqn.invars, ins)
        if depends and id(eqn) in places:
            pair = _accident([axes for axes in known if axes])
            if pair is not None:
                reached.append(Outer(*pair, places[id(eqn)]))
        return [_Axes(depends, _elementwise(v, known)) for v in eqn.outvars]

    made_by: dict[int, core.JaxprEqn] = dict(_reductions(closed.jaxpr))

    def broadcast(eqn: core.JaxprEqn, ins: list[_Axes]) -> list[_Axes]:
        return [_Axes(ins[0].depends, _broadcast(eqn, _of(eqn.invars[0], ins[0]), made_by))]

    question: Question[_Axes] = Question(
        nothing=_NOTHING,
        join=lambda several, _: _join(several),
        rules={**_RULES, "broadcast_in_dim": broadcast},
        default=default,
        choose=lambda which, cases, _: _join([*cases, _Axes(which.depends, None)]),
        opaque=lambda _, several: _Axes(any(v.depends for v in several), None),
        constant=lambda value: _Axes(depends=False, axes=_of_shape(np.shape(value))),
        into_unknown=True,
        loops=_LOOPS,
    )
    inputs = [_Axes(depends=True, axes=_of_shape(shape_of(v))) for v in closed.jaxpr.invars]
    interpret(closed, inputs, question)
    return reached[0] if reached else None


def _accident(operands: Sequence[Sequence[tuple[int, _Axis]]]) -> tuple[Shape, Shape] | None:
    for row in operands:
        for column in operands:
            for i in range(min(len(row), len(column)) - 1):
                (n, own), (_, came) = column[i : i + 2]
                (_, promoted), (m, other) = row[i : i + 2]
                kinds = (promoted, other, own, came)
                if n == m > 1 and kinds == (_Axis.PROMOTED, _Axis.OWN, _Axis.OWN, _Axis.CAME):
                    return (
                        tuple(k for k, axis in row if axis is not _Axis.PROMOTED),
                        tuple(k if axis is _Axis.OWN else 1 for k, axis in column),
                    )
    return None


# --- axes


def _of_shape(shape: Shape) -> tuple[_Axis, ...]:
    if all(n == 1 for n in shape):
        return (_Axis.FILLED,) * len(shape)
    return tuple(_Axis.CAME if n == 1 else _Axis.OWN for n in shape)


def _of(variable: Any, value: _Axes) -> tuple[_Axis, ...]:
    shape = shape_of(variable)
    fits = value.axes is not None and len(value.axes) == len(shape)
    return value.axes if fits and value.axes is not None else _of_shape(shape)


def _known(variables: Sequence[Any], ins: Sequence[_Axes]) -> list[list[tuple[int, _Axis]]]:
    """Return the length and the kind of each axis of each operand."""
    pairs = zip(variables, ins, strict=True)
    return [list(zip(shape_of(v), _of(v, value), strict=True)) for v, value in pairs]


def _join(several: Sequence[_Axes]) -> _Axes:
    known = [v.axes for v in several if v.axes is not None]
    same = known and len({len(axes) for axes in known}) == 1
    axes = tuple(map(max, *known)) if same and len(known) > 1 else known[0] if same else None
    return _Axes(any(v.depends for v in several), axes)


def _elementwise(
    out: Any, operands: Sequence[Sequence[tuple[int, _Axis]]]
) -> tuple[_Axis, ...] | None:
    """Join the axes of operands with the shape of the result; scalars say nothing."""
    shape = shape_of(out)
    arrays = [axes for axes in operands if axes]
    fit = all(
        len(axes) == len(shape) and all(n in (1, m) for (n, _), m in zip(axes, shape, strict=True))
        for axes in arrays
    )
    if not arrays or not fit:
        return None
    return tuple(max(axes[i][1] for axes in arrays) for i in range(len(shape)))


# --- rules


def _broadcast(
    eqn: core.JaxprEqn, before: tuple[_Axis, ...], made_by: dict[int, core.JaxprEqn]
) -> tuple[_Axis, ...]:
    shape, kept = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    call = call_of(eqn)
    own = call.file != "" and not call.file.startswith(INSTALLED)
    by_hand = own and call.functions[-1:] == ("broadcast_to",)
    if not before:
        made = own and bool(_NEW_ARRAYS.intersection(call.functions[-1:]))
        return _of_shape(shape) if made else (_Axis.FILLED,) * len(shape)
    reduction = made_by.get(id(eqn.invars[0]))
    keepdims = reduction is not None and call_of(reduction)[:3] == call[:3]
    by_hand |= keepdims or any("expand_dims" in name for name in call.functions)
    mapped = not by_hand and any("BatchTrace" in name for name in call.functions)
    first = min(kept, default=0)

    new = _Axis.BY_HAND if by_hand else _Axis.PROMOTED
    axes = [_Axis.MAPPED if mapped and i < first else new for i in range(len(shape))]
    if mapped and first:  # vmap adds its axis last: what was added before was NumPy's
        before = tuple(_Axis.PROMOTED if a is _Axis.MAPPED else a for a in before)
    for i, axis, n in zip(kept, before, shape_of(eqn.invars[0]), strict=True):
        stretched = by_hand and n != shape[i]
        axes[i] = _Axis.BY_HAND if stretched else axis
    return tuple(axes)


def _reshape(eqn: core.JaxprEqn, ins: list[_Axes]) -> list[_Axes]:
    before, old = _of(eqn.invars[0], ins[0]), shape_of(eqn.invars[0])
    new, call = shape_of(eqn.outvars[0]), call_of(eqn)
    library = call.file.startswith(INSTALLED)
    leading = next((i for i, n in enumerate(new) if n != 1), 0)
    unraveled = any("unravel" in name for name in call.functions)

    def added(i: int) -> _Axis:
        if library and i < leading:
            return _Axis.PROMOTED  # as JAX and NumPyro align shapes
        return _Axis.CAME if unraveled else _Axis.BY_HAND

    own = [axis for axis, n in zip(before, old, strict=True) if n != 1]
    same = [n for n in old if n != 1] == [n for n in new if n != 1]
    long = iter(own if same else [_Axis.OWN] * len(new))
    axes = [added(i) if n == 1 else next(long) for i, n in enumerate(new)]
    if old[-1:] == new[-1:] == (1,):
        axes[-1] = before[-1]
    return [_Axes(ins[0].depends, tuple(axes))]


def _transpose(eqn: core.JaxprEqn, ins: list[_Axes]) -> list[_Axes]:
    before = _of(eqn.invars[0], ins[0])
    return [_Axes(ins[0].depends, tuple(before[i] for i in eqn.params["permutation"]))]


def _stack(eqn: core.JaxprEqn, ins: list[_Axes]) -> list[_Axes]:
    joined = _join([_Axes(v.depends, _of(u, v)) for u, v in zip(eqn.invars, ins, strict=True)])
    new = _Axis.OWN if len(ins) > 1 else _Axis.BY_HAND
    axes, at = joined.axes or (), eqn.params["axis"]
    return [joined._replace(axes=(*axes[:at], new, *axes[at:]))]


def _without(eqn: core.JaxprEqn, ins: list[_Axes]) -> list[_Axes]:
    dropped = eqn.params["dimensions" if eqn.primitive.name == "squeeze" else "axes"]
    kept = enumerate(_of(eqn.invars[0], ins[0]))
    axes = tuple(axis for i, axis in kept if i not in dropped)
    return [_Axes(ins[0].depends, axes)] * len(eqn.outvars)


def _dot(eqn: core.JaxprEqn, ins: list[_Axes]) -> list[_Axes]:
    contracted, batched = eqn.params["dimension_numbers"]
    left, right = (_of(v, value) for v, value in zip(eqn.invars, ins, strict=True))
    batch = [max(left[i], right[j]) for i, j in zip(*batched, strict=True)]
    free = [
        axis
        for side, axes in enumerate((left, right))
        for i, axis in enumerate(axes)
        if i not in contracted[side] and i not in batched[side]
    ]
    return [_Axes(ins[0].depends or ins[1].depends, (*batch, *free))]


def _picked(eqn: core.JaxprEqn, ins: list[_Axes]) -> list[_Axes]:
    """Take results by their shape; an axis of length 1 is meant if one of the operand's was."""
    meant = _Axis.BY_HAND in _of(eqn.invars[0], ins[0])
    one = _Axis.BY_HAND if meant else _Axis.CAME
    shapes = [shape_of(v) for v in eqn.outvars]
    depends = any(v.depends for v in ins)
    return [_Axes(depends, tuple(one if n == 1 else _Axis.OWN for n in s)) for s in shapes]


_REDUCTIONS = (
    "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax argmin"
)
_RULES = {
    "reshape": _reshape,
    "transpose": _transpose,
    "stack": _stack,
    **dict.fromkeys(f"squeeze {_REDUCTIONS}".split(), _without),
    "dot_general": _dot,
    **dict.fromkeys(
        "gather dynamic_slice slice split triangular_solve concatenate".split(), _picked
    ),
    "iota": lambda eqn, _: [_Axes(depends=False, axes=_of_shape(shape_of(eqn.outvars[0])))],
}


def _sliced(value: _Axes) -> _Axes:
    return value._replace(axes=None if value.axes is None else value.axes[1:])


def _stacked(value: _Axes) -> _Axes:
    return value._replace(axes=None if value.axes is None else (_Axis.OWN, *value.axes))


_LOOPS: Loops[_Axes] = Loops(
    enter=lambda v: v, slice=_sliced, carry=lambda v: v, leave=lambda v: v, stack=_stacked
)


# --- equations


def _squares(jaxpr: core.Jaxpr, around: str, *, of_jax: bool = False) -> Iterator[tuple[int, str]]:
    """Return the equations that may make an outer product, and their place."""
    for eqn in jaxpr.eqns:
        shape = shape_of(eqn.outvars[0]) if eqn.outvars else ()
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
    for eqn in equations(jaxpr):
        if eqn.primitive.name in _REDUCTIONS:
            yield id(eqn.outvars[0]), eqn
