"""Fixed lags: the full smoothers of truncated data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj
from tests.sequences import problem
from tests.sequences.chains import factors

T = 6
LAGS = (0, 2, T + 2)
MODEL = problem.random_model(3, T, 2, 2, varying=True, offsets=True)
MASK = np.random.default_rng(4).uniform(size=(T, 2)) < 0.7
X = np.where(MASK, np.random.default_rng(5).normal(size=(T, 2)), np.nan)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [pytest.param(np.float32, marks=pytest.mark.slow), np.float64])
def test_a_linear_chain(dtype):
    """Against kalman_smoother, told nothing of what comes after the lag; parts missing."""
    with jax.enable_x64(dtype == np.float64):
        model, x = jax.tree.map(lambda a: jnp.asarray(a, dtype), (MODEL, X))

        @jax.jit
        def truncated(last):
            mask = MASK & (jnp.arange(T)[:, None] <= last)
            return vj.sequences.kalman_smoother(model, x, mask=mask).marginals()

        means, covs = jax.vmap(truncated)(jnp.arange(T))
        tolerance = 1e-12 if dtype == np.float64 else 1e-5
        for lag in LAGS if dtype == np.float32 else LAGS[1:]:
            found = vj.sequences.fixed_lag_smoother(model, x, lag=lag, mask=MASK)
            for t in range(T):
                last = min(t + lag, T - 1)
                np.testing.assert_allclose(found[0][t], means[last, t], rtol=0, atol=tolerance)
                np.testing.assert_allclose(found[1][t], covs[last, t], rtol=0, atol=tolerance)
        # The control: another lag is another answer.
        assert np.abs(means[1, 0] - means[3, 0]).max() > 1e-3


def test_a_hidden_markov_chain(key):
    """Against hmm, told nothing of what comes after the lag; one step missing."""
    arrays = factors(key, t=T, moving=True)
    seen = jnp.arange(T) != 2
    truncated = jax.jit(
        jax.vmap(
            lambda last: vj.sequences.hmm(
                *arrays, observed=seen & (jnp.arange(T) <= last)
            ).posterior.log_marginals()
        )
    )(jnp.arange(T))
    for lag in LAGS:
        found = vj.sequences.fixed_lag_marginals(*arrays, lag=lag, observed=seen)
        expected = [truncated[min(t + lag, T - 1), t] for t in range(T)]
        np.testing.assert_allclose(np.exp(found), np.exp(expected), atol=2e-6)
    assert np.abs(np.exp(truncated[1, 0]) - np.exp(truncated[3, 0])).max() > 1e-3


def test_one_step_and_what_is_impossible(key):
    arrays = factors(key, t=1)
    found = vj.sequences.fixed_lag_marginals(*arrays, lag=2)
    np.testing.assert_allclose(found[0], jax.nn.log_softmax(arrays[0] + arrays[2][0]), rtol=1e-5)
    nothing = jnp.full((3, 2), -jnp.inf)
    found = vj.sequences.fixed_lag_marginals(jnp.zeros(2), jnp.zeros((2, 2)), nothing, lag=1)
    np.testing.assert_allclose(found, np.log(0.5), rtol=1e-6)


def test_refusals(unchecked):
    lagged = vj.sequences.fixed_lag_smoother
    with pytest.raises(ValueError, match="lag must be at least 0"):
        lagged(MODEL, X, lag=-1)
    with pytest.raises(TypeError, match="lag must be a Python int"):
        vj.sequences.fixed_lag_marginals(
            jnp.zeros(2), jnp.zeros((2, 2)), jnp.zeros((3, 2)), lag=1.5
        )
    with pytest.raises(ValueError, match="diffuse start.*use kalman_smoother"):
        lagged(MODEL._replace(diffuse=np.eye(2)), X, lag=1)
    with pytest.raises(TypeError, match="must be a sequences.LinearGaussian"):
        lagged(None, X, lag=1)
