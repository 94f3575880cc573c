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


# --- counters that do not count, places that a sampler's batching changes, and less noise than draws


def number_of_turns(step, first, read=lambda i: i):
    """Return the pair of turns 0 and 2 of a loop whose key is folded with a carried number."""

    def pair(key):
        body = lambda i, _: (step(i), e_of(fold_in(key, read(i))))  # noqa: E731
        _, y = lax.scan(body, first, None, length=3)
        return y[0], y[2]

    return pair


def alternating(key):  # 5, -4, 5
    return number_of_turns(lambda i: -i + 1, 5)(key)


def reflected(key):  # 5, 0, 5
    return number_of_turns(lambda i: 5 - i, 5)(key)


def squared(key):  # 1, 0, 1
    return number_of_turns(lambda i: i + 1, -1, lambda i: i**2)(key)


def absolute(key):
    return number_of_turns(lambda i: i + 1, -1, jnp.abs)(key)


def i_and_minus_i(key):
    first, rest = split(key)

    def body(carry, _):
        i, before, twice_before = carry
        e = e_of(fold_in(rest, i))
        return (i + 1, e, before), e_of(fold_in(rest, -i)) / (1 + twice_before)

    return turns(body, (-1, e_of(first), e_of(first)), None, at=2), 0.0


def backward_and_forward(key):
    first, rest = split(key)

    def body(carry, j):
        i, before, twice_before = carry
        e = e_of(fold_in(rest, i))
        return (i + 1, e, before), e_of(fold_in(rest, j)) / (1 + twice_before)

    start = (0, e_of(first), e_of(first))
    return lax.scan(body, start, jnp.arange(3), reverse=True)[1][0], 0.0


def collected_backward_and_forward(key):
    body = lambda i, _: (i + 1, e_of(fold_in(key, i)))  # noqa: E731
    forward = lax.scan(body, 0, None, length=3)[1]
    return forward[0], lax.scan(body, 0, None, length=3, reverse=True)[1][2]


def small_numbers(key):
    e = jax.vmap(lambda i: e_of(fold_in(key, i)))(jnp.arange(300, dtype=jnp.uint8))
    return e[0], e[256]


def small_counter(key):
    body = lambda i, _: (i + jnp.uint8(1), e_of(fold_in(key, i)))  # noqa: E731
    _, y = lax.scan(body, jnp.uint8(0), None, length=257)
    return y[0], y[256]


def one_key_for_maxwells(key):
    sample = lambda loc: random.double_sided_maxwell(key, loc, 1.0)  # noqa: E731
    return tuple(jnp.exp(jax.vmap(sample)(jnp.zeros(2))))


def rows_and_columns(of, keys):
    """Return one draw of an array of keys, read by jax.vmap over its rows and over its columns."""
    by_rows = jax.vmap(jax.vmap(of))(keys)
    return by_rows[0, 1], jax.vmap(jax.vmap(of), in_axes=1)(keys)[1, 0]


def betas_of_columns(key):
    return rows_and_columns(lambda k: 1 / random.beta(k, 1.0, 1.0) - 1, split(key, (2, 2)))


def chi_squares_of_columns(key):
    return rows_and_columns(lambda k: jnp.expm1(random.chisquare(k, 2.0) / 2), split(key, (2, 2)))


def draws_of_transposed_keys(key):
    keys = split(key, (2, 2))
    draws = jax.vmap(jax.vmap(e_of))
    return draws(keys)[0, 1], draws(keys.T)[1, 0]


SAME_NUMBERS = [
    alternating,
    reflected,
    squared,
    absolute,
    i_and_minus_i,
    backward_and_forward,
    collected_backward_and_forward,
    small_numbers,
    small_counter,
    one_key_for_maxwells,
    betas_of_columns,
    chi_squares_of_columns,
    draws_of_transposed_keys,
]


def whole_numbers(key):
    e = jax.vmap(lambda i: e_of(fold_in(key, i)))(jnp.arange(3, dtype=jnp.uint32))
    return e[0], e[2]


