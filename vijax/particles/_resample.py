"""When to resample: schemes become resamplers, which say what weights particles go on with."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from vijax.calls import usage
from vijax.resampling import systematic

Scheme = Callable[[Array, Array, int], Array]
"""(key, weights [N], number) -> indices, in proportion to weights: `systematic`, `multinomial`, ..."""

Resampler = Callable[[Array, Array], tuple[Array, Array]]
"""(key, log_weights [N]) -> (ancestors [N], log_weights [N]): whom each particle follows, and the weight
that it goes on with, w / E copies; the weights sum to 1, and afterwards do so in expectation."""


def never(
    key: Key[Array, ""], log_weights: Float[Array, " n"]
) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
    """Keep every particle with its weight: importance sampling of whole paths.

        aᵢ = i,     w̃ᵢ = wᵢ

    The particles stay independent, and `fivo` with it is IWAE over time; their weights degenerate as
    exp(T).

    Args:
        key: not used.
        log_weights: [N] in nats.

    Returns:
        (ancestors, log_weights), 0 ... N - 1 and what was given.

    Example:
        >>> never(jax.random.key(0), jnp.log(jnp.array([0.25, 0.75])))[0].tolist()
        [0, 1]

    Reference: Burda, Grosse, Salakhutdinov, Importance weighted autoencoders, 2016,
        arXiv:1509.00519.
    """
    return jnp.arange(log_weights.shape[0]), log_weights


@usage("particles.always", "particles.always(particles.systematic)")
def always(scheme: Scheme) -> Resampler:
    """Resample at every step; afterwards all particles count alike.

        E copies of j = N wⱼ,     w̃ᵢ = 1/N

    The usual particle filter. Where weights are often nearly equal `adaptive` loses less.

    Args:
        scheme: `systematic`, `stratified`, `residual`, `multinomial`, or your own
            (key, weights [N], number) -> indices, each index i returned number · wᵢ times on average.

    Returns:
        A resampler (key, log_weights [N]) -> (ancestors [N], log_weights [N]).

    Example:
        >>> resample = always(lambda key, weights, n: jnp.full(n, 1))
        >>> ancestors, log_weights = resample(jax.random.key(0), jnp.log(jnp.array([0.25, 0.75])))
        >>> ancestors.tolist(), jnp.exp(log_weights).round(3).tolist()
        ([1, 1], [0.5, 0.5])

    Reference: Gordon, Salmond, Smith, Novel approach to nonlinear/non-Gaussian Bayesian state
        estimation, 1993.
    """

    def resample(key: Array, log_weights: Array) -> tuple[Array, Array]:
        n = log_weights.shape[0]
        # Which particle is chosen has no derivative in its weight.
        weights = jnp.exp(jax.lax.stop_gradient(log_weights))
        ancestors = scheme(key, weights, n)
        return ancestors, jnp.full_like(log_weights, -math.log(n))

    return resample


@usage("particles.adaptive", "particles.adaptive(particles.systematic)")
def adaptive(scheme: Scheme, *, threshold: float = 0.5) -> Resampler:
    """Resample where the effective sample size has fallen low, and carry the weights on elsewhere.

        resample where   1 / Σᵢ wᵢ² < threshold · N

    Less noise where weights stay nearly equal. The decision is a jump, so that `scored` has no
    form of it.

    Args:
        scheme: `systematic`, or another, as `always` takes it.
        threshold: the share of N below which particles are resampled, in [0, 1].

    Returns:
        A resampler (key, log_weights [N]) -> (ancestors [N], log_weights [N]).

    Raises:
        ValueError: for a threshold outside of [0, 1].

    Example:
        >>> resample = adaptive(lambda key, weights, n: jnp.zeros(n, int))
        >>> resample(jax.random.key(0), jnp.log(jnp.array([0.25, 0.75])))[0].tolist()  # ESS 1.6
        [0, 1]

    Reference: Liu, Chen, Blind deconvolution via sequential imputations, 1995.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be a share of N, in [0, 1], got {threshold}.")
    resample = always(scheme)

    def resample_if_low(key: Array, log_weights: Array) -> tuple[Array, Array]:
        n = log_weights.shape[0]
        weights = jnp.exp(jax.lax.stop_gradient(log_weights))
        low = jnp.sum(jnp.square(weights)) * (threshold * n) > 1
        moved, kept = resample(key, log_weights), never(key, log_weights)
        return jnp.where(low, moved[0], kept[0]), jnp.where(low, moved[1], kept[1])

    return resample_if_low


SYSTEMATIC = always(systematic)
"""What filters do unless told otherwise."""
