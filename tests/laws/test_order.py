"""Order: which bound is above which in expectation, what shifts and permutations do, and whose gradients vary less."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj
from tests import cases, oracles, table
from tests.laws.test_unbiased import gradients
from tests.marks import some
from tests.statistics import assert_mean, assert_variance_ratio

BELOW = [row for row in table.BOUNDS if row.below]
POWERS = [row for row in table.BOUNDS if row.power]
LOG_Z, S = 0.7, 0.8  # log-normal weights: log w ~ N(log_z - s^2/2, s^2)


def log_weights(key, n, k, s=S, log_z=LOG_Z):
    return log_z - s**2 / 2 + s * jax.random.normal(key, (k, n))


# --- values in expectation, on log-normal weights


@pytest.mark.parametrize("k", some([1, 2, 5, 16], "1", "5"))
@pytest.mark.parametrize("row", POWERS, ids=lambda row: row.name)
def test_power_means_have_their_exact_expectation(row, k, key):
    """E[1/n log mean w^n] at finite k. Fails by chance with probability 2e-10; detects .02 nats."""
    found = row.function(log_weights(key, 200_000, k))
    assert_mean(
        {"value": found},
        {"value": oracles.log_normal_power_mean(k, row.power, LOG_Z, S)},
        detects=0.02,
    )


@pytest.mark.slow
def test_cubo_bounds_nothing_at_finite_k(key):
    """At s = 1.5, log p = 0: E[cubo_2] is -1.125, -.131, .419 at k = 1, 4, 16, and 1.125 in the limit. Detects .05 nats.

    The two smaller ones are below log p and the third is 0.7 below the limit: an upper bound it is not.
    """
    for k, expected in ((1, -1.125), (4, -0.131), (16, 0.419)):
        exact = oracles.log_normal_power_mean(k, 2.0, 0.0, 1.5)
        assert abs(exact - expected) < 1e-3
        found = vj.bounds.cubo(log_weights(key, 120_000, k, 1.5, 0.0))
        assert_mean({"value": found}, {"value": exact}, detects=0.05)


def test_the_limits_of_the_oracle():
    """The oracle itself: elbo + s^2/2 n at k = 1, log_z + (n - 1) s^2/2 for many draws, and Nowozin's series between."""
    for n in (0.5, 1.0, 2.0, -1.0):
        np.testing.assert_allclose(
            oracles.log_normal_power_mean(1, n, LOG_Z, S), LOG_Z - S**2 / 2, atol=1e-9
        )
        limit = LOG_Z + (n - 1) * 0.3**2 / 2
        np.testing.assert_allclose(
            oracles.log_normal_power_mean(10_000, n, LOG_Z, 0.3), limit, atol=1e-4
        )
    for k in (50, 200):  # the next term of the series is O(k^-3)
        series = oracles.iwae_bias_series(k, oracles.log_normal_moments(0.5))
        np.testing.assert_allclose(
            oracles.log_normal_power_mean(k, 1.0, 0.0, 0.5), series, atol=0.03 / k**3
        )


RISES = {
    "elbo": 0,
    "multi_iwae(2)": 0,
    "renyi(2)": -1,
}  # with k; multi_iwae of k = groups is the elbo for one more k


@pytest.mark.parametrize("row", BELOW, ids=lambda row: row.name)
def test_lower_bounds_are_below_and_rise(row):
    """elbo = B_1 <= B_2 <= B_3 <= log p in exact expectation, over every tuple of a grid: no statistics.

    The elbo does not move with k, and Renyi above order 1 falls. Steps are .2 nats or more, the grid's error 1e-9.
    """
    evidence = oracles.gaussian_evidence(cases.LINE.params["theta"], cases.X).sum()
    elbo = cases.LINE.truth(vj.bounds.elbo, 1)[0]
    ks = (2,) if row.groups > 1 else (1, 2, 3) if row.name == "iwae" else (1, 2)
    values = [cases.LINE.truth(row.function, k)[0] for k in ks]
    np.testing.assert_allclose(values[0], elbo, rtol=1e-8)
    direction = RISES.get(row.name, 1)
    steps = np.diff(values)
    assert np.all(np.abs(steps) < 1e-8) if direction == 0 else np.all(direction * steps > 0.1), (
        values
    )
    assert max(values) < evidence - 0.1


def test_the_elbo_is_its_closed_form():
    """The grid against algebra, gradients too, to 1e-6: parameters are float32 numbers."""
    value, gradient = cases.LINE.truth(vj.bounds.elbo, 1)
    expected, slope = oracles.gaussian_elbo(cases.LINE.params, cases.X)
    np.testing.assert_allclose(value, expected, rtol=1e-9)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-9), gradient, slope)


