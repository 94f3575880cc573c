"""Climb a smooth deterministic function to what its floats can resolve."""

from collections.abc import Callable
from functools import partial
from numbers import Real
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from vijax import calls, checks, jaxprs, raised
from vijax.calls import usage
from vijax.gaussians import newton
from vijax.solvers._line_search import Point, point_at, search_line, steepest
from vijax.trees import strong_dtypes, where
from vijax.types import PyTree

# Up to here the Hessian is formed, one product with each unit vector.
_DENSE = 500


class Maximum(NamedTuple):
    """Where a climb ended.

    Fields:
        params: like the start.
        value: the function there, ().
        slope: the largest absolute element of its gradient, (): what is left to climb.
        steps: how many steps were taken, ().
        scaled_slope: √(gᵀ Λ⁻¹ g), the slope per unit of the local scale, that of the curvature Λ = -∇²f, ().
        decrement: ½ gᵀ Λ⁻¹ g, how far below the top of the quadratic there the value is, (): in nats, of a bound. Both
            are nan where f is not concave, has more than 500 params, or no second derivative, and where Λ is no scale
            of f, as it underflows far out on one without a maximum.
    """

    params: PyTree
    value: Float[Array, ""]
    slope: Float[Array, ""]
    steps: Int[Array, ""]
    scaled_slope: Float[Array, ""]
    decrement: Float[Array, ""]


class _Climb(NamedTuple):
    """Where a climb is: its best point, the optimizer's state, the steps, whether it stalled."""

    best: Point
    optimizer: PyTree
    taken: Array
    stalled: Array


@usage("solvers.maximize")
def maximize(
    function: Callable[[PyTree], Float[Array, ""]],
    start: PyTree,
    *,
    steps: int = 1000,
    slope: float | None = None,
) -> Maximum:
    """Climb a function without noise by L-BFGS, then by Newton's steps until rounding ends them.

        θ ← θ + η H ∇f(θ),     H from the last ten steps, then H = (-∇²f)⁻¹

    For bounds in closed form (`targets.gauss_hermite`) and estimates with the same key at every
    step; fresh noise at every step wants a stochastic optimizer.

    Args:
        function: params -> (), to be maximized, twice differentiable. It is compiled once for a
            function object and shapes; the arrays that it closes over may change. jit and vmap over
            `maximize` are fine. Where it is concave, as the ELBO of a Gaussian q and log-concave
            factors is in (mean, Cholesky factor), the result is its one maximum.
        start: params, a pytree of floats.
        steps: the most steps to take, of both kinds.
        slope: L-BFGS goes on until no element of the gradient is larger; by default the square root
            of the dtype's epsilon over ten, times the larger of 1 and |f|. Newton's steps go on to
            rounding: where values are equal to it, by the slope. η is from a strong Wolfe line
            search.

    Returns:
        Maximum, whose `params` are the best evaluated; its `decrement` says whether it arrived. A
        value that is not finite ends the climb.

    Raises:
        TypeError: for a function whose value is no scalar, or a start that is not made of floats of
            one dtype.
        ValueError: for a target with noise, or that is unbiased in its mean alone; for the value of
            an objective whose derivative is right in its mean alone, naming `gradients.reparam`.

    Example:
        >>> result = maximize(lambda x: -jnp.sum((x - 3.0) ** 2), jnp.zeros(2))
        >>> float(result.params[0]), float(result.decrement)
        (3.0, 0.0)

    Reference: Liu, Nocedal, On the limited memory BFGS method for large scale optimization, 1989;
        Challis, Barber, Gaussian Kullback-Leibler approximate inference, 2013 (the concave case).
    """
    checks.target(function, "solvers.maximize", what="function")
    of = partial(raised.evaluated, "function", function)
    return climb(of, start, steps=steps, slope=slope, owner=function)


