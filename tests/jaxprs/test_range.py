"""What a sampler's jaxpr shows of the range of its draws, and of whether its ends move."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj
from vijax import draws, jaxprs

KEY = jax.random.key(0)
P = jnp.array([0.3, 0.8])
normal, uniform, exponential = jax.random.normal, jax.random.uniform, jax.random.exponential


class Own:
    """A q of one's own, of which only the sampler is read."""

    def __init__(self, draw):
        self.draw = draw

    def sample_and_log_prob(self, *, seed, sample_shape=()):
        z = self.draw(seed)
        return z, jnp.zeros(())

    def log_prob(self, z):
        return jnp.zeros(())


def moving(draw, **declared):
    """Return why the support moves, asked while the parameters are differentiated."""
    found = []

    def ask(p):
        q = Own(lambda key: draw(p, key))
        if declared:
            q = vj.families.adapt(q, **declared)
        found.append(jaxprs.moving_support(q, KEY, jaxprs.paths(q, draws.iid, KEY)))
        return p.sum()

    jax.grad(ask)(P)
    return found[0]


def two(key):
    return jax.random.split(key)


def walk(p, key):
    """A random walk, a step for each key."""

    def step(z, key):
        z = p[0] * z + normal(key)
        return z, z

    return jax.lax.scan(step, 0.0, jax.random.split(key, 5))[1]


