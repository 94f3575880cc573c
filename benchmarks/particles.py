"""Particle filters beside a hand-written scan, cuthbert and particles, on a random walk seen through noise.

A bootstrap filter of N particles and T steps, systematic resampling at every step; value and gradient of a long chain
in the form that drops the resampling score; compile time over T. Peers that are not installed are reported as missing.
"""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import vijax as vj
from benchmarks._measure import cost, paired
from benchmarks._peers import Missing, peer
from benchmarks._report import Options, Row, missing, row
from vijax import particles

NOISE, STEP = jnp.array(0.5), jnp.array(-0.5)  # log standard deviations
LOG_2PI = math.log(2 * math.pi)


def data(t: int) -> Array:
    rng = np.random.default_rng(0)
    walk = np.cumsum(math.exp(-0.5) * rng.normal(size=t))
    return jnp.asarray(walk + math.exp(0.5) * rng.normal(size=t), jnp.float32)


def log_normal(x: Array, loc: Array, log_scale: Array) -> Array:
    return -0.5 * jnp.square((x - loc) * jnp.exp(-log_scale)) - log_scale - 0.5 * LOG_2PI


def model(noise: Array, step: Array) -> particles.StateSpace:
    normal = vj.families.mean_field().dist
    return particles.StateSpace(
        lambda x: normal({"loc": jnp.zeros(()), "log_scale": jnp.zeros(())}),
        lambda z, x: normal({"loc": z, "log_scale": step}),
        lambda z, x: log_normal(x, z, noise),
    )


def raw(key: Array, x: Array, n: int, noise: Array, step: Array) -> Array:
    """Return log Ẑ as one would write it by hand: a key a step, one draw of all noise, weights equal after each."""

    def weigh(z: Array, x: Array) -> tuple[Array, Array]:
        log_w = log_normal(x, z, noise)
        top = jax.lax.stop_gradient(jnp.max(log_w))
        w = jnp.exp(log_w - top)
        return w, top + jnp.log(jnp.mean(w))

    def one(carry: tuple[Array, Array, Array], inputs: tuple[Array, Array]) -> tuple[Any, None]:
        z, w, total = carry
        x, key = inputs
        key_select, key_move = jax.random.split(key)
        shares = jnp.cumsum(jax.lax.stop_gradient(w))
        points = (jnp.arange(n) + jax.random.uniform(key_select)) / n * shares[-1]
        chosen = jnp.minimum(jnp.searchsorted(shares, points, side="right"), n - 1)
        z = z[chosen] + jnp.exp(step) * jax.random.normal(key_move, (n,))
        w, increment = weigh(z, x)
        return (z, w, total + increment), None

    keys = jax.random.split(key, len(x))
    z = jax.random.normal(keys[0], (n,))
    w, increment = weigh(z, x[0])
    return jax.lax.scan(one, (z, w, increment), (x[1:], keys[1:]))[0][2]


def ours(key: Array, x: Array, n: int, noise: Array, step: Array) -> Array:
    return particles.smc(key, model(noise, step), x, num_particles=n).log_evidence


def ours_with_slope(key: Array, x: Array, n: int, noise: Array, step: Array) -> Array:
    return particles.fivo(key, model(noise, step), x, num_particles=n).value


def cuthbert(n: int) -> Callable[[Array, Array], Array]:
    smc, filtering = peer("cuthbert.smc.particle_filter"), peer("cuthbert.filtering")
    systematic = peer("cuthbertlib.resampling.systematic").resampling
    built = smc.build_filter(
        jax.random.normal,
        lambda key, z, x: jnp.where(x[1] > 0, z + jnp.exp(STEP) * jax.random.normal(key), z),
        lambda before, z, x: log_normal(x[0], z, NOISE),
        n,
        systematic,
    )

    def run(key: Array, x: Array) -> Array:
        one, two = jax.random.split(key)
        # The first datum is of the first draw, which cuthbert's filter holds still for it.
        inputs = jnp.stack([x, jnp.arange(len(x), dtype=x.dtype)], 1)
        states = filtering.filter(built, inputs, built.init_prepare(key=one), key=two)
        return states.log_normalizing_constant[-1]

    return run


