"""free_bits and hold_rate: values by hand, slopes below the floor, and a rate that is reached."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vijax.models import Rate, RateHolder, free_bits, hold_rate


def test_free_bits_by_hand():
    """The floor is on the mean over data, not on each datum; a latent below it has no slope."""
    kl = jnp.array([[0.0, 3.0, 0.2], [0.4, 1.0, 0.0]])
    np.testing.assert_allclose(free_bits(kl, floor=0.3), [2.6, 2.6], rtol=1e-6)
    slope = jax.grad(lambda kl: free_bits(kl, floor=0.3).mean())(kl)
    np.testing.assert_allclose(slope, [[0, 0.5, 0], [0, 0.5, 0]])
    np.testing.assert_allclose(free_bits(kl, floor=0.0), kl.sum(1).mean(), rtol=1e-6)
    assert jnp.all(
        free_bits(kl, floor=0.3).mean() >= kl.sum(1).mean()
    )  # the objective is below the ELBO
    # The control: a floor for each datum is another number.
    assert abs(float(jnp.maximum(kl, 0.3).sum(1).mean() - 2.6)) > 0.04


def test_a_rate_is_held():
    """One Gaussian latent of precision 1 + 8/b under beta b: its rate falls with beta, and settles at the target."""
    holder = hold_rate(0.5, step_size=0.05)
    assert isinstance(holder, RateHolder)

    def rate(beta):  # q* of beta-weighted KL: N(0, 1 / (1 + 8 / beta))
        variance = 1 / (1 + 8 / beta)
        return 0.5 * (variance - 1 - jnp.log(variance))

    def step(state, _):
        state = holder.update(state, rate(state.beta))
        return state, state.beta

    state, betas = jax.jit(lambda s: jax.lax.scan(step, s, None, 500))(holder.init())
    assert isinstance(state, Rate)
    np.testing.assert_allclose(rate(state.beta), 0.5, rtol=1e-3)
    assert abs(float(rate(1.0) - 0.5)) > 0.1  # where it began
    np.testing.assert_allclose(betas[0], np.exp(0.05 * (rate(1.0) / 0.5 - 1)), rtol=1e-5)


def test_beta_has_limits_and_no_derivative():
    holder = hold_rate(1.0, step_size=1.0, least=0.5, most=2.0)
    update = lambda rate: holder.update(holder.init(), rate).beta
    np.testing.assert_allclose(
        [update(jnp.array(9.0)), update(jnp.array(0.0))], [2.0, 0.5], rtol=1e-6
    )
    assert jax.grad(update)(jnp.array(1.1)) == 0


def test_refusals(unchecked):
    with pytest.raises(ValueError, match=r"kl must be \[\*batch, latents\]"):
        free_bits(jnp.zeros(3), floor=0.1)
    with pytest.raises(ValueError, match="floor must be 0 or more"):
        free_bits(jnp.zeros((3, 2)), floor=-0.1)
    with pytest.raises(ValueError, match="target and step_size must be positive"):
        hold_rate(0.0)
