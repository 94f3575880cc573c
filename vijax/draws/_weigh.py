"""The log-weight of every draw, log p(x, z) - log q(z)."""

import jax
from jaxtyping import Array, Key

from vijax import checks
from vijax.calls import usage
from vijax.engine import evaluate, iid, plan
from vijax.types import Distribution, Draw, Draws, LogJoint, PyTree, lift, properties

CURE = (
    "give it all the data, or take the ELBO of an objective, gradients.reparam(bounds.elbo), and "
    "its draws"
)


@usage("draws.weigh", "draws.weigh(key, log_joint, q, num_samples=4000)")
def weigh(
    key: Key[Array, ""],
    log_joint: LogJoint,
    q: Distribution | PyTree,
    *,
    num_samples: int,
    draw: Draw = iid,
) -> Draws:
    """Draw from q and weigh every draw: the raw material of every bound and diagnostic.

        log wₖ = log p(x, zₖ) - log q(zₖ),   zₖ ~ q

    For the weights themselves, to correct moments or to write a bound. Differentiate them only for a q
    whose draws carry the derivative, which an objective would check.

    Args:
        key: a typed key, consumed.
        log_joint: z -> log p(x, z), [*batch], in nats; with noise of the model (`targets.keyed`) or without.
        q: a distribution with batch shape [*batch], or a pytree of them.
        num_samples: k.
        draw: how to draw; `iid`, `antithetic`, ...; draws that do not count alike
            come with `weights`.

    Returns:
        Draws with log_p and log_q [k, *batch] in nats.

    Raises:
        TypeError: for a raw key, or a q without the two methods.
        ValueError: for num_samples < 1, or shapes that do not agree; for a target that is unbiased in its mean alone,
            such as a minibatch's, whose weights and k-hat are not valid.

    Example:
        >>> q = distrax.Normal(0.0, 1.0)
        >>> drawn = weigh(jax.random.key(0), lambda z: q.log_prob(z) + 3.0, q, num_samples=4)
        >>> drawn.log_w.shape, round(float(drawn.log_w[0]), 3)  # q is the posterior
        ((4,), 3.0)

    Reference: Kloek, van Dijk, Bayesian estimates of equation system parameters, 1978.
    """
    checks.key(key)
    checks.num_samples(num_samples)
    log_joint = checks.target(log_joint, "draws.weigh", keyed=True, has_aux=True, cure=CURE)
    q = lift(q)
    # All randomness is planned first, a row for each draw.
    seeds = plan(key, properties(log_joint).keyed, draw, num_samples)
    z, log_q = jax.vmap(lambda seed: draw.sample(seed, q))(seeds.draw)
    log_p, aux = evaluate(log_joint, z, log_q, seeds.model)
    weights = None if draw.weights is None else draw.weights(q, num_samples)
    return Draws(z, log_p, log_q, weights, aux)
