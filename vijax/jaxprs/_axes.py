"""Which axes of an array still tell apart what an input's did: sites of a plate, or a batch."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core

from vijax.jaxprs._equations import inner_jaxpr, opened, shape_of, trace
from vijax.jaxprs._interpreter import Loops, Question, interpret
from vijax.jaxprs._kept import NEVER, REDUCED_OVER_DEVICES, Ramp, kept, ramp_of
from vijax.jaxprs._places import Place, moved, reshaped, tiled

# A PartitionSpec: for each axis of an array, the axes of the mesh that cut it.
Spec = Sequence[str | tuple[str, ...] | None]

# None: free of what is followed. Else for each axis followed its `Place`: the array's own axis
# that it still is, or the digits that it has become under reshapes; an axis below zero is the loop
# over it whose body this is, counted from the innermost, -1; or the name of the primitive that
# mixed it.
Axes = tuple[Place, ...] | None


def axes(closed: core.ClosedJaxpr, inputs: Sequence[Axes]) -> list[Axes]:
    """Follow axes from the inputs of a jaxpr to its outputs.

    Independent are those that an output still has: sites of a plate, or members of a batch, whose
    values do not read each other. It is granted only where the jaxpr proves it.

    Args:
        closed: the jaxpr; what it closes over is free of what is followed.
        inputs: for each input, which of its axes are followed, such as (0,) of [n, d], or None.

    Returns:
        For each output the same: (0,) where axis 0 of the input has become axis 0 and nothing met.

    Example:
        >>> x = jnp.ones((4, 3))
        >>> axes(jax.make_jaxpr(lambda x: jnp.sum(x**2, 1))(x), [(0,)])
        [(0,)]
        >>> axes(jax.make_jaxpr(lambda x: jnp.cumsum(x, 0))(x), [(0,)])
        [('cumsum',)]
    """
    values = [_NOTHING if axes is None else _Value(axes, None) for axes in inputs]
    return [value.axes for value in interpret(closed, values, _QUESTION)]


class _Value(NamedTuple):
    """What is known of one variable: where the followed axes are, and whether it is an index."""

    axes: Axes
    ramp: Ramp


_NOTHING = _Value(None, None)

# --- the question


def _join(several: Sequence[_Value], name: str) -> _Value:
    """Return the axes of what reads all of several arrays at one index."""
    joined: Axes = None
    for axes, _ in several:
        if joined is None or axes is None:
            joined = axes if joined is None else joined
        else:
            joined = tuple(_meet(a, b, name) for a, b in zip(joined, axes, strict=True))
    # An index stays one only where all cases are the same index.
    same = all(value == several[0] for value in several)
    return several[0] if several and same else _value(joined)


def _meet(a: Place, b: Place, name: str) -> Place:
    if a == b or isinstance(a, str):
        return a
    return b if isinstance(b, str) else name


def _value(axes: Axes) -> _Value:
    return _NOTHING if axes is None else _Value(axes, None)


def _moved(value: _Value, to: Callable[[int], int | str]) -> _Value:
    """Move every axis that is not mixed yet, those of loops included."""
    axes = value.axes
    return _NOTHING if axes is None else _value(tuple(moved(place, to) for place in axes))


def _choose(which: _Value, cases: Sequence[_Value], name: str) -> _Value:
    """Join the cases; a predicate is one number for all, so what it still told apart is mixed."""
    return _join([_moved(which, lambda a: a if a < 0 else name), *cases], name)


def _opaque(name: str, several: Sequence[_Value]) -> _Value:
    return _moved(_join(several, name), lambda _: name)


def _constant(value: Any) -> _Value:
    """Return what is known of a constant: one that holds numbers while tracing may be an index."""
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if isinstance(value, jax.core.Tracer) or kind not in ("i", "u", "b") or np.ndim(value) != 1:
        return _NOTHING
    # An all-False mask is what an index gives to "is it below zero"; arange(n) is an index itself.
    numbers = np.asarray(value)
    if kind == "b":
        return _NOTHING if np.any(numbers) else _Value(None, NEVER)
    is_index = np.array_equal(numbers, np.arange(len(numbers)))
    return _Value(None, (0,)) if is_index else _NOTHING


# A scan may run over what is followed, one after another, as long as nothing of one is carried to
# the next.
_LOOPS: Loops[_Value] = Loops(
    enter=partial(_moved, to=lambda a: a - 1 if a < 0 else a),
    slice=partial(_moved, to=lambda a: a - 1),  # axis 0 becomes the innermost loop, -1
    carry=partial(_moved, to=lambda a: "scan" if a == -1 else a),
    leave=partial(_moved, to=lambda a: a + 1 if a < 0 else a),
    stack=partial(_moved, to=lambda a: a + 1),
)


def _rule(eqn: core.JaxprEqn, ins: list[_Value]) -> list[_Value]:
    name, ramps = eqn.primitive.name, [value.ramp for value in ins]
    if name == "select_n" and ramps[0] == NEVER:  # an index is never below zero
        return [ins[1]]
    # Where the axes of each operand are in the result, by what the primitive does with axes.
    arrived: list[_Value] = []
    for i, value in enumerate(ins):
        if value.axes is None:
            continue
        if name == "reshape" and i == 0 and eqn.params.get("dimensions") is None:
            shape, out = shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])
            arrived.append(_value(tuple(reshaped(p, shape, out) for p in value.axes)))
        elif name == "tile":
            shape, reps = shape_of(eqn.invars[0]), eqn.params["reps"]
            arrived.append(_value(tuple(tiled(p, shape, reps) for p in value.axes)))
        else:
            arrived.append(_moved(value, partial(_stays, kept(eqn, i, ramps), name)))
    # Operands whose axes meet at one place stay apart; those that lie elsewhere are mixed.
    joined = _join(arrived, name)
    ramp = ramp_of(eqn, ramps)
    return [joined if ramp is None else _Value(joined.axes, ramp)] * len(eqn.outvars)


def _stays(stay: dict[int, int], name: str, axis: int) -> int | str:
    # A loop around the equation, below zero, goes on whatever the equation does.
    return axis if axis < 0 else stay.get(axis, name)


def _inlined(eqn: core.JaxprEqn, ins: list[_Value]) -> list[_Value]:
    """Follow axes through a call that is none of the usual ones."""
    # Newer releases keep the jaxpr under "call", or expand the primitive only when they lower it.
    inner = eqn.params.get("call") or inner_jaxpr(eqn) or _expanded(eqn)
    if inner is None or len(opened(inner).invars) != len(ins):
        return [_opaque(eqn.primitive.name, ins)] * len(eqn.outvars)
    closed = inner if isinstance(inner, core.ClosedJaxpr) else core.ClosedJaxpr(inner, ())
    return interpret(closed, ins, _QUESTION)


def _expanded(eqn: core.JaxprEqn) -> core.ClosedJaxpr | None:
    """Return what a primitive that JAX expands only when it lowers is made of, such as a search."""
    primitive: Any = eqn.params.get("_prim")
    if not hasattr(primitive, "expand") or not hasattr(primitive, "in_avals_flat"):
        return None
    tree = jax.tree.structure(primitive.in_avals)
    inputs = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in primitive.in_avals_flat]
    return trace(lambda *flat: primitive.expand(*jax.tree.unflatten(tree, flat)), *inputs)[0]


# Calls that are none of the interpreter's own, by the names of several releases of JAX.
CALLED = ("call_hi_primitive", "custom_vmap_call", "eval_jaxpr")


def _shard_map(eqn: core.JaxprEqn, ins: list[_Value]) -> list[_Value]:
    """Follow axes into the blocks of a shard_map, where collectives mix those that are cut."""
    cuts: dict[int, Any] = {}  # of each followed axis, the axes of the mesh that cut it
    for value, specs in zip(ins, eqn.params["in_specs"], strict=True):
        for k, place in enumerate(value.axes or ()):
            # Two operands whose members are cut in other ways do not meet member by member.
            if not isinstance(place, str) and cuts.setdefault(k, _cut(place, specs)) != _cut(
                place, specs
            ):
                return [_opaque("shard_map", ins)] * len(eqn.outvars)
    # A sum over other axes of the mesh reads the same members; those of a shard_map outside this
    # one may have cut the whole batch.
    harmless = set(eqn.params["newly_manual_axes"]) - {
        n for cut in cuts.values() for n in cut or ()
    }

    # psum over ("i",) joins blocks along "i": harmless unless "i" cuts a followed axis.
    def collective(eqn: core.JaxprEqn, ins: list[_Value]) -> list[_Value]:
        apart = harmless >= {*eqn.params["axes"]}
        return ins if apart else [_moved(v, lambda _: eqn.primitive.name) for v in ins]

    # The body sees blocks, each with the same axes as the whole.
    rules = {**_QUESTION.rules, **dict.fromkeys(REDUCED_OVER_DEVICES, collective)}
    body = core.ClosedJaxpr(opened(eqn.params["jaxpr"]), ())
    outs = interpret(body, ins, replace(_QUESTION, rules=rules))

    def whole(value: _Value, specs: Spec) -> _Value:
        """Mix what does not leave cut as it came."""
        pairs = enumerate(value.axes or ())
        return _value(
            value.axes
            and tuple(
                p if isinstance(p, str) or _cut(p, specs) == cuts[k] else "shard_map"
                for k, p in pairs
            )
        )

    return [whole(value, specs) for value, specs in zip(outs, eqn.params["out_specs"], strict=True)]


def _cut(place: Place, specs: Spec) -> tuple[str, ...] | None:
    """Return the axes of a mesh that cut a followed axis, () for none; None where parts do."""
    if not isinstance(place, int):
        return None
    names = specs[place] if 0 <= place < len(specs) else None
    return () if names is None else (names,) if isinstance(names, str) else tuple(names)


_QUESTION: Question[_Value] = Question(
    nothing=_NOTHING,
    join=_join,
    rules={"iota": _rule, "shard_map": _shard_map, **dict.fromkeys(CALLED, _inlined)},
    default=_rule,
    choose=_choose,
    opaque=_opaque,
    constant=_constant,
    loops=_LOOPS,
)
