"""Rao-Blackwellized filters: with nothing left to draw they are Kalman and the forward algorithm, and in between better than plain ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj
from tests.bare import Coin, Gauss
from tests.marks import some
from tests.particles import lines
from tests.sequences import problem
from tests.statistics import Z
from vijax.particles import (
    GaussianStep,
    StateSpace,
    conditionally_discrete,
    conditionally_gaussian,
    fisher,
    rao_blackwell,
    scored,
    smc,
)


class Toss(Coin):
    fixed_support = True


def certain(*_):
    return Toss(jnp.array(0.0), jnp.int32)


def test_a_linear_model_is_integrated_exactly(x64):
    """One particle, whose coin says nothing: log Ẑ is Kalman's, missing components included."""
    model, x, mask = problem.data("varying, parts missing")

    def linear(u, x):
        now, before = x["t"], jnp.maximum(x["t"] - 1, 0)
        return GaussianStep(
            jnp.asarray(model.transition)[before],
            jnp.asarray(model.transition_cov)[before],
            jnp.asarray(model.emission)[now],
            jnp.asarray(model.emission_cov)[now],
            jnp.asarray(model.transition_offset)[before],
            jnp.asarray(model.emission_offset)[now],
        )

    start = lambda u: (jnp.asarray(model.initial_mean), jnp.asarray(model.initial_cov))
    collapsed = conditionally_gaussian(
        certain, certain, start, linear, observation=lambda x: x["x"]
    )
    data = {"x": jnp.asarray(x), "t": jnp.arange(len(x))}
    run = jax.jit(lambda k: smc(k, collapsed, data, num_particles=1))
    result = run(jax.random.key(0))
    exact = vj.sequences.kalman_filter(model, x, mask=mask)
    np.testing.assert_allclose(result.increments, exact.log_predictive, rtol=1e-6)
    (mean, cov), _ = result.z.carried
    np.testing.assert_allclose(mean[0], exact.mean[-1], rtol=1e-6)
    np.testing.assert_allclose(cov[0], exact.cov[-1], rtol=1e-6)


def test_a_discrete_chain_is_summed_exactly(key):
    start, move = jnp.log(jnp.array([0.6, 0.4])), jnp.log(jnp.array([[0.9, 0.1], [0.3, 0.7]]))
    like = jax.random.normal(key, (5, 2))
    collapsed = conditionally_discrete(
        certain, certain, lambda u, x: start, lambda u, x: move, lambda u, x: x
    )
    result = jax.jit(lambda k: smc(k, collapsed, like, num_particles=1))(key)
    exact = jax.jit(vj.sequences.hmm)(start, move, like)
    marginals = jax.jit(lambda path: path.log_marginals())(exact.posterior)
    np.testing.assert_allclose(result.log_evidence, exact.log_evidence, rtol=1e-5)
    np.testing.assert_allclose(result.z.carried[0][0], marginals[-1], rtol=1e-4, atol=1e-5)


# A level that moves in calm or in turmoil, a coin's chain: two regimes.
STAY, SCALES = 1.5, jnp.array([0.3, 1.5])
ONE = jnp.ones((1, 1))


def switching(stay=STAY):
    return conditionally_gaussian(
        lambda x: Toss(jnp.array(0.0), jnp.int32),
        lambda u, x: Toss(jnp.where(u == 1, stay, -stay), jnp.int32),
        lambda u: (jnp.zeros(1), ONE),
        lambda u, x: GaussianStep(ONE, SCALES[u] ** 2 * ONE, ONE, 0.5 * ONE),
        observation=lambda x: x[None],
    )


def exact(stay, x):
    """Return log p(x), the sum over all paths of the coin."""
    t = len(x)
    paths = (jnp.arange(2**t)[:, None] >> jnp.arange(t)[None]) & 1

    def one(c):
        log_p = jnp.log(0.5) + jnp.sum(jax.nn.log_sigmoid(jnp.where(c[1:] == c[:-1], stay, -stay)))
        model = vj.sequences.LinearGaussian(
            jnp.zeros(1), ONE, ONE, (SCALES[c[1:]] ** 2)[:, None, None], ONE, 0.5 * ONE
        )
        return log_p + vj.sequences.kalman_filter(model, x[:, None]).log_evidence

    return jax.nn.logsumexp(jax.vmap(one)(paths))


