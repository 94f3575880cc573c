"""kalman_smoother and parallel_kalman_smoother: marginals, draws and densities of whole paths, all exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj
from tests.marks import some
from tests.sequences import problem

SMOOTHERS = {
    "sequential": vj.sequences.kalman_smoother,
    "parallel": vj.sequences.parallel_kalman_smoother,
}
each = pytest.mark.parametrize("run", SMOOTHERS.values(), ids=SMOOTHERS)


@pytest.mark.parametrize("name", problem.EVERY)
@each
def test_marginals_and_density_are_the_dense_normals(name, run, x64):
    """At any path log p(z | x) = log p(x, z) - log p(x): the candidate's identity, with no draws."""
    model, x, mask = problem.data(name)
    q = run(model, x, mask=mask)
    evidence, mean, cov = problem.posterior(model, x, mask)
    (t, d), (means, covs) = q.offset.shape, q.marginals()
    np.testing.assert_allclose(means, mean.reshape(t, d), atol=1e-10)
    blocks = np.einsum("ikil->ikl", cov.reshape(t, d, t, d))
    np.testing.assert_allclose(covs, blocks, atol=1e-10)
    for seed in range(3):
        z = mean.reshape(t, d) + 2 * np.random.default_rng(seed).normal(size=(t, d))
        expected = problem.log_joint(model, z, x, mask) - evidence
        np.testing.assert_allclose(q.log_prob(z), expected, atol=1e-9)


def test_the_identity_can_tell(x64):
    """The control: the posterior of another model is no posterior, and a path's density feels every covariance."""
    model, x, mask = problem.data("varying, parts missing")
    q = vj.sequences.kalman_smoother(
        model._replace(transition_cov=1.001 * model.transition_cov), x, mask=mask
    )
    evidence, mean, _ = problem.posterior(model, x, mask)
    z = mean.reshape(q.offset.shape)
    assert abs(q.log_prob(z) - problem.log_joint(model, z, x, mask) + evidence) > 1e-4


@each
def test_draws_have_the_moments_of_the_dense_normal(run, x64, monkeypatch):
    """A draw is affine in its noise; unit vectors for noise give its factor, whose square is the covariance of the path."""
    model, x, mask = problem.data("diffuse in part, late")
    q = run(model, x, mask=mask)
    t, d = q.offset.shape
    noise = jnp.concatenate([jnp.zeros((1, t, d)), jnp.eye(t * d).reshape(t * d, t, d)])
    monkeypatch.setattr(
        jax.random, "normal", lambda key, shape, dtype: noise.astype(dtype).reshape(shape)
    )
    z, log_q = q.sample_and_log_prob(seed=jax.random.key(0), sample_shape=(1 + t * d,))
    evidence, mean, cov = problem.posterior(model, x, mask)
    np.testing.assert_allclose(z[0].ravel(), mean, atol=1e-10)
    factor = (z[1:] - z[:1]).reshape(t * d, t * d)
    np.testing.assert_allclose(factor.T @ factor, cov, atol=1e-10)
    np.testing.assert_allclose(log_q, jax.vmap(q.log_prob)(z), atol=1e-9)
    np.testing.assert_allclose(
        log_q[0], problem.log_joint(model, np.asarray(z[0]), x, mask) - evidence, atol=1e-9
    )


def companion(dtype=np.float64):
    """An AR(2) in companion form: the covariance of a step is singular."""
    f, one = np.array([[1.2, -0.5], [1.0, 0.0]], dtype), np.ones((1, 1), dtype)
    q = np.array([[0.7, 0.0], [0.0, 0.0]], dtype)
    return vj.sequences.LinearGaussian(
        np.zeros(2, dtype), np.eye(2, dtype=dtype), f, q, one * np.eye(1, 2), 0.3 * one
    )


@each
def test_marginals_stand_singular_steps(run, x64):
    x = np.random.default_rng(4).normal(size=(5, 1))
    _, mean, cov = problem.posterior(companion(), x, None)
    means, covs = run(companion(), x).marginals()
    np.testing.assert_allclose(means.ravel(), mean, atol=1e-10)
    np.testing.assert_allclose(covs, np.einsum("ikil->ikl", cov.reshape(5, 2, 5, 2)), atol=1e-10)


@pytest.mark.parametrize(
    "run", some(SMOOTHERS.values(), "kalman_smoother", name=lambda run: run.__name__)
)
def test_undetermined_paths_are_nan(run):
    model, x, _ = problem.data("diffuse")
    q = run(model, x, mask=np.zeros(len(x), bool))
    assert np.isnan(q.marginals()[0]).all()
    assert np.isnan(q.log_prob(np.zeros(x.shape, np.float32)))


