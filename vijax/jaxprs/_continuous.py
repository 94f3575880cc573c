"""Whether a function of one number, defined by cases, is continuous where the cases meet.

`jax.nn.leaky_relu`, `elu` and `selu` choose between two expressions by a comparison of their
argument with a constant. Where both agree at that constant, the derivative of the chosen case is
that of the whole, as it is of `relu`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.extend import core

from vijax.jaxprs._equations import CALLS, Atom, inner_jaxpr, opened, shape_of

# Limits from both sides may differ by this, absolutely and relatively: the rounding of float32.
_TOLERANCE = 1e-6
_COMPARISONS: dict[str, Callable[..., Any]] = {
    "gt": np.greater,
    "ge": np.greater_equal,
    "lt": np.less,
    "le": np.less_equal,
}
_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "add_any": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "neg": np.negative,
    "abs": np.abs,
    "max": np.maximum,
    "min": np.minimum,
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "tanh": np.tanh,
    "sqrt": np.sqrt,
    "square": np.square,
    "logistic": lambda x: 1 / (1 + np.exp(-x)),
    "and": np.logical_and,
    "or": np.logical_or,
    "not": np.logical_not,
    # JAX's cases start with that of a predicate which is false.
    "select_n": lambda which, *cases: cases[int(which)],
}


class _Value(NamedTuple):
    """A number on the way through a jaxpr.

    Fields:
        number: in double precision.
        varies: whether it depends on the argument.
        same: whether it is the argument.
    """

    number: Any
    varies: bool = False
    same: bool = False


class _Unknown(Exception):
    """A step that the evaluation has no rule for."""


def continuous_call(eqn: core.JaxprEqn) -> bool:
    """Whether a call is an elementwise function of one real operand that no comparison makes jump.

    Example:
        >>> call = lambda f: jax.make_jaxpr(jax.jit(f))(0.0).eqns[0]
        >>> continuous_call(call(lambda x: jnp.where(x > 0, x, 0.1 * x)))
        True
        >>> continuous_call(call(lambda x: jnp.where(x > 0, x, 1.0)))
        False
    """
    inner, variables = inner_jaxpr(eqn), [v for v in eqn.invars if not isinstance(v, core.Literal)]
    if inner is None or len(variables) != 1 or not _is_elementwise(eqn, variables[0]):
        return False

    def evaluate(x: float) -> tuple[list[Any], set[float]]:
        ends: set[float] = set()
        argument = _Value(x, varies=True, same=True)
        ins = [_of(v) if isinstance(v, core.Literal) else argument for v in eqn.invars]
        return [out.number for out in _run(inner, ins, ends)], ends

    with np.errstate(all="ignore"):
        try:
            _, ends = evaluate(0.0)
            # Where the cases meet, and the numbers next to it on both sides.
            near = [[np.nextafter(c, side) for side in (-np.inf, c, np.inf)] for c in ends]
            values = np.asarray([[evaluate(x)[0] for x in around] for around in near], float)
        except _Unknown:
            return False
    # Without a comparison there is nothing to settle, and the body is followed as it is.
    return bool(ends) and np.allclose(values, values[:, 1:2], rtol=_TOLERANCE, atol=_TOLERANCE)


def _is_elementwise(eqn: core.JaxprEqn, x: Atom) -> bool:
    return getattr(getattr(x.aval, "dtype", None), "kind", "") == "f" and all(
        shape_of(out) == shape_of(x) for out in eqn.outvars
    )


def _of(literal: core.Literal) -> _Value:
    if np.ndim(literal.val):
        raise _Unknown
    return _Value(literal.val)


def _run(
    jaxpr: core.Jaxpr | core.ClosedJaxpr, ins: Sequence[_Value], ends: set[float]
) -> list[_Value]:
    """Return the outputs of a jaxpr, and put what its argument is compared with into `ends`."""
    body = opened(jaxpr)
    if body.constvars or len(body.invars) != len(ins):
        raise _Unknown
    known = dict(zip(body.invars, ins, strict=True))

    def read(atom: Atom) -> _Value:
        return _of(atom) if isinstance(atom, core.Literal) else known[atom]

    for eqn in body.eqns:
        outs = _step(eqn, [read(v) for v in eqn.invars], ends)
        known.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in body.outvars]


def _step(eqn: core.JaxprEqn, ins: list[_Value], ends: set[float]) -> list[_Value]:
    name, varying = eqn.primitive.name, any(v.varies for v in ins)
    inner = inner_jaxpr(eqn)
    if name in CALLS and inner is not None:
        return _run(inner, ins, ends)
    if name == "convert_element_type" and np.dtype(eqn.params["new_dtype"]).kind == "f":
        return ins
    if name == "broadcast_in_dim":
        # A number for all elements. The argument's own axes would no longer be elementwise.
        if len(ins) > 1 or (varying and shape_of(eqn.invars[0]) != shape_of(eqn.outvars[0])):
            raise _Unknown
        return ins
    numbers = [v.number for v in ins]
    if name == "integer_pow":
        return [_Value(np.float64(numbers[0]) ** eqn.params["y"], varying)]
    if name in _COMPARISONS:
        if varying:
            # The argument itself beside a constant: a known place, and only one.
            if not ins[0].same and not ins[1].same or (ins[0].varies and ins[1].varies):
                raise _Unknown
            ends.add(float(numbers[1] if ins[0].same else numbers[0]))
        return [_Value(_COMPARISONS[name](*numbers), varying)]
    if name not in _ARITHMETIC:
        raise _Unknown
    return [_Value(_ARITHMETIC[name](*numbers), varying)]
