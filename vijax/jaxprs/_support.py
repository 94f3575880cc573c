"""Whether q's support moves with its parameters, so that the mean of its score is not zero."""

import math
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core
from jaxtyping import Array, Key

from vijax.jaxprs._equations import trace, varies
from vijax.jaxprs._keys import SEED
from vijax.jaxprs._libraries import declared_support
from vijax.jaxprs._noise import Noise, own_draws, repeat_all
from vijax.jaxprs._paths import LOOK_UP, Path
from vijax.jaxprs._range import GIVEN, MOVING, Range, constant, is_whole, moves
from vijax.jaxprs._range_rules import ranges
from vijax.jaxprs._samplers import NOT_ONTO, between, held
from vijax.types import Distribution, Joint, PyTree

# The cures: by the path where there is one, and else by another q; a declaration where no proof was found.
_USE_A_PATH = "Use gradients.reparam, where draws carry q's derivative, or a q of fixed support."
_NO_PATH = "Use another q, whose draws carry all of its derivative, or declare what holds here."
_DECLARE = (
    "If the support of this leaf does not depend on its parameters, declare q.fixed_support = True, or "
    "families.adapt(q, fixed_support=True), of its distribution."
)
_UNPROVED = f"{_USE_A_PATH} {_DECLARE}"


class Moving(NamedTuple):
    """Why the mean of q's score may not be zero.

    Fields:
        why: a clause.
        cure: what to do about it, a sentence.
        leaf: which leaf it is of, where that is known, or "".
    """

    why: str
    cure: str = _USE_A_PATH
    leaf: str = ""

    def inside(self, name: Hashable) -> "Moving":
        """Return this of a leaf of the Joint around it."""
        return self._replace(leaf=str(name) if self.leaf in ("", "z") else f"{name}.{self.leaf}")


def moving_support(q: object, key: Key[Array, ""], leaves: Mapping[str, Path]) -> Moving | None:
    """Return why q's support may move with its parameters, or None; where it does, E[score] ≠ 0.

    None takes evidence: q declares `fixed_support`, its library declares a support whose limits no
    parameter reaches, or its sampler's jaxpr shows the range of its draws. What a discrete q draws
    must not depend on parameters either.

    Args:
        q: a distribution, or a Joint.
        key: any.
        leaves: the paths of the draw's leaves.

    Example:
        >>> q = vj.families.mean_field().dist({"loc": jnp.zeros(2), "log_scale": jnp.zeros(2)})
        >>> leaves = vj.jaxprs.paths(q, vj.draws.iid, jax.random.key(0))
        >>> moving_support(q, jax.random.key(0), leaves) is None
        True
    """
    moving = part_moves(lambda: q, key, (), (), leaves)
    if moving and any(path.broken for path in leaves.values()):
        return moving._replace(cure=moving.cure.replace(_USE_A_PATH, _NO_PATH))
    return moving


def carried_away(
    q: Distribution,
    key: Key[Array, ""],
    push: Callable[[PyTree], PyTree],
    pull: Callable[[PyTree], PyTree],
) -> bool | None:
    """Return whether push(pull(z)) carries an end of q's support along with its parameters.

    Args:
        q: the distribution of z.
        key: any.
        push: a map that reads q's parameters.
        pull: its inverse, which does too.

    Returns:
        True or False where it is proved; None where an end cannot be followed.

    Example:
        >>> q = vj.families.mean_field().dist({"loc": jnp.zeros(2), "log_scale": jnp.zeros(2)})
        >>> carried_away(q, jax.random.key(0), lambda u: u + 1.0, lambda z: z - 1.0)
        False
    """
    # z is held while the parameters of pull and push change: where its ends are, they stay.
    trusted: list[bool] = []

    def carried(key: Key[Array, ""]) -> PyTree:
        return push(jax.tree.map(held, pull(_image(q, key, trusted))))

    closed, _ = trace(carried, key)
    outputs = ranges(closed, [Range(key=Noise(SEED))], _consts(closed))
    if any(moves(leaf) is not None and not leaf.unknown for leaf in outputs):
        return True
    proved = all(trusted) and all(moves(leaf) is None for leaf in outputs)
    return False if proved else None


def _image(q: Distribution, key: Key[Array, ""], trusted: list[bool]) -> PyTree:
    """Return draws that stand for all of q's support; of one that is declared, for the real line.

    Which is so of vijax's own families: `trusted` notes it.
    """
    if isinstance(q, Joint):
        leaves: dict[Any, Any] = {}
        for name, own in zip(q.names(), q.keys(key), strict=True):
            leaves[name] = _image(q.conditional(name, leaves), own, trusted)
        return q.collect(leaves)
    # What its library declares; else its sampler's own draws, unless q declares a fixed support.
    image = declared_support(q)
    if image is not None:
        return image
    if not getattr(q, "fixed_support", None):
        return q.sample_and_log_prob(seed=key, sample_shape=())[0]
    trusted.append(type(q).__module__.startswith("vijax."))
    shapes = jax.eval_shape(lambda k: q.sample_and_log_prob(seed=k, sample_shape=())[0], key)
    return jax.tree.map(lambda s: between(-math.inf, math.inf, s.shape, s.dtype), shapes)


# --- one distribution, or one conditional


