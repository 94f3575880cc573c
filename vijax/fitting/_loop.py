"""The part of a fit that runs on the device: one compiled program, whatever the number of steps it is asked for."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from vijax import checks, diagnostics
from vijax.fitting import _iterates
from vijax.fitting._ascent import strong
from vijax.fitting._iterates import Iterates
from vijax.types import PyTree

THIN = 8  # steps from one remembered iterate to the next; neighbours are nearly alike
POOL = 1024  # draws whose k-hat is shown
FEW = 100  # draws that have no k-hat worth showing


class Loop(NamedTuple):
    """Everything that a fit carries on, and so what a checkpoint holds.

    Fields:
        key: that of the whole fit; step i uses fold_in(key, i).
        step: how many were made, ().
        state: what the steps read and write: params, optimiser, data cursor, baselines.
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
    """What is seen of some steps: the sum of their bounds, and whether anything stopped being finite."""

    total: Array
    bad: Array


class Program(NamedTuple):
    """The compiled functions of a fit.

    Fields:
        start: (key, state) -> the loop before its first step.
        run: (loop, until) -> (loop, Chunk).
        join: loop -> loop, with remembered blocks of iterates joined two and two.
        look: loop -> (mean effective sample size of the last step, k-hat of pooled last draws).
    """

    start: Callable[[Any, PyTree], Loop]
    run: Callable[[Loop, Any], tuple[Loop, Chunk]]
    join: Callable[[Loop], Loop]
    look: Callable[[Loop], tuple[Array, Array]]


@lru_cache(maxsize=16)
def program(step: Callable[..., Any], watch: Callable[[PyTree], PyTree]) -> Program:
    """Return the compiled functions; nothing is compiled before the first call.

    The number of steps is an argument, not a constant: XLA may fuse loops of different known lengths differently, and
    then cutting a fit elsewhere would change its last bits.
    """

    def run(loop: Loop, until: Array) -> tuple[Loop, Chunk]:
        def one(carry: Any) -> Any:
            i, state, pending, _ = carry
            state, seen = step(jax.random.fold_in(loop.key, i), state)
            value, log_w = bound_and_weights(seen)
            return i + 1, state, pending + value, log_w

        def some(carry: tuple[Loop, Array]) -> tuple[Loop, Array]:
            at, total = carry
            goal = jnp.minimum(until, (at.step // THIN + 1) * THIN)
            first = at.step, at.state, at.pending, at.log_w[0]
            i, state, pending, log_w = jax.lax.while_loop(lambda c: c[0] < goal, one, first)
            whole = i % THIN == 0
            x = {"bound": pending / THIN, "params": watch(state)}
            iterates = _iterates.add(at.iterates, x, whole)
            last = at.log_w.at[(i - 1) // THIN % len(at.log_w)].set(log_w)
            left = jnp.where(whole, 0.0, pending)
            return Loop(at.key, i, state, iterates, left, last), total + (pending - at.pending)

        begin = loop, jnp.zeros_like(loop.pending)
        end, total = jax.lax.while_loop(lambda c: c[0].step < until, some, begin)
        return end, Chunk(total, spoilt(end.state, loop.state) | ~jnp.all(jnp.isfinite(total)))

    def look(loop: Loop) -> tuple[Array, Array]:
        rows, k = loop.log_w.shape[:2] if loop.log_w.ndim > 1 else (1, 0)
        if k == 0:
            return jnp.float32(jnp.nan), jnp.float32(jnp.nan)
        newest = loop.log_w[(loop.step - 1) // THIN % rows]
        ess = jnp.mean(diagnostics.ess(newest))
        if loop.log_w.ndim > 2:  # members of a batch, or restarts, are no draws of one weight
            return ess, jnp.full_like(ess, jnp.nan)
        # Early on rows are empty yet: those that are not stand for them, again and again.
        seen = jnp.clip(rows_seen(loop.step), 1, rows)
        khat = diagnostics.khat(loop.log_w[jnp.arange(rows) % seen].reshape(-1))
        return ess, jnp.where(seen * k < FEW, jnp.nan, khat)

    def join(loop: Loop) -> Loop:
        return loop._replace(iterates=_iterates.join(loop.iterates))

    return Program(jax.jit(partial(_start, step, watch)), jax.jit(run), jax.jit(join), jax.jit(look))


def _start(step: Callable[..., Any], watch: Callable[[PyTree], PyTree], key: Any, state: PyTree) -> Loop:
    """Return the loop before its first step; refuse a step that is not (key, state) -> (state, seen)."""
    state = strong(state)

    def first(key: Any, state: PyTree) -> Any:
        found = step(key, state)
        if not isinstance(found, tuple) or len(found) != 2:
            raise TypeError(f"step must return (state, seen), as that of fitting.ascent, got {type(found).__name__}.")
        return found[0], bound_and_weights(found[1])

    after, (value, log_w) = jax.eval_shape(first, key, state)
    _same(state, after)
    rows = max(1, min(POOL // max(log_w.shape[0], 1), 256)) if log_w.ndim == 1 else 1
    watched = jax.eval_shape(watch, state)
    for name, leaf in checks.named_leaves(watched):
        if not jnp.issubdtype(leaf.dtype, jnp.number):
            raise TypeError(f"watch(state) must hold numbers, leaf '{name}' is {leaf.dtype}; leave it out.")
    pending = jnp.zeros(value.shape, value.dtype)
    last = jnp.zeros((rows, *log_w.shape), log_w.dtype)
    iterates = _iterates.empty({"bound": value, "params": watched})
    return Loop(strong(key), jnp.int32(0), state, iterates, pending, last)


def rows_seen(step: Any) -> Any:
    """Return how many rows of log-weights so many steps have written, or more: there may be fewer rows than that."""
    return (step + THIN - 1) // THIN


def spoilt(after: PyTree, before: PyTree) -> Array:
    """Whether a floating leaf was finite before and is not after; some never are, such as a best value of inf."""

    def finite(state: PyTree) -> list[Array]:
        leaves = [l for l in jax.tree.leaves(state) if jnp.issubdtype(jnp.result_type(l), jnp.inexact)]
        return [jnp.all(jnp.isfinite(l)) for l in leaves]

    lost = [b & ~a for a, b in zip(finite(after), finite(before), strict=True)]
    return jnp.any(jnp.stack(lost)) if lost else jnp.bool_(0)


def bound_and_weights(seen: Any) -> tuple[Array, Array]:
    """Return the bound of a step, and the log-weights of its draws where it shows any."""
    value = getattr(seen, "value", seen)
    draws = getattr(seen, "draws", None)
    if not hasattr(value, "dtype") or not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(
            "step must return (state, seen), seen an Estimate or the bound alone, got "
            f"{getattr(value, 'dtype', type(seen).__name__)}."
        )
    log_w = jnp.zeros(0, value.dtype) if draws is None else draws.log_p - draws.log_q
    return jax.lax.stop_gradient((value, log_w))


def _same(before: PyTree, after: PyTree) -> None:
    there, here = str(jax.tree.structure(before)), str(jax.tree.structure(after))
    if there != here:
        raise TypeError(f"step must return a state like the one it was given, {there}, got {here}.")
    for (name, old), (_, new) in zip(checks.named_leaves(before), checks.named_leaves(after), strict=True):
        if (jnp.shape(old), jnp.result_type(old)) != (new.shape, new.dtype):
            raise TypeError(
                f"step must return a state like the one it was given: leaf '{name}' was {jnp.result_type(old)}"
                f"{list(jnp.shape(old))} and came back as {new.dtype}{list(new.shape)}."
            )
