"""The ladder of Rao-Blackwell: bounds of a ridge regression of the diabetes data, fitted, against their exact optima."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.stats import norm
from sklearn.datasets import load_diabetes

import vijax as vj
from vijax import bounds, draws, families, gradients
from vijax.solvers import maximize

X, Y = (np.asarray(a, np.float64) for a in load_diabetes(return_X_y=True))
X, Y = (X - X.mean(0)) / X.std(0), (Y - Y.mean()) / Y.std()
N, D = X.shape
SCALES = {"log_s": np.float64(-0.3), "log_t": np.float64(-1.0)}
ALL = {**SCALES, "w": np.zeros(D)}

LOG_EVIDENCE = -491.883911
# The optima, by L-BFGS on the closed forms below; `all` is over one Gaussian of all twelve.
OPTIMUM = {
    "collapsed": -491.898949,
    "all": -491.955783,
    "blocks": -492.028513,
    "diagonal": -495.001160,
}
CLOSE = 2e-3
STEPS = 2000


def log_joint(z, w):
    """y ~ N(Xw, s²), w ~ N(0, t²), log s and log t ~ N(0, 1)."""
    scales = norm.logpdf(z["log_s"]) + norm.logpdf(z["log_t"])
    prior = jnp.sum(norm.logpdf(w, 0.0, jnp.exp(z["log_t"])))
    return scales + prior + jnp.sum(norm.logpdf(Y, jnp.asarray(X) @ w, jnp.exp(z["log_s"])))


def naive(z):
    return log_joint(z, z["w"])


def collapsed(z):
    return vj.targets.collapse_gaussian(log_joint, jnp.zeros(D))[0](z)


# --- exact values, in NumPy


def marginal(log_s, log_t):
    """log p(y, log s, log t), from the eigenvalues of XᵀX."""
    values, vectors = np.linalg.eigh(X.T @ X)
    along = (vectors.T @ (X.T @ Y)) ** 2
    s2, t2 = np.exp(2 * log_s), np.exp(2 * log_t)
    spread = s2[..., None] + t2[..., None] * values
    log_det = np.log(spread).sum(-1) + (N - D) * 2 * log_s
    square = (Y @ Y - (t2[..., None] * along / spread).sum(-1)) / s2
    return -0.5 * (N * np.log(2 * np.pi) + log_det + square + log_s**2 + log_t**2) - np.log(
        2 * np.pi
    )


def collapsed_bound(mean, cov):
    """E_q[log p(y, z)] + H[q] of a Gaussian q(log s, log t), by Gauss and Hermite."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = np.outer(weights, weights).ravel() / weights.sum() ** 2
    e = np.stack(np.meshgrid(nodes, nodes, indexing="ij"), -1).reshape(-1, 2)
    z = mean + e @ np.linalg.cholesky(cov).T
    return weights @ marginal(z[:, 0], z[:, 1]) + entropy(cov)


def entropy(cov):
    return 0.5 * (np.linalg.slogdet(cov)[1] + len(cov) * np.log(2 * np.pi * np.e))


def gaussian_bound(mean, cov):
    """The ELBO of a Gaussian q(log s, log t, w): E[exp(-2a) g(w)] is E[g] of a Gaussian moved by -2 Cov(w, a)."""
    w, spread = mean[2:], cov[2:, 2:]
    at = [w - 2 * cov[2:, i] for i in (0, 1)]
    precision = [np.exp(-2 * mean[i] + 2 * cov[i, i]) for i in (0, 1)]
    data = (
        -0.5 * precision[0] * (((Y - X @ at[0]) ** 2).sum() + np.trace(X.T @ X @ spread))
        - N * mean[0]
    )
    prior = -0.5 * precision[1] * (at[1] @ at[1] + np.trace(spread)) - D * mean[1]
    scales = -0.5 * (mean[:2] @ mean[:2] + cov[0, 0] + cov[1, 1])
    return data + prior + scales - 0.5 * (N + D + 2) * np.log(2 * np.pi) + entropy(cov)


def moments(params):
    """Mean and covariance of a Gaussian family at `params`, or of a dict of families in the order of its leaves."""
    if "loc" not in params:
        parts = [moments(params[name]) for name in ALL]
        blocks = np.zeros((D + 2, D + 2))
        ends = np.cumsum([0] + [len(m) for m, _ in parts])
        for (_, cov), start, end in zip(parts, ends[:-1], ends[1:], strict=True):
            blocks[start:end, start:end] = cov
        return np.concatenate([m for m, _ in parts]), blocks
    flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    mean, unit = flat(params["loc"]), np.eye(flat(params["loc"]).size)
    if "lower" in params:
        unit[np.tril_indices(len(mean), -1)] = params["lower"]
    root = np.exp(flat(params["log_scale"]))[:, None] * unit
    return mean, root @ root.T


# --- fits as one writes them


