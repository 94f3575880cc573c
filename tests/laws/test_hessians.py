"""Hessians of whatever is not an estimator: bounds, families, targets and sequences, against differences of gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import vijax as vj
from tests import table
from tests.laws.test_second_derivatives import assert_differentiable_twice
from tests.marks import some

pytestmark = pytest.mark.usefixtures("x64", "unchecked")
B, F, N, T, S = vj.bounds, vj.families, vj.numerics, vj.targets, vj.sequences
C, M = T.constraints, T.minorizers
KEY = jax.random.key(0)
LOG_W = np.array([-0.96, -1.16, -2.36, 0.4])
WEIGHTS = np.array([0.1, 0.4, 0.3, 0.2])
LIKE = np.array([0.3, -0.2])
X, SIGN = np.array([0.5, -0.3, 1.2]), np.array([1.0, -1.0, 1.0])
PAIR = np.array([1.4, 0.2])


def with_impossible(function):
    """Return a function of log-weights with one that is -inf beside them."""
    return lambda x: jnp.sum(jnp.sin(function(jnp.append(x, -jnp.inf))[..., None][:4]))


def prior(z, b):
    return norm.logpdf(b, 0.0, jnp.exp(z[1]))


def minorized(minorizer, predictor):
    def target(z):
        found = T.minorize(minorizer, lambda z, b: predictor(b * z[0]), prior, 0.0, steps=60)
        return found.collapsed(z)

    return target


def regression(z, b):
    return jnp.sum(norm.logpdf(X, b * z[0], jnp.exp(z[1]))) + norm.logpdf(b, 0.0, 1.0)


def counts(z, b):
    return jnp.sum(X * b - jnp.exp(b * z[0])) + prior(z, b)


def two_components(z, c):
    return jnp.log(jnp.array([0.3, 0.7]))[c] + norm.logpdf(X, z[c], 1.0)


def expected(params):
    q = F.mean_field().dist(params)
    site = lambda x: jax.nn.log_sigmoid(SIGN * x)
    return T.gauss_hermite(site, lambda z: X * z[0] + z[1], q)(LIKE)


def transformed(z):
    whole = {
        "p": C.interval(0.0, 1.0),
        "s": C.simplex,
        "o": C.ordered,
        "g": C.positive,
        "l": C.cholesky_correlation,
    }

    def log_joint(z):
        vectors = jnp.sum(z["s"] ** 2 * jnp.arange(1, 4)) + jnp.sum(z["o"] ** 2)
        root = jnp.sum(z["l"] * jnp.arange(9.0).reshape(3, 3))
        return 5 * jnp.log(z["p"]) + 2 * jnp.log1p(-z["p"]) - vectors + z["g"] - z["g"] ** 2 - root

    return T.transform(log_joint, whole).log_joint(z)


FREE = {
    "p": np.array(0.3),
    "s": np.array([0.2, -0.4]),
    "o": np.array([0.2, 0.1, -0.3]),
    "g": np.array(0.2),
    "l": np.array([0.3, -0.1, 0.4]),
}


def hidden_markov(impossible):
    def evidence(a):
        transition = jax.nn.log_softmax(a, -1)
        if impossible:
            transition = transition + jnp.array([[0.0, -jnp.inf], [0.0, 0.0]])
        likelihood = norm.logpdf(np.linspace(-1, 1, 5)[:, None], np.array([[-1.0, 1.0]]), 1.0)
        return S.hmm(np.log([0.5, 0.5]), transition, likelihood).log_evidence

    return evidence


def kalman(function):
    def evidence(z):
        eye = jnp.eye(2)
        turn = jnp.array([[1.0, 0.3], [0.0, 1.0]]) * z[0]
        model = S.LinearGaussian(
            jnp.zeros(2),
            eye,
            turn,
            jnp.exp(z[1]) * eye,
            jnp.ones((1, 2)),
            jnp.exp(-z[1]) * jnp.ones((1, 1)),
        )
        return function(model, jnp.linspace(-1.0, 1.0, 4)[:, None]).log_evidence

    return evidence


def family_cases():
    """Return the density of each family at a point, and a function of a draw and its density."""
    gauss = F.mean_field(scale=0.5)
    families = {
        "mean_field": gauss,
        "full_rank": F.full_rank(scale=0.5),
        "low_rank": F.low_rank(rank=1, scale=0.5),
        "student_t": F.student_t(degrees=5.0),
        "spline_coupling": F.spline_coupling(layers=1, bins=4, hidden=(3,)),
        "inverse_autoregressive": F.inverse_autoregressive(layers=1, hidden=(3,)),
        "mixture": F.mixture(gauss, components=2),
    }
    for name, family in families.items():
        params = jax.eval_shape(lambda f=family: f.init(KEY, jnp.asarray(LIKE)))
        sized = lambda a: 0.3 * np.cos(1.0 + np.arange(a.size)).reshape(a.shape)
        params = jax.tree.map(sized, params)
        yield f"{name}, density", (lambda p, f=family: f.dist(p).log_prob(LIKE + 0.37), params)
        if name != "mixture":  # whose draws carry no path

            def draw(p, f=family):
                z, log_q = f.dist(p).sample_and_log_prob(seed=KEY)
                return jnp.sum(jnp.sin(z)) + log_q

            yield f"{name}, draw", (draw, params)


CASES = {
    **{row.name: (row.function, LOG_W) for row in table.BOUNDS if row.name != "elbo"},
    **{
        f"weights of {row.name}": (
            lambda w, row=row: row.function(jnp.asarray(LOG_W), weights=w),
            WEIGHTS,
        )
        for row in table.BOUNDS
        if row.weighted and row.power != 0.0 and row.moves
    },
    "log_mean_exp": (with_impossible(N.log_mean_exp), LOG_W),
    "log_normalized": (with_impossible(N.log_normalized), LOG_W),
    "normalized_weights": (with_impossible(N.normalized_weights), LOG_W),
    "leave_one_out": (with_impossible(N.leave_one_out_log_mean_exp), LOG_W),
    "transform": (transformed, FREE),
    "collapse_gaussian": (lambda z: T.collapse_gaussian(regression, 0.0)[0](z), PAIR),
    "laplace": (lambda z: T.collapse_laplace(counts, 0.0)[0](z), PAIR),
    "enumerate": (T.enumerate(two_components, 2, plate=(3,)).log_joint, LIKE),
    "gauss_hermite": (expected, {"loc": LIKE, "log_scale": np.array([-0.3, 0.1])}),
    "minorize, logistic": (minorized(M.jaakkola_jordan, lambda b: SIGN * X * b), PAIR),
    "minorize, Student-t": (minorized(M.student_t(4.0), lambda b: X - b), PAIR),
    "hmm": (hidden_markov(impossible=False), np.array([[0.2, -0.4], [0.5, 0.1]])),
    "hmm with an impossible step": (
        hidden_markov(impossible=True),
        np.array([[0.2, -0.4], [0.5, 0.1]]),
    ),
    "kalman_filter": (kalman(S.kalman_filter), np.array([0.8, -0.2])),
    "parallel_kalman_filter": (kalman(S.parallel_kalman_filter), np.array([0.8, -0.2])),
    **dict(family_cases()),
}
QUICK = (
    "iwae",
    "weights of iwae",
    "log_mean_exp",
    "mean_field, draw",
    "hmm with an impossible step",
)


@pytest.mark.parametrize("name", some(CASES, *QUICK))
def test_hessians_are_the_slopes_of_gradients(name):
    assert_differentiable_twice(*CASES[name])
