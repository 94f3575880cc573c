"""The evidence with a standard error, and between two bounds where the truth about one posterior is known."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from vijax.diagnostics._weights import khat, unresolved
from vijax.numerics import log_mean_exp, normalized_weights

HAS_VARIANCE = 0.5  # k-hat up to which a mean of weights has a variance, and so a standard error


class Measured(NamedTuple):
    """A number read off draws: `value` and its standard error `error`, each [*batch] in nats."""

    value: Float[Array, "*batch"]
    error: Float[Array, "*batch"]


class Sandwich(NamedTuple):
    """The evidence from both sides, from the loosest lower bound to the loosest upper one.

    Fields:
        elbo: mean log w of q's draws; in expectation below log p(x).
        iwae: log mean w of q's draws; in expectation below log p(x), and closest to it.
        harmonic: -log mean 1/w of the posterior's draws; in expectation above log p(x), and closest to it.
        eubo: mean log w of the posterior's draws; in expectation above log p(x).
        cubo: ½ log mean w² of q's draws; above log p(x) in the limit of many draws, and at any number of them a bound
            of nothing, so no part of the order.
        khat_q: k-hat of w at q's draws, which says whether iwae's error can be told.
        khat_p: k-hat of 1/w at the posterior's draws, which says whether harmonic's can.
    """

    elbo: Measured
    iwae: Measured
    harmonic: Measured
    eubo: Measured
    cubo: Measured
    khat_q: Float[Array, "*batch"]
    khat_p: Float[Array, "*batch"]


def evidence(
    log_w: Float[Array, "k *batch"], *, resolution: Float[Array, "*batch"] | None = None
) -> Measured:
    """Log evidence from the draws of q, a lower bound in expectation, with its standard error.

        log p̂(x) = log 1/K Σₖ wₖ,     se² = (K / ESS - 1) / (K - 1) + r²

    In expectation the value lies below log p(x) by about se²/2; where `khat` is above .5, by more.

    Args:
        log_w: log-weights in nats, [k, *batch], of independent draws.
        resolution: as for `khat`.

    Returns:
        Measured, [*batch] in nats. The error is that of the delta method, with r the resolution of the floats. It is
        +inf where k-hat is above .5: the weights then have no variance, and the largest may be still to come. So it is
        where there are fewer than 25 draws, none is possible (the value is then -inf) or floats do not resolve the
        weights' spread.

    Raises:
        ValueError: for k = 0.

    Example:
        >>> log_w = jnp.log(jnp.array([0.1, 0.3] * 50))
        >>> value, error = evidence(log_w)
        >>> round(float(value), 3), round(float(error), 3)  # the mean weight is .2, the ESS 80
        (-1.609, 0.05)

    Reference: Owen, Monte Carlo theory, methods and examples, 2013, section 9.2; Burda, Grosse, Salakhutdinov,
        Importance weighted autoencoders, 2016, arXiv:1509.00519.
    """
    return log_mean(log_w, khat(log_w, resolution=resolution), resolution)


def sandwich(log_w_q: Float[Array, "k *batch"], log_w_p: Float[Array, "s *batch"]) -> Sandwich:
    """Bounds of the evidence from below, by draws of q, and from above, by exact draws of the posterior.

        E_q[log w] ≤ E_q[log 1/K Σₖ wₖ] ≤ log p(x) ≤ E_p[-log 1/S Σₛ 1/wₛ] ≤ E_p[log w],     w = p(x, z) / q(z)

    The width says how far off an evidence is; each half alone does not.

    Args:
        log_w_q: log p(x, z) - log q(z) at draws of q, in nats, [k, *batch].
        log_w_p: the same at exact draws of the posterior, [s, *batch]. There is one for free, s = 1, where x was
            simulated from the model: the z that x came from; averaged over a batch of simulated data both halves are
            bounds whatever q is. Draws of a long MCMC run do up to that run's error, and are counted as independent.

    Returns:
        Sandwich of Measured, [*batch] in nats. Both inner bounds are loose where q misses a part of the posterior. An
        error is +inf where its k-hat is above .5 or nan, or draws are fewer
        than 25 (for ELBO and EUBO, than 2). That of 1/w is above where q is wider than the posterior: its k-hat is then
        1 - sd_p² / sd_q².

    Raises:
        ValueError: for k = 0 or s = 0, or batches that differ.

    Example:
        >>> at_q, at_p = jnp.array([-3.0, -2.0]), jnp.array([-1.0])
        >>> bounds = sandwich(at_q, at_p)
        >>> [round(float(b.value), 2) for b in (bounds.elbo, bounds.iwae, bounds.eubo)]
        [-2.5, -2.38, -1.0]

    Reference: Grosse, Ghahramani, Adams, Sandwiching the marginal likelihood using bidirectional Monte Carlo, 2015,
        arXiv:1511.02543; Ji, Shen, Stochastic variational inference via upper bound, 2019, arXiv:1912.00650; Dieng,
        Tran, Ranganath, Paisley, Blei, Variational inference via χ upper bound minimization, 2017, arXiv:1611.00328.
    """
    if log_w_q.ndim == 0 or log_w_p.ndim == 0 or log_w_q.shape[1:] != log_w_p.shape[1:]:
        raise ValueError(
            "log_w_q [k, *batch] and log_w_p [s, *batch] must have one batch shape, got "
            f"{log_w_q.shape} and {log_w_p.shape}; one draw of each posterior is s = 1: "
            "log_w_p[None]."
        )
    khat_q, khat_p = khat(log_w_q), khat(-log_w_p)
    # -log mean 1/w: its sign is turned below.
    harmonic = log_mean(-log_w_p, khat_p)
    # log mean w², of which CUBO is half.
    squares = log_mean(2 * log_w_q, khat(2 * log_w_q))
    return Sandwich(
        mean_of(log_w_q),
        log_mean(log_w_q, khat_q),
        Measured(-harmonic.value, harmonic.error),
        mean_of(log_w_p),
        Measured(0.5 * squares.value, 0.5 * squares.error),
        khat_q,
        khat_p,
    )


def mean_of(
    log_w: Array, *, weights: Array | None = None, resolution: Array | None = None
) -> Measured:
    """Return the mean log-weight and its standard error; `weights` are of strata, and sum to one."""
    k = log_w.shape[0]
    # How much of q each draw stands for; one that stands for nothing may have any log-weight.
    shares = jnp.full_like(log_w, 1 / k) if weights is None else weights
    log_w = jnp.where(shares > 0, log_w, 0.0)
    mean = jnp.sum(shares * log_w, 0)
    # An infinite mean has no spread around it that could be squared, and the squares of a large one overflow.
    finite = jnp.where(jnp.isinf(mean), 0.0, mean)
    off = jnp.where(jnp.isinf(mean)[None], 0.0, shares * (log_w - finite[None]))
    # (k / (k - 1) Σₖ (shareₖ (log wₖ - mean))²)^½, in units of its largest term.
    unit = jnp.max(jnp.abs(off), 0)
    unit = jnp.where(unit > 0, unit, 1.0)
    error = unit * jnp.sqrt(jnp.sum((off / unit[None]) ** 2, 0) * k / max(k - 1, 1))
    # Rounding is an error as well.
    error = jnp.hypot(error, unresolved(log_w, resolution)[0])
    return Measured(mean, jnp.where(jnp.isinf(mean) | (k == 1), jnp.inf, error))


def log_mean(log_w: Array, khat: Array, resolution: Array | None = None) -> Measured:
    """Return log mean w and its error by the delta method, +inf where the k-hat allows none."""
    k = log_w.shape[0]
    # Relative deviations wₖ / w̄ - 1, [k, *batch]; the log of a mean has their mean's standard error.
    off = k * normalized_weights(log_w) - 1
    error = jnp.sqrt(jnp.sum(off**2, 0) / (max(k - 1, 1) * k))
    error = jnp.hypot(error, unresolved(log_w, resolution)[0])
    return Measured(log_mean_exp(log_w), jnp.where(khat <= HAS_VARIANCE, error, jnp.inf))
