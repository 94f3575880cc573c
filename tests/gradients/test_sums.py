"""gradients.local_expectation and gradients.top_states: against enumeration, and exact where nothing is left to draw."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj
from tests import problems
from tests.statistics import assert_mean, assert_variance_ratio
from vijax.gradients import _sums
from vijax.types import with_closed_forms

ELBO, IWAE = vj.bounds.elbo, vj.bounds.iwae
LOCAL, TOP = vj.gradients.local_expectation, vj.gradients.top_states


@pytest.mark.slow
@pytest.mark.parametrize("case", problems.DISCRETE, ids=lambda case: case.name)
def test_local_expectations_are_unbiased_for_any_bound(case, key):
    bounds = {"elbo": ELBO, "iwae": IWAE, "renyi": partial(vj.bounds.renyi, alpha=0.5)}
    objectives = {name: LOCAL(bound) for name, bound in bounds.items()}
    found = problems.value_and_grads(key, case, objectives, 2, 40_000)
    assert_mean(found, {name: case.truth(bound, 2) for name, bound in bounds.items()}, detects=0.15)


@pytest.mark.slow
def test_top_states_are_unbiased(key):
    """With and without company among the draws of the rest, and with one state left over."""
    for case in (problems.HOT, problems.WHOLE):
        objectives = {"one": TOP(ELBO, states=1), "three": TOP(ELBO, states=3)}
        for num_samples in (1, 3):
            found = problems.value_and_grads(key, case, objectives, num_samples, 30_000)
            assert_mean(found, problems.truths(case, objectives), detects=0.1)


def test_a_sum_that_forgets_the_mass_of_the_rest_fails(key, monkeypatch):
    """The control: the same comparison refuses."""
    monkeypatch.setattr(_sums, "_mean_of_others", lambda f: jnp.ones_like(f))
    still = {
        "right": TOP(ELBO, states=2)
    }  # any baseline is right, if the mass of the rest is differentiated
    assert_mean(
        problems.value_and_grads(key, problems.HOT, still, 1, 20_000),
        problems.truths(problems.HOT, still),
        detects=0.2,
    )
    monkeypatch.setattr(
        _sums, "_mean_of_others", lambda f: jnp.asarray(f)
    )  # but not one that knows its own draw
    with pytest.raises(AssertionError, match="biased"):
        assert_mean(
            problems.value_and_grads(key, problems.HOT, still, 2, 20_000),
            problems.truths(problems.HOT, still),
            detects=0.2,
        )


@pytest.mark.slow
def test_with_nothing_left_to_draw_they_are_exact(key):
    """All states; and one latent's own sum, in the gradient of q."""
    objectives = {"top": TOP(ELBO, states=4), "local": LOCAL(ELBO)}
    for case in (problems.HOT, problems.WHOLE):
        value, slopes = case.truth(ELBO, 1)
        found = problems.value_and_grads(key, case, objectives, 1, 2)
        for row in range(2):
            exact = jax.tree.map(lambda a, row=row: a[row], found["top"])
            jax.tree.map(
                partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5), exact, (value, slopes)
            )
            np.testing.assert_allclose(
                problems.of_q(found, "local")[row], slopes["q"], rtol=2e-5, atol=2e-5
            )


def test_weights_of_the_draws_sum_to_one_and_give_the_value(key):
    q = problems.HOT.build(problems.HOT.params["q"])
    log_joint = lambda z: problems.HOT.log_p(problems.HOT.params["theta"], z)
    value, seen = TOP(ELBO, states=2)(key, log_joint, q, num_samples=3)
    np.testing.assert_allclose(seen.weights.sum(0), 1.0, rtol=1e-6)
    np.testing.assert_allclose(ELBO(seen.log_w, weights=seen.weights), value, rtol=1e-5)


@pytest.mark.slow
def test_variances_are_in_order(key):
    objectives = {
        "score": vj.gradients.score(ELBO, baseline=-1.0),
        "local": LOCAL(ELBO),
        "one": TOP(ELBO, states=1),
        "two": TOP(ELBO, states=2),
    }
    found = problems.value_and_grads(key, problems.HOT, objectives, 1, 20_000)
    score, one, two = (problems.of_q(found, name) for name in ("score", "one", "two"))
    assert_variance_ratio(score, one, at_least=1.0)
    assert_variance_ratio(one, two, at_least=1.0)
    found = problems.value_and_grads(
        key, problems.BITS, {n: objectives[n] for n in ("score", "local")}, 1, 20_000
    )
    assert_variance_ratio(
        problems.of_q(found, "score"), problems.of_q(found, "local"), at_least=5.0
    )


