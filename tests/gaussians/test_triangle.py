"""The full-rank parameterization: there and back, and from any factor of a covariance."""

import jax.numpy as jnp
import numpy as np

from vijax.gaussians import triangle

RNG = np.random.default_rng(0)
LOG_SCALE = RNG.normal(size=4)
LOWER = RNG.normal(size=6)


def test_there_and_back(x64):
    root = triangle.from_parameters(jnp.asarray(LOG_SCALE), jnp.asarray(LOWER))
    unit = np.eye(4)
    unit[np.tril_indices(4, -1)] = LOWER
    np.testing.assert_allclose(root, np.diag(np.exp(LOG_SCALE)) @ unit, rtol=1e-12)
    for found, expected in zip(triangle.to_parameters(root), (LOG_SCALE, LOWER), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    e = jnp.asarray(RNG.normal(size=4))
    np.testing.assert_allclose(triangle.times_root(root, e), root @ e)
    np.testing.assert_allclose(triangle.times_root(jnp.diagonal(root), e), np.diagonal(root) * e)
    for half in (triangle.half_log_det(root), triangle.half_log_det(jnp.diagonal(root))):
        np.testing.assert_allclose(half, LOG_SCALE.sum(), rtol=1e-12)


def test_from_any_factor(x64):
    """Wide factors, rows that differ in scale by 10⁸, and the inverse of a precision."""
    factor = RNG.normal(size=(4, 7)) * np.array([1e-4, 1.0, 30.0, 1e4])[:, None]
    covariance = factor @ factor.T
    root = triangle.triangle(jnp.asarray(factor))
    np.testing.assert_allclose(root @ root.T, covariance, rtol=1e-8)
    assert np.all(np.diagonal(root) > 0)
    assert np.all(np.triu(root, 1) == 0)
    again = triangle.from_parameters(*triangle.parameters_of_covariance(jnp.asarray(factor)))
    np.testing.assert_allclose(again @ again.T, covariance, rtol=1e-8)
    small = np.diag(1 / np.diag(factor)) @ covariance @ np.diag(1 / np.diag(factor))
    inverse, lowest = triangle.factor_of_inverse(jnp.asarray(np.linalg.inv(small)))
    np.testing.assert_allclose(inverse @ inverse.T, small, rtol=1e-6)
    stand_in, below = triangle.factor_of_inverse(jnp.diag(jnp.array([2.0, -2.0])))
    np.testing.assert_allclose(below, -1.0)
    assert 0 < lowest <= 1
    np.testing.assert_allclose(stand_in @ stand_in.T, np.diag([0.5, 0.5]), atol=1e-12)
