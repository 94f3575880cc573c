"""A verdict for each of a batch of posteriors, as an encoder makes them: which are reliable, and which are worst."""

import math
from html import escape
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vijax.calls import usage
from vijax.diagnostics._evidence import Measured
from vijax.diagnostics._moments import agree
from vijax.diagnostics._posterior import of_draws, without_a_mean
from vijax.diagnostics._runs import shares_of, weighted
from vijax.diagnostics._verdict import verdict
from vijax.types import Draws, Estimate, PyTree

WORST = 5  # members that are printed one by one
# What each verdict is called, 0 to 3.
LEVELS = (
    "verdict 0, q may be believed",
    "verdict 1, believe the corrected moments",
    "verdict 2, believe neither",
    "verdict 3, cannot tell (fewer than 25 draws, draws that are not finite or have no mean, "
    "or floats that do not resolve them)",
)


Numbers = tuple[Array, Array, Measured, Measured]
"""k-hat, effective sample size, ELBO and log evidence."""


class Members(NamedTuple):
    """Which members of a batch have a reliable q; `print(members)`.

    Fields:
        verdict: of each member, 0 to 3 as `verdict` says, [*batch].
        khat: the larger of k-hat of its log-weights and of its latents' marginals, [*batch].
        ess: effective sample size, in draws, [*batch].
        elbo, log_evidence: `Measured`, [*batch] in nats.
        counts: how many members have each verdict, [4].
        num_samples: how many draws each member has.
    """

    verdict: Int[Array, "*batch"]
    khat: Float[Array, "*batch"]
    ess: Float[Array, "*batch"]
    elbo: Measured
    log_evidence: Measured
    counts: Int[Array, "4"]
    num_samples: int

    def __str__(self) -> str:
        if np.ndim(self.counts) > 1:
            raise TypeError(
                f"members are printed of one batch, and these are of {np.shape(self.counts)[:-1]} of them: give "
                "summarize_members draws [k, *batch] of all, without jax.vmap."
            )
        levels, khats = np.asarray(self.verdict), np.asarray(self.khat)
        share = 100 / max(levels.size, 1)
        lines = [f"{levels.size} posteriors, {self.num_samples} draws of each"]
        lines += [
            f"  {count} ({count * share:.0f}%): {level}"
            for count, level in zip(np.asarray(self.counts), LEVELS, strict=True)
            if count
        ]
        lines += _quantiles(khats, np.asarray(self.ess))
        # From the largest level down, and the largest k-hat within; a nan is the worst there is.
        order = np.lexsort((-np.nan_to_num(khats.ravel(), nan=np.inf), -levels.ravel()))
        places = [np.unravel_index(i, levels.shape) for i in order[:WORST]]
        worst = [
            f"[{', '.join(map(str, at))}] {levels[at]} (k-hat {khats[at]:.2f})" for at in places
        ]
        return "\n".join([*lines, f"worst: {', '.join(worst)}"] if worst else lines)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"


def _quantiles(khats: np.ndarray, ess: np.ndarray) -> list[str]:
    """Return a line on k-hat and effective sample size over members: the middle, the worst tenth, the worst."""
    if khats.size == 0:
        return []
    # A nan is the worst there is: the largest k-hat, and no draw that counts.
    k = np.sort(np.where(np.isnan(khats), np.inf, khats), axis=None)
    n = np.sort(np.where(np.isnan(ess), 0.0, ess), axis=None)[::-1]
    # Members' own numbers, of which at least the named share is as good.
    middle, tenth = math.ceil(0.5 * k.size) - 1, math.ceil(0.9 * k.size) - 1
    return [
        f"k-hat: median {k[middle]:.2f}, 90% up to {k[tenth]:.2f}, largest {k[-1]:.2f};  "
        f"ESS: median {n[middle]:.0f}, 90% from {n[tenth]:.0f}, least {n[-1]:.0f}"
    ]