def climb(
    function: Callable[[PyTree], Array],
    start: PyTree,
    *,
    steps: int,
    slope: float | None,
    owner: Callable[..., Any],
) -> Maximum:
    """Climb as `maximize` does, by a program that is kept for as long as its owner lives."""
    checks.static_count(steps, "steps", least=0)
    # Written so that a nan is refused as well.
    if slope is not None and not (isinstance(slope, Real) and slope >= 0):
        raise ValueError(
            f"slope must be a number of at least 0, or None for the default, got {slope!r}."
        )
    start = _checked_start(function, start)
    dtype = jax.tree.leaves(start)[0].dtype

    def descend(params: PyTree) -> Array:
        # A line search believes the slope: it must be that of the value.
        with checks.own_derivative():
            return -jnp.asarray(function(params), dtype)

    def program(descend: Callable[[PyTree], Array]) -> Callable[[PyTree], Maximum]:
        return lambda start: _polish(descend, _quasi_newton(descend, start, steps, slope), steps)

    return jaxprs.once(owner, program, descend, start, ("maximize", steps, slope))


def _quasi_newton(
    descend: Callable[[PyTree], Array], start: PyTree, steps: int, slope: float | None
) -> _Climb:
    """Descend by L-BFGS until the slope is small, a line search fails, or the steps are used."""
    import optax

    optimizer = optax.lbfgs()
    # Below this slope, relative to |f|, L-BFGS gains nothing that values resolve.
    close = 0.1 * jnp.finfo(jax.tree.leaves(start)[0].dtype).eps ** 0.5

    def unfinished(climb: _Climb) -> Array:
        value, gradient = climb.best.value, climb.best.gradient
        enough = close * jnp.maximum(1.0, jnp.abs(value)) if slope is None else slope
        return (climb.taken < steps) & (steepest(gradient) > enough) & ~climb.stalled

    def step(climb: _Climb) -> _Climb:
        reached, state, better = search_line(
            descend, optimizer, climb.optimizer, climb.best, climb.best.gradient
        )
        # A step that is not better ends the climb, at the point before it.
        return _Climb(where(better, reached, climb.best), state, climb.taken + 1, ~better)

    first = _Climb(point_at(descend, start), optimizer.init(start), jnp.int32(0), jnp.bool_(0))
    return jax.lax.while_loop(unfinished, step, first)


def _polish(descend: Callable[[PyTree], Array], last: _Climb, steps: int) -> Maximum:
    """Go on by Newton's steps, which the rounding of values does not end, and say what is left."""
    best = last.best
    x, unravel = ravel_pytree(best.params)

    def density(x: Array) -> Array:
        return -descend(unravel(x))

    # Without a Hessian L-BFGS has the last word, and nothing is known of the curvature.
    if x.size > _DENSE or jnp.finfo(x.dtype).bits < 32 or not _twice(density, x):
        unknown = jnp.full((), jnp.nan, x.dtype)
        ended = best.params, -best.value, steepest(best.gradient), last.taken
        return Maximum(*ended, unknown, unknown)
    x, _, at, more = newton.climb(density, x, steps - last.taken)
    value, gradient = jax.value_and_grad(density)(x)
    # Beyond rounding; elsewhere Λ⁻¹ is no scale, and slope and decrement say nothing.
    concave = at.curvature > -x.size * jnp.finfo(x.dtype).eps
    left = (jnp.where(concave, size, jnp.nan) for size in (at.slope, at.decrement))
    return Maximum(unravel(x), value, steepest(gradient), last.taken + more, *left)


def _twice(density: Callable[[Array], Array], x: Array) -> bool:
    """Whether a function has second derivatives: a custom_vjp, as of chunks, has none."""
    try:
        jax.eval_shape(jax.hessian(density), x)
    except (TypeError, ValueError, NotImplementedError):
        return False
    return True


def _checked_start(function: Callable[[PyTree], Array], start: PyTree) -> PyTree:
    """Refuse a start that is not made of floats of one dtype, or a function that is no scalar."""
    calls.latents(start, "start")
    start = strong_dtypes(start)  # a weak one would be another program
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(start)]
    actual = jax.tree.map(jnp.result_type, start)
    if not dtypes or not all(jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes):
        raise TypeError(f"start must be a pytree of float arrays, got {actual}.")
    shape = getattr(jax.eval_shape(function, start), "shape", None)
    if shape != ():
        raise TypeError(f"function must return a scalar, got shape {shape}; sum over the batch.")
    if len(set(dtypes)) > 1:
        raise TypeError(f"start must be of one dtype, got {actual}.")
    return start
