"""Where a followed axis is in an array: an axis of its own, or digits of other axes."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Digit(NamedTuple):
    """Part of an axis: (index // inner) % size is one digit of the followed index.

    Fields:
        axis: of the array; below zero, a loop over it.
        size: how many values the digit takes.
        inner: how many neighboring indices of the axis share one value.
    """

    axis: int
    size: int
    inner: int


# The array's own axis; the name of what mixed it; or its digits, the most significant first.
Place = int | str | tuple[Digit, ...]


def moved(place: Place, to: Callable[[int], int | str]) -> Place:
    """Move an axis, or those of all digits, where nothing is mixed yet."""
    if isinstance(place, str):
        return place
    if isinstance(place, int):
        return to(place)
    digits = []
    for digit in place:
        axis = to(digit.axis)
        if isinstance(axis, str):
            return axis
        digits.append(digit._replace(axis=axis))
    return tuple(digits)


def reshaped(place: Place, shape: Sequence[int], out: Sequence[int]) -> Place:
    """Return where a followed axis is after a reshape, which keeps the order of all elements."""
    if isinstance(place, str) or (isinstance(place, int) and place < 0):
        return place
    digits = (Digit(place, shape[place], 1),) if isinstance(place, int) else place
    # In the order of all elements a digit is (position // stride) % size.
    strides: list[Digit] = []
    for axis, size, inner in digits:
        stride = inner * math.prod(shape[axis + 1 :]) if axis >= 0 else inner
        strides.append(Digit(axis, size, stride) if axis < 0 else Digit(0, size, stride))
    # The same digits, expressed by the axes of the new shape.
    new: list[Digit] = []
    for digit in _merged(strides):
        pieces = [digit] if digit.axis < 0 else _cut(digit.size, digit.inner, out)
        if pieces is None:
            return "reshape"
        new.extend(pieces)
    # One digit that is all of an axis is that axis.
    new = _merged(new)
    axis, size, inner = new[0]
    return axis if len(new) == 1 and axis >= 0 and (size, inner) == (out[axis], 1) else tuple(new)


def tiled(place: Place, shape: Sequence[int], reps: Sequence[int]) -> Place:
    """Return where a followed axis is once the array is repeated along its axes."""
    # Tiling is a new axis of `reps` in front of each axis, joined with it: [r₀, n₀, r₁, n₁, ...].
    apart = [n for pair in zip(reps, shape, strict=True) for n in pair]
    out = [r * n for r, n in zip(reps, shape, strict=True)]
    return reshaped(moved(place, lambda a: a if a < 0 else 2 * a + 1), apart, out)


def _merged(digits: Sequence[Digit]) -> list[Digit]:
    """Join neighboring digits of one axis that are one digit."""
    merged: list[Digit] = []
    for digit in digits:
        last = merged[-1] if merged else None
        # The digit above counts on where this one ends: together they are one of size · size'.
        if last and last.axis == digit.axis and last.inner == digit.inner * digit.size:
            merged[-1] = Digit(digit.axis, last.size * digit.size, digit.inner)
        else:
            merged.append(digit)
    return merged


def _cut(size: int, stride: int, out: Sequence[int]) -> list[Digit] | None:
    """Return the digits of new axes that make up one of the order of all elements, or None."""
    pieces: list[Digit] = []
    below = 1  # elements for each step along the axis
    for axis in reversed(range(len(out))):
        # Along this axis the position, in the order of all elements, moves by below, ..., above.
        above = below * out[axis]
        if size > 1 and stride < above:
            # The part of the digit that falls within this axis; the rest is for axes further out.
            here = min(size, above // stride)
            fits = stride % below == 0 and above % (stride * here) == 0 and size % here == 0
            if not fits:
                return None
            pieces.insert(0, Digit(axis, here, stride // below))
            size, stride = size // here, stride * here
        below = above
    return pieces if size == 1 else None
