"""How each primitive changes the range of its operands' values."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax.extend import core

from vijax.jaxprs._equations import shape_of
from vijax.jaxprs._interpreter import Loops, Question, interpret
from vijax.jaxprs._noise import own_draws
from vijax.jaxprs._range import (
    FIXED,
    GIVEN,
    INF,
    INFINITE,
    MOVES,
    Range,
    add,
    choose,
    constant,
    join,
    maximum,
    minimum,
    multiply,
    negated,
    not_known,
    point,
    reciprocal,
)
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
    return Range(
        frozenset({name}),
        MOVES,
        MOVES,
        unknown=f"it comes through {name}, which cannot be seen into",
    )


# --- the rules


def _unstack(eqn: core.JaxprEqn, ins: list[Range]) -> list[Range]:
    if ins[0].key is None:
        return [_part(ins[0], (i,), (i + 1,)) for i in range(len(eqn.outvars))]
    return [Range(key=(ins[0].key, i)) for i in range(len(eqn.outvars))]


def _same(eqn: core.JaxprEqn, ins: list[Range]) -> Range:
    if ins[0].key is not None or any(v.noise for v in ins[1:]):
        return default(eqn, ins)
    return ins[0]


def _part(x: Range, starts: tuple[int, ...], stops: tuple[int, ...]) -> Range:
    return x._replace(noise=frozenset(("part", draw, starts, stops) for draw in x.noise))


def _slice(eqn: core.JaxprEqn, ins: list[Range]) -> Range:
    """Parts of a draw that do not overlap are independent."""
    if ins[0].key is not None:
        return default(eqn, ins)
    starts, stops = eqn.params["start_indices"], eqn.params["limit_indices"]
    return _part(ins[0], tuple(map(int, starts)), tuple(map(int, stops)))


def _broadcast(eqn: core.JaxprEqn, ins: list[Range]) -> Range:
    """Elements that repeat a draw do not have one of their own."""
    x = ins[0]
    if x.key is not None:
        return default(eqn, ins)
    size, before = (math.prod(shape_of(v)) for v in (eqn.outvars[0], eqn.invars[0]))
    return x if size <= before else _repeated(x)


def _take(eqn: core.JaxprEqn, ins: list[Range]) -> Range:
    """Of what is read at some place: any element, so a known value is no longer known."""
    if ins[0].key is not None:
        return default(eqn, ins)
    if any(v.noise for v in ins[1:]):
        return not_known(ins, "its draws say where to read")
    return _repeated(ins[0]) if eqn.primitive.name == "gather" else ins[0]


def _repeated(x: Range) -> Range:
    """Of elements that may repeat a draw."""
    return x._replace(noise=frozenset(("repeated", draw) for draw in x.noise))


def _negative(eqn: core.JaxprEqn, ins: list[Range]) -> Range:
    return negated(ins[0])


def _quotient(eqn: core.JaxprEqn, ins: list[Range]) -> Range:
    return multiply(ins[0], reciprocal(ins[1]))


def _clamp(eqn: core.JaxprEqn, ins: list[Range]) -> Range:
    low, x, high = ins
    return minimum(maximum(x, low), high)


def _linear(eqn: core.JaxprEqn, ins: list[Range]) -> Range:
    """Mix elements linearly: draws that span the line still do, for a matrix of full rank."""
    noisy = [i for i, v in enumerate(ins) if v.noise]
    if len(noisy) == 1 and ins[noisy[0]].real:
        made, of = (math.prod(shape_of(v)) for v in (eqn.outvars[0], eqn.invars[noisy[0]]))
        if made <= of:
            return ins[noisy[0]]
        return not_known(ins, "it has more elements than the draws it is made of")
    return default(eqn, ins)


def _reduce_sum(eqn: core.JaxprEqn, ins: list[Range]) -> Range:
    x = ins[0]
    if x.noise and (x.unknown or x.real):
        return x
    if not x.noise:
        return point(ins)._replace(sign=x.sign)
    low, high = (e if e in (0.0, -INF, INF, MOVES, INFINITE) else FIXED for e in (x.low, x.high))
    return Range(x.noise, low, high, x.sign, seams=x.seams)


def _concatenate(eqn: core.JaxprEqn, ins: list[Range]) -> Range:
    if not own_draws(ins):
        return not_known(ins, "its elements are functions of the same draw")
    return join(ins, eqn.primitive.name)


def _cast(eqn: core.JaxprEqn, ins: list[Range]) -> Range:
    return ins[0] if jnp.issubdtype(eqn.params["new_dtype"], jnp.inexact) else default(eqn, ins)


def _compare(eqn: core.JaxprEqn, ins: list[Range]) -> Range:
    noise = frozenset().union(*(v.noise for v in ins))
    found = point(ins) if not noise else Range(noise, 0.0, 1.0, seams=True)
    unknown = next((v.unknown for v in ins if v.unknown), "")
    return found._replace(unknown=unknown)


def _before(x: Range) -> Range:
    """Of what a turn of a loop hands to the next, whose draws are others."""
    noise = (d if isinstance(d, tuple) and d[:1] == ("before",) else ("before", d) for d in x.noise)
    return x._replace(noise=frozenset(noise))


def _kept(x: Range) -> Range:
    return x


_LOOPS: Loops[Range] = Loops(enter=_kept, slice=_kept, carry=_before, leave=_kept, stack=_kept)
_KEEP = (
    "reshape squeeze transpose copy copy_p rev expand_dims reduce_precision "
    "optimization_barrier sharding_constraint real device_put stop_gradient reduce_max reduce_min"
)
_QUESTION: Question[Range] = Question(
    nothing=GIVEN,
    join=join,
    rules={
        **dict.fromkeys(_KEEP.split(), each(_same)),
        "slice": each(_slice),
        "broadcast_in_dim": each(_broadcast),
        **dict.fromkeys(("dynamic_slice", "gather"), each(_take)),
        **dict.fromkeys("dot_general conv_general_dilated cumsum".split(), each(_linear)),
        **dict.fromkeys("eq ne lt le gt ge is_finite and or not".split(), each(_compare)),
        **dict.fromkeys(("add", "add_any"), each(lambda eqn, ins: add(*ins))),
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
        "select_n": each(lambda eqn, ins: choose(ins[0], ins[1:], "select_n")),
        "reduce_sum": each(_reduce_sum),
        **dict.fromkeys(("concatenate", "stack"), each(_concatenate)),
        "unstack": _unstack,
        "split": _unstack,
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
    },
    default=each(default),
    choose=choose,
    opaque=_opaque,
    constant=constant,
    functions=known_function,
    loops=_LOOPS,
)
