"""targets.missing: the entries that are there, exactly; those that are not, nowhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import multivariate_normal, norm

import vijax as vj

LOADINGS = jnp.array([[1.0, -0.5, 0.3, 0.8], [0.2, 0.7, -1.1, 0.4]])
NOISE = jnp.tile(jnp.array([0.5, 0.8, 0.6, 0.7]), (3, 1))
X = jnp.array([[0.3, jnp.nan, -0.4, 1.2], [jnp.nan, jnp.nan, 0.1, -0.6], [jnp.nan] * 4])
OBSERVED = ~jnp.isnan(X)


def entries(loadings, z, x):
    return norm.logpdf(x, z @ loadings, NOISE)


def log_joint(loadings, z):
    likelihood = vj.targets.missing(lambda z, x: entries(loadings, z, x), X, OBSERVED)
    return norm.logpdf(z).sum(-1) + likelihood(z)


def evidence(loadings, row):
    """log N(x_o; 0, W_oᵀ W_o + diag σ_o²), the entries that are left out not there at all."""
    there = np.flatnonzero(OBSERVED[row])
    if not there.size:
        return jnp.zeros(())
    kept = loadings[:, there]
    covariance = kept.T @ kept + jnp.diag(NOISE[row, there] ** 2)
    return multivariate_normal.logpdf(X[row, there], jnp.zeros(there.size), covariance)


def posterior(loadings):
    """Mean and covariance of z given what is observed of every row."""
    precision = jnp.tile(jnp.eye(2), (3, 1, 1)) + jnp.einsum(
        "id,jd,nd->nij", loadings, loadings, OBSERVED / NOISE**2
    )
    projected = jnp.einsum("id,nd->ni", loadings, jnp.where(OBSERVED, X, 0.0) / NOISE**2)
    mean = jnp.linalg.solve(precision, projected[..., None])[..., 0]
    return mean, jnp.linalg.inv(precision)


def test_joint_over_the_exact_posterior_is_the_evidence_of_what_is_observed():
    mean, covariance = posterior(LOADINGS)
    exact = jnp.stack([evidence(LOADINGS, row) for row in range(len(X))])
    for z in jax.random.normal(jax.random.key(0), (3, 3, 2)):
        log_q = jax.vmap(multivariate_normal.logpdf)(z, mean, covariance)
        np.testing.assert_allclose(log_joint(LOADINGS, z) - log_q, exact, atol=2e-5)


def test_gradient_has_no_nan_and_is_that_of_the_observed_entries():
    z = jnp.array([[0.4, -0.2], [1.0, 0.3], [-0.7, 0.5]])
    slope = jax.grad(lambda w: log_joint(w, z).sum())(LOADINGS)
    # Entry by entry, by hand: the sum over what is there.
    residual = jnp.where(OBSERVED, jnp.where(OBSERVED, X, 0.0) - z @ LOADINGS, 0.0)
    np.testing.assert_allclose(slope, z.T @ (residual / NOISE**2), rtol=1e-5)


def test_masking_the_value_alone_would_not_do():
    """The control: without the fill, nan comes back in the gradient."""
    z = jnp.zeros((3, 2))

    def careless(w):
        return jnp.where(OBSERVED, entries(w, z, X), 0.0).sum()

    assert jnp.isnan(jax.grad(careless)(LOADINGS)).any()


def test_fill_lies_inside_the_support():
    x, observed = jnp.array([2.0, -1.0]), jnp.array([True, False])

    def gamma(z, x):
        return z * jnp.log(x) - x

    slopes = [
        jax.grad(lambda z, f=fill: vj.targets.missing(gamma, x, observed, fill=f)(z))(1.5)
        for fill in (1.0, 0.5)
    ]
    np.testing.assert_allclose(slopes, np.log(2.0), rtol=1e-6)


def test_categories_stay_whole_numbers():
    logits = jnp.log(jnp.array([0.2, 0.3, 0.5]))
    x, observed = jnp.array([2, -7]), jnp.array([True, False])
    target = vj.targets.missing(lambda z, x: (logits + z)[x], x, observed)
    np.testing.assert_allclose(target(0.0), np.log(0.5), rtol=1e-6)


def test_several_event_axes_and_none():
    x, observed = jnp.arange(6.0).reshape(2, 3), jnp.array([[True] * 3, [False] * 3])
    for event_ndim, expected in ((2, 3.0), (1, [3.0, 0.0]), (0, [[0.0, 1, 2], [0, 0, 0]])):
        target = vj.targets.missing(lambda z, x: x + z, x, observed, event_ndim=event_ndim)
        np.testing.assert_allclose(target(0.0), expected)


def test_under_jit_and_vmap_as_plainly():
    z = jax.random.normal(jax.random.key(0), (5, 3, 2))
    plain = jnp.stack([log_joint(LOADINGS, one) for one in z])
    mapped = jax.jit(jax.vmap(lambda one: log_joint(LOADINGS, one)))(z)
    np.testing.assert_allclose(mapped, plain, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"observed": jnp.ones((3, 4))}, TypeError, "observed must be boolean"),
        ({"observed": OBSERVED[0]}, ValueError, r"shape of x, \(3, 4\), got \(4,\)"),
        ({"event_ndim": 3}, ValueError, "at most the number of axes of x, 2, got 3"),
        ({"event_ndim": -1}, ValueError, "event_ndim must be at least 0"),
    ],
)
def test_refuses(change, error, words):
    given = {"x": X, "observed": OBSERVED} | change
    with pytest.raises(error, match=words):
        vj.targets.missing(lambda z, x: entries(LOADINGS, z, x), **given)


def test_refuses_terms_that_are_summed():
    target = vj.targets.missing(lambda z, x: entries(LOADINGS, z, x).sum(-1), X, OBSERVED)
    with pytest.raises(ValueError, match="one term for each entry of x"):
        target(jnp.zeros((3, 2)))
