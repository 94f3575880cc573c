"""Restarts: those of one optimum agree, those of two do not, and one that dies is left behind."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vijax.fitting import Restarts, ascent, restarts, scale_units, stationary
from vijax.fitting._restarts import Many
from vijax.types import Draws, Estimate


def rule_of(landscape):
    """Noisy ascent of a function of one number, with a log-scale that is found besides."""

    def estimate(key, params):
        e, f = jax.random.normal(key, (2,))
        value = (
            landscape(params["loc"])
            + 0.2 * e * params["loc"]
            - jnp.square(params["log_scale"] - 0.1 * f)
        )
        return Estimate(value, Draws(None, value[None] + jnp.array([0.0, 0.1]), jnp.zeros(2)))

    return ascent(estimate, optax.sgd(0.05))


def one(x):
    return -0.5 * (x - 1) ** 2


def twin(x):
    """Two optima at -1 and 1; the left is lower by .3."""
    return -((x**2 - 1) ** 2) + 0.15 * jnp.tanh(4 * x)


def states(rule, locs):
    return jax.vmap(rule.init)({"loc": jnp.array(locs), "log_scale": jnp.zeros(len(locs))})


def test_restarts_of_one_optimum_agree(key):
    rule = rule_of(one)
    found = restarts(
        key,
        rule,
        states(rule, [-2.0, 0.0, 3.0]),
        steps=4000,
        stop=stationary(error=0.02, spread=1.0),
        reports=(),
    )
    assert isinstance(found, Restarts)
    assert isinstance(found.fit.state, Many)
    assert found.same_params.all()
    assert found.same_bound.all()
    assert found.rhat < 1.2
    assert np.all(found.distance < 0.15)
    assert found.distance[found.best] == 0
    np.testing.assert_allclose(found.average["loc"], 1.0, atol=0.05)
    assert np.all(found.died == -1)
    assert found.fit.stopped.startswith("stationary")
    assert jax.tree.map(jnp.shape, found.fit.average) == {"loc": (3,), "log_scale": (3,)}


@pytest.mark.slow
def test_restarts_of_two_optima_do_not(key):
    rule = rule_of(twin)
    found = restarts(
        key, rule, states(rule, [-2.0, 0.9, 1.3, -0.8]), steps=3000, stop=None, reports=()
    )
    assert found.same_params.tolist() == [False, True, True, False]
    assert found.same_bound.tolist() == [False, True, True, False]
    assert found.best in (1, 2)
    assert found.rhat > 2
    assert np.all(found.distance[jnp.array([0, 3])] > 1.5)
    # Mirror images have the same bound and other params.
    even = rule_of(lambda x: twin(x) - 0.15 * jnp.tanh(4 * x))
    found = restarts(key, even, states(even, [-1.0, 1.0]), steps=3000, stop=None, reports=())
    assert found.same_bound.all()
    assert found.same_params.sum() == 1


def test_one_that_dies_is_left_behind(key):
    rule = rule_of(lambda x: one(x) + jnp.where(x > 5, jnp.nan, 0.0) * x)
    found = restarts(key, rule, states(rule, [0.0, 10.0, 2.0]), steps=400, stop=None, reports=())
    assert found.died.tolist() == [-1, 0, -1]
    assert np.isnan(found.bound).tolist() == [False, True, False]
    assert found.same_params.tolist() == [True, False, True]
    assert np.isfinite(found.rhat)
    assert found.fit.trouble is None
    assert found.fit.state.states.params["loc"][1] == 10.0
    with pytest.raises(FloatingPointError, match="no restart stayed finite; they ended in steps"):
        restarts(key, rule, states(rule, [10.0, 20.0]), steps=10, stop=None, reports=())


def test_each_is_a_fit_of_its_own(key):
    """The same steps as one alone with that key."""
    rule = rule_of(one)
    starts = states(rule, [-2.0, 3.0])
    found = restarts(key, rule, starts, steps=50, stop=None, reports=())

    def alone(carry, i):
        return rule.step(jax.random.split(jax.random.fold_in(key, i), 2)[1], carry)[0], None

    second, _ = jax.jit(lambda s: jax.lax.scan(alone, s, jnp.arange(50)))(
        jax.tree.map(lambda l: l[1], starts)
    )
    mine = jax.tree.map(lambda l: l[1], found.fit.state.states)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), mine, second)


def test_what_is_refused(key, unchecked):
    rule = rule_of(one)
    bad = rule.init({"loc": jnp.zeros(3), "log_scale": jnp.zeros(2)})
    with pytest.raises(
        ValueError,
        match=r"must be \[restarts, ...\] with one number of restarts, got \[\(2,\), \(3,\)\]",
    ):
        restarts(key, rule, bad, steps=10)
    with pytest.raises(ValueError, match="make them with jax.vmap"):
        restarts(key, rule, rule.init({"loc": 0.0, "log_scale": 0.0}), steps=10)
    with pytest.raises(TypeError, match=r"restarts\(key, rule, states, .*takes the rule itself"):
        restarts(key, rule.step, states(rule, [0.0, 1.0]), steps=10)
    assert scale_units({"loc": 0.0, "log_scale": 0.0})["loc"] == 1
