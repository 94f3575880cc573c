"""A jaxpr of elementwise steps as a function of one number, evaluated in double precision."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.extend import core

from vijax.jaxprs._equations import CALLS, Atom, inner_jaxpr, opened, shape_of

COMPARISONS: dict[str, Callable[..., Any]] = {
    "gt": np.greater,
    "ge": np.greater_equal,
    "lt": np.less,
    "le": np.less_equal,
    "eq": np.equal,
    "ne": np.not_equal,
}
_LOGIC: dict[str, Callable[..., Any]] = {
    "and": np.logical_and,
    "or": np.logical_or,
    "not": np.logical_not,
}
ANALYTIC: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "add_any": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "neg": np.negative,
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "sin": np.sin,
    "cos": np.cos,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "tanh": np.tanh,
    "asinh": np.arcsinh,
    "atan": np.arctan,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "square": np.square,
    "logistic": lambda x: 1 / (1 + np.exp(-x)),
    "erf": lambda x: np.float64(math.erf(x)),
    "erfc": lambda x: np.float64(math.erfc(x)),
}
# Continuous, but not analytic: what holds for some other numbers need not hold for all.
_KINKED: dict[str, Callable[..., Any]] = {"abs": np.abs, "max": np.maximum, "min": np.minimum}
# Steps of one number that can be undone: (value, the other operand, whether that comes first).
INVERTIBLE: dict[str, Callable[[Any, Any, bool], list[Any]]] = {
    "neg": lambda y, _, __: [-y],
    "abs": lambda y, _, __: [y, -y] if y >= 0 else [],
    "add": lambda y, k, _: [y - k],
    "sub": lambda y, k, first: [k - y] if first else [y + k],
    "mul": lambda y, k, _: [y / k],
    "div": lambda y, k, _: [y * k],
    "convert_element_type": lambda y, _, __: [y],
}


class Value(NamedTuple):
    """A number on the way through a jaxpr.

    Fields:
        number: in double precision.
        varies: whether it depends on the argument.
        other: whether it depends on other numbers, of which nothing is known.
        back: the values of the argument at which it has a given value, where that is known.
    """

    number: Any
    varies: bool = False
    other: bool = False
    back: Callable[[Any], list[Any]] | None = None


class Unknown(Exception):
    """A step that the evaluation has no rule for."""


class Run:
    """One evaluation; it notes where the argument's comparisons are decided, and how they came out.

    Example:
        >>> closed = jax.make_jaxpr(lambda x: jnp.where(x > 1, x, 1.0))(0.0)
        >>> run = Run()
        >>> run.jaxpr(closed, [Value(3.0, varies=True, back=lambda y: [y])])[0].number
        3.0
        >>> run.places, run.outcomes
        ([[1.0]], [True])
    """

    def __init__(self) -> None:
        # Of each comparison in turn.
        self.places: list[list[float]] = []
        self.outcomes: list[bool] = []

    def jaxpr(self, jaxpr: core.Jaxpr | core.ClosedJaxpr, ins: Sequence[Value]) -> list[Value]:
        """Return the outputs of a jaxpr."""
        body = opened(jaxpr)
        if body.constvars or len(body.invars) != len(ins):
            raise Unknown
        known = self.steps(body.eqns, dict(zip(body.invars, ins, strict=True)))
        return [_read(v, known) for v in body.outvars]

    def steps(self, eqns: Sequence[core.JaxprEqn], known: Mapping[Any, Value]) -> dict[Any, Value]:
        """Return what is known after some equations."""
        known = dict(known)
        for eqn in eqns:
            outs = self._step(eqn, [_read(v, known) for v in eqn.invars])
            known.update(zip(eqn.outvars, outs, strict=True))
        return known

    def _step(self, eqn: core.JaxprEqn, ins: list[Value]) -> list[Value]:
        name, inner = eqn.primitive.name, inner_jaxpr(eqn)
        if name in CALLS and inner is not None:
            return self.jaxpr(inner, ins)
        if name in COMPARISONS:
            return [self._compare(eqn, ins)]
        if name == "broadcast_in_dim":
            _refuse_other_axes(eqn, ins)
            return ins[:1]
        numbers = [v.number for v in ins]
        if name == "convert_element_type":
            kind = np.dtype(eqn.params["new_dtype"]).kind
            if kind == "f" or (kind == "i" and isinstance(numbers[0], (bool, np.bool_))):
                return ins
            raise Unknown
        if name == "integer_pow":
            return [_of(name, ins, np.float64(numbers[0]) ** eqn.params["y"])]
        if name == "select_n":
            # JAX's cases start with that of a predicate which is false.
            return [_of(name, ins, numbers[1 + int(numbers[0])])]
        if name in _KINKED and not any(v.other for v in ins):
            varying = [v for v in ins if v.varies]
            beside = next((v.number for v in ins if not v.varies), 0.0)
            if len(varying) > 1:
                raise Unknown
            for one in varying:
                self._decide(one, beside, outcome=bool(one.number > beside))
            return [_of(name, ins, _KINKED[name](*numbers))]
        function = ANALYTIC.get(name) or _LOGIC.get(name)
        if function is None:
            raise Unknown
        return [_of(name, ins, function(*numbers))]

    def _compare(self, eqn: core.JaxprEqn, ins: list[Value]) -> Value:
        outcome = bool(COMPARISONS[eqn.primitive.name](*(v.number for v in ins)))
        if eqn.invars[0] is eqn.invars[1]:  # a test for nan
            return Value(outcome)
        if not any(v.varies or v.other for v in ins):
            return Value(outcome)
        # A number whose place is known beside one that the argument does not reach.
        one, two = ins if ins[0].varies else ins[::-1]
        if two.varies:
            raise Unknown
        self._decide(one, two.number, outcome=outcome)
        return Value(outcome, varies=True)

    def _decide(self, one: Value, number: Any, *, outcome: bool) -> None:
        """Note where a value of the argument passes a number, where a case or a slope may change."""
        if one.back is None:
            raise Unknown
        places = map(float, one.back(number))
        self.places.append([place for place in places if math.isfinite(place)])
        self.outcomes.append(outcome)


def _read(atom: Atom, known: Mapping[Any, Value]) -> Value:
    if not isinstance(atom, core.Literal):
        return known[atom]
    if np.ndim(atom.val):
        raise Unknown
    value = np.asarray(atom.val)
    return Value(np.float64(value) if value.dtype.kind == "f" else value[()])


def _of(name: str, ins: Sequence[Value], number: Any) -> Value:
    varies, other = any(v.varies for v in ins), any(v.other for v in ins)
    return Value(number, varies, other, _undone(name, ins) if varies else None)


def _undone(name: str, ins: Sequence[Value]) -> Callable[[Any], list[Any]] | None:
    """Return where the argument is, as a function of the value of a step that can be undone."""
    undo = INVERTIBLE.get(name)
    first = not ins[0].varies  # whether what does not vary comes first
    x, others = ins[int(first)], [v for v in ins if not v.varies]
    back = x.back
    # The pole of k / x is a place of its own.
    pole = name == "div" and first
    if undo is None or back is None or pole or len(others) != len(ins) - 1:
        return None
    k = others[0].number if others else None
    return lambda y: [place for value in undo(y, k, first) for place in back(value)]


def _refuse_other_axes(eqn: core.JaxprEqn, ins: Sequence[Value]) -> None:
    """Refuse a broadcast that does not keep the last axes in place: elements would meet others."""
    inside, outside = len(shape_of(eqn.invars[0])), len(shape_of(eqn.outvars[0]))
    kept = tuple(map(int, eqn.params["broadcast_dimensions"]))
    fixed = kept == tuple(range(outside - inside, outside))
    if len(ins) > 1 or (not fixed and (ins[0].varies or ins[0].other)):
        raise Unknown
