"""Is the verdict right? Fits of posteriors with reference draws, what diagnostics said of each, and how far off it was.

Every posterior under a mean-field and a full-rank Gaussian, from several starts. A miss is a verdict of 0 ("q may be
believed") where q's error is above `WRONG`, or of 1 ("its corrected moments") where theirs is; a false alarm is a
verdict of 2 or 3 where the corrected moments are within it. Needs the folder `posteriordb` in --data or VIJAX_DATA.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

import vijax as vj
from benchmarks import _fits, _posteriors
from benchmarks._posteriors import Posterior
from benchmarks._report import Options, Row, failed, row
from vijax.diagnostics import Summary

STARTS, DRAWS = 6, 4000
WRONG = 0.2  # sd, the root mean square over latents of the error of means or of sds, whichever is larger
CENTERED, MIXTURE = "eight_schools-eight_schools_centered", _posteriors.MIXTURE
UNORDERED = f"{MIXTURE} without its order"
REGRESSIONS = (
    "arK-arK",
    "diamonds-diamonds",
    "earnings-logearn_interaction",
    "kidiq-kidscore_interaction",
    "kidiq-kidscore_momiq",
    "kilpisjarvi_mod-kilpisjarvi",
    "mesquite-logmesquite",
    "nes1980-nes",
    "sblrc-blr",
)
QUICK = (CENTERED, UNORDERED, "kidiq-kidscore_momiq")
FAMILIES: dict[str, Callable[..., _fits.Fit]] = {
    _fits.MEAN_FIELD: _fits.newton,
    _fits.FULL_RANK: lambda log_density, y: _fits.natural(
        _fits.FULL_RANK, vj.families.full_rank(), log_density, y
    ),
}  # fmt: skip


class Judged(NamedTuple):
    """One fit: the verdict on it, and the errors of q's moments and of the corrected ones."""

    level: int
    q: float
    corrected: float

    @property
    def miss(self) -> bool:
        return (self.level == 0 and not self.q <= WRONG) or (
            self.level == 1 and not self.corrected <= WRONG
        )

    @property
    def alarm(self) -> bool:
        return self.level >= 2 and self.corrected <= WRONG


def fitted(posterior: Posterior, make: Callable[..., _fits.Fit], jitter: float) -> vj.Draws:
    """Return the draws of a fit from each of the starts, [STARTS, DRAWS]."""
    y, unravel = ravel_pytree(posterior.start)
    log_density = lambda v: posterior.target.log_joint(unravel(v))  # noqa: E731

    def one(key: Array, scale: Array) -> tuple[Array, Array, Array]:
        of_start, of_fit, of_draws = jax.random.split(key, 3)
        fit = make(log_density, y + scale * jax.random.normal(of_start, y.shape))
        ((rate, steps),) = fit.settings
        state = fit.advance(
            fit.start(of_fit), jnp.asarray(steps), jnp.asarray(rate), jnp.asarray(float(steps))
        )
        z, log_q = fit.draw(of_draws, state, DRAWS)
        return z, jax.lax.map(log_density, z, batch_size=500), log_q

    scales = jitter * (
        jnp.arange(STARTS) > 0
    )  # the first from where the benchmark posteriordb starts
    z, log_p, log_q = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), STARTS), scales)
    return vj.Draws(jax.vmap(jax.vmap(unravel))(z), log_p, log_q)


def errors(mean: Array, sd: Array, reference: np.ndarray) -> float:
    """Return the larger of the root mean square errors of means and of sds, in units of the reference's sd."""
    centre, spread = reference.mean(0), reference.std(0)
    off = [(np.asarray(mean) - centre) / spread, (np.asarray(sd) - spread) / spread]
    return max(float(np.sqrt(np.mean(e**2))) for e in off)


def judge(summary: Summary, reference: np.ndarray) -> Judged:
    return Judged(
        int(summary.verdict),
        errors(summary.mean, summary.sd, reference),
        errors(summary.corrected_mean, summary.corrected_sd, reference),
    )


