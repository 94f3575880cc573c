"""Sums in place of draws: what is cheap to enumerate is summed exactly, and only the rest is drawn."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from vijax import checks, draws
from vijax.draws import Plan
from vijax.gradients._objective import admit, estimate
from vijax.gradients._relaxed import hardest
from vijax.gradients._states import States, floored, linear, states
from vijax.numerics import with_score
from vijax.types import Bound, Draw, Estimate, LogJoint, Objective


def local_expectation(bound: Bound) -> Objective:
    """Local-expectation gradient of any bound: unbiased, every discrete latent summed over its states, one at a time.

        ∇φ = E[Σₖ Σᵢ Σ_s ∇φ qᵢ(s) B(log w with zₖᵢ := s)] + E[Σₖ B'ₖ ∇φ log wₖ|z]

    When latents are few, or the model is cheap: with d latents of s states a draw costs 1 + d (s - 1) evaluations of
    the model. For one latent the first sum is exact. Variance is never above `score`'s for the same draws.

    Args:
        bound: of `vijax.bounds`, or any log_w [k, *batch] -> [*batch].

    Returns:
        An Objective: (key, log_joint, q, *, num_samples, chunk_size=None) -> Estimate, value [*batch] in nats. q shows
        its logits as q.logits, of independent latents. Second derivatives mean nothing here. log_joint must not couple
        members of the batch.

    Raises:
        TypeError: (when called) for a raw key or a q that is not a distribution.
        ValueError: (when called) for a q of other kinds or whose latents depend on each other, or shapes that do not
            agree.

    Reference: Titsias, Lázaro-Gredilla, Local expectation gradients for black box variational inference, 2015,
        arXiv:1503.01494.
    """

    def objective(
        key: Key[Array, ""], log_joint: LogJoint, q: Any, *, num_samples: int, chunk_size: int | None = None
    ) -> Estimate:
        log_joint, q = admit(key, log_joint, q, num_samples, chunk_size, bound)
        found = states(q, key, "local_expectation")

        def look(seeds: Plan) -> Any:
            hot = jax.vmap(lambda key: _sample(key, found))(seeds.draw)
            z, log_q = found.draw(hot), jax.vmap(found.log_prob)(hot)
            log_p, aux = draws.evaluate(log_joint, z, jax.lax.stop_gradient(log_q), seeds.model)
            others, mass = jax.vmap(lambda x: _others(x, found))(hot)
            still = jax.vmap(jax.vmap(found.stopped().log_prob))(others)
            swapped = swaps(log_joint, found.draw(others), still, seeds)
            return (log_p, log_q, (swapped, mass)), (z, aux)

        def value(log_p: Array, log_q: Array, extra: Any) -> Array:
            swapped, mass = extra
            log_w = log_p - log_q
            return scored(bound, log_w, log_p, log_q, jnp.sum(changes(bound, log_w, swapped) * mass, (0, 1)))

        return estimate(look, value, draws.plan(key, log_joint, draws.iid, num_samples), chunk_size)

    return objective


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
        for each member of the batch. Second derivatives mean nothing here. log_joint must not couple members.

    Raises:
        TypeError: (when called) for a raw key or a q that is not a distribution.
        ValueError: (when called) for a bound that is not linear, `states` outside 1 .. all, a q of other kinds or of
            several latents, or shapes that do not agree.

    Reference: Liu, Regier, Tripuraneni, Jordan, McAuliffe, Rao-Blackwellized stochastic gradients for discrete
        distributions, 2019, arXiv:1810.04777.
    """
    top = states

    def objective(
        key: Key[Array, ""], log_joint: LogJoint, q: Any, *, num_samples: int, chunk_size: int | None = None
    ) -> Estimate:
        log_joint, q = admit(key, log_joint, q, num_samples, chunk_size, bound)
        linear(bound, "top_states", "weighs a sum against draws")
        found, log_probs = _one_variable(q, key, top)
        still = jax.lax.stop_gradient(log_probs)
        chosen = jax.lax.top_k(still, top)[1]
        is_top = jnp.sum(jax.nn.one_hot(chosen, still.shape[-1], dtype=still.dtype), -2) > 0
        rest_of = jnp.where(is_top, -jnp.inf, still)
        rest = jnp.sum(jnp.where(is_top, 0.0, jnp.exp(log_probs)), -1)
        rows = Draw(lambda key, n: (jnp.arange(n), draws.iid.seeds(key, n)), draws.iid.sample, independent=False)

        def state(row: Array, key: Any) -> Array:
            summed = jnp.take(chosen, jnp.minimum(row, top - 1), -1)
            drawn = jax.random.categorical(key, rest_of)
            return jax.nn.one_hot(jnp.where(row < top, summed, drawn), still.shape[-1], dtype=still.dtype)

        def look(seeds: Plan) -> Any:
            hot = jax.vmap(state)(*seeds.draw)
            z, log_q = found.draw([hot]), jax.vmap(lambda x: found.log_prob([x]))(hot)
            log_p, aux = draws.evaluate(log_joint, z, jax.lax.stop_gradient(log_q), seeds.model)
            return (log_p, log_q, None), (z, aux)

        def value(log_p: Array, log_q: Array, _: None) -> Array:
            f, mass, left = log_p - jax.lax.stop_gradient(log_q), jnp.exp(log_q[:top]), jax.lax.stop_gradient(rest)
            # States of no mass count for nothing, whatever their weight is.
            weight = jax.lax.stop_gradient(mass)
            exact = jnp.sum(weight * jnp.where(weight > 0, f[:top], 0.0), 0)
            drawn = jnp.where((left > 0)[None], f[top:], 0.0)
            judged = exact + left * jnp.mean(drawn, 0)
            seen = jax.lax.stop_gradient(f)
            finite = jnp.where(jnp.isfinite(seen), seen, 0.0)  # an infinite one says nothing of where to go
            b = jax.lax.stop_gradient(_mean_of_others(drawn))
            signal = jnp.where(jnp.isfinite(seen[top:]), seen[top:] - b, 0.0)
            along = jnp.sum(finite[:top] * mass, 0) + left * jnp.mean(signal * log_q[top:], 0)
            return with_score(judged, judged + along + rest * jnp.mean(b, 0))

        seeds = draws.plan(key, log_joint, rows, top + num_samples)
        answer = estimate(look, value, seeds, chunk_size)
        spread = jnp.broadcast_to(rest / num_samples, answer.draws.log_q[top:].shape)
        weights = jnp.concatenate([jnp.exp(answer.draws.log_q[:top]), spread])
        return answer._replace(draws=answer.draws._replace(weights=jax.lax.stop_gradient(weights)))

    return objective


def _one_variable(q: Any, key: Any, top: int) -> tuple[States, Array]:
    found = states(q, key, "top_states")
    log_probs = found.log_probs[0]
    if len(found.log_probs) > 1 or log_probs.ndim != found.batch + 1:
        raise ValueError(
            "top_states sums over one categorical for each member of the batch, and q has several latents: use "
            "gradients.local_expectation, or one categorical over all their joint states."
        )
    if isinstance(top, bool) or not isinstance(top, (int, np.integer)) or not 1 <= top <= log_probs.shape[-1]:
        raise ValueError(f"states must be a whole number from 1 to q's {log_probs.shape[-1]}, got {top!r}.")
    return found, floored(log_probs)


def _mean_of_others(f: Array) -> Array:
    """Return the mean of the other finite rows, 0 where there are none."""
    finite = jnp.isfinite(f)
    kept = jnp.where(finite, f, 0.0)
    others = jnp.sum(finite, 0)[None] - finite
    return jnp.where(others > 0, (jnp.sum(kept, 0)[None] - kept) / jnp.maximum(others, 1), 0.0)


def _sample(key: Any, found: States) -> list[Array]:
    keys = jax.random.split(key, len(found.log_probs))
    still = found.stopped().log_probs
    return [hardest(l + jax.random.gumbel(k, l.shape, l.dtype)) for k, l in zip(keys, still, strict=True)]


def _others(hot: list[Array], found: States) -> tuple[list[Array], Array]:
    """Return a draw with each latent moved to each of its other states, [m, ...], and q of those, [m, *batch]."""
    whole: list[list[Array]] = []
    mass = []
    for i, (x, l) in enumerate(zip(hot, found.log_probs, strict=True)):
        event = x.shape[found.batch : -1]
        for shift in range(1, x.shape[-1]):
            moved = jnp.roll(x, shift, -1)
            one = each_coordinate(event, found.batch)[..., None]
            many = jnp.where(one, moved[None], x[None])
            whole.append([many if j == i else jnp.broadcast_to(y, many.shape[:1] + y.shape) for j, y in enumerate(hot)])
            q = jnp.sum(moved * jnp.exp(l), -1)
            mass.append(coordinates_first(q, found.batch))
    return [jnp.concatenate(parts) for parts in zip(*whole, strict=True)], jnp.concatenate(mass)


# --- what local expectations and measure-valued gradients share: draws of which one coordinate is replaced


def each_coordinate(event: tuple[int, ...], batch: int) -> Array:
    """Return masks [d, *1s of batch, *event], each of one coordinate."""
    d = math.prod(event)
    return jnp.eye(d, dtype=bool).reshape((d,) + (1,) * batch + event)


def coordinates_first(x: Array, batch: int) -> Array:
    """Turn [*batch, *event] into [d, *batch]."""
    return jnp.moveaxis(x.reshape(*x.shape[:batch], -1), -1, 0)


def swaps(log_joint: LogJoint, z: Any, log_q: Array, seeds: Plan) -> Array:
    """Return the log-weights, stopped, of draws with leading axes [k, m]."""
    k, m = log_q.shape[:2]
    flat = lambda x: x.reshape(k * m, *x.shape[2:])  # noqa: E731
    keys = None if seeds.model is None else jnp.repeat(seeds.model, m)
    log_p, _ = draws.evaluate(log_joint, jax.tree.map(flat, z), flat(log_q), keys)
    return jax.lax.stop_gradient(log_p.reshape(log_q.shape) - log_q)


def changes(bound: Bound, log_w: Array, swapped: Array) -> Array:
    """Return how the bound changes when draw k's log-weight becomes each of swapped [k, m, *batch]; stopped."""
    log_w = jax.lax.stop_gradient(log_w)
    if checks.is_mean(bound):
        found = (swapped - log_w[:, None]) / log_w.shape[0]
    else:
        own = bound(log_w)[None]
        one = lambda k: jax.vmap(lambda w: bound(log_w.at[k].set(w)))(swapped[k]) - own  # noqa: E731
        found = jax.lax.map(one, jnp.arange(log_w.shape[0]))
    # An infinite change says nothing of where to go.
    return jnp.where(jnp.isfinite(found), found, 0.0)


def scored(bound: Bound, log_w: Array, log_p: Array, log_q: Array, along: Array) -> Array:
    """Return the bound with the derivative of `along` added; one that is linear drops the score of q, of mean zero."""
    value = bound(log_w)
    if checks.is_mean(bound):
        return with_score(value, bound(log_p - jax.lax.stop_gradient(log_q)) + along)
    return with_score(value, value + along)
