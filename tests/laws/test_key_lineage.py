"""Draws told apart by how their keys were made: what may be one draw read twice is refused, what cannot be passes.

Each case gives a pair (a, b), and z = exp(t) a / (1 + b) is uniform on (0, exp(t)) where both are the same draw.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax, random
from jax.random import fold_in, split

from tests.laws.test_shared_draws import e_of, slope
from vijax.bounds import elbo
from vijax.gradients import dreg, score, vimco

FLAG = jnp.array(False)
CONSTANT = random.key(0)


def turns(body, carry, xs, at=1):
    """Return what a turn of a scan collects."""
    return lax.scan(body, carry, xs, length=3 if xs is None else None)[1][at]


def folded_as_split(key):
    return e_of(split(key)[0]), e_of(fold_in(key, 0))


def split_to_other_shapes(key):
    return e_of(split(key, (2, 3))[1, 0]), e_of(split(key, (3, 2))[1, 1])


def halved_numbers(key):
    _, y = lax.scan(lambda c, i: (c, e_of(fold_in(key, i // 2))), 0.0, jnp.arange(4))
    return y[0], y[1]


def clamped_numbers(key):
    _, y = lax.scan(lambda c, i: (c, e_of(fold_in(key, jnp.minimum(i, 1)))), 0.0, jnp.arange(4))
    return y[1], y[2]


def what_a_turn_before_had(key):
    n, first = e_of(key, (3,)), e_of(fold_in(key, 9))
    return turns(lambda c, x: (x, n[0] / (1 + c)), first, n), 0.0


def key_that_a_turn_before_had(key):
    keys = split(key, 3)
    d, first = e_of(keys[0]), e_of(fold_in(key, 9))
    return turns(lambda c, k: (e_of(k), d / (1 + c)), first, keys), 0.0


def fetched_ahead(key):
    n, first = e_of(key, (4,)), e_of(fold_in(key, 5))
    return turns(lambda c, ab: (ab[1], ab[0] / (1 + c)), first, (n[:-1], n[1:])), 0.0


def chosen_key(key):
    a, b, c = split(key, 3)
    return e_of(jnp.where(FLAG, jnp.where(FLAG, a, b), c)), e_of(c)


def branched_key(key):
    a, b, c = split(key, 3)
    inner = lambda: lax.cond(FLAG, lambda: a, lambda: b)  # noqa: E731
    return e_of(lax.cond(FLAG, inner, lambda: c)), e_of(c)


def concatenated_key(key):
    a, b, c = split(key, 3)
    keys = jnp.concatenate([jnp.concatenate([a[None], b[None]]), c[None]])
    return e_of(keys[2]), e_of(c)


def last_key(key):
    keys = split(key, 3)
    last, _ = lax.scan(lambda _, k: (k, e_of(k)), fold_in(key, 77), keys)
    return e_of(last), e_of(keys[2])


def replaced_key(key):
    first, other = split(key)
    return turns(lambda k, _: (other, e_of(k) / (1 + e_of(other))), first, None), 0.0


def stacked_keys(key):
    a, b = split(key)
    return e_of(jnp.stack([a, b])[0]), e_of(jnp.stack([b, a])[1])


def chosen_number(key):
    return e_of(fold_in(key, jnp.where(FLAG, 0, 1))), e_of(fold_in(key, 1))


def divided_number(key):
    return e_of(fold_in(key, lax.div(jnp.int32(3), jnp.int32(2)))), e_of(fold_in(key, 1))


def changed_words(key):
    return e_of(random.wrap_key_data(random.key_data(key) + np.uint32(0))), e_of(key)


def unchanged_number(key):
    body = lambda c, _: ((c[0], e_of(fold_in(key, c[0]))), e_of(fold_in(key, c[0])) / (1 + c[1]))  # noqa: E731
    return turns(body, (3, e_of(fold_in(key, 9))), None), 0.0


def two_counters(key):
    first, rest = split(key)

    def body(carry, _):
        i, j, e = carry
        return (i + 1, j + 1, e_of(fold_in(rest, i))), e_of(fold_in(rest, j)) / (1 + e)

    return turns(body, (5, 4, e_of(first)), None), 0.0


def counter_ahead(key):
    first, rest = split(key)

    def body(carry, _):
        i, e = carry
        return (i + 1, e_of(fold_in(rest, i + 1))), e_of(fold_in(rest, i)) / (1 + e)

    return turns(body, (5, e_of(first)), None), 0.0


def key_ahead(key):
    def body(carry, _):
        k, e = carry
        k, own = split(k)
        return (k, e_of(split(k)[1])), e_of(own) / (1 + e)

    return turns(body, (key, e_of(fold_in(key, 9))), None), 0.0


def key_behind(key):
    first, other = split(key)

    def body(carry, _):
        now, before, e = carry
        return (split(now)[0], now, e_of(now)), e_of(before) / (1 + e)

    return turns(body, (first, other, e_of(fold_in(key, 9))), None), 0.0


def two_carries_of_one_key(key):
    def body(carry, _):
        a, b, e = carry
        return (split(a)[0], split(b)[1], e_of(a)), e_of(b) / (1 + e)

    return turns(body, (key, key, e_of(fold_in(key, 9))), None), 0.0


def two_loops_of_one_key(key):
    body = lambda k, _: (split(k)[0], e_of(split(k)[1]))  # noqa: E731
    return turns(body, key, None), turns(body, key, None)


def turn_by_hand(key):
    body = lambda k, _: (split(k)[0], e_of(split(k)[1]))  # noqa: E731
    return turns(body, key, None), e_of(split(split(key)[0])[1])


def seeded_by_a_draw(key):
    return e_of(random.key(random.randint(key, (), 0, 9))), e_of(fold_in(key, 1))


SAME = [
    folded_as_split,
    split_to_other_shapes,
    halved_numbers,
    clamped_numbers,
    what_a_turn_before_had,
    key_that_a_turn_before_had,
    fetched_ahead,
    chosen_key,
    branched_key,
    concatenated_key,
    last_key,
    replaced_key,
    stacked_keys,
    chosen_number,
    divided_number,
    changed_words,
    unchanged_number,
    two_counters,
    counter_ahead,
    key_ahead,
    key_behind,
    two_carries_of_one_key,
    two_loops_of_one_key,
    turn_by_hand,
    seeded_by_a_draw,
]


def of_another_depth(key):
    return e_of(key), e_of(split(key)[0])


def of_a_clone(key):
    a, b = split(key)
    return e_of(random.clone(a)), e_of(b)


def counted(key):
    first, rest = split(key)

    def body(carry, _):
        i, e = carry
        return (i + 1, e_of(fold_in(rest, i))), e_of(fold_in(rest, i)) / (1 + e)

    return turns(body, (5, e_of(first)), None), 0.0


def turns_of_a_carried_key(key):
    _, y = lax.scan(lambda k, _: (split(k)[0], e_of(split(k)[1])), key, None, length=2)
    return y[0], y[1]


def two_loops_of_two_keys(key):
    body = lambda k, _: (split(k)[0], e_of(split(k)[1]))  # noqa: E731
    a, b = split(key)
    return turns(body, a, None), turns(body, b, None)


def two_draws_a_turn(key):
    def body(carry, _):
        k, e = carry
        k, one, other = split(k, 3)
        return (k, e_of(one)), e_of(other) / (1 + e)

    first, rest = split(key)
    return turns(body, (rest, e_of(first)), None), 0.0


APART = [
    of_another_depth,
    of_a_clone,
    counted,
    turns_of_a_carried_key,
    two_loops_of_two_keys,
    two_draws_a_turn,
]


def ratio(pair):
    def sampler(key, t):
        a, b = pair(key)
        return jnp.exp(t) * a / (1 + b)

    return sampler


# --- draws that are none, atoms that move, and elements that share a draw


def with_a_constant_draw(key, t):
    return jnp.exp(t) * random.uniform(key, (2,)) + random.normal(random.key(42), (2,))


def times_a_constant_draw(key, t):
    return jnp.exp(t) * random.exponential(CONSTANT) * random.uniform(key)


def shared_atom_that_moves(key, t):
    a, b = split(key)
    return jnp.exp(t) * random.bernoulli(a).astype(float) + random.uniform(b, (2,))


def product_with_an_atom(key, t):
    a, b = split(key)
    return jnp.exp(t) * random.uniform(a) * jnp.maximum(random.exponential(b), 1.0)


def partly_shared(key, t):
    a, b, c = split(key, 3)
    n = random.normal(a)
    signs = jnp.where(random.bernoulli(b, 0.5, (2,)), n, -n)
    return signs + jnp.exp(t) * random.uniform(c, (2,)) * np.array([1.0, 0.0])


def sum_with_a_shared_draw(key, t):
    a, b = split(key)
    m, n = random.normal(a, (2,)), random.normal(b)
    return jnp.exp(t) * m + (n - jnp.exp(t) * jnp.arcsinh(jnp.sinh(m) + 1))


def sign_that_is_chosen(key, t):
    which = jnp.where(~FLAG, 1.0, -1.0)
    return jnp.exp(t) * (jnp.exp(-random.exponential(key) * which) - 1)


MOVING = [
    with_a_constant_draw,
    times_a_constant_draw,
    shared_atom_that_moves,
    product_with_an_atom,
    partly_shared,
    sum_with_a_shared_draw,
    sign_that_is_chosen,
]

WIDE = np.array([[1.0, 0.5], [0.2, -1.0], [0.3, 0.4]], np.float32)


def low_rank_and_diagonal(key, t):
    a, b = split(key)
    return jnp.exp(t) * (WIDE @ random.normal(a, (2,))) + random.normal(b, (3,))


def walk_of_a_counted_key(key, t):
    step = lambda i, z: 0.5 * z + jnp.exp(t) * random.normal(fold_in(key, i))  # noqa: E731
    return lax.fori_loop(0, 3, step, 0.0)


def walk_of_a_carried_key(key, t):
    def step(carry, _):
        z, k = carry
        k, own = split(k)
        z = 0.5 * z + jnp.exp(t) * random.normal(own, (2,))
        return (z, k), z

    return lax.scan(step, (jnp.zeros(2), key), None, length=3)[1]


FIXED = [low_rank_and_diagonal, walk_of_a_counted_key, walk_of_a_carried_key]


def samplers(pairs, *more):
    return pytest.mark.parametrize(
        "sampler", [*map(ratio, pairs), *more], ids=[f.__name__ for f in (*pairs, *more)]
    )


@samplers(SAME, *MOVING)
def test_what_may_be_one_draw_is_refused(sampler, key):
    with pytest.raises(ValueError, match="support"):
        slope(score(elbo), sampler, key)


@samplers(APART, *FIXED)
def test_what_is_seen_to_be_two_passes(sampler, key):
    assert np.isfinite(slope(score(elbo), sampler, key)).all()


@pytest.mark.parametrize("estimator", [vimco, dreg])
def test_every_estimator_that_drops_a_score_asks(estimator, key):
    with pytest.raises(ValueError, match="support"):
        slope(estimator(elbo), ratio(folded_as_split), key)


@pytest.mark.parametrize(
    "pair", [folded_as_split, split_to_other_shapes, turn_by_hand], ids=lambda f: f.__name__
)
def test_they_are_one_draw(pair, key):
    """The control: these pairs are equal, so that z is bounded by exp(t)."""
    a, b = jax.vmap(pair)(split(key, 100))
    np.testing.assert_array_equal(a, b)
