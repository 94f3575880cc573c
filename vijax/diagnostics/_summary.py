"""The table printed after a fit, and the verdict on it in a sentence."""

from html import escape
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vijax.calls import is_known
from vijax.diagnostics._evidence import Measured
from vijax.diagnostics._posterior import has_no_mean
from vijax.diagnostics._verdict import RESTARTS_AGREE, khat_threshold
from vijax.diagnostics._weights import LEAST, RESOLVED

ROWS = 30  # latents that are printed; the fields hold all
SAME = 1.0  # nats: restarts this close in ELBO may be the same fit with its labels switched
NEITHER = "Verdict 2: believe neither q nor its correction: "


class Summary(NamedTuple):
    """A fit at a glance; `print(summary)`, or leave it as the last line of a notebook's cell.

    Fields:
        names: of the d latent scalars, as in "theta[3]".
        mean, sd: of q, [d].
        corrected_mean, corrected_sd: of the posterior, by Pareto-smoothed weights (`psis`), [d].
        error: Monte Carlo standard error of corrected_mean, [d].
        marginal_khat: of each latent, [d].
        rhat: of each latent's draws over the restarts compared, [d], in units of q's sd (that of `fitting.Restarts` is
            of parameters, in units of how far iterates stray); nan where fewer than two are, None of a single run.
        elbo, log_evidence: `Measured`, in nats; an error of +inf says that there is none.
        ess: effective sample size, in draws; nan where it cannot be told.
        khat: of the joint log-weights.
        resolution: of the log-weights, in nats; above .1 nothing can be told.
        not_finite: how many draws of each latent are inf or nan, in the runs compared, [d].
        own_khat: of each latent's own draws, [d]: 1 or more where q has no mean of it, above .7 its mean is chance.
        weighted_khat: of the same draws, weighted, [d]: above .7 the corrected mean is chance as well.
        elbos: of each restart, `Measured` [runs].
        compared: which restarts R-hat compares, [runs].
        num_samples: how many draws each run has.
        verdict: 0, q is reliable; 1, what its weights correct; 2, neither; 3, cannot tell; see `verdict`.
    """

    names: tuple[str, ...]
    mean: Float[Array, " d"]
    sd: Float[Array, " d"]
    corrected_mean: Float[Array, " d"]
    corrected_sd: Float[Array, " d"]
    error: Float[Array, " d"]
    marginal_khat: Float[Array, " d"]
    rhat: Float[Array, " d"] | None
    elbo: Measured
    log_evidence: Measured
    ess: Float[Array, ""]
    khat: Float[Array, ""]
    resolution: Float[Array, ""]
    not_finite: Int[Array, " d"]
    own_khat: Float[Array, " d"]
    weighted_khat: Float[Array, " d"]
    elbos: Measured
    compared: Bool[Array, " runs"]
    num_samples: int
    verdict: Int[Array, ""]

    def __str__(self) -> str:
        head, rows = _cells(self)
        table = [["", *head], *rows]
        widths = [max(len(row[i]) for row in table) for i in range(len(head) + 1)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
            for row in table
        ]
        return "\n".join([*lines, *_notes(self)])

    def _repr_html_(self) -> str:
        head, rows = _cells(self)

        def line(tag: str, row: list[str]) -> str:
            cells = "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row)
            return f"<tr>{cells}</tr>"

        body = "".join(line("td", row) for row in rows)
        notes = "<br>".join(escape(note) for note in _notes(self) if note)
        top = line("th", ["", *head])
        return f"<table><thead>{top}</thead><tbody>{body}</tbody></table><p>{notes}</p>"


# What it is called and how many draws it is of are no numbers of it: jit and vmap leave them as they are.
def _flatten(s: Summary) -> tuple[tuple[object, ...], tuple[tuple[str, ...], int]]:
    return s[1:-2] + s[-1:], (s.names, s.num_samples)


def _unflatten(static: tuple[tuple[str, ...], int], numbers: tuple[Any, ...]) -> Summary:
    return Summary(*(static[0], *numbers[:-1], static[1], numbers[-1]))


jax.tree_util.register_pytree_node(Summary, _flatten, _unflatten)


