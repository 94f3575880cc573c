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
    # The point (k + u)/K of the total falls in the interval of the cumulative sum that index i owns.
    shares = jnp.cumsum(weights)
    total = shares[-1]
    points = (jnp.arange(num_samples) + jax.random.uniform(key, (), shares.dtype)) / num_samples
    # Rounding may put the last point at the total itself, beyond the last index of any weight.
    points = jnp.minimum(points * total, jnp.nextafter(total, jnp.zeros_like(total)))
    return jnp.minimum(jnp.searchsorted(shares, points, side="right"), weights.shape[0] - 1)
