"""Transported particles, and paths without resampling."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj
from tests.bare import Die
from tests.particles import lines
from vijax.particles import StateSpace, fivo, never, smc, transported, unrolled
from vijax.particles._transport import _move

LINE = lines.small()


def test_transport_keeps_the_mean_and_follows_the_weights(key):
    z = jax.random.normal(key, (12, 2))
    log_weights = jax.nn.log_softmax(2 * jax.random.normal(jax.random.key(1), (12,)))
    move = jax.jit(lambda epsilon: _move(z, log_weights, epsilon=epsilon, iterations=80))
    mean = jnp.exp(log_weights) @ z
    for epsilon in (0.3, 1.0):
        np.testing.assert_allclose(move(epsilon).mean(0), mean, atol=2e-3)
    # A large ε contracts to the mean; a small one keeps the spread.
    spread = lambda epsilon: jnp.var(move(epsilon), 0).sum()
    assert spread(30.0) < 0.05 * spread(0.1)
    weighted = jnp.exp(log_weights) @ jnp.square(z - mean[None])
    assert spread(0.1) > 0.6 * weighted.sum()


def test_equal_places_stay(key):
    value, slope = jax.value_and_grad(
        lambda a: jnp.sum(
            _move(a * jnp.ones((4, 1)), jnp.log(jnp.full(4, 0.25)), epsilon=0.5, iterations=5)
        )
    )(2.0)
    np.testing.assert_allclose([value, slope], [8.0, 4.0], rtol=1e-5)


def test_the_slope_is_that_of_the_value(key, x64):
    """No jumps: differences of one key's log Ẑ agree; a resampled filter's do not."""
    x = jnp.asarray(lines.X, jnp.float64)
    at = jnp.asarray(lines.UNITS, jnp.float64)
    value = jax.jit(lambda p: transported(key, lines.small(p), x, num_particles=8).value)
    slope = jax.grad(value)(at)
    for i, e in enumerate(jnp.eye(2) * 1e-5):
        difference = (value(at + e) - value(at - e)) / 2e-5
        np.testing.assert_allclose(slope[i], difference, rtol=1e-4)


@pytest.mark.slow
def test_it_nears_the_evidence_as_epsilon_falls(key):
    """Biased by design: of 60 filters' means (errors .05, the same keys) -.23 nats at ε = .5 and -.13 at .1."""
    exact = lines.kalman(lines.UNITS, lines.X, start=lines.SMALL).log_evidence

    def bias(epsilon):
        run = partial(transported, data=lines.X, num_particles=50, epsilon=epsilon)
        return (lines.filters(key, 60, lambda k: run(k, LINE).value) - exact).mean()

    coarse, fine = bias(0.5), bias(0.1)
    assert coarse < fine
    assert abs(fine) < 0.4


@pytest.mark.slow
def test_batches_and_twists_are_transported(key):
    x = jnp.stack([lines.X, lines.X[::-1]], 1)
    model = StateSpace(
        lambda x: lines.Line(lines.SMALL[0] + jnp.zeros(2), lines.SMALL[1]),
        LINE.transition,
        LINE.emission,
    )
    twist = lines.lookahead(lines.UNITS)
    value = transported(key, model, x, num_particles=30, twist=twist).value
    exact = lines.kalman(lines.UNITS, lines.X, start=lines.SMALL).log_evidence
    assert value.shape == (2,)
    assert abs(value[0] - exact) < 0.6


def test_what_transport_refuses(key, unchecked):
    with pytest.raises(ValueError, match="epsilon must be positive"):
        transported(key, LINE, lines.X, num_particles=4, epsilon=0.0)

    class Whole(lines.Line):
        def sample_and_log_prob(self, *, seed, sample_shape=()):
            z, log_q = super().sample_and_log_prob(seed=seed)
            return (z, jnp.array(1)), log_q

    model = StateSpace(
        lambda x: Whole(0.0, 1.0), lambda z, x: Whole(z[0], 1.0), lambda z, x: -(z[0] ** 2)
    )
    with pytest.raises(ValueError, match="leaf '1' is discrete"):
        transported(key, model, lines.X, num_particles=4)


# --- paths without resampling


def test_unrolled_weights_are_those_of_a_filter_that_never_resamples(key):
    """IWAE of the paths is log Ẑ of such a filter: equal in mean, and exactly so for the same draws."""
    q = lines.optimal(lines.UNITS, start=lines.SMALL)
    log_joint, paths = unrolled(LINE, lines.X, q)
    drawn = vj.draws.weigh(key, log_joint, paths, num_samples=5)
    z = drawn.z

    def weight(z):
        log_w = LINE.initial(0.0).log_prob(z[0]) - q.initial(lines.X[0]).log_prob(z[0])
        for t, x in enumerate(lines.X):
            if t:
                log_w += LINE.transition(z[t - 1], x).log_prob(z[t])
                log_w -= q.transition(z[t - 1], x).log_prob(z[t])
            log_w += LINE.emission(z[t], x)
        return log_w

    np.testing.assert_allclose(drawn.log_w, jax.vmap(weight)(z), rtol=1e-5)


@pytest.mark.slow
def test_iwae_over_time_by_any_estimator(key):
    """dreg and fivo with `never` agree in their mean slope; the exact proposal's evidence is at the bound."""

    def value(params, k, how):
        model, q = lines.small(params), lines.optimal(lines.UNITS + 0.5, start=lines.SMALL)
        if how == "fivo":
            return fivo(k, model, lines.X, q, num_particles=4, resample=never).value
        log_joint, paths = unrolled(model, lines.X, q)
        return vj.gradients.dreg(vj.bounds.iwae)(k, log_joint, paths, num_samples=4).value

    found = {}
    for how in ("fivo", "dreg"):
        f = jax.jit(jax.vmap(jax.value_and_grad(partial(value, how=how)), (None, 0)))
        found[how] = jax.tree.map(
            lambda a: np.asarray(a, np.float64), f(lines.UNITS, jax.random.split(key, 4000))
        )
    for a, b in zip(found["fivo"], found["dreg"], strict=True):
        error = np.sqrt((a.var(0) + b.var(0)) / 4000)
        assert np.all(np.abs(a.mean(0) - b.mean(0)) < 6 * error)


@pytest.mark.slow
def test_discrete_paths_take_vimco(key):
    class Toss(Die):
        fixed_support = True

    chain = lambda a: StateSpace(
        lambda x: Toss(jnp.stack([a, -a])),
        lambda z, x: Toss(jnp.stack([a * z, 0.3])),
        lambda z, x: -1.0 * (z - x) ** 2,
    )
    x = jnp.array([0, 1, 1])

    def value(a, estimator=vj.gradients.vimco):
        log_joint, q = unrolled(chain(a), x)
        return estimator(vj.bounds.iwae)(key, log_joint, q, num_samples=4).value

    assert jnp.isfinite(jax.grad(value)(0.2))
    with pytest.raises(ValueError, match="dreg needs draws that carry"):
        value(0.2, vj.gradients.dreg)
    masked, _ = unrolled(chain(0.2), x, mask=jnp.array([True, False, True]))
    whole, _ = unrolled(chain(0.2), x)
    path = jnp.array([0, 0, 1])
    np.testing.assert_allclose(whole(path) - masked(path), -1.0, rtol=1e-5)
    assert smc(key, chain(0.2), x, num_particles=3).increments.shape == (3,)
