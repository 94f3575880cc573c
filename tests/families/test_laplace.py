"""laplace: exact for Gaussians in either precision, irises at their published evidence, hostile starts, refusals."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.scipy.stats import norm, t

import vijax as vj
from tests.families.test_gaussian import mean_and_covariance
from tests.targets import test_iris as iris
from tests.targets.test_iris import VALUES
from vijax.families import laplace

LIKE = {"a": jnp.float32(0.0), "b": jnp.zeros(3)}


def spread_out():
    """Return the mean and precision of a correlated Gaussian whose latents differ in scale by 10⁷."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(4, 4)) + 2 * np.eye(4)
    scale = np.array([1e-4, 1.0, 30.0, 1e3])
    covariance = scale[:, None] * (root @ root.T) * scale
    return np.array([1e-3, -2.0, 7.0, 5e3]), covariance


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_gaussians_are_exact(dtype, key, x64):
    """From zero: mean, covariance and evidence, which is 0, in units of the posterior's own spread."""
    mean, covariance = spread_out()
    root = jnp.asarray(np.linalg.inv(np.linalg.cholesky(covariance)), dtype)

    def log_joint(z):
        white = root @ (ravel_pytree(z)[0] - jnp.asarray(mean, dtype))
        return {"quadratic": -0.5 * jnp.sum(white**2), "rest": jnp.sum(jnp.log(jnp.diag(root)))}

    family = laplace(log_joint)

    @jax.jit
    def run(like):
        params = family.init(key, like)
        q = family.dist(params)
        return params, sum(log_joint(params["loc"]).values()) - q.log_prob(params["loc"])

    params, evidence = run(jax.tree.map(lambda leaf: leaf.astype(dtype), LIKE))
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(params))
    found_mean, found = mean_and_covariance("full_rank", params)
    spread = np.sqrt(np.diag(covariance))
    close = 2e-3 if dtype == jnp.float32 else 1e-9
    np.testing.assert_allclose((found_mean - mean) / spread, 0, atol=close)
    np.testing.assert_allclose((found - covariance) / np.outer(spread, spread), 0, atol=close)
    np.testing.assert_allclose(
        evidence, 2 * np.log(2 * np.pi), atol=5e-3 if dtype == jnp.float32 else 1e-9
    )


@pytest.mark.slow
@pytest.mark.parametrize("v", list(VALUES))
def test_irises(v, key, x64):
    """The published evidence, as the docstring writes it: log p(x, mode) + d/2 log 2π - ½ log |Λ|."""
    log_joint = lambda w: iris.log_joint(v, w)
    family = laplace(log_joint)
    params = jax.jit(lambda: family.init(key, jnp.zeros(3, jnp.float64)))()
    mode = params["loc"]
    evidence = log_joint(mode) - family.dist(params).log_prob(mode)
    np.testing.assert_allclose(evidence, VALUES[v]["laplace"], atol=1e-6)
    assert np.abs(jax.grad(log_joint)(mode)).max() < 1e-9
    written_out = (
        log_joint(mode)
        + 1.5 * np.log(2 * np.pi)
        - 0.5 * np.linalg.slogdet(-jax.hessian(log_joint)(mode))[1]
    )
    np.testing.assert_allclose(evidence, written_out, atol=1e-9)


def valley(z):
    """Rosenbrock's curved valley; log-concave nowhere near (-1.2, 1)."""
    return -(100 * (z[1] - z[0] ** 2) ** 2 + (1 - z[0]) ** 2)


@pytest.mark.slow
def test_far_starts_arrive(key):
    """Down a curved valley, from a saturated logistic tail, and from a t's tail, where Newton's step goes uphill-side down."""
    targets = {
        "valley": (valley, jnp.array([-1.2, 1.0]), jnp.ones(2), 1e-3),
        "logistic": (
            lambda z: jnp.sum(20 * jax.nn.log_sigmoid(z) + jax.nn.log_sigmoid(-z)),
            jnp.full(1, -60.0),
            np.log([20.0]),
            1e-3,
        ),
        "t": (lambda z: jnp.sum(t.logpdf(z, 4.0)), jnp.array([50.0]), jnp.zeros(1), 1e-3),
    }
    for name, (target, start, mode, close) in targets.items():
        params = jax.jit(laplace(target).init)(key, start)
        np.testing.assert_allclose(params["loc"], mode, atol=close, err_msg=name)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(params))
    # The control: with two steps it does not arrive, and the slope says so.
    params = jax.jit(laplace(valley, steps=2).init)(key, jnp.array([-1.2, 1.0]))
    assert np.abs(jax.grad(valley)(params["loc"])).max() > 0.1


