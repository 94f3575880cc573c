"""How things are measured: paired timings in shuffled rounds, XLA's own count, traces and compiles, fresh processes."""

import functools
import gc
import json
import math
import os
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks._report import Row, row

ROOT = Path(__file__).resolve().parents[1]
CONTROL_LIMIT = 0.03


class Timings(NamedTuple):
    """Seconds of each contender in each round, and whether the A/A control leaves them worth reading."""

    seconds: dict[str, np.ndarray]
    baseline: str
    control: float | None = None

    @property
    def void(self) -> bool:
        return self.control is not None and abs(self.control - 1) > CONTROL_LIMIT

    def median(self, name: str) -> float:
        return float(np.median(self.seconds[name]))

    def ratio(self, name: str, baseline: str) -> float:
        return float(np.median(self.seconds[name] / self.seconds[baseline]))

    def row(self, name: str, metric: str, baseline: str, bar: float | None = None) -> Row:
        """The median time and the median of its paired ratios, with their spread and the control's verdict."""
        low, high = np.quantile(self.seconds[name] / self.seconds[baseline], [0.25, 0.75])
        return row(
            name, metric, self.median(name) * 1e3, "ms", baseline, self.ratio(name, baseline), bar=bar,
            iqr=[float(low), float(high)], rounds=len(self.seconds[name]), control=self.control, void=self.void,
        )  # fmt: skip


def paired(
    calls: Mapping[str, Callable[[], Any]],
    baseline: str,
    rounds: int,
    *,
    control: str | None = None,
    least: float = 0.0,
    warm: int = 1,
) -> Timings:
    """Time every call once a round, in shuffled order, so that what drifts in the machine drifts for all of them.

    Args:
        calls: what to time; its result is waited for.
        baseline: whose time the others are divided by, round by round.
        rounds: number of rounds.
        control: the name of a second copy of the baseline.
        least: a timing lasts at least this many seconds: the quickest call decides how often all are repeated in it.
        warm: untimed calls before the first round.
    """
    order = list(calls)
    shuffle = random.Random(0)

    def clock(name: str, repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            out = calls[name]()
        jax.block_until_ready(out)
        return (time.perf_counter() - start) / repeats

    for name in order * warm:
        clock(name, 1)
    repeats = max(1, math.ceil(least / min(clock(name, 1) for name in order))) if least else 1
    seconds: dict[str, list[float]] = {name: [] for name in order}
    for _ in range(rounds):
        shuffle.shuffle(order)
        gc.collect()
        gc.disable()  # a collection in the middle of a trace would be billed to whoever comes next
        try:
            for name in order:
                seconds[name].append(clock(name, repeats))
        finally:
            gc.enable()
    timings = Timings({name: np.asarray(s) for name, s in seconds.items()}, baseline)
    return timings._replace(control=timings.ratio(control, baseline)) if control else timings


def trace_and_compile(
    functions: dict[str, Callable[..., Any]],
    args: dict[str, Any],
    baseline: str,
    control: str,
    rounds: tuple[int, int],
) -> tuple[Timings, Timings]:
    """Time trace + lower, and compile, in warm shuffled rounds: a new jit of a new function each time."""

    def lower(name: str) -> Any:
        function = functions[name]
        return jax.jit(lambda *a: function(*a)).lower(*args[name])

    traces = paired(
        {n: functools.partial(lower, n) for n in functions}, baseline, rounds[0], control=control
    )
    seconds: dict[str, list[float]] = {n: [] for n in functions}
    order = list(functions)
    for r in range(rounds[1]):
        random.Random(r).shuffle(order)
        for name in order:
            lowered = lower(name)
            start = time.perf_counter()
            lowered.compile()
            seconds[name].append(time.perf_counter() - start)
    return traces, Timings({n: np.asarray(s) for n, s in seconds.items()}, baseline)


def cost(compiled: Any) -> dict[str, float]:
    """What XLA says a compiled function does: free of the machine's mood, but a loop's body is counted once."""
    analysis = compiled.cost_analysis() or {}
    analysis = analysis[0] if isinstance(analysis, list) else analysis
    memory = compiled.memory_analysis()
    found = {"flops": analysis.get("flops"), "bytes accessed": analysis.get("bytes accessed")}
    found["temporary memory"] = memory and memory.temp_size_in_bytes
    return {name: float(value) for name, value in found.items() if value}


@functools.cache
def _compile_log() -> list[str]:
    log: list[str] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            log.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return log


def compiles_during(run: Callable[[], Any]) -> int:
    log = _compile_log()
    before = len(log)
    jax.block_until_ready(run())
    return len(log) - before


def python(arguments: Sequence[str]) -> str:
    """Run a fresh interpreter on the source tree and return what it printed."""
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        # What was raised is not always the last line: JAX adds a word on how to see more.
        raised = [
            e
            for e in done.stderr.splitlines()
            if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", e)
        ]
        raise RuntimeError(raised[-1] if raised else f"the process ended with {done.returncode}")
    return done.stdout


def child(job: dict[str, Any]) -> dict[str, Any]:
    """Measure one job of `_child` in a process of its own, where its peak memory is its own too."""
    return dict(json.loads(python(["-m", "benchmarks._child", json.dumps(job)])))


def import_times(statements: dict[str, str], baseline: str, control: str, rounds: int) -> Timings:
    """Wall time of whole processes that do nothing but import."""
    calls = {
        name: functools.partial(python, ["-c", statement]) for name, statement in statements.items()
    }
    return paired(calls, baseline, rounds, control=control)


def median_of_calls(
    call: Callable[[], Any], least: int = 3, most: int = 10, budget: float = 3.0
) -> tuple[float, Any]:
    """Median seconds of `least` to `most` calls, as many as fit into `budget` seconds, and what the last returned."""
    seconds: list[float] = []
    while len(seconds) < least or (len(seconds) < most and sum(seconds) < budget):
        start = time.perf_counter()
        out = jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), out
