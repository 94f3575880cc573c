"""What the draws of one posterior say: the one set of numbers behind `summarize` and `summarize_members`."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from vijax.diagnostics._evidence import Measured, log_mean, mean_of
from vijax.diagnostics._latents import fit_tails
from vijax.diagnostics._weights import ess, mean_rounding, smooth
from vijax.numerics import normalized_weights


class Posterior(NamedTuple):
    """Numbers of one posterior's k draws, scalars unless another shape is said.

    Fields:
        smoothed: Pareto-smoothed weights, which sum to one, [k].
        khat: of the joint log-weights.
        marginal_khat: of each latent, [d].
        worst_khat: the largest of all of these.
        ess: of the weights, in draws.
        ess_under_q: k / E_q[(w / E w)²], which unequal shares of strata in q do not lower.
        elbo, log_evidence: in nats.
        resolution: of the log-weights, in nats.
    """

    smoothed: Float[Array, " k"]
    khat: Float[Array, ""]
    marginal_khat: Float[Array, " d"]
    worst_khat: Float[Array, ""]
    ess: Float[Array, ""]
    ess_under_q: Float[Array, ""]
    elbo: Measured
    log_evidence: Measured
    resolution: Float[Array, ""]


def of_draws(x: Array, log_p: Array, log_q: Array, share: Array) -> Posterior:
    """Return the numbers of draws x [k, d], of log-densities and shares in q [k], which sum to one."""
    k = len(share)
    # A stratum of no probability is no draw of q.
    log_w = jnp.where(share > 0, log_p - log_q, -jnp.inf)
    # Log-weights that count alike: of strata, with their shares within.
    alike = log_w + jnp.log(k * share)
    w = normalized_weights(alike)
    resolution = mean_rounding(w, log_p, log_q)
    # One compiled program fits the joint tail and every latent's.
    tail, marginals = fit_tails(x.T, alike, resolution)
    # E_q[(w / E w)²] / k = Σₖ w̃ₖ² / (k shareₖ).
    squares = jnp.sum(jnp.where(share > 0, w**2 / jnp.where(share > 0, share, 1.0), 0.0))
    return Posterior(
        smoothed=jnp.exp(smooth(alike, tail)),
        khat=tail.shape,
        marginal_khat=marginals,
        worst_khat=jnp.maximum(tail.shape, jnp.max(marginals, initial=-jnp.inf)),
        ess=ess(alike, resolution=resolution),
        ess_under_q=jnp.where(squares == 0, 0.0, k / jnp.where(squares == 0, 1.0, squares)),
        elbo=mean_of(log_w, weights=share, resolution=resolution),
        log_evidence=log_mean(alike, tail.shape, resolution),
        resolution=resolution,
    )
