"""Precision matrices and their Cholesky factors: what a structure offers; dense and diagonal."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from vijax.trees import own_direction

Vector = Float[Array, "..."]
"""[*batch, d], or [*batch, T, d] where a chain of T blocks is kept."""


class Precision(NamedTuple):
    """How a precision matrix Λ = L Lᵀ is found and used.

    Fields:
        kept: how many axes of each leaf after the batch stay axes of a vector; the others are
            flattened.
        probe: (v -> Λ v, a vector for its shape) -> Λ, as kept.
        times: (Λ, v) -> Λ v.
        own: Λ -> its diagonal, a vector.
        factor: Λ -> L, as kept; nan where Λ is not positive definite.
        half_log_det: L -> ½ log |Λ|, [*batch].
        pull: (L, v) -> Lᵀ v.
        push: (L, v) -> L⁻ᵀ v.
        solve: (L, v) -> Λ⁻¹ v.
    """

    kept: int
    probe: Callable[[Callable[[Array], Array], Array], Any]
    times: Callable[[Any, Array], Array]
    own: Callable[[Any], Array]
    factor: Callable[[Any], Any]
    half_log_det: Callable[[Any], Array]
    pull: Callable[[Any, Array], Array]
    push: Callable[[Any, Array], Array]
    solve: Callable[[Any, Array], Array]


def matvec(a: Array, v: Array) -> Array:
    """Return A v for each member of a batch."""
    return jnp.einsum("...ij,...j->...i", a, v)


def transposed_matvec(a: Array, v: Array) -> Array:
    """Return Aᵀ v for each member of a batch."""
    return jnp.einsum("...ji,...j->...i", a, v)


def diagonal_of(a: Array) -> Array:
    """Return the diagonal of each matrix of a batch."""
    return jnp.diagonal(a, axis1=-2, axis2=-1)


def symmetric(a: Array) -> Array:
    """Take out what rounding made asymmetric."""
    return 0.5 * (a + jnp.swapaxes(a, -1, -2))


# --- dense


def _probe(product: Callable[[Array], Array], v: Array) -> Array:
    # Λ times every unit vector: its columns, which need not be symmetric to rounding.
    unit = jnp.eye(v.shape[-1], dtype=v.dtype)
    columns = jax.vmap(lambda e: product(own_direction(jnp.broadcast_to(e, v.shape), v)))(unit)
    return symmetric(jnp.moveaxis(columns, 0, -1))


# Solves with L and Lᵀ, for each member of a batch.


@partial(jnp.vectorize, signature="(d,d),(d)->(d)")
def _forward(root: Array, v: Array) -> Array:
    return solve_triangular(root, v, lower=True)


@partial(jnp.vectorize, signature="(d,d),(d)->(d)")
def _backward(root: Array, v: Array) -> Array:
    return solve_triangular(root, v, lower=True, trans=1)


dense = Precision(
    kept=0,
    probe=_probe,
    times=matvec,
    own=diagonal_of,
    factor=jnp.linalg.cholesky,
    half_log_det=lambda root: jnp.sum(jnp.log(diagonal_of(root)), -1),
    pull=transposed_matvec,
    push=_backward,
    solve=lambda root, v: _backward(root, _forward(root, v)),
)
"""Any positive definite Λ: d² numbers, d³ operations."""


# --- diagonal

diagonal = Precision(
    kept=0,
    probe=lambda product, v: product(own_direction(jnp.ones_like(v), v)),
    times=lambda a, v: a * v,
    own=lambda a: a,
    factor=lambda a: jnp.sqrt(jnp.where(a > 0, a, jnp.nan)),
    half_log_det=lambda root: jnp.sum(jnp.log(root), -1),
    pull=lambda root, v: root * v,
    push=lambda root, v: v / root,
    solve=lambda root, v: v / root**2,
)
"""Elements that are independent given the rest: d numbers and operations."""
