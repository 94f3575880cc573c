"""Constants of the code are told from what somebody may differentiate, whatever traces them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vijax.jaxprs._equations import varies


def asked(p):
    """Return what is said of constants, and of what depends on the parameter."""
    constants = [
        jnp.asarray(0.5),
        jnp.asarray([1.0, 2.0]),
        jnp.asarray(np.ones(2)) * 2,
        jnp.zeros(3) + jnp.arange(3.0),
        jnp.exp(jnp.asarray(0.2)),
    ]
    parameters = [p, p + 1, jnp.stack([p, 0 * p]), jnp.zeros(2) + p]
    return [varies(c) for c in constants], [varies(c) for c in parameters]


def look(p, found):
    found.append(asked(p))
    return p * 1.0


WAYS = {
    "jit": lambda f: jax.jit(f)(0.3),
    "grad": lambda f: jax.grad(f)(0.3),
    "jit of grad": lambda f: jax.jit(jax.grad(f))(0.3),
    "grad of jit": lambda f: jax.grad(jax.jit(f))(0.3),
    "vmap": lambda f: jax.vmap(f)(jnp.ones(2)),
    "grad of vmap": lambda f: jax.grad(lambda p: jax.vmap(f)(p).sum())(jnp.ones(2)),
    "scan": lambda f: jax.lax.scan(lambda c, x: (c, f(x)), 0.0, jnp.ones(2)),
    "remat": lambda f: jax.grad(jax.checkpoint(f))(0.3),
    "forward": lambda f: jax.jvp(f, (0.3,), (1.0,)),
}


@pytest.mark.parametrize("way", list(WAYS))
def test_constants_are_told_from_parameters(way):
    found = []
    WAYS[way](lambda p: look(p, found))
    constants, parameters = found[0]
    assert not any(constants)
    assert all(parameters)


def test_a_parameter_that_an_inner_jit_closes_over():
    found = []

    def value(p):
        return jax.jit(lambda x: look(p * x, found))(jnp.ones(()))

    jax.grad(value)(0.3)
    assert all(found[0][1])


def test_what_is_concrete_is_constant():
    assert not varies(jnp.ones(2))
    assert not varies(1.0)
