"""What each primitive does with axes: which of an operand's become which of the result's."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend import core
from jax.typing import DTypeLike

from vijax.jaxprs._equations import LAID_OUT, shape_of
from vijax.jaxprs._places import reshaped

# Each output element reads the same element of every operand of full rank, and no other.
ELEMENTWISE = LAID_OUT | frozenset(
    """abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e
    bitcast_convert_type cbrt ceil clamp clz complex conj convert_element_type cos cosh
    digamma div eq eq_to erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igamma_grad_a igammac
    imag integer_pow is_finite le le_to lgamma log log1p log2 logistic lt lt_to max
    min mul mulhi name ne neg nextafter not one_minus_square or polygamma polynomial
    population_count pow
    random_gamma random_gamma_grad real reduce_precision regularized_incomplete_beta rem
    round rsqrt select_n shift_left shift_right_arithmetic shift_right_logical
    sign sin sinh sqrt square stop_gradient sub tan tanh xor zeta""".split()
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
# Likewise, of primitives that remove those axes from their result.
AWAY = {
    "unstack": "axis",
    "squeeze": "dimensions",
    **dict.fromkeys(
        "argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum".split(),
        "axes",
    ),
}
# Elements meet along the axes that have a window of more than one.
WINDOWS = frozenset("reduce_window reduce_window_max reduce_window_min reduce_window_sum".split())
# Of the last two axes; those before are a batch of matrices.
LINEAR_ALGEBRA = frozenset(
    """cholesky cholesky_update eig eigh geqrf householder_product lu qr schur svd
    triangular_solve tridiagonal_solve""".split()
)
# Over axes of a mesh; within a block they are elementwise.
REDUCED_OVER_DEVICES = frozenset("pmax pmin psum psum2 psum_invariant".split())

# What is known of whole numbers that are free of what is followed: (axis,) where each is its own
# index along that axis; of coordinates, the same for each column of the last axis; NEVER where a
# truth value is False everywhere.
Ramp = tuple[int | None, ...] | str | None
NEVER = "never"


def ramp_of(eqn: core.JaxprEqn, ramps: Sequence[Ramp]) -> Ramp:
    """Return what is known of a result as an index, from what is known of the operands."""
    name, params, out = eqn.primitive.name, eqn.params, shape_of(eqn.outvars[0])
    if name == "iota":
        return (int(params["dimension"]),)
    if name == "concatenate" and params["dimension"] == len(out) - 1 and out[-1] <= MOST_COLUMNS:
        pairs = zip(eqn.invars, ramps, strict=True)
        columns = tuple(c for v, ramp in pairs for c in _columns(shape_of(v), ramp))
        return columns if any(c is not None for c in columns) else None
    # What follows keeps an index, an index along one axis, as one.
    first = ramps[0] if ramps else None
    if not isinstance(first, tuple) or len(first) != 1 or first[0] is None:
        return None
    axis, shape = first[0], shape_of(eqn.invars[0])
    if name == "convert_element_type" and not _holds(eqn.params["new_dtype"], shape[axis]):
        return None  # where numbers wrap around, two members have one index
    if name in ("convert_element_type", "copy", "stop_gradient"):
        return first
    if name == "lt":  # index < 0, by which JAX wraps negative indices
        other = eqn.invars[1]
        below = isinstance(other, core.Literal) and not shape_of(other) and other.val <= 0
        return NEVER if below else None
    if name == "broadcast_in_dim":
        to = int(params["broadcast_dimensions"][axis])
        return (to,) if shape[axis] == out[to] else None
    if name == "reshape" and params.get("dimensions") is None:
        place = reshaped(axis, shape, out)
        return (place,) if isinstance(place, int) else None
    return None


MOST_COLUMNS = 8  # more are no coordinates of an array


def _columns(shape: Sequence[int], ramp: Ramp) -> tuple[int | None, ...]:
    """Return for each column of the last axis along which axis it is its own index, if it is."""
    if not isinstance(ramp, tuple):
        return (None,) * shape[-1]
    if len(ramp) == shape[-1] > 1:
        return ramp
    # Along its own last axis each column holds another number, which is no index of rows.
    return (None if ramp[0] == len(shape) - 1 else ramp[0],) * shape[-1]


def kept(eqn: core.JaxprEqn, i: int, ramps: Sequence[Ramp]) -> dict[int, int]:
    """Return which axes of operand i become which of the output's; what is left out is mixed.

    Reshapes are for `reshaped`, which knows of parts of axes too.
    """
    name, params = eqn.primitive.name, eqn.params
    shape, out = shape_of(eqn.invars[i]), shape_of(eqn.outvars[0])
    same = {a: a for a in range(len(shape))}
    if name in ELEMENTWISE:
        return same if len(shape) == len(out) else {}
    if name in ALONG or name in AWAY:
        along = params[ALONG.get(name) or AWAY[name]]
        # One axis or several, counted from the end where negative.
        gone = {int(a) % len(shape) for a in (along if hasattr(along, "__iter__") else (along,))}
        stay = [a for a in same if a not in gone]
        return {a: j for j, a in enumerate(stay)} if name in AWAY else {a: a for a in stay}
    if name == "broadcast_in_dim" and i == 0:  # an axis of length 1 that is stretched is gone
        to = [int(b) for b in params["broadcast_dimensions"]]
        return {a: b for a, b in enumerate(to) if shape[a] == out[b]}
    if name == "stack":  # axes behind the new one move up
        return {a: a + (a >= params["axis"]) for a in same}
    if name == "transpose":
        return {int(a): j for j, a in enumerate(params["permutation"])}
    if name == "pad" and i == 0:  # (low, high, interior)
        return {a: a for a in same if tuple(params["padding_config"][a]) == (0, 0, 0)}
    if name in ("slice", "dynamic_slice") and i == 0:  # whole along an axis: it can only start at 0
        strides = params.get("strides") or (1,) * len(shape)
        return {a: a for a in same if out[a] == shape[a] and strides[a] == 1}
    if name == "dynamic_update_slice" and i < 2:  # the update must be whole along the axis too
        return {a: a for a in same if shape_of(eqn.invars[1])[a] == out[a]} if i else same
    if name == "triangular_solve" and i == 1:  # its columns, or rows, are systems of their own
        last = len(shape) - (1 if params["left_side"] else 2)
        return {a: a for a in (*range(len(shape) - 2), last)}
    if name in LINEAR_ALGEBRA:  # vectors beside matrices have one axis less
        return {a: a for a in range(max(len(shape_of(v)) for v in eqn.invars) - 2)}
    if name == "lu_pivots_to_permutation":
        return {a: a for a in range(len(shape) - 1)}
    if name == "fft":
        return {a: a for a in range(len(shape) - len(params["fft_lengths"]))}
    if name in ("top_k", "approx_top_k"):
        along = params.get("axis", params.get("reduction_dimension", -1))
        return {a: a for a in same if a != along % len(shape)}
    if name in WINDOWS and i == 0 and len(eqn.outvars) == 1:
        return {a: a for a in same if _no_window(params, a)}
    # A convolution sums over positions and channels; the images of a batch stay apart.
    if name == "conv_general_dilated" and i == 0 and params["batch_group_count"] == 1:
        numbers = params["dimension_numbers"]
        return {int(numbers.lhs_spec[0]): int(numbers.out_spec[0])}
    if name == "dot_general":
        return _dot_general(eqn, i)
    if name == "gather":
        return _gather(eqn, i, ramps[1])
    if name.startswith("scatter"):
        return same if i == 0 else _scatter(eqn, i, ramps[1])
    return {}


def _no_window(params: dict[str, Any], axis: int) -> bool:
    """Whether a reduction over windows leaves an axis as it is."""
    ones = ("window_dimensions", "window_strides", "base_dilation", "window_dilation")
    return all(params[p][axis] == 1 for p in ones) and tuple(params["padding"][axis]) == (0, 0)


def _dot_general(eqn: core.JaxprEqn, i: int) -> dict[int, int]:
    # The result has the axes [batch..., free of the left..., free of the right...].
    contracting, batching = eqn.params["dimension_numbers"]
    free = []
    for operand, meet, pair in zip(eqn.invars, contracting, batching, strict=True):
        free.append([a for a in range(len(shape_of(operand))) if a not in (*meet, *pair)])
    start = len(batching[i]) + (len(free[0]) if i else 0)
    own = {a: start + j for j, a in enumerate(free[i])}
    return {int(a): j for j, a in enumerate(batching[i])} | own


def _gather(eqn: core.JaxprEqn, i: int, ramp: Ramp) -> dict[int, int]:
    # Each row of indices reads one slice; the result has the axes of rows and those of slices.
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    rows = [a for a in range(len(shape_of(eqn.outvars[0]))) if a not in numbers.offset_dims]
    indices = shape_of(eqn.invars[1])
    if i == 1:  # the last axis of the indices holds the coordinates of one place
        return {a: rows[a] for a in range(len(indices) - 1)}
    # Axes that a slice keeps, and of those the ones that it reads as a whole.
    shape = shape_of(eqn.invars[0])
    inside = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    window = [a for a in range(len(shape)) if a not in inside]
    pairs = zip(window, sorted(map(int, numbers.offset_dims)), strict=True)
    whole = {a: b for a, b in pairs if sizes[a] == shape[a]}
    # Axes that are rows of the result: a batch of gathers, or x[arange(n)], each its own row.
    batch = zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)
    own = _own_rows([*map(int, numbers.start_index_map)], shape, indices, ramp)
    single = {a: rows[r] for a, r in own.items() if a in numbers.collapsed_slice_dims}
    return whole | single | {int(a): rows[b] for a, b in batch}


def _scatter(eqn: core.JaxprEqn, i: int, ramp: Ramp) -> dict[int, int]:
    # The reverse of a gather: axis of the indices -> axis of the array that is written.
    numbers = eqn.params["dimension_numbers"]
    pairs = zip(numbers.scatter_indices_batching_dims, numbers.operand_batching_dims, strict=True)
    batch = {int(a): int(b) for a, b in pairs}
    operand, indices, updates = map(shape_of, eqn.invars[:3])
    own = _own_rows([*map(int, numbers.scatter_dims_to_operand_dims)], operand, indices, ramp)
    batch |= {r: a for a, r in own.items() if a in numbers.inserted_window_dims}
    if i == 1:
        return batch
    # i == 2, the updates: axes of rows by their indices, axes of a slice where it is whole.
    rows = [a for a in range(len(updates)) if a not in numbers.update_window_dims]
    inside = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    window = [a for a in range(len(operand)) if a not in inside]
    pairs = zip(sorted(map(int, numbers.update_window_dims)), window, strict=True)
    whole = {a: b for a, b in pairs if updates[a] == operand[b]}
    return whole | {rows[a]: b for a, b in batch.items()}


def _own_rows(
    coordinates: Sequence[int], shape: Sequence[int], indices: Sequence[int], ramp: Ramp
) -> dict[int, int]:
    """Return for each axis of an array that is read or written at its own rows, which rows."""
    columns = _columns(indices, ramp) if indices[-1] == len(coordinates) else ()
    return {
        a: r
        for a, r in zip(coordinates, columns, strict=False)
        if r is not None and indices[r] == shape[a]
    }


def _holds(dtype: DTypeLike, count: int) -> bool:
    """Whether a dtype tells as many indices apart."""
    # A float of p bits of mantissa, eps = 2^(1-p), holds whole numbers up to 2^p.
    if jnp.issubdtype(dtype, jnp.integer):
        return bool(jnp.iinfo(dtype).max >= count - 1)
    return bool(jnp.issubdtype(dtype, jnp.floating) and 2 / jnp.finfo(dtype).eps >= count)
