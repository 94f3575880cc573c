"""Between which ends an array's values lie, and whether those ends move with q's parameters."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vijax.jaxprs._constants import Constant, given_constant
from vijax.jaxprs._noise import ALWAYS, Noise, Noises, is_own

INF = math.inf

# An end of a range: its value where that is known while tracing, or one of the words below.
End = float | str
# A constant of unknown value; infinite, of unknown sign; what depends on a parameter.
FIXED, INFINITE, MOVES = "fixed", "infinite", "moves"


class Range(NamedTuple):
    """The values of one array's elements over the noise, at given parameters.

    Fields:
        noise: the independent draws that reach it; empty for what is given.
        low: the lower end; both ends of what is given are the same.
        high: the upper end. Ends that a factor of unknown sign has changed are in either order.
        sign: 1 or -1 where all values have that sign for any parameters, else 0.
        real: whether each draw that reaches it, alone, already spans the real line.
        seams: of draws: whether the density may jump, or have atoms, between the ends: parts that
            end at different places were put together.
        unknown: why nothing is known of the ends, or "".
        key: what a random key, or an array of keys, is made of; None of what is none.
        loops: of what is given: how many of the loops around it have the same in every turn.
        distinct: of what is given: whether no two elements are the same.
        counts: of what is given: (start, offset) of a number that counts the turns of a loop from
            there, and what was added to it; None of any other.
        nonzero: of what is given: whether no element is 0, as far as is shown; parameters, and what
            comes in as a value of its own, count as such.
        value: of a constant, or what is made of constants alone: what it is, if it is small.
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
    nonzero: bool = False
    value: Constant | None = None


# What constants make, whose value is not known while tracing.
MADE = Range()
# A constant that comes in as it is.
GIVEN = Range(nonzero=True)
# A parameter, or what depends on parameters alone.
MOVING = Range(low=MOVES, high=MOVES, nonzero=True)
# Below the smallest normal float32, 1.2e-38, numbers become 0.
LEAST = 1e-37
# Why nothing is known of a sum, product or maximum of draws with seams.
SEAMS = "its parts end at different places, which a parameter moves"


def constant(value: Any) -> Range:
    """Return the range of a constant."""
    dtype = jnp.result_type(value)
    number = jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)
    number = number and not jnp.issubdtype(dtype, jnp.complexfloating)
    if isinstance(value, jax.core.Tracer) or not np.size(value) or not number:
        # A float of unknown value counts as other than 0; a mask or a count may be 0.
        return GIVEN._replace(loops=ALWAYS, nonzero=not is_whole(dtype))
    # One number for all elements has known ends; of several, only a common sign is kept.
    array = np.asarray(value, np.float64)
    low, high = float(array.min()), float(array.max())
    known, nonzero = given_constant(value), bool(np.all(np.abs(array) >= LEAST))
    if low == high:
        return Range(low=low, high=high, sign=int(np.sign(low)), nonzero=nonzero, value=known)
    sign = 1 if low > 0 else -1 if high < 0 else 0
    return Range(sign=sign, loops=ALWAYS, nonzero=nonzero, value=known)


def is_whole(dtype: Any) -> bool:
    """Whether an array of a dtype holds whole numbers or truth values."""
    return jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.bool_)


def moves(value: Range) -> str | None:
    """Return why the ends of a range may move, a phrase, or None where they do not."""
    if value.unknown:
        return value.unknown
    if MOVES in (value.low, value.high):
        return "an end of its draws moves with q's parameters"
    return None


# --- ends


def is_real(value: Range) -> bool:
    """Whether draws span the real line with a density that does not jump, each element for all."""
    spans = (value.low, value.high) == (-INF, INF)
    apart = bool(value.noise) and not any(n.dependent for n in value.noise)
    return apart and spans and not value.unknown and not value.seams


def sign_of(end: End) -> int:
    """Return the sign of a known end, 0 of any other."""
    return int(np.sign(end)) if isinstance(end, float) and not math.isnan(end) else 0


def sign_between(low: End, high: End) -> int:
    """Return the sign of all values between two ends, 0 where it is not known."""
    if isinstance(low, float) and low >= 0:
        return 1
    return -1 if isinstance(high, float) and high <= 0 else 0


def spans_all(value: Range) -> bool:
    """Whether all elements span the line together, by draws of their own."""
    own = [is_own(n) for n in value.noise]
    return is_real(value) and (any(own) if value.real else all(own))


def never_zero(given: Range) -> bool:
    """Whether no element of what is given is 0, as far as is shown."""
    if given.nonzero or given.value is None:
        return given.nonzero
    array = given.value.array()
    return array is not None and bool(np.all(np.abs(array) >= LEAST))


# --- combining


def not_known(values: Sequence[Range], why: str) -> Range:
    """Return what depends on draws in a way that is not followed, with the first reason."""
    noise = frozenset().union(*(v.noise for v in values))
    why = next((v.unknown for v in values if v.unknown), why)
    return Range(noise, MOVES, MOVES, unknown=why) if noise else point(values)


def point(values: Sequence[Range]) -> Range:
    """Return what depends on given values alone."""
    unknown = next((v.unknown for v in values if v.unknown), "")
    if unknown:
        return Range(low=MOVES, high=MOVES, unknown=unknown)
    moving = [v for v in values if MOVES in (v.low, v.high)]
    # What parameters make is other than 0, unless one of them has met a mask.
    return MOVING._replace(nonzero=all(v.nonzero for v in moving)) if moving else MADE


def is_nonzero(end: End) -> bool:
    """Whether a known value is not 0, nor rounded to it."""
    return isinstance(end, float) and abs(end) >= LEAST
