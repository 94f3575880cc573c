"""Restarts beside each other: the dead are left out, labels that switch are named, and one alone is said to be alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vijax.diagnostics import rhat, summarize
from vijax.types import Draws

normal = jax.scipy.stats.norm.logpdf
RUNS, K = 4, 2000


@pytest.fixture
def fits(key):
    """Four runs of q = N(m, 1) in two latents, each the posterior itself: m = (-2, 2), or (2, -2) where `switched`."""

    def make(switched=(), worse=()):
        sign = jnp.where(jnp.isin(jnp.arange(RUNS), jnp.array(switched, int)), 1.0, -1.0)
        e = jax.random.normal(key, (RUNS, K, 2))
        z = e + 2 * sign[:, None, None] * jnp.array([[[1.0, -1.0]]])
        log_q = jnp.sum(normal(e), -1)
        lost = (
            jnp.zeros(RUNS)
            .at[jnp.array([i for i, _ in worse], int)]
            .set(jnp.array([nats for _, nats in worse], float))
        )
        return Draws({"m": z}, log_q + 3.0 - lost[:, None], log_q)

    return make


def test_runs_that_agree_are_all_compared(fits):
    said = summarize(fits())
    assert said.verdict == 0
    assert np.all(said.compared)
    for words in ("left out", "restart", "label"):
        assert words not in str(said)


@pytest.mark.parametrize("how", ["far", "enormous", "nan", "-inf"])
def test_a_run_that_is_worse_by_far_is_left_out(fits, how):
    """It stands in the other mode; R-hat is that of the others, and the sentence counts it."""
    nats = {"far": 12.0, "enormous": 1e29, "nan": jnp.nan, "-inf": jnp.inf}[how]
    draws = fits(switched=[1], worse=[(1, nats)])
    if how == "enormous":  # with a spread whose square no float32 holds
        draws = draws._replace(
            log_p=jnp.where(
                draws.log_p < -1e9, -1e28 * (1 + draws.z["m"][..., 0] ** 2), draws.log_p
            )
        )
    said = summarize(draws)
    assert said.verdict == 0
    np.testing.assert_array_equal(said.compared, [True, False, True, True])
    others = jnp.delete(draws.z["m"], 1, axis=0)
    np.testing.assert_allclose(said.rhat, rhat(others), rtol=1e-5)
    assert "Of 4 restarts 1 were left out" in str(said)
    assert "R-hat compares the others" in str(said)


def test_where_all_others_are_left_out_nothing_confirms(fits):
    said = summarize(fits(switched=[1, 2], worse=[(0, 50.0), (1, 20.0), (2, jnp.nan)]))
    assert said.verdict == 0
    assert np.all(np.isnan(said.rhat))
    assert "Of 4 restarts 3 were left out" in str(said)
    assert "No restart confirms the best" in str(said)


def test_labels_that_switch_are_named(fits):
    """ELBOs agree and places do not; sorted, the runs are one story, and nothing is said of labels."""
    draws = fits(switched=[1, 3])
    said = summarize(draws)
    assert said.verdict == 2
    assert "restarts disagree (R-hat" in str(said)
    for words in ("labels may have switched", "sort them by constrain=", "lacks log m!"):
        assert words in str(said)
    ordered = summarize(draws, constrain=lambda z: {"m": jnp.sort(z["m"])})
    assert ordered.verdict == 0
    assert "label" not in str(ordered)


def test_runs_that_differ_in_bound_disagree_without_labels(fits):
    """Five nats below it may yet hold a hundredth of the mass: compared, and no matter of labels."""
    said = summarize(fits(switched=[1], worse=[(1, 5.0)]))
    assert np.all(said.compared)
    assert said.verdict == 2
    assert "restarts disagree (R-hat" in str(said)
    assert "label" not in str(said)


def test_one_run_is_said_to_be_alone(fits):
    said = summarize(jax.tree.map(lambda a: a[0], fits()))
    assert said.verdict == 0
    assert "only restarts could show a mode" in str(said)


@pytest.mark.slow
def test_strata_of_restarts_are_compared_by_their_weights(key):
    """Draws N(0, 1) and N(9, 1), half each: q is the first alone in one run, and in the others as well.

    By the draws alone all agree whatever the weights are, and a run of the second alone would pass.
    """
    e = jax.random.normal(key, (RUNS, K))
    second = jnp.arange(K)[None] >= K // 2
    z = e + 9.0 * second
    first = jnp.where(second, 0.0, 2 / K) * jnp.ones((RUNS, 1))
    same = Draws(z, normal(e), normal(e), first)
    said = summarize(same)
    assert said.verdict == 0
    np.testing.assert_allclose(said.mean[0], 0.0, atol=0.1)
    np.testing.assert_allclose(said.elbo.value, 0.0, atol=1e-5)
    assert summarize(same._replace(weights=first.at[2].set(first[2, ::-1]))).verdict == 2
