"""Bounds against their formulas in NumPy and SciPy, with weights of the draws and without."""

from functools import partial
from itertools import combinations
from math import factorial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

import vijax as vj
from tests import table
from vijax import bounds
from vijax.types import closed_forms

K, BATCH = 8, (2, 3)


def power_mean(l, w, n):
    return (w * l).sum(0) if n == 0 else logsumexp(n * l + np.log(w), axis=0) / n


def multi(l, w, groups):
    """Σ_m total_m log Σ_k w_k/total_m exp l_k, group m in consecutive rows."""
    value = 0.0
    for rows in np.split(np.arange(len(l)), groups):
        total = w[rows].sum(0)
        value = value + total * power_mean(l[rows], w[rows] / total, 1)
    return value


def log_mean(l):
    return logsumexp(l, axis=0) - np.log(len(l))


def tilted(l, w, beta):
    share = w * np.exp(beta * (l - l.max(0)))
    return (share * l).sum(0) / share.sum(0)


def riemann(l, w, right):
    b = table.PARTITION
    return sum((b[t + 1] - b[t]) * tilted(l, w, b[t + right]) for t in range(len(b) - 1))


def jackknife(l, _, order):
    """Nowozin's sum over all subsets that lose up to `order` draws, each bound evaluated afresh."""
    k, value = len(l), 0.0
    for j in range(order + 1):
        share = (-1) ** j * (k - j) ** order / (factorial(order - j) * factorial(j))
        value = value + share * np.mean(
            [log_mean(np.delete(l, lost, 0)) for lost in combinations(range(k), j)], 0
        )
    return value


def sumo(l, _):
    """L_1 + Σ (L_{j+1} - L_j) / P(level >= j) with P = 1/(j+1), up to level k - 2, as table.sumo fixes it."""
    running = [log_mean(l[: j + 1]) for j in range(len(l))]
    reach = max(len(l) - 2, 1)
    return running[0] + sum(
        (j + 1) * (running[j] - running[j - 1]) for j in range(1, min(reach + 1, len(l)))
    )


