"""One step of a descent with a line search, as `maximize` and `pathfinder` make it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vijax.types import PyTree


class Point(NamedTuple):
    """A point of a descent.

    Fields:
        params: where it is.
        value: the function there, ().
        gradient: like params.
    """

    params: PyTree
    value: Array
    gradient: PyTree


def point_at(function: Callable[[PyTree], Array], params: PyTree) -> Point:
    """Return the point at which a descent starts."""
    return Point(params, *jax.value_and_grad(function)(params))


def search_line(
    function: Callable[[PyTree], Array],
    optimizer: PyTree,
    state: PyTree,
    point: Point,
    direction: PyTree,
) -> tuple[Point, PyTree, Array]:
    """Search along the line that an Optax optimizer makes of a direction.

    Args:
        function: params -> (), to be minimized.
        optimizer: an Optax transformation that ends in a line search.
        state: of the optimizer.
        point: where the step starts.
        direction: what the optimizer is given as updates, like params.

    Returns:
        The point that was reached, the state of the optimizer, and whether the point is better.
    """
    import optax

    # The direction is given in place of the gradient, which the line search gets by name.
    updates, state = optimizer.update(
        direction,
        state,
        point.params,
        value=point.value,
        grad=point.gradient,
        value_fn=function,
    )
    reached = optax.apply_updates(point.params, updates)
    # The line search has both of them in its state: the function is not evaluated again.
    value, gradient = optax.value_and_grad_from_state(function)(reached, state=state)
    return Point(reached, value, gradient), state, value < point.value


def steepest(gradient: PyTree) -> Array:
    """Return the largest absolute element of a gradient, ()."""
    return jnp.max(
        jnp.stack([jnp.max(jnp.abs(leaf), initial=0.0) for leaf in jax.tree.leaves(gradient)])
    )
