"""The jaxpr of log_joint of one draw, made once for each shape and read by every question."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

from vijax import jaxprs
from vijax.engine import _refusals as refusals
from vijax.types import PyTree

_READS_NUMBERS = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


class Traces:
    """What one call of an objective has traced, by function and by the types of a draw."""

    def __init__(self) -> None:
        self._made: dict[Any, tuple[Any, core.ClosedJaxpr | None]] = {}

    def of(
        self, log_joint: Any, one: Callable[..., PyTree], *draw: PyTree
    ) -> core.ClosedJaxpr | None:
        """Return the jaxpr of one(*draw), which evaluates log_joint; refuse accidental outer products.

        None where it reads the numbers that it closes over, as outside of jit it may. The draws are
        evaluated by calling log_joint again: JAX's caches make that cheaper than the jaxpr is.
        """
        leaves, tree = jax.tree.flatten(draw)
        call = (id(log_joint), tree, *map(jax.typeof, leaves))
        if call not in self._made:
            self._made[call] = log_joint, _trace(one, *draw)
        return self._made[call][1]


def _trace(one: Callable[..., PyTree], *draw: PyTree) -> core.ClosedJaxpr | None:
    try:
        closed, _ = jaxprs.trace(one, *draw)
    except _READS_NUMBERS:
        return None
    outer = jaxprs.accidental_outer(closed)
    if outer is not None:
        raise refusals.outer_product("log_joint", outer)
    return closed
