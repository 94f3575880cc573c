"""The iterates of a fit, as means and spreads of blocks: memory does not grow with the steps."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
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
    worst: Any
    number: Any


def empty(like: PyTree) -> Iterates:
    """Return no iterates yet, of the shapes and dtypes of `like`."""
    zeros = jax.tree.map(lambda l: jnp.zeros((BLOCKS, *jnp.shape(l)), _float(l)), like)
    return Iterates(zeros, zeros, jnp.int32(1), jnp.int32(0))


def add(iterates: Iterates, x: PyTree, when: Array) -> Iterates:
    """Add one iterate where `when`, by Welford's rule; there must be room, see `full`."""
    row, before = iterates.number // iterates.size, iterates.number % iterates.size

    def put(mean: Array, square: Array, x: Array) -> tuple[Array, Array]:
        x = jnp.asarray(x, mean.dtype)
        # The first iterate of a block overwrites what an earlier block has left there.
        old_mean = jnp.where(before == 0, 0.0, mean[row])
        old_square = jnp.where(before == 0, 0.0, square[row])
        off = x - old_mean
        new_mean = old_mean + off / (before + 1)
        new_square = old_square + off * (x - new_mean)
        return (
            mean.at[row].set(jnp.where(when, new_mean, mean[row])),
            square.at[row].set(jnp.where(when, new_square, square[row])),
        )

    mean, square = _map_pairs(put, iterates.mean, iterates.square, x)
    return Iterates(mean, square, iterates.size, iterates.number + when)


def join(iterates: Iterates) -> Iterates:
    """Join neighbours, which makes 32 whole blocks of 64."""

    def with_empty(half: Array) -> Array:
        return jnp.concatenate([half, jnp.zeros_like(half)])

    def pairs(mean: Array, square: Array) -> tuple[Array, Array]:
        a, b = mean[0::2], mean[1::2]
        squares = square[0::2] + square[1::2] + 0.5 * iterates.size * jnp.square(a - b)
        return with_empty(0.5 * (a + b)), with_empty(squares)

    mean, square = _map_pairs(pairs, iterates.mean, iterates.square)
    return Iterates(mean, square, 2 * iterates.size, iterates.number)


def _map_pairs(function: Callable[..., tuple[Array, Array]], *trees: PyTree) -> Any:
    """Map leaves to pairs of arrays, and return the pair of trees."""
    pairs = jax.tree.map(function, *trees)
    return jax.tree.transpose(jax.tree.structure(trees[0]), jax.tree.structure((0, 0)), pairs)


def full(count: int) -> bool:
    """Whether `join` is due after so many iterates."""
    return count >= BLOCKS and count & (count - 1) == 0


def due(count: int) -> bool:
    """Whether a verdict is due: four times in each doubling, once blocks hold two iterates."""
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
    """Return the tail whose two halves agree best, of five: from a quarter of the whole to 95 %.

    On the host and in float64: it is asked for rarely, and there is nothing to compile.
    """
    kept = jax.device_get(iterates)
    blocks = _blocks(kept)
    with np.errstate(all="ignore"):
        candidates = [blocks.last(length) for length in _lengths(len(blocks.mean))]
        rhats = [_rhat(candidate) for candidate in candidates]
        worst = [np.inf if np.isnan(r).any() else np.max(r, initial=1.0) for r in rhats]
        best = int(np.argmin(worst))
        chosen = candidates[best]
        average, error, ess = _average(chosen)
    return Tail(
        average=_like(kept.mean, average),
        error=_like(kept.mean, error),
        ess=_like(kept.mean, ess),
        rhat=_like(kept.mean, rhats[best]),
        worst=np.float32(worst[best]),
        number=np.int32(len(chosen.mean) * chosen.size),
    )


