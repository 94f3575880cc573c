"""Extremes: impossible draws, infinite and enormous weights, few draws, empty batches, low precision."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from tests import table
from tests.marks import but, some
from vijax.numerics import (
    leave_one_out_log_mean_exp,
    leave_one_out_mean,
    log_mean_exp,
    normalized_weights,
)
from vijax.types import closed_forms

INF = np.inf
GATED = [row for row in table.BOUNDS if closed_forms(row.function).gate is not None]
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
        (
            (-INF, 0.0, 0.0, 0.0),
            np.log(0.75),
            (0, 1 / 3, 1 / 3, 1 / 3),
        ),  # an impossible draw counts, with gradient 0
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


@pytest.mark.parametrize("weights", [None, np.full(4, 0.25, np.float32)], ids=["equal", "given"])
def test_impossible_draws_have_no_slope_at_any_scale(weights):
    """A minibatch's factor of 1e4, and Renyi's own 1/n, times the 0 of an impossible draw."""
    given = None if weights is None else jnp.asarray(weights)

    def scaled(l):
        bounds = (
            table.BOUND[name].function(l, weights=given)
            for name in ("iwae", "renyi(.5)", "cubo(2)", "eubo")
        )
        return 1e4 * sum(bounds)

    assert np.all(value_and_slope(jax.jit(scaled), column(-INF, -INF, -INF, -INF))[1] == 0)


def test_logsumexp_is_not_total():
    """The control: JAX's own gives nan in two of the places above."""
    for log_w in ((-INF, -INF), (INF, 0.0)):
        _, slope = value_and_slope(lambda l: jax.nn.logsumexp(l, axis=0), column(*log_w))
        assert np.any(np.isnan(slope))


# --- every bound at every column of extremes, in one program for each dtype

N = (0.3, -0.2, -1.0, 0.5, 0.1, -0.7, 1.1)  # seven ordinary weights
COLUMNS = {
    "nan": (np.nan, *N),
    "nan among impossible": (np.nan, 1.0, *[-INF] * 6),
    "nan alone": (np.nan, *[-INF] * 7),
    "one impossible": (*N, -INF),
    "one nearly impossible": (*N, -3000.0),
    "first impossible": (-INF, *N),
    "one possible": (*[-INF] * 5, 0.3, -INF, -INF),
    "first possible": (0.3, *[-INF] * 7),
    "two possible": (0.3, -INF, -INF, -INF, -0.2, -INF, -INF, -INF),
    "first two possible": (0.3, -0.2, *[-INF] * 6),
    "four possible": (-INF, -INF, *N[:4], -INF, -INF),
    "none possible": (-INF,) * 8,
    "one infinite": (*N, INF),
    "first infinite": (INF, *N),
    "all infinite": (INF,) * 8,
    **{
        f"wide {seed}": 1e4 * np.random.default_rng(seed).uniform(size=8) - 5e3 for seed in range(5)
    },
    **{f"normal {seed}": np.random.default_rng(seed).normal(size=8) for seed in range(3)},
}
TOTAL = [row for row in table.BOUNDS if row.name != "own"]
total = pytest.mark.parametrize("row", TOTAL, ids=lambda row: row.name)


@jax.jit
def every(log_w):
    def one(row):
        value, pull = jax.vjp(row.function, log_w)
        return value, pull(jnp.ones_like(value))[0]

    return {row.name: one(row) for row in TOTAL}


@cache
def judged(dtype, rounded=None):
    """Return {bound: {column: (value, slope)}} in a dtype, of columns rounded to another."""
    with jax.enable_x64(True):
        found = every(
            jnp.stack([jnp.asarray(c, rounded or dtype) for c in COLUMNS.values()], 1).astype(dtype)
        )
    found = jax.tree.map(np.asarray, found)
    pick = lambda v, s: {name: (v[i], s[:, i]) for i, name in enumerate(COLUMNS)}
    return {name: pick(*both) for name, both in found.items()}


