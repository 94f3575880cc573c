"""Which rows of the data come next: epochs in random order, from a cursor like any state."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from vijax import checks


class Cursor(NamedTuple):
    """Where the stream of rows is; a pytree of arrays, for a scan to carry and checkpoints to keep.

    Fields:
        key: from which the order of every epoch is made.
        epoch: how many epochs are over, ().
        position: how many rows of this epoch are spent, ().
        order: the rows of this epoch in their order, [N].
    """

    key: Key[Array, ""]
    epoch: Int[Array, ""]
    position: Int[Array, ""]
    order: Int[Array, " n"]


class Minibatches(NamedTuple):
    """A stream of rows: `init(key) -> Cursor`, `next(cursor) -> (rows [B], Cursor)`."""

    init: Callable[[Key[Array, ""]], Cursor]
    next: Callable[[Cursor], tuple[Array, Cursor]]


def minibatches(*, num_data: int, batch_size: int) -> Minibatches:
    """Minibatches by reshuffled epochs: rows in random order, each once before any comes again.

        rows = π₁ π₂ π₃ ... cut into pieces of B,   πₑ a permutation of 0 ... N - 1 for each epoch

    At any step every row is as likely as another, which keeps `targets.minibatch` unbiased; there, and
    only there, N/B is applied. Over an epoch the error of a gradient cancels.

    Args:
        num_data: N.
        batch_size: B, at most N. Where it does not divide N, the piece at the end of an epoch is
            filled from the next one, and may then hold a row twice.

    Returns:
        Minibatches: `init(key) -> cursor` and `next(cursor) -> (rows [B], cursor)`, both jittable
        and vmappable. Restored from a checkpoint, a cursor continues with the same rows; for shards
        that are read from files, map them over rows in your own order. Under vmap an order is drawn at
        every step.

    Raises:
        TypeError: for counts that are not Python ints; (init) for a raw key.
        ValueError: for B < 1 or B > N.

    Example:
        >>> batches = minibatches(num_data=6, batch_size=3)
        >>> first, cursor = batches.next(batches.init(jax.random.key(0)))
        >>> second, cursor = batches.next(cursor)
        >>> sorted([*first.tolist(), *second.tolist()]), int(cursor.epoch)
        ([0, 1, 2, 3, 4, 5], 1)

    Reference: Bottou, Curiously fast convergence of some stochastic gradient descent algorithms,
        2009; Hoffman, Blei, Wang, Paisley, Stochastic variational inference, 2013, arXiv:1206.7051.
    """
    checks.static_count(num_data, "num_data")
    checks.static_count(batch_size, "batch_size")
    if batch_size > num_data:
        raise ValueError(f"batch_size must be from 1 to num_data = {num_data}, got {batch_size}.")

    def order(key: Key[Array, ""], epoch: Array) -> Array:
        return jax.random.permutation(jax.random.fold_in(key, epoch), num_data).astype(jnp.int32)

    def init(key: Key[Array, ""]) -> Cursor:
        checks.key(key)
        zero = jnp.zeros((), jnp.int32)
        return Cursor(key, zero, zero, order(key, zero))

    def step(cursor: Cursor) -> tuple[Array, Cursor]:
        if not isinstance(cursor, Cursor):
            raise TypeError(
                f"cursor must be what init(key) returned, got a {type(cursor).__name__}; in a rule "
                "it is the memory, rule.init(params, memory=batches.init(key))."
            )
        # [B]: places in this epoch's order, some of them beyond its end in the step that ends it.
        places = cursor.position + jnp.arange(batch_size, dtype=jnp.int32)
        over = cursor.position + batch_size >= num_data
        # The next epoch's order, drawn only in the step that reaches it.
        later = jax.lax.cond(
            over, lambda: order(cursor.key, cursor.epoch + 1), lambda: cursor.order
        )
        # [B]: places beyond the end are those at the start of the next epoch.
        here = places < num_data
        rows = jnp.where(
            here,
            cursor.order[jnp.where(here, places, 0)],
            later[jnp.where(here, 0, places - num_data)],
        )
        position = cursor.position + batch_size - jnp.where(over, num_data, 0)
        return rows, Cursor(cursor.key, cursor.epoch + over, position.astype(jnp.int32), later)

    return Minibatches(init, step)
