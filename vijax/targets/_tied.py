"""Global latents judged by each datum alone: black-box alpha."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from vijax import checks
from vijax.calls import usage
from vijax.types import LogJoint, PyTree, lift

CURE = "give it the terms of one datum, not scaled, and sum the bounds of a minibatch outside"


@usage("targets.tied")
def tied(
    log_prior: Callable[[PyTree], Array],
    log_likelihood: Callable[[PyTree], Array],
    q: PyTree,
    *,
    num_data: int,
) -> LogJoint:
    """Target of one datum, with an N-th of the prior and of q: the tied factors of black-box alpha.

        log w = log p(xₙ | z) + 1/N (log p(z) - log q(z)),     energy = -Σₙ renyi_{1-α}(log w)

    For α between the ELBO (α → 0) and moment matching (α = 1). At N = 1 this is Rényi's bound;
    elsewhere it bounds nothing.

    Args:
        log_prior: z -> [*batch] in nats, of one draw.
        log_likelihood: z -> [*batch] in nats, of one datum, not scaled.
        q: the same distribution (or pytree of them) that the objective gets.
        num_data: N.

    Returns:
        A target for any objective, such as `reparam(partial(renyi, alpha=1 - α))`: map it over data
        by `jax.vmap` with one key, and sum the values outside, times N/B for a minibatch of B. It
        holds 1 - 1/N of log q, whose derivative counts as the model's, so that any estimator is
        unbiased for it.

    Raises:
        TypeError: where num_data is not a whole number, or q is no distribution.
        ValueError: for num_data < 1, for terms with noise or of a minibatch, or (when called) where
            the terms differ in shape.

    Example:
        >>> q = prior = distrax.Normal(0.0, 1.0)
        >>> target = tied(prior.log_prob, lambda z: jnp.asarray(-2.0), q, num_data=10)
        >>> objective = vj.gradients.reparam(vj.bounds.elbo)
        >>> round(float(objective(jax.random.key(0), target, q, num_samples=2).value), 3)
        -2.0

    Reference: Hernández-Lobato, Li, Rowland, Hernández-Lobato, Bui, Turner, Black-box α-divergence
        minimization, 2016, arXiv:1511.03243; Li, Gal, Dropout inference in Bayesian neural networks
        with alpha-divergences, 2017, arXiv:1703.02914.
    """
    checks.static_count(num_data, "num_data")
    posterior = lift(q)
    log_prior = checks.target(log_prior, "targets.tied", what="log_prior")
    log_likelihood = checks.target(log_likelihood, "targets.tied", what="log_likelihood", cure=CURE)

    def log_joint(z: PyTree) -> Any:
        prior, term, log_q = log_prior(z), log_likelihood(z), posterior.log_prob(z)
        if not jnp.shape(prior) == jnp.shape(term) == jnp.shape(log_q):
            raise ValueError(
                f"log_prior(z) {jnp.shape(prior)}, log_likelihood(z) {jnp.shape(term)} and "
                f"q.log_prob(z) {jnp.shape(log_q)} must have one shape, [*batch]: the terms of one "
                "datum; map over data outside."
            )
        # The objective takes log q away once: 1/N of it is left.
        return term + prior / num_data + (1 - 1 / num_data) * log_q

    return log_joint
