"""What jaxprs are made of: how to get one, its kinds of equations, what it keeps out of sight."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from vijax.types import PyTree

# What an equation reads: a variable, or a number written into the jaxpr.
Atom = core.Var | core.Literal
# Their one inner jaxpr is applied to the operands as they are; that of a reduction, say, is not.
CALLS = frozenset(
    "checkpoint closed_call core_call core_closed_call custom_jvp_call custom_vjp_call "
    "custom_vjp_call_jaxpr jit pjit remat remat2".split()
)
# Their derivative is what the author of the function declared it to be.
DECLARED = frozenset("custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr custom_lin".split())
# Code outside JAX that is pure by contract; an io_callback may have a memory of its own.
PURE_HOST = frozenset({"pure_callback", "ffi_call"})
A_REFERENCE = "a mutable reference"
OPAQUE = PURE_HOST | {"io_callback", A_REFERENCE}
# They leave a value as it is, and say where it lies: in which layout, on which devices.
LAID_OUT = frozenset(
    "copy copy_p layout_constraint mesh_cast pcast pvary reshard sharding_constraint".split()
)
# Whose declared derivatives are those of their values, though these are computed by cases.
_LIBRARIES = ("tensorflow_probability", "numpyro", "distrax", "flax", "optax")
# And all of vijax's own functions, such as the splines of its flows.
_VIJAX = f"{Path(__file__).parents[1].as_posix()}/"
# Where an equation keeps an inner jaxpr.
INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")


def trace(function: Callable[..., PyTree], *args: PyTree) -> tuple[core.ClosedJaxpr, PyTree]:
    """Trace a function; return its jaxpr, closed-over values as consts, and its output's shapes.

    Example:
        >>> closed, shape = trace(lambda x: jnp.sin(x), jnp.ones(3))
        >>> [eqn.primitive.name for eqn in closed.jaxpr.eqns], shape.shape
        (['sin'], (3,))
    """
    return jax.make_jaxpr(function, return_shape=True)(*args)


def undeclared(closed: core.ClosedJaxpr) -> Callable[..., Any]:
    """Return a jaxpr's first result as a function whose derivative is the value's own.

    Functions with a declared derivative are put in their place; within loops they stay.
    """
    return lambda *args: _evaluate(closed.jaxpr, closed.consts, args)[0]


def _evaluate(jaxpr: core.Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    known: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    known.update(zip(jaxpr.invars, args, strict=True))

    def read(variable: Atom) -> Any:
        return variable.val if isinstance(variable, core.Literal) else known[variable]

    for eqn in jaxpr.eqns:
        ins, inner = [read(v) for v in eqn.invars], inner_jaxpr(eqn)
        # A call is replaced by its body, so that JAX differentiates that and not what was declared.
        fits = inner is not None and len(opened(inner).invars) == len(ins)
        if eqn.primitive.name in CALLS and inner is not None and fits:
            outs = _evaluate(opened(inner), getattr(inner, "consts", ()), ins)
        else:
            outs = eqn.primitive.bind(*ins, **eqn.primitive.get_bind_params(eqn.params))
            outs = outs if eqn.primitive.multiple_results else [outs]
        known.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def hidden(closed: core.ClosedJaxpr) -> str | None:
    """Return the first primitive that keeps values out of sight: in a reference, or on the host.

    Example:
        >>> from jax.experimental import io_callback
        >>> hidden(jax.make_jaxpr(lambda x: io_callback(np.sin, x, x))(jnp.zeros(())))
        'io_callback'
    """
    for eqn in equations(closed.jaxpr):
        if eqn.primitive.name == "io_callback" or touches_reference(eqn):
            return str(eqn.primitive.name)
    return None


def equations(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
    """Yield every equation of a jaxpr and of those within it, each before what is in it."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in inner_jaxprs(eqn):
            yield from equations(inner)


def inner_jaxprs(eqn: core.JaxprEqn) -> list[core.Jaxpr]:
    """Return the jaxprs that an equation carries, open, under whatever names."""
    # A cond holds a tuple of branches, most others one jaxpr for each parameter.
    values = (v if isinstance(v, (tuple, list)) else (v,) for v in eqn.params.values())
    inner = (i for value in values for i in value)
    return [opened(i) for i in inner if isinstance(i, (core.Jaxpr, core.ClosedJaxpr))]


