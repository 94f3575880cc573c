"""Coupled score gradients for discrete latents: two draws from one uniform, which disagree as often as they can."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vijax import draws, engine
from vijax.numerics import with_score
from vijax.types import Bound, Objective

# (u, a, b, b̃) of every bit -> what the difference of the pair is multiplied by.
Direction = Callable[[Array, Array, Array, Array], Array]


@engine.taking("arm")
def arm(bound: Bound) -> Objective:
    """Augment-REINFORCE-merge gradient of the ELBO for Bernoulli and categorical latents: unbiased; see `disarm` first.

        b = 1[u > σ(-a)],  b̃ = 1[u < σ(a)],  u ~ U(0, 1);     ∇ₐ = E[(f(b) - f(b̃)) (u - ½)],  f = log w

    For comparison with the literature: `disarm` integrates what is left of u out and never has more variance. A
    categorical variable is broken into sticks, bits of which the first one set is its state.

    Args:
        bound: linear in log_w, so `bounds.elbo`.

    Returns:
        An Objective, value [*batch] in nats, as `disarm` makes it; num_samples counts draws, so pairs are half as many.

    Raises:
        TypeError, ValueError: (when called) as `disarm` does.

    Reference: Yin, Zhou, ARM: augment-REINFORCE-merge gradient for stochastic binary networks, 2019, arXiv:1807.11143.
    """
    return _coupled(bound, lambda u, a, b, other: u - 0.5, "arm")


@engine.taking("disarm")
def disarm(bound: Bound) -> Objective:
    """DisARM (U2G) gradient of the ELBO for Bernoulli and categorical latents: unbiased, never above ARM's variance.

        ∇ₐ = E[½ (f(b) - f(b̃)) (-1)^b̃ 1[b ≠ b̃] σ(|a|)],   (b, b̃) coupled as in `arm`,  f = log w

    First choice for Bernoulli latents at two draws, where it usually beats the independent pair of `vimco(elbo)`; with
    four or more, which it pairs and that compares with all others, measure both. A categorical variable is broken into
    sticks, and bits that neither draw of a pair reaches are left out. At the exact posterior the gradient in q is zero
    draw by draw.

    Args:
        bound: linear in log_w, so `bounds.elbo`.

    Returns:
        An Objective: (key, log_joint, q, *, num_samples, chunk_size=None) -> Estimate, value [*batch] in nats.
        num_samples counts draws, so pairs are half as many. q shows its logits as q.logits, of independent latents.
        Second derivatives are refused.

    Raises:
        TypeError: (when called) for a raw key or a q that is not a distribution.
        ValueError: (when called) for a bound that is not linear, an odd num_samples, a q of other kinds or whose
            latents depend on each other, members of the batch that log_joint couples, or shapes that do not agree.

    Reference: Dong, Mnih, Tucker, DisARM: an antithetic gradient estimator for binary latent variables, 2020,
        arXiv:2006.10680; the same, Coupled gradient estimators for discrete latent variables, 2021, arXiv:2106.08056.
    """
    return _coupled(bound, _disarmed, "disarm")


def _disarmed(u: Array, a: Array, b: Array, other: Array) -> Array:
    return 0.5 * jnp.where(b != other, (1.0 - 2.0 * other) * jax.nn.sigmoid(jnp.abs(a)), 0.0)


def _coupled(bound: Bound, direction: Direction, name: str) -> Objective:
    def strategy(request: engine.Request) -> engine.Strategy:
        known = request.states
        seeds = request.plan(draws.antithetic, request.num_samples)

        def evaluate(seeds: engine.Plan) -> engine.Evaluated:
            z, log_q, along = jax.vmap(lambda seed: _draw(seed, known, direction))(seeds.draw)
            log_p, aux = request.evaluate(z, log_q, seeds)
            return engine.Evaluated(log_p, log_q, z, aux, along)

        def value(log_p: Array, log_q: Array, along: Array) -> Array:
            log_w = log_p - log_q
            difference = jax.lax.stop_gradient(log_w[0::2] - log_w[1::2])
            # A draw of no mass cannot be compared; its value is reported as it is.
            difference = jnp.where(jnp.isfinite(difference), difference, 0.0)
            bound_value = bound(log_w)
            return with_score(bound_value, bound_value + jnp.mean(difference * along[0::2], 0))

        return engine.Strategy(evaluate, value, seeds=seeds)

    needs = engine.Needs(
        least=2,
        why="Draws come in pairs.",
        mean="compares two draws of a pair by their log-weights",
        members=True,
    )
    return engine.make_objective(name, bound, draws.iid, engine.Estimator(needs, strategy))


def _draw(seed: Any, known: engine.States, direction: Direction) -> tuple[Any, Array, Array]:
    """Return one draw of a pair, its log q (stopped), and Σ direction · a with the derivative of q's parameters."""
    key, mirrored = seed
    keys = jax.random.split(key, len(known.log_probs))
    one_hot, directions, logits = [], [], []
    for key, log_probs in zip(keys, known.log_probs, strict=True):
        of_bits = sticks(log_probs)
        a = jax.lax.stop_gradient(of_bits)
        u = jax.random.uniform(key, a.shape, a.dtype)
        bits = (u > jax.nn.sigmoid(-a)).astype(a.dtype)
        others = (u < jax.nn.sigmoid(a)).astype(a.dtype)
        # Bits after the first one set decide nothing; those that decide nothing in either draw are
        # pure noise.
        reached = jnp.maximum(_before(bits), _before(others))
        directions.append(reached * direction(u, a, bits, others))
        logits.append(of_bits)
        one_hot.append(_first(jnp.where(mirrored, others, bits)))
    log_q = jax.lax.stop_gradient(known.log_prob(one_hot))
    return known.draw(one_hot), log_q, known.dot(directions, logits)


def sticks(log_probs: Array) -> Array:
    """Return logits of s - 1 bits, of which the first one set is the state; none set is the last state."""
    log_probs = engine.floored(log_probs)
    rest = jax.lax.cumlogsumexp(log_probs, axis=log_probs.ndim - 1, reverse=True)
    return log_probs[..., :-1] - rest[..., 1:]


def _before(bits: Array) -> Array:
    """Return 1 for every bit that no earlier bit has made irrelevant."""
    return jnp.concatenate([jnp.ones_like(bits[..., :1]), jnp.cumprod(1 - bits[..., :-1], -1)], -1)


def _first(bits: Array) -> Array:
    """Return the state that bits stand for, one-hot."""
    last = jnp.prod(1 - bits, -1, keepdims=True)
    return jnp.concatenate([_before(bits) * bits, last], -1)
