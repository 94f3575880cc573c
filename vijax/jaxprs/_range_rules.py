"""How each primitive changes the range of its operands' values."""

import math
from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
import numpy as np
from jax.extend import core

from vijax.jaxprs import _noise as places
from vijax.jaxprs._constants import made_constant
from vijax.jaxprs._equations import LAID_OUT, is_complex, shape_of
from vijax.jaxprs._interpreter import Question, Rule, interpret
from vijax.jaxprs._keys import ANY
from vijax.jaxprs._noise import ALWAYS, Noise, own_draws
from vijax.jaxprs._range import (
    INF,
    MADE,
    MOVES,
    Range,
    constant,
    not_known,
    point,
)
from vijax.jaxprs._range_arithmetic import (
    add,
    maximum,
    minimum,
    multiply,
    negated,
    reciprocal,
)
from vijax.jaxprs._range_join import choose, join, same_turns
from vijax.jaxprs._range_places import (
    LOOPS,
    alone,
    anywhere,
    broadcast,
    reshape,
    slice_of,
    split,
    spread,
    take,
    transpose,
    unstack,
    with_draws,
)
from vijax.jaxprs._range_reduce import linear, reduce_extreme, reduce_sum
from vijax.jaxprs._range_unary import (
    default,
    each,
    even,
    integer_power,
    inverse_error,
    logarithm,
    monotone,
    real_power,
    tangent,
)
from vijax.jaxprs._samplers import drawn, gamma, known_function


def ranges(
    closed: core.ClosedJaxpr, inputs: Sequence[Range], consts: Sequence[Range]
) -> list[Range]:
    """Follow ranges from the inputs of a jaxpr to its outputs.

    An end is told only where the jaxpr proves it: through monotone functions of one draw, sums and
    products of independent ones, and linear maps of draws that span the real line.
    """
    return interpret(closed, inputs, _QUESTION, consts)


def _opaque(name: str, values: Sequence[Range]) -> Range:
    # A draw of unknown range, the same in every turn: no other is shown to be independent of it.
    return Range(
        frozenset({Noise(name, loops=ALWAYS)}),
        MOVES,
        MOVES,
        unknown=f"it comes through {name}, which cannot be seen into",
    )


# --- the rules


def _same(eqn: core.JaxprEqn, ins: list[Range]) -> Range:
    # The first operand, which further ones, as of a copy_p, do not change if they are no draws.
    return default(eqn, ins) if any(v.noise for v in ins[1:]) else ins[0]


def _sum(eqn: core.JaxprEqn, ins: list[Range]) -> Range:
    # A counter of turns to which a known whole number is added still counts.
    result = add(*ins)
    whole = _never_wraps(eqn)
    for number, more in (ins, ins[::-1]):
        if whole and number.counts is not None and isinstance(more.low, float) and not more.noise:
            start, offset = number.counts
            return result._replace(counts=(start, offset + more.low))
    return result


def _never_wraps(eqn: core.JaxprEqn) -> bool:
    """Whether a result is of whole numbers that take four bytes or more, as `fold_in` reads them."""
    dtype = eqn.outvars[0].aval.dtype  # type: ignore[attr-defined]
    return jnp.issubdtype(dtype, jnp.integer) and dtype.itemsize >= 4


def _negative(eqn: core.JaxprEqn, ins: list[Range]) -> Range:
    return negated(ins[0])


def _quotient(eqn: core.JaxprEqn, ins: list[Range]) -> Range:
    if jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.integer):  # type: ignore[attr-defined]
        return default(eqn, ins)
    return multiply(ins[0], reciprocal(ins[1]))


def _clamp(eqn: core.JaxprEqn, ins: list[Range]) -> Range:
    low, x, high = ins
    return minimum(maximum(x, low), high)


