"""Priors of an autoencoder: densities by hand, and which of them are refused as q."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.scipy.special import logsumexp
from jax.scipy.stats import norm

import vijax as vj
from vijax.models import Conditional, Prior, VampPrior, aggregate, standard

pytestmark = pytest.mark.usefixtures("loose_ranks")  # Flax adds biases by NumPy's promotion

NORMAL = vj.families.mean_field(scale=1.0)


def encoder():
    return Conditional(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), NORMAL, jnp.zeros(2))


def mixture_by_hand(params, log_pi, z):
    log_q = norm.logpdf(z, params["loc"], jnp.exp(params["log_scale"])).sum(-1)
    return logsumexp(log_pi + log_q)


def test_the_aggregate_posterior_is_the_mixture_over_data(key):
    """And a VampPrior the same at its own inputs and weights; the encoder it shares is split once."""
    encode, x, z = encoder(), jax.random.normal(key, (5, 3)), jnp.array([0.3, -0.8])
    truth = mixture_by_hand(encode.params(x), -np.log(5), z)
    np.testing.assert_allclose(aggregate(encode, x).log_prob(z), truth, rtol=1e-5)
    vamp = VampPrior(encode, x)
    np.testing.assert_allclose(vamp().log_prob(z), truth, rtol=1e-5)
    vamp.logits[...] = jnp.arange(5.0)
    truth = mixture_by_hand(encode.params(x), jax.nn.log_softmax(jnp.arange(5.0)), z)
    np.testing.assert_allclose(vamp().log_prob(z), truth, rtol=1e-5)
    both = nnx.Dict(encoder=encode, prior=vamp)
    shared = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(both, nnx.Param)))
    assert shared == 3 * 4 + 4 + 5 * 3 + 5


def test_as_q_an_aggregate_is_refused_by_path_estimators_and_taken_by_strata(key):
    q = aggregate(encoder(), jnp.ones((3, 3)))
    log_joint = lambda z: -jnp.sum(z**2)
    for estimator in (vj.gradients.reparam, vj.gradients.dreg):
        with pytest.raises(ValueError, match="stratified"):
            estimator(vj.bounds.elbo)(key, log_joint, q, num_samples=3)
    objective = vj.gradients.dreg(vj.bounds.elbo, draw=vj.draws.stratified)
    value, draws = jax.jit(lambda key: objective(key, log_joint, q, num_samples=3))(key)
    by_hand = -jnp.sum(draws.z**2, -1) - jax.vmap(q.log_prob)(draws.z)
    np.testing.assert_allclose(value, by_hand.mean(), rtol=1e-5)  # three equal components


def test_a_prior_learns_and_the_standard_one_does_not():
    """What an optimizer of nnx.Param sees of each."""
    params = NORMAL.init(None, jnp.zeros(2))
    assert len(jax.tree.leaves(nnx.state(Prior(NORMAL, params), nnx.Param))) == 2
    assert not jax.tree.leaves(nnx.state(standard(jnp.zeros(2)), nnx.Param))
    truth = norm.logpdf(jnp.ones(2)).sum()
    np.testing.assert_allclose(standard(jnp.ones(2))().log_prob(jnp.ones(2)), truth, rtol=1e-6)


def test_student_t_is_normal_with_its_gamma_scale_integrated_out(key):
    """p(z) of tau ~ Gamma(nu/2, nu/2), z | tau ~ N(0, 1/tau): collapse gives the family's density at any tau."""
    nu, z = 5.0, jnp.array([0.7, -2.0])
    family = vj.families.student_t(degrees=nu, base=NORMAL)
    prior = Prior(family, family.init(key, jnp.zeros(2)))()

    def log_joint(z, tau):
        log_tau = distrax.Gamma(nu / 2, nu / 2).log_prob(tau)
        return log_tau + norm.logpdf(z, 0.0, tau**-0.5).sum()

    def conditional(z):
        return distrax.Gamma(nu / 2 + 1, nu / 2 + 0.5 * jnp.sum(z**2))

    # The control: another shape of the Gamma is another prior.
    wrong = lambda z: distrax.Gamma(nu, conditional(z).rate)
    right, off = (vj.targets.collapse(log_joint, c) for c in (conditional, wrong))
    at = z + jax.random.normal(key, (3, 2))
    found, control, truth = jax.jit(jax.vmap(lambda z: (right(z), off(z), prior.log_prob(z))))(at)
    np.testing.assert_allclose(found, truth, rtol=1e-5)
    assert jnp.abs(control - truth).max() > 0.1


def test_refusals(unchecked):
    with pytest.raises(TypeError, match=r"encoder must be the models\.Conditional"):
        VampPrior(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match="logits must have shape"):
        aggregate(encoder(), jnp.ones((3, 3)), jnp.zeros(2))
    with pytest.raises(ValueError, match=r"inputs \[n"):
        aggregate(encoder(), jnp.ones((2, 3, 3)))
    with pytest.raises(TypeError, match="family must be a Family"):
        Prior(NORMAL.dist, {})
