"""Pathfinder: the Gaussians of an L-BFGS history against dense algebra, known posteriors, several modes, failures."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import multivariate_normal, norm

import vijax as vj
from vijax.gaussians import AffineGaussian
from vijax.solvers import Path, Paths, multi_pathfinder, pathfinder, scatter
from vijax.solvers._quasi_newton import History, gaussian, remember

D = 5
RNG = np.random.default_rng(0)
ROOT = RNG.normal(size=(D, D)) + np.diag([0.3, 1.0, 3.0, 10.0, 30.0])
PRECISION = ROOT @ ROOT.T
MEAN = RNG.normal(size=D)
LOG_EVIDENCE = 1.7


def log_joint(z):
    r = jnp.concatenate([z["a"], z["b"][None]]) - MEAN.astype(z["a"].dtype)
    log_det = np.linalg.slogdet(PRECISION)[1]
    p = jnp.asarray(PRECISION, r.dtype)
    return LOG_EVIDENCE - 0.5 * r @ (p @ r) + 0.5 * log_det - 0.5 * D * np.log(2 * np.pi)


def start(value=0.0):
    return {"a": jnp.full(D - 1, value), "b": jnp.asarray(value)}


@pytest.mark.slow
def test_the_factor_is_that_of_dense_bfgs(x64):
    """Six pairs into a history of four, one of them without curvature; then density, mean and variances."""
    found = History(jnp.ones(D), jnp.zeros((4, D)), jnp.zeros((4, D)))
    for i in range(6):
        s = RNG.normal(size=D)
        y = PRECISION @ s * (-1 if i == 3 else 1)
        found = jax.jit(remember)(found, jnp.asarray(s), jnp.asarray(y))
    slope = RNG.normal(size=D)
    q = jax.jit(lambda history: gaussian(jnp.zeros(D), jnp.asarray(slope), history, lambda x: x))(
        found
    )
    h = np.diag(found.alpha)
    for s, y in zip(np.asarray(found.steps), np.asarray(found.slopes), strict=True):
        v = np.eye(D) - np.outer(s, y) / (s @ y)
        h = v @ h @ v.T + np.outer(s, s) / (s @ y)
    assert all(s @ y > 0 for s, y in zip(found.steps, found.slopes, strict=True))
    np.testing.assert_allclose(q.loc, h @ slope, rtol=1e-9)
    np.testing.assert_allclose(q.variance(), np.diag(h), rtol=1e-9)
    foreign = RNG.normal(size=D)
    expected = multivariate_normal.logpdf(foreign, h @ slope, h)
    np.testing.assert_allclose(q.log_prob(jnp.asarray(foreign)), expected, rtol=1e-8)
    e = jnp.asarray(RNG.normal(size=D))
    np.testing.assert_allclose(q.draw(e)[1], q.log_prob(q.affine(e)), rtol=1e-8)
    np.testing.assert_allclose(q.transport(jax.scipy.special.ndtr(e)), q.affine(e), rtol=1e-8)
    # The control: without the refusal, the pair of negative curvature would be in it.
    assert not np.allclose(found.slopes[1], PRECISION @ found.steps[1] * -1)


@pytest.mark.parametrize(("scale", "offset"), [(1e3, 0.0), (1.0, -1e6)])
def test_small_slopes_are_not_the_mode(scale, offset, key):
    """Three sds away, in units that make the slope small, or under a constant that makes log p large, in float32."""
    target = lambda z: offset - 0.5 * jnp.sum(jnp.square(z / scale - 3.0))
    found = jax.jit(lambda key: pathfinder(key, target, jnp.zeros(2), num_samples=50))(key)
    assert found.steps > 0
    np.testing.assert_allclose(found.q.loc, 3 * scale, rtol=0.02)
    np.testing.assert_allclose(jnp.sqrt(found.q.variance()), scale, rtol=0.02)


@pytest.mark.slow
def test_a_gaussian_is_found_with_its_evidence(key, x64):
    """Condition number 10⁴: the ELBO is the evidence to .02, every weight to .3. After one step it is not there."""
    run = jax.jit(
        lambda key, like: pathfinder(key, log_joint, like, num_samples=50, steps=60, history=20)
    )
    found = run(key, start())
    assert isinstance(found, Path)
    assert isinstance(found.q, AffineGaussian)
    np.testing.assert_allclose(found.draws.log_w, LOG_EVIDENCE, atol=0.3)
    np.testing.assert_allclose(found.elbo, LOG_EVIDENCE, atol=0.02)
    mean = jnp.concatenate([found.q.loc["a"], found.q.loc["b"][None]])
    np.testing.assert_allclose(mean, MEAN, atol=1e-3)
    assert 10 < found.steps < 60
    assert jnp.all(found.elbos[found.steps + 1 :] == -jnp.inf)
    assert found.elbos.max() <= LOG_EVIDENCE + 0.02
    early = jax.jit(lambda key, like: pathfinder(key, log_joint, like, num_samples=50, steps=1))(
        key, start()
    )
    assert early.elbo < LOG_EVIDENCE - 1
    # And it is a q like any other, and its own parameters: nothing is left to learn.
    objective = vj.gradients.dreg(vj.bounds.elbo)
    value, slope = jax.jit(
        jax.value_and_grad(lambda q: objective(key, log_joint, q, num_samples=20).value)
    )(found.q)
    np.testing.assert_allclose(value, LOG_EVIDENCE, atol=0.02)
    assert float(jnp.abs(slope.root.log_scale).max()) < 0.3
    wider = found.q.root._replace(log_scale=found.q.root.log_scale + 0.5)
    moved = replace(found.q, root=wider)
    away = jax.jit(jax.grad(lambda q: objective(key, log_joint, q, num_samples=20).value))(moved)
    assert float(jnp.abs(away.root.log_scale).max()) > 1.0
    coupled = vj.gradients.reparam(vj.bounds.iwae, draw=vj.draws.antithetic)
    np.testing.assert_allclose(
        coupled(key, log_joint, found.q, num_samples=8).value, LOG_EVIDENCE, atol=0.2
    )


@pytest.mark.slow
def test_a_vmap_is_a_loop_and_a_bad_start_hurts_itself_alone(key):
    target = lambda z: jnp.where(
        z[0] > 50, -jnp.inf, jnp.sum(norm.logpdf(z, 1.0, jnp.array([0.5, 2.0])))
    )
    one = lambda key, like: pathfinder(key, target, like, num_samples=200, steps=20)
    keys, starts = jax.random.split(key, 3), jnp.array([[0.0, 0.0], [100.0, 0.0], [4.0, -3.0]])
    many = jax.jit(jax.vmap(one))(keys, starts)
    alone = jax.jit(one)(keys[2], starts[2])
    np.testing.assert_allclose(many.elbo[2], alone.elbo, atol=1e-3)
    np.testing.assert_allclose(many.q.loc[2], alone.q.loc, atol=1e-3)
    np.testing.assert_allclose(alone.elbo, 0.0, atol=2e-2)
    assert many.elbos[1].max() == -jnp.inf
    np.testing.assert_allclose(many.q.loc[1], starts[1])
    pool = jax.jit(
        lambda key, starts: multi_pathfinder(key, target, starts, num_samples=200, steps=20)
    )
    pooled = pool(key, starts)
    assert isinstance(pooled, Paths)
    assert pooled.agree.tolist() == [True, False, True]
    np.testing.assert_allclose(pooled.log_evidence, 0.0, atol=2e-2)
    np.testing.assert_allclose(pooled.weights.sum(), 1.0, rtol=1e-5)
    np.testing.assert_allclose(pooled.draws.weights, np.repeat([0.5, 0.0, 0.5], 200) / 200)
    # The path that failed takes no part in what is said of the pool either.
    said = vj.diagnostics.summarize(pooled.draws)
    assert said.verdict == 0
    np.testing.assert_allclose([said.elbo.value, said.log_evidence.value], 0.0, atol=2e-2)
    assert not np.isnan(pooled.z).any()
    assert pooled.khat < 0.7
    nowhere = pool(key, jnp.full((3, 2), 100.0))
    assert nowhere.log_evidence == -jnp.inf
    assert nowhere.khat == jnp.inf
    assert not nowhere.agree.any()


@pytest.mark.slow
def test_modes_keep_their_share(key):
    """0.8 N(-6, 1) + 0.2 N(6, .5²): whatever number of paths ended in each, the evidence and the shares are right.

    The control: weights against each path's own Gaussian give a mode the share of the paths that ended there.
    """
    shares, means, sds = np.array([0.8, 0.2]), np.array([-6.0, 6.0]), np.array([1.0, 0.5])
    target = lambda z: jax.nn.logsumexp(jnp.log(shares) + norm.logpdf(z, means, sds))
    starts = jnp.array([-5.0, 4.0, 5.0, 7.0, 8.0])
    found = jax.jit(lambda key: multi_pathfinder(key, target, starts, num_samples=400, steps=20))(
        key
    )
    np.testing.assert_allclose(found.log_evidence, 0.0, atol=0.01)
    np.testing.assert_allclose(np.mean(np.asarray(found.z) < 0), 0.8, atol=0.01)
    assert found.agree.sum() in (1, 4)
    assert found.apart[0, 1] > 5
    assert found.apart[1:, 1:].max() < 0.5
    own = jax.vmap(lambda q, z: jax.vmap(q.log_prob)(z))(found.q, found.draws.z.reshape(5, -1))
    weights = np.exp(found.draws.log_p - own.reshape(-1))
    assert np.sum(weights[np.asarray(found.draws.z) < 0]) / np.sum(weights) < 0.6


def test_many_dimensions_need_no_square(key):
    """At d = 3000 no array has more than 60 d elements; the second part is the control of the search itself."""
    d = 3000
    target = lambda z: jnp.sum(norm.logpdf(z, 0.0, jnp.linspace(0.5, 2.0, d)))
    largest = lambda text: max(
        np.prod([int(n) for n in s.split(",")]) for s in re.findall(r"f32\[([\d,]+)\]", text)
    )
    run = lambda key, like: pathfinder(key, target, like, num_samples=20, steps=10, history=10)
    assert largest(str(jax.make_jaxpr(run)(key, jnp.zeros(d)))) <= 60 * d
    assert largest(str(jax.make_jaxpr(lambda z: jnp.outer(z, z))(jnp.zeros(d)))) == d * d


def test_scatter(key):
    starts = scatter(key, start(1.0), paths=100, spread=0.5)
    assert starts["a"].shape == (100, D - 1)
    assert 0.5 <= float(starts["b"].min()) < 0.6 < 1.4 < float(starts["b"].max()) <= 1.5
    with pytest.raises(ValueError, match="paths must be at least 1"):
        scatter(key, start(), paths=0)


def test_refusals(key, unchecked):
    target = lambda z: jnp.sum(norm.logpdf(z))
    with pytest.raises(TypeError, match="floats of one dtype"):
        pathfinder(key, target, jnp.arange(3), num_samples=2)
    with pytest.raises(ValueError, match="history must be at least 1"):
        pathfinder(key, target, jnp.zeros(3), num_samples=2, history=0)
    with pytest.raises(TypeError, match="steps must be a Python int"):
        pathfinder(key, target, jnp.zeros(3), num_samples=2, steps=1.5)
    with pytest.raises(ValueError, match="without noise"):
        pathfinder(key, vj.targets.keyed(lambda key, z: target(z)), jnp.zeros(3), num_samples=2)
    noisy = vj.targets.minibatch(target, lambda z: norm.logpdf(jnp.zeros(4), z[0]), num_data=8)
    with pytest.raises(ValueError, match="give it all the data"):
        pathfinder(key, noisy, jnp.zeros(3), num_samples=2)
    with pytest.raises(ValueError, match="leading axis \\[paths\\]"):
        multi_pathfinder(key, target, jnp.zeros(()), num_samples=2)
