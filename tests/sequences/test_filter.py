"""kalman_filter and parallel_kalman_filter: the Nile, dense normals, refusals."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj
from tests.marks import some
from tests.sequences import problem
from vijax.sequences import Filtered

FILTERS = {
    "sequential": vj.sequences.kalman_filter,
    "parallel": vj.sequences.parallel_kalman_filter,
}
each = pytest.mark.parametrize("run", FILTERS.values(), ids=FILTERS)
every = pytest.mark.parametrize("name", problem.EVERY)


# --- the Nile


@each
def test_the_nile_with_a_proper_start(run, x64):
    """Computed by plain float64 recursion at the published maximum."""
    model = problem.local_level(15099.0, 1469.1, mean=1000.0, variance=500.0**2)
    np.testing.assert_allclose(run(model, problem.NILE).log_evidence, -639.7117154905, atol=1e-9)


@each
def test_the_nile_with_a_vague_start(run, x64):
    """-632.5442 is the likelihood of all but the first year under N(0, 10^7), as many programs approximate a diffuse start."""
    found = run(problem.local_level(15100.0, 1468.0, variance=1e7), problem.NILE)
    np.testing.assert_allclose(jnp.sum(found.log_predictive[1:]), -632.5442, atol=1e-4)
    np.testing.assert_allclose(jnp.sum(found.log_predictive[1:]), -632.544212213, atol=1e-8)


@each
def test_the_nile_with_a_diffuse_start(run, x64):
    """The limit of that, to all digits: log p(x) + 1/2 log 2πκ at κ = 10^12 by plain recursion is -632.545626."""
    found = run(problem.local_level(15100.0, 1468.0, diffuse=True), problem.NILE)
    np.testing.assert_allclose(found.log_evidence, -632.5456255, atol=1e-6)
    np.testing.assert_allclose(jnp.sum(found.log_predictive[1:]), found.log_evidence, atol=1e-9)
    assert np.isnan(found.log_predictive[0])
    np.testing.assert_allclose(found.mean[0], problem.NILE[0])
    np.testing.assert_allclose(found.cov[0], 15100.0)
    scaled = lambda kappa: (
        run(problem.local_level(15100.0, 1468.0, variance=kappa), problem.NILE).log_evidence
        + 0.5 * np.log(2 * np.pi * kappa)
    )
    gaps = [abs(scaled(kappa) - found.log_evidence) for kappa in (1e8, 1e9, 1e10)]
    assert gaps[0] > 9 * gaps[1] > 81 * gaps[2] > 0


@pytest.mark.parametrize(
    "run", some(FILTERS.values(), "kalman_filter", name=lambda run: run.__name__)
)
def test_the_nile_in_single_precision(run):
    model = problem.local_level(15099.0, 1469.1, mean=1000.0, variance=500.0**2, dtype=np.float32)
    assert run(model, problem.NILE.astype(int)).log_evidence.dtype == jnp.float32
    np.testing.assert_allclose(
        run(model, problem.NILE.astype(int)).log_evidence, -639.7117154905, atol=5e-4
    )
    model = problem.local_level(15100.0, 1468.0, diffuse=True, dtype=np.float32)
    np.testing.assert_allclose(
        run(model, problem.NILE.astype(np.float32)).log_evidence, -632.5456255, atol=5e-4
    )


# --- dense normals


@every
@each
def test_equal_to_one_dense_normal(name, run, x64):
    """Evidence, and the moments of every zₜ given x₁..ₜ, with and without missing values."""
    model, x, mask = problem.data(name)
    found = run(model, x, mask=mask)
    assert isinstance(found, Filtered)
    d, m = model.initial_mean.shape[0], 0 if model.diffuse is None else model.diffuse.shape[1]
    seen = (
        np.ones(x.shape, bool)
        if mask is None
        else np.broadcast_to(mask.reshape(len(x), -1), x.shape)
    )
    before = None
    for t in range(1, len(x) + 1):
        if seen[:t].sum() < m:
            assert np.isnan(found.mean[t - 1]).all()
            assert np.isposinf(found.cov[t - 1]).all()
            assert np.isnan(found.log_predictive[t - 1])
            continue
        part = _first(model, t)
        evidence, mean, cov = problem.posterior(part, x[:t], seen[:t])
        np.testing.assert_allclose(found.mean[t - 1], mean[-d:], atol=1e-10)
        np.testing.assert_allclose(found.cov[t - 1], cov[-d:, -d:], atol=1e-10)
        if before is not None:
            np.testing.assert_allclose(found.log_predictive[t - 1], evidence - before, atol=1e-10)
        before = evidence
    np.testing.assert_allclose(found.log_evidence, before, atol=1e-10)
    if m == 0:
        np.testing.assert_allclose(jnp.sum(found.log_predictive), found.log_evidence, atol=1e-12)


def _first(model, t):
    """The model of the first t steps."""
    cut = lambda value, event, length: (
        value if value is None or np.ndim(value) == event else value[:length]
    )
    return model._replace(
        transition=cut(model.transition, 2, t - 1),
        transition_cov=cut(model.transition_cov, 2, t - 1),
        transition_offset=cut(model.transition_offset, 1, t - 1),
        emission=cut(model.emission, 2, t),
        emission_cov=cut(model.emission_cov, 2, t),
        emission_offset=cut(model.emission_offset, 1, t),
    )


def test_the_dense_normal_can_tell(x64):
    """The control: a model that is a thousandth off is found."""
    model, x, mask = problem.data("varying, parts missing")
    found = vj.sequences.kalman_filter(
        model._replace(emission_cov=1.001 * model.emission_cov), x, mask=mask
    )
    assert abs(found.log_evidence - problem.posterior(model, x, mask)[0]) > 1e-5


# --- refusals

GOOD, X = problem.random_model(2, 6, 3, 2), np.zeros((6, 2))
WRONG = {
    "a batch of x": (GOOD, np.zeros((4, 6, 2)), None, ValueError, r"\(4, 6, 2\); use jax.vmap"),
    "a vector": (GOOD, np.zeros(6), None, ValueError, r"\(6,\); use x\[:, None\]"),
    "no steps": (GOOD, np.zeros((0, 2)), None, ValueError, r"needs a step.*\(0, 2\)"),
    "mean": (GOOD._replace(initial_mean=np.zeros((3, 1))), X, None, ValueError, r"initial_mean.*\(3, 1\)"),
    "start": (GOOD._replace(initial_cov=np.eye(2)), X, None, ValueError, r"initial_cov.*\(2, 2\).*\(3, 3\).*\(3,\)"),
    "transition": (
        GOOD._replace(transition=np.zeros((6, 3, 3))), X, None, ValueError,
        r"transition has shape \(6, 3, 3\), expected \(3, 3\) or, changing in time, \(5, 3, 3\).*\(6, 2\)",
    ),
    "emission": (GOOD, np.zeros((6, 4)), None, ValueError, r"emission has shape \(2, 3\), expected \(4, 3\)"),
    "emission_cov": (GOOD._replace(emission_cov=np.ones(2)), X, None, ValueError, r"emission_cov has shape \(2,\)"),
    "offset": (GOOD._replace(emission_offset=np.ones(3)), X, None, ValueError, r"emission_offset has shape \(3,\)"),
    "diffuse": (GOOD._replace(diffuse=np.ones(3)), X, None, ValueError, r"diffuse has shape \(3,\)"),
    "too diffuse": (GOOD._replace(diffuse=np.eye(3)), X[:1], None, ValueError, r"\(1, 2\) cannot tell 3 diffuse"),
    "floating mask": (GOOD, X, np.ones(6), TypeError, "mask must be boolean, True where x is observed"),
    "mask": (GOOD, X, np.ones((2, 6), bool), ValueError, r"mask has shape \(2, 6\), expected \(6,\) or \(6, 2\)"),
    "no model": ((1, 2), X, None, TypeError, "LinearGaussian, got tuple"),
}  # fmt: skip


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("kind", list(WRONG))
@pytest.mark.parametrize(
    "name",
    ["kalman_filter", "parallel_kalman_filter", "kalman_smoother", "parallel_kalman_smoother"],
)
def test_refusals(kind, name):
    model, x, mask, error, message = WRONG[kind]
    with pytest.raises(error, match=message):
        jax.eval_shape(
            partial(getattr(vj.sequences, name), mask=mask), model, x
        ) if kind != "no model" else getattr(vj.sequences, name)(model, x)
