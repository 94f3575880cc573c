"""Extremes: impossible draws, infinite and enormous weights, few draws, empty batches, low precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from tests import table
from vijax.numerics import leave_one_out_log_mean_exp, leave_one_out_mean, log_mean_exp, normalized_weights
from vijax.types import attribute

INF = np.inf
IMPORTANCE = ["iwae", "multi_iwae(2)", "renyi(.5)", "cubo(2)"]  # a draw of weight 0 takes a share of 0
GATED = [row for row in table.BOUNDS if attribute(row.function, "gate") is not None]
rows = pytest.mark.parametrize("row", table.BOUNDS, ids=lambda row: row.name)
gated = pytest.mark.parametrize("row", GATED, ids=lambda row: row.name)


def column(*values, dtype=np.float32):
    return jnp.asarray(values, dtype)[:, None]


def value_and_slope(function, log_w):
    value, pull = jax.vjp(function, log_w)
    return np.asarray(value)[0], np.asarray(pull(jnp.ones_like(value))[0])[:, 0]


# --- one documented value and gradient for each kind of weight


@pytest.mark.parametrize(
    ("log_w", "value", "slope"),
    [
        ((-INF, 0.0, 0.0, 0.0), np.log(0.75), (0, 1 / 3, 1 / 3, 1 / 3)),  # an impossible draw counts, with gradient 0
        ((-INF, -INF, -INF, -INF), -INF, (0, 0, 0, 0)),
        ((INF, 0.0, 1.0, -INF), INF, (0, 0, 0, 0)),
        ((INF, INF, INF, INF), INF, (0, 0, 0, 0)),
        ((1e4, 0.0, -1e4, 0.0), 1e4 - np.log(4), (1, 0, 0, 0)),
        ((-1e4, -1e4, -1e4, -1e4), -1e4, (0.25, 0.25, 0.25, 0.25)),
    ],
)
def test_log_mean_exp_is_total(log_w, value, slope):
    found = value_and_slope(log_mean_exp, column(*log_w))
    np.testing.assert_allclose(found[0], value, rtol=1e-6)
    np.testing.assert_allclose(found[1], slope, atol=1e-6)


def test_logsumexp_is_not_total():
    """The control: JAX's own gives nan in two of the places above."""
    for log_w in ((-INF, -INF), (INF, 0.0)):
        _, slope = value_and_slope(lambda l: jax.nn.logsumexp(l, axis=0), column(*log_w))
        assert np.any(np.isnan(slope))


@rows
def test_nan_stays_nan(row):
    value = row.function(column(np.nan, 0.0, 1.0, 2.0))
    assert np.isnan(value[0])


@pytest.mark.parametrize("name", IMPORTANCE)
def test_an_impossible_draw_has_share_zero(name):
    """The value is that of a zero weight among the others, and its gradient is exactly 0, the others' finite."""
    log_w = column(0.3, -INF, -1.0, 0.5)
    value, slope = value_and_slope(table.BOUND[name].function, log_w)
    with np.errstate(divide="ignore"):
        nearly = table.BOUND[name].function(column(0.3, -80.0, -1.0, 0.5))[0]
    np.testing.assert_allclose(value, nearly, rtol=1e-5)
    assert slope[1] == 0
    assert np.all(np.isfinite(slope))


@pytest.mark.parametrize("name", ["elbo", "ciwae(.3)", "renyi(2)"])
def test_an_impossible_draw_is_minus_infinity(name):
    """Bounds that average log w, or w^-1, are -inf then: true, and never nan. Their slopes are finite."""
    value, slope = value_and_slope(table.BOUND[name].function, column(0.3, -INF, -1.0, 0.5))
    assert value == -INF
    assert np.all(np.isfinite(slope))


@pytest.mark.parametrize("row", [row for row in table.BOUNDS if row.name != "own"], ids=lambda row: row.name)
def test_all_impossible(row):
    value, slope = value_and_slope(row.function, column(-INF, -INF, -INF, -INF))
    assert value == -INF
    assert np.all(np.isfinite(slope))


# --- enormous spreads: float32 against float64


@gated
def test_gates_at_a_spread_of_ten_thousand_nats(row, key):
    """Gates are finite and float64's own, though every weight but one underflows."""
    log_w = 1e4 * jax.random.uniform(key, (8, 5))
    gate = attribute(row.function, "gate")
    single = np.asarray(gate(log_w))
    with jax.enable_x64(True):
        double = np.asarray(gate(jnp.asarray(np.float64(log_w))))
    assert np.all(np.isfinite(single))
    np.testing.assert_allclose(single, double, atol=1e-5)


