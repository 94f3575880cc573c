"""Gaussian families: densities against SciPy, moments of draws, any pytree of latents, vmap over parameters."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.stats import multivariate_normal

import vijax as vj
from tests.marks import but
from tests.statistics import assert_mean

FAMILIES = {
    "mean_field": vj.families.mean_field(scale=0.3),
    "full_rank": vj.families.full_rank(scale=0.3),
    "low_rank": vj.families.low_rank(rank=2, scale=0.3),
}
LIKES = {
    "vector": jnp.zeros(3),
    "scalar": jnp.float32(0.0),
    "nested": {
        "b": {"scalar": jnp.float32(1.0), "matrix": jnp.ones((2, 2))},
        "a": (jnp.zeros(1), jnp.zeros((1, 2))),
    },
}
families = pytest.mark.parametrize("name", list(FAMILIES))


def params(name, like, key):
    """Return parameters away from their start, so that every entry of the covariance is in play."""
    start = FAMILIES[name].init(key, like)
    flat, unravel = ravel_pytree(start)
    return unravel(flat + 0.5 * jax.random.normal(jax.random.fold_in(key, 1), flat.shape))


def mean_and_covariance(name, params):
    """Return q's moments from the parameters, as the docstrings write them."""
    loc, log_scale = (
        np.asarray(ravel_pytree(params[p])[0], np.float64) for p in ("loc", "log_scale")
    )
    scale = np.diag(np.exp(log_scale))
    if name == "full_rank":
        unit = np.eye(len(loc))
        unit[np.tril_indices(len(loc), -1)] = params["lower"]
        scale = scale @ unit
    covariance = scale @ scale.T
    if name == "low_rank":
        covariance = (
            covariance
            + np.asarray(params["factor"], np.float64) @ np.asarray(params["factor"], np.float64).T
        )
    return loc, covariance


@families
@pytest.mark.parametrize("kind", list(LIKES))
def test_log_prob_is_that_of_scipy(name, kind, key):
    p = params(name, LIKES[kind], key)
    q = FAMILIES[name].dist(p)
    z, log_q = q.sample_and_log_prob(seed=key, sample_shape=(5,))
    np.testing.assert_allclose(log_q, jax.vmap(q.log_prob)(z), rtol=1e-5)
    assert jax.tree.structure(z) == jax.tree.structure(LIKES[kind])
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, (5, *b.shape)), z, LIKES[kind])
    flat = np.asarray(jax.vmap(lambda z: ravel_pytree(z)[0])(z))
    np.testing.assert_allclose(
        log_q, multivariate_normal(*mean_and_covariance(name, p)).logpdf(flat), rtol=1e-4, atol=1e-4
    )


@families
def test_moments_of_draws(name, key):
    """Mean and second moments of 100,000 draws. By chance 2e-10 a number; detects .06 of the largest variance."""
    p = params(name, LIKES["vector"], key)
    z, _ = FAMILIES[name].dist(p).sample_and_log_prob(seed=key, sample_shape=(100_000,))
    mean, covariance = mean_and_covariance(name, p)
    centred = np.asarray(z, np.float64) - mean
    second = centred[:, :, None] * centred[:, None, :]
    largest = covariance.max()
    centred, second = centred / np.sqrt(largest), second / largest
    assert_mean(
        {"mean": centred, "second": second},
        {"mean": 0 * mean, "second": covariance / largest},
        detects=0.06,
    )
    with pytest.raises(AssertionError, match="biased"):
        assert_mean(
            {"second": second}, {"second": covariance / largest + 0.06 * np.eye(3)}, detects=0.06
        )


@families
def test_starts_at_like(name, key):
    """init: location at the values given, scale as asked, and no correlation to speak of."""
    like = {"a": jnp.arange(3.0), "b": jnp.float32(-2.0)}
    mean, covariance = mean_and_covariance(name, FAMILIES[name].init(key, like))
    np.testing.assert_allclose(mean, [0, 1, 2, -2])
    np.testing.assert_allclose(np.diag(covariance), 0.09, rtol=0.15 if name == "low_rank" else 1e-5)
    off = covariance - np.diag(np.diag(covariance))
    assert np.abs(off).max() < (0.02 if name == "low_rank" else 1e-9)


