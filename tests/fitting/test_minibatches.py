"""minibatches: every row once in an epoch, the same rows after a restore, and an unbiased target from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.statistics import assert_mean
from vijax.fitting import minibatches
from vijax.fitting._minibatches import Cursor, Minibatches


def stream(batches, cursor, steps):
    def step(cursor, _):
        rows, cursor = batches.next(cursor)
        return cursor, rows

    return jax.jit(lambda cursor: jax.lax.scan(step, cursor, length=steps))(cursor)


@pytest.mark.parametrize(("num_data", "batch_size"), [(12, 3), (10, 4), (7, 7), (5, 1)])
def test_every_row_once_in_an_epoch(num_data, batch_size, key):
    """Also where B does not divide N; and epochs differ in their order."""
    batches = minibatches(num_data=num_data, batch_size=batch_size)
    assert isinstance(batches, Minibatches)
    cursor, rows = stream(batches, batches.init(key), 4 * num_data)
    epochs = rows.reshape(4 * batch_size, num_data)
    np.testing.assert_array_equal(
        jnp.sort(epochs, 1), np.broadcast_to(np.arange(num_data), epochs.shape)
    )
    assert not np.array_equal(epochs[0], epochs[1])
    assert isinstance(cursor, Cursor)
    assert cursor.epoch == 4 * batch_size
    assert cursor.position == 0
    # The control: cut one row later, the pieces are no epochs.
    moved = jnp.roll(rows.reshape(-1), 1).reshape(epochs.shape)
    assert not np.array_equal(
        jnp.sort(moved, 1), np.broadcast_to(np.arange(num_data), epochs.shape)
    )


def test_a_restored_cursor_continues(key):
    """Through bytes, at a step in mid-epoch: the same rows to the last."""
    batches = minibatches(num_data=10, batch_size=4)
    _, whole = stream(batches, batches.init(key), 9)
    cursor, first = stream(batches, batches.init(key), 4)
    saved = jax.tree.map(np.asarray, cursor._replace(key=jax.random.key_data(cursor.key)))
    restored = Cursor(
        *(jnp.asarray(np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape)) for a in saved)
    )
    _, second = stream(batches, restored._replace(key=jax.random.wrap_key_data(restored.key)), 5)
    np.testing.assert_array_equal(np.concatenate([first, second]), whole)


def test_every_row_is_as_likely_at_every_step(key):
    """Step 2 of N = 5, B = 2, which crosses an epoch: a mean over rows is unbiased; by chance 2e-10, detects .05.

    The control: an order that is not random at all.
    """
    batches, data = minibatches(num_data=5, batch_size=2), jnp.array([0.0, 1.0, 3.0, -2.0, 0.5])

    def mean(key):
        cursor = batches.init(key)
        for _ in range(3):
            rows, cursor = batches.next(cursor)
        return jnp.mean(data[rows])

    means = jax.jit(jax.vmap(mean))(jax.random.split(key, 60_000))
    assert_mean(means, jnp.mean(data), detects=0.05)
    with pytest.raises(AssertionError, match="biased"):
        assert_mean(jnp.broadcast_to(jnp.mean(data[1:3]), 100), jnp.mean(data), detects=0.05)


def test_refusals(unchecked):
    with pytest.raises(ValueError, match="from 1 to num_data = 5, got 6"):
        minibatches(num_data=5, batch_size=6)
    with pytest.raises(TypeError, match="batch_size must be a Python int"):
        minibatches(num_data=5, batch_size=2.0)
    with pytest.raises(TypeError, match="typed key"):
        minibatches(num_data=5, batch_size=2).init(0)
