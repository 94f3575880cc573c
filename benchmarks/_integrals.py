"""What exact integrals cost: collapse_gaussian beside the closed form by hand, and Kalman filters by length."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.linalg import solve_triangular
from jax.scipy.stats import norm

import vijax as vj
from benchmarks import _measure
from benchmarks._report import Options, Row, ratio_of, row

N, D = 500, 20
BAR, LINEAR = (
    1.5,
    1.15,
)  # of the closed form's time; the most that time may grow as a power of the length
OURS, HAND, SHORT, READY, CONTROL = (
    "collapse_gaussian",
    "by hand",
    "by hand, yᵀy form",
    "by hand, XᵀX ready",
    "A/A",
)
Z = np.array([0.1, -0.2], np.float32)  # log s, log t


def log_joint(data: Any, z: Array, w: Array) -> Array:
    x, y = data
    log_p = jnp.sum(norm.logpdf(z)) + jnp.sum(norm.logpdf(w, 0.0, jnp.exp(z[1])))
    return log_p + jnp.sum(norm.logpdf(y, x @ w, jnp.exp(z[0])))


def ours(data: Any, z: Array) -> Array:
    return vj.targets.collapse_gaussian(lambda z, w: log_joint(data, z, w), jnp.zeros(D, z.dtype))[
        0
    ](z)


def by_hand(
    gram: Array, moment: Array, squares: Callable[[Array, Array], Array], z: Array
) -> Array:
    """Return log p(y, z) from XᵀX and Xᵀy, by the Cholesky factor of the posterior precision [20, 20]."""
    over, prior = jnp.exp(-2 * z[0]), jnp.exp(-2 * z[1])
    root = jnp.linalg.cholesky(over * gram + prior * jnp.eye(D, dtype=z.dtype))
    half = solve_triangular(root, over * moment, lower=True)
    log_det = jnp.sum(jnp.log(jnp.diagonal(root)))
    constant = (
        jnp.sum(norm.logpdf(z))
        - N * z[0]
        - D * z[1]
        - 0.5 * N * jnp.log(2 * jnp.pi).astype(z.dtype)
    )
    return constant - log_det - 0.5 * squares(root, half)


def residual(data: Any, z: Array) -> Array:
    """As a sum of squares, at the posterior's mean: no digits cancel, as they do not in collapse_gaussian."""
    x, y = data

    def squares(root: Array, half: Array) -> Array:
        w = solve_triangular(root, half, lower=True, trans=1)
        return jnp.sum((y - x @ w) ** 2) * jnp.exp(-2 * z[0]) + jnp.sum(w**2) * jnp.exp(-2 * z[1])

    return by_hand(x.T @ x, x.T @ y, squares, z)


def short(data: Any, z: Array) -> Array:
    """As yᵀy/s² less the mean's, which cancel."""
    x, y = data
    return ready((x.T @ x, x.T @ y, y @ y), z)


def ready(data: Any, z: Array) -> Array:
    """The same with all sums over data made beforehand, which no function of log_joint alone can have."""
    gram, moment, total = data
    return by_hand(gram, moment, lambda _, half: total * jnp.exp(-2 * z[0]) - half @ half, z)


