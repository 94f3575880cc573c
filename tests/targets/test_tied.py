"""targets.tied: the limits that black-box alpha has, and unbiased gradients of its energy under every estimator."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import vijax as vj
from tests import enumeration as enum
from tests import oracles
from tests.bare import Gauss
from tests.marks import some

X = np.array([1.5, -0.3, 0.4])
N = len(X)
PARAMS = {
    "q": {"loc": jnp.float32(0.3), "log_scale": jnp.float32(-0.5)},
    "theta": jnp.float32(-0.2),
}


def log_prior(theta, z):
    return norm.logpdf(z, theta, 1.0)


def log_lik(x, z):
    return norm.logpdf(x, z, 1.0)


def energy(make, key, params, q, num_samples, num_data=N, data=X):
    """Return Σₙ of an objective of one datum, the draws being the same for all."""
    prior = partial(log_prior, params["theta"])
    one = lambda x: make(
        key,
        vj.targets.tied(prior, partial(log_lik, x), q, num_data=num_data),
        q,
        num_samples=num_samples,
    )
    return jnp.sum(jax.vmap(lambda x: one(x).value)(jnp.asarray(data, q.loc.dtype)))


def of(alpha):
    return partial(vj.bounds.renyi, alpha=1 - alpha)


@pytest.mark.slow
def test_at_alpha_zero_it_is_the_elbo_of_all_data(key):
    q = Gauss(PARAMS["q"]["loc"], PARAMS["q"]["log_scale"])
    whole = lambda z: (
        log_prior(PARAMS["theta"], z) + jnp.sum(jax.vmap(lambda x: log_lik(x, z))(jnp.float32(X)))
    )
    expected = vj.gradients.reparam(vj.bounds.elbo)(key, whole, q, num_samples=8).value
    for bound in (of(1e-6), vj.bounds.elbo):
        np.testing.assert_allclose(
            energy(vj.gradients.reparam(bound), key, PARAMS, q, 8), expected, rtol=2e-5
        )


@pytest.mark.slow
def test_of_one_datum_it_is_renyis(key):
    q = Gauss(PARAMS["q"]["loc"], PARAMS["q"]["log_scale"])
    whole = lambda z: log_prior(PARAMS["theta"], z) + log_lik(jnp.float32(X[0]), z)
    expected = vj.gradients.reparam(of(0.5))(key, whole, q, num_samples=8).value
    found = energy(vj.gradients.reparam(of(0.5)), key, PARAMS, q, 8, num_data=1, data=X[:1])
    np.testing.assert_allclose(found, expected, rtol=2e-6)


@oracles.exact
def closed_form(params, alpha):
    """Σₙ 1/α log E_q[(p(xₙ|z) (p(z)/q(z))^(1/N))^α] by quadrature, of infinitely many draws."""
    z, volume = oracles.interval(-12.0, 12.0, 4001)
    log_q = norm.logpdf(z, params["q"]["loc"], np.exp(params["q"]["log_scale"]))
    log_w = norm.logpdf(X[:, None], z, 1.0) + (norm.logpdf(z, params["theta"], 1.0) - log_q) / N
    return jnp.sum(jax.scipy.special.logsumexp(alpha * log_w + log_q, b=volume, axis=-1)) / alpha


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_in_the_limit_it_is_the_energy(alpha, key):
    """At 100,000 draws, to four standard errors of some .001."""
    q = Gauss(PARAMS["q"]["loc"], PARAMS["q"]["log_scale"])
    found = energy(vj.gradients.reparam(of(alpha)), key, PARAMS, q, 100_000)
    params = jax.tree.map(np.asarray, PARAMS)
    np.testing.assert_allclose(found, closed_form(params, alpha), atol=0.01)


@pytest.mark.parametrize("name", some(["reparam", "dreg", "score", "vimco"], "vimco"))
def test_every_estimator_is_unbiased_for_it(name, x64):
    """The mean over all noise of two draws, at Gauss-Hermite nodes, is the derivative of the same sum written plainly."""
    make, bound = getattr(vj.gradients, name), of(0.5)
    params = jax.tree.map(lambda a: a.astype(jnp.float64), PARAMS)
    build = lambda q: enum.Normal(q["loc"], q["log_scale"], 60)
    problem = enum.Problem(params, build, None, (60,))

    def objective(theta):
        def run(key, _, q, *, num_samples):
            value = energy(make(bound), key, {"theta": theta}, q, num_samples)
            return vj.types.Estimate(value, None)

        return run

    def weights(params):
        q = build(params["q"])
        z = q.loc + jnp.exp(q.log_scale) * q.nodes
        share = (norm.logpdf(z, params["theta"], 1.0) - q.log_prob(z)) / N
        return jnp.exp(q.log_weights), jax.vmap(lambda x: log_lik(x, z) + share)(X)

    def plain(params):
        mass, log_w = weights(params)
        pairs = jnp.logaddexp(0.5 * log_w[:, :, None], 0.5 * log_w[:, None, :]) - jnp.log(2.0)
        return jnp.sum(mass[:, None] * mass[None] * jnp.sum(pairs, 0)) / 0.5

    problem.log_p = lambda theta, z: norm.logpdf(z)  # not asked
    with jax.numpy_rank_promotion("allow"):
        found, expected = problem.mean(objective, 2, symmetric=True), jax.grad(plain)(params)
    jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, atol=1e-5), found, expected)


@pytest.mark.usefixtures("unchecked")
def test_refusals(key):
    q = Gauss(0.0, 0.0)
    with pytest.raises(TypeError, match="num_data must be a Python int"):
        vj.targets.tied(norm.logpdf, norm.logpdf, q, num_data=2.5)
    with pytest.raises(ValueError, match="at least 1"):
        vj.targets.tied(norm.logpdf, norm.logpdf, q, num_data=0)
    all_at_once = vj.targets.tied(
        norm.logpdf, lambda z: norm.logpdf(z - jnp.zeros(3)), q, num_data=3
    )
    with (
        pytest.raises(ValueError, match="map over data outside"),
        jax.numpy_rank_promotion("allow"),
    ):
        vj.gradients.reparam(vj.bounds.elbo)(key, all_at_once, q, num_samples=2)
