"""The rate of an encoder, cut in two by the aggregate posterior of finite data."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from vijax import checks
from vijax.calls import usage
from vijax.checks import named_leaves
from vijax.diagnostics._evidence import Measured
from vijax.numerics import log_mean_exp
from vijax.types import Distribution, PyTree, lift


class Surgery(NamedTuple):
    """The rate and its two parts, means over the data, each `Measured` in nats.

    Fields:
        rate: KL(q(z | xₙ) ‖ p(z)), what the latents cost.
        information: KL(q(z | xₙ) ‖ q(z)), the mutual information of z and the number n of the datum, at most log N.
        marginal: KL(q(z) ‖ p(z)), how far the prior is from the aggregate posterior: the most that another prior gains.
    """

    rate: Measured
    information: Measured
    marginal: Measured


@usage("diagnostics.surgery", "diagnostics.surgery(key, q, prior, num_samples=4)")
def surgery(
    key: Key[Array, ""],
    q: Distribution | PyTree,
    prior: Distribution | PyTree,
    *,
    num_samples: int,
    chunk_size: int = 64,
) -> Surgery:
    """ELBO surgery: the rate is mutual information plus the divergence of the aggregate posterior from the prior.

        1/N Σₙ KL(q(z | xₙ) ‖ p(z)) = I(n; z) + KL(q(z) ‖ p(z)),     q(z) = 1/N Σₙ q(z | xₙ)

    A rate that is all marginal KL tells nothing of x; an information near log N says only that N is too small.

    Args:
        key: a typed key, consumed.
        q: the encoder's posteriors of all N data, batch shape [N].
        prior: of one draw, batch shape ().
        num_samples: draws of each datum.
        chunk_size: how many draws are held against all N posteriors at a time; no result depends on it. N² num_samples
            densities are evaluated: at 10,000 data and 40 latents some seconds on two cores.

    Returns:
        Surgery. The two parts are of the same draws, and add up to the rate; nothing but the draws is random, for these
        N data are all there are. Errors are over the draws within each datum; of one draw each they hold the spread
        over data as well, and are too large. No derivative passes (stop_gradient). Jittable.

    Raises:
        TypeError: for a raw key, or what is no distribution.
        ValueError: for a q of another batch shape than [N], or a prior with a batch.

    Example:
        >>> q = distrax.Normal(jnp.array([-30.0, 30.0]), 1.0)  # two data, told apart by any draw
        >>> parts = surgery(jax.random.key(0), q, distrax.Normal(0.0, 30.0), num_samples=100)
        >>> round(float(parts.information.value), 3)  # log 2
        0.693

    Reference: Hoffman, Johnson, ELBO surgery: yet another way to carve up the variational evidence lower bound, 2016;
        Alemi, Poole, Fischer, Dillon, Saurous, Murphy, Fixing a broken ELBO, 2018, arXiv:1711.00464.
    """
    checks.key(key)
    checks.num_samples(num_samples, chunk_size)
    posterior, of_prior = lift(q), lift(prior, "prior")

    def draw(key: Array) -> tuple[PyTree, Array]:
        z, log_q = posterior.sample_and_log_prob(seed=key, sample_shape=())
        return z, log_q

    # [k, n, ...]: draws of every datum, and log q(z | xₙ) of the datum that each came from.
    z, own = jax.vmap(draw)(jax.random.split(key, num_samples))
    if own.ndim != 2:
        raise ValueError(
            f"q must have batch shape [N], one posterior for each datum, got {own.shape[1:]}: event axes belong in "
            "distrax.Independent(q, reinterpreted_batch_ndims=1)."
        )
    n = own.shape[1]
    for name, leaf in named_leaves(z):
        if leaf.shape[:2] != own.shape:
            raise ValueError(
                f"leaves of q's draws must begin with its batch shape ({n},), leaf '{name}' has {leaf.shape[1:]}."
            )

    def against(row: PyTree) -> tuple[Array, Array]:
        """Return log q(z) of the aggregate posterior, and log p(z), of one draw."""
        of_all = posterior.log_prob(jax.tree.map(lambda a: jnp.broadcast_to(a, (n, *a.shape)), row))
        log_p = of_prior.log_prob(row)
        if jnp.shape(log_p) != ():
            raise ValueError(
                f"prior must have batch shape (), one for all data, got {jnp.shape(log_p)}: event axes belong in "
                "distrax.Independent(prior, reinterpreted_batch_ndims=1)."
            )
        return log_mean_exp(of_all), log_p

    rows = jax.tree.map(lambda a: a.reshape(num_samples * n, *a.shape[2:]), z)
    aggregate, log_p = jax.lax.map(against, rows, batch_size=min(chunk_size, num_samples * n))
    aggregate, log_p = (a.reshape(own.shape) for a in (aggregate, log_p))
    parts = (own - log_p, own - aggregate, aggregate - log_p)
    return jax.lax.stop_gradient(Surgery(*map(_over_data, parts)))


def _over_data(terms: Array) -> Measured:
    """Return the mean of terms [k, n], and its standard error over the draws of the n data."""
    k, n = terms.shape
    # About a rough mean, so that a sum over many data loses no digits and the parts add up.
    rough = jnp.mean(terms)
    mean = rough + jnp.mean(terms - rough)
    if k == 1:
        return Measured(mean, jnp.std(terms, ddof=1 if n > 1 else 0) / n**0.5)
    # Of n independent means of k draws each.
    within = jnp.mean(jnp.var(terms, 0, ddof=1))
    return Measured(mean, jnp.sqrt(within / (k * n)))
