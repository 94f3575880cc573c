"""Unbiased, beside the grid of test_grid.py: q of every make, coupled draws, baselines, and the wrong estimators that must fail.

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
from tests.statistics import assert_mean
from vijax.types import attribute

PLAIN = {row.name: row.objective for row in table.GRADIENTS}
SCORED = {row.name: row.objective for row in table.GRADIENTS if not row.path}


def gradients(key, case, objectives, num_samples, n):
    """Return the gradient of every objective for n keys, as {objective: pytree of [n, ...]}, in one compilation."""

    def total(params, objective, key):
        log_joint = lambda z: case.log_p(params["theta"], z)  # noqa: E731
        return jnp.sum(objective(key, log_joint, case.build(params["q"]), num_samples=num_samples).value)

    def every(key):
        return {name: jax.grad(total)(case.params, objective, key) for name, objective in objectives.items()}

    return jax.jit(jax.vmap(every))(jax.random.split(key, n))


def truths(case, bound, k, objectives):
    return dict.fromkeys(objectives, case.truth(bound, k)[1])


def exact_bound(row, k):
    """Return a bound and a k whose expectation is that of `row` at k, cheaper to enumerate."""
    if row.groups > 1:
        return vj.bounds.iwae, k // row.groups
    return (row.function, 1) if row.name == "elbo" else (row.function, k)


def detects(objectives, scale):
    return {name: scale * table.GRADIENT[name].detects for name in objectives}


def estimators(row, names):
    return {name: names[name](row.function) for name in names if row.takes(name)}


# Those of the first six are cells of test_grid.py.
CATALOGUE = [
    row for row in table.BOUNDS if row.public not in ("", "elbo", "iwae", "multi_iwae", "ciwae", "renyi", "cubo")
]


ALWAYS = {"eubo", "jackknife(1)", "sumo"}  # what every run tests; each of the others takes some seconds


def part(row, *args):
    marks = [] if row.name in ALWAYS else [pytest.mark.slow]
    return pytest.param(row, *args, id="-".join([row.name, *(a.name for a in args)]), marks=marks)


# The truth costs points^k: three draws is what a grid of a density allows.
@pytest.mark.parametrize("row", [part(row) for row in CATALOGUE if row.least < 3])
def test_continuous(row, key):
    """Two data, one Gaussian latent each. `auto` is absent: here it is reparam, number by number."""
    k = row.draws(row.least + 1)
    objectives = estimators(row, {name: make for name, make in PLAIN.items() if name != "auto"})
    found = gradients(key, cases.LINE, objectives, k, 200_000)
    truth = truths(cases.LINE, *exact_bound(row, k), objectives)
    assert_mean(found, truth, detects=detects(objectives, 0.12 * row.scale[0]))


# A third state tells nothing more of a bound without a closed form of its own.
CLOSED = [row for row in CATALOGUE if row.loses and attribute(row.function, "leave_one_out") is not None]


@pytest.mark.parametrize(
    ("row", "case"),
    [*(part(row, cases.COIN) for row in CATALOGUE), *(part(row, cases.DIE) for row in CLOSED)],
)
def test_discrete(row, case, key):
    """Every triple of states (pairs in each of two groups): Bernoulli with float draws, categorical with integers."""
    k = row.draws(2 if row.groups > 1 else max(3, row.least + 1))
    objectives = estimators(row, SCORED)
    found = gradients(key, case, objectives, k, 60_000)
    assert_mean(
        found, truths(case, *exact_bound(row, k), objectives), detects=detects(objectives, 0.025 * row.scale[1])
    )


@pytest.mark.parametrize("case", cases.MAKES, ids=lambda case: case.name)
def test_makes_of_q(case, key):
    """Path estimators of iwae at K = 2, q from every library that vijax meets."""
    objectives = {name: PLAIN[name](vj.bounds.iwae) for name in ("reparam", "dreg")}
    with jax.numpy_rank_promotion("allow" if case.loose else "raise"):
        found = gradients(key, case, objectives, 2, 60_000)
    assert_mean(found, truths(case, vj.bounds.iwae, 2, objectives), detects=0.1)


# --- variations


def test_score_with_a_baseline_of_each_rank(key):
    """A constant changes no mean, whether one number or one for each datum."""
    objectives = {
        "one": vj.gradients.score(vj.bounds.iwae, baseline=-2.0),
        "each": vj.gradients.score(vj.bounds.iwae, baseline=jnp.array([-2.5, -1.5])),
        "elbo": vj.gradients.score(vj.bounds.elbo, baseline=jnp.array([-2.5, -1.5])),
    }
    found = gradients(key, cases.COIN, objectives, 2, 60_000)
    truth = truths(cases.COIN, vj.bounds.iwae, 2, objectives) | {"elbo": cases.COIN.truth(vj.bounds.elbo, 1)[1]}
    assert_mean(found, truth, detects=0.05)


@pytest.mark.parametrize("linear", [True, False], ids=["elbo", "iwae"])
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

        pair = lambda e: jnp.logaddexp(log_w(e), log_w(-e)) - jnp.log(2.0)  # noqa: E731
        return jnp.sum(mass * jax.vmap(pair)(jnp.stack(points, -1)))

    return jax.jit(jax.grad(total))(jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), case.params))


# --- negative controls: what is wrong in the literature and in the wild must fail the very same comparison


def by_hand(key, value, n):
    """Return gradients of value(params, key) for n keys, under a name."""
    found = jax.jit(jax.vmap(jax.grad(value), (None, 0)))(cases.LINE.params, jax.random.split(key, n))
    return {"wrong": found}


def draw_line(params, key):
    noise = jax.random.normal(key, (2, 2))
    z = params["q"]["loc"][None] + jnp.exp(params["q"]["log_scale"])[None] * noise
    log_p = jax.vmap(partial(oracles.gaussian_log_joint, params["theta"], cases.X))
    log_q = lambda q, z: jax.vmap(partial(cases.LINE.log_q, q))(z)  # noqa: E731
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


@pytest.mark.parametrize("value", [sticking_the_landing, squared_weights_for_the_model, score_without_slope])
def test_wrong_estimators_of_iwae_fail(value, key):
    wrong = by_hand(key, value, 200_000)
    with pytest.raises(AssertionError, match="biased"):
        assert_mean(wrong, {"wrong": cases.LINE.truth(vj.bounds.iwae, 2)[1]}, detects=0.05)


def test_naive_path_through_a_coin_fails(key):
    """What distrax gives in silence: exactly 0 for q's parameters."""

    def naive(params, key):
        z, log_q = jax.vmap(lambda k: Coin(params["q"]["logit"]).sample_and_log_prob(seed=k))(jax.random.split(key, 2))
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
