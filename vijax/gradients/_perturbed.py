"""Log-probabilities perturbed by Gumbel noise, whose largest state is the draw."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from vijax import engine


def conditional(log_probs: Array, hard: Array, uniform: Array) -> Array:
    """Return Gumbel-perturbed log-probabilities, from uniforms, given that their argmax is `hard`
    (one-hot).

    z_b = -log(-log v_b), the others -log(-log vᵢ / pᵢ - log v_b): the largest is a standard Gumbel whichever it is.
    """
    # Exponential waiting times -log v, in logarithms: the state of the shortest, with rate pᵢ, is drawn.
    waiting = jnp.log(-jnp.log(uniform))
    first = jnp.sum(hard * waiting, -1, keepdims=True)
    return -jnp.where(hard > 0, first, jnp.logaddexp(waiting - engine.floored(log_probs), first))


def hardest(perturbed: Array) -> Array:
    """Return the state that perturbed log-probabilities decide on, one-hot."""
    hard = jax.nn.one_hot(jnp.argmax(perturbed, -1), perturbed.shape[-1], dtype=perturbed.dtype)
    return jax.lax.stop_gradient(hard)


def uniforms(seeds: engine.Plan, log_probs: list[Array]) -> tuple[list[Array], list[Array]]:
    """Return two uniforms in (0, 1) for every state of every leaf, [k, *batch, *event, s]."""
    # Above 0, so that neither logarithm is infinite.
    tiny = jnp.finfo(log_probs[0].dtype).tiny

    def of_leaves(key: Key[Array, ""]) -> list[Array]:
        keys = jax.random.split(key, len(log_probs))
        pairs = zip(keys, log_probs, strict=True)
        return [jax.random.uniform(k, l.shape, l.dtype, minval=tiny) for k, l in pairs]

    def both(key: Key[Array, ""]) -> tuple[list[Array], list[Array]]:
        first, second = jax.random.split(key)
        return of_leaves(first), of_leaves(second)

    return jax.vmap(both)(seeds.draw)


def perturbed(logits: list[Array], noise: list[Array]) -> list[Array]:
    """Return z = log q + Gumbel noise, whose largest state is the draw."""
    pairs = zip(logits, noise, strict=True)
    return [jax.nn.log_softmax(l) - jnp.log(-jnp.log(u)) for l, u in pairs]


def perturbed_given(logits: list[Array], one_hot: list[Array], noise: list[Array]) -> list[Array]:
    """Return z̃, drawn as z is, given the draw that it decides."""
    triples = zip(logits, one_hot, noise, strict=True)
    return [conditional(jax.nn.log_softmax(l), b, u) for l, b, u in triples]
