"""Marginal k-hat: exact where Gaussians say what it is, and it blames the latent that is wrong, and no other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.marks import some
from vijax.diagnostics import khat, marginal_khat

normal = jax.scipy.stats.norm.logpdf
look = jax.jit(lambda z, log_w: (khat(log_w), marginal_khat(z, log_w)))


@pytest.mark.parametrize("fault", some(["narrow", "moved"], "moved"))
def test_blames_the_latent_that_is_wrong(fault, key):
    """q = N(0, 1) in six latents, p like it in five. The joint k-hat, the control, cannot say which."""
    loc, scale = (0.0, 2.5) if fault == "narrow" else (3.0, 1.0)
    z = {
        "a": jax.random.normal(key, (4000, 2)),
        "b": jax.random.normal(jax.random.fold_in(key, 1), (4000, 4)),
    }
    wrong = z["b"][:, 2]
    joint, found = look(z, normal(wrong, loc, scale) - normal(wrong))
    assert joint > 0.7
    assert found["b"][2] > 0.7
    right = np.append(found["a"], found["b"][jnp.array([0, 1, 3])])
    assert right.max() < 0.35
    if fault == "narrow":
        np.testing.assert_allclose(found["b"][2], 1 - 1 / 2.5**2, atol=0.1)


@pytest.mark.parametrize("correlation", [pytest.param(0.6, marks=pytest.mark.slow), 0.9])
def test_a_mean_field_of_correlated_gaussians(correlation, key):
    """q's sd is √(1 - ρ²) of the right one in two latents, so their index is ρ²; a third is independent."""
    variance = 1 - correlation**2
    z = jax.random.normal(key, (20_000, 3)) * jnp.array([[variance**0.5, variance**0.5, 1.0]])
    log_w = correlation / variance * z[:, 0] * z[:, 1]
    _, found = look(z, log_w)
    np.testing.assert_allclose(found[:2], correlation**2, atol=0.12)
    assert found[2] < 0.2
    _, mapped = look(jnp.stack([jnp.exp(3 * z[:, 0]), -z[:, 1], z[:, 2] ** 3], 1), log_w)
    np.testing.assert_allclose(mapped, found, atol=1e-3)  # monotone maps
    _, shifted = look(z, log_w - 500.0)
    np.testing.assert_allclose(shifted, found, atol=5e-3)


def test_a_heavy_tailed_q_is_not_told_off(key):
    """Student's t of two degrees for a normal p: weights are bounded. The control is a latent of half the spread."""
    t = jax.scipy.stats.t.logpdf
    z = jax.random.t(key, 2.0, (4000, 3))
    log_w = jnp.sum(normal(z) - t(z, 2.0), 1)
    joint, found = look(z, log_w)
    assert joint < 0.5
    assert found.max() < 0.5  # +inf where logarithms count however small the weight
    narrow = jax.random.normal(jax.random.fold_in(key, 1), (4000, 1))
    log_w = log_w + normal(narrow[:, 0], 0.0, 2.0) - normal(narrow[:, 0])
    _, found = look(jnp.concatenate([narrow, z], 1), log_w)
    assert found[0] > 0.7
    assert found[1:].max() < 0.7


@pytest.mark.slow
def test_few_values_have_no_tail(key):
    """Coins, and categories of which one counts ten times another: weights bounded by what was seen many times."""
    z = {
        "coin": jax.random.bernoulli(key, 0.3, (1000,)),
        "kind": jax.random.randint(key, (1000,), 0, 3),
    }
    log_w = jnp.where(z["kind"] == 1, 0.0, 2.3) + 0.3 * jax.random.normal(
        jax.random.fold_in(key, 1), (1000,)
    )
    joint, found = look(z, log_w)
    assert joint < 0.5
    assert found == {"coin": -jnp.inf, "kind": -jnp.inf}
    assert (
        look(jax.random.normal(key, (1000,)).astype(jnp.bfloat16), log_w.astype(jnp.bfloat16))[1]
        < 0.5
    )
    assert np.isnan(look(z, log_w.at[3].set(jnp.nan))[1]["coin"])


@pytest.mark.slow
def test_total_and_batched(key):
    """Constant weights are praised; impossible draws take no part; what has no answer is as bad as `khat` says."""
    z = jax.random.normal(key, (400, 2))
    log_w = normal(z[:, 0], 0.0, 1.6) - normal(z[:, 0])
    batch = jnp.stack(
        [
            jnp.full(400, 3.0),
            jnp.where(jnp.arange(400) % 4 == 0, -jnp.inf, log_w),
            jnp.full(400, -jnp.inf),
            log_w.at[3].set(jnp.inf),
            log_w.at[3].set(jnp.nan),
            log_w,
        ],
        1,
    )
    _, found = look(jnp.repeat(z[:, None], 6, 1), batch)
    assert found.shape == (6, 2)
    assert np.all(found[0] < 0.05)
    assert found[1, 0] > 0.4
    assert abs(found[1, 0] - found[5, 0]) < 0.2
    np.testing.assert_array_equal(found[2:4], jnp.inf)
    assert np.all(np.isnan(found[4]))
    np.testing.assert_allclose(found[5], look(z, log_w)[1], atol=1e-4)
    _, broken = look(z.at[5, 1].set(jnp.nan), log_w)
    assert np.isnan(broken[1])
    assert np.isfinite(broken[0])
    assert np.all(look(z[:20], log_w[:20])[1] == jnp.inf)
