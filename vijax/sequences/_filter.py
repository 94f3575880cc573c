"""The Kalman filter, one step after another and all steps at once."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vijax.gaussians.affine import LOG_2PI
from vijax.sequences._algebra import (
    backward,
    before,
    cholesky,
    correct,
    forward,
    log_det,
    quadratic_form,
    symmetric,
    transpose,
)
from vijax.sequences._model import LinearGaussian, Observations, Observed, steps
from vijax.sequences._scans import Scans, parallel, sequential


class Filtered(NamedTuple):
    """What a filter returns; log-densities are in nats.

    Fields:
        log_evidence: log p(x₁..T), a scalar. inf where the data leave a diffuse direction undetermined, gradient 0.
        log_predictive: [T], log p(xₜ | x₁..ₜ₋₁), which sum to log_evidence; nan while what came before leaves a diffuse
            direction undetermined.
        mean: [T, d], E[zₜ | x₁..ₜ]; nan while undetermined.
        cov: [T, d, d], Cov[zₜ | x₁..ₜ]; inf while undetermined.
    """

    log_evidence: Float[Array, ""]
    log_predictive: Float[Array, " time"]
    mean: Float[Array, "time d"]
    cov: Float[Array, "time d d"]


def kalman_filter(model: LinearGaussian, x: Observations, *, mask: Observed = None) -> Filtered:
    """Integrate the states of a linear-Gaussian chain out exactly, one step after another.

        log p(x) = Σₜ log N(xₜ; H mₜ₋, H Pₜ₋ Hᵀ + R),   mₜ, Pₜ = those of zₜ | x₁..ₜ

    For a target without states to infer, log_prior(theta) + log_evidence. It takes T sequential
    steps of O(d³); on an accelerator see `parallel_kalman_filter`.

    Args:
        model: a LinearGaussian; its matrices may change in time. Batches of models come by vmap.
        x: [T, p]; what stands in masked places is not read, nan included.
        mask: [T] or [T, p], True where x is observed; all of it where None. Differentiable in
            everything else.

    Returns:
        Filtered(log_evidence, log_predictive, mean, cov). All nan where a covariance of an
        observation is not positive. Covariances are updated in Joseph's form and symmetrized,
        matrix products in full precision.

    Raises:
        TypeError: for a model that is none, or a mask that is not boolean.
        ValueError: for T = 0, or shapes that do not agree; for fewer numbers in x than diffuse
            directions.

    Example:
        >>> one = jnp.ones((1, 1))
        >>> walk = LinearGaussian(jnp.zeros(1), one, one, one, one, one)
        >>> result = kalman_filter(walk, jnp.array([[2.0], [1.0]]))
        >>> result.mean.shape, round(float(result.mean[0, 0]), 3)  # x₁ / 2
        ((2, 1), 1.0)

    Reference: Kalman, A new approach to linear filtering and prediction problems, 1960; for the
        diffuse start, de Jong, The diffuse Kalman filter, 1991.
    """
    with jax.default_matmul_precision("highest"):
        return _filter(sequential, model, x, mask)


def parallel_kalman_filter(
    model: LinearGaussian, x: Observations, *, mask: Observed = None
) -> Filtered:
    """Integrate the states of a linear-Gaussian chain out exactly, all steps at once.

        aᵢ..ⱼ ⊗ aⱼ₊₁..ₖ = aᵢ..ₖ   is associative,   so mₜ, Pₜ come from a scan of depth O(log T)

    Equal to `kalman_filter` to rounding, in value and gradient, with several times the work: for
    long chains on an accelerator.

    Args:
        model: a LinearGaussian; its matrices may change in time.
        x: [T, p]; what stands in masked places is not read, nan included.
        mask: [T] or [T, p], True where x is observed; all of it where None.

    Returns:
        Filtered(log_evidence, log_predictive, mean, cov), as of `kalman_filter`.

    Raises:
        TypeError: for a model that is none, or a mask that is not boolean.
        ValueError: for T = 0, or shapes that do not agree; for fewer numbers in x than diffuse
            directions.

    Example:
        >>> one = jnp.ones((1, 1))
        >>> walk = LinearGaussian(jnp.zeros(1), one, one, one, one, one)
        >>> result = parallel_kalman_filter(walk, jnp.array([[2.0], [1.0]]))
        >>> round(float(result.mean[0, 0]), 3)
        1.0

    Reference: Särkkä, García-Fernández, Temporal parallelization of Bayesian smoothers, 2021,
        arXiv:1905.13002.
    """
    with jax.default_matmul_precision("highest"):
        return _filter(parallel, model, x, mask)


@partial(jax.jit, static_argnums=0)
def _filter(scans: Scans, model: LinearGaussian, x: Array, mask: Array | None) -> Filtered:
    s = steps(model, x, mask)
    # Gains and covariances need no data; given them the means are an affine recursion.
    gain, cov, lower = jax.vmap(correct)(scans.predicted(s), s)
    surprise = s.x - s.emission @ s.offset
    carried = s.transition - gain @ s.emission @ s.transition
    mean = scans.affine(carried, s.offset + gain @ surprise, False)  # noqa: FBT003
    # Innovations, whitened by the factor of their own covariance.
    white = jax.vmap(forward)(lower, surprise - s.emission @ (s.transition @ before(mean)))
    constant = log_det(lower) + s.observed * LOG_2PI
    if s.x.shape[-1] > 1:
        return _with_diffuse_start(mean, cov, white, constant)
    terms = -0.5 * (jnp.sum(jnp.square(white[..., 0]), -1) + constant)
    return Filtered(jnp.sum(terms), terms, mean[..., 0], cov)


def _with_diffuse_start(mean: Array, cov: Array, white: Array, constant: Array) -> Filtered:
    """Integrate the diffuse directions δ out: column 0 is what holds at δ = 0, the others are slopes in δ."""
    # Given δ the chain has a proper start, and its whitened innovations are white₀ + W δ: least squares.
    white, slopes = white[..., 0], white[..., 1:]
    mean, mean_slopes = mean[..., 0], mean[..., 1:]
    # The information of each step about δ, summed over the steps so far
    precision = transpose(slopes) @ slopes
    eta = -(transpose(slopes) @ white[..., None])[..., 0]
    delta, factor, known = jax.vmap(flat)(jnp.cumsum(eta, 0), jnp.cumsum(precision, 0))
    # Judged at the best δ, where the sum of squares is least and nothing cancels.
    residual = white + (slopes @ delta[-1][None, :, None])[..., 0]
    squares = jnp.sum(jnp.square(residual))
    m = delta.shape[-1]
    evidence = -0.5 * (squares + jnp.sum(constant) + log_det(factor[-1]) - m * LOG_2PI)
    # States at the δ known so far, whose own covariance comes on top.
    means = mean + (mean_slopes @ delta[..., None])[..., 0]
    covs = symmetric(cov + jax.vmap(quadratic_form)(factor, mean_slopes))
    return Filtered(
        jnp.where(known[-1], evidence, jnp.inf),
        _predictive(white, slopes, constant, delta, factor, known),
        jnp.where(known[:, None], means, jnp.nan),
        jnp.where(known[:, None, None], covs, jnp.inf),
    )


def _predictive(
    white: Array,
    slopes: Array,
    constant: Array,
    delta: Array,
    factor: Array,
    known: Array,
) -> Array:
    """Return log p(xₜ | x₁..ₜ₋₁), δ being uncertain.

    The whitened innovation has covariance I + W J⁻¹ Wᵀ, J of the data before.
    """
    # Step t against what the steps before it know of δ
    white, slopes, constant = white[1:], slopes[1:], constant[1:]
    delta, factor, known = delta[:-1], factor[:-1], known[:-1]
    unit = jnp.eye(white.shape[-1], dtype=white.dtype)[None]
    lower = jax.vmap(cholesky)(unit + jax.vmap(quadratic_form)(factor, slopes))
    residual = jax.vmap(forward)(lower, white[..., None] + slopes @ delta[..., None])
    squares = jnp.sum(jnp.square(residual), (-2, -1))
    terms = -0.5 * (squares + constant + log_det(lower))
    nothing = jnp.full(1, jnp.nan, terms.dtype)
    return jnp.concatenate([nothing, jnp.where(known, terms, jnp.nan)])


def flat(eta: Array, precision: Array) -> tuple[Array, Array, Array]:
    """Return mean, precision's factor, and whether exp(ηᵀδ - ½ δᵀ precision δ) has an integral; 0 and I where not."""
    diagonal = jax.lax.stop_gradient(jnp.diagonal(precision))
    # With a unit diagonal, so that the pivots do not depend on the units of δ
    scale = jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1.0))
    unit = cholesky(jax.lax.stop_gradient(precision) / (scale[:, None] * scale[None]))
    # nan compares as undetermined, and so does a pivot that is all rounding.
    limit = 10 * eta.shape[0] * jnp.finfo(eta.dtype).eps
    known = jnp.all(jnp.square(jnp.diagonal(unit)) > limit)
    factor = cholesky(jnp.where(known, precision, jnp.eye(eta.shape[0], dtype=eta.dtype)))
    mean = backward(factor, forward(factor, eta[:, None]))[:, 0]
    return jnp.where(known, mean, 0.0), factor, known
