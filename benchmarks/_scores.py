"""Noise of score gradients of Gaussians: vimco beside the forms that it could have, score of means as draws grow."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import vijax as vj
from benchmarks._report import Options, Row, row

D, DRAWS = 5, (2, 3, 10, 100, 1000)
# q = N(loc, scale) beside a standard normal posterior in five latents; KL from .03 to 6 nats.
FITS = {"near": (0.1, 0.95), "wide": (0.2, 1.5), "fair": (0.3, 0.8), "poor": (0.8, 0.6)}
# Nearer than that, a constant that is right for two or three draws of no q in particular is not its own.
NEAREST = {"nearest": (0.02, 1.0)}
OURS, BAR = "vimco(iwae)", 1.1
GENERATORS = ("kl_reverse", "jensen_shannon", "squared_hellinger", "jeffreys")


def target(z: Array) -> Array:
    return -0.5 * jnp.sum(jnp.square(z), -1)


def build(params: Any) -> Any:
    return vj.families.mean_field().dist(params)


def forms(log_w: Array) -> dict[str, Array]:
    """The coefficient of each draw's score: the draw left out, the same less its constant, the geometric mean."""
    k, own = len(log_w), jax.nn.softmax(log_w)
    left = vj.types.closed_forms(vj.bounds.iwae).leave_one_out
    assert left is not None
    bound = vj.bounds.iwae(log_w)
    mean = (jnp.sum(log_w) - log_w) / (k - 1)
    # The others' sum with the geometric mean in the draw's place.
    swapped = jnp.logaddexp(left(log_w) + np.log(k - 1), mean) - np.log(k)
    drop = bound - left(log_w) - own
    return {
        "draw left out": drop,
        "draw left out, constant removed": drop + 1 / k,
        "geometric mean": bound - swapped - own,
    }


def spreads(fit: tuple[float, float], k: int, repeats: int) -> dict[str, float]:
    """The sd of the gradient in q's parameters, of the same draws for every form."""
    loc, scale = fit
    params = {"loc": jnp.full(D, loc), "log_scale": jnp.full(D, np.log(scale))}
    objective = vj.gradients.vimco(vj.bounds.iwae)

    def value(params: Any, key: Array) -> tuple[Array, Any]:
        found = objective(key, target, build(params), num_samples=k)
        return found.value, found.draws

    def slopes(key: Array) -> dict[str, Array]:
        ours, draws = jax.grad(value, has_aux=True)(params, key)
        e = (draws.z - loc) / scale
        score = jnp.concatenate([e / scale, jnp.square(e) - 1], -1)
        others = {name: c @ score for name, c in forms(draws.log_w).items()}
        return {OURS: jnp.concatenate([ours["loc"], ours["log_scale"]])} | others

    keys = jax.random.split(jax.random.key(1), repeats)
    found = jax.jit(lambda keys: jax.lax.map(slopes, keys, batch_size=100))(keys)
    return {
        name: float(np.sqrt(np.asarray(s, np.float64).var(0).sum())) for name, s in found.items()
    }


def vimco_rows(options: Options) -> Iterator[Row]:
    for fit, at in (FITS | NEAREST).items():
        for k in DRAWS:
            repeats = min(40_000, 4_000_000 // k) // (20 if options.quick else 1)
            sd = spreads(at, k, repeats)
            best = min((name for name in sd if name != OURS), key=lambda name: sd[name])
            metric = f"sd of the gradient of iwae, {fit} q, K = {k}"
            for name, value in sd.items():
                judged = {"bar": BAR} if name == OURS and fit in FITS else {}
                yield row(name, metric, value, "", best, value / sd[best], draws=repeats, **judged)


def score_rows(options: Options) -> Iterator[Row]:
    bounds: dict[str, Any] = {"elbo": vj.bounds.elbo}
    for name in GENERATORS:
        f = getattr(vj.bounds.generators, name)
        bounds[f"f_divergence, {name}"] = partial(vj.bounds.f_divergence, f=f)
    bounds["perturbative"] = partial(vj.bounds.perturbative, reference=0.0)
    sizes, repeats = (10, 100, 1000, 10_000), 100 if options.quick else 500
    for name, bound in bounds.items():
        sd = [noise(vj.gradients.score(bound), k, repeats) for k in sizes]
        metric = f"sd of the gradient, score({name})"
        for k, value in zip(sizes, sd, strict=True):
            yield row(f"K = {k}", metric, value, "", draws=repeats)
        slope = float(np.polyfit(np.log(sizes), np.log(sd), 1)[0])
        yield row("slope of log sd in log K, -.5 of a mean", metric, slope, "", bar=-0.4)


def noise(objective: Any, k: int, repeats: int) -> float:
    def value(params: Any, key: Array) -> Array:
        return objective(key, target, build(params), num_samples=k).value

    params = {"loc": jnp.full(1, 0.3), "log_scale": jnp.full(1, -0.1)}
    slope: Callable[[Array], Any] = lambda key: jax.grad(value)(params, key)["loc"]  # noqa: E731
    keys = jax.random.split(jax.random.key(2), repeats)
    return float(np.std(jax.jit(lambda keys: jax.lax.map(slope, keys))(keys)))


def run(options: Options) -> Iterator[Row]:
    yield from vimco_rows(options)
    yield from score_rows(options)
