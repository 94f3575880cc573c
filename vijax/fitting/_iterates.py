"""The iterates of a fit, as means and spreads of blocks: memory does not grow with the steps."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Int

from vijax.types import PyTree

BLOCKS = 64  # remembered at most; when they are full, neighbors are joined


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


def empty(like: PyTree) -> Iterates:
    """Return no iterates yet, of the shapes and dtypes of `like`."""
    # [64, ...] of each leaf, float32 at least.
    zeros = jax.tree.map(lambda l: jnp.zeros((BLOCKS, *jnp.shape(l)), _float(l)), like)
    return Iterates(zeros, zeros, jnp.int32(1), jnp.int32(0))


def add(iterates: Iterates, x: PyTree, when: Array) -> Iterates:
    """Add one iterate where `when`, by Welford's rule; there must be room, see `full`."""
    # The block that is being filled, and how many iterates are in it.
    row, before = iterates.number // iterates.size, iterates.number % iterates.size

    def put(mean: Array, square: Array, x: Array) -> tuple[Array, Array]:
        x = jnp.asarray(x, mean.dtype)
        # The first iterate of a block overwrites what an earlier block has left there.
        old_mean = jnp.where(before == 0, 0.0, mean[row])
        old_square = jnp.where(before == 0, 0.0, square[row])
        # m ← m + (x - m) / n, and the sum of squares about it, both for n = before + 1.
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
    """Join neighbors, which makes 32 whole blocks of 64."""

    def with_empty(half: Array) -> Array:
        return jnp.concatenate([half, jnp.zeros_like(half)])

    def pairs(mean: Array, square: Array) -> tuple[Array, Array]:
        a, b = mean[0::2], mean[1::2]
        # Σ(x - m)² of both, and what their means add: n/2 (a - b)² for blocks of n each.
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
    # Multiples of an eighth of the next power of two.
    apart = (1 << count.bit_length()) // 8
    return (count // apart + 1) * apart


def history(iterates: Iterates) -> tuple[np.ndarray, np.ndarray]:
    """Return the means of the bound in whole blocks, and how many iterates there were at their ends."""
    kept = jax.device_get(iterates)
    whole = min(int(kept.number // kept.size), BLOCKS)
    return kept.mean["bound"][:whole], int(kept.size) * np.arange(1, whole + 1)


def _float(leaf: ArrayLike | jax.ShapeDtypeStruct) -> DTypeLike:
    """Return the dtype that a leaf's mean is kept in."""
    return jnp.promote_types(jnp.result_type(leaf), jnp.float32)