def mlmc_iwae(l, _):
    """The mean of log w, and the last correction over its probability, 2^-3/2 to the power of the level."""
    k = len(l)
    levels = 2.0 ** (-1.5 * np.arange(np.log2(k) + 1))
    last = log_mean(l) - 0.5 * (log_mean(l[: k // 2]) + log_mean(l[k // 2 :]))
    return l.mean(0) + last / (levels / levels.sum())[-1]


FORMULAS = {
    "eubo": partial(tilted, beta=1.0),
    "tvo_lower": partial(riemann, right=0),
    "tvo_upper": partial(riemann, right=1),
    **{f"jackknife({order})": partial(jackknife, order=order) for order in (1, 2, 3)},
    "sumo": sumo,
    "mlmc_iwae": mlmc_iwae,
    "exp_cubo(2)": lambda l, w: (w * np.exp(l + 1.5) ** 2).sum(0),
    "perturbative(3)": lambda l, w: (
        w * (1 + (l + 1.5) + (l + 1.5) ** 2 / 2 + (l + 1.5) ** 3 / 6)
    ).sum(0),
    "log_variance": lambda l, w: ((l - l.mean(0)) ** 2).sum(0) / (2 * (len(l) - 1)),
    "f_divergence(jensen_shannon)": lambda l, w: (
        w * (np.exp(l) * l - (1 + np.exp(l)) * np.log((1 + np.exp(l)) / 2))
    ).sum(0),
    "f_divergence(total_variation)": lambda l, w: (w * 0.5 * np.abs(np.exp(l) - 1)).sum(0),
    "elbo": lambda l, w: power_mean(l, w, 0),
    "iwae": lambda l, w: power_mean(l, w, 1),
    "multi_iwae(2)": partial(multi, groups=2),
    "ciwae(.3)": lambda l, w: 0.3 * power_mean(l, w, 0) + 0.7 * power_mean(l, w, 1),
    "renyi(.5)": lambda l, w: power_mean(l, w, 0.5),
    "renyi(2)": lambda l, w: power_mean(l, w, -1),
    "cubo(2)": lambda l, w: power_mean(l, w, 2),
}


@pytest.fixture
def log_w():
    return 3 * np.random.default_rng(0).normal(size=(K, *BATCH))


def test_every_bound_has_a_formula():
    assert set(FORMULAS) == set(table.BOUND) - {"own"}


@pytest.mark.parametrize("name", list(FORMULAS))
def test_formula(name, log_w, x64):
    equal = np.full((K, *BATCH), 1 / K)
    found = jax.jit(table.BOUND[name].function)(jnp.asarray(log_w))
    np.testing.assert_allclose(found, FORMULAS[name](log_w, equal), rtol=1e-11)


@pytest.mark.parametrize(
    "name", [row.name for row in table.BOUNDS if row.public and not row.weighted]
)
def test_bounds_that_take_no_weights(name, log_w, unchecked):
    row = table.BOUND[name]
    if name in ("sumo", "mlmc_iwae"):  # the table's function fixes the level, and hides `weights`
        level = vj.types.Level(jnp.asarray(1), vj.draws.geometric(8 if name == "sumo" else 4))
        row = row._replace(function=partial(getattr(bounds, name), level=level))
    with pytest.raises(ValueError, match="equal weight"):
        row.function(jnp.asarray(log_w), weights=jnp.full(K, 1 / K))


@pytest.mark.parametrize("name", [row.name for row in table.BOUNDS if row.weighted])
def test_formula_with_weights(name, log_w, x64):
    """Weights [k], shared by the batch, and [k, *batch]; they sum to 1."""
    rng = np.random.default_rng(1)
    for shape in ((K, 1, 1), (K, *BATCH)):
        w = rng.dirichlet(np.ones(K), size=shape[1:]).transpose(2, 0, 1)
        given = jnp.asarray(w[:, 0, 0] if shape[1] == 1 else w)
        expected = FORMULAS[name](log_w, np.broadcast_to(w, log_w.shape))
        np.testing.assert_allclose(
            table.BOUND[name].function(jnp.asarray(log_w), weights=given), expected, rtol=1e-12
        )


@pytest.mark.parametrize("name", [row.name for row in table.BOUNDS if row.weighted])
def test_a_draw_of_no_weight_counts_for_nothing(name, log_w):
    """Impossible, infinite or whatever it is."""
    row = table.BOUND[name]
    if row.groups > 1:
        return
    weights = jnp.asarray([0.0, *[1 / (K - 1)] * (K - 1)])
    function = jax.jit(lambda l: row.function(l, weights=weights))
    expected = row.function(jnp.asarray(log_w[1:], jnp.float32))
    for value in (-np.inf, np.inf, 300.0):
        found = function(
            jnp.asarray(np.concatenate([np.full_like(log_w[:1], value), log_w[1:]]), jnp.float32)
        )
        np.testing.assert_allclose(found, expected, rtol=2e-5)


@pytest.mark.parametrize(
    "name", [row.name for row in table.BOUNDS if row.weighted and row.groups == 1]
)
def test_a_draw_of_weight_two_is_two_draws(name, log_w, x64):
    """Weights mean what they say: doubling a row's weight is repeating the row. Gates too, each repeat with a half."""
    function = table.BOUND[name].function
    repeated = np.concatenate([log_w, log_w[:1]])
    weights = jnp.asarray(np.where(np.arange(K) == 0, 2, 1) / (K + 1))
    np.testing.assert_allclose(
        function(jnp.asarray(log_w), weights=weights), function(jnp.asarray(repeated)), rtol=1e-12
    )


@pytest.mark.parametrize(
    ("function", "keyword", "values"),
    [
        pytest.param(bounds.renyi, "alpha", (0.0, 0.5, 1.0, 2.0), marks=pytest.mark.slow),
        (bounds.cubo, "n", (1.0, 2.0, 3.0)),
        (bounds.ciwae, "beta", (0.0, 0.4, 1.0)),
        (partial(bounds.exp_cubo, reference=jnp.full(BATCH, 4.0)), "n", (1.0, 2.0)),
        (partial(bounds.exp_cubo, n=1.0), "reference", (0.0, 3.0)),
        (partial(bounds.perturbative, order=3), "reference", (0.0, 3.0)),
        (
            lambda l, *, t: bounds.f_divergence(l, f=partial(bounds.generators.t_power, t=t)),
            "t",
            (-0.5, 0.3, 1.5),
        ),
        (
            lambda l, *, a: bounds.f_divergence(
                l, f=partial(bounds.generators.amari_alpha, alpha=a)
            ),
            "a",
            (-0.5, 0.0, 1.0),
        ),
        (
            lambda l, *, mid: bounds.tvo_upper(l, partition=jnp.stack([0.0, mid, 1.0])),
            "mid",
            (0.2, 0.7),
        ),
    ],
)
def test_hyperparameters_may_be_traced(function, keyword, values, log_w, unchecked):
    """A schedule for alpha, n or beta inside jit: one trace, and the numbers of the plain call; gates as well."""
    gate = closed_forms(function).gate or (lambda l, **keywords: 0.0)
    l = jnp.asarray(log_w, jnp.float32)
    traced = jax.jit(lambda value: (function(l, **{keyword: value}), gate(l, **{keyword: value})))
    for value in values:
        expected = function(l, **{keyword: value}), gate(l, **{keyword: value})
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
            traced(jnp.float32(value)),
            expected,
        )
        slope = jax.grad(lambda value: function(l, **{keyword: value}).sum())(value)
        assert np.isfinite(slope)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda l: bounds.jackknife(l, order=4), "order 1, 2 or 3"),
        (lambda l: bounds.exp_cubo(l, n=0.5), "n must be at least 1"),
        (lambda l: bounds.cubo(l, n=np.float32(0.5)), "n must be at least 1"),
        (lambda l: bounds.ciwae(l, beta=np.float32(2.0)), "beta must lie"),
        (lambda l: bounds.jackknife(l[:2], order=2), r"k >= 1 \+ order"),
        (lambda l: bounds.log_variance(l[:1]), "two draws"),
        (lambda l: bounds.perturbative(l, order=2, reference=0.0), "take 3"),
        (lambda l: bounds.perturbative(l, reference=jnp.zeros(5)), "reference has shape"),
        (lambda l: bounds.exp_cubo(l, reference=jnp.zeros((8, 2, 3))), "reference has shape"),
        (lambda l: bounds.tvo_lower(l, partition=0.5), "got shape"),
        (lambda l: bounds.tvo_lower(l, partition=[0.0, 0.5]), "linspace"),
        (lambda l: bounds.tvo_upper(l, partition=[0.0, 0.5, 0.5, 1.0]), "linspace"),
        (
            lambda l: bounds.sumo(l, level=vj.types.Level(0, vj.draws.harmonic(4))),
            "draw a level of 8",
        ),
        (
            lambda l: bounds.mlmc_iwae(l, level=vj.types.Level(0, vj.draws.geometric(3))),
            r"takes 2\^\(m-1\) = 4 draws",
        ),
        (
            lambda l: bounds.sumo(l, level=vj.types.Level(jnp.zeros(3, int), vj.draws.harmonic(8))),
            "shape=",
        ),
    ],
)
def test_refused_arguments(call, message, log_w, unchecked):
    with pytest.raises(ValueError, match=message):
        call(jnp.asarray(log_w, jnp.float32))


