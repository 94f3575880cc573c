"""The kinks and jumps on the argument's way to each variable of a jaxpr."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.extend import core

from vijax.jaxprs._equations import DECLARED, LAID_OUT, Atom, function_name
from vijax.jaxprs._interpreter import Question, Rule


class Bend(NamedTuple):
    """How the argument reaches one variable.

    Fields:
        depends: whether it does.
        blame: the first primitive on its way that has a kink or a jump.
        jumps: whether that is a jump for certain, where a choice may join two equal ends.
        opaque: whether it is a mutable reference or a host callback.
        positive: whether the value is shown to be positive almost everywhere, or a constant to be 0
            or less.
        nonzero: whether it is shown to be positive everywhere.
        declared: a primitive with a kink on the way, inside a function with a declared derivative.
    """

    depends: bool = False
    blame: str | None = None
    jumps: bool = False
    opaque: bool = False
    positive: bool | None = None
    nonzero: bool = False
    declared: str | None = None


# Free of the argument with no sign known; the argument; a constant that is 0 or less.
FREE, ARGUMENT, NOT_POSITIVE = Bend(), Bend(depends=True), Bend(positive=False)
# Constants; the walk asks no rule of FREE.
POSITIVE, UNSIGNED = Bend(positive=True, nonzero=True), Bend()


# --- the question


def join(several: Sequence[Bend], name: str) -> Bend:
    # Signs are for the rules to add: of what depends on several, none is known.
    some = [bend for bend in several if bend.depends]
    if len(some) <= 1:
        return some[0]._replace(positive=None, nonzero=False) if some else FREE
    # The worst comes first: what cannot be seen into, then jumps, then kinks.
    blamed = sorted((b for b in some if b.blame), key=lambda b: (not b.opaque, not b.jumps))
    first = blamed[0] if blamed else some[0]
    declared = next((b.declared for b in some if b.declared is not None), None)
    return first._replace(positive=None, nonzero=False, declared=declared)


def _blamed(several: Sequence[Bend], name: str, *, jumps: bool) -> Bend:
    # A kink is not blamed over again, unless it turns out to be a jump.
    joined = join(several, name)
    if not joined.depends or joined.opaque or (joined.blame and (joined.jumps or not jumps)):
        return joined
    return joined._replace(blame=joined.blame or name, jumps=jumps)


def _choose(which: Bend, cases: Sequence[Bend], name: str) -> Bend:
    """Blame a choice for what chooses; between constants it is a jump."""
    joined = join([which, *cases], name)
    if not which.blame or any(case.depends for case in cases):
        return _with_sign(joined, cases) if joined.depends else FREE
    return _blamed([joined], name, jumps=True)


def _opaque(name: str, several: Sequence[Bend]) -> Bend:
    joined = join(several, name)
    return joined._replace(blame=name, opaque=True) if joined.depends else FREE


def _constant(value: object) -> Bend:
    known = isinstance(value, (np.ndarray, np.generic, float, int)) and np.size(value)
    if not known or np.asarray(value).dtype.kind not in "fi":
        return UNSIGNED
    # Positive throughout, nowhere, or in parts.
    above = np.asarray(value) > 0
    return POSITIVE if np.all(above) else UNSIGNED if np.any(above) else NOT_POSITIVE


def _called(eqn: core.JaxprEqn, _: list[Bend], outs: list[Bend]) -> list[Bend]:
    """Leave kinks within a function with a derivative of its own to that derivative."""
    # log(1 + exp(x)) is positive, which its way of computing does not show.
    if eqn.params.get("name") == "softplus":
        return [bend._replace(positive=True, nonzero=True) for bend in outs]
    if eqn.primitive.name not in DECLARED:
        return outs

    def declare(bend: Bend) -> Bend:
        if bend.blame is None or bend.jumps or bend.opaque:
            return bend
        return bend._replace(blame=None, declared=bend.blame)

    return [declare(bend) for bend in outs]


# --- the rules


def _smooth(eqn: core.JaxprEqn, ins: list[Bend]) -> list[Bend]:
    # What is known of the result's sign, from the primitive or from those of its operands.
    joined, name = join(ins, eqn.primitive.name), eqn.primitive.name
    if name in _KEEPS_SIGN:
        joined = _with_sign(joined, ins, every=name not in _SUMS)
    if name in _POSITIVE:
        joined = joined._replace(positive=True, nonzero=True)
    elif _is_square(eqn):
        joined = joined._replace(positive=True, nonzero=all(b.nonzero for b in ins))
    # The walk compares constants of which nothing is known with FREE by identity.
    if not joined.depends:
        known = FREE if joined == FREE else joined
        return [known] * len(eqn.outvars)
    # Whole numbers made of real ones: indices of top_k, bits.
    jump = _blamed([joined], name, jumps=True)
    real = any(_inexact(v) for v in eqn.invars)
    return [joined if _inexact(v) or _boolean(v) or not real else jump for v in eqn.outvars]


def _with_sign(joined: Bend, several: Sequence[Bend], *, every: bool = True) -> Bend:
    """Return several together: positive where all are, and not 0 where all or any are not."""
    positive = all(b.positive for b in several)
    nonzero = positive and (all if every else any)(b.nonzero for b in several)
    return joined._replace(positive=True if positive else None, nonzero=nonzero)


def _is_square(eqn: core.JaxprEqn) -> bool:
    even = eqn.primitive.name == "integer_pow" and eqn.params["y"] % 2 == 0
    itself = eqn.primitive.name == "mul" and eqn.invars[0] is eqn.invars[1]
    return (even or itself or eqn.primitive.name == "square") and _is_real(eqn)


def _dtype(variable: Atom) -> Any:
    return getattr(variable.aval, "dtype", np.dtype(bool))


def _is_real(eqn: core.JaxprEqn) -> bool:
    return not any(jnp.issubdtype(_dtype(v), jnp.complexfloating) for v in eqn.invars)


def _root(eqn: core.JaxprEqn, ins: list[Bend]) -> list[Bend]:
    """Blame a root of what may be 0, and an inverse at the end of its range."""
    return _smooth(eqn, ins) if ins[0].nonzero else [_blamed(ins, eqn.primitive.name, jumps=False)]


def _power(eqn: core.JaxprEqn, ins: list[Bend]) -> list[Bend]:
    # xⁿ is smooth for a whole n; for any other, its derivative ends at x = 0 as a root's does.
    exponent = eqn.invars[1]
    whole = isinstance(exponent, core.Literal) and bool(np.all(np.mod(exponent.val, 1) == 0))
    whole = whole or bool(jnp.issubdtype(_dtype(exponent), jnp.integer))
    return _smooth(eqn, ins) if whole or not ins[0].depends else _root(eqn, ins)


def _end(eqn: core.JaxprEqn, ins: list[Bend]) -> list[Bend]:
    return [_blamed(ins, eqn.primitive.name, jumps=False)]


def _angle(eqn: core.JaxprEqn, ins: list[Bend]) -> list[Bend]:
    """Blame an angle, which jumps by 2π, unless it stays on the right of the plane."""
    right = eqn.primitive.name == "atan2" and ins[1].nonzero
    real = eqn.primitive.name == "log" and _is_real(eqn)
    return _smooth(eqn, ins) if right or real else [_blamed(ins, eqn.primitive.name, jumps=True)]


def _inexact(variable: Atom) -> bool:
    return jnp.issubdtype(getattr(variable.aval, "dtype", np.dtype(bool)), jnp.inexact)


def _boolean(variable: Atom) -> bool:
    return bool(getattr(variable.aval, "dtype", None) == np.dtype(bool))


def _kink(eqn: core.JaxprEqn, ins: list[Bend]) -> list[Bend]:
    # |x| of a positive x is x.
    if eqn.primitive.name == "abs" and ins[0].positive:
        return [ins[0]]
    return [_blamed(ins, eqn.primitive.name, jumps=False)] * len(eqn.outvars)


def _jump(eqn: core.JaxprEqn, ins: list[Bend]) -> list[Bend]:
    # The sign of a positive x is 1.
    if eqn.primitive.name == "sign" and ins[0].positive:
        return [FREE]
    return [_blamed(ins, eqn.primitive.name, jumps=True)] * len(eqn.outvars)


def _compare(eqn: core.JaxprEqn, ins: list[Bend]) -> list[Bend]:
    """Blame a comparison, unless its answer is known: a positive number and one that is not."""
    if {ins[0].positive, ins[1].positive} == {True, False}:
        return [FREE]
    return [_blamed(ins, eqn.primitive.name, jumps=False)]


def _equal(eqn: core.JaxprEqn, ins: list[Bend]) -> list[Bend]:
    """Let through what holds almost nowhere: x equal to a constant, or x unequal to itself."""
    # An operand that already has kinks may be constant on a whole interval, as relu(x) is.
    alone = not (ins[0].depends and ins[1].depends) and not join(ins, "").blame
    if alone or eqn.invars[0] is eqn.invars[1]:
        return [FREE]
    return [_blamed(ins, eqn.primitive.name, jumps=False)]


def _stop(eqn: core.JaxprEqn, ins: list[Bend]) -> list[Bend]:
    """Let the largest term pass that a stable log-sum-exp subtracts and adds."""
    # Its kinks cancel where the term is added again; a jump would not.
    bend = ins[0]
    kept = bend.jumps or bend.opaque
    return [bend if kept else bend._replace(blame=None)]


def _select(eqn: core.JaxprEqn, ins: list[Bend]) -> list[Bend]:
    return [_choose(ins[0], ins[1:], "select_n")]


def _convert(eqn: core.JaxprEqn, ins: list[Bend]) -> list[Bend]:
    real = jnp.issubdtype(eqn.params["new_dtype"], jnp.inexact)
    if real == _inexact(eqn.invars[0]) or (_boolean(eqn.outvars[0]) and not ins[0].depends):
        return [ins[0]]
    # An indicator that becomes a number; a number that becomes a whole one.
    chosen = ins[0].blame is not None or _inexact(eqn.invars[0])
    return [_blamed(ins, "cast", jumps=True) if chosen else ins[0]]


# Functions of `vijax.numerics` that are smooth, though they compute with the largest term.
_KNOWN = frozenset(
    "log_mean_exp normalized_weights log_normalized leave_one_out_log_mean_exp".split()
)


def _known(eqn: core.JaxprEqn) -> Rule[Bend] | None:
    name, place = function_name(eqn)
    return _smooth if place == "vijax" and name in _KNOWN else None


# Continuous, with derivatives that jump where two operands or elements are equal.
_KINKS = (
    "abs max min clamp reduce_max reduce_min cummax cummin sort top_k reduce_window_max "
    "reduce_window_min select_and_gather_add"
)
# Piecewise constant.
_JUMPS = "sign floor ceil round rem argmax argmin"
# Positive for every argument.
_POSITIVE = frozenset("exp exp2 logistic erfc cosh".split())
# Of positive terms: not 0 where any of them is not.
_SUMS = frozenset("add add_any reduce_sum cumsum".split())
# Positive where all operands are.
_KEEPS_SIGN = LAID_OUT | frozenset(
    "add add_any mul div reduce_sum reduce_prod cumsum broadcast_in_dim reshape squeeze transpose "
    "slice concatenate stack sqrt rsqrt cbrt pow convert_element_type log1p".split()
)


def _question(*, kinks: bool) -> Question[Bend]:
    return Question(
        nothing=FREE,
        join=join,
        rules={
            **(dict.fromkeys(_KINKS.split(), _kink) if kinks else {}),
            **(dict.fromkeys(("sqrt", "rsqrt", "cbrt"), _root) if kinks else {}),
            **(dict.fromkeys(("asin", "acos", "acosh"), _end) if kinks else {}),
            **({"pow": _power} if kinks else {}),
            **dict.fromkeys(("atan2", "log"), _angle),
            **dict.fromkeys(_JUMPS.split(), _jump),
            **dict.fromkeys("lt le gt ge lt_to le_to".split(), _compare),
            **dict.fromkeys(("eq", "ne", "eq_to"), _equal),
            "is_finite": lambda eqn, ins: [FREE],
            "stop_gradient": _stop,
            "select_n": _select,
            "convert_element_type": _convert,
        },
        default=_smooth,
        choose=_choose,
        opaque=_opaque,
        constant=_constant,
        into_unknown=True,
        called=_called,
        functions=_known,
    )


# Of a declared derivative jumps alone are asked for: they are the kinks of its function.
OF_VALUE, OF_SLOPE = _question(kinks=True), _question(kinks=False)
