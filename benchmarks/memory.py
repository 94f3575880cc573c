"""Memory that does not grow with the number of samples, and what that costs in time: gradients and evaluation."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import _contenders, _measure, _model
from benchmarks._peers import Missing
from benchmarks._report import Options, Row, failed, missing, row

BATCH, POINTS = 20, 100
CONTROL = "raw A/A"
CHUNKED, GROUPED = "vijax dreg, chunks of 50", "vijax dreg, groups of 1, chunks of 1000"
REPARAM_CHUNKED, WIDE = "vijax reparam, chunks of 50", "vijax dreg, chunks of 250"
STREAM, STREAM_ALL = "vijax stream, 10 points x 100", "vijax stream, all points x 10"

# Most that the peak of the largest K may exceed the smallest's, in MB; most that a ratio of times may be.
# Not judged: chunks of 250, which K = 50 does not fill; 100 points at once, whose log-weights alone are 40 MB an array.
GROWTH = {CHUNKED: 80.0, REPARAM_CHUNKED: 80.0, STREAM: 30.0}
GRADIENT_BARS = {
    CHUNKED: {"raw": 0.70, "numpyro": 0.92},
    REPARAM_CHUNKED: {"raw": 0.70, "numpyro": 0.92},
    WIDE: {"raw": 0.70, "numpyro": 0.92},
    GROUPED: {"raw": 0.60, "numpyro": 0.75},
}
EVALUATION_BARS = {
    STREAM: {"raw": 0.45, "numpyro": 0.55},
    STREAM_ALL: {"raw": 0.45, "numpyro": 0.55},
}


def plan(quick: bool) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """The K of each contender, for gradients and for evaluation: whole ones only as far as they fit."""
    every, whole = [50, 500, 5000, 50_000, 100_000], [50, 500, 5000]
    some, far = [100, 1000], [100, 1000, 100_000]
    if quick:
        every, whole, far = [50, 5000, 20_000], [50, 5000], [100, 1000, 10_000]
    gradients = {CHUNKED: every, REPARAM_CHUNKED: every, WIDE: every, "raw": whole}
    gradients |= {
        "raw dreg": [5000],
        "distrax": [5000],
        "tfp": [5000],
        "numpyro": [5000],
        GROUPED: [5000],
    }
    evaluations = {
        STREAM: far,
        STREAM_ALL: far,
        "raw": some,
        "distrax": [1000],
        "tfp": [1000],
        "numpyro": [1000],
    }
    if quick:
        gradients = {name: gradients[name] for name in (CHUNKED, "raw", "numpyro", GROUPED)}
        evaluations = {name: evaluations[name] for name in (STREAM, STREAM_ALL, "raw")}
    return gradients, evaluations


def alone(contenders: dict[str, list[int]], *, gradient: bool, options: Options) -> Iterator[Row]:
    """Time and peak memory of every contender at every K, each in a fresh process."""
    what, batch = ("gradient", BATCH) if gradient else ("evaluation", POINTS)
    first: dict[str, dict[str, Any]] = {}
    for k, name in sorted(
        ((k, name) for name, ks in contenders.items() for k in ks), key=lambda job: job[0]
    ):
        metric = f"{what} of {batch} points, K = {k}, in a fresh process"
        job = {
            "name": name,
            "batch": batch,
            "k": k,
            "gradient": gradient,
            "calls": 1 if options.quick else 3,
        }
        try:
            found = _measure.child(job | {"data": options.data and str(options.data.resolve())}) | {
                "k": k
            }
        except RuntimeError as why:  # out of memory, most likely: the others still run
            yield failed(name, metric, why)
            continue
        if "missing" in found:
            yield missing(name, metric, found["missing"])
            continue
        yield row(
            f"{name}: time",
            metric,
            found["seconds"] * 1e3,
            "ms",
            note=f"loss {found['loss']:.2f}",
            **found,
        )
        least = first.setdefault(name, found)
        judged = k == contenders[name][-1] or (gradient and k == 50_000)
        for kind, label in (("peak", "peak RSS"), ("device peak", "peak on the device")):
            if not found[kind]:  # a CPU is no device with a memory of its own
                continue
            yield row(f"{name}: {label}", metric, found[kind] / 1e6, "MB")
            if k > least["k"]:
                growth = (found[kind] - least[kind]) / 1e6
                bar = GROWTH.get(name) if judged else None
                yield row(
                    f"{name}: above K = {least['k']}", metric, growth, "MB", bar=bar, memory=label
                )


def compiled(make: Callable[[], Callable[..., Any]], x: jax.Array) -> Callable[[], Any]:
    args = _model.init(jax.random.key(1)), jax.random.key(0), x
    return partial(jax.jit(make()).lower(*args).compile(), *args)


def together(
    metric: str,
    makers: dict[str, Callable[[], Any]],
    bars: dict[str, dict[str, float]],
    x: jax.Array,
    rounds: int,
) -> Iterator[Row]:
    """Times in one process, in shuffled rounds."""
    calls: dict[str, Callable[[], Any]] = {}
    for name, make in makers.items():
        try:
            calls[name] = compiled(make, x)
        except Missing as why:
            yield missing(name, metric, why)
        except Exception as why:
            yield failed(name, metric, why)
    timings = _measure.paired(calls, "raw", rounds, control=CONTROL)
    for name in calls:
        for baseline in [
            b for b in ("raw", "numpyro") if b in calls and (b == "raw" or name in bars)
        ]:
            yield timings.row(name, metric, baseline, bars.get(name, {}).get(baseline))


def run(options: Options) -> Iterator[Row]:
    gradients, evaluations = plan(options.quick)
    yield from alone(gradients, gradient=True, options=options)
    yield from alone(evaluations, gradient=False, options=options)

    images = jnp.asarray(_model.images(POINTS, options.data))
    rounds, k = (5, 5000) if options.quick else (25, 5000)
    names = ["raw", CONTROL, *GRADIENT_BARS, "raw dreg", "distrax", "tfp", "numpyro"]
    if options.quick:
        names = ["raw", CONTROL, CHUNKED, GROUPED, "numpyro"]
    makers: dict[str, Callable[[], Any]] = {
        n: partial(_contenders.value_and_grad, n, BATCH, k) for n in names
    }
    yield from together(
        f"gradient of {BATCH} points, K = {k}, in turns",
        makers,
        GRADIENT_BARS,
        images[:BATCH],
        rounds,
    )

    k = 1000
    names = ["raw", CONTROL, *EVALUATION_BARS, "numpyro"] + (
        [] if options.quick else ["distrax", "tfp"]
    )
    makers = {n: partial(_contenders.LOSSES[n], k) for n in names}
    yield from together(
        f"evaluation of {POINTS} points, K = {k}, in turns", makers, EVALUATION_BARS, images, rounds
    )
