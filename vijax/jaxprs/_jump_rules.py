"""How primitives let a derivative through, or lose it in a jump."""

import jax.numpy as jnp
import numpy as np
from jax.extend import core

from vijax.jaxprs._equations import LAID_OUT, is_complex, is_inexact, shape_of
from vijax.jaxprs._flow import Flow, alike, anew, broken, merge, placed, stopped
from vijax.jaxprs._interpreter import Rule
from vijax.jaxprs._shift_rules import added, exponential, maximum, moved, multiplied, totaled


def default(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    # A primitive without a rule is smooth; stopped parts of its operands do not cancel in it.
    flow = anew(merge(ins), id(eqn))
    if all(is_inexact(v) for v in eqn.outvars) or not any(is_inexact(v) for v in eqn.invars):
        return [flow] * len(eqn.outvars)
    # Whole numbers made of real ones: indices of top_k, pivots, bits.
    return [flow if is_inexact(v) else broken(flow, eqn.primitive.name) for v in eqn.outvars]


def smooth(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    return [anew(merge(ins), id(eqn))] * len(eqn.outvars)


def _jump(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    return [broken(merge(ins), eqn.primitive.name)] * len(eqn.outvars)


def torn(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    """Of what jumps here and there, and has a slope between: draws of it have a density."""
    flow = anew(merge(ins), id(eqn))
    return [merge([flow, broken(flow, eqn.primitive.name)])] * len(eqn.outvars)


def _high_level(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    """JAX's newer primitives, told by their class: what frexp splits off jumps."""
    name = type(eqn.params.get("_prim")).__name__
    return (torn if name == "Frexp" else default)(eqn, ins)


def stop(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    # The stopped part is named by its equation, so that only the same value cancels with it.
    flow, shape = stopped(ins[0], id(eqn)), shape_of(eqn.outvars[0])
    return [flow._replace(shifts=frozenset(placed(s, shape) for s in flow.shifts))]


def same(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
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
    rule = exponential if eqn.primitive.name == "log" else default
    return (torn if is_complex(eqn.invars[0]) else rule)(eqn, ins)


def _factors(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    """Break factors of a random matrix whose sign or order is a choice, which jumps.

    Where parameters alone make the matrix, no draw crosses the jump.
    """
    continuous, jumps = default(eqn, ins), torn(eqn, ins)
    if merge(ins).sources() <= {"parameter"}:
        return continuous
    at = _ORDERED.get(eqn.primitive.name)
    if at is not None:
        jumps[at] = continuous[at]
    return jumps


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
# Factors of a matrix, and which of the results is continuous: singular values, sorted eigenvalues.
_FACTORS = "lu qr geqrf eigh svd eig schur hessenberg tridiagonal"
_ORDERED = {"eigh": 1, "svd": 0}
_SCATTERS = "scatter scatter-add scatter-sub scatter-mul scatter-min scatter-max"
# Their derivatives are zero or undefined: what passes through them arrives without its derivative.
_CUT = "log log1p sqrt rsqrt cbrt pow asin acos atan asinh acosh atanh"
_JUMPS = (
    "eq ne lt le gt ge eq_to le_to lt_to argmax argmin floor ceil round sign is_finite "
    "reduce_and reduce_or"
)


RULES: dict[str, Rule[Flow]] = {
    **dict.fromkeys(_JUMPS.split(), _jump),
    "call_hi_primitive": _high_level,
    **dict.fromkeys(("rem", "atan2", "nextafter"), torn),
    **dict.fromkeys((*_INDICES, *_SCATTERS.split()), _indexed),
    **dict.fromkeys("broadcast_in_dim reshape squeeze".split(), moved),
    **dict.fromkeys(LAID_OUT, same),
    **dict.fromkeys(("add", "sub", "add_any"), added),
    **dict.fromkeys(("mul", "div"), multiplied),
    "exp": exponential,
    **dict.fromkeys(_CUT.split(), _cut),
    "max": maximum,
    **dict.fromkeys(("reduce_sum", "abs"), totaled),
    **dict.fromkeys(_FACTORS.split(), _factors),
    "select_n": _select,
    "sort": _sort,
    "convert_element_type": _convert,
    "reduce_precision": _reduce_precision,
}
