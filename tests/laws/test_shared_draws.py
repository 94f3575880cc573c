"""Supports that one draw, read twice, would seem to open: refused; and what reads parts of a draw, which passes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from vijax.bounds import elbo
from vijax.gradients import dreg, score, vimco

exponential, normal, dirichlet = jax.random.exponential, jax.random.normal, jax.random.dirichlet


def e_of(key, shape=()):
    """Draws e of which exp(t) e / (1 + e) is uniform on (0, exp(t))."""
    return jnp.expm1(exponential(key, shape))


def unpacked(key, t):
    a, b, _ = dirichlet(key, jnp.ones(3))
    return jnp.exp(t) * a / (1 - b)


def split_in_two(key, t):
    e = e_of(key, (4,))
    _, b = jnp.split(e, 2)
    return (jnp.exp(t) * b / (1 + e[2:]))[0]


def of_a_loop(key, t):
    e = e_of(key)
    _, y = lax.scan(lambda a, _: (e, e / (1 + a)), exponential(jax.random.key(1)), None, length=2)
    return jnp.exp(t) * y[1]


def of_a_key_of_a_loop(key, t):
    def turn(a, step):
        e = e_of(jax.random.fold_in(key, 3))
        return e, e / (1 + a)

    _, y = lax.scan(turn, jnp.ones(()), jnp.arange(2))
    return jnp.exp(t) * y[1]


def of_the_last_turn(key, t):
    def turn(_, key):
        e = e_of(key)
        return e, e

    last, y = lax.scan(turn, jnp.ones(()), jax.random.split(key, 2))
    return jnp.exp(t) * y[1] / (1 + last)


def of_equal_keys(key, t):
    step = jnp.argmax(jnp.arange(3))
    e = lambda: e_of(jax.random.fold_in(key, step))  # noqa: E731
    return jnp.exp(t) * e() / (1 + e())


def of_a_key_read_twice(key, t):
    keys, at = jax.random.split(key, 3), jnp.argmax(jnp.arange(3))
    return jnp.exp(t) * e_of(keys[at]) / (1 + e_of(keys[at]))


def of_a_key_by_two_ways(key, t):
    keys = jax.random.split(key, 3)
    return jnp.exp(t) * e_of(keys[1]) / (1 + e_of(keys[1:][0]))


def of_one_key_for_all(key, t):
    low = jnp.zeros(2)
    u = jax.vmap(lambda low: jax.random.uniform(key, (), minval=low))(low)
    return jnp.exp(t) * (u[0] / (1 - u[1]))


def of_one_key_for_all_shapes(key, t):
    e = jax.vmap(lambda a: jax.random.gamma(key, a))(jnp.ones(2))
    return jnp.exp(t) * e[0] / (1 + e[1])


def of_repeated_keys(key, t):
    e = jax.vmap(e_of)(jnp.broadcast_to(key, (2,)))
    return jnp.exp(t) * e[0] / (1 + e[1])


def of_keys_of_equal_numbers(key, t):
    e = jax.vmap(lambda i: e_of(jax.random.fold_in(key, i)))(jnp.arange(2) // 2)
    return jnp.exp(t) * e[0] / (1 + e[1])


def of_keys_that_take_turns(key, t):
    def turn(carry, _):
        a, now, then = carry
        e = e_of(now)
        return (e, then, now), e / (1 + a)

    one, other = jax.random.split(key)
    _, y = lax.scan(turn, (e_of(other), one, other), None, length=2)
    return jnp.exp(t) * y[0]


def of_a_loop_within(key, t):
    e = e_of(key)

    def outer(a, _):
        _, y = lax.scan(lambda b, _: (e, e / (1 + b)), a, None, length=2)
        return e, y[1]

    _, y = lax.scan(outer, e_of(jax.random.fold_in(key, 7)), None, length=2)
    return jnp.exp(t) * y[1]


def reversed_draws(key, t):
    e = e_of(key, (2,))
    return (jnp.exp(t) * e[:1] / (1 + e[::-1][1:]))[0]


def transposed(key, t):
    e = e_of(key, (2, 2))
    return (jnp.exp(t) * e[1:, :1] / (1 + e.T[:1, 1:]))[0, 0]


def gathered(key, t):
    w = exponential(key, (2,))
    return (jnp.exp(t) * w[np.array([0])] / w.sum())[0]


def broadcast(key, t):
    e = e_of(key, (2,))
    return (jnp.exp(t) * e[:1] / (1 + jnp.broadcast_to(e[:1], (2,))[1:]))[0]


def reshaped(key, t):
    e = e_of(key, (6,))
    return jnp.exp(t) * e[3] / (1 + e.reshape(3, 2)[1, 1])


def shifted_share(key, t):
    of_shift, of_share = jax.random.split(key)
    return normal(of_shift) + jnp.exp(t) * dirichlet(of_share, jnp.ones(2))


def shifted_group(key, t):
    of_shift, of_share = jax.random.split(key)
    return normal(of_shift, (1,))[jnp.array([0, 0])] + jnp.exp(t) * dirichlet(of_share, jnp.ones(2))


def shifted_member(key, t):
    of_shift, of_share = jax.random.split(key)
    shift = normal(of_shift)
    return jax.vmap(lambda d: shift + jnp.exp(t) * d)(dirichlet(of_share, jnp.ones(2)))


def scaled_share(key, t):
    of_scale, of_share = jax.random.split(key)
    return jax.random.gamma(of_scale, 2.0) * (dirichlet(of_share, jnp.ones(2)) + jnp.exp(t))


def power_of_a_mixture(key, t):
    which, low, high = jax.random.split(key, 3)
    x = jnp.where(jax.random.uniform(which) < 0.5, 0.5 * jax.random.uniform(low), exponential(high))
    return x ** jnp.exp(t)


MOVING = [
    unpacked,
    split_in_two,
    of_a_loop,
    of_a_key_of_a_loop,
    of_the_last_turn,
    of_equal_keys,
    of_a_key_read_twice,
    of_a_key_by_two_ways,
    of_one_key_for_all,
    of_one_key_for_all_shapes,
    of_repeated_keys,
    of_keys_of_equal_numbers,
    of_keys_that_take_turns,
    of_a_loop_within,
    reversed_draws,
    transposed,
    gathered,
    broadcast,
    reshaped,
    shifted_share,
    shifted_group,
    shifted_member,
    scaled_share,
    power_of_a_mixture,
]


def flat_and_reshaped(key, t):
    n = normal(key, (4,))
    return jnp.exp(t) * (n[:2] + n.reshape(2, 2)[1:].reshape(2))


def ratio_of_parts(key, t):
    e = e_of(key, (2,))
    return jnp.exp(t) * e[0] / (1 + e[1])


def ratio_of_rows(key, t):
    e = e_of(key, (2, 3))
    return jnp.exp(t) * e[0][1] / (1 + e.T[1:][0][1])


def ratio_of_keys(key, t):
    a, b = jax.random.split(key)
    return jnp.exp(t) * e_of(a) / (1 + e_of(b))


def ratio_of_members(key, t):
    e = jax.vmap(e_of)(jax.random.split(key, 2))
    return jnp.exp(t) * e[0] / (1 + e[1])


def ratio_of_numbered(key, t):
    e = jax.vmap(lambda i: e_of(jax.random.fold_in(key, i)))(jnp.arange(2))
    return jnp.exp(t) * e[0] / (1 + e[1])


def ratio_of_turns(key, t):
    first, rest = jax.random.split(key)

    def turn(a, key):
        e = e_of(key)
        return e, e / (1 + a)

    _, y = lax.scan(turn, e_of(first), jax.random.split(rest, 2))
    return jnp.exp(t) * y[1]


def ratio_of_numbered_turns(key, t):
    first, rest = jax.random.split(key)

    def turn(a, i):
        e = e_of(jax.random.fold_in(rest, i))
        return e, e / (1 + a)

    _, y = lax.scan(turn, e_of(first), jnp.arange(2))
    return jnp.exp(t) * y[1]


def ratio_of_handed_keys(key, t):
    first, rest = jax.random.split(key)

    def turn(carry, _):
        a, key = carry
        key, own = jax.random.split(key)
        e = e_of(own)
        return (e, key), e / (1 + a)

    _, y = lax.scan(turn, (e_of(first), rest), None, length=2)
    return jnp.exp(t) * y[1]


def ratio_of_mapped(key, t):
    e = lax.map(e_of, jax.random.split(key, 2))
    return jnp.exp(t) * e[0] / (1 + e[1])


def group_and_own(key, t):
    of_group, own = jax.random.split(key)
    return normal(of_group, (1,))[jnp.array([0, 0])] + jnp.exp(t) * normal(own, (2,))


def walk(key, t):
    _, z = lax.scan(lambda a, n: (a + n, a + n), 0.0, jnp.exp(t) * normal(key, (3,)))
    return z


FIXED = [
    ratio_of_mapped,
    ratio_of_parts,
    ratio_of_rows,
    ratio_of_keys,
    ratio_of_members,
    ratio_of_numbered,
    ratio_of_turns,
    ratio_of_numbered_turns,
    ratio_of_handed_keys,
    group_and_own,
    walk,
]


class Sampled:
    """A q of which only the sampler matters here."""

    def __init__(self, sampler, t, fixed_support=None):
        self.sampler, self.t, self.fixed_support = sampler, t, fixed_support

    def sample_and_log_prob(self, *, seed, sample_shape=()):
        z = self.sampler(seed, self.t)
        return z, self.log_prob(z)

    def log_prob(self, z):
        return jnp.sum(-0.5 * z**2) * jnp.exp(-self.t)


def slope(estimator, sampler, key, fixed_support=None):
    def value(t):
        q = Sampled(sampler, t, fixed_support)
        return estimator(key, lambda z: jnp.sum(-0.5 * z**2), q, num_samples=4).value

    return jax.grad(value)(0.3)


@pytest.mark.parametrize("sampler", MOVING, ids=lambda f: f.__name__)
def test_a_support_that_moves_is_refused(sampler, key):
    for estimator in (score(elbo), vimco(elbo), dreg(elbo)):
        with pytest.raises(ValueError, match="support"):
            slope(estimator, sampler, key)


@pytest.mark.parametrize("sampler", FIXED, ids=lambda f: f.__name__)
def test_a_support_that_stays_passes(sampler, key):
    assert np.isfinite(slope(score(elbo), sampler, key))


def test_what_is_too_coarse_is_declared(key):
    """Places are lost by a reshape, so that two halves of a draw count as the same."""
    with pytest.raises(ValueError, match="declare q.fixed_support = True"):
        slope(score(elbo), flat_and_reshaped, key)
    assert np.isfinite(slope(score(elbo), flat_and_reshaped, key, fixed_support=True))
