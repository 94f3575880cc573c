"""Conjugates of large shapes keep their digits in float32, values and slopes, and what a stated joint loses is seen."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special as special
from jax.scipy.special import gammaln
from jax.scipy.stats import gamma, norm, poisson

import vijax as vj
from vijax.targets import conjugate
from vijax.targets._rising import log1p_less, log_rising, log_rising_excess

SHAPES = np.array([1e-6, 1e-3, 0.1, 0.5, 1.0, 3.0, 7.0, 50.0, 1e3, 1e6, 1e8])
COUNTS = np.array([1e-4, 0.5, 1.0, 3.0, 100.0, 1e6])


def grid(dtype):
    a, n = np.meshgrid(SHAPES.astype(dtype), COUNTS.astype(dtype), indexing="ij")
    return a.ravel(), n.ravel()


@jax.jit
def derivatives(a, n):
    both = jax.vmap(jax.value_and_grad(log_rising, (0, 1)))(a, n)
    return both, jax.vmap(jax.grad(jax.grad(log_rising)))(a, n)


@pytest.mark.parametrize(("dtype", "close"), [(np.float32, 5e-6), (np.float64, 1e-8)])
def test_rising_factorials_and_their_derivatives(dtype, close, x64):
    """Against SciPy in float64; log Γ subtracted in the same floats is the control. SciPy's own rounding is 1e-8."""
    a, n = grid(dtype)
    (value, slopes), second = derivatives(a, n)
    a, n = a.astype(np.float64), n.astype(np.float64)
    # Where n is small, or a large, SciPy's differences cancel: the integral of digamma instead.
    nodes, weights = np.polynomial.legendre.leggauss(20)
    inner = a[:, None] + 0.5 * n[:, None] * (1 + nodes)
    integral = lambda f: 0.5 * n * (f(inner) @ weights)
    gentle = n < 0.3 * a
    expected = np.where(
        gentle, integral(special.digamma), special.gammaln(a + n) - special.gammaln(a)
    )
    np.testing.assert_allclose(value, expected, rtol=close, atol=0.05 * close)
    trigamma = lambda x: special.polygamma(1, x)
    expected = np.where(gentle, integral(trigamma), special.digamma(a + n) - special.digamma(a))
    np.testing.assert_allclose(slopes[0], expected, rtol=close)
    np.testing.assert_allclose(slopes[1], special.digamma(a + n), rtol=close)
    third = lambda x: special.polygamma(2, x)
    expected = np.where(gentle, integral(third), trigamma(a + n) - trigamma(a))
    np.testing.assert_allclose(second, expected, rtol=close)
    plain = gammaln(jnp.float32(1e6 + 3)) - gammaln(jnp.float32(1e6))
    assert abs(plain / (3 * np.log(1e6)) - 1) > 1e-3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_excess_over_a_power_and_its_slope(dtype, x64):
    """log Γ(a + n)/Γ(a)aⁿ = Σᵢ log (1 + i/a) for whole n, and the slope in a, of order n²/a²."""
    a, n = (x.ravel() for x in np.meshgrid(SHAPES[2:].astype(dtype), [2.0, 5.0, 40.0]))
    n = n.astype(dtype)
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(log_rising_excess)))(a, n)
    i = np.arange(40)[:, None]
    a, used = a.astype(np.float64), i < n
    close = 1e-4 if dtype == np.float32 else 1e-10
    expected = np.sum(np.where(used, np.log1p(i / a), 0), 0)
    np.testing.assert_allclose(value, expected, rtol=close)
    expected = -np.sum(np.where(used, i / a**2 / (1 + i / a), 0), 0)
    np.testing.assert_allclose(slope, expected, rtol=close)
    x = np.array([-0.9, -1e-3, 1e-8, 0.3, 0.6, 1e6], dtype)
    series = np.log1p(x.astype(np.float64)) - x
    series = np.where(np.abs(x) < 1e-6, -0.5 * x.astype(np.float64) ** 2 * (1 - x / 1.5), series)
    np.testing.assert_allclose(
        log1p_less(jnp.asarray(x)), series, rtol=1e-6 if dtype == np.float32 else 1e-9
    )


