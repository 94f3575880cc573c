"""The curvature from slopes alone: right on average, and no noisier than the better of two control variates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.marks import some
from vijax.updates import stein

D, REPEATS = 4, 2000
PRECISION = jnp.diag(jnp.linspace(0.5, 1.5, D)) + 0.2
SCALES = {"narrow": 0.02, "somewhat narrow": 0.4, "equal": 1.0, "wide": 3.0}


def log_p_at(scale):
    """Log p of noise, for q = N(.2, scale): neither Gaussian nor independent."""

    def log_p(e):
        z = 0.2 + scale * e
        return -0.5 * jnp.einsum("ki,ij,kj->k", z, PRECISION, z) - 0.05 * jnp.sum(z**4, 1)

    return log_p


def curvature(scale):
    """E[-L ∇² log p L] in closed form."""
    return scale**2 * (PRECISION + 0.6 * (0.2**2 + scale**2) * jnp.eye(D))


def forms(scale, draws, key):
    """Return the curvature, dense and diagonal, of stein and with the coefficients 0 and 1."""
    e = jax.random.normal(key, (draws // 2, D))
    e, log_p = jnp.concatenate([e, -e]), log_p_at(scale)
    slope = jax.grad(lambda e: jnp.sum(log_p(e)))(e)

    def fixed(c):
        products = e.T @ (slope + c * e) / draws
        return c * jnp.eye(D) - 0.5 * (products + products.T)

    dense = [stein.dense(log_p, e).curvature, fixed(0.0), fixed(1.0)]
    diagonal = [stein.diagonal(log_p, e).curvature, *(jnp.diag(d) for d in dense[1:])]
    return jnp.stack(dense), jnp.stack(diagonal)


@pytest.fixture(scope="module")
def found():
    keys = jax.random.split(jax.random.key(2), REPEATS)
    run = jax.jit(
        lambda scale, draws: jax.vmap(lambda key: forms(scale, draws, key))(keys), static_argnums=1
    )
    return lambda name, draws: [np.asarray(x, np.float64) for x in run(SCALES[name], draws)]


@pytest.mark.parametrize("draws", some([4, 16, 64], "16", "64", name=str))
@pytest.mark.parametrize("name", SCALES)
def test_right_and_no_noisier_than_the_better(found, name, draws):
    """Full rank and mean field; the mean within six standard errors, the sd at most 1.1 of the better of two."""
    truth = np.asarray(curvature(SCALES[name]), np.float64)
    for samples, right in zip(found(name, draws), (truth, np.diag(truth)), strict=True):
        ours = samples[:, 0]
        error = ours.std(0) / REPEATS**0.5
        assert np.all(np.abs(ours.mean(0) - right) < 6 * error + 1e-5)
        sd = np.sqrt(samples.var(0).reshape(3, -1).sum(1))
        assert sd[0] < 1.1 * sd[1:].min(), sd
        if name in ("narrow", "equal"):  # the control: each of the two is far worse somewhere
            assert sd[1:].max() > 1.5 * sd[0]


def test_latents_of_different_scales_keep_their_own(loose_ranks):
    """From 32 draws a wide latent lends a narrow one no noise."""
    scales = jnp.array([0.02, 1.0, 10.0])
    log_p = lambda e: -0.5 * jnp.sum(jnp.square(scales * e), 1) + 0.3 * jnp.sum(jnp.cos(e), 1)

    def diagonals(key):
        e = jax.random.normal(key, (32, 3))
        e = jnp.concatenate([e, -e])
        plain = -jnp.mean(e * jax.grad(lambda e: jnp.sum(log_p(e)))(e), 0)
        return jnp.stack(
            [jnp.diag(stein.dense(log_p, e).curvature), stein.diagonal(log_p, e).curvature, plain]
        )

    sd = np.std(jax.jit(jax.vmap(diagonals))(jax.random.split(jax.random.key(0), 500)), 0)
    assert np.all(sd[:2] < 1.1 * sd[2])
    assert np.all(sd[:2, 2] < 0.01 * sd[2, 2])


def test_a_gaussian_target_leaves_no_noise():
    """Independent, at any scale, from 32 draws on; of one pair alone where q is the target."""
    e = jax.random.normal(jax.random.key(1), (16, 2))
    e = jnp.concatenate([e, -e])
    precision = jnp.array([0.01, 7.0])
    log_p = lambda e: -0.5 * jnp.sum(precision[None] * jnp.square(e), 1)
    np.testing.assert_allclose(stein.diagonal(log_p, e).curvature, precision, rtol=1e-4)
    exact = lambda e: -0.5 * jnp.sum(jnp.square(e), 1)
    one = jnp.concatenate([e[:1], -e[:1]])
    np.testing.assert_allclose(stein.dense(exact, one).curvature, jnp.eye(2), atol=1e-6)
