"""Stable arithmetic on log-weights, and the two custom derivatives that every estimator is built from.

The functions are jitted so that a model's step, which traces them anew, finds their own trace already made.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def _where(which: Array, a: Any, b: Any) -> Array:
    """Select without jnp.where's own jit, which costs every model that uses it a function to lower."""
    shape = which.shape
    dtype = next(v.dtype for v in (a, b) if hasattr(v, "dtype"))
    full = lambda v: jnp.broadcast_to(jnp.asarray(v, dtype), shape)  # noqa: E731
    return jax.lax.select(which, full(a), full(b))


def _shifted(x: Array) -> tuple[Array, Array, Array]:
    """Return max x over axis 0, its finite part m, and x - m, made total: never nan for nan-free x."""
    if x.ndim == 0 or x.shape[0] == 0:
        raise ValueError(f"log-weights must have shape [k, *batch] with k >= 1, got {x.shape}.")
    top = jax.lax.stop_gradient(jnp.max(x, 0))
    shift = _where(jax.lax.is_finite(top), top, 0.0)
    # A +inf row becomes the largest finite one, so that beside it finite rows count for nothing.
    huge = jnp.finfo(x.dtype).max
    shift = _where(top == jnp.inf, float(huge), shift)
    return top, shift, _where(x == jnp.inf, float(huge), x) - shift[None]


@jax.jit
def log_mean_exp(x: Float[Array, "k *batch"], *, weights: Array | None = None) -> Float[Array, "*batch"]:
    """Log of the weighted mean of exp(x) over axis 0, total in value and in gradient.

        log Σₖ weightsₖ exp(xₖ)

    Unlike `jax.nn.logsumexp` it has a finite gradient everywhere: a -inf row gets 0, all rows -inf give -inf with
    gradient 0, a +inf row gives +inf with gradient 0; nan stays nan.

    Args:
        x: log-weights in nats, [k, *batch].
        weights: [k] or [k, *batch], summing to 1 over axis 0; 1/k where None.

    Returns:
        [*batch], in nats.

    Raises:
        ValueError: where k = 0.
    """
    if weights is not None:  # a row of no weight must not set the scale
        x = _where(jnp.broadcast_to(expand(weights, x), x.shape) > 0, x, -jnp.inf)
    top, shift, u = _shifted(x)
    total = jnp.sum(jnp.exp(u), 0) / x.shape[0] if weights is None else jnp.sum(expand(weights, x) * jnp.exp(u), 0)
    empty = total == 0
    value = jnp.log(_where(empty, 1.0, total)) + shift
    return _where(empty, -jnp.inf, _where(top == jnp.inf, jnp.inf, value))


@jax.jit
def normalized_weights(x: Float[Array, "k *batch"], *, weights: Array | None = None) -> Float[Array, "k *batch"]:
    """Self-normalised weights, exp(x) / Σ exp(x) over axis 0; all zero where every row is -inf.

    Args:
        x: log-weights in nats, [k, *batch].
        weights: [k] or [k, *batch], summing to 1 over axis 0; 1/k where None.

    Returns:
        [k, *batch], summing to 1 over axis 0 where any row is possible.
    """
    if weights is not None:
        x = _where(jnp.broadcast_to(expand(weights, x), x.shape) > 0, x, -jnp.inf)
    _, _, u = _shifted(x)
    w = jnp.exp(u) if weights is None else expand(weights, x) * jnp.exp(u)
    total = jnp.sum(w, 0)
    return w / _where(total == 0, 1.0, total)[None]


@jax.jit
def leave_one_out_mean(x: Float[Array, "k *batch"]) -> Float[Array, "k *batch"]:
    """Mean of the other rows, for each row; infinite only where another row is. Costs O(k)."""
    k = _at_least_two(x)
    impossible = jnp.isinf(x)
    finite = jnp.where(impossible, 0.0, x)
    others = (jnp.sum(finite, 0)[None] - finite) / (k - 1)
    elsewhere = jnp.sum(impossible, 0)[None] - impossible
    return jnp.where(elsewhere > 0, jnp.where(jnp.max(x, 0) == jnp.inf, jnp.inf, -jnp.inf)[None], others)


@jax.jit
def leave_one_out_log_mean_exp(x: Float[Array, "k *batch"]) -> Float[Array, "k *batch"]:
    """Log-mean-exp of the other rows, for each row, in O(k) and without cancellation.

    Only the largest row can cancel when it is taken from the sum, so that row alone is summed afresh without it.
    """
    k = _at_least_two(x)
    top, shift, u = _shifted(x)
    w = jnp.exp(u)
    is_top = jnp.arange(k).reshape((k,) + (1,) * (x.ndim - 1)) == jnp.argmax(x, 0)[None]
    without_top = log_mean_exp(jnp.where(is_top, -jnp.inf, x)) + math.log(k / (k - 1))
    rest = jnp.where(is_top, 1.0, jnp.sum(w, 0)[None] - w)
    others = shift[None] + jnp.where(rest > 0, jnp.log(jnp.where(rest > 0, rest, 1.0)), -jnp.inf) - math.log(k - 1)
    # A +inf row makes every sum that holds it +inf.
    others = jnp.where((top == jnp.inf)[None], jnp.inf, others)
    return jnp.where(is_top, without_top[None], others)


def _at_least_two(x: Array) -> int:
    if x.ndim == 0 or x.shape[0] < 2:
        raise ValueError(f"leaving one draw out needs at least two: log-weights have shape {x.shape}.")
    return int(x.shape[0])


def expand(factor: Array, like: Array) -> Array:
    """Give `factor` trailing axes until it has the rank of `like`."""
    return jnp.reshape(factor, jnp.shape(factor) + (1,) * (jnp.ndim(like) - jnp.ndim(factor)))


@jax.custom_jvp
def scale_gradient(z: Any, factor: Array) -> Any:
    """Return z unchanged, with its derivative multiplied by `factor`, which itself is not differentiated.

    Args:
        z: a pytree with leaves [*f, ...].
        factor: [*f], the shape that every leaf begins with.
    """
    return z


@scale_gradient.defjvp
def _scale_gradient_jvp(primals: Any, tangents: Any) -> Any:
    (z, factor), (dz, _) = primals, tangents
    scale = lambda t: t if t.dtype == jax.dtypes.float0 else (t * expand(factor, t)).astype(t.dtype)  # noqa: E731
    return z, jax.tree.map(scale, dz)


@jax.custom_jvp
def with_score(value: Array, score: Array) -> Array:
    """Return `value` with the derivative of `score`: the two look at one number from a safe and a differentiable side.

    It replaces `stop(value) + score - stop(score)`, which is nan where score is infinite.
    """
    return value


@with_score.defjvp
def _with_score_jvp(primals: Any, tangents: Any) -> Any:
    value, score = primals
    return value, jnp.broadcast_to(tangents[1], jnp.shape(value)).astype(value.dtype)
