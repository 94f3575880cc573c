"""viterbi: the best of all paths by enumeration, ties as documented, in both folds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.sequences.chains import PATHS, S, T, factors, folds, weights
from vijax.sequences import MostLikely, hmm, viterbi


@folds
def test_it_is_the_best_of_all_paths(fold, key):
    """Its value, and the value's slope, which is the path's own."""
    arrays = factors(key, moving=True)

    def look(*arrays):
        best = viterbi(*arrays, fold=fold)
        return best.log_joint, best.path

    (value, path), slopes = jax.jit(jax.value_and_grad(look, (0, 1, 2), has_aux=True))(*arrays)
    of_paths = weights(*arrays)
    np.testing.assert_array_equal(path, PATHS[jnp.argmax(of_paths)])
    np.testing.assert_allclose(value, of_paths.max(), rtol=1e-6)
    one_hot = np.eye(S)[np.asarray(path)]
    np.testing.assert_array_equal(slopes[0], one_hot[0])
    np.testing.assert_array_equal(slopes[1], one_hot[:-1, :, None] * one_hot[1:, None])
    np.testing.assert_array_equal(slopes[2], one_hot)


@folds
def test_ties_go_to_the_smallest_states_from_the_end(fold):
    """Whole numbers, exact in floats, with many ties, and impossible steps among them: 60 chains at once."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: np.where(
        rng.uniform(size=shape) < 0.15, -np.inf, -rng.integers(0, 2, shape)
    ).astype(np.float32)
    n = 60
    initial, steps, likelihood = draw(n, S), draw(n, T - 1, S, S), -rng.integers(0, 2, (n, T, S))
    likelihood = likelihood.astype(np.float32)
    path, value = jax.jit(jax.vmap(lambda *a: viterbi(*a, fold=fold)))(initial, steps, likelihood)
    # Paths by their last state, then by the one before, and so on
    order = np.lexsort(np.asarray(PATHS).T)
    ties = 0
    for i in range(n):
        of_paths = np.asarray(weights(*map(jnp.asarray, (initial[i], steps[i], likelihood[i]))))
        best = of_paths.max()
        assert value[i] == best
        ties += (of_paths == best).sum() > 1
        np.testing.assert_array_equal(path[i], PATHS[order[np.argmax(of_paths[order])]])
    assert ties > 20


def test_it_is_not_the_likeliest_state_of_each_step():
    """A start of .4 that scatters, and starts of .3 that do not."""
    steps = np.array([[1 / 3, 1 / 3, 1 / 3], [0, 0, 1], [0, 0, 1]])
    arrays = [jnp.log(jnp.asarray(a)) for a in ([0.4, 0.3, 0.3], steps, np.ones((2, 3)))]
    marginals = hmm(*arrays).posterior.log_marginals()
    assert jnp.argmax(marginals, 1).tolist() == [0, 2]
    best = viterbi(*arrays)
    assert isinstance(best, MostLikely)
    assert best.path.tolist() == [1, 2]
    np.testing.assert_allclose(best.log_joint, np.log(0.3), rtol=1e-6)


@pytest.mark.slow
def test_edges(x64):
    """One step; missing data, nan; nothing possible, whose slope is finite; thousands of steps in either dtype."""
    initial, stay = jnp.log(jnp.array([0.3, 0.7])), jnp.log(jnp.array([[0.9, 0.1], [0.2, 0.8]]))
    one = viterbi(initial, stay, jnp.zeros((1, 2)))
    assert one.path.tolist() == [1]
    np.testing.assert_allclose(one.log_joint, np.log(0.7))
    seen = jnp.array([[0.0, 1.0], [jnp.nan, jnp.nan], [0.0, 1.0]])
    gap = viterbi(initial, stay, seen, observed=jnp.array([True, False, True]))
    assert gap.path.tolist() == [1, 1, 1]
    nothing = jnp.full((3, 2), -jnp.inf)
    value, slope = jax.value_and_grad(lambda x: viterbi(initial, stay, x).log_joint)(nothing)
    assert value == -jnp.inf
    assert np.isfinite(slope).all()
    x = jnp.asarray(50 * np.random.default_rng(0).normal(size=(3000, 2)))
    both = [viterbi(*(a.astype(d) for a in (initial, stay, x))).path for d in (np.float32, float)]
    np.testing.assert_array_equal(*both)


def test_refusals(unchecked):
    with pytest.raises(ValueError, match="log_initial must be"):
        viterbi(jnp.zeros(2), jnp.zeros((2, 2)), jnp.zeros((4, 3)))
