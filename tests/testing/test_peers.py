"""The faults of peers that check_unbiased finds when pointed at them, each beside vijax on the same problem, which passes."""

from functools import partial

import distrax
import jax
import jax.numpy as jnp
import pytest

import vijax as vj
from tests import cases
from vijax.testing import check_unbiased

pytestmark = pytest.mark.usefixtures("loose_ranks")


def ours(objective, case):
    """Return key -> the gradient that vijax gives at two draws."""

    def value(params, key):
        log_joint = partial(case.log_p, params["theta"])
        return jnp.sum(objective(key, log_joint, case.build(params["q"]), num_samples=2).value)

    return lambda key: jax.grad(value)(case.params, key)


@pytest.mark.slow
def test_tfp_squares_the_weights_of_the_model(key):
    """DOUBLY_REPARAMETERIZED: right in q, wrong in the model's parameter by a third of its slope."""
    import tensorflow_probability.substrates.jax as tfp

    case = cases.LINE

    def value(params, key):
        q = lambda q: tfp.distributions.Normal(q["loc"], jnp.exp(q["log_scale"]))
        return -jnp.sum(
            tfp.vi.monte_carlo_variational_loss(
                partial(case.log_p, params["theta"]),
                q(params["q"]),
                importance_sample_size=2,
                seed=key,
                gradient_estimator=tfp.vi.GradientEstimators.DOUBLY_REPARAMETERIZED,
                stopped_surrogate_posterior=q(jax.lax.stop_gradient(params["q"])),
            )
        )

    truth = case.truth(vj.bounds.iwae, 2)[1]
    gradient = lambda key: jax.grad(value)(case.params, key)
    with pytest.raises(AssertionError, match=r"biased: theta is off .* 1 of 5 numbers"):
        check_unbiased(key, gradient, truth, detects=0.1)
    check_unbiased(key, lambda key: gradient(key)["q"], truth["q"], detects=0.1)
    check_unbiased(key, ours(vj.gradients.dreg(vj.bounds.iwae), case), truth, detects=0.1)


@pytest.mark.slow
def test_numpyro_drops_the_score_of_a_coin(key):
    """Trace_ELBO on a Bernoulli latent: no warning from the loss, and no gradient of q."""
    numpyro = pytest.importorskip("numpyro")
    infer = pytest.importorskip("numpyro.infer")
    dist, case = numpyro.distributions, cases.COIN

    def model():
        with numpyro.plate("data", 2):
            z = numpyro.sample("z", dist.Bernoulli(logits=case.params["theta"]["logit"]))
            numpyro.sample("x", dist.Normal(case.params["theta"]["jump"] * z, 1.0), obs=cases.X)

    def guide():
        logit = numpyro.param("logit")
        with numpyro.plate("data", 2):
            numpyro.sample("z", dist.Bernoulli(logits=logit))

    loss = lambda params, key: infer.Trace_ELBO(num_particles=2).loss(key, params, model, guide)
    gradient = lambda key: jax.tree.map(jnp.negative, jax.grad(loss)(case.params["q"], key))
    truth = case.truth(vj.bounds.elbo, 1)[1]
    with pytest.raises(AssertionError, match=r"biased: logit\[0\] is off .* 1 of 2 numbers"):
        check_unbiased(key, gradient, truth["q"], detects=0.02)
    check_unbiased(key, ours(vj.gradients.vimco(vj.bounds.elbo), case), truth, detects=0.05)


@pytest.mark.slow
def test_distrax_gives_no_gradient_to_the_choice_of_component(key):
    """MixtureSameFamily under a path: 0 on average where the logits' slope is .4, silently."""
    case = cases.MIXTURE

    def value(params, key):
        z, log_q = distrax.MixtureSameFamily.sample_and_log_prob(case.build(params["q"]), seed=key)
        return case.log_p(params["theta"], z) - log_q

    truth = case.truth(vj.bounds.elbo, 1)[1]
    gradient = lambda key: jax.grad(value)(case.params, key)
    logits = lambda key: gradient(key)["q"]["logits"]
    check_unbiased(key, logits, jnp.zeros(2), detects=0.02)
    with pytest.raises(AssertionError, match=r"biased: value\[\d\] is off .* 2 of 2 numbers"):
        check_unbiased(key, logits, truth["q"]["logits"], detects=0.05)
    check_unbiased(key, ours(vj.gradients.vimco(vj.bounds.elbo), case), truth, detects=0.15)
