"""Values that are right in their mean alone: marked where they are made, and followed to log p."""

from dataclasses import replace

import jax
import numpy as np
from jax.extend import core

from vijax.jaxprs._degree import FREE, Blame, Degree, question
from vijax.jaxprs._equations import CALLS, DECLARED, equations, function_name
from vijax.jaxprs._interpreter import Question, Rule, interpret
from vijax.types import PyTree


def mean_alone(value: PyTree) -> PyTree:
    """Return a value, marked in the jaxpr as one whose mean alone is right.

    Example:
        >>> closed = jax.make_jaxpr(lambda x: jnp.exp(mean_alone(x)))(1.0)
        >>> beyond_mean(closed).primitive
        'exp'
    """
    return _mean_alone(value) if isinstance(value, jax.Array) else value


def mean_slope_alone(value: PyTree) -> PyTree:
    """Return a value, marked in the jaxpr as one whose derivative is right in its mean alone.

    Example:
        >>> closed = jax.make_jaxpr(lambda x: mean_slope_alone(x) ** 2)(1.0)
        >>> beyond_mean_slope(closed).primitive
        'integer_pow'
    """
    return _mean_slope_alone(value) if isinstance(value, jax.Array) else value


# A call that returned its operand itself would not stay in a jaxpr.


@jax.jit
def _mean_alone(value: jax.Array) -> jax.Array:
    return value + 0


@jax.jit
def _mean_slope_alone(value: jax.Array) -> jax.Array:
    return value + 0


def beyond_mean(closed: core.ClosedJaxpr) -> Blame | None:
    """Return what keeps the first output from being linear in values whose mean alone is right.

    Example:
        >>> closed = jax.make_jaxpr(lambda x: 2 * mean_alone(x) + x**2)(1.0)
        >>> beyond_mean(closed) is None
        True
    """
    return _above(closed, _VALUE)


def beyond_mean_slope(closed: core.ClosedJaxpr) -> Blame | None:
    """Return the same where the derivative alone is right in its mean; stopped, values are free.

    Example:
        >>> closed = jax.make_jaxpr(lambda x: jax.lax.stop_gradient(mean_slope_alone(x)) ** 2)(1.0)
        >>> beyond_mean_slope(closed) is None
        True
    """
    return _above(closed, _SLOPE)


def _above(closed: core.ClosedJaxpr, mark: str) -> Blame | None:
    # Nearly all traces hold no mark, and none of these is walked.
    if not any(_marks(eqn, mark) for eqn in equations(closed.jaxpr)):
        return None
    inputs, consts = [FREE] * len(closed.jaxpr.invars), [FREE] * len(closed.consts)
    return interpret(closed, inputs, _QUESTIONS[mark], consts)[0].blame


# A mark is a call of one of the two functions above, told by its name.
_VALUE, _SLOPE = "_mean_alone", "_mean_slope_alone"


def _marks(eqn: core.JaxprEqn, *marks: str) -> bool:
    """Whether an equation is a call of one of the functions above."""
    if eqn.primitive.name not in CALLS:
        return False
    name, place = function_name(eqn)
    return place == "vijax" and name in marks


# --- the question: the degree in what is marked


def _free(eqn: core.JaxprEqn, ins: list[Degree]) -> list[Degree]:
    return [FREE] * len(eqn.outvars)


def _finite_or(rule: Rule[Degree]) -> Rule[Degree]:
    """Let x != x and x == inf pass: what is finite or not is no matter of the noise."""

    def compare(eqn: core.JaxprEqn, ins: list[Degree]) -> list[Degree]:
        one, other = eqn.invars
        infinite = isinstance(other, core.Literal) and np.all(np.isinf(other.val))
        return [FREE] if one is other or infinite else rule(eqn, ins)

    return compare


def _marked(eqn: core.JaxprEqn, ins: list[Degree]) -> list[Degree]:
    # A new source of degree 1; a mark within a mark keeps what was blamed before.
    blame = next((d.blame for d in ins if d.blame is not None), None)
    return [Degree(1, blame)] * len(eqn.outvars)


def _called(eqn: core.JaxprEqn, ins: list[Degree], outs: list[Degree]) -> list[Degree]:
    """Blame a function with a declared derivative, such as logaddexp, by its own name."""
    name = function_name(eqn)[0]
    if eqn.primitive.name not in DECLARED or not name or any(d.blame for d in ins):
        return outs
    return [d if d.blame is None else d._replace(blame=Blame(name)) for d in outs]


# Sums over devices, and what only moves values between them; `question` knows the others.
_BETWEEN_DEVICES = (
    "all_gather all_gather_invariant all_to_all pbroadcast ppermute psum psum2 psum_invariant "
    "psum_scatter reduce_scatter"
)


def _question(*marks: str, stopped: Rule[Degree]) -> Question[Degree]:
    # The question of degree 1, of marked calls instead of inputs.
    linear = question(1)
    rules = {
        **linear.rules,
        **dict.fromkeys(_BETWEEN_DEVICES.split(), linear.rules["add"]),
        "is_finite": _free,
        **dict.fromkeys(("eq", "ne"), _finite_or(linear.default)),
        # The inner jaxpr of these is not applied to the operands as they are.
        **dict.fromkeys(("reduce", "reduce_window"), linear.default),
        "stop_gradient": stopped,
    }
    return replace(
        linear,
        rules=rules,
        functions=lambda eqn: _marked if _marks(eqn, *marks) else None,
        sources=(Degree(1),),
        into_unknown=True,
        called=_called,
    )


# Stopping a value does not make it exact; of a stopped slope nothing is left.
_QUESTIONS = {
    _VALUE: _question(_VALUE, stopped=question(1).rules["add"]),
    # The product of both kinds may be of one key.
    _SLOPE: _question(_VALUE, _SLOPE, stopped=_free),
}
