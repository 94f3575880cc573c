"""Draws that do not fill the space they seem to: factors of 0, singular maps, elements that depend on each other.

Each is added to draws that move with exp(t), or is moved itself; what does fill the space passes.
"""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax, random
from jax.random import split

from tests.laws.test_shared_draws import Sampled, slope
from vijax.bounds import elbo
from vijax.gradients import score
from vijax.types import Joint

FLAG = jnp.array(False)
ONES = np.ones(2, np.float32)


def beside(draws, shape=()):
    """Return the sampler of exp(t) uniform + draws(key)."""

    def sampler(key, t):
        a, b = split(key)
        return jnp.exp(t) * random.uniform(a, shape) + draws(b)

    sampler.__name__ = draws.__name__
    return sampler


def beside_shares(draws):
    """Return the sampler of exp(t) dirichlet + draws(key, t): a line segment, carried along."""

    def sampler(key, t):
        a, b = split(key)
        return random.dirichlet(a, ONES) + draws(b, t)

    sampler.__name__ = draws.__name__
    return sampler


# --- factors that are, or may be, 0


def times_zero(key):
    return 0.0 * random.normal(key)


def over_infinity(key):
    return random.normal(key) / jnp.inf


def times_what_rounds_to_zero(key):
    return jnp.full((), 1e-30) * 1e-30 * random.normal(key)


def times_zeros(key):
    return jnp.zeros(2) * random.normal(key, (2,))


def times_a_mask(key):
    return (jnp.arange(2) == 0).astype(float) * random.normal(key, (2,))


def times_a_constant_mask(key):
    return np.array([True, False]) * random.normal(key, (2,))


def times_one_hot(key):
    return jax.nn.one_hot(0, 2) * random.normal(key, (2,))


def times_numbers(key):
    return jnp.arange(2.0) * random.normal(key, (2,))


def times_a_rounded_mask(key):
    return jnp.floor(jnp.array([0.5, 1.5])) * random.normal(key, (2,))


def times_a_shared_atom(key):
    a, b = split(key)
    return random.bernoulli(a).astype(float) * random.normal(b, (2,))


def sum_of_what_cancels(key):
    return jnp.sum(np.array([[1.0], [-1.0]], np.float32) @ random.normal(key, (1,)))


def power_of_zero(key):
    return jnp.log(lax.integer_pow(random.normal(key), 0))


# --- maps that are singular


def centered(key):
    return (np.eye(2, dtype=np.float32) - 0.5) @ random.normal(key, (2,))


def centered_where_it_is_used(key):
    return (jnp.eye(2) - 0.5) @ random.normal(key, (2,))


def projected(key):
    return np.array([[1.0, 0.0], [0.0, 0.0]], np.float32) @ random.normal(key, (2,))


def projected_along_rows(key):
    return random.normal(key, (2,)) @ np.array([[1.0, 1.0], [1.0, 1.0]], np.float32)


def convolved(key):
    return jnp.convolve(random.normal(key, (3,)), jnp.array([1.0, -1.0, 0.0]), mode="same")


def mixed_by_what_is_made(key):
    return jnp.ones((2, 2)) @ random.normal(key, (2,))


def of_a_row_of_zeros(key):
    return (np.array([[0.0], [1.0], [2.0]], np.float32) @ random.normal(key, (1,)))[0] * ONES[0]


def differences_of_one_draw(key):
    return np.array([[1.0, -1.0]], np.float32) @ jnp.broadcast_to(random.normal(key), (2,))


def of_a_singular_covariance(key):
    return random.multivariate_normal(key, jnp.zeros(2), jnp.ones((2, 2)), method="svd")


def chosen_or_not(key):
    a, b = split(key)
    n, m = random.normal(a), random.normal(b)
    return jnp.where(FLAG, n, m) - m


def elements_chosen_twice(key):
    n = random.normal(key, (2,))
    return jnp.where(np.array([True, False]), n, n[::-1])


def part_of_a_sum(key):
    a, b = split(key)
    n = random.normal(a, (2,))
    return (jnp.broadcast_to(random.exponential(b), (2,)) + n)[0] - n[0]


PINNED = [
    *map(beside, (times_zero, over_infinity, times_what_rounds_to_zero, sum_of_what_cancels)),
    *map(beside, (power_of_zero, of_a_row_of_zeros, chosen_or_not, part_of_a_sum)),
    beside(differences_of_one_draw, (1,)),
    beside(convolved, (3,)),
    *(
        beside(f, (2,))
        for f in (
            times_zeros,
            times_a_mask,
            times_a_constant_mask,
            times_one_hot,
            times_numbers,
            times_a_rounded_mask,
            times_a_shared_atom,
            centered,
            centered_where_it_is_used,
            projected,
            projected_along_rows,
            mixed_by_what_is_made,
            of_a_singular_covariance,
        )
    ),
]


# --- ends that a power changes


def square_of_a_negative(key, t):
    return jnp.exp(t) * (random.exponential(key) + 1 + jnp.array(-1.0) ** 2)


