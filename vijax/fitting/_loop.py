"""The part of a fit that runs on the device: one compiled program for any number of steps."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from vijax import checks, diagnostics
from vijax.fitting import _iterates
from vijax.fitting._iterates import Iterates
from vijax.trees import finite_leaves, strong_dtypes
from vijax.types import PyTree

THIN = 8  # steps from one remembered iterate to the next; neighbours are nearly alike
POOL = 1024  # draws whose k-hat is shown
FEW = 100  # draws that have no k-hat worth showing


class Loop(NamedTuple):
    """Everything that a fit carries on, and so what a checkpoint holds.

    Fields:
        key: that of the whole fit; step i uses fold_in(key, i).
        step: how many were made, ().
        state: what the steps read and write: params, optimizer, data cursor, baselines.
        iterates: of the bound and of what is watched.
        pending: the sum of the bound since the last remembered iterate.
        log_w: log-weights of the last draws, [rows, k, *batch].
    """

    key: Array
    step: Int[Array, ""]
    state: PyTree
    iterates: Iterates
    pending: Array
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

    start: Callable[[Any, PyTree], Loop]
    run: Callable[[Loop, Any], tuple[Loop, Chunk]]
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


def _run(
    step: Callable[..., Any], watch: Callable[[PyTree], PyTree], loop: Loop, until: Array
) -> tuple[Loop, Chunk]:
    """Make steps up to a number, in stretches that end where an iterate is remembered."""

    def one(carry: Any) -> Any:
        i, state, pending, _ = carry
        state, report = step(jax.random.fold_in(loop.key, i), state)
        value, log_w = bound_and_weights(report)
        return i + 1, state, pending + value, log_w

    def stretch(carry: tuple[Loop, Array]) -> tuple[Loop, Array]:
        at, total = carry
        goal = jnp.minimum(until, (at.step // THIN + 1) * THIN)
        first = at.step, at.state, at.pending, at.log_w[0]
        i, state, pending, log_w = jax.lax.while_loop(lambda c: c[0] < goal, one, first)
        whole = i % THIN == 0
        iterate = {"bound": pending / THIN, "params": watch(state)}
        after = Loop(
            key=at.key,
            step=i,
            state=state,
            iterates=_iterates.add(at.iterates, iterate, whole),
            pending=jnp.where(whole, 0.0, pending),
            log_w=at.log_w.at[(i - 1) // THIN % len(at.log_w)].set(log_w),
        )
        return after, total + (pending - at.pending)

    begin = loop, jnp.zeros_like(loop.pending)
    end, total = jax.lax.while_loop(lambda c: c[0].step < until, stretch, begin)
    lost = newly_not_finite(end.state, loop.state)
    return end, Chunk(total, lost | ~jnp.all(jnp.isfinite(total)))


def _join(loop: Loop) -> Loop:
    return loop._replace(iterates=_iterates.join(loop.iterates))


def _ess_and_khat(loop: Loop) -> tuple[Array, Array]:
    """Return the effective sample size of the last step, and the k-hat of pooled last draws."""
    rows, k = loop.log_w.shape[:2] if loop.log_w.ndim > 1 else (1, 0)
    if k == 0:
        return jnp.float32(jnp.nan), jnp.float32(jnp.nan)
    newest = loop.log_w[(loop.step - 1) // THIN % rows]
    ess = jnp.mean(diagnostics.ess(newest))
    if loop.log_w.ndim > 2:  # members of a batch, or restarts, are no draws of one weight
        return ess, jnp.full_like(ess, jnp.nan)
    # Early on rows are empty yet: those that are not stand for them, again and again.
    written = jnp.clip(rows_written(loop.step), 1, rows)
    khat = diagnostics.khat(loop.log_w[jnp.arange(rows) % written].reshape(-1))
    return ess, jnp.where(written * k < FEW, jnp.nan, khat)


def _start(
    step: Callable[..., Any], watch: Callable[[PyTree], PyTree], key: Any, state: PyTree
) -> Loop:
    """Return the loop before its first step; refuse a step that no loop can repeat."""
    state = strong_dtypes(state)

    def first(key: Any, state: PyTree) -> Any:
        made = step(key, state)
        if not isinstance(made, tuple) or len(made) != 2:
            raise TypeError(
                f"step must return (state, types.Step), as that of fitting.ascent, got {type(made).__name__}."
            )
        return made[0], bound_and_weights(made[1])

    after, (value, log_w) = jax.eval_shape(first, key, state)
    _check_same(state, after)
    watched = jax.eval_shape(watch, state)
    for name, leaf in checks.named_leaves(watched):
        if not jnp.issubdtype(leaf.dtype, jnp.number):
            raise TypeError(
                f"watch(state) must hold numbers, leaf '{name}' is {leaf.dtype}; leave it out."
            )
    return Loop(
        key=strong_dtypes(key),
        step=jnp.int32(0),
        state=state,
        iterates=_iterates.empty({"bound": value, "params": watched}),
        pending=jnp.zeros(value.shape, value.dtype),
        log_w=jnp.zeros((_rows(log_w), *log_w.shape), log_w.dtype),
    )


def _rows(log_w: Any) -> int:
    """Return of how many steps the log-weights are kept: enough draws for a k-hat."""
    if log_w.ndim != 1:
        return 1
    return max(1, min(POOL // max(log_w.shape[0], 1), 256))


def rows_written(step: Any) -> Any:
    """Return how many rows of log-weights so many steps have written; there may be fewer rows."""
    return (step + THIN - 1) // THIN


def newly_not_finite(after: PyTree, before: PyTree) -> Array:
    """Whether a leaf was finite before and is not after; a best value of inf, say, never was."""
    lost = [
        was & ~is_now
        for is_now, was in zip(finite_leaves(after), finite_leaves(before), strict=True)
    ]
    return jnp.any(jnp.stack(lost)) if lost else jnp.bool_(0)


def bound_and_weights(report: Any) -> tuple[Array, Array]:
    """Return the bound of a step, and the log-weights of its draws where it shows any."""
    value = getattr(report, "value", report)
    draws = getattr(report, "draws", None)
    if not hasattr(value, "dtype") or not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(
            "step must return (state, types.Step(value, draws)), the value a float array of JAX, or "
            f"that value alone; got {getattr(value, 'dtype', type(value).__name__)}."
        )
    log_w = jnp.zeros(0, value.dtype) if draws is None else draws.log_p - draws.log_q
    return jax.lax.stop_gradient((value, log_w))


def _check_same(before: PyTree, after: PyTree) -> None:
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
