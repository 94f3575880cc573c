"""Fits at fixed draws and their linear response: exact for Gaussians, errors that are right over keys, and controls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import vijax as vj
from tests.statistics import assert_mean
from vijax.families import full_rank, mean_field
from vijax.solvers import Maximum, Response, dadvi, dense, linear_response

COVARIANCE = np.array([[1.0, 0.9, 0.0], [0.9, 1.5, -0.4], [0.0, -0.4, 0.5]])
MEAN = np.array([1.0, -2.0, 0.5])
PRECISION = np.linalg.inv(COVARIANCE)


def correlated(z):
    r = jnp.concatenate([z["a"][None], z["b"]]) - MEAN.astype(z["b"].dtype)
    return -0.5 * r @ (jnp.asarray(PRECISION, r.dtype) @ r)


LIKE = {"a": jnp.zeros(()), "b": jnp.zeros(2)}


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@pytest.mark.slow
@pytest.mark.parametrize("draw", [vj.draws.iid, vj.draws.antithetic])
def test_mean_field_sds_are_too_small_and_linear_response_is_exact(draw, key, x64):
    """On a correlated Gaussian: means and covariances to 1e-6, at ten draws; the family's own sds fall short by half."""
    like = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), LIKE)

    @jax.jit
    def run(key):
        fit = dadvi(key, correlated, mean_field(), like, num_samples=10, draw=draw, slope=1e-9)
        return fit, linear_response(
            key, correlated, mean_field(), fit.params, num_samples=10, draw=draw
        )

    fit, response = run(key)
    assert isinstance(fit, Maximum)
    assert isinstance(response, Response)
    assert fit.slope < 1e-6
    np.testing.assert_allclose(flat(response.mean), MEAN, atol=1e-6)
    np.testing.assert_allclose(response.covariance, COVARIANCE, atol=1e-6)
    np.testing.assert_allclose(flat(response.sd), np.sqrt(np.diag(COVARIANCE)), atol=1e-6)
    # The control: without the response, sds are near those given all the rest, which are too small.
    own = np.exp(flat(fit.params["log_scale"]))
    assert (own < 0.8 * np.sqrt(np.diag(COVARIANCE))).all()
    if draw.independent:  # and the means of a Gaussian do not depend on the draws at all
        np.testing.assert_allclose(flat(response.error), 0.0, atol=1e-6)
    else:
        assert np.isnan(flat(response.error)).all()


@pytest.mark.slow
def test_by_conjugate_gradients_and_of_a_function(key, x64):
    """Sums and products by the same response; not at the optimum it is nan or wrong, and says so by nan alone."""
    like = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), LIKE)
    family = full_rank()
    of = lambda z: {"sum": z["a"] + z["b"][0]}
    cg = lambda product, b: jax.scipy.sparse.linalg.cg(product, b, tol=1e-12)[0]

    @jax.jit
    def run(key):
        fit = dadvi(key, correlated, family, like, num_samples=40, slope=1e-9)
        both = [
            linear_response(key, correlated, family, fit.params, num_samples=40, of=of, solve=s)
            for s in (dense, cg)
        ]
        away = jax.tree.map(lambda leaf: leaf - 3.0, fit.params)
        return fit, both, linear_response(key, correlated, family, away, num_samples=40, of=of)

    _, both, away = run(key)
    for found in both:
        np.testing.assert_allclose(found.mean["sum"], MEAN[0] + MEAN[1], atol=1e-6)
        np.testing.assert_allclose(found.sd["sum"] ** 2, COVARIANCE[:2, :2].sum(), atol=1e-5)
    assert not np.allclose(away.sd["sum"] ** 2, COVARIANCE[:2, :2].sum(), atol=0.1)


def logistic(z):
    x = jnp.array([-2.0, -1.0, 0.5, 1.0, 2.0, 3.0], z.dtype)
    y = jnp.array([0.0, 0.0, 1.0, 0.0, 1.0, 1.0], z.dtype)
    logits = z[0] + z[1] * x
    return jnp.sum(y * logits - jax.nn.softplus(logits)) + jnp.sum(norm.logpdf(z, 0.0, 2.0))


@pytest.mark.slow
def test_the_error_of_few_draws_is_right(key, x64):
    """A logistic regression at 120 draws, 2,000 keys: error² is the means' variance over keys. Detects .4 of it.

    By chance 2e-10; at 30 draws second-order terms make it .67 of the truth for the slope. The control is the naive
    error sd²/K, which forgets that the optimum moved with the draws: 14 and 33 times the truth.
    """
    family, like = mean_field(scale=0.5), jnp.zeros(2, jnp.float64)

    @jax.jit
    @jax.vmap
    def run(key):
        fit = dadvi(key, logistic, family, like, num_samples=120, steps=100)
        found = linear_response(key, logistic, family, fit.params, num_samples=120)
        return found.mean, found.error, jnp.exp(fit.params["log_scale"]) / jnp.sqrt(120.0)

    mean, error, naive = map(np.asarray, run(jax.random.split(key, 2_000)))
    squares = np.square(mean - mean.mean(0))
    scale = squares.mean(0)
    assert_mean((squares - np.square(error)) / scale, np.zeros(2), detects=0.4)
    with pytest.raises(AssertionError, match="biased"):
        assert_mean((squares - np.square(naive)) / scale, np.zeros(2), detects=0.4)


def test_dense():
    a = jnp.array([[2.0, 1.0], [1.0, 3.0]])
    b = jnp.array([1.0, -1.0])
    np.testing.assert_allclose(a @ dense(lambda v: a @ v, b), b, rtol=1e-6)
    assert np.isnan(dense(lambda v: -(a @ v), b)).all()
