"""Gradients of log Ẑ by enumeration: what is unbiased is so to rounding, and what is biased by design is not."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.particles import tossed
from vijax.particles import always
from vijax.particles._forms import by_path_or_score, held, scored_selection
from vijax.particles._run import Form, Inputs, run
from vijax.particles._smc import by_index, by_path, kept

THETA, PHI = jnp.array([0.4, 0.9, 1.1]), jnp.array(0.8)
ALWAYS = always(tossed.ancestors)
HELD = lambda log_weights, log_copies: log_weights - jax.lax.stop_gradient(log_copies)
FORMS = {
    "scored": Form(by_path_or_score, scored_selection(ALWAYS)),
    "fisher": Form(held, by_index(ALWAYS, HELD)),
    "dropped": Form(by_path, by_index(ALWAYS, kept)),
}


def log_z(form, theta, phi, key, **inputs):
    m = tossed.model(theta)
    q = None if phi is None else tossed.proposal(phi)
    return run(key, m, tossed.X, q, 2, FORMS[form], Inputs(**inputs)).log_evidence


@jax.jit
def outcomes(theta, phi):
    return jax.vmap(partial(tossed.plain, theta, phi))(jnp.asarray(tossed.NUMBERS))


def expected(theta, phi):
    """Return E log Ẑ_N, a sum over all outcomes whose derivative is autodiff's."""
    log_outcome, value = outcomes(theta, phi)
    return jnp.sum(jnp.exp(log_outcome) * value)


def means(form, phi, weigh, **inputs):
    """Return the mean over all outcomes of value and slopes in (theta, phi), each times weigh(log Ẑ)."""
    given = (THETA,) if phi is None else (THETA, phi)
    call = lambda key, *given: log_z(
        form, given[0], given[1] if len(given) > 1 else None, key, **inputs
    )
    values, slopes = jax.jit(
        jax.vmap(
            jax.value_and_grad(call, tuple(range(1, 1 + len(given)))), (0, *(None for _ in given))
        )
    )(tossed.keys(), *given)
    probability = jnp.exp(outcomes(THETA, phi)[0]) * weigh(values)
    mean = lambda leaf: jnp.tensordot(probability, leaf, 1)
    return mean(values), [mean(s) for s in slopes]


@pytest.mark.parametrize("phi", [None, PHI], ids=["bootstrap", "guided"])
def test_the_score_of_resampling_makes_the_slope_of_the_bound(phi, x64):
    """With it exactly the slope of E log Ẑ_N, N = 2; without it another number."""
    given = (THETA,) if phi is None else (THETA, phi)
    bound = lambda *given: expected(given[0], given[1] if len(given) > 1 else None)
    truth, slopes = jax.jit(jax.value_and_grad(bound, tuple(range(len(given)))))(*given)
    value, found = means("scored", phi, jnp.ones_like)
    np.testing.assert_allclose(value, truth, rtol=1e-6)
    for a, b in zip(found, slopes, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)
    _, dropped = means("dropped", phi, jnp.ones_like)
    assert max(float(jnp.abs(a - b).max()) for a, b in zip(dropped, slopes, strict=True)) > 0.02


def test_a_baseline_changes_no_mean(x64):
    truth = jax.jit(jax.grad(lambda theta: expected(theta, PHI)))(THETA)
    _, found = means("scored", PHI, jnp.ones_like, baseline=jnp.array([-0.5, -0.7, 1.0]))
    np.testing.assert_allclose(found[0], truth, atol=2e-6)


@pytest.mark.slow
def test_second_derivatives_of_the_scored_form_are_those_of_the_bound(x64):
    hessian = jax.jit(
        jax.vmap(jax.hessian(lambda theta, key: log_z("scored", theta, PHI, key)), (None, 0))
    )(THETA, tossed.keys())
    found = jnp.tensordot(jnp.exp(outcomes(THETA, PHI)[0]), hessian, 1)
    np.testing.assert_allclose(found, jax.jit(jax.hessian(expected))(THETA, PHI), atol=1e-5)


@pytest.mark.parametrize("phi", [None, PHI], ids=["bootstrap", "guided"])
def test_the_held_form_times_its_evidence_has_the_slope_of_the_evidence(phi, x64):
    """E Ẑ ∇ log Ẑ = ∇ p(x), exactly; the mean of ∇ log Ẑ is another number, and so is the dropped form's."""
    value, slope = jax.jit(jax.value_and_grad(tossed.exact))(THETA)
    found = means("fisher", phi, jnp.exp)[1]
    np.testing.assert_allclose(found[0], jnp.exp(value) * slope, atol=1e-7)
    if phi is not None:  # a proposal changes no evidence
        np.testing.assert_allclose(found[1], 0.0, atol=1e-12)
    plain = means("fisher", phi, jnp.ones_like)[1][0]
    assert jnp.abs(plain - slope).max() > 0.01
    dropped = means("dropped", phi, jnp.exp)[1][0]
    assert jnp.abs(dropped - jnp.exp(value) * slope).max() > 0.001


def test_the_evidence_is_unbiased_and_its_logarithm_below(x64):
    log_outcome, value = outcomes(THETA, PHI)
    np.testing.assert_allclose(jnp.sum(jnp.exp(log_outcome)), 1.0, rtol=1e-6)
    np.testing.assert_allclose(
        jnp.sum(jnp.exp(log_outcome + value)), jnp.exp(tossed.exact(THETA)), rtol=1e-6
    )
    found = jax.jit(jax.vmap(lambda key: log_z("scored", THETA, PHI, key)))(tossed.keys())
    np.testing.assert_allclose(found, value, rtol=1e-5)
    assert expected(THETA, PHI) < tossed.exact(THETA) - 0.01
