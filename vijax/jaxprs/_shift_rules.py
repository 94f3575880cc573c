"""The rules that a stopped shift of softmax or logsumexp passes through.

Both subtract a stopped maximum c: exp(x - c) has the factor exp(-c). In softmax it cancels in a
quotient, in logsumexp as c + log Σ exp(x - c), and then the whole derivative is there.
"""

from jax.extend import core

from vijax.jaxprs._equations import shape_of
from vijax.jaxprs._flow import Flow, Shift, alike, anew, combine, merge, placed


def added(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    flow = merge(ins)
    if not flow.shifts:
        return [flow]
    # Σᵢ xᵢ exp(c) keeps a factor that all terms have.
    if all(shift.factor for shift in flow.shifts):
        return [alike(flow, ins, id(eqn))]
    # Terms add up: (x - c) + c is x again.
    sign = -1 if eqn.primitive.name == "sub" else 1
    operands = zip(ins, (1, sign), strict=True)
    return [combine(flow, operands, factor=False, part=id(eqn))]


def multiplied(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    # Factors multiply, so that their logarithms add up: exp(-c) / exp(-c) is 1.
    sign = -1 if eqn.primitive.name == "div" else 1
    operands = zip(ins, (1, sign), strict=True)
    return [combine(merge(ins), operands, factor=True, part=id(eqn))]


def totaled(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    """Sums of one operand, and |x|, keep a positive factor that is common to what is summed."""
    flow = ins[0]
    over = tuple(map(int, eqn.params.get("axes", ())))

    # The factor must not differ along an axis that is summed over.
    def common(shift: Shift) -> bool:
        return shift.factor and shift.axes is not None and not set(over) & set(shift.axes)

    if not all(map(common, flow.shifts)):
        return [anew(flow, id(eqn))]
    # Axes that are left move up.
    left = [a for a in range(len(shape_of(eqn.invars[0]))) if a not in over]
    moved = (s._replace(axes=tuple(left.index(a) for a in s.axes or ())) for s in flow.shifts)
    return [flow._replace(shifts=frozenset(moved))]


def maximum(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    # max(x + c, y + c) = max(x, y) + c, of terms; a factor may be of any size.
    flow = merge(ins)
    terms = not any(s.factor for s in flow.shifts)
    return [alike(flow, ins, id(eqn)) if terms else anew(flow, id(eqn))]


def exponential(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    """exp makes factors of terms, log terms of factors."""
    flow, factor = ins[0], eqn.primitive.name == "log"
    if any(s.factor != factor for s in flow.shifts):
        return [anew(flow, id(eqn))]
    return [flow._replace(shifts=frozenset(s._replace(factor=not factor) for s in flow.shifts))]


def moved(eqn: core.JaxprEqn, ins: list[Flow]) -> list[Flow]:
    """Follow the axes of stopped parts through broadcasts and axes of length 1, not elsewhere."""
    flow = ins[0]
    if not flow.shifts:
        return [flow]
    shape, out = shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])
    if eqn.primitive.name == "broadcast_in_dim":
        to = dict(enumerate(map(int, eqn.params["broadcast_dimensions"])))
    # A reshape that only adds or drops axes of length 1 keeps the order of the longer ones.
    elif [n for n in shape if n > 1] == [n for n in out if n > 1]:
        longer = (a for a, n in enumerate(out) if n > 1)
        to = {a: next(longer) for a, n in enumerate(shape) if n > 1}
    else:
        return [anew(flow, id(eqn))]
    along = (
        s._replace(axes=None if s.axes is None else tuple(to[a] for a in s.axes))
        for s in (placed(s, shape) for s in flow.shifts)
    )
    return [flow._replace(shifts=frozenset(along))]
