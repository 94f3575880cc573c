"""What is done to a pytree leaf by leaf: choose, name, test whether it is finite, carry it through a loop."""

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
        # [n] to [n, *1s of the leaf].
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


def named_leaves(z: PyTree) -> list[tuple[str, Any]]:
    """Return the leaves of a pytree with names a person would use, each its own; a bare array is z.

    Where two would be called alike, as those of {"a": {"b": ...}, "a.b": ...}, all names are in JAX's
    full form, ['a']['b'].

    Example:
        >>> [name for name, _ in named_leaves({"q": {"loc": 0.0, "scale": 1.0}})]
        ['q.loc', 'q.scale']
    """
    paths = jax.tree_util.tree_leaves_with_path(z)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") or "z" for path, _ in paths]
    if len(set(names)) < len(names):
        names = [jax.tree_util.keystr(path) for path, _ in paths]
    return list(zip(names, [leaf for _, leaf in paths], strict=True))


def named_scalars(z: PyTree) -> list[str]:
    """Return a name for every scalar of a pytree, each its own, in the order of its leaves:
    theta[3].

    Example:
        >>> named_scalars({"a": jnp.zeros(2), "b": 0.0})
        ['a[0]', 'a[1]', 'b']
    """

    def of_elements(leaves: list[tuple[str, Any]]) -> list[str]:
        return [
            f"{name}[{','.join(map(str, place))}]" if place else name
            for name, leaf in leaves
            for place in np.ndindex(*jnp.shape(leaf))
        ]

    names = of_elements(named_leaves(z))
    if len(set(names)) == len(names):
        return names
    # A leaf may be called as another's element is, {"a": [2], "a[0]": []}.
    paths = jax.tree_util.tree_leaves_with_path(z)
    return of_elements([(jax.tree_util.keystr(path), leaf) for path, leaf in paths])


def mesh_axes(tree: PyTree) -> frozenset[str]:
    """Return the axes of a mesh along which any of some arrays, or their types, differs inside shard_map."""
    # What eval_shape returns carries its type itself.
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
    # Nothing is computed: the types of the outcome say over which axes it differs.
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

    # A turn may make one part of the carry differ by another, so marks spread until none is new.
    before, marks = None, jax.tree.map(mesh_axes, carry)
    while before != marks:
        before = marks
        after = jax.tree.map(mesh_axes, jax.eval_shape(turn, carry))
        carry = jax.tree.map(_differing, carry, after)
        marks = jax.tree.map(mesh_axes, carry)
    return carry
