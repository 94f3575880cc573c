"""Where each axis of a variable comes from: from its input, NumPy's rules, vmap, or a call."""

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

from jax.extend import core

from vijax.jaxprs._calls import INSTALLED, call_of
from vijax.jaxprs._equations import Atom, shape_of
from vijax.jaxprs._interpreter import Loops

Shape = tuple[int, ...]
# Functions that make an array of a number: their axes are meant.
_NEW_ARRAYS = frozenset({"full", "ones", "zeros"})


class Axis(IntEnum):
    """Where an axis comes from; where several operands share one, the largest holds."""

    FILLED = 0  # a scalar, repeated, or in more axes
    PROMOTED = 1  # added by NumPy's rules, since another operand has more axes
    CAME = 2  # an input or data had it, with length 1
    MAPPED = 3  # added by vmap, or by NumPy's rules under it
    BY_HAND = 4  # added by a call of its own: x[:, None], expand_dims, reshape, keepdims
    OWN = 5  # an axis with a length of its own


class Known(NamedTuple):
    """What is known of a variable.

    Fields:
        depends: whether an input reaches it.
        axes: where each of its axes comes from; None where its shape alone tells.
    """

    depends: bool
    axes: tuple[Axis, ...] | None


NOTHING = Known(depends=False, axes=None)


# --- axes


def of_shape(shape: Shape) -> tuple[Axis, ...]:
    """Return the axes of an input or of data."""
    if all(n == 1 for n in shape):
        return (Axis.FILLED,) * len(shape)
    return tuple(Axis.CAME if n == 1 else Axis.OWN for n in shape)


def axes_of(variable: Atom, value: Known) -> tuple[Axis, ...]:
    """Return the axes of a variable, by its shape where they are not known."""
    shape = shape_of(variable)
    fits = value.axes is not None and len(value.axes) == len(shape)
    return value.axes if fits and value.axes is not None else of_shape(shape)


def axes_of_each(variables: Sequence[Atom], ins: Sequence[Known]) -> list[list[tuple[int, Axis]]]:
    """Return the length and the kind of each axis of each operand."""
    pairs = zip(variables, ins, strict=True)
    return [list(zip(shape_of(v), axes_of(v, value), strict=True)) for v, value in pairs]


def join(several: Sequence[Known]) -> Known:
    """Join axis by axis, the largest kind of each, where all have the same number of axes."""
    known = [v.axes for v in several if v.axes is not None]
    same = known and len({len(axes) for axes in known}) == 1
    axes = tuple(map(max, *known)) if same and len(known) > 1 else known[0] if same else None
    return Known(any(v.depends for v in several), axes)


def elementwise(
    out: Atom, operands: Sequence[Sequence[tuple[int, Axis]]]
) -> tuple[Axis, ...] | None:
    """Join the axes of operands with the shape of the result; scalars say nothing."""
    shape = shape_of(out)
    arrays = [axes for axes in operands if axes]
    # Each operand in full rank, with each axis as long as the result's, or 1.
    fit = all(
        len(axes) == len(shape) and all(n in (1, m) for (n, _), m in zip(axes, shape, strict=True))
        for axes in arrays
    )
    if not arrays or not fit:
        return None
    return tuple(max(axes[i][1] for axes in arrays) for i in range(len(shape)))


# --- rules


def broadcast(
    eqn: core.JaxprEqn, before: tuple[Axis, ...], made_by: dict[int, core.JaxprEqn]
) -> tuple[Axis, ...]:
    """Return the axes of a broadcast: who added the new ones tells whether they are meant."""
    shape, kept = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    # The user's own call of broadcast_to is meant; JAX's, on the way of x + y, is NumPy's rules.
    call = call_of(eqn)
    own = call.file != "" and not call.file.startswith(INSTALLED)
    by_hand = own and call.functions[-1:] == ("broadcast_to",)
    # A number in more axes is filled up, unless the call was one for a new array.
    if not before:
        made = own and bool(_NEW_ARRAYS.intersection(call.functions[-1:]))
        return of_shape(shape) if made else (Axis.FILLED,) * len(shape)
    # keepdims=True: the reduction and the broadcast are parts of one call, (file, line, functions).
    reduction = made_by.get(id(eqn.invars[0]))
    keepdims = reduction is not None and call_of(reduction)[:3] == call[:3]
    by_hand |= keepdims or any("expand_dims" in name for name in call.functions)
    # vmap moves its axis to the front, before all axes that the operand had.
    mapped = not by_hand and any("BatchTrace" in name for name in call.functions)
    first = min(kept, default=0)

    new = Axis.BY_HAND if by_hand else Axis.PROMOTED
    axes = [Axis.MAPPED if mapped and i < first else new for i in range(len(shape))]
    if mapped and first:  # vmap adds its axis last: what was added before was NumPy's
        before = tuple(Axis.PROMOTED if a is Axis.MAPPED else a for a in before)
    # Axes that were there keep their kind, except those of length 1 that were stretched by hand.
    for i, axis, n in zip(kept, before, shape_of(eqn.invars[0]), strict=True):
        stretched = by_hand and n != shape[i]
        axes[i] = Axis.BY_HAND if stretched else axis
    return tuple(axes)


