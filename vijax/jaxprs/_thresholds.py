"""Whether the cases of a choice agree where one number passes a threshold, tried on other numbers."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jax.extend import core

from vijax.jaxprs._equations import inner_jaxpr, opened
from vijax.jaxprs._scalars import Run, Unknown, Value

# How cases relate where one number passes a threshold; what they are given by may not be seen.
SMOOTH, BENT, APART, UNKNOWN = "smooth", "bent", "apart", "unknown"
# Cases agree where they differ by the rounding of float32, in units of how far the values reach; of
# small values, and of slopes, by what stable implementations give up of the relative error, e⁻⁹ in
# value and 2e⁻⁹ in slope.
_ROUNDING = 1e-6
_RELATIVE = 5e-4
# Rounding of double precision.
_ZERO = 1e-12
# Share of the values' reach that a millionth of the argument may make: more is a jump in all but name.
_STEEP = 0.05
# Parts of the argument's unit within which slopes are told from jumps.
_WITHIN = (1.0, 1e-2, 1e-4, 1e-6)
# Sizes of the numbers that stand for whatever else is in the cases: of either sign, then positive.
_PROBES = tuple(size for size in (1.0, 1.0, 10.0, 0.1, 100.0, 0.01, 1000.0, 0.001) for _ in "±+")
# Besides, numbers near those that are written in the cases, of so many.
_WRITTEN = 3


def meet(
    eqns: Sequence[core.JaxprEqn],
    x: core.Var,
    others: Sequence[core.Var],
    positive: Sequence[bool],
    result: Any,
    *,
    unit: bool = False,
) -> str:
    """Return whether the values of all cases meet where x passes a threshold, and their slopes.

    Args:
        eqns: from x and other numbers to the choice.
        x: the argument.
        others: the other numbers, of which nothing is known.
        positive: which of those are never negative.
        result: the variable that the choice makes.
        unit: whether to try other numbers of size 1 alone.

    Returns:
        SMOOTH, BENT, APART or UNKNOWN.
    """
    smooth = True
    proved: list[int] = []  # of each comparison, by how many probes
    probes = list(_probes(eqns, len(others), unit=unit))
    for numbers, never_negative in probes:
        given = {
            v: Value(abs(n) if always or never_negative else n, other=True)
            for v, n, always in zip(others, numbers, positive, strict=True)
        }

        def evaluate(at: float, given: Mapping[Any, Value] = given) -> tuple[float, Run]:
            run = Run()
            argument = Value(np.float64(at), varies=True, back=lambda y: [y])
            known = run.steps(eqns, {**given, x: argument})
            return float(known[result].number), run

        with np.errstate(all="ignore"):
            try:
                comparisons = evaluate(0.5)[1].places
                told = [False] * len(comparisons)
                for i, c in ((i, c) for i, places in enumerate(comparisons) for c in places):
                    values, room = _values(evaluate, c)
                    # Outside of the domain of a logarithm, say, a probe says nothing.
                    if not np.any(np.isfinite(values)):
                        continue
                    if not np.all(np.isfinite(values)) or np.ptp(values) > room:
                        return APART
                    told[i] = True
                    smooth = smooth and _slopes_meet(evaluate, c, values)
            except (Unknown, ArithmeticError, ValueError, TypeError):
                return UNKNOWN
        proved = [a + b for a, b in zip(proved or [0] * len(told), told, strict=True)]
    # A comparison whose place is not known, or that few probes reached, proves nothing, and the
    # others nothing for it.
    if not proved or 2 * min(proved) < len(probes):
        return UNKNOWN
    return SMOOTH if smooth else BENT


def _probes(
    eqns: Sequence[core.JaxprEqn], number: int, *, unit: bool
) -> Iterator[tuple[Any, bool]]:
    """Yield numbers for what else is in the cases, and whether to take their sizes alone."""
    if not number:
        yield (), False
        return
    random = np.random.default_rng(0)
    if unit:
        for i in range(4):
            numbers = random.uniform(0.7, 1.4, number)
            yield numbers * random.choice([-1, 1], number), bool(i % 2)
        return
    for i, size in enumerate(_PROBES):
        yield size * random.normal(size=number), bool(i % 2)
    # A step may stand where numbers are near those that are written: t near 2000 in tanh(t - 2000).
    for size in sorted(set(_written(eqns)), reverse=True)[:_WRITTEN]:
        yield size + random.normal(size=number), False
        yield -size + random.normal(size=number), False


def _written(eqns: Sequence[core.JaxprEqn]) -> Iterator[float]:
    """Yield the sizes of large numbers that are written in equations."""
    for eqn in eqns:
        inner = inner_jaxpr(eqn)
        if inner is not None:
            yield from _written(opened(inner).eqns)
        for v in eqn.invars:
            if (
                isinstance(v, core.Literal)
                and not np.ndim(v.val)
                and np.asarray(v.val).dtype.kind == "f"
            ):
                size = abs(float(v.val))
                if 3 < size < 1e6:
                    yield size


def _values(evaluate: Any, c: float) -> tuple[tuple[float, ...], float]:
    """Return the values below, at and above a threshold, and by how much they may differ."""
    value, there = evaluate(c)
    scale = abs(c) or 1.0
    if scale > 1e9:  # a unit of the argument is near the rounding there
        return (np.nan,), 0.0
    # As near as the comparison tells both sides apart, for rounding may have moved the place.
    for away in (0.0, 1e-15, 1e-13, 1e-11, 1e-9):
        left, right = (
            np.nextafter(c, side * np.inf) if not away else c + side * away * scale
            for side in (-1, 1)
        )
        (below, one), (above, other) = evaluate(left), evaluate(right)
        if not (one.outcomes == there.outcomes == other.outcomes):
            # A threshold far from 0 is one of a number in another unit.
            unit = min(scale, 1.0)
            values, rounding = (below, value, above), 10 * away * scale
            rounding += _ZERO * (1 + max(map(abs, values)))
            # How far the values go on either side, whatever number is added to both: within a unit,
            # and on the least slope of any smaller part of it, beside which a jump shows.
            moved = [_moved(evaluate, c, part * unit, below, above) for part in _WITHIN]
            slopes = [m / part for m, part in zip(moved, _WITHIN, strict=True) if m >= 0]
            slope = min(slopes, default=0.0)
            room = min(_ROUNDING * max(1.0, slope), _RELATIVE * slope) + rounding
            reach = max(float(np.ptp(values)), moved[0])
            steep = moved[-1] > _STEEP * reach + rounding
            return values, -1.0 if steep else room
    raise Unknown


def _moved(evaluate: Any, c: float, by: float, below: float, above: float) -> float:
    """Return how far the value goes from one side of a threshold on, on the side where it is more."""
    steps = [abs(evaluate(c - by)[0] - below), abs(evaluate(c + by)[0] - above)]
    return max((s for s in steps if np.isfinite(s)), default=np.nan)


def _slopes_meet(evaluate: Any, c: float, values: tuple[float, ...]) -> bool:
    """Whether the slopes on both sides of a threshold agree, each by three points."""
    h = 1e-4 * (abs(c) or 1.0)
    below, above = (
        side
        * (-3 * start + 4 * evaluate(c + side * h)[0] - evaluate(c + 2 * side * h)[0])
        / (2 * h)
        for side, start in ((-1, values[0]), (1, values[2]))
    )
    return bool(abs(above - below) <= _RELATIVE * max(abs(below), abs(above)) + _ZERO)