@pytest.mark.parametrize(
    "row", but(TOTAL, "elbo", "iwae", "multi_iwae(2)", name=lambda row: row.name)
)
def test_no_nan_but_of_nan(row):
    """No nan in any value, and every slope finite, whatever is impossible, infinite or enormous; and nan stays nan. (The elbo
    of -inf and +inf is not among the columns: their mean is nan.)
    """
    for name, (value, slope) in judged(jnp.float32)[row.name].items():
        if name.startswith("nan"):
            assert np.isnan(value), name
        else:
            assert not np.isnan(value), name
            assert np.all(np.isfinite(slope)), f"{name}: {slope}"


@total
def test_impossible_draws(row):
    """Bounds that average log w, or w^-1, are infinite with one: true. For the others its weight is 0 among the others', and
    its slope exactly 0. Where all are impossible the value is the table's.
    """
    found = judged(jnp.float32)[row.name]
    value, slope = found["one impossible"]
    if row.one_impossible is not None:
        assert value == row.one_impossible
    else:
        np.testing.assert_allclose(value, found["one nearly impossible"][0], rtol=1e-5)
        assert slope[-1] == 0
    np.testing.assert_allclose(found["none possible"][0], row.at_zero, rtol=1e-6)


@pytest.mark.parametrize(
    "row", but(TOTAL, "elbo", "iwae", "multi_iwae(2)", name=lambda row: row.name)
)
def test_bounds_at_a_spread_of_ten_thousand_nats(row):
    """Values to float32's rounding of 1e4; slopes finite, summing to what the bound moves by, where that is a constant."""
    single, double = judged(jnp.float32)[row.name], judged(jnp.float64, jnp.float32)[row.name]
    for name in COLUMNS:
        np.testing.assert_allclose(
            single[name][0], double[name][0], rtol=1e-5, atol=1e-5, err_msg=name
        )
        if name.startswith("wide") and row.moves is not None:
            slope = single[name][1]
            np.testing.assert_allclose(
                slope.sum(), row.moves, atol=1e-6 * max(10, np.abs(slope).max()), err_msg=name
            )


@pytest.mark.parametrize(
    "dtype", some([jnp.bfloat16, jnp.float16, jnp.float32], "float32", name=lambda t: t.__name__)
)
@total
def test_precision_is_kept(row, dtype):
    """Values and slopes come in the dtype of log_w, and within some of its rounding errors of float64's."""
    low, double = judged(dtype)[row.name], judged(jnp.float64, dtype)[row.name]
    assert {leaf.dtype for both in low.values() for leaf in both} == {np.dtype(dtype)}
    close = 30 * float(jnp.finfo(dtype).eps)
    for name in COLUMNS:
        if name.startswith("normal"):
            for found, expected in zip(low[name], double[name], strict=True):
                found = np.asarray(found, np.float64)
                scale = max(1.0, np.abs(expected).max())
                np.testing.assert_allclose(
                    found, expected, rtol=close, atol=close * scale, err_msg=name
                )


# --- enormous spreads: float32 against float64


@gated
def test_gates_at_a_spread_of_ten_thousand_nats(row, key):
    """Gates are finite and float64's own, though every weight but one underflows."""
    log_w = 1e4 * jax.random.uniform(key, (8, 5))
    gate = closed_forms(row.function).gate
    single = np.asarray(gate(log_w))
    with jax.enable_x64(True):
        double = np.asarray(gate(jnp.asarray(np.float64(log_w))))
    assert np.all(np.isfinite(single))
    np.testing.assert_allclose(single, double, atol=1e-5)


@gated
def test_gates_are_the_curvature(row, key):
    """(B' - B'') / B' against automatic second derivatives in float64, at ordinary and at unequal weights."""
    with jax.enable_x64(True):
        log_w = (
            jnp.float64(1.0)
            * jax.random.normal(key, (4, 3), jnp.float64)
            * jnp.array([0.1, 1.0, 4.0])[None]
        )
        slope = jax.grad(lambda l: row.function(l).sum())
        hessian = jax.jacfwd(slope)(log_w)  # [k, batch, k, batch]
        diagonal = jnp.einsum("kbkb->kb", hessian)
        expected = (slope(log_w) - diagonal) / slope(log_w)
        np.testing.assert_allclose(closed_forms(row.function).gate(log_w), expected, rtol=1e-9)


