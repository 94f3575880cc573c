"""Bounds with less bias than IWAE, and estimates of log p(x) with none but what truncation leaves."""

import math
from itertools import combinations
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vijax.numerics import log_mean_exp, normalized_weights
from vijax.types import Level


def jackknife(log_w: Float[Array, "k *batch"], *, order: int = 1, weights: Array | None = None) -> Float[Array, "*batch"]:
    """Jackknife evidence estimate (JVI), to be maximised: no bound at any k; its bias falls as k^-(order + 1).

        L₁ = k L(k) - (k-1) mean of L(k-1) without each draw,      L(k) = log 1/k Σ wᵢ;   order 0 is IWAE

    When a better number for log p(x) is wanted from the draws at hand: the leading terms of IWAE's bias cancel, at the
    price of variance. Orders 1, 2 and 3 cost O(k), O(k²) and O(k³) on the weights.

    Args:
        log_w: log-weights in nats, [k, *batch], k > order.
        order: 1, 2 or 3.
        weights: must be None; draws of unequal weight cannot be left out alike.

    Returns:
        [*batch], in nats; IWAE where the draws left out were the only possible ones.

    Raises:
        ValueError: for an order other than 1, 2, 3, k <= order, or weights.

    Reference: Nowozin, Debiasing evidence approximations: on importance-weighted autoencoders and jackknife variational
        inference, 2018.
    """
    k = log_w.shape[0]
    if order not in (1, 2, 3) or k <= order:
        raise ValueError(f"jackknife has order 1, 2 or 3 and takes more draws than that, got order {order}, k = {k}.")
    if weights is not None:
        raise ValueError("jackknife leaves out draws of equal weight; pass weights=None, or use bounds.iwae.")
    # With Dⱼ the mean over subsets of j draws of log(sum without them / sum), and every L(k-j) = L(k) + Dⱼ + log k/(k-j),
    # the estimate is L(k) + Σⱼ cⱼ (Dⱼ + log k/(k-j)). The cⱼ grow as k^order, so each Dⱼ is written in the differences
    # below it, which are of size k^-j and lose nothing: log(1-a-b) - log(1-a) - log(1-b) = log1p(-ab / (1-a)(1-b)), and
    # for three draws log1p(-abc (2-a-b-c) / (1-a-b)(1-a-c)(1-b-c)).
    w = normalized_weights(log_w)
    total = log_mean_exp(log_w)
    rest = _rest(w)
    c = [_coefficient(k, order, j) for j in range(order + 1)]
    means = _differences(w, rest, order)
    for i in range(1, order + 1):
        # A subset of j draws holds C(j, i) subsets of i, so Dⱼ = Σᵢ C(j, i) Δᵢ, and so for log k/(k-j).
        share = sum(c[j] * math.comb(j, i) for j in range(i, order + 1))
        total = total + share * (means[i - 1] - _constant(k, i))
    return total


def _coefficient(k: int, order: int, j: int) -> float:
    return (-1) ** j * (k - j) ** order / (math.factorial(order - j) * math.factorial(j))


def _constant(k: int, i: int) -> float:
    """Return the i-th difference of log (k - j)/k over j: what Δᵢ is where all weights are equal."""
    if i == 1:
        return math.log1p(-1 / k)
    if i == 2:
        return math.log1p(-1 / (k - 1) ** 2)
    return math.log1p(-(2 - 3 / k) / (k - 2) ** 3)


def _rest(w: Array) -> Array:
    """Return 1 - wᵢ without cancellation: only the largest weight can be near one."""
    k = w.shape[0]
    top = jnp.arange(k).reshape((k,) + (1,) * (w.ndim - 1)) == jnp.argmax(w, 0)[None]
    return jnp.where(top, jnp.sum(jnp.where(top, 0.0, w), 0)[None], 1 - w)


def _differences(w: Array, rest: Array, order: int) -> list[Array]:
    """Return the mean over subsets of 1 .. order draws of the differences Δ of log(1 - sum of the subset)."""
    tiny, most = jnp.finfo(w.dtype).tiny, 1 - jnp.finfo(w.dtype).eps
    safe = lambda a: jnp.maximum(a, tiny)  # noqa: E731
    k = w.shape[0]
    means = [jnp.mean(jnp.log(safe(rest)), 0)]
    if order >= 2:
        i, j = (jnp.asarray(index) for index in zip(*combinations(range(k), 2), strict=True))
        pair = w[i] * w[j] / safe(rest[i] * rest[j])
        means.append(jnp.mean(jnp.log1p(-jnp.minimum(pair, most)), 0))
    if order >= 3:
        h, i, j = (jnp.asarray(index) for index in zip(*combinations(range(k), 3), strict=True))
        both = safe(rest[h] - w[i]) * safe(rest[h] - w[j]) * safe(rest[i] - w[j])
        triple = w[h] * w[i] * w[j] * (2 - w[h] - w[i] - w[j]) / safe(both)
        means.append(jnp.mean(jnp.log1p(-jnp.minimum(triple, most)), 0))
    return means


