"""Ranges of what may be any of several values: of a choice, of parts put together, of a loop's turns."""

from collections.abc import Callable, Sequence
from typing import Any

from vijax.jaxprs._noise import ALWAYS, JOINED, Noise, bare, entered, mapped, share
from vijax.jaxprs._range import FIXED, INF, MOVES, End, Range, not_known


def join(values: Sequence[Range], name: str) -> Range:
    """Return the range of what may be any of several values."""
    first = values[0]
    if all(v == first for v in values):
        return first
    keys = [v.key for v in values if v.key is not None]
    if keys:
        return Range(key=_joined(keys, name))
    noise = frozenset().union(*(v.noise for v in values))
    if any(v.unknown for v in values):
        return not_known(values, "")
    ends = [(v.low, v.high) for v in values]
    # An atom that moves, or a jump of the density, is not hidden by a range around it.
    if any(MOVES in end for end in ends):
        return Range(noise, MOVES, MOVES)
    seams = bool(noise) and (len(set(ends)) > 1 or any(v.seams or not v.noise for v in values))
    lows, highs = {low for low, _ in ends}, {high for _, high in ends}
    low = lows.pop() if len(lows) == 1 else _extreme(lows, min)
    high = highs.pop() if len(highs) == 1 else _extreme(highs, max)
    if name in _LOOPS:  # turn after turn a known end would grow for ever
        low, high = (
            e if len({x[i] for x in ends}) == 1 else FIXED for i, e in enumerate((low, high))
        )
    sign = first.sign if len({v.sign for v in values}) == 1 else 0
    real = not seams and all(v.real for v in values if v.noise) and bool(noise)
    loops = 0 if name in _LOOPS else same_turns(values)
    return Range(noise, low, high, sign, real=real, seams=seams, loops=loops)


_LOOPS = ("scan", "while")


def same_turns(values: Sequence[Range]) -> int:
    """Return how many of the loops around have the same given values in every turn."""
    return min((ALWAYS if isinstance(v.low, float) else v.loops for v in values), default=ALWAYS)


def _joined(keys: Sequence[Noise], name: str) -> Noise:
    """Return a key that is any of several; of a loop, any of its turns."""
    known = [k for k in keys if isinstance(k.root, tuple) and k.root[:2] == (JOINED, name)]
    if known:
        return known[0]._replace(loops=max(k.loops for k in known))
    loops = 0 if name in _LOOPS else min(key.loops for key in keys)
    rank = None if any(k.axes is None for k in keys) else len(keys[0].axes or ())
    axes = None if rank is None else (None,) * rank
    repeated = any(key.repeated for key in keys)
    return Noise((JOINED, name, *map(bare, keys)), None, axes, repeated, loops)


def first_of_a_loop(x: Range) -> Range:
    """Return what a loop begins with: numbers change from turn to turn, and keys that a turn makes anew."""
    if x.key is not None:
        return x._replace(key=_joined([x.key], "scan"))
    return x._replace(noise=mapped(x.noise, entered), loops=0, distinct=False)


def _extreme(ends: set[End], which: Callable[..., Any]) -> End:
    """Return the outermost of several ends where all are known."""
    if all(isinstance(end, float) for end in ends):
        return float(which(ends))
    infinite = which(-INF, INF)
    return infinite if infinite in ends else FIXED


def choose(which: Range, cases: Sequence[Range], name: str) -> Range:
    if which.unknown or any(share(which.noise, c.noise) for c in cases):
        return not_known([which, *cases], "its draws are chosen by a comparison with themselves")
    joined = join(cases, name)
    if joined.key is not None or not which.noise:
        return joined
    # The draw tells which case it is, so that the whole spans what the cases do together.
    # Where it chooses among constants, the values are atoms.
    seams = joined.seams or not joined.noise
    return joined._replace(noise=joined.noise | which.noise, real=False, seams=seams)
