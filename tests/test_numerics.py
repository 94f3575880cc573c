"""Custom derivatives and stable arithmetic, each against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from vijax import numerics
from vijax.numerics import (
    expand,
    leave_one_out_log_mean_exp,
    leave_one_out_mean,
    log_mean_exp,
    normalized_weights,
    scale_gradient,
    with_score,
)


@pytest.fixture
def x():
    return jnp.asarray(3 * np.random.default_rng(0).normal(size=(5, 2)), jnp.float32)


def test_log_mean_exp(x):
    np.testing.assert_allclose(log_mean_exp(x), logsumexp(x, axis=0) - np.log(5), rtol=1e-6)
    w = jnp.array([0.1, 0.2, 0.3, 0.4, 0.0])
    np.testing.assert_allclose(
        log_mean_exp(x, weights=w), logsumexp(x, axis=0, b=np.asarray(w)[:, None]), rtol=1e-5
    )
    np.testing.assert_allclose(
        jax.grad(lambda x: log_mean_exp(x).sum())(x), normalized_weights(x), rtol=1e-5
    )
    weighted = jax.grad(lambda x: log_mean_exp(x, weights=w).sum())(x)
    np.testing.assert_allclose(weighted, normalized_weights(x, weights=w), rtol=1e-5)
    assert np.all(weighted[4] == 0)


def test_second_derivatives_of_log_mean_exp(x):
    """diag(w) - w wᵀ, which a Hessian through iwae needs; with an impossible row as well."""
    for column in (x[:, 0], x[:, 0].at[2].set(-jnp.inf)):
        w = np.asarray(normalized_weights(column))
        np.testing.assert_allclose(
            jax.hessian(log_mean_exp)(column), np.diag(w) - np.outer(w, w), atol=1e-6
        )


@pytest.mark.parametrize("impossible", [jnp.inf, -jnp.inf, 1e30])
def test_a_draw_of_weight_zero_does_not_count(impossible):
    """Whatever its log-weight; and its gradient is 0."""
    x, w = jnp.array([impossible, 0.5]), jnp.array([0.0, 1.0])
    value, slope = jax.value_and_grad(lambda x: log_mean_exp(x, weights=w))(x)
    np.testing.assert_allclose(value, 0.5, rtol=1e-6)
    np.testing.assert_allclose(slope, [0.0, 1.0])


@pytest.mark.parametrize("function", [leave_one_out_mean, leave_one_out_log_mean_exp])
def test_leaving_one_out_needs_two(function, unchecked):
    with pytest.raises(ValueError, match="at least two"):
        function(jnp.zeros((1, 3)))
    with pytest.raises(ValueError, match="at least two"):
        function(jnp.float32(0.0))


@pytest.mark.parametrize("k", [2, 3, 1000])
def test_leave_one_out_of_nearly_equal_and_of_two(k):
    """Where the top row carries nearly everything, subtraction would cancel: 1e-6 all the same."""
    l = jnp.zeros((k, 1)).at[0].set(60.0)
    expected = np.full((k, 1), 60 - np.log(k - 1))
    expected[0] = 0.0
    np.testing.assert_allclose(leave_one_out_log_mean_exp(l), expected, rtol=1e-6, atol=1e-6)


def test_expand():
    assert expand(jnp.zeros(3), jnp.zeros((3, 4, 5))).shape == (3, 1, 1)
    assert expand(jnp.float32(1.0), jnp.zeros(4)).shape == (1,)


def test_scale_gradient(x):
    """Value as it is; derivative times the factor in both modes; nothing for the factor; integers and dicts welcome."""
    factor = jnp.arange(5.0)
    z = {"a": x, "n": jnp.arange(5)}
    np.testing.assert_array_equal(scale_gradient(z, factor)["a"], x)
    total = lambda x, factor: jnp.sum(jnp.sin(scale_gradient({"a": x, "n": z["n"]}, factor)["a"]))
    dx, dfactor = jax.grad(total, (0, 1))(x, factor)
    np.testing.assert_allclose(dx, jnp.cos(x) * factor[:, None], rtol=1e-5)
    assert np.all(dfactor == 0)
    _, tangent = jax.jvp(lambda x: total(x, factor), (x,), (jnp.ones_like(x),))
    np.testing.assert_allclose(tangent, jnp.sum(dx), rtol=1e-4)
    stacked = jax.vmap(jax.grad(total), (None, 0))(x, jnp.stack([factor, 2 * factor]))
    np.testing.assert_allclose(stacked[1], 2 * dx, rtol=1e-5)
    shared = jax.grad(
        lambda x: jnp.sum(jax.vmap(total, (None, 0))(x, jnp.stack([factor, 2 * factor])))
    )(x)
    np.testing.assert_allclose(shared, 3 * dx, rtol=1e-5)


def test_with_score():
    """The first argument's value and the second's derivative, where value + score - stop(score) would be nan."""
    run = lambda s: with_score(jnp.float32(-jnp.inf), 3.0 * s)
    assert run(jnp.float32(2.0)) == -jnp.inf
    assert jax.grad(run)(jnp.float32(2.0)) == 3.0
    assert np.isnan(jnp.float32(-jnp.inf) + 3.0 - jnp.float32(-jnp.inf))
    assert jax.grad(lambda v: with_score(v, jnp.float32(1.0)))(jnp.float32(2.0)) == 0.0
    both = jax.grad(lambda v: jnp.sum(jax.vmap(lambda s: with_score(v, s * v))(jnp.arange(3.0))))(
        jnp.float32(2.0)
    )
    assert both == 3.0


def test_log_normalized():
    """SciPy's log-softmax, far rows included; where the sum is 0 or infinite the best share alike, with gradient 0."""
    x = jnp.array(
        [
            [0.3, -200.0, -jnp.inf, -jnp.inf, jnp.inf],
            [1.2, 0.0, 2.0, -jnp.inf, 0.0],
            [0.0, 3.0, 1.0, -jnp.inf, jnp.inf],
        ]
    )
    found = np.asarray(numerics.log_normalized(x))
    np.testing.assert_allclose(found[:, :3], jax.nn.log_softmax(x[:, :3], 0), rtol=1e-6)
    np.testing.assert_allclose(found[:, 3], -np.log(3), rtol=1e-6)
    np.testing.assert_allclose(found[:, 4], [-np.log(2), -np.inf, -np.log(2)], rtol=1e-6)
    slopes = jax.jacrev(lambda x: jnp.exp(numerics.log_normalized(x)))(x)
    assert np.all(np.isfinite(slopes))
    np.testing.assert_array_equal(slopes[:, 3:], np.zeros((3, 2, 3, 5)))
