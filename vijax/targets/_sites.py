"""Which axes of an array still tell the sites of a plate apart: independence read from the jaxpr, or not granted."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from jax.extend import core

from vijax import dataflow

# Each output element reads the same element of every operand of full rank, and no other.
ELEMENTWISE = frozenset(
    """abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e bitcast_convert_type cbrt ceil
    clamp clz complex conj
    convert_element_type copy copy_p cos cosh digamma div eq eq_to erf erf_inv erfc exp exp2 expm1 floor ge gt igamma
    igamma_grad_a igammac imag integer_pow is_finite le le_to lgamma log log1p logistic lt lt_to max min mul ne neg
    nextafter not or polygamma population_count pow random_gamma_grad real reduce_precision
    regularized_incomplete_beta rem round rsqrt select_n sharding_constraint
    shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh
    xor zeta""".split()
)
# The parameter that names the axes along which elements meet; the others stay, moved up where it removes axes.
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
    **dict.fromkeys("argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum".split(), "axes"),
}
# Their one inner jaxpr is applied to the operands as they are; that of a reduction, say, is not.
CALLS = frozenset(
    """checkpoint closed_call core_call core_closed_call custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr jit pjit
    remat remat2""".split()
)
LINEAR_ALGEBRA = frozenset("cholesky eigh lu qr svd triangular_solve".split())

Axes = tuple[int | str, ...] | None
"""None: free of the sites. Else for each site axis the array's own axis that it still is, below zero for the loop over
it whose body this is, or the name of the primitive that mixed its sites.
"""


def follow(closed: core.ClosedJaxpr, inputs: Sequence[Axes]) -> list[Axes]:
    """Follow site axes from the inputs of a jaxpr to its outputs; what it closes over is free of them."""
    if (how := dataflow.hidden(closed.jaxpr)) is not None:
        some: tuple[int | str, ...] = next((a for a in inputs if a is not None), ())
        return [tuple(how for _ in some)] * len(closed.jaxpr.outvars)
    return _jaxpr(closed.jaxpr, inputs, 0)


def _jaxpr(jaxpr: Any, inputs: Sequence[Axes], depth: int) -> list[Axes]:
    env: dict[Any, Axes] = dict(zip(jaxpr.invars, inputs, strict=True))
    read = lambda atom: None if isinstance(atom, core.Literal) else env.get(atom)  # noqa: E731
    for eqn in jaxpr.eqns:
        ins = [read(atom) for atom in eqn.invars]
        outs = [None] * len(eqn.outvars) if all(a is None for a in ins) else _equation(eqn, ins, depth)
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _join(several: Sequence[Axes], how: str) -> Axes:
    """Return the axes of what reads all of several arrays at one index."""
    found: Axes = None
    for axes in several:
        if found is None or axes is None:
            found = axes if found is None else found
        else:
            found = tuple(_meet(a, b, how) for a, b in zip(found, axes, strict=True))
    return found


def _meet(a: int | str, b: int | str, how: str) -> int | str:
    return a if a == b or isinstance(a, str) else b if isinstance(b, str) else how


def _map(axes: Axes, to: Callable[[int], int | str]) -> Axes:
    """Move axes; those of loops outside, and what is mixed, stay as they are."""
    return None if axes is None else tuple(a if isinstance(a, str) or a < 0 else to(a) for a in axes)


def _open(value: Any) -> Any:
    return value.jaxpr if isinstance(value, core.ClosedJaxpr) else value


def _equation(eqn: Any, ins: list[Axes], depth: int) -> list[Axes]:
    name, params, n = eqn.primitive.name, eqn.params, len(eqn.outvars)
    if name == "cond":
        which = _map(ins[0], lambda _: name)
        cases = [_jaxpr(_open(b), ins[1:], depth) for b in params["branches"]]
        return [_join([which, *outs], name) for outs in zip(*cases, strict=True)]
    if name == "optimization_barrier":
        return list(ins)
    if name == "while":
        return _while(params, ins, depth)
    if name == "scan":
        return _scan(eqn, ins, depth)
    if name in CALLS:
        inner = next(_open(params[p]) for p in ("jaxpr", "call_jaxpr", "fun_jaxpr") if p in params)
        return _jaxpr(inner, ins, depth)
    if not eqn.outvars:  # a printed value
        return []
    moved = []
    for i, axes in enumerate(ins):
        kept = {} if axes is None else _kept(name, params, eqn, i)
        moved.append(_map(axes, lambda a, kept=kept: kept.get(a, name)))  # type: ignore[misc]
    return [_join(moved, name)] * n


def _kept(name: str, params: Any, eqn: Any, i: int) -> dict[int, int]:
    """Return which axes of operand i become which of the output's, index for index; what is left out is mixed."""
    shape, out = eqn.invars[i].aval.shape, getattr(eqn.outvars[0].aval, "shape", ())
    same = {a: a for a in range(len(shape))}
    if name in ELEMENTWISE:
        return same if len(shape) == len(out) else {}
    if name in ALONG or name in AWAY:
        found = params[ALONG.get(name) or AWAY[name]]
        gone = {int(a) % len(shape) for a in (found if hasattr(found, "__iter__") else (found,))}
        stay = [a for a in same if a not in gone]
        return {a: j for j, a in enumerate(stay)} if name in AWAY else {a: a for a in stay}
    if name == "broadcast_in_dim" and i == 0:
        return {a: b for a, b in enumerate(params["broadcast_dimensions"]) if shape[a] == out[b]}
    if name == "stack":
        return {a: a + (a >= params["axis"]) for a in same}
    if name == "tile":
        return {a: a for a in same if params["reps"][a] == 1}
    if name == "transpose":
        return {a: j for j, a in enumerate(params["permutation"])}
    if name == "reshape" and i == 0 and params.get("dimensions") is None:
        before = {(math.prod(out[:b]), out[b]): b for b in range(len(out)) if out[b] > 1}
        return {a: before[k] for a in same if (k := (math.prod(shape[:a]), shape[a])) in before}
    if name == "pad" and i == 0:
        return {a: a for a, config in enumerate(params["padding_config"]) if tuple(config) == (0, 0, 0)}
    if name in ("slice", "dynamic_slice") and i == 0:  # whole along an axis: it can only start at 0
        strides = params.get("strides") or (1,) * len(shape)
        return {a: a for a in same if out[a] == shape[a] and strides[a] == 1}
    if name == "dynamic_update_slice" and i < 2:
        return {a: a for a in same if eqn.invars[1].aval.shape[a] == out[a]} if i else same
    if name in LINEAR_ALGEBRA:
        return {a: a for a in range(len(shape) - 2)}
    if name == "top_k":
        return {a: a for a in same if a != params.get("axis", -1) % len(shape)}
    if name == "conv_general_dilated" and i == 0 and params["batch_group_count"] == 1:
        return {params["dimension_numbers"].lhs_spec[0]: params["dimension_numbers"].out_spec[0]}
    if name == "dot_general":
        return _dot_general(params["dimension_numbers"], eqn, i)
    if name == "gather":
        return _gather(params["dimension_numbers"], params["slice_sizes"], eqn, i)
    if name.startswith("scatter"):
        return same if i == 0 else _scatter(params["dimension_numbers"], eqn, i)
    return {}


