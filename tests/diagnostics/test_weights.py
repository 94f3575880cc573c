"""Effective sample size, Pareto k-hat and smoothing: against definitions and arviz-stats, and total where arviz-stats is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arviz_stats.base import array_stats

from tests.marks import some
from vijax.diagnostics import ess, khat, psis

INF = np.inf
TAILS = {
    "light": lambda rng, k: rng.uniform(size=k),
    "normal": lambda rng, k: rng.normal(size=k),
    "heavy": lambda rng, k: 3 * rng.normal(size=k),
    "pareto": lambda rng, k: rng.exponential(0.7, size=k),
    "no mean": lambda rng, k: 5 * rng.standard_t(2, size=k),
}


def reference(log_w):
    return [array_stats.psislw(-column)[1] for column in log_w.T]


@pytest.mark.parametrize("k", some([60, 100, 225, 226, 1000, 5000], "60", "225", "226"))
def test_khat_is_that_of_arviz_stats(k, x64):
    """Five tails at once, in float64, to 1e-6; 225 is where the tail stops being a fifth."""
    rng = np.random.default_rng(k)
    log_w = np.stack([make(rng, k) for make in TAILS.values()], -1)
    np.testing.assert_allclose(khat(jnp.asarray(log_w)), reference(log_w), atol=1e-6)
    smooth = np.stack([array_stats.psislw(-column)[0] for column in log_w.T], -1)
    found = psis(jnp.asarray(log_w))
    np.testing.assert_allclose(found, smooth, atol=1e-6)
    np.testing.assert_allclose(np.exp(found).sum(0), 1.0, rtol=1e-12)
    # The control: the raw weights are others, in the tail.
    assert np.abs(log_w - jax.nn.logsumexp(log_w, 0)[None] - smooth).max() > 1e-2


def test_khat_in_float32():
    """A verdict needs two digits, and has three, wherever the tail fits in float32's exponents."""
    log_w = np.stack(
        [make(np.random.default_rng(1), 1000) for name, make in TAILS.items() if name != "no mean"],
        -1,
    )
    np.testing.assert_allclose(khat(jnp.asarray(log_w, jnp.float32)), reference(log_w), atol=2e-3)


@pytest.mark.parametrize("spread", [3.0, 10.0, 100.0, 1e4])
def test_khat_does_not_praise_what_underflows(spread):
    """One weight dwarfs the rest: however far beyond float32's exponents, the verdict stays a bad one."""
    log_w = spread * np.random.default_rng(0).normal(size=1000).astype(np.float32)
    assert khat(jnp.asarray(log_w)) > 0.9


def test_khat_finds_the_tail_index():
    """exp(Exponential(k)) is Pareto with shape k: at 100,000 draws within .15, five posterior standard errors or more."""
    rng = np.random.default_rng(0)
    for shape in (0.3, 0.7, 1.2):
        log_w = jnp.asarray(rng.exponential(shape, size=100_000), jnp.float32)
        assert abs(khat(log_w) - shape) < 0.15


def test_khat_does_not_see_a_shift_or_an_order():
    log_w = 2 * np.random.default_rng(0).normal(size=500).astype(np.float32)
    for moved in (log_w + 1000.0, log_w - 1000.0):
        np.testing.assert_allclose(khat(jnp.asarray(moved)), khat(jnp.asarray(log_w)), atol=2e-3)
    np.testing.assert_allclose(khat(jnp.asarray(log_w[::-1])), khat(jnp.asarray(log_w)), atol=1e-5)


@pytest.mark.parametrize("shift", [-2e5, -1e7, 3e6])
def test_khat_does_not_praise_what_a_large_constant_rounds(shift):
    """A sum of many terms rounds its log-weights to a tenth of a nat or so; a tail of many nats it does not hide."""
    log_w = np.random.default_rng(0).normal(size=4000) * max(3.0, 1e-6 * abs(shift))
    assert khat(jnp.asarray(log_w + shift, jnp.float32)) > 0.7


def test_khat_of_rounding_is_none():
    """An exact q in 1,000 dimensions: log p and log q agree to their last digits only, which are no tail."""
    rounding = np.round(2 * np.random.default_rng(0).normal(size=2000)) * 2.0**-14
    assert khat(jnp.asarray(rounding, jnp.float32)) == -INF
    assert khat(jnp.asarray(100 * rounding, jnp.float32)) > -INF  # the control


def totals():
    rng = np.random.default_rng(0)
    ordinary = rng.normal(size=100)
    some_impossible = np.where(np.arange(100) < 30, -INF, ordinary)
    one_possible = np.where(np.arange(100) < 99, -INF, 0.0)
    return {
        "constant": (np.full(100, 3.0), -INF),
        "all impossible": (np.full(100, -INF), INF),
        "one possible": (one_possible, None),
        "some impossible": (some_impossible, None),
        "infinite weight": (np.where(np.arange(100) == 5, INF, ordinary), INF),
        "nan": (np.where(np.arange(100) == 5, np.nan, ordinary), np.nan),
        "few draws": (ordinary[:24], INF),
        "one draw": (ordinary[:1], INF),
        "few draws with nan": (np.append(ordinary[:5], np.nan), np.nan),
        "enormous": (1e4 * ordinary, None),
        "constant but one": (np.where(np.arange(100) == 5, 1.0, 0.0), None),
        "ties": (np.round(2 * ordinary) / 2, None),  # arviz-stats divides by a quartile of 0
    }


