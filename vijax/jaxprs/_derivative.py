"""Which sources reach an output with their derivative, and which through a jump that loses it."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from vijax.jaxprs._continuous import meeting
from vijax.jaxprs._equations import (
    DECLARED,
    LAID_OUT,
    function_name,
    inner_jaxpr,
    is_complex,
    is_inexact,
    opened,
    shape_of,
    varies,
)
from vijax.jaxprs._flow import (
    NOTHING,
    Flow,
    alike,
    anew,
    broken,
    merge,
    never_cancels,
    placed,
    stopped,
)
from vijax.jaxprs._interpreter import Question, Rule, interpret
from vijax.jaxprs._shift_rules import added, exponential, maximum, moved, multiplied, totaled


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

    Example:
        >>> a, e = (Flow(smooth=frozenset({name})) for name in ("parameter", "noise"))
        >>> closed = jax.make_jaxpr(lambda a, e: a + jnp.floor(e))(0.0, 0.0)
        >>> (out,) = flows(closed, [a, e], Flow())
        >>> out.broken_by("parameter"), out.broken_by("noise")
        (None, 'floor')
    """
    # The walk tells what nothing reaches by identity with NOTHING.
    const = _bare(const)
    traced = any(isinstance(c, jax.core.Tracer) for c in closed.consts)
    consts = [const if _is_parameter(c, traced=traced) else NOTHING for c in closed.consts]
    question = _VALUES if values else _DERIVATIVES
    return interpret(closed, [_bare(flow) for flow in inputs], question, consts)


def _bare(flow: Flow) -> Flow:
    return NOTHING if flow == NOTHING else flow


def _is_parameter(value: object, *, traced: bool) -> bool:
    """Tell parameters from constants of the code, which numpy arrays are.

    Beside tracers, a concrete array is a constant too; alone, it stands for what would be traced.
    """
    if not isinstance(value, jax.Array) or not jnp.issubdtype(value.dtype, jnp.inexact):
        return False
    return varies(value) if traced else True


def _constant(value: object) -> Flow:
    return NOTHING


def _choose(which: Flow, cases: Sequence[Flow], how: str) -> Flow:
    # The derivative of a choice is that of the chosen case; how it is chosen has none.
    return alike(merge([broken(which, how), *cases]), cases, how)


def _opaque(name: str, flows: Sequence[Flow]) -> Flow:
    return merge(flows)._replace(opaque=frozenset({name}))


def _called(eqn: core.JaxprEqn, ins: list[Flow], outs: list[Flow]) -> list[Flow]:
    """Tell apart what was stopped within two calls of one function."""
    # A function traced once has the same equations at each call, so the call's id joins theirs.
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
    # A primitive without a rule is smooth; stopped parts of its operands do not cancel in it.
    flow = anew(merge(ins), id(eqn))
    if all(is_inexact(v) for v in eqn.outvars) or not any(is_inexact(v) for v in eqn.invars):
        return [flow] * len(eqn.outvars)
    # Whole numbers made of real ones: indices of top_k, pivots, bits.
    return [flow if is_inexact(v) else broken(flow, eqn.primitive.name) for v in eqn.outvars]


