"""Climb a smooth deterministic function to machine precision."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vijax import checks
from vijax.solvers._line_search import Point, point_at, search_line, steepest
from vijax.trees import where
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
    function: Callable[[PyTree], Float[Array, ""]],
    start: PyTree,
    *,
    steps: int = 1000,
    slope: float | None = None,
) -> Maximum:
    """Climb a function without noise by L-BFGS, until nothing is left to climb.

        θ ← θ + η H ∇f(θ),     H from the last ten steps, η by a strong Wolfe line search

    For bounds in closed form (`targets.gauss_hermite`, a collapsed target without further latents)
    and for estimates at fixed draws: the same key at every step, so that the function is the same.
    Where the function is concave, as the ELBO of a Gaussian q and log-concave factors is in (mean,
    Cholesky factor), this is its one maximum. Estimates with fresh noise at every step want a
    stochastic optimizer instead. Run it in float64 to reach 1e-8.

    Args:
        function: params -> (), to be maximized, twice differentiable; jit and vmap over `maximize`
            are fine.
        start: params, a pytree of floats.
        steps: the most steps to take.
        slope: stop when no element of the gradient is larger; by default the square root of the
            dtype's epsilon over ten, times the larger of 1 and |f|.

    Returns:
        Maximum, whose `params` are the best seen. A step that no line search can better, or a value
        that is not finite, ends the climb; see its `value` and `slope` for whether it arrived.

    Raises:
        TypeError: for a function whose value is no scalar, or a start that is not made of floats of
            one dtype.
        ValueError: for a target with noise, or that is unbiased in its mean alone; for the value of
            an objective whose derivative is right in its mean alone, naming `gradients.reparam`.

    Reference: Liu, Nocedal, On the limited memory BFGS method for large scale optimization, 1989;
        Challis, Barber, Gaussian Kullback-Leibler approximate inference, 2013 (the concave case).
    """
    import optax

    checks.target(function, "solvers.maximize", what="function")
    start = _checked_start(function, start)
    dtype = jax.tree.leaves(start)[0].dtype
    optimizer = optax.lbfgs()
    close = 0.1 * jnp.finfo(dtype).eps ** 0.5

    def descend(params: PyTree) -> Array:
        # A line search believes the slope: it must be that of the value.
        with checks.own_derivative():
            return -jnp.asarray(function(params), dtype)

    def unfinished(climb: _Climb) -> Array:
        value, gradient = climb.best.value, climb.best.gradient
        enough = close * jnp.maximum(1.0, jnp.abs(value)) if slope is None else slope
        return (climb.taken < steps) & (steepest(gradient) > enough) & ~climb.stalled

    def step(climb: _Climb) -> _Climb:
        reached, state, better = search_line(
            descend, optimizer, climb.optimizer, climb.best, climb.best.gradient
        )
        return _Climb(where(better, reached, climb.best), state, climb.taken + 1, ~better)

    first = _Climb(point_at(descend, start), optimizer.init(start), jnp.int32(0), jnp.bool_(0))
    last = jax.lax.while_loop(unfinished, step, first)
    best = last.best
    return Maximum(best.params, -best.value, steepest(best.gradient), last.taken)


class _Climb(NamedTuple):
    """Where a climb is: its best point, the optimizer's state, the steps, whether it stalled."""

    best: Point
    optimizer: PyTree
    taken: Array
    stalled: Array


def _checked_start(function: Callable[[PyTree], Array], start: PyTree) -> PyTree:
    """Refuse a start that is not made of floats of one dtype, or a function that is no scalar."""
    start = jax.tree.map(jnp.asarray, start)
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(start)]
    found = jax.tree.map(jnp.result_type, start)
    if not dtypes or not all(jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes):
        raise TypeError(f"start must be a pytree of float arrays, got {found}.")
    shape = getattr(jax.eval_shape(function, start), "shape", None)
    if shape != ():
        raise TypeError(f"function must return a scalar, got shape {shape}; sum over the batch.")
    if len(set(dtypes)) > 1:
        raise TypeError(f"start must be of one dtype, got {found}.")
    return start
