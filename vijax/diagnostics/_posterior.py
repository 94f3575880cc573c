"""What the draws of one posterior say: the one set of numbers behind `summarize` and `summarize_members`."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vijax.diagnostics._evidence import Measured, log_mean, mean_of
from vijax.diagnostics._latents import fit_tails
from vijax.diagnostics._weights import ess, mean_rounding, smooth
from vijax.numerics import normalized_weights

NO_MEAN = 0.7  # k-hat of draws above which their mean is not that of q, which may have none


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
        not_finite: how many draws of each latent are inf or nan, [d].
        own_khat: of each latent's own draws, 1 or more where q has no mean of it, [d].
        weighted_khat: of the same, weighted: above .7 corrected moments are chance too, [d].
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
    not_finite: Int[Array, " d"]
    own_khat: Float[Array, " d"]
    weighted_khat: Float[Array, " d"]


def of_draws(x: Array, log_p: Array, log_q: Array, share: Array) -> Posterior:
    """Return the numbers of draws x [k, d], of log-densities and shares in q [k], which sum to one."""
    k = len(share)
    # In half precision differences of log-densities and counts of draws lose their digits.
    wide = jnp.promote_types(log_p.dtype, jnp.float32)
    rounded, log_p, log_q = (log_p, log_q), log_p.astype(wide), log_q.astype(wide)
    x = x.astype(jnp.promote_types(x.dtype, wide))
    # A stratum of no probability is no draw of q.
    log_w = jnp.where(share > 0, log_p - log_q, -jnp.inf)
    # Log-weights that count alike: of strata, with their shares within.
    alike = log_w + jnp.log(k * share)
    w = normalized_weights(alike)
    resolution = mean_rounding(w, *rounded)
    # One compiled program fits the joint tail, every latent's, and that of its draws.
    finite = jnp.isfinite(x)
    not_finite = jnp.sum(~finite & (share > 0)[:, None], 0)
    # The tail of w |z - E z| decides on a corrected moment, that of |z - E z| alone on q's own;
    # both about the weighted mean, for that of the draws may be nowhere near them.
    weight = jnp.maximum(alike, jnp.finfo(wide).min)[None]
    distances = _distances(x, finite, w)
    sizes = jnp.concatenate([distances, distances + weight])
    tail, marginals, both = fit_tails(x.T, alike, resolution, sizes)
    own, weighted = jnp.split(both, 2)
    # E_q[(w / E w)²] / k = Σₖ w̃ₖ² / (k shareₖ).
    squares = jnp.sum(jnp.where(share > 0, w**2 / jnp.where(share > 0, share, 1.0), 0.0))
    return Posterior(
        smoothed=jnp.exp(smooth(alike, tail)),
        khat=tail.shape,
        marginal_khat=marginals,
        # Of a latent that overflows its count tells, and its k-hat is nan.
        worst_khat=jnp.maximum(
            tail.shape, jnp.max(jnp.where(not_finite > 0, -jnp.inf, marginals), initial=-jnp.inf)
        ),
        ess=ess(alike, resolution=resolution),
        ess_under_q=jnp.where(squares == 0, 0.0, k / jnp.where(squares == 0, 1.0, squares)),
        elbo=mean_of(log_w, weights=share, resolution=resolution),
        log_evidence=log_mean(alike, tail.shape, resolution),
        resolution=resolution,
        not_finite=not_finite,
        own_khat=own,
        weighted_khat=weighted,
    )


def has_no_mean(not_finite: Array, own_khat: Array, weighted_khat: Array) -> Array:
    """Return of which latents neither draws nor weighted draws show a mean, like either."""
    return (not_finite > 0) | (jnp.minimum(own_khat, weighted_khat) > NO_MEAN)


def without_a_mean(level: Array, posterior: Posterior, not_finite: Array) -> Array:
    """Return the verdict where some latent has no mean under q: 1 at best, and 3 if weighted draws show none either."""
    own, weighted = posterior.own_khat, posterior.weighted_khat
    level = jnp.where(jnp.any(own > NO_MEAN), jnp.maximum(level, 1), level)
    lost = jnp.any(has_no_mean(not_finite, own, weighted))
    return jnp.where(lost & (level < 2), 3, level)


def _distances(x: Array, finite: Array, weights: Array) -> Array:
    """Return logs of the distances of draws [k, d] from their weighted mean, [d, k]: theirs is the latent's tail."""
    kept, weights = jnp.where(finite, x, 0.0), jnp.where(finite, weights[:, None], 0.0)
    mean = jnp.sum(weights * kept, 0) / jnp.maximum(jnp.sum(weights, 0), jnp.finfo(x.dtype).tiny)
    return jnp.log(jnp.where(finite, jnp.abs(kept - mean[None]), 0.0)).T