def chopin(x: np.ndarray, n: int) -> Callable[[], float]:
    library = peer("particles")
    ssms, dists = peer("particles.state_space_models"), peer("particles.distributions")
    step, noise = math.exp(float(STEP)), math.exp(float(NOISE))

    class Walk(ssms.StateSpaceModel):  # type: ignore[misc, name-defined]
        def PX0(self) -> Any:  # noqa: N802
            return dists.Normal(0.0, 1.0)

        def PX(self, t: int, xp: Any) -> Any:  # noqa: N802
            return dists.Normal(xp, step)

        def PY(self, t: int, xp: Any, x: Any) -> Any:  # noqa: N802
            return dists.Normal(x, noise)

    def run() -> float:
        bootstrap = ssms.Bootstrap(ssm=Walk(), data=x)
        algorithm = library.SMC(fk=bootstrap, N=n, resampling="systematic", ESSrmin=1.0)
        algorithm.run()
        return float(algorithm.logLt)

    return run


def value_times(t: int, n: int, rounds: int) -> Iterator[Row]:
    metric = f"bootstrap filter, N = {n:,}, T = {t:,}"
    x, key = data(t), jax.random.key(0)
    functions = {"raw": raw, "raw again": raw, "vijax": ours}
    compiled = {
        name: jax.jit(lambda key, x, f=f: f(key, x, n, NOISE, STEP))
        for name, f in functions.items()
    }
    absent = []
    try:
        compiled["cuthbert"] = jax.jit(cuthbert(n))
    except Missing as why:
        absent.append(missing("cuthbert", metric, why))
    calls: dict[str, Callable[[], Any]] = {
        name: (lambda f=f: f(key, x)) for name, f in compiled.items()
    }
    try:
        calls["particles"] = chopin(np.asarray(x, np.float64), n)
    except Missing as why:
        absent.append(missing("particles", metric, why))
    for name, call in calls.items():
        yield row(f"log Ẑ by {name}", f"{metric}: one key's value", float(call()), "nats")
    times = paired(calls, "raw", rounds, control="raw again")
    yield times.row("vijax", metric, "raw", bar=1.1)
    for name, bar in (("cuthbert", 1.0), ("particles", 0.8)):
        if name in calls:
            yield times.row("vijax", metric, name, bar=bar)
    yield from absent


def slope_times(t: int, n: int, rounds: int) -> Iterator[Row]:
    metric = f"value and gradient in two parameters, N = {n}, T = {t:,}"
    x, key = data(t), jax.random.key(0)
    functions = {"raw": raw, "raw again": raw, "vijax": ours_with_slope}

    def slope(f: Callable[..., Array]) -> Any:
        return jax.jit(
            lambda key, x: jax.value_and_grad(lambda a, b: f(key, x, n, a, b), (0, 1))(NOISE, STEP)
        )

    compiled = {name: slope(f).lower(key, x).compile() for name, f in functions.items()}
    times = paired(
        {name: (lambda f=f: f(key, x)) for name, f in compiled.items()},
        "raw",
        rounds,
        control="raw again",
    )
    yield times.row("vijax", metric, "raw", bar=1.2)
    for count, value in cost(compiled["vijax"]).items():
        baseline = cost(compiled["raw"]).get(count)
        ratio = value / baseline if baseline else None
        yield row("vijax", f"{metric}: XLA's count", value, count, "raw", ratio)


def compile_times(quick: bool) -> Iterator[Row]:
    metric = "trace and compile of a filter, N = 100"
    seconds = {}
    for t in (10, 1000) if quick else (10, 1000, 100_000):
        x, each = data(t), []
        for _ in range(3):
            start = time.perf_counter()
            jax.jit(lambda key, x: ours(key, x, 100, NOISE, STEP)).lower(
                jax.random.key(0), x
            ).compile()
            each.append(time.perf_counter() - start)
        seconds[t] = min(each)
        yield row(
            f"T = {t:,}", metric, seconds[t], "s", "T = 10", seconds[t] / seconds[10], bar=1.5
        )


def run(options: Options) -> Iterator[Row]:
    rounds = 3 if options.quick else 25
    yield from value_times(100 if options.quick else 1000, 1000, rounds)
    yield from slope_times(100 if options.quick else 10_000, 100, rounds)
    yield from compile_times(options.quick)
