"""Paths of particles against those of a hidden Markov chain, whose posterior is exact."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj
from tests.bare import Die
from tests.marks import some
from tests.statistics import Z
from vijax.particles import (
    Carried,
    Population,
    StateSpace,
    always,
    backward_simulate,
    carrying,
    conditional_smc,
    history,
    multinomial,
    smc,
    trace_back,
)
from vijax.particles._paths import _around
from vijax.particles._run import Form, Inputs, run
from vijax.particles._smc import as_kept, by_index

START = jnp.log(jnp.array([0.5, 0.3, 0.2]))
MOVE = jnp.log(jnp.array([[0.7, 0.2, 0.1], [0.2, 0.6, 0.2], [0.3, 0.1, 0.6]]))
EMIT = jnp.log(jnp.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.3, 0.6]]))
X = jnp.array([0, 2, 1, 2])
T = len(X)


class Toss(Die):
    fixed_support = True


CHAIN = StateSpace(lambda x: Toss(START), lambda z, x: Toss(MOVE[z]), lambda z, x: EMIT[z, x])
EXACT = vj.sequences.hmm(START, MOVE, EMIT[:, X].T)


def pairs(paths, weights=None):
    """Return P(zₜ, zₜ₊₁), [T-1, 3, 3], of paths [M, T], and how far each is known."""
    seen = jax.nn.one_hot(paths, 3)
    both = seen[:, :-1, :, None] * seen[:, 1:, None, :]
    mean = both.mean(0) if weights is None else jnp.tensordot(weights, both, 1)
    return np.asarray(mean)


def test_paths_are_traced_back_one_ancestor_at_a_time(key):
    rng = np.random.default_rng(0)
    z, ancestors = rng.normal(size=(5, 4)), rng.integers(0, 4, (5, 4))
    paths = trace_back(Population(jnp.asarray(z), jnp.zeros((5, 4)), jnp.asarray(ancestors)))
    for i in range(4):
        index = i
        for t in reversed(range(5)):
            assert paths[i, t] == np.float32(z[t, index])
            index = ancestors[t, index]


@pytest.fixture(scope="module")
def filtered():
    run = jax.jit(lambda k: smc(k, CHAIN, X, num_particles=20_000, record=history))
    return run(jax.random.key(3))


def test_traced_paths_and_simulated_ones_have_the_posterior(filtered, key):
    """Each of 27 numbers is known to .004 or better (standard error, 20,000 paths): 6 of them; filtering alone is .05 off."""
    exact = np.exp(np.asarray(EXACT.posterior.log_pairs()))
    traced = pairs(trace_back(filtered.recorded), jnp.exp(filtered.log_weights))
    np.testing.assert_allclose(traced, exact, atol=0.025)
    simulate = jax.jit(partial(backward_simulate, num_paths=3000), static_argnums=1)
    # Every fifth particle: of a sorted filter a fair sample, whose weights need not sum to 1.
    some = jax.tree.map(lambda leaf: leaf[:, ::5], filtered.recorded)
    paths = simulate(key, CHAIN, X, some)
    assert paths.shape == (3000, T)
    np.testing.assert_allclose(pairs(paths), exact, atol=0.05)
    filtered_only = jax.nn.one_hot(filtered.recorded.z, 3)
    marginals = jnp.einsum("tn,tns->ts", jnp.exp(filtered.recorded.log_weights), filtered_only)
    smoothed = jnp.exp(EXACT.posterior.log_marginals())
    assert jnp.abs(marginals - smoothed).max() > 0.05


def kernel(key, path, *, choose, form=None):
    """Return the path after one turn of particle Gibbs with three particles."""
    one, two = jax.random.split(key)
    if form is None:
        recorded = conditional_smc(one, CHAIN, X, path, num_particles=3)
    else:
        recorded = run(one, CHAIN, X, None, 3, form, Inputs(record=history, given=path)).recorded
    if choose == "backward":
        return backward_simulate(two, CHAIN, X, recorded, num_paths=1)[0]
    return trace_back(recorded)[jax.random.categorical(two, recorded.log_weights[-1])]


@pytest.mark.parametrize("choose", some(["backward", "trace"], "trace"))
def test_conditional_smc_leaves_the_posterior_as_it_is(choose, key):
    """From exact paths to exact paths; by chance 1e-9. Pinning the state but not its ancestor is found out."""
    draw, step = jax.random.split(key)
    before, _ = EXACT.posterior.sample_and_log_prob(seed=draw, sample_shape=(40_000,))
    exact = np.exp(np.asarray(EXACT.posterior.log_pairs()))
    error = np.sqrt(exact * (1 - exact) / 40_000)
    keys = jax.random.split(step, 40_000)
    turn = lambda **how: jax.jit(jax.vmap(partial(kernel, choose=choose, **how)))(keys, before)
    after = turn()
    assert (np.abs(pairs(after) - exact) / error).max() < Z
    assert jnp.mean(after != before) > 0.1
    if choose == "trace":
        # The control: all ancestors are drawn, the given path's among them.
        wrong = turn(form=Form(_around, by_index(always(multinomial), as_kept)))
        assert (np.abs(pairs(wrong) - exact) / error).max() > 2 * Z


def test_the_given_path_is_the_first_particle(key):
    path = jnp.array([2, 0, 1, 1])
    recorded = jax.jit(lambda k: conditional_smc(k, CHAIN, X, path, num_particles=5))(key)
    np.testing.assert_array_equal(recorded.z[:, 0], path)
    np.testing.assert_array_equal(recorded.ancestors[:, 0], 0)
    np.testing.assert_array_equal(trace_back(recorded)[0], path)


def test_a_state_that_carries_its_past(key):
    """A sum of all states so far is computed and not drawn; paths are traced back, not simulated."""
    counting = StateSpace(
        lambda x: carrying(Toss(START), lambda z: z),
        lambda s, x: carrying(Toss(MOVE[s.z]), lambda z: s.carried + z),
        lambda s, x: EMIT[s.z, x],
    )
    filtered = lambda model: jax.jit(lambda k: smc(k, model, X, num_particles=50, record=history))(
        key
    )
    result = filtered(counting)
    paths = trace_back(result.recorded)
    assert isinstance(paths, Carried)
    np.testing.assert_array_equal(paths.carried, jnp.cumsum(paths.z, 1))
    np.testing.assert_array_equal(result.log_evidence, filtered(CHAIN).log_evidence)
    with pytest.raises(ValueError, match="carry what came before.*trace_back"):
        backward_simulate(key, counting, X, result.recorded, num_paths=2)
    given = jax.tree.map(lambda leaf: leaf[7], paths)
    around = jax.jit(lambda k: conditional_smc(k, counting, X, given, num_particles=4))
    kept_path = trace_back(around(key))
    np.testing.assert_array_equal(kept_path.carried[0], given.carried)


def test_what_is_no_record_is_refused(filtered, key, unchecked):
    with pytest.raises(TypeError, match="record=particles.history"):
        trace_back(filtered)
    with pytest.raises(ValueError, match="transported ones have none"):
        trace_back(filtered.recorded._replace(ancestors=None))
    batch = jax.tree.map(lambda leaf: leaf[..., None], filtered.recorded)
    with pytest.raises(ValueError, match="one sequence"):
        backward_simulate(key, CHAIN, X, batch, num_paths=2)
    with pytest.raises(ValueError, match="num_particles must be at least 2, got 1, the given path"):
        conditional_smc(key, CHAIN, X, X, num_particles=1)
    with pytest.raises(ValueError, match="path must be like z with leading axis T = 4"):
        conditional_smc(key, CHAIN, X, X[:3], num_particles=3)
