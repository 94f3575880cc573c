"""The table that a person reads after a fit: what q says, what its weights correct, and whether to believe it."""

from collections.abc import Callable
from html import escape
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vijax.checks import named_leaves
from vijax.diagnostics._arviz import as_runs, log_weights
from vijax.diagnostics._chains import rhat
from vijax.diagnostics._evidence import Measured, evidence, mean_of
from vijax.diagnostics._latents import marginal_khat
from vijax.diagnostics._moments import moments
from vijax.diagnostics._verdict import RESTARTS_AGREE, khat_threshold, verdict
from vijax.diagnostics._weights import ess, khat, psis
from vijax.types import Draws, Estimate, PyTree

ROWS = 30
LEAST = 25  # draws, for a k-hat


class Summary(NamedTuple):
    """A fit at a glance; `print(summary)`, or leave it as the last line of a notebook's cell.

    Fields:
        names: of the d latent scalars, as in "theta[3]".
        mean, sd: of q, [d].
        corrected_mean, corrected_sd: of the posterior, by Pareto-smoothed weights (`psis`), [d].
        error: Monte Carlo standard error of corrected_mean, [d].
        marginal_khat: of each latent, [d].
        rhat: of each latent over restarts, [d], or None.
        elbo, log_evidence: `Measured`, in nats.
        ess: effective sample size, in draws.
        khat: of the joint log-weights.
        num_samples: how many draws each run has.
        verdict: 0, q may be believed; 1, what its weights correct; 2, neither; see `verdict`.
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
        return f"<table><thead>{line('th', ['', *head])}</thead><tbody>{body}</tbody></table><p>{notes}</p>"


def summarize(
    draws: Draws | Estimate, *, constrain: Callable[[PyTree], PyTree] | None = None
) -> Summary:
    """Summary of a fit from draws of q: moments plain and corrected, evidence, k-hat, and a verdict in one sentence.

        print(summarize(draws.weigh(key, target, q, num_samples=4000), constrain=target.constrain))

    A few thousand draws make k-hat stable. Given restarts, the table is of the run with the highest ELBO, and R-hat
    compares all of them. It returns arrays and prints nothing by itself.

    Args:
        draws: `Draws`, or the `Estimate` of an objective, with log_w [k], or [runs, k] of restarts as jax.vmap makes
            them.
        constrain: one draw of z -> the latents to report, such as `Transformed.constrain`, or any function of them.

    Returns:
        Summary.

    Raises:
        ValueError: for draws without z, of a batch of posteriors, and those of a minibatch or another target that is
            right in its mean alone.

    Reference: Vehtari, Simpson, Gelman, Yao, Gabry, Pareto smoothed importance sampling, 2024, arXiv:1507.02646; Yao,
        Vehtari, Simpson, Gelman, Yes, but did it work? Evaluating variational inference, 2018, arXiv:1802.02538.
    """
    draws = as_runs(draws)
    z = draws.z if constrain is None else jax.vmap(jax.vmap(constrain))(draws.z)
    names = _elements(jax.tree.map(lambda leaf: leaf[0, 0], z))
    return _numbers(z, log_weights(draws))._replace(names=names, num_samples=draws.log_q.shape[1])


@jax.jit
def _numbers(z: PyTree, log_w: Array) -> Summary:
    """Return the summary, but for its names, of draws [runs, k, ...] and log-weights [runs, k]."""
    runs, k = log_w.shape
    # Latents in a row, and the run with the highest ELBO.
    flat = jnp.concatenate([jnp.reshape(leaf, (runs, k, -1)) for leaf in jax.tree.leaves(z)], 2)
    best = _best_run(log_w)
    x, weights = flat[best], log_w[best]
    # What q says, and what its weights correct: smoothed, for it is of those that k-hat speaks.
    plain = moments(x, jnp.zeros(k, log_w.dtype))
    corrected = moments(x, psis(weights))
    # Whether to believe it.
    joint_khat, marginal_khats, count = khat(weights), marginal_khat(x, weights), ess(weights)
    agreement = rhat(flat) if runs > 1 else None
    judgement = verdict(
        jnp.maximum(joint_khat, jnp.max(marginal_khats)),
        count,
        num_samples=k,
        rhat=None if agreement is None else jnp.max(agreement),
    )
    return Summary(
        names=(),
        mean=plain.mean,
        sd=plain.sd,
        corrected_mean=corrected.mean,
        corrected_sd=corrected.sd,
        error=corrected.mean_error,
        marginal_khat=marginal_khats,
        rhat=agreement,
        elbo=mean_of(weights),
        log_evidence=evidence(weights),
        ess=count,
        khat=joint_khat,
        num_samples=k,
        verdict=judgement,
    )


def _best_run(log_w: Array) -> Array:
    """Return which run has the highest ELBO; one that is nan is below all."""
    elbos = jnp.mean(log_w, 1)
    return jnp.argmax(jnp.where(jnp.isnan(elbos), -jnp.inf, elbos))


def _elements(z: PyTree) -> tuple[str, ...]:
    """Return a name for every scalar of a pytree, in the order of its leaves."""
    found = []
    for name, leaf in named_leaves(z):
        places = np.ndindex(*jnp.shape(leaf))
        found += [f"{name}[{','.join(map(str, place))}]" if place else name for place in places]
    return tuple(found)


def _cells(s: Summary) -> tuple[list[str], list[list[str]]]:
    head = ["mean", "sd", "corrected mean", "sd", "error", "k-hat"]
    columns = [s.mean, s.sd, s.corrected_mean, s.corrected_sd, s.error, s.marginal_khat]
    if s.rhat is not None:
        head, columns = [*head, "R-hat"], [*columns, s.rhat]
    each = np.stack([np.asarray(c, np.float64) for c in columns], 1)
    return head, [[name, *_row(values)] for name, values in zip(s.names[:ROWS], each, strict=False)]


def _row(values: np.ndarray) -> list[str]:
    """Return moments to a hundredth of the smaller sd or so, their error to one digit, k-hat and R-hat to .01."""
    spread = [v for v in values[[1, 3]] if np.isfinite(v) and v > 0]
    places = 2 - int(np.floor(np.log10(min(spread)))) if spread else 2
    plain = -1 <= places <= 7
    moment = f"{{:.{max(places, 0)}f}}" if plain else "{:.4g}"
    return [*map(moment.format, values[:4]), f"{values[4]:.1g}", *map("{:.2f}".format, values[5:])]


def _notes(s: Summary) -> list[str]:
    """Return the lines below the table: what it leaves out, the joint numbers with their units, and the verdict."""
    more = len(s.names) - ROWS
    return [
        *(
            [f"... and {more} more; the fields of this summary hold all {len(s.names)}."]
            if more > 0
            else []
        ),
        "",
        f"ELBO {s.elbo.value:.2f} ± {s.elbo.error:.2g} nats;  log evidence {s.log_evidence.value:.2f} ± "
        f"{s.log_evidence.error:.2g} nats, if k-hat allows it",
        f"effective sample size {s.ess:.0f} of {s.num_samples} draws;  joint k-hat {s.khat:.2f}, corrections usable to "
        f"{khat_threshold(s.num_samples):.2f}",
        _sentence(s),
    ]


def _sentence(s: Summary) -> str:
    level = int(s.verdict)
    if level == 0:
        return "Verdict: q may be believed: its means are within a fifth of a standard deviation."
    if level == 1:
        return "Verdict: believe the corrected moments, not q's own."
    if s.rhat is not None and not bool(np.all(np.asarray(s.rhat) <= RESTARTS_AGREE)):
        worst = int(np.argmax(np.nan_to_num(np.asarray(s.rhat), nan=np.inf)))
        return (
            f"Verdict: believe neither q nor its correction: restarts disagree (R-hat {s.rhat[worst]:.2f} of "
            f"{s.names[worst]})."
        )
    if s.num_samples < LEAST:
        return f"Verdict: none from {s.num_samples} draws: k-hat needs {LEAST}, and some thousands to be steady."
    if np.isnan(s.khat):
        return "Verdict: believe neither q nor its correction: there are nan among the log-weights."
    worst = int(np.argmax(np.nan_to_num(np.asarray(s.marginal_khat), nan=np.inf)))
    where = (
        f"that of {s.names[worst]} first"
        if s.marginal_khat[worst] > 0.5
        else "though of no latent alone"
    )
    return (
        f"Verdict: believe neither q nor its correction: k-hat is too large, {where}. Try a richer family, another "
        "parameterisation, or a fit that has converged."
    )
