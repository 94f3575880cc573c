"""Which inputs each output of a function depends on, by any way."""

from collections.abc import Callable, Sequence
from functools import reduce
from operator import or_

import jax
from jax.extend import core

from vijax.jaxprs._equations import DECLARED, trace
from vijax.jaxprs._interpreter import Question, interpret
from vijax.types import PyTree


def reads(function: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """Return, in the tree of the function's outputs, which inputs each depends on.

    Inputs are counted as `jax.tree.leaves(args)` lists them. What comes out of a mutable reference,
    or from a host callback with a memory, may depend on all of them.

    Args:
        function: args -> a pytree of arrays.
        args: pytrees of arrays, or of their shapes and dtypes.

    Returns:
        A pytree like the function's result, each leaf a frozenset of positions.

    Example:
        >>> read = reads(lambda x, y: {"sum": x + y, "first": jnp.sin(x)}, 1.0, 2.0)
        >>> sorted(read["sum"]), sorted(read["first"])
        ([0, 1], [0])
    """
    closed, shape = trace(function, *args)
    return jax.tree.unflatten(jax.tree.structure(shape), read_by(closed))


def read_by(closed: core.ClosedJaxpr) -> list[frozenset[int]]:
    """Return which inputs each output of a trace depends on.

    Example:
        >>> read_by(jax.make_jaxpr(lambda x, y: (y, x * y))(1.0, 2.0)) == [{1}, {0, 1}]
        True
    """
    # Input i is bit i of a mask.
    inputs = [1 << position for position in range(len(closed.jaxpr.invars))]
    masks = interpret(closed, inputs, _QUESTION, [0] * len(closed.consts))
    return [frozenset(at for at in range(len(inputs)) if mask >> at & 1) for mask in masks]


# A set of inputs is a whole number, with a bit for each.


def _join(masks: Sequence[int], name: str) -> int:
    return reduce(or_, masks, 0)


def _choose(which: int, cases: Sequence[int], name: str) -> int:
    return reduce(or_, cases, which)


def _opaque(name: str, masks: Sequence[int]) -> int:
    return reduce(or_, masks, 0)


def _constant(value: object) -> int:
    return 0


def _all(eqn: core.JaxprEqn, masks: list[int]) -> list[int]:
    return [reduce(or_, masks, 0)] * len(eqn.outvars)


_QUESTION: Question[int] = Question(
    nothing=0,
    join=_join,
    rules=dict.fromkeys((*DECLARED, "custom_linear_solve"), _all),
    default=_all,
    choose=_choose,
    opaque=_opaque,
    constant=_constant,
    into_unknown=True,
)
