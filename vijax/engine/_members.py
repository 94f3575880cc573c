"""Members of the batch: log p and log q of each must read the latents of that member alone.

An estimator that multiplies each member's derivative by a number of its own, a signal or a gate,
has no other way to be unbiased. The jaxprs of log_joint and of q.log_prob must show it.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
from jax.extend import core
from jaxtyping import Array, Key

from vijax import checks, jaxprs
from vijax.engine import _member_refusals as member_refusals
from vijax.engine import _refusals as refusals
from vijax.types import Bound, Distribution, PyTree


@dataclass(eq=False)
class Members:
    """What a call that needs members apart knows of them, and for which functions it is proven.

    Fields:
        estimator: its name, and `bound`, for messages.
        q: a distribution.
        declared: whether the target declares itself.
        proven: whether q's members are known to be apart.
        cure: () -> what to use instead, for messages.
        shown: the jaxprs that keep members apart, by id.
    """

    estimator: str
    bound: Bound
    q: Distribution
    declared: bool
    proven: bool = False
    cure: Callable[[], str] = lambda: member_refusals.UNCOUPLED
    shown: dict[int, core.ClosedJaxpr | None] = field(default_factory=dict)

    @property
    def who(self) -> str:
        """The estimator and its bound, for messages."""
        return f"{self.estimator}({checks.describe(self.bound)})"

    def apart(
        self, closed: core.ClosedJaxpr | None, z: PyTree, log_q: Array, key: Key[Array, ""] | None
    ) -> None:
        """Refuse a log_joint, of which this is the jaxpr for one draw, or a q that couples members."""
        batch, rest = tuple(log_q.shape), (log_q, key)
        # Of q's density once for all draws; of log_joint for each of its traces.
        if not self.proven:
            density, of_draw = jaxprs.trace(lambda z: self.q.log_prob(z), z)
            if of_draw.shape != batch:
                raise refusals.densities_disagree(of_draw, log_q)
            self.refuse("q.log_prob(z)", density, z, batch)
            self.proven = True
        if not self.declared:
            self.refuse("log_joint(z)", closed, z, batch, *rest)

    def refuse(
        self,
        what: str,
        closed: core.ClosedJaxpr | None,
        z: PyTree,
        batch: tuple[int, ...],
        *rest: Any,
    ) -> None:
        """Refuse a function of one draw z, and of the rest, whose first value [*batch] couples members.

        Args:
            what: the function, in messages.
            closed: its jaxpr; None where there is none, which is refused.
            z: one draw.
            batch: the shape of the batch.
            rest: further arguments; those of shape [*batch] have members too.
        """
        # Axes of one member have nothing to mix; a named axis hides how many it has.
        several = tuple(axis for axis, n in enumerate(batch) if n > 1)
        how = None if closed is None else jaxprs.collective(closed, len(jax.tree.leaves(z)))
        if how is not None:
            raise member_refusals.members_of_others(self.who, self.cure(), what, how)
        if not several or id(closed) in self.shown:
            return
        # A function that reads numbers in Python shows nothing, which proves nothing.
        if closed is None:
            raise member_refusals.members_unseen(self.who, what)
        # Every leaf must have the batch in front, where its members are followed from.
        named = checks.named_leaves(z)
        for name, leaf in named:
            if leaf.shape[: len(batch)] != batch:
                raise member_refusals.leaf_without_batch(name, leaf.shape, batch)
        # The rest of the arguments: log q has members, a key none.
        others = [several if leaf.shape == batch else None for leaf in jax.tree.leaves(rest)]

        def place(follow: list[bool]) -> jaxprs.Axes:
            """Return where the members of the leaves that are followed are, in the value."""
            return jaxprs.axes(closed, [several if f else None for f in follow] + others)[0]

        # None: the value does not depend on the leaf at all.
        def mixed(found: jaxprs.Axes) -> bool:
            return found is not None and found != several

        # All leaves at once, which is enough where none is mixed.
        together = place([True] * len(named))
        if mixed(together):
            # One leaf at a time, to name the one that is mixed.
            alone = [place([i == at for i in range(len(named))]) for at in range(len(named))]
            at = next((i for i, found in enumerate(alone) if mixed(found)), len(named) - 1)
            found = alone[at] if mixed(alone[at]) else together
            leaf = named[at][0]
            raise member_refusals.members_coupled(
                self.who, self.cure(), what, leaf, several, found or ()
            )
        self.shown[id(closed)] = closed

    def bound_apart(self, bound: Bound, log_w: Array) -> None:
        """Refuse a bound of one's own whose value for one member reads the log-weights of others."""
        several = tuple(axis for axis, n in enumerate(log_w.shape[1:]) if n > 1)
        # vijax's own bounds reduce the axis of draws alone; a partial of one is one.
        of: Callable[..., Any] = bound
        while isinstance(of, partial):
            of = of.func
        if several and not _is_ours(of):
            closed = jaxprs.trace(bound, jax.ShapeDtypeStruct(log_w.shape, log_w.dtype))[0]
            # Behind the axis of draws, which a bound sums over, [k, *batch] -> [*batch].
            inputs = [tuple(axis + 1 for axis in several)]
            if jaxprs.axes(closed, inputs)[0] not in (several, None):
                raise member_refusals.bound_couples(self.who, bound)


def _is_ours(bound: Callable[..., object]) -> bool:
    """Whether a bound is vijax's own: what functools.wraps made of one only says so."""
    name, place = getattr(bound, "__name__", ""), str(getattr(bound, "__module__", ""))
    return place.startswith("vijax.") and getattr(sys.modules.get(place), name, None) is bound
