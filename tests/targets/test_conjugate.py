"""targets.conjugate: collapsing by each conditional gives the closed-form marginal likelihood, in value and in slope, at any b."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.scipy.special import betaln, gammaln
from jax.scipy.stats import beta, dirichlet, gamma, norm, poisson

import vijax as vj
from tests import oracles
from tests.marks import some

conjugate = vj.targets.conjugate
NOISE = np.random.default_rng(0)
DESIGN = NOISE.normal(size=(12, 3))
Y = DESIGN @ [0.5, -1.0, 0.2] + 0.3 * NOISE.normal(size=12)
X = NOISE.normal(size=(7, 2)) + [0.5, -2.0]
COUNTS = np.array([[3.0, 0.0, 5.0], [1.0, 1.0, 0.0]])
Z = np.array([0.4, -0.3])


def inverse_gamma(v, a, b):
    return a * jnp.log(b) - gammaln(a) - (a + 1) * jnp.log(v) - b / v


def normals(y, mean, scale):
    return jnp.sum(norm.logpdf(y, mean, scale), -1)


# --- each: log p(x, z, b), p(b | x, z), and log p(x, z) written down; z [2] sets a parameter of the prior or of the noise


def of_coins(like):
    s, f = np.array([3.0, 0.0], like), np.array([2.0, 4.0], like)
    joint = lambda z, b: beta.logpdf(b, jnp.exp(z), 2.0) + s * jnp.log(b) + f * jnp.log1p(-b)
    given = lambda z: conjugate.beta_bernoulli(jnp.exp(z), 2.0, successes=s, failures=f)
    return joint, given, lambda z: betaln(jnp.exp(z) + s, 2.0 + f) - betaln(jnp.exp(z), 2.0)


def of_counts(like):
    x, e = (
        np.array([[3.0, 0.0], [1.0, 6.0], [0.0, 2.0]], like),
        np.array([1.0, 2.0, 0.5], like)[:, None],
    )
    n, t = x.sum(0), e.sum()
    joint = lambda z, b: (
        gamma.logpdf(b, jnp.exp(z), scale=1 / 1.3) + jnp.sum(poisson.logpmf(x, b[None] * e), 0)
    )
    given = lambda z: conjugate.gamma_poisson(jnp.exp(z), 1.3, total=n, exposure=t)

    def exact(z):
        a = jnp.exp(z)
        of_data = jnp.sum(x * jnp.log(e) - gammaln(x + 1), 0)
        return of_data + gammaln(a + n) - gammaln(a) + a * jnp.log(1.3) - (a + n) * jnp.log(1.3 + t)

    return joint, given, exact


def of_categories(like):
    c = COUNTS.astype(like)
    weights = lambda z: jnp.exp(z)[:, None] * np.array([[1.0, 0.5, 2.0]], like)
    joint = lambda z, b: jax.vmap(dirichlet.logpdf)(b, weights(z)) + jnp.sum(c * jnp.log(b), -1)
    given = lambda z: conjugate.dirichlet_multinomial(weights(z), counts=c)

    def exact(z):
        a = weights(z)
        whole = gammaln(jnp.sum(a, -1)) - gammaln(jnp.sum(a + c, -1))
        return whole + jnp.sum(gammaln(a + c) - gammaln(a), -1)

    return joint, given, exact


def of_normals(like):
    x, n = X.astype(like), len(X)

    def joint(z, b):
        scale = jax.lax.rsqrt(b["precision"])
        prior = gamma.logpdf(b["precision"], 2.0, scale=1 / jnp.exp(z)) + norm.logpdf(
            b["mean"], z, scale / 0.5
        )
        return prior + jnp.sum(norm.logpdf(x, b["mean"][None], scale[None]), 0)

    given = lambda z: conjugate.normal_gamma(z, 0.25, 2.0, jnp.exp(z), x=x)

    def exact(z):
        """One multivariate t, as a product of Gaussian integrals with the mean's variance in the covariance."""
        covariance = np.eye(n) + np.ones((n, n)) / 0.25
        square = jnp.einsum("ib,ij,jb->b", x - z[None], np.linalg.inv(covariance), x - z[None])
        constant = (
            gammaln(2.0 + n / 2)
            - gammaln(2.0)
            - 0.5 * np.linalg.slogdet(covariance)[1]
            - n / 2 * np.log(2 * np.pi)
        )
        return constant + 2.0 * z - (2.0 + n / 2) * jnp.log(jnp.exp(z) + 0.5 * square)

    return joint, given, exact


