"""The recursion of every particle filter: resample, move, weigh; one scan whatever the gradient."""

import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from vijax import checks, trees
from vijax.numerics import expand
from vijax.particles import _model as models
from vijax.particles._model import Moves, Proposal, StateSpace
from vijax.types import PyTree


class Population(NamedTuple):
    """The particles of one step.

    Fields:
        z: [N, *batch, ...].
        log_weights: log of their weights, which sum to 1, [N, *batch].
        ancestors: which particle of the step before each follows, [N, *batch]; None where particles
            are transported.
    """

    z: PyTree
    log_weights: Float[Array, "n *batch"]
    ancestors: Int[Array, "n *batch"] | None


class Filtered(NamedTuple):
    """What a particle filter returns; log-densities are in nats.

    Fields:
        log_evidence: log Ẑ, [*batch]; E Ẑ = p(x₁..T), so that E log Ẑ ≤ log p(x₁..T).
        increments: [T, *batch], estimates of log p(xₜ | x₁..ₜ₋₁), whose sum is log_evidence.
        z: the particles of z_T, [N, *batch, ...].
        log_weights: log of their weights, which sum to 1, [N, *batch].
        recorded: what `record` returned at each step, [T, ...].
    """

    log_evidence: Float[Array, "*batch"]
    increments: Float[Array, "time *batch"]
    z: PyTree
    log_weights: Float[Array, "n *batch"]
    recorded: PyTree = None


class Moved(NamedTuple):
    """One particle's draw, log p(z)/q(z), and the score of the draw where it has one, both [*batch]."""

    z: PyTree
    log_ratio: Array
    score: Array | None = None


class Selected(NamedTuple):
    """Particles after resampling; `score` is the log-probability of what was chosen, [*batch], or None."""

    z: PyTree
    log_weights: Array
    ancestors: Array | None
    score: Array | None = None


class Form(NamedTuple):
    """How derivatives pass through a filter.

    Fields:
        move: (key, moves, index of the particle, slice of `given`) -> Moved.
        select: (key, z, log_weights) -> Selected.
    """

    move: Callable[[Array, Moves, Array, PyTree], Moved]
    select: Callable[[Array, PyTree, Array], Selected]


class Inputs(NamedTuple):
    """What a filter is given beside model, data and particles; see `smc`."""

    twist: Callable[[Any, Any], Array] | None = None
    mask: Bool[Array, "..."] | None = None
    length: Any = None
    record: Callable[[Population], PyTree] | None = None
    given: PyTree = None  # [T, ...], a path that the form may put among the particles
    baseline: Array | None = None  # [T, *batch], what scores are multiplied with less of


class _State(NamedTuple):
    z: PyTree
    log_weights: Array
    total: Array  # log Ẑ so far
    score: Array  # Σ log-probabilities of what was chosen so far; 0 of forms without scores


