"""Bounds with less bias than IWAE, and estimates of log p(x) with none but what truncation leaves."""

import math
from itertools import combinations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vijax import checks
from vijax.bounds._admit import bound
from vijax.calls import is_known
from vijax.numerics import log_mean_exp
from vijax.types import Level, with_closed_forms


@with_closed_forms(smooth=True, independent=True)
@bound
def jackknife(
    log_w: Float[Array, "k *batch"], *, order: int = 1, weights: Array | None = None
) -> Float[Array, "*batch"]:
    """Jackknife evidence estimate (JVI), to be maximised: tends to log p(x), and at finite k is neither a lower nor an
    upper bound; its bias falls as k^-(order + 1).

        L₁ = k L(k) - (k-1) mean of L(k-1) without each draw,      L(k) = log 1/k Σ wᵢ;   order 0 is IWAE

    When a better number for log p(x) is wanted from the draws at hand: the leading terms of IWAE's bias cancel, at the
    price of variance. Orders 1, 2 and 3 cost O(k log k), O(k²) and O(k³) on the weights.

    Args:
        log_w: log-weights in nats, [k, *batch], k > order.
        order: 1, 2 or 3.
        weights: must be None; draws of unequal weight cannot be left out alike.

    Returns:
        [*batch], in nats; IWAE where no more than `order` draws are possible, or any is infinite.

    Raises:
        ValueError: for an order other than 1, 2, 3, k <= order, or weights.

    Reference: Nowozin, Debiasing evidence approximations: on importance-weighted autoencoders and jackknife variational
        inference, 2018.
    """
    k = log_w.shape[0]
    checks.static_count(order, "order")
    if order not in (1, 2, 3) or k <= order:
        raise ValueError(
            f"jackknife has order 1, 2 or 3 and takes k >= 1 + order draws, got order {order}, k = {k}."
        )
    if weights is not None:
        raise ValueError(
            "jackknife leaves out draws of equal weight; pass weights=None, or use bounds.iwae."
        )
    # With Dⱼ the mean over subsets of j draws of log(sum without them / sum), L(k-j) = L(k) + Dⱼ + log k/(k-j), and
    # the estimate is L(k) + Σⱼ cⱼ (Dⱼ + log k/(k-j)). The cⱼ grow as k^order, so each Dⱼ is written in the differences
    # below it, Dⱼ = Σᵢ C(j, i) Δᵢ, which are of size k^-i and lose nothing.
    falling = jnp.sort(log_w, 0, descending=True)
    usable = (falling[0] < jnp.inf) & (falling[order] > -jnp.inf)
    falling = jnp.where(usable[None], falling, 0.0)
    relative = falling - jax.lax.stop_gradient(falling[0])[None]
    correction = jnp.zeros_like(log_w[0])
    for i, mean in enumerate(_mean_differences(relative, order), 1):
        share = sum(_coefficient(k, order, j) * math.comb(j, i) for j in range(i, order + 1))
        correction = correction + share * (mean - _constant(k, i))
    return log_mean_exp(log_w) + jnp.where(usable, correction, 0.0)


def _coefficient(k: int, order: int, j: int) -> float:
    """Return cⱼ, the weight of L(k-j) in the estimate."""
    return (-1) ** j * (k - j) ** order / (math.factorial(order - j) * math.factorial(j))


def _constant(k: int, i: int) -> float:
    """Return the i-th difference of log (k - j)/k over j: what Δᵢ is where all weights are equal."""
    if i == 1:
        return math.log1p(-1 / k)
    if i == 2:
        return math.log1p(-1 / (k - 1) ** 2)
    return math.log1p(-(2 - 3 / k) / (k - 2) ** 3)


def _mean_differences(falling: Array, order: int) -> list[Array]:
    """Return the mean over subsets of 1 .. order draws of the differences Δ of log(1 - share of the subset).

        Δ(a) = log(1-a),     Δ(a, b) = log1p(-ab / (1-a)(1-b)),
        Δ(a, b, c) = log1p(-abc (2-a-b-c) / (1-a-b)(1-a-c)(1-b-c))

    The quotients are taken in logarithms, so that none underflows, and are a half or so at most, but for the subset of
    the largest draws: with rows that fall it comes first, and is summed afresh without them.
    """
    total = jax.nn.logsumexp(falling, axis=0)
    log_share = falling - total[None]
    # remaining[i - 1] is log(1 - share of the i largest draws).
    remaining = [jax.nn.logsumexp(falling[i:], axis=0) - total for i in range(1, order + 1)]
    singles = _led_by(remaining[0], jnp.log1p(-jnp.exp(log_share[1:])))
    means = [jnp.mean(singles, 0)]
    if order >= 2:
        pairs = _pair_differences(log_share, singles, remaining[1])
        means.append(jnp.mean(pairs, 0))
    if order >= 3:
        triples = _triple_differences(log_share, singles, pairs, remaining[2])
        means.append(jnp.mean(triples, 0))
    return means


