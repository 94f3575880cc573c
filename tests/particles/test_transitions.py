"""Transitions leave the density between q and the posterior as it is; one without an accept step does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.particles.annealing import unadjusted
from tests.statistics import assert_mean
from vijax.particles import hmc, langevin

MEAN, ROOT = np.array([1.0, -0.5], np.float32), np.array([[1.0, 0.0], [0.8, 0.4]], np.float32)


def log_density(z):
    """N(MEAN, ROOT ROOTᵀ) of the leaf a, a standard normal of the leaf b, [] each."""
    white = jax.scipy.linalg.solve_triangular(ROOT, z["a"] - MEAN, lower=True)
    return -0.5 * (jnp.sum(white**2) + z["b"] ** 2)


STEPS = {"a": np.array([0.7, 0.5], np.float32), "b": np.float32(1.2)}
MOVES = {
    "langevin": langevin(step_size=STEPS),
    "hmc": hmc(step_size=lambda beta: 0.4 + 0.2 * beta, num_steps=3),
}
WRONG = {"unadjusted": unadjusted(step_size=STEPS)}
DRAWS = 40_000


def moments(move, key):
    """Return first and second moments of whitened draws after one move from exact ones; all 0 if it is invariant."""

    def one(key):
        of_z, of_move = jax.random.split(key)
        e = jax.random.normal(of_z, (3,))
        before = {"a": MEAN + ROOT @ e[:2], "b": e[2]}
        z, acceptance = move(of_move, log_density, before, jnp.float32(0.5))
        white = jax.scipy.linalg.solve_triangular(ROOT, z["a"] - MEAN, lower=True)
        white = jnp.append(white, z["b"])
        # f(before) g(after) - g(before) f(after) has mean 0 where the move is reversible.
        flow = e[0] * white[1] ** 3 - e[1] ** 3 * white[0]
        squares = jnp.outer(white, white) - jnp.eye(3)
        return {"mean": white, "square": squares, "flow": flow}, acceptance

    return jax.jit(jax.vmap(one))(jax.random.split(key, DRAWS))


@pytest.mark.parametrize("name", MOVES)
def test_a_transition_leaves_its_density_and_goes_back_as_often(key, name):
    """A bias of .15 in a moment is caught with probability .9987."""
    found, acceptance = moments(MOVES[name], key)
    assert 0.3 < float(acceptance.mean()) < 0.95  # the accept step is at work
    zero = {"mean": np.zeros(3), "square": np.zeros((3, 3)), "flow": np.zeros(())}
    assert_mean(found, zero, detects={"mean": 0.08, "square": 0.15, "flow": 0.6})


def test_a_transition_without_an_accept_step_is_found(key):
    """The control."""
    found, _ = moments(WRONG["unadjusted"], key)
    with pytest.raises(AssertionError, match="is biased"):
        assert_mean(found["square"], np.zeros((3, 3)), detects=1.0)


def test_members_move_by_themselves(key):
    """A batch of two with a step for each: of one too large nothing is accepted, of the other most."""
    move = langevin(step_size=jnp.array([0.3, 100.0]))
    run = jax.jit(lambda key: move(key, lambda z: -0.5 * jnp.sum(z**2, -1), jnp.ones((2, 3)), 1.0))
    z, acceptance = run(key)
    assert acceptance[0] > 0.8
    assert acceptance[1] == 0
    assert np.all(z[0] != 1)
    assert np.all(z[1] == 1)


def test_impossible_places(key):
    """From an impossible z any possible one is accepted; a proposal that is nan or impossible never is."""
    inside = lambda z: jnp.where(z > 0, -z, -jnp.inf)
    poisoned = lambda z: jnp.where(z > 1, jnp.nan, 0.0 * z)
    move = langevin(step_size=3.0)

    @jax.jit
    @jax.vmap
    def run(key):
        starts = ((inside, -1.0), (inside, 1.0), (poisoned, 0.5))
        return [move(key, density, jnp.float32(z), 1.0) for density, z in starts]

    (left, _), (kept, _), (sound, accepted) = run(jax.random.split(key, 50))
    assert {False, True} == set((left > 0).tolist())
    assert np.all(kept > 0)
    assert np.all(sound <= 1)
    assert np.all(accepted >= 0)


def test_arguments():
    with pytest.raises(ValueError, match=r"step_size must be above 0, got 0\.0"):
        langevin(step_size=0.0)
    with pytest.raises(ValueError, match="num_steps must be at least 1"):
        hmc(step_size=0.1, num_steps=0)
    with pytest.raises(ValueError, match=r"one for each member \(2,\).* got shape \(3,\)"):
        langevin(step_size=jnp.ones(3))(
            jax.random.key(0), lambda z: -0.5 * z**2, jnp.ones(2), jnp.float32(1.0)
        )
