"""At q = p(z | x) every log-weight is log p(x): bounds equal it draw by draw, and dreg's gradient in q is rounding."""

from contextlib import nullcontext
from typing import Any, NamedTuple

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import vijax as vj
from tests import oracles, table
from tests.bare import Gauss
from tests.bounds.test_formulas import FORMULAS
from tests.marks import but, some

K = 6
# Every smooth bound; those that keep constants equal log p(x), and log_w is then constant for the others too.
SMOOTH = [row.name for row in table.BOUNDS if row.smooth and not row.doubles]
DREG = ["elbo", "iwae", "multi_iwae(2)", "ciwae(.3)", "renyi(.5)", "renyi(2)", "cubo(2)", "own"]


class Exact(NamedTuple):
    """A conjugate model with its exact posterior as q: q's parameters, q, log_joint and log p(x)."""

    params: Any
    build: Any
    log_joint: Any
    evidence: Any
    loose: bool = True


def gaussian(dtype):
    x = np.array([1.5, -0.3], dtype)
    loc, scale = oracles.gaussian_posterior(0.7, x)
    return Exact(
        {"loc": loc, "log_scale": np.log(scale)},
        lambda q: Gauss(q["loc"], q["log_scale"]),
        lambda z: oracles.gaussian_log_joint(0.7, x, z),
        oracles.gaussian_evidence(0.7, x),
        loose=False,
    )


def gamma_poisson(dtype):
    x = np.array([3.0, 0.0], dtype)
    log_p = lambda z: (
        distrax.Gamma(2.0, 1.3).log_prob(z) + x * jnp.log(z) - z - jax.lax.lgamma(x + 1)
    )
    return Exact(
        {"a": 2.0 + x, "b": np.full(2, 2.3)},
        lambda q: distrax.Gamma(q["a"], q["b"]),
        log_p,
        oracles.gamma_poisson_evidence(2.0, 1.3, x),
    )


def beta_bernoulli(dtype):
    wins, trials = np.array([3.0, 0.0], dtype), 5.0
    return Exact(
        {"a": 1.5 + wins, "b": 2.0 + trials - wins},
        lambda q: distrax.Beta(q["a"], q["b"]),
        lambda z: (
            distrax.Beta(1.5, 2.0).log_prob(z) + wins * jnp.log(z) + (trials - wins) * jnp.log1p(-z)
        ),
        oracles.beta_bernoulli_evidence(1.5, 2.0, wins, trials),
    )


def _regression(dtype):
    rng = np.random.default_rng(0)
    design, y, noise = rng.normal(size=(7, 3)).astype(dtype), rng.normal(size=7).astype(dtype), 0.6
    mean, covariance = oracles.regression_posterior(
        *(np.asarray(a, np.float64) for a in (design, y)), noise
    )

    def log_joint(w):
        return jnp.sum(norm.logpdf(w, 0.0, 1.0)) + jnp.sum(norm.logpdf(y, design @ w, noise))

    return (
        mean,
        np.linalg.cholesky(covariance),
        log_joint,
        oracles.regression_evidence(design, y, noise),
    )


def regression_full_rank(dtype):
    mean, root, log_joint, evidence = _regression(dtype)
    scale = np.diag(root)
    params = {
        "loc": mean,
        "log_scale": np.log(scale),
        "lower": (root / scale[:, None])[np.tril_indices(3, -1)],
    }
    return Exact(params, vj.families.full_rank().dist, log_joint, evidence, loose=False)


def regression_tri(dtype):
    mean, root, log_joint, evidence = _regression(dtype)
    build = lambda q: distrax.MultivariateNormalTri(q["loc"], q["root"])
    return Exact({"loc": mean, "root": root}, build, log_joint, evidence)


def chain_of_two(dtype):
    """A Joint whose second conditional depends on the first: p(a, b | x) factored backwards."""
    x = np.asarray(0.8, dtype)  # a ~ N(0, 1), b | a ~ N(a, 1), x | b ~ N(b, 1)
    return Exact(
        {
            "b": np.array(2 / 3 * x),
            "log_b": np.log(np.sqrt(2 / 3)),
            "slope": np.array(0.5),
            "log_a": np.log(np.sqrt(0.5)),
        },
        lambda q: {
            "b": Gauss(q["b"], q["log_b"]),
            "a": lambda z: Gauss(q["slope"] * z["b"], q["log_a"]),
        },
        lambda z: (
            norm.logpdf(z["a"], 0, 1.0)
            + norm.logpdf(z["b"], z["a"], 1.0)
            + norm.logpdf(x, z["b"], 1.0)
        ),
        oracles.gaussian_evidence(0.0, x)
        + norm.logpdf(x, 0.0, 3**0.5)
        - norm.logpdf(x, 0.0, 2**0.5),
        loose=False,
    )


