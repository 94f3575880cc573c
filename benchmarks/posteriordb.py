"""Posteriors with reference draws: how near each family comes, how soon, and whether the weights say so.

Errors of means and standard deviations are in units of the reference's standard deviation. Every contender is run at
each of its settings, and its best in hindsight counts. The time to accuracy is the first at which the root mean square
of all errors is at most 5 % above that of the family's best, and stays there at the next look; the family's best is
the end of the highest ELBO that any contender reached. Double precision throughout: one of the fourteen needs it. Needs
the folder `posteriordb` in --data or VIJAX_DATA.
"""

import os
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

import vijax as vj
from benchmarks import _fits, _posteriors
from benchmarks._fits import Fit
from benchmarks._peers import Missing
from benchmarks._posteriors import Posterior
from benchmarks._report import Options, Row, failed, missing, row

DRAWS = 2**14
QUICK = ("eight_schools-eight_schools_noncentered", "kidiq-kidscore_momiq")
LOOKS = 24
FAR = 1e3  # sd
NOISE = 0.01  # sd: of the draws on both sides
NEAR = (_fits.OURS[_fits.FULL_RANK], _fits.OURS[_fits.FLOW])


class Look(NamedTuple):
    """A fit as it was at one moment: seconds and steps so far, and the errors of its draws."""

    seconds: float
    steps: int
    rms: float
    worst: float
    elbo: float
    khat: float
    log_evidence: float


Runs = list[tuple[tuple[float, int], list[Look]]]


def looker(posterior: Posterior) -> Callable[[Array, Array], dict[str, Array]]:
    """Return (y, log q) -> errors and weights, jitted."""
    _, unravel = ravel_pytree(posterior.start)
    flat = lambda y: ravel_pytree(posterior.report(posterior.target.constrain(unravel(y))))[0]  # noqa: E731
    shapes = jax.eval_shape(lambda y: posterior.report(posterior.target.constrain(y)), posterior.start)
    reference = np.concatenate(
        [np.reshape(posterior.reference[n], (-1, int(np.prod(shapes[n].shape)))) for n in sorted(shapes)], 1
    )
    mean, sd = reference.mean(0), reference.std(0)

    @jax.jit
    def look(y: Array, log_q: Array) -> dict[str, Array]:
        z = jax.lax.map(flat, y, batch_size=1024)
        log_w = jax.lax.map(lambda v: posterior.target.log_joint(unravel(v)), y, batch_size=1024) - log_q
        errors = jnp.stack([(jnp.mean(z, 0) - mean) / sd, (jnp.std(z, 0) - sd) / sd])
        return {
            "rms": jnp.sqrt(jnp.mean(errors**2)),
            "worst": jnp.max(jnp.abs(errors)),
            "elbo": jnp.mean(log_w),
            "khat": vj.diagnostics.khat(log_w),
            "log_evidence": vj.numerics.log_mean_exp(log_w),
        }

    return look


def schedule(total: int) -> list[int]:
    """Return when to look, in steps: densely at first, for a quick fit is soon done."""
    return sorted({int(s) for s in np.geomspace(1, total, LOOKS)})


def follow(fit: Fit, look: Any, seed: int = 0) -> tuple[float, Runs]:
    """Return the seconds of compiling, and what was seen at each of the settings."""
    begin = time.perf_counter()
    start = jax.jit(fit.start).lower(jax.random.key(seed)).compile()
    state = start(jax.random.key(seed))
    advance = jax.jit(fit.advance).lower(state, 1, 0.1, 1.0).compile()
    compiling = time.perf_counter() - begin
    begin = time.perf_counter()
    state = jax.block_until_ready(start(jax.random.key(seed)))
    starting = time.perf_counter() - begin
    draw = jax.jit(fit.draw, static_argnums=2)
    runs = []
    for rate, total in fit.settings:
        at, seconds, kept = state, starting, []
        before = 0
        for steps in schedule(total):
            begin = time.perf_counter()
            at = jax.block_until_ready(advance(at, steps - before, rate, float(total)))
            seconds += time.perf_counter() - begin
            before = steps
            kept.append((seconds, steps, at))
        looks = []
        for seconds, steps, at in kept:
            found = look(*draw(jax.random.key(1), at, DRAWS))
            looks.append(Look(seconds, steps, **{name: float(value) for name, value in found.items()}))
        runs.append(((rate, total), looks))
    return compiling, runs


def reached(looks: list[Look], limit: float) -> Look | None:
    """Return the first look at which the error is at most `limit`, and at the next one too."""
    for here, after in zip(looks, [*looks[1:], looks[-1]], strict=True):
        if here.rms <= limit and after.rms <= limit:
            return here
    return None


def by_elbo(look: Look) -> float:
    """Return the ELBO, of a q that is anywhere near: where densities overflow, its number means nothing."""
    return look.elbo if np.isfinite(look.elbo) and look.rms < FAR else -np.inf