X = np.array([4.0, 0.0, 9.0, 3.0, 8.0, 1.0])
SIZES = (1e2, 1e4, 1e6, 1e8)


def models(dtype):
    """Return, of one number `size` or more, log marginals of every conjugate whose shapes may be large."""
    x = jnp.asarray(X, dtype)
    share = jnp.array([0.2, 0.3, 0.5], dtype)
    design = jnp.stack([jnp.ones(6, dtype), x / 5], 1)
    of = {
        "beta_bernoulli": lambda a, b: conjugate.beta_bernoulli(a, b, successes=x, failures=x + 2),
        "gamma_poisson": lambda a, b: conjugate.gamma_poisson(a, b / 4, total=x, exposure=1.5),
        "gamma_poisson_by_mean": lambda a, b: conjugate.gamma_poisson_by_mean(
            2 + 0 * b, a, total=x, exposure=1.5
        ),
        "dirichlet_multinomial": lambda a, b: conjugate.dirichlet_multinomial(
            a * share, counts=x[:3]
        ),
        "normal_gamma": lambda a, b: conjugate.normal_gamma(1.0, 0.5, a, b, x=x),
        "linear_regression_unknown_noise": lambda a, b: conjugate.linear_regression_unknown_noise(
            design, x, a=a, b=b, loc=0.1, scale=2.0
        ),
    }
    return {name: lambda s, f=f: jnp.sum(f(s[0], s[1]).log_marginal) for name, f in of.items()}


def found(dtype):
    at = jnp.asarray([[size, 1.1 * size] for size in SIZES], dtype)
    of = models(dtype)
    run = jax.jit(lambda at: {k: jax.vmap(jax.value_and_grad(f))(at) for k, f in of.items()})
    return run(at)


def test_large_shapes_match_float64(x64):
    """Values and slopes in both parameters, to 1e-4 relative, at shapes of 100 to 1e8."""
    exact = found(np.float64)
    for name, (value, slope) in found(np.float32).items():
        np.testing.assert_allclose(value, exact[name][0], rtol=1e-4, err_msg=name)
        for one, right, size in zip(slope, exact[name][1], SIZES, strict=True):
            # One number that shares out all concentrations has slopes of 13 / size that cancel.
            atol = 1e-5 / size if name == "dirichlet_multinomial" else 0.0
            np.testing.assert_allclose(one, right, rtol=1e-4, atol=atol, err_msg=name)


# --- the case of the negative binomial: a shape theta and a mean

Y, MEAN = jnp.array([13.0, 2.0]), 8.0


def exact_counts(theta):
    """Return the log-probability and its slope in log theta, by products in float64."""
    y = np.asarray(Y, np.float64)
    i = np.arange(13)[:, None]
    used = i < y
    value = np.sum(np.where(used, np.log1p(i / theta), 0), 0) - (theta + y) * np.log1p(MEAN / theta)
    value = np.sum(value + y * np.log(MEAN) - special.gammaln(y + 1))
    r = MEAN / theta
    slope = -np.sum(np.where(used, i / theta / (1 + i / theta), 0), 0) + y * r / (1 + r)
    slope += theta * (r / (1 + r) - np.log1p(r))
    return value, np.sum(slope)


def constants(z):
    return -jnp.sum(gammaln(Y + 1))


def by_mean(z):
    given = conjugate.gamma_poisson_by_mean(MEAN, jnp.exp(z), total=Y, exposure=1)
    return conjugate.independent(given)


def by_rate(z):
    theta = jnp.exp(z)
    return conjugate.independent(
        conjugate.gamma_poisson(theta, theta / MEAN, total=Y, exposure=1.0)
    )


def stated(z, b):
    theta = jnp.exp(z)
    prior = gamma.logpdf(b, theta, scale=MEAN / theta)
    return jnp.sum(prior + poisson.logpmf(Y, b))


