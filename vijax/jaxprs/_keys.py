"""How a random key was made of a sampler's own, and whether two are shown to be different."""

import math
from typing import Any, Protocol, runtime_checkable

import jax

# In the root of a key: a number that is not known while tracing.
SOME = "some number"
# The root of the key that a sampler is given.
SEED = "key"
# The root of a key that is not followed: it may be any, a constant one too.
ANY = "any key"
# The root of a key that was split off one whose implementation is no hash.
UNHASHED = "unhashed"
# The root of a key that each turn of a loop replaces by one made of it.
CARRIED = "carried"


@runtime_checkable
class Key(Protocol):
    """A key, as `Noise` has it."""

    @property
    def root(self) -> Any:
        """Return what made it: (operation, the key, and the numbers or the shape)."""
        ...

    @property
    def part(self) -> tuple[tuple[int, int], ...] | None:
        """Return where it lies in what was made."""
        ...


# One step from a key to one made of it: children start, ..., stop - 1, and of which numbering they
# are; or CARRIED, or SOME.
_Step = tuple[int, int, object] | str
# In which way `fold_in` and `split` number children, where they do it alike.
_ALIKE = "alike"
# Where a part of an array lies: (start, stop) for each axis.
Part = tuple[tuple[int, int], ...] | None


def _path(key: Key) -> list[_Step] | None:
    """Return how a key was made of the sampler's: which child at each step; None of any other.

    The child that `jax.random.fold_in` makes of a number is that of `split` at this place, if
    JAX's setting `jax_threefry_partitionable` is on; else children of one split alone, or of
    `fold_in` alone, are told apart by their numbers.
    """
    root = key.root
    if root == SEED:
        return []
    if not isinstance(root, tuple):
        return None
    made_of = _path(root[1])
    if made_of is None:
        return None
    operation, _, *how = root
    if operation == CARRIED:
        return [*made_of, CARRIED]
    if operation == "random_fold_in":
        number = how[0]
        # fold_in takes its number as 32 bits, so -1 is 2³² - 1.
        if not isinstance(number, float) or not number.is_integer():
            return [*made_of, SOME]
        child = int(number) % 2**32
        return [*made_of, (child, child + 1, _ALIKE if _is_partitionable() else operation)]
    # What is no hash may lead back to a key, after any number of steps.
    if operation == UNHASHED:
        return [*made_of, CARRIED]
    first, stop = _children(how[0], key.part)
    return [*made_of, (first, stop, _ALIKE if _is_partitionable() else math.prod(how[0]))]


def _is_partitionable() -> bool:
    """Whether children of threefry keys are numbered as JAX does by default."""
    return bool(jax.threefry_partitionable.value)


def _children(shape: tuple[int, ...], part: Part) -> tuple[int, int]:
    """Return from which to which child of `split` a part lies."""
    # Children are numbered in row-major order: from the first element of the part to its last. A
    # part may have axes in front, which keys that were split side by side gave it.
    first = last = 0
    for n, (start, stop) in zip(
        shape, part[len(part) - len(shape) :] if part else [(0, n) for n in shape], strict=True
    ):
        first, last = first * n + start, last * n + stop - 1
    return first, last + 1


def keys_differ(key: Key, other: Key) -> bool:
    """Whether two keys are shown to be different.

    Children of a key are, and what is made of different keys, and keys of another depth. So one
    step that differs will do, counted from the first key, or from the last, which is where two keys
    of one depth meet again after a loop.
    """
    a, b = _path(key), _path(other)
    if a is None or b is None:
        return False
    # Of what is no hash, children of one split alone are told apart.
    if key.root == other.root and key.root[0] == UNHASHED:
        (first, stop), (start, end) = (_children(key.root[2], k.part) for k in (key, other))
        return stop <= start or end <= first
    if _meet_apart(a, b) or _meet_apart(a[::-1], b[::-1]):
        return True
    # Paths of different lengths never end at one key, unless a loop makes one of unknown length.
    return CARRIED not in (*a, *b) and len(a) != len(b)


def _meet_apart(a: list[_Step], b: list[_Step]) -> bool:
    """Whether two paths differ at a step that no step of unknown count precedes."""
    for one, other in zip(a, b, strict=False):
        if CARRIED in (one, other):
            return False
        # Ranges of children without any in common, numbered in one way.
        if isinstance(one, tuple) and isinstance(other, tuple) and one[2] == other[2]:
            if one[1] <= other[0] or other[1] <= one[0]:
                return True
    return False


def descends(key: Key, carried: Key) -> bool:
    """Whether a key is made of another, by a step at least."""
    if not isinstance(key.root, tuple) or key.root[0] == CARRIED:
        return False
    of: Key = key.root[1]
    return of.root == carried.root or descends(of, carried)


def is_followed(key: Key) -> bool:
    """Whether a key is shown to be made of the sampler's."""
    return _path(key) is not None