def of_regression(like):
    design, y = DESIGN.astype(like), Y.astype(like)
    scale, loc = np.array([1.0, 0.7, 2.0], like), 0.2
    noise = lambda z: jnp.exp(z)
    means = lambda b: jnp.einsum("nd,bd->bn", design, b)
    joint = lambda z, b: (
        normals(b, loc, scale[None]) + normals(y[None], means(b), noise(z)[:, None])
    )
    given = lambda z: conjugate.linear_regression(design, y, noise=noise(z), loc=loc, scale=scale)

    def one(z):
        covariance = design * scale**2 @ design.T + jnp.exp(2 * z) * np.eye(len(y))
        return jax.scipy.stats.multivariate_normal.logpdf(y, design.sum(1) * loc, covariance)

    return joint, given, jax.vmap(one)


def of_unknown_noise(like):
    design, y, n = DESIGN.astype(like), Y.astype(like), len(Y)
    means = lambda b: jnp.einsum("nd,bd->bn", design, b)

    def joint(z, b):
        scale = jnp.sqrt(b["variance"])[:, None]
        prior = inverse_gamma(b["variance"], 2.5, 0.8) + normals(
            b["weights"], 0.2, scale * jnp.exp(z)[:, None]
        )
        return prior + normals(y[None], means(b["weights"]), scale)

    def given(z):
        scale = jnp.broadcast_to(jnp.exp(z)[:, None], (2, 3))
        return conjugate.linear_regression_unknown_noise(
            design, y, a=2.5, b=0.8, loc=0.2, scale=scale
        )

    def one(z):
        covariance = jnp.exp(2 * z) * design @ design.T + np.eye(n)
        off = y - design.sum(1) * 0.2
        square = off @ jnp.linalg.solve(covariance, off)
        constant = (
            gammaln(2.5 + n / 2)
            - gammaln(2.5)
            - 0.5 * jnp.linalg.slogdet(covariance)[1]
            - n / 2 * np.log(2 * np.pi)
        )
        return constant + 2.5 * np.log(0.8) - (2.5 + n / 2) * jnp.log(0.8 + 0.5 * square)

    return joint, given, jax.vmap(one)


MODELS = {
    "beta_bernoulli": of_coins,
    "gamma_poisson": of_counts,
    "dirichlet_multinomial": of_categories,
    "normal_gamma": of_normals,
    "linear_regression": of_regression,
    "linear_regression_unknown_noise": of_unknown_noise,
}


@oracles.exact
def marginal(name, z):
    exact = MODELS[name](np.float64)[2]
    return jax.jit(lambda z: (exact(z), jax.grad(lambda z: jnp.sum(exact(z)))(z)))(z)


def check(name, key, dtype, tolerance):
    """Hold two keys to the closed form, and see that the conditional of another z makes two keys disagree: the control."""
    joint, given, _ = MODELS[name](dtype)
    z = Z.astype(dtype)

    @jax.jit
    def found(key, z):
        target = vj.targets.collapse(joint, given, key=key)
        wrong = vj.targets.collapse(joint, lambda z: given(z + 1), key=key)
        return (target(z), jax.grad(lambda z: jnp.sum(target(z)))(z)), wrong(z)

    seen = [found(jax.random.fold_in(key, i), z) for i in range(2)]
    for right, _ in seen:
        for f, e in zip(right, marginal(name, z), strict=True):
            np.testing.assert_allclose(f, e, rtol=tolerance, atol=tolerance)
    assert np.abs(seen[0][1] - seen[1][1]).max() > 1e-2


