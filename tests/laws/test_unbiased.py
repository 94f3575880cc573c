"""Unbiased with real draws, beside the exact grid of test_grid.py: q of every kind and make, coupled draws, baselines, controls.

Each number compared fails by chance with probability 2e-10, and a bias of `detects` (nats per unit of a parameter) is caught
with probability .9987 (tests/statistics.py). Gradients of the truth are .02 to 2; the wrong estimators at the end of this
file are off by more than `detects`, and fail.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj
from tests import cases, oracles, table
from tests.bare import Coin
from tests.marks import some
from tests.statistics import assert_mean
from vijax.testing import check_unbiased

PLAIN = {row.name: row.objective for row in table.GRADIENTS}


def slopes(key, case, objectives, num_samples):
    """Return the gradient of every objective for one key."""

    def total(params, objective):
        log_joint = lambda z: case.log_p(params["theta"], z)
        return jnp.sum(
            objective(key, log_joint, case.build(params["q"]), num_samples=num_samples).value
        )

    return {name: jax.grad(total)(case.params, objective) for name, objective in objectives.items()}


def gradients(key, case, objectives, num_samples, n):
    """Return the gradient of every objective for n keys, as {objective: pytree of [n, ...]}, in one compilation."""
    return jax.jit(jax.vmap(lambda key: slopes(key, case, objectives, num_samples)))(
        jax.random.split(key, n)
    )


def truths(case, bound, k, objectives):
    return dict.fromkeys(objectives, case.truth(bound, k)[1])


KINDS = [  # the bias to be seen: of score three times, of vimco and auto twice as much
    (cases.LINE, 0.1),
    (cases.RATE, 0.1),
    (cases.COIN, 0.02),
    (cases.DIE, 0.02),
    (cases.MIXTURE, 0.1),
    (cases.TOWER, 0.1),
    (cases.CHAIN, 0.06),
]


# The slow ones are known to every run by their exact means: tests/laws/test_grid.py.
@pytest.mark.parametrize("kind", some(KINDS, "die", name=lambda kind: kind[0].name))
def test_kinds_of_q(kind, key):
    """iwae at K = 2 under every estimator that takes this q; `auto` is one of them, number by number, but on the chain."""
    case, sees = kind
    rows = [
        row
        for row in table.GRADIENTS
        if (case.path or not row.path) and (row.name != "auto" or case is cases.CHAIN)
    ]
    objectives = {row.name: row.objective(vj.bounds.iwae) for row in rows}
    with jax.numpy_rank_promotion("allow" if case.loose else "raise"):
        check_unbiased(
            key,
            lambda key: slopes(key, case, objectives, 2),
            truths(case, vj.bounds.iwae, 2, objectives),
            detects={
                row.name: jax.tree.map(lambda _, d=sees * row.detects: d, case.params)
                for row in rows
            },
            level=1e-8,
            max_keys=1_000_000,
        )


# Of those that JAX compiles fast, one of each library; the rest are slow.
MAKES = some(
    cases.MAKES, "bare", "MultivariateNormalDiag", "TFP", "flow", name=lambda case: case.name
)


@pytest.mark.parametrize("case", MAKES)
def test_makes_of_q(case, key):
    """Path estimators of iwae at K = 2, q from every library that vijax meets."""
    objectives = {name: PLAIN[name](vj.bounds.iwae) for name in ("reparam", "dreg")}
    with jax.numpy_rank_promotion("allow" if case.loose else "raise"):
        found = gradients(key, case, objectives, 2, 60_000)
    assert_mean(found, truths(case, vj.bounds.iwae, 2, objectives), detects=0.1)


# --- variations


@pytest.mark.slow
def test_score_with_a_baseline_of_each_rank(key):
    """A constant changes no mean, whether one number or one for each datum."""
    objectives = {
        "one": vj.gradients.score(vj.bounds.iwae, baseline=-2.0),
        "each": vj.gradients.score(vj.bounds.iwae, baseline=jnp.array([-2.5, -1.5])),
        "elbo": vj.gradients.score(vj.bounds.elbo, baseline=jnp.array([-2.5, -1.5])),
    }
    found = gradients(key, cases.COIN, objectives, 2, 60_000)
    truth = truths(cases.COIN, vj.bounds.iwae, 2, objectives) | {
        "elbo": cases.COIN.truth(vj.bounds.elbo, 1)[1]
    }
    assert_mean(found, truth, detects=0.05)


@pytest.mark.parametrize("linear", some([True, False], "False"))
def test_coupled_draws(linear, key):
    """Antithetic pairs: reparam of any bound, dreg of the elbo. The pair's own exact E[iwae] is over (e, -e)."""
    case = cases.MAKES[1]
    bound = vj.bounds.elbo if linear else vj.bounds.iwae
    makers = [vj.gradients.reparam, vj.gradients.dreg] if linear else [vj.gradients.reparam]
    objectives = {make.__name__: make(bound, draw=vj.draws.antithetic) for make in makers}
    found = gradients(key, case, objectives, 2, 60_000)
    truth = case.truth(bound, 1)[1] if linear else pair_truth(case)
    assert_mean(found, dict.fromkeys(objectives, truth), detects=0.1)


