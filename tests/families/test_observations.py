"""bernoulli, beta_binomial, discretized_logistics: probabilities against SciPy, draws against probabilities, refusals."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import bernoulli as scipy_bernoulli
from scipy.stats import betabinom, logistic

import vijax as vj
from tests.statistics import assert_mean

families = vj.families
LEVELS = 5


def logistics(params, x, levels=LEVELS):
    """Log-probabilities of one grey level under a mixture of logistics, by differences of SciPy's cdf."""
    p = {name: np.asarray(leaf, np.float64) for name, leaf in params.items()}
    edge = (2 * np.arange(levels - 1) + 1) / (levels - 1) - 1
    cdf = logistic.cdf(edge, p["loc"][..., None], np.exp(p["log_scale"])[..., None])
    full = np.concatenate([np.zeros_like(cdf[..., :1]), cdf, np.ones_like(cdf[..., :1])], -1)
    log_pi = p["logits"] - logsumexp(p["logits"], -1, keepdims=True)
    mass = (np.exp(log_pi)[..., None] * np.diff(full)).sum(-2)
    return np.log(np.take_along_axis(mass, np.asarray(x, int)[..., None], -1)[..., 0])


CASES = {
    "bernoulli": (
        families.bernoulli(),
        {"logits": jnp.array([0.3, -1.2])},
        2,
        lambda p, x: scipy_bernoulli.logpmf(x, 1 / (1 + np.exp(-np.asarray(p["logits"], float)))),
    ),
    "beta_binomial": (
        families.beta_binomial(trials=LEVELS - 1),
        {"log_a": jnp.array([0.3, -0.9]), "log_b": jnp.array([1.0, -0.4])},
        LEVELS,
        lambda p, x: betabinom.logpmf(x, LEVELS - 1, np.exp(p["log_a"]), np.exp(p["log_b"])),
    ),
    "discretized_logistics": (
        families.discretized_logistics(levels=LEVELS, components=2),
        {
            "logits": jnp.array([[0.5, -0.5], [0.0, 0.2]]),
            "loc": jnp.array([[-0.4, 0.8], [0.1, -0.9]]),
            "log_scale": jnp.array([[-1.0, -2.0], [-0.5, -3.0]]),
        },
        LEVELS,
        logistics,
    ),
}


@pytest.mark.parametrize("name", list(CASES))
def test_probabilities_are_those_of_scipy_and_of_the_draws(name, key):
    """Every state of two numbers; frequencies of 5,000 draws: by chance 5e-11 a state, .07 is found."""
    family, params, levels, log_pmf = CASES[name]
    states = np.array(list(itertools.product(range(levels), repeat=2)), np.float32)
    truth = np.stack([log_pmf(params, x).sum() for x in states])

    @jax.jit
    def run(params):
        q = family.dist(params)
        x, log_q = q.sample_and_log_prob(seed=key, sample_shape=(5_000,))
        return jax.vmap(q.log_prob)(states), x, log_q, jax.vmap(q.log_prob)(x)

    log_q, x, log_of_draws, again = run(params)
    np.testing.assert_allclose(log_q, truth, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.exp(log_q).sum(), 1, rtol=1e-5)
    assert x.shape == (5_000, 2)
    np.testing.assert_allclose(log_of_draws, again, rtol=1e-5)
    one_hot = (np.asarray(x)[:, None] == states).all(-1).astype(np.float32)
    assert_mean(one_hot, np.exp(truth), detects=0.07)
    with pytest.raises(AssertionError, match="biased"):  # the control: another order of the states
        assert_mean(one_hot, np.exp(truth)[::-1], detects=0.07)


@pytest.mark.parametrize("name", list(CASES))
def test_starts_at_the_mean(name):
    """`init` at a level near the middle: the mean of the member is there."""
    family, _, levels, _ = CASES[name]
    level = np.float32(0.25 * (levels - 1))
    levels_of_it = jnp.arange(levels, dtype=jnp.float32)[:, None]
    at = lambda like: jax.vmap(family.dist(family.init(None, like)).log_prob)(levels_of_it)
    mass = jnp.exp(jax.jit(at)(jnp.array([level])))
    assert abs(float(mass @ jnp.arange(levels)) - level) < 0.4


