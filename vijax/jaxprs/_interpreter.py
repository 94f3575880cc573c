"""One walk over a jaxpr that every question shares: from what inputs are to what outputs are."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from jax.extend import core

from vijax.jaxprs._equations import (
    A_REFERENCE,
    CALLS,
    PURE_HOST,
    Atom,
    inner_jaxpr,
    opened,
    shape_of,
    touches_reference,
)

# What a question knows of one variable.
V = TypeVar("V")

# (equation, what is known of its operands) -> what is known of its results.
Rule = Callable[[core.JaxprEqn, list[V]], list[V]]


@dataclass(frozen=True)
class Loops(Generic[V]):
    """How values change on their way in and out of the body of a scan, which lacks one axis.

    Fields:
        enter: what is constant in the loop.
        slice: what is scanned over.
        carry: what one turn hands to the next.
        leave: the last carry.
        stack: what is collected along the loop.
        begin: the first carry; by default as what is constant.
        backward: the same for a scan from the last to the first, if that differs.
    """

    enter: Callable[[V], V]
    slice: Callable[[V], V]
    carry: Callable[[V], V]
    leave: Callable[[V], V]
    stack: Callable[[V], V]
    begin: Callable[[V], V] | None = None
    backward: "Loops[V] | None" = None


@dataclass(frozen=True)
class Question(Generic[V]):
    """What one analysis asks of a jaxpr; the walk itself is the same for all.

    Fields:
        nothing: of a variable that depends on no input; results of such operands alone are
            `nothing` too.
        join: (values, name) -> of what depends on several, joined by the primitive of that name.
        rules: primitives by name; they have precedence over the walk's own handling of calls.
        default: the rule of all other primitives.
        choose: (predicate, cases, name) -> of one result chosen among cases by select_n, cond or
            while.
        opaque: (name, values) -> of whatever comes out of an equation that cannot be seen into.
            What a mutable reference or an io_callback returns may depend on every input, so these
            are its values.
        constant: of a literal, or a value that an inner jaxpr holds.
        into_unknown: whether the jaxpr of an unknown primitive, where it fits the operands, is
            applied to them.
        called: (equation, operands, what its body says of its results) -> what to make of it, for
            calls.
        loops: what a scan changes, if anything.
        between_turns: how values change that a turn of a scan or while loop hands to the next, and,
            without `loops`, that a scan slices or collects.
        functions: the rule of a call whose function is known by name, or None to follow its body.
        beside: (jaxpr, equation, what is known of its variables, results) -> of the results, seen
            beside the equations before.
        sources: where those calls are what is followed, whatever their operands are, what their
            results may be; a mutable reference may hold one.
    """

    nothing: V
    join: Callable[[Sequence[V], str], V]
    rules: Mapping[str, Rule[V]]
    default: Rule[V]
    choose: Callable[[V, Sequence[V], str], V]
    opaque: Callable[[str, Sequence[V]], V]
    constant: Callable[[Any], V]
    into_unknown: bool = False
    called: Callable[[core.JaxprEqn, list[V], list[V]], list[V]] | None = None
    loops: Loops[V] | None = None
    between_turns: Callable[[V], V] | None = None
    functions: Callable[[core.JaxprEqn], Rule[V] | None] | None = None
    beside: Callable[[core.Jaxpr, core.JaxprEqn, Mapping[Any, V], list[V]], list[V]] | None = None
    sources: Sequence[V] = ()


def interpret(
    closed: core.ClosedJaxpr,
    inputs: Sequence[V],
    question: Question[V],
    consts: Sequence[V] | None = None,
) -> list[V]:
    """Answer a question about each output of a jaxpr.

    Args:
        closed: the jaxpr, as `trace` returns it.
        inputs: what is known of each input.
        question: what is asked.
        consts: what is known of each closed-over value; by default what the question says of
            constants.

    Returns:
        What is known of each output.
    """
    known = [question.constant(c) for c in closed.consts] if consts is None else list(consts)
    # Whatever is known of any value may have been written to a mutable reference.
    reach = [*inputs, *known, *question.sources]
    return _Walk(question, reach).jaxpr(closed.jaxpr, known, list(inputs))


class _Walk(Generic[V]):
    """A question on its way through a jaxpr and those within it."""

    def __init__(self, question: Question[V], reach: list[V]) -> None:
        self.question = question
        self.reach = reach  # what a mutable reference may hold

    def jaxpr(self, jaxpr: core.Jaxpr, consts: Sequence[V], inputs: Sequence[V]) -> list[V]:
        """Return what is known of the outputs of an open jaxpr."""
        constant, beside, literal = self.question.constant, self.question.beside, core.Literal
        known: dict[Any, V] = dict(zip(jaxpr.constvars, consts, strict=True))
        known.update(zip(jaxpr.invars, inputs, strict=True))
        for eqn in jaxpr.eqns:
            ins = [constant(v.val) if isinstance(v, literal) else known[v] for v in eqn.invars]
            outs = self.equation(eqn, ins)
            if beside is not None:
                outs = beside(jaxpr, eqn, known, outs)
            known.update(zip(eqn.outvars, outs, strict=True))
        return [constant(v.val) if isinstance(v, literal) else known[v] for v in jaxpr.outvars]

    def equation(self, eqn: core.JaxprEqn, ins: list[V]) -> list[V]:
        """Return what is known of the results of one equation."""
        name, question, count = eqn.primitive.name, self.question, len(eqn.outvars)
        # 1. A rule for the primitive, or for the function that a call is known to be.
        rule = question.rules.get(name)
        if rule is None and name in CALLS and question.functions is not None:
            rule = question.functions(eqn)
            # A marked call is a source, even where no operand depends on anything.
            if rule is not None and question.sources:
                return rule(eqn, ins)
        # 2. Calls, branches and loops: the walk goes on inside.
        if rule is None and name in _STRUCTURES:
            return _STRUCTURES[name](self, eqn, ins)
        if not count:  # a printed value, a check, a write
            return []
        # 3. What cannot be seen into. A pure callback reads its operands alone; what has a memory
        # may return anything that reached the trace before.
        if name in PURE_HOST:
            return [question.opaque(name, ins)] * count
        if name == "io_callback":
            return [question.opaque(name, self.reach)] * count
        if touches_reference(eqn):
            return [question.opaque(A_REFERENCE, self.reach)] * count
        # 4. Nothing comes of operands that depend on nothing, unless a source is inside.
        nothing = question.nothing
        within = bool(question.sources) and inner_jaxpr(eqn) is not None
        if all(value is nothing for value in ins) and (ins or rule is None) and not within:
            return [nothing] * count
        if rule is not None:
            return rule(eqn, ins)
        # 5. A primitive without a rule, which may have a jaxpr of its own.
        inner = inner_jaxpr(eqn)
        if inner is None:
            return question.default(eqn, ins)
        fits = len(opened(inner).invars) == len(ins) and len(opened(inner).outvars) == count
        if question.into_unknown and fits:
            return self.call(inner, ins)
        return [question.opaque(name, ins)] * count

    def call(self, inner: core.Jaxpr | core.ClosedJaxpr, ins: Sequence[V]) -> list[V]:
        """Return what is known of the outputs of an inner jaxpr."""
        if isinstance(inner, core.ClosedJaxpr):
            return self.jaxpr(inner.jaxpr, [self.question.constant(c) for c in inner.consts], ins)
        return self.jaxpr(inner, [self.question.nothing] * len(inner.constvars), ins)

    def between_turns(self, values: Sequence[V]) -> list[V]:
        """Return values as another turn of a loop has them, or what surrounds it."""
        change = self.question.between_turns
        return list(values) if change is None else [change(v) for v in values]

    def fixpoint(self, step: Callable[[list[V]], list[V]], carry: list[V], name: str) -> list[V]:
        """Join what a loop carries with what a turn makes of it, until no turn adds anything."""
        join = self.question.join
        # It ends: what is known of a value only grows under join, within finitely many values.
        while True:
            outs = self.between_turns(step(carry))
            new = [join([a, b], name) for a, b in zip(carry, outs, strict=True)]
            if new == carry:
                return carry
            carry = new


def _call(walk: _Walk[V], eqn: core.JaxprEqn, ins: list[V]) -> list[V]:
    inner = inner_jaxpr(eqn)
    if inner is None or len(opened(inner).invars) != len(ins):
        return [walk.question.opaque(eqn.primitive.name, ins)] * len(eqn.outvars)
    outs, called = walk.call(inner, ins), walk.question.called
    return outs if called is None else called(eqn, list(ins), outs)


def _barrier(walk: _Walk[V], eqn: core.JaxprEqn, ins: list[V]) -> list[V]:
    return list(ins)


def _cond(walk: _Walk[V], eqn: core.JaxprEqn, ins: list[V]) -> list[V]:
    # The first operand tells which branch; the others are what each is called with.
    results = [walk.call(branch, ins[1:]) for branch in eqn.params["branches"]]
    return [walk.question.choose(ins[0], cases, "cond") for cases in zip(*results, strict=True)]


def _while(walk: _Walk[V], eqn: core.JaxprEqn, ins: list[V]) -> list[V]:
    # Operands: what the condition closes over, what the body closes over, the first carry.
    of_cond, of_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    cond_consts, body_consts = ins[:of_cond], ins[of_cond : of_cond + of_body]
    # vmap of a loop has a condition for each of its members, which go on by themselves.
    each = walk.question.loops is not None and shape_of(opened(eqn.params["cond_jaxpr"]).outvars[0])

    def turn(carry: list[V]) -> list[V]:
        goes_on = walk.call(eqn.params["cond_jaxpr"], [*cond_consts, *carry])[0]
        outs = walk.call(eqn.params["body_jaxpr"], [*body_consts, *carry])
        if each:
            return [walk.question.join([goes_on, out], "while") for out in outs]
        return [walk.question.choose(goes_on, [out], "while") for out in outs]

    return walk.fixpoint(turn, ins[of_cond + of_body :], "while")


def _scan(walk: _Walk[V], eqn: core.JaxprEqn, ins: list[V]) -> list[V]:
    body, loops = eqn.params["jaxpr"], walk.question.loops
    if loops is not None and eqn.params["reverse"]:
        loops = loops.backward or loops
    # JAX 0.12 no longer states the counts; what is scanned over or collected has one axis more
    # outside the body.
    carried = sum(map(_same_rank, eqn.outvars, opened(body).outvars))
    constant = sum(map(_same_rank, eqn.invars, opened(body).invars)) - carried
    # Operands: what the body closes over, the first carry, what is scanned over.
    consts, carry, xs = (
        ins[:constant],
        ins[constant : constant + carried],
        ins[constant + carried :],
    )
    if loops is not None:
        consts, carry = (
            [loops.enter(v) for v in consts],
            [(loops.begin or loops.enter)(v) for v in carry],
        )
        xs = [loops.slice(v) for v in xs]
    else:
        xs = walk.between_turns(xs)

    # What one turn hands to the next: the carry alone, as that one has it.
    def turn(carry: list[V]) -> list[V]:
        outs = walk.call(body, [*consts, *carry, *xs])[:carried]
        return outs if loops is None else [loops.carry(v) for v in outs]

    carry = walk.fixpoint(turn, carry, "scan")
    # Once more, with a carry that holds in every turn, for what is collected.
    outs = walk.call(body, [*consts, *carry, *xs])
    if loops is not None:
        return [loops.leave(v) for v in carry] + [loops.stack(v) for v in outs[carried:]]
    # The last carry is a turn's result; a loop of no turns hands on the first.
    last = outs[:carried] if eqn.params["length"] else carry
    return [*last, *walk.between_turns(outs[carried:])]


def _linear_solve(walk: _Walk[V], eqn: core.JaxprEqn, ins: list[V]) -> list[V]:
    """Follow the solver alone: of operators and transposes only derivatives are made."""
    # Operands: consts of matvec, vecmat, solve and transposed solve, then the right side.
    lengths = eqn.params["const_lengths"]
    start = lengths.matvec + lengths.vecmat
    consts, right = ins[start : start + lengths.solve], ins[sum(lengths) :]
    return walk.call(eqn.params["jaxprs"].solve, [*consts, *right])


def _same_rank(outside: Atom, inside: Atom) -> bool:
    return len(shape_of(outside)) == len(shape_of(inside))


# How the walk goes on where an equation holds jaxprs; a rule of the question has precedence.
_STRUCTURES: dict[str, Callable[[_Walk[Any], core.JaxprEqn, list[Any]], list[Any]]] = {
    **dict.fromkeys(CALLS, _call),
    "cond": _cond,
    "while": _while,
    "scan": _scan,
    "optimization_barrier": _barrier,
    "custom_linear_solve": _linear_solve,
}
