"""Ranges of sums and extremes of elements: reductions, and linear maps of known rank."""

import math
from functools import partial

import numpy as np
from jax.extend import core

from vijax.jaxprs import _noise as places
from vijax.jaxprs._equations import shape_of
from vijax.jaxprs._range import (
    FIXED,
    INF,
    INFINITE,
    MOVES,
    Range,
    not_known,
    point,
    spans_all,
)
from vijax.jaxprs._range_places import with_draws
from vijax.jaxprs._range_unary import default

# --- reductions


def reduce_sum(eqn: core.JaxprEqn, ins: list[Range]) -> Range:
    """Return the range of sums of elements."""
    x = with_draws(ins[0], places.anywhere)
    if not x.noise:
        result = point(ins)
        nonzero = x.nonzero and (bool(x.sign) or result.low == MOVES)
        return result._replace(sign=x.sign, nonzero=nonzero)
    if x.unknown or (x.real and spans_all(x)):
        return x
    if not all(map(places.is_own, x.noise)):
        return _dependent(x)
    # A sum of n terms has n times their ends: 0, infinite ends and those that move stay as they are.
    low, high = (e if e in (0.0, -INF, INF, MOVES, INFINITE) else FIXED for e in (x.low, x.high))
    return Range(x.noise, low, high, x.sign, seams=x.seams)


def reduce_extreme(eqn: core.JaxprEqn, ins: list[Range]) -> Range:
    """Return the range of the largest or the smallest elements."""
    x = with_draws(ins[0], places.anywhere)
    if not x.noise or x.unknown:
        return x
    if not all(map(places.is_own, x.noise)):
        return _dependent(x)
    return Range(x.noise, x.low, x.high, x.sign, seams=x.seams)


def _dependent(x: Range) -> Range:
    """Return what several elements make that depend on each other: a set that is not known."""
    # Without parameters it is fixed, wherever its ends and its jumps are.
    end = MOVES if MOVES in (x.low, x.high) else FIXED
    return Range(x.noise, end, end, x.sign, seams=True)


# --- linear maps


def linear(eqn: core.JaxprEqn, ins: list[Range]) -> Range:
    """Mix elements linearly: draws that span the line still do, for a matrix of full rank."""
    # A matrix of parameters or data times draws; both drawn would be a product.
    noisy = [i for i, v in enumerate(ins) if v.noise]
    if len(noisy) != 1 or not (ins[noisy[0]].real and spans_all(ins[noisy[0]])):
        return default(eqn, ins)
    drawn, given = ins[noisy[0]], ins[1 - noisy[0]] if len(ins) == 2 else None
    made, of = (math.prod(shape_of(v)) for v in (eqn.outvars[0], eqn.invars[noisy[0]]))
    if given is not None and not _has_full_rank(eqn, given, 1 - noisy[0]):
        return not_known(
            ins, "its draws are mixed by a constant that is not shown to have full rank"
        )
    # More elements than draws lie in a subspace, as elements do that repeat one draw; parameters
    # move it.
    result = with_draws(drawn, partial(places.anywhere, repeated=made > of))
    if made > of and given is not None and given.low == MOVES:
        return Range(result.noise, MOVES, MOVES)
    return result


def _has_full_rank(eqn: core.JaxprEqn, given: Range, at: int) -> bool:
    """Whether a matrix is shown to have full rank, or counts as such: of parameters or data."""
    if given.low == MOVES or eqn.primitive.name != "dot_general":
        return given.low == MOVES or (given.nonzero and given.value is None)
    # As matrices [batch, rows, columns]: rows are free, columns are summed over.
    shape = shape_of(eqn.invars[at])
    contracted, batched = (axes[at] for axes in eqn.params["dimension_numbers"])
    free = [i for i in range(len(shape)) if i not in (*contracted, *batched)]
    rows, columns = (math.prod(shape[i] for i in axes) for axes in (free, contracted))
    array = _array(given, max(rows, columns))
    if array is not None:
        array = array.reshape(shape).transpose(*batched, *free, *contracted)
        return _are_full(array.reshape(-1, rows, columns))
    # All elements are one number: rows are the same.
    if isinstance(given.low, float):
        return rows == 1 and given.nonzero
    return given.nonzero and given.value is None


# The rank of a larger matrix is not asked for.
_MOST = 512


def _array(given: Range, size: int) -> np.ndarray | None:
    """Return the matrices of a constant, None where they are large or not known."""
    return None if given.value is None or size > _MOST else given.value.array()


def is_singular(given: Range, shape: tuple[int, ...]) -> bool:
    """Whether square matrices of a shape are shown to be singular, some at least."""
    n = shape[-1]
    array = _array(given, n)
    if array is not None:
        return not _are_full(array.reshape(-1, n, n))
    return isinstance(given.low, float) and (n > 1 or not given.nonzero)


def _are_full(matrices: np.ndarray) -> bool:
    """Whether all matrices have linearly independent rows, or where these are more, columns."""
    if not np.all(np.isfinite(matrices)) or not np.all(np.any(matrices != 0, axis=2)):
        return False
    # As float32 tells: what is smaller, for the size of the largest singular value, is rounding.
    values = np.linalg.svd(matrices, compute_uv=False)
    least = np.finfo(np.float32).eps * max(matrices.shape[1:])
    return bool(np.all(values[:, -1] > least * values[:, 0]))
