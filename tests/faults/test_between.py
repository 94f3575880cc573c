"""What one member, one turn of a loop or one module hands to another: attributed rightly, or refused."""

import functools

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.scipy.stats import norm

import vijax as vj
from vijax.bounds import elbo, iwae
from vijax.gradients import auto, dreg, each, reparam, score, vimco

pytestmark = pytest.mark.usefixtures("loose_ranks")
x = jnp.array([1.0, -0.5, 2.0])


# --- each: the slope of one member's log p by the latents of another


def gaussians(t):
    return {
        "a": distrax.Normal(jnp.full(3, 0.2), jnp.full(3, 0.7)),
        "b": distrax.Normal(jnp.full(3, t), jnp.ones(3)),
    }


def slope_of_the_first(objective, reads, key):
    """Of the bound of member 0, whose log p reads its own b, or with `reads` that of member 2."""

    def log_joint(z):
        other = jnp.roll(z["b"], 1) if reads else z["b"]
        own = -0.5 * (z["a"] - x) ** 2 - 0.5 * z["b"] ** 2
        return own + jnp.array([2.0, 0.0, 0.0]) * other

    def value(t):
        return objective(key, log_joint, gaussians(t), num_samples=4).value[0]

    return jax.grad(value)(0.1)


def test_each_refuses_coupled_members_under_linear_bounds_too(key):
    """d/dt of E[-z²/2 + 2 z] is 2 - t, of a member weighed alone; the slope of the sum of all is not."""
    by_path = each(elbo, {"a": dreg, "b": dreg})
    with pytest.raises(ValueError, match="mixes members"):
        slope_of_the_first(by_path, True, key)
    np.testing.assert_allclose(slope_of_the_first(dreg(elbo), True, key), 1.9, rtol=1e-5)
    np.testing.assert_allclose(slope_of_the_first(by_path, False, key), 1.9, rtol=1e-5)


# --- a bound that says that it is vijax's


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("estimator", [dreg, score, vimco])
def test_a_wrapped_bound_is_asked_about_members(estimator, key):
    @functools.wraps(iwae)
    def mixed(log_w):
        return iwae(log_w - 0.5 * jnp.mean(log_w, 1, keepdims=True))

    @functools.wraps(iwae)
    def apart(log_w):
        return iwae(log_w) / 2

    def value(bound):
        q = distrax.Normal(0.3 * x, jnp.ones(3))
        return estimator(bound)(key, lambda z: -0.5 * (z - x) ** 2, q, num_samples=3).value

    with pytest.raises(ValueError, match="members"):
        value(mixed)
    assert value(apart).shape == (3,)


# --- a stopped part of another turn


class Turns:
    """y₁ of y = s + e + stop(m) - stop(m of the turn before), m = l e: it depends on l."""

    def __init__(self, loop, l, s):
        self.loop, self.l, self.s = loop, l, s

    def sample_and_log_prob(self, *, seed, sample_shape=()):
        n = jax.random.normal(seed, (2,))

        def turn(before, e):
            part = lax.stop_gradient(self.l * e)
            return part, self.s + e + part - before

        z = self.loop(turn, n)
        return z, self.log_prob(z)

    def log_prob(self, z):
        return norm.logpdf(z, self.s, jnp.sqrt((1 + self.l) ** 2 + self.l**2))


def by_scan(turn, n):
    return lax.scan(turn, jnp.zeros(()), n)[1][1]


def by_fori(turn, n):
    def body(i, carry):
        return turn(carry[0], n[i])

    return lax.fori_loop(0, jnp.argmax(n * 0) + 2, body, (jnp.zeros(()), jnp.zeros(())))[1]


@pytest.mark.parametrize("loop", [by_scan, by_fori])
def test_stopped_parts_of_different_turns_do_not_cancel(loop, key):
    def value(l):
        q = Turns(loop, l, -0.4)
        return reparam(elbo)(key, lambda z: norm.logpdf(z, 1.0), q, num_samples=2).value

    with pytest.raises(ValueError, match="stop_gradient"):
        jax.grad(value)(0.2)


def test_stopped_parts_of_one_turn_cancel(key):
    class Softmax(Turns):
        def sample_and_log_prob(self, *, seed, sample_shape=()):
            def turn(a, e):
                logits = self.l * jnp.stack([e, a])
                return a + jax.nn.logsumexp(logits), a

            last, _ = lax.scan(turn, jnp.zeros(()), jax.random.normal(seed, (3,)))
            return last, self.log_prob(last)

    def value(l):
        q = Softmax(None, l, 0.0)
        return reparam(elbo)(key, lambda z: norm.logpdf(z, 1.0), q, num_samples=2).value

    assert np.isfinite(jax.grad(value)(0.2))


# --- Flax modules that change while log_joint is traced


class Decoder(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(2, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, z, rngs=None):
        return self.dropout(self.norm(self.linear(z)), rngs=rngs)


def log_p(decoder, z, **rngs):
    return jnp.sum(norm.logpdf(z), -1) + jnp.sum(norm.logpdf(decoder(z, **rngs)), -1)


def encoder():
    return distrax.Independent(distrax.Normal(jnp.zeros((4, 2)), jnp.ones((4, 2))), 1)


def test_a_module_that_changes_in_log_joint_is_refused_with_the_cure(key):
    decoder = Decoder(nnx.Rngs(0, dropout=1))
    with pytest.raises(ValueError, match=r"nnx.merge\(graphdef, state, copy=True\)"):
        reparam(elbo)(key, lambda z: log_p(decoder, z), encoder(), num_samples=2)


@pytest.mark.parametrize("evaluated", [False, True])
def test_the_cure_works(evaluated, key):
    """A module made anew for each draw; its statistics come out, or stay where they are."""
    decoder = Decoder(nnx.Rngs(0, dropout=1))
    if evaluated:
        decoder.norm.eval()
    graphdef, params, rest = nnx.split(decoder, nnx.Param, ...)

    def value(params):
        def model(key, z):
            inner = nnx.merge(graphdef, params, rest, copy=True)
            return log_p(inner, z, rngs=nnx.Rngs(dropout=key)), nnx.state(inner, nnx.BatchStat)

        target = vj.targets.keyed(model, has_aux=True)
        found = auto(elbo)(key, target, encoder(), num_samples=2)
        return jnp.sum(found.value), found.draws.aux

    slopes, statistics = jax.grad(value, has_aux=True)(params)
    assert all(bool(jnp.all(jnp.isfinite(s))) for s in jax.tree.leaves(slopes))
    assert jax.tree.leaves(statistics)[0].shape == (2, 3)