class _Blocks(NamedTuple):
    """Whole blocks of iterates, all leaves in one row, in float64.

    Fields:
        mean: [blocks, numbers].
        square: sums of squared deviations from those means.
        size: how many iterates a block holds.
        rounding: the variance that rounding gives to a number that stands still, [numbers].
    """

    mean: np.ndarray
    square: np.ndarray
    size: int
    rounding: np.ndarray

    def last(self, length: int) -> "_Blocks":
        """Return the last blocks; all of them for a length of 0."""
        return self._replace(mean=self.mean[-length:], square=self.square[-length:])

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and variance of the iterates."""
        center = self.mean.mean(0)
        spread = (self.square + self.size * np.square(self.mean - center)).sum(0)
        return center, spread / max(len(self.mean) * self.size - 1, 1)


def _blocks(kept: Iterates) -> _Blocks:
    """Return the whole blocks, in float64; the one that is being filled is left out."""
    number = min(int(kept.number // kept.size), BLOCKS)
    mean, square = (
        np.concatenate(
            [np.reshape(l, (BLOCKS, -1)).astype(np.float64) for l in jax.tree.leaves(tree)], 1
        )[:number]
        for tree in (kept.mean, kept.square)
    )
    leaves = jax.tree.leaves(kept.mean)
    eps = np.concatenate([np.full(l[0].size, jnp.finfo(l.dtype).eps) for l in leaves])
    rounding = np.square(16 * eps * np.abs(mean[-1] if number else 0.0))
    return _Blocks(mean, square, int(kept.size), rounding)


def _lengths(blocks: int) -> list[int]:
    """Return the lengths of the tails that are tried, even numbers of blocks."""
    shortest = max(blocks // 4, 2)
    shares = np.linspace(0, 1, WINDOWS)
    lengths = (shortest + shares * max(0.95 * blocks - shortest, 0)).astype(int) // 2 * 2
    return [int(length) for length in lengths]


def _like(tree: PyTree, row: np.ndarray) -> PyTree:
    """Cut a row of all numbers into the leaves of one iterate, in their dtypes."""
    leaves, structure = jax.tree.flatten(tree)
    parts = np.split(row, np.cumsum([leaf[0].size for leaf in leaves])[:-1])
    cut = [
        part.reshape(leaf.shape[1:]).astype(leaf.dtype)
        for part, leaf in zip(parts, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, cut)


def _float(leaf: Any) -> Any:
    return jnp.promote_types(jnp.result_type(leaf), jnp.float32)


def _rhat(blocks: _Blocks) -> np.ndarray:
    """Return R-hat of the two halves, [numbers]; inf where there are no halves."""
    half = len(blocks.mean) // 2
    if half == 0:
        return np.full(blocks.mean.shape[1], np.inf)
    early = blocks._replace(mean=blocks.mean[:half], square=blocks.square[:half])
    late = blocks._replace(mean=blocks.mean[half:], square=blocks.square[half:])
    (mean_early, variance_early), (mean_late, variance_late) = early.moments(), late.moments()
    within = 0.5 * (variance_early + variance_late)
    between = 0.5 * np.square(mean_early - mean_late)
    # Numbers that do not move agree with themselves.
    still = np.where(between <= blocks.rounding, 1.0, np.inf)
    moving = np.sqrt(1 - 1 / max(half * blocks.size, 2) + between / within)
    of_still = np.where(np.isnan(within), np.nan, still)
    return np.where(within > blocks.rounding, moving, of_still)


def _average(blocks: _Blocks) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean, its standard error and the effective number of iterates, [numbers] each."""
    numbers = blocks.mean.shape[1]
    if len(blocks.mean) == 0:
        return np.zeros(numbers), np.full(numbers, np.inf), np.zeros(numbers)
    center, variance = blocks.moments()

    # Batches of one block and of two: the longer hear more of the autocorrelation, and the larger
    # error is believed.
    pairs = blocks.mean[: len(blocks.mean) // 2 * 2].reshape(-1, 2, numbers).mean(1)
    error = _squared_error(blocks.mean, center)
    error = np.maximum(error, _squared_error(pairs, center) if len(pairs) > 1 else 0.0)

    count = len(blocks.mean) * blocks.size
    of_still = np.where(np.isnan(error), np.nan, count)
    ess = np.where(error > blocks.rounding, variance / error, of_still)
    return center, np.sqrt(error), np.minimum(ess, count)


def _squared_error(batches: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Return the squared standard error of a mean by those of batches; one batch tells nothing."""
    n = len(batches)
    if n < 2:
        return np.full(batches.shape[1], np.inf)
    return np.square(batches - center).sum(0) / (n * (n - 1))
