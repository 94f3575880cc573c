"""Logistic regression on two irises: the evidence by quadrature, and below it each bound at its published value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm
from sklearn.datasets import load_iris

import vijax as vj
from tests import oracles
from vijax.solvers import maximize

minorizers, targets = vj.targets.minorizers, vj.targets

# Variance of the prior: log Z, and what q or the local bound makes of it.
VALUES = {
    1.0: {
        "log Z": -20.43098324,
        "laplace": -20.445137,
        "full_rank": -20.448807,
        "mean_field": -20.511371,
        "jaakkola_jordan": -21.878791,
        "bohning": -22.852285,
    },
    25.0: {
        "log Z": -15.60270230,
        "laplace": -15.720746,
        "full_rank": -15.683779,
        "mean_field": -15.717841,
        "jaakkola_jordan": -18.330078,
        "bohning": -20.124787,
    },
}


def irises():
    """Versicolor and virginica: petal length and width standardised, and a one, each row times its sign."""
    bunch = load_iris()
    kept = bunch.target > 0
    petals = bunch.data[kept][:, 2:]
    design = np.concatenate([(petals - petals.mean(0)) / petals.std(0), np.ones((100, 1))], 1)
    return design * np.where(bunch.target[kept] == 2, 1.0, -1.0)[:, None]


ROWS = irises()


def predictor(z, w):
    return jnp.asarray(ROWS) @ w


def log_prior(v, w):
    return jnp.sum(norm.logpdf(w, 0.0, jnp.sqrt(v)))


def log_joint(v, w):
    return jnp.sum(jax.nn.log_sigmoid(predictor(v, w))) + log_prior(v, w)


@oracles.exact
def evidence(v, points=61):
    """Log Z on a grid in units of the posterior's own spread, at its mode: errors far below 1e-8."""
    mode = jnp.zeros(3)
    for _ in range(30):
        mode -= jnp.linalg.solve(
            jax.hessian(log_joint, 1)(v, mode), jax.grad(log_joint, 1)(v, mode)
        )
    root = jnp.linalg.inv(jnp.linalg.cholesky(-jax.hessian(log_joint, 1)(v, mode))).T
    axis = np.linspace(-9.0, 9.0, points)
    e = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    densities = jax.lax.map(lambda e: log_joint(v, mode + root @ e), e, batch_size=4096)
    return jax.nn.logsumexp(densities) + jnp.linalg.slogdet(root)[1] + 3 * np.log(axis[1] - axis[0])


@pytest.mark.slow
@pytest.mark.parametrize("v", list(VALUES))
def test_log_evidence_by_quadrature(v):
    np.testing.assert_allclose(evidence(v), VALUES[v]["log Z"], atol=1e-7)


@pytest.mark.slow
def test_local_bounds(x64):
    """Both variances in one program; 20 steps do not arrive where the prior says little."""
    like, v = jnp.zeros(3), jnp.array(list(VALUES))
    made = {
        "laplace": targets.collapse_laplace(log_joint, like)[0],
        "jaakkola_jordan": targets.minorize(
            minorizers.jaakkola_jordan, predictor, log_prior, like, steps=500
        ).collapsed,
        "bohning": targets.minorize(
            minorizers.bohning, predictor, log_prior, like, steps=1500
        ).collapsed,
    }
    short = targets.minorize(
        minorizers.jaakkola_jordan, predictor, log_prior, like, steps=20
    ).collapsed
    found, soon = jax.jit(
        lambda v: ({name: jax.vmap(f)(v) for name, f in made.items()}, short(25.0))
    )(v)
    assert soon < VALUES[25.0]["jaakkola_jordan"] - 0.1
    for name, values in found.items():
        np.testing.assert_allclose(
            values, [row[name] for row in VALUES.values()], atol=2e-6, err_msg=name
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full_rank", "mean_field"])
def test_gaussian_q(name, x64):
    """Challis and Barber's fit to the exact ELBO, from far away: both variances in one program."""
    family = getattr(vj.families, name)(scale=1.0)
    like = jnp.array([3.0, -2.0, 1.0])

    def fit(v):
        prior = vj.families.mean_field().dist(
            {"loc": jnp.zeros(3), "log_scale": jnp.full(3, 0.5) * jnp.log(v)}
        )

        def bound(params):
            q = family.dist(params)
            sites = targets.gauss_hermite(jax.nn.log_sigmoid, lambda w: predictor(v, w), q)
            key = jax.random.key(0)
            return vj.gradients.reparam(vj.bounds.elbo)(
                key, targets.exact_kl(sites, prior, q), q, num_samples=1
            ).value

        return maximize(bound, family.init(jax.random.key(0), like), slope=1e-9)

    found = jax.jit(jax.vmap(fit))(jnp.array(list(VALUES)))
    np.testing.assert_allclose(found.value, [row[name] for row in VALUES.values()], atol=2e-6)
    assert np.all(found.slope < 1e-7)
