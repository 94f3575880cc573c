"""The jaxpr of log_joint of one draw, made once for each shape and read by every question."""

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
    """One trace of log_joint, and what it shows.

    Fields:
        closed: the jaxpr; None where log_joint reads the numbers that it closes over, as outside of
            jit it may.
        through: what the derivative of an objective inside passes through, where that is not linear
            in it, for refusals; or None.
    """

    closed: core.ClosedJaxpr | None
    through: str | None = None


class Traces:
    """What one call of an objective has traced, by function and by the types of a draw."""

    def __init__(self) -> None:
        self._made: dict[Any, tuple[Any, Traced]] = {}

    def of(self, log_joint: Any, one: Callable[..., PyTree], *draw: PyTree) -> Traced:
        """Return the trace of one(*draw), which evaluates log_joint, its first result log p.

        Refuses accidental outer products, and what is not linear in values whose mean alone is
        right. The draws are evaluated by calling log_joint again: JAX's caches make that cheaper than
        the jaxpr is.
        """
        leaves, tree = jax.tree.flatten(draw)
        call = (id(log_joint), tree, *map(jax.typeof, leaves))
        if call not in self._made:
            self._made[call] = log_joint, _trace(one, *draw)
        return self._made[call][1]


def _trace(one: Callable[..., PyTree], *draw: PyTree) -> Traced:
    try:
        closed, _ = jaxprs.trace(one, *draw)
    except _READS_NUMBERS:
        return Traced(None)
    outer = jaxprs.accidental_outer(closed)
    if outer is not None:
        raise refusals.outer_product("log_joint", outer)
    passed = jaxprs.beyond_mean(closed)
    if passed is not None:
        raise refusals.mean_passed_through(passed.primitive)
    slope = jaxprs.beyond_mean_slope(closed)
    return Traced(closed, slope and f"'{slope.primitive}' in log_joint, which is not linear in it")
