"""ELBO surgery: the rate is information plus marginal KL, draw by draw, and each part is the integral it names."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import norm

import vijax as vj
from vijax.diagnostics import Surgery, surgery

pytestmark = pytest.mark.usefixtures("loose_ranks")

LOC, SCALE = np.array([-1.5, 0.2, 1.0]), np.array([0.5, 0.8, 1.2])
Q, PRIOR = distrax.Normal(jnp.asarray(LOC), jnp.asarray(SCALE)), distrax.Normal(0.0, 1.0)


def exact():
    """Rate, information and marginal KL of three normals, by a trapezoid in float64."""
    z = np.linspace(-14, 14, 20_001)
    each = norm.logpdf(z[:, None], LOC, SCALE)
    aggregate, log_p = logsumexp(each, axis=1) - np.log(3), norm.logpdf(z)
    mean = lambda f: np.trapezoid(np.exp(each) * f, z, axis=0).mean()
    return (
        mean(each - log_p[:, None]),
        mean(each - aggregate[:, None]),
        mean((aggregate - log_p)[:, None] * np.ones(3)),
    )


def test_each_part_is_its_integral(key):
    """Within five standard errors, false in 2e-6; the control, draws held against their own q alone, has no marginal KL."""
    run = jax.jit(lambda key: surgery(key, Q, PRIOR, num_samples=20_000, chunk_size=4096))
    parts = run(key)
    assert isinstance(parts, Surgery)
    for part, truth in zip(parts, exact(), strict=True):
        assert part.error < 0.02
        assert abs(part.value - truth) < 5 * part.error
    assert abs(parts.rate.value - exact()[2]) > 5 * parts.rate.error


def test_errors_are_those_of_repetition(key):
    """The spread of 400 runs beside the error that each states: within a fifth."""
    keys = jax.random.split(key, 400)
    runs = jax.jit(jax.vmap(lambda key: surgery(key, Q, PRIOR, num_samples=8)))(keys)
    for run in runs:
        np.testing.assert_allclose(run.value.std(), np.sqrt(np.mean(run.error**2)), rtol=0.2)


def test_the_rate_is_information_plus_marginal(key):
    """To 1e-5 at forty latents, whatever the chunks and the number of draws; rate is the closed-form KL in the mean."""
    loc = jax.random.normal(key, (60, 40))
    q = distrax.Independent(distrax.Normal(loc, 0.5 * jnp.ones((60, 40))), 1)
    prior = distrax.Independent(distrax.Normal(jnp.zeros(40), jnp.ones(40)), 1)
    for k, chunk in ((1, 7), (5, 64)):
        found, again = (
            jax.jit(lambda c=c, k=k: surgery(key, q, prior, num_samples=k, chunk_size=c))()
            for c in (chunk, 1000)
        )
        added = found.information.value + found.marginal.value
        np.testing.assert_allclose(found.rate.value, added, rtol=0, atol=1e-5)
        np.testing.assert_allclose(again.information.value, found.information.value, rtol=1e-6)
    closed = vj.diagnostics.latent_kl(q, prior).sum(-1).mean()
    assert abs(found.rate.value - closed) < 5 * found.rate.error
    assert found.information.value <= np.log(60) + 1e-5


def test_other_latents_and_priors(key):
    """A dict of latents with a full covariance, a mixture for a prior: what q and prior a user has."""
    tri = distrax.MultivariateNormalTri(jnp.zeros((3, 2)), jnp.eye(2) * jnp.ones((3, 1, 1)))
    mixture = distrax.MixtureSameFamily(
        distrax.Categorical(logits=jnp.zeros(2)),
        distrax.MultivariateNormalDiag(jnp.zeros((2, 2)), jnp.ones((2, 2))),
    )

    @jax.jit
    def both(key):
        q, prior = {"a": Q, "b": tri}, {"a": PRIOR, "b": mixture}
        return [surgery(key, *pair, num_samples=50) for pair in ((q, prior), (Q, PRIOR))]

    # The second leaf tells nothing and costs nothing: both parts are those of the first.
    for one, other in zip(*both(key), strict=True):
        assert abs(one.value - other.value) < 5 * np.hypot(one.error, other.error)


def test_no_derivative_passes(key):
    rate = lambda m: surgery(key, distrax.Normal(m, 1.0), PRIOR, num_samples=2).rate.value
    np.testing.assert_array_equal(jax.grad(rate)(jnp.zeros(3)), 0.0)


def test_refusals(key, unchecked):
    with pytest.raises(ValueError, match=r"batch shape \[N\].*Independent"):
        surgery(key, distrax.Normal(jnp.zeros((3, 2)), 1.0), PRIOR, num_samples=2)
    vectors = distrax.Independent(distrax.Normal(jnp.zeros((3, 2)), 1.0), 1)
    with pytest.raises(ValueError, match=r"batch shape \(\), one for all data"):
        surgery(key, vectors, distrax.Normal(jnp.zeros(2), 1.0), num_samples=2)
    with pytest.raises(TypeError, match="typed key"):
        surgery(0, Q, PRIOR, num_samples=2)
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        surgery(key, Q, PRIOR, num_samples=0)
