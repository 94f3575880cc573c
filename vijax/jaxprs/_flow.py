"""How sources reach one variable: with their derivative, or through a jump that loses it."""

from collections.abc import Hashable, Iterable
from typing import NamedTuple


class Shift(NamedTuple):
    """A part of a variable whose derivative was stopped, as it stands in another.

    x - stop_gradient(max(x)) has it with coefficient -1 and exp of that as a factor, so that both
    softmax and logsumexp, where it cancels, keep the whole derivative.

    Fields:
        part: what was stopped, and where.
        source: what it depends on.
        factor: whether it stands there as a factor exp(coefficient * part), not as a term.
        coefficient: of the part.
        axes: of the variable, along which the part differs; None where they are not known.
    """

    part: Hashable
    source: str
    factor: bool = False
    coefficient: int = 1
    axes: tuple[int, ...] | None = None


class Flow(NamedTuple):
    """How the sources reach one variable.

    Fields:
        smooth: sources that arrive with their derivative.
        broken: sources that arrive through a jump, each with the primitive that jumps.
        opaque: mutable references and host callbacks on the way, which cannot be analyzed.
        shifts: stopped parts, whose derivative is missing unless they cancel.
    """

    smooth: frozenset[str] = frozenset()
    broken: frozenset[tuple[str, str]] = frozenset()
    opaque: frozenset[str] = frozenset()
    shifts: frozenset[Shift] = frozenset()

    def sources(self) -> set[str]:
        """Return all that reaches this variable, by either way."""
        stopped = {shift.source for shift in self.shifts}
        return set(self.smooth) | {source for source, _ in self.broken} | stopped

    def broken_by(self, source: str) -> str | None:
        """Return the primitive through which `source` jumps, or may jump, on its way here."""
        # What comes through an opaque primitive may have jumped there, unseen.
        if self.opaque and source in self.smooth:
            return min(self.opaque)
        jumps = {how for s, how in self.broken if s == source}
        if any(shift.source == source for shift in self.shifts):
            jumps.add("stop_gradient")
        # Of several, a jump of the value says more than a stopped derivative.
        return min(jumps - {"stop_gradient"} or jumps, default=None)


# Of what no source reaches; compared by identity.
NOTHING = Flow()


def merge(flows: Iterable[Flow]) -> Flow:
    """Return the flow of a variable that depends differentiably on others.

    Example:
        >>> a, b = Flow(smooth=frozenset({"a"})), Flow(broken=frozenset({("b", "floor")}))
        >>> both = merge([a, b])
        >>> both.broken_by("a"), both.broken_by("b")
        (None, 'floor')
    """
    some = [f for f in flows if f is not NOTHING and any(f)]
    if not some:
        return NOTHING
    if all(f is some[0] for f in some):
        return some[0]
    # Field by field, the union of what each has.
    return Flow(*(frozenset().union(*parts) for parts in zip(*some, strict=True)))


def broken(flow: Flow, how: str) -> Flow:
    """Return the flow of what is piecewise constant in a variable."""
    if not flow.smooth and not flow.shifts:
        return flow
    # Its derivative is zero: whatever arrived with one, or with part of one, has lost it.
    lost = {*flow.smooth, *(shift.source for shift in flow.shifts)}
    return Flow(frozenset(), flow.broken | {(s, how) for s in lost}, flow.opaque)


def stopped(flow: Flow, part: Hashable) -> Flow:
    """Return the flow of a variable whose derivative was stopped; noise has none that counts.

    Jumps on the way to it do not matter either: it is missing as a whole, unless it cancels.
    """
    sources = flow.sources() - {"noise"}
    noise = frozenset(b for b in flow.broken if b[0] == "noise")
    shifts = frozenset(Shift(part, source) for source in sources)
    return Flow(flow.smooth & {"noise"}, noise, flow.opaque, shifts)


def placed(shift: Shift, shape: tuple[int, ...]) -> Shift:
    """State the axes along which a stopped part differs: at first all of its own."""
    if shift.axes is not None:
        return shift
    return shift._replace(axes=tuple(a for a, n in enumerate(shape) if n > 1))


def never_cancels(flow: Flow) -> Flow:
    """Return a flow whose stopped parts are lost: those of another turn of a loop are others."""
    lost = {(shift.source, "stop_gradient") for shift in flow.shifts}
    return flow._replace(broken=flow.broken | lost, shifts=frozenset()) if lost else flow


def anew(flow: Flow, part: Hashable) -> Flow:
    """Return a flow whose stopped parts do not cancel with those of its operands."""
    if not flow.shifts:
        return flow
    return flow._replace(shifts=frozenset(Shift(part, s.source) for s in flow.shifts))


def combine(
    flow: Flow, operands: Iterable[tuple[Flow, int]], *, factor: bool, part: Hashable
) -> Flow:
    """Return a merged flow where stopped parts add up, each operand with its sign.

    Args:
        flow: of the operands, merged.
        operands: (flow, 1 or -1): those of a sum, or with `factor` the logarithms of a product's.
        factor: whether stopped parts must be factors; otherwise they must be terms.
        part: names what cannot be added up.
    """
    if not flow.shifts:
        return flow
    # x + exp(c): a term beside a factor, or the other way around, does not add up.
    if any(shift.factor != factor for shift in flow.shifts):
        return anew(flow, part)
    # Σ signᵢ coefficientᵢ for each stopped part; those that add up to 0 have canceled.
    total: dict[Shift, int] = {}
    for operand, sign in operands:
        for shift in operand.shifts:
            at = shift._replace(coefficient=1)
            total[at] = total.get(at, 0) + sign * shift.coefficient
    left = (at._replace(coefficient=n) for at, n in total.items() if n)
    return flow._replace(shifts=frozenset(left))


def alike(flow: Flow, operands: Iterable[Flow], part: Hashable) -> Flow:
    """Return a merged flow whose stopped parts stay where all operands have the same."""
    same = len({operand.shifts for operand in operands}) == 1
    return flow if same else anew(flow, part)
