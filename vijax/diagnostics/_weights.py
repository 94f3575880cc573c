"""Importance weights: how many draws count, and how heavy the tail is."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vijax.calls import log_weights
from vijax.numerics import log_normalized, normalized_weights

# Nats: rounding errors of this size move an effective sample size by one in a hundred.
RESOLVED = 0.1
ROUNDINGS = 64  # how many of them the sum of a log-density may gather
LEAST = 25  # draws, for a k-hat


def resolution(
    log_p: Float[Array, "k *batch"], log_q: Float[Array, "k *batch"]
) -> Float[Array, "*batch"]:
    """Resolution of log-weights: how far apart two must be before floats tell them apart.

        r = Σₖ w̃ₖ ε max(|log p(x, zₖ)|, |log q(zₖ)|),   w̃ = softmax(log p - log q)

    At |log p| = 10⁷ float32 resolves a nat. Above .1 nats `ess`, `khat` and `verdict` cannot tell.

    Args:
        log_p: log p(x, z) in nats, [k, *batch]. What is lost within `log_joint` is not detected: (log p + 10⁷) - 10⁷
            has lost as much, so take a constant from the terms, before they are summed.
        log_q: log q(z) in nats, [k, *batch].

    Returns:
        [*batch], in nats, with ε the eps of the floats; 0 where every draw is impossible, nan where there are nan.

    Raises:
        ValueError: for shapes that differ, or k = 0.

    Example:
        >>> float(resolution(jnp.full(100, -1e7), jnp.full(100, -1e7))) > 1
        True

    Reference: Higham, Accuracy and stability of numerical algorithms, 2002, chapter 4.
    """
    if log_p.shape != log_q.shape:
        raise ValueError(
            f"log_p and log_q must have one shape [k, *batch], got {log_p.shape} and {log_q.shape}."
        )
    return mean_rounding(normalized_weights(log_p - log_q), log_p, log_q)


def mean_rounding(w: Array, log_p: Array, log_q: Array) -> Array:
    """Return the mean under normalized weights w of the larger rounding error."""
    rounding = jnp.maximum(*(jnp.finfo(a.dtype).eps * jnp.abs(a) for a in (log_p, log_q)))
    # An impossible draw has an infinite log p and no weight; a nan must stay one.
    counts = jnp.isnan(w) | ((w > 0) & jnp.isfinite(rounding))
    return jnp.sum(jnp.where(counts, w * rounding, 0.0), 0)


def unresolved(log_w: Array, rounding: Array | None) -> tuple[Array, Array]:
    """Return the resolution of log-weights [k, *batch], their own if none is given, and whether it hides the spread.

    It does not where the largest is above all others by more than rounding: one draw has all the weight.
    """
    r = mean_rounding(normalized_weights(log_w), log_w, log_w) if rounding is None else rounding
    # How many are within rounding of the largest, which is one of them.
    near = jnp.sum(log_w >= (jnp.max(log_w, 0) - ROUNDINGS * r)[None], 0)
    return r, (r > RESOLVED) & (near > 1)


def ess(
    log_w: Float[Array, "k *batch"], *, resolution: Float[Array, "*batch"] | None = None
) -> Float[Array, "*batch"]:
    """Effective sample size of importance weights: between 1 and k, k at the exact posterior.

        ESS = 1 / Σₖ w̃ₖ²,   w̃ = softmax(log w)

    A first number for q's fit; it can be complacent where q misses a mode, so read it beside `khat`.

    Args:
        log_w: log-weights in nats, [k, *batch].
        resolution: as `resolution(log_p, log_q)` gives it, where those are larger than log_w; ε |log w| by default.

    Returns:
        [*batch], in draws; 0 where every draw is impossible, nan where floats do not resolve the spread (above a tenth
        of a nat): then it cannot be told.

    Raises:
        ValueError: for k = 0.

    Example:
        >>> round(float(ess(jnp.log(jnp.array([0.5, 0.25, 0.25])))), 3)  # 1 / (1 / 4 + 1 / 16 + 1 / 16)
        2.667

    Reference: Kong, A note on importance sampling using standardized weights, 1992.
    """
    log_weights(log_w, "diagnostics.ess")
    squares = jnp.sum(jnp.square(normalized_weights(log_w)), 0)
    # Where every draw is impossible all weights are 0, and no draw counts.
    draws = jnp.where(squares == 0, 0.0, 1 / jnp.where(squares == 0, 1.0, squares))
    return jnp.where(unresolved(log_w, resolution)[1], jnp.nan, draws)


def khat(
    log_w: Float[Array, "k *batch"], *, resolution: Float[Array, "*batch"] | None = None
) -> Float[Array, "*batch"]:
    """Pareto k-hat of the largest weights: below .5 good, below .7 usable, above 1 the mean weight may not exist.

        w | w > u  ~  GPD(k̂, σ),   u: the largest weight below the tail of min(k/5, 3 √k) draws

    Mass where q never draws goes undetected: a q that misses a mode has good weights.

    Args:
        log_w: log-weights in nats, [k, *batch]; some hundreds of draws or more for a stable answer.
        resolution: as `resolution(log_p, log_q)` gives it, where those are larger than log_w; ε |log w| by default.

    Returns:
        [*batch], with the weakly informative prior of the reference (towards .5). Tails constant to rounding (q exact)
        give -inf. Where it cannot be told it is +inf: fewer than 25 draws or none possible, and floats that do not
        resolve the spread. A +inf weight gives +inf, nan nan. Jittable.

    Raises:
        ValueError: for k = 0.

    Example:
        >>> u = (jnp.arange(1000) + 0.5) / 1000
        >>> round(float(khat(-0.5 * jnp.log(u))), 1)  # w = u^-½: a Pareto tail of shape ½
        0.5

    Reference: Vehtari, Simpson, Gelman, Yao, Gabry, Pareto smoothed importance sampling, 2024, arXiv:1507.02646; Zhang,
        Stephens, A new and efficient estimation method for the generalized Pareto distribution, 2009.
    """
    log_weights(log_w, "diagnostics.khat")
    return _by_column(_shape, log_w, resolution).reshape(log_w.shape[1:])


def psis(log_w: Float[Array, "k *batch"]) -> Float[Array, "k *batch"]:
    """Pareto-smoothed log-weights, normalized: the largest become quantiles of the tail fitted to them.

        w₍ₜ₎ ← min(u + F⁻¹((t - ½)/T; k̂, σ), max w),   t = 1 ... T the largest,     Σₖ exp(psisₖ) = 1

    For corrected moments and resampling: less variance than raw weights, at a small bias where `khat` is below .7.

    Args:
        log_w: log-weights in nats, [k, *batch].

    Returns:
        [k, *batch], whose exponentials sum to 1 over axis 0, in the order of log_w; its derivative is not valid. A tail
        without a fit (constant, infinite, below what floats resolve, or of fewer than 25 draws) keeps its raw weights,
        an impossible draw stays impossible, a +inf weight takes all, draws that are all impossible share alike, and nan
        gives nan. Jittable.

    Raises:
        ValueError: for k = 0.

    Example:
        >>> log_w = jnp.log(jnp.array([0.1, 0.3] * 50))
        >>> smoothed = psis(log_w)
        >>> smoothed.shape, round(float(jnp.sum(jnp.exp(smoothed))), 3)
        ((100,), 1.0)

    Reference: Vehtari, Simpson, Gelman, Yao, Gabry, Pareto smoothed importance sampling, 2024, arXiv:1507.02646.
    """
    log_weights(log_w, "diagnostics.psis")
    return jnp.moveaxis(_by_column(_smoothed, log_w, None), 0, -1).reshape(log_w.shape)


def _by_column(
    function: Callable[[Array, Array | None], Array], log_w: Array, rounding: Array | None
) -> Array:
    """Apply a function of one column to each member of the batch, [*batch] flattened and leading."""
    if log_w.ndim == 0 or log_w.shape[0] == 0:
        raise ValueError(f"log_w must have shape [k, *batch] with k >= 1, got {log_w.shape}.")
    # [columns, k], and [columns] of the resolution.
    columns = jnp.moveaxis(log_w, 0, -1).reshape(-1, log_w.shape[0])
    if rounding is not None:
        rounding = jnp.broadcast_to(rounding, log_w.shape[1:]).reshape(-1)
    return _mapped(function, columns, rounding)


# Op by op, the fit would compile some sixty programs for each new shape.
@partial(jax.jit, static_argnums=0)
def _mapped(
    function: Callable[[Array, Array | None], Array], columns: Array, rounding: Array | None
) -> Array:
    return jax.vmap(function)(columns, rounding)


def _shape(log_w: Array, rounding: Array | None) -> Array:
    """Return k-hat, (), of one column."""
    return fit_tail(log_w, *unresolved(log_w, rounding)).shape


def _smoothed(log_w: Array, rounding: Array | None) -> Array:
    """Return the smoothed log-weights, [k], of one column."""
    return smooth(log_w, fit_tail(log_w, *unresolved(log_w, rounding)))


class Tail(NamedTuple):
    """The largest weights of one column [k], and the Pareto distribution fitted to them.

    Fields:
        shape: k-hat, ().
        scale: in units of the largest weight, ().
        largest: logs of the weights in those units, ascending, the one below the tail first, [tail + 1].
        where: their indices.
    """

    shape: Array
    scale: Array
    largest: Array
    where: Array


def fit_tail(log_w: Float[Array, " k"], rounding: Array, hidden: Array) -> Tail:
    """Fit the tail of one column of log-weights; total, as `khat` says.

    Args:
        log_w: in nats.
        rounding: the resolution of log_w, and whether it hides their spread, as `unresolved` says.
        hidden: its second answer.
    """
    k = log_w.shape[0]
    # min(k / 5, 3 √k), of integers.
    tail = int(3 * k**0.5) if k > 225 else k // 5
    top = jnp.max(log_w)
    no_verdict = jnp.where(jnp.any(jnp.isnan(log_w)), jnp.nan, jnp.inf).astype(log_w.dtype)
    # Only the tail and the value below it matter, and top_k is far cheaper than sorting everything.
    largest, where = jax.lax.top_k(jnp.where(jnp.isfinite(top), log_w - top, 0.0), tail + 1)
    largest, where = largest[::-1], where[::-1]
    # Ascending, and largest[0] is the threshold u.
    if k < LEAST:
        return Tail(no_verdict, jnp.zeros_like(top), largest, where)
    exceedance = jnp.exp(largest[1:]) - jnp.exp(largest[0])
    # A spread that rounding alone would make is none: at the exact posterior the last digits are no Pareto tail. Those
    # of log p and log q are coarser than their difference shows; but nothing above a tenth of a nat is rounding.
    eps = jnp.finfo(log_w.dtype).eps
    floor = jnp.minimum(jnp.maximum(10 * eps**0.5, ROUNDINGS * rounding), RESOLVED)
    spread = -largest[1] > floor
    # A tail without spread is not fitted, and -inf is its k-hat; the grid stands in, so that no branch is nan.
    shape, scale = _generalized_pareto(
        jnp.where(spread, exceedance, jnp.linspace(0.5, 1.0, tail, dtype=log_w.dtype))
    )
    shape = jnp.where(spread, shape, -jnp.inf)
    # Weights that differ and yet underflow beside the largest: a tail heavier than this precision can hold.
    # The lower quartile, which the fit's grid is scaled by.
    low = int(tail / 4 + 0.5) - 1
    underflow = spread & (exceedance[low] == 0) & (largest[1 + low] > largest[0])
    known = jnp.isfinite(top) & ~hidden & ~underflow
    return Tail(jnp.where(known, shape, no_verdict), scale, largest, where)


def smooth(log_w: Float[Array, " k"], fitted: Tail) -> Float[Array, " k"]:
    """Return normalized log-weights, those of the tail replaced by the quantiles of its fit where there is one."""
    shape, scale, largest, where = fitted
    tail = len(where) - 1
    # F⁻¹(p) = σ ((1 - p)^-k̂ - 1) / k̂ at the midpoints p of T equal shares, and -σ log(1 - p) at k̂ = 0.
    p = (jnp.arange(tail, dtype=log_w.dtype) + 0.5) / tail
    exponential = -jnp.log1p(-p)
    bent = jnp.abs(shape) > jnp.finfo(log_w.dtype).eps
    safe = jnp.where(bent & jnp.isfinite(shape), shape, 1.0)
    quantile = scale * jnp.where(bent, jnp.expm1(safe * exponential) / safe, exponential)
    # In units of the largest weight, which none may exceed.
    smoothed = jnp.minimum(jnp.log(jnp.exp(largest[0]) + quantile), 0.0)
    # An impossible draw stays so, also where the tail reaches down to it.
    smoothed = jnp.where(largest[1:] == -jnp.inf, -jnp.inf, smoothed)
    is_fitted = jnp.isfinite(shape) & (scale > 0)
    raw = jnp.where(jnp.isfinite(jnp.max(log_w)), log_w - jnp.max(log_w), log_w)
    new = raw.at[where[1:]].set(jnp.where(is_fitted, smoothed, raw[where[1:]]))
    return jnp.where(jnp.any(jnp.isnan(log_w)), jnp.nan, log_normalized(new))


def _generalized_pareto(x: Float[Array, " n"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Fit (shape, scale) to ascending x >= 0 by the profile posterior mean of Zhang and Stephens."""
    n = x.shape[0]
    grid = 30 + int(n**0.5)
    # Ties can put the lower quartile at 0; the smallest positive number keeps the grid finite.
    quartile = jnp.maximum(x[int(n / 4 + 0.5) - 1], jnp.finfo(x.dtype).tiny * 1e8)
    # Candidates of b = -k̂ / σ, scaled by the lower quartile, [grid].
    i = jnp.arange(1, grid + 1, dtype=x.dtype)
    b = 1 / x[-1] + (1 - jnp.sqrt(grid / (i - 0.5))) / (3 * quartile)
    # [grid]: the shape that maximizes the likelihood at each b, and the profile likelihood as a weight.
    shape = jnp.mean(jnp.log1p(-b[:, None] * x[None]), 1)
    weight = jax.nn.softmax(n * (jnp.log(-b / shape) - shape - 1))
    negligible = weight < 10 * jnp.finfo(x.dtype).eps
    weight = jnp.where(negligible, 0.0, weight)
    b_mean = jnp.sum(jnp.where(negligible, 0.0, b) * weight) / jnp.sum(weight)
    at_mean = jnp.mean(jnp.log1p(-b_mean * x))
    # The prior towards ½ counts as ten of the tail's draws.
    return (n * at_mean + 10 * 0.5) / (n + 10), -at_mean / b_mean