@pytest.mark.parametrize("name", some(MODELS, "gamma_poisson"))
def test_the_marginal_is_the_closed_form_at_any_b(name, key):
    check(name, key, np.float32, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_marginal_is_the_closed_form_in_double_precision(name, key, x64):
    check(name, key, np.float64, 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_draws_have_the_density_they_say(name, key):
    """E[p₀(b)/p(b)] = 1 for another member p₀ of the family, whatever the model is.

    At 20,000 draws, within five standard errors; the control is a ratio of densities shifted by a tenth of a nat.
    """
    _, given, _ = MODELS[name](np.float32)
    p, other = (given(jnp.asarray(Z + shift, jnp.float32)) for shift in (0.0, 0.05))

    @jax.jit
    def seen(key):
        b, log_p = p.sample_and_log_prob(seed=key, sample_shape=(20_000,))
        return log_p, jax.vmap(p.log_prob)(b), jax.vmap(other.log_prob)(b)

    log_p, again, of_other = seen(key)
    np.testing.assert_allclose(log_p, again, rtol=1e-5, atol=1e-5)
    ratio = np.exp(np.asarray(of_other, np.float64) - np.asarray(log_p, np.float64))
    error = ratio.std(0) / np.sqrt(len(ratio))
    assert np.all(np.abs(ratio.mean(0) - 1) < 5 * error)
    assert np.all(np.abs(np.exp(0.1) * ratio.mean(0) - 1) > 5 * error)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["normal_gamma", "linear_regression"])
def test_a_vmap_over_what_builds_one_gives_a_batch(name, key):
    _, given, _ = MODELS[name](np.float32)
    z = jnp.asarray(Z, jnp.float32)
    z = jnp.stack([z, z + 0.5])
    many = jax.vmap(given)(z)
    b, log_p = jax.vmap(lambda p: p.sample_and_log_prob(seed=key, sample_shape=()))(many)
    for i in range(2):
        found, log_one = given(z[i]).sample_and_log_prob(seed=key, sample_shape=())
        jax.tree.map(lambda f, e, i=i: np.testing.assert_allclose(f, e[i], rtol=2e-5), found, b)
        np.testing.assert_allclose(log_one, log_p[i], rtol=2e-5, atol=2e-5)


def test_second_derivatives(x64):
    """As a Laplace approximation of a collapsed target needs them."""
    joint, given, exact = of_counts(np.float64)
    collapsed = vj.targets.collapse(joint, given)
    hessian = lambda f: jax.jit(jax.hessian(lambda z: jnp.sum(f(z))))(Z)
    np.testing.assert_allclose(hessian(collapsed), hessian(exact), atol=1e-9)


@pytest.mark.slow
def test_extremes(key):
    """A concentration of .001 draws zeros in single precision, and few data say nothing: neither makes the target nan."""
    few = conjugate.beta_bernoulli(1e-3, 1e-3, successes=0.0, failures=0.0)
    joint = lambda z, b: beta.logpdf(b, 1e-3, 1e-3)
    value = lambda key: vj.targets.collapse(joint, lambda z: few, key=key)(0.0)
    np.testing.assert_allclose(jax.vmap(value)(jax.random.split(key, 8)), 0.0, atol=1e-4)
    none = conjugate.normal_gamma(0.3, 0.5, 2.0, 1.0, x=np.zeros((0,)))
    np.testing.assert_allclose(np.stack(none.posterior), [0.3, 0.5, 2.0, 1.0], rtol=1e-6)
    rates = conjugate.gamma_poisson(1e-4, 1.0, total=0.0, exposure=0.0).sample_and_log_prob(
        seed=key, sample_shape=(64,)
    )
    assert np.all(np.isfinite(rates[1]))


def test_more_weights_than_data(x64):
    """The prior's precision keeps the posterior proper; checked against SciPy's evidence."""
    design, y = DESIGN[:2], Y[:2]
    joint = lambda z, b: normals(b, 0.0, 1.0) + normals(y, design @ b, z)
    given = lambda z: conjugate.linear_regression(design, y, noise=z, loc=0.0, scale=1.0)
    expected = scipy.stats.multivariate_normal.logpdf(
        y, np.zeros(2), design @ design.T + 0.25 * np.eye(2)
    )
    np.testing.assert_allclose(vj.targets.collapse(joint, given)(0.5), expected, rtol=1e-12)


@pytest.mark.usefixtures("unchecked")
def test_refusals():
    with pytest.raises(ValueError, match=r"counts and concentration must be \[\*batch, s\]"):
        conjugate.dirichlet_multinomial(jnp.ones(3), counts=COUNTS)
    with pytest.raises(ValueError, match=r"design must be \[n, d\] and y \[\*batch, n\]"):
        conjugate.linear_regression(DESIGN, Y[:-1], noise=1.0, loc=0.0, scale=1.0)
    with pytest.raises(ValueError, match="d = 3"):
        conjugate.linear_regression(DESIGN, Y, noise=1.0, loc=0.0, scale=np.ones(2))
    with pytest.raises(ValueError, match="leading axis of data"):
        conjugate.normal_gamma(0.0, 1.0, 1.0, 1.0, x=2.0)
