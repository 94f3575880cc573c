"""Stable arithmetic on log-weights, and the two custom derivatives that every estimator is built from.

The functions are jitted so that a model's step, which traces them anew, finds their own trace already made.
"""

import math
from collections.abc import Callable
from typing import NoReturn, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vijax.types import PyTree


def _shifted(x: Array, top: Array | None = None) -> tuple[Array, Array]:
    """Return top, by default max x over axis 0, and x - top made total: never nan for nan-free x."""
    if x.ndim == 0 or x.shape[0] == 0:
        raise ValueError(f"log-weights must have shape [k, *batch] with k >= 1, got {x.shape}.")
    if top is None:
        top = jnp.max(jax.lax.stop_gradient(x), 0)
    # A +inf row becomes the largest finite one, so that beside it finite rows count for nothing.
    # Written in the fewest operations, since every model's step lowers them anew.
    huge = jnp.asarray(jnp.finfo(x.dtype).max, x.dtype)
    finite = jax.lax.select(x == jnp.inf, jnp.full_like(x, huge), x)
    return top, finite - jax.lax.clamp(-huge, top, huge)[None]


def _possible(total: Array) -> Array:
    """Return a sum of weights, of which the largest is one, with one where all are impossible.

    Not the smallest number: its reciprocal, times a cotangent, is infinite, and times their share of 0 nan.
    """
    return jnp.where(total == 0, jnp.ones_like(total), total)


def _weighted(x: Array, weights: Array) -> tuple[Array, Array, Array]:
    """Return weights [k, *batch], the largest row of any weight, and exp(x - top), finite in rows
    of none.

    Those do not set the scale, but the slope at a weight of 0 is their exponential, so it stays.
    """
    w = jnp.broadcast_to(expand(weights, x), x.shape)
    none = w == 0
    top = _shifted(jnp.where(none, -jnp.inf, x))[0]
    ceiling = math.log(float(jnp.finfo(x.dtype).max)) - 8  # room for a division
    u = _shifted(jnp.where(none & jnp.isnan(x), -jnp.inf, x), top)[1]
    return w, top, jnp.exp(jnp.where(none, jnp.minimum(u, ceiling), u))


@jax.jit
def log_mean_exp(
    x: Float[Array, "k *batch"], *, weights: Array | None = None
) -> Float[Array, "*batch"]:
    """Log of the weighted mean of exp(x) over axis 0, total in value and in gradient.

        log Σₖ weightsₖ exp(xₖ)

    Unlike `jax.nn.logsumexp` it has a finite gradient everywhere: a -inf row gets 0, all rows -inf give -inf with
    gradient 0, a +inf row gives +inf with gradient 0; nan stays nan. A row of weight 0 adds nothing, and the slope
    in its weight is exp(xₖ) / Σ weights exp(x).

    Args:
        x: log-weights in nats, [k, *batch].
        weights: [k] or [k, *batch], summing to 1 over axis 0; 1/k where None.

    Returns:
        [*batch], in nats.

    Raises:
        ValueError: where k = 0.

    Example:
        >>> round(float(log_mean_exp(jnp.log(jnp.array([1.0, 3.0])))), 3)  # log 2
        0.693
    """
    if weights is None:
        top, u = _shifted(x)
        # The sum is 1 or more, which does not feel this; or 0, when it must not reach the logarithm.
        total = jax.lax.max(jnp.sum(jnp.exp(u), 0), jnp.asarray(0.5, x.dtype))
        return jnp.log(total) + (top - math.log(x.shape[0]))
    # Σₖ weightsₖ exp(xₖ - top), 0 where no row of any weight is possible.
    w, top, each = _weighted(x, weights)
    return jnp.log(_possible(jnp.sum(w * each, 0))) + top


