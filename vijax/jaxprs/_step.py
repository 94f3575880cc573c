"""Whether the support of one step of a recurrent distribution moves with its parameters."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Key

from vijax.jaxprs._equations import trace
from vijax.jaxprs._paths import DRAWN, NOISE, PARAMETER, by_leaf, conditional_paths, leaf_paths
from vijax.jaxprs._range import GIVEN, MOVING, is_whole
from vijax.jaxprs._support import Moving, part_moves
from vijax.types import Joint, PyTree


def step_moves(
    step: Callable[[PyTree, PyTree], Any], key: Key[Array, ""], state: PyTree, before: PyTree
) -> Moving | None:
    """Return why the support of step(state, before) may move with parameters, or None.

    Args:
        step: (state, before) -> the distribution of a step.
        key: any.
        state: shapes of what may depend on parameters as well as on earlier draws.
        before: shapes of earlier draws, which are held.

    Example:
        >>> normal = lambda s, z: vj.families.mean_field().dist({"loc": z, "log_scale": s})
        >>> scalar = jax.ShapeDtypeStruct((), jnp.float32)
        >>> step_moves(normal, jax.random.key(0), scalar, scalar) is None
        True
    """
    last: list[Any] = [None]

    def sample(key: Key[Array, ""], state: PyTree, before: PyTree) -> PyTree:
        last[0] = step(state, before)
        return last[0].sample_and_log_prob(seed=key, sample_shape=())[0]

    closed, shape = trace(sample, key, state, before)
    moving, held = jax.tree.leaves(state), jax.tree.leaves(before)
    flows = [PARAMETER] * len(moving) + [DRAWN] * len(held)
    if isinstance(last[0], Joint):
        leaves = by_leaf(conditional_paths(step, last[0].names(), key, [state, before], flows))
    else:
        leaves = leaf_paths(last[0], shape, closed, [NOISE, *flows])
    # A whole number that was drawn may be 0.
    given = [GIVEN._replace(nonzero=not is_whole(leaf.dtype)) for leaf in held]
    ranges = [MOVING] * len(moving) + given
    return part_moves(step, key, (state, before), ranges, leaves)
