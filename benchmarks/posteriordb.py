"""Posteriors with reference draws: how near each family comes, how soon, and whether the weights say so.

Errors of means and standard deviations are in units of the reference's standard deviation. Every contender is run at
each of its settings, ten times longer while its ELBO still rises, and its best in hindsight counts. The time to
accuracy is the first at which the root mean square of all errors is at most 5 % above that of the family's best (or
.01 sd, the noise of a number below .2), and stays there at the next look; the family's best is the end of the highest
ELBO that any contender reached. Double precision throughout: one of the fourteen needs it. Needs the folder
`posteriordb` in --data or VIJAX_DATA. With --json a run that was cut off goes on at the next posterior.
"""

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
LOOKS = 32
ROUNDS, SHORT = (
    5,
    2.0,
)  # an arrival is timed again so often, in turns with its family's, if it takes no more seconds
FAR = 1e3  # sd
NOISE = 0.01  # sd: of the draws on both sides
RISE = 0.05  # nats: an ELBO that rose by more with ten times the steps has not arrived
MOST, PATIENCE, HASTE = 200_000, 30.0, 0.5  # steps, and seconds of a fit, also of a quick one
RMS, TIME = "root mean square error", "time to accuracy"


class Look(NamedTuple):
    """A fit as it was at one moment: seconds and steps so far, and the errors of its draws."""

    seconds: float
    steps: int
    rms: float
    worst: float
    elbo: float
    khat: float
    log_evidence: float


Setting = tuple[float, int]
Runs = list[tuple[Setting, list[Look]]]


class Followed(NamedTuple):
    """A contender: its family, seconds of compiling, what was seen at each setting, and a clock of (steps, setting)."""

    family: str
    compiling: float
    runs: Runs
    clock: Callable[[int, Setting], float]


def looker(posterior: Posterior) -> Callable[[Array, Array], dict[str, Array]]:
    """Return (y, log q) -> errors and weights, jitted."""
    _, unravel = ravel_pytree(posterior.start)
    flat = lambda y: ravel_pytree(posterior.report(posterior.target.constrain(unravel(y))))[0]  # noqa: E731
    reference = _posteriors.table(posterior)
    mean, sd = reference.mean(0), reference.std(0)

    @jax.jit
    def look(y: Array, log_q: Array) -> dict[str, Array]:
        z = jax.lax.map(flat, y, batch_size=1024)
        log_w = (
            jax.lax.map(lambda v: posterior.target.log_joint(unravel(v)), y, batch_size=1024)
            - log_q
        )
        errors = jnp.stack([(jnp.mean(z, 0) - mean) / sd, (jnp.std(z, 0) - sd) / sd])
        return {
            "rms": jnp.sqrt(jnp.mean(errors**2)),
            "worst": jnp.max(jnp.abs(errors)),
            "elbo": jnp.mean(log_w),
            "khat": vj.diagnostics.khat(log_w),
            "log_evidence": vj.numerics.log_mean_exp(log_w),
        }

    return look


def rising(runs: Runs) -> bool:
    """Whether the longest budget's ELBO is still above that of the one before."""
    best = {
        total: max(by_elbo(looks[-1]) for (_, at), looks in runs if at == total)
        for (_, total), _ in runs
    }
    return len(best) > 1 and not best[max(best)] <= sorted(best.items())[-2][1] + RISE


def longer(runs: Runs, patience: float) -> Setting | None:
    """Return ten times the longest budget at the better of its rates, if that has not arrived and time allows it."""
    longest = max(total for (_, total), _ in runs)
    (rate, _), looks = max(
        (run for run in runs if run[0][1] == longest), key=lambda run: by_elbo(run[1][-1])
    )
    if not rising(runs) or 10 * longest > MOST or 10 * looks[-1].seconds > patience:
        return None
    return rate, 10 * longest


def schedule(total: int) -> list[int]:
    """Return when to look, in steps: densely at first, for a quick fit is soon done."""
    return sorted({int(s) for s in np.geomspace(1, total, LOOKS)})


