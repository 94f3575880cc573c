"""The iterates of a fit, remembered as the means and spreads of blocks: memory that does not grow with the steps."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from vijax.types import PyTree

BLOCKS = 64  # remembered at most; when they are full, neighbours are joined
WINDOWS = 5  # tails that are tried


class Iterates(NamedTuple):
    """Means and spreads of equal blocks of iterates.

    Fields:
        mean: like an iterate, [64, ...] each.
        square: sums of squared deviations from those means.
        size: how many iterates a whole block holds, a power of two.
        number: how many iterates there were.
    """

    mean: PyTree
    square: PyTree
    size: Int[Array, ""]
    number: Int[Array, ""]


class Tail(NamedTuple):
    """The last iterates, from where they look stationary.

    Fields:
        average: their mean, like an iterate.
        error: its Monte Carlo standard error, by means of batches: autocorrelation is in it.
        ess: how many independent iterates would give that error.
        rhat: of the two halves of the tail, 1 where they agree.
        worst: the largest of rhat, and at least 1, ().
        number: how many iterates it holds, ().
    """

    average: PyTree
    error: PyTree
    ess: PyTree
    rhat: PyTree
    worst: Array
    number: Int[Array, ""]


def empty(like: PyTree) -> Iterates:
    """Return no iterates yet, of the shapes and dtypes of `like`."""
    zeros = jax.tree.map(lambda l: jnp.zeros((BLOCKS, *jnp.shape(l)), _float(l)), like)
    return Iterates(zeros, zeros, jnp.int32(1), jnp.int32(0))


def add(iterates: Iterates, x: PyTree, when: Array) -> Iterates:
    """Add one iterate where `when`, by Welford's rule; there must be room, see `full`."""
    row, before = iterates.number // iterates.size, iterates.number % iterates.size

    def put(mean: Array, square: Array, x: Array) -> tuple[Array, Array]:
        x = jnp.asarray(x, mean.dtype)
        old = jnp.where(before == 0, 0.0, mean[row]), jnp.where(before == 0, 0.0, square[row])
        off = x - old[0]
        new = old[0] + off / (before + 1)
        keep = jnp.where(when, new, mean[row]), jnp.where(when, old[1] + off * (x - new), square[row])
        return mean.at[row].set(keep[0]), square.at[row].set(keep[1])

    both = jax.tree.map(put, iterates.mean, iterates.square, x)
    mean, square = jax.tree.transpose(jax.tree.structure(iterates.mean), jax.tree.structure((0, 0)), both)
    return Iterates(mean, square, iterates.size, iterates.number + when)


def join(iterates: Iterates) -> Iterates:
    """Join neighbours, which makes 32 whole blocks of 64."""

    def pairs(mean: Array, square: Array) -> tuple[Array, Array]:
        a, b = mean[0::2], mean[1::2]
        squares = square[0::2] + square[1::2] + 0.5 * iterates.size * jnp.square(a - b)
        grow = lambda l: jnp.concatenate([l, jnp.zeros_like(l)])  # noqa: E731
        return grow(0.5 * (a + b)), grow(squares)

    both = jax.tree.map(pairs, iterates.mean, iterates.square)
    mean, square = jax.tree.transpose(jax.tree.structure(iterates.mean), jax.tree.structure((0, 0)), both)
    return Iterates(mean, square, 2 * iterates.size, iterates.number)


def full(count: int) -> bool:
    """Whether `join` is due after so many iterates."""
    return count >= BLOCKS and count & (count - 1) == 0