def _led_by(first: Array, rest: Array) -> Array:
    return jnp.concatenate([first[None], rest])


def _pair_differences(log_share: Array, singles: Array, without_two: Array) -> Array:
    """Return Δ(a, b) of all pairs, in the order of `np.triu_indices`."""
    i, j = np.triu_indices(len(log_share), 1)
    quotient = jnp.exp(log_share[i] + log_share[j] - singles[i] - singles[j])
    return _led_by(without_two - singles[0] - singles[1], jnp.log1p(-quotient[1:]))


def _triple_differences(
    log_share: Array, singles: Array, pairs: Array, without_three: Array
) -> Array:
    """Return Δ(a, b, c) of all triples, in the order of `combinations`."""
    k = len(log_share)
    h, i, j = np.array(list(combinations(range(k), 3))).T
    row_of_pair = np.zeros((k, k), int)
    row_of_pair[np.triu_indices(k, 1)] = np.arange(k * (k - 1) // 2)
    of_pairs = pairs[row_of_pair[h, i]] + pairs[row_of_pair[h, j]] + pairs[row_of_pair[i, j]]
    of_singles = singles[h] + singles[i] + singles[j]
    share = jnp.exp(log_share)
    # log (1-a-b)(1-a-c)(1-b-c) is twice the singles and the pairs.
    log_quotient = log_share[h] + log_share[i] + log_share[j] - 2 * of_singles - of_pairs
    quotient = jnp.exp(log_quotient) * (2 - share[h] - share[i] - share[j])
    return _led_by(without_three - (of_singles + of_pairs)[0], jnp.log1p(-quotient[1:]))


@with_closed_forms(smooth=True, independent=True)
@bound
def sumo(
    log_w: Float[Array, "k *batch"], *, level: Level, weights: Array | None = None
) -> Float[Array, "*batch"]:
    """SUMO, to be maximised or minimised: log p(x) in the limit without bias; at finite k, over draws and level, it has
    IWAE's expectation, a lower bound, and one estimate may lie on either side.

        L = L₁ + Σ_{j=1..𝒦} (Lⱼ₊₁ - Lⱼ) / P(𝒦 >= j),      Lⱼ: IWAE of the first j draws

    When log p(x) must be pushed down, as an entropy or a denominator, where a bound would be exploited. The variance
    may be large or infinite. Shapes are fixed: all k draws are evaluated, and those beyond the level count for nothing.

    Args:
        log_w: log-weights in nats, [k, *batch], k <= m.
        level: of `draws.level`, m levels, drawn apart from the draws; those past k - 1 count as k - 1.
        weights: must be None.

    Returns:
        [*batch], in nats; -inf where the first draw is impossible, since weights that may be 0 have no ELBO to start
        from; +inf where any draw up to the level is infinite; nan where traced probabilities lack the mass.

    Raises:
        ValueError: for k > m, a level of another shape than () or [*batch], weights, or probabilities without mass at
            level k - 1 or above.

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
        return jnp.asarray(values).reshape(-1, *(1,) * (log_w.ndim - 1))

    j = column(jnp.arange(1, k))
    reached = j <= value
    survival = column(jnp.cumsum(probabilities[::-1])[::-1][1:k])
    share = jnp.where(reached, 1 / jnp.where(reached, survival, 1.0), 0.0).astype(log_w.dtype)
    # A weight of 0 is one so small that it weighs nothing, and an infinite one is reported at the end.
    most = 0.25 * float(jnp.finfo(log_w.dtype).max)
    bounded = jnp.clip(log_w, -most, most)
    before = jax.lax.cumlogsumexp(bounded, axis=0)[:-1]
    # log (1 + w / the sum before it) - log (1 + 1/j): what draw j + 1 adds, without cancellation.
    steps = jax.nn.softplus(bounded[1:] - before) - jnp.log1p(1 / j).astype(log_w.dtype)
    infinite = jnp.any((log_w == jnp.inf) & (column(jnp.arange(k)) <= value), 0)
    impossible = log_w[0] == -jnp.inf
    found = jnp.where(impossible, 0.0, log_w[0]) + jnp.sum(share * steps, 0)
    return enough * jnp.where(infinite, jnp.inf, jnp.where(impossible, -jnp.inf, found))


def _cannot_lose(log_w: Array, **_: object) -> Array:
    raise ValueError(
        "mlmc_iwae takes a power of two of draws and cannot lose one: use gradients.score, or bounds.sumo."
    )


@with_closed_forms(smooth=True, leave_one_out=_cannot_lose, independent=True)
@bound
def mlmc_iwae(
    log_w: Float[Array, "k *batch"], *, level: Level, weights: Array | None = None
) -> Float[Array, "*batch"]:
    """Multilevel IWAE, to be maximised or minimised: log p(x) in the limit without bias; at finite k, over draws and
    level, it has IWAE's expectation, a lower bound, and one estimate may lie on either side.

        L = mean log w + Δ_𝒦 / P(𝒦),     Δⱼ = L(2ʲ) - ½ (L(first half) + L(second half)),    Δ₀ = 0,   2^𝒦 draws used

    As `sumo`, with finite variance and finite expected cost at P(𝒦) ∝ 2^(-3𝒦/2) where weights have more than two
    moments.

    Args:
        log_w: log-weights in nats, [k, *batch], k = 2^(m-1).
        level: of `draws.level`, m levels, drawn apart from the draws.
        weights: must be None.

    Returns:
        [*batch], in nats; -inf where a draw that is used is impossible, +inf where one is infinite; nan where traced
        probabilities lack the mass.

    Raises:
        ValueError: where k is not 2^(m-1), for a level of another shape than () or [*batch], weights, or probabilities
            without mass at one of levels 1 .. m-1.

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
    value = log_w[0]
    for j in range(1, m):
        rows = log_w[: 2**j]
        usable = jnp.all(~jnp.isinf(rows), 0)
        safe = jnp.where(usable[None], rows, 0.0)
        first, second = log_mean_exp(safe[: 2 ** (j - 1)]), log_mean_exp(safe[2 ** (j - 1) :])
        # Δⱼ is log cosh of half the difference, without cancellation between large sums.
        step = jnp.logaddexp(0.5 * (first - second), 0.5 * (second - first)) - math.log(2)
        mass = probabilities[j].astype(log_w.dtype)
        found = jnp.mean(rows, 0) + jnp.where(usable, step, 0.0) / jnp.where(mass > 0, mass, 1.0)
        value = jnp.where(drawn == j, found, value)
    return enough * value


def _known(level: Level) -> Any:
    """Return the probabilities, of NumPy where they are known while tracing."""
    p = level.probabilities
    return np.asarray(p) if is_known(p) else p


def _positive(name: str, mass: Any, where: str, dtype: Any) -> Array:
    """Return 1, or nan where a mass by which the estimator divides is 0; refuse one that is known to be."""
    if is_known(mass):
        if not np.all(mass > 0):
            raise ValueError(
                f"{name} needs a positive probability of {where}, and level.probabilities has {mass} there: what is "
                "never drawn is missing from the mean. Use draws.harmonic, draws.geometric, or fewer levels."
            )
        return jnp.ones((), dtype)
    return jnp.where(jnp.all(mass > 0), 1.0, jnp.nan).astype(dtype)


def _level(name: str, log_w: Array, level: Level, weights: Array | None) -> Array:
    """Return the level of each member of the batch."""
    checks.mean_alone(f"{name} has the mean of bounds.iwae, whose exponential alone is unbiased")
    if weights is not None:
        raise ValueError(
            f"{name} needs draws of equal weight; pass weights=None, or use bounds.iwae."
        )
    if jnp.shape(level.value) not in ((), log_w.shape[1:]):
        raise ValueError(
            f"level has shape {jnp.shape(level.value)}, expected () or the batch's {log_w.shape[1:]}: "
            f"draws.level(key, probabilities, shape={log_w.shape[1:]})."
        )
    return jnp.broadcast_to(level.value, log_w.shape[1:])
