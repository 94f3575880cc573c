"""Slopes of a bound that brings no closed form of its own."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vijax.types import Bound


def path_slopes(bound: Bound, log_w: Float[Array, "k *batch"]) -> tuple[Array, Array]:
    """Return B'ₖ and B'ₖ - B''ₖₖ, each [k, *batch], for members of the batch that do not touch each
    other.

    One row at a time, so that memory stays O(k) where all second derivatives at once would take O(k²).
    """
    slope = jax.grad(lambda log_w: jnp.sum(bound(log_w)))

    # B''ₖₖ: the k-th element of the slope's derivative along draw k.
    def curvature(k: Array) -> Array:
        row = jnp.zeros_like(log_w).at[k].set(1.0)
        return jax.jvp(slope, (log_w,), (row,))[1][k]

    if log_w.size == 0:
        return log_w, log_w
    whole = slope(log_w)
    rows = jnp.arange(log_w.shape[0])
    second = jax.lax.map(curvature, rows, batch_size=min(64, log_w.shape[0]))
    return jax.lax.stop_gradient(whole), jax.lax.stop_gradient(whole - second)
