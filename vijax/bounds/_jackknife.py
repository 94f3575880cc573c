"""The jackknife of IWAE: its leading terms of bias cancelled by the draws at hand."""

import math
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vijax import checks
from vijax.calls import bound
from vijax.numerics import log_mean_exp
from vijax.types import with_closed_forms


@with_closed_forms(smooth=True, independent=True)
@bound
def jackknife(
    log_w: Float[Array, "k *batch"], *, order: int = 1, weights: Array | None = None
) -> Float[Array, "*batch"]:
    """Jackknife evidence estimate (JVI), to be maximized: at finite k neither a lower nor an upper
    bound.

        L₁ = k L(k) - (k-1) mean of L(k-1) without each draw,      L(k) = log 1/k Σ wᵢ

    A better number for log p(x) from the same draws: its bias falls as k^-(order + 1), at the price
    of variance.

    Args:
        log_w: log-weights in nats, [k, *batch], k > order.
        order: 1, 2 or 3, of costs O(k log k), O(k²) and O(k³) on the weights. Order 0 would be IWAE.
        weights: must be None; draws of unequal weight cannot be left out alike.

    Returns:
        [*batch], in nats; IWAE where no more than `order` draws are possible, or any is infinite.

    Raises:
        ValueError: for an order other than 1, 2, 3, k <= order, or weights.

    Example:
        >>> log_w = jnp.log(jnp.array([1.0, 3.0]))
        >>> round(float(jackknife(log_w)), 3)  # 2 log 2 - ½ log 3
        0.837

    Reference: Nowozin, Debiasing evidence approximations: on importance-weighted autoencoders and jackknife variational
        inference, 2018.
    """
    k = log_w.shape[0]
    checks.static_count(order, "order")
    if order not in (1, 2, 3) or k <= order:
        raise ValueError(
            f"jackknife has order 1, 2 or 3 and takes k >= 1 + order draws, got order {order}, "
            f"k = {k}."
        )
    if weights is not None:
        raise ValueError(
            "jackknife leaves out draws of equal weight; pass weights=None, or use bounds.iwae."
        )
    # With Dⱼ the mean over subsets of j draws of log(sum without them / sum), L(k-j) = L(k) + Dⱼ + log k/(k-j), and
    # the estimate is L(k) + Σⱼ cⱼ (Dⱼ + log k/(k-j)). The cⱼ grow as k^order, so each Dⱼ is written in the differences
    # below it, Dⱼ = Σᵢ C(j, i) Δᵢ, which are of size k^-i and lose nothing.
    falling = jnp.sort(log_w, 0, descending=True)
    # With order + 1 possible draws every subset that is left out leaves one.
    usable = (falling[0] < jnp.inf) & (falling[order] > -jnp.inf)
    falling = jnp.where(usable[None], falling, 0.0)
    # Shares do not depend on the scale of the weights.
    relative = falling - jax.lax.stop_gradient(falling[0])[None]
    correction = jnp.zeros_like(log_w[0])
    for i, mean in enumerate(_mean_differences(relative, order), 1):
        # Σⱼ cⱼ C(j, i): what multiplies the i-th difference.
        share = sum(_coefficient(k, order, j) * math.comb(j, i) for j in range(i, order + 1))
        correction = correction + share * (mean - _constant(k, i))
    return log_mean_exp(log_w) + jnp.where(usable, correction, 0.0)


def _coefficient(k: int, order: int, j: int) -> float:
    """Return cⱼ, the weight of L(k-j) in the estimate."""
    return (-1) ** j * (k - j) ** order / (math.factorial(order - j) * math.factorial(j))


def _constant(k: int, i: int) -> float:
    """Return the i-th difference of log (k - j)/k over j: what Δᵢ is where all weights are equal.

    In closed form, since differences of logarithms near 0 would cancel.
    """
    if i == 1:
        return math.log1p(-1 / k)
    if i == 2:
        return math.log1p(-1 / (k - 1) ** 2)
    return math.log1p(-(2 - 3 / k) / (k - 2) ** 3)


def _mean_differences(falling: Array, order: int) -> list[Array]:
    """Return the mean over subsets of 1 .. order draws of the differences Δ of log(1 - share of the
    subset).

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
    # ab / (1-a)(1-b), [pairs, *batch]; the singles are log(1 - share).
    quotient = jnp.exp(log_share[i] + log_share[j] - singles[i] - singles[j])
    return _led_by(without_two - singles[0] - singles[1], jnp.log1p(-quotient[1:]))


def _triple_differences(
    log_share: Array, singles: Array, pairs: Array, without_three: Array
) -> Array:
    """Return Δ(a, b, c) of all triples, in the order of `combinations`."""
    k = len(log_share)
    h, i, j = np.array(list(combinations(range(k), 3))).T
    # Where the difference of each pair stands among `pairs`, [k, k].
    row_of_pair = np.zeros((k, k), int)
    row_of_pair[np.triu_indices(k, 1)] = np.arange(k * (k - 1) // 2)
    of_pairs = pairs[row_of_pair[h, i]] + pairs[row_of_pair[h, j]] + pairs[row_of_pair[i, j]]
    of_singles = singles[h] + singles[i] + singles[j]
    share = jnp.exp(log_share)
    # log (1-a-b)(1-a-c)(1-b-c) is twice the singles and the pairs.
    log_quotient = log_share[h] + log_share[i] + log_share[j] - 2 * of_singles - of_pairs
    quotient = jnp.exp(log_quotient) * (2 - share[h] - share[i] - share[j])
    return _led_by(without_three - (of_singles + of_pairs)[0], jnp.log1p(-quotient[1:]))
