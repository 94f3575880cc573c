"""A whole fit from a step: chunks of one compiled loop, and between them the bar, the stopping rule and the saves."""

import math
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from vijax import checks
from vijax.fitting import _checkpoint, _iterates, _loop, _reports, _stopping, _trouble
from vijax.fitting._checkpoint import Checkpoints
from vijax.fitting._iterates import Tail
from vijax.fitting._loop import THIN, Loop
from vijax.fitting._reports import Report, Write
from vijax.fitting._stopping import Verdict
from vijax.fitting._trouble import NotFinite
from vijax.types import PyTree

SECONDS = 0.2  # of a chunk, where its length is not given


class Fit(NamedTuple):
    """Where a fit ended.

    Fields:
        state: after the last step, all finite.
        average: the mean of what is watched (the params) over `tail`: the answer, better than any one iterate.
        tail: that average with its standard error, effective number of iterates and R-hat.
        bound: the mean bound over that tail, in nats.
        bound_error: its standard error.
        log_w: log-weights of the last draws, [rows, k, *batch], every eighth step's, in no order.
        steps: how many were made.
        stopped: why it stopped, a sentence.
        trouble: what was not finite, None where nothing was.
    """

    state: PyTree
    average: PyTree
    tail: Tail
    bound: Array
    bound_error: Array
    log_w: Array
    steps: int
    stopped: str
    trouble: NotFinite | None


def params(state: PyTree) -> PyTree:
    """Return `state.params` or `state["params"]`, what a fit watches unless it is told otherwise."""
    found = state.get("params") if isinstance(state, dict) else getattr(state, "params", None)
    if found is None:
        raise TypeError(
            f"the state, {type(state).__name__}, shows no params: say what is to be averaged, watch=rule.params, or "
            "watch=lambda state: () for nothing."
        )
    return found


def fit(
    key: Key[Array, ""],
    step: Callable[[Any, PyTree], tuple[PyTree, Any]],
    state: PyTree,
    *,
    steps: int,
    stop: Callable[[Tail], Verdict] | None = _stopping.stationary(),  # noqa: B008
    watch: Callable[[PyTree], PyTree] = params,
    log_every: int | None = None,
    reports: Sequence[Report] | None = None,
    checkpoints: Checkpoints | None = None,
) -> Fit:
    """Repeat a step until a rule says that it is enough, with a bar, averaged iterates, checkpoints and a word on nan.

        stateᵢ₊₁, seenᵢ = step(fold_in(key, i), stateᵢ),     average = mean of watch(stateᵢ) over the tail

    The step stays yours: a rule of `fitting.ascent` (`rule.step`, `rule.init(params)`), one of `vijax.updates`
    (`lambda key, state: rule.step(key, log_joint, state)`, with `watch=rule.params`), or your own. It runs in chunks;
    what the host does between them changes no bit of the result, nor does where they are cut, nor a resume.

    Where a number of the state, or the bound, is no longer finite, the fit stops with the state before that step and a
    warning that says which step and key, and what in it came first: a draw, log q, log p, the bound, a leaf of the
    gradient. A step that mends such events itself must return a finite bound. Ctrl-C stops it too, and loses nothing.

    To average it remembers 64 blocks of what is watched, 128 times its memory: for large networks watch a part.

    Args:
        key: of the fit; step i is given fold_in(key, i).
        step: (key, state) -> (state, seen); seen is an Estimate with value (), a `Seen`, or the bound () alone.
        state: a pytree of arrays: params, optimiser, data cursor, baselines. It is what the step gives back.
        steps: the most steps, counted from the very first, those before a resume included.
        stop: Tail -> Verdict, asked four times in each doubling of the steps from the 512th on; None for never.
        watch: state -> what is averaged and judged; `state.params` by default.
        log_every: steps of a chunk; by default as many as take .2 seconds.
        reports: what is told after each chunk, context managers or functions of a dict; by default `fitting.bar()`
            where tqdm is installed, () for silence. One that raises is left out from there on, with a warning.
        checkpoints: where to save everything, and to resume from if anything is there; see `fitting.save`.

    Returns:
        Fit. Where `steps` is below 8 its average is the last state.

    Raises:
        TypeError: for a step whose state comes back with another structure, shape or dtype; for a traced state.
        ValueError: for steps below 1; for checkpoints of another fit.
        RuntimeError: where there are checkpoints and none verifies.

    Reference: Welandawe, Andersen, Vehtari, Huggins, Robust, automated, and accurate black-box variational inference,
        2022, arXiv:2203.15945; Polyak, Juditsky, Acceleration of stochastic approximation by averaging, 1992.
    """
    checks.key(key)
    if not isinstance(checkpoints, Checkpoints | None):
        raise TypeError(f"checkpoints must be fitting.Checkpoints(path, every=steps), got {checkpoints!r}.")
    _counts(steps=steps, log_every=log_every, every=checkpoints and checkpoints.every)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((key, state))):
        raise TypeError("fit runs on the host, between compiled chunks; under jit or vmap use lax.scan over the step.")
    program = _loop.program(step, watch)
    loop = program.start(key, state)
    if checkpoints is not None:
        found = _checkpoint.restore(checkpoints.path, loop)
        if not np.array_equal(jax.random.key_data(found.tree.key), jax.random.key_data(key)):
            raise ValueError(f"{checkpoints.path} holds the fit of another key. Name another folder for this one.")
        loop = found.tree
    run = _Run(program, _judge(stop) if stop else None, steps, log_every, checkpoints)
    with ExitStack() as stack:
        loop, stopped, trouble = _drive(run, step, loop, [_reports.opened(stack, r) for r in _reports.chosen(reports)])
    return _result(run, watch, loop, stopped, trouble)


