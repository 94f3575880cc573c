"""A power mean of weights and its gradient in one pass over chunks of draws."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vijax.draws._chunked import split_rows
from vijax.draws._hoist import bare, hoist, totals
from vijax.numerics import expand
from vijax.types import PyTree


def online(
    sample: Callable[[PyTree], tuple[PyTree, Array]],
    weigh: Callable[[PyTree, Array, PyTree], tuple[tuple[Array, Array], PyTree]],
    seeds: PyTree,
    chunk_size: int,
    *,
    power: float,
    path: tuple[float, float],
) -> tuple[Array, tuple[Array, Array], PyTree]:
    """Weigh draws in chunks, and gather the gradient of their power mean on the way, as softmax is gathered online.

        B = 1/n log 1/K Σₖ wₖⁿ,     ∇B = Σₖ vₖ ∂log wₖ + Σₖ (a vₖ + b vₖ²) ∂log wₖ/∂zₖ ∂zₖ,     vₖ = wₖⁿ / Σⱼ wⱼⁿ

    For a batch of one member. Sums of gradients are rescaled whenever a larger weight comes, which works for one member
    alone: those of several have no common scale. Each draw is looked at once forward and once backward, where
    `chunked` looks once more forward. Reverse mode only; an outer vmap keeps one gradient for each of its members.

    Args:
        sample: seeds with a leading axis -> (z, log_q) with that axis; what it closes over gets the path's gradient.
        weigh: (z, log_q, seeds) -> ((log_p, log_q), aux); what it closes over gets the plain gradient.
        seeds: a pytree with leading axis k.
        chunk_size: the most rows in memory at a time.
        power: n; at 0 the mean of log w.
        path: a and b.

    Returns:
        A scalar of no value whose derivative is ∇B, (log_p, log_q) [k, *batch], and aux.

    Reference: Milakov, Gimelshein, Online normalizer calculation for softmax, 2018, arXiv:1805.02867.
    """
    padded, k, chunks, rows = split_rows(seeds, chunk_size)
    first = jax.tree.map(lambda s: s[0], padded)
    sampling, phi, sample_others, drawn = hoist(sample, first)
    weighing, theta, weigh_others, (weighed, _) = hoist(weigh, *drawn, first)
    numbers, wrap = bare(padded)
    a, b = path

    def look(phi: Any, theta: Any, others: Any, seeds: PyTree) -> Any:
        (z, log_q), pull_draws = jax.vjp(lambda p: sampling(p, others[0], wrap(seeds)), phi)
        seen, pull_model, aux = jax.vjp(
            lambda p, z, log_q: weighing(p, others[1], z, log_q, wrap(seeds)), theta, z, log_q, has_aux=True
        )
        return seen, aux, pull_draws, pull_model

    def finish(seen: Any, aux: Any) -> Any:
        every = lambda y: y.reshape(chunks * rows, *y.shape[2:])[:k]  # noqa: E731
        (log_p, log_q), aux = jax.tree.map(every, (seen, aux))
        # Under an outer vmap the scalar must belong to each member, as all it is made of does.
        return jnp.max(jnp.where(jnp.isnan(log_p + log_q), 0.0, 0.0)), (log_p, log_q), aux

    @jax.custom_vjp
    def run(phi: Any, theta: Any, others: Any, seeds: PyTree) -> Any:
        return finish(*jax.lax.scan(lambda _, s: (None, look(phi, theta, others, s)[:2]), None, seeds)[1])

    def forward(phi: Any, theta: Any, others: Any, seeds: PyTree) -> Any:
        def body(carry: Any, step: Any) -> Any:
            top, total, plain, path, squared = carry
            real, seeds = step
            (log_p, log_q), aux, pull_draws, pull_model = look(phi, theta, others, seeds)
            x = power * (log_p - log_q) if power else jnp.zeros_like(log_p - log_q)
            x = jnp.where(expand(real, x), x, -jnp.inf)
            new = jnp.maximum(top, jnp.clip(jnp.max(x), max=jnp.finfo(x.dtype).max))
            # A weight of +inf has, as in log_mean_exp, an infinite value and no slope.
            shrink, v = jnp.exp(top - new), jnp.where(jnp.isposinf(x), 0.0, jnp.exp(x - new))
            of_model, of_draw, of_density = pull_model((v.astype(log_p.dtype), -v.astype(log_q.dtype)))

            # What shrinks to nothing is dropped, also where it had overflowed.
            def add(old: Any, more: Any, by: Array) -> Any:
                return jax.tree.map(lambda o, m: jnp.where(by > 0, o * by.astype(o.dtype), 0.0) + m, old, more)

            plain, path = add(plain, of_model, shrink), add(path, pull_draws((of_draw, of_density))[0], shrink)
            if b:
                weighted = lambda d: (d * expand(v, d)).astype(d.dtype)  # noqa: E731
                squared = add(squared, pull_draws(jax.tree.map(weighted, (of_draw, of_density)))[0], shrink**2)
            return (new, total * shrink + jnp.sum(v), plain, path, squared), ((log_p, log_q), aux)

        dtype = jnp.result_type(jnp.float32, *(density.dtype for density in weighed))
        start = jnp.array(jnp.finfo(dtype).min), jnp.zeros((), dtype), *map(totals, (theta, phi, phi))
        real = (jnp.arange(chunks * rows) < k).reshape(chunks, rows)
        sums: Any
        sums, found = jax.lax.scan(body, start, (real, seeds))
        _, total, plain, path, squared = sums
        one = 1 / jnp.where(total == 0, jnp.inf, total)
        scaled = lambda tree, by: jax.tree.map(lambda g: g * by.astype(g.dtype), tree)  # noqa: E731
        path = jax.tree.map(jnp.add, scaled(path, a * one), scaled(squared, b * one**2))
        like = lambda g, p: g.astype(p.dtype)  # noqa: E731
        return finish(*found), (jax.tree.map(like, path, phi), jax.tree.map(like, scaled(plain, one), theta))

    def backward(gradients: Any, cotangents: Any) -> Any:
        phi, theta = jax.tree.map(lambda g: g * cotangents[0].astype(g.dtype), gradients)
        return phi, theta, None, None

    run.defvjp(forward, backward)
    return run(phi, theta, (sample_others, weigh_others), numbers)
