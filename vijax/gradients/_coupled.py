"""Coupled score gradients for discrete latents: two draws from one uniform, which disagree as often as they can."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from vijax import draws, engine
from vijax.numerics import with_score
from vijax.types import Bound, Objective, PyTree

# (u, a, b, b̃) of every bit -> what the difference of the pair is multiplied by.
Direction = Callable[[Array, Array, Array, Array], Array]


@engine.taking("arm")
def arm(bound: Bound) -> Objective:
    """Augment-REINFORCE-merge gradient of the ELBO for Bernoulli and categorical latents: unbiased;
    see `disarm` first.

        b = 1[u > σ(-a)],  b̃ = 1[u < σ(a)],  u ~ U(0, 1);     ∇ₐ = E[(f(b) - f(b̃)) (u - ½)]

    For comparison with the literature: `disarm` integrates what is left of u out and never has more
    variance.

    Args:
        bound: linear in log_w, so `bounds.elbo`. f is log w.

    Returns:
        An Objective, as `disarm` makes it; num_samples counts draws, so pairs are half as many.

    Raises:
        ValueError: (when called) as `disarm` does.

    Example:
        >>> q = distrax.Bernoulli(logits=0.0)  # the posterior, of evidence e³
        >>> log_joint, objective = lambda z: q.log_prob(z) + 3.0, arm(vj.bounds.elbo)
        >>> value = jax.jit(lambda key: objective(key, log_joint, q, num_samples=4).value)
        >>> round(float(value(jax.random.key(0))), 3)
        3.0

    Reference: Yin, Zhou, ARM: augment-REINFORCE-merge gradient for stochastic binary networks, 2019, arXiv:1807.11143.
    """
    return _coupled(bound, lambda u, a, b, other: u - 0.5, "arm")


@engine.taking("disarm")
def disarm(bound: Bound) -> Objective:
    """DisARM (U2G) gradient of the ELBO for Bernoulli and categorical latents: unbiased, never
    above ARM's variance.

        ∇ₐ = E[½ (f(b) - f(b̃)) (-1)^b̃ 1[b ≠ b̃] σ(|a|)],   (b, b̃) coupled as in `arm`,  f = log w

    First choice for Bernoulli latents at two draws; at four or more, measure `vimco(elbo)` beside it.

    Args:
        bound: linear in log_w, so `bounds.elbo`.

    Returns:
        An Objective (`types.Objective`), value [*batch] in nats.
        num_samples counts draws, so pairs are half as many. q shows its logits as q.logits, of
        independent latents; a categorical is broken into sticks, bits of which the first one set is its
        state. Second derivatives are refused.

    Raises:
        ValueError: (when called) for a bound that is not linear, an odd num_samples, a q of other kinds or whose
            latents depend on each other, members of the batch that log_joint couples, or shapes that do not agree.

    Example:
        >>> log_joint = distrax.Bernoulli(logits=0.0).log_prob
        >>> def value(logit):
        ...     q = distrax.Bernoulli(logits=logit)
        ...     return disarm(vj.bounds.elbo)(jax.random.key(0), log_joint, q, num_samples=4).value
        >>> round(abs(float(jax.jit(jax.grad(value))(0.0))), 3)  # 0 draw by draw at the posterior
        0.0

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
            # [k/2, *batch]: rows 2i and 2i + 1 are a pair, and share the direction.
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


def _draw(
    seed: tuple[Key[Array, ""], Array], known: engine.States, direction: Direction
) -> tuple[PyTree, Array, Array]:
    """Return one draw of a pair, its log q (stopped), and Σ direction · a with the derivative of q's parameters."""
    key, mirrored = seed
    keys = jax.random.split(key, len(known.log_probs))
    one_hot, directions, logits = [], [], []
    for key, log_probs in zip(keys, known.log_probs, strict=True):
        # [*batch, *event, s - 1]: the logit of stopping at each state, given that none was before.
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
    # log Σ_{t >= s} p(t): what is left of the stick at each state.
    rest = jax.lax.cumlogsumexp(log_probs, axis=log_probs.ndim - 1, reverse=True)
    return log_probs[..., :-1] - rest[..., 1:]


def _before(bits: Array) -> Array:
    """Return 1 for every bit that no earlier bit has made irrelevant."""
    return jnp.concatenate([jnp.ones_like(bits[..., :1]), jnp.cumprod(1 - bits[..., :-1], -1)], -1)


def _first(bits: Array) -> Array:
    """Return the state that bits stand for, one-hot."""
    last = jnp.prod(1 - bits, -1, keepdims=True)
    return jnp.concatenate([_before(bits) * bits, last], -1)
