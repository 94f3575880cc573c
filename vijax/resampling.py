"""Resampling: draws of unequal weights replaced by indices that count alike."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


def systematic(
    key: Key[Array, ""], weights: Float[Array, " n"], num_samples: int
) -> Int[Array, " k"]:
    """Indices in proportion to weights, by equally spaced points under a single random shift.

        aₖ = min{i : w₁ + ... + wᵢ > (k + u) / K · Σ w},   u ~ U(0, 1),   k = 0 ... K - 1

    Index i is returned K wᵢ / Σ w times on average, and never more than one away from that: less
    variable than independent indices. An index of weight 0 is not returned, unless all weights are
    0, where every index is the last.

    Args:
        key: a typed key, consumed.
        weights: not negative, [n]; of log-weights take `numerics.normalized_weights(log_w)`.
        num_samples: K.

    Returns:
        [K], ascending.

    Example:
        >>> systematic(jax.random.key(0), jnp.array([0.5, 0.0, 0.5]), 4).tolist()
        [0, 0, 2, 2]

    Reference: Kitagawa, Monte Carlo filter and smoother for non-Gaussian nonlinear state space
        models, 1996.
    """
    shift = jax.random.uniform(key, (), weights.dtype)
    return _owners(weights, (jnp.arange(num_samples) + shift) / num_samples)


def stratified(
    key: Key[Array, ""], weights: Float[Array, " n"], num_samples: int
) -> Int[Array, " k"]:
    """Indices in proportion to weights, by a random point in each of K equal strata.

        aₖ = min{i : w₁ + ... + wᵢ > (k + uₖ) / K · Σ w},   uₖ ~ U(0, 1),   k = 0 ... K - 1

    Index i is returned K wᵢ / Σ w times on average, and less than two away from that. Its points are
    independent, which makes it easier to reason about than `systematic`, and a little noisier.

    Args:
        key: a typed key, consumed.
        weights: not negative, [n].
        num_samples: K.

    Returns:
        [K], ascending.

    Example:
        >>> stratified(jax.random.key(0), jnp.array([0.5, 0.0, 0.5]), 4).tolist()
        [0, 0, 2, 2]

    Reference: Kitagawa, Monte Carlo filter and smoother for non-Gaussian nonlinear state space
        models, 1996.
    """
    shifts = jax.random.uniform(key, (num_samples,), weights.dtype)
    return _owners(weights, (jnp.arange(num_samples) + shifts) / num_samples)


def multinomial(
    key: Key[Array, ""], weights: Float[Array, " n"], num_samples: int
) -> Int[Array, " k"]:
    """Independent indices in proportion to weights, sorted.

        P(aₖ = i) = wᵢ / Σ w,   independently for k = 1 ... K

    For what needs independent ancestors, such as the probability of all of them; as a filter's own
    resampling `systematic` has less variance.

    Args:
        key: a typed key, consumed.
        weights: not negative, [n].
        num_samples: K.

    Returns:
        [K], ascending: K independent indices in sorted order, in memory of n + K and without a
        sort.

    Example:
        >>> multinomial(jax.random.key(0), jnp.array([0.0, 1.0, 0.0]), 3).tolist()
        [1, 1, 1]

    Reference: Devroye, Non-uniform random variate generation, 1986, section V.3: sorted uniforms by
        exponential spacings.
    """
    # Partial sums of K + 1 exponentials, over their total, are K sorted uniforms.
    sums = jnp.cumsum(jax.random.exponential(key, (num_samples + 1,), weights.dtype))
    return _owners(weights, sums[:-1] / sums[-1])


def residual(
    key: Key[Array, ""], weights: Float[Array, " n"], num_samples: int
) -> Int[Array, " k"]:
    """Indices in proportion to weights: whole copies first, and independent ones for the rest.

        ⌊K wᵢ⌋ copies of i,   then the missing ones from   rᵢ ∝ K wᵢ - ⌊K wᵢ⌋        (Σ w = 1)

    Less variable than `multinomial`, whatever the order of the particles, on which `systematic` and
    `stratified` depend.

    Args:
        key: a typed key, consumed.
        weights: not negative, [n].
        num_samples: K.

    Returns:
        [K], the whole copies first, ascending, then the independent ones in the order they are drawn.

    Example:
        >>> residual(jax.random.key(0), jnp.array([0.5, 0.0, 0.5]), 4).tolist()
        [0, 0, 2, 2]

    Reference: Liu, Chen, Sequential Monte Carlo methods for dynamic systems, 1998.
    """
    total = jnp.sum(weights)
    shares = num_samples * weights / jnp.where(total > 0, total, 1.0)
    # A share that rounding left just below a whole number is that number.
    whole = jnp.floor(shares * (1 + 4 * jnp.finfo(weights.dtype).eps))
    ends = jnp.cumsum(whole.astype(jnp.int32))
    slots = jnp.arange(num_samples)
    copies = jnp.searchsorted(ends, slots, side="right")
    # K points, of which those of the slots that are left are used: in sorted order as many of them
    # would not be independent.
    rest = jnp.maximum(shares - whole, 0.0)
    points = jax.random.uniform(key, (num_samples,), weights.dtype)
    drawn = _owners(jnp.where(jnp.sum(rest) > 0, rest, weights), points)
    return jnp.where(slots < ends[-1], jnp.minimum(copies, weights.shape[0] - 1), drawn)


def _owners(weights: Array, points: Array) -> Array:
    """Return the index that owns each point of [0, 1), whose share of the cumulative sum it falls in."""
    shares = jnp.cumsum(weights)
    total = shares[-1]
    # Rounding may put the last point at the total itself, beyond the last index of any weight.
    points = jnp.minimum(points * total, jnp.nextafter(total, jnp.zeros_like(total)))
    return jnp.minimum(jnp.searchsorted(shares, points, side="right"), weights.shape[0] - 1)