class _Run(NamedTuple):
    program: _loop.Program
    judge: Callable[..., Any] | None
    steps: int
    log_every: int | None
    checkpoints: Checkpoints | None


@lru_cache(maxsize=16)
def _judge(stop: Callable[[Tail], Verdict]) -> Callable[[Tail], Verdict]:
    return jax.jit(lambda tail: stop(tail))


def _drive(run: _Run, step: Callable[..., Any], loop: Loop, writers: list[Write]) -> tuple[Loop, str, NotFinite | None]:
    """Run chunk after chunk; all that happens here is on the host."""
    at = first = saved = told = int(loop.step)
    if at >= run.steps:
        return loop, f"all {run.steps} steps were made before", None
    loop = _joined(run, loop, at)
    length, seconds, total, began = THIN, 0.0, 0.0, time.perf_counter()
    verdict, trouble = _judged(run, loop, at), None
    stopped = _verdict(verdict, at)
    try:
        while not stopped:
            until, clock = _boundary(run, at, length), time.perf_counter()
            after, chunk = run.program.run(loop, np.int32(until))
            spoilt, found = jax.device_get((chunk.bad, chunk.total))
            if spoilt:
                loop, trouble = _trouble.find(step, run.program, loop, until)
                at = trouble.step
                stopped = f"not finite in step {at}: {trouble.where}"
                break
            spent = time.perf_counter() - clock
            length = _length(until - at, spent, compiled=at > first)
            loop, at = _joined(run, after, until), until
            seconds, total = seconds + spent, total + float(np.mean(found))
            verdict = _judged(run, loop, at, verdict)
            stopped = _verdict(verdict, at) or (f"all {run.steps} steps were made" if at >= run.steps else "")
            now = at % run.log_every == 0 if run.log_every else seconds >= SECONDS / 2
            if writers and (now or stopped):
                line = _line(run, loop, first, total / (at - told), (at - told) / seconds, verdict)
                line |= {"seconds": time.perf_counter() - began, "stopped": stopped or None}
                _reports.tell(writers, line)
                seconds, total, told = 0.0, 0.0, at
            if run.checkpoints is not None and at % run.checkpoints.every == 0:
                saved = _saved(run.checkpoints, at, loop, saved)
    except KeyboardInterrupt:
        at = int(loop.step)
        stopped = f"interrupted after step {at}"
    if trouble or stopped.startswith("interrupted"):
        warnings.warn(f"the fit stopped early, {stopped}; its result is that of the steps before", stacklevel=3)
    if run.checkpoints is not None and saved != at:
        _saved(run.checkpoints, at, loop, saved)
    return loop, stopped, trouble


