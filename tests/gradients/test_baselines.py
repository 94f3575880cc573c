"""gradients.moving_average and learned: unbiased by design, less varied, and the optimal coefficient with squared scores."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vijax as vj
from tests import cases, problems
from tests.statistics import assert_mean, assert_variance_ratio

ELBO = vj.bounds.elbo
BASELINE = vj.gradients.moving_average(decay=0.9)
CASE = problems.BITS._replace(log_p=lambda theta, z: problems.BITS.log_p(theta, z) - 4.0)
LOG_JOINT = lambda z: CASE.log_p(CASE.params["theta"], z)


def after_steps(key, steps, optimal=False):
    """Run steps of a scan at fixed parameters, the state passing through."""

    def step(state, key):
        q = problems.Bits(CASE.params["q"])
        objective = vj.gradients.score(ELBO, baseline=BASELINE.value(state))
        seen = objective(key, LOG_JOINT, q, num_samples=2).draws
        weights = (
            vj.gradients.squared_scores(problems.Bits, CASE.params["q"], seen.z)[:, None]
            if optimal
            else None
        )
        return BASELINE.update(state, seen.log_w, weights), None

    return jax.lax.scan(step, BASELINE.init((2,)), jax.random.split(key, steps))[0]


def test_it_is_the_mean_that_it_says():
    log_w = jnp.array([[1.0, 2.0], [3.0, -jnp.inf]])
    state = BASELINE.update(BASELINE.init((2,)), log_w)
    np.testing.assert_allclose(BASELINE.value(state), [2.0, 2.0], rtol=1e-6)
    again = BASELINE.update(state, jnp.zeros((2, 2)))
    np.testing.assert_allclose(
        BASELINE.value(again), [2 * 0.9 * 2 / (0.9 * 2 + 2), 0.9 * 2 / (0.9 + 2)], rtol=1e-6
    )
    one = BASELINE.update(BASELINE.init(), log_w, jnp.array([[1.0], [3.0]]))
    np.testing.assert_allclose(BASELINE.value(one), (1 + 2 + 9) / 5, rtol=1e-6)
    np.testing.assert_array_equal(BASELINE.value(BASELINE.init((3,))), 0.0)


def test_unbiased_and_less_varied(key):
    """One step after twenty, for many seeds at once; each with a state of its own."""
    plain = {"plain": vj.gradients.score(ELBO)}

    def after(key):
        first, last = jax.random.split(key)
        state = after_steps(first, 20)

        def total(params):
            objective = vj.gradients.score(ELBO, baseline=BASELINE.value(state))
            log_joint = lambda z: CASE.log_p(params["theta"], z)
            return objective(last, log_joint, CASE.build(params["q"]), num_samples=1).value.sum()

        return jax.value_and_grad(total)(CASE.params)

    found = {"moving": jax.jit(jax.vmap(after))(jax.random.split(key, 20_000))}
    assert_mean(found, problems.truths(CASE, found), detects=0.3)
    worse = problems.value_and_grads(key, CASE, plain, 1, 20_000)
    assert_variance_ratio(
        problems.of_q(worse, "plain"), problems.of_q(found, "moving"), at_least=5.0
    )


# --- a network of the data: here a line in x, which for two data can be exact

NETWORK = vj.gradients.learned(lambda psi, x: psi["slope"] * x + psi["shift"], optax.sgd(0.2))
START = {"slope": jnp.float32(0.0), "shift": jnp.float32(0.0)}


def test_learned_is_the_regression_of_log_weights_on_the_data(key):
    """It ends at E[log w], the elbo of each datum; optimisers that keep a state pass through scan and jit."""
    network = vj.gradients.learned(lambda psi, x: psi["slope"] * x + psi["shift"], optax.adam(0.1))

    def step(state, key):
        seen = vj.gradients.score(ELBO)(
            key, LOG_JOINT, problems.Bits(CASE.params["q"]), num_samples=4
        ).draws
        return network.update(state, seen.log_w, cases.X), None

    state = jax.jit(
        lambda: jax.lax.scan(step, network.init(START), jax.random.split(key, 1500))[0]
    )()
    points = jnp.asarray(np.broadcast_to(problems.all_bits(3)[:, None], (8, 2, 3)))
    log_q = jax.vmap(problems.Bits(CASE.params["q"]).log_prob)(points)
    truth = jnp.sum(jnp.exp(log_q) * (jax.vmap(LOG_JOINT)(points) - log_q), 0)
    np.testing.assert_allclose(network.value(state, cases.X), truth, atol=0.25)


def test_learned_is_unbiased_and_less_varied(key):
    """Fitted to twenty earlier draws of one's own, for many seeds at once."""

    def after(key, learn):
        first, last = jax.random.split(key)

        def step(state, key):
            objective = vj.gradients.score(ELBO, baseline=NETWORK.value(state, cases.X))
            seen = objective(key, LOG_JOINT, problems.Bits(CASE.params["q"]), num_samples=1).draws
            return NETWORK.update(state, seen.log_w, cases.X), None

        state = jax.lax.scan(
            step, NETWORK.init(START), jax.random.split(first, 20 if learn else 0)
        )[0]

        def total(params):
            objective = vj.gradients.score(ELBO, baseline=NETWORK.value(state, cases.X))
            log_joint = lambda z: CASE.log_p(params["theta"], z)
            return objective(last, log_joint, CASE.build(params["q"]), num_samples=1).value.sum()

        return jax.value_and_grad(total)(CASE.params)

    keys = jax.random.split(key, 20_000)
    found = {
        name: jax.jit(jax.vmap(lambda k, n=name: after(k, n == "learned")))(keys)
        for name in ("learned", "untaught")
    }
    assert_mean({"learned": found["learned"]}, problems.truths(CASE, ["learned"]), detects=0.3)
    assert_variance_ratio(
        problems.of_q(found, "untaught"), problems.of_q(found, "learned"), at_least=5.0
    )