@jax.jit
def normalized_weights(
    x: Float[Array, "k *batch"], *, weights: Array | None = None
) -> Float[Array, "k *batch"]:
    """Self-normalized weights, exp(x) / Σ exp(x) over axis 0; all zero where every row is -inf.

    Args:
        x: log-weights in nats, [k, *batch].
        weights: [k] or [k, *batch], summing to 1 over axis 0; 1/k where None.

    Returns:
        [k, *batch], summing to 1 over axis 0 where any row is possible.

    Example:
        >>> normalized_weights(jnp.log(jnp.array([1.0, 3.0]))).round(2).tolist()
        [0.25, 0.75]
    """
    if weights is None:
        w = jnp.exp(_shifted(x)[1])
    else:
        w, _, each = _weighted(x, weights)
        w = w * each
    return w / _possible(jnp.sum(w, 0))[None]


@jax.jit
def log_normalized(x: Float[Array, "k *batch"]) -> Float[Array, "k *batch"]:
    """Log of the self-normalized weights, x - log Σ exp(x) over axis 0, without their underflow;
    total.

    Where the sum is 0 or infinite, the rows that reach the maximum share alike, with gradient 0: of what is impossible
    altogether one row is as likely as another.

    Args:
        x: log-weights in nats, [k, *batch].

    Returns:
        [k, *batch], whose exponentials sum to 1 over axis 0.
    """
    # Rows of the maximum: log of an equal share each, where the sum is 0 or infinite.
    top, u = _shifted(x)
    best = (x == top[None]).astype(x.dtype)
    shared = jnp.where(best > 0, -jnp.log(jnp.maximum(jnp.sum(best, 0), 1))[None], -jnp.inf)
    return jnp.where(
        jnp.isinf(top)[None], shared, u - jnp.log(_possible(jnp.sum(jnp.exp(u), 0)))[None]
    )


@jax.jit
def leave_one_out_mean(x: Float[Array, "k *batch"]) -> Float[Array, "k *batch"]:
    """Mean of the other rows, for each row; infinite only where another row is. Costs O(k)."""
    k = _at_least_two(x)
    finite = jnp.where(jnp.isinf(x), 0.0, x)
    others = (jnp.sum(finite, 0)[None] - finite) / (k - 1)
    # An infinite row makes the mean of all others infinite, and not its own.
    low, high = ((x == end).astype(jnp.int32) for end in (-jnp.inf, jnp.inf))

    def elsewhere(mark: Array) -> Array:
        return jnp.sum(mark, 0)[None] > mark

    return jnp.where(elsewhere(low), -jnp.inf, jnp.where(elsewhere(high), jnp.inf, others))


@jax.jit
def leave_one_out_log_mean_exp(x: Float[Array, "k *batch"]) -> Float[Array, "k *batch"]:
    """Log-mean-exp of the other rows, for each row, in O(k) and without cancellation.

    Only the largest row can cancel when it is taken from the sum, so that row alone is summed afresh without it.
    """
    k = _at_least_two(x)
    top, u = _shifted(x)
    w = jnp.exp(u)
    # [k, *batch]: one row for each member, though several may be equal.
    is_top = jnp.arange(k).reshape((k,) + (1,) * (x.ndim - 1)) == jnp.argmax(x, 0)[None]
    without_top = log_mean_exp(jnp.where(is_top, -jnp.inf, x)) + math.log(k / (k - 1))
    # Σ without row k; at least the largest term, 1, is left in it.
    rest = jnp.where(is_top, 1.0, jnp.sum(w, 0)[None] - w)
    log_rest = jnp.where(rest > 0, jnp.log(jnp.where(rest > 0, rest, 1.0)), -jnp.inf)
    others = jnp.where(jnp.isfinite(top), top, 0.0)[None] + log_rest - math.log(k - 1)
    # A +inf row makes every sum that holds it +inf.
    others = jnp.where((top == jnp.inf)[None], jnp.inf, others)
    return jnp.where(is_top, without_top[None], others)


def _at_least_two(x: Array) -> int:
    if x.ndim == 0 or x.shape[0] < 2:
        raise ValueError(
            f"leaving one draw out needs at least two: log-weights have shape {x.shape}."
        )
    return int(x.shape[0])


