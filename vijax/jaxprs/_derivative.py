"""Which sources reach an output with their derivative, and which through a jump that loses it."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from vijax.jaxprs._equations import DECLARED, LAID_OUT, inner_jaxpr, opened, shape_of, varies
from vijax.jaxprs._flow import (
    NOTHING,
    Flow,
    Shift,
    alike,
    anew,
    broken,
    combine,
    merge,
    never_cancels,
    placed,
    stopped,
)
from vijax.jaxprs._interpreter import Question, interpret


def flows(
    closed: core.ClosedJaxpr, inputs: Sequence[Flow], const: Flow, *, values: bool = False
) -> list[Flow]:
    """Follow inputs, and closed-over values that can be differentiated, to the outputs of a jaxpr.

    Args:
        closed: the jaxpr, as `trace` returns it.
        inputs: the flow of each input.
        const: the flow of every closed-over float array of JAX that may depend on what somebody
            differentiates.
        values: how the outputs' own values depend on the sources, whatever derivative was declared
            for a function (custom_jvp) or stopped.

    Returns:
        The flow of each output.
    """
    const = _bare(const)
    traced = any(isinstance(c, jax.core.Tracer) for c in closed.consts)
    consts = [const if _is_parameter(c, traced=traced) else NOTHING for c in closed.consts]
    question = _VALUES if values else _DERIVATIVES
    return interpret(closed, [_bare(flow) for flow in inputs], question, consts)


def _bare(flow: Flow) -> Flow:
    return NOTHING if flow == NOTHING else flow


def _is_parameter(value: Any, *, traced: bool) -> bool:
    """Tell parameters from constants of the code, which numpy arrays are.

    Beside tracers, a concrete array is a constant too; alone, it stands for what would be traced.
    """
    if not isinstance(value, jax.Array) or not jnp.issubdtype(value.dtype, jnp.inexact):
        return False
    return varies(value) if traced else True


def _constant(value: Any) -> Flow:
    return NOTHING


def _choose(which: Flow, cases: Sequence[Flow], how: str) -> Flow:
    return alike(merge([broken(which, how), *cases]), cases, how)


def _opaque(name: str, flows: Sequence[Flow]) -> Flow:
    return merge(flows)._replace(opaque=frozenset({name}))


def _inexact(variable: Any) -> bool:
    dtype = getattr(variable.aval, "dtype", np.dtype(bool))
    kind = getattr(dtype, "kind", "")  # that of most, told at once; bfloat16 has "V", and keys none
    return kind == "f" or (kind not in "biu" and bool(jnp.issubdtype(dtype, jnp.inexact)))


def _called(eqn: core.JaxprEqn, ins: list[Flow], outs: list[Flow]) -> list[Flow]:
    """Tell apart what was stopped within two calls of one function."""
    outside = {shift.part for flow in ins for shift in flow.shifts}

    def inside(flow: Flow) -> Flow:
        if not flow.shifts:
            return flow
        named = (
            s if s.part in outside else s._replace(part=(id(eqn), s.part)) for s in flow.shifts
        )
        return flow._replace(shifts=frozenset(named))

    return [inside(flow) for flow in outs]


# --- the rules


def _default(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    flow = anew(merge(ins), id(eqn))
    if all(_inexact(v) for v in eqn.outvars) or not any(_inexact(v) for v in eqn.invars):
        return [flow] * len(eqn.outvars)
    # Whole numbers made of real ones: indices of top_k, pivots, bits.
    return [flow if _inexact(v) else broken(flow, eqn.primitive.name) for v in eqn.outvars]


def _smooth(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    return [anew(merge(ins), id(eqn))] * len(eqn.outvars)


def _jump(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    return [broken(merge(ins), eqn.primitive.name)] * len(eqn.outvars)


def _stop(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    flow = stopped(ins[0], id(eqn))
    shape = shape_of(eqn.outvars[0])
    return [flow._replace(shifts=frozenset(placed(s, shape) for s in flow.shifts))]


def _same(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    return [ins[0]]


def _moved(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    """Follow the axes of stopped parts through broadcasts and axes of length 1; lose them elsewhere."""
    flow = ins[0]
    if not flow.shifts:
        return [flow]
    shape, out = shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])
    if eqn.primitive.name == "broadcast_in_dim":
        to = dict(enumerate(map(int, eqn.params["broadcast_dimensions"])))
    elif [n for n in shape if n > 1] == [n for n in out if n > 1]:
        longer = (a for a, n in enumerate(out) if n > 1)
        to = {a: next(longer) for a, n in enumerate(shape) if n > 1}
    else:
        return [anew(flow, id(eqn))]
    moved = (
        s._replace(axes=None if s.axes is None else tuple(to[a] for a in s.axes))
        for s in (placed(s, shape) for s in flow.shifts)
    )
    return [flow._replace(shifts=frozenset(moved))]


def _select(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    flow = merge([broken(ins[0], "select_n"), *ins[1:]])
    return [alike(flow, ins[1:], id(eqn))]


def _sort(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    """Let what is sorted through, which stays continuous; what is carried along jumps."""
    count = eqn.params["num_keys"]
    keys = anew(merge(ins[:count]), id(eqn))
    jumps = broken(keys, "sort")
    return [merge([flow, keys if i < count else jumps]) for i, flow in enumerate(ins)]


def _convert(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    target, flow = eqn.params["new_dtype"], ins[0]
    whole = not jnp.issubdtype(target, jnp.inexact)
    if whole or np.dtype(target).itemsize < 2:  # float8 and less: quantized
        return [broken(flow, "cast") if _inexact(eqn.invars[0]) else flow]
    return [flow]


def _reduce_precision(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    """Let mixed precision through: bfloat16 has 7 bits of mantissa, float16 5 of exponent."""
    coarse = eqn.params["mantissa_bits"] < 7 or eqn.params["exponent_bits"] < 5
    return [broken(ins[0], "reduce_precision") if coarse else ins[0]]


def _indexed(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    """Break the operands that only say where to read or write."""
    name = eqn.primitive.name
    start = _INDICES.get(name, 1)
    where = ins[start:] if name in _INDICES else ins[1:2]
    rest = ins[:start] if name in _INDICES else [ins[0], *ins[2:]]
    return [anew(merge([*rest, broken(merge(where), name)]), id(eqn))] * len(eqn.outvars)


# --- the rules that a stopped shift of softmax or logsumexp passes through


def _sum(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    flow = merge(ins)
    if not flow.shifts:
        return [flow]
    if all(shift.factor for shift in flow.shifts):
        return [alike(flow, ins, id(eqn))]
    sign = -1 if eqn.primitive.name == "sub" else 1
    operands = zip(ins, (1, sign), strict=True)
    return [combine(flow, operands, factor=False, part=id(eqn))]


def _product(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    sign = -1 if eqn.primitive.name == "div" else 1
    operands = zip(ins, (1, sign), strict=True)
    return [combine(merge(ins), operands, factor=True, part=id(eqn))]


def _total(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    """Sums of one operand, and |x|, keep a positive factor that is common to what is summed."""
    flow = ins[0]
    over = tuple(map(int, eqn.params.get("axes", ())))

    def common(shift: Shift) -> bool:
        return shift.factor and shift.axes is not None and not set(over) & set(shift.axes)

    if not all(map(common, flow.shifts)):
        return [anew(flow, id(eqn))]
    left = [a for a in range(len(shape_of(eqn.invars[0]))) if a not in over]
    moved = (s._replace(axes=tuple(left.index(a) for a in s.axes or ())) for s in flow.shifts)
    return [flow._replace(shifts=frozenset(moved))]


def _maximum(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    flow = merge(ins)
    terms = not any(s.factor for s in flow.shifts)
    return [alike(flow, ins, id(eqn)) if terms else anew(flow, id(eqn))]


def _exponential(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    """exp makes factors of terms, log terms of factors."""
    flow, factor = ins[0], eqn.primitive.name == "log"
    if any(s.factor != factor for s in flow.shifts):
        return [anew(flow, id(eqn))]
    return [flow._replace(shifts=frozenset(s._replace(factor=not factor) for s in flow.shifts))]


# Operands from here on only say where to read or write; of a scatter it is the second alone.
_INDICES = {"gather": 1, "dynamic_slice": 1, "dynamic_update_slice": 2}
# Derivatives of a pool: its operand says where.
_INDICES |= {"select_and_scatter_add": 1, "select_and_gather_add": 1}
_SCATTERS = "scatter scatter-add scatter-sub scatter-mul scatter-min scatter-max"
# Their derivatives are zero or undefined: what passes through them arrives without its derivative.
_JUMPS = (
    "eq ne lt le gt ge eq_to le_to lt_to argmax argmin floor ceil round sign is_finite rem atan2 "
    "reduce_and reduce_or"
)


def _declared(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    """Take a declared derivative for that of the value where the value is not made of jumps alone."""
    flow, inner = anew(merge(ins), id(eqn)), inner_jaxpr(eqn)
    body = None if inner is None else opened(inner)
    if body is None or not flow.smooth or len(body.invars) != len(ins) or body.constvars:
        return [flow] * len(eqn.outvars)
    values = interpret(core.ClosedJaxpr(body, ()), ins, _VALUES, ())
    fits = len(values) == len(eqn.outvars)
    return [_less(flow, value) for value in values] if fits else [flow] * len(eqn.outvars)


def _less(flow: Flow, value: Flow) -> Flow:
    jumps = {(s, how) for s, how in value.broken if s in flow.smooth - value.smooth}
    lost = {s for s, _ in jumps}
    return flow._replace(smooth=flow.smooth - lost, broken=flow.broken | jumps) if lost else flow


_RULES = {
    "custom_linear_solve": _smooth,
    **dict.fromkeys(_JUMPS.split(), _jump),
    **dict.fromkeys((*_INDICES, *_SCATTERS.split()), _indexed),
    **dict.fromkeys("broadcast_in_dim reshape squeeze".split(), _moved),
    **dict.fromkeys(LAID_OUT, _same),
    **dict.fromkeys(("add", "sub", "add_any"), _sum),
    **dict.fromkeys(("mul", "div"), _product),
    **dict.fromkeys(("exp", "log"), _exponential),
    "max": _maximum,
    **dict.fromkeys(("reduce_sum", "abs"), _total),
    "select_n": _select,
    "sort": _sort,
    "convert_element_type": _convert,
    "reduce_precision": _reduce_precision,
}
_DERIVATIVES: Question[Flow] = Question(
    nothing=NOTHING,
    join=lambda flows, _: merge(flows),
    # As their authors declared, or implicit, so that bodies are not looked into.
    rules={**_RULES, **dict.fromkeys(DECLARED, _declared), "stop_gradient": _stop},
    default=_default,
    choose=_choose,
    opaque=_opaque,
    constant=_constant,
    into_unknown=True,
    called=_called,
    between_turns=never_cancels,
)
_VALUES: Question[Flow] = Question(
    nothing=NOTHING,
    join=lambda flows, _: merge(flows),
    rules={**_RULES, "stop_gradient": _same},
    default=_default,
    choose=_choose,
    opaque=_opaque,
    constant=_constant,
    into_unknown=True,
)