def joint_moves(
    joint: Callable[..., Joint],
    key: Key[Array, ""],
    inputs: tuple[PyTree, ...],
    given: Sequence[Range],
    names: Sequence[Any],
    z: PyTree,
    leaves: Mapping[Any, Mapping[str, Path]],
    *,
    order: Sequence[Any],
    carrying: Collection[Any] = (),
) -> Moving | None:
    """Return why the support of a conditional of the Joint joint(*inputs) may move.

    Args:
        joint: what is given from outside -> the Joint.
        key: any.
        inputs: the shapes of what is given from outside.
        given: its ranges.
        names: of the conditionals that are asked for.
        z: the shapes of a draw.
        leaves: the paths of the leaves of each.
        order: the names of all conditionals, in the order in which they are drawn.
        carrying: earlier leaves that carry the derivative of q's parameters; all others are given.
    """
    for name in names:
        # Earlier leaves are inputs of the trace: given, or moving as parameters do.
        earlier = {n: z[n] for n in order[: order.index(name)]}
        more = [
            # A whole number that was drawn may be 0.
            MOVING if n in carrying else GIVEN._replace(nonzero=not is_whole(leaf.dtype))
            for n in sorted(earlier)  # as JAX flattens a dict
            for leaf in jax.tree.leaves(earlier[n])
        ]

        def part(*inputs: PyTree, name: Hashable = name) -> Any:
            return joint(*inputs[:-1]).conditional(name, inputs[-1])

        moving = part_moves(part, key, (*inputs, earlier), [*given, *more], leaves[name])
        if moving is not None:
            return moving.inside(name)
    return None


def part_moves(
    part: Callable[..., Any],
    key: Key[Array, ""],
    inputs: tuple[PyTree, ...],
    given: Sequence[Range],
    leaves: Mapping[str, Path],
) -> Moving | None:
    """Return why the support of the distribution part(*inputs) may move."""
    # 1. What q declares: an ability of its own, or its library's limits. The trace that asks makes
    # q of the given leaves; `last` hands it out.
    last: list[Any] = [None]

    def support(*inputs: PyTree) -> PyTree:
        q = last[0] = part(*inputs)
        known = isinstance(q, Joint) or getattr(q, "fixed_support", None) is not None
        return None if known else declared_support(q)

    closed, _ = trace(support, *inputs)
    q = last[0]
    declared = getattr(q, "fixed_support", None)
    if declared is not None:
        return None if declared else Moving("q declares fixed_support = False")
    # 2. A Joint, part by part.
    if isinstance(q, Joint):
        z = jax.eval_shape(lambda *given: part(*given).sample_and_log_prob(seed=key)[0], *inputs)
        names = q.names()
        within = {name: _within(leaves, name) for name in names}
        return joint_moves(part, key, inputs, given, names, z, within, order=names)
    # 3. Discrete values that move; a q without any continuous leaf that parameters reach is done.
    for leaf, path in leaves.items():
        if path.atoms is not None:
            return Moving(f"it {path.atoms}", LOOK_UP, leaf)
    if not any(path.parametric for path in leaves.values()):
        return None
    if not closed.out_avals and not hasattr(q, "sample_and_log_prob"):
        return Moving("it has no sampler that would show where its draws lie", _UNPROVED)

    def sample(key: Key[Array, ""], *inputs: PyTree) -> PyTree:
        return part(*inputs).sample_and_log_prob(seed=key, sample_shape=())[0]

    # 4. The range of what the library declares, or else of the sampler's draws.
    consts = _consts(closed)
    if not closed.out_avals:
        closed, _ = trace(sample, key, *inputs)
        given, consts = [Range(key=Noise(SEED)), *given], _consts(closed)
    elif _concrete(closed.consts):
        # Whether these are constants beside parameters, the draws' own jaxpr tells.
        drawn, _ = trace(sample, key, *inputs)
        consts = _consts(closed, beside=drawn.consts)
    outputs = ranges(closed, given, consts)
    if MOVING not in (*given, *consts) and all(f.unknown != NOT_ONTO for f in outputs):
        return None  # no parameter reaches it
    return _why(outputs, list(closed.out_avals))


def _within(leaves: Mapping[str, Path], name: Hashable) -> dict[str, Path]:
    """Return the paths of one conditional's leaves, by the names that they have within it."""
    start = f"{name}."
    within = {leaf.removeprefix(start): p for leaf, p in leaves.items() if leaf.startswith(start)}
    return {"z": leaves[str(name)], **within} if str(name) in leaves else within


def _concrete(consts: Sequence[Any]) -> bool:
    """Whether closed-over values are concrete arrays, with no tracer to tell what they are."""
    arrays = [c for c in consts if isinstance(c, jax.Array)]
    return bool(arrays) and not any(isinstance(c, jax.core.Tracer) for c in arrays)


def _consts(closed: core.ClosedJaxpr, *, beside: Sequence[Any] = ()) -> list[Range]:
    """Return the ranges of closed-over values: see `flows` for which of them are parameters.

    Args:
        closed: the jaxpr.
        beside: values that q holds besides, any of which may be the traced parameter.
    """
    traced = any(isinstance(c, jax.core.Tracer) for c in (*closed.consts, *beside))

    def of(value: object) -> Range:
        if varies(value) or (isinstance(value, jax.Array) and not traced):
            return MOVING
        return constant(value)

    return [of(c) for c in closed.consts]


def _why(outputs: Sequence[Range], shapes: Sequence[Any]) -> Moving | None:
    """Return why the set of several leaves may move: that of each, or of what they share."""
    # Each leaf by itself, then all together: dependent leaves may lie on a curve that moves.
    for output, of in zip(outputs, shapes, strict=True):
        why = moves(output)
        if why is not None:
            return Moving(why, _UNPROVED)
        if repeat_all(output.noise) and math.prod(of.shape) > 1:
            return Moving("its elements repeat one draw", _UNPROVED)
    if not own_draws(outputs):
        return Moving("several leaves are functions of the same draw", _UNPROVED)
    return None
