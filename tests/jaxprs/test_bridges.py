"""Stable forms of smooth functions, of two formulas that agree to rounding, keep the path of draws."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import distributions as nd
from tensorflow_probability.substrates import jax as tfp

import vijax as vj
from vijax.bounds import elbo
from vijax.gradients import dreg, reparam

pytestmark = pytest.mark.usefixtures("loose_ranks", "unchecked")
tfb, tfd = tfp.bijectors, tfp.distributions
adapt = vj.families.adapt


def of_distrax(bijector):
    return lambda m: distrax.Transformed(distrax.Normal(m, 1.0), bijector)


def of_tfp(bijector):
    return lambda m: adapt(tfd.TransformedDistribution(tfd.Normal(m, 1.0), bijector))


def of_numpyro(transforms):
    return lambda m: adapt(nd.TransformedDistribution(nd.Normal(m, 1.0), transforms))


def blocked(m):
    base = distrax.Independent(distrax.Normal(m * jnp.ones(3), 1.0), 1)
    return distrax.Transformed(base, distrax.Block(distrax.Sigmoid(), 1))


def softplus_undone(m):
    q = tfd.TransformedDistribution(tfd.LogNormal(m, 1.0), tfb.Invert(tfb.Softplus()))
    return adapt(q)


STABLE = {
    "Sigmoid": of_distrax(distrax.Sigmoid()),
    "Tanh": of_distrax(distrax.Tanh()),
    "Chain": of_distrax(distrax.Chain([distrax.Sigmoid(), distrax.ScalarAffine(0.5, 2.0)])),
    "Inverse": of_distrax(distrax.Chain([distrax.Inverse(distrax.Sigmoid()), distrax.Sigmoid()])),
    "Block": blocked,
    "softplus": of_distrax(distrax.Lambda(jax.nn.softplus, lambda y: jnp.log(jnp.expm1(y)))),
    "TFP Sigmoid": of_tfp(tfb.Sigmoid()),
    "TFP Sigmoid(-1, 2)": of_tfp(tfb.Sigmoid(-1.0, 2.0)),
    "TFP SoftClip": of_tfp(tfb.SoftClip(-1.0, 2.0)),
    "TFP Softplus": of_tfp(tfb.Softplus()),
    "TFP Invert(Softplus)": softplus_undone,
    "TFP NormalCDF": of_tfp(tfb.NormalCDF()),
    "NumPyro sigmoid": of_numpyro(nd.transforms.SigmoidTransform()),
    "NumPyro softplus": of_numpyro(nd.transforms.SoftplusTransform()),
}


def log_joint(z):
    return -15 * jnp.sum((z - 0.2) ** 2)


def gradient(estimator, make, m=0.3, num_samples=2):
    def value(m):
        return estimator(elbo)(jax.random.key(0), log_joint, make(m), num_samples=num_samples).value

    return jax.grad(value)(m)


@pytest.mark.parametrize("name", STABLE)
def test_stable_forms_pass(name):
    jax.eval_shape(lambda: gradient(reparam, STABLE[name]))


def test_the_gradient_is_that_of_quadrature():
    """Of a logit-normal q, by quadrature over its noise."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(100)

    def exact(m):
        x = m + jnp.asarray(nodes)
        z = jax.nn.sigmoid(x)
        log_slope = -jax.nn.softplus(x) - jax.nn.softplus(-x)
        return jnp.asarray(weights / weights.sum()) @ (log_slope - 15 * (z - 0.2) ** 2)

    found = jax.jit(lambda: gradient(dreg, STABLE["Sigmoid"], num_samples=20_000))()
    right = jax.grad(exact)(0.3)
    np.testing.assert_allclose(found, right, atol=0.04)  # 5 standard errors are .027
    assert abs(right) > 2


# --- what jumps or bends, however little, is refused

BROKEN = {
    "cut off": lambda x: jnp.where(x < -9, 0.0, jax.nn.sigmoid(x)),
    "a late bridge": lambda x: jnp.where(x < -5, jnp.exp(x), jax.nn.sigmoid(x)),
    "bent": lambda x: jnp.where(x < 0, 0.1 * x, x),
    "slightly bent": lambda x: jnp.where(x < 0, 0.99 * x, x),
    "a bend elsewhere": lambda x: jnp.where(x < -9, 0.01 * x, jax.nn.leaky_relu(x)),
    "a largest value": lambda x: jnp.where(x < -1, x, jnp.maximum(x, -1 + 2 * x)),
    "an absolute value": lambda x: jnp.where(x < -1, -4.0 - x, jnp.abs(x) - 4.0),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_jumps_or_bends_is_refused(name):
    class Own:
        def __init__(self, m):
            self.m = m

        def sample_and_log_prob(self, *, seed, sample_shape=()):
            z = BROKEN[name](self.m + jax.random.normal(seed, sample_shape))
            return z, self.log_prob(z)

        def log_prob(self, z):
            return -0.5 * (z - self.m) ** 2

    with pytest.raises(ValueError, match="depends on a parameter through"):
        jax.eval_shape(lambda: gradient(reparam, Own))
