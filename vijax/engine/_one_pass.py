"""A power mean of weights and its gradient in one pass over chunks of draws."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vijax.engine._chunks import first_chunk, split_rows
from vijax.jaxprs import bare, hoist, totals
from vijax.numerics import expand
from vijax.trees import mesh_axes, scan
from vijax.types import PyTree

Parameters = list[Array]
Sample = Callable[[PyTree], tuple[PyTree, Array]]
Weigh = Callable[[PyTree, Array, PyTree], tuple[tuple[Array, Array], PyTree]]


class Sums(NamedTuple):
    """What is gathered on the way: sums of wₖⁿ and of gradients, in units of exp(top).

    Fields:
        top: the largest n log w so far, ().
        total: Σ vₖ with vₖ = exp(n log wₖ - top), ().
        plain: Σ vₖ ∂log wₖ/∂θ, like the parameters of `weigh`.
        path: Σ vₖ ∂log wₖ/∂zₖ ∂zₖ/∂φ, like the parameters of `sample`.
        squared: Σ vₖ² ∂log wₖ/∂zₖ ∂zₖ/∂φ, in units of exp(2 top).
    """

    top: Array
    total: Array
    plain: PyTree
    path: PyTree
    squared: PyTree


def one_pass(
    sample: Sample,
    weigh: Weigh,
    seeds: PyTree,
    chunk_size: int,
    *,
    power: float,
    path: tuple[float, float],
) -> tuple[Array, tuple[Array, Array], PyTree] | None:
    """A power mean of weights and its gradient in one pass over chunks, gathered as softmax is online.

        B = 1/n log 1/K Σₖ wₖⁿ,     ∇B = Σₖ vₖ ∂log wₖ + Σₖ (a vₖ + b vₖ²) ∂log wₖ/∂zₖ ∂zₖ
        vₖ = wₖⁿ / Σⱼ wⱼⁿ

    For a batch of one member, whose sums are rescaled whenever a larger weight comes. Each draw is
    evaluated once, where `chunked` evaluates once more. Reverse mode only.

    Args:
        sample: seeds with a leading axis -> (z, log_q) with that axis; what it closes over gets the
            path's gradient.
        weigh: (z, log_q, seeds) -> ((log_p, log_q), aux); what it closes over gets the plain
            gradient.
        seeds: a pytree with leading axis k.
        chunk_size: the most rows in memory at a time.
        power: n; at 0 the mean of log w.
        path: a and b.

    Returns:
        A scalar of no value whose derivative is ∇B, (log_p, log_q) [k, *batch], and aux; None inside
        shard_map where devices share parameters. Several members have no common scale, and an outer
        vmap keeps one gradient for each of its members.

    Example:
        >>> sample = lambda seeds: (seeds, jnp.zeros((len(seeds), 1)))
        >>> def score(slope):  # log w = slope z of four draws z = 1, two at a time
        ...     weigh = lambda z, log_q, seeds: ((slope * z, log_q), None)
        ...     return one_pass(sample, weigh, jnp.ones((4, 1)), 2, power=1.0, path=(1.0, 0.0))[0]
        >>> float(jax.grad(score)(jnp.array(2.0)))
        1.0

    Reference: Milakov, Gimelshein, Online normalizer calculation for softmax, 2018,
        arXiv:1805.02867.
    """
    padded, k, chunks, rows = split_rows(seeds, chunk_size)
    first = first_chunk(padded)
    # What `sample` and `weigh` close over becomes arguments: phi and theta are differentiated.
    hoisted_sample, phi, sample_others, drawn = hoist(sample, first)
    hoisted_weigh, theta, weigh_others, (densities, _) = hoist(weigh, *drawn, first)
    # Parameters that devices of a shard_map share have the gradients of several members.
    axes = mesh_axes(densities)
    if any(axes - mesh_axes(p) for p in (*phi, *theta)):
        return None
    numbers, wrap = bare(padded)

    def evaluate(phi: Parameters, theta: Parameters, others: PyTree, seeds: PyTree) -> PyTree:
        """Return the log-densities of a chunk, aux, and the pullbacks of its draws and weights."""
        # Two pullbacks, so that the path's share can be weighed before it goes through q's draws.
        (z, log_q), pull_draws = jax.vjp(lambda p: hoisted_sample(p, others[0], wrap(seeds)), phi)
        log_densities, pull_weights, aux = jax.vjp(
            lambda p, z, log_q: hoisted_weigh(p, others[1], z, log_q, wrap(seeds)),
            theta,
            z,
            log_q,
            has_aux=True,
        )
        return log_densities, aux, pull_draws, pull_weights

    def result(log_densities: tuple[Array, Array], aux: PyTree) -> PyTree:
        # [chunks, rows, ...] to [k, ...], without what fills the last chunk.
        def all_rows(y: Array) -> Array:
            return y.reshape(chunks * rows, *y.shape[2:])[:k]

        (log_p, log_q), aux = jax.tree.map(all_rows, (log_densities, aux))
        # Under an outer vmap the scalar must belong to each member, as all it is made of does.
        zero = jnp.max(jnp.where(jnp.isnan(log_p + log_q), 0.0, 0.0))
        return zero, (log_p, log_q), aux

    @jax.custom_vjp
    def run(phi: Parameters, theta: Parameters, others: PyTree, seeds: PyTree) -> PyTree:
        def one_chunk(_: None, seeds: PyTree) -> tuple[None, PyTree]:
            return None, evaluate(phi, theta, others, seeds)[:2]

        return result(*jax.lax.scan(one_chunk, None, seeds)[1])

    def forward(phi: Parameters, theta: Parameters, others: PyTree, seeds: PyTree) -> PyTree:
        def one_chunk(sums: Sums, chunk: tuple[Array, PyTree]) -> tuple[Sums, PyTree]:
            is_draw, seeds = chunk
            log_densities, aux, pull_draws, pull_weights = evaluate(phi, theta, others, seeds)
            log_w = log_densities[0] - log_densities[1]
            # n log w; the rows that fill the last chunk have no weight.
            tilted = power * log_w if power else jnp.zeros_like(log_w)
            tilted = jnp.where(expand(is_draw, tilted), tilted, -jnp.inf)
            # Gradients are gathered while the chunk's activations are there, and then forgotten.
            sums = _gathered(
                sums, tilted, log_densities, pull_draws, pull_weights, squares=bool(path[1])
            )
            return sums, (log_densities, aux)

        dtype = jnp.result_type(jnp.float32, *(density.dtype for density in densities))
        # The smallest number rather than -inf: differences of tops must not be nan.
        start = Sums(
            jnp.array(jnp.finfo(dtype).min),
            jnp.zeros((), dtype),
            totals(theta),
            totals(phi),
            totals(phi),
        )
        # [chunks, rows]: which rows are draws.
        is_draw = (jnp.arange(chunks * rows) < k).reshape(chunks, rows)
        sums, evaluated = scan(one_chunk, start, (is_draw, seeds))
        return result(*evaluated), _gradients(sums, phi, theta, path)

    def backward(gradients: PyTree, cotangents: PyTree) -> PyTree:
        # The gradient was computed on the way; the scalar's cotangent scales it.
        phi, theta = jax.tree.map(lambda g: g * cotangents[0].astype(g.dtype), gradients)
        return phi, theta, None, None

    run.defvjp(forward, backward)
    return run(phi, theta, (sample_others, weigh_others), numbers)


def _gathered(
    sums: Sums,
    tilted: Array,
    log_densities: tuple[Array, Array],
    pull_draws: Callable[..., tuple[PyTree]],
    pull_weights: Callable[..., tuple[PyTree, PyTree, Array]],
    *,
    squares: bool,
) -> Sums:
    """Add a chunk to the sums; `tilted` is n log w, -inf for rows that fill the last chunk."""
    log_p, log_q = log_densities
    largest = jnp.finfo(tilted.dtype).max
    top = jnp.maximum(sums.top, jnp.clip(jnp.max(tilted), max=largest))
    # What was gathered is in units of the old top.
    shrink = jnp.exp(sums.top - top)
    # A weight of +inf has, as in log_mean_exp, an infinite value and no slope.
    v = jnp.where(jnp.isposinf(tilted), 0.0, jnp.exp(tilted - top))
    # Σ vₖ ∂log wₖ by theta; by each draw and its log q it is vₖ ∂log wₖ.
    of_model, of_draw, of_density = pull_weights((v.astype(log_p.dtype), -v.astype(log_q.dtype)))

    def add(old: PyTree, new: PyTree, by: Array) -> PyTree:
        # What shrinks to nothing is dropped, also where it had overflowed.
        def leaf(old: Array, new: Array) -> Array:
            return jnp.where(by > 0, old * by.astype(old.dtype), 0.0) + new

        return jax.tree.map(leaf, old, new)

    def times_v(cotangent: Array) -> Array:
        return (cotangent * expand(v, cotangent)).astype(cotangent.dtype)

    # vₖ² needs a pullback of its own through q's draws, and only where b is not 0.
    squared = sums.squared
    if squares:
        by_squares = pull_draws(jax.tree.map(times_v, (of_draw, of_density)))[0]
        squared = add(squared, by_squares, shrink**2)
    return Sums(
        top,
        sums.total * shrink + jnp.sum(v),
        add(sums.plain, of_model, shrink),
        add(sums.path, pull_draws((of_draw, of_density))[0], shrink),
        squared,
    )


def _gradients(
    sums: Sums, phi: Parameters, theta: Parameters, path: tuple[float, float]
) -> tuple[Parameters, Parameters]:
    """Return the gradients of the power mean by the parameters of `sample` and of `weigh`."""
    a, b = path
    # 1 / Σ vₖ turns the sums into weighted means; where no draw is possible there is no gradient.
    share = 1 / jnp.where(sums.total == 0, jnp.inf, sums.total)

    def scaled(tree: PyTree, by: Array) -> PyTree:
        return jax.tree.map(lambda g: g * by.astype(g.dtype), tree)

    def as_parameters(gradient: PyTree, parameters: Parameters) -> PyTree:
        return jax.tree.map(lambda g, p: g.astype(p.dtype), gradient, parameters)

    # q's path: a Σ vₖ ∂zₖ + b Σ vₖ² ∂zₖ.
    along = jax.tree.map(jnp.add, scaled(sums.path, a * share), scaled(sums.squared, b * share**2))
    return as_parameters(along, phi), as_parameters(scaled(sums.plain, share), theta)
