"""Estimates of log p(x) without bias but what truncation leaves: IWAE, randomly truncated."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from vijax import checks
from vijax.calls import bound, is_known
from vijax.numerics import log_mean_exp
from vijax.types import Level, with_closed_forms


@with_closed_forms(smooth=True, independent=True)
@bound
def sumo(
    log_w: Float[Array, "k *batch"], *, level: Level, weights: Array | None = None
) -> Float[Array, "*batch"]:
    """SUMO, to be maximized or minimized: unbiased for log p(x) in the limit; at finite k its mean
    is IWAE's, a lower bound.

        L = L₁ + Σ_{j=1..𝒦} (Lⱼ₊₁ - Lⱼ) / P(𝒦 >= j),      Lⱼ: IWAE of the first j draws

    When log p(x) must be pushed down, where a bound would be exploited. The variance may be
    infinite.

    Args:
        log_w: log-weights in nats, [k, *batch], k <= m. All are evaluated; those beyond the level do
            not count.
        level: of `draws.level`, m levels, drawn apart from the draws; those past k - 1 count as k - 1.
        weights: must be None.

    Returns:
        [*batch], in nats; -inf where the first draw is impossible, since weights that may be 0 have no ELBO to start
        from; +inf where any draw up to the level is infinite; nan where traced probabilities lack the mass.

    Raises:
        ValueError: for k > m, a level of another shape than () or [*batch], weights, or probabilities without mass at
            level k - 1 or above.

    Example:
        >>> log_w = jnp.log(jnp.array([1.0, 3.0]))
        >>> level = vj.types.Level(jnp.array(1), jnp.array([0.5, 0.5]))
        >>> round(float(sumo(log_w, level=level)), 3)  # log 1 + (log 2 - log 1) / ½
        1.386

    Reference: Luo, Beatson, Norouzi, Zhu, Duvenaud, Adams, Chen, SUMO: unbiased estimation of log marginal probability
        for latent variable models, 2020, arXiv:2004.00353.
    """
    k, m = log_w.shape[0], level.probabilities.shape[0]
    if not 1 <= k <= m:
        raise ValueError(
            f"sumo with {m} levels takes k draws, m >= k >= 1; got k = {k}: draw a level of {k}."
        )
    value = _level("sumo", log_w, level, weights)[None]
    probabilities = _known(level)
    # Mass at the last step or above: then every earlier one has its chance too.
    last = probabilities[k - 1 :].sum()[None]
    enough = _positive("sumo", last, f"level {k - 1} or above, for {k} draws", log_w.dtype)

    def column(values: Array) -> Array:
        # [n] to [n, *1s of the batch].
        return jnp.asarray(values).reshape(-1, *(1,) * (log_w.ndim - 1))

    j = column(jnp.arange(1, k))
    reached = j <= value
    # P(𝒦 >= j) for j = 1 .. k-1, summed from the tail, where the terms are small.
    survival = column(jnp.cumsum(probabilities[::-1])[::-1][1:k])
    share = jnp.where(reached, 1 / jnp.where(reached, survival, 1.0), 0.0).astype(log_w.dtype)
    # A weight of 0 is one so small that it weighs nothing, and an infinite one is reported at the end.
    most = 0.25 * float(jnp.finfo(log_w.dtype).max)
    bounded = jnp.clip(log_w, -most, most)
    # [k-1, *batch]: log of the sum of the draws before each.
    before = jax.lax.cumlogsumexp(bounded, axis=0)[:-1]
    # log (1 + w / the sum before it) - log (1 + 1/j): what draw j + 1 adds, without cancellation.
    steps = jax.nn.softplus(bounded[1:] - before) - jnp.log1p(1 / j).astype(log_w.dtype)
    infinite = jnp.any((log_w == jnp.inf) & (column(jnp.arange(k)) <= value), 0)
    impossible = log_w[0] == -jnp.inf
    estimate = jnp.where(impossible, 0.0, log_w[0]) + jnp.sum(share * steps, 0)
    return enough * jnp.where(infinite, jnp.inf, jnp.where(impossible, -jnp.inf, estimate))


def _cannot_lose(log_w: Array, **_: object) -> Array:
    raise ValueError(
        "mlmc_iwae takes a power of two of draws and cannot lose one: use gradients.score, or "
        "bounds.sumo."
    )


@with_closed_forms(smooth=True, leave_one_out=_cannot_lose, independent=True)
@bound
def mlmc_iwae(
    log_w: Float[Array, "k *batch"], *, level: Level, weights: Array | None = None
) -> Float[Array, "*batch"]:
    """Multilevel IWAE, to be maximized or minimized: unbiased for log p(x) in the limit; at finite
    k its mean is IWAE's, a lower bound.

        L = mean log w + Δ_𝒦 / P(𝒦),     Δⱼ = L(2ʲ) - ½ (L(first half) + L(second half)),    Δ₀ = 0

    As `sumo`, with finite variance at finite expected cost.

    Args:
        log_w: log-weights in nats, [k, *batch], k = 2^(m-1), of which the first 2^𝒦 count.
        level: of `draws.level`, m levels, drawn apart from the draws; the variance is finite for P(𝒦) ∝
            2^(-3𝒦/2), where weights have more than two moments.
        weights: must be None.

    Returns:
        [*batch], in nats; -inf where a draw that is used is impossible, +inf where one is infinite; nan where traced
        probabilities lack the mass.

    Raises:
        ValueError: where k is not 2^(m-1), for a level of another shape than () or [*batch], weights, or probabilities
            without mass at one of levels 1 .. m-1.

    Example:
        >>> log_w = jnp.log(jnp.array([1.0, 3.0]))
        >>> level = vj.types.Level(jnp.array(1), jnp.array([0.5, 0.5]))
        >>> round(float(mlmc_iwae(log_w, level=level)), 3)  # ½ log 3 + (log 2 - ½ log 3) / ½
        0.837

    Reference: Ishikawa, Goda, Efficient debiased evidence estimation by multilevel Monte Carlo sampling, 2021,
        arXiv:2001.04676; Shi, Cornish, On multilevel Monte Carlo unbiased gradient estimation for deep latent variable
        models, 2021.
    """
    k, m = log_w.shape[0], level.probabilities.shape[0]
    if k != 2 ** (m - 1):
        raise ValueError(
            f"mlmc_iwae with {m} levels takes 2^(m-1) = {2 ** (m - 1)} draws, k >= 1; got k = {k}."
        )
    drawn = _level("mlmc_iwae", log_w, level, weights)
    probabilities = _known(level)
    where = f"each of levels 1 .. {m - 1}"
    enough = _positive("mlmc_iwae", probabilities[1:], where, log_w.dtype)
    # Level 0 has no difference: the first draw alone.
    value = log_w[0]
    # Shapes are static, so every level is computed, and each member of the batch takes its own.
    for j in range(1, m):
        rows = log_w[: 2**j]
        usable = jnp.all(~jnp.isinf(rows), 0)
        safe = jnp.where(usable[None], rows, 0.0)
        first, second = log_mean_exp(safe[: 2 ** (j - 1)]), log_mean_exp(safe[2 ** (j - 1) :])
        # Δⱼ is log cosh of half the difference, without cancellation between large sums.
        step = jnp.logaddexp(0.5 * (first - second), 0.5 * (second - first)) - math.log(2)
        mass = probabilities[j].astype(log_w.dtype)
        correction = jnp.where(usable, step, 0.0) / jnp.where(mass > 0, mass, 1.0)
        value = jnp.where(drawn == j, jnp.mean(rows, 0) + correction, value)
    return enough * value


def _known(level: Level) -> Array | np.ndarray:
    """Return the probabilities, of NumPy where they are known while tracing."""
    p = level.probabilities
    return np.asarray(p) if is_known(p) else p


def _positive(name: str, mass: ArrayLike, where: str, dtype: np.dtype) -> Array:
    """Return 1, or nan where a mass by which the estimator divides is 0; refuse one that is known to be."""
    if is_known(mass):
        if not np.all(np.asarray(mass) > 0):
            raise ValueError(
                f"{name} needs a positive probability of {where}, and level.probabilities has "
                f"{mass} there: what is never drawn is missing from the mean. Use draws.harmonic, "
                "draws.geometric, or fewer levels."
            )
        return jnp.ones((), dtype)
    return jnp.where(jnp.all(jnp.asarray(mass) > 0), 1.0, jnp.nan).astype(dtype)


def _level(name: str, log_w: Array, level: Level, weights: Array | None) -> Array:
    """Return the level of each member of the batch."""
    checks.mean_alone(f"{name} has the mean of bounds.iwae, whose exponential alone is unbiased")
    if weights is not None:
        raise ValueError(
            f"{name} needs draws of equal weight; pass weights=None, or use bounds.iwae."
        )
    if jnp.shape(level.value) not in ((), log_w.shape[1:]):
        raise ValueError(
            f"level has shape {jnp.shape(level.value)}, expected () or the batch's "
            f"{log_w.shape[1:]}: draws.level(key, probabilities, shape={log_w.shape[1:]})."
        )
    return jnp.broadcast_to(level.value, log_w.shape[1:])
