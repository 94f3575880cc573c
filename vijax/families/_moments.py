"""Closed forms between Gaussians that may each be diagonal, dense or diagonal plus a few directions."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array


class Moments(NamedTuple):
    """What the entropy and the divergence of a Gaussian ask of it, without a matrix where there is none.

    Fields:
        loc: the mean, [d].
        log_det: half the log-determinant of the covariance.
        variances: [d], the diagonal part of the covariance.
        directions: [d, m], the rest: covariance = diag(variances) + directions directionsᵀ.
        square: [d] -> its squared length in units of the covariance, rᵀ Σ⁻¹ r.
        precisions: the diagonal of Σ⁻¹, [d].
    """

    loc: Array
    log_det: Array
    variances: Array
    directions: Array
    square: Callable[[Array], Array]
    precisions: Callable[[], Array]


def entropy(q: Moments) -> Array:
    """Return H[q] in nats."""
    return q.log_det + 0.5 * q.loc.size * (1 + math.log(2 * math.pi))


def kl_divergence(q: Moments, p: Moments) -> Array:
    """Return KL(q ‖ p) in nats: ½ (tr Σₚ⁻¹ Σ_q + ‖difference of means‖² - d) + log-determinants."""
    trace = jnp.sum(q.variances * p.precisions()) + jnp.sum(jax.vmap(p.square, 1)(q.directions))
    return 0.5 * (trace + p.square(q.loc - p.loc) - q.loc.size) + p.log_det - q.log_det