@pytest.mark.parametrize("kind", list(totals()))
def test_khat_is_total(kind):
    """Documented values, and never nan without a nan; where arviz-stats knows an answer it is that one."""
    log_w, expected = totals()[kind]
    found = khat(jnp.asarray(log_w, jnp.float32))
    if expected is not None:
        np.testing.assert_array_equal(found, np.float32(expected))
        return
    assert not np.isnan(found)
    if kind == "some impossible":  # they are no part of the tail
        with jax.enable_x64(True):
            np.testing.assert_allclose(
                khat(jnp.asarray(log_w)), array_stats.psislw(-np.maximum(log_w, -1e3))[1], atol=1e-6
            )


@pytest.mark.parametrize("kind", list(totals()))
def test_psis_is_total(kind):
    """Weights that sum to one whatever comes, nan where nan came; the impossible stay so, unless all of them are."""
    log_w = totals()[kind][0]
    found = np.asarray(psis(jnp.asarray(log_w, jnp.float32)))
    if "nan" in kind:
        assert np.isnan(found).all()
        return
    np.testing.assert_allclose(np.exp(found).sum(), 1.0, rtol=1e-5)
    if kind != "all impossible":
        assert (found[log_w == -INF] == -INF).all()
    if kind in ("constant", "all impossible"):
        np.testing.assert_allclose(found, -np.log(100), rtol=1e-6)
    if kind == "infinite weight":
        assert found[5] == 0.0
    if kind == "few draws":
        np.testing.assert_allclose(
            found, jax.nn.log_softmax(jnp.asarray(log_w, jnp.float32)), atol=1e-5
        )


def test_psis_in_float32_and_out_of_order():
    log_w = np.random.default_rng(0).normal(size=(1000, 2)) * np.array([1.0, 3.0])
    smooth = np.stack([array_stats.psislw(-column)[0] for column in log_w.T], -1)
    found = jax.jit(psis)(jnp.asarray(log_w + 100.0, jnp.float32))
    np.testing.assert_allclose(found, smooth, atol=2e-3)
    np.testing.assert_allclose(psis(jnp.asarray(log_w[::-1], jnp.float32))[::-1], smooth, atol=2e-3)


def test_smoothing_lowers_the_error():
    """The variance of a normal by a narrower proposal, k-hat .49: 200 times over, .39 of the mean square error."""
    z = 0.7 * np.random.default_rng(0).normal(size=(2000, 200))
    log_w = jnp.asarray(-0.5 * z**2 + 0.5 * (z / 0.7) ** 2, jnp.float32)
    error = lambda log_w: np.mean((np.sum(np.exp(log_w) * z**2, 0) - 1) ** 2)
    assert error(np.asarray(psis(log_w))) < 0.6 * error(np.asarray(jax.nn.log_softmax(log_w, 0)))


@pytest.mark.parametrize("function", [ess, khat])
@pytest.mark.slow
def test_jit_vmap_and_batches(function):
    """Any batch shape, column by column; an empty batch is one; jit and vmap change nothing."""
    log_w = jnp.asarray(np.random.default_rng(0).normal(size=(200, 3, 2)), jnp.float32)
    found = function(log_w)
    one = jax.jit(function)
    each = [[one(log_w[:, i, j]) for j in range(2)] for i in range(3)]
    np.testing.assert_allclose(found, each, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(function)(log_w), found, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(jax.vmap(function, 1))(log_w), found, rtol=1e-5)
    assert function(log_w[:, :, :0]).shape == (3, 0)
    assert function(log_w[:, 0, 0]).shape == ()
    with pytest.raises(ValueError, match="k >= 1"):
        function(jnp.zeros((0, 2)))


def test_ess():
    """1 / Σ w̃²: k at equal weights, 1 at one dominant, 0 where none is possible, and the definition between."""
    np.testing.assert_allclose(ess(jnp.full((40, 2), -7.0)), 40.0, rtol=1e-6)
    np.testing.assert_allclose(ess(jnp.array([0.0, -1e4, -1e4])), 1.0)
    np.testing.assert_array_equal(ess(jnp.full(5, -INF)), 0.0)
    np.testing.assert_allclose(ess(jnp.array([0.0, 0.0, -INF])), 2.0)
    np.testing.assert_allclose(ess(jnp.array([0.0, 1e4, -1e4, 1e4])), 2.0)
    log_w = np.random.default_rng(0).normal(size=50)
    w = np.exp(log_w) / np.exp(log_w).sum()
    np.testing.assert_allclose(ess(jnp.asarray(log_w, jnp.float32)), 1 / np.sum(w**2), rtol=1e-5)
    assert np.isnan(ess(jnp.array([0.0, np.nan])))
