"""Climbs that end where the derivative does: known maxima, both precisions, batches, and what cannot be climbed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vijax.solvers import Maximum, maximize


def rosenbrock(params):
    x = jnp.concatenate([params["head"], params["tail"]])
    return -jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def start(value):
    return {"head": jnp.full(1, value), "tail": jnp.zeros(5)}


def test_a_curved_valley_in_double_precision(x64):
    found = jax.jit(lambda at: maximize(rosenbrock, at, slope=1e-9))(start(0.0))
    jax.tree.map(lambda x: np.testing.assert_allclose(x, 1.0, atol=1e-9), found.params)
    assert isinstance(found, Maximum)
    assert found.slope <= 1e-9
    assert abs(found.value) < 1e-15
    assert 10 < found.steps < 200
    # The control: half as many steps do not arrive, and say so.
    assert jax.jit(lambda at: maximize(rosenbrock, at, steps=20))(start(0.0)).slope > 1e-3


def test_single_precision_stops_where_rounding_does():
    found = jax.jit(lambda at: maximize(lambda x: jnp.sum(0.3 * x - jax.nn.softplus(x)), at))(
        jnp.ones(3)
    )
    np.testing.assert_allclose(found.params, np.log(0.3 / 0.7), atol=2e-3)
    assert found.steps < 20


def test_a_vmap_is_a_loop():
    climb = lambda at: maximize(rosenbrock, at, slope=1e-2)
    starts = [start(0.0), start(-1.0)]
    many = jax.jit(jax.vmap(climb))(jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts))
    assert many.steps[0] != many.steps[1]
    for i, one in enumerate(starts):
        alone = jax.jit(climb)(one)
        assert alone.slope < 1e-2
        assert many.slope[i] < 1e-2
        jax.tree.map(
            lambda f, e, i=i: np.testing.assert_allclose(f[i], e, atol=2e-2),
            many.params,
            alone.params,
        )


def test_where_the_function_ends_the_best_is_kept():
    found = jax.jit(lambda at: maximize(lambda x: jnp.where(x < 2, x, jnp.nan), at))(
        jnp.float32(0.0)
    )
    assert jnp.isfinite(found.value)
    assert found.value >= 0.0
    assert found.slope == 1.0


def test_what_cannot_be_climbed():
    with pytest.raises(TypeError, match="scalar, got shape \\(3,\\); sum over the batch"):
        maximize(lambda x: -(x**2), jnp.ones(3))
    with pytest.raises(TypeError, match="pytree of float arrays"):
        maximize(lambda x: -(x**2), jnp.int32(1))
