"""Sequential Monte Carlo samplers: an unbiased Ẑ along fixed temperatures, and temperatures that are found."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import vijax as vj
from tests.bare import Gauss
from tests.particles.annealing import humps, unadjusted
from tests.statistics import assert_mean
from vijax import particles as P
from vijax.particles._samplers import next_temperature

WIDE = Gauss(0.0, np.float32(np.log(3.0)))


@partial(jax.jit, static_argnums=(1, 2))
def runs(key, transition, num_particles):
    """Return log Ẑ of 4,000 runs of a few particles on humps at ±2, log p(x) = 0."""
    how = {"partition": P.linear_partition(4), "transition": transition, "num_moves": 2}
    run = lambda key: P.tempered_smc(key, humps(2.0), WIDE, num_particles=num_particles, **how)
    return jax.vmap(lambda key: run(key).log_evidence)(jax.random.split(key, 4000))


def test_the_evidence_is_unbiased_with_few_particles(key):
    """Eight particles: E Ẑ = 1, a bias of .1 caught; its log is below 0; runs are log-weights for every bound."""
    log_z = runs(key, P.langevin(step_size=1.5), 8)
    assert_mean(jnp.exp(log_z), np.ones(()), detects=0.1)
    assert float(log_z.mean()) < -0.005
    np.testing.assert_allclose(vj.bounds.iwae(log_z), 0.0, atol=0.05)


@pytest.mark.slow
def test_moves_without_an_accept_step_are_found(key):
    """The control."""
    log_z = runs(key, unadjusted(step_size=1.5), 8)
    with pytest.raises(AssertionError, match="is biased"):
        assert_mean(jnp.exp(log_z), np.ones(()), detects=1.0)


@pytest.mark.slow
def test_temperatures_are_found(key):
    """Humps at ±4 under q = N(0, 3²): log Ẑ within .1, both humps kept, ESS at each temperature as asked for."""
    run = jax.jit(
        lambda key: P.adaptive_tempered_smc(
            key,
            humps(4.0),
            WIDE,
            transition=P.langevin(step_size=1.0),
            num_particles=2000,
            conditional_ess=0.8,
            most=20,
        )
    )
    made = run(key)
    assert isinstance(made, P.Tempered)
    used = int(made.num_temperatures)
    assert 2 <= used < 20
    assert np.all(np.diff(made.partition[: used + 1]) > 0)
    assert np.all(made.partition[used:] == 1)
    assert np.all(made.acceptance[:used] > 0.2)
    assert abs(float(made.log_evidence)) < 0.1
    assert 0.4 < float(jnp.mean(made.z > 0)) < 0.6


def test_the_next_temperature():
    """The conditional ESS there is the share that was asked for, of the particles that are possible."""
    log_ratio = jnp.asarray(np.random.default_rng(0).normal(size=400) * 5, jnp.float32)
    some = jnp.where(jnp.arange(400) < 200, log_ratio, -jnp.inf)
    found = jax.jit(lambda ratio: next_temperature(ratio, jnp.asarray(0.25), 0.7))
    for ratio, possible in ((log_ratio, 400), (some, 200)):
        beta = found(ratio)
        assert 0.25 < beta < 1
        ess = vj.diagnostics.ess((beta - 0.25) * ratio)
        np.testing.assert_allclose(ess, 0.7 * possible, rtol=2e-3)
    for ratio in (0.01 * log_ratio, jnp.full(400, -jnp.inf), jnp.zeros(400)):
        assert found(ratio) == 1


def test_nothing_is_possible(key):
    """log Ẑ is -inf at once; where half is possible, it is that of the half, and particles stay there."""
    how = {"transition": P.langevin(step_size=1.0), "num_particles": 100, "most": 3}

    @jax.jit
    def run(key, least):
        above = lambda z: jnp.where(z > least, WIDE.log_prob(z), -jnp.inf)
        return P.adaptive_tempered_smc(key, above, WIDE, **how)

    never = run(key, 1e6)
    assert never.log_evidence == -jnp.inf
    assert never.num_temperatures == 1
    half = run(key, 0.0)
    np.testing.assert_allclose(half.log_evidence, np.log(0.5), atol=0.5)
    assert np.all(half.z > 0)


def test_refusals(key):
    how = {"transition": P.langevin(step_size=1.0), "num_particles": 4}
    batch = Gauss(jnp.zeros(2), jnp.zeros(2))
    with pytest.raises(ValueError, match=r"batch shape \(\), got \(2,\): jax.vmap"):
        P.tempered_smc(key, norm.logpdf, batch, partition=[0.0, 1.0], **how)
    with pytest.raises(ValueError, match="conditional_ess must be between 0 and 1, got 1"):
        P.adaptive_tempered_smc(key, norm.logpdf, WIDE, conditional_ess=1.0, **how)
    with pytest.raises(ValueError, match="num_particles must be at least 1"):
        P.adaptive_tempered_smc(key, norm.logpdf, WIDE, **how | {"num_particles": 0})

    def slope(m):
        target = lambda z: norm.logpdf(z, m)
        return P.adaptive_tempered_smc(key, target, WIDE, most=2, **how).log_evidence

    with pytest.raises(ValueError, match="has no derivative"):
        jax.eval_shape(jax.grad(slope), 0.0)