@pytest.mark.parametrize(
    "run", some(SMOOTHERS.values(), "kalman_smoother", name=lambda run: run.__name__)
)
def test_the_nile(run):
    """The level of 1871 and 1970, and its variance, given all years: in float32, to the published digits."""
    q = run(
        problem.local_level(15099.0, 1469.1, diffuse=True, dtype=np.float32),
        problem.NILE.astype(np.float32),
    )
    mean, cov = q.marginals()
    np.testing.assert_allclose(mean[jnp.array([0, -1]), 0], [1111.6, 798.4], atol=0.1)
    np.testing.assert_allclose(cov[-1, 0, 0], 4032.2, atol=0.1)


# --- as a q, and as a conditional


def family(run, x, theta):
    """A local level whose log-variances are theta, [2]."""
    one = jnp.ones((1, 1))
    level = jnp.exp(theta[..., None, None])
    return run(vj.sequences.LinearGaussian(jnp.zeros(1), 2 * one, one, level[1], one, level[0]), x)


def log_joint(x, theta, z):
    normal = lambda r, log_v: -0.5 * jnp.sum(r**2 / jnp.exp(log_v) + log_v + jnp.log(2 * jnp.pi))
    states = normal(z[1:] - z[:-1], theta[1]) + normal(z[0], jnp.log(2.0))
    return states + normal(x - z, theta[0])


X = np.array([[0.3], [-0.4], [1.1], [0.8]], np.float32)
THETA = jnp.array([0.2, -0.5])


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SMOOTHERS))
def test_it_is_the_q_at_which_every_bound_is_exact(name, key):
    """The value is log p(x) on every draw; dreg's gradient in what q depends on is 0; and so under a batch of q."""
    exact = vj.sequences.kalman_filter(family(lambda m, x: m, X, THETA), X).log_evidence

    def value(phi, make):
        q = family(SMOOTHERS[name], X, phi)
        return make(key, lambda z: log_joint(X, THETA, z), q, num_samples=3).value

    found, slope = jax.jit(
        jax.value_and_grad(lambda phi: value(phi, vj.gradients.dreg(vj.bounds.iwae)))
    )(THETA)
    np.testing.assert_allclose(found, exact, atol=2e-5)
    np.testing.assert_allclose(slope, 0.0, atol=2e-5)
    noisy = jax.jit(jax.grad(lambda phi: value(phi, vj.gradients.reparam(vj.bounds.elbo))))
    assert np.abs(noisy(THETA + 0.5)).min() > 1e-3


@pytest.mark.parametrize(
    "run", some(SMOOTHERS.values(), "kalman_smoother", name=lambda run: run.__name__)
)
def test_collapse_takes_it(run, key):
    """Whatever path is drawn, the collapsed target is the filter's evidence, and so is its gradient."""
    collapsed = vj.targets.collapse(
        lambda theta, z: log_joint(X, theta, z), lambda theta: family(run, X, theta), key=key
    )
    exact = lambda theta: (
        vj.sequences.kalman_filter(family(lambda m, x: m, X, theta), X).log_evidence
    )
    found, expected = (jax.jit(jax.value_and_grad(f))(THETA) for f in (collapsed, exact))
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-4)


@each
def test_a_batch_of_paths(run, key):
    """vmap returns the distribution, whose batch is the leading axis."""
    xs = jnp.stack([X, 2 * X, -X])
    q = jax.jit(jax.vmap(lambda x: family(run, x, THETA)))(xs)
    z, log_q = q.sample_and_log_prob(seed=key, sample_shape=(2,))
    assert z.shape == (2, 3, 4, 1)
    assert log_q.shape == (2, 3)
    np.testing.assert_allclose(jax.vmap(q.log_prob)(z), log_q, rtol=1e-5)
    for i in range(3):
        alone = family(run, xs[i], THETA)
        np.testing.assert_allclose(alone.log_prob(z[0, i]), log_q[0, i], rtol=1e-5)
        np.testing.assert_allclose(q.marginals()[0][i], alone.marginals()[0], atol=1e-6)


@pytest.mark.usefixtures("unchecked")
def test_a_path_of_the_wrong_shape():
    q = family(vj.sequences.kalman_smoother, X, THETA)
    with pytest.raises(
        ValueError, match=r"\(4, 1\), got \(2, 4, 1\); for several draws use jax.vmap"
    ):
        q.log_prob(jnp.zeros((2, 4, 1)))
