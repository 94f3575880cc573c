"""committed_rate: no params fall below the rate, and its cap is where the rate is met."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj

NORMAL = vj.families.mean_field(scale=1.0)


@pytest.mark.parametrize("rate", [1e-3, 0.1, 3.0])
def test_the_rate_is_a_floor(rate, key):
    """A thousand params anywhere: KL >= rate for each latent; at the prior's own mean and a wide scale, equal."""
    family = vj.families.committed_rate(rate=rate)
    prior = NORMAL.dist(NORMAL.init(None, jnp.zeros(1)))
    kl = lambda loc, log_scale, f: f.dist({"loc": loc, "log_scale": log_scale}).kl_divergence(prior)
    params = 3 * jax.random.normal(key, (2, 1000, 1))
    floored = jax.vmap(lambda m, s: kl(m, s, family))(*params)
    assert floored.min() >= rate - 1e-4
    np.testing.assert_allclose(kl(jnp.zeros(1), jnp.full(1, 20.0), family), rate, rtol=2e-3)
    # The control: the same params of mean_field fall below.
    assert jax.vmap(lambda m, s: kl(0 * m, 0 * s, NORMAL))(*params).min() < rate / 2


def test_far_below_the_cap_it_is_mean_field(key):
    family = vj.families.committed_rate(rate=0.1)
    params = {"loc": jnp.ones(2), "log_scale": jnp.full(2, -12.0)}
    z = jnp.full(2, 1.0)
    np.testing.assert_allclose(
        family.dist(params).log_prob(z), NORMAL.dist(params).log_prob(z), rtol=1e-5
    )


def test_refusals(unchecked):
    with pytest.raises(ValueError, match="rate must be positive"):
        vj.families.committed_rate(rate=0.0)
    with pytest.raises(TypeError, match="fixed when the function is traced"):
        jax.jit(lambda rate: vj.families.committed_rate(rate=rate).init(None, jnp.zeros(1)))(0.1)
