"""Maps of unconstrained numbers onto vectors: ordered, positive and ordered, and simplexes."""

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid
from jaxtyping import Array

from vijax.numerics import with_score
from vijax.targets._range import exp_within_reach, last_axis, next_number, smallest
from vijax.trees import scan


def to_ordered(y: Array) -> tuple[Array, Array]:
    last_axis(y, "ordered")
    gaps, log_jacobian = exp_within_reach(y[..., 1:])
    z = jnp.cumsum(jnp.concatenate([y[..., :1], gaps], -1), -1)
    return with_score(rising(z), z), jnp.sum(log_jacobian, -1)


def rising(z: Array) -> Array:
    """Keep numbers a step apart: a gap may be below their spacing."""

    def above(last: Array, number: Array) -> tuple[Array, Array]:
        number = jnp.maximum(number, next_number(last))
        return number, number

    steps = jnp.moveaxis(jax.lax.stop_gradient(z), -1, 0)
    # In order: a number that is raised may raise the next.
    strict = jnp.concatenate([steps[:1], scan(above, steps[0], steps[1:])[1]])
    return jnp.moveaxis(strict, 0, -1)


def from_ordered(z: Array) -> Array:
    return jnp.concatenate([z[..., :1], jnp.log(jnp.diff(z, axis=-1))], -1)


def to_positive_ordered(y: Array) -> tuple[Array, Array]:
    last_axis(y, "positive_ordered")
    gaps, log_jacobian = exp_within_reach(y)
    z = jnp.cumsum(gaps, -1)
    return with_score(rising(z), z), jnp.sum(log_jacobian, -1)


def from_positive_ordered(z: Array) -> Array:
    return jnp.log(jnp.diff(z, axis=-1, prepend=0))


def log_positive_ordered(y: Array) -> Array:
    """Return log z."""
    return jax.lax.cumlogsumexp(y, axis=y.ndim - 1)


def from_log_positive_ordered(log: Array) -> Array:
    """Return y of log z."""
    return log + jnp.log(-jnp.expm1(-jnp.diff(log, axis=-1, prepend=-jnp.inf)))


def log_simplex(y: Array) -> tuple[Array, Array]:
    """Return log z, and the log of the share of the stick that each part leaves."""
    n = last_axis(y, "simplex")
    centered = y - _odds(n, y)
    log_broken, log_left = log_sigmoid(centered), log_sigmoid(-centered)
    none = jnp.zeros_like(y[..., :0], shape=(*y.shape[:-1], 1))
    # log of what is left of the stick before each break
    before = jnp.concatenate([none, jnp.cumsum(log_left, -1)], -1)
    return before + jnp.concatenate([log_broken, none], -1), log_left


def to_simplex(y: Array) -> tuple[Array, Array]:
    log_z, log_left = log_simplex(y)
    z = jnp.exp(log_z)
    inside = jax.lax.stop_gradient(inside_simplex(z))
    return with_score(inside, z), jnp.sum(log_z[..., :-1] + log_left, -1)


def inside_simplex(z: Array) -> Array:
    return jnp.clip(z, smallest(z, 1.0), 1 - jnp.finfo(z.dtype).epsneg)


def from_simplex(z: Array) -> Array:
    # Σ_{j>k} zⱼ, summed from the end, where the small numbers of a long simplex stand
    after = jnp.flip(jnp.cumsum(jnp.flip(z[..., 1:], -1), -1), -1)
    return jnp.log(z[..., :-1]) - jnp.log(after) + _odds(z.shape[-1] - 1, after)


def from_log_simplex(log: Array) -> Array:
    after = jax.lax.cumlogsumexp(log[..., 1:], axis=log.ndim - 1, reverse=True)
    return log[..., :-1] - after + _odds(log.shape[-1] - 1, after)


def _odds(n: int, like: Array) -> Array:
    # log (K - k), so that y = 0 takes a share of 1/(K - k + 1) and gives equal parts
    return jnp.broadcast_to(jnp.log(jnp.arange(n, 0, -1, dtype=like.dtype)), like.shape)
