"""Fits that do not arrive say so, and why; those that do are silent, for a warning here is an error."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vijax as vj
from vijax.fitting import Checkpoints, ascent, fit, restarts, weigh
from vijax.types import Rule, Step
from vijax.updates import hessian, natural_gradient

full, mean_field = vj.families.full_rank(), vj.families.mean_field()
quiet = functools.partial(fit, reports=())


def started(rule, family, like):
    return rule.init(family.init(None, like))


# --- B3: an uncentred regression, the intercept and slope of 200 on their height

_RNG = np.random.default_rng(0)
HEIGHT = _RNG.normal(67, 3.0, 200)
EARN = 5 + 0.06 * HEIGHT + 0.8 * _RNG.standard_normal(200)
DESIGN = np.stack([np.ones(200), HEIGHT], 1)
LEAST_SQUARES = np.linalg.lstsq(DESIGN, EARN, rcond=None)[0]


def earnings(z):
    x, y = jnp.asarray(DESIGN, z["ls"].dtype), jnp.asarray(EARN, z["ls"].dtype)
    return jnp.sum(-0.5 * jnp.square((y - x @ z["b"]) * jnp.exp(-z["ls"])) - z["ls"])


START = {"b": jnp.zeros(2), "ls": jnp.zeros(())}


def test_a_mean_field_q_arrives_on_an_uncentred_regression(key):
    """By the curvature of all latents together: .05 sd of q from least squares, in single precision."""
    rule = natural_gradient(earnings, num_samples=16, curvature=hessian)
    found = quiet(key, rule, started(rule, mean_field, START), steps=600)
    assert found.stopped.startswith("stationary at step 512")
    sd = np.exp(found.average["log_scale"]["b"])
    assert np.all(np.abs(found.average["loc"]["b"] - LEAST_SQUARES) < 0.05 * sd)
    residuals = EARN - DESIGN @ LEAST_SQUARES
    expected = residuals.std() / np.sqrt(np.square(DESIGN).sum(0))
    np.testing.assert_allclose(sd, expected, rtol=0.03)


def test_what_still_moves_is_named_and_what_wanders_is_not(key):
    """A rule of which one leaf drifts by .005 a step under noise of .05."""

    def walk(drift):
        def step(key, x):
            noise = 0.05 * jax.random.normal(key, (2,))
            place = x["t"] + 1
            return {"t": place, "still": noise[0], "goes": drift * place + noise[1]}, Step(-place)

        return Rule(lambda x: x, step, lambda x: {"goes": x["goes"], "still": x["still"]})

    state = {name: jnp.float32(0.0) for name in ("t", "still", "goes")}
    with pytest.warns(UserWarning, match="still moving: .* 'goes' would go .* units further"):
        quiet(key, walk(5e-3), state, steps=520)
    assert quiet(key, walk(0.0), state, steps=4000).stopped.startswith("stationary")


@pytest.mark.slow
def test_one_that_creeps_along_the_valley_says_so(key):
    """The default sees each latent by itself, and is units away after all of its steps."""
    rule = natural_gradient(earnings)
    with pytest.warns(
        UserWarning, match="still moving: .* 'loc.b' would go .* curvature=updates.h"
    ):
        found = quiet(key, rule, started(rule, mean_field, START), steps=600)
    off = np.abs(found.average["loc"]["b"] - LEAST_SQUARES)
    assert np.all(off > np.exp(found.average["log_scale"]["b"]))
    assert "still moving" in found.stopped


# --- B4: the rule fires


def logistic(z):
    return jnp.sum(jax.nn.log_sigmoid(jnp.array([3.0, 1.0, -0.5]) * z)) - 0.5 * jnp.sum(z**2)


@pytest.mark.parametrize("rate", [vj.updates.settling, pytest.param(0.2, marks=pytest.mark.slow)])
def test_natural_gradients_stop_where_they_arrive(key, rate):
    rule = natural_gradient(logistic, learning_rate=rate)
    found = quiet(key, rule, started(rule, full, jnp.zeros(3)), steps=4000)
    assert found.stopped.startswith("stationary")
    far = quiet(key, rule, started(rule, full, jnp.zeros(3)), steps=4000, stop=None)
    sd = jnp.exp(far.average["log_scale"])
    assert jnp.max(jnp.abs(found.average["loc"] - far.average["loc"]) / sd) < 0.05


def slow_start(schedule):
    """Adam from 20 sd away, with the noise of eight draws."""

    def estimate(key, params):
        q = mean_field.dist(params)
        return vj.gradients.reparam(vj.bounds.elbo)(
            key, lambda z: -0.5 * jnp.sum((z - 20) ** 2), q, num_samples=8
        )

    rule = ascent(estimate, optax.adam(schedule))
    return rule, started(rule, vj.families.mean_field(scale=1.0), jnp.zeros(2))


def test_a_rate_that_falls_too_soon_is_no_arrival(key):
    rule, state = slow_start(optax.exponential_decay(0.1, 20, 0.8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = quiet(key, rule, state, steps=1500)
    assert np.all(found.average["loc"] < 15)
    assert not found.stopped.startswith("stationary")
    # The control: one that lasts arrives, and is told so before its rate is at an end.
    rule, state = slow_start(optax.cosine_decay_schedule(0.1, 20_000))
    found = quiet(key, rule, state, steps=20_000)
    assert found.stopped.startswith("stationary")
    np.testing.assert_allclose(found.average["loc"], 20, atol=0.05)
    np.testing.assert_allclose(found.average["log_scale"], 0, atol=0.05)


# --- B5, G1: a rule that stands still


def walled(z):
    """Steep, and nan a little way off: every step leads there, however often it is halved."""
    return jnp.where(jnp.abs(z - 2.0) < 1e-4, 1e12 * z, jnp.nan)


def test_a_rule_that_takes_no_step_says_how_many(key):
    rule = natural_gradient(walled, num_samples=2)
    narrow = vj.families.mean_field(scale=1e-6)
    with pytest.warns(UserWarning, match="100% of the last steps were not taken.*num_samples"):
        found = quiet(key, rule, started(rule, narrow, jnp.array(2.0)), steps=40)
    assert "were not taken" in found.stopped
    assert found.average["loc"] == 2


def test_one_that_arrives_exactly_is_not_told_off(key):
    """Where q is exact nothing is left but rounding: no step is worse."""
    rule = natural_gradient(lambda z: -jnp.sum(jnp.square(z - 3)))
    state = started(rule, full, jnp.zeros(3))
    assert quiet(key, rule, state, steps=600).stopped.startswith("stationary at step 512")
    assert quiet(key, rule, state, steps=64).stopped == "all 64 steps were made"


Y = jnp.array([0.3, jnp.nan, -1.2, 0.4])
SEEN = jnp.isfinite(Y)


def padded(z):
    """Its value is finite, its slope is not."""
    terms = jnp.where(SEEN, -0.5 * jnp.square(Y - z["th"]), 0.0)
    return jnp.sum(terms) - 0.5 * z["th"] ** 2 - 0.5 * z["other"] ** 2


def masked_first(z):
    terms = jnp.where(SEEN, -0.5 * jnp.square(jnp.where(SEEN, Y, 0.0) - z["th"]), 0.0)
    return jnp.sum(terms) - 0.5 * z["th"] ** 2 - 0.5 * z["other"] ** 2


LIKE = {"other": jnp.zeros(()), "th": jnp.zeros(())}


def test_a_nan_gradient_is_named_with_its_leaf_and_cure(key, unchecked):
    rule = natural_gradient(padded, num_samples=2)
    with pytest.warns(UserWarning, match="the gradient of 'loc.th' is not finite.*masked before"):
        assert "'loc.th'" in quiet(key, rule, started(rule, full, LIKE), steps=40).stopped
    for call in (
        lambda: vj.solvers.pathfinder(key, padded, LIKE, num_samples=8),
        lambda: vj.families.laplace(padded).init(key, LIKE),
    ):
        with pytest.raises(ValueError, match="gradient of 'th' is nan.*masked before"):
            call()


@pytest.mark.slow
def test_under_jit_what_comes_back_of_it_is_no_fit(key):
    path = jax.jit(lambda key: vj.solvers.pathfinder(key, padded, LIKE, num_samples=8))(key)
    assert np.all(path.elbos == -np.inf)


def test_with_the_cure_all_are_silent_and_right(key):
    mean = float(jnp.nansum(Y) / 4)
    rule = natural_gradient(masked_first, num_samples=4)
    found = quiet(key, rule, started(rule, full, LIKE), steps=40)
    np.testing.assert_allclose(found.average["loc"]["th"], mean, atol=1e-4)
    params = vj.families.laplace(masked_first).init(key, LIKE)
    np.testing.assert_allclose(params["loc"]["th"], mean, atol=1e-6)


# --- B7: leaves that are not read, and leaves that are missing


def test_a_leaf_that_log_joint_never_reads_is_refused(key):
    like = {"a": jnp.zeros(2), "idle": jnp.zeros(3)}
    half = lambda z: -jnp.sum(z["a"] ** 2)
    by_shape = lambda z: half(z) - z["idle"].size
    for target in (half, by_shape):
        rule = vj.updates.square_root_natural_gradient(target, num_samples=8)
        with pytest.raises(ValueError, match="never reads 'idle', so that the ELBO grows"):
            jax.eval_shape(rule.step, key, started(rule, full, like))
    # What is read a little passes, and so does the noise of a model.
    little = lambda z: half(z) - 1e-3 * jnp.sum(z["idle"] ** 2)
    noisy = vj.targets.keyed(lambda key, z: little(z) + jax.random.normal(key))
    for target in (little, noisy):
        rule = natural_gradient(target, num_samples=8)
        jax.eval_shape(rule.step, key, started(rule, full, like))


def test_a_leaf_that_q_has_not_is_named_with_those_that_it_has(key):
    asks = lambda z: -jnp.sum(z["a"] ** 2) - jnp.sum(z["b"] ** 2)
    q = mean_field.dist(mean_field.init(key, {"a": jnp.zeros(2), "c": jnp.zeros(2)}))
    for call in (
        lambda: vj.draws.weigh(key, asks, q, num_samples=2),
        lambda: vj.gradients.reparam(vj.bounds.elbo)(key, asks, q, num_samples=2),
        lambda: vj.solvers.pathfinder(key, asks, {"a": jnp.zeros(2)}, num_samples=2),
        lambda: vj.families.laplace(asks).init(key, {"a": jnp.zeros(2)}),
    ):
        with pytest.raises(
            ValueError, match=r"raised KeyError\('b'\), where q offers the leaves \['a'"
        ):
            call()


# --- B8: checkpoints of another model


def test_a_checkpoint_of_another_model_is_refused(key, tmp_path):
    """The same key, shapes and dtypes: only what the step computes, or the data it closes over, differ."""

    def run(data, power=2, steps=16):
        y = jnp.asarray(data)

        def step(key, x):
            x = x + 0.1 * (y - x) ** (power - 1) + 0.1 * jax.random.normal(key)
            return x, Step(-jnp.sum(jnp.abs(y - x) ** power))

        rule = Rule(lambda x: x, step, lambda x: x)
        saves = Checkpoints(tmp_path, every=8)
        return quiet(key, rule, jnp.zeros(3), steps=steps, checkpoints=saves)

    run([1.0, 2.0, 3.0])
    assert run([1.0, 2.0, 3.0], steps=24).steps == 24  # the same model goes on
    for other in ({"data": [1.0, 2.0, 3.5]}, {"data": [1.0, 2.0, 3.0], "power": 4}):
        with pytest.raises(ValueError, match="the fit of another rule.* Name another folder"):
            run(**other)


# --- G3: how many draws


def test_draws_are_chosen_by_the_latents_and_too_few_are_told(key):
    """Two for each latent of a full-rank q, and 64 at least; the curvature of 70 from 64 is told."""
    target = lambda z: -jnp.sum(jnp.square(z - 1))
    for family, d, expected in ((full, 5, 64), (full, 70, 140), (mean_field, 70, 64)):
        rule = natural_gradient(target)
        _, report = jax.eval_shape(rule.step, key, started(rule, family, jnp.zeros(d)))
        assert report.draws.log_p.shape == (expected,)
    few = natural_gradient(target, num_samples=64)
    with pytest.warns(UserWarning, match="num_samples = 64 draws show too little .* of 70 latents"):
        jax.eval_shape(few.step, key, started(few, full, jnp.zeros(70)))
    jax.eval_shape(few.step, key, started(few, mean_field, jnp.zeros(70)))


# --- D: the curve of the bound, and from restarts to a verdict


def test_a_fit_returns_the_curve_of_its_bound(key):
    """Means of equal stretches, of which there are never more than 64."""
    rule = Rule(lambda x: x, lambda key, x: (x + 1, Step(x)), lambda x: ())
    for steps, stretch in ((200, 8), (1200, 32)):
        curve = quiet(key, rule, jnp.float32(0.0), steps=steps, stop=None).curve
        assert len(curve.step) <= 64
        np.testing.assert_array_equal(curve.step, stretch * np.arange(1, steps // stretch + 1))
        np.testing.assert_allclose(curve.bound, curve.step - (stretch + 1) / 2)


@pytest.mark.slow
def test_from_restarts_to_a_verdict(key, unchecked):
    """In one call each; two that ended in different modes are seen by R-hat, and the dead are left out."""

    def two_modes(z):
        return jnp.logaddexp(*(-0.5 * jnp.sum(jnp.square((z - c) / 0.5)) for c in (-3.0, 3.0)))

    unit = vj.families.mean_field(scale=0.5)
    dies = lambda key, p: (p, Step(jnp.where(p["loc"][0] > 9, jnp.nan, 0.0)))
    rule = Rule(lambda params: params, dies, lambda params: params)

    def several(places):
        states = jax.vmap(lambda c: unit.init(None, jnp.full(2, c)))(jnp.array(places))
        found = restarts(key, rule, states, steps=16, stop=None, reports=())
        return weigh(key, found, two_modes, unit, num_samples=500)

    draws = several([-3.0, 10.0, 3.0])
    assert draws.log_w.shape == (2, 500)
    assert jnp.max(vj.diagnostics.rhat(draws.z)) > 1.7
    assert jnp.max(vj.diagnostics.rhat(several([3.0, 10.0, 3.0]).z)) < 1.02
    alone = quiet(key, rule, unit.init(None, jnp.full(2, 3.0)), steps=8)
    assert weigh(key, alone, two_modes, unit, num_samples=500).log_w.shape == (500,)
    with pytest.raises(TypeError, match="found must be what fit or restarts returned, got a dict"):
        weigh(key, alone.average, two_modes, unit, num_samples=500)