def inner_jaxpr(eqn: core.JaxprEqn) -> core.Jaxpr | core.ClosedJaxpr | None:
    """Return the jaxpr that an equation carries under one of the usual names, if it does."""
    for name in INNER:
        inner = eqn.params.get(name)
        if inner is not None:
            return inner
    return None


def function_name(eqn: core.JaxprEqn) -> tuple[str, str]:
    """Return the name of the function that an equation calls, and the package of the file it is in.

    Only JAX, vijax itself and libraries that are known are told apart from others, whose package
    is "".
    """
    inner = inner_jaxpr(eqn)
    if inner is None:
        return "", ""
    # JAX writes "name at /path/file.py:line".
    info = getattr(opened(inner), "debug_info", None)
    name, _, place = str(getattr(info, "func_src_info", "")).partition(" at ")
    folders = place.replace("\\", "/")
    ours = folders.startswith(_VIJAX)
    # There custom_gradient wraps what a user gave it.
    if "/jax/_src/" in folders and "/custom_derivatives.py" not in folders:
        return name, "jax"
    library = next((n for n in _LIBRARIES if f"/{n}/" in folders), "")
    return name, "vijax" if ours else library


def varies(value: object) -> bool:
    """Return whether an array may depend on the inputs of a trace, as parameters do.

    A constant of the code is a tracer too under jit. What it was made of is found through JAX's own
    record, where this JAX keeps one; a tracer without record counts as a parameter.
    """
    # Walk from the value to all that it was computed from, until an input is met.
    visited: set[int] = set()
    pending: list[Any] = [value]
    while pending:
        tracer = pending.pop()
        if not isinstance(tracer, jax.core.Tracer) or id(tracer) in visited:
            continue
        visited.add(id(tracer))
        made_of = _made_of(tracer)
        # Beyond some depth the walk costs more than a refusal, which is the safe answer.
        if made_of is None or len(visited) > 1000:
            return True
        pending.extend(made_of)
    return False


def _made_of(tracer: Any) -> list[Any] | None:
    """Return what a tracer was computed from; None for an input, and where it is not known."""
    if type(tracer).__name__ != "DynamicJaxprTracer":
        return None
    # These attributes are private to JAX: where a release lacks one, nothing is known.
    try:
        if tracer.parent is not None:
            # What a mutable reference holds may come from anywhere.
            return None if tracer.parent.effects else list(tracer.parent.in_tracers)
        if isinstance(tracer.val, core.Literal):
            return []
        # A constant of the trace: the value that it stands for may be a tracer of another trace.
        held = tracer._trace.frame.constvar_to_val[tracer.val]
    except (AttributeError, KeyError, TypeError):
        return None
    return [getattr(held, "canonical", held)]


def opened(jaxpr: core.Jaxpr | core.ClosedJaxpr) -> core.Jaxpr:
    """Return the open jaxpr of either kind."""
    return jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr


def shape_of(variable: Atom) -> tuple[int, ...]:
    """Return the shape of a variable or literal of a jaxpr; () for what has none.

    Example:
        >>> shape_of(jax.make_jaxpr(jnp.sin)(jnp.ones((2, 3))).jaxpr.invars[0])
        (2, 3)
    """
    return getattr(variable.aval, "shape", ())


def is_reference(variable: Atom) -> bool:
    """Whether a variable of a jaxpr is a mutable reference."""
    return "Ref" in type(variable.aval).__name__


def touches_reference(eqn: core.JaxprEqn) -> bool:
    """Whether an equation makes, reads or writes a mutable reference. All that do have effects."""
    return bool(eqn.effects) and any(map(is_reference, (*eqn.invars, *eqn.outvars)))


def is_inexact(variable: Atom) -> bool:
    """Return whether a variable holds real or complex numbers, of any precision."""
    dtype = getattr(variable.aval, "dtype", np.dtype(bool))
    kind = getattr(dtype, "kind", "")  # that of most, told at once; bfloat16 has "V", and keys none
    return kind == "f" or (kind not in "biu" and bool(jnp.issubdtype(dtype, jnp.inexact)))


def is_complex(variable: Atom) -> bool:
    """Return whether a variable holds complex numbers."""
    return getattr(getattr(variable.aval, "dtype", None), "kind", "") == "c"