def run(
    key: Key[Array, ""],
    model: StateSpace,
    data: PyTree,
    proposal: Proposal | None,
    num_particles: int,
    form: Form,
    inputs: Inputs,
) -> Filtered:
    """Run one particle filter; the first step outside of the scan, since it has no particles before it."""
    checks.key(key)
    checks.static_count(num_particles, "num_particles")
    num_particles = operator.index(num_particles)
    steps = models.admit(model, data, proposal)
    models.admit_mask(inputs.mask, steps)
    models.admit_length(inputs.length)
    # Only step t of the data, the mask and the given path is seen at step t.
    slices = (data, inputs.mask, inputs.given, inputs.baseline)

    x, observed, given, baseline = models.at(slices, 0)
    keys = _keys(jax.random.fold_in(key, 0), num_particles)

    def first(key: Array, index: Array) -> tuple[PyTree, Array, Array | None]:
        moves = models.start(model, proposal, x)
        return _weigh(model, moves, form.move(key, moves, index, given), x, observed)

    z, log_g, scores = jax.vmap(first)(keys, jnp.arange(num_particles))
    zero = jnp.zeros(log_g.shape[1:], log_g.dtype)
    before = _State(z, jnp.full_like(log_g, -math.log(num_particles)), zero, zero)
    state, increment = _advance(before, z, before.log_weights + log_g, _sum(scores), baseline)
    own = jnp.broadcast_to(expand(jnp.arange(num_particles), log_g), log_g.shape)
    recorded = _record(inputs, state, own)

    def step(state: _State, slices: PyTree) -> tuple[_State, tuple[Array, PyTree]]:
        t, (x, observed, given, baseline) = slices
        key_select, key_move = jax.random.split(jax.random.fold_in(key, t))
        chosen = _select(form, inputs, key_select, state, x)

        def one(key: Array, index: Array, z: PyTree) -> tuple[PyTree, Array, Array | None]:
            moves = models.move(model, proposal, z, x)
            return _weigh(model, moves, form.move(key, moves, index, given), x, observed)

        z, log_g, scores = jax.vmap(one)(
            _keys(key_move, num_particles), jnp.arange(num_particles), chosen.z
        )
        score = _add(chosen.score, _sum(scores))
        new, increment = _advance(state, z, chosen.log_weights + log_g, score, baseline)
        ancestors = chosen.ancestors
        if inputs.length is not None:
            # Beyond its length a sequence stands still.
            active = jnp.broadcast_to(t < jnp.asarray(inputs.length), increment.shape)
            new = _while_active(active, new, state)
            increment = jnp.where(active, increment, 0.0)
            ancestors = _where(active[None], ancestors, None if ancestors is None else own)
        return new, (increment, _record(inputs, new, ancestors))

    rest = jax.tree.map(lambda leaf: jnp.asarray(leaf)[1:], slices)
    state, (increments, others) = trees.scan(step, state, (jnp.arange(1, steps), rest))
    # Where a step was impossible the evidence is 0, and the slopes of other steps count for nothing.
    total = jnp.where(jnp.isneginf(state.total), -jnp.inf, state.total)
    return Filtered(
        total,
        _led_by(increment, increments),
        state.z,
        state.log_weights,
        _led_by(recorded, others),
    )


def _weigh(
    model: StateSpace, moves: Moves, moved: Moved, x: PyTree, observed: Array | None
) -> tuple[PyTree, Array, Array | None]:
    """Return one particle, its incremental log-weight p(z) p(x|z) / q(z), and its score."""
    z = moves.state(moved.z)
    emission = models.one_value(model.emission(z, x), moved.log_ratio, z, "model.emission(z, x)")
    if observed is not None:
        emission = jnp.where(observed, emission, 0.0)
    return z, moved.log_ratio + emission, moved.score


def _select(form: Form, inputs: Inputs, key: Array, state: _State, x: PyTree) -> Selected:
    """Resample by the weights, or by weights times a twist, which is then taken off the weights again."""
    twist = inputs.twist
    if twist is None:
        return form.select(key, state.z, state.log_weights)
    ahead = jax.vmap(lambda z: twist(z, x))
    log_r = ahead(state.z)
    if log_r.shape != state.log_weights.shape:
        raise ValueError(
            f"twist(z, x) must be [*batch] {state.log_weights.shape[1:]} for one particle, got "
            f"{log_r.shape[1:]}."
        )
    twisted = state.log_weights + log_r
    twisted, total = _normalized(twisted)
    chosen = form.select(key, state.z, twisted)
    log_r = ahead(chosen.z) if chosen.ancestors is None else gather(log_r, chosen.ancestors)
    return chosen._replace(log_weights=chosen.log_weights - log_r + total[None])


def _advance(
    state: _State, z: PyTree, log_weights: Array, score: Array | None, baseline: Array | None
) -> tuple[_State, Array]:
    """Take the step's evidence out of the weights, and add it up."""
    log_weights, increment = _normalized(log_weights)
    scores = state.score
    if score is not None:
        scores = scores + score
        increment = _boxed(increment, scores, 0.0 if baseline is None else baseline)
    new = _State(z, log_weights, state.total + increment, scores)
    return new, increment


