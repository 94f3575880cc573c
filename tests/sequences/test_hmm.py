"""hmm: brute force over all paths, both folds alike, and draws of the path with their own density."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import vijax as vj
from tests.marks import some
from tests.sequences.chains import FOLDS, PATHS, S, T, brute, factors, folds, weights
from vijax.sequences import hmm


@folds
@pytest.mark.parametrize("moving", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_evidence_is_brute_force(fold, moving, key):
    """Value and gradient, 243 paths."""
    arrays = factors(key, moving=moving)
    evidence = lambda *arrays: hmm(*arrays, fold=fold).log_evidence
    found, expected = (
        jax.jit(jax.value_and_grad(f, (0, 1, 2)))(*arrays) for f in (evidence, brute)
    )
    jax.tree.map(
        lambda f, e: np.testing.assert_allclose(f, e, rtol=1e-5, atol=2e-6), found, expected
    )


@pytest.mark.parametrize("fold", [FOLDS[0], pytest.param(FOLDS[1], marks=pytest.mark.slow)])
@pytest.mark.slow
def test_derivatives_of_any_order(fold, x64, key):
    """Second derivatives, and the third along a line, in double precision."""
    arrays = factors(key, dtype=jnp.float64)
    flat, build = jax.flatten_util.ravel_pytree(arrays)
    direction = jnp.sin(jnp.arange(1.0, flat.size + 1))
    evidence, exact = lambda x: hmm(*build(x), fold=fold).log_evidence, lambda x: brute(*build(x))
    np.testing.assert_allclose(evidence(flat), exact(flat), rtol=1e-13)
    np.testing.assert_allclose(
        jax.jit(jax.hessian(evidence))(flat), jax.jit(jax.hessian(exact))(flat), atol=1e-11
    )
    line = lambda f: jax.grad(jax.grad(jax.grad(lambda t: f(flat + t * direction))))
    np.testing.assert_allclose(jax.jit(line(evidence))(0.0), jax.jit(line(exact))(0.0), rtol=1e-9)


@pytest.mark.parametrize("fold", some(FOLDS, "associative", name=lambda fold: fold.__name__))
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


@pytest.mark.slow
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
        cells = [
            (counts[many], expected[many]),
            (counts[~many].sum(), max(expected[~many].sum(), 1.0)),
        ]
        total = sum(float(np.sum((o - e) ** 2 / e)) for o, e in cells)
        return (total - many.sum()) / np.sqrt(2 * many.sum())

    assert distance(c) < 8
    alone = jax.random.categorical(key, posterior.log_marginals(), shape=(n, T))
    assert distance(alone) > 100


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_candidates_identity_and_a_target(key):
    """A switching mean, its path collapsed by the posterior (at any path) or by the evidence: one target."""
    x = jnp.array([0.2, 0.1, 2.2, 1.9, 0.3])
    initial, transition, _ = factors(key)
    means = lambda z: z * jnp.arange(3.0)
    chain = lambda z: hmm(initial, transition, norm.logpdf(x[:, None], means(z)[None], 0.5))
    whole = lambda z: (
        norm.logpdf(z["z"])
        + weights(initial, transition, jnp.zeros((T, S)))[
            jnp.sum(z["c"] * 3 ** jnp.arange(T)[::-1])
        ]
        + jnp.sum(norm.logpdf(x, means(z["z"])[z["c"]], 0.5))
    )
    collapsed = lambda z: norm.logpdf(z) + chain(z).log_evidence
    by_chib = vj.targets.collapse(
        lambda z, c: whole({"z": z, "c": c}), lambda z: chain(z).posterior, key=key
    )
    for z in (0.4, 1.1):
        np.testing.assert_allclose(by_chib(jnp.float32(z)), collapsed(jnp.float32(z)), rtol=1e-5)
