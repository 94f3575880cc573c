"""Whether what is chosen among cases by a comparison is continuous where the cases meet.

`jnp.where(x > 0, x, 0.1 * x)` chooses between two expressions by a comparison of a number with a
threshold. Where both agree at the threshold, at random values of the other numbers in them, the derivative
of the chosen case is that of the whole, as it is of `relu`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from jax.extend import core

from vijax.jaxprs._equations import CALLS, Atom, function_name
from vijax.jaxprs._scalars import COMPARISONS, INVERTIBLE
from vijax.jaxprs._thresholds import APART, BENT, SMOOTH, UNKNOWN, meet

# How other numbers may be tied to each other: so that none of the probes' numbers makes them vanish,
# as it would exp(w - 90).
_TIES = frozenset("add add_any sub mul neg convert_element_type broadcast_in_dim".split())
# What makes numbers that are never negative.
_POSITIVE = frozenset(("abs", "exp", "logistic", "sqrt", "square", "softplus"))
# Longer programs are no choice between formulas.
_LONGEST = 100
# So many operations are followed from what is compared to what it is made of.
_DEEPEST = 5


class Meeting(NamedTuple):
    """Cases that meet.

    Fields:
        inputs: the variables that the choice is a function of.
        smooth: whether their slopes meet too.
    """

    inputs: list[core.Var]
    smooth: bool


class _Place(NamedTuple):
    """What is read off a jaxpr once, however often it is asked about.

    Fields:
        at: the position of each equation, by its id.
        made: which equation makes each variable.
        users: the positions of the equations that read each variable.
        above: of equations, by position, those that they depend on, and themselves.
        below: of variables, the equations that depend on them.
        judged: what was said of cases that were tried.
    """

    at: dict[int, int]
    made: dict[Any, core.JaxprEqn]
    users: dict[Any, list[int]]
    above: dict[int, set[int]]
    below: dict[Any, set[int]]
    judged: dict[Any, "Meeting | str"]


# A loop's body is walked until nothing changes, and two questions walk it: each asks of the same cases.
_PLACES: WeakKeyDictionary[core.Jaxpr, _Place] = WeakKeyDictionary()


def meeting(
    jaxpr: core.Jaxpr,
    choice: core.JaxprEqn,
    random: Callable[[core.Var], bool] = lambda _: True,
) -> Meeting | None:
    """Return what an equation that chooses among cases is a function of, where the cases meet.

    Args:
        jaxpr: that the equation is part of.
        choice: the equation.
        random: whether a variable differs from draw to draw: the cases must meet wherever such a
            one passes a threshold, whatever what it is compared by is made of.

    Returns:
        None where the cases do not meet, or cannot be evaluated, and of any other equation.

    Example:
        >>> def ask(f):
        ...     jaxpr = jax.make_jaxpr(f)(0.0, 0.0).jaxpr
        ...     return meeting(jaxpr, jaxpr.eqns[-1], lambda v: v is jaxpr.invars[0])
        >>> ask(lambda x, a: jnp.where(x > 0, x, a * x)).smooth
        False
        >>> ask(lambda x, a: jnp.where(x > 0, x, a)) is None
        True
    """
    if not _chooses(choice):
        return None
    compared = _compared(choice, _place(jaxpr).made)
    drawn = [x for x in compared if random(x)]
    said = [_said(jaxpr, choice, x, random, _DEEPEST) for x in drawn or compared]
    if drawn:
        return _together(said)
    return next((m for m in said if isinstance(m, Meeting)), None)


def _together(said: Sequence[Meeting | str]) -> Meeting | None:
    """Return the first meeting of several where all are."""
    met = [m for m in said if isinstance(m, Meeting)]
    if not met or len(met) < len(said):
        return None
    return met[0]._replace(smooth=all(m.smooth for m in met))


def _said(
    jaxpr: core.Jaxpr,
    choice: core.JaxprEqn,
    x: core.Var,
    random: Callable[[core.Var], bool],
    depth: int,
) -> Meeting | str:
    """Return whether cases meet where x passes a threshold, and what x is made of does."""
    made = _place(jaxpr).made
    own, inside = _judged(jaxpr, choice, x), _made_of(x, made, random)
    if isinstance(own, Meeting):
        # In units of the draws themselves: a factor of 1e-6 may hide a jump.
        for _ in range(depth):
            if any(_judged(jaxpr, choice, v, unit=True) == APART for v in inside):
                return APART
            inside = [v for x in inside for v in _made_of(x, made, random)]
        return own
    said = [_said(jaxpr, choice, v, random, depth - 1) for v in inside if depth]
    return APART if APART in said else _together(said) or own


def _made_of(
    x: core.Var, made: Mapping[Any, core.JaxprEqn], random: Callable[[core.Var], bool]
) -> list[core.Var]:
    """Return the random numbers that x is an invertible function of, each for given others."""
    eqn = made.get(x)
    if eqn is None or eqn.primitive.name not in INVERTIBLE:
        return []
    return [v for v in _operands(eqn) if random(v)]


def _judged(
    jaxpr: core.Jaxpr, choice: core.JaxprEqn, x: core.Var, *, unit: bool = False
) -> Meeting | str:
    """Return whether cases meet where x passes a threshold, for other numbers of all sizes, or of 1."""
    judged, asked = _place(jaxpr).judged, (id(choice), x, unit)
    if asked not in judged:
        judged[asked] = _tried(jaxpr, choice, x, unit=unit)
    return judged[asked]


def _tried(jaxpr: core.Jaxpr, choice: core.JaxprEqn, x: core.Var, *, unit: bool) -> Meeting | str:
    made, found = _place(jaxpr).made, UNKNOWN
    for eqns in _programs(jaxpr, choice, x):
        inputs = _inputs(eqns)
        if not all(map(_is_real, inputs)):
            continue
        others = [v for v in inputs if v is not x]
        positive = [_is_positive(made.get(v)) for v in others]
        said = meet(eqns, x, others, positive, choice.outvars[0], unit=unit)
        if said in (SMOOTH, BENT):
            return Meeting(inputs, said == SMOOTH)
        found = APART if APART in (said, found) else UNKNOWN
    return found


def _place(jaxpr: core.Jaxpr) -> _Place:
    if jaxpr not in _PLACES:
        at = {id(eqn): i for i, eqn in enumerate(jaxpr.eqns)}
        made = {out: eqn for eqn in jaxpr.eqns for out in eqn.outvars}
        users: dict[Any, list[int]] = {}
        for i, eqn in enumerate(jaxpr.eqns):
            for v in _variables(eqn):
                users.setdefault(v, []).append(i)
        _PLACES[jaxpr] = _Place(at, made, users, {}, {}, {})
    return _PLACES[jaxpr]


def _above(jaxpr: core.Jaxpr, choice: core.JaxprEqn) -> set[int]:
    """Return the positions of the equations that a choice depends on, and its own."""
    place = _place(jaxpr)
    last = place.at[id(choice)]
    if last not in place.above:
        found, pending = {last}, [last]
        while pending:
            makers = (place.made.get(v) for v in _variables(jaxpr.eqns[pending.pop()]))
            new = {place.at[id(eqn)] for eqn in makers if eqn is not None} - found
            found |= new
            pending += new
        place.above[last] = found
    return place.above[last]


def _below(jaxpr: core.Jaxpr, x: core.Var) -> set[int]:
    """Return the positions of the equations that depend on x."""
    place = _place(jaxpr)
    if x not in place.below:
        found: set[int] = set()
        pending = [x]
        while pending:
            new = set(place.users.get(pending.pop(), ())) - found
            found |= new
            pending += [out for i in new for out in jaxpr.eqns[i].outvars]
        place.below[x] = found
    return place.below[x]


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
    """Return the variables whose comparisons decide, through and, or, not."""
    pending, found = list(_predicates(choice)), []
    while pending:
        eqn = made.get(pending.pop())
        if eqn is None:
            continue
        if eqn.primitive.name in COMPARISONS:
            found += [v for v in _operands(eqn) if v not in found]
        else:
            pending += _predicates(eqn)
    return found


def _operands(eqn: core.JaxprEqn) -> list[core.Var]:
    return [v for v in _variables(eqn) if _is_real(v)]


def _programs(
    jaxpr: core.Jaxpr, choice: core.JaxprEqn, x: core.Var
) -> Iterator[list[core.JaxprEqn]]:
    """Yield the equations from x and other numbers to a choice: as few, then more of them."""
    # 1. What depends on x. All else that is read is as good as an input.
    inside = _below(jaxpr, x) & _above(jaxpr, choice)
    if len(inside) > _LONGEST:
        return
    eqns = [jaxpr.eqns[i] for i in sorted(inside)]
    yield eqns
    # 2. Besides, how other inputs are made by arithmetic, which ties them to each other.
    place, more = _place(jaxpr), set(inside)
    pending = [v for v in _inputs(eqns) if v is not x]
    while pending and len(more) <= _LONGEST:
        eqn_of = place.made.get(pending.pop())
        if eqn_of is None or eqn_of.primitive.name not in _TIES:
            continue
        if place.at[id(eqn_of)] not in more:
            more.add(place.at[id(eqn_of)])
            pending += _variables(eqn_of)
    if inside < more and len(more) <= _LONGEST:
        yield [jaxpr.eqns[i] for i in sorted(more)]


def _inputs(eqns: Sequence[core.JaxprEqn]) -> list[core.Var]:
    """Return the variables that equations read and do not make."""
    made = {out for eqn in eqns for out in eqn.outvars}
    return list(dict.fromkeys(v for eqn in eqns for v in _variables(eqn) if v not in made))


def _variables(eqn: core.JaxprEqn) -> list[core.Var]:
    return [v for v in eqn.invars if isinstance(v, core.Var)]
