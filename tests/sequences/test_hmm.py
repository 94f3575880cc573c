"""hmm: brute force over all paths, both folds alike, and draws of the path with their own density."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp
from jax.scipy.stats import norm

import vijax as vj
from vijax.sequences import associative, hmm, sequential

S, T = 3, 5
PATHS = jnp.asarray(list(itertools.product(range(S), repeat=T)))
FOLDS = [sequential, associative]
folds = pytest.mark.parametrize("fold", FOLDS, ids=lambda fold: fold.__name__)


def factors(key, t=T, s=S, moving=False, dtype=jnp.float32):
    a, b, c = jax.random.split(key, 3)
    transition = jax.random.normal(b, (t - 1, s, s) if moving else (s, s), dtype)
    initial = jax.nn.log_softmax(2 * jax.random.normal(a, (s,), dtype))
    return initial, jax.nn.log_softmax(2 * transition, -1), 2 * jax.random.normal(c, (t, s), dtype)


def weights(initial, transition, likelihood):
    """Return log p(x, c) of all paths, [S^T]."""
    steps = jnp.broadcast_to(transition, (T - 1, S, S)) if transition.ndim == 3 else jnp.stack([transition] * (T - 1))
    at = jnp.arange(T)[None]
    moved = steps[at[:, 1:] - 1, PATHS[:, :-1], PATHS[:, 1:]]
    return initial[PATHS[:, 0]] + jnp.sum(moved, 1) + jnp.sum(likelihood[at, PATHS], 1)


def brute(*arrays):
    return logsumexp(weights(*arrays))


@folds
@pytest.mark.parametrize("moving", [False, True])
def test_the_evidence_is_brute_force(fold, moving, key):
    """Value and gradient, 243 paths."""
    arrays = factors(key, moving=moving)
    evidence = lambda *arrays: hmm(*arrays, fold=fold).log_evidence
    found, expected = (jax.jit(jax.value_and_grad(f, (0, 1, 2)))(*arrays) for f in (evidence, brute))
    jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, rtol=1e-5, atol=2e-6), found, expected)


@folds
def test_derivatives_of_any_order(fold, x64, key):
    """Second derivatives, and the third along a line, in double precision."""
    arrays = factors(key, dtype=jnp.float64)
    flat, build = jax.flatten_util.ravel_pytree(arrays)
    direction = jnp.sin(jnp.arange(1.0, flat.size + 1))
    evidence, exact = lambda x: hmm(*build(x), fold=fold).log_evidence, lambda x: brute(*build(x))
    np.testing.assert_allclose(evidence(flat), exact(flat), rtol=1e-13)
    np.testing.assert_allclose(jax.jit(jax.hessian(evidence))(flat), jax.jit(jax.hessian(exact))(flat), atol=1e-11)
    line = lambda f: jax.grad(jax.grad(jax.grad(lambda t: f(flat + t * direction))))
    np.testing.assert_allclose(jax.jit(line(evidence))(0.0), jax.jit(line(exact))(0.0), rtol=1e-9)


@folds
def test_the_posterior_is_brute_force(fold, key):
    """Density of each path, marginals, pairs; the marginals are also the derivative of the evidence."""
    arrays = factors(key, moving=True)

    @jax.jit
    def everything(*arrays):
        posterior = hmm(*arrays, fold=fold).posterior
        slopes = jax.grad(lambda *a: hmm(*a, fold=fold).log_evidence, (1, 2))(*arrays)
        return (
            jax.vmap(posterior.log_prob)(PATHS),
            posterior.log_pairs(fold=fold),
            posterior.log_marginals(fold=fold),
            slopes,
        )

    log_probs, log_pairs, log_marginals, slopes = everything(*arrays)
    exact = np.asarray(jax.nn.log_softmax(weights(*arrays)))
    np.testing.assert_allclose(log_probs, exact, rtol=1e-5, atol=1e-5)
    one_hot = np.eye(S)[np.asarray(PATHS)]
    hot = one_hot * np.exp(exact)[:, None, None]
    pairs = np.einsum("nti,ntj->tij", hot[:, :-1], one_hot[:, 1:])
    np.testing.assert_allclose(np.exp(log_marginals), hot.sum(0), atol=1e-6)
    np.testing.assert_allclose(np.exp(log_pairs), pairs, atol=1e-6)
    np.testing.assert_allclose(slopes[0], pairs, atol=1e-6)
    np.testing.assert_allclose(slopes[1], hot.sum(0), atol=1e-6)


def test_draws_are_exact(key):
    """40,000 paths: how often each comes, by chi-squared over the 243, and the log-density that comes with them.

    The control draws each state from its marginal alone, and is found.
    """
    arrays = factors(key)
    posterior = hmm(*arrays).posterior
    n = 40_000
    c, log_prob = jax.jit(lambda: posterior.sample_and_log_prob(seed=key, sample_shape=(n,)))()
    np.testing.assert_allclose(log_prob, jax.vmap(posterior.log_prob)(c), rtol=1e-6)
    expected = n * np.exp(np.asarray(jax.nn.log_softmax(weights(*arrays)), np.float64))

    def distance(c):
        """Return chi-squared over the paths expected 5 times or more, and the rest as one, in units of its spread."""
        counts = np.bincount(np.asarray(c) @ S ** np.arange(T)[::-1], minlength=S**T)
        many = expected >= 5
        cells = [(counts[many], expected[many]), (counts[~many].sum(), max(expected[~many].sum(), 1.0))]
        total = sum(float(np.sum((o - e) ** 2 / e)) for o, e in cells)
        return (total - many.sum()) / np.sqrt(2 * many.sum())

    assert distance(c) < 8
    alone = jax.random.categorical(key, posterior.log_marginals(), shape=(n, T))
    assert distance(alone) > 100


def test_folds_draw_the_same_paths(key):
    """The same noise, composed as maps: equal numbers, batch axes included."""
    arrays = factors(key, t=40)
    drawn = [
        jax.jit(lambda fold=fold: hmm(*arrays, fold=fold).posterior.sample_and_log_prob(
            seed=key, sample_shape=(2, 3), fold=fold
        ))()
        for fold in FOLDS
    ]  # fmt: skip
    np.testing.assert_array_equal(drawn[0][0], drawn[1][0])
    assert drawn[0][0].shape == (2, 3, 40)
    assert drawn[0][1].shape == (2, 3)
    np.testing.assert_allclose(drawn[0][1], drawn[1][1], rtol=1e-5)


def test_a_batch_by_vmap(key):
    """What vmap makes of the posterior keeps its methods, axis by axis."""
    keys = jax.random.split(key, 4)
    arrays = [jnp.stack(a) for a in zip(*(factors(k) for k in keys), strict=True)]
    found, one = jax.jit(jax.vmap(hmm))(*arrays), jax.jit(hmm)
    alone = [one(*(a[i] for a in arrays)) for i in range(4)]
    np.testing.assert_allclose(found.log_evidence, [a.log_evidence for a in alone], rtol=1e-6)
    marginals = [a.posterior.log_marginals() for a in alone]
    np.testing.assert_allclose(found.posterior.log_marginals(), jnp.stack(marginals), rtol=1e-5, atol=1e-6)
    c, log_prob = found.posterior.sample_and_log_prob(seed=key, sample_shape=(6,))
    assert c.shape == (6, 4, T)
    for i in range(4):
        np.testing.assert_allclose(jax.vmap(alone[i].posterior.log_prob)(c[:, i]), log_prob[:, i], rtol=1e-5, atol=1e-5)


@folds
def test_missing_observations(fold, key):
    """A step that is not observed counts for nothing, nan included, and is summed out: brute force without its term."""
    initial, transition, likelihood = factors(key)
    observed = jnp.array([True, False, True, False, False])
    blank = jnp.where(observed[:, None], likelihood, jnp.nan)
    found = hmm(initial, transition, blank, observed=observed, fold=fold)
    expected = weights(initial, transition, jnp.where(observed[:, None], likelihood, 0.0))
    np.testing.assert_allclose(found.log_evidence, logsumexp(expected), rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(found.posterior.log_prob)(PATHS), jax.nn.log_softmax(expected), atol=1e-5)
    nothing = hmm(initial, transition, blank, observed=jnp.zeros(T, bool), fold=fold)
    np.testing.assert_allclose(nothing.log_evidence, 0.0, atol=1e-6)
    slope = jax.grad(lambda l: hmm(initial, transition, l, observed=observed, fold=fold).log_evidence)(blank)
    np.testing.assert_array_equal(slope[~observed], np.zeros((3, S)))
    np.testing.assert_allclose(slope[observed].sum(1), 1.0, rtol=1e-5)


@folds
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
    jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, rtol=1e-6, atol=1e-6), both(likelihood), exact)
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


def test_long_chains_in_single_precision():
    """2,000 steps, evidence about -3,600: both folds within 1e-6 of double precision, each marginal within 1e-4."""

    @jax.jit
    def sums(*arrays):
        found = hmm(*arrays)
        return found.log_evidence, jnp.exp(found.posterior.log_marginals()), hmm(*arrays, fold=associative).log_evidence

    with jax.enable_x64(True):
        arrays = factors(jax.random.key(5), t=2000, dtype=jnp.float64)
        evidence, marginals, tree = (np.asarray(a) for a in sums(*arrays))
        arrays = [np.asarray(a, np.float32) for a in arrays]
    np.testing.assert_allclose(tree, evidence, rtol=1e-13)
    single, marginals_single, tree = sums(*(jnp.asarray(a) for a in arrays))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose([single, tree], [evidence] * 2, rtol=1e-6)
    np.testing.assert_allclose(marginals_single, marginals, atol=1e-4)


def test_the_candidates_identity_and_a_target(key):
    """A switching mean, its path collapsed by the posterior (at any path) or by the evidence: one target."""
    x = jnp.array([0.2, 0.1, 2.2, 1.9, 0.3])
    initial, transition, _ = factors(key)
    means = lambda z: z * jnp.arange(3.0)
    chain = lambda z: hmm(initial, transition, norm.logpdf(x[:, None], means(z)[None], 0.5))
    whole = lambda z: (
        norm.logpdf(z["z"])
        + weights(initial, transition, jnp.zeros((T, S)))[jnp.sum(z["c"] * 3 ** jnp.arange(T)[::-1])]
        + jnp.sum(norm.logpdf(x, means(z["z"])[z["c"]], 0.5))
    )
    collapsed = lambda z: norm.logpdf(z) + chain(z).log_evidence
    by_chib = vj.targets.collapse(lambda z, c: whole({"z": z, "c": c}), lambda z: chain(z).posterior, key=key)
    for z in (0.4, 1.1):
        np.testing.assert_allclose(by_chib(jnp.float32(z)), collapsed(jnp.float32(z)), rtol=1e-5)


def test_one_step_and_one_state(key):
    initial, transition, likelihood = factors(key)
    one = hmm(initial, transition, likelihood[:1], fold=associative)
    np.testing.assert_allclose(one.log_evidence, logsumexp(initial + likelihood[0]), rtol=1e-6)
    c, log_prob = one.posterior.sample_and_log_prob(seed=key, sample_shape=(3,), fold=associative)
    assert c.shape == (3, 1)
    np.testing.assert_allclose(log_prob, jax.nn.log_softmax(initial + likelihood[0])[c[:, 0]], rtol=1e-5)
    np.testing.assert_allclose(
        jax.grad(lambda l: hmm(initial, transition, l).log_evidence)(likelihood[:1]).sum(), 1.0, rtol=1e-6
    )
    alone = hmm(jnp.zeros(1), jnp.zeros((1, 1)), likelihood[:, :1])
    np.testing.assert_allclose(alone.log_evidence, likelihood[:, 0].sum(), rtol=1e-5)


@pytest.mark.usefixtures("unchecked")
def test_refusals(key):
    initial, transition, likelihood = factors(key)
    with pytest.raises(ValueError, match=r"log_likelihood \[T, S\].*use jax.vmap"):
        hmm(initial, transition, likelihood[None])
    with pytest.raises(ValueError, match=r"log_likelihood \[T, S\] with T >= 1"):
        hmm(initial, transition, likelihood[:0])
    with pytest.raises(
        ValueError, match=r"log_transition must be \(3, 3\) or \[T-1, S, S\] = \(4, 3, 3\), got \(5, 3, 3\)"
    ):
        hmm(initial, jnp.zeros((5, 3, 3)), likelihood)
    with pytest.raises(ValueError, match="observed must be booleans"):
        hmm(initial, transition, likelihood, observed=jnp.ones(T))
    with pytest.raises(ValueError, match=r"a path has shape \(5,\)"):
        hmm(initial, transition, likelihood).posterior.log_prob(jnp.zeros(4, int))
