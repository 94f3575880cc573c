"""targets.quadrature: random effects of one and two numbers, their slopes and moments, its own error, and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import gammaln
from jax.scipy.stats import cauchy, norm

import vijax as vj

quadrature, quadrature_error = vj.targets.quadrature, vj.targets.quadrature_error


def binary(dtype, groups=1000, each=8):
    """Return a log joint of groups of binary answers with a random intercept each, and z = (intercept, slope, log sd)."""
    rng = np.random.default_rng(0)
    effect, x = 1.5 * rng.normal(size=groups), rng.normal(size=(groups, each))
    answers = rng.uniform(size=(groups, each)) < 1 / (
        1 + np.exp(-(effect[:, None] + 0.3 + 0.7 * x))
    )
    x, y = jnp.asarray(x, dtype), jnp.asarray(answers, dtype)

    def log_joint(z, b):
        predictor = z[0] + z[1] * x + jnp.exp(z[2]) * b[:, None]
        return norm.logpdf(b) + jnp.sum(y * predictor - jax.nn.softplus(predictor), -1)

    return log_joint, jnp.asarray([0.3, 0.7, 0.4], dtype), jnp.zeros(groups, dtype)


def by_brute_force(log_joint, z, groups):
    """Return log ∫ p db of each group on a fine grid, in the dtype of z: no mode, no curvature."""
    grid = jnp.linspace(-9, 9, 721, dtype=z.dtype)
    log_p = jax.vmap(lambda b: log_joint(z, jnp.full(groups, b, z.dtype)))(grid)
    return jax.nn.logsumexp(log_p, 0) + jnp.log(grid[1] - grid[0])


def total(function):
    return jax.jit(jax.value_and_grad(lambda z: jnp.sum(function(z))))


def test_a_thousand_groups_of_binary_answers(x64):
    """Value to 1e-6 and slopes to 1e-6 relative, where Laplace's approximation is 17 nats off, and 20 in one slope."""
    log_joint, z, like = binary(np.float64)
    expected, slope = total(lambda z: by_brute_force(log_joint, z, 1000))(z)
    value, found = total(quadrature(log_joint, like)[0])(z)
    np.testing.assert_allclose(value, expected, atol=1e-6)
    np.testing.assert_allclose(found, slope, rtol=1e-6)
    value, found = total(vj.targets.collapse_laplace(log_joint, like)[0])(z)
    assert abs(value - expected) > 10
    assert abs(found[2] - slope[2]) > 10


