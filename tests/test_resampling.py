"""Resampling: counts unbiased, close to their means, and never an index of weight zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.statistics import assert_mean
from vijax.numerics import normalized_weights
from vijax.resampling import multinomial, residual, stratified, systematic

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


SCHEMES = [systematic, stratified, residual, multinomial]


@pytest.mark.parametrize("scheme", SCHEMES[1:], ids=lambda scheme: scheme.__name__)
def test_every_scheme_is_unbiased(scheme, key):
    """Counts of each index: by chance 2e-10, detects .1 of 5; the control hands a twentieth of the mass on."""
    draw = jax.jit(jax.vmap(lambda key, w: counts(scheme(key, w, 5), 7), (0, None)))
    keys = jax.random.split(key, 20_000)
    found = draw(keys, WEIGHTS).astype(jnp.float32)
    assert_mean(found, 5 * WEIGHTS, detects=0.1)
    wrong = draw(keys, WEIGHTS.at[1].add(-0.05).at[4].add(0.05)).astype(jnp.float32)
    with pytest.raises(AssertionError, match="is biased"):
        assert_mean(wrong, 5 * WEIGHTS, detects=0.1)
    assert found[:, WEIGHTS == 0].max() == 0
    assert np.all(found.sum(1) == 5)


@pytest.mark.parametrize("scheme", SCHEMES[1:3], ids=lambda scheme: scheme.__name__)
def test_counts_stay_close_to_their_means(scheme, key):
    draw = jax.jit(jax.vmap(lambda key: counts(scheme(key, WEIGHTS, 40), 7)))
    off = draw(jax.random.split(key, 500)) - 40 * WEIGHTS[None]
    if scheme is stratified:
        assert np.abs(off).max() < 2
    else:
        assert off.min() > -1  # whole copies are certain


def test_multinomial_indices_are_independent_but_for_their_order(key):
    """Variances and covariances of counts are the multinomial's, within 5 standard errors of 20,000 draws."""
    draw = jax.jit(jax.vmap(lambda key: counts(multinomial(key, WEIGHTS, 6), 7)))
    found = np.asarray(draw(jax.random.split(key, 20_000)), np.float64)
    w = np.asarray(WEIGHTS, np.float64)
    np.testing.assert_allclose(np.cov(found.T), 6 * (np.diag(w) - np.outer(w, w)), atol=0.08)
    sorted_rows = multinomial(key, WEIGHTS, 6)
    np.testing.assert_array_equal(sorted_rows, np.sort(sorted_rows))


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.__name__)
def test_edges_of_every_scheme(scheme, key):
    """One index; one weight; equal weights, which residual copies once each; no weight at all."""
    np.testing.assert_array_equal(scheme(key, jnp.ones(1), 3), 0)
    np.testing.assert_array_equal(scheme(key, jnp.array([0.0, 2.0, 0.0]), 3), 1)
    np.testing.assert_array_equal(scheme(key, jnp.zeros(4), 3), 3)
    if scheme is residual:
        np.testing.assert_array_equal(scheme(key, jnp.full(1000, 1e-3), 1000), jnp.arange(1000))


def test_memory_is_linear_in_the_number_of_indices(key):
    """Not a table of n · K, as jax.random.categorical has: some numbers for each of 10,000."""
    for scheme in SCHEMES:
        program = jax.jit(lambda key, w, scheme=scheme: scheme(key, w, 10_000))
        memory = program.lower(key, jnp.ones(10_000)).compile().memory_analysis()
        assert memory.temp_size_in_bytes < 10_000 * 80
