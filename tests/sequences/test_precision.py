"""How much float32 loses, and why covariances are updated in Joseph's form."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj
from vijax.sequences import _algebra, _filter, _scans

T = 60


def tracking(acceleration, noise, start, dt=0.1):
    """Position and velocity in the plane, of which position is seen: steps far smaller than what is not known."""
    f = np.eye(4) + np.diag([dt, dt], 2)
    g = np.array([[dt**2 / 2, 0], [0, dt**2 / 2], [dt, 0], [0, dt]])
    return vj.sequences.LinearGaussian(
        np.zeros(4),
        start * np.eye(4),
        f,
        acceleration * (g @ g.T + 1e-6 * np.eye(4)),
        np.eye(2, 4),
        noise * np.eye(2),
    )


def observed(model):
    """Draw observations that the model would make from an ordinary start."""
    rng, z, x = np.random.default_rng(1), np.array([0.0, 0.0, 1.0, -1.0]), []
    for _ in range(T):
        x.append(model.emission @ z + np.sqrt(model.emission_cov[0, 0]) * rng.normal(size=2))
        z = model.transition @ z + np.linalg.cholesky(model.transition_cov) @ rng.normal(size=4)
    return np.array(x)


VAGUE, DIFFUSE = tracking(1e-4, 1e-2, 1e6), tracking(1e-4, 1e-2, 0.0)._replace(diffuse=np.eye(4))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "model"),
    [
        pytest.param("", VAGUE, id="sequential, vague"),
        pytest.param("", DIFFUSE, id="sequential, diffuse"),
        pytest.param("parallel_", VAGUE, id="parallel, vague"),
        pytest.param("parallel_", DIFFUSE, id="parallel, diffuse"),
    ],
)
def test_single_precision(form, model):
    """Against float64: evidence to .001 nats, means to .002 standard deviations, covariances to 1e-5 of them."""
    x = observed(model)
    run, smooth = (getattr(vj.sequences, f"{form}kalman_{name}") for name in ("filter", "smoother"))
    both = lambda model, x: (run(model, x), smooth(model, x).marginals())
    with jax.enable_x64(True):
        exact, smoothed = jax.tree.map(np.asarray, both(model, x))
    found, found_smoothed = both(*jax.tree.map(np.float32, (model, x)))
    assert found.log_evidence.dtype == jnp.float32
    np.testing.assert_allclose(found.log_evidence, exact.log_evidence, atol=1e-3)
    late = lambda f: (f.mean[2:], f.cov[2:])  # a diffuse start is known from the third step on
    for (m, c), (mean, cov) in ((late(found), late(exact)), (found_smoothed, smoothed)):
        deviation = np.sqrt(np.einsum("tii->ti", cov))
        scale = deviation[:, :, None] * deviation[:, None]
        np.testing.assert_allclose(m / deviation, mean / deviation, atol=2e-3)
        np.testing.assert_allclose(c / scale, cov / scale, atol=1e-5)
        assert np.linalg.eigvalsh(c / scale).min() > 0


def short(cov, s):
    """P - K S Kᵀ."""
    lower = _algebra.cholesky(s.emission @ cov @ s.emission.T + s.emission_cov)
    half = _algebra.forward(lower, s.emission @ cov)
    return _algebra.backward(lower, half).T, _algebra.symmetric(cov - half.T @ half), lower


@pytest.mark.slow
def test_the_short_form_would_not_do(monkeypatch):
    """The control: it turns negative, and everything nan."""
    for module in (_algebra, _filter, _scans):
        monkeypatch.setattr(module, "correct", short)
    model, x = jax.tree.map(jnp.float32, (VAGUE, observed(VAGUE)))
    plain = partial(
        _filter._filter.__wrapped__, _scans.sequential
    )  # its trace must not stay in the cache
    assert np.isnan(plain(model, x, None).log_evidence)
