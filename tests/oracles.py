"""Exact answers, in float64 and without vijax: closed forms, quadrature and enumeration."""

from functools import wraps

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import betaln, gammaln, logsumexp
from jax.scipy.stats import bernoulli, norm


def _double(a):
    is_float = isinstance(a, (np.ndarray, jax.Array, np.generic)) and jnp.issubdtype(
        a.dtype, jnp.floating
    )
    return np.asarray(a, np.float64) if is_float else a


def exact(function):
    """Run in float64 with NumPy's ranks, on NumPy leaves and back."""

    @wraps(function)
    def run(*args, **kwargs):
        with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
            args, kwargs = jax.tree.map(_double, (args, kwargs))
            return jax.tree.map(np.asarray, function(*args, **kwargs))

    return run


# --- any expectation of k draws: a sum over all k-tuples of points (grid points of a density, or the states of a pmf)


def interval(low, high, points):
    """Return a trapezoid grid; for smooth densities that vanish at its ends the error is far below 1e-9."""
    x = np.linspace(low, high, points)
    return x, np.full(points, x[1] - x[0])


def cross(*axes):
    """Return the product of several (points, volumes): a tuple of coordinate arrays [s], and the volumes [s]."""
    mesh = np.meshgrid(*(x for x, _ in axes), indexing="ij")
    volumes = np.stack(np.meshgrid(*(v for _, v in axes), indexing="ij")).prod(0)
    return tuple(m.ravel() for m in mesh), volumes.ravel()


def expectation(bound, log_p, log_q, volumes, k):
    """E[bound(log w of k independent draws)], by summing over all k-tuples of the s points.

    Args:
        bound: [k, tuples, *batch] -> [tuples, *batch].
        log_p, log_q: [s, *batch] at the points, differentiable in whatever they close over.
        volumes: [s], 1 for states.
        k: the number of draws.
    """
    points = np.indices((len(volumes),) * k).reshape(k, -1)
    log_mass = log_q + jnp.log(volumes).reshape(-1, *(1,) * (log_q.ndim - 1))
    value = bound((log_p - log_q)[points])
    # A point without mass counts for nothing, whatever its weight is.
    mass = jnp.exp(log_mass[points].sum(0))
    return jnp.sum(jnp.where(mass > 0, mass * jnp.where(mass > 0, value, 0.0), 0.0), 0)


@exact
def value_and_grad(bound, log_p, log_q, points, volumes, k, params):
    """Return Σ_batch E[bound] and its gradient; log_p(params, point) and log_q(params, point) are [*batch]."""

    def total(params):
        at = lambda log: jax.vmap(lambda z: log(params, z))(points)
        return jnp.sum(expectation(bound, at(log_p), at(log_q), volumes, k))

    return jax.jit(jax.value_and_grad(total))(params)


@exact
def values_and_slopes(bounds, log_p, log_q, points, volumes, k, params):
    """Return Σ_batch E[bound] of several bounds, [n], and their gradients, leaves [n, ...]: `value_and_grad` in one program."""

    def totals(params):
        at = lambda log: jax.vmap(lambda z: log(params, z))(points)
        log_p_at, log_q_at = at(log_p), at(log_q)
        return jnp.stack(
            [jnp.sum(expectation(bound, log_p_at, log_q_at, volumes, k)) for bound in bounds]
        )

    return jax.jit(lambda params: (totals(params), jax.jacfwd(totals)(params)))(params)


# --- bounds as the papers write them, in SciPy's words


def np_log_mean(log_w, log_weights=None):
    log_weights = np.full(log_w.shape, -np.log(len(log_w))) if log_weights is None else log_weights
    return np.asarray(logsumexp(log_w + log_weights, axis=0))


# --- Gaussian-Gaussian: z ~ N(theta, 1), x | z ~ N(z, 1); q = N(loc, exp(log_scale)^2)


def gaussian_log_joint(theta, x, z):
    return norm.logpdf(z, theta, 1.0) + norm.logpdf(x, z, 1.0)


def gaussian_posterior(theta, x):
    """Return the loc and the scale of p(z | x)."""
    return (x + theta) / 2, np.full(np.shape(x), np.sqrt(0.5))


@exact
def gaussian_evidence(theta, x):
    return norm.logpdf(x, theta, np.sqrt(2.0))


@exact
def gaussian_elbo(params, x):
    """Σ_batch ELBO and its gradient in {"q": {"loc", "log_scale"}, "theta"}."""

    def elbo(params):
        m, log_s = params["q"]["loc"], params["q"]["log_scale"]
        spread = jnp.exp(2 * log_s)
        expected = -jnp.log(2 * jnp.pi) - 0.5 * (
            (m - params["theta"]) ** 2 + (x - m) ** 2 + 2 * spread
        )
        return jnp.sum(expected + 0.5 * jnp.log(2 * jnp.pi * jnp.e) + log_s)

    return jax.value_and_grad(elbo)(params)


# --- log-normal weights: log w ~ N(log_z - s^2/2, s^2), as from posterior N(m, 1) and q = N(m + s, 1)