@pytest.mark.parametrize("theta", [1e2, 1e4, 1e6, 1e8])
def test_negative_binomial_counts(theta):
    """The slope in log theta, 4e-6 at 1e6, is small beside its parts: by the mean it is right to 1e-4."""
    z = jnp.float32(np.log(theta))
    value, slope = exact_counts(float(np.exp(np.float64(z))))
    got = jax.jit(jax.value_and_grad(vj.targets.collapse(constants, by_mean)))(z)
    np.testing.assert_allclose(got[0], value, rtol=1e-5)
    np.testing.assert_allclose(got[1], slope, rtol=1e-4)
    got = jax.jit(jax.value_and_grad(vj.targets.collapse(constants, by_rate)))(z)
    np.testing.assert_allclose(got[0], value, rtol=1e-5)
    # Two slopes of size 5 that cancel: no float32 holds what is left.
    np.testing.assert_allclose(got[1], slope, atol=1e-5)


@pytest.mark.slow
def test_lost_digits_are_seen(key):
    """A stated joint is right at a shape of 10, and at 1e6 off by more than a nat in some draw, which the error says."""
    keys = jax.random.split(key, 16)

    def error(z):
        return jax.vmap(lambda k: vj.targets.collapse_error(k, stated, by_rate, z))(keys)

    assert np.abs(error(jnp.float32(np.log(10.0)))).max() < 1e-3
    assert np.abs(error(jnp.float32(np.log(1e6)))).max() > 0.1
    for z in (np.log(10.0), np.log(1e3)):
        value = vj.targets.collapse(stated, by_rate)(jnp.float32(z))
        np.testing.assert_allclose(value, exact_counts(np.exp(z))[0], atol=0.02)


# --- what a conditional hands over


@pytest.mark.slow
def test_one_latent_of_many_rates(key):
    """The cure that the error names works; the marginal, the density and draws are sums over the event axes."""
    z = jnp.float32(0.3)
    many = lambda z: conjugate.gamma_poisson(jnp.exp(z), jnp.exp(z) / MEAN, total=Y, exposure=1.0)
    for log_joint in (stated, constants):
        with pytest.raises(ValueError, match=r"targets.conjugate.independent\(conditional, 1\)"):
            vj.targets.collapse(log_joint, many)(z)
    given = by_rate(z)
    b, log_p = given.sample_and_log_prob(seed=key, sample_shape=(3,))
    assert b.shape == (3, 2)
    np.testing.assert_allclose(log_p, many(z).log_prob(b[0]).sum() + log_p - log_p[0], rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(given.log_prob)(b), log_p, rtol=1e-5)
    batch = jax.vmap(by_rate)(jnp.stack([z, z + 1]))
    np.testing.assert_allclose(batch.log_marginal[0], many(z).log_marginal.sum(), rtol=1e-5)


def test_no_log_joint_of_b_is_needed():
    """z alone, under a Gaussian conditional and a prior; another conditional has no marginal, and is told so."""
    design, y = jnp.array([[1.0], [0.5], [2.0]]), jnp.array([0.3, -0.2, 1.0])
    given = lambda z: conjugate.linear_regression(design, y, noise=jnp.exp(z), loc=0.0, scale=1.0)
    whole = lambda z, b: (
        norm.logpdf(z) + jnp.sum(norm.logpdf(b)) + jnp.sum(norm.logpdf(y, design @ b, jnp.exp(z)))
    )
    z = jnp.float32(-0.4)
    with pytest.raises(ValueError, match="second argument has a default"):
        vj.targets.collapse(norm.logpdf, given)(z)
    one, two = (vj.targets.collapse(f, given)(z) for f in (lambda z: norm.logpdf(z), whole))
    np.testing.assert_allclose(one, two, rtol=1e-5)
    with pytest.raises(TypeError, match="conditional must be one of targets.conjugate"):
        vj.targets.collapse(lambda z: norm.logpdf(z), lambda z: distrax.Normal(z, 1.0))(z)


@pytest.mark.usefixtures("unchecked")
def test_refusals():
    given = conjugate.gamma_poisson(2.0, 1.0, total=3, exposure=1)
    with pytest.raises(TypeError, match="use distrax.Independent"):
        conjugate.independent(distrax.Normal(jnp.zeros(2), 1.0))
    with pytest.raises(ValueError, match="axes must be at most 0"):
        conjugate.independent(given)


