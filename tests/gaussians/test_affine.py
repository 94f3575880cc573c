"""gaussians.AffineGaussian: every root against dense algebra, closed forms between them, and what passes through JAX."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.stats import multivariate_normal

import vijax as vj
from vijax.gaussians import AffineGaussian
from vijax.gaussians.affine import DiagonalRoot, standard_log_density, standard_quantile
from vijax.gaussians.chain import ChainRoot
from vijax.gaussians.roots import LowRankRoot, QuasiNewtonRoot, TriangularRoot
from vijax.types import Affine, Divergence, Entropy, Transport, offers

RNG = np.random.default_rng(0)
LIKE = {"a": np.zeros(2), "b": np.zeros(())}
FAMILIES = {
    "mean_field": vj.families.mean_field(scale=0.7),
    "full_rank": vj.families.full_rank(scale=0.5),
    "low_rank": vj.families.low_rank(rank=2, scale=0.9),
}
ROOTS = {
    "mean_field": DiagonalRoot,
    "full_rank": TriangularRoot,
    "low_rank": LowRankRoot,
    "quasi_newton": QuasiNewtonRoot,
    "markov": ChainRoot,
}


def member(name, seed):
    rng = np.random.default_rng(seed)
    if name == "quasi_newton":
        loc = {"a": jnp.asarray(rng.normal(size=2)), "b": jnp.asarray(rng.normal())}
        left, right = rng.normal(size=(3, 2)), rng.normal(size=(2, 3))
        return AffineGaussian(
            loc, QuasiNewtonRoot(*map(jnp.asarray, (0.3 * rng.normal(size=3), left, right)))
        )
    if name == "markov":  # three numbers as three steps
        root = ChainRoot(
            jnp.asarray(0.3 * rng.normal(size=3)),
            jnp.ones((3, 1, 1)),
            jnp.asarray(rng.normal(size=(2, 1, 1))),
            (1,),
        )
        loc = {"a": jnp.asarray(rng.normal(size=2)), "b": jnp.asarray(rng.normal())}
        return AffineGaussian(loc, root)
    params = FAMILIES[name].init(jax.random.key(0), jax.tree.map(jnp.asarray, LIKE))
    return FAMILIES[name].dist(jax.tree.map(lambda p: p + 0.3 * rng.normal(size=p.shape), params))


def dense(q):
    push = lambda e: ravel_pytree(q.affine(e))[0]
    matrix = jax.jacobian(push)(jnp.zeros(q.uniforms))
    return push(jnp.zeros(q.uniforms)), matrix @ matrix.T


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *product(list(ROOTS)[:-1], repeat=2),
        *[("markov", "markov"), ("markov", "full_rank"), ("low_rank", "markov")],
    ],
)
def test_gaussian_families_know_each_other(one, other, x64):
    q, p = member(one, 1), member(other, 2)
    (m, a), (n, b) = dense(q), dense(p)
    log_det = lambda c: np.linalg.slogdet(c)[1]
    kl = 0.5 * (
        np.trace(np.linalg.solve(b, a))
        + (m - n) @ np.linalg.solve(b, m - n)
        - 3
        + log_det(b)
        - log_det(a)
    )
    np.testing.assert_allclose(q.kl_divergence(p), kl, rtol=1e-10)
    np.testing.assert_allclose(
        q.entropy(), 0.5 * (log_det(a) + 3 * np.log(2 * np.pi * np.e)), rtol=1e-10
    )


@pytest.mark.parametrize("name", list(ROOTS))
def test_a_root_is_its_matrix(name, x64):
    """Densities of draws and of a point from elsewhere, variances and precisions, against the dense covariance."""
    q = member(name, 3)
    assert isinstance(q.root, ROOTS[name])
    assert all(offers(q, ability) for ability in (Affine, Transport, Entropy, Divergence))
    mean, covariance = dense(q)
    e = jnp.asarray(RNG.normal(size=q.uniforms))
    z, log_q = q.draw(e)
    expected = multivariate_normal.logpdf(ravel_pytree(z)[0], mean, covariance)
    np.testing.assert_allclose([log_q, q.log_prob(z)], expected, rtol=1e-9)
    far = RNG.normal(size=3)
    expected = multivariate_normal.logpdf(far, mean, covariance)
    np.testing.assert_allclose(
        q.log_prob({"a": jnp.asarray(far[:2]), "b": jnp.asarray(far[2])}), expected, rtol=1e-9
    )
    np.testing.assert_allclose(ravel_pytree(q.variance())[0], np.diag(covariance), rtol=1e-9)
    np.testing.assert_allclose(q.root.precisions(), np.diag(np.linalg.inv(covariance)), rtol=1e-8)
    np.testing.assert_allclose(
        ravel_pytree(q.transport(jax.scipy.special.ndtr(e)))[0], ravel_pytree(z)[0], rtol=1e-8
    )


def test_it_passes_through_jax(key):
    """As an argument of jit, stacked under vmap, and as its own parameters under grad."""
    many = jax.vmap(FAMILIES["full_rank"].dist)(
        jax.vmap(lambda k: FAMILIES["full_rank"].init(k, jnp.zeros(3)))(jax.random.split(key, 4))
    )
    z = jax.jit(jax.vmap(lambda q: q.sample_and_log_prob(seed=key)[0]))(many)
    assert z.shape == (4, 3)
    one = jax.tree.map(lambda leaf: leaf[2], many)
    np.testing.assert_allclose(one.sample_and_log_prob(seed=key)[0], z[2], rtol=1e-5)
    slope = jax.grad(lambda q: q.log_prob(jnp.ones(3)))(one)
    np.testing.assert_allclose(slope.loc, 4.0, rtol=1e-4)


def test_refusals():
    q = AffineGaussian(
        jnp.zeros(3), QuasiNewtonRoot(jnp.zeros(3), jnp.zeros((3, 1)), jnp.zeros((1, 3)))
    )
    with pytest.raises(ValueError, match="one draw"):
        q.log_prob(jnp.zeros(4))
    with pytest.raises(ValueError, match="they must be alike"):
        q.kl_divergence(AffineGaussian(jnp.zeros(2), DiagonalRoot(jnp.zeros(2))))
    with pytest.raises(NotImplementedError, match="knows no divergence from a list"):
        q.kl_divergence([])


def test_standard_noise(x64):
    e = jnp.asarray(RNG.normal(size=(4, 3)))
    expected = multivariate_normal.logpdf(e, np.zeros(3), np.eye(3))
    np.testing.assert_allclose(standard_log_density(e), expected, rtol=1e-12)
    scale = jnp.asarray([0.5, 1.0, 3.0])
    expected = multivariate_normal.logpdf(e[0] * scale, np.zeros(3), np.diag(np.square(scale)))
    np.testing.assert_allclose(standard_log_density(e[0], jnp.log(scale)), expected, rtol=1e-12)
    for dtype in (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64):
        ends = standard_quantile(jnp.array([0.0, 0.5, 1.0], dtype), dtype)
        assert ends.dtype == dtype
        assert np.all(np.isfinite(np.asarray(ends, np.float64)))
        assert ends[1] == 0