def test_learned_ignores_impossible_draws_and_weighs_the_possible():
    state = NETWORK.update(
        NETWORK.init(START), jnp.array([[1.0, -jnp.inf], [3.0, -jnp.inf]]), cases.X
    )
    # ∂ ½ mean (log w)² over the two that count: -(1 + 3)/2 in the shift.
    np.testing.assert_allclose(state.params["shift"], 0.2 * 2.0, rtol=1e-6)
    np.testing.assert_allclose(state.params["slope"], 0.2 * 2.0 * cases.X[0], rtol=1e-6)
    lost = NETWORK.update(NETWORK.init(START), jnp.full((2, 2), -jnp.inf), cases.X)
    np.testing.assert_array_equal(lost.params["shift"], 0.0)


def test_learned_passes_no_gradient_to_its_network(key):
    def value(psi):
        objective = vj.gradients.score(ELBO, baseline=NETWORK.value(NETWORK.init(psi), cases.X))
        return objective(key, LOG_JOINT, problems.Bits(CASE.params["q"]), num_samples=1).value.sum()

    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(jax.grad(value)(START)))


def test_a_baseline_that_has_seen_its_own_draw_fails(key):
    """The control: updating before the step instead of after it is biased."""

    def total(params, key):
        log_joint = lambda z: CASE.log_p(params["theta"], z)
        q = CASE.build(params["q"])
        seen = vj.gradients.score(ELBO)(key, log_joint, q, num_samples=1).draws
        b = BASELINE.value(BASELINE.update(BASELINE.init((2,)), seen.log_w))
        return vj.gradients.score(ELBO, baseline=b)(key, log_joint, q, num_samples=1).value.sum()

    keys = jax.random.split(key, 20_000)
    found = {"own": jax.jit(jax.vmap(jax.value_and_grad(total), (None, 0)))(CASE.params, keys)}
    with pytest.raises(AssertionError, match="biased"):
        assert_mean(found, problems.truths(CASE, found), detects=1.0)


def test_squared_scores_give_the_optimal_coefficient(key):
    """E[‖s‖² f] / E[‖s‖²] by enumeration; it is where the variance of (f - b) s is least."""
    q = CASE.params["q"]
    points = jnp.asarray(np.broadcast_to(problems.all_bits(3)[:, None], (8, 2, 3)))
    norms = vj.gradients.squared_scores(problems.Bits, q, points)
    by_hand = jnp.sum(jnp.square(points - jax.nn.sigmoid(q)[None]), (1, 2))
    np.testing.assert_allclose(norms, by_hand, rtol=1e-5)
    # One number for both members: E‖(f - b) s‖² of each, over states of each.
    log_q = jax.vmap(problems.Bits(q).log_prob)(points)
    f, mass = jax.vmap(LOG_JOINT)(points) - log_q, jnp.exp(log_q)
    each = jnp.sum(jnp.square(points - jax.nn.sigmoid(q)[None]), -1)
    best = BASELINE.value(BASELINE.update(BASELINE.init(), f, mass * each))
    mean = BASELINE.value(BASELINE.update(BASELINE.init(), f, mass))
    spread = lambda b: float(jnp.sum(mass * each * (f - b) ** 2))
    assert all(spread(best) < spread(b) for b in (best - 0.05, best + 0.05, mean))


def test_refusals():
    for decay in (-0.1, 1.0):
        with pytest.raises(ValueError, match="decay must be"):
            vj.gradients.moving_average(decay=decay)
    with pytest.raises(ValueError, match="this baseline has shape"):
        BASELINE.update(BASELINE.init((3,)), jnp.zeros((2, 2)))
    with pytest.raises(ValueError, match="this baseline has shape"):
        NETWORK.update(NETWORK.init(START), jnp.zeros((2, 3)), cases.X)


@pytest.mark.usefixtures("unchecked")
def test_weights_of_a_moving_average_go_along_draws():
    average = vj.gradients.moving_average(decay=0.0)
    log_w = jnp.array([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0], [100.0, 200.0, 300.0]])
    weights = jnp.array([1.0, 0.0, 0.0])
    np.testing.assert_allclose(average.value(average.update(average.init(), log_w, weights)), 2.0)
    np.testing.assert_allclose(
        average.value(average.update(average.init((3,)), log_w, weights)), [1.0, 2.0, 3.0]
    )
    with pytest.raises(ValueError, match=r"\[k\] or \[k, \*batch\]"):
        average.update(average.init(), log_w, jnp.ones(2))


def test_squared_scores_of_a_dict(key):
    params = {"a": jnp.float32(0.2), "b": jnp.float32(-0.4)}

    def build(p):
        return {name: problems.Normal(loc, 1.0) for name, loc in p.items()}

    z = {"a": jnp.array([0.3, 1.0]), "b": jnp.array([0.0, -1.0])}
    expected = (z["a"] - 0.2) ** 2 + (z["b"] + 0.4) ** 2
    np.testing.assert_allclose(vj.gradients.squared_scores(build, params, z), expected, rtol=1e-5)