@partial(jax.jit, static_argnums=(0, 1, 2))
def fit(log_joint, dist, draw, start, steps=STEPS):
    """Climb the ELBO by Adam, without the score of q, 32 draws to a step."""
    objective = gradients.dreg(bounds.elbo, draw=draw)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.03, STEPS))

    def step(i, state):
        params, moments = state
        loss = lambda p: -objective(jax.random.key(i), log_joint, dist(p), num_samples=32).value
        updates, moments = optimizer.update(jax.grad(loss)(params), moments)
        return optax.apply_updates(params, updates), moments

    return jax.lax.fori_loop(0, steps, step, (start, optimizer.init(start)))[0]


MEAN_FIELD, FULL = families.mean_field(), families.full_rank()
PARTS = {"log_s": MEAN_FIELD, "log_t": MEAN_FIELD, "w": FULL}


def product(params):
    """q(log s) q(log t) N(w; full), a dict of distributions."""
    return {name: PARTS[name].dist(params[name]) for name in PARTS}


RUNGS = {  # a distribution of its parameters, where they start, and how to draw
    "diagonal": (MEAN_FIELD.dist, lambda: MEAN_FIELD.init(None, ALL), draws.sobol),
    "blocks": (
        product,
        lambda: {name: PARTS[name].init(None, ALL[name]) for name in PARTS},
        draws.iid,
    ),
    "all": (FULL.dist, lambda: FULL.init(None, ALL), draws.sobol),
}


def check(found, expected):
    """Within CLOSE of the best there is, and not above it: both are exact."""
    assert found <= expected + 1e-6, f"{found} is above the optimum {expected}"
    assert found >= expected - CLOSE, f"{found} is more than {CLOSE} below {expected}"


def test_log_evidence(x64):
    """By quadrature of the marginal, which is what the collapsed target is."""
    a, b = np.linspace(-1.0, 0.4, 401), np.linspace(-5.0, 3.0, 801)
    on_grid = marginal(*np.meshgrid(a, b, indexing="ij"))
    found = (
        np.log(np.exp(on_grid - LOG_EVIDENCE).sum() * (a[1] - a[0]) * (b[1] - b[0])) + LOG_EVIDENCE
    )
    np.testing.assert_allclose(found, LOG_EVIDENCE, atol=1e-6)
    points = {"log_s": jnp.array([-0.8, -0.3, 0.5]), "log_t": jnp.array([1.0, -1.5, -3.0])}
    np.testing.assert_allclose(
        jax.jit(jax.vmap(collapsed))(points),
        marginal(*(np.asarray(p) for p in points.values())),
        rtol=1e-12,
    )


@pytest.mark.slow
def test_collapsed_rung(x64):
    """The same draws at every step make the bound a function without noise, which L-BFGS climbs in a few tens of steps."""
    objective = gradients.reparam(bounds.elbo, draw=draws.sobol)
    bound = lambda params: (
        objective(jax.random.key(0), collapsed, FULL.dist(params), num_samples=256).value
    )
    climbed = jax.jit(lambda start: maximize(bound, start, slope=1e-5))(FULL.init(None, SCALES))
    assert climbed.slope <= 1e-5
    mean, cov = moments(climbed.params)
    check(collapsed_bound(mean, cov), OPTIMUM["collapsed"])
    # The control: a q whose log t is three tenths too narrow.
    with pytest.raises(AssertionError, match="below"):
        check(collapsed_bound(mean, cov * np.outer([1, 0.7], [1, 0.7])), OPTIMUM["collapsed"])


@pytest.mark.slow
@pytest.mark.parametrize("name", list(RUNGS))
def test_rung(x64, name):
    dist, start, draw = RUNGS[name]
    params = fit(naive, dist, draw, start())
    mean, cov = moments(params)
    found = gaussian_bound(mean, cov)
    check(found, OPTIMUM[name])
    # Once w is integrated out, the same q(log s, log t) is never looser.
    assert found < collapsed_bound(mean[:2], cov[:2, :2]) < LOG_EVIDENCE
    # The controls: no other rung's number would pass, nor a fit that has not arrived.
    for other in set(OPTIMUM) - {name}:
        with pytest.raises(AssertionError, match="above|below"):
            check(found, OPTIMUM[other])
    with pytest.raises(AssertionError, match="below"):
        check(gaussian_bound(*moments(fit(naive, dist, draw, start(), 100))), OPTIMUM[name])


def test_order_of_the_rungs():
    assert (
        OPTIMUM["diagonal"]
        < OPTIMUM["blocks"]
        < OPTIMUM["all"]
        < OPTIMUM["collapsed"]
        < LOG_EVIDENCE
    )


def test_closed_form_of_the_rungs(x64):
    """The exact bound that judges the fits is what vijax's own draws average to, for a q without structure."""
    rng = np.random.default_rng(0)
    params = FULL.init(None, ALL)
    params["lower"] = jnp.asarray(0.3 * rng.normal(size=params["lower"].shape))
    evaluate = jax.jit(
        lambda key: gradients.reparam(bounds.elbo, draw=draws.sobol)(
            key, naive, FULL.dist(params), num_samples=2048
        )
    )
    found = [float(evaluate(jax.random.key(i)).value) for i in range(8)]
    error = np.std(found, ddof=1) / np.sqrt(8)
    assert error < 0.05
    assert (
        abs(np.mean(found) - gaussian_bound(*moments(params))) < 8 * error
    )  # eight scrambles, Student's t with 7 df
