"""What is done to a pytree leaf by leaf: choose, test whether it is finite, fix dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from vijax.types import PyTree


def where(condition: Array | np.ndarray, new: PyTree, old: PyTree) -> PyTree:
    """Return `new` where a condition holds and `old` elsewhere, for every leaf.

    Args:
        condition: bool, (), or [n] where every leaf begins with that axis.
        new: a pytree of arrays.
        old: another of the same structure and shapes.

    Returns:
        A pytree like both.
    """

    def choose(new: ArrayLike, old: ArrayLike) -> Array:
        axes = jnp.ndim(condition)
        if axes == 0:
            return jnp.where(condition, new, old)
        return jnp.where(condition.reshape(-1, *(1,) * (jnp.ndim(new) - axes)), new, old)

    return jax.tree.map(choose, new, old)


def finite_leaves(tree: PyTree) -> list[Array]:
    """Return, for each leaf of floating numbers, whether all of them are finite, ()."""
    return [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree) if is_floating(leaf)]


def is_floating(leaf: ArrayLike) -> bool:
    """Return whether a leaf holds floating or complex numbers, which alone can be nan."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def strong_dtypes(tree: PyTree) -> PyTree:
    """Return arrays whose dtypes do not yield to others', as a Python number's does.

    The carry of a loop keeps such dtypes, where a weak one would change in the first step.
    """

    def strong(leaf: ArrayLike) -> Array:
        return jax.lax.convert_element_type(jnp.asarray(leaf), jnp.result_type(leaf))

    return jax.tree.map(strong, tree)
