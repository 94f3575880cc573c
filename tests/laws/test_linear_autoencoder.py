"""The linear autoencoder: its best ELBO is pPCA's likelihood, and under β its latents die at known β."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.datasets as data
from jax.scipy.stats import norm

import vijax as vj
from tests import oracles

# Mean log-likelihoods in nats of the optimum, of an earlier study by another route (L-BFGS of the likelihood).
KNOWN = {
    ("iris", 2): -2.69975187,
    ("wine", 2): -16.15525989,
    ("breast_cancer", 2): -31.68486032,
    ("breast_cancer", 10): -18.18503098,
    ("breast_cancer", 20): -11.31371581,
    ("digits", 2): 0.00570672,
    ("digits", 10): 17.45194702,
    ("digits", 20): 27.27729993,
}


def load(name):
    """Return iris as it is, digits over 16, the others standardized."""
    x = getattr(data, f"load_{name}")().data
    if name in ("wine", "breast_cancer"):
        return (x - x.mean(0)) / x.std(0)
    return x / 16 if name == "digits" else x


def moments(x):
    """Return as many rows as x has columns, with the second moments of x - mean: the mean bound reads nothing else."""
    values, vectors = np.linalg.eigh(np.cov(x.T, ddof=0))
    root = vectors * np.sqrt(np.maximum(values, 0.0)) @ vectors.T
    return jnp.asarray(np.sqrt(len(root)) * root)


def start(x, latents):
    """Small random loadings both ways; the encoder is mean-field, with one scale for all data."""
    of_decoder, of_encoder = jax.random.split(jax.random.key(0))
    d = x.shape[1]
    return {
        "decode": 0.1 * jax.random.normal(of_decoder, (latents, d)),
        "encode": 0.1 * jax.random.normal(of_encoder, (d, latents)),
        "log_scale": jnp.zeros(latents),
        "log_noise": jnp.zeros(()),
    }


def bound(params, x, beta=1.0, noise=None):
    """The mean ELBO, of draws that integrate what is quadratic in z exactly: mean ± √d scale along each axis."""
    latents = len(params["log_scale"])
    sd = jnp.exp(params["log_noise"]) if noise is None else noise**0.5
    scale, nodes = jnp.exp(params["log_scale"]), jnp.sqrt(1.0 * latents) * jnp.eye(latents)

    def log_weights(e):
        z = x @ params["encode"] + scale * e
        log_likelihood = jnp.sum(norm.logpdf(x, z @ params["decode"], sd), -1)
        log_prior = jnp.sum(norm.logpdf(z), -1)
        log_q = jnp.sum(norm.logpdf(e) - params["log_scale"])
        return log_likelihood + beta * (log_prior - log_q)

    return jnp.mean(vj.bounds.elbo(jax.vmap(log_weights)(jnp.concatenate([nodes, -nodes]))))


def climbed(x, latents, **how):
    return vj.solvers.maximize(lambda p: bound(p, x, **how), start(x, latents), steps=20_000)


def cases():
    for name, latents in KNOWN:
        slow = () if name == "iris" else pytest.mark.slow
        yield pytest.param(name, latents, marks=slow, id=f"{name}, {latents}")


@pytest.mark.parametrize(("name", "latents"), list(cases()))
def test_the_best_elbo_is_the_likelihood_of_ppca(name, latents, x64, loose_ranks):
    """To 1e-3 nats, with its noise; the control, an encoder that is held at its start, is off by more."""
    exact, noise, squares = oracles.ppca(load(name), latents)
    np.testing.assert_allclose(exact, KNOWN[name, latents], atol=1e-7)
    x = moments(load(name))
    found = climbed(x, latents)
    assert abs(float(found.value) - exact) < 1e-3
    assert float(found.value) < exact + 1e-4
    # The rows stand for all data: the bound at the end is that of each datum, averaged.
    whole = load(name) - load(name).mean(0)
    np.testing.assert_allclose(jax.jit(bound)(found.params, whole), found.value, atol=1e-6)
    np.testing.assert_allclose(jnp.exp(2 * found.params["log_noise"]), noise, rtol=0.02)
    decoder = np.linalg.svd(np.asarray(found.params["decode"]), compute_uv=False) ** 2
    np.testing.assert_allclose(decoder, squares, rtol=0.03)
    lazy = found.params | {"encode": start(x, latents)["encode"]}
    assert float(bound(lazy, x)) < exact - 0.1


def test_a_latent_dies_at_the_beta_that_is_known(x64, loose_ranks):
    """Squared singular values of the loading are max(λ - β σ², 0) at fixed σ²: three latents on iris, then 2, 1, 0.

    The control: those of twice the β are off.
    """
    noise, x = 0.05, moments(load("iris"))
    run = jax.jit(lambda beta: climbed(x, 3, beta=beta, noise=noise).params["decode"])
    for beta, alive in ((1.0, 3), (2.0, 2), (10.0, 1), (100.0, 0)):
        _, _, squares = oracles.ppca(load("iris"), 3, noise, beta)
        assert (squares > 0).sum() == alive
        decoder = np.linalg.svd(np.asarray(run(beta)), compute_uv=False) ** 2
        np.testing.assert_allclose(decoder, squares, atol=3e-3)
        _, _, control = oracles.ppca(load("iris"), 3, noise, 2 * beta)
        assert beta == 100.0 or np.abs(decoder - control).max() > 0.02
