"""A verdict for each of a batch of posteriors: those of one at a time, counted, and the worst of them named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vijax.diagnostics import Members, summarize, summarize_members
from vijax.types import Caveat, Draws, Estimate

normal = jax.scipy.stats.norm.logpdf
SCALES = jnp.array([1.0, 1.0, 1.3, 3.0, 1.0, 1.0])


@pytest.fixture
def draws(key):
    """q = N(0, 1)² for N(0, s²)², s of each member; the fifth is unresolved in float32."""
    z = {"a": jax.random.normal(key, (1000, 6, 2))}
    log_p = jnp.sum(normal(z["a"], 0.0, SCALES[None, :, None]), -1)
    log_p = log_p + jnp.where(jnp.arange(6) == 4, 1e7, 0.0)[None]
    return Draws(z, log_p, jnp.sum(normal(z["a"]), -1))


def test_each_member_as_it_is_alone(draws):
    found = summarize_members(draws)
    assert isinstance(found, Members)
    np.testing.assert_array_equal(found.verdict, [0, 0, 1, 2, 3, 0])
    np.testing.assert_array_equal(found.counts, [3, 1, 1, 1])
    alone = summarize(jax.tree.map(lambda a: a[:, 2], draws))
    np.testing.assert_allclose(found.ess[2], alone.ess, rtol=1e-4)
    np.testing.assert_allclose(found.elbo.value[2], alone.elbo.value, rtol=1e-4)
    np.testing.assert_allclose(found.log_evidence.error[2], alone.log_evidence.error, rtol=1e-3)
    np.testing.assert_allclose(found.khat[2], max(alone.khat, alone.marginal_khat.max()), atol=1e-3)


def test_what_it_prints(draws):
    text = str(summarize_members(draws))
    assert text.startswith("6 posteriors, 1000 draws of each")
    assert "3 (50%): verdict 0, q may be believed" in text
    assert "1 (17%): verdict 3, cannot tell" in text
    assert "worst: [4] 3 (k-hat inf), [3] 2" in text
    # Quantiles that are members' own, the unresolved one among them: the worst k-hat, and no draw that counts.
    found = summarize_members(draws)
    ess = sorted(np.nan_to_num(found.ess))
    assert f"largest inf;  ESS: median {ess[3]:.0f}, 90% from 0, least 0" in text
    assert f"k-hat: median {sorted(found.khat)[2]:.2f}, 90% up to inf" in text


def test_axes_of_a_batch_and_draws_without_z(draws):
    """Two axes, an Estimate, an empty batch, and what `chunk_size` leaves: the joint k-hat alone."""
    square = jax.tree.map(lambda a: a.reshape(1000, 2, 3, *a.shape[2:]), draws)
    found = summarize_members(Estimate(jnp.zeros((2, 3)), square))
    np.testing.assert_array_equal(found.verdict, [[0, 0, 1], [2, 3, 0]])
    assert "[1, 0] 2" in str(found)
    np.testing.assert_array_equal(
        summarize_members(draws._replace(z=None)).verdict, [0, 0, 1, 2, 3, 0]
    )
    none = summarize_members(jax.tree.map(lambda a: a[:, :0], draws))
    assert none.verdict.shape == (0,)
    assert str(none).startswith("0 posteriors")


def test_refusals(draws):
    with pytest.raises(ValueError, match="no importance weights"):
        summarize_members(draws._replace(only_mean=Caveat("a minibatch")))
    with pytest.raises(ValueError, match="must begin with log_w's shape"):
        summarize_members(draws._replace(z={"a": jnp.zeros((6, 1000))}))
    with pytest.raises(ValueError, match="summarize_members"):
        summarize(draws)