@pytest.mark.slow
@pytest.mark.parametrize("chunk_size", [2, 9])
def test_chunks_change_no_number(chunk_size, key):
    objectives = {"iwae": LOCAL(IWAE), "elbo": LOCAL(ELBO)}
    close = partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)
    for case, make in ((problems.BITS, objectives), (problems.HOT, {"top": TOP(ELBO, states=2)})):
        whole = problems.value_and_grads(key, case, make, 5, 2)
        jax.tree.map(
            close, problems.value_and_grads(key, case, make, 5, 2, chunk_size=chunk_size), whole
        )


@pytest.mark.slow
def test_impossible_states_stay_finite(key):
    logits = jnp.array([-jnp.inf, 0.3, 1e4, -1e4])
    log_joint = lambda z: jnp.where(z[2] > 0, -jnp.inf, z[1])

    def total(l, objective):
        return objective(key, log_joint, problems.Choice(l, hot=True), num_samples=3).value

    for objective in (LOCAL(ELBO), LOCAL(IWAE), TOP(ELBO, states=2), TOP(ELBO, states=4)):
        assert np.all(np.isfinite(jax.jit(jax.grad(total), static_argnums=1)(logits, objective)))


def test_refusals(key):
    log_joint = lambda z: jnp.zeros(())
    run = lambda make, q: make(key, log_joint, q, num_samples=2)
    bits, choice = problems.Bits(jnp.zeros(3)), problems.Choice(jnp.zeros(3))
    with pytest.raises(ValueError, match="one categorical for each member.*local_expectation"):
        run(TOP(ELBO, states=1), bits)
    for states in (0, 4, True):
        with pytest.raises(ValueError, match="from 1 to q's 3"):
            run(TOP(ELBO, states=states), choice)
    with pytest.raises(ValueError, match="linear in log_w"):
        run(TOP(IWAE, states=1), choice)
    with pytest.raises(ValueError, match="given the earlier ones"):
        run(LOCAL(ELBO), {"a": bits, "b": lambda z: bits})


@with_closed_forms(linear=True)
def minus_mean(log_w):
    return -jnp.mean(log_w, 0)


@with_closed_forms(linear=True)
def plain_sum(log_w):
    return jnp.sum(log_w, 0)


@pytest.mark.usefixtures("unchecked", "loose_ranks")
@pytest.mark.slow
def test_a_linear_bound_that_is_no_mean_has_its_own_gradient(key):
    """Minus the mean, and a sum: score and local expectations follow the bound; those that need the mean refuse."""
    case, k = problems.HOT, 2
    for bound in (minus_mean, plain_sum):
        objectives = {
            "score": vj.gradients.score(bound),
            "local": vj.gradients.local_expectation(bound),
            "vimco": vj.gradients.vimco(bound),
        }
        found = problems.value_and_grads(key, case, objectives, k, 20_000)
        assert_mean(found, problems.truths(case, objectives, bound, k), detects=0.4)
        with pytest.raises(ValueError, match="use bounds.elbo"):
            vj.gradients.disarm(bound)(
                key, lambda z: z.sum(-1), problems.Bits(jnp.zeros((1, 2))), num_samples=2
            )


@pytest.mark.usefixtures("unchecked", "loose_ranks")
@pytest.mark.slow
def test_a_mean_with_weights_keeps_them(key):
    """Known or traced while tracing: the weighted mean of independent draws has the elbo's gradient, exactly in mean."""
    weights = jnp.array([0.5, 0.1, 0.1, 0.2, 0.1])

    def by_vmap(w):
        return vj.gradients.score(partial(ELBO, weights=w))

    objectives = {
        "known": by_vmap(weights),
        "local": vj.gradients.local_expectation(partial(ELBO, weights=weights)),
    }
    found = problems.value_and_grads(key, problems.HOT, objectives, 5, 20_000)
    assert_mean(found, problems.truths(problems.HOT, objectives), detects=0.4)
    bits = problems.Bits(jnp.zeros((1, 2)))
    traced = jax.jit(lambda w: by_vmap(w)(key, lambda z: z.sum(-1), bits, num_samples=5).value)(
        weights
    )
    np.testing.assert_allclose(
        traced, by_vmap(weights)(key, lambda z: z.sum(-1), bits, num_samples=5).value, rtol=1e-5
    )
