"""Slopes of a bound that brings no closed form of its own, by automatic differentiation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vijax.checks import describe
from vijax.types import Bound, closed_forms, keywords


def path_slopes(bound: Bound, log_w: Float[Array, "k *batch"]) -> tuple[Array, Array]:
    """Return B'ₖ and B'ₖ - B''ₖₖ, each [k, *batch], for members of the batch that do not touch each other.

    One row at a time, so that memory stays O(k) where all second derivatives at once would take O(k²).
    """
    slope = jax.grad(lambda l: jnp.sum(bound(l)))

    def curvature(k: Array) -> Array:
        row = jnp.zeros_like(log_w).at[k].set(1.0)
        return jax.jvp(slope, (log_w,), (row,))[1][k]

    if log_w.size == 0:
        return log_w, log_w
    whole = slope(log_w)
    second = jax.lax.map(curvature, jnp.arange(log_w.shape[0]), batch_size=min(64, log_w.shape[0]))
    return jax.lax.stop_gradient(whole), jax.lax.stop_gradient(whole - second)


def without_each(bound: Bound, log_w: Float[Array, "k *batch"]) -> Float[Array, "k *batch"]:
    """Return the bound without each draw in turn: its closed form in O(k) if it has one, O(k²) otherwise."""
    weights = keywords(bound).get("weights")
    if weights is not None:
        raise ValueError(
            f"{describe(bound)} is bound to weights of {jnp.shape(weights)[0]} draws, and here is judged without each "
            "draw in turn, which they do not fit: leave `weights` out, or use gradients.score or gradients.reparam."
        )
    closed: Callable[..., Any] | None = closed_forms(bound).leave_one_out
    if closed is not None:
        return closed(log_w)
    k = log_w.shape[0]
    if log_w.size == 0:
        return log_w
    others = lambda i: bound(log_w[(i + 1 + jnp.arange(k - 1)) % k])  # noqa: E731
    return jax.lax.map(others, jnp.arange(k), batch_size=min(64, k))
