"""expectation: E[f(z) | x] of weighted draws in a stream, as those draws give it all at once, whatever the chunks."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj
from vijax.draws import Expectation, expectation

pytestmark = pytest.mark.usefixtures("loose_ranks")

# q = N(0, 1)³ for the posteriors N(M, .8²).
M = jnp.array([0.5, 0.0, -1.0])
Q = distrax.Normal(jnp.zeros(3), jnp.ones(3))


def log_joint(z):
    return distrax.Normal(M, 0.8).log_prob(z) - 700.0


def values(z):
    """A mean far from 0, an event for each member, a boolean."""
    return {"far": z + 1000.0, "event": jnp.stack([z, z**2], -1), "above": z > 0}


def test_it_is_what_the_draws_give_all_at_once(key):
    draws = vj.draws.weigh(key, log_joint, Q, num_samples=1000)
    whole = vj.diagnostics.moments(jax.vmap(values)(draws.z), draws.log_w)
    for chunk_size in (None, 64, 999):
        run = jax.jit(
            lambda key, c=chunk_size: expectation(
                key, log_joint, Q, values, num_samples=1000, chunk_size=c
            )
        )
        found = run(key)
        assert isinstance(found, Expectation)
        np.testing.assert_allclose(found.log_w, draws.log_w, rtol=1e-6)
        for name in whole.mean:
            np.testing.assert_allclose(found.value[name], whole.mean[name], rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(found.error[name], whole.mean_error[name], rtol=2e-3)


def test_value_and_error_are_right(key):
    """500 runs: their mean is E[z | x] within five standard errors, 2e-6, their spread is the stated error to a tenth.

    The control, draws without weights, is 0 and not M.
    """
    run = lambda key: expectation(key, log_joint, Q, lambda z: z, num_samples=200, chunk_size=50)
    found = jax.jit(jax.vmap(run))(jax.random.split(key, 500))
    error = found.value.std(0) / np.sqrt(500)
    # Self-normalization leaves a bias of order 1/K.
    assert np.all(np.abs(found.value.mean(0) - M) < 5 * error + 1.5 / 200)
    np.testing.assert_allclose(found.value.std(0), np.sqrt(np.mean(found.error**2, 0)), rtol=0.1)
    assert np.abs(found.value.mean(0)[2]) > 50 * error[2]


def test_memory_does_not_grow_with_the_draws(key):
    """What XLA holds for 200,000 draws in chunks is what it holds for 20,000 but for their log-weights."""

    def held(k):
        wide = lambda z: jnp.broadcast_to(z[:, None], (3, 100))
        run = lambda key: expectation(key, log_joint, Q, wide, num_samples=k, chunk_size=100)
        return jax.jit(run).lower(key).compile().memory_analysis().temp_size_in_bytes

    few, many = held(20_000), held(200_000)
    assert (
        many - few < 40 * 180_000
    )  # keys and log-weights; values of f alone would be 1,200 bytes a draw
    assert many < 200_000 * 300


def test_extremes(key):
    run = lambda log_joint, f=lambda z: z, k=100: jax.jit(
        lambda key: expectation(key, log_joint, Q, f, num_samples=k, chunk_size=7)
    )(key)
    impossible = run(lambda z: jnp.full(3, -jnp.inf))
    assert np.all(np.isnan(impossible.value))
    assert np.all(np.isposinf(impossible.error))
    # A draw without weight counts for nothing, whatever f is there.
    half = run(
        lambda z: jnp.where(z > 0, log_joint(z), -jnp.inf), lambda z: jnp.where(z > 0, z, jnp.nan)
    )
    assert np.all(np.isfinite(half.value))
    assert np.all(np.isfinite(half.error))
    assert np.all(np.isposinf(run(log_joint, k=1).error))
    best = run(lambda z: 1e5 * z)
    np.testing.assert_allclose(
        best.value, vj.draws.weigh(key, log_joint, Q, num_samples=100).z.max(0)
    )
    assert np.all(np.isposinf(best.error))
    constant = run(log_joint, lambda z: jnp.full(3, 7.0))
    np.testing.assert_allclose(constant.value, 7.0, rtol=1e-6)
    np.testing.assert_allclose(constant.error, 0.0, atol=1e-6)


def test_noise_of_the_model_and_no_derivative(key):
    noisy = vj.targets.keyed(lambda key, z: log_joint(z) + 0.1 * jax.random.normal(key))
    run = lambda key: expectation(key, noisy, Q, lambda z: z, num_samples=50, chunk_size=20)
    found = jax.jit(run)(key)
    draws = vj.draws.weigh(key, noisy, Q, num_samples=50)
    np.testing.assert_allclose(found.log_w, draws.log_w, rtol=1e-6)
    value = lambda m: expectation(
        key, log_joint, distrax.Normal(m, 1.0), lambda z: z, num_samples=9, chunk_size=4
    ).value.sum()
    np.testing.assert_array_equal(jax.grad(value)(jnp.zeros(3)), 0.0)


def test_refusals(key, unchecked):
    ask = lambda f, log_joint=log_joint, **how: expectation(
        key, log_joint, Q, f, **({"num_samples": 4} | how)
    )
    with pytest.raises(ValueError, match=r"begin with q's batch shape \(3,\)"):
        ask(jnp.sum)
    with pytest.raises(TypeError, match="real numbers"):
        ask(lambda z: z * 1j)
    with pytest.raises(TypeError, match="lack a return"):
        ask(lambda z: None)
    with pytest.raises(TypeError, match="f must be a function"):
        ask(jnp.zeros(3))
    with pytest.raises(ValueError, match="chunk_size must be at least 1"):
        ask(lambda z: z, chunk_size=0)
    batch = vj.targets.minibatch(lambda z: -jnp.sum(z**2), lambda z: z, num_data=9)
    with pytest.raises(ValueError, match="the mean alone is right"):
        ask(lambda z: z, batch)