def test_renyi_falls_with_alpha_draw_by_draw(key):
    """Power means are ordered for any weights, so on every column; with its ends at iwae and elbo."""
    log_w = 3 * jax.random.normal(key, (8, 1000))
    alphas = (-5.0, -1.0, 0.0, 0.5, 1.0, 2.0, 8.0)
    values = np.stack([vj.bounds.renyi(log_w, alpha=alpha) for alpha in alphas])
    assert np.all(np.diff(values, axis=0) < 1e-5)
    np.testing.assert_allclose(values[2], vj.bounds.iwae(log_w), atol=1e-5)
    np.testing.assert_allclose(values[4], vj.bounds.elbo(log_w), atol=1e-5)
    np.testing.assert_allclose(vj.bounds.renyi(log_w, alpha=0.9999), values[4], atol=1e-2)
    np.testing.assert_allclose(vj.bounds.cubo(log_w), values[1], atol=1e-5)


# --- algebra, draw by draw


@pytest.mark.parametrize("row", table.BOUNDS, ids=lambda row: row.name)
def test_shift_permutation_and_one_draw(row, key):
    log_w = 2 * jax.random.normal(key, (4 * row.groups, 3))
    function = jax.jit(row.function)
    value = function(log_w)
    moved = function(log_w + 5.5)
    if row.moves is not None:
        np.testing.assert_allclose(moved, value + row.moves * 5.5, atol=2e-5)
    order = (
        np.random.default_rng(0).permutation(4)
        if row.groups == 1
        else np.array([5, 4, 7, 6, 1, 0, 3, 2])
    )
    same = np.allclose(function(log_w[order]), value, rtol=1e-5, atol=1e-5)
    assert same == row.symmetric
    if row.least == 1 and row.keeps_constants:
        np.testing.assert_allclose(
            row.function(log_w[: row.groups]), jnp.mean(log_w[: row.groups], 0), atol=1e-6
        )
    if row.weighted:
        equal = jnp.full(log_w.shape[0], 1 / log_w.shape[0])
        np.testing.assert_allclose(function(log_w, weights=equal), value, rtol=1e-5, atol=1e-5)


def test_a_draw_that_moves_between_groups_changes_multi_iwae(key):
    """The control of the permutation: only permutations within groups, or of whole groups, leave it alone."""
    log_w = 2 * jax.random.normal(key, (8, 3))
    value = vj.bounds.multi_iwae(log_w, groups=2)
    assert (
        np.abs(
            vj.bounds.multi_iwae(log_w[np.array([4, 1, 2, 3, 0, 5, 6, 7])], groups=2) - value
        ).max()
        > 1e-3
    )


# --- variance of gradients


@pytest.mark.slow
def test_dreg_varies_less_than_reparam(key):
    """At K = 64, q off by half a standard deviation. Ratios of q's variance as measured: elbo 5.4, iwae 29,000; stated at half of that."""
    q = {
        "loc": np.array([0.85, -0.75], np.float32),
        "log_scale": np.log(np.array([0.9, 0.9], np.float32)),
    }
    case = cases.LINE._replace(params={"q": q, "theta": cases.LINE.params["theta"]})
    objectives = {
        (make.__name__, bound.__name__): make(bound)
        for make in (vj.gradients.reparam, vj.gradients.dreg)
        for bound in (vj.bounds.elbo, vj.bounds.iwae)
    }
    objectives = {" ".join(name): objective for name, objective in objectives.items()}
    found = {
        name: gradient["q"]
        for name, gradient in gradients(key, case, objectives, 64, 20_000).items()
    }
    assert_variance_ratio(found["reparam elbo"], found["dreg elbo"], at_least=3.0)
    assert_variance_ratio(found["reparam iwae"], found["dreg iwae"], at_least=10_000.0)
    with pytest.raises(AssertionError, match="variance ratio"):
        assert_variance_ratio(found["dreg iwae"], found["reparam iwae"], at_least=1.0)


def test_vimco_varies_less_than_score(key):
    """K = 8 coins. Ratios of q's variance as measured: elbo 5.2, iwae 140; stated at two thirds or less."""
    makers = {"score": vj.gradients.score, "vimco": vj.gradients.vimco}
    bounds = {"elbo": vj.bounds.elbo, "iwae": vj.bounds.iwae}
    objectives = {
        f"{m} {b}": make(bound) for m, make in makers.items() for b, bound in bounds.items()
    }
    found = {
        name: gradient["q"]
        for name, gradient in gradients(key, cases.COIN, objectives, 8, 20_000).items()
    }
    assert_variance_ratio(found["score elbo"], found["vimco elbo"], at_least=3.5)
    assert_variance_ratio(found["score iwae"], found["vimco iwae"], at_least=70.0)


def test_antithetic_pairs_vary_less(key):
    """log p is quadratic, so its slope is odd about the mean and a pair cancels it but for rounding."""
    bound = vj.bounds.elbo
    objectives = {
        "iid": vj.gradients.dreg(bound),
        "pairs": vj.gradients.dreg(bound, draw=vj.draws.antithetic),
    }
    found = {
        name: g["q"]["loc"]
        for name, g in gradients(key, cases.MAKES[1], objectives, 2, 20_000).items()
    }
    assert_variance_ratio(found["iid"], found["pairs"], at_least=1e6)