def _saved(checkpoints: Checkpoints, at: int, loop: Loop, before: int) -> int:
    """Save, and return the step that was saved last: a full disk must not cost the fit."""
    try:
        _checkpoint.save(checkpoints.path, at, loop, keep=checkpoints.keep)
    except OSError as why:
        warnings.warn(f"step {at} could not be saved in {checkpoints.path}, the last is {before}: {why}", stacklevel=4)
        return before
    return at


def _boundary(run: _Run, at: int, length: int) -> int:
    """Return the step at which the next chunk ends: at the latest where the host has something to do."""
    ends = [run.steps, at + length]
    if run.log_every:
        ends = [run.steps, (at // run.log_every + 1) * run.log_every]
    if run.checkpoints is not None:
        ends.append((at // run.checkpoints.every + 1) * run.checkpoints.every)
    ends.append(THIN * _iterates.next_due(at // THIN, judged=run.judge is not None))
    return min(ends)


def _length(steps: int, seconds: float, *, compiled: bool) -> int:
    """Return how many steps take as long as a chunk should; the first chunk is mostly compilation."""
    if not compiled:
        return 8 * THIN
    fitting = steps * SECONDS / max(seconds, 1e-6)
    return max(THIN, int(min(fitting, 8 * steps)) // THIN * THIN)


def _joined(run: _Run, loop: Loop, at: int) -> Loop:
    """Make room for more iterates where there is none; after an interruption this may be due still."""
    full = at % THIN == 0 and _iterates.full(at // THIN) and int(loop.iterates.size) * _iterates.BLOCKS == at // THIN
    return run.program.join(loop) if full else loop


def _verdict(verdict: Verdict | None, at: int) -> str:
    if verdict is None or not verdict.done:
        return ""
    return (
        f"stationary at step {at}: R-hat {verdict.rhat:.3f}, standard error {verdict.error:.3g} units, "
        f"{verdict.ess:.0f} effective iterates"
    )


def _judged(run: _Run, loop: Loop, at: int, before: Verdict | None = None) -> Verdict | None:
    if run.judge is None or at % THIN or not _iterates.due(at // THIN):
        return before
    return jax.device_get(run.judge(_watched(_iterates.tail(loop.iterates))))


def _watched(tail: Tail) -> Tail:
    """Leave the bound out: its noise is no error of the parameters."""
    parts = [part["params"] for part in (tail.average, tail.error, tail.ess, tail.rhat)]
    return Tail(parts[0], parts[1], parts[2], parts[3], tail.worst, tail.number)


def _line(run: _Run, loop: Loop, first: int, bound: float, pace: float, verdict: Verdict | None) -> _reports.Line:
    ess, khat = (float(f) for f in jax.device_get(run.program.look(loop)))
    known = lambda number: None if math.isnan(number) else number  # noqa: E731
    return {
        "step": int(loop.step),
        "steps": run.steps,
        "first": first,
        "bound": bound,
        "ess": known(ess),
        "khat": known(khat),
        "rhat": None if verdict is None else float(verdict.rhat),
        "error": None if verdict is None else float(verdict.error),
        "steps_per_second": pace,
    }


def _result(run: _Run, watch: Callable[[PyTree], PyTree], loop: Loop, stopped: str, trouble: NotFinite | None) -> Fit:
    tail = jax.tree.map(jnp.asarray, _iterates.tail(loop.iterates))
    bound, error = tail.average["bound"], tail.error["bound"]
    watched = _watched(tail)
    if int(loop.iterates.number) == 0:
        watched = watched._replace(average=watch(loop.state))
        bound = loop.pending / jnp.maximum(loop.step, 1).astype(loop.pending.dtype)
    log_w = loop.log_w[: _loop.rows_seen(loop.step)]
    return Fit(loop.state, watched.average, watched, bound, error, log_w, int(loop.step), stopped, trouble)


def _counts(**named: Any) -> None:
    for name, value in named.items():
        if value is None:
            continue
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise TypeError(f"{name} must be a whole number of steps, got {value!r}.")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
