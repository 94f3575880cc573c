"""Gaussian families: densities as SciPy's, draws with the moments they state, any pytree, any transform."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.stats import multivariate_normal

import vijax as vj

LIKE = {"a": jnp.array([1.0, -2.0]), "b": (jnp.array(0.5), jnp.array([[3.0]]))}
FAMILIES = {
    "mean_field": vj.families.mean_field(),
    "full_rank": vj.families.full_rank(),
    "low_rank": vj.families.low_rank(rank=2),
}


def some(name, key, dtype=jnp.float32):
    family = FAMILIES[name]
    params = family.init(key, jax.tree.map(lambda l: l.astype(dtype), LIKE))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    noise = [0.4 * jax.random.normal(k, l.shape, l.dtype) for k, l in zip(keys, leaves, strict=True)]
    return family, jax.tree.unflatten(tree, [l + n for l, n in zip(leaves, noise, strict=True)])


def moments(family, params):
    """Read mean and covariance off the affine map from noise to draws."""
    q = family.dist(params)
    push = lambda u: ravel_pytree(q.transport(u))[0]
    half = jnp.full(q.uniforms, 0.5)
    slope = jax.jacobian(push)(half) / jnp.sqrt(2 * jnp.pi)  # dz/du = dz/de de/du, and de/du at 1/2 is √2π
    return push(half), slope @ slope.T


@pytest.mark.parametrize("name", FAMILIES)
def test_density_and_draws(name, key, x64):
    family, params = some(name, key, jnp.float64)
    q = family.dist(params)
    mean, cov = moments(family, params)
    z, log_q = q.sample_and_log_prob(seed=key, sample_shape=(3, 5))
    assert jax.tree.map(jnp.shape, z) == {"a": (3, 5, 2), "b": ((3, 5), (3, 5, 1, 1))}
    flat = jax.vmap(jax.vmap(lambda z: ravel_pytree(z)[0]))(z)
    expected = multivariate_normal(np.asarray(mean), np.asarray(cov)).logpdf(np.asarray(flat))
    np.testing.assert_allclose(log_q, expected, rtol=1e-8)
    np.testing.assert_allclose(jax.vmap(jax.vmap(q.log_prob))(z), expected, rtol=1e-8)
    # 100,000 draws: a standard error of .003 sd, so a false failure at 6 of them has probability below 1e-7 in all.
    many, _ = q.sample_and_log_prob(seed=key, sample_shape=(100_000,))
    many = jax.vmap(lambda z: ravel_pytree(z)[0])(many)
    sd = jnp.sqrt(jnp.diag(cov))
    np.testing.assert_allclose((many.mean(0) - mean) / sd, 0, atol=6 / np.sqrt(1e5))
    np.testing.assert_allclose((jnp.cov(many.T) - cov) / jnp.outer(sd, sd), 0, atol=6 * np.sqrt(2 / 1e5))


@pytest.mark.parametrize("name", FAMILIES)
def test_init_starts_at_like_and_builds_under_vmap(name, key):
    family = FAMILIES[name]
    params = jax.vmap(lambda k: family.init(k, LIKE))(jax.random.split(key, 4))  # restarts
    np.testing.assert_array_equal(params["loc"]["a"], np.tile(LIKE["a"], (4, 1)))
    objective = vj.gradients.dreg(vj.bounds.elbo)
    log_joint = lambda z: -0.5 * sum(jnp.sum(l**2) for l in jax.tree.leaves(z))
    value = lambda p: objective(key, log_joint, family.dist(p), num_samples=4).value
    together = jax.jit(jax.vmap(jax.value_and_grad(value)))(params)
    alone = jax.value_and_grad(value)(jax.tree.map(lambda l: l[2], params))
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a[2], b, rtol=2e-4, atol=2e-4)


def test_antithetic_pairs_mirror_each_other(key):
    family, params = some("full_rank", key)
    mean, _ = moments(family, params)
    draws = vj.draws.weigh(key, lambda z: 0.0 * z["b"][0], family.dist(params), num_samples=6, draw=vj.draws.antithetic)
    flat = jax.vmap(lambda z: ravel_pytree(z)[0])(draws.z)
    np.testing.assert_allclose((flat[::2] + flat[1::2]) / 2, jnp.broadcast_to(mean, (3, 4)), atol=1e-4)
    assert len(np.unique(np.asarray(flat[:, 0]).round(4))) == 6
    with pytest.raises(ValueError, match="must be even"):
        vj.draws.weigh(key, lambda z: 0.0, family.dist(params), num_samples=5, draw=vj.draws.antithetic)
    with pytest.raises(TypeError, match="q.transport"):
        vj.draws.weigh(key, lambda z: 0.0, distrax.Normal(0.0, 1.0), num_samples=2, draw=vj.draws.antithetic)


def test_refusals(key):
    with pytest.raises(TypeError, match="int32"):
        FAMILIES["mean_field"].init(key, {"a": jnp.zeros(2), "n": jnp.array(3)})
    with pytest.raises(TypeError, match="at least one element"):
        FAMILIES["full_rank"].init(key, {})
    with pytest.raises(ValueError, match="rank 0 is mean_field"):
        vj.families.low_rank(rank=0)