@families
def test_vmap_over_parameters_and_jit_across_them(name, key):
    """A batch of fits is a vmap: building q inside leaks no tracer, and a q may be built outside and closed over."""
    stacked = jax.vmap(lambda k: params(name, LIKES["vector"], k))(jax.random.split(key, 4))
    look = lambda p: FAMILIES[name].dist(p).sample_and_log_prob(seed=key)
    found = jax.jit(jax.vmap(look))(stacked)
    each = [look(jax.tree.map(lambda a, i=i: a[i], stacked)) for i in range(4)]
    jax.tree.map(
        lambda a, *b: np.testing.assert_allclose(a, np.stack(b), rtol=1e-4, atol=1e-5), found, *each
    )
    q = FAMILIES[name].dist(jax.tree.map(lambda a: a[0], stacked))
    np.testing.assert_allclose(jax.jit(q.log_prob)(jnp.ones(3)), q.log_prob(jnp.ones(3)), rtol=1e-5)


@families
def test_gradient_of_the_density(name, key, x64):
    """Against central differences in float64, in every parameter and in z."""
    p = params(name, jnp.zeros(3, jnp.float64), key)
    flat, unravel = ravel_pytree((p, jnp.array([0.3, -1.0, 0.6])))
    run = jax.jit(lambda flat: FAMILIES[name].dist(unravel(flat)[0]).log_prob(unravel(flat)[1]))
    differences = [
        (run(flat + step) - run(flat - step)) / 2e-6 for step in 1e-6 * np.eye(flat.size)
    ]
    np.testing.assert_allclose(jax.grad(run)(flat), differences, atol=1e-6)


@families
def test_transport_carries_uniforms_to_draws(name, key):
    """Mirrored uniforms give mirrored draws about the mean, and the ends of (0, 1) stay finite."""
    p = params(name, LIKES["vector"], key)
    q = FAMILIES[name].dist(p)
    u = jax.random.uniform(key, q.uniforms)
    np.testing.assert_allclose(q.transport(u) + q.transport(1 - u), 2 * p["loc"], atol=1e-4)
    assert np.all(np.isfinite(q.transport(jnp.zeros(q.uniforms))))
    assert np.all(np.isfinite(q.transport(jnp.ones(q.uniforms))))
    many = jax.vmap(q.transport)(jax.random.uniform(key, (50_000, *q.uniforms)))
    centred = np.asarray(many, np.float64) - np.asarray(p["loc"], np.float64)
    truth = mean_and_covariance(name, p)[1]
    second = centred[:, :, None] * centred[:, None, :] / truth.max()
    assert_mean(
        {"second": second}, {"second": truth / truth.max()}, detects=0.08
    )  # 2e-10 a number by chance


@families
@pytest.mark.parametrize(
    "like", [jnp.zeros(0), {}, jnp.arange(3), {"a": jnp.zeros(2), "b": jnp.arange(2)}]
)
def test_latents_that_no_gaussian_holds(name, like, key):
    with pytest.raises(TypeError, match="Gaussian family"):
        FAMILIES[name].init(key, like)


def test_rank_is_positive(unchecked):
    with pytest.raises(ValueError, match="rank must be at least 1.*mean_field"):
        vj.families.low_rank(rank=0)
    with pytest.raises(TypeError, match="rank must be a Python int.*got 1.5"):
        vj.families.low_rank(rank=1.5)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_scale_is_positive(scale):
    for family in (
        vj.families.mean_field,
        vj.families.full_rank,
        partial(vj.families.low_rank, rank=1),
    ):
        with pytest.raises(ValueError, match="scale must be positive and finite"):
            family(scale=scale)


@pytest.mark.parametrize("name", but(FAMILIES, "low_rank"))
def test_dtypes_follow_like(name, key, x64):
    for dtype in (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64):
        q = FAMILIES[name].dist(FAMILIES[name].init(key, jnp.zeros(3, dtype)))
        z, log_q = q.sample_and_log_prob(seed=key)
        assert (z.dtype, log_q.dtype) == (dtype, dtype)


@pytest.mark.parametrize("name", ["mean_field", "full_rank"])
def test_weak_numbers_draw_in_full_precision(name):
    """jnp.array(0.4) has a weak dtype, which would yield to half precision."""
    family = getattr(vj.families, name)()
    by_hand = {"loc": jnp.array(0.4), "log_scale": jnp.array(-1.0)}
    if name == "full_rank":
        by_hand["lower"] = jnp.zeros(0)
    for params in (family.init(None, jnp.array(0.4)), family.init(None, 0.4), by_hand):
        z, _ = family.dist(params).sample_and_log_prob(seed=jax.random.key(0), sample_shape=(2000,))
        assert z.dtype == jnp.float32
        assert len(np.unique(z)) > 1900
