"""Whether a function is linear, or quadratic, in its argument: read from its jaxpr."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import Array

from vijax.jaxprs._derivative import flows
from vijax.jaxprs._equations import DECLARED, LAID_OUT, trace, undeclared
from vijax.jaxprs._flow import Flow
from vijax.jaxprs._interpreter import Question, interpret
from vijax.jaxprs._stand_in import stand_in


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


FREE, ARGUMENT = Degree(), Degree(1)

Function = Callable[[Array], Array]


def not_linear(function: Function, at: Array) -> Blame | None:
    """Return what keeps a function of one array from being affine in it, or None."""
    return _above(1, function, at)


def not_quadratic(function: Function, at: Array) -> Blame | None:
    """Return what keeps a function of one array from being quadratic in it, or None."""
    return _above(2, function, at)


def _above(limit: int, function: Function, at: Array) -> Blame | None:
    """Return what raises the degree of a function above the limit, if anything.

    Rules for each primitive prove most polynomials at once. What they do not know is one still if
    its last derivative does not read the argument, and neither it nor those before have jumps: |x|
    has second derivative 0. Where a derivative was declared, the value must be a polynomial by its
    own derivatives, and those declared be these.
    """
    closed = trace(function, at)[0]
    found = _join(interpret(closed, [ARGUMENT], _QUESTIONS[limit], [FREE] * len(closed.consts)), "")
    if found.blame is None and not found.declared:
        return None
    if found.blame is not None and (found.blame.opaque or found.degree > limit):
        return found.blame
    if not found.declared:
        return _by_derivatives(limit, function, closed, found, at)
    own = undeclared(closed)
    of_value = trace(own, at)[0]
    consts = [FREE] * len(of_value.consts)
    degree = _join(interpret(of_value, [ARGUMENT], _QUESTIONS[limit], consts), "")
    blame = degree.blame
    if degree.declared:  # in a loop, where its function cannot be put in its place
        return found.blame or Blame("a declared derivative")
    if blame is not None:
        blame = _by_derivatives(limit, own, of_value, degree, at)
    if blame is None and _declared_otherwise(limit, closed, at):
        blame = Blame("a declared derivative")
    return None if blame is None else found.blame or blame


def _by_derivatives(
    limit: int, function: Function, closed: core.ClosedJaxpr, found: Degree, at: Array
) -> Blame | None:
    """Return what raises the degree, of a function whose derivatives are its own."""
    argument = Flow(smooth=frozenset({"argument"}))
    reached = flows(closed, [argument], Flow())
    if limit > 1:
        reached += flows(trace(_slope(function), at)[0], [argument], Flow())
    jumps = sorted(how for flow in reached if (how := flow.broken_by("argument")) is not None)
    if not jumps:
        ends = flows(trace(_last(limit, function), at, at)[0], [argument, Flow()], Flow())
        if not any(flow.sources() for flow in ends):
            return None
    return found.blame or Blame(jumps[0] if jumps else "mul")


def _slope(function: Function) -> Function:
    return jax.grad(lambda x: jnp.sum(function(x)))


def _last(limit: int, function: Function) -> Callable[[Array, Array], Array]:
    """Return (x, direction) -> the first or second derivative along the direction."""
    below = function if limit == 1 else _slope(function)
    return lambda x, along: jax.jvp(below, (x,), (along,))[1]


def _declared_otherwise(limit: int, closed: core.ClosedJaxpr, at: Array) -> bool:
    """Whether declared derivatives are others than the value's own, tried on stand-in numbers."""
    rng = np.random.default_rng(2)
    with jax.ensure_compile_time_eval():
        pairs = [stand_in(rng, const) for const in closed.consts]
        numbers = [c if p is None else jnp.asarray(p, c.dtype) for c, p in pairs]
        with_numbers = core.ClosedJaxpr(closed.jaxpr, numbers)

        def declared(x: Array) -> Array:
            return jnp.sum(core.jaxpr_as_fun(with_numbers)(x)[0])

        def own(x: Array) -> Array:
            return jnp.sum(undeclared(with_numbers)(x))

        points = [jnp.asarray(rng.normal(size=at.shape), at.dtype) for _ in range(3)]

        def derivatives(function: Function) -> np.ndarray:
            found = [_slope(function)(x) for x in points[:2]]
            found += [_last(2, function)(points[0], points[2])] if limit > 1 else []
            return np.asarray(found, np.float64)

        expected = derivatives(own)
        close = float(jnp.finfo(at.dtype).eps) ** 0.5 * (1 + np.max(np.abs(expected), initial=0.0))
        try:
            found = derivatives(declared)
        except TypeError:  # a custom_vjp has no forward mode, of which Hessians are made
            return True
        # What is nan tells nothing, and proves nothing.
        return not bool(np.all(np.abs(found - expected) <= close))


# --- the question