def _boxed(value: Array, scores: Array, baseline: Array | float) -> Array:
    """Return a value with the slopes that it owes to choices: (value - baseline) ∇scores, of any order."""
    possible = jnp.isfinite(value)
    box = jnp.exp(scores - jax.lax.stop_gradient(scores))  # 1
    centered = jnp.where(possible, value, 0.0) - jax.lax.stop_gradient(baseline)
    # The value itself, to the last digit, and the derivatives of the product
    return jnp.where(possible, value + centered * (box - 1.0), value)


def _normalized(log_weights: Array) -> tuple[Array, Array]:
    """Return log-weights that sum to 1, and the log of what they summed to, in one pass; total.

    Where all are impossible: equal weights and -inf, both without slope.
    """
    top = jax.lax.stop_gradient(jnp.max(log_weights, 0))
    none = jnp.isneginf(top)
    shift = jnp.where(none, 0.0, top)
    rest = log_weights - shift[None]
    log_total = jnp.log(jnp.where(none, 1.0, jnp.sum(jnp.exp(rest), 0)))
    equal = -math.log(log_weights.shape[0])
    return jnp.where(none[None], equal, rest - log_total[None]), jnp.where(
        none, -jnp.inf, shift + log_total
    )


def gather(tree: PyTree, ancestors: Int[Array, "n *batch"]) -> PyTree:
    """Return each particle's ancestor, for every leaf [N, *batch, ...]."""
    if ancestors.ndim == 1:
        return jax.tree.map(lambda leaf: leaf[ancestors], tree)
    return jax.tree.map(
        lambda leaf: jnp.take_along_axis(leaf, expand(ancestors, leaf), axis=0), tree
    )


def by_member(
    resample: Callable[[Array, Array], tuple[Array, Array]], key: Array, log_weights: Array
) -> tuple[Array, Array]:
    """Resample each member of the batch by itself, [N, *batch]."""
    if log_weights.ndim == 1:
        return resample(key, log_weights)
    flat = log_weights.reshape(log_weights.shape[0], -1)
    results = jax.vmap(resample, (0, 1), 1)(jax.random.split(key, flat.shape[1]), flat)
    ancestors, kept = (r.reshape(log_weights.shape) for r in results)
    return ancestors, kept


def _keys(key: Array, n: int) -> Array:
    """Return a key for each particle: threefry's own, counted up, where a split would hash once more."""
    if n > 1 and str(jax.random.key_impl(key)) == "threefry2x32":
        high, low = jax.random.key_data(key)
        low = low + jnp.arange(n, dtype=low.dtype)
        data = jnp.stack([jnp.broadcast_to(high, (n,)), low], -1)
        return jax.random.wrap_key_data(data, impl="threefry2x32")
    return jax.random.split(key, n)


def _sum(scores: Array | None) -> Array | None:
    return None if scores is None else jnp.sum(scores, 0)


def _add(a: Array | None, b: Array | None) -> Array | None:
    return b if a is None else a if b is None else a + b


def _record(inputs: Inputs, state: _State, ancestors: Array | None) -> PyTree:
    if inputs.record is None:
        return None
    return inputs.record(Population(state.z, state.log_weights, ancestors))


def _led_by(first: PyTree, rest: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest)


def _where(active: Array, new: PyTree, old: PyTree) -> PyTree:
    """Choose by member of the batch, for leaves [*batch, ...]."""
    return jax.tree.map(lambda a, b: jnp.where(expand(active, a), a, b), new, old)


def _while_active(active: Array, new: _State, old: _State) -> _State:
    """Choose by member of the batch: sums are [*batch], what particles have is [N, *batch, ...]."""
    of_particles = _where(active[None], (new.z, new.log_weights), (old.z, old.log_weights))
    sums = _where(active, (new.total, new.score), (old.total, old.score))
    return _State(*of_particles, *sums)
