"""Whether what is chosen among cases by a comparison is continuous where the cases meet.

`jnp.where(x > 0, x, 0.1 * x)` chooses between two expressions by a comparison of a number with a
threshold. Where both agree at the threshold, at random values of the other numbers in them, the derivative
of the chosen case is that of the whole, as it is of `relu`.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from jax.extend import core

from vijax.jaxprs._equations import CALLS, Atom, function_name
from vijax.jaxprs._scalars import COMPARISONS, INVERTIBLE, Run, Unknown, Value

# Cases agree where they differ by the rounding of float32, in units of how far the values reach; of
# small values, and of slopes, by what stable implementations give up of the relative error, e⁻⁹ in
# value and 2e⁻⁹ in slope.
_ROUNDING = 1e-6
_RELATIVE = 5e-4
# Rounding of double precision.
_ZERO = 1e-12
# Share of the values' reach that a millionth of the argument may make: more is a jump in all but name.
_STEEP = 0.05
# Sizes of the numbers that stand for whatever else is in the cases: of either sign, then positive.
_PROBES = (1.0, 1.0, 1.0, 1.0, 10.0, 10.0, 30.0, 30.0)
# How other numbers may be tied to each other: so that none of the probes' numbers makes them vanish,
# as it would exp(w - 90).
_TIES = frozenset("add add_any sub mul neg convert_element_type broadcast_in_dim".split())
# What makes numbers that are never negative.
_POSITIVE = frozenset(("abs", "exp", "logistic", "sqrt", "square", "softplus"))
# Longer programs are no choice between formulas.
_LONGEST = 100


class Meeting(NamedTuple):
    """Cases that meet.

    Fields:
        inputs: the variables that the choice is a function of.
        smooth: whether their slopes meet too.
    """

    inputs: list[core.Var]
    smooth: bool


@lru_cache(maxsize=64)  # two questions ask one after the other
def meeting(jaxpr: core.Jaxpr, choice: core.JaxprEqn) -> Meeting | None:
    """Return what an equation that chooses among cases is a function of, where the cases meet.

    Args:
        jaxpr: that the equation is part of.
        choice: the equation.

    Returns:
        None where the cases do not meet, or cannot be evaluated, and of any other equation.

    Example:
        >>> def ask(f):
        ...     jaxpr = jax.make_jaxpr(f)(0.0, 0.0).jaxpr
        ...     return meeting(jaxpr, jaxpr.eqns[-1])
        >>> ask(lambda x, a: jnp.where(x > 0, x, a * x)).smooth
        False
        >>> ask(lambda x, a: jnp.where(x > 0, x, a)) is None
        True
    """
    if not _chooses(choice):
        return None
    # Equations up to the choice, and which of them makes each variable.
    at = next(i for i, eqn in enumerate(jaxpr.eqns) if eqn is choice)
    before = jaxpr.eqns[: at + 1]
    made = {out: eqn for eqn in before for out in eqn.outvars}
    for x in _compared(choice, made):
        for inputs, eqns in _programs(x, choice, before, made):
            others = [v for v in inputs if v is not x]
            if len(eqns) > _LONGEST or not all(map(_is_real, inputs)):
                continue
            positive = [_is_positive(made.get(v)) for v in others]
            smooth = _meet(eqns, x, others, positive, choice.outvars[0])
            if smooth is not None:
                return Meeting(inputs, smooth)
    return None


def _is_positive(eqn: core.JaxprEqn | None) -> bool:
    """Whether an equation makes numbers that are never negative."""
    if eqn is None:
        return False
    name, package = function_name(eqn)
    return eqn.primitive.name in _POSITIVE or (package == "jax" and name in _POSITIVE)


def _is_real(variable: Atom) -> bool:
    return getattr(getattr(variable.aval, "dtype", None), "kind", "") == "f"


def _is_predicate(variable: Atom) -> bool:
    kind = getattr(getattr(variable.aval, "dtype", None), "kind", "")
    return isinstance(variable, core.Var) and kind in ("b", "i")


def _chooses(eqn: core.JaxprEqn) -> bool:
    """Whether an equation makes one real result by a predicate: `jnp.where` is a call."""
    name = eqn.primitive.name
    one = len(eqn.outvars) == 1 and _is_real(eqn.outvars[0])
    return one and (name == "select_n" or name in CALLS) and any(_predicates(eqn))


def _predicates(eqn: core.JaxprEqn) -> Iterator[Any]:
    return (v for v in eqn.invars if _is_predicate(v))


def _compared(choice: core.JaxprEqn, made: Mapping[Any, core.JaxprEqn]) -> list[core.Var]:
    """Return the variables whose comparison may decide, from the last one to what it is made of."""
    # 1. From predicates to comparisons, through and, or, not.
    pending, found = list(_predicates(choice)), []
    while pending:
        eqn = made.get(pending.pop())
        if eqn is None:
            continue
        if eqn.primitive.name in COMPARISONS:
            found += [v for v in eqn.invars if isinstance(v, core.Var) and _is_real(v)]
        else:
            pending += _predicates(eqn)
    # 2. From what is compared to what it is an invertible function of, as |x| of x.
    places: list[core.Var] = []
    while found and len(places) < 5:
        x = found.pop(0)
        if x not in places:
            places.append(x)
            eqn = made.get(x)
            if eqn is not None and eqn.primitive.name in INVERTIBLE:
                found += [v for v in eqn.invars if isinstance(v, core.Var) and _is_real(v)]
    return places


def _programs(
    x: core.Var,
    choice: core.JaxprEqn,
    before: Sequence[core.JaxprEqn],
    made: Mapping[Any, core.JaxprEqn],
) -> Iterator[tuple[list[core.Var], list[core.JaxprEqn]]]:
    """Yield (inputs, equations) from x and other numbers to a choice: as few, then more of them."""
    # 1. What depends on x. All else that is read is as good as an input.
    reached: set[Any] = {x}
    for eqn in before:
        if any(v in reached for v in _variables(eqn)):
            reached.update(eqn.outvars)
    inside = {id(eqn) for eqn in before if any(out in reached - {x} for out in eqn.outvars)}
    inputs, eqns = _needed(choice, before, inside)
    yield inputs, eqns
    # 2. Besides, how other inputs are made by arithmetic, which ties them to each other.
    pending, more = [v for v in inputs if v is not x], set(inside)
    while pending:
        eqn_of = made.get(pending.pop())
        if eqn_of is not None and id(eqn_of) not in more and eqn_of.primitive.name in _TIES:
            more.add(id(eqn_of))
            pending += _variables(eqn_of)
    if more != inside:
        yield _needed(choice, before, more)


def _needed(
    choice: core.JaxprEqn, before: Sequence[core.JaxprEqn], inside: Container[int]
) -> tuple[list[core.Var], list[core.JaxprEqn]]:
    """Return the inputs and the equations that a choice needs, of those inside."""
    needed: dict[Any, None] = dict.fromkeys(choice.outvars)
    kept = []
    for eqn in reversed(before):
        if id(eqn) in inside and any(out in needed for out in eqn.outvars):
            needed.update(dict.fromkeys(_variables(eqn)))
            kept.append(eqn)
    made = {out for eqn in kept for out in eqn.outvars}
    return [v for v in needed if v not in made], kept[::-1]


def _variables(eqn: core.JaxprEqn) -> list[core.Var]:
    return [v for v in eqn.invars if isinstance(v, core.Var)]


def _meet(
    eqns: Sequence[core.JaxprEqn],
    x: core.Var,
    others: Sequence[core.Var],
    positive: Sequence[bool],
    result: Any,
) -> bool | None:
    """Return whether the slopes of all cases meet, or None where their values do not."""
    smooth, probes = True, _PROBES if others else _PROBES[:1]
    proved: list[int] = []  # of each comparison, by how many probes
    random = np.random.default_rng(0)
    for probe, size in enumerate(probes):
        numbers = size * random.normal(size=len(others))
        given = {
            v: Value(abs(n) if probe % 2 or always else n, other=True)
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
                    if np.all(np.isnan(values)):
                        continue
                    if not np.all(np.isfinite(values)) or np.ptp(values) > room:
                        return None
                    told[i] = True
                    smooth = smooth and _slopes_meet(evaluate, c, values)
            except (Unknown, ArithmeticError, ValueError, TypeError):
                return None
        proved = [a + b for a, b in zip(proved or [0] * len(told), told, strict=True)]
    # A comparison whose place is not known, or that few probes reached, proves nothing, and the
    # others nothing for it.
    return smooth if proved and 2 * min(proved) >= len(probes) else None


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
            values = (below, value, above)
            # How far the values reach within a unit of the argument, whatever number is added to
            # both; a threshold far from 0 is one of a number in another unit.
            unit = min(scale, 1.0)
            around = [evaluate(c + side * unit)[0] for side in (-1, 1)]
            reach = float(np.ptp([*values, *(v for v in around if np.isfinite(v))]))
            rounding = _ZERO * (1 + max(map(abs, values))) + 10 * away * scale
            room = min(_ROUNDING * max(1.0, reach), _RELATIVE * reach) + rounding
            near = [evaluate(c + side * 1e-6 * unit)[0] for side in (-1, 1)]
            steep = max(abs(near[0] - below), abs(near[1] - above)) > _STEEP * reach + rounding
            return values, -1.0 if steep else room
    raise Unknown


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
