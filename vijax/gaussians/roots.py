"""Roots S of a covariance that is not diagonal: triangular, low-rank, quasi-Newton."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array

from vijax.gaussians.affine import LOG_2PI, Root, standard_log_density


def _sum_of_squares(prior: Root, columns: Array) -> Array:
    return jnp.sum(jax.vmap(prior.square, 1)(columns))


class TriangularRoot(NamedTuple):
    """S = diag(s) U, with U [d, d] a unit lower triangle: any covariance."""

    log_scale: Array
    unit: Array

    def noise_size(self) -> int:
        """Return d."""
        return int(self.log_scale.shape[0])

    def push(self, loc: Array, e: Array) -> Array:
        """Return loc + S e."""
        return loc + jnp.exp(self.log_scale) * (self.unit @ e)

    def whiten(self, r: Array) -> Array:
        """Return S⁻¹ r."""
        scaled = r * jnp.exp(-self.log_scale)
        return solve_triangular(self.unit, scaled, lower=True, unit_diagonal=True)

    def log_density(self, r: Array, e: Array | None = None) -> Array:
        """Return log N(r; 0, Σ)."""
        return standard_log_density(self.whiten(r), self.log_scale)

    def half_log_det(self) -> Array:
        """Return ½ log |Σ|."""
        return jnp.sum(self.log_scale)

    def square(self, r: Array) -> Array:
        """Return rᵀ Σ⁻¹ r."""
        return jnp.sum(jnp.square(self.whiten(r)))

    def precisions(self) -> Array:
        """Return the diagonal of Σ⁻¹."""
        return jax.vmap(self.square)(jnp.eye(self.noise_size(), dtype=self.unit.dtype))

    def variances(self) -> Array:
        """Return the diagonal of Σ."""
        return jnp.exp(2 * self.log_scale) * jnp.sum(jnp.square(self.unit), 1)

    def expected_square(self, prior: Root) -> Array:
        """Return tr Σₚ⁻¹ Σ, column by column of S."""
        return _sum_of_squares(prior, jnp.exp(self.log_scale)[:, None] * self.unit)


class LowRankRoot(NamedTuple):
    """S = (diag(s), F), with F [d, r] a few directions: d + r numbers of noise.

    In units of the diagonal the covariance is I + G Gᵀ, inverted through I + Gᵀ G (Woodbury).

    Fields:
        log_scale: log s, [d].
        factor: F.
        scaled: G = diag(s)⁻¹ F.
        small: the Cholesky factor of I + Gᵀ G, [r, r]; `low_rank_root` makes both.
    """

    log_scale: Array
    factor: Array
    scaled: Array
    small: Array

    def noise_size(self) -> int:
        """Return d + r."""
        return int(sum(self.factor.shape))

    def push(self, loc: Array, e: Array) -> Array:
        """Return loc + S e."""
        # In this order: XLA computes the product twice where it is added to the diagonal part first.
        along_diagonal = loc + jnp.exp(self.log_scale) * e[: loc.size]
        return along_diagonal + self.factor @ e[loc.size :]

    def log_density(self, r: Array, e: Array | None = None) -> Array:
        """Return log N(r; 0, Σ)."""
        return -0.5 * (self.square(r) + r.size * LOG_2PI) - self.half_log_det()

    def half_log_det(self) -> Array:
        """Return ½ log |Σ|."""
        # |I + G Gᵀ| = |I + Gᵀ G|.
        return jnp.sum(self.log_scale) + jnp.sum(jnp.log(jnp.diag(self.small)))

    def square(self, r: Array) -> Array:
        """Return rᵀ Σ⁻¹ r."""
        r = r * jnp.exp(-self.log_scale)
        # rᵀ (I + G Gᵀ)⁻¹ r = ‖r‖² - ‖C⁻¹ Gᵀ r‖², with C Cᵀ = I + Gᵀ G.
        along = solve_triangular(self.small, self.scaled.T @ r, lower=True)
        return jnp.sum(jnp.square(r)) - jnp.sum(jnp.square(along))

    def precisions(self) -> Array:
        """Return the diagonal of Σ⁻¹."""
        # The same for every unit vector at once, [r, d].
        along = solve_triangular(self.small, self.scaled.T, lower=True)
        return jnp.exp(-2 * self.log_scale) * (1 - jnp.sum(jnp.square(along), 0))

    def variances(self) -> Array:
        """Return the diagonal of Σ."""
        return jnp.exp(2 * self.log_scale) + jnp.sum(jnp.square(self.factor), 1)

    def expected_square(self, prior: Root) -> Array:
        """Return tr Σₚ⁻¹ Σ, of the diagonal and of each direction."""
        diagonal = jnp.sum(jnp.exp(2 * self.log_scale) * prior.precisions())
        return diagonal + _sum_of_squares(prior, self.factor)


def low_rank_root(log_scale: Array, factor: Array) -> LowRankRoot:
    """Return the root of diag(s)² + F Fᵀ."""
    scaled = factor * jnp.exp(-log_scale)[:, None]
    # I + Gᵀ G, [r, r].
    gram = jnp.eye(factor.shape[1], dtype=scaled.dtype) + scaled.T @ scaled
    # LAPACK has no half precision.
    wide = gram.astype(jnp.promote_types(gram.dtype, jnp.float32))
    return LowRankRoot(log_scale, factor, scaled, jnp.linalg.cholesky(wide).astype(scaled.dtype))


class QuasiNewtonRoot(NamedTuple):
    """S = diag(s) (I + A B), with A [d, J] and B [J, d]: an L-BFGS estimate of an inverse Hessian.

    O(d J) numbers and operations, save in closed forms between Gaussians.
    """

    log_scale: Array
    left: Array
    right: Array

    def noise_size(self) -> int:
        """Return d."""
        return int(self.log_scale.shape[0])

    def push(self, loc: Array, e: Array) -> Array:
        """Return loc + S e."""
        return loc + jnp.exp(self.log_scale) * (e + self.left @ (self.right @ e))

    def whiten(self, r: Array) -> Array:
        """Return S⁻¹ r."""
        # (I + A B)⁻¹ = I - A (I + B A)⁻¹ B: a system of J equations instead of d.
        x = r * jnp.exp(-self.log_scale)
        return x - self.left @ jnp.linalg.solve(self._small(), self.right @ x)

    def log_density(self, r: Array, e: Array | None = None) -> Array:
        """Return log N(r; 0, Σ), of e where it is given: I + B A may be ill-conditioned."""
        e = self.whiten(r) if e is None else e
        return standard_log_density(e) - self.half_log_det()

    def half_log_det(self) -> Array:
        """Return ½ log |Σ|."""
        return jnp.sum(self.log_scale) + jnp.linalg.slogdet(self._small())[1]

    def square(self, r: Array) -> Array:
        """Return rᵀ Σ⁻¹ r."""
        return jnp.sum(jnp.square(self.whiten(r)))

    def precisions(self) -> Array:
        """Return the diagonal of Σ⁻¹."""
        return jax.vmap(self.square)(jnp.eye(self.noise_size(), dtype=self.left.dtype))

    def variances(self) -> Array:
        """Return the diagonal of Σ."""
        # The diagonal of (I + A B)(I + A B)ᵀ, without a matrix [d, d].
        cross = jnp.sum(self.left * self.right.T, 1)
        square = jnp.sum((self.left @ (self.right @ self.right.T)) * self.left, 1)
        return jnp.exp(2 * self.log_scale) * (1 + 2 * cross + square)

    def expected_square(self, prior: Root) -> Array:
        """Return tr Σₚ⁻¹ Σ, column by column of S [d, d]."""
        unit = jnp.eye(self.noise_size(), dtype=self.left.dtype)
        columns = jnp.exp(self.log_scale)[:, None] * (unit + self.left @ self.right)
        return _sum_of_squares(prior, columns)

    def _small(self) -> Array:
        # I + B A, [J, J].
        return jnp.eye(self.right.shape[0], dtype=self.right.dtype) + self.right @ self.left
