"""kalman_filter and parallel_kalman_filter: the Nile, dense normals, and each other."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj
from tests.sequences import problem
from vijax.sequences import Filtered, LinearGaussian

FILTERS = {"sequential": vj.sequences.kalman_filter, "parallel": vj.sequences.parallel_kalman_filter}
each = pytest.mark.parametrize("run", FILTERS.values(), ids=FILTERS)
every = pytest.mark.parametrize("name", list(problem.CASES))


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
        run(problem.local_level(15100.0, 1468.0, variance=kappa), problem.NILE).log_evidence + 0.5 * np.log(2 * np.pi * kappa)
    )
    gaps = [abs(scaled(kappa) - found.log_evidence) for kappa in (1e8, 1e9, 1e10)]
    assert gaps[0] > 9 * gaps[1] > 81 * gaps[2] > 0


@each
def test_the_nile_in_single_precision(run):
    model = problem.local_level(15099.0, 1469.1, mean=1000.0, variance=500.0**2, dtype=np.float32)
    assert run(model, problem.NILE.astype(int)).log_evidence.dtype == jnp.float32
    np.testing.assert_allclose(run(model, problem.NILE.astype(int)).log_evidence, -639.7117154905, atol=5e-4)
    model = problem.local_level(15100.0, 1468.0, diffuse=True, dtype=np.float32)
    np.testing.assert_allclose(run(model, problem.NILE.astype(np.float32)).log_evidence, -632.5456255, atol=5e-4)


def test_the_maximum_is_where_it_was_published(x64):
    """(15099, 1469.1) under a diffuse start: the gradient in log-variances changes sign within half a unit around it."""
    slope = jax.jit(
        jax.grad(
            lambda v: vj.sequences.kalman_filter(_level(v), problem.NILE).log_evidence,
        )
    )
    low, high = slope(jnp.array([15090.0, 1466.0])), slope(jnp.array([15108.0, 1472.0]))
    assert low.min() > 0 > high.max()


def _level(v):
    one = jnp.ones((1, 1))
    return LinearGaussian(jnp.zeros(1), 0 * one, one, v[1] * one, one, v[0] * one, diffuse=one)


# --- dense normals


@every
@each
def test_equal_to_one_dense_normal(name, run, x64):
    """Evidence, and the moments of every zₜ given x₁..ₜ, with and without missing values."""
    model, x, mask = problem.data(name)
    found = run(model, x, mask=mask)
    assert isinstance(found, Filtered)
    d, m = model.initial_mean.shape[0], 0 if model.diffuse is None else model.diffuse.shape[1]
    seen = np.ones(x.shape, bool) if mask is None else np.broadcast_to(mask.reshape(len(x), -1), x.shape)
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
    cut = lambda value, event, length: value if value is None or np.ndim(value) == event else value[:length]
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
    found = vj.sequences.kalman_filter(model._replace(emission_cov=1.001 * model.emission_cov), x, mask=mask)
    assert abs(found.log_evidence - problem.posterior(model, x, mask)[0]) > 1e-5


def symmetrised(gradient):
    """Return a gradient with those of covariances made symmetric: which half carries them is a matter of taste."""
    halves = lambda a: 0.5 * (a + jnp.swapaxes(a, -1, -2))
    return gradient._replace(
        **{name: halves(getattr(gradient, name)) for name in ("initial_cov", "transition_cov", "emission_cov")}
    )


@pytest.mark.parametrize("name", ["varying, parts missing", "diffuse in part, late", "one step, diffuse"])
@each
def test_gradients_are_those_of_the_dense_normal(name, run, x64):
    """In every array of the model, and in x, of which what is missing gets exactly 0."""
    model, x, mask = problem.data(name)
    model = jax.tree.map(jnp.asarray, model)
    found, in_x = jax.jit(jax.grad(lambda m, x: run(m, x, mask=mask).log_evidence, (0, 1)))(model, x)
    expected, _ = jax.jit(jax.grad(lambda m, x: problem.posterior(m, x, mask, jnp)[0], (0, 1)))(model, x)
    jax.tree.map(
        lambda f, e: np.testing.assert_allclose(f, e, atol=1e-9), symmetrised(found), symmetrised(expected)
    )
    assert np.isfinite(in_x).all()
    assert (in_x[np.isnan(x)] == 0).all()
    assert (in_x[~np.isnan(x)] != 0).all()


# --- one another, transforms


def long(dtype, length=70):
    rng = np.random.default_rng(3)
    model = problem.random_model(12, length, 3, 2, offsets=True, diffuse=1)
    x = rng.normal(size=(length, 2)) + 3.0
    return jax.tree.map(lambda a: np.asarray(a, dtype), (model, x)), rng.uniform(size=(length, 2)) < 0.8


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 2e-4)], ids=["x64", "float32"])
def test_parallel_is_sequential(dtype, tolerance):
    """Value and gradient, relative to each array's size."""
    with jax.enable_x64(dtype == np.float64):
        (model, x), mask = long(dtype)
        both = [
            jax.jit(jax.value_and_grad(lambda m, f=f: _weighted(f(m, x, mask=mask)), has_aux=True))(model)
            for f in FILTERS.values()
        ]
        (one, one_aux), one_slope = both[0]
        assert one.dtype == dtype
        close = lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance * (1 + np.nanmax(np.abs(a))))
        jax.tree.map(lambda a, b: close(np.where(np.isinf(a), 0, a), np.where(np.isinf(b), 0, b)), *(b[0] for b in both))
        jax.tree.map(close, one_slope, both[1][1])


