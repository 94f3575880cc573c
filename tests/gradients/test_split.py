"""Split: the model's slopes of one bound, and the path of another, from one set of draws."""

from functools import partial

import distrax
import jax
import jax.numpy as jnp
import pytest

import vijax as vj
from tests import cases
from tests.laws.test_unbiased import gradients
from tests.problems import assert_close
from tests.statistics import assert_mean

MULTI = partial(vj.bounds.multi_iwae, groups=2)
split = vj.gradients.split
PAIRS = {
    "PIWAE": (vj.bounds.iwae, MULTI),
    "iwae, elbo": (vj.bounds.iwae, vj.bounds.elbo),
    "elbo, jackknife": (vj.bounds.elbo, vj.bounds.jackknife),
}
EXACT = {
    "PIWAE": (vj.bounds.elbo, 1),
    "iwae, elbo": (vj.bounds.elbo, 1),
    "elbo, jackknife": (vj.bounds.jackknife, 2),
}


def truth(model, q):
    """q's gradient of one exact expectation beside the model's of another, at K = 2."""
    return {"q": cases.LINE.truth(*q)[1]["q"], "theta": cases.LINE.truth(*model)[1]["theta"]}


@pytest.mark.slow
def test_each_half_is_unbiased(key):
    """At K = 2, where two groups of one make the elbo. Detects .15."""
    objectives = {name: split(model=model, q=q) for name, (model, q) in PAIRS.items()}
    found = gradients(key, cases.LINE, objectives, 2, 100_000)
    exact = {name: truth((model, 2), EXACT[name]) for name, (model, _) in PAIRS.items()}
    assert_mean(found, exact, detects=0.15)


def test_one_bound_for_both_fails(key):
    """The control: dreg of either bound has one half wrong."""
    objectives = {
        "iwae": vj.gradients.dreg(vj.bounds.iwae),
        "elbo": vj.gradients.dreg(vj.bounds.elbo),
    }
    found = gradients(key, cases.LINE, objectives, 2, 100_000)
    for name in objectives:
        with pytest.raises(AssertionError, match="biased"):
            assert_mean(
                {name: found[name]},
                {name: truth((vj.bounds.iwae, 2), EXACT["PIWAE"])},
                detects=0.15,
            )


def run(objective, chunk_size, key):
    def total(params):
        log_joint = lambda z: cases.LINE.log_p(params["theta"], z)
        q = cases.LINE.build(params["q"])
        return jnp.sum(objective(key, log_joint, q, num_samples=6, chunk_size=chunk_size).value)

    return jax.value_and_grad(total)(cases.LINE.params)


@pytest.mark.slow
def test_of_one_bound_it_is_dreg_and_chunks_change_nothing(key):
    """The two pulls of split against the gate of dreg, draw by draw; the value is the model's bound."""

    @jax.jit
    def every(key):
        same = split(model=vj.bounds.iwae, q=lambda l: vj.bounds.iwae(l))
        found = {
            str(size): run(split(model=vj.bounds.iwae, q=MULTI), size, key)
            for size in (None, 1, 4, 6)
        }
        return found, run(same, None, key), run(vj.gradients.dreg(vj.bounds.iwae), None, key)

    found, same, dreg = every(key)
    assert_close(same, dreg)
    for size in (1, 4, 6):
        assert_close(found[str(size)], found["None"])
    assert_close(found["None"][0], dreg[0])
    assert_close(found["None"][1]["theta"], dreg[1]["theta"])
    assert abs(found["None"][1]["q"]["loc"] - dreg[1]["q"]["loc"]).max() > 1e-2


@pytest.mark.parametrize(
    ("objective", "q", "message"),
    [
        (
            split(model=vj.bounds.iwae, q=MULTI),
            distrax.Bernoulli(0.3, dtype=jnp.float32),
            "split needs draws .*vimco",
        ),
        (
            split(model=vj.bounds.elbo, q=vj.bounds.iwae, draw=vj.draws.antithetic),
            None,
            r"split\(iwae\) needs independent",
        ),
        (
            split(
                model=vj.bounds.iwae,
                q=partial(vj.bounds.f_divergence, f=vj.bounds.generators.total_variation),
            ),
            None,
            "without kinks: use gradients.reparam",
        ),
    ],
)
def test_refusals(objective, q, message, key, loose_ranks, unchecked):
    with pytest.raises(ValueError, match=message):
        objective(key, lambda z: -jnp.square(z), q or distrax.Normal(0.0, 1.0), num_samples=2)


def test_both_bounds_must_be_linear_for_a_minibatch(key, loose_ranks, unchecked):
    target = vj.targets.minibatch(lambda z: -jnp.square(z), lambda z: z * jnp.ones(3), num_data=30)
    for model, q in ((vj.bounds.elbo, vj.bounds.iwae), (vj.bounds.iwae, vj.bounds.elbo)):
        with pytest.raises(ValueError, match="linear"):
            split(model=model, q=q)(key, target, distrax.Normal(0.0, 1.0), num_samples=2)


def test_strata_are_refused(key):
    """Their weights hold the logits, which would ascend the model's bound where the rest of q ascends its own."""
    family = vj.families.mixture(vj.families.mean_field(), components=2)
    q = family.dist(family.init(key, jnp.zeros(1)))
    objective = vj.gradients.split(model=vj.bounds.iwae, q=vj.bounds.elbo, draw=vj.draws.stratified)
    with pytest.raises(ValueError, match="split takes draws that count alike"):
        objective(key, lambda z: -jnp.sum(z**2), q, num_samples=4)
