"""The root of a Gaussian chain, whose precision is block-tridiagonal: every cost is linear in time."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from vijax.folds import Fold, backward, sequential
from vijax.gaussians.affine import DiagonalRoot, Root, standard_log_density

_FIELDS = ["log_scale", "within", "below"]


@partial(jax.tree_util.register_dataclass, data_fields=_FIELDS, meta_fields=["sizes", "fold"])
@dataclass(frozen=True, eq=False)
class ChainRoot:
    """S = diag(s) U⁻ᵀ, with U unit lower triangular and block bidiagonal: Λ = diag(s)⁻¹ U Uᵀ diag(s)⁻¹.

    In units of s a draw is a recursion from the last step back, xₜ = Uₜₜ⁻ᵀ (eₜ - Uₜ₊₁,ₜᵀ xₜ₊₁), and its density a
    product with Uᵀ. Elements are in the order of z's leaves, each with a leading axis of time; noise is step by step.

    Fields:
        log_scale: log s, [n] with n = T d.
        within: the diagonal blocks of U, [T, d, d], unit lower triangles.
        below: the blocks below them, from step t to t + 1, [T - 1, d, d].
        sizes: how many elements of a step are of each leaf.
        fold: `folds.sequential` or `folds.associative`, along time.
    """

    log_scale: Array
    within: Array
    below: Array
    sizes: tuple[int, ...]
    fold: Fold = sequential

    def noise_size(self) -> int:
        """Return n."""
        return int(self.log_scale.shape[0])

    def push(self, loc: Array, e: Array) -> Array:
        """Return loc + S e."""
        gain, own = self._conditionals(e.reshape(self.within.shape[:2])[..., None])
        x = backward(self.fold, _affine, own[-1], (gain, own[:-1]))
        return loc + jnp.exp(self.log_scale) * self._by_leaf(x[..., 0])

    def whiten(self, r: Array) -> Array:
        """Return S⁻¹ r: block t of Uᵀ x reads xₜ and xₜ₊₁, with no recursion."""
        x = self._by_time(r * jnp.exp(-self.log_scale))[..., None]
        ahead = _product(_transpose(self.below), x[1:])
        own = _product(_transpose(self.within), x)
        return (own + _append_zero(ahead)).reshape(-1)

    def log_density(self, r: Array, e: Array | None = None) -> Array:
        """Return log N(r; 0, Σ), of e where it is given: the recursion has rounded r."""
        return standard_log_density(self.whiten(r) if e is None else e, self.log_scale)

    def half_log_det(self) -> Array:
        """Return ½ log |Σ|."""
        return jnp.sum(self.log_scale)

    def square(self, r: Array) -> Array:
        """Return rᵀ Σ⁻¹ r."""
        return jnp.sum(jnp.square(self.whiten(r)))

    def precisions(self) -> Array:
        """Return the diagonal of Σ⁻¹: sums of squares of the rows of U."""
        rows = jnp.sum(jnp.square(self.within), -1)
        rows = rows.at[1:].add(jnp.sum(jnp.square(self.below), -1))
        return jnp.exp(-2 * self.log_scale) * self._by_leaf(rows)

    def variances(self) -> Array:
        """Return the diagonal of Σ."""
        diagonals = jnp.diagonal(self._covariances(), axis1=-2, axis2=-1)
        return jnp.exp(2 * self.log_scale) * self._by_leaf(diagonals)

    def expected_square(self, prior: Root) -> Array:
        """Return tr Σₚ⁻¹ Σ, in time linear in T for a chain or a diagonal."""
        if isinstance(prior, ChainRoot) and prior.sizes == self.sizes:
            return self._expected_square(prior)
        if isinstance(prior, DiagonalRoot):
            return jnp.sum(self.variances() * prior.precisions())
        columns = jax.vmap(partial(self.push, jnp.zeros_like(self.log_scale)))
        unit = jnp.eye(self.noise_size(), dtype=self.within.dtype)
        return jnp.sum(jax.vmap(prior.square)(columns(unit)))

    def _expected_square(self, prior: "ChainRoot") -> Array:
        # In units of this chain: block t of what the prior whitens is Aₜ xₜ + Bₜ xₜ₊₁.
        ratio = self._by_time(jnp.exp(self.log_scale - prior.log_scale))
        here = _transpose(prior.within) * ratio[:, None, :]
        ahead = _transpose(prior.below) * ratio[1:, None, :]
        # xₜ = Gₜ xₜ₊₁ + Kₜ eₜ, so that the two are independent: (A G + B) xₜ₊₁ + A K e, a sum of squares
        gain, noise = self._conditionals(self._unit())
        moved = _product(here[:-1], gain) + ahead
        later = self._covariances()[1:]
        return jnp.sum(jnp.square(_product(here, noise))) + jnp.sum(_product(moved, later) * moved)

    def _covariances(self) -> Array:
        """Return Cov[xₜ] in units of s, [T, d, d]: Pₜ = Gₜ Pₜ₊₁ Gₜᵀ + Kₜ Kₜᵀ."""
        gain, noise = self._conditionals(self._unit())
        own = _product(noise, _transpose(noise))
        return backward(self.fold, _spread, own[-1], (gain, own[:-1]))

    def _conditionals(self, e: Float[Array, "T d c"]) -> tuple[Array, Array]:
        """Return Gₜ = -Uₜₜ⁻ᵀ Uₜ₊₁,ₜᵀ, [T - 1, d, d], and Uₜₜ⁻ᵀ eₜ: all solves at once, before the recursion."""
        d = e.shape[1]
        right = jnp.concatenate([_append_zero(-_transpose(self.below)), e], -1)
        if d > 1:
            right = solve_triangular(self.within, right, lower=True, trans=1, unit_diagonal=True)
        return right[:-1, :, :d], right[..., d:]

    def _unit(self) -> Array:
        unit = jnp.eye(self.within.shape[1], dtype=self.within.dtype)
        return jnp.broadcast_to(unit[None], self.within.shape)

    def _by_time(self, v: Array) -> Array:
        """Return elements in the order of leaves, [n], step by step, [T, d]."""
        steps = self.within.shape[0]
        ends = [steps * sum(self.sizes[: i + 1]) for i in range(len(self.sizes) - 1)]
        return jnp.concatenate([leaf.reshape(steps, -1) for leaf in jnp.split(v, ends)], 1)

    def _by_leaf(self, x: Array) -> Array:
        """Return elements [T, d] in the order of leaves, [n]."""
        ends = [sum(self.sizes[: i + 1]) for i in range(len(self.sizes) - 1)]
        return jnp.concatenate([leaf.reshape(-1) for leaf in jnp.split(x, ends, 1)])


def _product(a: Array, b: Array) -> Array:
    # In full precision: a recursion over many steps carries rounding along.
    return jnp.matmul(a, b, precision="highest")


def _transpose(a: Array) -> Array:
    return jnp.swapaxes(a, -1, -2)


def _append_zero(a: Array) -> Array:
    """Return [T - 1, ...] with a zero for the last step, after which there is none."""
    return jnp.pad(a, ((0, 1), (0, 0), (0, 0)))


# What a fold carries is a state, or an element as the links are: then both are composed.


def _affine(r: Any, link: tuple[Array, Array]) -> Any:
    gain, own = link
    if isinstance(r, tuple):
        return _product(gain, r[0]), _product(gain, r[1]) + own
    return _product(gain, r) + own


def _spread(r: Any, link: tuple[Array, Array]) -> Any:
    gain, own = link
    cov = r[1] if isinstance(r, tuple) else r
    cov = _product(_product(gain, cov), _transpose(gain)) + own
    return (_product(gain, r[0]), cov) if isinstance(r, tuple) else cov


def chain_parameters(
    mean: Float[Array, "T d"], own: Float[Array, "T d d"], below: Float[Array, "S d d"]
) -> dict[str, Array]:
    """Return the params of `families.markov` for a mean and the blocks of L, Λ = L Lᵀ.

    Args:
        mean: of each step.
        own: the diagonal blocks of L, lower triangles of positive diagonal.
        below: the blocks below them, [T - 1, d, d].
    """
    # L = diag(s)⁻¹ U: rows in units of the diagonal
    scale = 1 / jnp.diagonal(own, axis1=-2, axis2=-1)
    rows, columns = jnp.tril_indices(mean.shape[1], -1)
    return {
        "loc": mean,
        "log_scale": jnp.log(scale),
        "lower": (own * scale[..., None])[:, rows, columns],
        "below": below * scale[1:, :, None],
    }
