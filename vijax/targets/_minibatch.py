"""Global latents with a minibatch of the data."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vijax import checks, jaxprs
from vijax.calls import usage
from vijax.targets._gauss_hermite import EXPECTED
from vijax.types import LogJoint, PyTree, derive, properties

# Whether inside a minibatch's own functions. JAX's caches heed it: a jitted minibatch is traced, and refused, anew.
_inside = jax.make_user_context()
# Why its bound must be linear in log_w
WHY = "a minibatch estimates log p(x, z) without bias, but not its exponential"
# Refusals: of a minibatch within a minibatch, and of a likelihood that is summed already
TWICE = (
    "{0} is itself a targets.minibatch, and N/B would be applied twice. Give minibatch the "
    "plain log prior, and one term for each datum; the factor N/B is its own work."
)

NO_NOISE = (
    "{0} is itself a targets.gauss_hermite, whose terms are summed already. Scale them inside, "
    "and leave minibatch out: targets.exact_kl(targets.gauss_hermite(lambda x: N / B * log_site(x), "
    "predictor, q), prior, q), with the predictor and the data of the batch; likewise for a "
    "sparse Gaussian process."
)


@usage("targets.minibatch")
def minibatch(
    log_prior: Callable[[PyTree], Array],
    log_likelihood: Callable[[PyTree], Array],
    *,
    num_data: int,
) -> LogJoint:
    """Estimate the log joint of global latents from B of N data, without bias.

        log p(z) + N/B Σ_{n in batch} log p(xₙ | z)

    The factor N/B is applied here, to the likelihood alone. All draws of a step share the
    minibatch; for a fresh one for each draw see `unbiased`.

    Args:
        log_prior: z -> [*batch] in nats.
        log_likelihood: z -> one term for each datum of the minibatch, [B, *batch] in nats, neither
            summed nor averaged nor scaled. `fitting.minibatches` makes indices, and scales nothing.
        num_data: N.

    Returns:
        A target for objectives of `bounds.elbo`: only bounds linear in log_w stay unbiased, and an
        objective of iwae, renyi or cubo refuses it.

    Raises:
        TypeError: where num_data is not a whole number.
        ValueError: for a prior or likelihood that is a minibatch, or a `gauss_hermite`, already,
            also (when called) inside a function; (when called) where the likelihood's terms are not
            [B, *batch], or B exceeds N; by an objective of a log_joint that is not linear in this
            one's value.

    Example:
        >>> x = jnp.array([1.0, 2.0])
        >>> target = minibatch(lambda z: -0.5 * z**2, lambda z: -0.5 * (x - z) ** 2, num_data=10)
        >>> float(target(0.0))  # 10/2 · (-0.5 - 2)
        -12.5

    Reference: Hoffman, Blei, Wang, Paisley, Stochastic variational inference, 2013,
        arXiv:1206.7051.
    """
    checks.static_count(num_data, "num_data")
    for name, part in (("log_prior", log_prior), ("log_likelihood", log_likelihood)):
        if properties(part).scales_data:
            raise ValueError(TWICE.format(name))
        if properties(part).only_mean == EXPECTED:
            raise ValueError(NO_NOISE.format(name))
        checks.target(part, "targets.minibatch", only_mean=True, what=name)

    def log_joint(*z: PyTree) -> Any:  # of several where a target of (z, b) is asked for
        checks.mean_alone(WHY)
        if _inside.value:
            raise ValueError(TWICE.format("a function that log_prior or log_likelihood calls"))
        # A minibatch that either function calls is refused as it is traced.
        with _inside("minibatch"):
            prior, terms = log_prior(*z), log_likelihood(*z)
        if jnp.ndim(terms) != jnp.ndim(prior) + 1 or jnp.shape(terms)[1:] != jnp.shape(prior):
            raise ValueError(
                "log_likelihood(z) must return one term for each datum, [B, *batch] with *batch = "
                f"{jnp.shape(prior)} as in log_prior(z); got {jnp.shape(terms)}. Leave the sum "
                "over the minibatch to this function."
            )
        # B is the number of terms, and the factor N/B theirs alone.
        size = jnp.shape(terms)[0]
        if not 0 < size <= num_data:
            raise ValueError(f"a minibatch of {size} data cannot stand for num_data = {num_data}.")
        return jaxprs.mean_alone(prior + (num_data / size) * jnp.sum(terms, 0))

    return derive(log_joint, log_joint, scales_data=True, only_mean=WHY)
