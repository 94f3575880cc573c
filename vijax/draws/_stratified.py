"""Stratified draws: every component of a mixture in turn, weighed by its probability."""

from typing import cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vijax.engine import split
from vijax.types import Distribution, Draw, PyTree, Stratified, offers

# Row i belongs to component i mod m, so that any m rows in succession hold each component once.


def _seeds(key: Key[Array, ""], num_samples: int) -> PyTree:
    return split(key, num_samples), jnp.arange(num_samples)


def _sample(seed: PyTree, q: Distribution) -> tuple[PyTree, Array]:
    key, row = seed
    m = _log_weights(q).shape[-1]
    z, _ = cast(Stratified, q).component(row % m).sample_and_log_prob(seed=key, sample_shape=())
    return z, q.log_prob(z)


def _weights(q: Distribution, num_samples: int) -> Float[Array, "k *batch"]:
    log_weights = _log_weights(q)
    m = log_weights.shape[-1]
    if num_samples % m:
        raise ValueError(
            f"stratified draws come in rounds of q's {m} components: num_samples must be a "
            f"multiple of {m}, got {num_samples}."
        )
    rounds = num_samples // m
    # [m, *batch], πⱼ/R, then repeated round by round to [k, *batch].
    each = jnp.moveaxis(jax.nn.softmax(log_weights), -1, 0) / rounds
    return jnp.tile(each, (rounds,) + (1,) * (each.ndim - 1))


def _log_weights(q: Distribution) -> Array:
    if not offers(q, Stratified):
        raise TypeError(
            "stratified draws need q.log_weights [*batch, m] and q.component(j), a distribution; "
            f"{type(q).__name__} lacks them. Use families.mixture, or families.strata(q) for a "
            "mixture of distrax, TFP or NumPyro."
        )
    return cast(Stratified, q).log_weights


stratified = Draw(seeds=_seeds, sample=_sample, independent=False, weights=_weights)
"""Draws of each component of a mixture in turn, each weighed by its component's probability.

    Σⱼ πⱼ 1/R Σᵣ f(zⱼᵣ),   zⱼᵣ ~ qⱼ,   log wⱼᵣ = log p(x, zⱼᵣ) - log Σᵢ πᵢ qᵢ(zⱼᵣ),   R = K/m

For `families.mixture`, or `families.strata(q)` of another library's: the weights carry the logits'
derivative, and each component's own draw that of its parameters. num_samples is a multiple of m.
elbo is the mixture's exactly, iwae (SIWAE) a lower bound of log p(x) at any K; `diagnostics.ess`
wants draws.log_w + log(draws.weights). Pair it with `gradients.reparam`, or with `dreg(elbo)`,
whose gradient is zero draw by draw at the exact posterior; dreg of another bound would need each
component's draws in the other components' places, and refuses. What it saves is in the guide to
choosing.

Reference: Morningstar, Vikram, Ham, Gallagher, Dillon, Automatic differentiation variational
inference with mixtures, 2021, arXiv:2003.01687; Roeder, Wu, Duvenaud, Sticking the landing, 2017,
arXiv:1703.09194.
"""
