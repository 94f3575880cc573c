"""Which draws values depend on, and whether they are the same: what a range is independent of."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Drawn(Protocol):
    """A value that depends on draws: see `Range`."""

    @property
    def noise(self) -> frozenset[Any]:
        """Return the draws."""
        ...

    @property
    def real(self) -> bool:
        """Return whether each of them, alone, spans the real line."""
        ...


def _touch(a: Any, b: Any) -> bool:
    """Whether two draws, or two parts ("part", whole, starts, stops) of draws, have elements in common."""
    part_a, part_b = _is_part(a), _is_part(b)
    if part_a and part_b and a[1] == b[1]:
        return all(i < m and j < n for i, n, j, m in zip(a[2], a[3], b[2], b[3], strict=True))
    if a == b:
        return True
    if part_a:
        return _touch(a[1], b)
    return part_b and _touch(a, b[1])


def _is_part(draw: Any) -> bool:
    return isinstance(draw, tuple) and draw[:1] == ("part",)


def share(a: frozenset[Any], b: frozenset[Any]) -> bool:
    """Whether two sets of draws have any in common."""
    return any(_touch(i, j) for i in a for j in b)


def within(a: frozenset[Any], b: frozenset[Any]) -> bool:
    """Whether each of two sets has no draw that the other does not have."""
    return all(share(frozenset({i}), b) for i in a) and all(share(frozenset({i}), a) for i in b)


def own_draws(values: Sequence[Drawn]) -> bool:
    """Whether each of several values has a draw of its own, or all span the line by themselves."""
    noisy = sorted((v for v in values if v.noise), key=lambda v: len(v.noise))
    seen: set[Any] = set()
    alone = True
    for value in noisy:
        fresh = [i for i in value.noise if not any(_touch(i, j) for j in seen)]
        if not fresh:
            return False
        alone = alone and len(fresh) == len(value.noise)
        seen |= value.noise
    return alone or all(v.real for v in noisy)
