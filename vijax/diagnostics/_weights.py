"""What the log-weights say of themselves: how many draws count, and how heavy the tail is."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vijax.numerics import log_normalized, normalized_weights


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
    tail = _tail(log_w)
    if tail < 5:
        return jnp.where(
            jnp.any(jnp.isnan(log_w), 0), jnp.nan, jnp.full(log_w.shape[1:], jnp.inf, log_w.dtype)
        )
    return _columns(_shape, log_w, tail).reshape(log_w.shape[1:])


def psis(log_w: Float[Array, "k *batch"]) -> Float[Array, "k *batch"]:
    """Pareto-smoothed log-weights, normalised: the largest weights give way to quantiles of the tail fitted to them.

        w₍ₜ₎ ← min(u + F⁻¹((t - ½)/T; k̂, σ), max w),   t = 1 ... T the largest,     Σₖ exp(psisₖ) = 1

    For moments corrected by importance, and for resampling: Σₖ exp(psisₖ) f(zₖ) varies less than with the raw weights,
    at a small bias, as long as `khat` is below .7. Total and jittable, as `khat` is: a tail without a fit (constant,
    infinite, or of fewer than 25 draws) keeps its raw weights, an impossible draw stays impossible, a +inf weight takes
    all, draws that are all impossible share alike, and nan gives nan.

    Args:
        log_w: log-weights in nats, [k, *batch].

    Returns:
        [k, *batch], whose exponentials sum to 1 over axis 0, in the order of log_w. Gradients of it mean nothing.

    Raises:
        ValueError: for k = 0.

    Reference: Vehtari, Simpson, Gelman, Yao, Gabry, Pareto smoothed importance sampling, 2024, arXiv:1507.02646.
    """
    tail = _tail(log_w)
    if tail < 5:
        return jnp.where(jnp.any(jnp.isnan(log_w), 0)[None], jnp.nan, log_normalized(log_w))
    return jnp.moveaxis(_columns(_smooth, log_w, tail), 0, -1).reshape(log_w.shape)


def _tail(log_w: Array) -> int:
    """Return how many of the largest draws are the tail."""
    k = log_w.shape[0] if log_w.ndim else 0
    if k == 0:
        raise ValueError(f"log_w must have shape [k, *batch] with k >= 1, got {log_w.shape}.")
    return int(3 * k**0.5) if k > 225 else k // 5


@partial(
    jax.jit, static_argnums=(0, 2)
)  # op by op, the fit would compile some sixty programs for each new shape
def _columns(function: Callable[[Array, int], Array], log_w: Array, tail: int) -> Array:
    """Apply a function of one column to each member of the batch, [*batch] flattened and leading."""
    columns = jnp.moveaxis(log_w, 0, -1).reshape(-1, log_w.shape[0])
    return jax.vmap(lambda column: function(column, tail))(columns)


def _shape(log_w: Array, tail: int) -> Array:
    return _fit(log_w, tail)[0]


def _fit(log_w: Array, tail: int) -> tuple[Array, Array, Array, Array]:
    """Fit the tail: its shape; its scale, in units of the largest weight; the logs of it and the one below; where."""
    top = jnp.max(log_w)
    # Only the tail and the value below it matter, and top_k is far cheaper than sorting everything.
    largest, where = jax.lax.top_k(jnp.where(jnp.isfinite(top), log_w - top, 0.0), tail + 1)
    largest, where = largest[::-1], where[::-1]
    exceedance = jnp.exp(largest[1:]) - jnp.exp(largest[0])
    # A spread that rounding alone would make is none: at the exact posterior the last digits are no Pareto tail. Those
    # of log p and log q are coarser than their difference shows; but nothing above a tenth of a nat is rounding.
    eps = jnp.finfo(log_w.dtype).eps
    spread = -largest[1] > jnp.minimum(jnp.maximum(10 * eps**0.5, 64 * eps * jnp.abs(top)), 0.1)
    shape, scale = _generalized_pareto(
        jnp.where(spread, exceedance, jnp.linspace(0.5, 1.0, tail, dtype=log_w.dtype))
    )
    shape = jnp.where(spread, shape, -jnp.inf)
    # Weights that differ and yet underflow beside the largest: a tail heavier than this precision can hold.
    low = int(tail / 4 + 0.5) - 1
    shape = jnp.where(
        spread & (exceedance[low] == 0) & (largest[1 + low] > largest[0]), jnp.inf, shape
    )
    shape = jnp.where(
        jnp.any(jnp.isnan(log_w)), jnp.nan, jnp.where(jnp.isfinite(top), shape, jnp.inf)
    )
    return shape, scale, largest, where


def _smooth(log_w: Array, tail: int) -> Array:
    shape, scale, largest, where = _fit(log_w, tail)
    p = (jnp.arange(tail, dtype=log_w.dtype) + 0.5) / tail
    exponential = -jnp.log1p(-p)  # the quantile at shape 0
    bent = jnp.abs(shape) > jnp.finfo(log_w.dtype).eps
    safe = jnp.where(bent & jnp.isfinite(shape), shape, 1.0)
    quantile = scale * jnp.where(bent, jnp.expm1(safe * exponential) / safe, exponential)
    smooth = jnp.minimum(jnp.log(jnp.exp(largest[0]) + quantile), 0.0)
    smooth = jnp.where(largest[1:] == -jnp.inf, -jnp.inf, smooth)
    fitted = jnp.isfinite(shape) & (scale > 0)
    raw = jnp.where(jnp.isfinite(jnp.max(log_w)), log_w - jnp.max(log_w), log_w)
    smoothed = raw.at[where[1:]].set(jnp.where(fitted, smooth, raw[where[1:]]))
    return jnp.where(jnp.any(jnp.isnan(log_w)), jnp.nan, log_normalized(smoothed))


def _generalized_pareto(x: Float[Array, " n"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Fit (shape, scale) to ascending x >= 0 by the profile posterior mean of Zhang and Stephens."""
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
    found = jnp.mean(jnp.log1p(-b_mean * x))
    return (n * found + 10 * 0.5) / (n + 10), -found / b_mean