def _dot_general(numbers: Any, eqn: Any, i: int) -> dict[int, int]:
    contracted, batch = numbers[0][i], numbers[1][i]
    free = [[a for a in range(eqn.invars[j].aval.ndim) if a not in (*numbers[0][j], *numbers[1][j])] for j in (0, 1)]
    start = len(batch) + (len(free[0]) if i else 0)
    return {a: j for j, a in enumerate(batch)} | {a: start + j for j, a in enumerate(free[i]) if a not in contracted}


def _gather(d: Any, sizes: Any, eqn: Any, i: int) -> dict[int, int]:
    rows = [a for a in range(eqn.outvars[0].aval.ndim) if a not in d.offset_dims]
    if i == 1:  # the last axis of the indices holds the coordinates of one place
        return {a: rows[a] for a in range(eqn.invars[1].aval.ndim - 1)}
    shape = eqn.invars[0].aval.shape
    window = [a for a in range(len(shape)) if a not in (*d.collapsed_slice_dims, *d.operand_batching_dims)]
    whole = {a: b for a, b in zip(window, sorted(d.offset_dims), strict=True) if sizes[a] == shape[a]}
    batch = zip(d.operand_batching_dims, d.start_indices_batching_dims, strict=True)
    return whole | {a: rows[b] for a, b in batch}


