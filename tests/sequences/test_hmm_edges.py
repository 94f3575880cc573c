"""hmm at its edges: missing and impossible data, batches, long chains, one step, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp

from tests.sequences.chains import FOLDS, PATHS, S, T, brute, factors, weights
from vijax.sequences import associative, hmm


@pytest.mark.slow
def test_a_batch_by_vmap(key):
    """What vmap makes of the posterior keeps its methods, axis by axis."""
    keys = jax.random.split(key, 4)
    arrays = [jnp.stack(a) for a in zip(*(factors(k) for k in keys), strict=True)]
    found, one = jax.jit(jax.vmap(hmm))(*arrays), jax.jit(hmm)
    alone = [one(*(a[i] for a in arrays)) for i in range(4)]
    np.testing.assert_allclose(found.log_evidence, [a.log_evidence for a in alone], rtol=1e-6)
    marginals = [a.posterior.log_marginals() for a in alone]
    np.testing.assert_allclose(
        found.posterior.log_marginals(), jnp.stack(marginals), rtol=1e-5, atol=1e-6
    )
    c, log_prob = found.posterior.sample_and_log_prob(seed=key, sample_shape=(6,))
    assert c.shape == (6, 4, T)
    for i in range(4):
        np.testing.assert_allclose(
            jax.vmap(alone[i].posterior.log_prob)(c[:, i]), log_prob[:, i], rtol=1e-5, atol=1e-5
        )


@pytest.mark.slow
@pytest.mark.parametrize("fold", [FOLDS[1], pytest.param(FOLDS[0], marks=pytest.mark.slow)])
def test_missing_observations(fold, key):
    """A step that is not observed counts for nothing, nan included, and is summed out: brute force without its term."""
    initial, transition, likelihood = factors(key)
    observed = jnp.array([True, False, True, False, False])
    blank = jnp.where(observed[:, None], likelihood, jnp.nan)
    found = hmm(initial, transition, blank, observed=observed, fold=fold)
    expected = weights(initial, transition, jnp.where(observed[:, None], likelihood, 0.0))
    np.testing.assert_allclose(found.log_evidence, logsumexp(expected), rtol=1e-6)
    np.testing.assert_allclose(
        jax.vmap(found.posterior.log_prob)(PATHS), jax.nn.log_softmax(expected), atol=1e-5
    )
    nothing = hmm(initial, transition, blank, observed=jnp.zeros(T, bool), fold=fold)
    np.testing.assert_allclose(nothing.log_evidence, 0.0, atol=1e-6)
    slope = jax.grad(
        lambda l: hmm(initial, transition, l, observed=observed, fold=fold).log_evidence
    )(blank)
    np.testing.assert_array_equal(slope[~observed], np.zeros((3, S)))
    np.testing.assert_allclose(slope[observed].sum(1), 1.0, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("fold", FOLDS)
def test_impossible_moves_and_impossible_data(fold, key):
    """A left-to-right chain with -inf entries: brute force, gradients without nan, draws that never break the rule.

    Data that no path explains: -inf, gradient 0, a uniform posterior.
    """
    initial, transition, likelihood = factors(key)
    barred = jnp.where(jnp.tril(jnp.ones((S, S), bool), -1), -jnp.inf, transition)
    start = jnp.where(jnp.arange(S) > 0, -jnp.inf, initial)
    evidence = lambda l: hmm(start, barred, l, fold=fold).log_evidence
    both = jax.jit(jax.value_and_grad(evidence))
    exact = jax.jit(jax.value_and_grad(lambda l: brute(start, barred, l)))(likelihood)
    jax.tree.map(
        lambda f, e: np.testing.assert_allclose(f, e, rtol=1e-6, atol=1e-6), both(likelihood), exact
    )
    assert np.all(np.isfinite(jax.jit(jax.hessian(evidence))(likelihood)))
    posterior = hmm(start, barred, likelihood, fold=fold).posterior
    c, log_prob = posterior.sample_and_log_prob(seed=key, sample_shape=(500,), fold=fold)
    assert np.all(np.diff(c, axis=1) >= 0)
    assert np.all(c[:, 0] == 0)
    assert np.all(np.isfinite(log_prob))
    assert posterior.log_prob(jnp.array([0, 1, 0, 1, 2])) == -jnp.inf
    stuck = likelihood.at[2].set(-jnp.inf)
    value, slope = both(stuck)
    assert value == -jnp.inf
    np.testing.assert_array_equal(slope, np.zeros((T, S)))
    posterior = hmm(start, barred, stuck, fold=fold).posterior
    c, log_prob = posterior.sample_and_log_prob(seed=key, sample_shape=(5,), fold=fold)
    assert np.all(np.isfinite(log_prob))


@pytest.mark.slow
def test_long_chains_in_single_precision():
    """2,000 steps, evidence about -3,600: both folds within 1e-6 of double precision, each marginal within 1e-4."""

    @jax.jit
    def sums(*arrays):
        found = hmm(*arrays)
        return (
            found.log_evidence,
            jnp.exp(found.posterior.log_marginals()),
            hmm(*arrays, fold=associative).log_evidence,
        )

    with jax.enable_x64(True):
        arrays = factors(jax.random.key(5), t=2000, dtype=jnp.float64)
        evidence, marginals, tree = (np.asarray(a) for a in sums(*arrays))
        arrays = [np.asarray(a, np.float32) for a in arrays]
    np.testing.assert_allclose(tree, evidence, rtol=1e-13)
    single, marginals_single, tree = sums(*(jnp.asarray(a) for a in arrays))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose([single, tree], [evidence] * 2, rtol=1e-6)
    np.testing.assert_allclose(marginals_single, marginals, atol=1e-4)


@pytest.mark.slow
def test_one_step_and_one_state(key):
    initial, transition, likelihood = factors(key)
    one = hmm(initial, transition, likelihood[:1], fold=associative)
    np.testing.assert_allclose(one.log_evidence, logsumexp(initial + likelihood[0]), rtol=1e-6)
    c, log_prob = one.posterior.sample_and_log_prob(seed=key, sample_shape=(3,), fold=associative)
    assert c.shape == (3, 1)
    np.testing.assert_allclose(
        log_prob, jax.nn.log_softmax(initial + likelihood[0])[c[:, 0]], rtol=1e-5
    )
    np.testing.assert_allclose(
        jax.grad(lambda l: hmm(initial, transition, l).log_evidence)(likelihood[:1]).sum(),
        1.0,
        rtol=1e-6,
    )
    alone = hmm(jnp.zeros(1), jnp.zeros((1, 1)), likelihood[:, :1])
    np.testing.assert_allclose(alone.log_evidence, likelihood[:, 0].sum(), rtol=1e-5)


def test_a_path_of_other_states_is_impossible():
    """Not another path's density, by an index that is clamped or counted from the end."""
    log_p = jnp.log(jnp.full((2, 2), 0.5))
    p = hmm(log_p[0], log_p, jnp.zeros((3, 2))).posterior
    np.testing.assert_allclose(p.log_prob(jnp.array([0, 1, 1])), 3 * np.log(0.5), rtol=1e-6)
    for path in ([0, 1, 2], [-1, 1, 1]):
        assert p.log_prob(jnp.array(path)) == -jnp.inf
    with pytest.raises(TypeError, match="whole numbers"):
        p.log_prob(jnp.array([0.0, 1.0, 1.0]))


@pytest.mark.usefixtures("unchecked")
def test_refusals(key):
    initial, transition, likelihood = factors(key)
    with pytest.raises(ValueError, match=r"log_likelihood \[T, S\].*use jax.vmap"):
        hmm(initial, transition, likelihood[None])
    with pytest.raises(ValueError, match=r"log_likelihood \[T, S\] with T >= 1"):
        hmm(initial, transition, likelihood[:0])
    with pytest.raises(
        ValueError,
        match=r"log_transition must be \(3, 3\) or \[T-1, S, S\] = \(4, 3, 3\), got \(5, 3, 3\)",
    ):
        hmm(initial, jnp.zeros((5, 3, 3)), likelihood)
    with pytest.raises(ValueError, match="observed must be booleans"):
        hmm(initial, transition, likelihood, observed=jnp.ones(T))
    with pytest.raises(ValueError, match=r"a path has shape \(5,\)"):
        hmm(initial, transition, likelihood).posterior.log_prob(jnp.zeros(4, int))
