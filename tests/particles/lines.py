"""Linear-Gaussian chains of numbers for particles: the filter's answers are Kalman's."""

import jax
import jax.numpy as jnp

import vijax as vj
from tests.bare import Gauss
from tests.sequences.problem import NILE
from vijax.particles import Proposal, StateSpace

START = 1000.0, 500.0**2  # mean and variance of the Nile's first level
AT = jnp.log(jnp.array([15099.0, 1469.1]))  # log of the variances of observation and level
LOG_P = -639.7117154905


class Line(Gauss):
    """A normal by its mean and variance, that says what the analyses would find."""

    reparameterized = fixed_support = True

    def __init__(self, mean, variance):
        super().__init__(*jnp.broadcast_arrays(jnp.asarray(mean), 0.5 * jnp.log(variance)))


def nile(dtype=jnp.float32):
    return jnp.asarray(NILE[:, 0], dtype)


def level(params=AT, *, start=START):
    """Return the local level model of log-variances (observation, level)."""
    observation, step = jnp.exp(params)
    return StateSpace(
        lambda x: Line(start[0], start[1]),
        lambda z, x: Line(z, step),
        lambda z, x: Line(z, observation).log_prob(x),
    )


def optimal(params=AT, *, start=START):
    """Return the proposal p(z | z before, x)."""
    observation, step = jnp.exp(params)

    def given(mean, variance, x):
        left = 1 / (1 / variance + 1 / observation)
        return Line(left * (mean / variance + x / observation), left)

    return Proposal(lambda x: given(*start, x), lambda z, x: given(z, step, x))


def lookahead(params=AT):
    """Return log p(x | z before)."""
    return lambda z, x: Line(z, jnp.sum(jnp.exp(params))).log_prob(x)


def kalman(params, x, *, start=START, mask=None):
    observation, step = jnp.exp(params)
    mean, variance = start
    one = jnp.ones((1, 1))
    model = vj.sequences.LinearGaussian(
        jnp.full(1, mean), variance * one, one, step * one, one, observation * one
    )
    return vj.sequences.kalman_filter(model, x[:, None], mask=mask)


SMALL = (0.5, 2.0)  # of a chain of a few steps
UNITS = jnp.log(jnp.array([0.7, 0.5]))
X = jnp.array([1.0, -0.6, 2.2, 1.9, 3.0])


def small(params=UNITS):
    return level(params, start=SMALL)


def filters(key, r, function):
    """Return function of r keys, as one program."""
    return jax.jit(jax.vmap(function))(jax.random.split(key, r))
