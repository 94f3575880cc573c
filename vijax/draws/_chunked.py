"""A map over draws whose memory does not grow with their number, forward or backward."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vijax.draws._hoist import bare, hoist, totals
from vijax.types import PyTree

# What a look at some draws finds: ((log_p, log_q, extra), aux), each with the draws' leading axis.
Found = tuple[tuple[Array, Array, PyTree], PyTree]


def chunked(
    look: Callable[[PyTree], Found],
    seeds: PyTree,
    chunk_size: int,
    *,
    reply: Callable[[Array], Array] | None = None,
) -> Found:
    """Look at draws in chunks; the gradient is computed chunk by chunk while activations are in cache.

        yₖ = look(seedsₖ),     ȳ ↦ Σ_chunks (∂look/∂θ)ᵀ ȳ_chunk

    The backward pass looks at each chunk again and pulls its cotangents at once, inside one scan: 4/3 of the FLOPs of
    keeping everything, and faster once k x batch outgrows the cache. One chunk is looked at once. Results do not
    depend on `chunk_size`. Reverse mode only, as any custom_vjp.

    Args:
        look: seeds with a leading axis -> ((log_p, log_q, extra), aux), each with that axis. What it closes over
            (parameters, data, keys, labels) is found and differentiated; `aux` is not.
        seeds: a pytree with leading axis k.
        chunk_size: the most rows in memory at a time.
        reply: log_w [k, *batch] -> the cotangent that `extra` gets whatever is done with it: what a draw must be told
            once the bound has seen every weight.

    Returns:
        What `look` finds, with leading axis k.

    Reference: Chen, Xu, Zhang, Guestrin, Training deep nets with sublinear memory cost, 2016, arXiv:1604.06174.
    """
    padded, k, chunks, rows = split_rows(seeds, chunk_size)

    looking, parameters, others, shape = hoist(look, jax.tree.map(lambda s: s[0], padded))
    replying, *beside, _ = (None, None) if reply is None else hoist(reply, _column(shape[0][0], shape[0][1], k))
    seeds, wrap = bare(padded)

    def all_rows(found: Any) -> Any:
        return jax.tree.map(lambda y: y.reshape(chunks * rows, *y.shape[2:])[:k], found)

    def chunk(parameters: list[Any], others: list[Any], seeds: PyTree) -> Found:
        return _tied(looking(parameters, others, wrap(seeds)))

    @jax.custom_vjp
    def run(parameters: list[Any], others: list[Any], beside: Any, seeds: PyTree) -> Found:
        return jax.lax.scan(lambda _, s: (None, chunk(parameters, others, s)), None, seeds)[1]

    def forward(parameters: list[Any], others: list[Any], beside: Any, seeds: PyTree) -> Any:
        if chunks > 1:
            out = run(parameters, others, beside, seeds)
            return out, (out[0][:2], (parameters, others, seeds), beside)
        found, pull, aux = jax.vjp(
            lambda p: chunk(p, others, jax.tree.map(lambda s: s[0], seeds)), parameters, has_aux=True
        )
        out = jax.tree.map(lambda y: y[None], (found, aux))
        return out, (out[0][:2], pull, beside)

    def backward(saved: Any, cotangents: Any) -> Any:
        seen, again, beside = saved
        cotangent, _ = cotangents
        if replying is not None:
            log_p, log_q = all_rows(seen)
            rest = jnp.pad(replying(*beside, log_p - log_q), [(0, chunks * rows - k)] + [(0, 0)] * (log_p.ndim - 1))
            rest = rest.astype(cotangent[2].dtype).reshape(chunks, rows, *rest.shape[1:])
            cotangent = (*cotangent[:2], rest)
        if chunks == 1:
            return again(jax.tree.map(lambda c: c[0], cotangent))[0], None, None, None
        parameters, others, seeds = again

        def body(total: list[Any], step: Any) -> Any:
            seed, cotangent = step
            _, pull, _ = jax.vjp(lambda p: chunk(p, others, seed), parameters, has_aux=True)
            return jax.tree.map(lambda t, g: t + g.astype(t.dtype), total, pull(cotangent)[0]), None

        total, _ = jax.lax.scan(body, totals(parameters), (seeds, cotangent))
        return jax.tree.map(lambda t, p: t.astype(p.dtype), total, parameters), None, None, None

    run.defvjp(forward, backward)
    return all_rows(run(parameters, others, beside, seeds))


def split_rows(seeds: PyTree, chunk_size: int) -> tuple[PyTree, int, int, int]:
    """Return seeds as [chunks, rows, ...], with k, chunks and rows.

    The last chunk is filled with the last draw again: its rows are to be cut off, or given no weight.
    """
    k = jax.tree.leaves(seeds)[0].shape[0]
    chunks = math.ceil(k / chunk_size)
    rows = math.ceil(k / chunks)
    fill = jnp.minimum(jnp.arange(chunks * rows), k - 1)
    return jax.tree.map(lambda s: s[fill].reshape(chunks, rows, *s.shape[1:]), seeds), k, chunks, rows


def _column(log_p: Any, log_q: Any, k: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((k, *log_q.shape[1:]), jnp.result_type(log_p.dtype, log_q.dtype))


def _tied(found: Any) -> Found:
    """Make every output depend on the others, in nothing but name.

    Under an outer vmap an output that none of the batched inputs reaches would be shared by the whole batch, and so
    would its cotangent: each member must have its own.
    """
    (log_p, log_q, _), _ = found
    none = jax.lax.stop_gradient(jnp.where(jnp.isnan(log_p + log_q), 0, 0))
    one = jnp.max(none, initial=0)
    tie = lambda y: y + (none if y.shape == none.shape else one).astype(y.dtype)  # noqa: E731
    number = lambda y: jnp.issubdtype(y.dtype, jnp.number)  # noqa: E731
    return jax.tree.map(lambda y: tie(y) if number(y) else y, found)