def _cells(s: Summary) -> tuple[list[str], list[list[str]]]:
    """Return the names of the columns, and the rows: a latent's name, and its numbers as strings."""
    if not is_known(s):
        raise TypeError(
            "a summary is printed where its numbers are known, and this one is traced: print it outside of jit."
        )
    if np.ndim(s.khat):
        raise TypeError(
            f"a summary is printed of one posterior, and this is of {np.shape(s.khat)}, as jax.vmap makes it: print "
            "jax.tree.map(lambda a: a[0], summary), or summarize_members(draws) of all."
        )
    head = ["mean", "sd", "corrected mean", "sd", "error", "k-hat"]
    columns = [s.mean, s.sd, s.corrected_mean, s.corrected_sd, s.error, s.marginal_khat]
    if s.rhat is not None:
        head, columns = [*head, "R-hat"], [*columns, s.rhat]
    # [d, columns]
    each = np.stack([np.asarray(c, np.float64) for c in columns], 1)
    return head, [[name, *_row(values)] for name, values in zip(s.names[:ROWS], each, strict=False)]


def _row(values: np.ndarray) -> list[str]:
    """Return moments to a hundredth of the smaller sd or so, their error to one digit, k-hat and R-hat to .01."""
    # The smaller of q's sd and the corrected one sets the decimals of all moments; far from 0 they have an exponent.
    spread = [v for v in values[[1, 3]] if np.isfinite(v) and v > 0]
    places = 2 - int(np.floor(np.log10(min(spread)))) if spread else 2
    plain = -1 <= places <= 7
    moment = f"{{:.{max(places, 0)}f}}" if plain else "{:.4g}"
    return [*map(moment.format, values[:4]), f"{values[4]:.1g}", *map("{:.2f}".format, values[5:])]


def _notes(s: Summary) -> list[str]:
    """Return the lines below the table: what it leaves out, the joint numbers with their units, and the verdict."""
    more = len(s.names) - ROWS
    usable = khat_threshold(s.num_samples)
    left_out = [f"... and {more} more; the fields of this summary hold all {len(s.names)}."]
    return [
        *(left_out if more > 0 else []),
        "",
        f"ELBO {_measured(s.elbo)};  log evidence {_measured(s.log_evidence)}",
        f"effective sample size {s.ess:.0f} of {s.num_samples} draws;  joint k-hat {s.khat:.2f}, "
        f"corrections usable to {usable:.2f}",
        sentence(s),
    ]


def _measured(m: Measured) -> str:
    """Return a value with its standard error, where one is known."""
    known = np.isfinite(m.error)
    return f"{m.value:.2f} " + (f"± {m.error:.2g} nats" if known else "nats, its error unknown")


def sentence(s: Summary) -> str:
    """Return the verdict in words, why it is so, what to do next, and which restarts it rests on."""
    return " ".join([_judgement(s), *_restarts(s), *_impossible(s), *_coarse_latents(s)])


def _judgement(s: Summary) -> str:
    """Return the verdict and the first reason that holds for it, the most telling first."""
    level = int(s.verdict)
    if level == 0:
        return "Verdict 0: q may be believed: its means are within a fifth of a standard deviation."
    if level == 1:
        return "Verdict 1: believe the corrected moments, not q's own."
    if level == 3:
        return f"Verdict 3: cannot tell. {_unknown(s)}"
    # Verdict 2 has several reasons: restarts that disagree, nan, no possible draw, a heavy tail.
    if s.rhat is not None and int(np.sum(s.compared)) > 1:
        rhat = np.asarray(s.rhat)
        if not np.all(rhat <= RESTARTS_AGREE):
            return _disagreement(s, rhat)
    if np.isnan(s.khat):
        return f"{NEITHER}there are nan among the log-weights."
    if s.ess == 0:
        return f"{NEITHER}log_joint is -inf at every draw."
    worst = _worst(s.marginal_khat)
    # The latent of the largest marginal k-hat, named where it is above .5. That of one latent is no other number than
    # the joint one, but of a smooth curve through its weights.
    if s.marginal_khat[worst] > 0.5:
        where = f"that of {s.names[worst]} first"
    elif len(s.names) == 1:
        where = "that of the weights themselves, whose far tail the latent's own does not show"
    else:
        where = "though of no latent alone"
    return (
        f"{NEITHER}k-hat is too large, {where}. Integrate out what can be, try another "
        "parameterization, then another family, where the fit had arrived."
    )