def sumo(log_w: Float[Array, "k *batch"], *, level: Level, weights: Array | None = None) -> Float[Array, "*batch"]:
    """SUMO, to be maximised (or minimised): unbiased, over draws and level, for IWAE at k, and for log p(x) as k grows.

        L = L₁ + Σ_{j=1..𝒦} (Lⱼ₊₁ - Lⱼ) / P(𝒦 >= j),      Lⱼ: IWAE of the first j draws

    When log p(x) must be pushed down, as an entropy or a denominator, where a bound would be exploited. The variance may
    be large or infinite. Shapes are fixed: all k draws are evaluated, and those beyond the level count for nothing.

    Args:
        log_w: log-weights in nats, [k, *batch]: one more draw than the last level, k = m.
        level: of `draws.level`, m = k levels 0 .. k-1, drawn apart from the draws.
        weights: must be None.

    Returns:
        [*batch], in nats.

    Raises:
        ValueError: where k is not the number of levels, or for weights.

    Reference: Luo, Beatson, Norouzi, Zhu, Duvenaud, Adams, Chen, SUMO: unbiased estimation of log marginal probability
        for latent variable models, 2020, arXiv:2004.00353.
    """
    k = log_w.shape[0]
    _levels("sumo", level, k, level.probabilities.shape[0], weights)
    # -inf would be nan in differences of cumulative sums: so far below anything that it weighs nothing.
    low = jnp.maximum(log_w, -0.01 * jnp.finfo(log_w.dtype).max)
    column = lambda v: v.astype(log_w.dtype).reshape(-1, *(1,) * (log_w.ndim - 1))  # noqa: E731
    running = jax.lax.cumlogsumexp(low, axis=0) - column(jnp.log(jnp.arange(1.0, k + 1)))
    survival = jnp.cumsum(level.probabilities[::-1])[::-1][1:]
    reached = column(jnp.arange(1, k)) <= level.value
    steps = jnp.where(reached, (running[1:] - running[:-1]) / column(survival), 0.0)
    return log_w[0] + jnp.sum(steps, 0)


def mlmc_iwae(log_w: Float[Array, "k *batch"], *, level: Level, weights: Array | None = None) -> Float[Array, "*batch"]:
    """Multilevel IWAE, to be maximised (or minimised): unbiased, over draws and level, for IWAE at k, and for log p(x).

        L = mean log w + Δ_𝒦 / P(𝒦),     Δⱼ = L(2ʲ) - ½ (L(first half) + L(second half)),    Δ₀ = 0,   2^𝒦 draws used

    As `sumo`, with finite variance and finite expected cost at P(𝒦) ∝ 2^(-3𝒦/2) where weights have more than two moments.

    Args:
        log_w: log-weights in nats, [k, *batch], k = 2^(m-1).
        level: of `draws.level`, m levels, drawn apart from the draws.
        weights: must be None.

    Returns:
        [*batch], in nats.

    Raises:
        ValueError: where k is not 2^(m-1), or for weights.

    Reference: Ishikawa, Goda, Efficient debiased evidence estimation by multilevel Monte Carlo sampling, 2021,
        arXiv:2001.04676; Shi, Cornish, On multilevel Monte Carlo unbiased gradient estimation for deep latent variable
        models, 2021.
    """
    m = level.probabilities.shape[0]
    _levels("mlmc_iwae", level, log_w.shape[0], 2 ** (m - 1), weights)
    value = jnp.zeros_like(log_w[0])
    for j in range(m):
        rows = log_w[: 2**j]
        found = jnp.mean(rows, 0)
        if j:
            half = 2 ** (j - 1)
            step = log_mean_exp(rows) - 0.5 * (log_mean_exp(rows[:half]) + log_mean_exp(rows[half:]))
            found = found + step / level.probabilities[j]
        value = jnp.where(level.value == j, found, value)
    return value


def _levels(name: str, level: Level, k: int, expected: int, weights: Array | None) -> None:
    m = level.probabilities.shape[0]
    if k != expected:
        raise ValueError(f"{name} with {m} levels takes num_samples = {expected}, got k = {k}.")
    if weights is not None:
        raise ValueError(f"{name} needs draws of equal weight; pass weights=None.")