def fourth_power_of_a_negative(key, t):
    return jnp.exp(t) * (random.exponential(key) + 1 + jnp.array(-1.0) ** 4)


def power_that_may_be_zero(key, t):
    return jnp.exp(t) * random.exponential(key) ** jnp.arange(1.0)[0]


# --- elements that depend on each other


def sum_of_a_dirichlet(key, t):
    return jnp.exp(t) * jnp.sum(-jnp.log(random.dirichlet(key, jnp.ones(3))))


def sum_of_its_log_odds(key, t):
    return jnp.exp(t) * jnp.sum(jnp.arctanh(2 * random.dirichlet(key, jnp.ones(3)) - 1))


def its_least(key, t):
    return jnp.exp(t) * jnp.min(-jnp.log(random.dirichlet(key, jnp.ones(3))))


def its_largest(key, t):
    return jnp.exp(t) * jnp.max(jnp.arctanh(2 * random.dirichlet(key, jnp.ones(3)) - 1))


def its_log_odds(key, t):
    return jnp.exp(t) * jnp.arctanh(2 * random.dirichlet(key, jnp.ones(3)) - 1)


def its_logarithms(key, t):
    return jnp.exp(t) * jnp.log(random.dirichlet(key, jnp.ones(3)))


def its_power(key, t):
    return random.dirichlet(key, jnp.ones(3)) ** jnp.exp(t)


def its_shifted_log_odds(key, t):
    return jnp.array([1.0, 0.0]) * jnp.exp(t) + jnp.arctanh(2 * random.dirichlet(key, ONES) - 1)


def of_a_choice(key, t):
    return elements_chosen_twice(split(key)[0]) + jnp.exp(t) * random.dirichlet(split(key)[1], ONES)


def along_a_line(key, t):
    return jnp.stack([1.0, jnp.exp(t)]) * random.normal(key)


def along_a_column(key, t):
    return jnp.stack([1.0, jnp.exp(t)])[:, None] @ random.normal(key, (1,))


def shifted_line(key, t):
    return jnp.stack([0.0, jnp.exp(t)]) + random.normal(key)


def along_a_line_of_turns(key, t):
    n = random.normal(key)
    return lax.map(lambda i: jnp.exp(t * i) * n, jnp.arange(2.0))


TIED = [
    square_of_a_negative,
    fourth_power_of_a_negative,
    power_that_may_be_zero,
    sum_of_a_dirichlet,
    sum_of_its_log_odds,
    its_least,
    its_largest,
    its_log_odds,
    its_logarithms,
    its_power,
    its_shifted_log_odds,
    of_a_choice,
    *map(beside_shares, (along_a_line, along_a_column, shifted_line, along_a_line_of_turns)),
]


# --- what passes


def times_a_scale(key):
    return 0.5 * random.normal(key, (2,))


def times_a_constant_scale(key):
    return np.array([0.5, 2.0], np.float32) * random.normal(key, (2,))


def times_ones(key):
    return jnp.ones(2) * random.normal(key, (2,)) / jnp.full(2, 3.0)


def times_a_softplus(key):
    return jax.nn.softplus(jnp.array([0.0, 1.0])) * random.normal(key, (2,))


def masked_above_a_floor(key):
    return (1e-3 + (jnp.arange(2) == 0)) * random.normal(key, (2,))


def beside_what_is_zero(key):
    return random.normal(key, (2,)) + 0.0 * random.uniform(key, (2,))


def times_numbers_from_one(key):
    return (1 + jnp.arange(2.0)) * random.normal(key, (2,))


def times_increments(key):
    return jnp.sqrt(jnp.diff(jnp.array([0.0, 1.0, 3.0]))) * random.normal(key, (2,))


def mixed_by_a_kernel(key):
    x = jnp.linspace(0.0, 1.0, 2)
    kernel = jnp.exp(-((x[:, None] - x[None]) ** 2)) + 1e-4 * jnp.eye(2)
    return jnp.linalg.cholesky(kernel) @ random.normal(key, (2,))


def mixed(key):
    return np.array([[1.0, 0.5], [0.2, -1.0]], np.float32) @ random.normal(key, (2,))


def scaled_for_all(key):
    a, b = split(key)
    return random.exponential(a) * random.normal(b, (2,))


def effects_of_a_group(key):
    a, b = split(key)
    return random.exponential(a, (1,))[jnp.array([0, 0])] + random.normal(b, (2,))


def of_a_covariance(key):
    return random.multivariate_normal(key, jnp.zeros(2), np.array([[2.0, 1.0], [1.0, 2.0]]))


def plain_dirichlet(key, t):
    return random.dirichlet(key, jnp.exp(t) * jnp.ones(3))


def one_of_a_dirichlet(key, t):
    d = random.dirichlet(key, jnp.exp(t) * jnp.ones(3))
    return jnp.exp(t) * jnp.arctanh(2 * d[0] - 1)


def triangle_of_parameters(key, t):
    lower = jnp.tril(jnp.exp(t) * jnp.ones((2, 2)))
    return t + lower @ random.normal(key, (2,))