def _unknown(s: Summary) -> str:
    """Return why nothing can be told: too few draws, a latent without a mean, or floats that are too coarse."""
    if s.num_samples < LEAST:
        return f"{s.num_samples} draws are too few: k-hat needs {LEAST}, and some thousands to be steady."
    lost = np.asarray(has_no_mean(s.not_finite, s.own_khat, s.weighted_khat))
    if s.resolution > RESOLVED or not lost.any():
        return coarse(s.resolution, np.asarray(s.khat).dtype)
    cure = "report its logarithm or another function of it, by constrain=."
    tails = np.minimum(s.own_khat, s.weighted_khat)
    at = _worst(np.where(np.asarray(s.not_finite) > 0, np.inf, tails))
    if s.not_finite[at] > 0:
        return f"{s.names[at]} is inf or nan in {int(s.not_finite[at])} draws, so that it has no moments: {cure}"
    return (
        f"The draws of {s.names[at]} have a tail of k-hat {s.own_khat[at]:.2f}, above .7: under q it may have no mean, "
        f"and that of draws is chance: {cure}"
    )


def coarse(resolution: Array, dtype: np.dtype) -> str:
    """Return what is to be known where log-weights are finer than floats, and what to do."""
    # The resolution is ε times the size of the log-densities.
    size = float(resolution) / float(jnp.finfo(dtype).eps)
    return (
        f"log p and log q are near {size:.1g} nats, of which {dtype} resolves "
        f"{float(resolution):.1g}, so that the spread of the log-weights may be rounding, or "
        "hidden by it. Take the data's constant out of log_joint's terms (not of their sum), "
        "rescale the latents, or evaluate in float64: jax.config.update('jax_enable_x64', True)."
    )


def _coarse_latents(s: Summary) -> list[str]:
    """Return what is to be known of latents whose spread is below the steps of their floats."""
    mean, sd = np.asarray(s.mean), np.asarray(s.sd)
    # One step of the floats at the mean, against half a standard deviation.
    coarse = np.flatnonzero((sd > 0) & (np.finfo(mean.dtype).eps * np.abs(mean) > 0.5 * sd))
    if not coarse.size:
        return []
    at = coarse[0]
    return [
        f"{mean.dtype} does not resolve {s.names[at]} ({mean[at]:.4g}, sd {sd[at]:.1g}): its "
        "moments are rounding; rescale it."
    ]


def _disagreement(s: Summary, rhat: np.ndarray) -> str:
    """Return the verdict where restarts disagree: one is worse, or they are equally good and elsewhere."""
    worst = _worst(rhat)
    disagree = f"restarts disagree (R-hat {rhat[worst]:.2f} of {s.names[worst]})"
    value, error = np.asarray(s.elbos.value)[s.compared], np.asarray(s.elbos.error)[s.compared]
    # Beyond what labels and the noise of the ELBOs explain, some runs are worse fits.
    if np.max(value) - np.min(value) > SAME + 4 * np.max(error):
        return f"{NEITHER}{disagree}."
    return (
        f"{NEITHER}{disagree}, and their ELBOs agree: labels may have switched, or there are "
        "several modes. Where the labels of m components may switch, sort them by constrain=; "
        "log evidence then lacks log m!. Otherwise pool the runs: families.mixture."
    )


def _restarts(s: Summary) -> list[str]:
    """Return what is to be known of the restarts: that there were none, or were left out."""
    runs, compared = len(s.compared), int(np.sum(s.compared))
    if runs == 1 and s.verdict < 2:
        return ["These draws are of one q: only restarts could show a mode that it lacks."]
    if compared == runs:
        return []
    rest = "R-hat compares the others." if compared > 1 else "No restart confirms the best."
    return [
        f"Of {runs} restarts {runs - compared} were left out, whose ELBO is nan or worse by far "
        f"(10 nats and 4 standard errors). {rest}"
    ]


def _impossible(s: Summary) -> list[str]:
    """Return what is to be known of runs with a few draws that log_joint forbids."""
    where = np.asarray(s.compared) & (np.asarray(s.elbos.value) == -np.inf)
    if not where.any() or s.ess == 0:
        return []
    runs = f" in {int(where.sum())} of {len(where)} runs" if len(where) > 1 else ""
    return [
        f"q draws where log_joint is -inf{runs}, and so the ELBO is: transform the latent, "
        "targets.transform."
    ]


def _worst(numbers: Array | np.ndarray) -> int:
    """Return where the largest number is; a nan is the largest of all."""
    return int(np.argmax(np.nan_to_num(np.asarray(numbers), nan=np.inf)))
