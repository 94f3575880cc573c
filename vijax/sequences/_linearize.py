"""A function of a Gaussian as an affine map with noise, by derivatives or by points."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vijax.sequences._algebra import backward, cholesky, symmetric, transpose

Map = Callable[[Array], Array]
"""A state [d] -> the next one [d], or an observation [p]."""


class Linearized(NamedTuple):
    """A function of a Gaussian z ~ N(m, P) as an affine map with noise, y ≈ mean + slope (z - m) + N(0, cov).

    Fields:
        mean: [p].
        slope: [p, d].
        cov: [p, p], what the affine map leaves out; 0 where the function is linear.
    """

    mean: Float[Array, " p"]
    slope: Float[Array, "p d"]
    cov: Float[Array, "p p"]


Linearize = Callable[[Map, Array, Array], Linearized]
"""(function, mean [d], cov [d, d]) -> Linearized: `extended`, or `unscented`."""


def extended(function: Map, mean: Float[Array, " d"], cov: Float[Array, "d d"]) -> Linearized:
    """Function of a Gaussian, linearized at its mean: the extended Kalman filter's choice.

        f(z) ≈ f(m) + f'(m) (z - m)

    Exact where f is linear; the first choice where f is smooth over the spread of z.

    Args:
        function: [d] -> [p], differentiable.
        mean: of z.
        cov: of z; not read, so it may be singular.

    Returns:
        Linearized(mean, slope, cov), cov 0.

    Example:
        >>> result = extended(lambda z: z**2, jnp.array([3.0]), jnp.eye(1))
        >>> result.mean.tolist(), result.slope.tolist()
        ([9.0], [[6.0]])

    Reference: Jazwinski, Stochastic processes and filtering theory, 1970.
    """
    value = function(mean)
    p = value.shape[0]
    return Linearized(value, jax.jacfwd(function)(mean), jnp.zeros((p, p), value.dtype))


def unscented(
    function: Map,
    mean: Float[Array, " d"],
    cov: Float[Array, "d d"],
    *,
    kappa: float | None = None,
) -> Linearized:
    """Function of a Gaussian, linearized over 2 d + 1 points: the unscented Kalman filter's choice.

        zᵢ = m ± √(d + κ) Lᵢ, weights 1 / 2(d + κ), and m, weight κ / (d + κ);   P = L Lᵀ

    Exact where f is linear, and its mean up to cubic f; needs no derivative of f.

    Args:
        function: [d] -> [p].
        mean: of z.
        cov: of z, positive definite.
        kappa: κ >= 0, how far the points lie; None is 3 - d, which gives a Gaussian's fourth moments,
            or 0 beyond three states (the cubature filter), where that would be negative.

    Returns:
        Linearized(mean, slope, cov): moments of the points, cov their residual's, never negative.

    Raises:
        ValueError: for a negative kappa.

    Example:
        >>> result = unscented(lambda z: z**2, jnp.array([3.0]), jnp.eye(1))
        >>> round(float(result.mean[0]), 3)  # 9 + 1
        10.0

    Reference: Julier, Uhlmann, A new extension of the Kalman filter to nonlinear systems, 1997;
        Arasaratnam, Haykin, Cubature Kalman filters, 2009.
    """
    d = mean.shape[0]
    kappa = max(3.0 - d, 0.0) if kappa is None else kappa
    if not kappa >= 0:
        raise ValueError(f"kappa must be at least 0, so that no weight is negative; got {kappa}.")
    lower = cholesky(symmetric(cov))
    far = (d + kappa) ** 0.5
    # Noise e of the points, in which z = m + L e has unit covariance
    unit = far * jnp.eye(d, dtype=mean.dtype)
    e = jnp.concatenate([jnp.zeros((1, d), mean.dtype), unit, -unit])
    weights = jnp.full(2 * d + 1, 0.5 / (d + kappa), mean.dtype).at[0].set(kappa / (d + kappa))
    y = jax.vmap(function)(mean[None] + e @ lower.T)
    center = weights @ y
    # The best affine map of e, and what it leaves: a sum of squares, so that nothing cancels
    slope = transpose(y - center[None]) @ (weights[:, None] * e)
    residual = y - center[None] - e @ slope.T
    rest = transpose(residual) @ (weights[:, None] * residual)
    # y = ... + A e with e = L⁻¹ (z - m): slope in z is A L⁻¹.
    return Linearized(center, transpose(backward(lower, transpose(slope))), rest)
