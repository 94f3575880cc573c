"""Minibatches: the mean over batches is the whole, and only bounds linear in log_w accept the target."""

from functools import partial

import distrax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj


def test_minibatch_has_the_full_mean_and_refuses_what_is_not_linear(key, unchecked):
    data = jnp.arange(6.0)
    prior = lambda z: distrax.Normal(0.0, 1.0).log_prob(z)
    terms = lambda x, z: distrax.Normal(z, 1.0).log_prob(x)
    z = jnp.array(0.7)
    pairs = [jnp.array(p) for p in ([0, 1], [2, 3], [4, 5])]
    each = [vj.targets.minibatch(prior, partial(terms, data[p]), num_data=6)(z) for p in pairs]
    np.testing.assert_allclose(np.mean(each), prior(z) + terms(data, z).sum(), rtol=1e-6)
    target = vj.targets.minibatch(prior, partial(terms, data[:2]), num_data=6)
    q = distrax.Normal(0.0, 1.0)
    assert jnp.shape(vj.gradients.dreg(vj.bounds.elbo)(key, target, q, num_samples=3).value) == ()
    for bound in (vj.bounds.iwae, partial(vj.bounds.renyi, alpha=0.5), vj.bounds.cubo, lambda w: vj.bounds.elbo(w)):
        for gradient in (
            vj.gradients.reparam,
            vj.gradients.dreg,
            vj.gradients.score,
            vj.gradients.vimco,
            vj.gradients.auto,
        ):
            with pytest.raises(ValueError, match="linear in log_w: use bounds.elbo"):
                gradient(bound)(key, target, q, num_samples=3)
    with pytest.raises(ValueError, match="cannot stand for num_data = 1"):
        vj.targets.minibatch(prior, partial(terms, data), num_data=1)(z)
    with pytest.raises(TypeError, match="whole number"):
        vj.targets.minibatch(prior, partial(terms, data), num_data=6.5)
