"""What local expectations and measure-valued gradients share: draws of which one coordinate is replaced."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vijax import engine
from vijax.gradients._score import own_weights
from vijax.numerics import with_score
from vijax.types import PyTree


def each_coordinate(event: tuple[int, ...], batch: int) -> Array:
    """Return masks [d, *1s of batch, *event], each of one coordinate."""
    d = math.prod(event)
    return jnp.eye(d, dtype=bool).reshape((d,) + (1,) * batch + event)


def coordinates_first(x: Array, batch: int) -> Array:
    """Turn [*batch, *event] into [d, *batch]."""
    return jnp.moveaxis(x.reshape(*x.shape[:batch], -1), -1, 0)


def swaps(request: engine.Request, z: PyTree, log_q: Array, seeds: engine.Plan) -> Array:
    """Return the log-weights, stopped, of draws with leading axes [k, m]."""
    k, m = log_q.shape[:2]

    def flat(x: Array) -> Array:
        return x.reshape(k * m, *x.shape[2:])

    # The noise of the model is the draw's own for all of its m changes.
    keys = None if seeds.model is None else jnp.repeat(seeds.model, m)
    log_p, _ = request.evaluate(jax.tree.map(flat, z), flat(log_q), engine.Plan(seeds.draw, keys))
    return jax.lax.stop_gradient(log_p.reshape(log_q.shape) - log_q)


def changes(request: engine.Request, log_w: Array, swapped: Array) -> Array:
    """Return how the bound changes when draw k's log-weight becomes each of swapped [k, m, *batch]; stopped."""
    bound, log_w = request.bound, jax.lax.stop_gradient(log_w)
    weights, terms = own_weights(bound, request.forms, log_w), request.forms.terms
    # A sum of terms changes by that of draw k alone; any other bound is evaluated anew.
    if weights is not None:
        term = (lambda x: x) if terms is None else terms
        after, before = jax.vmap(term, 1, 1)(swapped), term(log_w)[:, None]
        change = weights[:, None] * (after - before)
    else:
        own = bound(log_w)[None]

        def of_draw(k: Array) -> Array:
            return jax.vmap(lambda w: bound(log_w.at[k].set(w)))(swapped[k]) - own

        # Draw by draw, [m, *batch] each: all at once would be k times as much memory.
        change = jax.lax.map(of_draw, jnp.arange(log_w.shape[0]))
    # An infinite change says nothing of where to go.
    return jnp.where(jnp.isfinite(change), change, 0.0)


def scored(request: engine.Request, log_p: Array, log_q: Array, along: Array) -> Array:
    """Return the bound with the derivative of `along` added; a mean drops the score of q, of mean zero."""
    bound = request.bound
    value = bound(log_p - log_q)
    if request.is_mean:
        return with_score(value, bound(log_p - jax.lax.stop_gradient(log_q)) + along)
    return with_score(value, value + along)