@pytest.mark.slow
def test_no_mode(key):
    """At a saddle, on a plane, up a slope: finite scales, as documented; where nothing is finite: like, and nan."""
    saddle = jax.jit(laplace(lambda z: z[0] ** 2 - 2 * z[1] ** 2).init)(key, jnp.zeros(2))
    np.testing.assert_allclose(jnp.exp(saddle["log_scale"]), [2**-0.5, 0.5], rtol=1e-5)
    plane = jax.jit(laplace(lambda z: 0 * jnp.sum(z)).init)(key, jnp.ones(2))
    np.testing.assert_allclose(jnp.exp(plane["log_scale"]), 1.0, rtol=1e-5)
    slope = jax.jit(laplace(lambda z: jnp.sum(z), steps=3).init)(key, jnp.ones(2))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(slope))
    ridge = jax.jit(laplace(lambda z: norm.logpdf(z[0] + z[1])).init)(key, jnp.ones(2))
    assert jnp.exp(ridge["log_scale"][0]) > 100
    nowhere = jax.jit(laplace(lambda z: jnp.sum(jnp.log(z))).init)(key, -jnp.ones(2))
    np.testing.assert_array_equal(nowhere["loc"], -jnp.ones(2))
    assert np.all(np.isnan(nowhere["log_scale"]))


@pytest.mark.slow
def test_fifty_latents_and_a_vmap(key):
    """A regression of 50 coefficients in float32: a finite elbo near the evidence; a batch of starts is a loop."""
    design = jax.random.normal(key, (80, 50))
    log_joint = lambda z: jnp.sum(jax.nn.log_sigmoid(design @ z)) + jnp.sum(norm.logpdf(z))
    family = laplace(log_joint)

    @jax.jit
    def run(starts):
        params = jax.vmap(family.init, (None, 0))(key, starts)
        one = jax.tree.map(lambda leaf: leaf[0], params)
        q = family.dist(one)
        value = vj.gradients.reparam(vj.bounds.elbo)(key, log_joint, q, num_samples=100).value
        return params, value, log_joint(one["loc"]) - q.log_prob(one["loc"])

    starts = jnp.stack([jnp.zeros(50), jnp.full(50, 3.0)])
    params, elbo, evidence = run(starts)
    assert abs(elbo - evidence) < 6.0
    np.testing.assert_allclose(params["loc"][0], params["loc"][1], atol=1e-3)
    alone = jax.jit(family.init)(key, starts[1])
    np.testing.assert_allclose(alone["loc"], params["loc"][1], atol=1e-4)


def test_refusals(key):
    with pytest.raises(ValueError, match="takes a key: fix the key"):
        laplace(vj.targets.keyed(lambda z, key: jnp.sum(z)))
    with pytest.raises(ValueError, match="steps must be at least 1"):
        laplace(valley, steps=0)
    with pytest.raises(
        ValueError, match=r"log_joint\(z\) has shape \(3,\) where laplace needs \(\)"
    ):
        laplace(lambda z: -(z**2)).init(key, jnp.zeros(3))
    with pytest.raises(TypeError, match="float32 or float64, got bfloat16"):
        laplace(lambda z: -jnp.sum(z**2)).init(key, jnp.zeros(3, jnp.bfloat16))
    with pytest.raises(TypeError, match="Gaussian family"):
        laplace(lambda z: -jnp.sum(z**2)).init(key, jnp.arange(3))


# --- whether it stands on a mode

SCHOOLS = np.array([28.0, 8, -3, 7, -1, 1, 18, 12]), np.array([15.0, 10, 16, 11, 9, 11, 10, 18])


