"""Sums in place of draws: what is cheap to enumerate is summed exactly, and only the rest is drawn."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vijax import draws, engine
from vijax.gradients._relaxed import hardest
from vijax.gradients._score import own_weights
from vijax.numerics import with_score
from vijax.types import Bound, Draw, Objective


@engine.taking("local_expectation")
def local_expectation(bound: Bound) -> Objective:
    """Local-expectation gradient of any bound: unbiased, every discrete latent summed over its states, one at a time.

        ∇φ = E[Σₖ Σᵢ Σ_s ∇φ qᵢ(s) B(log w with zₖᵢ := s)] + E[Σₖ B'ₖ ∇φ log wₖ|z]

    When latents are few, or the model is cheap: with d latents of s states a draw costs 1 + d (s - 1) evaluations of
    the model. For one latent the first sum is exact. Variance is never above `score`'s for the same draws.

    Give q logits where a probability may be exactly 0 or 1: there the gradient is 0, and in the probability itself, as
    log q's, infinite or nan. An expectation over a few states alone is exact in their probabilities, at 0 and 1 too, as
    `bounds.elbo(f, weights=p)`.

    Args:
        bound: of `vijax.bounds`, or any log_w [k, *batch] -> [*batch].

    Returns:
        An Objective: (key, log_joint, q, *, num_samples, chunk_size=None) -> Estimate, value [*batch] in nats. q shows
        its logits as q.logits, of independent latents. Second derivatives are refused.

    Raises:
        TypeError: (when called) for a raw key or a q that is not a distribution.
        ValueError: (when called) for a q of other kinds or whose latents depend on each other, members of the
            batch that log_joint couples, or shapes that do not agree.

    Reference: Titsias, Lázaro-Gredilla, Local expectation gradients for black box variational inference, 2015,
        arXiv:1503.01494.
    """
    return engine.make_objective(
        "local_expectation",
        bound,
        draws.iid,
        engine.Estimator(engine.Needs(members=True), _local_expectation),
    )


def _local_expectation(request: engine.Request) -> engine.Strategy:
    known = request.states

    def evaluate(seeds: engine.Plan) -> engine.Evaluated:
        one_hot = jax.vmap(lambda key: _sample(key, known))(seeds.draw)
        z, log_q = known.draw(one_hot), jax.vmap(known.log_prob)(one_hot)
        log_p, aux = request.evaluate(z, jax.lax.stop_gradient(log_q), seeds)
        others, mass = jax.vmap(lambda x: _others(x, known))(one_hot)
        log_q_others = jax.vmap(jax.vmap(known.stopped().log_prob))(others)
        swapped = swaps(request, known.draw(others), log_q_others, seeds)
        return engine.Evaluated(log_p, log_q, z, aux, (swapped, mass))

    def value(log_p: Array, log_q: Array, extra: Any) -> Array:
        swapped, mass = extra
        along = jnp.sum(changes(request, log_p - log_q, swapped) * mass, (0, 1))
        return scored(request, log_p, log_q, along)

    return engine.Strategy(evaluate, value)


@engine.taking("top_states", "bounds.elbo, states=4")
def top_states(bound: Bound, *, states: int) -> Objective:
    """Top-states gradient of the ELBO for one categorical: unbiased, the likeliest states summed and the rest drawn.

        ∇ Σ_{z in top} q(z) f(z)  +  (1 - Q) E_{z' ~ q | rest}[∇f(z') + (f(z') - b) ∇log q(z')] - b ∇Q,   Q = q(top)

    When q has many states and most of its mass on few, as for an amortised choice of cluster or position: with all
    states it is exact. b is the mean of the other draws of the rest. Returned draws carry their weights: q(z) for the
    top, and (1 - Q)/K for each draw of the rest.

    Args:
        bound: linear in log_w, so `bounds.elbo`.
        states: how many are summed, for each member of the batch those that it finds likeliest.

    Returns:
        An Objective: (key, log_joint, q, *, num_samples, chunk_size=None) -> Estimate, value [*batch] in nats; the
        model is evaluated states + num_samples times. q shows its logits as q.logits: one categorical (or Bernoulli)
        for each member of the batch. Second derivatives are refused.

    Raises:
        TypeError: (when called) for a raw key or a q that is not a distribution.
        ValueError: (when called) for a bound that is not linear, `states` outside 1 .. all, a q of other kinds or of
            several latents, members of the batch that log_joint couples, or shapes that do not agree.

    Reference: Liu, Regier, Tripuraneni, Jordan, McAuliffe, Rao-Blackwellized stochastic gradients for discrete
        distributions, 2019, arXiv:1810.04777.
    """
    needs = engine.Needs(mean="weighs a sum against draws", members=True)
    return engine.make_objective(
        "top_states", bound, draws.iid, engine.Estimator(needs, partial(_top_states, top=states))
    )


def _top_states(request: engine.Request, top: int) -> engine.Strategy:
    known, log_probs = _one_variable(request.states, top)
    stopped = jax.lax.stop_gradient(log_probs)
    chosen = jax.lax.top_k(stopped, top)[1]
    is_top = jnp.sum(jax.nn.one_hot(chosen, stopped.shape[-1], dtype=stopped.dtype), -2) > 0
    log_rest = jnp.where(is_top, -jnp.inf, stopped)
    mass_of_rest = jnp.sum(jnp.where(is_top, 0.0, jnp.exp(log_probs)), -1)

    # The first rows are the top states themselves, the others draws from the rest.
    rows = Draw(_numbered_seeds, draws.iid.sample, independent=False)
    seeds = request.plan(rows, top + request.num_samples)

    def state(row: Array, key: Any) -> Array:
        summed = jnp.take(chosen, jnp.minimum(row, top - 1), -1)
        drawn = jax.random.categorical(key, log_rest)
        return jax.nn.one_hot(
            jnp.where(row < top, summed, drawn), stopped.shape[-1], dtype=stopped.dtype
        )

    def evaluate(seeds: engine.Plan) -> engine.Evaluated:
        one_hot = jax.vmap(state)(*seeds.draw)
        z, log_q = known.draw([one_hot]), jax.vmap(lambda x: known.log_prob([x]))(one_hot)
        log_p, aux = request.evaluate(z, jax.lax.stop_gradient(log_q), seeds)
        return engine.Evaluated(log_p, log_q, z, aux)

    def value(log_p: Array, log_q: Array, _: None) -> Array:
        f = log_p - jax.lax.stop_gradient(log_q)
        mass, rest = jnp.exp(log_q[:top]), jax.lax.stop_gradient(mass_of_rest)
        # States of no mass count for nothing, whatever their weight is.
        weight = jax.lax.stop_gradient(mass)
        exact = jnp.sum(weight * jnp.where(weight > 0, f[:top], 0.0), 0)
        drawn = jnp.where((rest > 0)[None], f[top:], 0.0)
        bound_value = exact + rest * jnp.mean(drawn, 0)
        # An infinite weight says nothing of where to go.
        stopped_f = jax.lax.stop_gradient(f)
        finite = jnp.where(jnp.isfinite(stopped_f), stopped_f, 0.0)
        b = jax.lax.stop_gradient(_mean_of_others(drawn))
        signal = jnp.where(jnp.isfinite(stopped_f[top:]), stopped_f[top:] - b, 0.0)
        along = jnp.sum(finite[:top] * mass, 0) + rest * jnp.mean(signal * log_q[top:], 0)
        return with_score(bound_value, bound_value + along + mass_of_rest * jnp.mean(b, 0))

    def weights(log_q: Array) -> Array:
        """Return q of the top states, and an equal share of the rest for each draw from it."""
        share = jnp.broadcast_to(mass_of_rest / request.num_samples, log_q[top:].shape)
        return jnp.concatenate([jnp.exp(log_q[:top]), share])

    return engine.Strategy(evaluate, value, seeds=seeds, weights=weights)


def _numbered_seeds(key: Any, num_samples: int) -> tuple[Array, Any]:
    return jnp.arange(num_samples), draws.iid.seeds(key, num_samples)


def _one_variable(known: engine.States, top: int) -> tuple[engine.States, Array]:
    log_probs = known.log_probs[0]
    if len(known.log_probs) > 1 or log_probs.ndim != known.batch + 1:
        raise ValueError(
            "top_states sums over one categorical for each member of the batch, and q has several latents: use "
            "gradients.local_expectation, or one categorical over all their joint states."
        )
    if (
        isinstance(top, bool)
        or not isinstance(top, (int, np.integer))
        or not 1 <= top <= log_probs.shape[-1]
    ):
        raise ValueError(
            f"states must be a whole number from 1 to q's {log_probs.shape[-1]}, got {top!r}."
        )
    return known, engine.floored(log_probs)


def _mean_of_others(f: Array) -> Array:
    """Return the mean of the other finite rows, 0 where there are none."""
    finite = jnp.isfinite(f)
    kept = jnp.where(finite, f, 0.0)
    others = jnp.sum(finite, 0)[None] - finite
    return jnp.where(others > 0, (jnp.sum(kept, 0)[None] - kept) / jnp.maximum(others, 1), 0.0)


def _sample(key: Any, known: engine.States) -> list[Array]:
    keys = jax.random.split(key, len(known.log_probs))
    pairs = zip(keys, known.stopped().log_probs, strict=True)
    return [hardest(l + jax.random.gumbel(k, l.shape, l.dtype)) for k, l in pairs]


def _others(one_hot: list[Array], known: engine.States) -> tuple[list[Array], Array]:
    """Return a draw with each latent moved to each of its other states, [m, ...], and q of those, [m, *batch]."""
    draws: list[list[Array]] = []
    mass = []
    for i, (x, log_probs) in enumerate(zip(one_hot, known.log_probs, strict=True)):
        coordinate = each_coordinate(x.shape[known.batch : -1], known.batch)[..., None]
        for shift in range(1, x.shape[-1]):
            moved = jnp.roll(x, shift, -1)
            many = jnp.where(coordinate, moved[None], x[None])
            draws.append(
                [
                    many if j == i else jnp.broadcast_to(y, many.shape[:1] + y.shape)
                    for j, y in enumerate(one_hot)
                ]
            )
            q = jnp.sum(moved * jnp.exp(log_probs), -1)
            mass.append(coordinates_first(q, known.batch))
    return [jnp.concatenate(leaf) for leaf in zip(*draws, strict=True)], jnp.concatenate(mass)


# --- what local expectations and measure-valued gradients share: draws of which one coordinate is replaced


def each_coordinate(event: tuple[int, ...], batch: int) -> Array:
    """Return masks [d, *1s of batch, *event], each of one coordinate."""
    d = math.prod(event)
    return jnp.eye(d, dtype=bool).reshape((d,) + (1,) * batch + event)


def coordinates_first(x: Array, batch: int) -> Array:
    """Turn [*batch, *event] into [d, *batch]."""
    return jnp.moveaxis(x.reshape(*x.shape[:batch], -1), -1, 0)


def swaps(request: engine.Request, z: Any, log_q: Array, seeds: engine.Plan) -> Array:
    """Return the log-weights, stopped, of draws with leading axes [k, m]."""
    k, m = log_q.shape[:2]

    def flat(x: Array) -> Array:
        return x.reshape(k * m, *x.shape[2:])

    keys = None if seeds.model is None else jnp.repeat(seeds.model, m)
    log_p, _ = request.evaluate(jax.tree.map(flat, z), flat(log_q), engine.Plan(seeds.draw, keys))
    return jax.lax.stop_gradient(log_p.reshape(log_q.shape) - log_q)


def changes(request: engine.Request, log_w: Array, swapped: Array) -> Array:
    """Return how the bound changes when draw k's log-weight becomes each of swapped [k, m, *batch]; stopped."""
    bound, log_w = request.bound, jax.lax.stop_gradient(log_w)
    weights, terms = own_weights(bound, request.forms, log_w), request.forms.terms
    if weights is not None:
        term = (lambda x: x) if terms is None else terms
        after, before = jax.vmap(term, 1, 1)(swapped), term(log_w)[:, None]
        change = weights[:, None] * (after - before)
    else:
        own = bound(log_w)[None]

        def of_draw(k: Array) -> Array:
            return jax.vmap(lambda w: bound(log_w.at[k].set(w)))(swapped[k]) - own

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
