"""A declaration is taken on trust, and ends where a target is made into another."""

import distrax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import vijax as vj

pytestmark = pytest.mark.usefixtures("loose_ranks", "unchecked")
X = jnp.array([1.0, -0.5, 2.0, 0.0])
Q = distrax.Normal(jnp.zeros(4), 1.0)
OBJECTIVE = vj.gradients.vimco(vj.bounds.iwae)


def apart(z):
    return norm.logpdf(z) + norm.logpdf(X, z)


def sorted_and_back(z):
    """The same, of members sorted and put back, which no trace shows to be apart."""
    return apart(jnp.sort(z)[jnp.argsort(jnp.argsort(z))])


def value(target, key):
    return OBJECTIVE(key, target, Q, num_samples=3).value


def test_a_declared_target_passes(key):
    with pytest.raises(ValueError, match="targets.independent_members"):
        value(sorted_and_back, key)
    declared = vj.targets.independent_members(sorted_and_back)
    np.testing.assert_allclose(value(declared, key), value(apart, key), rtol=1e-6)
    assert not vj.types.properties(sorted_and_back).independent_members


def test_other_properties_stay(key):
    keyed = vj.targets.keyed(lambda key, z: (sorted_and_back(z), z.mean()), has_aux=True)
    declared = vj.targets.independent_members(keyed)
    assert OBJECTIVE(key, declared, Q, num_samples=3).draws.aux.shape == (3,)


def test_a_constraint_may_couple_what_was_declared(key):
    """So the declaration is written last."""
    constraints = {"a": None, "b": lambda z: vj.targets.constraints.interval(jnp.min(z["a"]) - 1)}
    declared = vj.targets.independent_members(lambda z: apart(z["a"]) + apart(z["b"]))
    target = vj.targets.transform(declared, constraints).log_joint
    with pytest.raises(ValueError, match="mixes members"):
        OBJECTIVE(key, target, {"a": Q, "b": Q}, num_samples=2)


def test_a_q_declares_itself(key):
    class Sorted:
        independent_members = True

        def sample_and_log_prob(self, *, seed, sample_shape=()):
            z = Q.sample(seed=seed, sample_shape=sample_shape)
            return z, self.log_prob(z)

        def log_prob(self, z):
            return Q.log_prob(jnp.sort(z)[jnp.argsort(jnp.argsort(z))])

    class Silent(Sorted):
        independent_members = False

    objective = vj.gradients.dreg(vj.bounds.iwae)
    assert objective(key, apart, Sorted(), num_samples=2).value.shape == (4,)
    with pytest.raises(ValueError, match=r"q.log_prob\(z\) mixes.*independent_members = True"):
        objective(key, apart, Silent(), num_samples=2)


def test_a_value_that_python_asks_for(key):
    """It is known where nothing is traced, and hides the rest from the trace."""

    def target(z):
        return apart(z) if jnp.max(X) > 1 else apart(-z)

    with pytest.raises(ValueError, match="compute that value before"):
        value(target, key)
    assert value(vj.targets.independent_members(target), key).shape == (4,)
