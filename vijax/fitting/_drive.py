"""The host's part of a fit: chunk after chunk, and between them what is judged, told and saved."""

import math
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from vijax.fitting import _checkpoint, _iterates, _reports, _tail, _trouble
from vijax.fitting._checkpoint import Checkpoints
from vijax.fitting._ending import ending
from vijax.fitting._loop import THIN, Loop, Program
from vijax.fitting._reports import Line, Write
from vijax.fitting._stopping import Verdict
from vijax.fitting._tail import Tail
from vijax.fitting._trouble import NotFinite

SECONDS = 0.2  # of a chunk, where its length is not given


class Settings(NamedTuple):
    """What a fit was asked for.

    Fields:
        step: the rule's.
        program: the compiled functions of the fit.
        judge: Tail -> Verdict, or None where it never stops by itself.
        steps: the most steps.
        log_every: steps of a chunk, None for as many as take .2 seconds.
        checkpoints: where and how often to save, None for never.
        fingerprint: of the step, where anything is saved.
    """

    step: Callable[..., Any]
    program: Program
    judge: Callable[[Tail], Verdict] | None
    steps: int
    log_every: int | None
    checkpoints: Checkpoints | None
    fingerprint: np.ndarray | None


class Saved(NamedTuple):
    """What a checkpoint holds: the loop, and the fingerprint of the step that it is of."""

    loop: Loop
    fingerprint: Any


class Ended(NamedTuple):
    """Where the loop ended, why, and what was not finite if anything was."""

    loop: Loop
    stopped: str
    trouble: NotFinite | None


def drive(settings: Settings, loop: Loop, writers: list[Write]) -> Ended:
    """Run chunk after chunk: until a verdict, the last step, or what is not finite."""
    first = at = int(loop.step)
    if at >= settings.steps:
        return Ended(loop, f"all {settings.steps} steps were made before", None)
    # A resumed fit may have been saved just before a join or a verdict was due.
    loop = _joined(settings, loop, at)
    verdict, trouble = _judged(settings, loop, at, None), None
    stopped, length = _content(verdict, at), THIN
    meter, saver = _Meter(settings, writers, first), _Saver(settings, first)
    try:
        while not stopped:
            until = _boundary(settings, at, length)
            chunk = _run(settings, loop, until)
            if chunk.bad:
                # The chunk is done again by halves, to the state before the first bad step.
                loop, trouble = _trouble.find(settings.step, settings.program, loop, until)
                at = trouble.step
                stopped = f"not finite in step {at}: {trouble.where}"
                break
            length = _length(until - at, chunk.seconds, compiled=at > first)
            loop, at = _joined(settings, chunk.loop, until), until
            verdict = _judged(settings, loop, at, verdict)
            # Content first: a verdict in the very last step is an arrival.
            stopped = _content(verdict, at) or _spent(settings, at)
            meter.add(chunk)
            if meter.due(at) or (writers and stopped):
                meter.tell(loop, at, verdict, stopped)
            if saver.due(at):
                saver.save(at, loop)
    except KeyboardInterrupt:
        # The last whole chunk stands: `loop` is rebound only when one is done.
        at = int(loop.step)
        stopped = f"interrupted after step {at}"
    if trouble or stopped.startswith("interrupted"):
        warnings.warn(
            f"the fit stopped early, {stopped}; its result is that of the steps before",
            stacklevel=4,
        )
    # The end is saved also where no checkpoint is due.
    if saver.saved != at:
        saver.save(at, loop)
    # Only where the steps ran out is there more to say than why it stopped.
    if settings.judge is not None and stopped == _spent(settings, at):
        stopped = ending(settings.step, loop, stopped, verdict)
    return Ended(loop, stopped, trouble)


class _Chunk(NamedTuple):
    """The loop after a chunk, whether anything in it is not finite, its sum of bounds, its time."""

    loop: Loop
    bad: bool
    total: float
    seconds: float


def _run(settings: Settings, loop: Loop, until: int) -> _Chunk:
    """Run to a step, and wait for the device: two numbers are read back."""
    clock = time.perf_counter()
    after, observed = settings.program.run(loop, np.int32(until))
    bad, total = jax.device_get((observed.bad, observed.total))
    return _Chunk(after, bool(bad), float(np.mean(total)), time.perf_counter() - clock)


