"""The degree of each variable of a jaxpr, as a polynomial in the argument."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.extend import core

from vijax.jaxprs._equations import DECLARED, LAID_OUT
from vijax.jaxprs._interpreter import Question


class Blame(NamedTuple):
    """What raises the degree of a function.

    Fields:
        primitive: the first primitive on the argument's way that does.
        opaque: whether it is a mutable reference or a host callback, behind which nothing can be
            followed.
    """

    primitive: str
    opaque: bool = False


class Degree(NamedTuple):
    """The degree of one variable, as a polynomial in the argument.

    Fields:
        degree: 0 for what does not depend on it.
        blame: what makes it no polynomial of the degree asked for, or one that the rules do not
            know.
        declared: whether its derivative is somewhere what a function's author declared, not the
            value's own.
    """

    degree: int = 0
    blame: Blame | None = None
    declared: bool = False


# Degree 0, compared by identity, and degree 1.
FREE, ARGUMENT = Degree(), Degree(1)

# --- the question


def join(several: Sequence[Degree], name: str) -> Degree:
    # A sum has the largest degree of its terms.
    some = [d for d in several if d is not FREE]
    if len(some) <= 1:
        return some[0] if some else FREE
    return Degree(max(d.degree for d in some), _first(some), any(d.declared for d in some))


def _first(several: Sequence[Degree]) -> Blame | None:
    # What cannot be seen into comes first: no derivative can clear it.
    blames = [d.blame for d in several if d.blame is not None]
    return next((b for b in blames if b.opaque), blames[0] if blames else None)


def _blamed(several: Sequence[Degree], primitive: str) -> Degree:
    """Return the degree of what is no polynomial; operands already blamed keep their blame."""
    joined = join(several, primitive)
    return joined if joined is FREE or joined.blame else joined._replace(blame=Blame(primitive))


def _choose(which: Degree, cases: Sequence[Degree], name: str) -> Degree:
    # A choice by the argument is piecewise; by anything else, it is one of the cases.
    return join(cases, name) if which is FREE else _blamed([*cases, which], name)


def _opaque(name: str, several: Sequence[Degree]) -> Degree:
    joined = join(several, name)
    return FREE if joined is FREE else joined._replace(blame=Blame(name, opaque=True))


def _constant(value: object) -> Degree:
    return FREE


def _called(eqn: core.JaxprEqn, _: list[Degree], outs: list[Degree]) -> list[Degree]:
    """Note declared derivatives; a function with one is blamed by its own name where it has one."""
    if eqn.primitive.name not in DECLARED:
        return outs
    name = eqn.params.get("name")

    def declare(d: Degree) -> Degree:
        blame = None if d.blame is None else Blame(str(name or d.blame.primitive))
        return d if d is FREE else Degree(d.degree, blame, declared=True)

    return [declare(d) for d in outs]


# --- the rules


def _linear(eqn: core.JaxprEqn, ins: list[Degree]) -> list[Degree]:
    return [join(ins, eqn.primitive.name)] * len(eqn.outvars)


def _other(eqn: core.JaxprEqn, ins: list[Degree]) -> list[Degree]:
    return [_blamed(ins, eqn.primitive.name)] * len(eqn.outvars)


def _quotient(eqn: core.JaxprEqn, ins: list[Degree]) -> list[Degree]:
    # f(x) / c has the degree of f; f(x) / g(x) has none.
    return [ins[0] if ins[1] is FREE else _blamed(ins, eqn.primitive.name)]


def _solve(eqn: core.JaxprEqn, ins: list[Degree]) -> list[Degree]:
    # L⁻¹ f(x) has the degree of f.
    return [ins[1] if ins[0] is FREE else _blamed(ins, eqn.primitive.name)]


def _linear_solve(eqn: core.JaxprEqn, ins: list[Degree]) -> list[Degree]:
    """Solve operators that are free of the argument for right sides that may not be."""
    operands = sum(eqn.params["const_lengths"])
    operator = join(ins[:operands], eqn.primitive.name)
    right = join(ins[operands:], eqn.primitive.name)
    return [right if operator is FREE else _blamed(ins, eqn.primitive.name)] * len(eqn.outvars)


def _select(eqn: core.JaxprEqn, ins: list[Degree]) -> list[Degree]:
    return [_choose(ins[0], ins[1:], eqn.primitive.name)]


def _convert(eqn: core.JaxprEqn, ins: list[Degree]) -> list[Degree]:
    # To whole numbers, or to less than two bytes, is a rounding.
    target = eqn.params["new_dtype"]
    real = jnp.issubdtype(target, jnp.inexact) and np.dtype(target).itemsize >= 2
    return [ins[0] if real else _blamed(ins, "cast")]


def _indexed(eqn: core.JaxprEqn, ins: list[Degree]) -> list[Degree]:
    """Let operands through that are copied; the others say where to."""
    start, stop = _INDICES[eqn.primitive.name]
    return [_choose(join(ins[start:stop], ""), [*ins[:start], *ins[stop:]], eqn.primitive.name)]


def _equal(eqn: core.JaxprEqn, ins: list[Degree]) -> list[Degree]:
    """Let tests for nan and for infinity through: finite numbers all give them one answer."""
    infinite = any(isinstance(v, core.Literal) and np.isinf(v.val).all() for v in eqn.invars)
    return [FREE] if infinite or eqn.invars[0] is eqn.invars[1] else _other(eqn, ins)


def _power(limit: int) -> Callable[[core.JaxprEqn, list[Degree]], list[Degree]]:
    """Return the rule of products, whose degrees add up to the limit at most."""

    def rule(eqn: core.JaxprEqn, ins: list[Degree]) -> list[Degree]:
        # Of x·y the sum of both degrees; x² and xⁿ are products of one operand with itself.
        name = eqn.primitive.name
        power = {"square": 2, "integer_pow": eqn.params.get("y", 1)}.get(name, 1)
        degree, joined = power * sum(d.degree for d in ins), join(ins, name)
        if joined.blame is not None or power < 0:
            return [_blamed(ins, name)]
        return [joined._replace(degree=degree, blame=Blame(name) if degree > limit else None)]

    return rule


# Linear in all operands together: the degree of the result is the largest of theirs.
_LINEAR = LAID_OUT | frozenset(
    "add add_any broadcast_in_dim complex concatenate conj cumsum fft imag neg pad real reduce_sum "
    "reduce_window_sum reshape rev slice split squeeze stack sub tile transpose unstack".split()
)
# Linear in each operand by itself.
_PRODUCTS = "mul dot_general conv_general_dilated square integer_pow"
# From which operand to which they only say where to read or write.
_INDICES: dict[str, tuple[int, int | None]] = {
    "gather": (1, None),
    "dynamic_slice": (1, None),
    "dynamic_update_slice": (2, None),
    **dict.fromkeys(("scatter", "scatter-add", "scatter-sub"), (1, 2)),
}


def question(limit: int) -> Question[Degree]:
    """Return the question of the degree, with blame for what is above the limit, 1 or 2."""
    return Question(
        nothing=FREE,
        join=join,
        rules={
            **dict.fromkeys(_LINEAR, _linear),
            **dict.fromkeys(_PRODUCTS.split(), _power(limit)),
            **dict.fromkeys(_INDICES, _indexed),
            "div": _quotient,
            "triangular_solve": _solve,
            "custom_linear_solve": _linear_solve,
            "select_n": _select,
            "convert_element_type": _convert,
            **dict.fromkeys(("eq", "ne"), _equal),
            "is_finite": lambda eqn, ins: [FREE],
        },
        default=_other,
        choose=_choose,
        opaque=_opaque,
        constant=_constant,
        called=_called,
    )
