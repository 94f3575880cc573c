"""Ranges of the same draws at other places of an array, and in other turns of a loop."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from jax.extend import core

from vijax.jaxprs import _noise as places
from vijax.jaxprs._equations import Atom, shape_of
from vijax.jaxprs._interpreter import Loops
from vijax.jaxprs._noise import Noise, Noises
from vijax.jaxprs._range import MOVES, Range, not_known
from vijax.jaxprs._range_join import first_of_a_loop


def with_draws(x: Range, change: Callable[[Noises], Noises]) -> Range:
    """Return a range, or a key, with its draws at other places."""
    key = None if x.key is None else next(iter(change(frozenset({x.key}))))
    return x._replace(noise=change(x.noise), key=key, distinct=False, value=None)


def anywhere(eqn: core.JaxprEqn, ins: list[Range]) -> Range:
    """Return the operand's range, its elements at places that are no longer known."""
    return with_draws(ins[0], places.anywhere)


def reshape(eqn: core.JaxprEqn, ins: list[Range]) -> Range:
    """Return the range after a reshape, squeeze or expand_dims."""
    before, after = shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])
    return with_draws(ins[0], lambda n: places.reshaped(n, before, after))


def transpose(eqn: core.JaxprEqn, ins: list[Range]) -> Range:
    """Return the range after a permutation of axes."""
    return with_draws(ins[0], lambda n: places.moved(n, eqn.params["permutation"]))


def slice_of(eqn: core.JaxprEqn, ins: list[Range]) -> Range:
    """Parts of a draw that do not overlap are independent."""
    starts, stops = eqn.params["start_indices"], eqn.params["limit_indices"]
    result = with_draws(ins[0], lambda n: places.part_of(n, starts, stops))
    # With strides a part is no interval.
    apart = any(n != 1 for n in eqn.params["strides"] or ())
    return with_draws(result, places.anywhere) if apart else result


def _pieces(axis: int, sizes: Sequence[Any], shape: Sequence[int], x: Range) -> list[Range]:
    """Return what lies behind each other along an axis."""
    # Piece by piece, start, ..., start + n - 1 along the axis, and all along the others.
    pieces, start = [], 0
    for n in map(int, sizes):
        starts = [start if i == axis else 0 for i in range(len(shape))]
        stops = [start + n if i == axis else m for i, m in enumerate(shape)]
        pieces.append(with_draws(x, partial(places.part_of, starts=starts, stops=stops)))
        start += n
    return pieces


def split(eqn: core.JaxprEqn, ins: list[Range]) -> list[Range]:
    """Return the range of each piece."""
    return _pieces(eqn.params["axis"], eqn.params["sizes"], shape_of(eqn.invars[0]), ins[0])


def unstack(eqn: core.JaxprEqn, ins: list[Range]) -> list[Range]:
    """Return the range of each piece of length 1, without that axis."""
    axis, shape = eqn.params["axis"], shape_of(eqn.invars[0])
    rest = [i for i in range(len(shape)) if i != axis]
    pieces = _pieces(axis, [1] * len(eqn.outvars), shape, ins[0])
    return [with_draws(piece, lambda n: places.moved(n, rest)) for piece in pieces]


def broadcast(eqn: core.JaxprEqn, ins: list[Range]) -> Range:
    """Elements that repeat a draw do not have one of their own."""
    before, after = shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])
    # An axis of the operand where its length is kept; None for a new one, or one that is stretched.
    come_from: list[int | None] = [None] * len(after)
    for axis, to in enumerate(eqn.params["broadcast_dimensions"]):
        come_from[to] = axis if before[axis] == after[to] else None
    repeated = math.prod(after) > math.prod(before)
    return with_draws(ins[0], lambda n: places.moved(n, come_from, repeated=repeated))


def take(eqn: core.JaxprEqn, ins: list[Range]) -> Range:
    """Of what is read at some place: any element, so a known value is no longer known."""
    if any(v.noise for v in ins[1:]):
        return not_known(ins, "its draws say where to read")
    # A gather may read one element many times.
    several = eqn.primitive.name == "gather" and math.prod(shape_of(eqn.outvars[0])) > 1
    return with_draws(ins[0], lambda n: places.anywhere(n, repeated=several))


def spread(x: Range, variable: Atom, eqn: core.JaxprEqn) -> Range:
    """Return a scalar operand as the array of the result's shape that it stands for."""
    before, after = shape_of(variable), shape_of(eqn.outvars[0])
    if before == after or not x.noise:
        return x
    return with_draws(x, lambda n: places.moved(n, [None] * len(after), repeated=True))


def alone(x: Range, variable: core.Var) -> Range:
    """Return the range of a variable: one element alone repeats nothing."""
    tied = any(n.repeated or n.dependent for n in x.noise)
    if math.prod(shape_of(variable)) > 1 or not tied:
        return x

    def untied(n: Noise) -> Noise:
        return n._replace(repeated=False, dependent=False)

    return with_draws(x, lambda noise: places.mapped(noise, untied))


def _handed_on(x: Range) -> Range:
    """Of what a turn of a loop hands to the next: keys are told apart by what made them."""
    return x._replace(noise=places.mapped(x.noise, places.handed_on), loops=0)


def _of_each_turn(x: Range) -> Range:
    """Of what is scanned over."""
    # Of arange(n) each turn has another number, which counts the turns from 0.
    result = with_draws(x, lambda n: places.mapped(n, places.of_each_turn))
    return result._replace(
        loops=0 if x.distinct else x.loops + 1, counts=(0.0, 0.0) if x.distinct else None
    )


def _of_each_turn_backward(x: Range) -> Range:
    """Of what is scanned over from the last to the first: its numbers do not count the turns."""
    return _of_each_turn(x)._replace(counts=None)


def _left(x: Range) -> Range:
    """Of the last carry, as what follows the loop has it."""
    result = with_draws(x, lambda n: places.mapped(n, places.left))
    return result._replace(loops=max(x.loops - 1, 0), counts=x.counts if x.loops else None)


def _stacked(x: Range) -> Range:
    """Of what is collected along the loop."""
    return _collected(x, places.stacked)


def _stacked_backward(x: Range) -> Range:
    """Of what is collected along a loop from the last to the first."""
    return _collected(x, places.stacked_backward)


def _collected(x: Range, change: Callable[[Noise], Noise]) -> Range:
    result = with_draws(x, lambda n: places.mapped(n, change))._replace(loops=0, counts=None)
    # A line along which parameters may have stretched a draw of all turns moves with them.
    if places.repeat_all(result.noise) and not places.repeat_all(x.noise) and not x.unknown:
        return Range(result.noise, MOVES, MOVES, result.sign)
    return result


def _entered(x: Range) -> Range:
    """Of what is constant in a loop."""
    result = with_draws(x, lambda n: places.mapped(n, places.entered))
    return result._replace(loops=x.loops + 1, value=x.value)


_FORWARD: Loops[Range] = Loops(
    enter=_entered,
    slice=_of_each_turn,
    carry=_handed_on,
    leave=_left,
    stack=_stacked,
    begin=first_of_a_loop,
)
LOOPS = replace(
    _FORWARD,
    backward=replace(_FORWARD, slice=_of_each_turn_backward, stack=_stacked_backward),
)
