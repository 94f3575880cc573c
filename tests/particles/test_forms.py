"""Gradients of log Ẑ by enumeration: what is unbiased is so to rounding, and what is biased by design is not."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.particles import tossed
from vijax.numerics import with_score
from vijax.particles import always
from vijax.particles._forms import by_path_or_score, held, scored_selection
from vijax.particles._run import Form, Inputs, run
from vijax.particles._smc import as_kept, by_index, by_path

THETA, PHI = jnp.array([0.4, 0.9, 1.1]), jnp.array(0.8)
ALWAYS = always(tossed.ancestors)
FORMS = {
    "scored": Form(by_path_or_score, scored_selection(ALWAYS)),
    "fisher": Form(held, by_index(ALWAYS, with_score)),
    "dropped": Form(by_path, by_index(ALWAYS, as_kept)),
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


@cache
def each(form, guided, baseline=None):
    """Return value and slopes in (theta, phi) of every outcome, and the outcome's probability."""
    given = (THETA, PHI) if guided else (THETA,)
    inputs = {} if baseline is None else {"baseline": jnp.asarray(baseline)}

    def call(key, theta, phi=None):
        return log_z(form, theta, phi, key, **inputs)

    slopes = jax.value_and_grad(call, tuple(range(1, 1 + len(given))))
    every = jax.jit(jax.vmap(slopes, (0, *(None for _ in given))))
    return *every(tossed.keys(), *given), jnp.exp(outcomes(THETA, given[1] if guided else None)[0])


def means(form, guided, weigh, **inputs):
    """Return the mean over all outcomes of value and slopes, each times weigh(log Ẑ)."""
    values, slopes, probability = each(form, guided, **inputs)
    mean = lambda leaf: jnp.tensordot(probability * weigh(values), leaf, 1)
    return mean(values), [mean(s) for s in slopes]


# Each is a program of its own; the bootstrap filter's are the simpler.
guided_or_not = pytest.mark.parametrize(
    "guided", [pytest.param(False, marks=pytest.mark.slow), True], ids=["bootstrap", "guided"]
)


@guided_or_not
def test_the_score_of_resampling_makes_the_slope_of_the_bound(guided, x64):
    """With it exactly the slope of E log Ẑ_N, N = 2; without it another number."""
    given = (THETA, PHI) if guided else (THETA,)
    bound = lambda *given: expected(given[0], given[1] if len(given) > 1 else None)
    truth, slopes = jax.jit(jax.value_and_grad(bound, tuple(range(len(given)))))(*given)
    value, found = means("scored", guided, jnp.ones_like)
    np.testing.assert_allclose(value, truth, rtol=1e-6)
    for a, b in zip(found, slopes, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)
    _, dropped = means("dropped", guided, jnp.ones_like)
    assert max(float(jnp.abs(a - b).max()) for a, b in zip(dropped, slopes, strict=True)) > 0.02


@pytest.mark.slow
def test_a_baseline_changes_no_mean(x64):
    truth = jax.jit(jax.grad(lambda theta: expected(theta, PHI)))(THETA)
    _, found = means("scored", True, jnp.ones_like, baseline=(-0.5, -0.7, 1.0))
    np.testing.assert_allclose(found[0], truth, atol=2e-6)


@pytest.mark.slow
def test_second_derivatives_of_the_scored_form_are_those_of_the_bound(x64):
    hessian = jax.jit(
        jax.vmap(jax.hessian(lambda theta, key: log_z("scored", theta, PHI, key)), (None, 0))
    )(THETA, tossed.keys())
    found = jnp.tensordot(jnp.exp(outcomes(THETA, PHI)[0]), hessian, 1)
    np.testing.assert_allclose(found, jax.jit(jax.hessian(expected))(THETA, PHI), atol=1e-5)


@guided_or_not
def test_the_held_form_times_its_evidence_has_the_slope_of_the_evidence(guided, x64):
    """E Ẑ ∇ log Ẑ = ∇ p(x), exactly; the mean of ∇ log Ẑ is another number, and so is the dropped form's."""
    value, slope = jax.jit(jax.value_and_grad(tossed.exact))(THETA)
    found = means("fisher", guided, jnp.exp)[1]
    np.testing.assert_allclose(found[0], jnp.exp(value) * slope, atol=1e-7)
    if guided:  # a proposal changes no evidence
        np.testing.assert_allclose(found[1], 0.0, atol=1e-12)
    plain = means("fisher", guided, jnp.ones_like)[1][0]
    assert jnp.abs(plain - slope).max() > 0.01
    dropped = means("dropped", guided, jnp.exp)[1][0]
    assert jnp.abs(dropped - jnp.exp(value) * slope).max() > 0.001


def test_the_evidence_is_unbiased_and_its_logarithm_below(x64):
    log_outcome, value = outcomes(THETA, PHI)
    np.testing.assert_allclose(jnp.sum(jnp.exp(log_outcome)), 1.0, rtol=1e-6)
    np.testing.assert_allclose(
        jnp.sum(jnp.exp(log_outcome + value)), jnp.exp(tossed.exact(THETA)), rtol=1e-6
    )
    found = each("scored", True)[0]
    np.testing.assert_allclose(found, value, rtol=1e-5)
    assert expected(THETA, PHI) < tossed.exact(THETA) - 0.01
