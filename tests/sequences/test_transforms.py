"""kalman_filter and parallel_kalman_filter: gradients, each other, vmap, and what is missing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj
from tests.sequences import problem

FILTERS = {
    "sequential": vj.sequences.kalman_filter,
    "parallel": vj.sequences.parallel_kalman_filter,
}
# The parallel form compiles slowly, and is held to the other in every run.
each = pytest.mark.parametrize(
    "run",
    [FILTERS["sequential"], pytest.param(FILTERS["parallel"], marks=pytest.mark.slow)],
    ids=["sequential", "parallel"],
)


def test_the_maximum_is_where_it_was_published(x64):
    """(15099, 1469.1) under a diffuse start: each slope changes sign within .1 per cent of it."""
    one = jnp.ones((1, 1))
    model = lambda v: vj.sequences.LinearGaussian(
        jnp.zeros(1), 0 * one, one, v[1] * one, one, v[0] * one, diffuse=one
    )
    slope = jax.jit(
        jax.grad(lambda v: vj.sequences.kalman_filter(model(v), problem.NILE).log_evidence)
    )
    best = jnp.array([15099.0, 1469.1])
    assert slope(0.999 * best).min() > 0 > slope(1.001 * best).max()


def gradients(run, name):
    """Return the gradient of log p(x) in the model and in x, and the dense normal's."""
    model, x, mask = problem.data(name)
    model = jax.tree.map(jnp.asarray, model)
    found = jax.jit(jax.grad(lambda m, x: run(m, x, mask=mask).log_evidence, (0, 1)))(model, x)
    dense = jax.jit(jax.grad(lambda m, x: problem.posterior(m, x, mask, jnp)[0], (0, 1)))(
        model, np.nan_to_num(x)
    )
    return found, dense, x


def check_gradients(run, name):
    (found, in_x), (expected, expected_x), x = gradients(run, name)
    halves = lambda a: (
        0.5 * (a + jnp.swapaxes(a, -1, -2))
    )  # the dense normal puts some in one half alone
    covs = ("initial_cov", "transition_cov", "emission_cov")
    expected = expected._replace(**{name: halves(getattr(expected, name)) for name in covs})
    jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, atol=1e-9), found, expected)
    assert (in_x[np.isnan(x)] == 0).all()
    np.testing.assert_allclose(in_x, expected_x, atol=1e-9)


@each
@pytest.mark.slow
def test_gradients_are_those_of_the_dense_normal(run, x64):
    """In every array of the model, and in x, of which what is missing, nan, gets exactly 0."""
    check_gradients(run, "diffuse in part, late")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(problem.CASES) - {"diffuse in part, late"}))
@each
def test_gradients_of_every_case(name, run, x64):
    check_gradients(run, name)


def long(dtype, length=20):
    rng = np.random.default_rng(3)
    model = problem.random_model(12, length, 3, 2, offsets=True, diffuse=1)
    x = rng.normal(size=(length, 2)) + 3.0
    return jax.tree.map(lambda a: np.asarray(a, dtype), (model, x)), rng.uniform(
        size=(length, 2)
    ) < 0.8


def everything(f):
    """A scalar of all that a filter returns, save the steps before δ is known."""
    late = slice(3, None)
    return f.log_evidence + jnp.sum(jnp.sin(f.mean[late])) + jnp.sum(f.cov[late]) + jnp.sum(
        f.log_predictive[late]
    ), f


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(np.float64, 1e-12), pytest.param(np.float32, 2e-6, marks=pytest.mark.slow)],
    ids=["x64", "float32"],
)
@pytest.mark.slow
def test_parallel_is_sequential(dtype, tolerance):
    """Value and gradient of all that is returned, relative to the largest entry of each array."""
    with jax.enable_x64(dtype == np.float64):
        (model, x), mask = long(dtype)
        one, two = (
            jax.jit(
                jax.value_and_grad(lambda m, f=f: everything(f(m, x, mask=mask)), has_aux=True)
            )(model)
            for f in FILTERS.values()
        )
        assert {leaf.dtype for leaf in jax.tree.leaves(one)} == {np.dtype(dtype)}
        size = lambda a: 1 + np.max(np.abs(a), where=np.isfinite(a), initial=0)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * size(a)),
            one,
            two,
        )


@pytest.mark.slow
@each
def test_vmap_is_a_loop(run):
    """Over data, masks and models, of values and forward derivatives."""
    (model, x), mask = long(np.float32, 5)
    xs, masks = jnp.stack([x, x + 1, 2 * x]), jnp.stack([mask, ~mask, np.ones_like(mask)])
    scales = jnp.array([0.5, 1.0, 2.0])

    @jax.jit
    def both(scale, x, mask):
        value = lambda s: (
            run(model._replace(emission_cov=s * model.emission_cov), x, mask=mask).log_evidence
        )
        return jax.jvp(value, (scale,), (jnp.float32(1),))

    together = jax.vmap(both)(scales, xs, masks)
    for i in range(3):
        np.testing.assert_allclose(
            [t[i] for t in together], both(scales[i], xs[i], masks[i]), rtol=2e-4
        )


@each
@pytest.mark.slow
def test_nothing_observed(run, x64):
    """log p(nothing) is 0, and its gradient; where a diffuse direction is undetermined log p is inf, its gradient 0."""
    model, x, _ = problem.data("diffuse")
    value_and_grad = jax.jit(
        jax.value_and_grad(lambda m, mask: run(m, x * np.nan, mask=mask).log_evidence)
    )
    nothing = np.zeros(x.shape, bool)
    value, slope = value_and_grad(model._replace(diffuse=None, initial_cov=np.eye(2)), nothing)
    assert abs(value) < 1e-12
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(slope)) < 1e-12
    run_x = jax.jit(jax.value_and_grad(lambda m, mask: run(m, x, mask=mask).log_evidence))
    nothing[2, 0] = True
    value, slope = run_x(model, nothing)
    assert np.isposinf(value)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(slope))
