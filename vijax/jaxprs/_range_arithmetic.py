"""Ranges of sums, products, quotients, maxima and minima."""

import math
from collections.abc import Callable
from typing import Any

from vijax.jaxprs._noise import Noises, has_own, mapped, repeat_all, share
from vijax.jaxprs._range import (
    FIXED,
    GIVEN,
    INF,
    INFINITE,
    MOVES,
    MOVING,
    SEAMS,
    End,
    Range,
    is_nonzero,
    is_real,
    never_zero,
    not_known,
    point,
    sign_between,
    spans_all,
)

# --- ends


def _add_ends(a: End, b: End) -> End:
    """Return a + b of two ends on one side."""
    if isinstance(a, float) and isinstance(b, float):
        return a + b
    for one, other in ((a, b), (b, a)):
        if isinstance(one, float) and math.isinf(one):
            return one if other != INFINITE else INFINITE
    # A finite number does not move what is infinite; anything else that moves does.
    if INFINITE in (a, b):
        return INFINITE
    return MOVES if MOVES in (a, b) else FIXED


def _multiply_ends(a: End, b: End, sign: int) -> End:
    """Return an end times a given factor b, of a known sign or 0."""
    if isinstance(a, float) and isinstance(b, float):
        return 0.0 if 0.0 in (a, b) else a * b
    # 0 stays 0 whatever the factor is, and infinite stays infinite whatever moves it.
    if 0.0 in (a, b):
        return 0.0
    for one in (a, b):
        if isinstance(one, float) and math.isinf(one):
            return one * sign if sign and one is a else INFINITE
    if INFINITE in (a, b):
        return INFINITE
    return MOVES if MOVES in (a, b) else FIXED


# --- arithmetic


def negated(x: Range) -> Range:
    """Return -x, whose ends have changed places."""
    if x.unknown:
        return x._replace(sign=-x.sign, nonzero=False)

    def end(at: End) -> End:
        return -at if isinstance(at, float) else at

    low, high = end(x.high), end(x.low)
    return Range(x.noise, low, high, -x.sign, real=x.real, seams=x.seams, nonzero=x.nonzero)


def _as_given(a: Range, b: Range, combine: Callable[[Range, Range], Range]) -> Range | None:
    """Combine two values of which one repeats a draw in all elements, and so does not span a space.

    Given the value of that draw, the whole is what the other makes of it.
    """
    if a.unknown or b.unknown or share(a.noise, b.noise):
        return None
    for one, other in ((a, b), (b, a)):
        if repeat_all(one.noise) and other.noise and not repeat_all(other.noise):
            # As if the repeated draw were a constant, which moves where its ends do.
            given = MOVING if MOVES in (one.low, one.high) else GIVEN
            result = combine(given._replace(sign=one.sign, nonzero=not one.seams), other)
            # Where that does not span the line, it still does not for one element alone.
            draws = one.noise if one.real else _partial(one.noise)
            return result._replace(noise=draws | other.noise)
    return None


def _along(a: Range, b: Range) -> Range:
    """Return a sum, or a product without 0, of independent values of which one spans the line."""
    for one, other in ((a, b), (b, a)):
        if one.real and spans_all(one):
            draws = other.noise if other.real else _partial(other.noise)
            return Range(one.noise | draws, -INF, INF, real=True)
    return Range(a.noise | b.noise, -INF, INF)


def _partial(noise: Noises) -> Noises:
    """Return draws that do not span the line by themselves."""
    return mapped(noise, lambda n: n._replace(partial=True))


def _moved(drawn: Range, given: Range) -> bool:
    """Whether draws that lie on a line or surface are carried along by parameters."""
    tied = any(n.repeated or n.dependent for n in drawn.noise)
    return given.low == MOVES and tied and not spans_all(drawn)


def add(a: Range, b: Range) -> Range:
    """Return a + b."""
    sign = a.sign if a.sign == b.sign else 0
    if a.unknown or b.unknown:
        return not_known([a, b], "")._replace(sign=sign)
    noise = a.noise | b.noise
    # Both are draws.
    if a.noise and b.noise:
        given = _as_given(a, b, add)
        if given is not None:
            return given
        if share(a.noise, b.noise):
            # x + 2x spans the line, and x - x does not: a draw that only one of them has proves it.
            if a.real and b.real and has_own(a.noise, b.noise):
                return Range(noise, -INF, INF, real=True)
            return not_known([a, b], "it is a sum of several functions of the same draw")
        # A draw that spans the line carries any independent one along.
        if spans_all(a) or spans_all(b):
            return _along(a, b)
        if MOVES in (a.low, a.high, b.low, b.high):
            return Range(noise, MOVES, MOVES, sign=sign)
    # Draws plus a constant, or two bounded draws whose ends stay: [a₀ + b₀, a₁ + b₁].
    drawn, given = (a, b) if a.noise else (b, a)
    if drawn.noise and drawn.seams and given.low == MOVES:
        return not_known([a, b], SEAMS)
    low, high = _add_ends(a.low, b.low), _add_ends(a.high, b.high)
    if not noise:
        # Of values of one sign one that is not 0 will do, and so will a parameter.
        nonzero = bool(sign or low == MOVES) and (a.nonzero or b.nonzero)
        return Range(low=low, high=high, sign=sign, nonzero=nonzero or is_nonzero(low))
    if not (a.noise and b.noise) and _moved(drawn, given):
        return Range(noise, MOVES, MOVES, sign)
    seams = any(v.seams and v.noise for v in (a, b))
    real = drawn.real and not seams
    return Range(noise, low, high, sign or sign_between(low, high), real=real, seams=seams)


