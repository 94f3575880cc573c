"""adapt: TFP and NumPyro distributions lent the two methods, draws and densities untouched."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import vijax as vj

pytestmark = pytest.mark.usefixtures("loose_ranks")


class NumpyroStyle:
    """sample(key, sample_shape), as NumPyro spells it."""

    def sample(self, key, sample_shape=()):
        return 1.0 + jax.random.normal(key, sample_shape)

    def log_prob(self, z):
        return norm.logpdf(z, 1.0, 1.0)


def makes():
    from tensorflow_probability.substrates import jax as tfp

    return {
        "TFP": tfp.distributions.Normal(jnp.float32(1.0), jnp.float32(1.0)),
        "NumPyro": NumpyroStyle(),
    }


@pytest.mark.parametrize("make", ["TFP", "NumPyro"])
def test_adapted(make, key):
    distribution = makes()[make]
    q = vj.families.adapt(distribution)
    z, log_q = q.sample_and_log_prob(seed=key, sample_shape=(4,))
    assert z.shape == (4,)
    np.testing.assert_allclose(log_q, norm.logpdf(z, 1.0, 1.0), rtol=1e-5)
    np.testing.assert_allclose(q.log_prob(z), distribution.log_prob(z))
    expected = distribution.sample(seed=key) if make == "TFP" else distribution.sample(key)
    np.testing.assert_array_equal(q.sample_and_log_prob(seed=key)[0], expected)
    estimate = vj.gradients.dreg(vj.bounds.iwae)(
        key, lambda z: norm.logpdf(z, 0.0, 1.0), q, num_samples=3
    )
    assert estimate.value.shape == ()


def test_what_cannot_be_adapted():
    with pytest.raises(TypeError, match="adapt needs .*sample and log_prob"):
        vj.families.adapt(jnp.zeros(3))
