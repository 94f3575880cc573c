"""Steps that climb: the same as by hand with Optax, with memories, in loops, under vmap; and what they refuse."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vijax as vj
from vijax.fitting import ascent
from vijax.fitting._ascent import AscentState
from vijax.types import Draws, Estimate, Rule, Step

X = jnp.array([1.0, -0.5, 2.0])
FAMILY = vj.families.mean_field()
OBJECTIVE = vj.gradients.reparam(vj.bounds.elbo)


def log_joint(z):
    return -0.5 * jnp.sum(jnp.square(z - X))


def estimate(key, params):
    return OBJECTIVE(key, log_joint, FAMILY.dist(params), num_samples=2)


def start():
    return FAMILY.init(jax.random.key(0), jnp.zeros(3))


def test_a_step_is_the_step_by_hand(key):
    optimizer = optax.adam(0.1)
    rule = ascent(estimate, optimizer)
    assert isinstance(rule, Rule)

    @jax.jit
    def both(key):
        params = start()
        state = rule.init(params)
        assert isinstance(state, AscentState)
        new, seen = rule.step(key, state)
        gradient = jax.grad(lambda p: -estimate(key, p).value)(params)
        updates, optimized = optimizer.update(gradient, optimizer.init(params), params)
        return (
            (rule.params(new), new.optimizer),
            (optax.apply_updates(params, updates), optimized),
            seen,
            gradient,
        )

    found, expected, seen, gradient = both(key)
    jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, rtol=1e-6), found, expected)
    assert isinstance(seen, Step)
    jax.tree.map(lambda f, e: np.testing.assert_allclose(f, -e, rtol=1e-6), seen.gradient, gradient)
    assert seen.draws.log_w.shape == (2,)


def test_a_memory_goes_from_step_to_step(key):
    """A cursor through the data and a baseline that learns, in one pytree."""
    data = jnp.arange(6.0).reshape(3, 2)
    average = vj.gradients.moving_average(decay=0.5)
    traced = []

    def stateful(key, params, memory):
        traced.append(params)
        x = data[memory["cursor"] % 3]
        q = FAMILY.dist(params)
        objective = vj.gradients.score(vj.bounds.elbo, baseline=average.value(memory["baseline"]))
        found = objective(key, lambda z: -0.5 * jnp.sum(jnp.square(z[:2] - x)), q, num_samples=4)
        baseline = average.update(memory["baseline"], found.draws.log_w)
        return found, {"cursor": memory["cursor"] + 1, "baseline": baseline}

    rule = ascent(stateful, optax.sgd(0.01))
    state = rule.init(start(), {"cursor": 0, "baseline": average.init()})
    step = jax.jit(rule.step)
    log_w = []
    for i in range(3):
        state, seen = step(jax.random.fold_in(key, i), state)
        log_w.append(seen.draws.log_w.mean())
    assert state.memory["cursor"] == 3
    assert len(traced) == 1
    expected = np.dot([0.25, 0.5, 1.0], log_w) / 1.75
    np.testing.assert_allclose(average.value(state.memory["baseline"]), expected, rtol=1e-5)


def test_vmap_and_scan_are_loops(key):
    rule = ascent(estimate, optax.adam(0.1))
    keys = jax.random.split(key, 3)
    starts = [jax.tree.map(lambda l, i=i: l + 0.1 * i, start()) for i in range(3)]
    states = jax.vmap(rule.init)(jax.tree.map(lambda *l: jnp.stack(l), *starts))
    many, _ = jax.jit(jax.vmap(rule.step))(keys, states)
    step = jax.jit(rule.step)
    for i, one in enumerate(starts):
        alone, _ = step(keys[i], rule.init(one))
        jax.tree.map(
            lambda m, a, i=i: np.testing.assert_allclose(m[i], a, rtol=1e-5, atol=1e-6), many, alone
        )
    state = rule.init(start())
    scanned, _ = jax.jit(lambda s: jax.lax.scan(lambda s, k: rule.step(k, s), s, keys))(state)
    for k in keys:
        state, _ = step(k, state)
    jax.tree.map(
        lambda s, a: np.testing.assert_allclose(s, a, rtol=1e-5, atol=1e-6), scanned, state
    )


def test_an_optimizer_that_wants_the_value_is_given_a_loss(key):
    """reduce_on_plateau lowers its scale where the loss does not fall."""
    optimizer = optax.chain(optax.sgd(0.0), optax.contrib.reduce_on_plateau(patience=2))
    state = ascent(lambda key, p: Estimate(p, None), optimizer).init(jnp.float32(3.0))
    rule = ascent(lambda key, p: Estimate(p, Draws(None, p[None], p[None])), optimizer)
    state, _ = jax.jit(rule.step)(key, state)
    assert state.optimizer[-1].best_value == -3.0


def test_numbers_of_python_do_not_change_type(key, x64):
    rule = ascent(lambda key, p: Estimate(-(p["a"] ** 2), Draws(None, None, None)), optax.sgd(0.25))
    state = rule.init({"a": 1.0})
    assert state.params["a"].dtype == jnp.float64
    assert not state.params["a"].weak_type
    assert rule.step(key, state)[0].params["a"] == 0.5


def test_what_is_refused(key, unchecked):
    def step(estimate, memory=None):
        rule = ascent(estimate, optax.sgd(0.1))
        return rule.step(key, rule.init(jnp.float32(0.0), memory))

    with pytest.raises(
        ValueError, match=r"one number, got shape \(3,\): sum or average over the batch"
    ):
        step(lambda key, p: Estimate(p + X, None))
    with pytest.raises(TypeError, match="must return an Estimate.*got .*Array|Tracer"):
        step(lambda key, p: p)
    with pytest.raises(
        TypeError, match=r"one that returns a memory too needs init\(params, memory\)"
    ):
        step(lambda key, p: (Estimate(p, None), 1))
    with pytest.raises(TypeError, match=r"must return \(Estimate, memory\)"):
        step(lambda key, p, memory: Estimate(p, None), memory=jnp.int32(0))
    with pytest.raises(TypeError, match="float arrays, leaf 'a' is int32"):
        ascent(estimate, optax.sgd(0.1)).init({"a": jnp.int32(0)})
    rule = ascent(estimate, optax.sgd(0.1))
    for use in (partial(rule.step, key), rule.params):
        with pytest.raises(
            TypeError, match=r"state must be what the rule's init\(params\) returned, got a dict"
        ):
            use(start())