def follow(fit: Fit, look: Any, patience: float = PATIENCE, seed: int = 0) -> Followed:
    """Run a fit at each of its settings and look at it on the way."""
    begin = time.perf_counter()
    start = jax.jit(fit.start).lower(jax.random.key(seed)).compile()
    state = start(jax.random.key(seed))
    advance = jax.jit(fit.advance).lower(state, 1, 0.1, 1.0).compile()
    compiling = time.perf_counter() - begin
    begin = time.perf_counter()
    state = jax.block_until_ready(start(jax.random.key(seed)))
    starting = time.perf_counter() - begin
    draw = jax.jit(fit.draw, static_argnums=2)

    def run(rate: float, total: int) -> list[Look]:
        at, seconds, kept, before = state, starting, [], 0
        for steps in schedule(total):
            begin = time.perf_counter()
            at = jax.block_until_ready(advance(at, steps - before, rate, float(total)))
            seconds += time.perf_counter() - begin
            before = steps
            kept.append((seconds, steps, at))
        looks = []
        for seconds, steps, at in kept:
            found = look(*draw(jax.random.key(1), at, DRAWS))
            looks.append(
                Look(seconds, steps, **{name: float(value) for name, value in found.items()})
            )
        return looks

    runs = [(setting, run(*setting)) for setting in fit.settings]
    while setting := longer(runs, patience):
        runs.append((setting, run(*setting)))

    def clock(steps: int, setting: Setting) -> float:
        begin = time.perf_counter()
        begun = start(jax.random.key(seed))
        jax.block_until_ready(advance(begun, steps, setting[0], float(setting[1])))
        return time.perf_counter() - begin

    return Followed(fit.family, compiling, runs, clock)


def reached(looks: list[Look], limit: float) -> Look | None:
    """Return the first look at which the error is at most `limit`, and at the next one too."""
    for here, after in zip(looks, [*looks[1:], looks[-1]], strict=True):
        if here.rms <= limit and after.rms <= limit:
            return here
    return None


def by_elbo(look: Look) -> float:
    """Return the ELBO, of a q that is anywhere near: where densities overflow, its number means nothing."""
    return look.elbo if np.isfinite(look.elbo) and look.rms < FAR else -np.inf


def close_to(rms: float) -> float:
    """Return the largest error that counts as the same accuracy."""
    return max(1.05 * rms, rms + NOISE)


class Result(NamedTuple):
    """What a contender came to: where its highest ELBO ended, and the first moment of accuracy."""

    family: str
    end: Look
    setting: Setting
    arrival: tuple[float, int, Setting] | None  # seconds, steps, setting
    compiling: float
    rising: bool  # a longer budget would help it yet


def results(fits: dict[str, Followed]) -> dict[str, Result]:
    """Judge every contender by the best of its family."""
    found = {}
    for name, (family, compiling, runs, _) in fits.items():
        # By the objective, not by the error: on its way to where it belongs a fit may pass nearer by chance.
        ends = [
            looks[-1]
            for other in fits.values()
            if other.family == family
            for _, looks in other.runs
        ]
        limit = close_to(max(ends, key=by_elbo).rms)
        arrivals = [
            (at.seconds, at.steps, setting)
            for setting, looks in runs
            if (at := reached(looks, limit))
        ]
        setting, looks = max(runs, key=lambda run: by_elbo(run[1][-1]))
        found[name] = Result(
            family, looks[-1], setting, min(arrivals, default=None), compiling, rising(runs)
        )
    return retimed(found, fits)


def retimed(found: dict[str, Result], fits: dict[str, Followed]) -> dict[str, Result]:
    """Time the short ways to each arrival again, in turns, and keep the medians: the first time is the coldest."""
    seconds: dict[str, list[float]] = {
        n: [] for n, r in found.items() if r.arrival and r.arrival[0] <= SHORT
    }
    for _ in range(ROUNDS):
        for name in seconds:
            _, steps, setting = found[name].arrival
            seconds[name].append(fits[name].clock(steps, setting))
    again = {
        n: found[n]._replace(arrival=(float(np.median(s)), *found[n].arrival[1:]))
        for n, s in seconds.items()
    }
    return found | again


def measure(
    posterior: Posterior, patience: float = PATIENCE
) -> Generator[Row, None, dict[str, Result]]:
    """Yield the rows of one posterior; return its results."""
    y, unravel = ravel_pytree(posterior.start)
    log_density = lambda v: posterior.target.log_joint(unravel(v))  # noqa: E731
    look, fits, tried = looker(posterior), {}, 0
    for name, make in _fits.contenders(log_density, y).items():
        try:
            fit = make()
            fits[name] = follow(fit, look, patience)
        except Missing as why:
            yield missing(name, posterior.name, why)
            continue
        except Exception as why:
            yield failed(name, posterior.name, why)
        tried += 1
    found = results(fits)
    for family in dict.fromkeys(result.family for result in found.values()):
        own = {name: result for name, result in found.items() if result.family == family}
        for name, (_, end, setting, _, compiling, unfinished) in own.items():
            note = f"worst {end.worst:.3f}, k-hat {end.khat:.2f}, ELBO {end.elbo:.3f}, log Z {end.log_evidence:.3f}"
            note += f"; {setting[1]} steps, still rising" if unfinished else ""
            metric = f"{posterior.name}: {family}, {RMS}"
            yield row(
                name,
                metric,
                end.rms,
                "sd",
                note=note,
                setting=setting,
                compile=compiling,
                rising=unfinished,
                contenders=tried,
                **end._asdict(),
            )
        for name, (_, _, _, arrival, compiling, _) in own.items():
            seconds, steps, setting = arrival or (None, None, None)
            note = (
                f"{steps} steps, rate {setting[0]:g} of {setting[1]}; "
                if setting and setting[0]
                else ""
            )
            note += f"compile {compiling:.1f} s"
            metric = f"{posterior.name}: {family}, {TIME}"
            yield row(
                name,
                metric,
                seconds and 1e3 * seconds,
                "ms",
                note=note,
                steps=steps,
                setting=setting,
            )
    return found