# --- leaving one out


CLOSED = [
    row
    for row in table.BOUNDS
    if row.loses and closed_forms(row.function).leave_one_out is not None
]


def without_each(function, log_w, k):
    return np.stack([function(jnp.delete(log_w, i, axis=0)) for i in range(k)])


@pytest.mark.parametrize(
    "row", [row for row in CLOSED if row.groups == 1], ids=lambda row: row.name
)
@pytest.mark.parametrize("spread", [1.0, 100.0, 1e4])
def test_leave_one_out_is_the_bound_of_the_others(row, spread, key):
    log_w = spread * jax.random.normal(key, (6, 4))
    closed = closed_forms(row.function).leave_one_out(log_w)
    np.testing.assert_allclose(
        closed, without_each(row.function, log_w, 6), rtol=2e-6, atol=2e-6 * spread
    )


@pytest.mark.parametrize(
    "log_w",
    [
        (0.3, -INF, -1.0),
        (-INF, -INF, 0.5),
        (-INF, -INF, -INF),
        (INF, 0.0, 1.0),
        (0.0, 0.0, 0.0),
        (200.0, 0.0, -200.0),
    ],
)
@pytest.mark.parametrize("function", [leave_one_out_log_mean_exp, leave_one_out_mean])
def test_leave_one_out_at_the_extremes(function, log_w):
    """Minus infinity only where the others are impossible; the largest row loses nothing to cancellation."""
    whole = {
        leave_one_out_log_mean_exp: log_mean_exp,
        leave_one_out_mean: lambda l: jnp.mean(l, 0),
    }[function]
    found = np.asarray(function(column(*log_w)))
    if INF in log_w:
        np.testing.assert_allclose(found[0], whole(column(*log_w[1:])), rtol=1e-6)
        assert np.all(found[1:] == INF)
    else:
        np.testing.assert_allclose(
            found, without_each(whole, column(*log_w), 3), rtol=1e-6, atol=1e-6
        )


# --- counts, empty batches, precision


@rows
def test_no_draws_is_an_error_and_no_batch_is_not(row):
    if row.name != "own":
        with pytest.raises(ValueError, match="k >= 1|divide|k = 0"):
            row.function(jnp.zeros((0, 3)))
    k = row.draws(1)
    shape = lambda *batch: (
        jax.eval_shape(row.function, jax.ShapeDtypeStruct((k, *batch), jnp.float32)).shape
    )
    assert [shape(0), shape(2, 3), shape()] == [(0,), (2, 3), ()]


@gated
def test_gates_of_an_empty_batch(row):
    assert closed_forms(row.function).gate(jnp.zeros((4, 0))).shape == (4, 0)
    assert closed_forms(row.function).gate(jnp.zeros(4)).shape == (4,)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
@gated
def test_precision_of_gates(row, dtype, key, x64):
    log_w = jax.random.normal(key, (8, 3), jnp.float64).astype(dtype)
    gate = closed_forms(row.function).gate
    found = gate(log_w)
    assert found.dtype == dtype
    close = 30 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(
        np.float64(found), gate(log_w.astype(np.float64)), rtol=close, atol=close
    )


def test_weights_are_normalized():
    """Zero where every draw is impossible, one where one is infinite, SciPy's softmax elsewhere."""
    log_w = jnp.array([[0.3, -INF, INF], [-1.0, -INF, 0.0]])
    np.testing.assert_allclose(normalized_weights(log_w)[:, 1:], [[0, 1], [0, 0]])
    np.testing.assert_allclose(
        normalized_weights(log_w)[:, 0], np.exp([0.3, -1] - logsumexp([0.3, -1])), rtol=1e-6
    )
