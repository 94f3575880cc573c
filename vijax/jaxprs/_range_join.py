"""Ranges of what may be any of several values: of a choice, of parts put together, of a loop."""

from collections.abc import Callable, Sequence
from typing import Any

from vijax.jaxprs._keys import ANY, CARRIED, descends
from vijax.jaxprs._noise import ALWAYS, NOW, Noise, bare, entered, mapped, share
from vijax.jaxprs._range import FIXED, INF, MOVES, End, Range, not_known


def join(values: Sequence[Range], name: str) -> Range:
    """Return the range of what may be any of several values."""
    keys = [v.key for v in values if v.key is not None]
    if keys and name == "scan":
        return Range(key=_in_turns(keys))
    # A number to which each turn adds 1 counts them.
    first, last = values[0].counts, values[-1].counts
    counting = name == "scan" and first is not None and last == (first[0], first[1] + 1)
    counts = first if counting else None
    values = [v._replace(counts=None, distinct=False) for v in values]
    if all(v == values[0] for v in values):
        return values[0]._replace(counts=counts)
    if keys:
        return Range(key=Noise(ANY, axes=None))
    # The union of the values, each of which may be the one.
    noise = frozenset().union(*(v.noise for v in values))
    nonzero = all(v.nonzero for v in values)
    if any(v.unknown for v in values):
        return not_known(values, "")
    ends = [(v.low, v.high) for v in values]
    # An atom that moves, or a jump of the density, is not hidden by a range around it.
    if any(MOVES in end for end in ends):
        return Range(noise, MOVES, MOVES, nonzero=nonzero)
    # Values that end at different places make the density jump, and constants are atoms.
    seams = any(v.seams or (not v.noise and noise) for v in values)
    seams = seams or (bool(noise) and len(set(ends)) > 1)
    lows, highs = {low for low, _ in ends}, {high for _, high in ends}
    low = lows.pop() if len(lows) == 1 else _extreme(lows, min)
    high = highs.pop() if len(highs) == 1 else _extreme(highs, max)
    # Turn after turn a known end would grow for ever; what is given is one of the values, not all.
    if name in _LOOPS or not noise:
        low, high = (
            e if len({x[i] for x in ends}) == 1 else FIXED for i, e in enumerate((low, high))
        )
    # What all have in common: a sign, each draw spanning the line, loops that leave them the same.
    # Of different draws the chosen one alone does.
    sign = values[0].sign if len({v.sign for v in values}) == 1 else 0
    real = not seams and all(v.real for v in values if v.noise) and bool(noise)
    real = real and (name in _LOOPS or all(v.noise == noise for v in values))
    loops = 0 if name in _LOOPS else same_turns(values)
    result = Range(noise, low, high, sign, real=real, seams=seams, loops=loops, nonzero=nonzero)
    return result._replace(counts=counts)


# Names under which the interpreter joins a carry with what a turn makes of it.
_LOOPS = ("scan", "while")


def same_turns(values: Sequence[Range]) -> int:
    """Return how many of the loops around have the same given values in every turn."""
    return min((ALWAYS if isinstance(v.low, float) else v.loops for v in values), default=ALWAYS)


def _in_turns(keys: Sequence[Noise]) -> Noise:
    """Return the key that a loop carries, of what it is and what a turn makes of it."""
    # The first is what the loop began with, or has carried so far; the last what this turn made.
    carried, made = keys[0], keys[-1]
    unchanged = (*bare(carried), carried.axes) == (*bare(made), made.axes) and len(keys) > 1
    if carried.root[0] != CARRIED:
        return carried if unchanged else Noise(ANY, axes=None)
    if unchanged:  # the same in every turn
        first = carried.root[1]
        return Noise(first.root, first.part, carried.axes, carried.repeated, loops=1)
    return carried if descends(made, carried) else Noise(ANY, axes=None)


def first_of_a_loop(x: Range) -> Range:
    """Return what a loop begins with: numbers and keys that each turn may replace."""
    if x.key is not None:
        root = (CARRIED, bare(x.key))
        # For loops further out it is as what it was made of.
        outer = (*(False,) * x.key.loops, x.key.fresh, *x.key.outer)
        key = x.key._replace(root=root, part=None, loops=0, fresh=True, turn=NOW, outer=outer)
        return x._replace(key=key)
    result = x._replace(
        noise=mapped(x.noise, entered), loops=0, distinct=False, counts=None, value=None
    )
    if x.noise or not isinstance(x.low, float):
        return result
    # A number may be the loop's counter, from there on.
    return result._replace(low=FIXED, high=FIXED, counts=(x.low, 0.0))


def _extreme(ends: set[End], which: Callable[..., Any]) -> End:
    """Return the outermost of several ends where all are known."""
    if all(isinstance(end, float) for end in ends):
        return float(which(ends))
    infinite = which(-INF, INF)
    return infinite if infinite in ends else FIXED


def choose(which: Range, cases: Sequence[Range], name: str) -> Range:
    """Return what is chosen among cases, by draws or by what is given."""
    if which.unknown or any(share(which.noise, c.noise) for c in cases):
        return not_known([which, *cases], "its draws are chosen by a comparison with themselves")
    joined = join(cases, name)
    if joined.key is not None or not which.noise:
        return joined
    # The draw tells which case it is, so that the whole spans what the cases do together.
    # Where it chooses among constants, the values are atoms.
    seams = joined.seams or not joined.noise
    return joined._replace(noise=joined.noise | which.noise, real=False, seams=seams)
