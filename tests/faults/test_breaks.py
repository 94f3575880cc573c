"""A5: derivatives that are missing or not the draw's own, and pass for smooth."""

import math

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj
from tests.faults.judging import (
    G,
    Own,
    assert_accepted,
    assert_refused,
    assert_right_or_refused,
    case,
    parabola,
)

pytestmark = pytest.mark.usefixtures("loose_ranks", "unchecked", "x64")

# --- a Bernoulli draw of log-odds .4 whose step is out of sight


def bernoulli(p, z):
    return z * jax.nn.log_sigmoid(p) + (1 - z) * jax.nn.log_sigmoid(-p)


def through_a_ref(p, key):
    box = jax.new_ref(jnp.zeros(()))
    box[...] = (jax.random.uniform(key) < jax.nn.sigmoid(p)).astype(float)
    return box[...]


@jax.custom_jvp
def step(x):
    return (x > 0).astype(float)


step.defjvps(lambda t, out, x: t * jax.nn.sigmoid(x) * jax.nn.sigmoid(-x))


def straight_through(p, key):
    return step(p + jax.random.logistic(key))


def bernoulli_truth(p=0.4):
    one = 1 / (1 + math.exp(-p))
    return (0.0 - math.log(one) + 0.25 + math.log(1 - one)) * one * (1 - one)


# --- a Gaussian of mean .3 and scale .8, of which a part is cut off


def gaussian(p, z):
    return distrax.Normal(p[0], p[1]).log_prob(z)


def stopped_scale(p, key):
    return p[0] + jax.lax.stop_gradient(p[1]) * jax.random.normal(key)


def stopped_by_another(p, key):
    """Two calls of one function, whose stopped parts are not each other's."""
    stop = jax.jit(jax.lax.stop_gradient)
    return (
        p[0]
        + (p[1] + stop(p[1]) - stop(p[0] + p[1] - p[0])) * jax.random.normal(key)
        + stop(p[1])
        - p[1]
    )


def stopped_log_scale(p, key):
    return p[0] + jnp.exp(jax.lax.stop_gradient(jnp.log(p[1]))) * jax.random.normal(key)


@jax.custom_vjp
def rounded(x):
    return jnp.round(8 * x) / 8


rounded.defvjp(lambda x: (rounded(x), None), lambda _, d: (d,))


def rounded_scale(p, key):
    return p[0] + rounded(p[1]) * jax.random.normal(key)


def through_beside(p, key):
    """A straight-through Bernoulli beside a smooth location."""
    one, two = jax.random.split(key)
    return p[0] + 0.5 * jax.random.normal(one) + 2 * step(p[1] + jax.random.logistic(two))


def wrapped(p, key):
    """A normal wrapped around the circle, by a branch cut."""
    y = p[0] + p[1] * jax.random.normal(key)
    return jnp.arctan2(jnp.sin(y), jnp.cos(y))


def across(p, key):
    """A softmax whose shift is the maximum along the wrong axis, and does not cancel."""
    w = jnp.stack([p, 2 * p[::-1]])
    odds = jnp.exp(w - jax.lax.stop_gradient(w.max(0)))
    odds = odds / odds.sum(1, keepdims=True)
    return (odds @ jnp.array([1.0, -2.0])).sum() + jax.random.normal(key)


def reduced(p, key):
    return jax.lax.reduce_precision(p[0] + p[1] * jax.random.normal(key), 5, 1)


def float8(p, key):
    return (p[0] + p[1] * jax.random.normal(key)).astype(jnp.float8_e5m2).astype(float)