class Pair:
    """A coin, and a normal given it."""

    reparameterized, fixed_support = False, True

    def __init__(self, logit, loc, scales):
        self.coin, self.loc, self.scales = Toss(logit, jnp.int32), loc, scales

    def sample_and_log_prob(self, *, seed, sample_shape=()):
        one, two = jax.random.split(seed)
        u, log_u = self.coin.sample_and_log_prob(seed=one)
        v, log_v = Gauss(self.loc, jnp.log(self.scales[u])).sample_and_log_prob(seed=two)
        return (u, v), log_u + log_v

    def log_prob(self, z):
        return self.coin.log_prob(z[0]) + Gauss(self.loc, jnp.log(self.scales[z[0]])).log_prob(z[1])


def plain(stay=STAY):
    return StateSpace(
        lambda x: Pair(jnp.array(0.0), jnp.array(0.0), jnp.ones(2)),
        lambda z, x: Pair(jnp.where(z[0] == 1, stay, -stay), z[1], SCALES),
        lambda z, x: Gauss(z[1], 0.5 * jnp.log(0.5)).log_prob(x),
    )


X = lines.X


@pytest.mark.slow
def test_what_is_integrated_adds_no_variance(key):
    """Evidence unbiased (by chance 1e-9, sees 3%), with less than a third of the plain filter's variance."""
    truth = jax.jit(exact)(STAY, X)
    run = lambda model: lines.filters(
        key, 3000, lambda k: smc(k, model, X, num_particles=10).log_evidence
    )
    collapsed, both = run(switching()), run(plain())
    for log_z in (collapsed, both):
        ratio = np.exp(np.asarray(log_z, np.float64) - float(truth))
        assert abs(ratio.mean() - 1) < Z * ratio.std() / len(ratio) ** 0.5
    assert collapsed.var() < both.var() / 3


@pytest.mark.slow
def test_slopes_pass_through_what_is_carried(key):
    """Of the held form, weighed by Ẑ: the exact slope; a state that was held as a whole would lose the likelihood's."""
    slope = lambda stay, k: fisher(k, switching(stay), X, num_particles=10).value
    keys = jax.random.split(key, 4000)
    log_z, found = jax.jit(jax.vmap(jax.value_and_grad(slope), (None, 0)))(STAY, keys)
    truth, expected = jax.value_and_grad(exact)(STAY, X)
    weighed = np.exp(np.asarray(log_z - truth, np.float64)) * np.asarray(found, np.float64)
    error = weighed.std() / len(weighed) ** 0.5
    assert abs(weighed.mean() - expected) < Z * error
    assert Z * error < 0.3 * abs(expected)


@pytest.mark.parametrize("form", some([fisher, scored], "fisher", name=lambda f: f.__name__))
def test_a_parameter_of_the_carried_part_alone_has_its_slope(form, key):
    """With one particle the coin's weights do not matter: the slope is that of Kalman's steps, by differences."""

    def model(log_noise):
        return conditionally_gaussian(
            certain,
            certain,
            lambda u: (jnp.zeros(1), ONE),
            lambda u, x: GaussianStep(ONE, 0.5 * ONE, ONE, jnp.exp(log_noise) * ONE),
            observation=lambda x: x[None],
        )

    value = jax.jit(lambda a: form(key, model(a), X, num_particles=1).value)
    expected = (value(0.01) - value(-0.01)) / 0.02
    np.testing.assert_allclose(jax.jit(jax.grad(value))(0.0), expected, rtol=1e-2)


def test_any_statistics_may_be_carried(key):
    """Beta-Bernoulli: counts, whose predictive is exact for a coin of unknown bias."""

    def begin(u, x):
        return update(jnp.ones(2), u, x)

    def update(counts, u, x):
        return counts.at[x].add(1.0), jnp.log(counts[x] / counts.sum())

    model = rao_blackwell(certain, certain, begin, update)
    x = jnp.array([1, 1, 0, 1])
    result = jax.jit(lambda k: smc(k, model, x, num_particles=3))(key)
    np.testing.assert_allclose(result.log_evidence, -jnp.log(20.0), rtol=1e-5)  # B(4, 2)
