"""R-hat: that of arviz-stats to 1e-6, and deaf or not to what it should be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arviz_stats.base import array_stats

from vijax.diagnostics import rhat


@pytest.mark.parametrize(("runs", "n"), [(2, 20), (4, 101), (3, 500)])
def test_rhat_is_that_of_arviz_stats(runs, n, x64):
    rng = np.random.default_rng(n)
    x = rng.normal(size=(runs, n, 5))
    x[0, :, 1] += 1.0  # another place
    x[0, :, 2] *= 3.0  # another spread
    x[..., 3] = np.round(2 * x[..., 3])  # ties
    x[..., 4] = np.cumsum(x[..., 4], 1)  # halves that disagree
    found = jax.jit(rhat)({"all": jnp.asarray(x), "one": jnp.asarray(x[..., 0])})
    expected = [array_stats.rhat(x[..., i], method="rank") for i in range(5)]
    np.testing.assert_allclose(found["all"], expected, atol=1e-6)
    np.testing.assert_allclose(found["one"], expected[0], atol=1e-6)
    if n == 500:
        assert np.all(found["all"][jnp.array([1, 2, 4])] > 1.05)
        assert found["all"][0] < 1.01


def test_rhat_of_what_does_not_vary():
    """One number everywhere is agreement; two numbers are not; nan stays nan; float32 is enough."""
    same = jnp.full((3, 10), 0.1)
    x = jnp.stack([same, same + jnp.arange(3.0)[:, None], same.at[0, 3].set(jnp.nan)], -1)
    np.testing.assert_array_equal(rhat(x), [1.0, jnp.inf, jnp.nan])
    wide = np.random.default_rng(0).normal(size=(2, 400)) + 1e3
    with jax.enable_x64(True):
        expected = array_stats.rhat(wide, method="rank")
    np.testing.assert_allclose(rhat(jnp.asarray(wide, jnp.float32)), expected, atol=1e-3)


def test_refusals(unchecked):
    with pytest.raises(ValueError, match=r"leaf 'b' is \(10,\)"):
        rhat({"a": jnp.zeros((2, 10)), "b": jnp.zeros(10)})
    with pytest.raises(ValueError, match="n >= 4"):
        rhat(jnp.zeros((2, 3)))
