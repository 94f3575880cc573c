"""Functions by cases that meet keep their derivative inside a sampler; those that jump lose it."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vijax.bounds import elbo
from vijax.gradients import dreg, reparam

pytestmark = pytest.mark.usefixtures("loose_ranks")

MEET = {
    "leaky_relu": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "selu": jax.nn.selu,
    "hard_tanh": jax.nn.hard_tanh,
    "sparse_plus": jax.nn.sparse_plus,
    "own": jax.jit(lambda x: jnp.where((x > 1) | (x < -1), jnp.abs(x) - 0.5, 0.5 * x**2)),
}
JUMP = {
    "step": jax.jit(lambda x: jnp.where(x > 0, x, 0.1)),
    "small step": jax.jit(lambda x: jnp.where(x > 0, x, x - 1e-3)),
    "one of two": jax.jit(lambda x: jnp.where(x > 1, 2.0, jnp.where(x > -1, x, -1.0))),
    "where it is not seen": jax.jit(lambda x: jnp.where(x * x > 1, x, -x)),
    "stopped": jax.jit(lambda x: jnp.where(x > 0, jax.lax.stop_gradient(x), x)),
    "rounded": jax.jit(lambda x: jnp.where(x > 0, jnp.round(x), x)),
    "neighbors": jax.jit(lambda x: jnp.where(x > 0, x, 0.0) - jnp.where(x[::-1] > 0, 1.0, 0.0)),
}


def ladder(act, p):
    """y given x through an activation; both of two elements."""
    return {
        "x": distrax.Independent(distrax.Normal(p["m"], jnp.ones(2)), 1),
        "y": lambda z: distrax.Independent(distrax.Normal(p["v"] * act(p["w"] * z["x"]), 0.5), 1),
    }


def log_joint(z):
    return -0.5 * jnp.sum(z["y"] ** 2)


PARAMS = {"m": jnp.array([0.3, -0.2]), "v": jnp.array([-0.5, 1.0]), "w": jnp.array([0.7, 1.5])}


def gradient(estimator, act, num_samples):
    def value(p):
        objective = estimator(elbo)
        key = jax.random.key(0)
        return objective(key, log_joint, ladder(act, p), num_samples=num_samples).value

    return jax.grad(value)(PARAMS)


@pytest.mark.parametrize("estimator", [reparam, dreg])
@pytest.mark.parametrize("name", MEET)
def test_cases_that_meet_pass(name, estimator):
    jax.eval_shape(lambda: gradient(estimator, MEET[name], 2))


@pytest.mark.parametrize("name", JUMP)
def test_cases_that_jump_are_refused(name):
    with pytest.raises(ValueError, match="leaf 'y' depends on a parameter through"):
        jax.eval_shape(lambda: gradient(reparam, JUMP[name], 2))


def test_a_draw_that_is_bent_has_a_density_that_jumps():
    class Bent:
        """leaky_relu(m + e): log q jumps at 0, which draws pass as m moves."""

        batch_shape = event_shape = ()

        def __init__(self, m):
            self.m = m

        def sample_and_log_prob(self, *, seed, sample_shape=()):
            z = jax.nn.leaky_relu(self.m + jax.random.normal(seed, sample_shape), 0.1)
            return z, self.log_prob(z)

        def log_prob(self, z):
            base = jnp.where(z >= 0, z, z / 0.1) - self.m
            return -0.5 * base**2 - jnp.where(z >= 0, 0.0, jnp.log(0.1))

    # At m = .3 the estimate was -.566, and the gradient is .314.
    with pytest.raises(ValueError, match="depends on a parameter through 'select_n'"):
        reparam(elbo)(jax.random.key(0), lambda z: -(z**2) / 2, Bent(jnp.array(0.3)), num_samples=2)


@pytest.mark.parametrize("name", ["leaky_relu", "own"])
def test_the_gradient_is_that_of_quadrature(name):
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    act = MEET[name]

    def exact(p):  # the entropies do not depend on the parameters
        inner = p["v"] * act(p["w"] * (p["m"] + jnp.asarray(nodes)[:, None]))
        return -0.5 * jnp.sum(jnp.asarray(weights / weights.sum()) @ inner**2)

    # The standard errors are below .006 and .012; five of them, for twelve numbers: 1e-5.
    found = jax.jit(lambda: gradient(reparam, act, 100_000))()
    for leaf, right in jax.grad(exact)(PARAMS).items():
        np.testing.assert_allclose(found[leaf], right, atol=0.06, err_msg=leaf)
        assert np.abs(right).max() > 0.2  # ten times as far off without the derivative
