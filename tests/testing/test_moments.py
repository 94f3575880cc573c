"""gradient_moments: the numbers are right, whatever the batches, under jit and vmap, in either precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vijax.testing import Moments, gradient_moments
from vijax.testing._moments import gather


def value(key, params):
    """Return a scalar whose gradient is 2 (a + e) for a normal e, and 3 for b."""
    return jnp.sum((params["a"] + jax.random.normal(key, (2,))) ** 2) + 3 * params["b"]


PARAMS = {"a": jnp.array([1.0, -0.5]), "b": jnp.array(2.0)}


def test_mean_deviation_and_snr(key):
    """Mean 2a, sd 2: to five standard errors of 100,000 keys, .032 and .022; b's gradient does not vary."""
    found = gradient_moments(key, value, PARAMS, num_keys=100_000)
    assert isinstance(found, Moments)
    np.testing.assert_allclose(found.mean["a"], [2.0, -1.0], atol=0.032)
    np.testing.assert_allclose(found.sd["a"], 2.0, atol=0.023)
    np.testing.assert_allclose(found.snr["a"], np.abs(found.mean["a"]) / found.sd["a"], rtol=1e-6)
    assert found.mean["b"] == 3.0
    assert found.sd["b"] == 0.0
    assert found.snr["b"] == np.inf


def test_no_signal_has_no_snr(key):
    assert gradient_moments(key, lambda key, p: 0.0 * p, 1.0, num_keys=10).snr == 0.0


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_batches_change_nothing(batch_size, key):
    whole = jax.vmap(lambda i: jax.grad(value, 1)(jax.random.fold_in(key, i), PARAMS))(
        jnp.arange(150)
    )
    found = gradient_moments(key, value, PARAMS, num_keys=150, batch_size=batch_size)
    jax.tree.map(
        lambda m, w: np.testing.assert_allclose(m, w.mean(0), rtol=2e-5), found.mean, whole
    )
    jax.tree.map(
        lambda s, w: np.testing.assert_allclose(s, w.std(0, ddof=1), rtol=2e-5), found.sd, whole
    )


def test_higher_moments_merge(key):
    """Third and fourth central moments of a skewed sample, in batches of which the last is not full."""
    sums = gather(key, jax.random.exponential, 1003, 64)
    sample = jax.vmap(lambda i: jax.random.exponential(jax.random.fold_in(key, i)))(
        jnp.arange(1003)
    )
    sample = np.asarray(sample, np.float64)
    d = sample - sample.mean()
    assert sums.keys == 1003
    for found, power in ((sums.m2, 2), (sums.m3, 3), (sums.m4, 4)):
        np.testing.assert_allclose(found, (d**power).sum(), rtol=1e-4)


def test_far_from_zero(key):
    """A mean of 10^4 deviations costs no digits of the deviation, as a sum of squares would."""
    found = gradient_moments(
        key, lambda key, p: p * (1e4 + jax.random.normal(key)), 1.0, num_keys=50_000
    )
    np.testing.assert_allclose(found.sd, 1.0, rtol=0.02)


@pytest.mark.slow
def test_transforms(key, x64):
    run = lambda key: gradient_moments(
        key, value, jax.tree.map(jnp.float64, PARAMS), num_keys=100, batch_size=30
    )
    plain = run(key)
    assert plain.mean["a"].dtype == np.float64
    keys = jax.random.split(key, 3)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), jax.jit(run)(key), plain
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-12),
        jax.vmap(run)(keys),
        run(keys[1]),
    )


@pytest.mark.slow
def test_memory_is_flat_in_the_number_of_keys(key):
    """By XLA's count of temporary memory; the control, all keys at once, grows."""

    def size(num_keys, batch_size):
        run = lambda key: gradient_moments(
            key, value, PARAMS, num_keys=num_keys, batch_size=batch_size
        )
        return jax.jit(run).lower(key).compile().memory_analysis().temp_size_in_bytes

    assert size(1_000_000, 100) <= size(1000, 100) + 1000
    assert size(100_000, 100_000) > 10 * size(100_000, 100)


@pytest.mark.usefixtures("unchecked")
def test_refusals(key):
    run = lambda **changed: gradient_moments(
        **({"key": key, "value": value, "params": PARAMS, "num_keys": 10} | changed)
    )
    with pytest.raises(TypeError, match="typed key"):
        run(key=jax.random.PRNGKey(0))
    with pytest.raises(ValueError, match=r"scalar.*take the mean"):
        run(value=lambda key, p: p["a"])
    with pytest.raises(ValueError, match="num_keys must be at least 2"):
        run(num_keys=1)
    with pytest.raises(TypeError, match="batch_size must be a Python int"):
        run(batch_size=2.5)


def test_moments_in_half_precision_do_not_stall(key):
    def noisy(key, p):
        return p * (1 + jax.random.normal(key).astype(p.dtype))

    found = gradient_moments(key, noisy, jnp.array(1.0, jnp.bfloat16), num_keys=100_000)
    np.testing.assert_allclose(found.sd, 1.0, rtol=0.02)
    np.testing.assert_allclose(found.mean, 1.0, rtol=0.02)
