"""Latents watched: KL of each in closed form, how far their means move, and the alarm where none is used."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj
from vijax.diagnostics import Collapse, activity, collapse, latent_kl

pytestmark = pytest.mark.usefixtures("loose_ranks")


def normal(loc, scale):
    return distrax.Independent(distrax.Normal(loc, scale), 1)


@pytest.fixture
def encoder(key):
    """Five data, three latents, of which the last is the prior."""
    of_loc, of_scale = jax.random.split(key)
    used = jnp.array([1.0, 1.0, 0.0])
    loc = 2 * jax.random.normal(of_loc, (5, 3)) * used
    scale = jnp.exp(jax.random.normal(of_scale, (5, 3)) * used)
    return normal(loc, scale), normal(jnp.zeros(3), jnp.ones(3))


def test_latent_kl_adds_up_to_that_of_q(encoder):
    q, prior = encoder
    each = latent_kl(q, prior)
    assert each.shape == (5, 3)
    np.testing.assert_allclose(each.sum(-1), q.kl_divergence(prior), rtol=1e-5)
    np.testing.assert_allclose(each[:, 2], 0.0, atol=1e-6)
    diagonal = distrax.MultivariateNormalDiag(q.distribution.loc, q.distribution.scale)
    np.testing.assert_allclose(latent_kl(diagonal, prior), each, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(lambda: latent_kl(*encoder))(), each, rtol=1e-5)


def test_latent_kl_of_other_pairs():
    """What distrax registers beside normals; and small divergences keep their digits."""
    bits = distrax.Independent(distrax.Bernoulli(logits=jnp.array([[0.0, 1.0]])), 1)
    fair = distrax.Independent(distrax.Bernoulli(logits=jnp.zeros((1, 2))), 1)
    p = jax.nn.sigmoid(1.0)
    exact = p * jnp.log(2 * p) + (1 - p) * jnp.log(2 * (1 - p))
    np.testing.assert_allclose(latent_kl(bits, fair), [[0.0, exact]], atol=1e-6)
    tiny = latent_kl(distrax.Normal(0.0, 1.001), distrax.Normal(0.0, 1.0))
    np.testing.assert_allclose(tiny, 9.990e-07, rtol=0.15)
    slope = jax.grad(lambda m: latent_kl(distrax.Normal(m, 1.0), distrax.Normal(0.0, 2.0)))(3.0)
    np.testing.assert_allclose(slope, 3 / 4, rtol=1e-6)


def test_latent_kl_refuses_what_does_not_factorize(encoder, unchecked):
    q, prior = encoder
    full = distrax.MultivariateNormalTri(jnp.zeros((5, 3)), jnp.eye(3) * jnp.ones((5, 1, 1)))
    mixture = distrax.MixtureSameFamily(
        distrax.Categorical(logits=jnp.zeros(2)), normal(jnp.zeros((2, 3)), jnp.ones((2, 3)))
    )
    for pair in ((full, prior), (q, mixture)):
        with pytest.raises(TypeError, match="must be independent.*surgery"):
            latent_kl(*pair)
    with pytest.raises(TypeError, match="latent_kl"):
        latent_kl(q)


def test_activity_takes_the_noise_of_draws_off(key):
    """Means of variance 1, .04 and 0, draws around them of variance 1: within five standard errors, false in 1e-6.

    The control, the variance of the means of four draws, calls the dead latent active.
    """
    n, k, scales = 4000, 4, jnp.array([1.0, 0.2, 0.0])
    of_means, of_draws = jax.random.split(key)
    means = jax.random.normal(of_means, (n, 3)) * scales
    z = means + jax.random.normal(of_draws, (k, n, 3))
    truth = jnp.var(means, 0, ddof=1)
    # The sd of a sample variance is √(2/n) times it, of means with a noise of 1/k.
    error = jnp.sqrt(2 / n) * (scales**2 + 1 / k) + jnp.sqrt(2 / (n * k)) / k
    assert np.all(np.abs(activity(z) - truth) < 5 * error)
    naive = jnp.var(z.mean(0), 0, ddof=1)
    assert np.all(np.abs(naive - truth) > 5 * error)
    np.testing.assert_array_equal(activity(z) > 0.01, [True, True, False])
    tree = jax.jit(activity)({"a": z, "b": z[..., 0]})
    np.testing.assert_allclose(tree["b"], activity(z)[0], rtol=1e-4)
    with pytest.raises(ValueError, match="one draw.*Draw more"):
        activity(z[:1])


def test_the_alarm_speaks_and_does_not(encoder):
    kl = latent_kl(*encoder)
    some = jax.jit(collapse)(kl)
    assert isinstance(some, Collapse)
    np.testing.assert_array_equal(some.dead, [False, False, True])
    assert int(some.alive) == 2
    assert "2 of 3 latents are alive" in str(some)
    assert "for every datum: 2." in str(some)
    np.testing.assert_allclose(some.mean.sum(), kl.sum(-1).mean(), rtol=1e-6)
    none = collapse(kl[:, 2:])
    assert str(none).startswith("Collapsed: 0 of 1")
    assert "free bits" in str(none)
    whole = collapse(kl[:, :2])
    assert "Try" not in str(whole)
    assert "Dead" not in str(whole)
    # One datum that uses a latent keeps it alive, and so does a nan.
    assert int(collapse(kl.at[3, 2].set(0.5)).alive) == 3
    assert int(collapse(kl.at[3, 2].set(jnp.nan)).alive) == 3
    # Of each datum's total, where q has no KL of single latents.
    assert int(collapse(jnp.array([0.001, 0.002])).alive) == 0


def test_the_alarm_refuses(unchecked):
    with pytest.raises(ValueError, match="limit must be above 0"):
        collapse(jnp.ones((2, 2)), limit=0.0)
    with pytest.raises(ValueError, match="n >= 1 data"):
        collapse(jnp.ones((0, 2)))


def test_a_linear_autoencoder_under_beta_loses_its_latents_one_by_one():
    """q of the optimum at σ² = 1: W² = max(λ - β, 0) and E_q[z] = W x / (W² + 1): the alarm counts those above."""
    eigenvalues = np.array([5.0, 2.0, 0.5])
    x = np.random.default_rng(0).normal(size=(50, 3)) * np.sqrt(eigenvalues)
    prior = normal(jnp.zeros(3), jnp.ones(3))
    for beta, alive in ((1.0, 2), (3.0, 1), (6.0, 0)):
        w = np.sqrt(np.maximum(eigenvalues - beta, 0.0))
        q = normal(
            jnp.asarray(x * w / (w**2 + beta), jnp.float32),
            jnp.asarray(np.sqrt(beta / (w**2 + beta)) * np.ones((50, 3)), jnp.float32),
        )
        assert int(vj.diagnostics.collapse(latent_kl(q, prior)).alive) == alive
