"""Gaussians whose covariance is an L-BFGS estimate of an inverse Hessian: a diagonal and a few directions."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vijax.gaussians.affine import AffineGaussian
from vijax.gaussians.roots import QuasiNewtonRoot
from vijax.types import PyTree


class History(NamedTuple):
    """The last J pairs of an L-BFGS climb that had curvature, and the diagonal that they started from.

    Fields:
        alpha: the diagonal's running estimate, [d].
        steps: s, [J, d], the oldest first; zeros where there was none yet.
        slopes: y, the fall of the gradient along them, [J, d].
    """

    alpha: Array
    steps: Array
    slopes: Array


def remember(history: History, s: Float[Array, " d"], y: Float[Array, " d"]) -> History:
    """Add a pair, unless the function does not curve down along it; and fit the diagonal to it."""
    alpha = history.alpha
    curvature = s @ y
    curved = curvature > jnp.finfo(s.dtype).eps * (y @ y)
    b = jnp.where(curved, curvature, 1.0)
    a, c = jnp.sum(alpha * y**2), jnp.sum(s**2 / alpha)
    # The diagonal of the BFGS update of diag(alpha), in the form of the reference
    diagonal = 1 / (
        a / (b * alpha) + y**2 / b - a * s**2 / (b * jnp.where(c > 0, c, 1.0) * alpha**2)
    )
    curved = curved & jnp.all(jnp.isfinite(diagonal) & (diagonal > 0))
    later = History(
        diagonal,
        jnp.concatenate([history.steps[1:], s[None]]),
        jnp.concatenate([history.slopes[1:], y[None]]),
    )
    return jax.tree.map(lambda new, old: jnp.where(curved, new, old), later, history)


def gaussian(
    position: Array, slope: Array, history: History, unravel: Callable[[Array], PyTree]
) -> AffineGaussian:
    """Return N(θ + H ∇log p(θ), H), H the BFGS estimate from a history.

    In units of √α a BFGS update is H₊ = (I - s wᵀ) H (I - w sᵀ), w = y/(sᵀy) - B s / √(sᵀy · sᵀB s), B = H⁻¹: a factor
    of H takes one direction more for each pair, and is regular by construction, also where rounding would leave a sum
    of outer products without a Cholesky factor.
    """
    scale = jnp.sqrt(history.alpha)
    pairs, size = history.steps.shape

    # [J, J]: the matrix of Woodbury's identity for (I + leftᵀ right)⁻¹
    def small(left: Array, right: Array) -> Array:
        return jnp.eye(pairs, dtype=left.dtype) + right @ left.T

    def add(
        factor: tuple[Array, Array], pair: tuple[Array, Array, Array]
    ) -> tuple[tuple[Array, Array], None]:
        left, right = factor  # both [J, d]: the factor is I + leftᵀ right
        i, s, y = pair
        s, y = s / scale, y * scale
        # A pair that was not yet remembered leaves the factor as it is.
        there = jnp.any(s != 0)
        inner = small(left, right)
        half = s - left.T @ jnp.linalg.solve(inner, right @ s)  # (I + leftᵀ right)⁻¹ s
        turned = half - right.T @ jnp.linalg.solve(inner.T, left @ half)  # B s
        curvature, before = jnp.where(there, s @ y, 1.0), jnp.where(there, half @ half, 1.0)
        w = y / curvature - turned / jnp.sqrt(curvature * before)
        row = w + (left @ w) @ right
        return (left.at[i].set(-s), right.at[i].set(jnp.where(there, row, 0.0))), None

    nothing = jnp.zeros((pairs, size), scale.dtype)
    (left, right), _ = jax.lax.scan(
        add, (nothing, nothing), (jnp.arange(pairs), history.steps, history.slopes)
    )

    # S e and Sᵀ g of the root S = diag(√α) (I + leftᵀ right), H = S Sᵀ
    def push(e: Array) -> Array:
        return scale * (e + left.T @ (right @ e))

    def pull(g: Array) -> Array:
        return (scale * g) + right.T @ (left @ (scale * g))

    root = QuasiNewtonRoot(jnp.log(scale), left.T, right)
    return AffineGaussian(unravel(position + push(pull(slope))), root)
