"""gaussians.Gaussian under each Precision, dense, diagonal and tridiagonal, against the dense covariance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from tests.marks import some
from vijax.gaussians import Gaussian, Precision, dense, diagonal, tridiagonal

RNG = np.random.default_rng(0)
T, D = 4, 2


def of_dense():
    root = np.tril(RNG.normal(size=(6, 6))) + 3 * np.eye(6)
    return dense, root @ root.T, root @ root.T


def of_diagonal():
    own = RNG.uniform(0.5, 2.0, 6)
    return diagonal, own, np.diag(own)


def of_chain():
    own = np.eye(D) * 4 + 0.3 * np.ones((T, D, D))
    below = RNG.normal(size=(T - 1, D, D))
    whole = np.zeros((T, D, T, D))
    for t in range(T):
        whole[t, :, t] = own[t]
    for t in range(T - 1):
        whole[t + 1, :, t] = below[t]
        whole[t, :, t + 1] = below[t].T
    return tridiagonal, (own, below), whole.reshape(T * D, T * D)


CASES = {"dense": of_dense, "diagonal": of_diagonal, "tridiagonal": of_chain}


@pytest.mark.parametrize("name", list(CASES))
def test_against_the_dense_matrix(name, x64):
    """Products, solutions and densities; Λ is found from products with it alone."""
    precision, kept, matrix = CASES[name]()
    assert isinstance(precision, Precision)
    kept = jax.tree.map(jnp.asarray, kept)
    shape = (T, D) if precision is tridiagonal else (6,)
    product = lambda v: jnp.asarray(matrix @ v.reshape(-1)).reshape(shape)
    jax.tree.map(np.testing.assert_allclose, precision.probe(product, jnp.zeros(shape)), kept)
    v = jnp.asarray(RNG.normal(size=shape))
    root = precision.factor(kept)
    flat = lambda a: np.asarray(a).reshape(-1)
    np.testing.assert_allclose(flat(precision.times(kept, v)), matrix @ flat(v), rtol=1e-9)
    np.testing.assert_allclose(
        flat(precision.solve(root, v)), np.linalg.solve(matrix, flat(v)), rtol=1e-9
    )
    np.testing.assert_allclose(flat(precision.own(kept)), np.diag(matrix))
    mean = jnp.asarray(RNG.normal(size=shape))
    q = Gaussian(mean, root, precision)
    z, log_q = q.sample_and_log_prob(seed=jax.random.key(0), sample_shape=(3,))
    np.testing.assert_allclose(jax.vmap(q.log_prob)(z), log_q, rtol=1e-12)
    expected = multivariate_normal.logpdf(
        np.asarray(z).reshape(3, -1), flat(mean), np.linalg.inv(matrix)
    )
    np.testing.assert_allclose(log_q, expected, rtol=1e-8)


@pytest.mark.parametrize("name", some(CASES, "dense"))
def test_a_batch_is_a_loop(name, key):
    """jax.vmap over what makes a Gaussian gives one with a batch; a pytree of leaves is one vector."""
    precision, kept, _ = CASES[name]()
    kept = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), kept)
    lead = (T,) if precision is tridiagonal else ()
    make = lambda c: Gaussian(
        {"a": c * jnp.ones((*lead, 1)), "b": jnp.zeros((*lead, 1 if lead else 5))},
        precision.factor(jax.tree.map(lambda a: c * a, kept)),
        precision,
    )
    scales = jnp.array([1.0, 2.0])
    many = jax.vmap(make)(scales)
    z, log_q = many.sample_and_log_prob(seed=key)
    assert log_q.shape == (2,)
    for i in range(2):
        each = jax.tree.map(lambda leaf, i=i: leaf[i], z)
        np.testing.assert_allclose(make(scales[i]).log_prob(each), log_q[i], rtol=1e-5)


def test_what_is_not_positive_definite_is_nan():
    assert np.all(np.isnan(diagonal.factor(jnp.array([-1.0, 0.0]))))
    assert np.any(np.isnan(dense.factor(-jnp.eye(2))))