@exact
def log_normal_power_mean(k, n, log_z, s):
    """E[1/n log mean_k w^n], exact at any k from E log S = ∫ (e^-t - E[e^-tS]) / t dt, with t = e^u.

    n = 1 is iwae, n = 1 - alpha renyi, n itself cubo; the limit in k is log_z + (n - 1) s^2/2.
    """
    e = np.linspace(-12, 12, 2401)
    mass = np.exp(norm.logpdf(e)) * (e[1] - e[0])
    l = n * (log_z - s**2 / 2 + s * e)
    u = np.linspace(-60, 60, 6001)
    laplace = lambda u: jnp.sum(mass * jnp.exp(-jnp.exp(u + l)))
    phi = jax.lax.map(laplace, u, batch_size=200)
    return (jnp.sum(jnp.exp(-jnp.exp(u)) - phi**k) * (u[1] - u[0]) - jnp.log(k)) / n


def iwae_bias_series(k, moments):
    """log E w + the terms in 1/k and 1/k^2 of E[iwae_k] - log E w (Nowozin, 2018), from central moments of w."""
    m, m2, m3 = moments
    return np.log(m) - m2 / (2 * m**2) / k + (m3 / (3 * m**3) - 3 * m2**2 / (4 * m**4)) / k**2


def log_normal_moments(s):
    """Mean and second and third central moments of a log-normal weight with mean 1."""
    a = np.exp(s**2)
    return 1.0, a - 1, a**3 - 3 * a + 2


# --- conjugate pairs


@exact
def beta_bernoulli_evidence(a, b, successes, trials):
    return betaln(a + successes, b + trials - successes) - betaln(a, b)


@exact
def gamma_poisson_evidence(a, b, x):
    """x | rate ~ Poisson(rate), rate ~ Gamma(a, b): negative binomial."""
    return (
        gammaln(a + x) - gammaln(a) - gammaln(x + 1) + a * jnp.log(b / (b + 1)) - x * jnp.log(b + 1)
    )


@exact
def regression_evidence(design, y, noise):
    """y ~ N(design w, noise^2), w ~ N(0, 1)."""
    covariance = design @ design.T + noise**2 * np.eye(len(y))
    return jax.scipy.stats.multivariate_normal.logpdf(y, np.zeros(len(y)), covariance)


def regression_posterior(design, y, noise):
    """Return the mean and covariance of p(w | y)."""
    precision = np.eye(design.shape[1]) + design.T @ design / noise**2
    covariance = np.linalg.inv(precision)
    return covariance @ design.T @ y / noise**2, covariance


# --- Gaussian -> Bernoulli -> Gaussian: every conditional, of q and of p, depends on the earlier draws


def chain_log_joint(theta, x, z):
    a, b, c = z["a"], z["b"], z["c"]
    log_p = norm.logpdf(a, theta["loc"], 1.0) + bernoulli.logpmf(b, jax.nn.sigmoid(a))
    return log_p + norm.logpdf(c, a + theta["jump"] * b, 1.0) + norm.logpdf(x, c, 1.0)


def chain_log_q(q, z):
    a, b, c = z["a"], z["b"], z["c"]
    log_q = norm.logpdf(a, q["loc"], jnp.exp(q["log_scale"]))
    log_q += bernoulli.logpmf(b, jax.nn.sigmoid(q["logit"] + q["slope"] * a))
    return log_q + norm.logpdf(c, q["keep"] * a + q["jump"] * b, jnp.exp(q["log_noise"]))


# --- a linear autoencoder's optimum: probabilistic PCA


@exact
def ppca(x, latents, noise=None, beta=1.0):
    """Return the mean log-likelihood of data x [n, d], the noise's variance, and the squared singular values of the loading.

    Of the maximum over loadings, and over the noise where it is None; those of the optimum under β at a given noise,
    max(λ - β σ², 0), where the likelihood is that of the loading.
    """
    off = x - jnp.mean(x, 0)
    eigenvalues = jnp.linalg.eigvalsh(off.T @ off / len(x))[::-1]
    kept, left = eigenvalues[:latents], eigenvalues[latents:]
    noise = jnp.mean(left) if noise is None else noise
    squares = jnp.maximum(kept - beta * noise, 0.0)
    model = jnp.concatenate([squares + noise, jnp.full(left.shape, noise)])
    log_p = -0.5 * jnp.sum(jnp.log(2 * jnp.pi * model) + eigenvalues / model)
    return log_p, noise, squares


# --- one Gaussian for two humps, ½ N(-a, 1) + ½ N(a, 1)


def two_humps(z, a):
    return np.logaddexp(-0.5 * (z - a) ** 2, -0.5 * (z + a) ** 2) - np.log(2 * np.sqrt(2 * np.pi))


def least_divergence_from_two_humps(a):
    """Return the least KL(N(m, s²) ‖ humps) over m and s, by a trapezoid and a simplex from both kinds of optimum."""
    from scipy.optimize import minimize

    e = np.linspace(-12, 12, 1201)
    mass = np.exp(-0.5 * e**2) / np.sqrt(2 * np.pi)

    def divergence(at):
        z = at[0] + np.exp(at[1]) * e
        log_q = -0.5 * e**2 - at[1] - 0.5 * np.log(2 * np.pi)
        return np.trapezoid(mass * (log_q - two_humps(z, a)), e)

    starts = ((0.0, 0.5 * np.log(1 + a**2)), (a, 0.0))
    how = {"xatol": 1e-9, "fatol": 1e-12, "maxiter": 4000}
    found = (minimize(divergence, x, method="Nelder-Mead", options=how) for x in starts)
    return min(float(result.fun) for result in found)
