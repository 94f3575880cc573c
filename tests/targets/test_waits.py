"""Solves that wait for one another: on jax 0.10 two batches of them at once may wait for ever where two threads share both."""

import re
from itertools import combinations

import jax
import jax.numpy as jnp
import pytest

import vijax as vj


def unordered(compiled: str) -> list[tuple[str, str]]:
    """Return the pairs of LAPACK's calls in one computation of an HLO text neither of which needs the other's result."""
    found = []
    for computation in re.split(r"\n\}\n", compiled):
        needs: dict[str, set[str]] = {}
        calls = []
        for name, body in re.findall(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$", computation, re.M):
            read = [other for other in re.findall(r"%([\w.\-]+)", body) if other in needs]
            needs[name] = set(read).union(*(needs[other] for other in read))
            calls += [name] * ('custom_call_target="lapack' in body)
        found += [(a, b) for a, b in combinations(calls, 2) if a not in needs[b]]
    return found


def compiled(function, *args) -> str:
    return jax.jit(function).lower(*args).compile().as_text()


def log_joint(z, b):
    scaled = (b - jnp.mean(b)) * jnp.exp(-z)
    return -0.5 * jnp.sum(scaled**2) - 0.5 * jnp.sum((b - 1.0) ** 2) - b.size * z


collapsed, conditional = vj.targets.collapse_gaussian(log_joint, jnp.zeros(5))
POINTS = jnp.linspace(-1.0, 1.0, 100)
KEYS = jax.random.split(jax.random.key(0), 100)

PROGRAMS = {
    "value": lambda keys, z: jax.vmap(collapsed)(z),
    "draw": lambda keys, z: jax.vmap(lambda k, z: conditional(z).sample_and_log_prob(seed=k))(
        keys, z
    ),
    "log_prob": lambda keys, z: jax.vmap(lambda z: conditional(z).log_prob(jnp.ones(5)))(z),
}


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="LAPACK is the CPU's")
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_solves_of_a_collapse_are_in_order(name):
    text = compiled(PROGRAMS[name], KEYS, POINTS)
    assert text.count('custom_call_target="lapack') >= 5
    assert not unordered(text)


def test_solves_out_of_order_are_seen():
    matrices = jnp.broadcast_to(jnp.eye(5), (100, 5, 5))
    both = compiled(lambda a: (jnp.linalg.cholesky(a), jnp.linalg.cholesky(a + 1.0)), matrices)
    assert unordered(both)
