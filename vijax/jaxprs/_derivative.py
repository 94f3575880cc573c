"""Which sources reach an output with their derivative, and which through a jump that loses it."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from vijax.jaxprs._continuous import meeting
from vijax.jaxprs._equations import (
    DECLARED,
    function_name,
    inner_jaxpr,
    is_complex,
    opened,
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
)
from vijax.jaxprs._interpreter import Question, Rule, interpret
from vijax.jaxprs._jump_rules import RULES, default, same, smooth, stop, torn


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


# --- the rules of functions and choices


def _declared(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    """Take a declared derivative for the value's where the value does not jump."""
    # As declared, results are smooth in all operands. A straight-through estimator declares a
    # derivative for what is piecewise constant, and there the value decides.
    rule = _function(eqn)
    if rule is not None:
        return rule(eqn, ins)
    flow, inner = anew(merge(ins), id(eqn)), inner_jaxpr(eqn)
    body = inner and opened(inner)
    if body is None or not flow.smooth or len(body.invars) != len(ins) or body.constvars:
        return [flow] * len(eqn.outvars)
    values = interpret(core.ClosedJaxpr(body, ()), ins, _VALUES, ())
    fits = len(values) == len(eqn.outvars)
    partly = not function_name(eqn)[1]  # libraries compute smooth values by cases
    return [_less(flow, v, partly=partly) for v in values] if fits else [flow] * len(eqn.outvars)


def _less(flow: Flow, value: Flow, *, partly: bool) -> Flow:
    # Sources that reach the value by jumps alone; or partly, as x does x + floor(x).
    smooth = flow.smooth if partly else flow.smooth - value.smooth
    jumps = {(s, how) for s, how in value.broken if s in smooth}
    lost = {s for s, _ in jumps}
    return flow._replace(smooth=flow.smooth - lost, broken=flow.broken | jumps) if lost else flow


def _function(eqn: core.JaxprEqn) -> Rule[Flow] | None:
    return _KNOWN.get(function_name(eqn))


def _sign_and_log(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    sign, log = smooth(eqn, ins)
    return [sign if is_complex(eqn.outvars[0]) else broken(sign, eqn.primitive.name), log]


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
    cases = meeting(jaxpr, eqn, lambda v: bool(known[v].sources() - {"parameter"}))
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
    return smooth(eqn, [flow._replace(broken=flow.broken | lost, opaque=whole.opaque)])


# Functions of JAX that choose how many terms, or which pivots, they need: but for rounding their
# values do not show it.
_KNOWN: dict[tuple[str, str], Rule[Flow]] = {
    ("expm", "jax"): smooth,
    ("_det", "jax"): smooth,
    ("_frexp", "jax"): torn,
    ("_slogdet_lu", "jax"): _sign_and_log,
    ("_slogdet_qr", "jax"): _sign_and_log,
}
# They differ in what was declared and in what was stopped.
_COMMON = {**RULES, "custom_linear_solve": _solved}
_DERIVATIVES: Question[Flow] = Question(
    nothing=NOTHING,
    join=lambda flows, _: merge(flows),
    # As their authors declared, or implicit, so that bodies are not followed.
    rules={**_COMMON, **dict.fromkeys(DECLARED, _declared), "stop_gradient": stop},
    default=default,
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
    rules={**_COMMON, "stop_gradient": same},
    default=default,
    choose=_choose,
    opaque=_opaque,
    constant=_constant,
    into_unknown=True,
    functions=_function,
    beside=_choice,
)
