"""The part of a fit that runs on the device: one compiled program for any number of steps."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from vijax import checks, diagnostics
from vijax.fitting import _iterates
from vijax.fitting._iterates import Iterates
from vijax.fitting._marginals import marginals, scale_units
from vijax.trees import finite_leaves, strong_dtypes
from vijax.types import Draws, PyTree

THIN = 8  # steps from one remembered iterate to the next; neighbors are nearly alike
POOL = 1024  # draws whose k-hat is shown
FEW = 100  # draws that have no k-hat worth showing


class Loop(NamedTuple):
    """Everything that a fit carries on, and so what a checkpoint holds.

    Fields:
        key: that of the whole fit; step i uses fold_in(key, i).
        step: how many were made, ().
        state: what the steps read and write: params, optimizer, data cursor, baselines.
        iterates: of the bound and of what is watched.
        pending: the sums since the last remembered iterate of the bound, and of the steps taken.
        log_w: log-weights of the last draws, [rows, k, *batch].
    """

    key: Array
    step: Int[Array, ""]
    state: PyTree
    iterates: Iterates
    pending: dict[str, Array]
    log_w: Array


class Chunk(NamedTuple):
    """What is told of some steps: the sum of their bounds, and whether any number was bad."""

    total: Array
    bad: Array


class Program(NamedTuple):
    """The compiled functions of a fit.

    Fields:
        start: (key, state) -> the loop before its first step.
        run: (loop, until) -> (loop, Chunk).
        join: loop -> loop, with remembered blocks of iterates joined two and two.
        ess_and_khat: loop -> (mean effective sample size of the last step, k-hat of pooled last
            draws).
    """

    start: Callable[[Key[Array, ""], PyTree], Loop]
    run: Callable[[Loop, np.int32], tuple[Loop, Chunk]]
    join: Callable[[Loop], Loop]
    ess_and_khat: Callable[[Loop], tuple[Array, Array]]


@lru_cache(maxsize=16)
def program(step: Callable[..., Any], watch: Callable[[PyTree], PyTree]) -> Program:
    """Return the compiled functions; nothing is compiled before the first call.

    The number of steps is an argument, not a constant: XLA may fuse loops of different known
    lengths differently, and then cutting a fit elsewhere would change its last bits.
    """
    return Program(
        start=jax.jit(partial(_start, step, watch)),
        run=jax.jit(partial(_run, step, watch)),
        join=jax.jit(_join),
        ess_and_khat=jax.jit(_ess_and_khat),
    )


Carry = tuple[Array, PyTree, dict[str, Array], Array, PyTree]
"""Step, state, pending sums, log-weights and gradient of the last step."""


def _run(
    step: Callable[..., Any], watch: Callable[[PyTree], PyTree], loop: Loop, until: Array
) -> tuple[Loop, Chunk]:
    """Make steps up to a number, in stretches that end where an iterate is remembered."""

    # One step; a while_loop that ends at `goal` makes up to THIN of them.
    def one(carry: Carry) -> Carry:
        i, state, pending, *_ = carry
        state, report = step(jax.random.fold_in(loop.key, i), state)
        told = told_of(report)
        sums = jax.tree.map(jnp.add, pending, {"bound": told.bound, "taken": told.taken})
        gradient = _gradient_of(told.gradient, loop.iterates.mean["gradient"])
        return i + 1, state, sums, told.log_w, gradient

    # Up to the next remembered iterate, or to `until` where that comes first.
    def stretch(carry: tuple[Loop, Array]) -> tuple[Loop, Array]:
        at, total = carry
        goal = jnp.minimum(until, (at.step // THIN + 1) * THIN)
        # A stretch of no step cannot be: log_w and gradient here only have the right shapes.
        none = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), at.iterates.mean["gradient"])
        first = at.step, at.state, at.pending, at.log_w[0], none
        i, state, pending, log_w, gradient = jax.lax.while_loop(lambda c: c[0] < goal, one, first)
        # Only a whole stretch makes an iterate; sums of a part of one stay pending.
        whole = i % THIN == 0
        means = jax.tree.map(lambda sums: sums / THIN, pending)
        after = Loop(
            key=at.key,
            step=i,
            state=state,
            iterates=_iterates.add(at.iterates, _iterate(means, watch(state), gradient), whole),
            pending=jax.tree.map(lambda sums: jnp.where(whole, 0, sums), pending),
            log_w=at.log_w.at[(i - 1) // THIN % len(at.log_w)].set(log_w),
        )
        return after, total + (pending["bound"] - at.pending["bound"])

    begin = loop, jnp.zeros_like(loop.pending["bound"])
    end, total = jax.lax.while_loop(lambda c: c[0].step < until, stretch, begin)
    # What is not finite stays so, so the ends of a chunk are enough; a nan bound shows in the sum.
    lost = newly_not_finite(end.state, loop.state)
    return end, Chunk(total, lost | ~jnp.all(jnp.isfinite(total)))


def _iterate(means: dict[str, Array], params: PyTree, gradient: PyTree) -> dict[str, PyTree]:
    """Return what is remembered of the last steps; the gradient in units of q."""
    of_latents = marginals(params)
    same = str(jax.tree.structure(of_latents)) == str(jax.tree.structure(params))
    if jax.tree.leaves(gradient):
        gradient = jax.tree.map(jnp.multiply, gradient, scale_units(params))
    # Without a dense Gaussian the marginals are the params, and are not kept twice.
    kept = () if same else of_latents
    return means | {"params": params, "marginals": kept, "gradient": gradient}


def _gradient_of(gradient: PyTree, kept: PyTree) -> PyTree:
    """Return a step's gradient where it is remembered."""
    if not jax.tree.leaves(kept):
        return kept
    return jax.tree.map(lambda g, k: jnp.asarray(g, k.dtype), gradient, kept)


