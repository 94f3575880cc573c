"""Ranges of functions of one variable: monotone ones, and powers."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from vijax.jaxprs._equations import Atom, shape_of
from vijax.jaxprs._interpreter import Rule
from vijax.jaxprs._keys import ANY, SOME, UNHASHED
from vijax.jaxprs._noise import Noise, bare, is_own, made
from vijax.jaxprs._range import (
    FIXED,
    INF,
    INFINITE,
    LEAST,
    MOVES,
    SEAMS,
    End,
    Range,
    is_nonzero,
    is_real,
    never_zero,
    not_known,
    point,
    sign_between,
    sign_of,
)
from vijax.jaxprs._range_arithmetic import (
    negated,
    reciprocal,
)
from vijax.jaxprs._range_join import same_turns


def each(rule: Callable[[core.JaxprEqn, list[Range]], Range]) -> Rule[Range]:
    """Return the rule that gives all results of an equation one range."""
    return lambda eqn, ins: [rule(eqn, ins)] * len(eqn.outvars)


def default(eqn: core.JaxprEqn, ins: list[Range]) -> Range:
    """Of a primitive without a rule: a key is told by what made it, a draw is not followed."""
    if any(v.key is not None for v in ins) or any(is_key(v) for v in eqn.outvars):
        return Range(key=_key(eqn, ins))
    if not any(v.noise for v in ins):
        return point(ins)
    return not_known(ins, f"'{eqn.primitive.name}' of its draws is not followed")


def is_key(variable: Atom) -> bool:
    """Whether a variable of a jaxpr is a random key, or an array of them."""
    return jnp.issubdtype(getattr(variable.aval, "dtype", np.float32), jax.dtypes.prng_key)


def _key(eqn: core.JaxprEqn, ins: list[Range]) -> Noise:
    """Return the key that an operation makes of keys and numbers."""
    name, shape = eqn.primitive.name, shape_of(eqn.outvars[0])
    keys = [v.key for v in ins if v.key is not None]
    numbers = [v for v in ins if v.key is None]
    if name in ("random_wrap", "random_unwrap", "random_clone") and keys:
        # A key and its words are the same.
        rank, axes = len(shape), keys[0].axes
        if axes is not None:
            axes = axes[:rank] if name == "random_wrap" else (*axes, *[None] * (rank - len(axes)))
        return keys[0]._replace(axes=axes)
    if name not in ("random_split", "random_fold_in") or len(keys) != 1:
        return Noise(ANY, axes=None)
    hashed = _is_hashed(eqn)
    if name == "random_fold_in" and not hashed:
        return Noise(ANY, axes=None)
    # It is the same in every turn of as many loops as both its own key and its number are; in the
    # next one it is another in every turn if its number counts the turns, or if its key is.
    of = keys[0]
    loops = min(same_turns(numbers), of.loops)
    fresh = any(v.counts is not None and v.loops == loops for v in numbers)
    if of.loops > loops:  # as it is for the loops further out
        more = (False,) * (of.loops - loops - 1)
        of = of._replace(outer=(*more, of.fresh, *of.outer), fresh=False)
    of = of._replace(loops=loops, fresh=fresh or of.fresh)
    if name == "random_split":
        way = name if hashed else UNHASHED
        return made((way, bare(of), tuple(eqn.params["shape"])), of, shape)
    # fold_in of a known number, of a counter of turns, or of some number that is not known.
    number = numbers[0]
    counted = number.counts and ("turn", sum(number.counts))
    root = (name, bare(of), number.low if isinstance(number.low, float) else counted or SOME)
    # vmap over arange(n): n different keys, as of a split.
    if number.distinct and len(shape) == 1:
        return made(root, of._replace(axes=()), shape)
    # Over any other numbers, some of the keys may be the same.
    rank = 0 if of.axes is None else len(of.axes)
    several = len(shape) > rank
    result = made(root, of, shape, dependent=len(shape) - rank if several else 0)
    return result._replace(repeated=of.repeated or several)


def _is_hashed(eqn: core.JaxprEqn) -> bool:
    """Whether keys are of an implementation of JAX whose `fold_in` and `split` are a hash."""
    # That of "unsafe_rbg" is an XOR; of others nothing is known.
    return str(getattr(eqn.outvars[0].aval, "dtype", "")) in ("key<fry>", "key<rbg>")


# Functions that are 0 nowhere, and at 0 alone.
_POSITIVE = frozenset("exp exp2 logistic".split())
_ROOTED = frozenset(
    "expm1 log1p tan tanh sinh asinh atanh atan erf erf_inv sqrt cbrt abs square "
    "integer_pow".split()
)


def monotone(function: Callable[[float], float], sign: int = 0) -> Rule[Range]:
    """Return the rule of an increasing function, f([a, b]) = [f(a), f(b)].

    Args:
        function: f of a number; nan where it is not defined.
        sign: that of all its values, or 0.
    """

    def end(at: End) -> End:
        if isinstance(at, float):
            with np.errstate(all="ignore"):
                try:
                    return float(function(at))
                except OverflowError:
                    return math.copysign(INF, at)
        return FIXED if at == INFINITE else at

    def rule(eqn: core.JaxprEqn, ins: list[Range]) -> Range:
        x = ins[0]
        low, high = end(x.low), end(x.high)
        if x.unknown:
            return x._replace(sign=sign, nonzero=False)
        if not x.noise:
            name = eqn.primitive.name
            rooted = x.nonzero and (low == MOVES or name in _ROOTED)
            nonzero = is_nonzero(low) if isinstance(low, float) else name in _POSITIVE or rooted
            return Range(low=low, high=high, sign=sign or sign_of(low), nonzero=nonzero)
        if any(isinstance(e, float) and math.isnan(e) for e in (low, high)):
            return not_known(ins, f"'{eqn.primitive.name}' of its draws is not defined")
        # A function of one draw that spans the line does so by that draw alone, unless elements of
        # that depend on each other.
        spans = (low, high) == (-INF, INF) and not x.seams
        real = spans and (x.real or (len(x.noise) == 1 and all(map(is_own, x.noise))))
        sign_of_all = sign or sign_between(low, high)
        return Range(x.noise, low, high, sign_of_all, real=real, seams=x.seams)

    return each(rule)


def tangent(x: float) -> float:
    """tan x between its poles, which a float meets only nearly."""
    if abs(x) > math.pi / 2 + 1e-5:
        return math.nan
    return math.copysign(INF, x) if abs(x) > math.pi / 2 - 1e-5 else math.tan(x)


def even(eqn: core.JaxprEqn, ins: list[Range]) -> Range:
    """|x| and x²."""
    # Monotone on either side of 0; of both sides together, ends are known of the whole line alone.
    x = ins[0]
    power = 1 if eqn.primitive.name == "abs" else 2
    if x.noise and not x.unknown and not is_real(x) and not x.sign:
        return not_known(ins, f"'{eqn.primitive.name}' of its draws has two branches")
    if is_real(x):
        return Range(x.noise, 0.0, INF, 1)
    return monotone(lambda v: abs(v) ** power, 1)(eqn, [negated(x) if x.sign < 0 else x])[0]


def integer_power(eqn: core.JaxprEqn, ins: list[Range]) -> Range:
    """x ** n for a whole number n."""
    power = eqn.params["y"]
    if power < 0:
        return reciprocal(_power(eqn, ins[0], -power))
    return _power(eqn, ins[0], power)


def _power(eqn: core.JaxprEqn, x: Range, power: int) -> Range:
    if power == 0:
        return Range(low=1.0, high=1.0, sign=1, nonzero=True)
    # Odd powers increase everywhere, and even ones of what is positive.
    if power % 2 or x.sign > 0:
        return monotone(lambda v: v**power, x.sign)(eqn, [x])[0]
    if x.unknown:
        return x._replace(sign=1, nonzero=False)
    if not x.noise:
        end = x.low**power if isinstance(x.low, float) else x.low
        nonzero = is_nonzero(end) if isinstance(end, float) else x.nonzero
        return Range(low=end, high=end, sign=1, nonzero=nonzero)
    if is_real(x):
        return Range(x.noise, 0.0, INF, 1)
    return not_known([x], "an even power of its draws has two branches")


def real_power(eqn: core.JaxprEqn, ins: list[Range]) -> Range:
    """x ** a of positive draws and a given exponent: ends at 0 and infinity stay."""
    x, exponent = ins
    if exponent.noise or x.sign <= 0 or x.unknown:
        result = default(eqn, ins)
        nonzero = result.nonzero and x.nonzero
        return result._replace(sign=1, nonzero=nonzero) if x.sign > 0 else result
    if not x.noise:
        return point(ins)._replace(sign=1, nonzero=x.nonzero)
    if x.seams and exponent.low == MOVES:
        return not_known(ins, SEAMS)._replace(sign=1)
    # Elements that lie on a line or surface are carried along it; the power 0 is an atom.
    if exponent.low == MOVES and not all(map(is_own, x.noise)):
        return Range(x.noise, MOVES, MOVES, 1)
    if not never_zero(exponent):
        return not_known(ins, "its power may be 0")._replace(sign=1)

    # 0, 1 and ∞ are the same for every exponent of a known sign; any other end moves with it.
    def end(at: End) -> End:
        if isinstance(at, float) and at in (0.0, 1.0, INF):
            return at if exponent.sign > 0 or at == 1.0 else (INF if at == 0 else 0.0)
        return MOVES if MOVES in (at, exponent.low) else FIXED

    # Of either sign, x ** a keeps (0, ∞) alone. A negative exponent turns the ends around.
    if not exponent.sign:
        return Range(x.noise, FIXED, FIXED, 1) if _open(x) else not_known(ins, "its power moves")
    low, high = (end(x.low), end(x.high))[:: exponent.sign]
    return Range(x.noise, low, high, 1, seams=x.seams)


def _open(x: Range) -> bool:
    return (x.low, x.high) == (0.0, INF)


def inverse_error(x: float) -> float:
    """erf⁻¹ x, found by halving."""
    if abs(x) >= 1 - 1e-6:  # a uniform draw stops a rounding short of its end
        return math.copysign(INF, x)
    # erf(±6) is ±1 in double precision, so that 10 is beyond every answer.
    low, high = -10.0, 10.0
    for _ in range(80):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if math.erf(middle) < x else (low, middle)
    return low


def logarithm(x: float) -> float:
    """log x; what a sampler starts from instead of 0 stands for 0."""
    # Below the smallest normal float32, 1.2e-38, and a factor of ten for what is done to it.
    if x < LEAST:
        return -INF if x > -LEAST else math.nan
    return math.log(x) if x < INF else INF
