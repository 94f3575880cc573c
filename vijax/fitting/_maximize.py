"""Climb a smooth deterministic function to machine precision."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vijax.types import PyTree


class Maximum(NamedTuple):
    """Where a climb ended.

    Fields:
        params: like the start.
        value: the function there, ().
        slope: the largest absolute element of its gradient, (): what is left to climb.
        steps: how many steps were taken, ().
    """

    params: PyTree
    value: Float[Array, ""]
    slope: Float[Array, ""]
    steps: Int[Array, ""]


def maximize(
    function: Callable[[PyTree], Float[Array, ""]], start: PyTree, *, steps: int = 1000, slope: float | None = None
) -> Maximum:
    """Climb a function without noise by L-BFGS, until nothing is left to climb.

        θ ← θ + η H ∇f(θ),     H from the last ten steps, η by a line search that meets the strong Wolfe conditions

    For bounds in closed form (`targets.gauss_hermite`, a collapsed target without further latents) and for estimates
    at fixed draws: the same key at every step, so that the function is the same. Where the function is concave, as the
    ELBO of a Gaussian q and log-concave factors is in (mean, Cholesky factor), this is its one maximum. Estimates with
    fresh noise at every step want a stochastic optimizer instead. Run it in float64 to reach 1e-8.

    Args:
        function: params -> (), to be maximised, twice differentiable; jit and vmap over `maximize` are fine.
        start: params, a pytree of floats.
        steps: the most steps to take.
        slope: stop when no element of the gradient is larger; by default the square root of the dtype's epsilon over
            ten, times the larger of 1 and |f|.

    Returns:
        Maximum, whose `params` are the best seen. A step that no line search can better, or a value that is not
        finite, ends the climb; see its `value` and `slope` for whether it arrived.

    Raises:
        TypeError: for a function whose value is no scalar, or a start that is not made of floats of one dtype.

    Reference: Liu, Nocedal, On the limited memory BFGS method for large scale optimization, 1989; Challis, Barber,
        Gaussian Kullback-Leibler approximate inference, 2013 (the concave case).
    """
    import optax

    start = jax.tree.map(jnp.asarray, start)
    leaves = jax.tree.leaves(start)
    if not leaves or not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves):
        raise TypeError(f"start must be a pytree of float arrays, got {jax.tree.map(jnp.result_type, start)}.")
    if (shape := getattr(jax.eval_shape(function, start), "shape", None)) != ():
        raise TypeError(f"function must return a scalar, got shape {shape}; sum over the batch.")
    if len({leaf.dtype for leaf in leaves}) > 1:
        raise TypeError(f"start must be of one dtype, got {jax.tree.map(jnp.result_type, start)}.")

    descend = lambda params: -jnp.asarray(function(params), leaves[0].dtype)  # noqa: E731
    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(descend)
    steepest = lambda grad: jnp.max(jnp.stack([jnp.max(jnp.abs(g), initial=0.0) for g in jax.tree.leaves(grad)]))  # noqa: E731
    close = 0.1 * jnp.finfo(leaves[0].dtype).eps ** 0.5

    def going(carry: Any) -> Array:
        _, _, value, grad, count, stalled = carry
        enough = close * jnp.maximum(1.0, jnp.abs(value)) if slope is None else slope
        return (count < steps) & (steepest(grad) > enough) & ~stalled

    def step(carry: Any) -> Any:
        params, state, value, grad, count, _ = carry
        updates, state = optimizer.update(grad, state, params, value=value, grad=grad, value_fn=descend)
        tried = optax.apply_updates(params, updates)
        value_there, grad_there = value_and_grad(tried, state=state)  # the line search has them: no evaluation
        better = value_there < value
        keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(better, n, o), new, old)  # noqa: E731
        there, here = (tried, value_there, grad_there), (params, value, grad)
        params, value, grad = keep(there, here)
        return params, state, value, grad, count + 1, ~better

    value, grad = jax.value_and_grad(descend)(start)
    first = (start, optimizer.init(start), value, grad, jnp.int32(0), jnp.bool_(0))
    params, _, value, grad, count, _ = jax.lax.while_loop(going, step, first)
    return Maximum(params, -value, steepest(grad), count)