def regression(options: Options) -> Iterator[Row]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, D))
    given = x, x @ rng.normal(size=D) + rng.normal(size=N)
    of = lambda dtype: tuple(jnp.asarray(a, dtype) for a in given)  # noqa: E731
    data = of(jnp.float32)
    sums = (data[0].T @ data[0], data[0].T @ data[1], data[1] @ data[1])
    functions: dict[str, tuple[Any, Any]] = {
        **{OURS: (ours, data), HAND: (residual, data), CONTROL: (residual, data)},
        **{SHORT: (short, data), READY: (ready, sums)},
    }
    with jax.enable_x64(True):
        truth = float(jax.jit(residual)(of(jnp.float64), jnp.asarray(Z, jnp.float64)))
    metric = f"ridge regression, {N} observations of {D} coefficients, value and gradient in (log s, log t)"
    calls: dict[str, Any] = {}
    costs: dict[str, dict[str, float]] = {}
    for name, (function, numbers) in functions.items():
        compiled = jax.jit(jax.value_and_grad(function, argnums=1)).lower(numbers, Z).compile()
        calls[name] = lambda compiled=compiled, numbers=numbers: compiled(numbers, Z)
        costs[name] = _measure.cost(compiled)
        if name != CONTROL:
            off = abs(float(calls[name]()[0]) - truth)
            yield row(name, f"{metric}: error in float32", off, "nats")
    rounds = 10 if options.quick else 50
    timings = _measure.paired(calls, HAND, rounds, control=CONTROL, least=1e-2, warm=2)
    for name in (OURS, HAND, SHORT, READY):
        yield timings.row(name, f"{metric}: time", HAND, BAR if name == OURS else None)
    yield timings.row(OURS, f"{metric}: time beside the form that cancels", SHORT, BAR)
    for what, unit in (("flops", "FLOP"), ("bytes accessed", "B"), ("temporary memory", "B")):
        for name in (OURS, HAND, SHORT, READY):
            value = costs[name].get(what)
            yield row(
                name,
                f"{metric}: {what} by XLA",
                value,
                unit,
                HAND,
                ratio_of(value, costs[HAND].get(what)),
            )


def evidence(kalman: Any, x: Array, log_scales: Array) -> Array:
    """A local linear trend, states of two numbers."""
    level, slope, noise = jnp.exp(log_scales)
    model = vj.sequences.LinearGaussian(
        jnp.zeros(2), jnp.eye(2), jnp.array([[1.0, 0.1], [0.0, 1.0]]), jnp.diag(jnp.stack([level, slope]) ** 2),
        jnp.array([[1.0, 0.0]]), (noise**2)[None, None],
    )  # fmt: skip
    return kalman(model, x).log_evidence


def chains(options: Options) -> Iterator[Row]:
    lengths = [300, 1000] if options.quick else [1000, 3162, 10_000]
    filters = {
        "sequential": vj.sequences.kalman_filter,
        "parallel": vj.sequences.parallel_kalman_filter,
    }
    at, accelerator = jnp.log(jnp.array([0.5, 0.1, 1.0])), jax.devices()[0].platform != "cpu"
    seconds: dict[str, list[float]] = {name: [] for name in filters}
    for length in lengths:
        rng = np.random.default_rng(1)
        x = jnp.asarray(
            np.cumsum(0.5 * rng.normal(size=length))[:, None] + rng.normal(size=(length, 1)),
            jnp.float32,
        )
        calls = {}
        for name, kalman in [*filters.items(), (CONTROL, filters["sequential"])]:
            step = jax.jit(
                jax.value_and_grad(lambda x, s, kalman=kalman: evidence(kalman, x, s), argnums=1)
            )
            compiled = step.lower(x, at).compile()
            calls[name] = lambda compiled=compiled, x=x: compiled(x, at)
        values = [float(calls[name]()[0]) for name in filters]
        metric = f"Kalman filter of {length} steps, value and gradient"
        off = abs(values[1] - values[0]) / abs(values[0])
        yield row("parallel", f"{metric}: from the sequential, relative", off, "", bar=1e-4)
        rounds = 5 if options.quick else 25
        timings = _measure.paired(calls, "sequential", rounds, control=CONTROL, least=1e-2, warm=1)
        for name in filters:
            seconds[name].append(timings.median(name))
            # The least work is faster on a CPU; what the parallel form is for is a long chain on an accelerator.
            judged = accelerator and name == "parallel" and length == lengths[-1]
            yield timings.row(name, f"{metric}: time", "sequential", 1.0 if judged else None)
    for name, found in seconds.items():
        power = float(np.polyfit(np.log(lengths), np.log(found), 1)[0])
        yield row(
            name,
            f"Kalman filters, {lengths[0]} to {lengths[-1]} steps: time as a power of the length",
            power,
            "",
            bar=LINEAR,
        )


def rows(options: Options) -> Iterator[Row]:
    yield from regression(options)
    yield from chains(options)