def _like_params(gradient: PyTree, params: PyTree) -> PyTree:
    """Return the gradient where it is that of all that is watched, else nothing."""

    def shapes(tree: PyTree) -> Any:
        return jax.tree.structure(tree), [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]

    return gradient if shapes(gradient) == shapes(params) else ()


def _join(loop: Loop) -> Loop:
    return loop._replace(iterates=_iterates.join(loop.iterates))


def _ess_and_khat(loop: Loop) -> tuple[Array, Array]:
    """Return the effective sample size of the last step, and the k-hat of pooled last draws."""
    rows, k = loop.log_w.shape[:2] if loop.log_w.ndim > 1 else (1, 0)
    if k == 0:
        return jnp.float32(jnp.nan), jnp.float32(jnp.nan)
    newest = loop.log_w[(loop.step - 1) // THIN % rows]
    ess = jnp.mean(diagnostics.ess(newest))
    # Members of a batch, or restarts, are no draws of one weight.
    if loop.log_w.ndim > 2:
        return ess, jnp.full_like(ess, jnp.nan)
    # Early on rows are empty yet: those that are not stand for them, again and again.
    written = jnp.clip(rows_written(loop.step), 1, rows)
    khat = diagnostics.khat(loop.log_w[jnp.arange(rows) % written].reshape(-1))
    return ess, jnp.where(written * k < FEW, jnp.nan, khat)


def _start(
    step: Callable[..., Any],
    watch: Callable[[PyTree], PyTree],
    key: Key[Array, ""],
    state: PyTree,
) -> Loop:
    """Return the loop before its first step; refuse a step that no loop can repeat."""
    state = strong_dtypes(state)

    # Shapes alone: no step is made here.
    def first(key: Key[Array, ""], state: PyTree) -> tuple[PyTree, Told]:
        made = step(key, state)
        if not isinstance(made, tuple) or len(made) != 2:
            raise TypeError(
                "step must return (state, types.Step), as that of fitting.ascent, got "
                f"{type(made).__name__}."
            )
        return made[0], told_of(made[1])

    after, told = jax.eval_shape(first, key, state)
    _check_same(state, after)
    watched = jax.eval_shape(watch, state)
    for name, leaf in checks.named_leaves(watched):
        if not jnp.issubdtype(leaf.dtype, jnp.number):
            raise TypeError(
                f"watch(state) must hold numbers, leaf '{name}' is {leaf.dtype}; leave it out."
            )
    means = {"bound": told.bound, "taken": told.taken}
    gradient = _like_params(told.gradient, watched)
    return Loop(
        key=strong_dtypes(key),
        step=jnp.int32(0),
        state=state,
        iterates=_iterates.empty(jax.eval_shape(_iterate, means, watched, gradient)),
        pending=jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), means),
        log_w=jnp.zeros((_rows(told.log_w), *told.log_w.shape), told.log_w.dtype),
    )


