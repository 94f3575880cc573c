"""Outer products that nobody wrote: (N,) against (N, 1), which NumPy's rules make (N, N)."""

from collections.abc import Iterator, Mapping, Sequence
from os import path as paths_of
from typing import Any, NamedTuple

import jax
from jax.extend import core

from vijax.jaxprs._equations import opened, shape_of
from vijax.jaxprs._interpreter import Question, interpret

Shape = tuple[int, ...]
_JAX = paths_of.join(paths_of.dirname(jax.__file__ or ""), "")
_INSTALLED = paths_of.join(paths_of.dirname(paths_of.dirname(_JAX)), "")  # site-packages
# How axes are added by hand; `x[None]` is one of these too.
_BY_HAND = "expand_dims"


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


def accidental_outer(closed: core.ClosedJaxpr) -> Outer | None:
    """Return the first outer product by an implicit broadcast that depends on an input, or None.

    What a jaxpr closes over may broadcast against itself: in the kernel of a Gaussian process it
    should. A broadcast is implicit where the function that was called made it, jnp.where or an
    operator, and explicit where it is a call of its own, as in x[None].
    """
    found = {id(eqn): outer for eqn, outer in _candidates(closed.jaxpr, None)}
    if not found:
        return None
    reached: list[Outer] = []

    def rule(eqn: core.JaxprEqn, ins: list[bool]) -> list[bool]:
        if any(ins) and id(eqn) in found:
            reached.append(found[id(eqn)])
        return [any(ins)] * len(eqn.outvars)

    question: Question[bool] = Question(
        nothing=False,
        join=lambda several, _: any(several),
        rules={},
        default=rule,
        choose=lambda which, cases, _: which or any(cases),
        opaque=lambda _, several: any(several),
        constant=lambda _: False,
        into_unknown=True,
    )
    inputs = [True] * len(closed.jaxpr.invars)
    interpret(closed, inputs, question, [False] * len(closed.consts))
    return reached[0] if reached else None


class _Call(NamedTuple):
    """The call that an equation is part of: where, the function called, and whether it adds axes."""

    file: str
    line: int
    function: str
    by_hand: bool
    place: str

    def same(self, other: "_Call") -> bool:
        """Whether two equations are part of one call."""
        return self[:3] == other[:3]


def _candidates(jaxpr: core.Jaxpr, around: _Call | None) -> Iterator[tuple[core.JaxprEqn, Outer]]:
    """Return the equations that broadcast a row against a column of as many, whatever they read."""
    made: dict[Any, core.JaxprEqn] = {}
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("broadcast_in_dim", "convert_element_type"):
            made[eqn.outvars[0]] = eqn
        elif len(eqn.invars) > 1 and eqn.outvars and _is_square(shape_of(eqn.outvars[0])):
            outer = _outer(eqn, made, around)
            if outer is not None:
                yield eqn, outer
        for inner in _inner(eqn):
            yield from _candidates(inner, _call(eqn) or around)


def _inner(eqn: core.JaxprEqn) -> Iterator[core.Jaxpr]:
    for value in eqn.params.values():
        for inner in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(inner, (core.Jaxpr, core.ClosedJaxpr)):
                yield opened(inner)


def _is_square(shape: Shape) -> bool:
    return len(shape) > 1 and shape[-1] == shape[-2] > 1


def _outer(
    eqn: core.JaxprEqn, made: Mapping[Any, core.JaxprEqn], around: _Call | None
) -> Outer | None:
    call = _call(eqn) or around
    if call is None:
        return None
    shapes = [_before(v, made, call, around) for v in eqn.invars]
    pair = _accident(shapes)
    return None if pair is None else Outer(*pair, call.place)


def _before(
    variable: Any, made: Mapping[Any, core.JaxprEqn], call: _Call, around: _Call | None
) -> Shape:
    """Return the shape of an operand before the call broadcast it."""
    while not isinstance(variable, core.Literal) and variable in made:
        by = _call(made[variable]) or around
        if by is None or by.by_hand or not by.same(call):
            break
        variable = made[variable].invars[0]
    return shape_of(variable)


def _accident(shapes: Sequence[Shape]) -> tuple[Shape, Shape] | None:
    for short in shapes:
        for long in shapes:
            if len(short) < len(long) and short and long[-1] == 1 and long[-2] == short[-1] > 1:
                return short, long
    return None


def _call(eqn: core.JaxprEqn) -> _Call | None:
    """Return the call that an equation is part of; None where no frame outside JAX is known."""
    frames = getattr(eqn.source_info.traceback, "frames", ())
    outside = next((i for i, f in enumerate(frames) if not f.file_name.startswith(_JAX)), None)
    if outside is None:
        return None
    frame, within = frames[outside], frames[:outside]
    # A library that was installed is not where a user looks.
    own = (f for f in frames[outside:] if not f.file_name.startswith(_INSTALLED))
    shown = next(own, frame)
    return _Call(
        frame.file_name,
        frame.line_num,
        within[-1].function_name if within else "",
        any(_BY_HAND in f.function_name for f in within),
        f"{paths_of.basename(shown.file_name)}:{shown.line_num}",
    )
