"""Expectations on log-normal weights, log w ~ N(log_z - s²/2, s²): limits in k by quadrature, biases at finite k exactly."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import oracles, table
from tests.statistics import assert_mean
from vijax import bounds

LOG_Z, S = 0.4, 0.7
E = np.linspace(-12, 12, 2401)
MASS = np.exp(-0.5 * E**2) / np.exp(-0.5 * E**2).sum()


def limit(bound, s=S):
    """A bound of infinitely many draws: of a grid of them, weighted by its mass."""
    return float(bound(jnp.asarray(LOG_Z - s**2 / 2 + s * E), weights=jnp.asarray(MASS)))


def moment(j, center, s=S):
    """E[(log w - center)^j], from the binomial and the moments of a standard normal."""
    mean = LOG_Z - s**2 / 2 - center
    normal = lambda i: 0 if i % 2 else s**i * math.prod(range(1, i, 2))
    return sum(math.comb(j, i) * mean ** (j - i) * normal(i) for i in range(j + 1))


# --- limits


def test_limits(x64):
    """Of every bound that has a closed form there: ± s²/2 and its kin."""
    gap = S**2 / 2
    expected = {
        bounds.elbo: LOG_Z - gap,
        bounds.iwae: LOG_Z,
        bounds.eubo: LOG_Z + gap,
        bounds.cubo: LOG_Z + gap,
        partial(bounds.cubo, n=3.0): LOG_Z + 2 * gap,
        partial(bounds.renyi, alpha=0.5): LOG_Z - gap / 2,
        partial(bounds.exp_cubo, n=2.0, reference=0.3): np.exp(2 * (LOG_Z - 0.3) + 2 * gap),
        partial(bounds.exp_cubo, n=3.0): np.exp(3 * LOG_Z + 6 * gap),
    }
    for order in (1, 3, 5):
        series = sum(moment(j, 0.2) / math.factorial(j) for j in range(order + 1))
        expected[partial(bounds.perturbative, order=order, reference=0.2)] = series
    for bound, value in expected.items():
        np.testing.assert_allclose(limit(bound), value, rtol=1e-9, err_msg=str(bound))


def test_the_thermodynamic_sums_bracket_the_evidence(x64):
    """The integrand is the line log_z - s²/2 + s² β: sums of T equal steps are s²/2T off, on either side, and close in."""
    for s in (0.3, 1.0, 3.0):
        for steps in (1, 2, 5, 20):
            partition = np.linspace(0, 1, steps + 1)
            lower, upper = (
                limit(partial(f, partition=partition), s)
                for f in (bounds.tvo_lower, bounds.tvo_upper)
            )
            np.testing.assert_allclose(
                (lower, upper), (LOG_Z - s**2 / 2 / steps, LOG_Z + s**2 / 2 / steps), rtol=1e-8
            )
    lower, upper = (
        limit(partial(f, partition=table.PARTITION)) for f in (bounds.tvo_lower, bounds.tvo_upper)
    )
    steps = np.diff(table.PARTITION)
    mean = lambda betas: LOG_Z - S**2 / 2 + S**2 * np.sum(steps * betas)
    np.testing.assert_allclose(
        (lower, upper), (mean(table.PARTITION[:-1]), mean(table.PARTITION[1:])), rtol=1e-9
    )
    finer = np.union1d(table.PARTITION, [0.05, 0.2, 0.7])
    assert lower < limit(partial(bounds.tvo_lower, partition=finer)) < LOG_Z
    assert LOG_Z < limit(partial(bounds.tvo_upper, partition=finer)) < upper
    assert limit(partial(bounds.tvo_lower, partition=[0.0, 1.0])) == pytest.approx(
        limit(bounds.elbo)
    )
    assert limit(partial(bounds.tvo_upper, partition=[0.0, 1.0])) == pytest.approx(
        limit(bounds.eubo)
    )


def test_perturbative_bounds_from_below_at_odd_orders_alone(x64):
    """At any reference, below p(x)/e^r, and closer with the order; a Taylor sum of even order is no bound: the control."""
    for s in (0.5, 1.5, 2.5):
        for r in (-2.0, 0.0, 0.4, 3.0):
            values = [
                limit(partial(bounds.perturbative, order=order, reference=r), s)
                for order in (1, 3, 5)
            ]
            assert max(values) < np.exp(LOG_Z - r)
    even = 1 + moment(1, 3.0, 2.5) + moment(2, 3.0, 2.5) / 2
    assert even > np.exp(LOG_Z - 3.0)


# --- finite k


def jackknife_mean(k, order, s=S):
    """E of the jackknife, exactly: the same combination of the exact E[IWAE] at k, k - 1, ... draws."""
    share = lambda j: (-1) ** j * (k - j) ** order / (math.factorial(order - j) * math.factorial(j))
    return sum(
        share(j) * oracles.log_normal_power_mean(k - j, 1.0, LOG_Z, s) for j in range(order + 1)
    )


@pytest.mark.slow
def test_the_bias_of_the_jackknife_falls_a_power_faster_with_each_order():
    """|bias| ∝ k^-(order + 1): from k = 32 to 64 by 2^(order + 1), within a fifth; order 0 is iwae's own 1/k."""
    for order in (0, 1, 2):
        near, far = (jackknife_mean(k, order) - LOG_Z for k in (32, 64))
        assert abs(np.log2(near / far) - (order + 1)) < 0.3, (order, near, far)
    biases = [abs(jackknife_mean(16, order) - LOG_Z) for order in (0, 1, 2, 3)]
    assert np.all(np.diff(biases) < 0), biases
    series = oracles.iwae_bias_series(16, oracles.log_normal_moments(S)) + LOG_Z
    np.testing.assert_allclose(jackknife_mean(16, 0), series, atol=1e-3)


