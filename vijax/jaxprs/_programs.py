"""Programs that are compiled once for a function, whatever the values are that it closes over."""

import re
import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import jax
import numpy as np
from jax.extend import core

from vijax.jaxprs._equations import equations, hidden, trace
from vijax.types import PyTree

# function -> (start -> result)
Make = Callable[[Callable[..., PyTree]], Callable[..., PyTree]]

# Each owner's programs, by (text of the trace, structure of start, kind); they go with the owner.
_programs: weakref.WeakKeyDictionary[Any, dict[Any, Any]] = weakref.WeakKeyDictionary()


def once(
    owner: object, make: Make, function: Callable[..., PyTree], start: PyTree, kind: Hashable
) -> PyTree:
    """Return make(function)(start), compiled once while its owner lives and the trace is the same.

    The function is traced anew at every call, which is quick, and the arrays that it closes over
    are arguments of the program: unlike under jax.jit none of them goes stale.

    Args:
        owner: for whom the program is kept; what cannot be referred to weakly keeps none.
        make: function -> (start -> result), traced where no program is kept.
        function: of one argument like start.
        start: a pytree of arrays.
        kind: hashable, what else `make` depends on.

    Example:
        >>> scale, owner = jnp.asarray(3.0), lambda: None
        >>> slope = once(owner, jax.grad, lambda x: scale * x**2, jnp.asarray(2.0), "slope")
        >>> float(slope), len(_programs[owner])
        (12.0, 1)
    """
    closed, shape = trace(function, start)
    key = (_text(closed), jax.tree.structure(start), kind)
    # What has no weak reference, or no hash, is not kept; nor is what the text does not tell.
    try:
        programs = _programs.setdefault(owner, {})
        hash(key)
    except TypeError:
        return make(function)(start)
    if key[0] is None:
        return make(function)(start)
    if key not in programs:
        jaxpr, tree = closed.jaxpr, jax.tree.structure(shape)
        dtypes = [aval.dtype for aval in closed.in_avals]

        # The arrays that the function closes over are arguments, so that others take their place.
        def run(consts: list[Any], start: PyTree) -> PyTree:
            call = core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, consts))

            def again(at: PyTree) -> PyTree:
                # A jaxpr takes no other dtypes than its own, and promotes none.
                pairs = zip(jax.tree.leaves(at), dtypes, strict=True)
                leaves = [jax.lax.convert_element_type(leaf, dtype) for leaf, dtype in pairs]
                return jax.tree.unflatten(tree, call(*leaves))

            return make(again)(start)

        programs[key] = jax.jit(run)
    return programs[key](list(closed.consts), start)


def _text(closed: core.ClosedJaxpr) -> str | None:
    """Return all of a trace but its constants; None where effects or arrays within do not show."""
    if closed.effects or hidden(closed) or any(map(_is_array, _inner(closed.jaxpr))):
        return None
    # The constants' shapes and dtypes, but not their numbers.
    avals = [str(variable.aval) for variable in closed.jaxpr.constvars]
    # Names of objects; those of one owner's functions that change do so with what is traced.
    return re.sub(r"0x[0-9a-f]+", "", f"{avals} {closed.jaxpr}")


def _inner(jaxpr: core.Jaxpr) -> Iterator[Any]:
    """Yield the values that the equations of a jaxpr hold, those of inner ones too."""
    for eqn in equations(jaxpr):
        yield from (v.val for v in eqn.invars if isinstance(v, core.Literal))
        for value in eqn.params.values():
            parts = value if isinstance(value, (tuple, list)) else [value]
            for part in parts:
                yield from getattr(part, "consts", ())
                yield part


def _is_array(value: object) -> bool:
    return isinstance(value, (np.ndarray, jax.Array)) and np.size(value) > 1
