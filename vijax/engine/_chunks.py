"""A map over draws whose memory does not grow with their number, forward or backward."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vijax.jaxprs import bare, hoist, totals
from vijax.trees import scan
from vijax.types import PyTree

Rows = tuple[tuple[Array, Array, PyTree], PyTree]
"""What some draws give: ((log_p, log_q, extra), aux), each with the draws' leading axis."""


def chunked(
    evaluate: Callable[[PyTree], Rows],
    seeds: PyTree,
    chunk_size: int,
    *,
    reply: Callable[[Array], Array] | None = None,
) -> Rows:
    """Evaluate draws in chunks, forward and backward.

        yₖ = evaluate(seedsₖ),     ȳ ↦ Σ_chunks (∂evaluate/∂θ)ᵀ ȳ_chunk

    The backward pass evaluates each chunk again: 4/3 of the FLOPs of keeping everything, and faster
    once k x batch outgrows the cache. Reverse mode only, as any custom_vjp.

    Args:
        evaluate: seeds with a leading axis -> ((log_p, log_q, extra), aux), each with that axis.
            What it closes over (parameters, data, keys, labels) is found and differentiated; `aux`
            is not.
        seeds: a pytree with leading axis k.
        chunk_size: the most rows in memory at a time.
        reply: log_w [k, *batch] -> the cotangent that `extra` gets whatever is done with it: what a
            draw must be told once the bound has read every weight.

    Returns:
        What `evaluate` gives, with leading axis k, whatever `chunk_size` is. One chunk is evaluated
        once.

    Example:
        >>> evaluate = lambda x: ((2 * x, jnp.zeros_like(x), None), None)
        >>> (log_p, _, _), _ = chunked(evaluate, jnp.arange(5.0), 2)
        >>> log_p.tolist()
        [0.0, 2.0, 4.0, 6.0, 8.0]

    Reference: Chen, Xu, Zhang, Guestrin, Training deep nets with sublinear memory cost, 2016,
        arXiv:1604.06174.
    """
    padded, k, chunks, rows = split_rows(seeds, chunk_size)

    # A custom_vjp differentiates its arguments alone, so all that is closed over becomes one.
    hoisted, parameters, others, shapes = hoist(evaluate, first_chunk(padded))
    hoisted_reply, reply_inputs = _hoist_reply(reply, shapes, k)
    numbers, wrap = bare(padded)

    def all_rows(tree: PyTree) -> PyTree:
        # [chunks, rows, ...] to [k, ...], without what fills the last chunk.
        return jax.tree.map(lambda y: y.reshape(chunks * rows, *y.shape[2:])[:k], tree)

    # Parameters are differentiated; the others (keys, labels) and the seeds are not.
    def one_chunk(parameters: list[Any], others: list[Any], seeds: PyTree) -> Rows:
        return _tied(hoisted(parameters, others, wrap(seeds)))

    @jax.custom_vjp
    def run(parameters: list[Any], others: list[Any], reply_inputs: PyTree, seeds: PyTree) -> Rows:
        return jax.lax.scan(lambda _, s: (None, one_chunk(parameters, others, s)), None, seeds)[1]

    def forward(
        parameters: list[Any], others: list[Any], reply_inputs: PyTree, seeds: PyTree
    ) -> tuple[Rows, PyTree]:
        if chunks > 1:
            # Only the log-densities are kept, and what evaluates each chunk again.
            result = run(parameters, others, reply_inputs, seeds)
            return result, (result[0][:2], (parameters, others, seeds), reply_inputs)
        # One chunk: keep its pullback, so that it is evaluated once.
        evaluated: Any = jax.vjp(
            lambda p: one_chunk(p, others, first_chunk(seeds)), parameters, has_aux=True
        )
        log_densities, pull, aux = evaluated
        result = jax.tree.map(lambda y: y[None], (log_densities, aux))
        return result, (result[0][:2], pull, reply_inputs)

    def backward(saved: PyTree, cotangents: PyTree) -> tuple[PyTree, None, None, None]:
        log_densities, again, reply_inputs = saved
        cotangent, _ = cotangents
        if hoisted_reply is not None:
            # The bound has read every weight by now, and its answer to each draw is the cotangent of `extra`.
            log_p, log_q = all_rows(log_densities)
            told = hoisted_reply(*reply_inputs, log_p - log_q)
            cotangent = (*cotangent[:2], _in_chunks(told, cotangent[2], k))
        # `again` is the pullback of the one chunk, or what evaluates each of several once more.
        if chunks == 1:
            return again(first_chunk(cotangent))[0], None, None, None
        gradient = _sum_over_chunks(one_chunk, again, cotangent)
        return gradient, None, None, None

    run.defvjp(forward, backward)
    return all_rows(run(parameters, others, reply_inputs, numbers))