# log marginal and its slope in the first parameter, by mpmath at 50 digits
LARGE_COUNTS = [
    ((1.0, 1.0, 100.0, 1e6), -1031.63234, -8.20545),
    ((1.0, 1.0, 10.0, 1e7), -162.194646, -12.766344),
    ((1.0, 1.0, 1e7, 10.0), -162.194646, 0.9999989),
    ((1.0, 1.0, 0.0, 1e8), -18.4206808, -17.9978964),
    ((1.0, 1.0, 1.0, 1e8), -36.8413615, -16.9978964),
    ((0.5, 0.5, 1.0, 1e7), -25.4426557, -14.6953115),
    ((1.0, 1e8, 0.0, 1e6), -0.00995033085, -0.0099503308),
    ((1e8, 1e8, 3.0, 3.0), -4.1588831, 0.0),
]


def test_large_counts_of_coins_and_categories():
    """Two numbers of 1e8 nats are not subtracted: beta_bernoulli(1, 1) of no success in 1e8 was 0 for -18.4."""

    def coins(a, b, s, f):
        return conjugate.beta_bernoulli(a, b, successes=s, failures=f).log_marginal

    at = jnp.array([row[0] for row in LARGE_COUNTS])
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(coins)))(*at.T)
    np.testing.assert_allclose(value, [row[1] for row in LARGE_COUNTS], rtol=2e-6)
    np.testing.assert_allclose(slope, [row[2] for row in LARGE_COUNTS], rtol=2e-6, atol=1e-12)
    shares = lambda c, n: conjugate.dirichlet_multinomial(c, counts=n).log_marginal
    few = shares(jnp.full(5, 0.01), jnp.array([1e6, 0, 1, 0, 0]))
    np.testing.assert_allclose(few, -20.603902, rtol=1e-6)
    one = jnp.ones(3)
    np.testing.assert_allclose(shares(one, jnp.array([1e7, 1, 0])), -47.6611404, rtol=1e-6)
    # Nothing seen is nothing lost; and a batch of sticks is broken as each by itself.
    assert shares(one, jnp.zeros(3)) == 0
    pair = jnp.stack([jnp.array([1e7, 1, 0]), jnp.array([0, 2.0, 1e7])])
    np.testing.assert_allclose(
        shares(jnp.ones((2, 3)), pair), jax.vmap(lambda n: shares(one, n))(pair)
    )


# (mean, shape, total, exposure), log marginal and its slope in the shape, by mpmath
LARGE_SHARES = [
    ((1e5, 0.1, 5.0, 1.0), -0.304504640, -0.863798224),
    ((1e6, 0.1, 5.0, 1.0), -0.534758563, -3.16633652),
    ((1e7, 1.0, 3.0, 1.0), -14.3263366, -13.2847628),
    ((10.0, 0.1, 5.0, 1e5), -58.0993859, -3.16633652),
    ((10.0, 0.1, 0.0, 1e6), -1.84206810, -17.4206807),
    ((3.0, 2.9, 5.0, 1.0), 2.27999527, 0.0705138680),
    ((3.0, 3.1, 5.0, 1.0), 2.29328212, 0.0625855035),
    ((3.0, 1e8, 5.0, 1.0), 2.49306144, 5.0e-17),
]


def test_counts_far_above_their_shape():
    """mean · exposure is not subtracted from what holds it where it is large: -14 for -14.33, and slopes of half."""

    def counts(shape, mean, n, t):
        return conjugate.gamma_poisson_by_mean(mean, shape, total=n, exposure=t).log_marginal

    mean, shape, n, t = jnp.array([row[0] for row in LARGE_SHARES]).T
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(counts)))(shape, mean, n, t)
    np.testing.assert_allclose(value, [row[1] for row in LARGE_SHARES], rtol=1e-5)
    np.testing.assert_allclose(slope, [row[2] for row in LARGE_SHARES], rtol=1e-5)
