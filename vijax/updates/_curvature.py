"""Slope and curvature of log p under a Gaussian q, in units of its own spread."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

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
    """How slope and curvature are found: from log p as a function of noise, [k, d] -> [k].

    `stein` and `hessian` are two; a third is two functions of your own, whose results have the
    fields log_p [k] in nats, slope E[Lᵀ ∇ log p], [d], and curvature E[-Lᵀ ∇² log p L], [d, d] or
    its diagonal [d].

    Fields:
        dense: (log_p, e) -> Local, for a full-rank q.
        diagonal: (log_p, e) -> Local, for a mean-field q.
    """

    dense: Callable[[LogP, Array], Local]
    diagonal: Callable[[LogP, Array], Local]


def local_at(curvature: Curvature, state: GaussianState, target: Whitened) -> Local:
    """Return slope and curvature at a state, from the draws that a step is made from."""
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

    d = noise.shape[1]
    at, product, values = jax.linearize(slope, jnp.zeros(d, noise.dtype), has_aux=True)
    eye = jnp.eye(d, dtype=noise.dtype)

    def each(keep: Callable[[Array, Array], Array]) -> Array:
        return jax.lax.map(lambda e: keep(e, product(e)), eye, batch_size=min(16, d))

    return values, at, each


def _hessian(log_p: LogP, noise: Array) -> Local:
    values, slope, each = _columns(log_p, noise)
    columns = each(lambda _, column: column)
    return Local(values, slope, -0.5 * (columns + columns.T))


def _hessian_diagonal(log_p: LogP, noise: Array) -> Local:
    values, slope, each = _columns(log_p, noise)
    return Local(values, slope, -each(jnp.dot))


hessian = Curvature(_hessian, _hessian_diagonal)
"""The exact Hessian of every draw, averaged: d products with it, for a mean-field q too.

    E[-∇² log p]

Price's identity: minus twice the derivative of E[log p] by the covariance. Without noise where the
target is Gaussian. log_joint is differentiated twice, forward over reverse.

Reference: Opper, Archambeau, The variational Gaussian approximation revisited, 2009.
"""


def slopes(log_p: LogP, noise: Array) -> tuple[Array, Array]:
    """Return log p [k], and its gradient by every draw's noise, [k, d]."""

    def total(e: Array) -> tuple[Array, Array]:
        values = log_p(e)
        return jnp.sum(values), values

    slope, values = jax.grad(total, has_aux=True)(noise)
    return values, slope


# e (Lᵀ∇ log p + e)ᵀ rather than e (Lᵀ∇ log p)ᵀ: without q's own score, whose part is known, an
# exact q has no noise.


def _stein(log_p: LogP, noise: Array) -> Local:
    values, slope = slopes(log_p, noise)
    products = noise.T @ (slope + noise) / len(noise)
    return Local(
        values,
        jnp.mean(slope, 0),
        jnp.eye(noise.shape[1], dtype=noise.dtype) - 0.5 * (products + products.T),
    )


def _stein_diagonal(log_p: LogP, noise: Array) -> Local:
    values, slope = slopes(log_p, noise)
    return Local(values, jnp.mean(slope, 0), 1 - jnp.mean(noise * (slope + noise), 0))


stein = Curvature(_stein, _stein_diagonal)
"""The mean Hessian from gradients alone, by Stein's identity: one for each draw, whatever d is.

    E[-∇² log p] = Λ - sym E[Λ (z - m) (∇ log p - ∇ log q)ᵀ]

Unbiased, and noisier than `hessian` by d/k far from the optimum: give it some multiple of d draws,
or a small learning rate. Subtracting q's own score leaves no noise where q is exact.

Reference: Lin, Khan, Schmidt, Stein's lemma for the reparameterization trick with exponential
    family mixtures, 2019, arXiv:1910.13398.
"""
