"""Is the verdict right? Fits of posteriors with reference draws, what diagnostics said of each, and how far off it was.

Fourteen posteriors of posteriordb and a mixture without its order, in double precision; and ten models that people
bring to forums beside NUTS, in single precision, with what to try after a verdict of 2. Each under a mean-field and a
full-rank Gaussian, from six starts; one of the latter by a flow, from two. A miss is a verdict of 0 ("q may be
believed") where q's error is above `WRONG`, or of 1 ("its corrected moments") where theirs is; a false alarm is a
verdict of 2 or 3 where the corrected moments are within it. A case that is in the file of --json already is not run
again. Needs the folders `posteriordb`, `uci` and `pbmc` in --data or VIJAX_DATA; a model whose folder is not there is
said to be missing.
"""

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

import vijax as vj
from benchmarks import _after, _forum_groups, _nuts, _posteriors, stopping
from benchmarks._forum import Question
from benchmarks._peers import Missing
from benchmarks._posteriors import Posterior
from benchmarks._report import Options, Row, failed, missing, row
from benchmarks.stopping import Method
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
QUICK = (CENTERED, UNORDERED, "kidiq-kidscore_momiq", _forum_groups.SLOPES_NAME)
MEAN_FIELD, FULL_RANK = "mean-field", "full-rank"
FAMILIES: dict[str, Method] = {
    MEAN_FIELD: Method(stopping.newton, stopping.MEAN, 1000, STARTS),
    FULL_RANK: Method(vj.updates.natural_gradient, stopping.FULL, 1000, STARTS),
}
OF_FORUM = {family: method._replace(steps=500) for family, method in FAMILIES.items()}


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


class Case(NamedTuple):
    """A posterior and a way to fit it.

    Fields:
        name: of the posterior, and of what was changed in it.
        family: how it is fitted, for the rows.
        method: the same as rule, family and steps.
        load: () -> the posterior.
        jitter: sd of the starts about the posterior's own, on every free number.
        complete: draws of q -> those of its latents and of what was integrated out.
    """

    name: str
    family: str
    method: Method
    load: Callable[[], Posterior]
    jitter: float
    complete: Callable[[vj.Draws], vj.Draws] | None = None

    @property
    def metric(self) -> str:
        return f"verdict, {self.family}"


def fitted(posterior: Posterior, method: Method, jitter: float) -> vj.Draws:
    """Return the draws of a fit from each start, [starts that live, DRAWS]; the first is the posterior's own."""
    of_start, of_init, of_fit, of_draws = jax.random.split(jax.random.key(0), 4)
    y, unravel = ravel_pytree(posterior.start)
    moves = jitter * jax.random.normal(of_start, (method.starts, y.size), y.dtype).at[0].set(0.0)
    starts = jax.vmap(unravel)(y + moves)
    params = jax.vmap(method.family.init)(jax.random.split(of_init, method.starts), starts)
    log_joint = posterior.target.log_joint
    rule = method.rule(log_joint)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fit that has not arrived says so
        found = vj.fitting.restarts(
            of_fit, rule, jax.vmap(rule.init)(params), steps=method.steps, reports=()
        )
    return vj.fitting.weigh(of_draws, found, log_joint, method.family, num_samples=DRAWS)


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


def measure(case: Case) -> tuple[list[Judged], Judged, Summary]:
    """Return what was said of each fit alone, of all the starts together, and the latter in full."""
    posterior = case.load()
    draws, report = fitted(posterior, case.method, case.jitter), posterior.report
    if case.complete:
        draws = case.complete(draws)
    else:
        report = lambda y: posterior.report(posterior.target.constrain(y))  # noqa: E731
    one_draw = jax.tree.map(lambda leaf: leaf[0, 0], draws.z)
    reference = _posteriors.flat(posterior.reference, jax.eval_shape(report, one_draw))
    together = vj.diagnostics.summarize(draws, constrain=report)
    each = [jax.tree.map(lambda leaf, i=i: leaf[i], draws) for i in range(len(draws.log_q))]
    alone = [judge(vj.diagnostics.summarize(one, constrain=report), reference) for one in each]
    return alone, judge(together, reference), together