def comparable(value: Float[Array, " runs"], error: Float[Array, " runs"]) -> tuple[Array, Array]:
    """Return the best of some runs by their bound, and which are not worse by far: nor nan.

        value_best - value_i ≤ 10 nats + 4 (error² + error_best²)^½

    A mode of a bound 10 nats lower has e⁻¹⁰ of the mass.

    Args:
        value: bounds in nats.
        error: their standard errors.

    Returns:
        The index of the best, (), and bool [runs].
    """
    value = jnp.where(jnp.isnan(value), -jnp.inf, value)
    error = jnp.where(jnp.isnan(error), jnp.inf, error)  # not known to be worse
    best = jnp.argmax(value)
    near = (value > -jnp.inf) & (value >= value[best] - 10.0 - 4.0 * jnp.hypot(error, error[best]))
    return best, near.at[best].set(True)


def expand(factor: Array, like: Array) -> Array:
    """Give `factor` trailing axes until it has the rank of `like`."""
    return jnp.reshape(factor, jnp.shape(factor) + (1,) * (jnp.ndim(like) - jnp.ndim(factor)))


def beside(value: Array, other: Array) -> Array:
    """Return a value that has the axes of jax.vmap that another one has.

    Every custom_jvp function needs it whose tangent depends on more than its value does. Where a vmap
    goes through jit, scan or checkpoint JAX 0.10 to 0.12 takes the tangent to have the axes of the
    value, so that the gradient is an error of shapes, or in silence as many times too large as the
    axis is long.
    """
    # A select whose condition is always true keeps the value, and depends on both.
    other = jnp.broadcast_to(jax.lax.stop_gradient(other).astype(value.dtype), value.shape)
    return jax.lax.select(jnp.ones(value.shape, bool), value, other)


def scale_gradient(z: PyTree, factor: Array) -> PyTree:
    """Return z unchanged, with its derivative multiplied by `factor`, which itself is not
    differentiated.

    Args:
        z: a pytree with leaves [*f, ...].
        factor: [*f], the shape that every leaf begins with.
    """
    return _scale_gradient(jax.tree.map(lambda a: beside(a, expand(factor, a)), z), factor)


@jax.custom_jvp
def _scale_gradient(z: PyTree, factor: Array) -> PyTree:
    return z


@_scale_gradient.defjvp
def _scale_gradient_jvp(
    primals: tuple[PyTree, Array], tangents: tuple[PyTree, PyTree]
) -> tuple[PyTree, PyTree]:
    (z, factor), (dz, _) = primals, tangents

    def scale(t: Array | np.ndarray) -> Array | np.ndarray:
        # Integer leaves have tangents of float0, which cannot be multiplied.
        none = t.dtype == jax.dtypes.float0
        return t if none else (t * expand(factor, cast(Array, t))).astype(t.dtype)

    return z, jax.tree.map(scale, dz)


def with_score(value: Array, score: Array) -> Array:
    """Return `value` with the derivatives of `score`, of any order: one number from a safe and a
    differentiable side.

    It replaces `stop(value) + score - stop(score)`, which is nan where score is infinite.
    """
    return _with_score(beside(value, score), score)


@jax.custom_jvp
def _with_score(value: Array, score: Array) -> Array:
    return value


@_with_score.defjvp
def _with_score_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    value, score = primals
    change = jnp.broadcast_to(tangents[1], jnp.shape(value)).astype(value.dtype)
    # The primal result is made by itself again: a stopped value here would be stopped in every second derivative.
    return _with_score(value, score), change


def once_differentiable(value: Array, refusal: Callable[[], Exception]) -> Array:
    """Return `value` with its first derivative, of which a second one is refused while it is
    traced.

    Args:
        value: an array, of any shape.
        refusal: what is raised.
    """

    @jax.custom_jvp
    def factor(_: Array) -> Array:
        return jnp.ones((), value.dtype)

    @factor.defjvp
    def refuse(primals: PyTree, tangents: PyTree) -> NoReturn:
        raise refusal()

    @jax.custom_jvp
    def same(value: Array) -> Array:
        return value

    @same.defjvp
    def once(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
        # The factor of 1 depends on the value in name, so that whoever differentiates the derivative meets `refuse`.
        return same(*primals), tangents[0] * factor(*primals)

    return same(value)
