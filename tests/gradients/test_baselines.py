"""gradients.moving_average: unbiased by design, less varied, and the optimal coefficient with squared scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj
from tests.gradients import problem
from tests.statistics import assert_mean, assert_variance_ratio

ELBO = vj.bounds.elbo
BASELINE = vj.gradients.moving_average(decay=0.9)
CASE = problem.BITS._replace(log_p=lambda theta, z: problem.BITS.log_p(theta, z) - 4.0)
LOG_JOINT = lambda z: CASE.log_p(CASE.params["theta"], z)  # noqa: E731


def learned(key, steps, optimal=False):
    """Run steps of a scan at fixed parameters, the state passing through."""

    def step(state, key):
        q = problem.Bits(CASE.params["q"])
        objective = vj.gradients.score(ELBO, baseline=BASELINE.value(state))
        seen = objective(key, LOG_JOINT, q, num_samples=2).draws
        weights = vj.gradients.squared_scores(problem.Bits, CASE.params["q"], seen.z)[:, None] if optimal else None
        return BASELINE.update(state, seen.log_w, weights), None

    return jax.lax.scan(step, BASELINE.init((2,)), jax.random.split(key, steps))[0]


def test_it_is_the_mean_that_it_says():
    log_w = jnp.array([[1.0, 2.0], [3.0, -jnp.inf]])
    state = BASELINE.update(BASELINE.init((2,)), log_w)
    np.testing.assert_allclose(BASELINE.value(state), [2.0, 2.0], rtol=1e-6)
    again = BASELINE.update(state, jnp.zeros((2, 2)))
    np.testing.assert_allclose(BASELINE.value(again), [2 * 0.9 * 2 / (0.9 * 2 + 2), 0.9 * 2 / (0.9 + 2)], rtol=1e-6)
    one = BASELINE.update(BASELINE.init(), log_w, jnp.array([[1.0], [3.0]]))
    np.testing.assert_allclose(BASELINE.value(one), (1 + 2 + 9) / 5, rtol=1e-6)
    np.testing.assert_array_equal(BASELINE.value(BASELINE.init((3,))), 0.0)


def test_unbiased_and_less_varied(key):
    """One step after twenty, for many seeds at once; each with a state of its own."""
    plain = {"plain": vj.gradients.score(ELBO)}

    def after(key):
        first, last = jax.random.split(key)
        state = learned(first, 20)

        def total(params):
            objective = vj.gradients.score(ELBO, baseline=BASELINE.value(state))
            log_joint = lambda z: CASE.log_p(params["theta"], z)  # noqa: E731
            return objective(last, log_joint, CASE.build(params["q"]), num_samples=1).value.sum()

        return jax.value_and_grad(total)(CASE.params)

    found = {"moving": jax.jit(jax.vmap(after))(jax.random.split(key, 20_000))}
    assert_mean(found, problem.truths(CASE, found), detects=0.3)
    worse = problem.value_and_grads(key, CASE, plain, 1, 20_000)
    assert_variance_ratio(problem.of_q(worse, "plain"), problem.of_q(found, "moving"), at_least=5.0)


def test_a_baseline_that_has_seen_its_own_draw_fails(key):
    """The control: updating before the step instead of after it is biased."""

    def total(params, key):
        log_joint = lambda z: CASE.log_p(params["theta"], z)  # noqa: E731
        q = CASE.build(params["q"])
        seen = vj.gradients.score(ELBO)(key, log_joint, q, num_samples=1).draws
        b = BASELINE.value(BASELINE.update(BASELINE.init((2,)), seen.log_w))
        return vj.gradients.score(ELBO, baseline=b)(key, log_joint, q, num_samples=1).value.sum()

    keys = jax.random.split(key, 20_000)
    found = {"own": jax.jit(jax.vmap(jax.value_and_grad(total), (None, 0)))(CASE.params, keys)}
    with pytest.raises(AssertionError, match="biased"):
        assert_mean(found, problem.truths(CASE, found), detects=1.0)


def test_squared_scores_give_the_optimal_coefficient(key):
    """E[‖s‖² f] / E[‖s‖²] by enumeration; it is where the variance of (f - b) s is least."""
    q = CASE.params["q"]
    points = jnp.asarray(np.broadcast_to(problem.all_bits(3)[:, None], (8, 2, 3)))
    norms = vj.gradients.squared_scores(problem.Bits, q, points)
    by_hand = jnp.sum(jnp.square(points - jax.nn.sigmoid(q)[None]), (1, 2))
    np.testing.assert_allclose(norms, by_hand, rtol=1e-5)
    # One number for both members: E‖(f - b) s‖² of each, over states of each.
    log_q = jax.vmap(problem.Bits(q).log_prob)(points)
    f, mass = jax.vmap(LOG_JOINT)(points) - log_q, jnp.exp(log_q)
    each = jnp.sum(jnp.square(points - jax.nn.sigmoid(q)[None]), -1)
    best = BASELINE.value(BASELINE.update(BASELINE.init(), f, mass * each))
    mean = BASELINE.value(BASELINE.update(BASELINE.init(), f, mass))
    spread = lambda b: float(jnp.sum(mass * each * (f - b) ** 2))  # noqa: E731
    assert all(spread(best) < spread(b) for b in (best - 0.05, best + 0.05, mean))


def test_refusals():
    for decay in (-0.1, 1.0):
        with pytest.raises(ValueError, match="decay must be"):
            vj.gradients.moving_average(decay=decay)
    with pytest.raises(ValueError, match="this baseline has shape"):
        BASELINE.update(BASELINE.init((3,)), jnp.zeros((2, 2)))