def posteriordb(root: Path, quick: bool) -> Iterator[Case]:
    for name in (*_posteriors.MODELS, UNORDERED):
        if name in QUICK or not quick:
            load, jitter = partial(_posteriors.load, root, name), 0.5
            if name == UNORDERED:
                load, jitter = partial(_posteriors.unordered, root), 3.0
            for family, method in FAMILIES.items():
                yield Case(name, family, method, load, jitter)


def posterior_of(name: str, question: Question, found: _nuts.Reference) -> Posterior:
    """Return the posterior of a question, with the reference of its model."""
    target = vj.targets.transform(question.log_joint, question.constraints)
    start = target.unconstrain(question.start)
    return Posterior(name, target, start, question.report, found.draws)


def forum_cases(name: str, question: Question, found: _nuts.Reference) -> Iterator[Case]:
    """Yield the cases of a model of the forum, and of what was changed in it; all in single precision."""
    mixture = name == _forum_groups.MIXTURE
    posterior = posterior_of(name, question, found)
    for family, method in OF_FORUM.items():
        yield Case(name, family, method, lambda: posterior, 2.0 if mixture else 0.5)
    if mixture:
        sort = _forum_groups.sorted_labels
        draws = {n: np.asarray(d) for n, d in jax.vmap(sort)(found.draws).items()}
        cured = posterior._replace(report=sort, reference=draws)
        for family, method in OF_FORUM.items():
            yield Case(f"{name}, sorted", family, method, lambda: cured, 2.0)
    for what, make in _after.CHANGES.get(name, {}).items():
        change = make()
        other = posterior_of(name, change.question, found)
        add = partial(_after.complete, change, other.target, jax.random.key(2))
        label, method = change.fit or (FULL_RANK, OF_FORUM[FULL_RANK])
        yield Case(f"{name}: {what}", label, method, lambda p=other: p, 0.5, add)


def reference_rows(name: str, found: _nuts.Reference) -> Iterator[Row]:
    note = f"{found.divergences} divergences, {found.seconds:.0f} s"
    if not found.sound:
        note += f"; not judged: R-hat above {_nuts.RHAT} or fewer than {_nuts.ESS} draws' worth"
    yield row(name, "reference by NUTS, R-hat", found.rhat, "", note=note)
    yield row(name, "reference by NUTS, effective sample size", found.ess, "draws", note=note)


def forum(root: Path | None, quick: bool, rows: Callable[[Case], Iterator[Row]]) -> Iterator[Row]:
    for name, make in _forum_groups.MODELS.items():
        if quick and name not in QUICK:
            continue
        try:
            with jax.enable_x64(True):
                found = _nuts.reference(name, make(root))
        except (FileNotFoundError, Missing) as why:
            yield missing(name, "reference by NUTS, R-hat", why)
            continue
        yield from reference_rows(name, found)
        if found.sound:
            for case in forum_cases(name, make(root), found):
                yield from rows(case)


def expected(name: str, family: str) -> int | None:
    """Return 1 for a fit that must be flagged, -1 for one that must pass, None for the others."""
    if family == MEAN_FIELD and name in (CENTERED, MIXTURE, UNORDERED, _forum_groups.MIXTURE):
        return 1
    advised = [f"{model}: {list(changes)[-1]}" for model, changes in _after.CHANGES.items()]
    return -1 if name in advised or (family == FULL_RANK and name in REGRESSIONS) else None


def known(r: Row) -> bool:
    """Whether a row of an earlier run is a verdict, not to be found again."""
    return "alone" in r


