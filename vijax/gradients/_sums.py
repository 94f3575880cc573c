"""Sums in place of draws: what is cheap to enumerate is summed exactly, and only the rest is drawn."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from vijax import draws, engine
from vijax.gradients._perturbed import hardest
from vijax.gradients._swaps import changes, coordinates_first, each_coordinate, scored, swaps
from vijax.numerics import with_score
from vijax.types import Bound, Draw, Objective, PyTree


@engine.taking("local_expectation")
def local_expectation(bound: Bound) -> Objective:
    """Local-expectation gradient of any bound: unbiased, every discrete latent summed over its
    states, one at a time.

        ∇φ = E[Σₖ Σᵢ Σ_s ∇φ qᵢ(s) B(log w with zₖᵢ := s)] + E[Σₖ B'ₖ ∇φ log wₖ|z]

    When latents are few, or the model is cheap. For one latent the first sum is exact.

    Args:
        bound: of `vijax.bounds`, or any log_w [k, *batch] -> [*batch].

    Returns:
        An Objective (`types.Objective`), value [*batch] in nats. With d
        latents of s states a draw takes 1 + d (s - 1) evaluations of the model; the variance is never
        above `score`'s for the same draws. q shows its logits as q.logits, of independent latents. Give
        it logits where a probability may be exactly 0 or 1: there the gradient is 0, and in the
        probability itself infinite or nan; an expectation over a few states alone is exact there too as
        `bounds.elbo(f, weights=p)`. Second derivatives are refused.

    Raises:
        ValueError: (when called) for a q of other kinds or whose latents depend on each other, members of the
            batch that log_joint couples, or shapes that do not agree.

    Example:
        >>> def value(logit):
        ...     q = distrax.Bernoulli(logits=logit)
        ...     objective = local_expectation(vj.bounds.elbo)
        ...     return objective(jax.random.key(0), lambda z: 2.0 * z, q, num_samples=1).value
        >>> round(float(jax.jit(jax.grad(value))(0.0)), 3)  # 2 σ'(0), exactly
        0.5

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
        # Every draw with one latent moved, [k, m, ...] for m = Σ (s - 1), and q of the state moved to.
        others, mass = jax.vmap(lambda x: _others(x, known))(one_hot)
        log_q_others = jax.vmap(jax.vmap(known.stopped().log_prob))(others)
        swapped = swaps(request, known.draw(others), log_q_others, seeds)
        return engine.Evaluated(log_p, log_q, z, aux, (swapped, mass))

    def value(log_p: Array, log_q: Array, extra: tuple[Array, Array]) -> Array:
        swapped, mass = extra
        # The state drawn changes nothing, so its term Δ q(s) is 0.
        along = jnp.sum(changes(request, log_p - log_q, swapped) * mass, (0, 1))
        return scored(request, log_p, log_q, along)

    return engine.Strategy(evaluate, value)


@engine.taking("top_states", "bounds.elbo, states=4")
def top_states(bound: Bound, *, states: int) -> Objective:
    """Top-states gradient of the ELBO for one categorical: unbiased, the likeliest states summed
    and the rest drawn.

        ∇ Σ_{z in top} q(z) f(z)  +  (1 - Q) E_{z' ~ q | rest}[∇f(z') + (f(z') - b) ∇log q(z')] - b ∇Q

    When q has most of its mass on few of many states, as for an amortized choice of cluster. Q = q(top).

    Args:
        bound: linear in log_w, so `bounds.elbo`.
        states: how many are summed, for each member of the batch those that it finds likeliest; with
            all of them the gradient is exact.

    Returns:
        An Objective (`types.Objective`), value [*batch] in nats. The
        model is evaluated states + num_samples times. q shows its logits as q.logits: one categorical (or Bernoulli)
        for each member of the batch. Draws carry their weights: q(z) for the top, and (1 - Q)/K for each
        draw of the rest, whose b is the mean of the others. Second derivatives are refused.

    Raises:
        ValueError: (when called) for a bound that is not linear, `states` outside 1 .. all, a q of other kinds or of
            several latents, members of the batch that log_joint couples, or shapes that do not agree.

    Example:
        >>> def value(logit):
        ...     q = distrax.Bernoulli(logits=logit)
        ...     objective = top_states(vj.bounds.elbo, states=2)
        ...     return objective(jax.random.key(0), lambda z: 2.0 * z, q, num_samples=1).value
        >>> round(float(jax.jit(jax.grad(value))(0.0)), 3)  # 2 σ'(0), exactly
        0.5

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
    # [*batch, top]: the likeliest states; then a mask of them over all states, and what is left.
    chosen = jax.lax.top_k(stopped, top)[1]
    is_top = jnp.sum(jax.nn.one_hot(chosen, stopped.shape[-1], dtype=stopped.dtype), -2) > 0
    log_rest = jnp.where(is_top, -jnp.inf, stopped)
    mass_of_rest = jnp.sum(jnp.where(is_top, 0.0, jnp.exp(log_probs)), -1)

    # The first rows are the top states themselves, the others draws from the rest.
    rows = Draw(_numbered_seeds, draws.iid.sample, independent=False)
    seeds = request.plan(rows, top + request.num_samples)

    def state(row: Array, key: Key[Array, ""]) -> Array:
        # Row r < top is the r-th likeliest state; the others are drawn from the rest.
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
        # Σ f ∇q over the top, and the score of the rest with the mean of the others as baseline;
        # the baseline's own part of ∇(1 - Q) is added at the end.
        along = jnp.sum(finite[:top] * mass, 0) + rest * jnp.mean(signal * log_q[top:], 0)
        return with_score(bound_value, bound_value + along + mass_of_rest * jnp.mean(b, 0))

    def weights(log_q: Array) -> Array:
        """Return q of the top states, and an equal share of the rest for each draw from it."""
        share = jnp.broadcast_to(mass_of_rest / request.num_samples, log_q[top:].shape)
        return jnp.concatenate([jnp.exp(log_q[:top]), share])

    return engine.Strategy(evaluate, value, seeds=seeds, weights=weights)


def _numbered_seeds(key: Key[Array, ""], num_samples: int) -> tuple[Array, PyTree]:
    return jnp.arange(num_samples), draws.iid.seeds(key, num_samples)


def _one_variable(known: engine.States, top: int) -> tuple[engine.States, Array]:
    log_probs = known.log_probs[0]
    if len(known.log_probs) > 1 or log_probs.ndim != known.batch + 1:
        raise ValueError(
            "top_states sums over one categorical for each member of the batch, and q has several "
            "latents: use gradients.local_expectation, or one categorical over all their joint "
            "states."
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


def _sample(key: Key[Array, ""], known: engine.States) -> list[Array]:
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
            # Each latent in turn is moved on by `shift` states, the rest as drawn.
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
