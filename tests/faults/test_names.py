"""F8: leaves that would be called alike, {"a": {"b": ...}, "a.b": ...}, lose nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj
from vijax.checks import named_leaves, named_scalars

positive = vj.targets.constraints.positive
AMBIGUOUS = {
    "dots": {"a": {"b": 1.0}, "a.b": 2.0},
    "numbers": {"a": (1.0, 2.0), "a.0": 3.0},
    "elements": {"a": np.array([1.0, 2.0]), "a[0]": 3.0},
}


@pytest.mark.parametrize("kind", AMBIGUOUS)
def test_names_are_their_own(kind):
    tree = AMBIGUOUS[kind]
    leaves, scalars = named_leaves(tree), named_scalars(tree)
    assert len({name for name, _ in leaves}) == len(leaves)
    assert len(set(scalars)) == sum(np.size(leaf) for _, leaf in leaves)


def test_plain_names_stay_plain():
    tree = {"a": {"b": 1.0}, "c": np.zeros((2, 1))}
    assert [name for name, _ in named_leaves(tree)] == ["a.b", "c"]
    assert named_scalars(tree) == ["a.b", "c[0,0]", "c[1,0]"]


def test_the_summary_names_each(key):
    z = {"a": {"b": jax.random.normal(key, (50,))}, "a.b": jnp.arange(50.0)}
    zeros = jnp.zeros(50)
    assert vj.diagnostics.summarize(vj.Draws(z, zeros, zeros)).names == ("['a']['b']", "['a.b']")


@pytest.mark.parametrize("factors", [False, True])
def test_every_jacobian_counts(factors):
    """z = exp(y) in both leaves: the log-Jacobian is the sum of the y, .3 and .5."""
    constraints = {"a": {"b": positive}, "a.b": positive}
    y = {"a": {"b": jnp.array(0.3)}, "a.b": jnp.array(0.5)}
    zero = lambda z: 0.0 * z["a"]["b"]
    plain = (lambda z: {"all": zero(z)}) if factors else zero
    found = vj.targets.transform(plain, constraints).log_joint(y)
    np.testing.assert_allclose(sum(found.values()) if factors else found, 0.8, rtol=1e-6)
