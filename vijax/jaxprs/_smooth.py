"""Whether a function is smooth in its argument: its kinks and jumps, read from its jaxpr."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vijax.jaxprs._degree import Blame
from vijax.jaxprs._equations import trace
from vijax.jaxprs._interpreter import Question, interpret
from vijax.jaxprs._kinks import ARGUMENT, OF_SLOPE, OF_VALUE, Bend, join


def not_smooth(function: Callable[[Array], Array], at: Array) -> Blame | None:
    """Return what bends or breaks a function of one array, or None.

    A function with a derivative of its own (`jnp.logaddexp`, `jax.nn.relu`) is taken by that
    derivative: kinks in how it is computed may cancel. What is smooth in form and too sharp for the
    use, such as sqrt(x² + 1e-9), passes.

    Example:
        >>> not_smooth(jnp.tanh, jnp.ones(3)) is None
        True
        >>> not_smooth(lambda x: jnp.abs(x - 1), jnp.ones(3)).primitive
        'abs'
    """
    result = _of(function, at, OF_VALUE)
    # Kinks inside functions with a declared derivative: does that derivative jump?
    if result.blame is None and result.declared is not None:
        slope = _of(_slope(function), at, OF_SLOPE)
        result = result if slope.blame is None else slope._replace(blame=result.declared)
    return None if result.blame is None else Blame(result.blame, opaque=result.opaque)


def _of(function: Callable[[Array], Array], at: Array, question: Question[Bend]) -> Bend:
    return join(interpret(trace(function, at)[0], [ARGUMENT], question), "")


def _slope(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    def slope(x: Array) -> Array:
        try:
            return jax.grad(lambda x: jnp.sum(function(x)))(x)
        except ValueError:  # a while loop has no reverse mode
            return jax.jvp(function, (x,), (jnp.ones_like(x),))[1]

    return slope