def multiply(a: Range, b: Range) -> Range:
    """Return a · b."""
    sign = a.sign * b.sign
    if a.unknown or b.unknown:
        return not_known([a, b], "")._replace(sign=sign)
    noise = a.noise | b.noise
    # Two constants.
    if not noise:
        known = isinstance(a.low, float) and isinstance(b.low, float)
        low: End = float(a.low) * float(b.low) if known else FIXED
        result = Range(low=low, high=low) if known else point([a, b])
        nonzero = is_nonzero(low) if known else a.nonzero and b.nonzero
        return result._replace(sign=sign, nonzero=nonzero)
    if a.noise and b.noise:
        given = _as_given(a, b, multiply)
        return _multiply_draws(a, b, sign) if given is None else given
    # Draws a times a constant b: a seam between the ends moves with b, and the line stays the line.
    if b.noise:
        a, b = b, a
    if b.low == 0.0:  # a constant
        return Range(low=0.0, high=0.0)
    if (a.seams and b.low == MOVES) or _moved(a, b):
        return Range(noise, MOVES, MOVES, sign)
    # Where a factor is 0 an atom lies.
    seams = not never_zero(b)
    if is_real(a):
        return Range(noise, -INF, INF, real=a.real and not seams, seams=seams)
    # [a₀ b, a₁ b], turned around by a negative b.
    low, high = _multiply_ends(a.low, b.low, b.sign), _multiply_ends(a.high, b.low, b.sign)
    if b.sign < 0:
        low, high = high, low
    return Range(noise, low, high, sign, seams=a.seams or seams)


def _multiply_draws(a: Range, b: Range, sign: int) -> Range:
    """Return a product of draws."""
    if share(a.noise, b.noise):
        return not_known([a, b], "it is a product of several functions of the same draw")
    noise, seams = a.noise | b.noise, a.seams or b.seams
    if seams and MOVES in (a.low, a.high, b.low, b.high):
        return not_known([a, b], SEAMS)
    # Of independent draws: on the line where one of them spans it, [a₀ b₀, a₁ b₁] of positive ones.
    if (spans_all(a) and not b.seams) or (spans_all(b) and not a.seams):
        return _along(a, b)
    if is_real(a) or is_real(b):
        return Range(noise, -INF, INF, seams=seams)
    if a.sign > 0 and b.sign > 0:
        low, high = _multiply_ends(a.low, b.low, 1), _multiply_ends(a.high, b.high, 1)
        return Range(noise, low, high, sign, seams=seams)
    return not_known([a, b], "it is a product of draws whose signs are not known")


def reciprocal(x: Range) -> Range:
    """Return 1 / x."""

    def end(at: End) -> End:
        if isinstance(at, float):
            return INF * (x.sign or 1) if at == 0 else 1 / at
        return 0.0 if at == INFINITE else at

    if x.unknown:
        return x._replace(nonzero=False)
    if not x.noise:
        value = end(x.low)
        nonzero = is_nonzero(value) if isinstance(value, float) else x.nonzero
        return Range(low=value, high=value, sign=x.sign, nonzero=nonzero)
    # 1/x of the whole line is the line without 0.
    if is_real(x):
        return Range(x.noise, -INF, INF)
    if not x.sign:
        return not_known([x], "it is divided by draws whose sign is not known")
    return Range(x.noise, end(x.high), end(x.low), x.sign, seams=x.seams)


def _bounded(which: Callable[..., Any]) -> Callable[[Range, Range], Range]:
    """Return max or min of two."""

    def end(a: End, b: End) -> End:
        if isinstance(a, float) and isinstance(b, float):
            return float(which(a, b))
        # Of a maximum: ∞ wins, and -∞ never does; of a minimum, the reverse.
        outer, inner = which(-INF, INF), -which(-INF, INF)
        for one, other in ((a, b), (b, a)):
            if one == outer:
                return one
            if one == inner:
                return other
        return MOVES if MOVES in (a, b) else FIXED

    def bounded(a: Range, b: Range) -> Range:
        if a.unknown or b.unknown:
            return not_known([a, b], "")
        if share(a.noise, b.noise) or INFINITE in (a.low, a.high, b.low, b.high):
            return not_known([a, b], "its draws are compared with themselves")
        if a.noise and b.noise and MOVES in (a.low, a.high, b.low, b.high):
            return not_known([a, b], SEAMS)
        # A maximum with something positive is positive. Where the end of one cuts off the other's
        # values, an atom lies there.
        sign = a.sign if a.sign == b.sign else int(which is max and 1 in (a.sign, b.sign))
        noise = a.noise | b.noise
        seams = bool(noise) and (a.seams or b.seams or (a.low, a.high) != (b.low, b.high))
        low, high = end(a.low, b.low), end(a.high, b.high)
        # It is one of the two; and beyond one that 0 does not reach.
        outer = 1 if which is max else -1
        nonzero = (a.nonzero and b.nonzero) or any(v.nonzero and v.sign == outer for v in (a, b))
        return Range(noise, low, high, sign, seams=seams, nonzero=nonzero and not noise)

    return bounded


maximum, minimum = _bounded(max), _bounded(min)