CASES = [
    *[
        (gaussian, DREG, chunk_size, double)
        for chunk_size in (None, 4, K)
        for double in (False, True)
    ],
    (gaussian, [name for name in SMOOTH if name not in DREG], None, True),
    (gaussian, ["eubo", "jackknife(1)", "log_variance"], 4, False),
    *[(regression_full_rank, DREG, None, False), (regression_full_rank, DREG, 4, True)],
    *[(chain_of_two, DREG, None, True), (chain_of_two, DREG, K, False)],
    (regression_tri, DREG[:2], None, True),
    # Implicit derivatives are slow to compile.
    *[
        (gamma_poisson, DREG[:2], None, False),
        (gamma_poisson, DREG[1:2], 4, True),
        (beta_bernoulli, DREG[:2], None, True),
    ],
]


def describe(case):
    model, names, chunk_size, double = case
    how = {None: "plain", K: "one look"}.get(chunk_size, "chunked")
    return f"{model.__name__}-{how}-{'float64' if double else 'float32'}-{len(names)}"


def estimates(model, key, dtype, make, names, chunk_size):
    """Return {bound: (value summed over the batch, gradient in q, Estimate)}."""
    exact = model(dtype)
    params = jax.tree.map(lambda a: jnp.asarray(a, dtype), exact.params)

    def total(params, objective):
        found = objective(
            key, exact.log_joint, exact.build(params), num_samples=K, chunk_size=chunk_size
        )
        return jnp.sum(found.value), found

    with jax.numpy_rank_promotion("allow" if exact.loose else "raise"):
        run = jax.jit(
            lambda params: {
                n: jax.grad(total, has_aux=True)(params, make(table.BOUND[n].function))
                for n in names
            }
        )
        return exact.evidence, run(params)


def at_constant(name, evidence):
    """Return what a bound is where every log-weight is log p(x): that, or what the table's row says by its formula."""
    if table.BOUND[name].keeps_constants:
        return evidence
    return FORMULAS[name](
        np.broadcast_to(evidence, (K, *np.shape(evidence))), np.full((K, 1), 1 / K)
    )


@pytest.mark.parametrize(
    "case",
    some(CASES, "regression_tri-plain-float64-2", name=describe),
)
def test_dreg_has_no_noise_at_the_posterior(case, key):
    """Value log p(x) and gradient 0, with no averaging: within 2e-5 in float32 and 1e-11 in float64."""
    model, names, chunk_size, double = case
    dtype, close = (np.float64, 1e-11) if double else (np.float32, 2e-5)
    with jax.enable_x64(True) if double else nullcontext():
        evidence, found = estimates(model, key, dtype, vj.gradients.dreg, names, chunk_size)
    for name, (gradient, estimate) in found.items():
        np.testing.assert_allclose(
            estimate.value, at_constant(name, evidence), rtol=close, atol=close, err_msg=name
        )
        for leaf, slope in gradient.items():
            assert np.abs(slope).max() < close, f"{name}: gradient in {leaf} is {slope}"


KEEPING = [row for row in table.BOUNDS if row.keeps_constants]


@pytest.mark.parametrize("row", but(KEEPING, "sumo", name=lambda row: row.name))
def test_every_bound_keeps_a_constant(row):
    """Equal log-weights l give l, at any size of l, for any number of draws that the bound takes."""
    level = np.array([-1.7, 0.0, 1e4, -1e4], np.float32)
    for k in (row.draws(1), row.draws(2), row.draws(10)):
        np.testing.assert_allclose(
            row.function(jnp.broadcast_to(level[None], (k, 4))), level, rtol=1e-6, atol=1e-6
        )


@pytest.mark.slow
def test_diagnostics_at_the_posterior(key):
    """ESS is K; k-hat is -inf where weights are equal, and no alarm where they differ by rounding alone."""
    exact = gaussian(np.float32)
    params = jax.tree.map(jnp.float32, exact.params)
    draws = vj.draws.weigh(key, exact.log_joint, exact.build(params), num_samples=1000)
    np.testing.assert_allclose(vj.diagnostics.ess(draws.log_w), 1000.0, rtol=1e-4)
    assert np.all(vj.diagnostics.khat(draws.log_w) < 0.5)
    np.testing.assert_array_equal(vj.diagnostics.khat(jnp.full((1000, 2), -2.3)), -jnp.inf)


def test_reparam_is_noisy_at_the_posterior(key):
    """The control: the plain path gradient of iwae is not 0 there, so the law above can tell."""
    _, found = estimates(gaussian, key, np.float32, vj.gradients.reparam, ["elbo", "iwae"], None)
    for gradient, _ in found.values():
        assert np.abs(gradient["loc"]).max() > 1e-2


def test_a_score_lost_with_its_path_fails(key):
    """The other control: stopping all of log q, rather than its parameters alone, is far above rounding."""
    exact = gaussian(np.float32)

    def value(params):
        q = exact.build(params)
        z, log_q = jax.vmap(lambda k: q.sample_and_log_prob(seed=k))(jax.random.split(key, K))
        return jnp.sum(vj.bounds.iwae(jax.vmap(exact.log_joint)(z) - jax.lax.stop_gradient(log_q)))

    assert np.abs(jax.grad(value)(jax.tree.map(jnp.float32, exact.params))["loc"]).max() > 1e-2