def schools(z, centred):
    y, s = (jnp.asarray(a, z["mu"].dtype) for a in SCHOOLS)
    tau = jnp.exp(z["log_tau"])
    theta = z["theta"] if centred else z["mu"] + tau * z["theta"]
    prior = norm.logpdf(z["mu"], 0, 5) - jnp.log1p((tau / 5) ** 2) + z["log_tau"]
    spread = norm.logpdf(theta, z["mu"], tau) if centred else norm.logpdf(z["theta"])
    return prior + jnp.sum(spread) + jnp.sum(norm.logpdf(y, theta, s))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_posterior_without_a_mode_is_told(dtype, x64):
    """The centered eight schools: finite, and not a mode; the non-centered ones are silent, and on one."""
    like = {k: jnp.zeros(n, dtype) for k, n in (("mu", ()), ("log_tau", ()), ("theta", (8,)))}
    centred, free = (lambda z, c=c: schools(z, c) for c in (True, False))
    with pytest.warns(UserWarning, match="laplace did not arrive at a mode.*non-centered"):
        params = laplace(centred).init(None, like)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(params))
    at = vj.families.standing(centred, params)
    assert not at.arrived
    assert at.curvature < 1e-3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        params = laplace(free).init(None, like)
    at = jax.jit(lambda p: vj.families.standing(free, p))(params)
    assert at.arrived
    assert at.decrement < 1e-6
    # Elsewhere than on it, the decrement is what there is left to climb; under jit nobody warns.
    away = {**params, "loc": {**params["loc"], "mu": params["loc"]["mu"] + 0.5}}
    left = free(params["loc"]) - free(away["loc"])
    at = vj.families.standing(free, away)
    assert not at.arrived
    np.testing.assert_allclose(at.decrement, left, rtol=0.2)


@pytest.mark.slow
def test_standing_at_saddles_planes_and_nowhere():
    """Each is told from a mode, and a mode from each: also one whose scales differ by 10⁷."""
    at = lambda f, z: vj.families.standing(f, {"loc": z})
    assert at(lambda z: -(z[0] ** 2) - 1e14 * z[1] ** 2, jnp.zeros(2)).arrived
    assert not at(lambda z: z[0] ** 2 - 2 * z[1] ** 2, jnp.zeros(2)).arrived
    assert not at(lambda z: 0 * jnp.sum(z), jnp.ones(2)).arrived
    assert not at(lambda z: norm.logpdf(z[0] + z[1]), jnp.zeros(2)).arrived
    assert not at(lambda z: jnp.sum(jnp.log(z)), -jnp.ones(2)).arrived
    with pytest.warns(UserWarning, match="not finite at `like`"):
        laplace(lambda z: jnp.sum(jnp.log(z))).init(None, -jnp.ones(2))


def test_through_ordered_cut_points():
    """An ordered regression from three starts ends on one mode, with no slope left."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=200)
    grade = jnp.asarray(np.digitize(x + 0.8 * rng.logistic(size=200), [-1.0, 0.0, 1.5]))

    def log_joint(z):
        ends = jnp.concatenate([jnp.array([-30.0]), z["cuts"], jnp.array([30.0])])
        high, low = (ends[grade + i] - z["slope"] * x.astype(np.float32) for i in (1, 0))
        within = (
            jnp.log(-jnp.expm1(low - high)) + jax.nn.log_sigmoid(high) + jax.nn.log_sigmoid(-low)
        )
        return norm.logpdf(z["slope"]) + jnp.sum(norm.logpdf(z["cuts"], 0, 5)) + jnp.sum(within)

    kinds = {"slope": None, "cuts": vj.targets.constraints.ordered}
    target = vj.targets.transform(log_joint, kinds).log_joint
    starts = jnp.array([[-2.0, 0.0, 0.0], [0.0, -4.0, 3.0], [1.0, 1.0, 1.0]])

    @jax.jit
    @jax.vmap
    def run(cuts):
        params = laplace(target).init(None, {"slope": jnp.float32(0.0), "cuts": cuts})
        return params["loc"], vj.families.standing(target, params), jax.grad(target)(params["loc"])

    mode, at, slope = run(starts)
    assert np.all(at.arrived)
    np.testing.assert_allclose(mode["cuts"], mode["cuts"][:1].repeat(3, 0), atol=1e-4)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(slope)) < 0.01


def test_a_separated_regression_has_no_mode():
    """It went to 16 with a scale of e⁸ and said nothing."""
    x = jnp.array([-2.0, -1.0, 1.0, 2.0])
    separated = lambda b: jnp.sum((x > 0) * x * b - jax.nn.softplus(x * b))
    with pytest.warns(UserWarning, match="did not arrive at a mode.*smallest curvature 0 of 1"):
        vj.families.laplace(separated).init(None, jnp.array(0.5))