def _rows(log_w: jax.ShapeDtypeStruct) -> int:
    """Return of how many steps the log-weights are kept: enough draws for a k-hat."""
    if log_w.ndim != 1:
        return 1
    return max(1, min(POOL // max(log_w.shape[0], 1), 256))


def rows_written(step: Array) -> Array:
    """Return how many rows of log-weights so many steps have written; there may be fewer rows."""
    return (step + THIN - 1) // THIN


def newly_not_finite(after: PyTree, before: PyTree) -> Array:
    """Whether a leaf was finite before and is not after; a best value of inf, say, never was."""
    lost = [
        was & ~is_now
        for is_now, was in zip(finite_leaves(after), finite_leaves(before), strict=True)
    ]
    return jnp.any(jnp.stack(lost)) if lost else jnp.bool_(0)


class Told(NamedTuple):
    """What a fit keeps of a step.

    Fields:
        bound: its estimate, in nats.
        taken: 1 where the state moved, 0 where the step was left out, like the bound.
        log_w: the log-weights of its draws, of length 0 where it shows none.
        gradient: of the bound, or None.
    """

    bound: Array
    taken: Array
    log_w: Array
    gradient: PyTree


def told_of(report: object) -> Told:
    """Return what a fit keeps of a step's report, which may be the bound alone."""
    value: Any = getattr(report, "value", report)
    draws = getattr(report, "draws", None)
    if not hasattr(value, "dtype") or not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(
            "step must return (state, types.Step(value, draws)), the value a float array of JAX, "
            f"or that value alone; got {getattr(value, 'dtype', type(value).__name__)}."
        )
    log_w = jnp.zeros(0, value.dtype) if draws is None else _alike(draws)
    taken = jnp.asarray(getattr(report, "taken", 1.0)) > 0
    moved = jnp.broadcast_to(taken.astype(value.dtype), value.shape)
    gradient = getattr(report, "gradient", None)
    return Told(*jax.lax.stop_gradient((value, moved, log_w, gradient)))


def _alike(draws: Draws) -> Array:
    """Return log-weights of draws that count alike: of strata, with their shares within."""
    log_w, weights = draws.log_p - draws.log_q, getattr(draws, "weights", None)
    if weights is None:
        return log_w
    # [k] against [k, *batch].
    share = weights.reshape(*weights.shape, *(1,) * (log_w.ndim - weights.ndim))
    return log_w + jnp.log(len(log_w) * share)


def _check_same(before: PyTree, after: PyTree) -> None:
    """Refuse a step whose state comes back with another structure, shape or dtype."""
    there, here = str(jax.tree.structure(before)), str(jax.tree.structure(after))
    if there != here:
        raise TypeError(f"step must return a state like the one it was given, {there}, got {here}.")
    leaves = zip(checks.named_leaves(before), checks.named_leaves(after), strict=True)
    for (name, old), (_, new) in leaves:
        if (jnp.shape(old), jnp.result_type(old)) != (new.shape, new.dtype):
            raise TypeError(
                f"step must return a state like the one it was given: leaf '{name}' was "
                f"{jnp.result_type(old)}{list(jnp.shape(old))} and came back as "
                f"{new.dtype}{list(new.shape)}."
            )