FIXED = {
    "location and scale": lambda p, k: p[0] + jnp.exp(p[1]) * normal(k, (3,)),
    "a scale of unknown sign": lambda p, k: p[0] + p[1] * normal(k),
    "a matrix": lambda p, k: p + jnp.outer(p, p) @ normal(k, (2,)),
    "a triangle by hand": lambda p, k: (
        lambda e: jnp.stack([p[0] * e[0], p[1] * e[0] + p[0] * e[1]])
    )(normal(k, (2,))),
    "a logarithmic normal": lambda p, k: jnp.exp(p[0] + p[1] * normal(k)),
    "a sigmoid": lambda p, k: jax.nn.sigmoid(p[0] + p[1] * normal(k)),
    "a softplus": lambda p, k: jax.nn.softplus(p[0] + p[1] * normal(k)),
    "a tanh": lambda p, k: jnp.tanh(p[0] + p[1] * normal(k)),
    "a rate": lambda p, k: exponential(k) / p[0],
    "an inverse distribution function": lambda p, k: -jnp.log1p(-uniform(k)) / p[0],
    "Kumaraswamy's": lambda p, k: (1 - (1 - uniform(k)) ** jnp.exp(p[0])) ** (1 / jnp.exp(p[1])),
    "Weibull's": lambda p, k: jnp.exp(p[0]) * (-jnp.log(uniform(k))) ** jnp.exp(-p[1]),
    "Cauchy's": lambda p, k: p[0] + p[1] * jnp.tan(jnp.pi * (uniform(k) - 0.5)),
    "a gamma": lambda p, k: jax.random.gamma(k, jnp.exp(p[0])) / p[1],
    "Student's": lambda p, k: p[0] + jnp.exp(p[1]) * jax.random.t(k, 3.0),
    "a mixture": lambda p, k: jnp.where(
        uniform(two(k)[0]) < p[0], normal(two(k)[1]), p[1] + normal(two(k)[1])
    ),
    "a spike at zero": lambda p, k: jnp.where(
        uniform(two(k)[0]) < p[0], p[1] * normal(two(k)[1]), 0
    ),
    "a walk": walk,
    "two leaves": lambda p, k: (p[0] + normal(two(k)[0]), jnp.exp(p[1] * normal(two(k)[1]))),
    "two leaves in a chain": lambda p, k: (lambda a, b: {"a": a, "b": p[0] * a + p[1] * b})(
        *(normal(key) for key in two(k))
    ),
}
MOVING = {
    "a shifted exponential": lambda p, k: p[0] + exponential(k),
    "a shifted logarithmic normal": lambda p, k: p[0] + jnp.exp(normal(k)),
    "a uniform": lambda p, k: p[0] * uniform(k),
    "a uniform between": lambda p, k: uniform(k, minval=p[0], maxval=2.0),
    "an exponential that is cut": lambda p, k: -jnp.log1p(uniform(k) * jnp.expm1(-p[0])),
    "a normal that is cut": lambda p, k: jax.random.truncated_normal(k, p[0], 1.0),
    "a reflection": lambda p, k: p[0] + jnp.abs(normal(k) - p[0]),
    "a reflection by comparison": lambda p, k: (lambda e: jnp.where(e > p[0], e, 2 * p[0] - e))(
        normal(k)
    ),
    "a floor": lambda p, k: jnp.maximum(normal(k), p[0]),
    "a Pareto of another scale": lambda p, k: p[0] * jax.random.pareto(k, 2.0),
    "a spike that moves": lambda p, k: jnp.where(
        uniform(two(k)[0]) < p[0], normal(two(k)[1]), p[1]
    ),
    "a bounded function of an unbounded one": lambda p, k: (lambda e: p[0] * e / (1 + jnp.abs(e)))(
        normal(k)
    ),
    "leaves that share a draw": lambda p, k: (lambda a, b: {"a": a, "b": a + p[0] + jnp.exp(b)})(
        *(normal(key) for key in two(k))
    ),
    "elements that share a draw": lambda p, k: (
        lambda e: jnp.stack([e[0], e[0] + p[0] + jnp.exp(e[1])])
    )(normal(k, (2,))),
    "a cone": lambda p, k: jnp.outer(p, p) @ exponential(k, (2,)),
    "two halves that meet at a parameter": lambda p, k: (
        p[0] + jnp.where(jax.random.bernoulli(two(k)[0]), 2.0, -0.5) * jnp.abs(normal(two(k)[1]))
    ),
    "halves chosen by a coin": lambda p, k: (
        lambda e: p[0] + jnp.where(jax.random.bernoulli(two(k)[1]), 2 * jnp.abs(e), -jnp.abs(e))
    )(normal(two(k)[0])),
    "the larger of two": lambda p, k: jnp.maximum(
        p[0] * uniform(two(k)[0]), exponential(two(k)[1])
    ),
    "a normal or its location": lambda p, k: (
        p[0] + normal(two(k)[0]) * jax.random.bernoulli(two(k)[1])
    ),
    "a latent that is pinned": lambda p, k: p + np.array([1.0, 0.0]) * normal(k, (2,)),
    "a latent that is padded": lambda p, k: p + jnp.concatenate([normal(k, (1,)), jnp.zeros(1)]),
    "a line in the plane": lambda p, k: p + jnp.array([[1.0], [1.0]]) @ normal(k, (1,)),
    "one draw for two": lambda p, k: p + jnp.broadcast_to(normal(k), (2,)),
    "one draw read twice": lambda p, k: p + normal(k, (2,))[jnp.array([0, 0])],
    "a sum of zero": lambda p, k: (lambda e: p + e - e.mean())(normal(k, (2,))),
    "a bounded difference": lambda p, k: (lambda e: jnp.arcsinh(p[0] * e) - jnp.arcsinh(e))(
        jax.random.t(k, 2.0)
    ),
    "a logarithm from a sum": lambda p, k: (
        jnp.exp(p[0]) * jnp.log(jnp.sum(jnp.ones(3)) - uniform(k))
    ),
    "a small limit": lambda p, k: p[0] * 1e7 * uniform(k, maxval=4e-7),
    "draws of a loop with a counter": lambda p, k: (
        p[0]
        + jax.lax.fori_loop(
            0, 5, lambda i, c: c + jnp.exp(normal(jax.random.fold_in(k, i))), jnp.zeros(())
        )
    ),
    "a power beyond floats": lambda p, k: p[0] + jnp.clip(jnp.exp(normal(k)), 1e-30, 3e38) ** 9,
    "bits of its own": lambda p, k: p[0] * (jax.random.bits(k) / 2.0**32),
}


@pytest.mark.parametrize("name", list(FIXED))
def test_a_range_that_stays_is_proved(name):
    assert moving(FIXED[name]) is None


@pytest.mark.parametrize("name", list(MOVING))
def test_a_range_that_moves_or_is_not_known_is_told(name):
    assert "fixed_support = True" in moving(MOVING[name]).cure
    assert moving(MOVING[name], fixed_support=True) is None


def test_a_declaration_that_it_moves_is_heeded():
    assert "declares" in moving(FIXED["a sigmoid"], fixed_support=False).why


def test_a_sampler_of_the_same_name_as_jax_has_is_not_taken_for_it():
    @jax.jit
    def _normal(key):
        return uniform(key)

    assert moving(lambda p, k: p[0] * _normal(k)) is not None
    assert moving(lambda p, k: p[0] * normal(k)) is None
