"""What is done to a pytree leaf by leaf: choose, test whether it is finite, fix dtypes, carry it through a loop."""

from collections.abc import Callable
from functools import partial
from typing import Any

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


def mesh_axes(tree: PyTree) -> frozenset[str]:
    """Return the axes of a mesh along which any of some arrays, or their types, differs inside shard_map."""
    types = [x if hasattr(x, "manual_axis_type") else jax.typeof(x) for x in jax.tree.leaves(tree)]
    known = [getattr(t, "manual_axis_type", None) for t in types]  # None outside of shard_map
    return frozenset().union(*(getattr(axes, "varying", ()) for axes in known))


def scan(
    step: Callable[[Any, Any], tuple[Any, Any]], start: PyTree, xs: PyTree, **how: Any
) -> tuple[PyTree, PyTree]:
    """Return what jax.lax.scan does, also inside shard_map, where a carry must not begin to differ over devices."""

    def turn(carry: PyTree) -> PyTree:
        return step(carry, jax.tree.map(lambda x: x[0], xs))[0]

    return jax.lax.scan(step, _as_carried(turn, start), xs, **how)


def while_loop(
    unfinished: Callable[[Any], Array], step: Callable[[Any], Any], start: PyTree
) -> PyTree:
    """Return what jax.lax.while_loop does, also inside shard_map, as `scan`."""
    return jax.lax.while_loop(unfinished, step, _as_carried(step, start))


def own_point(function: Callable[[Any], PyTree], x: PyTree) -> PyTree:
    """Return x as each device's own inside shard_map where function(x) differs over devices.

    A derivative at a point that devices share would be the sum of theirs.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return x
    axes = mesh_axes(jax.eval_shape(function, x))
    return jax.tree.map(partial(_differing, axes=axes), x)


def own_direction(e: Array, x: Array) -> Array:
    """Return a direction from x as each device's own where x is, which forward derivatives ask for."""
    return _differing(e, mesh_axes(x))


def _differing(x: Array, axes: frozenset[str]) -> Array:
    return jax.lax.pcast(x, tuple(sorted(axes - mesh_axes(x))), to="varying")


def _as_carried(turn: Callable[[PyTree], PyTree], carry: PyTree) -> PyTree:
    """Mark what a loop begins with as differing over the devices over which it will differ."""
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return carry

    before = None
    while before != (before := jax.tree.map(mesh_axes, carry)):
        after = jax.tree.map(mesh_axes, jax.eval_shape(turn, carry))
        carry = jax.tree.map(_differing, carry, after)
    return carry
