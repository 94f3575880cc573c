"""How sources reach one variable: with their derivative, or through a jump that loses it."""

from collections.abc import Iterable
from typing import NamedTuple


class Flow(NamedTuple):
    """How the sources reach one variable.

    Fields:
        smooth: sources that arrive with their derivative.
        broken: sources that arrive through a jump, each with the primitive that jumps.
        opaque: mutable references and host callbacks on the way, which cannot be analyzed.
        cuts: whether a density was set to zero by a comparison of the draw with a parameter: "log"
            where it is a log-density (-inf), "zero" where it is a density still to be logged.
        constant: the value, where it is 0 or -inf and known while tracing.
    """

    smooth: frozenset[str] = frozenset()
    broken: frozenset[tuple[str, str]] = frozenset()
    opaque: frozenset[str] = frozenset()
    cuts: frozenset[str] = frozenset()
    constant: float | None = None

    def sources(self) -> set[str]:
        """Return all that reaches this variable, by either way."""
        return set(self.smooth) | {source for source, _ in self.broken}

    def broken_by(self, source: str) -> str | None:
        """Return the primitive through which `source` jumps, or may jump unseen, on its way here.

        Stopping is a break only where nothing else carries the derivative: softmax stops its own
        harmless shift.
        """
        if self.opaque and source in self.smooth:
            return min(self.opaque)
        jumps = {how for s, how in self.broken if s == source}
        if source in self.smooth:
            jumps.discard("stop_gradient")
        return min(jumps - {"stop_gradient"} or jumps, default=None)


NOTHING = Flow()


def merge(flows: Iterable[Flow]) -> Flow:
    """Return the flow of a variable that depends differentiably on others."""
    some = [f for f in flows if f is not NOTHING and (f.smooth or f.broken or f.opaque or f.cuts)]
    if not some:
        return NOTHING
    first = some[0]
    if all(f is first for f in some):
        # A zero survives products, and little else.
        plain = first.constant is None and "zero" not in first.cuts
        return first if plain else first._replace(cuts=first.cuts - {"zero"}, constant=None)
    return Flow(
        frozenset().union(*(f.smooth for f in some)),
        frozenset().union(*(f.broken for f in some)),
        frozenset().union(*(f.opaque for f in some)),
        frozenset().union(*(f.cuts for f in some)) - {"zero"},
    )