def judged_rows(
    earlier: tuple[Row, ...], seen: list[tuple[list[Judged], Judged]], case: Case
) -> Iterator[Row]:
    """Yield the row of a case, as an earlier run left it or made now, and remember what it says."""
    found = next((r for r in earlier if (r["name"], r["metric"]) == (case.name, case.metric)), None)
    if found is None:
        try:
            found = verdict_row(case, *measure(case))
        except Exception as why:
            yield failed(case.name, case.metric, why)
            return
    together = Judged(*(found[field] for field in Judged._fields))
    seen.append(([Judged(*one) for one in found["alone"]], together))
    yield found


def verdict_row(case: Case, alone: list[Judged], together: Judged, summary: Summary) -> Row:
    levels = "".join(str(judged.level) for judged in alone)
    worst = max(float(summary.khat), float(np.max(summary.marginal_khat)))
    rhat = np.nan if summary.rhat is None else float(np.max(summary.rhat))
    note = (
        f"each start alone {levels}; k-hat {worst:.2f}, R-hat {rhat:.2f}; "
        f"error of q {together.q:.3f} sd, corrected {together.corrected:.3f}"
    )
    must = {1: "must be flagged", -1: "must pass", None: ""}[
        side := expected(case.name, case.family)
    ]
    met = {} if side is None else {"met": together.level >= 1 if side == 1 else together.level <= 1}
    note = f"{must}: {note}" if must else note
    more = {"alone": [list(judged) for judged in alone], **met, **together._asdict()}
    return row(case.name, case.metric, together.level, "", note=note, **more)


def counts(what: str, judged: list[Judged], *, strict: bool) -> Iterator[Row]:
    """Misses among the fits that mislead, alarms among those that do not; one fit alone cannot see another mode."""
    good = [j for j in judged if j.corrected <= WRONG]
    bad = [j for j in judged if not min(j.q, j.corrected) <= WRONG]
    trusted = [j for j in judged if j.level == 0]
    bars = (0, len(good) / 10, 0) if strict else (None, None, None)
    note = f"of {len(judged)} fits, {len(bad)} of them wrong by q and by correction"
    yield row("misses", what, sum(j.miss for j in judged), "", bar=bars[0], note=note)
    note = f"of {len(good)} fits whose corrected moments are right"
    yield row("false alarms", what, sum(j.alarm for j in judged), "", bar=bars[1], note=note)
    # Between the two lies what may be called either: a bar at .2 sd holds a verdict on .19 sd for a false alarm.
    well = [j for j in judged if j.corrected <= WRONG / 2]
    note = f"of {len(well)} fits whose corrected moments are right to half of that"
    yield row("false alarms, far from wrong", what, sum(j.level >= 2 for j in well), "", note=note)
    wrong = sum(not j.q <= WRONG for j in trusted)
    name = "verdicts of 0 on a q that is wrong"
    yield row(name, what, wrong, "", bar=bars[2], note=f"of {len(trusted)}")


def run(options: Options) -> Iterator[Row]:
    def all_counts(which: str, seen: list[tuple[list[Judged], Judged]]) -> Iterator[Row]:
        if seen:
            single = [judged for alone, _ in seen for judged in alone]
            together = [judged for _, judged in seen]
            yield from counts(f"{which}: one fit alone", single, strict=False)
            yield from counts(f"{which}: all starts, R-hat besides", together, strict=True)

    def of_posteriordb(root: Path) -> Iterator[Row]:
        seen: list[tuple[list[Judged], Judged]] = []
        for case in posteriordb(root, options.quick):
            yield from judged_rows(options.earlier, seen, case)
        yield from all_counts("posteriordb", seen)

    seen: list[tuple[list[Judged], Judged]] = []
    of_case = partial(judged_rows, options.earlier, seen)
    yield from forum(_posteriors.data_folder(options), options.quick, of_case)
    yield from all_counts("forum", seen)
    yield from _posteriors.over(options, of_posteriordb)