def _join(several: Sequence[Degree], name: str) -> Degree:
    some = [d for d in several if d is not FREE]
    if len(some) <= 1:
        return some[0] if some else FREE
    return Degree(max(d.degree for d in some), _first(some), any(d.declared for d in some))


def _first(several: Sequence[Degree]) -> Blame | None:
    blames = [d.blame for d in several if d.blame is not None]
    return next((b for b in blames if b.opaque), blames[0] if blames else None)


def _blamed(several: Sequence[Degree], primitive: str) -> Degree:
    """Return the degree of what is no polynomial; operands already blamed keep their blame."""
    joined = _join(several, primitive)
    return joined if joined is FREE or joined.blame else joined._replace(blame=Blame(primitive))


def _choose(which: Degree, cases: Sequence[Degree], name: str) -> Degree:
    return _join(cases, name) if which is FREE else _blamed([*cases, which], name)


def _opaque(name: str, several: Sequence[Degree]) -> Degree:
    joined = _join(several, name)
    return FREE if joined is FREE else joined._replace(blame=Blame(name, opaque=True))


def _constant(value: Any) -> Degree:
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
    return [_join(ins, eqn.primitive.name)] * len(eqn.outvars)


def _other(eqn: core.JaxprEqn, ins: list[Degree]) -> list[Degree]:
    return [_blamed(ins, eqn.primitive.name)] * len(eqn.outvars)


def _quotient(eqn: core.JaxprEqn, ins: list[Degree]) -> list[Degree]:
    return [ins[0] if ins[1] is FREE else _blamed(ins, eqn.primitive.name)]


def _solve(eqn: core.JaxprEqn, ins: list[Degree]) -> list[Degree]:
    return [ins[1] if ins[0] is FREE else _blamed(ins, eqn.primitive.name)]


def _linear_solve(eqn: core.JaxprEqn, ins: list[Degree]) -> list[Degree]:
    """Solve operators that are free of the argument for right sides that may not be."""
    operands = sum(eqn.params["const_lengths"])
    operator = _join(ins[:operands], eqn.primitive.name)
    right = _join(ins[operands:], eqn.primitive.name)
    return [right if operator is FREE else _blamed(ins, eqn.primitive.name)] * len(eqn.outvars)


def _select(eqn: core.JaxprEqn, ins: list[Degree]) -> list[Degree]:
    return [_choose(ins[0], ins[1:], eqn.primitive.name)]


def _convert(eqn: core.JaxprEqn, ins: list[Degree]) -> list[Degree]:
    target = eqn.params["new_dtype"]
    real = jnp.issubdtype(target, jnp.inexact) and np.dtype(target).itemsize >= 2
    return [ins[0] if real else _blamed(ins, "cast")]


def _indexed(eqn: core.JaxprEqn, ins: list[Degree]) -> list[Degree]:
    """Let operands through that are copied; the others say where to."""
    start, stop = _INDICES[eqn.primitive.name]
    return [_choose(_join(ins[start:stop], ""), [*ins[:start], *ins[stop:]], eqn.primitive.name)]


def _equal(eqn: core.JaxprEqn, ins: list[Degree]) -> list[Degree]:
    """Let tests for nan and for infinity through: finite numbers all give them one answer."""
    infinite = any(isinstance(v, core.Literal) and np.isinf(v.val).all() for v in eqn.invars)
    return [FREE] if infinite or eqn.invars[0] is eqn.invars[1] else _other(eqn, ins)


def _power(limit: int) -> Callable[[core.JaxprEqn, list[Degree]], list[Degree]]:
    """Return the rule of products, whose degrees add up to the limit at most."""

    def rule(eqn: core.JaxprEqn, ins: list[Degree]) -> list[Degree]:
        name = eqn.primitive.name
        power = {"square": 2, "integer_pow": eqn.params.get("y", 1)}.get(name, 1)
        degree, joined = power * sum(d.degree for d in ins), _join(ins, name)
        if joined.blame is not None or power < 0:
            return [_blamed(ins, name)]
        return [joined._replace(degree=degree, blame=Blame(name) if degree > limit else None)]

    return rule


_LINEAR = LAID_OUT | frozenset(
    "add add_any broadcast_in_dim complex concatenate conj cumsum fft imag neg pad real reduce_sum "
    "reduce_window_sum reshape rev slice split squeeze stack sub tile transpose unstack".split()
)
_PRODUCTS = "mul dot_general conv_general_dilated square integer_pow"
# From which operand to which they only say where to read or write.
_INDICES: dict[str, tuple[int, int | None]] = {
    "gather": (1, None),
    "dynamic_slice": (1, None),
    "dynamic_update_slice": (2, None),
    **dict.fromkeys(("scatter", "scatter-add", "scatter-sub"), (1, 2)),
}


def question(limit: int) -> Question[Degree]:
    """Return the question of the degree, with blame for what is above the limit."""
    return Question(
        nothing=FREE,
        join=_join,
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


_QUESTIONS = {limit: question(limit) for limit in (1, 2)}