@oracles.exact
def pair_truth(case):
    """The gradient of E[log ½ (w(m + s e) + w(m - s e))] over a grid of e."""
    points, volumes = oracles.cross(*[oracles.interval(-8.0, 8.0, 41)] * 2)
    mass = volumes * jnp.exp(jax.scipy.stats.norm.logpdf(jnp.stack(points)).sum(0))

    def total(params):
        def log_w(e):
            z = params["q"]["loc"] + jnp.exp(params["q"]["log_scale"]) * e
            return case.log_p(params["theta"], z) - case.log_q(params["q"], z)

        pair = lambda e: jnp.logaddexp(log_w(e), log_w(-e)) - jnp.log(2.0)
        return jnp.sum(mass * jax.vmap(pair)(jnp.stack(points, -1)))

    return jax.jit(jax.grad(total))(
        jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), case.params)
    )


# --- negative controls: what is wrong in the literature and in the wild must fail the very same comparison


def by_hand(key, value, n):
    """Return gradients of value(params, key) for n keys, under a name."""
    found = jax.jit(jax.vmap(jax.grad(value), (None, 0)))(
        cases.LINE.params, jax.random.split(key, n)
    )
    return {"wrong": found}


def draw_line(params, key):
    noise = jax.random.normal(key, (2, 2))
    z = params["q"]["loc"][None] + jnp.exp(params["q"]["log_scale"])[None] * noise
    log_p = jax.vmap(partial(oracles.gaussian_log_joint, params["theta"], cases.X))
    log_q = lambda q, z: jax.vmap(partial(cases.LINE.log_q, q))(z)
    return z, log_p, log_q


def sticking_the_landing(params, key):
    z, log_p, log_q = draw_line(params, key)
    return jnp.sum(vj.bounds.iwae(log_p(z) - log_q(jax.lax.stop_gradient(params["q"]), z)))


def squared_weights_for_the_model(params, key):
    """TFP's DReG: the loss is gated, and with it the model's parameters."""
    z, log_p, log_q = draw_line(params, key)
    log_w = log_p(z) - log_q(jax.lax.stop_gradient(params["q"]), z)
    return jnp.sum(jax.lax.stop_gradient(jax.nn.softmax(log_w, 0) ** 2) * log_w)


def score_without_slope(params, key):
    z, log_p, log_q = draw_line(params, key)
    log_q = log_q(params["q"], jax.lax.stop_gradient(z))
    log_w = log_p(jax.lax.stop_gradient(z)) - jax.lax.stop_gradient(log_q)
    value = vj.bounds.iwae(log_w)
    return jnp.sum(value + jax.lax.stop_gradient(value) * log_q.sum(0))


@pytest.mark.parametrize(
    "value", [sticking_the_landing, squared_weights_for_the_model, score_without_slope]
)
def test_wrong_estimators_of_iwae_fail(value, key):
    wrong = by_hand(key, value, 200_000)
    with pytest.raises(AssertionError, match="biased"):
        assert_mean(wrong, {"wrong": cases.LINE.truth(vj.bounds.iwae, 2)[1]}, detects=0.05)


def test_naive_path_through_a_coin_fails(key):
    """What distrax gives in silence: exactly 0 for q's parameters."""

    def naive(params, key):
        z, log_q = jax.vmap(lambda k: Coin(params["q"]["logit"]).sample_and_log_prob(seed=k))(
            jax.random.split(key, 2)
        )
        log_p = jax.vmap(partial(cases.COIN.log_p, params["theta"]))(z)
        return jnp.sum(vj.bounds.elbo(log_p - jax.lax.stop_gradient(log_q)))

    keys = jax.random.split(key, 20_000)
    found = jax.jit(jax.vmap(jax.grad(naive), (None, 0)))(cases.COIN.params, keys)
    assert np.all(np.asarray(found["q"]["logit"]) == 0.0)
    with pytest.raises(AssertionError, match="biased"):
        assert_mean(found, cases.COIN.truth(vj.bounds.elbo, 1)[1], detects=0.05)


def test_dreg_of_coupled_draws_would_be_biased(key):
    """Why dreg refuses antithetic pairs under iwae: a pair passed off as independent fails."""
    passed_off = vj.draws.antithetic._replace(independent=True)
    objectives = {"dreg": vj.gradients.dreg(vj.bounds.iwae, draw=passed_off)}
    found = gradients(key, cases.MAKES[1], objectives, 2, 60_000)
    with pytest.raises(AssertionError, match="biased"):
        assert_mean(found, {"dreg": pair_truth(cases.MAKES[1])}, detects=0.1)
