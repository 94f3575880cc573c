"""Climbs that end where the derivative does: known maxima, both precisions, batches, and what cannot be climbed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vijax.gaussians import newton
from vijax.solvers import Maximum, maximize


def rosenbrock(params):
    x = jnp.concatenate([params["head"], params["tail"]])
    return -jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def start(value):
    return {"head": jnp.full(1, value), "tail": jnp.zeros(5)}


@pytest.mark.slow
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


@pytest.mark.slow
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


def collinear(dtype):
    """Return a logistic regression on three features that are alike to 1%, and one of size 100, and its data."""
    rng = np.random.default_rng(0)
    u, noise = rng.normal(size=(500, 1)), rng.normal(size=(500, 2))
    x = np.concatenate([u, u + 1e-2 * noise, 100 * rng.normal(size=(500, 1))], 1)
    odds = x @ [1.0, -2.0, 1.5, 0.01]
    y = rng.uniform(size=500) < 1 / (1 + np.exp(-odds))
    x, y = jnp.asarray(x, dtype), jnp.asarray(y, dtype)

    def log_joint(w):
        predictor = x @ w
        return jnp.sum(y * predictor - jax.nn.softplus(predictor)) - 0.005 * jnp.sum(w**2)

    return log_joint


def test_single_precision_reaches_what_it_can_resolve(x64):
    """Within 1e-5 nats of the top, where L-BFGS alone is .1 short, and its decrement says how far it is."""
    f32, f64 = collinear(np.float32), collinear(np.float64)
    top = maximize(f64, jnp.zeros(4, np.float64))
    found = maximize(f32, jnp.zeros(4, np.float32))
    short = top.value - f64(found.params.astype(np.float64))
    assert 0 <= short < 1e-5
    assert found.decrement < 1e-5
    np.testing.assert_allclose(found.scaled_slope**2 / 2, found.decrement, rtol=1e-5)
    assert top.decrement < 1e-20
    # The control: a climb that is cut off says how far it is, to the quadratic's own error.
    early = maximize(f64, jnp.zeros(4, np.float64), steps=6)
    np.testing.assert_allclose(early.decrement, top.value - early.value, rtol=0.2)
    assert early.decrement > 0.01


@pytest.mark.slow
def test_no_decrement_where_nothing_is_known():
    """Not concave; more parameters than 500; and a function with a first derivative alone."""
    saddle = maximize(lambda x: x[0] ** 2 - x[1] ** 2, jnp.array([1e-3, 0.2]), steps=1)
    assert jnp.isnan(saddle.decrement)
    many = maximize(lambda x: -jnp.sum((x - 1) ** 2), jnp.zeros(501))
    np.testing.assert_allclose(many.params, 1.0, rtol=1e-4)
    assert jnp.isnan(many.decrement)

    @jax.custom_vjp
    def once(x):
        return -jnp.sum((x - 1) ** 2)

    once.defvjp(lambda x: (once(x), x), lambda x, g: (-2 * g * (x - 1),))
    found = maximize(once, jnp.zeros(3))
    np.testing.assert_allclose(found.params, 1.0, rtol=1e-4)
    assert jnp.isnan(found.decrement)


def test_compiled_once_for_a_function():
    """At its second call it takes a trace, not a compilation; data that it closes over may change, and do not go stale."""
    data = {"x": jnp.ones(3)}

    def function(w):
        return -jnp.sum((w - data["x"]) ** 2)

    count = []

    def listen(name, *args, **kwargs):
        if "backend_compile" in name:
            count.append(name)

    half, moved_data, number = jnp.array([0.5] * 3), jnp.array([1.0, 2.0, 3.0]), jnp.float32(2.0)
    first = maximize(function, jnp.zeros(3))
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        again = maximize(function, half)
        assert not count
        data["x"] = moved_data
        moved = maximize(function, half)
        assert not count
        data["x"] = number  # another shape is another program
        other = maximize(function, half)
        assert count
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    for found, truth in ((first, 1), (again, 1), (moved, [1, 2, 3]), (other, 2)):
        np.testing.assert_allclose(found.params, truth, rtol=1e-4)


X = jnp.array([-2.0, -1.0, 1.0, 2.0])
NO_GAUSSIAN = {
    "log": lambda x: jnp.sum(jnp.log(x)),
    "separated": lambda x: jnp.sum((X > 0) * X * x - jax.nn.softplus(X * x)),
    "fourth power": lambda x: -jnp.sum((x - 1) ** 4),
}
GAUSSIAN = {
    "quadratic": lambda x: -3e8 - 0.5 * jnp.sum((x - 3) ** 2),
    "skewed": lambda x: jnp.sum(0.01 * x - jnp.exp(x)),
    "light tails": lambda x: -0.01 * jnp.sum(jnp.cosh(x)),
    "heavy tails": lambda x: -jnp.sum(jnp.log1p(x**2)),
    "a lower peak beside": lambda x: jnp.sum(jnp.logaddexp(-2 * x**2, -2 * (x - 3) ** 2 - 1)),
}


@pytest.mark.parametrize("name", [*NO_GAUSSIAN, *GAUSSIAN])
def test_no_mode_where_the_curvature_is_no_scale(name):
    """Each said that it had arrived: with a scale of e⁸ where the data are separated, and 1e19 for log x."""
    f = {**NO_GAUSSIAN, **GAUSSIAN}[name]
    at = jax.jit(lambda x: newton.climb(f, x, 100)[2])(jnp.full(1, 0.3))
    assert bool(at.arrived) == (name in GAUSSIAN)
    assert (at.curvature > 0.5) == (name in GAUSSIAN)


def test_no_decrement_without_a_maximum():
    assert jnp.isnan(maximize(NO_GAUSSIAN["log"], jnp.ones(2)).decrement)
