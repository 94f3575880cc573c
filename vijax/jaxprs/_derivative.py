"""Which sources reach an output with their derivative, and which through a jump that loses it."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from vijax.jaxprs._equations import DECLARED
from vijax.jaxprs._flow import NOTHING, Flow, merge
from vijax.jaxprs._interpreter import Question, interpret

_ZERO, _IMPOSSIBLE = Flow(constant=0.0), Flow(constant=-np.inf)
# What a density is where it is cut off, and what it is then.
_CUTS = {-np.inf: "log", 0.0: "zero"}


def flows(closed: core.ClosedJaxpr, inputs: Sequence[Flow], const: Flow) -> list[Flow]:
    """Follow inputs, and closed-over values that can be differentiated, to the outputs of a jaxpr.

    Args:
        closed: the jaxpr, as `trace` returns it.
        inputs: the flow of each input.
        const: the flow of every closed-over float array of JAX.

    Returns:
        The flow of each output.
    """
    const = _bare(const)
    consts = [const if _is_parameter(c) else _constant(c) for c in closed.consts]
    return interpret(closed, [_bare(flow) for flow in inputs], _QUESTION, consts)


def _bare(flow: Flow) -> Flow:
    return NOTHING if flow == NOTHING else flow


def _is_parameter(value: Any) -> bool:
    # numpy arrays are constants of the code; only a jax array or tracer may be what somebody
    # differentiates.
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jnp.inexact)


def _constant(value: Any) -> Flow:
    """Tell zeros and -inf, with which densities are cut off, from other constants."""
    if not isinstance(value, (np.ndarray, np.generic, float)) or not np.size(value):
        return NOTHING
    array = np.asarray(value)
    first = array.flat[0]
    if array.dtype.kind not in "fV" or not (first == 0 or first == -np.inf):
        return NOTHING
    if array.size > 1 and not np.all(array == first):
        return NOTHING
    return _ZERO if first == 0 else _IMPOSSIBLE


def _break(flow: Flow, how: str) -> Flow:
    """Return the flow of what is piecewise constant in a variable."""
    if not flow.smooth:
        plain = flow.constant is None and not flow.cuts
        return flow if plain else Flow(broken=flow.broken, opaque=flow.opaque)
    return Flow(frozenset(), flow.broken | {(s, how) for s in flow.smooth}, flow.opaque)


def _choose(which: Flow, cases: Sequence[Flow], how: str) -> Flow:
    flow = merge([_break(which, how), *cases])
    cuts = flow.cuts.union(*(case.cuts for case in cases))
    constants = {case.constant for case in cases}
    if _moves(which):
        cuts |= {_CUTS[value] for value in constants if value is not None}
    constant = constants.pop() if len(constants) == 1 else None
    if cuts == flow.cuts and constant == flow.constant:
        return flow
    return flow._replace(cuts=cuts, constant=constant)


def _opaque(name: str, flows: Sequence[Flow]) -> Flow:
    return merge(flows)._replace(opaque=frozenset({name}))


def _moves(flow: Flow) -> bool:
    return {"parameter", "draw"} <= flow.sources()


def _inexact(variable: Any) -> bool:
    dtype = getattr(variable.aval, "dtype", np.dtype(bool))
    kind = getattr(dtype, "kind", "")  # that of most, told at once; bfloat16 has "V", and keys none
    return kind == "f" or (kind not in "biu" and bool(jnp.issubdtype(dtype, jnp.inexact)))


# --- the rules


def _default(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    flow = merge(ins)
    if all(_inexact(v) for v in eqn.outvars) or not any(_inexact(v) for v in eqn.invars):
        return [flow] * len(eqn.outvars)
    # Whole numbers made of real ones: indices of top_k, pivots, bits.
    return [flow if _inexact(v) else _break(flow, eqn.primitive.name) for v in eqn.outvars]


def _smooth(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    return [merge(ins)] * len(eqn.outvars)


def _jump(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    return [_break(merge(ins), eqn.primitive.name)] * len(eqn.outvars)


def _same(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    return [ins[0]]


def _select(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    return [_choose(ins[0], ins[1:], "select_n")]


def _sort(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    """Let what is sorted through, which stays continuous; what is carried along jumps."""
    count = eqn.params["num_keys"]
    keys = merge(ins[:count])
    jumps = _break(keys, "sort")
    return [merge([flow, keys if i < count else jumps]) for i, flow in enumerate(ins)]


def _convert(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    target, flow = eqn.params["new_dtype"], ins[0]
    whole = not jnp.issubdtype(target, jnp.inexact)
    if whole or np.dtype(target).itemsize < 2:  # float8 and less: quantized
        return [_break(flow, "cast") if _inexact(eqn.invars[0]) else flow]
    # An indicator, as in log((z < h) / h).
    indicator = getattr(eqn.invars[0].aval, "dtype", None) == np.dtype(bool)
    return [flow._replace(cuts=frozenset({"zero"})) if indicator and _moves(flow) else flow]


def _reduce_precision(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    """Let mixed precision through: bfloat16 has 7 bits of mantissa, float16 5 of exponent."""
    coarse = eqn.params["mantissa_bits"] < 7 or eqn.params["exponent_bits"] < 5
    return [_break(ins[0], "reduce_precision") if coarse else ins[0]]


def _indexed(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    """Break the operands that only say where to read or write."""
    name = eqn.primitive.name
    start = _INDICES.get(name, 1)
    where = ins[start:] if name in _INDICES else ins[1:2]
    rest = ins[:start] if name in _INDICES else [ins[0], *ins[2:]]
    return [merge([*rest, _break(merge(where), name)])] * len(eqn.outvars)


def _product(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    return [_with_zero(merge(ins), ins, "zero")]


def _quotient(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    return [_with_zero(merge(ins), ins[:1], "zero")]


def _log(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    return [_with_zero(merge(ins), ins, "log")]


def _with_zero(flow: Flow, of: Sequence[Flow], cut: str) -> Flow:
    return flow._replace(cuts=flow.cuts | {cut}) if any("zero" in f.cuts for f in of) else flow


# Operands from this position on only say where to read or write; of a scatter it is the second
# alone.
_INDICES = {
    **{"gather": 1, "dynamic_slice": 1, "dynamic_update_slice": 2},
    **{
        "select_and_scatter_add": 1,
        "select_and_gather_add": 1,
    },  # derivatives of a pool: its operand says where
}
_SCATTERS = "scatter scatter-add scatter-sub scatter-mul scatter-min scatter-max"
# Derivatives of these are zero or undefined, so whatever passes through them arrives without its
# derivative.
_JUMPS = (
    "eq ne lt le gt ge eq_to le_to lt_to argmax argmin floor ceil round sign is_finite rem "
    "stop_gradient reduce_and reduce_or"
)
_QUESTION: Question[Flow] = Question(
    nothing=NOTHING,
    join=lambda flows, _: merge(flows),
    rules={
        # As their authors declared, or implicit, so that bodies are not looked into.
        **dict.fromkeys((*DECLARED, "custom_linear_solve"), _smooth),
        **dict.fromkeys(_JUMPS.split(), _jump),
        **dict.fromkeys((*_INDICES, *_SCATTERS.split()), _indexed),
        **dict.fromkeys("broadcast_in_dim reshape squeeze copy transpose slice".split(), _same),
        **dict.fromkeys(("mul", "reduce_sum"), _product),
        "div": _quotient,
        "log": _log,
        "select_n": _select,
        "sort": _sort,
        "convert_element_type": _convert,
        "reduce_precision": _reduce_precision,
    },
    default=_default,
    choose=_choose,
    opaque=_opaque,
    constant=_constant,
    into_unknown=True,
)
