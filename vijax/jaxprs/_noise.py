"""Which draws values depend on, and whether they may be the same: what a range is independent of.

Two draws are told apart by their keys, by the parts of one array that they are, or by the turns of
a loop. Whatever is not told apart so counts as the same.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from vijax.jaxprs._keys import Part, keys_differ

# As many loops as there may be around a draw that is the same in every turn of all of them.
ALWAYS = 1_000
# In which turn of a loop a draw is made: in this one, in one before, or in one that is not known.
NOW, BEFORE, SOMETIME = "now", "before", "sometime"


class Noise(NamedTuple):
    """A draw, or a key that draws are made from; or a part of an array of them.

    Fields:
        root: what made it: (operation, the key, and the numbers or the shape that it was made of).
        part: where it lies, (start, stop) for each axis of the root's array; None for all of it.
        axes: for each axis of the array at hand the root's, or None where slices along it do not
            tell elements of the root apart; None in all where nothing is known.
        repeated: whether elements of the array at hand may be the same draw.
        loops: how many of the loops around it have the same draw in every turn, from within.
        fresh: whether the next loop, further out than those, is shown to have another each turn.
        turn: when it was made, for what is known of one turn alone.
        outer: `fresh` for the loops further out than that one, from within.
        dependent: whether elements of the array at hand depend on each other, as a Dirichlet's do.
        partial: whether it does not span the line alone, in a value that does by other draws.
    """

    root: Any
    part: Part = None
    axes: tuple[int | None, ...] | None = ()
    repeated: bool = False
    loops: int = 0
    fresh: bool = False
    turn: str = NOW
    outer: tuple[bool, ...] = ()
    dependent: bool = False
    partial: bool = False


Noises = frozenset[Noise]


@runtime_checkable
class Drawn(Protocol):
    """A value that depends on draws: see `Range`."""

    @property
    def noise(self) -> Noises:
        """Return the draws."""
        ...

    @property
    def real(self) -> bool:
        """Return whether each of them, alone, spans the real line."""
        ...


# --- whether two may be the same


def same(a: Noise, b: Noise) -> bool:
    """Whether two draws may have elements in common."""
    if a.root == b.root:
        # Two slices of one array are one stream only if they begin at the same place.
        apart = a.fresh and b.fresh and a.part == b.part and {a.turn, b.turn} == {NOW, BEFORE}
        return _overlap(a.part, b.part) and not apart
    # A stand-in for what a library declares, named by its equation, is a draw of its own.
    if isinstance(a.root, int) or isinstance(b.root, int):
        return False
    return not keys_differ(_key_of(a), _key_of(b))


def _overlap(a: Part, b: Part) -> bool:
    """Whether two parts of one array do: intervals along every axis must."""
    if a is None or b is None or len(a) != len(b):
        return True
    return all(i < n and j < m for (i, m), (j, n) in zip(a, b, strict=True))


def _key_of(noise: Noise) -> Noise:
    """Return the key of a draw: samplers of other names or shapes read the same bits of it."""
    root = noise.root
    return root[1] if isinstance(root, tuple) and root[0] == "draw" else noise


def share(a: Noises, b: Noises) -> bool:
    """Whether two sets of draws have any in common."""
    return any(same(i, j) for i in a for j in b)


def is_own(n: Noise) -> bool:
    """Whether each element of the array at hand has one of its own, that others do not limit."""
    return not (n.repeated or n.dependent or n.partial)


def has_own(a: Noises, b: Noises) -> bool:
    """Whether one of two sets has a draw that the other does not have, for each of the elements."""
    return any(
        is_own(n) and not share(frozenset({n}), others)
        for some, others in ((a, b), (b, a))
        for n in some
    )


def own_draws(values: Sequence[Drawn]) -> bool:
    """Whether each of several values has a draw of its own, or all span the line by themselves."""
    # In order of how many draws each reads, every value must bring one that none before it had.
    noisy = sorted((v for v in values if v.noise), key=lambda v: len(v.noise))
    observed: set[Noise] = set()
    alone = whole = True
    for value in noisy:
        fresh = [i for i in value.noise if not any(same(i, j) for j in observed)]
        if not fresh:
            return False
        # With nothing but fresh draws in each, the values are independent.
        alone = alone and len(fresh) == len(value.noise)
        whole = whole and value.real and not all(i.partial for i in fresh)
        observed |= value.noise
    return alone or whole


# --- the same draws at other places of an array


def repeat_all(noise: Noises) -> bool:
    """Whether there are draws, and all of them are repeated by the elements of the array."""
    return bool(noise) and all(n.repeated for n in noise)


def mapped(noise: Noises, change: Callable[[Noise], Noise]) -> Noises:
    return frozenset(map(change, noise))


def anywhere(noise: Noises, *, repeated: bool = False) -> Noises:
    """Return draws whose places in the array at hand are no longer known."""
    return mapped(noise, lambda n: n._replace(axes=None, repeated=n.repeated or repeated))


def part_of(noise: Noises, starts: Sequence[int], stops: Sequence[int]) -> Noises:
    """Return the draws of a slice."""

    def cut(n: Noise) -> Noise:
        if n.part is None or n.axes is None:
            return n
        # Starts and stops count along the array at hand, and parts along the root's axes.
        part = list(n.part)
        for axis, start, stop in zip(n.axes, starts, stops, strict=True):
            if axis is not None:
                first = part[axis][0]
                part[axis] = (first + start, first + stop)
        return n._replace(part=tuple(part))

    return mapped(noise, cut)


def moved(noise: Noises, come_from: Sequence[int | None], *, repeated: bool = False) -> Noises:
    """Return draws of an array each of whose axes comes from one of another array, or from none."""

    def move(n: Noise) -> Noise:
        axes = n.axes
        if axes is not None:
            axes = tuple(None if i is None else axes[i] for i in come_from)
        return n._replace(axes=axes, repeated=n.repeated or repeated)

    return mapped(noise, move)


def reshaped(noise: Noises, before: Sequence[int], after: Sequence[int]) -> Noises:
    """Return draws of an array of another shape: places stay known where only axes of 1 differ."""
    if [n for n in before if n != 1] != [n for n in after if n != 1]:
        return anywhere(noise)
    # The longer axes are the same ones, in their order.
    wide = iter([i for i, n in enumerate(before) if n != 1])
    return moved(noise, [None if n == 1 else next(wide) for n in after])


# --- turns of loops


def entered(n: Noise) -> Noise:
    """Return a draw that comes into a loop, whose turns all have the same."""
    return n._replace(loops=n.loops + 1)


def of_each_turn(n: Noise) -> Noise:
    """Return a draw of which each turn of a loop has another element, along the first axis."""
    # Where the first axis does not tell elements of the root apart, every turn has the same draws.
    first, *rest = n.axes or (None,)
    axes = tuple(rest) if n.axes else None
    if n.repeated or n.loops or first is None:
        return n._replace(axes=axes, loops=n.loops + 1)
    return n._replace(axes=axes, fresh=True, outer=(n.fresh, *n.outer))


def handed_on(n: Noise) -> Noise:
    """Return a draw as the next turn of a loop has it."""
    if n.loops:
        return n
    return n._replace(fresh=False) if n.turn == SOMETIME else n._replace(turn=BEFORE)


def left(n: Noise) -> Noise:
    """Return a draw as what follows a loop has it: of any turn."""
    if n.loops:
        return n._replace(loops=n.loops - 1, axes=None)
    return _of_any_turn(n)._replace(axes=None)


def _of_any_turn(n: Noise) -> Noise:
    """Return a draw of any turn of a loop, in the turn of the loop around that."""
    fresh, *outer = n.outer or (False,)
    return n._replace(fresh=fresh, outer=tuple(outer), turn=SOMETIME)


def stacked(n: Noise) -> Noise:
    """Return a draw of each turn of a loop, collected along a new first axis."""
    # What is not shown to be another in each turn may be one for all.
    if n.loops or not n.fresh or n.turn == BEFORE:
        return left(n)._replace(repeated=True)
    if n.part is None or n.axes is None or n.turn == SOMETIME:
        return left(n)
    # As one draw with the turns as its first axis.
    axes = (0, *(None if i is None else i + 1 for i in n.axes))
    part = ((0, _MANY), *n.part)
    return _of_any_turn(n)._replace(part=part, axes=axes)


def stacked_backward(n: Noise) -> Noise:
    """Return a draw of each turn of a loop from the last to the first, collected."""
    # Turn i lies at another place than in a loop that goes forward.
    return stacked(n)._replace(part=None, axes=None)


# Turns, at most: a loop's length is not known where its body is followed.
_MANY = 2**62


# --- what keys make


def made(root: Hashable, of: Noise, shape: Sequence[int], *, dependent: int = 0) -> Noise:
    """Return the keys, or the draws, that an operation makes of each of some keys.

    Args:
        root: of what is made.
        of: the keys, whose axes come first in `shape`.
        shape: of what is made.
        dependent: of how many of the last axes the elements depend on each other.
    """
    if of.axes is None:
        return of._replace(root=root, part=None)
    # Axes of the keys, where these differ; then new ones, each element a draw of its own; last
    # those along which the elements of one draw lie, as of a Dirichlet.
    more = len(shape) - len(of.axes) - dependent
    apart = [i is not None for i in of.axes] + [True] * more + [False] * dependent
    axes = tuple(at if known else None for at, known in enumerate(apart))
    return of._replace(root=root, part=tuple((0, n) for n in shape), axes=axes)


def bare(key: Noise) -> Noise:
    """Return a key as it stands in the root of what is made of it."""
    # With its axes: an array of keys and its transpose differ, and so does what they make.
    return Noise(key.root, key.part, key.axes)