@rows
def test_bounds_at_a_spread_of_ten_thousand_nats(row, key):
    """Values to float32's rounding of 1e4; slopes finite, summing to 1 as every shift-equivariant bound's do."""
    log_w = 1e4 * jax.random.uniform(key, (8, 5)) - 5e3
    value, pull = jax.vjp(row.function, log_w)
    slope = pull(jnp.ones_like(value))[0]
    with jax.enable_x64(True):
        double = np.asarray(row.function(jnp.asarray(np.float64(log_w))))
    np.testing.assert_allclose(value, double, rtol=1e-5)
    np.testing.assert_allclose(slope.sum(0), 1.0, atol=1e-5)


@gated
def test_gates_are_the_curvature(row, key):
    """(B' - B'') / B' against automatic second derivatives in float64, at ordinary and at unequal weights."""
    with jax.enable_x64(True):
        log_w = jnp.float64(1.0) * jax.random.normal(key, (4, 3), jnp.float64) * jnp.array([0.1, 1.0, 4.0])[None]
        slope = jax.grad(lambda l: row.function(l).sum())
        hessian = jax.jacfwd(slope)(log_w)  # [k, batch, k, batch]
        diagonal = jnp.einsum("kbkb->kb", hessian)
        expected = (slope(log_w) - diagonal) / slope(log_w)
        np.testing.assert_allclose(attribute(row.function, "gate")(log_w), expected, rtol=1e-9)


# --- leaving one out


CLOSED = [row for row in table.BOUNDS if attribute(row.function, "leave_one_out") is not None]


def without_each(function, log_w, k):
    return np.stack([function(jnp.delete(log_w, i, axis=0)) for i in range(k)])


@pytest.mark.parametrize("row", [row for row in CLOSED if row.groups == 1], ids=lambda row: row.name)
@pytest.mark.parametrize("spread", [1.0, 100.0, 1e4])
def test_leave_one_out_is_the_bound_of_the_others(row, spread, key):
    log_w = spread * jax.random.normal(key, (6, 4))
    closed = attribute(row.function, "leave_one_out")(log_w)
    np.testing.assert_allclose(closed, without_each(row.function, log_w, 6), rtol=2e-6, atol=2e-6 * spread)


@pytest.mark.parametrize(
    "log_w",
    [(0.3, -INF, -1.0), (-INF, -INF, 0.5), (-INF, -INF, -INF), (INF, 0.0, 1.0), (0.0, 0.0, 0.0), (200.0, 0.0, -200.0)],
)
@pytest.mark.parametrize("function", [leave_one_out_log_mean_exp, leave_one_out_mean])
def test_leave_one_out_at_the_extremes(function, log_w):
    """Minus infinity only where the others are impossible; the largest row loses nothing to cancellation."""
    whole = {leave_one_out_log_mean_exp: log_mean_exp, leave_one_out_mean: lambda l: jnp.mean(l, 0)}[function]
    found = np.asarray(function(column(*log_w)))
    if INF in log_w:
        np.testing.assert_allclose(found[0], whole(column(*log_w[1:])), rtol=1e-6)
        assert np.all(found[1:] == INF)
    else:
        np.testing.assert_allclose(found, without_each(whole, column(*log_w), 3), rtol=1e-6, atol=1e-6)


# --- counts, empty batches, precision


@rows
def test_no_draws_is_an_error_and_no_batch_is_not(row):
    if row.name != "own":
        with pytest.raises(ValueError, match="k >= 1|divide"):
            row.function(jnp.zeros((0, 3)))
    assert row.function(jnp.zeros((4, 0))).shape == (0,)
    assert row.function(jnp.zeros((4, 2, 3))).shape == (2, 3)
    assert row.function(jnp.zeros(4)).shape == ()


@gated
def test_gates_of_an_empty_batch(row):
    assert attribute(row.function, "gate")(jnp.zeros((4, 0))).shape == (4, 0)
    assert attribute(row.function, "gate")(jnp.zeros(4)).shape == (4,)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
@pytest.mark.parametrize("row", GATED, ids=lambda row: row.name)
def test_precision_is_kept(row, dtype, key, x64):
    """Values, gates and gradients come in the dtype of log_w, and within some of its rounding errors of float64's."""
    double = jax.random.normal(key, (8, 3), jnp.float64)
    log_w = double.astype(dtype)
    close = 30 * float(jnp.finfo(dtype).eps)
    for function in (row.function, attribute(row.function, "gate"), jax.grad(lambda l: row.function(l).sum())):
        found = function(log_w)
        assert found.dtype == dtype
        np.testing.assert_allclose(np.float64(found), function(log_w.astype(np.float64)), rtol=close, atol=close)


def test_weights_are_normalized():
    """Zero where every draw is impossible, one where one is infinite, SciPy's softmax elsewhere."""
    log_w = jnp.array([[0.3, -INF, INF], [-1.0, -INF, 0.0]])
    np.testing.assert_allclose(normalized_weights(log_w)[:, 1:], [[0, 1], [0, 0]])
    np.testing.assert_allclose(normalized_weights(log_w)[:, 0], np.exp([0.3, -1] - logsumexp([0.3, -1])), rtol=1e-6)