def test_in_single_precision(x64):
    log_joint, z, _ = binary(np.float64, groups=200)
    expected, slope = total(lambda z: by_brute_force(log_joint, z, 200))(z)
    log_joint, z, like = binary(np.float32, groups=200)
    value, found = total(quadrature(log_joint, like)[0])(z)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(found, slope, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_the_error_says_how_far_off_it_is(x64):
    """Of one node, Laplace's approximation, the error to a third; of 24, 1e-9."""
    log_joint, z, like = binary(np.float64, groups=100)
    exact = by_brute_force(log_joint, z, 100)
    assert jnp.abs(jax.jit(quadrature_error(log_joint, like))(z)).max() < 1e-9
    one = jax.jit(quadrature(log_joint, like, nodes=1, steps=20)[0])(z)
    laplace = jax.jit(vj.targets.collapse_laplace(log_joint, like)[0])(z)
    np.testing.assert_allclose(one, laplace, atol=1e-7)
    said = jax.jit(quadrature_error(log_joint, like, nodes=1))(z)
    assert jnp.sum(exact - one) > 1
    np.testing.assert_allclose(jnp.sum(said), jnp.sum(exact - one), rtol=0.4)


def of_a_gamma(a, b):
    return a * b - jnp.exp(b)  # integrates to Γ(a)


def test_derivatives_of_the_nodes_are_those_of_the_integral(x64):
    """Against digamma and its derivative, and against differences of a value whose nodes move."""
    target = quadrature(of_a_gamma, jnp.zeros(()), nodes=40)[0]
    run = jax.jit(lambda a: (*jax.value_and_grad(target)(a), jax.hessian(target)(a)))
    moved = jax.jit(jax.vmap(target))
    forward = jax.jit(lambda a: jax.jvp(target, (a,), (1.0,))[1])
    for a in (2.0, 9.0):
        value, slope, second = run(a)
        np.testing.assert_allclose(value, gammaln(a), atol=1e-6)
        np.testing.assert_allclose(slope, jax.scipy.special.digamma(a), atol=2e-5)
        low, high = moved(jnp.array([a - 1e-4, a + 1e-4]))
        np.testing.assert_allclose(slope, (high - low) / 2e-4, atol=2e-5)
        np.testing.assert_allclose(second, jax.scipy.special.polygamma(1, a), atol=5e-4)
        np.testing.assert_allclose(forward(a), slope)


def two_effects(z, b):
    """Correlated intercepts and slopes of counts: b is {"level": [n], "trend": [n]}."""
    level, trend = b["level"], b["trend"]
    x, y = jnp.array([-1.0, 0.0, 1.5]), jnp.array([[1.0, 2, 6], [0, 1, 0], [3, 1, 1]])
    prior = norm.logpdf(level) + norm.logpdf(trend, 0.6 * level, 0.8)
    rate = z + level[:, None] + trend[:, None] * x[None]
    return prior + jnp.sum(y * rate - jnp.exp(rate), -1)


@pytest.mark.slow
def test_two_numbers_a_group_and_their_moments(x64):
    """Value, slope, mean and covariance against a fine grid; a batch of z by vmap, a jit of it, and draws."""
    like = {"level": jnp.zeros(3), "trend": jnp.zeros(3)}
    target, conditional = quadrature(two_effects, like)
    line = jnp.linspace(-8, 8, 321)
    a, b = (axis.ravel() for axis in jnp.meshgrid(line, line))
    at = lambda a, b: {"level": jnp.full(3, a), "trend": jnp.full(3, b)}

    def exact(z):
        log_p = jax.vmap(lambda a, b: two_effects(z, at(a, b)))(a, b)
        return jax.nn.logsumexp(log_p, 0) + 2 * jnp.log(line[1] - line[0]), jax.nn.softmax(log_p, 0)

    z = jnp.array(0.2)
    expected, weights = jax.jit(exact)(z)
    np.testing.assert_allclose(jax.jit(target)(z), expected, atol=1e-7)
    slope = jax.jit(jax.jacfwd(lambda z: exact(z)[0]))(z)
    np.testing.assert_allclose(jax.jit(jax.jacrev(target))(z), slope, atol=1e-6)
    zs = jnp.array([0.2, -0.5])
    np.testing.assert_allclose(jax.jit(jax.vmap(target))(zs)[0], expected, atol=1e-7)
    given = jax.jit(conditional)(z)
    mean = jnp.stack([a @ weights, b @ weights], -1)
    np.testing.assert_allclose(given.mean["level"], mean[:, 0], atol=1e-6)
    np.testing.assert_allclose(given.mean["trend"], mean[:, 1], atol=1e-6)
    centered = jnp.stack([a, b], -1)[:, None] - mean[None]
    covariance = jnp.einsum("kg,kgi,kgj->gij", weights, centered, centered)
    precision = given.root @ jnp.swapaxes(given.root, -1, -2)
    np.testing.assert_allclose(jnp.linalg.inv(precision), covariance, atol=1e-6)
    draws, log_q = given.sample_and_log_prob(seed=jax.random.key(0), sample_shape=(5,))
    assert draws["level"].shape == (5, 3)
    np.testing.assert_allclose(jax.vmap(given.log_prob)(draws), log_q, rtol=1e-6)


@pytest.mark.slow
def test_under_an_objective():
    """The collapsed target of all groups, with a prior, under reparam(elbo): a gradient that a fit can use."""
    log_joint, z, like = binary(np.float32, groups=20)
    groups = quadrature(log_joint, like, nodes=8, steps=6)[0]
    target = lambda z: jnp.sum(norm.logpdf(z)) + jnp.sum(groups(z))
    family = vj.families.mean_field()
    params = {"loc": z, "log_scale": jnp.full(3, -3.0)}

    @jax.jit
    @jax.grad
    def slope(params):
        objective = vj.gradients.dreg(vj.bounds.iwae)
        return objective(jax.random.key(0), target, family.dist(params), num_samples=2).value

    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(slope(params)))


