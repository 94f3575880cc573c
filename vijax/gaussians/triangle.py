"""The full-rank parameterization, L = diag(s) (I + strictly lower triangle), and its kin.

A root here is a Cholesky factor L [d, d], L Lᵀ = Σ, or the standard deviations [d] of a diagonal Σ.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def unit_triangle(lower: Float[Array, " n"], size: int) -> Float[Array, "d d"]:
    """Return I + strictly lower triangle, from its n = d (d - 1) / 2 entries row by row."""
    return jnp.eye(size, dtype=lower.dtype).at[jnp.tril_indices(size, -1)].set(lower)


def from_parameters(
    log_scale: Float[Array, " d"],
    lower: Float[Array, " n"],
) -> Float[Array, "d d"]:
    """Return the Cholesky factor that full_rank's parameters stand for."""
    scale = jnp.exp(log_scale)
    return scale[:, None] * unit_triangle(lower.astype(scale.dtype), scale.size)


def to_parameters(root: Float[Array, "d d"]) -> tuple[Float[Array, " d"], Float[Array, " n"]]:
    """Return full_rank's log_scale and lower of a Cholesky factor; inverts `from_parameters`."""
    # L = diag(s) (I + lower).
    scale = jnp.diagonal(root)
    return jnp.log(scale), (root / scale[:, None])[jnp.tril_indices(scale.size, -1)]


def parameters_of_covariance(
    factor: Float[Array, "d k"],
) -> tuple[Float[Array, " d"], Float[Array, " n"]]:
    """Return full_rank's log_scale and lower of the covariance factor factorᵀ, k >= d.

    The covariance is not formed: that would square the condition number. Rows may differ in scale.
    """
    # Rows of unit length, whose scales are put back in logarithms.
    spread = jnp.sqrt(jnp.sum(jnp.square(factor), 1))
    log_scale, lower = to_parameters(triangle(factor / spread[:, None]))
    return jnp.log(spread) + log_scale, lower


def triangle(factor: Float[Array, "d k"]) -> Float[Array, "d d"]:
    """Return the lower triangular L with positive diagonal and L Lᵀ = factor factorᵀ, k >= d."""
    # factorᵀ = Q R gives factor factorᵀ = Rᵀ R; the signs of R's rows are QR's own.
    lower = jnp.linalg.qr(factor.T, mode="r").T
    return lower * jnp.where(jnp.diagonal(lower) < 0, -1, 1)[None, :]


def factor_of_inverse(
    precision: Float[Array, "d d"],
) -> tuple[Float[Array, "d d"], Float[Array, ""]]:
    """Return R with R Rᵀ = Λ⁻¹ where Λ is positive definite, and of a stand-in for Λ elsewhere.

    An eigenvalue that is not positive counts by its absolute value, and none as below rounding. The
    second result is the smallest of them, of Λ in units of its diagonal.
    """
    size = jnp.abs(jnp.diag(precision))
    scale = jax.lax.rsqrt(jnp.where(size > 0, size, 1.0))
    # In units of its diagonal, latents may differ in scale by more than the precision holds.
    values, vectors = jnp.linalg.eigh(scale[:, None] * precision * scale[None, :])
    lowest, values = values[0], jnp.abs(values)
    # Rounding of the largest; 1 where Λ is 0 altogether.
    floor = values.size * jnp.finfo(values.dtype).eps * jnp.max(values)
    values = jnp.maximum(values, jnp.where(floor > 0, floor, 1.0))
    return scale[:, None] * vectors * jax.lax.rsqrt(values)[None, :], lowest


def half_log_det(root: Array) -> Array:
    """Return ½ log |Σ| of a root."""
    return jnp.sum(jnp.log(root if root.ndim == 1 else jnp.diagonal(root)))


def times_root(root: Array, e: Float[Array, " d"]) -> Float[Array, " d"]:
    """Return L e."""
    return root * e if root.ndim == 1 else root @ e
