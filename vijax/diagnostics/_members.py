"""A verdict for each of a batch of posteriors, as an encoder makes them: which may be believed, and which are worst."""

import math
from html import escape
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vijax.diagnostics._evidence import Measured
from vijax.diagnostics._moments import agree
from vijax.diagnostics._posterior import of_draws
from vijax.diagnostics._runs import shares_of, weighted
from vijax.diagnostics._verdict import verdict
from vijax.types import Draws, Estimate, PyTree

WORST = 5
LEVELS = (
    "q may be believed",
    "believe the corrected moments",
    "believe neither",
    "cannot tell (floats do not resolve the log-weights)",
)


class Members(NamedTuple):
    """What is to be believed of each member of a batch; `print(members)`.

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
        levels, khats = np.asarray(self.verdict), np.asarray(self.khat)
        share = 100 / max(levels.size, 1)
        lines = [f"{levels.size} posteriors, {self.num_samples} draws of each"]
        lines += [
            f"  {count} ({count * share:.0f}%): {level}"
            for count, level in zip(np.asarray(self.counts), LEVELS, strict=True)
            if count
        ]
        # From the largest level down, and the largest k-hat within; a nan is the worst there is.
        order = np.lexsort((-np.nan_to_num(khats.ravel(), nan=np.inf), -levels.ravel()))
        places = [np.unravel_index(i, levels.shape) for i in order[:WORST]]
        worst = [
            f"[{', '.join(map(str, at))}] {levels[at]} (k-hat {khats[at]:.2f})" for at in places
        ]
        return "\n".join([*lines, f"worst: {', '.join(worst)}"] if worst else lines)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"


def summarize_members(draws: Draws | Estimate) -> Members:
    """A verdict for each member of a batch of posteriors: how many may be believed, and which are the worst.

        levelₙ = verdict(max(k̂ of wₙ, k̂ of each latent of n), ESS of wₙ),   wₙₖ = p(xₙ, zₙₖ) / q(zₙₖ | xₙ)

    For amortized posteriors, a VAE's encoder: draw some hundreds of each datum of a test set. The levels say where the
    encoder, its family or the draws do not suffice; what `verdict` cannot see is not seen here either. `summarize` is
    for one posterior, and its restarts.

    Args:
        draws: `Draws`, or the `Estimate` of an objective, with log_w [k, *batch] and leaves of z [k, *batch, *event];
            of draws without z, as `chunk_size` leaves them, the joint k-hat alone is heard.

    Returns:
        Members, fields [*batch]; print it.

    Raises:
        ValueError: for draws of a minibatch's or another target that is right in its mean alone, and leaves that do
            not begin with log_w's shape.

    Reference: Yao, Vehtari, Simpson, Gelman, Yes, but did it work? Evaluating variational inference, 2018,
        arXiv:1802.02538; Cremer, Li, Duvenaud, Inference suboptimality in variational autoencoders, 2018,
        arXiv:1801.03558.
    """
    draws = weighted(draws)
    if draws.z is not None:
        agree(draws.z, draws.log_q)
    k, batch = draws.log_q.shape[0], draws.log_q.shape[1:]
    columns = math.prod(batch)
    rows = jax.tree.map(
        lambda a: jnp.moveaxis(a.reshape(k, columns, *a.shape[1 + len(batch) :]), 1, 0),
        (draws.z, draws.log_p, draws.log_q, shares_of(draws, axis=0)),
    )
    found, levels = _each(*rows)
    shaped = jax.tree.map(lambda a: a.reshape(batch), found)
    counts = jnp.sum(levels[:, None] == jnp.arange(len(LEVELS))[None], 0)
    khat, count, elbo, log_evidence = shaped
    return Members(levels.reshape(batch), khat, count, elbo, log_evidence, counts, k)


@jax.jit
def _each(z: PyTree, log_p: Array, log_q: Array, shares: Array) -> Any:
    """Return the numbers and the verdict of each member, of draws [members, k, ...], one at a time to spare memory."""

    def one(row: Any) -> Any:
        z, log_p, log_q, share = row
        leaves = [leaf.reshape(len(log_p), -1) for leaf in jax.tree.leaves(z)]
        x = jnp.concatenate([jnp.zeros((len(log_p), 0)), *leaves], 1)
        found = of_draws(x, log_p, log_q, share)
        level = verdict(
            found.worst_khat,
            found.ess_under_q,
            num_samples=len(log_p),
            resolution=found.resolution,
        )
        return (found.worst_khat, found.ess, found.elbo, found.log_evidence), level

    return jax.lax.map(one, (z, log_p, log_q, shares))