def _scatter(d: Any, eqn: Any, i: int) -> dict[int, int]:
    batch = dict(zip(d.scatter_indices_batching_dims, d.operand_batching_dims, strict=True))
    if i == 1:
        return batch
    operand, updates = eqn.invars[0].aval.shape, eqn.invars[2].aval.shape
    rows = [a for a in range(len(updates)) if a not in d.update_window_dims]
    window = [a for a in range(len(operand)) if a not in (*d.inserted_window_dims, *d.operand_batching_dims)]
    whole = {a: b for a, b in zip(sorted(d.update_window_dims), window, strict=True) if updates[a] == operand[b]}
    return whole | {rows[a]: b for a, b in batch.items()}


def _fixpoint(step: Callable[[list[Axes]], list[Axes]], carry: list[Axes], how: str) -> list[Axes]:
    while True:
        new = [_join([a, b], how) for a, b in zip(carry, step(carry), strict=True)]
        if new == carry:
            return carry
        carry = new


def _while(params: Any, ins: list[Axes], depth: int) -> list[Axes]:
    nc, nb = params["cond_nconsts"], params["body_nconsts"]
    cond_consts, body_consts, carry = ins[:nc], ins[nc : nc + nb], ins[nc + nb :]

    def step(carry: list[Axes]) -> list[Axes]:
        on = _jaxpr(_open(params["cond_jaxpr"]), [*cond_consts, *carry], depth)[0]
        outs = _jaxpr(_open(params["body_jaxpr"]), [*body_consts, *carry], depth)
        return [_join([out, _map(on, lambda _: "while")], "while") for out in outs]

    return _fixpoint(step, carry, "while")


def _scan(eqn: Any, ins: list[Axes], depth: int) -> list[Axes]:
    """Let a loop run over sites, each in its turn, as long as nothing of one is carried to the next."""
    body, this = _open(eqn.params["jaxpr"]), -depth - 1
    # JAX 0.12 no longer states the counts; what is scanned over, in or out, has one axis more outside than in the body.
    same = lambda outside, inside: outside.aval.ndim == inside.aval.ndim  # noqa: E731
    nk = sum(map(same, eqn.outvars, body.outvars))
    nc = sum(map(same, eqn.invars, body.invars)) - nk
    consts, carry = ins[:nc], ins[nc : nc + nk]
    xs = [_map(a, lambda i: i - 1 if i else this) for a in ins[nc + nk :]]

    def carried(axes: Axes) -> Axes:
        return axes if axes is None else tuple("scan" if a == this else a for a in axes)

    def step(carry: list[Axes]) -> list[Axes]:
        return [carried(a) for a in _jaxpr(body, [*consts, *carry, *xs], depth + 1)[:nk]]

    carry = _fixpoint(step, carry, "scan")
    ys = _jaxpr(body, [*consts, *carry, *xs], depth + 1)[nk:]
    outs = [_map(a, lambda i: i + 1) for a in ys]
    return carry + [None if a is None else tuple(0 if i == this else i for i in a) for a in outs]
