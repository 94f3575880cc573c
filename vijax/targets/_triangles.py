"""Maps of unconstrained numbers onto lower triangular matrices, for the constraints that are made of them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import log_sigmoid
from jaxtyping import Array

from vijax.numerics import with_score
from vijax.targets._range import exp_within_reach, on_diagonal, side_of_triangle, smallest


def correlation_root(y: Array) -> tuple[Array, Array]:
    d = side_of_triangle(y, 1, "cholesky_correlation")
    below = (..., *np.tril_indices(d, -1))
    # log (1 - tanh² y), for any y
    log_left = 2 * math.log(2) + log_sigmoid(2 * y) + log_sigmoid(-2 * y)
    square = jnp.zeros((*y.shape[:-1], d, d), y.dtype)
    # ½ log of what is left of a row's unit length after each column
    halves = jnp.cumsum(square.at[below].set(0.5 * log_left), -1)
    before = jnp.concatenate([square[..., :1], halves[..., :-1]], -1)
    root = jnp.tril(square.at[below].set(jnp.tanh(y)).at[on_diagonal(d)].set(1.0) * jnp.exp(before))
    inside = jax.lax.stop_gradient(positive_diagonal(root))
    return with_score(inside, root), jnp.sum(before[below] + log_left, -1)


def positive_diagonal(root: Array) -> Array:
    return root.at[on_diagonal(root.shape[-1])].max(smallest(root, 0.5))


def from_correlation_root(z: Array) -> Array:
    # Σ_{k>j} z_ik²: what is left of row i's unit length after column j
    squares = jnp.flip(jnp.cumsum(jnp.flip(z**2, -1), -1), -1)
    after = jnp.concatenate([squares[..., 1:], jnp.zeros_like(z[..., :1])], -1)
    below = (..., *np.tril_indices(z.shape[-1], -1))
    # tanh y = z / √(z² + rest), so that sinh y = z / √rest
    return jnp.arcsinh(z[below] / jnp.sqrt(after[below]))


def covariance_root(y: Array) -> tuple[Array, Array]:
    d = side_of_triangle(y, -1, "cholesky_covariance")
    root = jnp.zeros((*y.shape[:-1], d, d), y.dtype).at[(..., *np.tril_indices(d))].set(y)
    scales, log_jacobian = exp_within_reach(root[on_diagonal(d)])
    return root.at[on_diagonal(d)].set(scales), jnp.sum(log_jacobian, -1)


def from_covariance_root(z: Array) -> Array:
    on = on_diagonal(z.shape[-1])
    return z.at[on].set(jnp.log(z[on]))[(..., *np.tril_indices(z.shape[-1]))]