def test_groups_divide_the_draws():
    for groups in (4, 0, 7):
        with pytest.raises(
            ValueError, match="groups must (divide the number of draws|be at least)"
        ):
            bounds.multi_iwae(jnp.zeros((6, 2)), groups=groups)
    with pytest.raises(ValueError, match="use bounds.elbo"):
        closed_forms(partial(bounds.multi_iwae, groups=6)).leave_one_out(jnp.zeros((6, 2)))


def test_a_row_without_weight_does_not_set_the_scale():
    log_w, weights = jnp.array([0.0, -200.0]), jnp.array([0.0, 1.0])
    assert bounds.iwae(log_w, weights=weights) == -200.0
    np.testing.assert_array_equal(
        vj.numerics.normalized_weights(log_w, weights=weights), [0.0, 1.0]
    )


@pytest.mark.parametrize("distance", [1e-2, 1e-4, 1e-6])
def test_renyi_is_smooth_at_one(distance):
    """The bound near α = 1 is mean + (1-α)/2 variance: an annealed α walks through it."""
    log_w = jnp.array([1.0, 2.0, 4.0, -3.0])
    expected = log_w.mean() + distance / 2 * log_w.var()
    np.testing.assert_allclose(
        bounds.renyi(log_w, alpha=1 - distance), expected, rtol=0, atol=2e-6 + 5 * distance**2
    )
    slope = jax.grad(lambda alpha: bounds.renyi(log_w, alpha=alpha))(1 - distance)
    np.testing.assert_allclose(slope, -log_w.var() / 2, rtol=10 * distance + 1e-2 + 1e-7 / distance)
    np.testing.assert_allclose(
        closed_forms(bounds.renyi).leave_one_out(log_w, alpha=jnp.float32(1.0)),
        vj.numerics.leave_one_out_mean(log_w),
        rtol=1e-6,
    )
