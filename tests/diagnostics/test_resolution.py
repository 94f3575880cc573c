"""What floats do not resolve: said by every number that rests on it, and by none that does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj
from vijax.diagnostics import (
    ess,
    evidence,
    khat,
    marginal_khat,
    psis,
    resolution,
    summarize,
)
from vijax.types import Draws

normal = jax.scipy.stats.norm.logpdf
INF = jnp.inf


def of_scale(key, constant, scale, *, of_q=0.0, k=2000):
    """q = N(0, 1) for N(0, scale²), nats above by a constant; with as many in log q too, log w is small."""
    z = jax.random.normal(key, (k,))
    return Draws(z, normal(z, 0.0, scale) + constant + of_q, normal(z) + of_q)


@jax.jit
def numbers(d):
    r = resolution(d.log_p, d.log_q)
    return (
        r,
        khat(d.log_w, resolution=r),
        marginal_khat(d.z, d.log_w, resolution=r),
        evidence(d.log_w, resolution=r).error,
        ess(d.log_w, resolution=r),
    )


@pytest.mark.parametrize("of_q", [0.0, 1e7])
def test_what_is_not_resolved_is_not_told(of_q, key):
    """A spread of .3 nats under 10⁷, where float32 has steps of one: no verdict, whether q is right or wrong."""
    for scale in (1.0, 1.1):
        d = of_scale(key, 1e7 - of_q, scale, of_q=of_q)
        r, *untold, size = numbers(d)
        np.testing.assert_allclose(r, 1.19, rtol=0.01)
        assert untold == [INF, INF, INF]
        assert np.isnan(size)
        said = summarize(d)
        assert said.verdict == 3
        assert "cannot tell. log p and log q are near 1e+07 nats, of which float32" in str(said)
        assert "jax_enable_x64" in str(said)
        if of_q == 0:  # seen from the log-weights alone
            assert khat(d.log_w) == INF
            assert np.isnan(ess(d.log_w))
            np.testing.assert_allclose(psis(d.log_w), jax.nn.log_softmax(d.log_w), atol=1e-5)


def test_in_double_precision_it_is_told(key, x64):
    said = [summarize(of_scale(key, 1e7, scale)) for scale in (1.0, 1.3, 3.0)]
    assert [int(s.verdict) for s in said] == [0, 1, 2]
    np.testing.assert_allclose(said[0].log_evidence.value, 1e7, atol=1e-6)


@pytest.mark.parametrize("constant", [0.0, 30.0, 3e3, -3e5])
def test_an_exact_q_keeps_its_verdict(constant, key):
    """log p and log q of tens to hundreds of thousands, and a sum of 400 terms that rounds each in its own way."""
    x = jax.random.normal(key, (2000, 400))
    log_q = jnp.sum(normal(x), 1)
    log_p = jnp.sum(normal(x[:, ::-1]), 1) + constant
    said = summarize(Draws(x[:, :2], log_p, log_q))
    assert said.verdict == 0
    assert said.resolution < 0.1


def test_one_draw_above_all_others_is_told(key):
    """Steps of a nat hide nothing where the next draw is a thousand nats below: q is wrong, and that is said."""
    log_w = jnp.asarray(1e7 - 1e3 * np.arange(2000.0), jnp.float32)
    np.testing.assert_allclose(ess(log_w), 1.0)
    assert summarize(Draws(jax.random.normal(key, (2000,)), log_w, 0 * log_w)).verdict == 2


def test_a_draw_that_counts_for_nothing_takes_no_digits(key):
    """Far outside, where log p is -10⁹, one draw is rounded to 64 nats, and has no weight."""
    d = of_scale(key, 0.0, 1.0)
    said = summarize(d._replace(log_p=d.log_p.at[7].set(-1e9)))
    assert said.verdict == 0
    assert said.resolution < 1e-5


def test_resolution_is_total_and_batched(unchecked):
    column = jnp.linspace(1.0, 2.0, 50)
    log_p = jnp.stack(
        [1e6 * column, jnp.full(50, -INF), column.at[3].set(jnp.nan), column.at[3].set(INF)], 1
    )
    found = resolution(log_p, jnp.zeros_like(log_p))
    np.testing.assert_allclose(found[0], 2e6 * 2.0**-23, rtol=1e-4)
    np.testing.assert_array_equal(found[1:], [0.0, jnp.nan, 0.0])
    with pytest.raises(ValueError, match="one shape"):
        resolution(jnp.zeros(5), jnp.zeros((5, 1)))


def test_the_mean_log_weight_is_no_better_than_its_digits(key):
    """At 3·10⁵ nats exact weights have an error of zero, and their mean is known to a thirtieth of a nat."""
    z = jax.random.normal(key, (2000,))
    said = summarize(Draws(z, normal(z) - 3e5, normal(z)))
    for measured in (said.elbo, said.log_evidence):
        assert 0.03 < measured.error < 0.05
        assert abs(measured.value + 3e5) <= measured.error


def test_a_latent_between_two_floats_is_named(key):
    """At 10⁸ float32 has steps of 8, and a sd of 3 is rounding; a latent that is one number has no sd to mislead."""
    e = jax.random.normal(key, (2000,))
    z = {"date": 1e8 + 3 * e, "one": jnp.full(2000, 1e8), "plain": 1e4 + e}
    text = str(summarize(Draws(z, normal(e), normal(e))))
    assert "float32 does not resolve date (1e+08, sd 3)" in text
    assert "resolve one" not in text
    del z["date"]
    assert "does not resolve" not in str(summarize(Draws(z, normal(e), normal(e))))


@pytest.mark.slow
def test_a_climb_that_ended_in_the_clouds_is_not_believed(key):
    """y ~ N(mu, eˢ), where float32's pathfinder from zeros runs to s = 10⁸: means of 10⁸ were given verdict 0."""
    y = 4800 + 300 * np.random.default_rng(1).normal(size=80)

    def log_joint(z):
        mu, s = z
        prior = -0.5 * ((mu - 5000) / 1000) ** 2 - 0.5 * ((s - 5) / 2) ** 2
        return prior - jnp.sum(s + 0.5 * ((jnp.asarray(y, mu.dtype) - mu) / jnp.exp(s)) ** 2)

    found = jax.jit(lambda key: vj.solvers.pathfinder(key, log_joint, jnp.zeros(2), num_samples=99))
    draws = found(key).draws
    assert draws.z[0, 1] > 1e6  # the control: it did
    assert summarize(draws).verdict == 3
