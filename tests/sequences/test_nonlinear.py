"""gaussian_filter, condition, extended and unscented: exact on linear models, textbook numbers on others."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

import vijax as vj
from tests.marks import some
from tests.sequences import problem

S = vj.sequences
T = 6
RNG = np.random.default_rng(7)
LINEAR = problem.random_model(6, T, 3, 2)._replace(
    transition_cov=problem.spd(RNG, T - 1, 3), emission_cov=problem.spd(RNG, T, 2)
)
MASK = RNG.uniform(size=(T, 2)) < 0.7
X = np.where(MASK, RNG.normal(size=(T, 2)), np.nan)
LINEARIZE = {"extended": S.extended, "unscented": S.unscented, "far": partial(S.unscented, kappa=4)}


def nonlinear(model):
    """Return a linear model, as functions."""
    transition, emission = jnp.asarray(model.transition), jnp.asarray(model.emission)
    return S.NonlinearGaussian(
        model.initial_mean,
        model.initial_cov,
        lambda z: transition @ z,
        model.transition_cov,
        lambda z: emission @ z,
        model.emission_cov,
    )


@pytest.mark.parametrize("name", some(LINEARIZE, "extended", "unscented"))
@pytest.mark.parametrize("dtype", [pytest.param(np.float32, marks=pytest.mark.slow), np.float64])
def test_linear_models_are_filtered_exactly(name, dtype):
    """All that kalman_filter returns; covariances that change in time, parts of x missing."""
    with jax.enable_x64(dtype == np.float64):
        model, x = jax.tree.map(lambda a: jnp.asarray(a, dtype), (LINEAR, X))
        exact = S.kalman_filter(model, x, mask=MASK)
        run = lambda x: S.gaussian_filter(nonlinear(model), x, linearize=LINEARIZE[name], mask=MASK)
        found = jax.jit(run)(x)
        tolerance = 1e-12 if dtype == np.float64 else 2e-5
        for a, b in zip(found, exact, strict=True):
            assert a.dtype == dtype
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


# A pendulum: angle and speed, its horizontal position seen
STEP, Q, R = 0.3, np.array([[0.02, 0.01], [0.01, 0.05]]), np.array([[0.1]])
START = np.array([1.0, 0.2]), np.diag([0.3, 0.2])
SEEN = np.array([[0.9], [0.4], [-0.5], [-0.8], [0.1]])
PENDULUM = S.NonlinearGaussian(
    *START,
    lambda z: jnp.stack([z[0] + STEP * z[1], z[1] - STEP * 9.8 * jnp.sin(z[0])]),
    Q,
    lambda z: jnp.sin(z[:1]),
    R,
)


def textbook():
    """The extended filter with derivatives by hand and the short form of the covariance."""
    (mean, cov), total, means = START, 0.0, []
    for t, x in enumerate(SEEN):
        if t:
            slope = np.array([[1, STEP], [-STEP * 9.8 * np.cos(mean[0]), 1]])
            mean = np.array([mean[0] + STEP * mean[1], mean[1] - STEP * 9.8 * np.sin(mean[0])])
            cov = slope @ cov @ slope.T + Q
        slope = np.array([[np.cos(mean[0]), 0.0]])
        spread = slope @ cov @ slope.T + R
        total += multivariate_normal.logpdf(x, np.sin(mean[:1]), spread)
        gain = cov @ slope.T @ np.linalg.inv(spread)
        mean, cov = mean + gain @ (x - np.sin(mean[:1])), cov - gain @ spread @ gain.T
        means.append(mean)
    return total, np.stack(means), cov


def test_a_pendulum_as_in_the_textbook(x64):
    total, means, cov = textbook()
    found = jax.jit(lambda x: S.gaussian_filter(PENDULUM, x))(SEEN)
    np.testing.assert_allclose(found.log_evidence, total, rtol=1e-12)
    np.testing.assert_allclose(found.mean, means, rtol=1e-11)
    np.testing.assert_allclose(found.cov[-1], cov, rtol=1e-11)


def test_moments_of_points(x64):
    """Of z² in one dimension, variance too; of z₁ z₂ the mean: what three points a direction integrate exactly."""
    m, p = 0.7, 0.4
    square = S.unscented(lambda z: z**2, jnp.array([m]), jnp.array([[p]]))
    assert isinstance(square, S.Linearized)
    np.testing.assert_allclose(square.mean, m**2 + p, rtol=1e-12)
    spread = square.slope @ jnp.array([[p]]) @ square.slope.T + square.cov
    np.testing.assert_allclose(spread, 4 * m**2 * p + 2 * p**2, rtol=1e-12)
    tangent = S.extended(lambda z: z**2, jnp.array([m]), jnp.array([[p]]))
    np.testing.assert_allclose([*tangent.mean, *tangent.slope[0]], [m**2, 2 * m], rtol=1e-12)
    assert tangent.cov == 0
    mean, cov = jnp.array([0.3, -1.2]), jnp.array([[0.5, 0.2], [0.2, 0.3]])
    product = S.unscented(lambda z: z[:1] * z[1:], mean, cov)
    np.testing.assert_allclose(product.mean, 0.3 * -1.2 + 0.2, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", some(LINEARIZE, "extended"))
def test_a_proposal_is_the_conditional(name, x64, key):
    """log N(z; m, P) N(x; H z, R) / q(z) is log N(x; H m, ...) at every draw; and q has a derivative."""
    mean, cov, h, r = (
        RNG.normal(size=3),
        problem.spd(RNG, 3),
        RNG.normal(size=(2, 3)),
        problem.spd(RNG, 2),
    )
    x = RNG.normal(size=2)
    propose = lambda mean: S.condition(
        mean, cov, x, emission=lambda z: h @ z, emission_cov=r, linearize=LINEARIZE[name]
    )
    z, log_q = propose(mean).sample_and_log_prob(seed=key, sample_shape=(4,))
    joint = multivariate_normal.logpdf(z, mean, cov) + np.array(
        [multivariate_normal.logpdf(x, h @ one, r) for one in np.asarray(z)]
    )
    exact = multivariate_normal.logpdf(x, h @ mean, h @ cov @ h.T + r)
    np.testing.assert_allclose(joint - log_q, exact, rtol=1e-10)
    slope = jax.jacobian(lambda mean: propose(mean).loc)(jnp.asarray(mean))
    gain = cov @ h.T @ np.linalg.inv(h @ cov @ h.T + r)
    np.testing.assert_allclose(slope, np.eye(3) - gain @ h, rtol=1e-9, atol=1e-12)


def test_one_step_and_gradients(x64):
    """T = 1; what is masked gets a gradient of 0, and nothing is nan."""
    seen = np.arange(5) != 2
    x = np.where(seen[:, None], SEEN, np.nan)

    @jax.jit
    def look(x):
        run = lambda x: S.gaussian_filter(PENDULUM, x, mask=seen).log_evidence
        by_points = partial(S.gaussian_filter, PENDULUM, mask=seen, linearize=S.unscented)
        return jax.value_and_grad(run)(x), by_points(x)

    (value, slope), by_points = look(x)
    assert slope[2, 0] == 0
    assert np.isfinite(slope).all()
    assert 1e-3 < np.abs(by_points.log_evidence - value) < 1
    step = 1e-6 * (np.arange(5) == 4)[:, None]
    difference = look(x + step)[0][0] - look(x - step)[0][0]
    np.testing.assert_allclose(difference / 2e-6, slope[4, 0], rtol=1e-6)
    one = jax.jit(lambda x: S.gaussian_filter(PENDULUM, x))(SEEN[:1])
    np.testing.assert_allclose(one.log_evidence, one.log_predictive[0])


def test_refusals(unchecked):
    with pytest.raises(
        TypeError, match="must be a sequences.NonlinearGaussian, got LinearGaussian"
    ):
        S.gaussian_filter(LINEAR, X)
    with pytest.raises(ValueError, match=r"x must be one sequence \[time, p\]"):
        S.gaussian_filter(PENDULUM, SEEN[:, 0])
    with pytest.raises(ValueError, match=r"emission must map a state \(2,\) to \(2,\), got \(1,\)"):
        S.gaussian_filter(PENDULUM, np.zeros((5, 2)))
    with pytest.raises(ValueError, match="transition_cov has shape"):
        S.gaussian_filter(PENDULUM._replace(transition_cov=np.eye(3)), SEEN)
    with pytest.raises(TypeError, match="mask must be boolean"):
        S.gaussian_filter(PENDULUM, SEEN, mask=np.ones(5))
    with pytest.raises(ValueError, match="kappa must be at least 0"):
        S.unscented(lambda z: z, jnp.zeros(5), jnp.eye(5), kappa=-1.0)
