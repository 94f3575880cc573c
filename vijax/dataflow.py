"""What a jaxpr says of how parameters and noise reach its outputs: smoothly, or through a jump."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

# Derivatives of these are zero or undefined, so whatever passes through them arrives without its derivative.
JUMPS = frozenset(
    "eq ne lt le gt ge eq_to le_to lt_to argmax argmin floor ceil round sign is_finite rem stop_gradient".split()
)
# Their derivative is what the author of the function declared it to be, so the body is not looked into.
DECLARED = frozenset({"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_lin"})
OPAQUE = frozenset({"pure_callback", "io_callback", "ffi_call"})
# Operands from this position on only say where to read or write.
INDICES = {
    **{"gather": 1, "dynamic_slice": 1, "dynamic_update_slice": 2},
    **{"select_and_scatter_add": 1, "select_and_gather_add": 1},  # derivatives of a pool: its operand says where
}


class Flow(NamedTuple):
    """How the sources reach one variable.

    Fields:
        smooth: sources that arrive with their derivative.
        broken: sources that arrive through a jump, each with the primitive that jumps.
        opaque: host callbacks on the way, which cannot be analysed.
        cuts: whether a density was set to zero by a comparison of the draw with a parameter: "log" where it is a
            log-density (-inf), "zero" where it is a density still to be logged.
        constant: the value, where it is one number known while tracing.
    """

    smooth: frozenset[str] = frozenset()
    broken: frozenset[tuple[str, str]] = frozenset()
    opaque: frozenset[str] = frozenset()
    cuts: frozenset[str] = frozenset()
    constant: float | None = None

    def sources(self) -> set[str]:
        """Return all that reaches this variable, by either way."""
        return set(self.smooth) | {source for source, _ in self.broken}

    def broken_by(self, source: str) -> str | None:
        """Return the primitive through which `source` jumps on its way here, if any.

        Stopping is a break only where nothing else carries the derivative: softmax stops its own harmless shift.
        """
        found = {how for s, how in self.broken if s == source}
        return min(found - {"stop_gradient"} or (set() if source in self.smooth else found), default=None)


def merge(flows: Iterable[Flow]) -> Flow:
    """Return the flow of a variable that depends differentiably on others."""
    flows = list(flows)
    return Flow(
        frozenset().union(*(f.smooth for f in flows)),
        frozenset().union(*(f.broken for f in flows)),
        frozenset().union(*(f.opaque for f in flows)),
        frozenset().union(*(f.cuts for f in flows)) - {"zero"},  # a zero survives products, and little else
    )


def _break(flow: Flow, how: str) -> Flow:
    return Flow(frozenset(), flow.broken | {(s, how) for s in flow.smooth}, flow.opaque)


def trace(function: Callable[..., Any], *args: Any) -> tuple[core.ClosedJaxpr, Any]:
    """Trace a function once; return its jaxpr, closed-over values as consts, and the tree of its output shapes."""
    return jax.make_jaxpr(function, return_shape=True)(*args)


def analyse(closed: core.ClosedJaxpr, inputs: Sequence[Flow], const: Flow) -> list[Flow]:
    """Follow `inputs`, and `const` for every differentiable closed-over value, to the outputs of a jaxpr."""
    consts = [const if _is_parameter(c) else _literal(c) for c in closed.consts]
    return _jaxpr(closed.jaxpr, consts, list(inputs))


def _is_parameter(value: Any) -> bool:
    # numpy arrays are constants of the code; only a jax array or tracer may be what somebody differentiates.
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jnp.inexact)


def _literal(value: Any) -> Flow:
    if isinstance(value, (jax.Array, jax.core.Tracer)):
        return Flow()
    array = np.asarray(value)
    known = array.dtype.kind == "f" and array.size > 0 and bool(np.all(array == array.flat[0]))
    return Flow(constant=float(array.flat[0]) if known else None)


def _jaxpr(jaxpr: Any, consts: Sequence[Flow], inputs: Sequence[Flow]) -> list[Flow]:
    env: dict[Any, Flow] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))
    read = lambda atom: _literal(atom.val) if isinstance(atom, core.Literal) else env[atom]  # noqa: E731
    for eqn in jaxpr.eqns:
        outs = _equation(eqn, [read(atom) for atom in eqn.invars])
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _inner(value: Any) -> tuple[Any, list[Flow]]:
    """Return the open jaxpr of a parameter that holds one, with the flows of its consts."""
    if isinstance(value, core.ClosedJaxpr):
        return value.jaxpr, [_literal(c) for c in value.consts]
    return value, []


def _equation(eqn: Any, ins: list[Flow]) -> list[Flow]:
    name, params, n = eqn.primitive.name, eqn.params, len(eqn.outvars)
    if name in DECLARED:
        return [merge(ins)] * n
    if name in OPAQUE:
        return [merge(ins)._replace(opaque=frozenset({name}))] * n
    if name == "select_n":
        return [_select(ins[0], ins[1:])]
    if name == "cond":
        branches = [_inner(b) for b in params["branches"]]
        results = [_jaxpr(j, c, ins[1:]) for j, c in branches]
        return [_select(ins[0], cases) for cases in zip(*results, strict=True)]
    if name == "while":
        return _while(params, ins)
    if name == "scan":
        return _scan(eqn, ins)
    if name == "sort":  # sorted values are continuous in what is sorted; what is carried along jumps
        keys = merge(ins[: params["num_keys"]])
        return [
            merge([f, keys]) if i < params["num_keys"] else merge([f, _break(keys, "sort")]) for i, f in enumerate(ins)
        ]
    if name == "convert_element_type" and not jnp.issubdtype(params["new_dtype"], jnp.inexact):
        source = eqn.invars[0].aval.dtype
        return [_break(ins[0], "cast") if jnp.issubdtype(source, jnp.inexact) else ins[0]]
    if name in JUMPS or name.startswith("reduce_and") or name.startswith("reduce_or"):
        return [_break(merge(ins), name)] * n
    if name in INDICES or name.startswith("scatter"):
        at = INDICES.get(name, 1)
        where = ins[at:] if name in INDICES else ins[1:2]
        rest = ins[:at] if name in INDICES else [ins[0], *ins[2:]]
        return [merge([*rest, _break(merge(where), name)])] * n
    inner = next((params[p] for p in ("jaxpr", "call_jaxpr", "fun_jaxpr") if p in params), None)
    if inner is not None:
        jaxpr, consts = _inner(inner)
        if len(jaxpr.invars) == len(ins) and len(jaxpr.outvars) == n:
            return _jaxpr(jaxpr, consts or [Flow()] * len(jaxpr.constvars), ins)
        return [_break(merge(ins), name)] * n
    if name == "convert_element_type" and eqn.invars[0].aval.dtype == bool and _moves(ins[0]):
        return [ins[0]._replace(cuts=frozenset({"zero"}))]  # an indicator, as in log((z < h) / h)
    if name in ("broadcast_in_dim", "reshape", "squeeze", "convert_element_type", "copy", "transpose", "slice"):
        return [ins[0]]
    flow = merge(ins)
    zero = any("zero" in f.cuts for f in (ins if name in ("mul", "reduce_sum") else ins[:1]))
    if zero and name in ("mul", "div", "reduce_sum", "log"):
        flow = flow._replace(cuts=flow.cuts | {"log" if name == "log" else "zero"})
    if any(_inexact(v.aval) for v in eqn.invars):  # whole numbers made of real ones: indices of top_k, pivots, bits
        return [flow if _inexact(v.aval) else _break(flow, name) for v in eqn.outvars]
    return [flow] * n


def _inexact(aval: Any) -> bool:
    return hasattr(aval, "dtype") and jnp.issubdtype(aval.dtype, jnp.inexact)


def _moves(flow: Flow) -> bool:
    return {"parameter", "draw"} <= flow.sources()


def _select(which: Flow, cases: Sequence[Flow]) -> Flow:
    moves = _moves(which)
    kinds = {-np.inf: "log", 0.0: "zero"}
    cuts = {kinds[c.constant] for c in cases if moves and c.constant in kinds}.union(*(c.cuts for c in cases))
    flow = merge([_break(which, "select_n"), *cases])
    constants = {c.constant for c in cases}
    return flow._replace(cuts=flow.cuts | cuts, constant=constants.pop() if len(constants) == 1 else None)


def _fixpoint(step: Callable[[list[Flow]], list[Flow]], carry: list[Flow]) -> list[Flow]:
    while True:
        new = [merge([a, b]) for a, b in zip(carry, step(carry), strict=True)]
        if new == carry:
            return carry
        carry = new


def _while(params: Any, ins: list[Flow]) -> list[Flow]:
    nc, nb = params["cond_nconsts"], params["body_nconsts"]
    cond_consts, body_consts, carry = ins[:nc], ins[nc : nc + nb], ins[nc + nb :]
    cond, cond_own = _inner(params["cond_jaxpr"])
    body, body_own = _inner(params["body_jaxpr"])
    carry = _fixpoint(lambda c: _jaxpr(body, body_own, [*body_consts, *c]), carry)
    stop = _jaxpr(cond, cond_own, [*cond_consts, *carry])[0]
    return [merge([c, _break(stop, "while")]) for c in carry]


def _scan(eqn: Any, ins: list[Flow]) -> list[Flow]:
    body, own = _inner(eqn.params["jaxpr"])
    # JAX 0.12 no longer states the counts; what is scanned over, in or out, has one axis more outside than in the body.
    same = lambda outside, inside: outside.aval.ndim == inside.aval.ndim  # noqa: E731
    nk = sum(map(same, eqn.outvars, body.outvars))
    nc = sum(map(same, eqn.invars, body.invars)) - nk
    consts, carry, xs = ins[:nc], ins[nc : nc + nk], ins[nc + nk :]
    carry = _fixpoint(lambda c: _jaxpr(body, own, [*consts, *c, *xs])[:nk], carry)
    return _jaxpr(body, own, [*consts, *carry, *xs])


def hidden(jaxpr: Any) -> str | None:
    """Return the first primitive that keeps values where no variable tells: in a mutable array, or on the host."""
    for eqn in jaxpr.eqns:
        refs = any("Ref" in type(v.aval).__name__ for v in (*eqn.invars, *eqn.outvars))
        if refs or eqn.primitive.name == "io_callback":
            return str(eqn.primitive.name)
        for value in eqn.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                if hasattr(opened := getattr(inner, "jaxpr", inner), "eqns") and (how := hidden(opened)) is not None:
                    return how
    return None
