"""Whether a function is linear, or quadratic, in its argument: read from its jaxpr."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import Array

from vijax.jaxprs._degree import ARGUMENT, FREE, Blame, Degree, join, question
from vijax.jaxprs._derivative import flows
from vijax.jaxprs._equations import trace, undeclared
from vijax.jaxprs._flow import Flow
from vijax.jaxprs._interpreter import interpret
from vijax.jaxprs._stand_in import stand_in

# [*event] -> any shape
Function = Callable[[Array], Array]
_QUESTIONS = {limit: question(limit) for limit in (1, 2)}


def not_linear(function: Function, at: Array) -> Blame | None:
    """Return what keeps a function of one array from being affine in it, or None.

    Example:
        >>> not_linear(lambda x: 2 * x + 1, jnp.ones(3)) is None
        True
        >>> not_linear(lambda x: x * jnp.exp(x), jnp.ones(3)).primitive
        'exp'
    """
    return _above(1, function, at)


def not_quadratic(function: Function, at: Array) -> Blame | None:
    """Return what keeps a function of one array from being quadratic in it, or None.

    Example:
        >>> not_quadratic(lambda x: -0.5 * jnp.sum(x**2), jnp.ones(3)) is None
        True
        >>> not_quadratic(lambda x: jnp.sum(x**3), jnp.ones(3)).primitive
        'integer_pow'
    """
    return _above(2, function, at)


def _above(limit: int, function: Function, at: Array) -> Blame | None:
    """Return what raises the degree of a function above the limit, if anything.

    Rules for each primitive prove most polynomials at once. What they do not know is one still if
    its last derivative does not read the argument, and neither it nor those before have jumps: |x|
    has second derivative 0. Where a derivative was declared, the value must be a polynomial by its
    own derivatives, and those declared be these.
    """
    # 1. By rules for each primitive: None is a proof, where all derivatives are the value's own.
    closed = trace(function, at)[0]
    result = join(interpret(closed, [ARGUMENT], _QUESTIONS[limit], [FREE] * len(closed.consts)), "")
    if result.blame is None and not result.declared:
        return None
    if result.blame is not None and (result.blame.opaque or result.degree > limit):
        return result.blame
    # 2. By derivatives: the last one must not read the argument.
    if not result.declared:
        return _by_derivatives(limit, function, closed, result, at)
    # 3. Behind a declared derivative: the value's own, of the bodies in its place.
    own = undeclared(closed)
    of_value = trace(own, at)[0]
    consts = [FREE] * len(of_value.consts)
    degree = join(interpret(of_value, [ARGUMENT], _QUESTIONS[limit], consts), "")
    blame = degree.blame
    if degree.declared:  # in a loop, where its function cannot be put in its place
        return result.blame or Blame("a declared derivative")
    if blame is not None:
        blame = _by_derivatives(limit, own, of_value, degree, at)
    # The value is a polynomial; a derivative declared otherwise, as by a clipped gradient, is not.
    if blame is None and _declared_otherwise(limit, closed, at):
        blame = Blame("a declared derivative")
    return None if blame is None else result.blame or blame


def _by_derivatives(
    limit: int, function: Function, closed: core.ClosedJaxpr, result: Degree, at: Array
) -> Blame | None:
    """Return what raises the degree, of a function whose derivatives are its own."""
    # Neither the value nor, for a quadratic, its slope may jump.
    argument = Flow(smooth=frozenset({"argument"}))
    reached = flows(closed, [argument], Flow())
    if limit > 1:
        reached += flows(trace(_slope(function), at)[0], [argument], Flow())
    ways = [flow.broken_by("argument") for flow in reached]
    jumps = sorted(how for how in ways if how is not None)
    # Then a last derivative that is free of the argument, in any direction, is constant.
    if not jumps:
        ends = flows(trace(_last(limit, function), at, at)[0], [argument, Flow()], Flow())
        if not any(flow.sources() for flow in ends):
            return None
    return result.blame or Blame(jumps[0] if jumps else "mul")


def _slope(function: Function) -> Function:
    return jax.grad(lambda x: jnp.sum(function(x)))


def _last(limit: int, function: Function) -> Callable[[Array, Array], Array]:
    """Return (x, direction) -> the first or second derivative along the direction."""
    below = function if limit == 1 else _slope(function)
    return lambda x, along: jax.jvp(below, (x,), (along,))[1]


def _declared_otherwise(limit: int, closed: core.ClosedJaxpr, at: Array) -> bool:
    """Whether declared derivatives are others than the value's own, tried on stand-in numbers."""
    # Closed-over values may be tracers without numbers: probabilities stand in for them.
    rng = np.random.default_rng(2)
    with jax.ensure_compile_time_eval():
        pairs = [stand_in(rng, const) for const in closed.consts]
        numbers = [c if p is None else jnp.asarray(p, c.dtype) for c, p in pairs]
        with_numbers = core.ClosedJaxpr(closed.jaxpr, numbers)

        def declared(x: Array) -> Array:
            return jnp.sum(core.jaxpr_as_fun(with_numbers)(x)[0])

        def own(x: Array) -> Array:
            return jnp.sum(undeclared(with_numbers)(x))

        # Slopes at two points, and one second derivative along a random direction.
        points = [jnp.asarray(rng.normal(size=at.shape), at.dtype) for _ in range(3)]

        def derivatives(function: Function) -> np.ndarray:
            result = [_slope(function)(x) for x in points[:2]]
            result += [_last(2, function)(points[0], points[2])] if limit > 1 else []
            return np.asarray(result, np.float64)

        # Equal up to half of the digits.
        expected = derivatives(own)
        close = float(jnp.finfo(at.dtype).eps) ** 0.5 * (1 + np.max(np.abs(expected), initial=0.0))
        try:
            result = derivatives(declared)
        except TypeError:  # a custom_vjp has no forward mode, of which Hessians are made
            return True
        # What is nan tells nothing, and proves nothing.
        return not bool(np.all(np.abs(result - expected) <= close))
