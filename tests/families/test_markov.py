"""markov: the dense Gaussian that its parameters stand for, and the posterior of a Kalman smoother, exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.scipy.stats import multivariate_normal
from scipy import stats

import vijax as vj
from tests.marks import some
from tests.problems import assert_close
from tests.sequences import problem

FAMILY = vj.families.markov(scale=0.5)
PARALLEL = vj.families.markov(scale=0.5, fold=vj.sequences.associative)
# Three numbers a step, in leaves whose order is not that of time
T, D = 4, 3
LIKE = {"a": jnp.zeros((T, 1, 2)), "b": jnp.zeros(T)}


def moved(like, seed, size=0.5):
    """Return params away from their start, so that every entry of the precision is in play."""
    flat, unravel = ravel_pytree(FAMILY.init(None, like))
    return unravel(flat + size * np.random.default_rng(seed).normal(size=flat.size))


def by_time(z):
    """Return LIKE's leaves step by step, [T D]."""
    return jnp.concatenate([z["a"].reshape(T, 2), z["b"].reshape(T, 1)], 1).reshape(-1)


def root(params):
    """Return L, step by step, as the docstring writes the precision: Λ = L Lᵀ, L = diag(s)⁻¹ U."""
    u = jnp.eye(T * D)
    for t in range(T):
        rows, columns = np.tril_indices(D, -1)
        u = u.at[t * D + rows, t * D + columns].set(params["lower"][t])
        if t:
            u = u.at[t * D : t * D + D, (t - 1) * D : t * D].set(params["below"][t - 1])
    return u * jnp.exp(-by_time(params["log_scale"]))[:, None]


def log_density(params, z):
    lower = root(params)
    white = lower.T @ (by_time(z) - by_time(params["loc"]))
    half_log_det = jnp.sum(jnp.log(jnp.diagonal(lower)))
    return half_log_det - 0.5 * jnp.sum(white**2) - 0.5 * T * D * np.log(2 * np.pi)


def dense(params):
    """Return mean and covariance, in the order of LIKE's leaves."""
    lower = np.asarray(root(params))
    order = np.asarray(by_time(jax.tree.unflatten(jax.tree.structure(LIKE), ORDER)))
    covariance = np.empty((T * D, T * D))
    covariance[np.ix_(order, order)] = np.linalg.inv(lower @ lower.T)
    return ravel_pytree(params["loc"])[0], covariance


# Each number's place in the order of the leaves
ORDER = [np.arange(T * 2).reshape(T, 1, 2), np.arange(T * 2, T * 3)]


