"""log_joint of one draw: traced once, read by every question, and evaluated from its jaxpr."""

from collections.abc import Callable
from typing import Any, NamedTuple

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


class Traced(NamedTuple):
    """A function of one draw.

    Fields:
        closed: its jaxpr.
        run: the same function, evaluated from the jaxpr without calling it again.
    """

    closed: core.ClosedJaxpr
    run: Callable[..., PyTree]


class Traces:
    """What one call of an objective has traced, by function and by the types of a draw."""

    def __init__(self) -> None:
        self._made: dict[Any, tuple[Any, Traced | None]] = {}

    def of(self, log_joint: Any, one: Callable[..., PyTree], *draw: PyTree) -> Traced | None:
        """Return one(*draw), which evaluates log_joint, as it was traced; refuse accidental outer products.

        None where it reads the numbers that it closes over, as outside of jit it may.
        """
        leaves, tree = jax.tree.flatten(draw)
        call = (id(log_joint), tree, *map(jax.typeof, leaves))
        if call not in self._made:
            self._made[call] = log_joint, _trace(one, *draw)
        return self._made[call][1]


def _trace(one: Callable[..., PyTree], *draw: PyTree) -> Traced | None:
    try:
        closed, shape = jaxprs.trace(one, *draw)
    except _READS_NUMBERS:
        return None
    outer = jaxprs.accidental_outer(closed)
    if outer is not None:
        raise refusals.outer_product("log_joint", outer)
    flat, tree = core.jaxpr_as_fun(closed), jax.tree.structure(shape)

    def run(*draw: PyTree) -> PyTree:
        return jax.tree.unflatten(tree, flat(*jax.tree.leaves(draw)))

    return Traced(closed, run)