class Result(NamedTuple):
    """What a contender came to: where its highest ELBO ended, and the first moment of accuracy."""

    family: str
    end: Look
    setting: tuple[float, int]
    arrival: tuple[float, int, tuple[float, int]] | None  # seconds, steps, setting
    compiling: float


def results(fits: dict[str, tuple[str, float, Runs]]) -> dict[str, Result]:
    """Judge every contender by the best of its family."""
    found = {}
    for name, (family, compiling, runs) in fits.items():
        # By the objective, not by the error: on its way to where it belongs a fit may pass nearer by chance.
        ends = [looks[-1] for other, _, runs in fits.values() if other == family for _, looks in runs]
        limit = 1.05 * max(ends, key=by_elbo).rms
        arrivals = [(at.seconds, at.steps, setting) for setting, looks in runs if (at := reached(looks, limit))]
        setting, looks = max(runs, key=lambda run: by_elbo(run[1][-1]))
        found[name] = Result(family, looks[-1], setting, min(arrivals, default=None), compiling)
    return found


def measure(posterior: Posterior) -> Generator[Row, None, dict[str, Result]]:
    """Yield the rows of one posterior; return its results."""
    y, unravel = ravel_pytree(posterior.start)
    log_density = lambda v: posterior.target.log_joint(unravel(v))  # noqa: E731
    look, fits = looker(posterior), {}
    for name, make in _fits.contenders(log_density, y).items():
        try:
            fit = make()
            fits[name] = fit.family, *follow(fit, look)
        except Missing as why:
            yield missing(name, posterior.name, why)
        except Exception as why:
            yield failed(name, posterior.name, why)
    found = results(fits)
    for family in dict.fromkeys(result.family for result in found.values()):
        own = {name: result for name, result in found.items() if result.family == family}
        for name, (_, end, setting, _, compiling) in own.items():
            note = f"worst {end.worst:.3f}, k-hat {end.khat:.2f}, ELBO {end.elbo:.3f}, log Z {end.log_evidence:.3f}"
            metric = f"{posterior.name}: {family}, root mean square error"
            yield row(name, metric, end.rms, "sd", note=note, setting=setting, compile=compiling, **end._asdict())
        for name, (_, _, _, arrival, compiling) in own.items():
            seconds, steps, setting = arrival or (None, None, None)
            note = f"{steps} steps, rate {setting[0]:g} of {setting[1]}; " if setting and setting[0] else ""
            note += f"compile {compiling:.1f} s"
            metric = f"{posterior.name}: {family}, time to accuracy"
            yield row(name, metric, seconds and 1e3 * seconds, "ms", note=note, steps=steps, setting=setting)
    return found


def verdicts(seen: dict[str, dict[str, Result]]) -> Iterator[Row]:
    """On how many posteriors vijax is as accurate as the peers' same family, and no slower; and how near it comes."""
    for family, ours in _fits.OURS.items():
        accurate, faster, judged = [], [], []
        for name, found in seen.items():
            peers = [r for other, r in found.items() if r.family == family and not other.startswith("vijax")]
            if ours not in found or not peers:
                continue
            judged.append(name)
            near = min((r.end.rms for r in peers if np.isfinite(r.end.rms)), default=np.inf)
            accurate.append(found[ours].end.rms <= max(1.05 * near, near + NOISE))
            soonest = min((r.arrival[0] for r in peers if r.arrival), default=np.inf)
            faster.append(found[ours].arrival is not None and found[ours].arrival[0] <= soonest)
        if judged:
            behind = ", ".join(n for n, ok in zip(judged, accurate, strict=True) if not ok)
            slow = ", ".join(n for n, ok in zip(judged, faster, strict=True) if not ok)
            n = len(judged)
            yield row(
                ours, f"{family}: posteriors on which it is less accurate than a peer, of {n}", n - sum(accurate), "",
                bar=0, note=behind,
            )  # fmt: skip
            yield row(
                ours, f"{family}: posteriors on which it is slower to accuracy than a peer, of {n}", n - sum(faster),
                "", bar=n * 3 // 14, note=slow,
            )  # fmt: skip
    near = [name for name, found in seen.items() if any(found[o].end.rms <= 0.1 for o in NEAR if o in found)]
    far = ", ".join(name for name in seen if name not in near)
    metric = f"posteriors on which full-rank or flow stays above .1 sd, of {len(seen)}"
    yield row("vijax", metric, len(seen) - len(near), "", bar=len(seen) * 3 // 14, note=far)


def folder(options: Options) -> Path:
    for root in (options.data, os.environ.get("VIJAX_DATA")):
        if root and (found := Path(root) / "posteriordb").is_dir():
            return found
    raise Missing("the folder posteriordb, in --data DIR or VIJAX_DATA")


def run(options: Options) -> Iterator[Row]:
    try:
        root = folder(options)
    except Missing as why:
        yield missing("posteriordb", "reference draws", why)
        return
    with jax.enable_x64(True):
        seen = {}
        for name in QUICK if options.quick else _posteriors.MODELS:
            seen[name] = yield from measure(_posteriors.load(root, name))
        yield from verdicts(seen)