class _Meter:
    """Adds up the chunks since the last line that was told to the reports."""

    def __init__(self, settings: Settings, writers: list[Write], first: int):
        self.settings, self.writers = settings, writers
        self.first = self.told = first
        self.seconds = self.total = 0.0
        self.began = time.perf_counter()

    def add(self, chunk: _Chunk) -> None:
        """Count a chunk in."""
        self.seconds += chunk.seconds
        self.total += chunk.total

    def due(self, at: int) -> bool:
        """Whether a line is due: by the number of steps where one is given, else by time."""
        if not self.writers:
            return False
        log_every = self.settings.log_every
        return at % log_every == 0 if log_every else self.seconds >= SECONDS / 2

    def tell(self, loop: Loop, at: int, verdict: Verdict | None, stopped: str) -> None:
        """Tell the reports of the steps since the last line."""
        # Only where a line is due: k-hat is not for every chunk.
        ess, khat = (float(f) for f in jax.device_get(self.settings.program.ess_and_khat(loop)))
        line: Line = {
            "step": at,
            "steps": self.settings.steps,
            "first": self.first,
            "bound": self.total / (at - self.told),
            "ess": _known(ess),
            "khat": _known(khat),
            "drift": None if verdict is None else float(verdict.drift),
            "error": None if verdict is None else float(verdict.error),
            "steps_per_second": (at - self.told) / self.seconds,
            "seconds": time.perf_counter() - self.began,
            "stopped": stopped or None,
        }
        _reports.tell(self.writers, line)
        self.seconds, self.total, self.told = 0.0, 0.0, at


def _known(number: float) -> float | None:
    """Return a number, or None for nan, which reports leave out."""
    return None if math.isnan(number) else number


class _Saver:
    """Saves the loop, and remembers which step was saved last."""

    def __init__(self, settings: Settings, first: int):
        self.checkpoints, self.saved = settings.checkpoints, first
        self.fingerprint = settings.fingerprint

    def due(self, at: int) -> bool:
        """Whether this step is one to be saved."""
        return self.checkpoints is not None and at % self.checkpoints.every == 0

    def save(self, at: int, loop: Loop) -> None:
        """Save, or warn: a full disk must not cost the fit."""
        if self.checkpoints is None:
            return
        path = self.checkpoints.path
        try:
            whole = Saved(loop, self.fingerprint)
            _checkpoint.save(path, at, whole, keep=self.checkpoints.keep)
            self.saved = at
        except OSError as why:
            warnings.warn(
                f"step {at} could not be saved in {path}, the last is {self.saved}: {why}",
                stacklevel=5,
            )


def _boundary(settings: Settings, at: int, length: int) -> int:
    """Return where the next chunk ends: at the latest where the host has something to do."""
    ends = [settings.steps, at + length]
    if settings.log_every:
        ends = [settings.steps, (at // settings.log_every + 1) * settings.log_every]
    if settings.checkpoints is not None:
        ends.append((at // settings.checkpoints.every + 1) * settings.checkpoints.every)
    # Where blocks of iterates are joined, and where a verdict is due.
    ends.append(THIN * _iterates.next_due(at // THIN, judged=settings.judge is not None))
    return min(ends)


def _length(steps: int, seconds: float, *, compiled: bool) -> int:
    """Return how many steps take as long as a chunk should; the first is mostly compilation."""
    if not compiled:
        return 8 * THIN
    # Whole blocks of THIN, and no more than eight times the last chunk.
    fitting = steps * SECONDS / max(seconds, 1e-6)
    return max(THIN, int(min(fitting, 8 * steps)) // THIN * THIN)


def _joined(settings: Settings, loop: Loop, at: int) -> Loop:
    """Make room for more iterates where there is none, as may still be due after a resume."""
    # 64 blocks are full at 64, 128, 256, ... iterates; a resumed loop may have been joined there already.
    full = (
        at % THIN == 0
        and _iterates.full(at // THIN)
        and int(loop.iterates.size) * _iterates.BLOCKS == at // THIN
    )
    return settings.program.join(loop) if full else loop


def _content(verdict: Verdict | None, at: int) -> str:
    """Return why a verdict ends the fit, or nothing."""
    if verdict is None or not verdict.done:
        return ""
    return (
        f"stationary at step {at}: standard error {verdict.error:.2g} units, spread "
        f"{verdict.spread:.2g} units"
    )


def _spent(settings: Settings, at: int) -> str:
    """Return that the steps ran out, where they did."""
    return f"all {settings.steps} steps were made" if at >= settings.steps else ""


def _judged(settings: Settings, loop: Loop, at: int, before: Verdict | None) -> Verdict | None:
    """Return the verdict at this step where one is due, as at the end, and the last one elsewhere."""
    due = at % THIN == 0 and (_iterates.due(at // THIN) or at == settings.steps)
    if settings.judge is None or at < THIN * _iterates.BLOCKS or not due:
        return before
    return jax.device_get(settings.judge(_tail.judged(_tail.tail(loop.iterates))))
