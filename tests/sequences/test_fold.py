"""sequential and associative: equal numbers, in the order of the chain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vijax import folds
from vijax.sequences import associative, sequential


def product(a, b):
    return {"m": a["m"] @ b["m"]}


@pytest.mark.parametrize("length", [0, 1, 2, 7, 12])
def test_all_partial_products_in_order(length, key):
    """Matrices do not commute, so the order counts; a first row of another shape than the matrices."""
    matrices = np.asarray(jax.random.normal(key, (length, 3, 3)))
    first = {"m": jnp.ones((1, 3))}
    expected = [np.ones((1, 3))]
    for m in matrices:
        expected.append(expected[-1] @ m)
    for fold in (sequential, associative):
        found = fold(product, first, {"m": jnp.asarray(matrices)})["m"]
        np.testing.assert_allclose(found, np.stack(expected), rtol=1e-4, atol=1e-4)
    backwards = [np.ones((1, 3))]
    for m in matrices[::-1]:
        backwards.append(backwards[-1] @ m)
    found = folds.backward(associative, product, first, {"m": jnp.asarray(matrices)})["m"]
    np.testing.assert_allclose(found, np.stack(backwards[::-1]), rtol=1e-4, atol=1e-4)


def test_an_operator_that_is_not_associative_shows():
    """The control: differences are not associative, and the two folds differ."""
    args = (lambda a, b: a - b, jnp.float32(1.0), jnp.arange(1.0, 6.0))
    assert np.abs(sequential(*args) - associative(*args)).max() > 1


def test_the_tree_is_shallow():
    """The sequential form loops T times; the associative one has no loop, and some 2 log2 T levels."""
    args = (lambda a, b: a * b, jnp.float32(1.0), jnp.ones(1000))
    names = lambda fold: [
        e.primitive.name for e in jax.make_jaxpr(lambda: fold(*args))().jaxpr.eqns
    ]
    assert "scan" in names(sequential)
    assert "scan" not in names(associative)
    assert names(associative).count("mul") <= 2 * np.log2(1000) + 1