def _reshape(eqn: core.JaxprEqn, ins: list[Known]) -> list[Known]:
    # Axes of length 1 may come and go; the longer ones stay if their lengths do, in their order.
    before, old = axes_of(eqn.invars[0], ins[0]), shape_of(eqn.invars[0])
    new, call = shape_of(eqn.outvars[0]), call_of(eqn)
    library = call.file.startswith(INSTALLED)
    # The first axis that is longer than 1: what is in front of it was added in front.
    leading = next((i for i, n in enumerate(new) if n != 1), 0)
    unraveled = any("unravel" in name for name in call.functions)

    def added(i: int) -> Axis:
        if library and i < leading:
            return Axis.PROMOTED  # as JAX and NumPyro align shapes
        return Axis.CAME if unraveled else Axis.BY_HAND

    own = [axis for axis, n in zip(before, old, strict=True) if n != 1]
    same = [n for n in old if n != 1] == [n for n in new if n != 1]
    long = iter(own if same else [Axis.OWN] * len(new))
    axes = [added(i) if n == 1 else next(long) for i, n in enumerate(new)]
    # A column stays a column.
    if old[-1:] == new[-1:] == (1,):
        axes[-1] = before[-1]
    return [Known(ins[0].depends, tuple(axes))]


def _transpose(eqn: core.JaxprEqn, ins: list[Known]) -> list[Known]:
    before = axes_of(eqn.invars[0], ins[0])
    return [Known(ins[0].depends, tuple(before[i] for i in eqn.params["permutation"]))]


def _stack(eqn: core.JaxprEqn, ins: list[Known]) -> list[Known]:
    joined = join([Known(v.depends, axes_of(u, v)) for u, v in zip(eqn.invars, ins, strict=True)])
    # Of one array alone, stack is another name of expand_dims.
    new = Axis.OWN if len(ins) > 1 else Axis.BY_HAND
    axes, at = joined.axes or (), eqn.params["axis"]
    return [joined._replace(axes=(*axes[:at], new, *axes[at:]))]


def _without(eqn: core.JaxprEqn, ins: list[Known]) -> list[Known]:
    # A squeeze or a reduction: the other axes stay.
    dropped = eqn.params["dimensions" if eqn.primitive.name == "squeeze" else "axes"]
    kept = enumerate(axes_of(eqn.invars[0], ins[0]))
    axes = tuple(axis for i, axis in kept if i not in dropped)
    return [Known(ins[0].depends, axes)] * len(eqn.outvars)


def _dot(eqn: core.JaxprEqn, ins: list[Known]) -> list[Known]:
    # [batch..., free of the left..., free of the right...]
    contracted, batched = eqn.params["dimension_numbers"]
    left, right = (axes_of(v, value) for v, value in zip(eqn.invars, ins, strict=True))
    batch = [max(left[i], right[j]) for i, j in zip(*batched, strict=True)]
    free = [
        axis
        for side, axes in enumerate((left, right))
        for i, axis in enumerate(axes)
        if i not in contracted[side] and i not in batched[side]
    ]
    return [Known(ins[0].depends or ins[1].depends, (*batch, *free))]


def _picked(eqn: core.JaxprEqn, ins: list[Known]) -> list[Known]:
    """Take results by their shape; an axis of length 1 is meant if one of the operand's was."""
    meant = Axis.BY_HAND in axes_of(eqn.invars[0], ins[0])
    one = Axis.BY_HAND if meant else Axis.CAME
    shapes = [shape_of(v) for v in eqn.outvars]
    depends = any(v.depends for v in ins)
    return [Known(depends, tuple(one if n == 1 else Axis.OWN for n in s)) for s in shapes]


REDUCTIONS = (
    "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax argmin"
)
RULES = {
    "reshape": _reshape,
    "transpose": _transpose,
    "stack": _stack,
    **dict.fromkeys(f"squeeze {REDUCTIONS}".split(), _without),
    "dot_general": _dot,
    **dict.fromkeys(
        "gather dynamic_slice slice split triangular_solve concatenate".split(), _picked
    ),
    "iota": lambda eqn, _: [Known(depends=False, axes=of_shape(shape_of(eqn.outvars[0])))],
}


# A turn of a scan has what is scanned over without its first axis, and collects along a new one.


def _sliced(value: Known) -> Known:
    return value._replace(axes=None if value.axes is None else value.axes[1:])


def _stacked(value: Known) -> Known:
    return value._replace(axes=None if value.axes is None else (Axis.OWN, *value.axes))


LOOPS: Loops[Known] = Loops(
    enter=lambda v: v, slice=_sliced, carry=lambda v: v, leave=lambda v: v, stack=_stacked
)
