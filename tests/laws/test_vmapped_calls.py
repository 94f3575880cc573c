"""jax.vmap of a compiled, rematerialized or scanned objective with one key for all: each gradient is its own.

JAX takes a tangent of custom_jvp to have the axes of its value, which vijax.numerics.beside sees to.
"""

from functools import partial

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import vijax as vj
from tests.marks import some
from vijax import gradients
from vijax.bounds import elbo, iwae
from vijax.numerics import scale_gradient, with_score
from vijax.types import Joint

pytestmark = pytest.mark.usefixtures("loose_ranks")

WITHIN = {
    "jit": jax.jit,
    "checkpoint": jax.checkpoint,
    "scan": lambda f: lambda x: lax.map(lambda _: f(x), jnp.zeros(1))[0],
}
within = pytest.mark.parametrize("within", WITHIN.values(), ids=WITHIN)


def normal(x):
    return distrax.Normal(0.5 * x, 1.0)


def coin(x):
    return distrax.Bernoulli(logits=0.5 * x)


def both(x):
    return Joint({"z": normal(x), "b": lambda z: distrax.Bernoulli(logits=z["z"])})


def apart(x):
    return Joint({"z": normal(x), "b": coin(x)})


def of_one(z):
    return -0.5 * (z - 1.0) ** 2


def of_two(z):
    return of_one(z["z"]) + 0.3 * z["b"]


OBJECTIVES = {
    "dreg elbo": (gradients.dreg(elbo), normal, of_one),
    "dreg iwae": (gradients.dreg(iwae), normal, of_one),
    "split": (gradients.split(model=elbo, q=iwae), normal, of_one),
    "score": (gradients.score(iwae), normal, of_one),
    "fixed": (gradients.fixed(iwae), normal, of_one),
    "wake": (gradients.wake(iwae), normal, of_one),
    "vimco": (gradients.vimco(iwae), coin, of_one),
    "disarm": (gradients.disarm(elbo), coin, of_one),
    "local_expectation": (gradients.local_expectation(iwae), coin, of_one),
    "auto": (gradients.auto(elbo), both, of_two),
    "each": (gradients.each(elbo, {"z": gradients.dreg, "b": gradients.vimco}), apart, of_two),
    "measure_valued": (gradients.measure_valued(elbo), normal, of_one),
}
XS = jnp.array([0.3, 0.4, 0.9])


CALLS = [(name, how, size) for name in OBJECTIVES for how in WITHIN for size in (None, 2)]
ALWAYS = [f"{name}, jit, None" for name in ("dreg elbo", "dreg iwae", "vimco", "auto", "each")]


@pytest.mark.parametrize(
    "case",
    some(
        CALLS,
        *ALWAYS,
        "dreg iwae, scan, None",
        "score, jit, 2",
        name=lambda c: "{}, {}, {}".format(*c),
    ),
)
def test_every_gradient_is_its_own(case, key):
    name, how, chunk_size = case
    within = WITHIN[how]
    objective, q, log_joint = OBJECTIVES[name]

    def value(x, slope):
        target = lambda z: slope * log_joint(z)  # noqa: E731
        return objective(key, target, q(x), num_samples=4, chunk_size=chunk_size).value

    gradient = jax.jit(jax.grad(value, (0, 1)))
    alone = jnp.stack(jnp.array([gradient(x, 1.5) for x in XS]), 1)
    together = jax.grad(lambda x, s: jax.vmap(within(partial(value, slope=s)))(x).sum(), (0, 1))
    of_x, of_slope = jax.jit(together)(XS, 1.5)
    np.testing.assert_allclose(of_x, alone[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(of_slope, alone[1].sum(), rtol=1e-5, atol=1e-6)


@within
def test_values_that_have_no_axis(within):
    one = lambda x: with_score(jnp.float32(1.0), 2.0 * x)  # noqa: E731
    found = jax.grad(lambda xs: jax.vmap(within(one))(xs).sum())(XS)
    np.testing.assert_allclose(found, 2.0)
    scaled = lambda t: lambda x: scale_gradient(1.0 * t, x)  # noqa: E731
    found = jax.grad(lambda t: jax.vmap(within(scaled(t)))(XS).sum())(2.0)
    np.testing.assert_allclose(found, XS.sum(), rtol=1e-6)


def test_why_it_must_be_seen_to():
    """The control: a custom_jvp whose value lacks the axis has the sum of all gradients for each."""

    @jax.custom_jvp
    def plain(value, score):
        return value

    plain.defjvp(lambda primals, tangents: (plain(*primals), tangents[1]))
    one = jax.jit(lambda x: plain(jnp.float32(1.0), 2.0 * x))
    found = jax.grad(lambda xs: jax.vmap(one)(xs).sum())(XS)
    assert not np.allclose(found, 2.0), "this JAX does it right: numerics.beside can go"


def test_nan_and_infinite_scores_leave_the_value_alone():
    for score in (jnp.nan, jnp.inf):
        assert jax.jit(with_score)(jnp.float32(1.0), jnp.float32(score)) == 1.0
    assert vj.numerics.with_score(jnp.ones(2), jnp.float32(jnp.nan)).tolist() == [1.0, 1.0]