def known(r: Row) -> bool:
    """Whether a row is of one contender on one posterior."""
    return (RMS in r["metric"] or TIME in r["metric"]) and not r["quick"]


def remembered(earlier: tuple[Row, ...], name: str) -> dict[str, Result] | None:
    """Return the results that an earlier run's rows of a posterior hold, None where any is missing."""
    ends, arrivals = (
        {r["name"]: r for r in earlier if r["metric"].startswith(f"{name}: ") and of in r["metric"]}
        for of in (RMS, TIME)
    )
    if not ends or any(
        len(ends) != r.get("contenders") or n not in arrivals for n, r in ends.items()
    ):
        return None
    found = {}
    for contender, r in ends.items():
        family = r["metric"].removeprefix(f"{name}: ").removesuffix(f", {RMS}")
        end = Look(*(r[field] for field in Look._fields))
        at = arrivals[contender]
        arrival = at["value"] and (at["value"] / 1e3, at["steps"], tuple(at["setting"]))
        found[contender] = Result(
            family, end, tuple(r["setting"]), arrival, r["compile"], r["rising"]
        )
    return found


def best(own: list[Result]) -> Result:
    """Return the one whose objective ended highest."""
    return max(own, key=lambda result: by_elbo(result.end))


def soonest(own: list[Result]) -> float:
    """Return the seconds of the first to arrive."""
    return min((result.arrival[0] for result in own if result.arrival), default=np.inf)


def verdicts(seen: dict[str, dict[str, Result]]) -> Iterator[Row]:
    """On how many posteriors vijax is as accurate as the peers' same family, and no slower; and how near it comes."""
    for family in _fits.SHARED:
        accurate, faster, judged = [], [], []
        for name, found in seen.items():
            own = [
                r for other, r in found.items() if r.family == family and other.startswith("vijax")
            ]
            peers = [
                r
                for other, r in found.items()
                if r.family == family and not other.startswith("vijax")
            ]
            if not own or not peers:
                continue
            judged.append(name)
            # The peers' nearest end, whatever its ELBO; vijax's own by its objective, which a user can see.
            near = min((r.end.rms for r in peers if np.isfinite(r.end.rms)), default=np.inf)
            accurate.append(best(own).end.rms <= close_to(near))
            faster.append(soonest(own) < np.inf and soonest(own) <= soonest(peers))
        if judged:
            behind = ", ".join(n for n, ok in zip(judged, accurate, strict=True) if not ok)
            slow = ", ".join(n for n, ok in zip(judged, faster, strict=True) if not ok)
            n = len(judged)
            metric = f"{family}: posteriors on which it is less accurate than a peer, of {n}"
            yield row("vijax", metric, n - sum(accurate), "", bar=0, note=behind)
            metric = f"{family}: posteriors on which it is slower to accuracy than a peer, of {n}"
            yield row("vijax", metric, n - sum(faster), "", bar=-(-n * 3 // 14), note=slow)
    near = []
    for name, found in seen.items():
        own = {
            f: [r for o, r in found.items() if r.family == f and o.startswith("vijax")]
            for f in _fits.RICH
        }
        if any(results and best(results).end.rms <= 0.1 for results in own.values()):
            near.append(name)
    far = ", ".join(name for name in seen if name not in near)
    metric = f"posteriors on which full-rank or flow stays above .1 sd, of {len(seen)}"
    yield row("vijax", metric, len(seen) - len(near), "", bar=-(-len(seen) * 3 // 14), note=far)


def run(options: Options) -> Iterator[Row]:
    def rows(root: Path) -> Iterator[Row]:
        seen = {}
        names, patience = (QUICK, HASTE) if options.quick else (_posteriors.MODELS, PATIENCE)
        for name in names:
            before = remembered(options.earlier, name)
            if before is None:
                seen[name] = yield from measure(_posteriors.load(root, name), patience)
            else:
                seen[name] = before
                yield from (r for r in options.earlier if r["metric"].startswith(f"{name}: "))
        yield from verdicts(seen)

    yield from _posteriors.over(options, rows)
