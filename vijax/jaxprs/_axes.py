"""Which axes of an array still tell apart what an input's did: sites of a plate, or a batch."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from jax.extend import core

from vijax.jaxprs._equations import shape_of
from vijax.jaxprs._interpreter import Loops, Question, interpret

Axes = tuple[int | str, ...] | None
"""None: free of what is followed. Else for each axis followed: the array's own axis that it still
is; below zero, the loop over it whose body this is, counted from the innermost, -1; or the name of
the primitive that mixed it.
"""

# Each output element reads the same element of every operand of full rank, and no other.
ELEMENTWISE = frozenset(
    """abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e
    bitcast_convert_type cbrt ceil clamp clz complex conj convert_element_type copy copy_p cos cosh
    digamma div eq eq_to erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igamma_grad_a igammac
    imag integer_pow is_finite le le_to lgamma log log1p logistic lt lt_to max min mul ne neg
    nextafter not or polygamma population_count pow random_gamma_grad real reduce_precision
    regularized_incomplete_beta rem round rsqrt select_n sharding_constraint shift_left
    shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh
    xor zeta""".split()
)
# The parameter that names the axes along which elements meet; the others stay, moved up where it
# removes axes.
ALONG = {
    "concatenate": "dimension",
    "rev": "dimensions",
    "sort": "dimension",
    "split": "axis",
    **dict.fromkeys("cumlogsumexp cummax cummin cumprod cumsum".split(), "axis"),
}
AWAY = {
    "unstack": "axis",
    "squeeze": "dimensions",
    **dict.fromkeys(
        "argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum".split(),
        "axes",
    ),
}
LINEAR_ALGEBRA = frozenset("cholesky eigh lu qr svd triangular_solve".split())


def axes(closed: core.ClosedJaxpr, inputs: Sequence[Axes]) -> list[Axes]:
    """Follow axes from the inputs of a jaxpr to its outputs.

    Independent are those that an output still has: sites of a plate, or members of a batch, whose
    values do not read each other. It is granted only where the jaxpr proves it.

    Args:
        closed: the jaxpr; what it closes over is free of what is followed.
        inputs: for each input, which of its axes are followed, such as (0,) of [n, d], or None.

    Returns:
        For each output the same: (0,) where axis 0 of the input has become axis 0 and nothing met.
    """
    return interpret(closed, inputs, _QUESTION, [None] * len(closed.consts))


# --- the question


def _join(several: Sequence[Axes], name: str) -> Axes:
    """Return the axes of what reads all of several arrays at one index."""
    joined: Axes = None
    for axes in several:
        if joined is None or axes is None:
            joined = axes if joined is None else joined
        else:
            joined = tuple(_meet(a, b, name) for a, b in zip(joined, axes, strict=True))
    return joined


def _meet(a: int | str, b: int | str, name: str) -> int | str:
    if a == b or isinstance(a, str):
        return a
    return b if isinstance(b, str) else name


def _map(axes: Axes, to: Callable[[int], int | str]) -> Axes:
    """Move an array's own axes; those of loops outside, and what is mixed, stay as they are."""
    if axes is None:
        return None
    return tuple(a if isinstance(a, str) or a < 0 else to(a) for a in axes)


def _choose(which: Axes, cases: Sequence[Axes], name: str) -> Axes:
    """Join the cases; a predicate is one number for all, so what it still told apart is mixed."""
    return _join([_map(which, lambda _: name), *cases], name)


def _opaque(name: str, several: Sequence[Axes]) -> Axes:
    return _mixed(_join(several, name), name)


def _mixed(axes: Axes, name: str) -> Axes:
    return None if axes is None else tuple(a if isinstance(a, str) else name for a in axes)


def _constant(value: Any) -> Axes:
    return None


def _each(to: Callable[[int], int | str]) -> Callable[[Axes], Axes]:
    """Apply a function to all axes that are not mixed yet, those of loops included."""

    def move(axes: Axes) -> Axes:
        return None if axes is None else tuple(a if isinstance(a, str) else to(a) for a in axes)

    return move


# A scan may run over what is followed, one after another, as long as nothing of one is carried to
# the next.
_LOOPS: Loops[Axes] = Loops(
    enter=_each(lambda a: a - 1 if a < 0 else a),
    slice=_each(lambda a: a - 1),  # axis 0 becomes the innermost loop, -1
    carry=_each(lambda a: "scan" if a == -1 else a),
    leave=_each(lambda a: a + 1 if a < 0 else a),
    stack=_each(lambda a: a + 1),
)


def _rule(eqn: core.JaxprEqn, ins: list[Axes]) -> list[Axes]:
    name = eqn.primitive.name
    moved = []
    for i, axes in enumerate(ins):
        if axes is not None:
            kept = _kept(eqn, i)
            still = (a if isinstance(a, str) or a < 0 else kept.get(a, name) for a in axes)
            moved.append(tuple(still))
    return [_join(moved, name)] * len(eqn.outvars)


_QUESTION: Question[Axes] = Question(
    nothing=None,
    join=_join,
    rules={},
    default=_rule,
    choose=_choose,
    opaque=_opaque,
    constant=_constant,
    loops=_LOOPS,
)

# --- which axes stay