def cholesky_of_parameters(key, t):
    lower = jnp.linalg.cholesky(jnp.eye(2) + jnp.exp(t) * jnp.ones((2, 2)))
    return t + lower @ random.normal(key, (2,))


def scale_above_a_floor(key, t):
    return t + jnp.maximum(jnp.exp(t) - 1, 1e-4) * random.normal(key, (2,))


def horseshoe(key, t):
    a, b, c = split(key, 3)
    return t + random.cauchy(a) * jnp.exp(t) * random.exponential(b, (2,)) * random.normal(c, (2,))


FILLED = [
    *(
        beside(f, (2,))
        for f in (
            times_a_scale,
            times_a_constant_scale,
            times_ones,
            masked_above_a_floor,
            times_numbers_from_one,
            times_increments,
            mixed_by_a_kernel,
            times_a_softplus,
            beside_what_is_zero,
            mixed,
            scaled_for_all,
            effects_of_a_group,
            of_a_covariance,
        )
    ),
    plain_dirichlet,
    one_of_a_dirichlet,
    triangle_of_parameters,
    cholesky_of_parameters,
    scale_above_a_floor,
    horseshoe,
]


def trace_slope(sampler, key):
    return jax.eval_shape(lambda key: slope(score(elbo), sampler, key), key)


@pytest.mark.parametrize("sampler", [*PINNED, *TIED], ids=lambda f: f.__name__)
def test_draws_that_do_not_fill_the_space_are_refused(sampler, key):
    with pytest.raises(ValueError, match="support is fixed"):
        trace_slope(sampler, key)


@pytest.mark.parametrize("sampler", FILLED, ids=lambda f: f.__name__)
def test_draws_that_fill_it_pass(sampler, key):
    trace_slope(sampler, key)


def test_a_large_constant_matrix_is_not_proved(key):
    wide = np.eye(520, dtype=np.float32)

    def sampler(key, t):
        return wide @ random.normal(key, (520,)) + jnp.exp(t)

    with pytest.raises(ValueError, match="full rank"):
        trace_slope(sampler, key)
    trace_slope(lambda key, t: wide[:9, :9] @ random.normal(key, (9,)) + jnp.exp(t), key)


def test_the_score_is_biased_there(key):
    """The control: uniform on (0, exp(t)), whose score alone is off; declared fixed, it passes."""
    sampler = beside(times_zero)

    class Uniform(Sampled):
        def log_prob(self, z):
            return jnp.zeros_like(z) - self.t

    def value(t, key):
        q = Uniform(sampler, t, fixed_support=True)
        return score(elbo)(key, lambda z: -0.5 * z**2, q, num_samples=16).value

    slopes = np.asarray(jax.jit(jax.vmap(jax.grad(value), (None, 0)))(0.3, split(key, 2000)))
    exact = 1 - np.exp(0.6) / 3
    assert abs(slopes.mean() - exact) > 20 * slopes.std() / 2000**0.5


@pytest.mark.parametrize("read", [lambda b: b, lambda b: 2 * b - 1], ids=["switch", "sign"])
def test_a_discrete_leaf_as_a_factor(read, key):
    """A leaf that is 0 or 1 switches the draws off; one that is -1 or 1 is not told from it."""

    def value(t):
        def conditional(leaves):
            factor = read(leaves["b"]).astype(float)
            return Sampled(beside(lambda key: factor * random.normal(key)), t)

        q = Joint({"b": distrax.Bernoulli(probs=0.5), "z": conditional})
        target = lambda leaves: -0.5 * leaves["z"] ** 2  # noqa: E731
        return score(elbo)(key, target, q, num_samples=4).value

    with pytest.raises(ValueError, match="support is fixed"):
        jax.eval_shape(jax.grad(value), 0.3)


@pytest.mark.parametrize("scale", [1.0, jnp.exp], ids=["fixed", "moved"])
def test_logarithms_of_a_declared_simplex(scale, key, loose_ranks):
    """e^t log z of a Dirichlet z of a library: each element spans (-inf, 0), on a surface."""

    def value(t):
        logarithm = distrax.Lambda(
            jnp.log,
            inverse=jnp.exp,
            forward_log_det_jacobian=lambda z: -jnp.log(z),
            inverse_log_det_jacobian=lambda y: y,
            event_ndims_in=0,
            event_ndims_out=0,
        )
        to = distrax.ScalarAffine(0.0, scale if scale == 1.0 else scale(t))
        parts = distrax.Dirichlet(jnp.exp(t) * jnp.ones(3))
        q = distrax.Transformed(parts, distrax.Block(distrax.Chain([to, logarithm]), 1))
        return score(elbo)(key, lambda z: -jnp.sum(z**2), q, num_samples=4).value

    if scale == 1.0:
        jax.eval_shape(jax.grad(value), 0.3)
    else:
        with pytest.raises(ValueError, match="support is fixed"):
            jax.eval_shape(jax.grad(value), 0.3)
