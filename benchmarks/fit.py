"""What the outer ring costs: a fit with a progress bar beside the bare scan of its step; and what a kill costs."""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vijax as vj
from benchmarks import _measure
from benchmarks._report import Options, Row, failed, row
from vijax import fitting

STEPS = 20_000
CONTROL = "bare scan A/A"
BAR = 1.05
NEVER = fitting.stationary(error=1e-12)


def rule(size: str) -> tuple[vj.types.Rule, Any]:
    """Logistic regression under a mean-field or a full-rank Gaussian: about 20 and 200 microseconds a step on a CPU."""
    rows, d, k = {"small": (50, 4, 16), "large": (400, 20, 32)}[size]
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((rows, d)), jnp.float32)
    y = jnp.asarray(rng.random(rows) < 1 / (1 + np.exp(-x.sum(1))), jnp.float32)
    family = vj.families.mean_field() if size == "small" else vj.families.full_rank()
    objective = vj.gradients.dreg(vj.bounds.elbo)

    def log_joint(z: jax.Array) -> jax.Array:
        logits = x @ z
        return jnp.sum(y * logits - jax.nn.softplus(logits)) - 0.5 * jnp.sum(z**2)

    def estimate(key: Any, params: Any) -> Any:
        return objective(key, log_joint, family.dist(params), num_samples=k)

    climb = fitting.ascent(estimate, optax.adam(1e-2))
    return climb, climb.init(family.init(jax.random.key(0), jnp.zeros(d)))


def scan(step: Callable[..., Any], state: Any, steps: int) -> Callable[[], Any]:
    """The loop that one writes by hand: the bound of every step is kept."""

    def body(carry: Any, key: Any) -> Any:
        carry, seen = step(key, carry)
        return carry, seen.value

    run = jax.jit(lambda key, state: jax.lax.scan(body, state, jax.random.split(key, steps)))
    return partial(run, jax.random.key(1), state)


def loop(step: Callable[..., Any], state: Any, steps: int) -> Callable[[], Any]:
    """The same with a length that XLA does not know: of short steps it makes a loop that takes half the time."""

    def body(i: Any, carry: Any) -> Any:
        state, total = carry
        state, seen = step(jax.random.fold_in(jax.random.key(1), i), state)
        return state, total + seen.value

    run = jax.jit(lambda state, steps: jax.lax.fori_loop(0, steps, body, (state, jnp.float32(0.0))))
    return partial(run, state, np.int32(steps))


def overhead(size: str, rounds: int, steps: int) -> Iterator[Row]:
    climb, state = rule(size)
    step = climb.step
    watched = partial(fitting.fit, jax.random.key(1), climb, state, steps=steps)

    def with_bar(**options: Any) -> Any:
        with redirect_stderr(StringIO()):  # drawn, but not on the table
            return watched(**options).state

    with tempfile.TemporaryDirectory() as folder:
        calls: dict[str, Callable[[], Any]] = {
            "bare scan": scan(step, state, steps),
            CONTROL: scan(step, state, steps),
            "bare loop of unknown length": loop(step, state, steps),
            "fit, bar, averages and stopping rule": lambda: with_bar(stop=NEVER),
            "fit, bar, averages": lambda: with_bar(stop=None),
            "fit, also JSON lines": lambda: with_bar(
                stop=NEVER, reports=[fitting.bar(), fitting.jsonl(f"{folder}/a")]
            ),
        }
        metric = f"{steps:,} steps of a {size} step"
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            yield row(
                f"{name}: first call, with compilation", metric, time.perf_counter() - start, "s"
            )
        timings = _measure.paired(calls, "bare scan", rounds, control=CONTROL)
    yield row("bare scan: one step", metric, timings.median("bare scan") / steps * 1e6, "us")
    for name in calls:
        yield timings.row(name, metric, "bare scan", BAR if name.startswith("fit") else None)


def kills(number: int) -> Iterator[Row]:
    """Kill a fit at random moments, every other one in mid-save, and count the steps that it makes again."""
    metric = f"kill -9 at {number} random moments"
    chance, lost = random.Random(0), []
    with tempfile.TemporaryDirectory() as folder:
        steps = Path(folder) / "steps"
        for i in range(number):
            child = child_of(folder)
            begun = at = newest(steps)
            while child.poll() is None and newest(steps) <= begun:
                time.sleep(0.001)
            while i % 2 and child.poll() is None and not (steps / ".saving").exists():
                time.sleep(0.0005)
            time.sleep(chance.uniform(0, 0.05))
            child.send_signal(signal.SIGKILL)
            child.wait()
            at = last_told(Path(folder) / "metrics.jsonl")
            lost.append(max(at - newest(steps), 0))
        child = child_of(folder)
        ended, err = child.communicate()
        if child.returncode:
            yield failed("resumed fit", metric, RuntimeError(err.splitlines()[-1]))
            return
    with tempfile.TemporaryDirectory() as folder:
        whole = child_of(folder).communicate()[0]
    yield row(
        "steps made again after a kill, the most", metric, max(lost), "steps", bar=CRASH["every"]
    )
    yield row("steps made again after a kill, the mean", metric, float(np.mean(lost)), "steps")
    yield row(
        "bits that differ from a fit that was not killed",
        metric,
        float(ended != whole),
        "",
        bar=0.0,
    )


CRASH = {"steps": 4000, "every": 100}
CHILD = """
import hashlib, sys, jax, numpy as np
from benchmarks import fit as b
from vijax import fitting
rule, state = b.rule("small")
found = fitting.fit(
    jax.random.key(1), rule, state, steps=b.CRASH["steps"], stop=None, log_every=20,
    reports=[fitting.jsonl(sys.argv[1] + "/metrics.jsonl")],
    checkpoints=fitting.Checkpoints(sys.argv[1] + "/steps", every=b.CRASH["every"]),
)
print(hashlib.sha256(b"".join(np.asarray(l).tobytes() for l in jax.tree.leaves(found[:6]))).hexdigest())
"""


def child_of(folder: str) -> subprocess.Popen[str]:
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, folder], cwd=_measure.ROOT, env=dict(os.environ), **pipes
    )


def newest(steps: Path) -> int:
    return max([0, *(int(p.name) for p in steps.glob("*") if p.name.isdigit())])


def last_told(path: Path) -> int:
    import json

    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return max([0, *(json.loads(line)["step"] for line in lines if line.endswith("\n"))])


def run(options: Options) -> Iterator[Row]:
    yield from overhead("small", 5 if options.quick else 25, STEPS)
    yield from overhead("large", 3 if options.quick else 9, STEPS)
    yield from kills(2 if options.quick else 10)
