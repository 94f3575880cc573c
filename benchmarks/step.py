"""One training step of a variational auto-encoder, vijax beside hand-written JAX and peers: work, time, compiles."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _agree, _contenders, _measure, _model, _toy
from benchmarks._contenders import Step
from benchmarks._peers import Missing
from benchmarks._report import Options, Row, missing, ratio_of, row

# (batch, K); K = 1 is the ELBO. Where there is more than one group of data, the recipe of groups competes too.
SETTINGS = [(20, 1), (128, 1), (20, 50), (128, 50)]
QUICK = [(20, 1), (128, 50)]
GROUPED = "vijax dreg, groups of data"
CONTROL = "raw A/A"

# Whom each is compared with, beside raw, and what the ratio of times may be at most. Neither dreg nor vijax may cost a
# thing next to the same arithmetic by hand; the recipe must beat everyone.
BARS: dict[str, dict[str, float]] = {
    "vijax reparam": {"raw": 1.03, "raw, rows not flattened": 1.03},
    "vijax dreg": {"raw": 1.03, "raw dreg": 1.03, "raw, rows not flattened": 1.03},
    "vijax dreg, flat matmul": {"raw": 1.03, "raw dreg": 1.03},
    GROUPED: {"raw": 0.75, "distrax": 0.65, "tfp": 0.65, "numpyro": 0.85},
}
# Trace + lower, and XLA's FLOPs, which no noise touches.
TRACE, FLOPS = 1.15, 1.01
COSTS = {"flops": ("GFLOP", 1e-9), "bytes accessed": ("MB", 1e-6), "temporary memory": ("MB", 1e-6)}


def contenders(batch: int, k: int) -> tuple[dict[str, tuple[Step, Any]], dict[str, Missing]]:
    """Every contender's step and first state, and those that are not here."""
    found, absent = {}, {}
    names = _contenders.STEP + ([GROUPED] if _contenders.group_of(batch, k) < batch else [])
    for name in names:
        try:
            found[name] = _contenders.training(name, batch, k)
        except Missing as why:
            absent[name] = why
    return found, absent


def looped(compiled: Any, state: Any, key: jax.Array, x: jax.Array) -> Callable[[], Any]:
    """A call that advances one training run by one step; the state it is given is donated."""

    def call() -> Any:
        nonlocal state
        state, loss = compiled(state, key, x)
        return loss

    return call


def against(name: str, known: Any) -> list[tuple[str, float | None]]:
    """Raw always, then the others that BARS names for it."""
    bars = BARS.get(name, {})
    return [(b, bars.get(b)) for b in dict.fromkeys(["raw", *bars]) if b in known]


def same_work(name: str) -> list[str]:
    """Raw, and the gradient estimator of the same name by hand."""
    return ["raw", "raw dreg"] if name.startswith("vijax dreg") and name != GROUPED else ["raw"]


def epoch(name: str, batch: int, k: int, images: np.ndarray, steps: int = 30) -> int:
    """Compiles in an epoch of a fresh jit: one, if nothing about a step depends on which step it is."""
    function, state = _contenders.training(name, batch, k)
    step = jax.jit(function, donate_argnums=0)
    key = jax.random.key(0)
    # Put on the device beforehand, so that no other compile is counted.
    batches = [jnp.asarray(images[i % 2 * batch :][:batch]) for i in range(steps)]
    jax.block_until_ready((state, batches, key))

    def run() -> Any:
        nonlocal state
        for x in batches:
            state, loss = step(state, key, x)
        return loss

    return _measure.compiles_during(run)


def setting(batch: int, k: int, images: np.ndarray, quick: bool) -> Iterator[Row]:
    """All that is measured about one setting."""
    where = f"batch {batch}, K = {k}"
    steps, absent = contenders(batch, k)
    key, x = jax.random.key(0), jnp.asarray(images[:batch])
    for name, why in absent.items():
        yield missing(name, f"step, {where}", why)

    args = {name: (state, key, x) for name, (_, state) in steps.items()}
    compiled = {
        n: jax.jit(f, donate_argnums=0).lower(*args[n]).compile() for n, (f, _) in steps.items()
    }
    costs = {name: _measure.cost(c) for name, c in compiled.items()}
    for measure, (unit, scale) in COSTS.items():
        for name, cost in costs.items():
            value = cost.get(measure)
            for baseline in same_work(name):
                yield row(
                    name, f"{measure} by XLA's count, {where}", value and value * scale, unit,
                    baseline, ratio_of(value, costs[baseline].get(measure)),
                    bar=FLOPS if measure == "flops" and name.startswith("vijax") and name != GROUPED else None,
                    **({"note": "counts a loop's body once"} if name == GROUPED else {}),
                )  # fmt: skip

    functions = {name: f for name, (f, _) in steps.items()}
    traces, compiles = _measure.trace_and_compile(
        functions, args, "raw", CONTROL, (3, 1) if quick else (15, 3)
    )
    for name in steps:
        for baseline in same_work(name):
            bar = TRACE if name in ("vijax reparam", "vijax dreg") else None
            yield traces.row(name, f"trace + lower, warm, {where}", baseline, bar)
    for name in steps:
        yield compiles.row(name, f"compile, {where}", "raw")

    # The states above were only looked at; from here on each belongs to its call, which donates it.
    calls = {name: looped(compiled[name], args[name][0], key, x) for name in steps}
    timings = _measure.paired(calls, "raw", 5 if quick else 25, control=CONTROL, least=0.02)
    for name in timings.seconds:
        for baseline, bar in against(name, timings.seconds):
            yield timings.row(name, f"step time, {where}", baseline, bar)


def run(options: Options) -> Iterator[Row]:
    images = _model.images(256, options.data)
    some = jnp.asarray(images[:20])
    yield from _toy.run()
    yield from _agree.same_noise(20, 100, some)
    yield from _agree.same_keys(GROUPED, 128, 50, jnp.asarray(images[:128]))
    yield from _agree.same_keys("vijax dreg, groups of 1, chunks of 1000", 4, 2500, some[:4])
    yield from _agree.in_distribution(20, 5, some, 64 if options.quick else 500)

    for name in ("raw", "vijax reparam", "vijax dreg", GROUPED):
        yield row(
            name,
            "compiles in an epoch of 30 steps, batch 64, K = 50",
            epoch(name, 64, 50, images),
            "",
            bar=1,
        )

    statements = {
        "jax, optax": "import jax, optax",
        CONTROL: "import jax, optax",
        "vijax": "import vijax",
    }
    times = _measure.import_times(statements, "jax, optax", CONTROL, 3 if options.quick else 15)
    yield times.row("vijax", "import, whole process", "jax, optax", bar=1.10)

    settings = QUICK if options.quick else SETTINGS
    for batch, k in settings:
        yield from setting(batch, k, images, options.quick)
