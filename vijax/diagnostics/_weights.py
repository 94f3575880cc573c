"""What the log-weights say of themselves: how many draws count, and how heavy the tail is."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vijax.numerics import normalized_weights


def ess(log_w: Float[Array, "k *batch"]) -> Float[Array, "*batch"]:
    """Effective sample size of importance weights: between 1 and k, k at the exact posterior.

        ESS = 1 / Σₖ w̃ₖ²,   w̃ = softmax(log w)

    A first look at q's fit; it can be complacent when q misses a mode, so read it beside `khat`.

    Args:
        log_w: log-weights in nats, [k, *batch].

    Returns:
        [*batch], in draws; 0 where every draw is impossible.

    Raises:
        ValueError: for k = 0.

    Reference: Kong, A note on importance sampling using standardized weights, 1992.
    """
    squares = jnp.sum(jnp.square(normalized_weights(log_w)), 0)
    return jnp.where(squares == 0, 0.0, 1 / jnp.where(squares == 0, 1.0, squares))


def khat(log_w: Float[Array, "k *batch"]) -> Float[Array, "*batch"]:
    """Pareto k-hat of the largest weights: below .5 good, below .7 usable, above 1 the mean weight may not exist.

        w | w > u  ~  GPD(k̂, σ),   u: the largest weight below the tail of min(k/5, 3 √k) draws

    The verdict on q as an importance proposal, and so on any corrected moment. Total and jittable: tails constant to
    rounding (q exact) give -inf, fewer than 25 draws or none possible give +inf (no verdict, so not a good one), a
    +inf weight +inf, nan nan.

    Args:
        log_w: log-weights in nats, [k, *batch]; some hundreds of draws or more for a stable answer.

    Returns:
        [*batch], with the weakly informative prior of the reference (towards .5).

    Raises:
        ValueError: for k = 0.

    Reference: Vehtari, Simpson, Gelman, Yao, Gabry, Pareto smoothed importance sampling, 2024, arXiv:1507.02646; Zhang,
        Stephens, A new and efficient estimation method for the generalized Pareto distribution, 2009.
    """
    k = log_w.shape[0] if log_w.ndim else 0
    if k == 0:
        raise ValueError(f"log_w must have shape [k, *batch] with k >= 1, got {log_w.shape}.")
    tail = int(3 * k**0.5) if k > 225 else k // 5
    if tail < 5:
        return jnp.where(jnp.any(jnp.isnan(log_w), 0), jnp.nan, jnp.full(log_w.shape[1:], jnp.inf, log_w.dtype))
    columns = jnp.moveaxis(log_w, 0, -1).reshape(-1, k)
    fits = jax.vmap(lambda column: _khat(column, tail))(columns)
    return fits.reshape(log_w.shape[1:])


def _khat(log_w: Array, tail: int) -> Array:
    top = jnp.max(log_w)
    # Only the tail and the value below it matter, and top_k is far cheaper than sorting everything.
    largest = jax.lax.top_k(jnp.where(jnp.isfinite(top), log_w - top, 0.0), tail + 1)[0][::-1]
    exceedance = jnp.exp(largest[1:]) - jnp.exp(largest[0])
    # A spread that rounding alone would make is none: at the exact posterior the last digits are no Pareto tail.
    rounding = 64 * jnp.finfo(log_w.dtype).eps * jnp.maximum(1.0, jnp.abs(top))
    spread = exceedance[-1] - exceedance[0] > rounding
    fit = _generalized_pareto_shape(jnp.where(spread, exceedance, jnp.linspace(0.5, 1.0, tail, dtype=log_w.dtype)))
    fit = jnp.where(spread, fit, -jnp.inf)
    # Weights that differ and yet underflow beside the largest: a tail heavier than this precision can hold.
    low = int(tail / 4 + 0.5) - 1
    fit = jnp.where(spread & (exceedance[low] == 0) & (largest[1 + low] > largest[0]), jnp.inf, fit)
    return jnp.where(jnp.any(jnp.isnan(log_w)), jnp.nan, jnp.where(jnp.isfinite(top), fit, jnp.inf))


def _generalized_pareto_shape(x: Float[Array, " n"]) -> Float[Array, ""]:
    """Fit the shape to ascending x >= 0 by the profile posterior mean of Zhang and Stephens."""
    n = x.shape[0]
    grid = 30 + int(n**0.5)
    # Ties can put the lower quartile at 0; the smallest positive number keeps the grid finite.
    quartile = jnp.maximum(x[int(n / 4 + 0.5) - 1], jnp.finfo(x.dtype).tiny * 1e8)
    i = jnp.arange(1, grid + 1, dtype=x.dtype)
    b = 1 / x[-1] + (1 - jnp.sqrt(grid / (i - 0.5))) / (3 * quartile)
    shape = jnp.mean(jnp.log1p(-b[:, None] * x[None]), 1)
    weight = jax.nn.softmax(n * (jnp.log(-b / shape) - shape - 1))
    negligible = weight < 10 * jnp.finfo(x.dtype).eps
    weight = jnp.where(negligible, 0.0, weight)
    b_mean = jnp.sum(jnp.where(negligible, 0.0, b) * weight) / jnp.sum(weight)
    return (n * jnp.mean(jnp.log1p(-b_mean * x)) + 10 * 0.5) / (n + 10)
