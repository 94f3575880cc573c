"""The evidence with a standard error, and between two bounds where the truth about one posterior is known."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from vijax.numerics import log_mean_exp, normalized_weights


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
    """

    elbo: Measured
    iwae: Measured
    harmonic: Measured
    eubo: Measured
    cubo: Measured


def evidence(log_w: Float[Array, "k *batch"]) -> Measured:
    """Log evidence from the draws of q, a lower bound in expectation, with its standard error.

        log p̂(x) = log 1/K Σₖ wₖ,     se² = (K / ESS - 1) / (K - 1)

    The delta method: the relative standard error of the mean weight. It is honest where `khat` is below .5, optimistic
    up to .7, and above that the largest weight is still to come: value and error are then both too small. The value
    lies below log p(x) by about se²/2 in expectation.

    Args:
        log_w: log-weights in nats, [k, *batch], of independent draws.

    Returns:
        Measured, [*batch] in nats. One draw has an error of +inf; where all are impossible the value is -inf and the
        error +inf.

    Raises:
        ValueError: for k = 0.

    Reference: Owen, Monte Carlo theory, methods and examples, 2013, section 9.2; Burda, Grosse, Salakhutdinov,
        Importance weighted autoencoders, 2016, arXiv:1509.00519.
    """
    return _log_mean(log_w, 1.0)


def sandwich(log_w_q: Float[Array, "k *batch"], log_w_p: Float[Array, "s *batch"]) -> Sandwich:
    """Bounds of the evidence from below, by draws of q, and from above, by exact draws of the posterior.

        E_q[log w] ≤ E_q[log 1/K Σₖ wₖ] ≤ log p(x) ≤ E_p[-log 1/S Σₛ 1/wₛ] ≤ E_p[log w],     w = p(x, z) / q(z)

    The upper half needs exact draws from p(z | x). There is one for free where x was simulated from the model: the z
    that x came from. Simulate data like yours, and the width of the sandwich says how far off your evidence is at your
    number of draws; averaged over simulated data (a batch of them, s = 1) both halves are bounds whatever q is. With
    draws of a long MCMC run it holds up to that run's error, and `error` counts them as independent. Both inner bounds
    are loose where q misses a part of the posterior: the width is what tells, each alone does not.

    Args:
        log_w_q: log p(x, z) - log q(z) at draws of q, in nats, [k, *batch].
        log_w_p: the same at draws of the posterior, [s, *batch].

    Returns:
        Sandwich of Measured, [*batch] in nats; an error from one draw is +inf.

    Raises:
        ValueError: for k = 0 or s = 0, or batches that differ.

    Reference: Grosse, Ghahramani, Adams, Sandwiching the marginal likelihood using bidirectional Monte Carlo, 2015,
        arXiv:1511.02543; Ji, Shen, Stochastic variational inference via upper bound, 2019, arXiv:1912.00650; Dieng,
        Tran, Ranganath, Paisley, Blei, Variational inference via χ upper bound minimization, 2017, arXiv:1611.00328.
    """
    if log_w_q.ndim == 0 or log_w_p.ndim == 0 or log_w_q.shape[1:] != log_w_p.shape[1:]:
        raise ValueError(
            f"log_w_q [k, *batch] and log_w_p [s, *batch] must have one batch shape, got {log_w_q.shape} and "
            f"{log_w_p.shape}; one draw of each posterior is s = 1: log_w_p[None]."
        )
    return Sandwich(
        mean_of(log_w_q),
        _log_mean(log_w_q, 1.0),
        _log_mean(log_w_p, -1.0),
        mean_of(log_w_p),
        _log_mean(log_w_q, 2.0),
    )


def mean_of(log_w: Array) -> Measured:
    """Return the mean log-weight and its standard error."""
    k = log_w.shape[0]
    mean = jnp.mean(log_w, 0)
    # An infinite mean has no spread around it that could be squared.
    off = jnp.where(jnp.isinf(mean)[None], 0.0, log_w - jnp.where(jnp.isinf(mean), 0.0, mean)[None])
    error = jnp.sqrt(jnp.sum(off**2, 0) / (max(k - 1, 1) * k))
    return Measured(mean, jnp.where(jnp.isinf(mean) | (k == 1), jnp.inf, error))


def _log_mean(log_w: Array, power: float) -> Measured:
    """Return 1/power log mean w^power and its error by the delta method."""
    value = log_mean_exp(power * log_w) / power
    k = log_w.shape[0]
    off = k * normalized_weights(power * log_w) - 1
    error = jnp.sqrt(jnp.sum(off**2, 0) / (max(k - 1, 1) * k)) / abs(power)
    return Measured(value, jnp.where(jnp.isinf(value) | (k == 1), jnp.inf, error))
