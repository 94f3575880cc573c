"""gradients.arm and gradients.disarm: unbiased for every kind of discrete latent, with the variances of their theorem."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj
from tests import problems
from tests.marks import some
from tests.statistics import assert_mean, assert_variance_ratio
from vijax.gradients import _coupled

ELBO = vj.bounds.elbo
OBJECTIVES = {"arm": vj.gradients.arm(ELBO), "disarm": vj.gradients.disarm(ELBO)}


@pytest.mark.parametrize(
    "case", some(problems.DISCRETE, "hot", "whole", name=lambda case: case.name)
)
def test_unbiased(case, key):
    """Against enumeration: value, q's logits, and the model's parameters."""
    found = problems.value_and_grads(key, case, OBJECTIVES, 2, 60_000)
    assert_mean(found, problems.truths(case, OBJECTIVES), detects={"arm": 0.12, "disarm": 0.1})


def test_a_wrong_sign_fails(key):
    """The control: without (-1)^b̃ the same comparison refuses."""
    wrong = {
        "disarm": _coupled._coupled(
            ELBO, lambda u, a, b, c: abs(_coupled._disarmed(u, a, b, c)), "disarm"
        )
    }
    found = problems.value_and_grads(key, problems.BITS, wrong, 2, 20_000)
    with pytest.raises(AssertionError, match="biased"):
        assert_mean(found, problems.truths(problems.BITS, wrong), detects=0.2)


def test_disarm_varies_less_than_arm_and_than_independent_pairs(key):
    objectives = OBJECTIVES | {"loo": vj.gradients.vimco(ELBO)}
    for case in (problems.BITS, problems.HOT):
        found = problems.value_and_grads(key, case, objectives, 2, 20_000)
        arm, disarm, loo = (problems.of_q(found, name) for name in ("arm", "disarm", "loo"))
        assert_variance_ratio(arm, disarm, at_least=1.0)
        assert_variance_ratio(loo, disarm, at_least=1.0)


def test_at_the_exact_posterior_the_gradient_is_zero_draw_by_draw(key):
    """And the value is log p: here the posterior of bits that know of no data is their prior."""
    logits = jnp.array([0.4, -1.0, 2.0])

    def total(a):
        log_joint = lambda z: problems.Bits(logits).log_prob(z) - 3.0
        return OBJECTIVES["disarm"](key, log_joint, problems.Bits(a), num_samples=6).value

    value, slope = jax.jit(jax.value_and_grad(total))(logits)
    np.testing.assert_allclose(value, -3.0, atol=2e-5)
    np.testing.assert_allclose(slope, 0.0, atol=2e-5)


@pytest.mark.parametrize(
    "case", some([problems.BITS, problems.DICT], "bits", name=lambda case: case.name)
)
def test_chunks_and_single_keys_change_no_number(case, key):
    whole = problems.value_and_grads(key, case, OBJECTIVES, 6, 3)
    chunked = problems.value_and_grads(key, case, OBJECTIVES, 6, 3, chunk_size=4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), whole, chunked
    )


def test_double_precision(x64, key):
    case = problems.BITS._replace(
        params=jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), problems.BITS.params)
    )
    (value, slopes) = problems.value_and_grads(key, case, OBJECTIVES, 4, 2)["disarm"]
    assert value.dtype == slopes["q"].dtype == slopes["theta"]["weight"].dtype == jnp.float64


def test_extreme_logits_and_impossible_draws_stay_finite(key):
    """A state of probability 0, certain bits, and a model that forbids a state."""
    logits = jnp.array([-jnp.inf, 0.3, 1e4, -1e4])

    def total(a, choice):
        q = (problems.Bits(a), problems.Choice(choice, hot=True))
        log_joint = lambda z: jnp.where(z[1][2] > 0, -jnp.inf, jnp.sum(z[0]))
        return OBJECTIVES["disarm"](key, log_joint, q, num_samples=16).value

    slopes = jax.jit(jax.grad(total, (0, 1)))(jnp.array([60.0, -60.0, 0.1]), logits)
    assert all(np.all(np.isfinite(s)) for s in slopes)


def distributions():
    import distrax
    import numpyro.distributions as npd
    from tensorflow_probability.substrates import jax as tfp

    tfd, adapt = tfp.distributions, vj.families.adapt
    a = jnp.array([[0.3, -0.8, 1.1], [-0.4, 0.2, -1.3]])
    good = {
        "distrax Bernoulli": distrax.Independent(distrax.Bernoulli(logits=a), 1),
        "distrax Bernoulli of probabilities": distrax.Independent(
            distrax.Bernoulli(probs=jax.nn.sigmoid(a)), 1
        ),
        "distrax OneHotCategorical": distrax.OneHotCategorical(logits=a),
        "distrax Categorical": distrax.Categorical(probs=jax.nn.softmax(a)),
        "TFP Bernoulli": adapt(tfd.Independent(tfd.Bernoulli(logits=a), 1)),
        "TFP Bernoulli of probabilities": adapt(
            tfd.Independent(tfd.Bernoulli(probs=jax.nn.sigmoid(a)), 1)
        ),
        "TFP Categorical": adapt(tfd.Categorical(logits=a)),
        "NumPyro Bernoulli": adapt(npd.Bernoulli(logits=a).to_event(1)),
        "NumPyro Categorical": adapt(npd.Categorical(logits=a)),
    }
    bad = {
        "Normal": distrax.Independent(distrax.Normal(a, 1.0), 1),
        "Geometric": adapt(tfd.Independent(tfd.Geometric(logits=a), 1)),
        "ContinuousBernoulli": adapt(tfd.Independent(tfd.ContinuousBernoulli(logits=a), 1)),
        "Binomial": adapt(tfd.Independent(tfd.Binomial(3.0, logits=a), 1)),
        "Multinomial": adapt(tfd.Multinomial(2.0, logits=a)),
        "RelaxedBernoulli": adapt(tfd.Independent(tfd.RelaxedBernoulli(0.5, logits=a), 1)),
        "RelaxedOneHotCategorical": adapt(tfd.RelaxedOneHotCategorical(0.5, logits=a)),
    }
    return good, bad


@pytest.mark.slow
def test_who_is_believed(key, loose_ranks):
    """Distributions of three libraries, by their logits or probabilities; and those that have logits of another kind."""
    good, bad = distributions()

    def run(q):
        log_joint = lambda z: jnp.zeros(2)
        return jax.eval_shape(
            lambda: OBJECTIVES["disarm"](key, log_joint, q, num_samples=2).draws.log_q
        )

    for name, q in good.items():
        assert run(q).shape == (2, 2), name
    for q in bad.values():
        with pytest.raises(ValueError, match="needs a q of independent Bernoulli or categorical"):
            run(q)


@pytest.mark.slow
def test_parameters_that_are_tracers(key, loose_ranks):
    """As in a training step: built inside jit, grad and vmap, from logits and from probabilities."""
    import distrax

    def total(a, make, key):
        q = distrax.Independent(make(a), 1)
        return OBJECTIVES["disarm"](key, lambda z: jnp.sum(z * 1.3, -1), q, num_samples=2).value

    a = jnp.array([0.3, -0.8, 1.1])
    makes = [
        lambda a: distrax.Bernoulli(logits=a),
        lambda a: distrax.Bernoulli(probs=jax.nn.sigmoid(a)),
    ]
    one, two = (jax.jit(jax.grad(lambda a, make=make: total(a, make, key)))(a) for make in makes)
    np.testing.assert_allclose(one, two, rtol=1e-5)
    np.testing.assert_allclose(one, jax.grad(lambda a: total(a, makes[0], key))(a), rtol=1e-5)
    keys = jax.random.split(key, 3)
    batch = jax.jit(jax.vmap(jax.grad(lambda a, k: total(a, makes[0], k)), (None, 0)))(a, keys)
    one = jax.jit(jax.grad(lambda a, k: total(a, makes[0], k)))
    loop = jnp.stack([one(a, k) for k in keys])
    np.testing.assert_allclose(batch, loop, rtol=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_refusals(name, key):
    make = getattr(vj.gradients, name)
    log_joint = lambda z: jnp.zeros(())
    q = problems.Bits(jnp.zeros(3))
    with pytest.raises(ValueError, match=r"linear in log_w.*gradients\.vimco for iwae"):
        make(vj.bounds.iwae)(key, log_joint, q, num_samples=2)
    with pytest.raises(ValueError, match="must be even"):
        make(ELBO)(key, log_joint, q, num_samples=3)
    with pytest.raises(ValueError, match="'b' is given the earlier ones.*gradients.auto"):
        make(ELBO)(key, log_joint, {"a": q, "b": lambda z: problems.Bits(z["a"])}, num_samples=2)