def split_rows(seeds: PyTree, chunk_size: int) -> tuple[PyTree, int, int, int]:
    """Return seeds as [chunks, rows, ...], with k, chunks and rows.

    The last chunk is filled with the last draw again: its rows are to be cut off, or given no weight.
    """
    # Equal chunks: 10 rows at most 4 at a time are 4 + 4 + 2, taken as 3 chunks of 4.
    k = jax.tree.leaves(seeds)[0].shape[0]
    chunks = math.ceil(k / chunk_size)
    rows = math.ceil(k / chunks)
    # Rows that fill the last chunk are its last draw again.
    fill = jnp.minimum(jnp.arange(chunks * rows), k - 1)
    cut = jax.tree.map(lambda s: s[fill].reshape(chunks, rows, *s.shape[1:]), seeds)
    return cut, k, chunks, rows


def first_chunk(tree: PyTree) -> PyTree:
    """Return the first row of every leaf."""
    return jax.tree.map(lambda leaf: leaf[0], tree)


def _hoist_reply(
    reply: Callable[[Array], Array] | None, shapes: PyTree, k: int
) -> tuple[Any, PyTree]:
    """Return the reply as a function of what it closes over and log_w, and what it closes over."""
    if reply is None:
        return None, None
    (log_p, log_q, _), _ = shapes
    # The reply is traced for all k log-weights at once, [k, *batch], where shapes are those of a chunk.
    log_w = lambda p, q: jnp.broadcast_to((p - q)[:1], (k, *q.shape[1:]))  # noqa: E731
    column = jax.eval_shape(log_w, log_p, log_q)
    hoisted, parameters, others, _ = hoist(reply, column)
    return hoisted, (parameters, others)


def _in_chunks(values: Array, like: Array, k: int) -> Array:
    """Return values [k, *batch] in the shape [chunks, rows, *batch] and dtype of `like`; the rest is 0."""
    chunks, rows = like.shape[:2]
    # Rows that fill the last chunk have no cotangent.
    padding = [(0, chunks * rows - k)] + [(0, 0)] * (values.ndim - 1)
    return jnp.pad(values, padding).astype(like.dtype).reshape(chunks, rows, *values.shape[1:])


def _sum_over_chunks(
    one_chunk: Callable[..., Rows],
    inputs: tuple[list[Any], list[Any], PyTree],
    cotangents: PyTree,
) -> list[Any]:
    """Evaluate each chunk again, pull its cotangents, and sum the gradients inside one scan."""
    parameters, others, seeds = inputs

    def add_chunk(total: list[Any], chunk: tuple[PyTree, PyTree]) -> tuple[list[Any], None]:
        # Activations of one chunk live only within this step.
        seeds, cotangent = chunk
        _, pull, _ = jax.vjp(lambda p: one_chunk(p, others, seeds), parameters, has_aux=True)
        return jax.tree.map(lambda t, g: t + g.astype(t.dtype), total, pull(cotangent)[0]), None

    # Summed in float32 at least, and returned in the parameters' own dtypes.
    total, _ = scan(add_chunk, totals(parameters), (seeds, cotangents))
    return jax.tree.map(lambda t, p: t.astype(p.dtype), total, parameters)


def _tied(result: Rows) -> Rows:
    """Make every output depend on the others, in nothing but name.

    Under an outer vmap an output that none of the batched inputs reaches would be shared by the
    whole batch, and so would its cotangent: each member must have its own.
    """
    (log_p, log_q, _), _ = result
    # A zero of log w's shape that XLA cannot know to be one.
    zero = jax.lax.stop_gradient(jnp.where(jnp.isnan(log_p + log_q), 0, 0))
    zero_of_all = jnp.max(zero, initial=0)

    def tie(y: Array) -> Array:
        # Keys and booleans carry no cotangent.
        if not jnp.issubdtype(y.dtype, jnp.number):
            return y
        return y + (zero if y.shape == zero.shape else zero_of_all).astype(y.dtype)

    return jax.tree.map(tie, result)
