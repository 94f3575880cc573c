"""Systematic resampling: counts within one of their means, unbiased, and never an index of weight zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.statistics import assert_mean
from vijax.numerics import normalized_weights
from vijax.resampling import systematic

WEIGHTS = jnp.array([0.0, 0.55, 0.05, 0.0, 0.3, 0.1, 0.0])


def counts(chosen, n):
    return jnp.bincount(chosen, length=n)


@pytest.mark.parametrize("num_samples", [1, 7, 40])
def test_counts_are_within_one_of_their_means(num_samples, key):
    many = jax.jit(jax.vmap(lambda key: systematic(key, WEIGHTS, num_samples)))(
        jax.random.split(key, 500)
    )
    found = jax.vmap(lambda chosen: counts(chosen, 7))(many)
    assert np.all(np.abs(found - num_samples * WEIGHTS[None]) < 1 + 1e-4)
    assert np.all(found[:, WEIGHTS == 0] == 0)
    assert np.all(found.sum(1) == num_samples)
    np.testing.assert_array_equal(many, np.sort(many, 1))


def test_counts_are_unbiased(key):
    """By chance 2e-10, detects .05; the control is one shift of the points for all keys."""
    draw = jax.jit(jax.vmap(lambda key: counts(systematic(key, WEIGHTS, 3), 7)))
    found = draw(jax.random.split(key, 20_000))
    some = np.asarray(WEIGHTS) * 3 % 1 > 0  # the others are the same in every draw
    assert_mean(found[:, some].astype(jnp.float32), 3 * WEIGHTS[some], detects=0.05)
    fixed = draw(jnp.broadcast_to(key, 20_000))
    assert jnp.abs(fixed.mean(0) - 3 * WEIGHTS).max() > 0.1


def test_weights_need_not_sum_to_one_and_may_come_as_logarithms(key):
    log_w = jnp.log(WEIGHTS) - 700.0
    expected = systematic(key, WEIGHTS, 20)
    np.testing.assert_array_equal(systematic(key, normalized_weights(log_w), 20), expected)
    np.testing.assert_array_equal(systematic(key, 8 * WEIGHTS, 20), expected)


def test_no_rounding_returns_an_impossible_index(key):
    """Many small weights and then zeros: the last point may round up to the whole sum, and is kept below it."""
    weights = jnp.concatenate([jnp.full(3000, 1 / 3000, jnp.float32), jnp.zeros(5)])
    chosen = jax.jit(jax.vmap(lambda key: systematic(key, weights, 50_000)))(
        jax.random.split(key, 50)
    )
    assert chosen.max() < 3000
    # Where no index is possible the last one stands for all.
    np.testing.assert_array_equal(systematic(key, jnp.zeros(4), 3), 3)
