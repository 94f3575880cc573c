"""Blocks of iterates against all of them; the stopping rule on chains whose answers are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vijax.fitting import Verdict, _iterates, scale_units, stationary
from vijax.fitting._iterates import Tail


@jax.jit
def remember(xs):
    """Add iterates [n, ...] one by one, joining blocks when they are full."""

    def one(kept, x):
        kept = _iterates.add(kept, x, jnp.bool_(1))
        n = kept.number
        return jax.lax.cond((n >= 64) & (n & (n - 1) == 0), _iterates.join, lambda k: k, kept), None

    return jax.lax.scan(one, _iterates.empty(jax.tree.map(lambda l: l[0], xs)), xs)[0]


tail_of = _iterates.tail


def autoregressive(rho, n, seed=0, d=3):
    """Chains of variance 1 and autocorrelation rho: the variance of their mean is (1 + rho) / (1 - rho) / n."""
    noise = np.random.default_rng(seed).standard_normal((n, d))
    x = np.zeros((n, d))
    x[0] = noise[0]
    for i in range(1, n):
        x[i] = rho * x[i - 1] + np.sqrt(1 - rho**2) * noise[i]
    return x.astype(np.float32)


@pytest.mark.parametrize("n", [1, 3, 63, 64, 100, 1000])
def test_blocks_hold_the_means_and_spreads(n):
    x = autoregressive(0.9, n) + 100
    kept = remember(x)
    size, whole = int(kept.size), n // int(kept.size)
    assert int(kept.number) == n
    assert n <= 64 * size
    parts = x[: whole * size].astype(np.float64).reshape(whole, size, -1)
    np.testing.assert_allclose(kept.mean[:whole], parts.mean(1), rtol=1e-6)
    np.testing.assert_allclose(kept.square[:whole], parts.var(1) * size, rtol=2e-3, atol=1e-3)


def test_a_tail_is_what_all_its_iterates_say():
    x = autoregressive(0.5, 1000)
    tail = tail_of(remember(x))
    assert isinstance(tail, Tail)
    end, length = 1000 // 16 * 16, int(tail.number)
    part = x[end - length : end].astype(np.float64)
    np.testing.assert_allclose(tail.average, part.mean(0), atol=1e-5)
    early, late = part[: length // 2], part[length // 2 :]
    within = 0.5 * (early.var(0, ddof=1) + late.var(0, ddof=1))
    rhat = np.sqrt(
        (length // 2 - 1) / (length // 2) + 0.5 * (early.mean(0) - late.mean(0)) ** 2 / within
    )
    np.testing.assert_allclose(tail.rhat, rhat, rtol=1e-4)
    np.testing.assert_allclose(tail.worst, max(1, rhat.max()), rtol=1e-4)
    np.testing.assert_allclose(
        tail.ess, np.minimum(part.var(0, ddof=1) / np.square(tail.error), length), rtol=1e-3
    )


@pytest.mark.parametrize("rho", [0.0, 0.9])
def test_the_standard_error_hears_autocorrelation(rho):
    """Of 300 chains: its root mean square is the sd of their averages to 20 %; a naive one would be a quarter of it."""
    chains = np.stack([autoregressive(rho, 2000, seed, d=1) for seed in range(300)], 1)
    tail = tail_of(remember(chains))
    truth = np.sqrt((1 + rho) / (1 - rho) / int(tail.number))
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(tail.error))), truth, rtol=0.2)
    naive = 1 / np.sqrt(int(tail.number))
    assert rho == 0 or naive < 0.3 * truth


def test_a_fit_that_still_travels_does_not_stop():
    rule = stationary(error=0.2)
    still = autoregressive(0.5, 4096)
    travels = still + np.linspace(0, 5, 4096)[:, None].astype(np.float32)
    assert isinstance(rule(tail_of(remember(still))), Verdict)
    assert rule(tail_of(remember(still))).done
    verdict = rule(tail_of(remember(travels)))
    assert verdict.rhat > 1.1
    assert not verdict.done
    # One that has arrived: the tail begins after the journey.
    arrived = still + np.maximum(0, 5 - np.arange(4096) / 200)[:, None].astype(np.float32)
    tail = tail_of(remember(arrived))
    assert rule(tail).done
    assert tail.number < 3200
    assert np.all(np.abs(tail.average) < 4 * tail.error + 0.02)


def test_each_of_the_three_conditions_counts():
    tail = tail_of(remember(autoregressive(0.5, 4096)))
    assert stationary(error=0.2)(tail).done
    assert not stationary(error=0.001)(tail).done
    assert not stationary(error=0.2, ess=1e6)(tail).done
    assert not stationary(error=0.2, rhat=1.00000001)(tail).done
    with pytest.raises(ValueError, match="error must be above 0"):
        stationary(error=0.0)


def test_an_error_counts_in_units_of_the_scale():
    params = {
        "loc": jnp.array([1.0, 2.0]),
        "log_scale": jnp.log(jnp.array([10.0, 0.1])),
        "lower": jnp.zeros(1),
    }
    found = scale_units({"z": params, "rest": (jnp.ones(2), [jnp.zeros(3)])})
    np.testing.assert_allclose(found["z"]["loc"], [10.0, 0.1], rtol=1e-6)
    np.testing.assert_array_equal(found["z"]["log_scale"], 1.0)
    np.testing.assert_array_equal(found["rest"][1][0], 1.0)
    chains = {
        "loc": 100 * autoregressive(0.5, 2048),
        "log_scale": np.full((2048, 3), np.log(100), np.float32),
    }
    tail = tail_of(remember(chains))
    in_units = stationary(error=0.2)(tail)
    assert in_units.done
    plain = stationary(error=0.2, unit=lambda params: jax.tree.map(jnp.ones_like, params))(tail)
    assert not plain.done
    np.testing.assert_allclose(plain.error, 100 * in_units.error, rtol=1e-5)


def test_nothing_and_nan():
    """Constants are stationary; nan never is; what is not watched does not judge."""
    assert stationary()(tail_of(remember(np.ones((640, 2), np.float32)))).done
    bad = autoregressive(0.5, 640)
    bad[600] = np.nan
    assert not stationary(error=0.5)(tail_of(remember(bad))).done
    assert tail_of(remember(np.ones((1, 2), np.float32))).error[0] == np.inf
    assert stationary()(tail_of(remember({"bound": np.ones(640, np.float32), "params": ()}))).done