@usage("diagnostics.summarize_members", "diagnostics.summarize_members(draws)")
def summarize_members(draws: Draws | Estimate) -> Members:
    """A verdict for each member of a batch of posteriors.

        levelₙ = verdict(max(k̂ of wₙ, k̂ of each latent of n), ESS of wₙ),   wₙₖ = p(xₙ, zₙₖ) / q(zₙₖ | xₙ)

    For amortized posteriors, such as a VAE's encoder: take some hundreds of draws for each datum of a test set.

    Args:
        draws: `Draws`, or the `Estimate` of an objective, with log_w [k, *batch] and leaves of z [k, *batch, *event];
            of draws without z, as `chunk_size` leaves them, the joint k-hat alone is used.

    Returns:
        Members, fields [*batch]; print it. What `verdict` cannot detect is not detected here either.

    Raises:
        ValueError: for draws of a minibatch's or another target that is right in its mean alone, and leaves that do
            not begin with log_w's shape.

    Example:
        >>> draws = vj.types.Draws(jnp.zeros((100, 3)), jnp.zeros((100, 3)), jnp.zeros((100, 3)))
        >>> print(summarize_members(draws))
        3 posteriors, 100 draws of each
          3 (100%): verdict 0, q may be believed
        k-hat: median -inf, 90% up to -inf, largest -inf;  ESS: median 100, 90% from 100, least 100
        worst: [0] 0 (k-hat -inf), [1] 0 (k-hat -inf), [2] 0 (k-hat -inf)

    Reference: Yao, Vehtari, Simpson, Gelman, Yes, but did it work? Evaluating variational inference, 2018,
        arXiv:1802.02538; Cremer, Li, Duvenaud, Inference suboptimality in variational autoencoders, 2018,
        arXiv:1801.03558.
    """
    draws = weighted(draws, axis=0)
    if draws.z is not None:
        agree(draws.z, draws.log_q)
    # The batch flattened and leading: leaves of rows are [members, k, ...].
    k, batch = draws.log_q.shape[0], draws.log_q.shape[1:]
    columns = math.prod(batch)
    rows = jax.tree.map(
        lambda a: jnp.moveaxis(a.reshape(k, columns, *a.shape[1 + len(batch) :]), 1, 0),
        (draws.z, draws.log_p, draws.log_q, shares_of(draws, axis=0)),
    )
    numbers, levels = _each(*rows)
    shaped = jax.tree.map(lambda a: a.reshape(batch), numbers)
    # [4]: how many members have each verdict.
    counts = jnp.sum(levels[:, None] == jnp.arange(len(LEVELS))[None], 0)
    khat, count, elbo, log_evidence = shaped
    return Members(levels.reshape(batch), khat, count, elbo, log_evidence, counts, k)


@jax.jit
def _each(z: PyTree, log_p: Array, log_q: Array, shares: Array) -> tuple[Numbers, Array]:
    """Return the numbers and the verdict of each member, of draws [members, k, ...], one at a time to spare memory."""

    def one(row: tuple[PyTree, Array, Array, Array]) -> tuple[Numbers, Array]:
        z, log_p, log_q, share = row
        # Every latent scalar a column, [k, d]; d = 0 where draws were not kept.
        leaves = [leaf.reshape(len(log_p), -1) for leaf in jax.tree.leaves(z)]
        x = jnp.concatenate([jnp.zeros((len(log_p), 0), share.dtype), *leaves], 1)
        of_q = of_draws(x, log_p, log_q, share)
        level = verdict(
            of_q.worst_khat,
            of_q.ess_under_q,
            num_samples=len(log_p),
            resolution=of_q.resolution,
        )
        level = without_a_mean(level, of_q, of_q.not_finite)
        return (of_q.worst_khat, of_q.ess, of_q.elbo, of_q.log_evidence), level

    return jax.lax.map(one, (z, log_p, log_q, shares))
