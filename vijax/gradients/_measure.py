"""Measure-valued gradients: a density's derivative as the difference of two densities, each drawn from."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm
from jaxtyping import Array, Key

from vijax import draws, engine, jaxprs
from vijax.gradients._swaps import changes, coordinates_first, each_coordinate, scored, swaps
from vijax.types import Bound, Distribution, Objective


@engine.taking("measure_valued")
def measure_valued(bound: Bound) -> Objective:
    """Measure-valued gradient of any bound for Gaussian latents: unbiased, with no derivative of
    the model in z.

        ∇μ = E[B(μ + σW) - B(μ - σW)] / (σ √2π),   W ~ Rayleigh
        ∇σ = E[B(μ + σM) - B(μ + σε)] / σ,         M ~ double-sided Maxwell, ε ~ N(0, 1)

    When log_joint jumps in z, where `score` varies far more.

    Args:
        bound: of `vijax.bounds`, or any log_w [k, *batch] -> [*batch].

    Returns:
        An Objective (`types.Objective`), value [*batch] in nats. q shows
        its means and scales as q.loc and q.scale, of independent latents. A draw of d latents takes
        1 + 3d evaluations of the model, each coordinate in turn with the others as drawn. Second
        derivatives are refused.

    Raises:
        ValueError: (when called) for a q of other kinds or whose latents depend on each other, members of the batch
            that log_joint couples, or shapes that do not agree.

    Example:
        >>> q = distrax.Normal(0.0, 1.0)  # the posterior, of evidence e³
        >>> log_joint, objective = lambda z: q.log_prob(z) + 3.0, measure_valued(vj.bounds.elbo)
        >>> value = jax.jit(lambda key: objective(key, log_joint, q, num_samples=4).value)
        >>> round(float(value(jax.random.key(0))), 3)
        3.0

    Reference: Mohamed, Rosca, Figurnov, Mnih, Monte Carlo gradient estimation in machine learning, 2020,
        arXiv:1906.10652; Rosca, Figurnov, Mohamed, Mnih, Measure-valued derivatives for approximate Bayesian
        inference, 2019.
    """
    return engine.make_objective(
        "measure_valued",
        bound,
        draws.iid,
        engine.Estimator(engine.Needs(members=True), _measure_valued),
    )


def _measure_valued(request: engine.Request) -> engine.Strategy:
    means, scales, tree, batch = _normals(request.q, request.key)
    # A Python number may come back from JAX as a typed literal, which has no shape.
    stopped = jax.tree.map(jnp.asarray, jax.lax.stop_gradient((means, scales)))

    def to_z(leaves: list[Array]) -> Any:
        return jax.tree.unflatten(tree, leaves)

    def log_q_of(leaves: list[Array], means: list[Array], scales: list[Array]) -> Array:
        terms = [norm.logpdf(*t) for t in zip(leaves, means, scales, strict=True)]
        return sum((jnp.sum(t, range(batch, t.ndim)) for t in terms), jnp.asarray(0.0))

    def evaluate(seeds: engine.Plan) -> engine.Evaluated:
        own, others = jax.vmap(lambda key: _draw_and_swaps(key, stopped[0], stopped[1], batch))(
            seeds.draw
        )
        log_q = jax.vmap(lambda leaves: log_q_of(leaves, means, scales))(own)
        log_p, aux = request.evaluate(to_z(own), jax.lax.stop_gradient(log_q), seeds)
        log_q_others = jax.vmap(jax.vmap(lambda leaves: log_q_of(leaves, *stopped)))(others)
        swapped = swaps(request, to_z(others), log_q_others, seeds)
        return engine.Evaluated(log_p, log_q, to_z(own), aux, swapped)

    def value(log_p: Array, log_q: Array, swapped: Array) -> Array:
        log_w = log_p - log_q
        # [3 d, *batch], summed over draws; leaf by leaf, in three runs of its coordinates.
        change = jnp.sum(changes(request, log_w, swapped), 0)
        along, at = jnp.zeros(log_w.shape[1:], log_w.dtype), 0
        for mean, scale, fixed in zip(means, scales, stopped[1], strict=True):
            m, s, fixed = (coordinates_first(x, batch) for x in (mean, scale, fixed))
            right, left, far = jnp.split(change[at : at + 3 * len(m)], 3)
            # The two derivatives of the docstring, times the parameters that they are by.
            along += jnp.sum(
                (right - left) * m / (fixed * math.sqrt(2 * math.pi)) + far * s / fixed, 0
            )
            at += 3 * len(m)
        return scored(request, log_p, log_q, along)

    return engine.Strategy(evaluate, value)


def _draw_and_swaps(
    key: Key[Array, ""], means: list[Array], scales: list[Array], batch: int
) -> tuple[list[Array], list[Array]]:
    """Return one draw, and it with each coordinate in turn drawn from the three other densities, [3 d, ...]."""
    own, moved = [], []
    for k, m, s in zip(jax.random.split(key, len(means)), means, scales, strict=True):
        key_noise, key_width = jax.random.split(k)
        noise = jax.random.normal(key_noise, m.shape, m.dtype)
        width = 2 * jax.random.exponential(key_width, m.shape, m.dtype)
        own.append(m + s * noise)
        # W = √(2 E) is Rayleigh; with M² = ε² + W², and ε's sign, M is double-sided Maxwell.
        far = jnp.where(noise < 0, -1.0, 1.0) * jnp.sqrt(jnp.square(noise) + width)
        moved.append([m + s * jnp.sqrt(width), m - s * jnp.sqrt(width), m + s * far])
    # [3 d, *batch, *event] for every leaf: right, left and far of the first leaf, then the next.
    many = [_replaced(own, i, to, batch) for i, coordinate in enumerate(moved) for to in coordinate]
    return own, [jnp.concatenate(leaf) for leaf in zip(*many, strict=True)]


def _replaced(own: list[Array], i: int, to: Array, batch: int) -> list[Array]:
    """Return a draw, [d, ...], in which each coordinate of leaf i in turn is that of `to`."""
    many = jnp.where(each_coordinate(to.shape[batch:], batch), to[None], own[i][None])
    return [
        many if j == i else jnp.broadcast_to(x, many.shape[:1] + x.shape) for j, x in enumerate(own)
    ]


# Positive numbers stand for means and scales alike; far ones, at which a truncation shows.
SPELLINGS = ((lambda p: p, lambda p: 30 * p), (np.log, lambda p: 3 * p))


def _normals(
    q: Distribution, key: Key[Array, ""]
) -> tuple[list[Array], list[Array], jax.tree_util.PyTreeDef, int]:
    """Return the means and scales of q's leaves, once q.log_prob agrees with them, their tree and rank of batch."""
    shapes, log_q = jax.eval_shape(lambda k: q.sample_and_log_prob(seed=k, sample_shape=()), key)
    # Parts of q that show loc and scale, one for each leaf of a draw.
    leaves, tree = jax.tree.flatten(shapes)
    components = engine.parts(q, "measure_valued")
    known = len(components) == len(leaves)
    for part, leaf in zip(components, leaves, strict=False):
        known = (
            known and _location(part, leaf) is not None and leaf.shape[: log_q.ndim] == log_q.shape
        )

        def both(
            z: Array, part: Distribution = part, leaf: jax.ShapeDtypeStruct = leaf
        ) -> tuple[Array, Array]:
            return part.log_prob(z), norm.logpdf(z, *(_location(part, leaf) or ()))

        # log q must be the normal's near the middle and far out, at any parameters of that size.
        points = [np.full(leaf.shape, z, leaf.dtype) for z in (0.3, 40.0, -40.0)]
        known = known and jaxprs.misfit(both, points, SPELLINGS) <= 1
    if not known:
        raise ValueError(
            "measure_valued needs a q of independent normals that shows its means and scales as "
            "q.loc and q.scale (or a dict or tuple of such q), such as "
            "distrax.Independent(distrax.Normal(loc, scale), 1); "
            f"for Bernoullis use gradients.local_expectation, else {engine.CURE}."
        )
    means, scales = zip(
        *(_location(p, l) for p, l in zip(components, leaves, strict=True)), strict=True
    )
    return list(means), list(scales), tree, log_q.ndim


def _location(q: object, leaf: jax.ShapeDtypeStruct) -> tuple[Array, ...] | None:
    """Return (loc, scale) of the shape of a draw, also of the distribution inside a wrapper such as Independent."""
    loc = getattr(q, "loc", None)
    scale = getattr(q, "scale", None)
    if all(isinstance(a, (float, int, np.ndarray, np.generic, jax.Array)) for a in (loc, scale)):
        return tuple(jnp.broadcast_to(jnp.asarray(a, leaf.dtype), leaf.shape) for a in (loc, scale))
    inner = [getattr(q, name, None) for name in ("distribution", "base_dist", "adapted")]
    return next((_location(i, leaf) for i in inner if i is not None), None)