def _smooth(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    return [anew(merge(ins), id(eqn))] * len(eqn.outvars)


def _jump(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    return [broken(merge(ins), eqn.primitive.name)] * len(eqn.outvars)


def _stop(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    # The stopped part is named by its equation, so that only the same value cancels with it.
    flow, shape = stopped(ins[0], id(eqn)), shape_of(eqn.outvars[0])
    return [flow._replace(shifts=frozenset(placed(s, shape) for s in flow.shifts))]


def _same(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    return [ins[0]]


def _select(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    # As in `_choose`: the first operand chooses among the others.
    return [alike(merge([broken(ins[0], "select_n"), *ins[1:]]), ins[1:], id(eqn))]


def _sort(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    """Let the first key through, which stays continuous; later keys and what is carried along jump."""
    keys = anew(merge(ins[: eqn.params["num_keys"]]), id(eqn))
    jumps = broken(keys, "sort")
    # Complex numbers are sorted by their real parts, and the imaginary ones are carried along.
    first = 0 if is_complex(eqn.invars[0]) else 1
    return [merge([flow, keys if i < first else jumps]) for i, flow in enumerate(ins)]


def _cut(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    """Break functions that jump where a complex argument crosses their cut."""
    rule = exponential if eqn.primitive.name == "log" else _default
    return (_jump if is_complex(eqn.invars[0]) else rule)(eqn, ins)


def _convert(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    target, flow = eqn.params["new_dtype"], ins[0]
    if (
        not jnp.issubdtype(target, jnp.inexact) or np.dtype(target).itemsize < 2
    ):  # float8 and less: quantized
        return [broken(flow, "cast") if is_inexact(eqn.invars[0]) else flow]
    return [flow]


def _reduce_precision(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    """Let mixed precision through: bfloat16 has 7 bits of mantissa, float16 5 of exponent."""
    coarse = eqn.params["mantissa_bits"] < 7 or eqn.params["exponent_bits"] < 5
    return [broken(ins[0], "reduce_precision") if coarse else ins[0]]


def _indexed(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    """Break the operands that only say where to read or write."""
    # Indices are all operands from `start` on; of a scatter, the second: (operand, where, updates).
    name, start = eqn.primitive.name, _INDICES.get(eqn.primitive.name, 1)
    where = ins[start:] if name in _INDICES else ins[1:2]
    rest = ins[:start] if name in _INDICES else [ins[0], *ins[2:]]
    return [anew(merge([*rest, broken(merge(where), name)]), id(eqn))] * len(eqn.outvars)


# Operands from here on only say where to read or write; of a scatter it is the second alone.
_INDICES = {"gather": 1, "dynamic_slice": 1, "dynamic_update_slice": 2}
# Derivatives of a pool: its operand says where.
_INDICES |= {"select_and_scatter_add": 1, "select_and_gather_add": 1}
_SCATTERS = "scatter scatter-add scatter-sub scatter-mul scatter-min scatter-max"
# Their derivatives are zero or undefined: what passes through them arrives without its derivative.
_CUT = "log log1p sqrt rsqrt cbrt pow asin acos atan asinh acosh atanh"
_JUMPS = (
    "eq ne lt le gt ge eq_to le_to lt_to argmax argmin floor ceil round sign is_finite rem atan2 "
    "reduce_and reduce_or"
)


def _declared(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    """Take a declared derivative for the value's where the value is not made of jumps alone."""
    # As declared, results are smooth in all operands. A straight-through estimator declares a
    # derivative for what is piecewise constant, and there the value decides.
    flow, inner = anew(merge(ins), id(eqn)), inner_jaxpr(eqn)
    body = inner and opened(inner)
    if body is None or not flow.smooth or len(body.invars) != len(ins) or body.constvars:
        return [flow] * len(eqn.outvars)
    values = interpret(core.ClosedJaxpr(body, ()), ins, _VALUES, ())
    fits = len(values) == len(eqn.outvars)
    return [_less(flow, value) for value in values] if fits else [flow] * len(eqn.outvars)


def _less(flow: Flow, value: Flow) -> Flow:
    # Sources that reach the value by jumps alone.
    jumps = {(s, how) for s, how in value.broken if s in flow.smooth - value.smooth}
    lost = {s for s, _ in jumps}
    return flow._replace(smooth=flow.smooth - lost, broken=flow.broken | jumps) if lost else flow


def _function(eqn: core.JaxprEqn) -> Rule[Flow] | None:
    return _smooth if function_name(eqn) in _KNOWN else None


def _choice(
    jaxpr: core.Jaxpr, eqn: core.JaxprEqn, known: Mapping[Any, Flow], outs: list[Flow]
) -> list[Flow]:
    """Let cases that meet through, as in `leaky_relu`, where they bend no noise of q's own.

    The derivative of the chosen case is that of the whole. But a draw that is bent has a density
    that jumps where its slope does.
    """
    # Noise may choose, as it does in a folded normal, where no parameter does.
    if not any(source != "noise" for out in outs for source, _ in out.broken):
        return outs
    cases = meeting(jaxpr, eqn)
    if cases is None:
        return outs
    flow = anew(merge([known[v] for v in cases.inputs]), id(eqn))
    bent = "noise" in flow.sources() and not cases.smooth
    return [merge([flow, broken(flow, "select_n")]) if bent else flow]


def _solved(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    """Follow the equations that are solved: their factors, with pivots, only serve to solve them."""
    lengths, matvec = eqn.params["const_lengths"], eqn.params["jaxprs"].matvec
    right = ins[sum(lengths) :]
    left = interpret(matvec, [*ins[: lengths.matvec], *[NOTHING] * len(right)], _DERIVATIVES)
    flow, whole = merge([*left, *right]), merge(ins)
    # What the solver alone reads has no derivative.
    lost = {(s, eqn.primitive.name) for s in whole.sources() - flow.sources()}
    return _smooth(eqn, [flow._replace(broken=flow.broken | lost, opaque=whole.opaque)])


# Functions of JAX that are smooth to rounding, though they choose how many terms they need.
_KNOWN = {("expm", "jax")}
# Common to both questions; they differ in what was declared and in what was stopped.
_RULES = {
    "custom_linear_solve": _solved,
    **dict.fromkeys(_JUMPS.split(), _jump),
    **dict.fromkeys((*_INDICES, *_SCATTERS.split()), _indexed),
    **dict.fromkeys("broadcast_in_dim reshape squeeze".split(), moved),
    **dict.fromkeys(LAID_OUT, _same),
    **dict.fromkeys(("add", "sub", "add_any"), added),
    **dict.fromkeys(("mul", "div"), multiplied),
    "exp": exponential,
    **dict.fromkeys(_CUT.split(), _cut),
    "max": maximum,
    **dict.fromkeys(("reduce_sum", "abs"), totaled),
    "select_n": _select,
    "sort": _sort,
    "convert_element_type": _convert,
    "reduce_precision": _reduce_precision,
}
_DERIVATIVES: Question[Flow] = Question(
    nothing=NOTHING,
    join=lambda flows, _: merge(flows),
    # As their authors declared, or implicit, so that bodies are not followed.
    rules={**_RULES, **dict.fromkeys(DECLARED, _declared), "stop_gradient": _stop},
    default=_default,
    choose=_choose,
    opaque=_opaque,
    constant=_constant,
    into_unknown=True,
    called=_called,
    between_turns=never_cancels,
    functions=_function,
    beside=_choice,
)
# Of the values themselves: bodies are followed, and what is stopped keeps its value.
_VALUES: Question[Flow] = Question(
    nothing=NOTHING,
    join=lambda flows, _: merge(flows),
    rules={**_RULES, "stop_gradient": _same},
    default=_default,
    choose=_choose,
    opaque=_opaque,
    constant=_constant,
    into_unknown=True,
    functions=_function,
    beside=_choice,
)
