"""The iterates of a fit, remembered as the means and spreads of blocks: memory that does not grow with the steps."""

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
    """Return the tail whose two halves agree best, out of five: from a quarter of the whole to 95 % of it.

    On the host and in float64: it is asked for rarely, and there is nothing to compile.
    """
    kept = jax.device_get(iterates)
    leaves, structure = jax.tree.flatten(kept.mean)
    mean, square = (
        np.concatenate([np.reshape(l, (BLOCKS, -1)).astype(np.float64) for l in jax.tree.leaves(t)], 1)
        for t in (kept.mean, kept.square)
    )
    blocks = min(int(kept.number // kept.size), BLOCKS)
    mean, square, size = mean[:blocks], square[:blocks], int(kept.size)
    eps = np.concatenate([np.full(l[0].size, jnp.finfo(l.dtype).eps) for l in leaves])
    rounding = np.square(16 * eps * np.abs(mean[-1] if blocks else 0.0))  # variance of a number that stands still
    shortest = max(blocks // 4, 2)
    shares = np.linspace(0, 1, WINDOWS)
    lengths = (shortest + shares * max(0.95 * blocks - shortest, 0)).astype(int) // 2 * 2
    with np.errstate(all="ignore"):
        found = [_rhat(mean[-length:], square[-length:], size, rounding) for length in lengths]
        worst = [np.inf if np.isnan(r).any() else np.max(r, initial=1.0) for r in found]
        chosen = int(np.argmin(worst))
        rows = mean[-lengths[chosen] :], square[-lengths[chosen] :]
        results = (*_average(*rows, size, rounding), found[chosen])

    def like(vector: np.ndarray) -> PyTree:
        parts = np.split(vector, np.cumsum([l[0].size for l in leaves])[:-1])
        back = [part.reshape(l.shape[1:]).astype(l.dtype) for part, l in zip(parts, leaves, strict=True)]
        return jax.tree.unflatten(structure, back)

    average, error, ess, rhat = map(like, results)
    return Tail(average, error, ess, rhat, np.float32(worst[chosen]), np.int32(len(rows[0]) * size))


def _float(leaf: Any) -> Any:
    return jnp.promote_types(jnp.result_type(leaf), jnp.float32)


def _moments(mean: np.ndarray, square: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of the iterates of some blocks."""
    centre = mean.mean(0)
    spread = (square + size * np.square(mean - centre)).sum(0)
    return centre, spread / max(len(mean) * size - 1, 1)


def _rhat(mean: np.ndarray, square: np.ndarray, size: int, rounding: np.ndarray) -> np.ndarray:
    half = len(mean) // 2
    if half == 0:
        return np.full(mean.shape[1], np.inf)
    early, late = _moments(mean[:half], square[:half], size), _moments(mean[half:], square[half:], size)
    within, between = 0.5 * (early[1] + late[1]), 0.5 * np.square(early[0] - late[0])
    still = np.where(between <= rounding, 1.0, np.inf)  # numbers that do not move agree with themselves
    moving = np.sqrt(1 - 1 / max(half * size, 2) + between / within)
    return np.where(within > rounding, moving, np.where(np.isnan(within), np.nan, still))


def _average(
    mean: np.ndarray, square: np.ndarray, size: int, rounding: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, its standard error and the effective number of iterates of some blocks."""
    if len(mean) == 0:
        return np.zeros(mean.shape[1]), np.full(mean.shape[1], np.inf), np.zeros(mean.shape[1])
    centre, variance = _moments(mean, square, size)

    def squared_error(batches: np.ndarray) -> np.ndarray:
        n = len(batches)
        if n < 2:  # one batch tells nothing of the error
            return np.full(mean.shape[1], np.inf)
        return np.square(batches - centre).sum(0) / (n * (n - 1))

    # Batches of one block and of two: the longer hear more of the autocorrelation, and the larger error is believed.
    pairs = mean[: len(mean) // 2 * 2].reshape(-1, 2, mean.shape[1]).mean(1)
    error = np.maximum(squared_error(mean), squared_error(pairs) if len(pairs) > 1 else 0.0)
    count = len(mean) * size
    ess = np.where(error > rounding, variance / error, np.where(np.isnan(error), np.nan, count))
    return centre, np.sqrt(error), np.minimum(ess, count)
