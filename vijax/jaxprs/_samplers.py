"""Draws whose range is known by name: of JAX's own samplers, and of what stands for a support."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.typing import ArrayLike, DTypeLike

from vijax.jaxprs._equations import equations, function_name, inner_jaxprs, shape_of
from vijax.jaxprs._interpreter import Rule
from vijax.jaxprs._keys import is_followed
from vijax.jaxprs._noise import ALWAYS, Noise, Noises, bare, made
from vijax.jaxprs._range import FIXED, INF, MOVES, Range, is_real, not_known, point, sign_between
from vijax.jaxprs._range_reduce import is_singular
from vijax.jaxprs._range_unary import default, is_key, monotone


def between(
    low: ArrayLike, high: ArrayLike, shape: Sequence[int] = (), dtype: DTypeLike = float
) -> jax.Array:
    """Return an array that stands, in a jaxpr, for draws of every value between two ends.

    Args:
        low: the lower end, -inf for none; a number or a traced array.
        high: the upper end.
        shape: of the array.
        dtype: of the array.
    """
    return _between(low, high, jnp.zeros(shape, dtype))


def on_simplex(shape: Sequence[int], dtype: DTypeLike = float) -> jax.Array:
    """Return an array that stands for draws on a simplex, along the last axis."""
    return _on_simplex(jnp.zeros(shape, dtype))


# Calls of the functions below are told by their names; their numbers do not matter.


@jax.jit
def _on_simplex(like: jax.Array) -> jax.Array:
    return like + 1


@jax.jit
def _between(low: jax.Array, high: jax.Array, like: jax.Array) -> jax.Array:
    return (low + like + high).astype(like.dtype)


def onto_reals(z: ArrayLike, shape: Sequence[int] | None = None) -> jax.Array:
    """Return an array that stands for a map of the real line onto itself, where z spans it."""
    like = jnp.zeros(jnp.shape(z) if shape is None else shape, jnp.result_type(z))
    return _onto_reals(z, like)


def held(z: ArrayLike) -> jax.Array:
    """Return an array that keeps its values, and so its ends, while parameters change."""
    return _held(z)


@jax.jit
def _held(z: jax.Array) -> jax.Array:
    return z + 0


@jax.jit
def _onto_reals(z: jax.Array, like: jax.Array) -> jax.Array:
    return like + jnp.sum(z)


# --- JAX's own samplers, whose laws are known by name


def _span(low: float, high: float, *, dependent: int = 0) -> Rule[Range]:
    """Return the rule of a sampler whose draws span (low, high) for any parameters.

    Args:
        low: the lower end.
        high: the upper end.
        dependent: over how many of the last axes the elements of a draw depend on each other.
    """
    real = (low, high) == (-INF, INF)

    def rule(eqn: core.JaxprEqn, ins: list[Range]) -> list[Range]:
        noise = drawn(eqn, ins, dependent=dependent)
        return [_of_key(ins[0].key, Range(noise, low, high, sign_between(low, high), real=real))]

    return rule


def _multivariate(eqn: core.JaxprEqn, ins: list[Range]) -> list[Range]:
    """Normals of a covariance, the third operand."""
    if is_singular(ins[2], shape_of(eqn.invars[2])):
        return [not_known([Range(drawn(eqn, ins))], "its covariance is singular")]
    return _span(-INF, INF)(eqn, ins)


def _of_key(key: Noise | None, draws: Range) -> Range:
    """Return draws of a key: constants where it is not the sampler's."""
    if key is None:
        return Range(sign=draws.sign, loops=ALWAYS, nonzero=True)
    if not is_followed(key):
        return not_known([draws], "a key that it draws from is not followed to the sampler's own")
    return draws


def drawn(eqn: core.JaxprEqn, ins: list[Range], *, dependent: int = 0) -> Noises:
    """Return the draws that an equation makes of its key."""
    key, shape = ins[0].key, shape_of(eqn.outvars[0])
    if key is None:
        return frozenset()
    # The sampler and the shape are part of the name, so that a draw of one array has its own parts.
    name = function_name(eqn)[0] or eqn.primitive.name
    root = ("draw", bare(key), name, shape, _layout(eqn))
    if _fewer_bits(eqn):
        return frozenset(
            {key._replace(root=root, part=None, axes=(None,) * len(shape), repeated=True)}
        )
    several = dependent > 0 and math.prod(shape[-dependent:]) > 1
    return frozenset({made(root, key, shape, dependent=dependent)._replace(dependent=several)})


def _layout(eqn: core.JaxprEqn) -> tuple[tuple[str, str], ...]:
    """Return how the body of a sampler lays out axes, which jax.vmap may change within."""
    return tuple(
        (e.primitive.name, str([e.params.get(name) for name in _LAYS_OUT]))
        for inner in inner_jaxprs(eqn)
        for e in equations(inner)
        if any(name in e.params for name in _LAYS_OUT)
    )


# Parameters of primitives that say where axes go.
_LAYS_OUT = ("permutation", "dimension_numbers", "broadcast_dimensions")
# How many normals a sampler draws for each of its own draws, where that is not one.
_NORMALS = {"_maxwell": 3, "_double_sided_maxwell": 3}


