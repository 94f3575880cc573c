"""Draws: one key for each, antithetic pairs, and log-weights."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import vijax as vj
from tests.bare import Coin, Gauss
from tests.statistics import assert_mean, assert_variance_ratio
from vijax.draws import antithetic, iid, weigh

Q = Gauss(jnp.array([0.2, -0.4]), jnp.array([0.0, -0.5]))


def log_joint(z):
    return norm.logpdf(z, 0.0, 1.0)


def test_weigh_returns_log_densities(key):
    """k rows of z, log p and log q, each as its own function says; log_w their difference."""
    draws = weigh(key, log_joint, Q, num_samples=5)
    np.testing.assert_allclose(draws.log_p, jax.vmap(log_joint)(draws.z))
    np.testing.assert_allclose(draws.log_q, jax.vmap(Q.log_prob)(draws.z), rtol=1e-6)
    np.testing.assert_allclose(draws.log_w, draws.log_p - draws.log_q)
    assert draws.z.shape == draws.log_w.shape == (5, 2)
    assert draws.aux is None
    assert draws.weights is None


def test_factors_are_summed(key):
    """A log_joint may return its factors by name."""
    parts = weigh(key, lambda z: {"prior": log_joint(z), "likelihood": -(z**2)}, Q, num_samples=3)
    whole = weigh(key, lambda z: log_joint(z) - z**2, Q, num_samples=3)
    np.testing.assert_allclose(parts.log_p, whole.log_p)
    with pytest.raises(ValueError, match=r"shape \(\)"):
        weigh(key, lambda z: {"prior": log_joint(z), "likelihood": jnp.sum(z)}, Q, num_samples=3)


def test_weights_are_unbiased_for_the_evidence(key):
    """E[w] = p(x): z ~ N(0, 1), x | z ~ N(z, 1) at x = .5. One number; by chance 2e-10; detects .01."""
    q = Gauss(jnp.float32(0.2), jnp.float32(0.0))
    draws = weigh(key, lambda z: log_joint(z) + norm.logpdf(0.5, z, 1.0), q, num_samples=60_000)
    assert_mean({"w": jnp.exp(draws.log_w)}, {"w": norm.pdf(0.5, 0.0, 2**0.5)}, detects=0.01)


def test_iid_draws_are_keyed_one_by_one(key):
    """Row k is q's own draw with seed k; a single draw takes the key as it is."""
    seeds = iid.seeds(key, 3)
    draws = weigh(key, log_joint, Q, num_samples=3).z
    for k in range(3):
        np.testing.assert_array_equal(draws[k], Q.sample_and_log_prob(seed=seeds[k])[0])
    np.testing.assert_array_equal(
        weigh(key, log_joint, Q, num_samples=1).z[0], Q.sample_and_log_prob(seed=key)[0]
    )
    assert iid.independent
    assert len(np.unique(draws)) == 6


@pytest.mark.parametrize("q", [Coin(jnp.zeros(2)), {"a": Q}])
def test_antithetic_draws_need_transport(q, key):
    with pytest.raises(TypeError, match=r"q.uniforms .*q.transport.*vijax.families"):
        weigh(key, lambda z: jnp.zeros(2), q, num_samples=2, draw=antithetic)


@pytest.mark.slow
def test_antithetic_pairs(key):
    """Rows 2i and 2i + 1 mirror each other about the mean, pairs differ, and each draw alone is q's own."""
    q = vj.families.full_rank().dist(
        {
            "loc": jnp.array([1.0, -2.0]),
            "log_scale": jnp.array([0.1, -0.7]),
            "lower": jnp.array([0.8]),
        }
    )
    target = lambda z: -0.5 * jnp.sum(z**2)
    draws = weigh(key, target, q, num_samples=40_000, draw=antithetic)
    np.testing.assert_allclose(
        draws.z[::2] + draws.z[1::2],
        jnp.broadcast_to(jnp.array([[2.0, -4.0]]), (20_000, 2)),
        atol=1e-4,
    )
    assert len(np.unique(np.asarray(draws.z)[::2, 0])) > 19_900
    np.testing.assert_allclose(draws.log_q, jax.vmap(q.log_prob)(draws.z), atol=1e-4)
    # Marginally q: 2e-10 a number by chance, detects .05.
    assert_mean({"square": (draws.z[::2, 0] - 1.0) ** 2}, {"square": np.exp(0.2)}, detects=0.15)
    means = lambda draw: jnp.mean(
        weigh(key, target, q, num_samples=40_000, draw=draw).z.reshape(-1, 2, 2), 1
    )
    assert_variance_ratio(means(iid), means(antithetic), at_least=1e6)


def test_pairs_are_even(key):
    q = vj.families.mean_field().dist({"loc": jnp.zeros(2), "log_scale": jnp.zeros(2)})
    with pytest.raises(ValueError, match="must be even, got 3"):
        weigh(key, lambda z: jnp.sum(z), q, num_samples=3, draw=antithetic)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked", "loose_ranks")
def test_antithetic_draws_have_the_tails_of_q():
    """The sixth and eighth moments over the whole grid of cells, 15 and 105; a u of 0 alone would add 47 to the last."""
    u = (jnp.arange(2.0**20, dtype=jnp.float32) + 0.5) * 2.0**-20
    z = np.asarray(jax.scipy.stats.norm.ppf(u), np.float64)
    np.testing.assert_allclose([np.mean(z**6), np.mean(z**8)], [15.0, 105.0], rtol=5e-3)
    q = vj.families.mean_field().dist({"loc": jnp.zeros(1), "log_scale": jnp.zeros(1)})
    for word in (0, 2**32 - 1):  # whatever bits come, no draw is at a clip of the quantile function
        u = vj.draws._qmc.unit(jnp.full((1,), word, jnp.uint32))
        assert 0 < u < 1
        assert np.abs(q.transport(u)) < 6


@pytest.mark.usefixtures("unchecked", "loose_ranks")
def test_coupled_draws_under_bounds_of_independent_ones(key):
    q = vj.families.mean_field().dist({"loc": jnp.zeros(1), "log_scale": jnp.zeros(1)})
    level = vj.draws.level(key, vj.draws.harmonic(4))
    for bound in (
        vj.bounds.log_variance,
        partial(vj.bounds.jackknife, order=1),
        partial(vj.bounds.sumo, level=level),
    ):
        with pytest.raises(ValueError, match="use draws.iid"):
            vj.gradients.reparam(bound, draw=vj.draws.antithetic)(
                key, lambda z: -jnp.sum(z**2), q, num_samples=4
            )