def due(count: int) -> bool:
    """Whether the tail is worth a look: four times for each doubling, once blocks hold two iterates or more."""
    return count >= BLOCKS and count % ((1 << (count - 1).bit_length()) // 8) == 0


def next_due(count: int, *, judged: bool) -> int:
    """Return the next count at which `full` holds, or `due` where the tail is judged."""
    if count < BLOCKS:
        return BLOCKS
    if not judged:
        return 1 << count.bit_length()
    apart = (1 << count.bit_length()) // 8
    return (count // apart + 1) * apart


def tail(iterates: Iterates) -> Tail:
    """Return the tail whose two halves agree best, out of five: from a quarter of the whole to 95 % of it."""
    blocks = jnp.minimum(iterates.number // iterates.size, BLOCKS)
    shortest = jnp.maximum(blocks // 4, 2)
    shares = jnp.arange(WINDOWS) / (WINDOWS - 1)
    lengths = shortest + (shares * jnp.maximum(0.95 * blocks - shortest, 0)).astype(jnp.int32)
    lengths = jnp.minimum(2 * (lengths // 2), jnp.maximum(blocks, 1))

    def largest(length: Array) -> Array:
        return _largest(_rhat(iterates, blocks, length))

    worst = jax.vmap(largest)(lengths)
    chosen = lengths[jnp.argmin(jnp.where(jnp.isnan(worst), jnp.inf, worst))]
    found = jax.tree.map(lambda m, s: _average(m, s, iterates.size, blocks, chosen), iterates.mean, iterates.square)
    outer, inner = jax.tree.structure(iterates.mean), jax.tree.structure((0, 0, 0))
    average, error, ess = jax.tree.transpose(outer, inner, found)
    rhat = _rhat(iterates, blocks, chosen)
    return Tail(average, error, ess, rhat, _largest(rhat), chosen * iterates.size)


def _float(leaf: Any) -> Any:
    return jnp.promote_types(jnp.result_type(leaf), jnp.float32)


def _largest(tree: PyTree) -> Array:
    leaves = [jnp.max(l, initial=1.0).astype(jnp.float32) for l in jax.tree.leaves(tree)]
    return jnp.max(jnp.stack(leaves))


def _weights(like: Array, first: Array, last: Array) -> Array:
    rows = jnp.arange(BLOCKS)
    return jnp.where((rows >= first) & (rows < last), 1.0, 0.0).astype(like.dtype).reshape(-1, *(1,) * (like.ndim - 1))


def _rounding(centre: Array) -> Array:
    """Return the variance that rounding alone gives a number that stands still."""
    return jnp.square(16 * jnp.finfo(centre.dtype).eps * jnp.abs(centre))


def _within(mean: Array, square: Array, size: Array, first: Array, last: Array) -> tuple[Array, Array]:
    """Mean and variance of the iterates of blocks first to last."""
    weight = _weights(mean, first, last)
    blocks = jnp.maximum(last - first, 1).astype(mean.dtype)
    centre = jnp.sum(jnp.where(weight > 0, mean, 0.0), 0) / blocks
    spread = jnp.sum(jnp.where(weight > 0, square + size * jnp.square(mean - centre[None]), 0.0), 0)
    return centre, spread / jnp.maximum(blocks * size - 1, 1)


def _rhat(iterates: Iterates, blocks: Array, length: Array) -> PyTree:
    n = jnp.maximum(length // 2 * iterates.size, 2)

    def of(mean: Array, square: Array) -> Array:
        early = _within(mean, square, iterates.size, blocks - length, blocks - length // 2)
        late = _within(mean, square, iterates.size, blocks - length // 2, blocks)
        within, between = 0.5 * (early[1] + late[1]), 0.5 * jnp.square(early[0] - late[0])
        least = _rounding(early[0])
        still = jnp.where(between <= least, 1.0, jnp.inf)  # numbers that do not move agree with themselves
        moving = jnp.sqrt((n - 1) / n + between / jnp.where(within > least, within, 1.0))
        return jnp.where(within > least, moving, jnp.where(jnp.isnan(within), jnp.nan, still))

    return jax.tree.map(of, iterates.mean, iterates.square)


def _average(mean: Array, square: Array, size: Array, blocks: Array, length: Array) -> tuple[Array, Array, Array]:
    """Mean, its standard error and the effective number of iterates, of the last `length` blocks."""
    first = blocks - length
    centre, variance = _within(mean, square, size, first, blocks)

    def squared_error(means: Array, weight: Array, batches: Array) -> Array:
        spread = jnp.sum(weight * jnp.square(means - centre[None]), 0)
        few = jnp.asarray(jnp.where(batches < 2, jnp.inf, 0.0), mean.dtype)  # one batch tells nothing of the error
        return spread / jnp.maximum(batches * (batches - 1), 1).astype(mean.dtype) + few

    # Batches of one block and of two: the longer hear more of the autocorrelation, and the larger error is believed.
    single = squared_error(mean, _weights(mean, first, blocks), length)
    pairs = 0.5 * (mean + jnp.roll(mean, -1, 0))
    begins = (jnp.arange(BLOCKS) % 2 == first % 2).astype(mean.dtype).reshape(-1, *(1,) * (mean.ndim - 1))
    double = squared_error(pairs, begins * _weights(mean, first, blocks - 1), length // 2)
    error = jnp.maximum(single, double)
    count = (length * size).astype(mean.dtype)
    moves = error > _rounding(centre)
    ess = jnp.where(moves, variance / jnp.where(moves, error, 1.0), jnp.where(jnp.isnan(error), jnp.nan, count))
    return centre, jnp.sqrt(error), jnp.minimum(ess, count)