def _fewer_bits(eqn: core.JaxprEqn) -> bool:
    """Whether a sampler makes less noise than draws: jax.vmap with one key for all members."""
    inner = [e for i in inner_jaxprs(eqn) for e in equations(i)]
    # One key repeated for all members, or one set of bits for them.
    if any(e.primitive.name == "broadcast_in_dim" and is_key(e.outvars[0]) for e in inner):
        return True
    makes = [e for e in inner if e.primitive.name in ("random_bits", "random_gamma")]
    bits = max((math.prod(shape_of(e.outvars[0])) for e in makes), default=None)
    each = _NORMALS.get(function_name(eqn)[0], 1)
    return bits is not None and bits < each * math.prod(shape_of(eqn.outvars[0]))


def _own(eqn: core.JaxprEqn) -> Noises:
    """Return a draw that an equation stands for."""
    shape = shape_of(eqn.outvars[0])
    return frozenset({made(id(eqn), Noise(id(eqn)), shape)})


def _uniform(eqn: core.JaxprEqn, ins: list[Range]) -> list[Range]:
    # Operands: the key, then the two limits, which are given.
    low, high = ins[1].low, ins[2].low
    if ins[1].noise or ins[2].noise:
        return [not_known([*ins[1:], Range(drawn(eqn, ins))], "its limits are draws")]
    if isinstance(low, float) and isinstance(high, float):
        # The smallest number above -1 or 0 stands for -1 or 0.
        low = -1.0 if 0 < low + 1 < 1e-6 else 0.0 if 0 < low < 1e-30 else low
    sign = ins[1].sign if ins[1].sign > 0 else sign_between(low, high)
    if ins[0].key is None:
        loops = min(v.loops for v in ins[1:])
        return [point(ins)._replace(sign=sign, loops=loops, nonzero=True)]
    return [_of_key(ins[0].key, Range(drawn(eqn, ins), low, high, sign))]


def _marked(eqn: core.JaxprEqn, ins: list[Range]) -> list[Range]:
    """`between`: a draw of its own, between the ends that are its operands."""
    low, high = ins[0].low, ins[1].low
    real = (low, high) == (-INF, INF)
    return [Range(_own(eqn), low, high, sign_between(low, high), real=real)]


def _sharing(eqn: core.JaxprEqn, ins: list[Range]) -> list[Range]:
    """`on_simplex`: a draw of its own, whose elements depend on each other."""
    noise = frozenset(n._replace(dependent=True) for n in _own(eqn))
    return [Range(noise, 0.0, 1.0, 1)]


def _holding(eqn: core.JaxprEqn, ins: list[Range]) -> list[Range]:
    """`held`: ends that move stay where they are."""
    low, high = (FIXED if end == MOVES else end for end in (ins[0].low, ins[0].high))
    return [ins[0]._replace(low=low, high=high)]


# Why nothing is known of a flow's layer; the caller compares it.
NOT_ONTO = "a layer of a flow is not followed where its draws do not span the line"


def _spanning(eqn: core.JaxprEqn, ins: list[Range]) -> list[Range]:
    """`onto_reals`: the whole line of the whole line, and of nothing else."""
    if not is_real(ins[0]):
        return [Range(_own(eqn), MOVES, MOVES, unknown=NOT_ONTO)]
    return [Range(_own(eqn), -INF, INF, real=True)]


def gamma(eqn: core.JaxprEqn, ins: list[Range]) -> list[Range]:
    """(0, ∞), or the line in log space."""
    log_space = eqn.params.get("log_space", False)
    return _span(-INF, INF)(eqn, ins) if log_space else _span(0.0, INF)(eqn, ins)


def _softplus(eqn: core.JaxprEqn, ins: list[Range]) -> list[Range]:
    """logaddexp(x, c): increasing from c to infinity."""
    # x is the operand with draws; c must be given, and known: log(eˣ + eᶜ) > c.
    x, c = ins if ins[0].noise or not ins[1].noise else ins[::-1]
    if c.noise or x.unknown:
        return [default(eqn, ins)]
    if not x.noise:
        sign = 1 if 0.0 in (x.low, c.low) else 0
        result = point(ins)
        return [result._replace(sign=sign, nonzero=bool(sign) or result.nonzero)]
    if not isinstance(c.low, float):
        return [not_known(ins, "its floor moves") if c.low == MOVES else Range(x.noise)]
    floor = c.low
    return monotone(lambda v: float(np.logaddexp(v, floor)), 1 if floor >= 0 else 0)(eqn, [x])


# By the names of the jitted functions in jax._src.random; parameters change scale and location.
_SAMPLERS: dict[str, Rule[Range]] = {
    **dict.fromkeys(
        "_normal _normal_real _gumbel _laplace _logistic _cauchy _t "
        "_generalized_normal _double_sided_maxwell".split(),
        _span(-INF, INF),
    ),
    **dict.fromkeys(
        "_exponential _chisquare _f _rayleigh _wald _weibull_min _maxwell".split(), _span(0.0, INF)
    ),
    "_multivariate_normal": _multivariate,
    "_beta": _span(0.0, 1.0),
    "_dirichlet": _span(0.0, 1.0, dependent=1),
    "_pareto": _span(1.0, INF),
    "_uniform": _uniform,
    "_truncated_normal": _uniform,
}


def known_function(eqn: core.JaxprEqn) -> Rule[Range] | None:
    """Return the rule of a function that is known by its name and by the file that defines it."""
    name, place = function_name(eqn)
    if place == "vijax":
        return {
            "_between": _marked,
            "_held": _holding,
            "_on_simplex": _sharing,
            "_onto_reals": _spanning,
        }.get(name)
    if place != "jax":
        return None
    if name == "logaddexp":
        return _softplus
    return _SAMPLERS.get(name) if len(eqn.outvars) == 1 else None
