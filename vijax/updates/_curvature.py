"""Slope and curvature of log p under a Gaussian q, in units of its own spread."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vijax.trees import own_direction, own_point
from vijax.updates._gaussian import GaussianState
from vijax.updates._whitened import Whitened

LogP = Callable[[Array], Array]


class Local(NamedTuple):
    """Slope and curvature of log p near q, from its draws z = m + L e.

    Fields:
        log_p: [k] in nats.
        slope: E[Lᵀ ∇ log p], [d].
        curvature: E[-Lᵀ ∇² log p L], [d, d], or its diagonal [d]: the identity where q has the
            target's curvature.
    """

    log_p: Float[Array, " k"]
    slope: Float[Array, " d"]
    curvature: Array


class Curvature(NamedTuple):
    """How slope and curvature are computed: from log p as a function of noise, [k, d] -> [k].

    `stein` and `hessian` are two; a third is two functions of your own, whose results have the fields
    of `Local`.

    Fields:
        dense: (log_p, e) -> log_p [k] in nats, slope E[Lᵀ ∇ log p], [d], and curvature
            E[-Lᵀ ∇² log p L], [d, d], for a full-rank q.
        diagonal: the same for a mean-field q, with the curvature's diagonal [d]; where it is [d, d],
            the mean moves by Newton's step.
    """

    dense: Callable[[LogP, Array], Local]
    diagonal: Callable[[LogP, Array], Local]


def local_at(curvature: Curvature, state: GaussianState, target: Whitened) -> Local:
    """Return slope and curvature at a state, from the draws that a step is made from."""
    # A root [d, d] is that of a full-rank q.
    find = curvature.dense if state.root.ndim == 2 else curvature.diagonal
    return find(lambda e: target.log_p(state, e), target.noise)


Columns = Callable[[Callable[[Array, Array], Array]], Array]


def _columns(log_p: LogP, noise: Array) -> tuple[Array, Array, Columns]:
    """Return log p, the slope, and a map over (unit vector, column of the mean Hessian)."""

    # The mean over draws as a function of one shift of them all: d products, however many draws.
    def slope(shift: Array) -> tuple[Array, Array]:
        def mean(shift: Array) -> tuple[Array, Array]:
            values = log_p(noise + shift[None])
            return jnp.mean(values), values

        return jax.grad(mean, has_aux=True)(shift)

    # Linearized once, the gradient's derivative is one Hessian product for each unit vector.
    d = noise.shape[1]
    zero = own_point(lambda shift: log_p(noise + shift[None]), jnp.zeros(d, noise.dtype))
    at, product, values = jax.linearize(slope, zero, has_aux=True)
    eye = own_direction(jnp.eye(d, dtype=noise.dtype), zero)

    def each(keep: Callable[[Array, Array], Array]) -> Array:
        # A few products at a time: [16, d] of tangents in memory, not [d, d].
        return jax.lax.map(lambda e: keep(e, product(e)), eye, batch_size=min(16, d))

    return values, at, each


def _hessian(log_p: LogP, noise: Array) -> Local:
    values, slope, each = _columns(log_p, noise)
    # [d, d], made symmetric: each column has rounding of its own.
    columns = each(lambda _, column: column)
    return Local(values, slope, -0.5 * (columns + columns.T))


hessian = Curvature(_hessian, _hessian)
"""The exact Hessian of every draw, averaged: d products with it, whole for a mean-field q too.

    E[-∇² log p]

Price's identity: minus twice the derivative of E[log p] by the covariance. Without noise where the
target is Gaussian. log_joint is differentiated twice, forward over reverse.

Reference: Opper, Archambeau, The variational Gaussian approximation revisited, 2009.
"""


def slopes(log_p: LogP, noise: Array) -> tuple[Array, Array]:
    """Return log p [k], and its gradient by every draw's noise, [k, d]."""

    # The gradient of the sum is that of every draw, since log p of a draw reads its own noise alone.
    def total(e: Array) -> tuple[Array, Array]:
        values = log_p(e)
        return jnp.sum(values), values

    slope, values = jax.grad(total, has_aux=True)(own_point(log_p, noise))
    return values, slope


def _coefficients(noise: Array, slope: Array) -> Array:
    """Return c of each latent for each draw, [k, d]: least squares of the other pairs' slopes on their noise.

    Of fewer than 32 draws the coefficient of each latent would be noise: one between 0 and 1 then
    serves all.
    """
    # C - e (Lᵀ∇ log p + C e)ᵀ has the same mean whatever C = diag c is. The best c is the curvature itself:
    # 1, which takes away q's own score, where q is the target, and 0 where q is far narrower. It is found
    # from the other draws, so that no draw has a part in its own; mirrored pairs are left out together.
    # Without mirrored pairs, or of one, there are no other draws: C is the identity.
    pairs, few = len(noise) // 2, len(noise) < 32
    if len(noise) % 2 or pairs < 2:
        return jnp.ones_like(noise)

    def of_others(x: Array) -> Array:
        # Rows i and i + pairs are a mirrored pair: [pairs, d], then the sum over all others.
        each = jnp.sum(x.reshape(2, pairs, -1), 0)
        each = jnp.sum(each, -1, keepdims=True) if few else each
        return jnp.sum(each, 0)[None] - each

    # Least squares of the slopes on the noise; where q is the target the slope is -e, and c is 1.
    c = -of_others(noise * slope) / of_others(jnp.square(noise))
    c = jnp.clip(c, 0, 1) if few else c
    return jnp.broadcast_to(jnp.concatenate([c, c]), noise.shape)


def _stein(log_p: LogP, noise: Array) -> Local:
    """Return the curvature [d, d] by Stein's identity, E[C - e (g + C e)ᵀ] with g the slopes [k, d]."""
    draws, d = noise.shape
    if draws < d:
        warnings.warn(
            f"num_samples = {draws} draws show too little of the curvature of {d} latents, and "
            "steps may not be taken: leave num_samples out for two draws a latent, or use "
            "curvature=updates.hessian, or families.mean_field.",
            stacklevel=2,
        )
    values, slope = slopes(log_p, noise)
    c = _coefficients(noise, slope)
    # E[e (g + C e)ᵀ], which has noise of rank k: fewer draws than latents leave directions unknown.
    products = noise.T @ (slope + c * noise) / len(noise)
    curvature = jnp.diag(jnp.mean(c, 0)) - 0.5 * (products + products.T)
    return Local(values, jnp.mean(slope, 0), curvature)


def _stein_diagonal(log_p: LogP, noise: Array) -> Local:
    """Return the diagonal [d] of the same, without the matrix."""
    values, slope = slopes(log_p, noise)
    c = _coefficients(noise, slope)
    return Local(values, jnp.mean(slope, 0), jnp.mean(c - noise * (slope + c * noise), 0))


stein = Curvature(_stein, _stein_diagonal)
"""The mean Hessian from gradients alone, by Stein's identity: one for each draw, whatever d is.

    E[-∇² log p] = L⁻ᵀ E[C - e (Lᵀ ∇ log p + C e)ᵀ] L⁻¹,   z = m + L e,   C = diag c, symmetrized

Unbiased, and noisier than `hessian` by d/k far from the optimum: give it some multiple of d draws,
or a small learning rate. q's own score takes part in the proportion c in which the slopes at the
other draws show it, for each latent from 32 draws: where q is exact no noise is left, and where q
is far narrower than the target no more than that of the plain identity, c = 0.

Reference: Lin, Khan, Schmidt, Stein's lemma for the reparameterization trick with exponential
    family mixtures, 2019, arXiv:1910.13398.
"""
