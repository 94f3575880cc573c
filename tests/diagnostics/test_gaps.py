"""gaps: log p - ELBO in three parts, against closed forms of Gaussians; they add up and none is below 0."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj
from vijax.diagnostics import Gaps, gaps

# The posterior of each of 40 data is N(0, C); all q have its mean but for the encoder's, off by SHIFT.
C = np.array([[1.0, 0.6], [0.6, 1.0]])
PRECISION = np.linalg.inv(C)
BEST = np.diag(PRECISION) ** -0.5
N, LOG_P = 40, np.linspace(-90, -80, 40)
SHIFT = np.random.default_rng(0).normal(size=(N, 2)) * 0.5


def log_weights(key, k, loc, root):
    """Log-weights [k, N] of draws loc + root e of a Gaussian."""
    e = jax.random.normal(key, (k, N, 2))
    z = loc + e @ root.T
    log_q = -0.5 * jnp.sum(e**2, -1) - np.log(abs(np.linalg.det(root)))
    log_p = -0.5 * jnp.einsum("kni,ij,knj->kn", z, PRECISION, z) - 0.5 * np.linalg.slogdet(C)[1]
    return jnp.asarray(log_p - log_q + LOG_P, jnp.float32)


def divergence(shift, root):
    """KL(N(shift, root rootᵀ) ‖ N(0, C))."""
    s = root @ root.T
    return 0.5 * (
        np.trace(PRECISION @ s) - 2 + np.linalg.slogdet(C)[1] - np.linalg.slogdet(s)[1]
    ) + 0.5 * np.einsum("ni,ij,nj->n", shift, PRECISION, shift)


@pytest.fixture
def drawn(key, loose_ranks):
    keys = jax.random.split(key, 3)
    return (
        log_weights(keys[0], 500, SHIFT, np.diag(0.7 * BEST)),
        log_weights(keys[1], 500, np.zeros((N, 2)), np.diag(BEST)),
        log_weights(keys[2], 2000, np.zeros((N, 2)), 1.2 * np.linalg.cholesky(C)),
    )


def test_parts_are_the_divergences_they_name(drawn):
    """Each within five of its errors for all of 40 data, false in 3e-5; the sum to rounding.

    The control: without a refined proposal, IWAE of 5 of the encoder's draws in the place of log p is too low.
    """
    found = jax.jit(gaps)(*drawn)
    assert isinstance(found, Gaps)
    approximation = divergence(np.zeros((N, 2)), np.diag(BEST))
    encoder = divergence(SHIFT, np.diag(0.7 * BEST))
    for part, truth in (
        (found.amortization, encoder - approximation),
        (found.approximation, approximation),
        (found.total, encoder),
        (found.log_evidence, LOG_P),
    ):
        assert np.all(np.abs(part.value - truth) < 5 * part.error)
    added = found.amortization.value + found.approximation.value + found.monte_carlo.value
    np.testing.assert_allclose(added, found.total.value, atol=2e-5)
    assert np.all(found.monte_carlo.value >= 0)
    few = jax.jit(gaps)(*drawn[:2], drawn[0][:5])
    short = LOG_P - np.asarray(few.log_evidence.value - few.monte_carlo.value)
    assert short.mean() > 5 * short.std() / np.sqrt(N)


def test_the_shortfall_of_log_p(key, loose_ranks):
    """Over 10,000 repetitions log mean w of 30 draws is short by the part that is said.

    Within five standard errors of the repetitions, false in 6e-7; the control, no correction, is seven off.
    """
    s = 0.7
    log_w = s * jax.random.normal(key, (30, 10_000)) - s**2 / 2  # of mean weight one
    found = jax.jit(gaps)(log_w, log_w)
    short = -vj.numerics.log_mean_exp(log_w)
    left = np.asarray(found.monte_carlo.value - short)
    error = left.std() / np.sqrt(left.size)
    assert abs(left.mean()) < 5 * error
    assert abs(float(short.mean())) > 5 * error
    assert np.all(found.approximation.value >= -1e-6)


def test_errors_of_the_same_draws(key):
    """Of one lot of draws log mean w - mean log w varies as its paired error says, and the shortfall as its own does."""
    log_w = 0.4 * jax.random.normal(key, (300, 1000))
    found = jax.jit(gaps)(log_w, log_w)
    known = np.isfinite(found.approximation.error)
    assert known.mean() > 0.95
    for part in (found.approximation, found.monte_carlo):
        stated = np.sqrt(np.mean(part.error[known] ** 2))
        np.testing.assert_allclose(part.value.std(), stated, rtol=0.2)
    # The control: as if the two were of independent draws.
    apart = np.hypot(found.log_evidence.error, log_w.std() / np.sqrt(300))[known].mean()
    assert apart > 2 * found.approximation.value.std()


def test_extremes(loose_ranks):
    """Equal weights leave nothing; one draw with all the weight leaves an unknown part; two are too few."""
    run = jax.jit(gaps)
    exact = run(jnp.full((50, 2), -3.0), jnp.full((50, 2), -1.0))
    np.testing.assert_allclose(exact.amortization.value, 2.0, rtol=1e-5)
    np.testing.assert_allclose(exact.approximation.value, 0.0, atol=1e-6)
    np.testing.assert_allclose(exact.monte_carlo.value, 0.0, atol=1e-6)
    assert "k-hat up to 0.7 for 100% of the data" in str(exact)
    alone = run(jnp.zeros((50, 2)), jnp.zeros((50, 2)).at[0].set(200.0))
    assert np.all(np.isposinf(alone.monte_carlo.value))
    assert np.all(np.isposinf(alone.total.value))
    one = run(jnp.zeros((1, 2)), jnp.zeros((1, 2)))
    assert np.all(np.isposinf(one.approximation.error))
    assert set(exact.mean) == set(Gaps._fields) - {"khat"}
    np.testing.assert_allclose(exact.mean["amortization"].error, 0.0, atol=1e-6)


def test_refusals(unchecked):
    with pytest.raises(ValueError, match="of the same data"):
        gaps(jnp.zeros((5, 2)), jnp.zeros((5, 3)))
    with pytest.raises(ValueError, match="k >= 1"):
        gaps(jnp.zeros((0, 2)), jnp.zeros((5, 2)))
    draws = vj.types.Draws(None, jnp.zeros(3), jnp.zeros(3))
    with pytest.raises(TypeError, match="draws.log_w"):
        gaps(draws, draws)
