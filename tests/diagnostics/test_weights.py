"""Effective sample size and k-hat: closed forms, ArviZ as the oracle, and a value for every input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arviz_stats.base import array_stats

import vijax as vj

TAILS = {
    "light": lambda rng, n: rng.uniform(size=n),
    "normal": lambda rng, n: rng.normal(size=n),
    "heavy": lambda rng, n: 3 * rng.normal(size=n),
    "no mean": lambda rng, n: rng.standard_t(3, size=n),
}


@pytest.mark.parametrize("size", [60, 300, 2000])
@pytest.mark.parametrize("tail", TAILS)
def test_khat_is_arviz(tail, size, x64):
    log_w = TAILS[tail](np.random.default_rng(size), size)
    expected = array_stats.psislw(-log_w)[1]
    np.testing.assert_allclose(jax.jit(vj.diagnostics.khat)(jnp.asarray(log_w)), expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(vj.diagnostics.khat(jnp.asarray(log_w, jnp.float32)), expected, atol=1e-4)


def test_khat_flags_and_passes():
    """On weights with a known tail, w = u^-k: .3 passes and .9 is flagged (the fit's sd is about .05 at this size)."""
    u = np.random.default_rng(0).uniform(size=20_000)
    assert vj.diagnostics.khat(jnp.asarray(-0.3 * np.log(u))) < 0.5
    assert vj.diagnostics.khat(jnp.asarray(-0.9 * np.log(u))) > 0.7


@pytest.mark.parametrize(
    ("log_w", "expected"),
    [
        (np.zeros(100), -np.inf),
        (-500 + 1e-6 * np.arange(100.0), -np.inf),
        (np.full(100, -np.inf), np.inf),
        (np.r_[np.zeros(99), np.inf], np.inf),
        (np.r_[np.zeros(99), np.nan], np.nan),
        (np.zeros(24), np.inf),
        (np.array([np.nan]), np.nan),
    ],
)
def test_khat_is_total(log_w, expected):
    np.testing.assert_equal(float(vj.diagnostics.khat(jnp.asarray(log_w, jnp.float32))), expected)


def test_khat_of_mostly_impossible_draws():
    log_w = np.r_[np.random.default_rng(0).normal(size=500), np.full(9500, -np.inf)]
    assert -1 < vj.diagnostics.khat(jnp.asarray(log_w)) < 1


def test_batches_are_columns(key):
    log_w = jax.random.normal(key, (400, 2, 3))
    for name in ("ess", "khat"):
        diagnostic = getattr(vj.diagnostics, name)
        found = diagnostic(log_w)
        assert found.shape == (2, 3)
        np.testing.assert_allclose(found[1, 2], diagnostic(log_w[:, 1, 2]), rtol=1e-4)


def test_ess():
    np.testing.assert_allclose(vj.diagnostics.ess(jnp.full(7, -300.0)), 7.0, rtol=1e-6)
    np.testing.assert_allclose(vj.diagnostics.ess(jnp.log(jnp.array([1.0, 2.0, 1.0]))), 16 / 6, rtol=1e-6)
    np.testing.assert_allclose(vj.diagnostics.ess(jnp.array([0.0, -jnp.inf, 0.0])), 2.0, rtol=1e-6)
    assert vj.diagnostics.ess(jnp.full(3, -jnp.inf)) == 0
    for name in ("ess", "khat"):
        with pytest.raises(ValueError, match="k >= 1"):
            getattr(vj.diagnostics, name)(jnp.zeros((0, 2)))