def test_it_is_the_dense_gaussian(x64):
    """Map of noise, density and its gradient in z and every parameter, entropy, variance; either fold."""
    like = jax.tree.map(lambda a: a.astype(jnp.float64), LIKE)
    params, z = moved(like, 1), jax.tree.map(lambda a: a + 0.3, like)

    @jax.jit
    def look(params, z):
        log_prob = lambda p, z: FAMILY.dist(p).log_prob(z)
        q = FAMILY.dist(params)
        columns = lambda q: jax.vmap(lambda e: ravel_pytree(q.affine(e))[0])(jnp.eye(T * D)).T
        columns = lambda q: jax.vmap(lambda e: ravel_pytree(q.affine(e))[0])(jnp.eye(T * D)).T
        maps = [
            columns(f.dist(params)) - ravel_pytree(params["loc"])[0][:, None]
            for f in (FAMILY, PARALLEL)
        ]
        densities = [jax.value_and_grad(f, (0, 1))(params, z) for f in (log_prob, log_density)]
        return maps, densities, q.entropy(), q.variance(), q.draw(jnp.arange(1.0 * T * D))

    maps, (found, expected), entropy, variance, drawn = look(params, z)
    mean, covariance = dense(params)
    np.testing.assert_allclose(maps[0] @ maps[0].T, covariance, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(maps[1], maps[0], rtol=1e-10, atol=1e-13)
    assert_close(found, expected, rtol=1e-8, atol=1e-10)
    exact = 0.5 * np.linalg.slogdet(2 * np.pi * np.e * covariance)[1]
    np.testing.assert_allclose(entropy, exact, rtol=1e-10)
    np.testing.assert_allclose(ravel_pytree(variance)[0], np.diag(covariance), rtol=1e-9)
    exact = stats.multivariate_normal.logpdf(ravel_pytree(drawn[0])[0], mean, covariance)
    np.testing.assert_allclose(drawn[1], exact, rtol=1e-9)
    # What a chain cannot hold: steps that are not neighbors depend on each other through those between.
    assert np.abs(np.linalg.inv(covariance)[0, 6]) < 1e-9 < 1e-3 < np.abs(covariance[0, 6])


def test_divergences_between_chains(x64):
    """Blocks of several leaves and numbers a step; one number a step stands in tests/gaussians/test_affine.py."""
    like = jax.tree.map(lambda a: a.astype(jnp.float64), LIKE)
    one, other = moved(like, 2), moved(like, 3)
    (m, a), (n, b) = dense(one), dense(other)
    log_det = lambda c: np.linalg.slogdet(c)[1]
    squares = np.trace(np.linalg.solve(b, a)) + (m - n) @ np.linalg.solve(b, m - n)
    expected = 0.5 * (squares - T * D + log_det(b) - log_det(a))
    kl = jax.jit(lambda p, r: FAMILY.dist(p).kl_divergence(PARALLEL.dist(r)))
    np.testing.assert_allclose(kl(one, other), expected, rtol=1e-9)


SHAPES = {"one step": (1, 3), "one number": (5, 1), "both": (1, 1), "a vector": (5,)}


@pytest.mark.parametrize("shape", some(SHAPES.values(), "(1, 3)"))
def test_small_chains(shape, key):
    """Draws are those of the affine map, and their density that of the dense normal, in float32."""
    params = moved(jnp.zeros(shape), 4)

    @jax.jit
    def look(params):
        q = FAMILY.dist(params)
        z, log_q = q.sample_and_log_prob(seed=key, sample_shape=(5,))
        root = jax.jacobian(lambda e: q.affine(e).reshape(-1))(jnp.zeros(q.uniforms))
        return z, log_q, jax.vmap(q.log_prob)(z), root

    z, log_q, again, root = look(params)
    assert z.shape == (5, *shape)
    mean = params["loc"].reshape(-1)
    exact = stats.multivariate_normal.logpdf(np.reshape(z, (5, -1)), mean, root @ root.T)
    np.testing.assert_allclose(log_q, exact, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(again, log_q, rtol=1e-4, atol=1e-4)


def posterior(model, x, dtype):
    """Return params of the smoother's chain, log p(z, x), and log p(x)."""
    model, x = jax.tree.map(lambda a: jnp.asarray(a, dtype), (model, x))
    smoother = vj.sequences.kalman_smoother(model, x)
    log_prior = vj.sequences.autoregressive(
        lambda carry, before, links: ((), step(links[0] @ before + links[1], links[2])),
        (),
        jnp.zeros_like(model.initial_mean),
        prior_links(model, x.shape[0]),
    ).log_prob

    def log_joint(z):
        mean = z @ model.emission.T
        cov = model.emission_cov
        return log_prior(z) + jnp.sum(
            jax.vmap(lambda x, m: multivariate_normal.logpdf(x, m, cov))(x, mean)
        )

    evidence = vj.sequences.kalman_filter(model, x).log_evidence
    return smoother.parameters(), log_joint, evidence


def step(mean, cov):
    scale = jnp.linalg.cholesky(cov)
    params = {
        "loc": mean,
        "log_scale": jnp.log(jnp.diagonal(scale)),
        "lower": (scale / jnp.diagonal(scale)[:, None])[jnp.tril_indices(mean.shape[0], -1)],
    }
    return vj.families.full_rank().dist(params)


def prior_links(model, t):
    d = model.initial_mean.shape[0]
    stack = lambda first, rest: jnp.concatenate(
        [first[None], jnp.broadcast_to(rest[None], (t - 1, *rest.shape))]
    )
    return (
        stack(jnp.zeros((d, d)), model.transition),
        stack(model.initial_mean, jnp.zeros(d)),
        stack(model.initial_cov, model.transition_cov),
    )


@pytest.mark.parametrize("dtype", [pytest.param(jnp.float32, marks=pytest.mark.slow), jnp.float64])
def test_it_holds_the_posterior_of_a_smoother(dtype, key):
    """Every log-weight is log p(x), and dreg's gradient 0; half of the coupling, a control, is a nat below."""
    with jax.enable_x64(dtype == jnp.float64):
        model, x = problem.random_model(5, 12, 2, 2), np.random.default_rng(1).normal(size=(12, 2))
        params, log_joint, evidence = posterior(model, x, dtype)

        @jax.jit
        def look(params):
            objective = vj.gradients.dreg(vj.bounds.elbo)
            value = lambda p: objective(key, log_joint, FAMILY.dist(p), num_samples=3)
            return jax.value_and_grad(lambda p: value(p).value)(params), value(params).draws.log_w

        (_, slope), log_w = look(params)
        tolerance = 1e-11 if dtype == jnp.float64 else 1e-4
        np.testing.assert_allclose(log_w, jnp.broadcast_to(evidence, 3), rtol=0, atol=tolerance)
        assert_close(slope, jax.tree.map(jnp.zeros_like, slope), rtol=0, atol=3 * tolerance)
        assert evidence - look({**params, "below": 0.5 * params["below"]})[0][0] > 0.1


def test_the_nile(key):
    """A hundred steps in float32: log p(x) = -639.712 from every draw."""
    one = np.ones((1, 1))
    model = vj.sequences.LinearGaussian(
        1000 * np.ones(1), 500.0**2 * one, one, 1469.1 * one, one, 15099 * one
    )
    params, log_joint, _ = posterior(model, problem.NILE, jnp.float32)
    q = FAMILY.dist(params)
    drawn = jax.jit(lambda: vj.draws.weigh(key, log_joint, q, num_samples=20).log_w)()
    np.testing.assert_allclose(drawn, -639.71172, rtol=0, atol=2e-3)


def test_members_and_vmap(key):
    """Chains of a batch, each as it is alone; bounds that ask for members apart take them."""
    family = vj.families.members(FAMILY)
    params = jax.tree.map(lambda *p: jnp.stack(p), *(moved(jnp.zeros((3, 2)), s) for s in (1, 2)))

    @jax.jit
    def look(params):
        q = family.dist(params)
        z, log_q = q.sample_and_log_prob(seed=key, sample_shape=(4,))
        alone = jax.vmap(lambda p, z: jax.vmap(FAMILY.dist(p).log_prob)(z), (0, 1), 1)(params, z)
        return z, log_q, alone, q.entropy()

    z, log_q, alone, entropy = look(params)
    assert (z.shape, log_q.shape, entropy.shape) == ((4, 2, 3, 2), (4, 2), (2,))
    np.testing.assert_allclose(alone, log_q, rtol=1e-4, atol=1e-4)
    log_joint = lambda z: -0.5 * jnp.sum(z**2, (-2, -1))
    value = lambda p: vj.gradients.dreg(vj.bounds.iwae)(
        key, log_joint, family.dist(p), num_samples=3
    )
    jax.eval_shape(jax.grad(lambda p: jnp.sum(value(p).value)), params)


def test_the_program_does_not_grow_with_time():
    """One loop for a draw, none for a density; the tree has no loop."""

    def equations(family, t):
        like = jnp.zeros((t, 2))
        program = lambda p: family.dist(p).sample_and_log_prob(seed=jax.random.key(0))[0]
        return str(jax.make_jaxpr(program)(family.init(None, like)))

    short, long = equations(FAMILY, 5), equations(FAMILY, 5000)
    assert short.count("\n") == long.count("\n")
    assert short.count("scan[") == 1
    assert "scan[" not in equations(PARALLEL, 50)
    density = lambda z: FAMILY.dist(FAMILY.init(None, z)).log_prob(z)
    assert "scan[" not in str(jax.make_jaxpr(density)(jnp.zeros((50, 2))))


def test_dtypes_follow_like(key, x64):
    """Half precision runs; the others are told by their shapes."""

    def draw(like):
        return FAMILY.dist(FAMILY.init(None, like)).sample_and_log_prob(seed=key)

    z, log_q = jax.jit(draw)(jnp.zeros((3, 2), jnp.float16))
    assert (z.dtype, log_q.dtype) == (jnp.float16, jnp.float16)
    for dtype in (jnp.float32, jnp.float64):
        z, log_q = jax.eval_shape(draw, jnp.zeros((3, 2), dtype))
        assert (z.dtype, log_q.dtype) == (dtype, dtype)


def test_refusals(key, unchecked):
    with pytest.raises(ValueError, match="scale must be positive"):
        vj.families.markov(scale=0.0)
    with pytest.raises(ValueError, match=r"one axis of time, got a \(4, 2\), b \(\)"):
        FAMILY.init(None, {"a": jnp.zeros((4, 2)), "b": jnp.zeros(())})
    with pytest.raises(ValueError, match="axis of time, got a .4, 2., b .3,."):
        FAMILY.init(None, {"a": jnp.zeros((4, 2)), "b": jnp.zeros(3)})
    with pytest.raises(TypeError, match="cannot hold a leaf of dtype int32"):
        FAMILY.init(None, jnp.zeros((4, 2), int))
    params = FAMILY.init(None, jnp.zeros((4, 2)))
    with pytest.raises(ValueError, match=r"'below' of params has shape \(2, 2, 2\), expected"):
        FAMILY.dist({**params, "below": params["below"][1:]})
    with pytest.raises(TypeError, match="those of families.full_rank"):
        vj.families.full_rank().dist(params)
    with pytest.raises(TypeError, match="those of families.markov"):
        FAMILY.dist(vj.families.full_rank().init(None, jnp.zeros((4, 2))))