def _concatenate(eqn: core.JaxprEqn, ins: list[Range]) -> Range:
    # Of several keys one may be there twice.
    if len(ins) > 1 and any(v.key is not None for v in ins):
        return Range(key=Noise(ANY, axes=None))
    # Elements that share a draw lie on a curve, whatever ends each of them has.
    if not own_draws(ins):
        return not_known(ins, "its elements are functions of the same draw")
    return with_draws(join(ins, eqn.primitive.name), places.anywhere)


def _cast(eqn: core.JaxprEqn, ins: list[Range]) -> Range:
    x, to = ins[0], eqn.params["new_dtype"]
    of = eqn.invars[0].aval.dtype  # type: ignore[attr-defined]
    # To a float, or of given whole numbers to four bytes or more: the values stay.
    whole = jnp.issubdtype(of, jnp.integer) and jnp.dtype(to).itemsize >= 4
    if whole and not x.noise:
        return x
    if jnp.issubdtype(to, jnp.inexact):
        return x._replace(counts=None, distinct=False)
    return default(eqn, ins)


def _compare(eqn: core.JaxprEqn, ins: list[Range]) -> Range:
    # A truth value is 0 or 1, two atoms; why nothing is known of what is compared stays known.
    noise = frozenset().union(*(v.noise for v in ins))
    result = point(ins)._replace(sign=1) if not noise else Range(noise, 0.0, 1.0, seams=True)
    unknown = next((v.unknown for v in ins if v.unknown), "")
    return result._replace(unknown=unknown, nonzero=False)


# They keep the value of their first operand.
_KEEP = (*LAID_OUT, *"reduce_precision optimization_barrier real device_put stop_gradient".split())


def _told(rule: Rule[Range]) -> Rule[Range]:
    """Return a rule that also tells how draws spread over the result, and given values over loops."""

    def ruled(eqn: core.JaxprEqn, ins: list[Range]) -> list[Range]:
        # A scalar operand stands for an array whose elements all repeat its draw.
        if eqn.primitive.name in _ELEMENTWISE:
            ins = [spread(x, v, eqn) for x, v in zip(ins, eqn.invars, strict=True)]
        # A key, or its words, that anything else is done to is followed by what is made of it.
        changed = eqn.primitive.name not in _MOVES and any(v.key is not None for v in ins)
        # Complex numbers have no ends.
        changed = changed or any(map(is_complex, (*eqn.invars, *eqn.outvars)))
        loops, result = same_turns(ins), each(default)(eqn, ins) if changed else rule(eqn, ins)
        # What tells numbers apart holds of the results of few operations.
        if eqn.primitive.name not in _NUMBERS:
            result = [x._replace(counts=None, distinct=False) for x in result]
        value = made_constant(eqn, [v.value for v in ins])
        return [
            alone(x, v) if x.noise else x._replace(loops=loops, value=value)
            for x, v in zip(result, eqn.outvars, strict=True)
        ]

    return ruled


# Of these a scalar operand, or one with axes of length 1, may meet larger ones.
_ELEMENTWISE = frozenset("add sub mul div max min pow select_n clamp".split())


# They keep whole numbers that count, or of which no two are the same, what they are.
_NUMBERS = frozenset(
    "add add_any iota convert_element_type reshape squeeze expand_dims broadcast_in_dim "
    "reduce_precision optimization_barrier real device_put stop_gradient".split()
) | set(LAID_OUT)


# What may be done with keys and their words, which leaves them what they are.
_MOVES = frozenset(
    "copy copy_p optimization_barrier sharding_constraint device_put stop_gradient reshape squeeze "
    "expand_dims transpose slice broadcast_in_dim dynamic_slice gather select_n concatenate stack "
    "unstack split rev random_gamma random_bits".split()
)


def _iota(eqn: core.JaxprEqn, ins: list[Range]) -> Range:
    # arange(n) has no number twice; in more axes it repeats them.
    # Those of few bytes start again.
    return MADE._replace(distinct=len(shape_of(eqn.outvars[0])) == 1 and _never_wraps(eqn))


