"""Closed-over values become arguments, or are stopped, and the function stays what it was."""

import jax
import jax.numpy as jnp
import numpy as np

from vijax import jaxprs

X = jnp.array([0.3, -0.2])


def test_hoisted():
    """Parameters, whole numbers and keys alike come out, and the function closes over none."""

    def value(p):
        key, count = jax.random.key(3), jnp.arange(2)

        def function(x):
            return {"a": p * x + count, "b": jax.random.normal(key) * p}

        hoisted, parameters, others, shape = jaxprs.hoist(function, X)
        assert jax.tree.map(jnp.shape, shape) == {"a": (2,), "b": ()}
        jax.tree.map(
            np.testing.assert_allclose,
            *jax.lax.stop_gradient((hoisted(parameters, others, X), function(X))),
        )
        return jnp.sum(hoisted([2 * q for q in parameters], others, X)["a"])

    np.testing.assert_allclose(jax.grad(value)(1.5), 2 * jnp.sum(X), rtol=1e-6)


def test_stopped():
    """All that it closes over is held fixed; its arguments keep their derivative."""

    def value(p, x):
        run, closed = jaxprs.stopped(lambda x: {"y": p * x**2}, x)
        assert len(closed.consts) == 1
        return jnp.sum(run(x)["y"])

    of_p, of_x = jax.grad(value, (0, 1))(1.5, X)
    assert of_p == 0
    np.testing.assert_allclose(of_x, 2 * 1.5 * X, rtol=1e-6)