def _kept(eqn: core.JaxprEqn, i: int) -> dict[int, int]:
    """Return which axes of operand i become which of the output's; what is left out is mixed."""
    name, params = eqn.primitive.name, eqn.params
    shape, out = shape_of(eqn.invars[i]), shape_of(eqn.outvars[0])
    same = {a: a for a in range(len(shape))}
    if name in ELEMENTWISE:
        return same if len(shape) == len(out) else {}
    if name in ALONG or name in AWAY:
        found = params[ALONG.get(name) or AWAY[name]]
        gone = {int(a) % len(shape) for a in (found if hasattr(found, "__iter__") else (found,))}
        stay = [a for a in same if a not in gone]
        return {a: j for j, a in enumerate(stay)} if name in AWAY else {a: a for a in stay}
    if name == "broadcast_in_dim" and i == 0:
        to = [int(b) for b in params["broadcast_dimensions"]]
        return {a: b for a, b in enumerate(to) if shape[a] == out[b]}
    if name == "stack":
        return {a: a + (a >= params["axis"]) for a in same}
    if name == "tile":
        return {a: a for a in same if params["reps"][a] == 1}
    if name == "transpose":
        return {int(a): j for j, a in enumerate(params["permutation"])}
    if name == "reshape" and i == 0 and params.get("dimensions") is None:
        return _reshape(shape, out)
    if name == "pad" and i == 0:
        return {a: a for a in same if tuple(params["padding_config"][a]) == (0, 0, 0)}
    if name in ("slice", "dynamic_slice") and i == 0:  # whole along an axis: it can only start at 0
        strides = params.get("strides") or (1,) * len(shape)
        return {a: a for a in same if out[a] == shape[a] and strides[a] == 1}
    if name == "dynamic_update_slice" and i < 2:
        return {a: a for a in same if shape_of(eqn.invars[1])[a] == out[a]} if i else same
    if name in LINEAR_ALGEBRA:
        return {a: a for a in range(len(shape) - 2)}
    if name == "lu_pivots_to_permutation":
        return {a: a for a in range(len(shape) - 1)}
    if name == "fft":
        return {a: a for a in range(len(shape) - len(params["fft_lengths"]))}
    if name == "top_k":
        return {a: a for a in same if a != params.get("axis", -1) % len(shape)}
    if name == "conv_general_dilated" and i == 0 and params["batch_group_count"] == 1:
        numbers = params["dimension_numbers"]
        return {int(numbers.lhs_spec[0]): int(numbers.out_spec[0])}
    if name == "dot_general":
        return _dot_general(eqn, i)
    if name == "gather":
        return _gather(eqn, i)
    if name.startswith("scatter"):
        return same if i == 0 else _scatter(eqn, i)
    return {}


def _reshape(shape: Sequence[int], out: Sequence[int]) -> dict[int, int]:
    """Keep axes of the same size after as many elements; those of size 1 tell nothing apart."""
    new = {(math.prod(out[:b]), out[b]): b for b in range(len(out)) if out[b] > 1}
    old = {a: (math.prod(shape[:a]), shape[a]) for a in range(len(shape))}
    return {a: new[place] for a, place in old.items() if place in new}


def _dot_general(eqn: core.JaxprEqn, i: int) -> dict[int, int]:
    contracting, batching = eqn.params["dimension_numbers"]
    free = []
    for operand, meet, pair in zip(eqn.invars, contracting, batching, strict=True):
        free.append([a for a in range(len(shape_of(operand))) if a not in (*meet, *pair)])
    start = len(batching[i]) + (len(free[0]) if i else 0)
    own = {a: start + j for j, a in enumerate(free[i])}
    return {int(a): j for j, a in enumerate(batching[i])} | own


def _gather(eqn: core.JaxprEqn, i: int) -> dict[int, int]:
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    rows = [a for a in range(len(shape_of(eqn.outvars[0]))) if a not in numbers.offset_dims]
    if i == 1:  # the last axis of the indices holds the coordinates of one place
        return {a: rows[a] for a in range(len(shape_of(eqn.invars[1])) - 1)}
    shape = shape_of(eqn.invars[0])
    inside = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    window = [a for a in range(len(shape)) if a not in inside]
    pairs = zip(window, sorted(map(int, numbers.offset_dims)), strict=True)
    whole = {a: b for a, b in pairs if sizes[a] == shape[a]}
    batch = zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)
    return whole | {int(a): rows[b] for a, b in batch}


def _scatter(eqn: core.JaxprEqn, i: int) -> dict[int, int]:
    numbers = eqn.params["dimension_numbers"]
    pairs = zip(numbers.scatter_indices_batching_dims, numbers.operand_batching_dims, strict=True)
    batch = {int(a): int(b) for a, b in pairs}
    if i == 1:
        return batch
    operand, updates = shape_of(eqn.invars[0]), shape_of(eqn.invars[2])
    rows = [a for a in range(len(updates)) if a not in numbers.update_window_dims]
    inside = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    window = [a for a in range(len(operand)) if a not in inside]
    pairs = zip(sorted(map(int, numbers.update_window_dims)), window, strict=True)
    whole = {a: b for a, b in pairs if updates[a] == operand[b]}
    return whole | {rows[a]: b for a, b in batch.items()}