def test_where_there_is_no_mode():
    """A slope without an end, and groups that read each other's b: nan, as collapse_gaussian and laplace say it."""
    few = {"nodes": 3, "steps": 4}
    endless = jax.jit(quadrature(lambda z, b: z * b, jnp.zeros(2), **few)[0])
    assert np.all(np.isnan(endless(jnp.float32(1.0))))
    apart = lambda z, b: -0.5 * b**2 - z * (b - jnp.mean(b)) ** 2
    coupled = jax.jit(quadrature(apart, jnp.zeros(4), **few)[0])
    assert np.all(np.isnan(coupled(jnp.float32(1.0))))
    assert np.all(np.isfinite(coupled(jnp.float32(0.0))))


def test_refusals():
    with pytest.raises(ValueError, match="b has 9 numbers in each member.*a term for each group"):
        quadrature(lambda z, b: -jnp.sum(b**2), jnp.zeros(9))[0](0.0)
    with pytest.raises(TypeError, match="like must be a pytree of float arrays"):
        quadrature(lambda z, b: -(b**2), 1)
    with pytest.raises(ValueError, match="nodes must be at least 1"):
        quadrature_error(lambda z, b: -(b**2), 0.0, nodes=0)


def test_laplace_of_many_groups_in_double_precision(x64):
    """Every group stands on its mode: none is nan because its curvature was compared beside it."""
    log_joint, z, like = binary(np.float64)
    assert np.all(np.isfinite(jax.jit(vj.targets.collapse_laplace(log_joint, like)[0])(z)))


def two(weight, m1, s1, m2, s2):
    """Return a mixture's log density, whose integral is 1."""
    first = lambda z, b: jnp.log(weight) + norm.logpdf(b, z + m1, s1)
    return lambda z, b: jnp.logaddexp(first(z, b), jnp.log(1 - weight) + norm.logpdf(b, z + m2, s2))


MISSED = {
    "a far peak": (two(0.3, 20, 1, -20, 1), 0.0, -1.204, 0.01),
    "a wide one": (two(0.1, 0, 0.001, 0, 100.0), 0.0, -2.302, 0.05),
    "a heavy tail": (lambda z, b: cauchy.logpdf(b - z), 0.0, -0.1024, 0.005),
    "a long one": (of_a_gamma, 0.01, 4.1309 - 4.5995, 0.02),
}


@pytest.mark.parametrize("name", MISSED)
def test_mass_beyond_the_nodes_is_an_error(name):
    """It was 2e-7 where the value is 1.2 nats off; and stays at rounding where nothing lies beyond."""
    f, z, off, close = MISSED[name]
    error = jax.jit(quadrature_error(f, jnp.full(1, 0.1)))(z)
    np.testing.assert_allclose(error, -off, atol=close)


def test_no_mass_beyond_the_nodes_is_seen_where_there_is_none():
    assert abs(jax.jit(quadrature_error(of_a_gamma, jnp.array(0.1)))(3.0)) < 2e-6
    skewed = lambda z, b: norm.logpdf(b) + 5 * jax.nn.log_sigmoid(3 * b)
    assert abs(jax.jit(quadrature_error(skewed, jnp.array(0.1)))(0.0)) < 2e-6


def test_more_nodes_than_floats_hold():
    """The error of 200 nodes was nan, and so the value of 400."""
    f = lambda z, b: norm.logpdf(b, z, 3.0)
    assert abs(jax.jit(quadrature(f, jnp.array(0.1), nodes=184)[0])(0.0)) < 1e-5
    with pytest.raises(ValueError, match="at most 370 for each number.*184 for an error.*got 400"):
        quadrature(f, jnp.array(0.1), nodes=400)
    with pytest.raises(ValueError, match="got 401"):
        quadrature_error(f, jnp.array(0.1), nodes=200)