def _select(eqn: core.JaxprEqn, ins: list[Range]) -> Range:
    result = choose(ins[0], ins[1:], "select_n")
    if result.key is not None and result.key.axes is None and shape_of(eqn.outvars[0]):
        return Range(key=Noise(ANY, axes=None))
    # Of one array and the same draws at other places, both may show the same draw.
    drawn = [v.noise for v in ins[1:] if v.noise]
    known = all(n.axes is not None for noise in drawn for n in noise)
    if len(drawn) < 2 or (known and all(noise == drawn[0] for noise in drawn)):
        return result
    twice = any(places.share(a, b) for i, a in enumerate(drawn) for b in drawn[:i])
    return with_draws(result, partial(places.anywhere, repeated=True)) if twice else result


# The rule of each primitive; what is not here is not followed, see `default`.
_RULES: dict[str, Rule[Range]] = {
    **dict.fromkeys(_KEEP, each(_same)),
    "rev": each(anywhere),
    **dict.fromkeys("reduce_max reduce_min".split(), each(reduce_extreme)),
    **dict.fromkeys("reshape squeeze expand_dims".split(), each(reshape)),
    "transpose": each(transpose),
    "slice": each(slice_of),
    "iota": each(_iota),
    "broadcast_in_dim": each(broadcast),
    **dict.fromkeys(("dynamic_slice", "gather"), each(take)),
    **dict.fromkeys("dot_general conv_general_dilated cumsum".split(), each(linear)),
    **dict.fromkeys("eq ne lt le gt ge is_finite and or not".split(), each(_compare)),
    **dict.fromkeys(("add", "add_any"), each(_sum)),
    "sub": each(lambda eqn, ins: add(ins[0], negated(ins[1]))),
    "mul": each(lambda eqn, ins: multiply(*ins)),
    "div": each(_quotient),
    "neg": each(_negative),
    "abs": each(even),
    "square": each(even),
    "integer_pow": each(integer_power),
    "pow": each(real_power),
    "max": each(lambda eqn, ins: maximum(*ins)),
    "min": each(lambda eqn, ins: minimum(*ins)),
    "clamp": each(_clamp),
    "select_n": each(_select),
    "reduce_sum": each(reduce_sum),
    **dict.fromkeys(("concatenate", "stack"), each(_concatenate)),
    "unstack": unstack,
    "split": split,
    "convert_element_type": each(_cast),
    "exp": monotone(np.exp, 1),
    "exp2": monotone(np.exp2, 1),
    "expm1": monotone(np.expm1),
    "log": monotone(logarithm),
    "log1p": monotone(lambda x: logarithm(1 + x) if x < -0.5 else math.log1p(x)),
    "tan": monotone(tangent),
    "tanh": monotone(np.tanh),
    "sinh": monotone(np.sinh),
    "asinh": monotone(np.arcsinh),
    "atanh": monotone(lambda x: math.copysign(INF, x) if abs(x) >= 1 else math.atanh(x)),
    "atan": monotone(np.arctan),
    "erf": monotone(math.erf),
    "erf_inv": monotone(inverse_error),
    "logistic": monotone(lambda x: 1 / (1 + math.exp(-max(x, -700.0))) if x > -INF else 0.0, 1),
    "sqrt": monotone(np.sqrt, 1),
    "cbrt": monotone(np.cbrt),
    "random_gamma": gamma,
    "random_bits": lambda eqn, ins: [
        not_known([Range(drawn(eqn, ins))], "its noise is made of random bits")
    ],
}
_QUESTION: Question[Range] = Question(
    nothing=MADE,
    join=join,
    rules={name: _told(rule) for name, rule in _RULES.items()},
    default=_told(each(default)),
    choose=choose,
    opaque=_opaque,
    constant=constant,
    functions=known_function,
    loops=LOOPS,
)
