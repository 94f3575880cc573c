"""Between which ends an array's values lie, and whether those ends move with q's parameters."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vijax.jaxprs._noise import (
    ALWAYS,
    Noise,
    Noises,
    has_own,
    repeat_all,
    share,
)

INF = math.inf

End = float | str
"""An end of a range: its value where that is known while tracing, or one of the words below."""
FIXED, INFINITE, MOVES = "fixed", "infinite", "moves"
"""A constant of unknown value; infinite, of unknown sign; what depends on a parameter."""


class Range(NamedTuple):
    """The values of one array's elements over the noise, at given parameters.

    Fields:
        noise: the independent draws that reach it; empty for what is given.
        low: the lower end; both ends of what is given are the same.
        high: the upper end. Ends that a factor of unknown sign has changed are in either order.
        sign: 1 or -1 where all values have that sign for any parameters, else 0.
        real: whether each draw that reaches it, alone, already spans the real line.
        seams: whether its density may jump, or have atoms, between the ends: parts that end at
            different places were put together.
        unknown: why nothing is known of the ends, or "".
        key: what a random key, or an array of keys, is made of; None of what is none.
        loops: of what is given: how many of the loops around it have the same in every turn.
        distinct: of what is given: whether no two elements are the same.
        counts: of what is given: (start, offset) of a number that counts the turns of a loop from
            there, and what was added to it; None of any other.
    """

    noise: Noises = frozenset()
    low: End = FIXED
    high: End = FIXED
    sign: int = 0
    real: bool = False
    seams: bool = False
    unknown: str = ""
    key: Noise | None = None
    loops: int = 0
    distinct: bool = False
    counts: tuple[float, float] | None = None


GIVEN = Range()
"""A constant, whose value is not known while tracing."""
MOVING = Range(low=MOVES, high=MOVES)
"""A parameter, or what depends on parameters alone."""
SEAMS = "its parts end at different places, which a parameter moves"


def constant(value: Any) -> Range:
    """Return the range of a constant."""
    number = jnp.issubdtype(jnp.result_type(value), jnp.number)
    if isinstance(value, jax.core.Tracer) or not np.size(value) or not number:
        return GIVEN._replace(loops=ALWAYS)
    array = np.asarray(value, np.float64)
    low, high = float(array.min()), float(array.max())
    if low == high:
        return Range(low=low, high=low, sign=int(np.sign(low)))
    sign = 1 if low > 0 else -1 if high < 0 else 0
    return Range(sign=sign, seams=bool(np.any(array == 0)), loops=ALWAYS)


def moves(value: Range) -> str | None:
    """Return why the ends of a range may move, a phrase, or None where they do not."""
    if value.unknown:
        return value.unknown
    if MOVES in (value.low, value.high):
        return "an end of its draws moves with q's parameters"
    return None


# --- ends


def _add_ends(a: End, b: End) -> End:
    if isinstance(a, float) and isinstance(b, float):
        return a + b
    for one, other in ((a, b), (b, a)):
        if isinstance(one, float) and math.isinf(one):
            return one if other != INFINITE else INFINITE
    if INFINITE in (a, b):
        return INFINITE
    return MOVES if MOVES in (a, b) else FIXED


def _multiply_ends(a: End, b: End, sign: int) -> End:
    """Return an end times a given factor b, of a known sign or 0."""
    if isinstance(a, float) and isinstance(b, float):
        return 0.0 if 0.0 in (a, b) else a * b
    if 0.0 in (a, b):
        return 0.0
    for one in (a, b):
        if isinstance(one, float) and math.isinf(one):
            return one * sign if sign and one is a else INFINITE
    if INFINITE in (a, b):
        return INFINITE
    return MOVES if MOVES in (a, b) else FIXED


def is_real(value: Range) -> bool:
    spans = (value.low, value.high) == (-INF, INF)
    return bool(value.noise) and spans and not value.unknown and not value.seams


def sign_of(end: End) -> int:
    return int(np.sign(end)) if isinstance(end, float) and not math.isnan(end) else 0


def sign_between(low: End, high: End) -> int:
    if isinstance(low, float) and low >= 0:
        return 1
    return -1 if isinstance(high, float) and high <= 0 else 0


# --- combining


def not_known(values: Sequence[Range], why: str) -> Range:
    noise = frozenset().union(*(v.noise for v in values))
    why = next((v.unknown for v in values if v.unknown), why)
    return Range(noise, MOVES, MOVES, unknown=why) if noise else point(values)


def point(values: Sequence[Range]) -> Range:
    """Return what depends on given values alone."""
    unknown = next((v.unknown for v in values if v.unknown), "")
    if unknown:
        return Range(low=MOVES, high=MOVES, unknown=unknown)
    return MOVING if any(MOVES in (v.low, v.high) for v in values) else GIVEN


# --- arithmetic


def negated(x: Range) -> Range:
    if x.unknown:
        return x._replace(sign=-x.sign)

    def end(at: End) -> End:
        return -at if isinstance(at, float) else at

    return x._replace(low=end(x.high), high=end(x.low), sign=-x.sign)


def _as_given(a: Range, b: Range, combine: Callable[[Range, Range], Range]) -> Range | None:
    """Combine two values of which one repeats its draws more: by one draw, vectors do not span the line.

    For given values of that draw, the whole is what the other makes of it.
    """
    if a.unknown or b.unknown or share(a.noise, b.noise):
        return None
    for one, other in ((a, b), (b, a)):
        if repeat_all(one.noise) and other.noise and not repeat_all(other.noise):
            given = MOVING if MOVES in (one.low, one.high) else GIVEN
            found = combine(given._replace(sign=one.sign), other)
            return found._replace(noise=a.noise | b.noise)
    return None


def _spans(value: Range) -> bool:
    """Whether all elements span the line together, by draws of their own."""
    own = [not n.repeated for n in value.noise]
    return is_real(value) and (any(own) if value.real else all(own))


def add(a: Range, b: Range) -> Range:
    sign = a.sign if a.sign == b.sign else 0
    if a.unknown or b.unknown:
        return not_known([a, b], "")._replace(sign=sign)
    noise = a.noise | b.noise
    if a.noise and b.noise:
        given = _as_given(a, b, add)
        if given is not None:
            return given
        if share(a.noise, b.noise):
            if a.real and b.real and has_own(a.noise, b.noise):
                return Range(noise, -INF, INF, real=True)
            return not_known([a, b], "it is a sum of several functions of the same draw")
        if _spans(a) or _spans(b):
            return Range(noise, -INF, INF, real=a.real and b.real)
        if MOVES in (a.low, a.high, b.low, b.high):
            return Range(noise, MOVES, MOVES, sign=sign)
    drawn, given = (a, b) if a.noise else (b, a)
    if drawn.noise and drawn.seams and given.low == MOVES:
        return not_known([a, b], SEAMS)
    low, high = _add_ends(a.low, b.low), _add_ends(a.high, b.high)
    seams = any(v.seams and v.noise for v in (a, b))
    real = drawn.real and not seams
    return Range(noise, low, high, sign or sign_between(low, high), real=real, seams=seams)


def multiply(a: Range, b: Range) -> Range:
    sign = a.sign * b.sign
    if a.unknown or b.unknown:
        return not_known([a, b], "")._replace(sign=sign)
    noise = a.noise | b.noise
    if not noise:
        known = isinstance(a.low, float) and isinstance(b.low, float)
        low: End = float(a.low) * float(b.low) if known else FIXED
        found = Range(low=low, high=low) if known else point([a, b])
        return found._replace(sign=sign, seams=a.seams or b.seams)
    if a.noise and b.noise:
        given = _as_given(a, b, multiply)
        return _multiply_draws(a, b, sign) if given is None else given
    if b.noise:
        a, b = b, a
    if a.seams and b.low == MOVES:
        return Range(noise, MOVES, MOVES, sign)
    if is_real(a):
        return a._replace(real=a.real and not b.seams, seams=b.seams)
    low, high = _multiply_ends(a.low, b.low, b.sign), _multiply_ends(a.high, b.low, b.sign)
    if b.sign < 0:
        low, high = high, low
    return Range(noise, low, high, sign, seams=a.seams or b.seams)


def _multiply_draws(a: Range, b: Range, sign: int) -> Range:
    if share(a.noise, b.noise):
        return not_known([a, b], "it is a product of several functions of the same draw")
    noise, seams = a.noise | b.noise, a.seams or b.seams
    if seams and MOVES in (a.low, a.high, b.low, b.high):
        return not_known([a, b], SEAMS)
    if is_real(a) or is_real(b):
        return Range(noise, -INF, INF, seams=seams)
    if a.sign > 0 and b.sign > 0:
        low, high = _multiply_ends(a.low, b.low, 1), _multiply_ends(a.high, b.high, 1)
        return Range(noise, low, high, sign, seams=seams)
    return not_known([a, b], "it is a product of draws whose signs are not known")


def reciprocal(x: Range) -> Range:
    def end(at: End) -> End:
        if isinstance(at, float):
            return INF * (x.sign or 1) if at == 0 else 1 / at
        return 0.0 if at == INFINITE else at

    if x.unknown or not x.noise:
        value = end(x.low)
        return x._replace(low=value, high=value)
    if is_real(x):
        return x._replace(real=False)
    if not x.sign:
        return not_known([x], "it is divided by draws whose sign is not known")
    return x._replace(low=end(x.high), high=end(x.low), real=False)


def _bounded(which: Callable[..., Any]) -> Callable[[Range, Range], Range]:
    """Return max or min of two."""

    def end(a: End, b: End) -> End:
        if isinstance(a, float) and isinstance(b, float):
            return float(which(a, b))
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
        sign = a.sign if a.sign == b.sign else int(which is max and 1 in (a.sign, b.sign))
        noise = a.noise | b.noise
        seams = bool(noise) and (a.seams or b.seams or (a.low, a.high) != (b.low, b.high))
        return Range(noise, end(a.low, b.low), end(a.high, b.high), sign, seams=seams)

    return bounded


maximum, minimum = _bounded(max), _bounded(min)