def counted_from_minus_one(key):
    return number_of_turns(lambda i: i + 1, -1, lambda i: i + 3)(key)


def maxwells_of_two_keys(key):
    sample = lambda k: random.double_sided_maxwell(k, 0.0, 1.0)  # noqa: E731
    return tuple(jnp.exp(jax.vmap(sample)(split(key))))


def betas_of_rows(key):
    e = jax.vmap(jax.vmap(lambda k: 1 / random.beta(k, 1.0, 1.0) - 1))(split(key, (2, 2)))
    return e[0, 1], e[1, 0]


def turns_backward(key):
    first, rest = split(key)
    body = lambda a, k: (e_of(k), e_of(k) / (1 + a))  # noqa: E731
    return lax.scan(body, e_of(first), split(rest, 3), reverse=True)[1][1], 0.0


OTHER_NUMBERS = [
    whole_numbers,
    counted_from_minus_one,
    maxwells_of_two_keys,
    betas_of_rows,
    turns_backward,
]


# --- one draw that turns of a loop, or a stack of one key, repeat


def carried_draw(key):
    return lax.scan(lambda c, _: (c, c), random.normal(key), None, length=2)[1]


def draw_of_every_turn(key):
    return lax.scan(lambda c, _: (c, random.normal(key)), 0.0, None, length=2)[1]


def mapped_draw(key):
    return lax.map(lambda i: random.normal(key) + 0 * i, jnp.arange(2))


def draw_of_equal_numbers(key):
    return lax.map(lambda i: random.normal(fold_in(key, i % 1)), jnp.arange(2))


def draw_kept_or_made(key):
    def body(c, i):
        c = jnp.where(FLAG, random.normal(fold_in(key, i)), c)
        return c, c

    return lax.scan(body, random.normal(key), jnp.arange(2))[1]


def draw_of_a_loop_within(key):
    once = lambda key: lax.map(lambda i: random.normal(fold_in(key, i)), jnp.arange(1))  # noqa: E731
    return lax.map(lambda _: once(key)[0], jnp.arange(2))


def draw_kept_of_a_loop_within(key):
    def body(c, k):
        n = lax.map(random.normal, split(k, 1))[0]
        return jnp.where(FLAG, n, c), jnp.where(FLAG, n, c)

    return lax.scan(body, random.normal(key), split(key, 2))[1]


def keys_of_every_turn(key):
    keys = lax.map(lambda _: split(key)[0], jnp.arange(2))
    return jax.vmap(random.normal)(keys)


def stacked_key(key):
    return jax.vmap(random.normal)(jnp.stack([key, key]))


def key_put_together(key):
    return jax.vmap(random.normal)(jnp.concatenate([key[None], key[None]]))


REPEATED = [
    carried_draw,
    draw_of_every_turn,
    mapped_draw,
    draw_of_equal_numbers,
    draw_kept_or_made,
    draw_of_a_loop_within,
    draw_kept_of_a_loop_within,
    keys_of_every_turn,
    stacked_key,
    key_put_together,
]


def draws_of_numbered_turns(key):
    return lax.map(lambda i: random.normal(fold_in(key, i)), jnp.arange(2))


def draws_of_split_keys(key):
    return lax.map(random.normal, split(key, 2))


def walk_of_draws(key):
    body = lambda z, k: (0.5 * z + random.normal(k), 0.5 * z + random.normal(k))  # noqa: E731
    return lax.scan(body, 0.0, split(key, 2))[1]


def draws_of_loops_within(key):
    within = lambda k: lax.map(random.normal, split(k, 1))[0]  # noqa: E731
    return lax.map(within, split(key, 2))


NOT_REPEATED = [draws_of_numbered_turns, draws_of_split_keys, walk_of_draws, draws_of_loops_within]


def beside_a_share(draws):
    """Return draws for both elements beside exp(t) dirichlet, which lies on a line that moves."""

    def sampler(key, t):
        a, b = split(key)
        return draws(a) + jnp.exp(t) * random.dirichlet(b, jnp.ones(2))

    return sampler


