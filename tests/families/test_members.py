"""members: the q of n data by one family, as n members of it one by one; under every kind of estimator."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj
from tests.problems import assert_close

LIKE = {"a": jnp.arange(3.0), "b": jnp.ones((3, 2))}
FULL = vj.families.members(vj.families.full_rank(scale=0.5))


def moved(params, key):
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    return tree.unflatten(
        [p + jax.random.normal(k, p.shape) for k, p in zip(keys, leaves, strict=True)]
    )


def test_each_member_as_it_is_alone(key):
    params = moved(FULL.init(None, LIKE), key)
    assert params["lower"].shape == (3, 3)

    @jax.jit
    def drawn(params):
        q = FULL.dist(params)
        z, log_q = q.sample_and_log_prob(seed=key, sample_shape=(4, 5))
        one = vj.families.full_rank().dist(jax.tree.map(lambda leaf: leaf[1], params))
        alone = jax.vmap(one.log_prob)(jax.tree.map(lambda leaf: leaf[0, :, 1], z))
        return z, log_q, jax.vmap(jax.vmap(q.log_prob))(z), alone

    z, log_q, again, alone = drawn(params)
    assert jax.tree.map(jnp.shape, z) == {"a": (4, 5, 3), "b": (4, 5, 3, 2)}
    np.testing.assert_allclose(again, log_q, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(alone, log_q[0, :, 1], rtol=1e-4, atol=1e-4)
    # Members draw apart, and are one distribution as vijax asks for it.
    assert len(np.unique(np.asarray(z["a"][0, 0]) - np.asarray(params["loc"]["a"]))) == 3
    assert isinstance(FULL.dist(params), vj.types.Distribution)


def test_bounds_of_a_batch(key):
    """dreg(iwae) and vimco take it, whose members must be known to be apart; chunks change nothing."""
    params = moved(FULL.init(None, LIKE), key)
    log_joint = lambda z: -0.5 * z["a"] ** 2 - 0.5 * jnp.sum(z["b"] ** 2, -1)

    def value(params, make, chunk_size=None):
        objective = make(vj.bounds.iwae)
        return jnp.sum(
            objective(key, log_joint, FULL.dist(params), num_samples=6, chunk_size=chunk_size).value
        )

    gradient = jax.jit(jax.grad(value), static_argnums=(1, 2))
    whole, cut = (gradient(params, vj.gradients.dreg, chunk) for chunk in (None, 4))
    assert_close(cut, whole, rtol=2e-4, atol=2e-4)
    # It refuses members that may be coupled.
    jax.eval_shape(lambda p: gradient(p, vj.gradients.vimco), params)


def test_other_families(key, loose_ranks):
    """A mixture, a library's distribution, a dict of parts, members of members."""
    mixture = vj.families.members(vj.families.mixture(vj.families.low_rank(rank=1), components=2))

    def log_q(key):
        q = mixture.dist(mixture.init(key, jnp.zeros((3, 2))))
        return q.sample_and_log_prob(seed=key, sample_shape=())[1]

    assert jax.eval_shape(log_q, key).shape == (3,)
    own = vj.types.Family(lambda key, like: like, lambda p: {"z": distrax.Normal(p, 1.0)})
    q = vj.families.members(own).dist(jnp.arange(3.0))
    np.testing.assert_allclose(
        q.log_prob({"z": jnp.arange(3.0)}), -0.5 * np.log(2 * np.pi) * np.ones(3), rtol=1e-6
    )
    twice = vj.families.members(vj.families.members(vj.families.mean_field()))
    q = twice.dist(twice.init(None, jnp.zeros((4, 3, 2))))
    assert q.log_prob(jnp.zeros((4, 3, 2))).shape == (4, 3)


def test_refusals(unchecked):
    with pytest.raises(TypeError, match="with its brackets"):
        vj.families.members(vj.families.full_rank)
    with pytest.raises(ValueError, match=r"one axis of data.*'?a'? \(3,\), b \(2,\)"):
        FULL.init(None, {"a": jnp.zeros(3), "b": jnp.zeros(2)})
    with pytest.raises(ValueError, match="every leaf of params.*one axis of data"):
        FULL.dist(vj.families.full_rank().init(None, jnp.zeros(())))
