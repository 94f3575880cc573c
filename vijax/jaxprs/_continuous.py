"""Whether what is chosen among cases by a comparison is continuous where the cases meet.

`jnp.where(x > 0, x, 0.1 * x)` chooses between two expressions by a comparison of a number with a
threshold. Where both agree at the threshold, at random values of the other numbers in them, the derivative
of the chosen case is that of the whole, as it is of `relu`.
"""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

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
    _, made = _before(jaxpr, choice)
    compared = _compared(choice, made)
    drawn = [x for x in compared if random(x)]
    said = [_said(jaxpr, choice, x, made, random, _DEEPEST) for x in drawn or compared]
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
    made: Mapping[Any, core.JaxprEqn],
    random: Callable[[core.Var], bool],
    depth: int,
) -> Meeting | str:
    """Return whether cases meet where x passes a threshold, and what x is made of does."""
    own, inside = _judged(jaxpr, choice, x), _made_of(x, made, random)
    if isinstance(own, Meeting):
        # In units of the draws themselves: a factor of 1e-6 may hide a jump.
        for _ in range(depth):
            if any(_judged(jaxpr, choice, v, unit=True) == APART for v in inside):
                return APART
            inside = [v for x in inside for v in _made_of(x, made, random)]
        return own
    said = [_said(jaxpr, choice, v, made, random, depth - 1) for v in inside if depth]
    return APART if APART in said else _together(said) or own


def _made_of(
    x: core.Var, made: Mapping[Any, core.JaxprEqn], random: Callable[[core.Var], bool]
) -> list[core.Var]:
    """Return the random numbers that x is an invertible function of, each for given others."""
    eqn = made.get(x)
    if eqn is None or eqn.primitive.name not in INVERTIBLE:
        return []
    return [v for v in _operands(eqn) if random(v)]


@lru_cache(maxsize=64)  # two questions ask one after the other
def _judged(
    jaxpr: core.Jaxpr, choice: core.JaxprEqn, x: core.Var, *, unit: bool = False
) -> Meeting | str:
    """Return whether cases meet where x passes a threshold, for other numbers of all sizes, or of 1."""
    before, made = _before(jaxpr, choice)
    found = UNKNOWN
    for inputs, eqns in _programs(x, choice, before, made):
        others = [v for v in inputs if v is not x]
        if len(eqns) > _LONGEST or not all(map(_is_real, inputs)):
            continue
        positive = [_is_positive(made.get(v)) for v in others]
        said = meet(eqns, x, others, positive, choice.outvars[0], unit=unit)
        if said in (SMOOTH, BENT):
            return Meeting(inputs, said == SMOOTH)
        found = APART if APART in (said, found) else UNKNOWN
    return found


def _before(
    jaxpr: core.Jaxpr, choice: core.JaxprEqn
) -> tuple[Sequence[core.JaxprEqn], Mapping[Any, core.JaxprEqn]]:
    """Return the equations up to the choice, and which of them makes each variable."""
    at = next(i for i, eqn in enumerate(jaxpr.eqns) if eqn is choice)
    before = jaxpr.eqns[: at + 1]
    return before, {out: eqn for eqn in before for out in eqn.outvars}


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