ONE, TWO = 0.4, np.array([0.3, 0.8])
GAUSSIAN_TRUTH = np.array([-0.5 * (0.3 - 1), 1 / 0.8 - 0.5 * 0.8])
KINDS = {
    "a mutable ref": (through_a_ref, bernoulli, ONE, bernoulli_truth()),
    "a straight-through custom_jvp": (straight_through, bernoulli, ONE, bernoulli_truth()),
    "a stopped scale": (stopped_scale, gaussian, TWO, GAUSSIAN_TRUTH),
    "a stopped logarithm": (stopped_log_scale, gaussian, TWO, GAUSSIAN_TRUTH),
    "stops of two calls": (stopped_by_another, gaussian, TWO, GAUSSIAN_TRUTH),
    "reduce_precision": (reduced, gaussian, TWO, GAUSSIAN_TRUTH),
    "a cast to float8": (float8, gaussian, TWO, GAUSSIAN_TRUTH),
}
PATHS = ("reparam", "dreg", "auto")


def cells():
    for kind in KINDS:
        for name in PATHS:
            yield case(kind, name, name=f"{kind}, {name}", slow=name == "auto")
    for kind in ("a mutable ref", "a straight-through custom_jvp"):
        for name in ("score", "vimco"):
            yield case(kind, name, name=f"{kind}, {name}", slow=name == "score")


@pytest.mark.parametrize(("kind", "name"), list(cells()))
def test_a_hidden_break_is_right_or_refused(kind, name):
    if kind == "a mutable ref" and jax.__version_info__ < (0, 12):
        pytest.skip("an error of this JAX itself")
    draw, log_prob, parameters, truth = KINDS[kind]
    hard = log_prob is bernoulli  # its truth is small
    assert_right_or_refused(
        getattr(G, name)(vj.bounds.elbo),
        parabola,
        lambda p: Own(p, draw, log_prob),
        jnp.asarray(parameters),
        truth,
        sees=0.03 if hard else 0.1,
        keys=400_000 if kind.startswith("a straight") and name != "dreg" else 40_000,
    )


# --- what stops a shift that cancels keeps the whole derivative


def softmax(p):
    odds = jnp.exp(p - jax.lax.stop_gradient(p.max()))
    return odds / odds.sum()


CANCEL = {
    "logsumexp": lambda p, key: jax.nn.logsumexp(p) + jax.random.normal(key),
    "softmax": lambda p, key: jax.nn.softmax(p) @ jax.random.normal(key, (2,)),
    "log_softmax": lambda p, key: jax.nn.log_softmax(p)[0] + jax.random.normal(key),
    "by hand": lambda p, key: softmax(p)[0] + jax.random.normal(key),
    "a stopped draw": lambda p, key: p[0] + p[1] * jax.lax.stop_gradient(jax.random.normal(key)),
}


@pytest.mark.parametrize("name", list(CANCEL))
def test_a_stopped_shift_that_cancels_is_accepted(name):
    def value(p):
        q = Own(p, CANCEL[name], gaussian)
        return G.reparam(vj.bounds.elbo)(jax.random.key(0), parabola, q, num_samples=2).value

    assert_accepted(lambda: jax.eval_shape(jax.grad(value), jnp.asarray(TWO)))


@pytest.mark.parametrize("draw", [through_beside, wrapped, across])
@pytest.mark.parametrize("name", ["reparam", "dreg"])
def test_a_part_of_the_derivative_that_is_missing_is_refused(name, draw):
    def value(p):
        objective = getattr(G, name)(vj.bounds.elbo)
        return objective(jax.random.key(0), parabola, Own(p, draw, gaussian), num_samples=2).value

    with pytest.raises(ValueError, match="depends on a parameter through"):
        jax.eval_shape(jax.grad(value), jnp.asarray(TWO))


def test_what_is_left_of_a_stopped_shift_is_refused():
    half = lambda p, key: p[0] - 0.5 * jax.lax.stop_gradient(p[0]) + jax.random.normal(key)

    def value(p):
        q = Own(p, half, gaussian)
        return G.reparam(vj.bounds.elbo)(jax.random.key(0), parabola, q, num_samples=2).value

    assert_refused(lambda: jax.eval_shape(jax.grad(value), jnp.asarray(TWO)))
