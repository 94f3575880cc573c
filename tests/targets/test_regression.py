"""conjugate.linear_regression: designs whose Xᵀ X floats do not hold, and derivatives of all that it is made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj

regression = vj.targets.conjugate.linear_regression
NOISE = np.random.default_rng(0)
Z = NOISE.normal(size=(200, 4))
T = np.arange(200.0)


def design(name):
    """Return a design, in numbers that float32 holds."""
    x = {
        "plain": Z,
        "collinear": np.c_[Z[:, :2], Z[:, 1] + 1e-3 * Z[:, 2], 1000 + 0.01 * T],
        "nearly equal": np.c_[Z[:, :3], Z[:, 0] + 1e-6 * Z[:, 3]],
        "years": np.c_[np.ones(200), 1900 + 0.5 * T, Z[:, :2]],
        "dummies": np.c_[np.ones(200), np.eye(3)[NOISE.integers(0, 3, 200)]],
    }[name]
    return x.astype(np.float32).astype(np.float64)


def exact(x, y, noise, loc, scale):
    """Return the log marginal, of y ~ N(X loc, noise² I + X diag(scale²) Xᵀ) by what is orthogonal to X and what is not."""
    (n, d), scale = x.shape, np.broadcast_to(scale, x.shape[1])
    q, r = np.linalg.qr(np.r_[x / noise, np.diag(1 / scale)])
    off = np.r_[(y - x @ np.broadcast_to(loc, d)) / noise, np.zeros(d)]
    left = off - q @ (q.T @ off)
    of_weights = np.sum(np.log(np.abs(np.diag(r)) * scale))
    return -0.5 * left @ left - of_weights - n * (np.log(noise) + 0.5 * np.log(2 * np.pi))


WEIGHTS = {"years": [1.0, 0.02, -1.0, 0.5]}


def test_value_and_slope_in_single_precision():
    """By Xᵀ X the collinear ones were .96 nats off and 4.5 a unit of noise, or nan."""
    noise, scale, h = float(np.float32(0.1)), 100.0, 1e-6

    def of(noise, x, y):
        return regression(x, y, noise=noise, loc=0.0, scale=scale).log_marginal

    traced = jax.jit(jax.value_and_grad(of))
    known = jax.jit(lambda noise: of(noise, jnp.asarray(x, jnp.float32), y.astype(np.float32)))
    for name in ("plain", "nearly equal", "years", "dummies", "collinear"):
        x = design(name)
        y = x @ WEIGHTS.get(name, [1.0, 2.0, -1.0, 0.5]) + 0.1 * NOISE.normal(size=200)
        y = y.astype(np.float32).astype(np.float64)
        true = [exact(x, y, noise * (1 + by), 0.0, scale) for by in (0, h, -h)]
        value, slope = traced(noise, x.astype(np.float32), y.astype(np.float32))
        np.testing.assert_allclose(value, true[0], atol=1e-2, err_msg=name)
        np.testing.assert_allclose(slope, (true[1] - true[2]) / (2 * h * noise), 2e-3, 0.1)
    np.testing.assert_allclose(known(noise), true[0], atol=1e-2)


def plain(x, y, noise, loc, scale):
    """Return what the textbook says, in double precision: mean, Cholesky factor and log marginal."""
    precision = x.T @ x / noise**2 + jnp.diag(1 / scale**2)
    mean = jnp.linalg.solve(precision, x.T @ y / noise**2 + loc / scale**2)
    covariance = (x * scale[None] ** 2) @ x.T + noise**2 * jnp.eye(len(y))
    log_p = jax.scipy.stats.multivariate_normal.logpdf(y, x @ loc, covariance)
    return mean, jnp.linalg.cholesky(precision), log_p


def given(x, y, noise, loc, scale):
    made = regression(x, y, noise=noise, loc=loc, scale=scale)
    return made.posterior.mean, made.posterior.root, made.log_marginal


@pytest.mark.parametrize("rows", [pytest.param(2, marks=pytest.mark.slow), 6])
def test_derivatives_of_all_arguments(x64, rows):
    """Two along a line through all of them, and the gradient; and with a column of zeros, where no factor has any."""
    x = Z[:rows, :3].copy()
    x[:, 2] = 0.0
    at = (x, Z[:rows, 3], 0.7, np.array([0.1, -0.2, 0.3]), np.array([1.0, 0.6, 2.0]))
    line = tuple(NOISE.normal(size=np.shape(a)) for a in at)

    def of(model):
        along = lambda t: model(*(a + t * b for a, b in zip(at, line, strict=True)))
        slope = jax.grad(lambda at: model(*at)[2])
        return along(0.0), jax.jacfwd(along)(0.0), jax.jacfwd(jax.jacfwd(along))(0.0), slope(at)

    found, expected = (jax.jit(of, static_argnums=0)(model) for model in (given, plain))
    jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, atol=1e-8), found, expected)


def test_a_batch_of_designs_is_its_members():
    x = jnp.asarray(np.stack([design("collinear"), design("years")])[:, :50], jnp.float32)
    y = jnp.asarray(Z[:50, 0], jnp.float32)
    of = lambda x: given(x, y, jnp.array([0.5, 1.0]), 0.0, 10.0)[2]
    one = jax.jit(of)
    found, expected = jax.jit(jax.vmap(of))(x), jnp.stack([one(x[0]), one(x[1])])
    np.testing.assert_allclose(found, expected, rtol=1e-4)
