"""Bounds against their formulas in NumPy and SciPy, with weights of the draws and without."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from tests import table
from vijax import bounds
from vijax.types import attribute

K, BATCH = 6, (2, 3)


def power_mean(l, w, n):
    return (w * l).sum(0) if n == 0 else logsumexp(n * l + np.log(w), axis=0) / n


def multi(l, w, groups):
    """Σ_m total_m log Σ_k w_k/total_m exp l_k, group m in consecutive rows."""
    value = 0.0
    for rows in np.split(np.arange(len(l)), groups):
        total = w[rows].sum(0)
        value = value + total * power_mean(l[rows], w[rows] / total, 1)
    return value


FORMULAS = {
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
    np.testing.assert_allclose(table.BOUND[name].function(jnp.asarray(log_w)), FORMULAS[name](log_w, equal), rtol=1e-12)


@pytest.mark.parametrize("name", list(FORMULAS))
def test_formula_with_weights(name, log_w, x64):
    """Weights [k], shared by the batch, and [k, *batch]; they sum to 1."""
    rng = np.random.default_rng(1)
    for shape in ((K, 1, 1), (K, *BATCH)):
        w = rng.dirichlet(np.ones(K), size=shape[1:]).transpose(2, 0, 1)
        given = jnp.asarray(w[:, 0, 0] if shape[1] == 1 else w)
        expected = FORMULAS[name](log_w, np.broadcast_to(w, log_w.shape))
        np.testing.assert_allclose(table.BOUND[name].function(jnp.asarray(log_w), weights=given), expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["elbo", "iwae", "ciwae(.3)", "renyi(.5)", "renyi(2)", "cubo(2)"])
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
        (bounds.renyi, "alpha", (0.0, 0.5, 1.0, 2.0)),
        (bounds.cubo, "n", (1.0, 2.0, 3.0)),
        (bounds.ciwae, "beta", (0.0, 0.4, 1.0)),
    ],
)
def test_hyperparameters_may_be_traced(function, keyword, values, log_w, unchecked):
    """A schedule for alpha, n or beta inside jit: one trace, and the numbers of the plain call; gates as well."""
    gate = attribute(function, "gate")
    l = jnp.asarray(log_w, jnp.float32)
    traced = jax.jit(lambda value: (function(l, **{keyword: value}), gate(l, **{keyword: value})))
    for value in values:
        expected = function(l, **{keyword: value}), gate(l, **{keyword: value})
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), traced(value), expected)
        slope = jax.grad(lambda value: function(l, **{keyword: value}).sum())(value)
        assert np.isfinite(slope)


def test_groups_divide_the_draws():
    for groups in (4, 0, 7):
        with pytest.raises(ValueError, match="groups must divide the number of draws"):
            bounds.multi_iwae(jnp.zeros((6, 2)), groups=groups)
    with pytest.raises(ValueError, match="use bounds.elbo"):
        attribute(partial(bounds.multi_iwae, groups=6), "leave_one_out")(jnp.zeros((6, 2)))