def measure(
    posterior: Posterior, family: str, jitter: float
) -> tuple[list[Judged], Judged, Summary]:
    """Return what was said of each fit alone, of all the starts together, and the latter in full."""
    draws = fitted(posterior, FAMILIES[family], jitter)
    report = lambda z: posterior.report(posterior.target.constrain(z))  # noqa: E731
    reference = _posteriors.table(posterior)
    each = [jax.tree.map(lambda leaf, i=i: leaf[i], draws) for i in range(STARTS)]
    alone = [judge(vj.diagnostics.summarize(one, constrain=report), reference) for one in each]
    together = vj.diagnostics.summarize(draws, constrain=report)
    return alone, judge(together, reference), together


def expected(posterior: str, family: str) -> int | None:
    """Return 1 for a fit that must be flagged, -1 for one that must pass, None for the others."""
    if family == _fits.MEAN_FIELD and posterior in (CENTERED, MIXTURE, UNORDERED):
        return 1
    return -1 if family == _fits.FULL_RANK and posterior in REGRESSIONS else None


def cases(root: Any, quick: bool) -> Iterator[tuple[str, Callable[[], Posterior], float]]:
    for name in (*_posteriors.MODELS, UNORDERED):
        if name in QUICK or not quick:
            if name == UNORDERED:
                yield name, lambda: _posteriors.unordered(root), 3.0
            else:
                yield name, lambda name=name: _posteriors.load(root, name), 0.5


def run(options: Options) -> Iterator[Row]:
    def rows(root: Path) -> Iterator[Row]:
        seen: list[Judged] = []
        restarts: list[Judged] = []
        for name, load, jitter in cases(root, options.quick):
            for family in FAMILIES:
                try:
                    alone, together, summary = measure(load(), family, jitter)
                except Exception as why:
                    yield failed(name, family, why)
                    continue
                seen, restarts = [*seen, *alone], [*restarts, together]
                yield verdict_row(name, family, alone, together, summary)
        yield from counts("one fit, by k-hat and effective sample size", seen, bar=None)
        yield from counts("all starts, R-hat besides", restarts, bar=0)

    yield from _posteriors.over(options, rows)


def verdict_row(
    name: str, family: str, alone: list[Judged], together: Judged, summary: Summary
) -> Row:
    levels = "".join(str(judged.level) for judged in alone)
    worst = max(float(summary.khat), float(np.max(summary.marginal_khat)))
    note = (
        f"each start alone {levels}; k-hat {worst:.2f}, R-hat {float(np.max(summary.rhat)):.2f}; "
        f"error of q {together.q:.3f} sd, corrected {together.corrected:.3f}"
    )
    must = {1: "must be flagged", -1: "must pass", None: ""}[side := expected(name, family)]
    met = {} if side is None else {"met": together.level >= 1 if side == 1 else together.level <= 1}
    note = f"{must}: {note}" if must else note
    return row(
        name, f"verdict, {family}", together.level, "", note=note, **met, **together._asdict()
    )


def counts(what: str, judged: list[Judged], bar: float | None) -> Iterator[Row]:
    """Misses among the fits that mislead, alarms among those that do not; one fit alone cannot see another mode."""
    good = [j for j in judged if j.corrected <= WRONG]
    bad = [j for j in judged if not min(j.q, j.corrected) <= WRONG]
    trusted = [j for j in judged if j.level == 0]
    misses = sum(j.miss for j in judged)
    yield row(
        "misses",
        what,
        misses,
        "",
        note=f"of {len(judged)} fits, {len(bad)} of them wrong by q and by correction",
    )
    yield row(
        "false alarms",
        what,
        sum(j.alarm for j in judged),
        "",
        note=f"of {len(good)} fits whose corrected moments are right",
    )
    wrong = sum(not j.q <= WRONG for j in trusted)
    yield row(
        "verdicts of 0 on a q that is wrong", what, wrong, "", bar=bar, note=f"of {len(trusted)}"
    )