def test_logits_at_the_ends_stay_finite():
    """Log-odds of ±1e4, and a derivative at 0 that is that of softplus."""
    value = lambda l, x: families.bernoulli().dist({"logits": l}).log_prob(x)
    found = jax.value_and_grad(value)(jnp.array([1e4, -1e4, 0.0]), jnp.array([1.0, 0.0, 1.0]))
    np.testing.assert_allclose(found[0], -np.log(2), rtol=1e-6)
    np.testing.assert_allclose(found[1], [0, 0, 0.5], atol=1e-6)


@pytest.mark.parametrize("log_scale", [-9.0, -3.0, 2.0])
def test_all_256_levels_sum_to_one(log_scale):
    """Narrow densities and wide ones, with finite slopes at every level, the ends among them."""
    family = families.discretized_logistics(levels=256, components=1)

    @jax.jit
    def log_mass(params):
        levels = jnp.arange(256, dtype=jnp.float32)[:, None]
        return jax.vmap(family.dist(params).log_prob)(levels)

    params = {
        "logits": jnp.zeros((1, 1)),
        "loc": jnp.full((1, 1), 0.3),
        "log_scale": jnp.full((1, 1), log_scale),
    }
    np.testing.assert_allclose(jnp.exp(log_mass(params)).sum(), 1, rtol=2e-4)
    slopes = jax.jit(jax.jacrev(log_mass))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))


@pytest.mark.parametrize("name", list(CASES))
def test_path_gradients_of_its_draws_are_refused(name, key, unchecked):
    """As q: its draws carry no derivative, and reparam and dreg say so."""
    family, params, _, _ = CASES[name]
    log_joint = lambda x: -jnp.sum(x**2)

    def value(params, estimator):
        objective = estimator(vj.bounds.elbo)
        return objective(key, log_joint, family.dist(params), num_samples=2).value

    for estimator in (vj.gradients.reparam, vj.gradients.dreg):
        with pytest.raises(ValueError, match="vimco"):
            jax.grad(value)(params, estimator)


def test_as_q_a_score_estimator_is_unbiased(key):
    """vimco(elbo) over two bits against the sum over four states. Detects .02."""
    family, params, _, _ = CASES["bernoulli"]
    states = jnp.array(list(itertools.product([0.0, 1.0], repeat=2)))
    log_joint = lambda x: jnp.sum(x * jnp.array([1.0, -0.5])) + 0.7 * x[0] * x[1]

    def exact(params):
        log_q = jax.vmap(family.dist(params).log_prob)(states)
        return jnp.sum(jnp.exp(log_q) * (jax.vmap(log_joint)(states) - log_q))

    def value(params, key):
        objective = vj.gradients.vimco(vj.bounds.elbo)
        return objective(key, log_joint, family.dist(params), num_samples=2).value

    keys = jax.random.split(key, 20_000)
    found = jax.jit(jax.vmap(jax.grad(value), (None, 0)))(params, keys)
    truth = jax.grad(exact)(params)
    assert_mean(found, truth, detects=0.05)
    with pytest.raises(AssertionError, match="biased"):
        assert_mean(found, jax.tree.map(lambda g: 1.2 * g, truth), detects=0.05)


def test_refusals(unchecked):
    with pytest.raises(TypeError, match="one array of floats"):
        families.bernoulli().init(None, {"a": jnp.zeros(2)})
    with pytest.raises(TypeError, match="one array of floats"):
        families.beta_binomial(trials=3).init(None, jnp.zeros(2, jnp.int32))
    with pytest.raises(ValueError, match="levels must be at least 2"):
        families.discretized_logistics(levels=1)
    with pytest.raises(ValueError, match="shape of one draw"):
        families.bernoulli().dist({"logits": jnp.zeros(2)}).log_prob(jnp.zeros((3, 2)))
    with pytest.raises(TypeError, match="params must be those of families.bernoulli"):
        families.bernoulli().dist({"loc": jnp.zeros(2)})
    with pytest.raises(ValueError, match="edge must be between"):
        families.bernoulli(edge=0.5)