def draws(key, k, n=200_000):
    return LOG_Z - S**2 / 2 + S * jax.random.normal(key, (k, n))


@pytest.mark.slow
def test_means_at_finite_k(key):
    """Jackknife against its exact mean, and what is unbiased at any k against its limit, in one program. Detects .03."""
    exact = {f"jackknife({order})": jackknife_mean(5, order) for order in (1, 2, 3)}
    functions = {name: table.BOUND[name].function for name in exact}
    functions["exp_cubo"] = partial(bounds.exp_cubo, reference=1.5)
    functions["perturbative"] = partial(bounds.perturbative, reference=0.2)
    functions["log_variance"] = bounds.log_variance
    exact["exp_cubo"] = np.exp(2 * (LOG_Z - 1.5) + S**2)
    exact["perturbative"] = sum(moment(j, 0.2) / math.factorial(j) for j in range(4))
    exact["log_variance"] = S**2 / 2
    found = jax.jit(lambda l: {name: f(l) for name, f in functions.items()})(draws(key, 5))
    assert_mean(found, exact, detects=0.03)
    wrong = {
        "jackknife(1)": jackknife_mean(5, 0)
    }  # the control: iwae's own mean is not the jackknife's
    with pytest.raises(AssertionError, match="biased"):
        assert_mean({"jackknife(1)": found["jackknife(1)"]}, wrong, detects=0.03)


def test_what_bounds_nothing_at_finite_k(key):
    """Eubo and tvo_upper are below log p at k = 1 and 2 and above for many draws."""
    upper = partial(bounds.tvo_upper, partition=jnp.linspace(0.0, 1.0, 5))
    run = jax.jit(
        lambda l: {k: [jnp.mean(f(l[:k])) for f in (bounds.eubo, upper)] for k in (1, 2, 64)}
    )
    found = run(draws(key, 64, 20_000))
    assert max(found[1]) < LOG_Z - 0.2  # the ELBO, .245 below
    assert max(found[2]) < LOG_Z - 0.02
    assert found[64][0] > LOG_Z + 0.1
    assert found[64][1] > LOG_Z + 0.01
