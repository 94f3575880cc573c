"""Loops that run until the last of many is done: does one that is done keep what it has?"""

from collections.abc import Hashable, Sequence
from typing import Any

from jax.extend import core

from vijax.jaxprs._equations import CALLS, inner_jaxpr, opened, shape_of


def settled(eqn: core.JaxprEqn) -> bool:
    """Whether what a while loop carries changes no more where its own condition is met.

    Such a loop goes on while any of a mask's elements is set, and replaces what it carries only
    where the mask is set: `vmap` of a loop written by hand. Its result does not depend on how many
    turns others need.
    """
    numbers = _Numbers()
    cond, body = eqn.params["cond_jaxpr"], eqn.params["body_jaxpr"]
    of_cond, of_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    outside = [numbers.of(("outside", id(v))) for v in eqn.invars[: of_cond + of_body]]
    carry = [numbers.of(("carry", i)) for i in range(len(eqn.outvars))]
    goes_on = numbers.results(cond, [*outside[:of_cond], *carry])[0]
    mask = _mask(numbers, goes_on)
    if mask is None:
        return False
    outs = numbers.results(body, [*outside[of_cond:], *carry])
    return all(_stays(numbers, old, new, *mask) for old, new in zip(carry, outs, strict=True))


class _Numbers:
    """Values numbered by how they are computed, calls inlined."""

    def __init__(self) -> None:
        self.known: dict[Hashable, int] = {}
        self.made: list[Any] = []

    def of(self, how: Any) -> int:
        """Return the number of what is computed in this way."""
        if how not in self.known:
            self.known[how] = len(self.made)
            self.made.append(how)
        return self.known[how]

    def results(self, jaxpr: Any, inputs: Sequence[int]) -> list[int]:
        """Return the numbers of a jaxpr's results."""
        inner = opened(jaxpr)
        consts = jaxpr.consts if isinstance(jaxpr, core.ClosedJaxpr) else inner.constvars
        known: dict[Any, int] = {
            v: self.of(("const", id(c))) for v, c in zip(inner.constvars, consts, strict=True)
        }
        known.update(zip(inner.invars, inputs, strict=True))

        def number(v: Any) -> int:
            if isinstance(v, core.Literal):
                return self.of(("literal", str(v.aval), str(v.val)))
            return known[v]

        for eqn in inner.eqns:
            ins = [number(v) for v in eqn.invars]
            called = inner_jaxpr(eqn) if eqn.primitive.name in CALLS else None
            if called is not None and len(opened(called).invars) == len(ins):
                outs = self.results(called, ins)
            else:
                shape = shape_of(eqn.outvars[0]) if eqn.outvars else ()
                how = (eqn.primitive.name, str(eqn.params), shape, *ins)
                outs = [self.of((*how, i)) for i in range(len(eqn.outvars))]
            known.update(zip(eqn.outvars, outs, strict=True))
        return [number(v) for v in inner.outvars]


def _parts(numbers: _Numbers, number: int) -> tuple[str, list[int]]:
    """Return the primitive that made a value, and its operands."""
    made = numbers.made[number]
    if not isinstance(made, tuple) or len(made) < 4 or not isinstance(made[0], str):
        return "", []
    return made[0], list(made[3:-1])


def _mask(numbers: _Numbers, goes_on: int) -> tuple[int, bool] | None:
    """Return the mask that a condition reduces, and whether it is set where the loop goes on."""
    name, operands = _parts(numbers, goes_on)
    if name == "reduce_or":
        return operands[0], True
    if name == "not":
        inner, of_inner = _parts(numbers, operands[0])
        return (of_inner[0], False) if inner == "reduce_and" else None
    return None


def _stays(numbers: _Numbers, old: int, new: int, mask: int, goes_on: bool) -> bool:  # noqa: FBT001
    """Whether a carried value is kept where its element of the mask says that it is done."""
    if old == new:
        return True
    name, operands = _parts(numbers, new)
    if name == "or" and not goes_on:  # the mask itself, which only grows
        return old == mask and mask in operands
    if name == "and" and goes_on:
        return old == mask and mask in operands
    if name != "select_n" or len(operands) != 3:
        return False
    which, where_false, where_true = operands
    while _parts(numbers, which)[0] == "broadcast_in_dim":
        which = _parts(numbers, which)[1][0]
    return which == mask and (where_false if goes_on else where_true) == old