def _weighted(f):
    """A scalar of all that a filter returns."""
    late = slice(3, None)
    return f.log_evidence + jnp.sum(jnp.sin(f.mean[late])) + jnp.sum(f.cov[late]) + jnp.sum(f.log_predictive[late]), f


@each
def test_vmap_is_a_loop(run):
    """Over data, masks and models, under jit."""
    (model, x), mask = long(np.float32, 5)
    xs, masks = jnp.stack([x, x + 1, 2 * x]), jnp.stack([mask, ~mask, np.ones_like(mask)])
    scales = jnp.array([0.5, 1.0, 2.0])

    def value(scale, x, mask):
        return run(model._replace(emission_cov=scale * model.emission_cov), x, mask=mask).log_evidence

    together = jax.jit(jax.vmap(jax.value_and_grad(value)))(scales, xs, masks)
    for i in range(3):
        alone = jax.value_and_grad(value)(scales[i], xs[i], masks[i])
        np.testing.assert_allclose([together[0][i], together[1][i]], alone, rtol=2e-4)
    forward = jax.vmap(jax.jacfwd(value))(scales, xs, masks)
    np.testing.assert_allclose(forward, together[1], rtol=2e-4, atol=1e-4)


@each
def test_nothing_observed(run, x64):
    """log p(nothing) is 0, and its gradient; a diffuse start that nothing determines has log p = inf, with gradient 0."""
    model, x, _ = problem.data("plain")
    nothing = np.zeros(len(x), bool)
    value, slope = jax.value_and_grad(lambda m: run(m, x * np.nan, mask=nothing).log_evidence)(model)
    assert abs(value) < 1e-12
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(slope)) < 1e-12
    model, x, _ = problem.data("diffuse")
    once = np.arange(len(x)) == 2
    value, slope = jax.value_and_grad(lambda m: run(m, x, mask=once[:, None] & np.array([True, False])).log_evidence)(model)
    assert np.isposinf(value)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(slope))


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
@pytest.mark.parametrize("name", ["kalman_filter", "parallel_kalman_filter", "kalman_smoother", "parallel_kalman_smoother"])
def test_refusals(kind, name):
    model, x, mask, error, message = WRONG[kind]
    with pytest.raises(error, match=message):
        jax.eval_shape(partial(getattr(vj.sequences, name), mask=mask), model, x) if kind != "no model" else getattr(
            vj.sequences, name
        )(model, x)