# --- keys of other implementations and settings


def folded_back(key):
    return e_of(fold_in(fold_in(key, 1), 1)), e_of(key)


def folded_in_either_order(key):
    return e_of(fold_in(fold_in(key, 1), 2)), e_of(fold_in(fold_in(key, 2), 1))


def carried_and_folded(key):
    _, y = lax.scan(lambda k, _: (fold_in(k, 1), e_of(k)), key, None, length=3)
    return y[0], y[2]


def only_child(key):
    return e_of(split(key, 1)[0]), e_of(fold_in(key, 1))


def two_families_of_children(key):
    return e_of(split(key, 2)[0]), e_of(split(key, 3)[1])


def of_one_split(key):
    return tuple(map(e_of, split(key)))


def of_two_numbers(key):
    return e_of(fold_in(key, 0)), e_of(fold_in(key, 1))


def ratio(pair):
    def sampler(key, t):
        a, b = pair(key)
        return jnp.exp(t) * a / (1 + b)

    sampler.pair = pair
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


def samplers(pairs, *more, repeated=()):
    return pytest.mark.parametrize(
        "sampler",
        [*map(ratio, pairs), *map(beside_a_share, repeated), *more],
        ids=[f.__name__ for f in (*pairs, *repeated, *more)],
    )


def trace_slope(sampler, key):
    return jax.eval_shape(lambda key: slope(score(elbo), sampler, key), key)


@samplers(SAME, *MOVING)
def test_what_may_be_one_draw_is_refused(sampler, key):
    with pytest.raises(ValueError, match="support"):
        slope(score(elbo), sampler, key)


@samplers(APART, *FIXED)
def test_what_is_seen_to_be_two_passes(sampler, key):
    assert np.isfinite(slope(score(elbo), sampler, key)).all()


@samplers(SAME_NUMBERS, repeated=REPEATED)
def test_numbers_and_turns_that_may_repeat_are_refused(sampler, key):
    with pytest.raises(ValueError, match="support is fixed"):
        trace_slope(sampler, key)


@samplers(OTHER_NUMBERS, repeated=NOT_REPEATED)
def test_numbers_and_turns_that_differ_pass(sampler, key):
    trace_slope(sampler, key)


@samplers([folded_back, folded_in_either_order, carried_and_folded, of_two_numbers])
def test_keys_whose_fold_is_no_hash_are_refused(sampler, key):
    with pytest.raises(ValueError, match="a key that it draws from is not followed"):
        trace_slope(sampler, random.key(3, impl="unsafe_rbg"))
    trace_slope(sampler, random.key(3, impl="rbg"))


def test_children_of_one_split_differ_for_every_implementation(key):
    for impl in ("threefry2x32", "rbg", "unsafe_rbg"):
        trace_slope(ratio(of_one_split), random.key(3, impl=impl))


@samplers([only_child, two_families_of_children])
def test_how_children_are_numbered_is_a_setting(sampler, key):
    trace_slope(sampler, key)
    with jax.threefry_partitionable(False), pytest.raises(ValueError, match="support is fixed"):
        trace_slope(sampler, key)


@samplers([of_one_split, of_two_numbers])
def test_what_differs_under_either_setting_passes(sampler, key):
    for setting in (True, False):
        with jax.threefry_partitionable(setting):
            trace_slope(sampler, key)


@pytest.mark.parametrize("estimator", [vimco, dreg])
def test_every_estimator_that_drops_a_score_asks(estimator, key):
    with pytest.raises(ValueError, match="support"):
        slope(estimator(elbo), ratio(folded_as_split), key)


@pytest.mark.parametrize(
    "pair",
    [folded_as_split, split_to_other_shapes, turn_by_hand, squared, draws_of_transposed_keys],
    ids=lambda f: f.__name__,
)
def test_they_are_one_draw(pair, key):
    """The control: these pairs are equal, so that z is bounded by exp(t)."""
    a, b = jax.vmap(pair)(split(key, 100))
    np.testing.assert_allclose(a, b, rtol=1e-6)
