"""Members of the batch: log p and log q of each must read the latents of that member alone.

An estimator that multiplies each member's derivative by a number of its own, a signal or a gate,
has no other way to be unbiased. The jaxprs of log_joint and of q.log_prob must show it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
from jaxtyping import Array

from vijax import checks, jaxprs
from vijax.engine import _refusals as refusals
from vijax.types import Properties, PyTree


@dataclass(eq=False)
class Members:
    """Whether one call of an objective needs members apart, and for which functions it was seen.

    Fields:
        estimator: its name and that of the bound, for messages.
        q: a distribution.
        declared: whether the target declares itself.
        needed: whether the estimator asks for it.
        proven: whether q's members are known to be apart.
        cure: what to use instead, for messages.
        seen: the functions, and the shapes, that were found to keep members apart.
    """

    estimator: str
    q: Any
    declared: bool
    needed: bool = False
    proven: bool = False
    cure: str = refusals.UNCOUPLED
    seen: dict[Any, Any] = field(default_factory=dict)

    def apart(
        self, log_joint: Any, one: Callable[..., PyTree], z: PyTree, log_q: Array, key: Any
    ) -> None:
        """Refuse a log_joint, or a q, that couples members: one(z, log_q, key) is log p of a draw."""
        functions: dict[str, Callable[..., PyTree]] = {}
        if not self.proven:
            functions["q.log_prob(z)"] = lambda z, *_: self.q.log_prob(z)
        if not self.declared:
            functions["log_joint(z)"] = one
        if self.needed and functions:
            self.refuse(functions, z, tuple(log_q.shape), log_q, key, of=log_joint)
            self.proven = True

    def refuse(
        self,
        functions: dict[str, Callable[..., PyTree]],
        z: PyTree,
        batch: tuple[int, ...],
        *rest: Any,
        of: Any,
    ) -> None:
        """Refuse functions of one draw z, and of the rest, whose values [*batch] couple members.

        Args:
            functions: by the names that messages use.
            z: one draw.
            batch: the shape of the batch.
            rest: further arguments; those of shape [*batch] have members too.
            of: what the functions are made of, so that none is traced twice in the same shapes.
        """
        several = tuple(axis for axis, n in enumerate(batch) if n > 1)
        leaves, tree = jax.tree.flatten((z, rest))
        call = (id(of), tree, *map(jax.typeof, leaves))
        if not several or call in self.seen:
            return
        named = checks.named_leaves(z)
        for name, leaf in named:
            if leaf.shape[: len(batch)] != batch:
                raise refusals.leaf_without_batch(name, leaf.shape, batch)
        try:
            closed, _ = jaxprs.trace(lambda *z: [f(*z) for f in functions.values()], z, *rest)
        except jax.errors.ConcretizationTypeError as error:
            raise refusals.members_unseen(self.estimator, " or ".join(functions)) from error
        others = [several if leaf.shape == batch else None for leaf in leaves[len(named) :]]

        def places(follow: list[bool]) -> list[jaxprs.Axes]:
            return jaxprs.axes(closed, [several if f else None for f in follow] + others)

        def mixed(found: list[jaxprs.Axes]) -> list[tuple[str, Any]]:
            pairs = zip(functions, found, strict=True)
            return [(what, p) for what, p in pairs if p is not None and p != several]

        together = mixed(places([True] * len(named)))
        # One leaf at a time, to name the one that is mixed.
        for at, (leaf, _) in enumerate(named if together else ()):
            alone = mixed(places([i == at for i in range(len(named))]))
            what, place = alone[0] if alone else together[0]
            if alone or at == len(named) - 1:
                raise refusals.members_coupled(
                    self.estimator, self.cure, what, leaf, several, place
                )
        self.seen[call] = of


def watch(estimator: str, q: Any, target: Properties, weights: Array | None) -> Members:
    """Return what sees to it that members are apart, which draws weighed by member need always.

    Such draws are of one stratum for all members at a time.
    """
    members = Members(estimator, q, target.independent_members)
    members.proven = bool(getattr(q, "independent_members", False))
    if weights is not None and weights.ndim > 1:
        members.needed, members.cure = True, "Use draws.iid"
    return members
