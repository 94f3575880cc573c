"""The peers: the same loss as each library's own users write it, and what happens where a peer is not installed."""

import importlib
from types import ModuleType
from typing import Any

import jax.numpy as jnp
from jax import Array

from benchmarks import _model as model
from benchmarks._model import Loss, Params, reduce


class Missing(Exception):
    """A peer that is not installed, or does not import here: reported, not fatal."""


def peer(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (
        Exception
    ) as error:  # an old peer on a new JAX fails in any way it likes while it is imported
        raise Missing(f"{name}: {type(error).__name__}: {error}") from error


def distrax_normal(mean: Array, log_scale: Array) -> Any:
    distrax = peer("distrax")
    return distrax.Independent(distrax.Normal(mean, jnp.exp(log_scale)), 1)


def distrax(k: int) -> Loss:
    distrax = peer("distrax")

    def loss(params: Params, key: Array, x: Array) -> Array:
        z, log_q = distrax_normal(*model.encode(params, x)).sample_and_log_prob(
            seed=key, sample_shape=(k,)
        )
        prior = distrax.Independent(
            distrax.Normal(jnp.zeros(model.LATENTS), jnp.ones(model.LATENTS)), 1
        )
        likelihood = distrax.Independent(distrax.Bernoulli(logits=model.decode(params, z)), 1)
        return -jnp.mean(reduce(likelihood.log_prob(x) + prior.log_prob(z) - log_q))

    return loss


def tfp(k: int) -> Loss:
    tfp = peer("tensorflow_probability.substrates.jax")
    tfd = tfp.distributions

    def loss(params: Params, key: Array, x: Array) -> Array:
        mean, log_scale = model.encode(params, x)
        q = tfd.Independent(tfd.Normal(mean, jnp.exp(log_scale)), 1)
        prior = tfd.Independent(tfd.Normal(jnp.zeros(model.LATENTS), 1.0), 1)

        def target(z: Array) -> Array:
            return tfd.Independent(tfd.Bernoulli(logits=model.decode(params, z)), 1).log_prob(
                x
            ) + prior.log_prob(z)

        return jnp.mean(
            tfp.vi.monte_carlo_variational_loss(target, q, importance_sample_size=k, seed=key)
        )

    return loss


def numpyro(k: int) -> Loss:
    numpyro = peer("numpyro")
    dist, infer = numpyro.distributions, peer("numpyro.infer")
    elbo = infer.Trace_ELBO() if k == 1 else infer.RenyiELBO(alpha=0, num_particles=k)

    def generate(x: Array) -> None:
        decoder = numpyro.param("decoder")
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(0, 1).expand([model.LATENTS]).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=model.network(decoder, z)).to_event(1), obs=x)

    def guide(x: Array) -> None:
        mean, log_scale = model.encode({"encoder": numpyro.param("encoder")}, x)
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(mean, jnp.exp(log_scale)).to_event(1))

    # NumPyro sums over the plate where the others take the mean; the work is the same.
    return lambda params, key, x: elbo.loss(key, params, generate, guide, x) / len(x)
