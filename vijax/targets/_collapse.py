"""Rao-Blackwellization: integrate a block of latents out of the target through its exact conditional."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array

from vijax import checks
from vijax.types import LogJoint, PyTree, lift


def collapse(
    log_joint: Callable[[PyTree, PyTree], Array],
    conditional: Callable[[PyTree], Any],
    *,
    key: Any = None,
) -> LogJoint:
    """Integrate b out of log p(x, z, b) exactly, by stating p(b | x, z).

        log p(x, z) = log p(x, z, b) - log p(b | x, z)   at any b (the candidate's identity)

    When part of the model is conjugate given the rest: the collapsed target has fewer latents and every bound of it
    is at least as tight. Its weights vary no more, if the q(b | z) that it saves reaches wherever p(b | x, z) does;
    the variance of the *log*-weight may rise all the same. Draw b afterwards from `conditional(z)`.

    Args:
        log_joint: (z, b) -> log p(x, z, b), [*batch] in nats.
        conditional: z -> the exact p(b | x, z), a distribution with batch shape [*batch].
        key: picks the b at which the identity is evaluated; the result does not depend on it, which is how to test
            a conditional: two keys must agree.

    Returns:
        The collapsed target z -> log p(x, z).

    Raises:
        ValueError: (when called) where the two log-densities differ in shape.

    Reference: Chib, Marginal likelihood from the Gibbs output, 1995; Casella, Robert, Rao-Blackwellisation of sampling
        schemes, 1996.
    """
    log_joint = checks.target(log_joint, "targets.collapse", cure=checks.CONDITIONAL)
    if key is not None:
        checks.key(key)

    def collapsed(z: PyTree) -> Array:
        p = lift(conditional(z))
        b, _ = p.sample_and_log_prob(
            seed=jax.random.key(0) if key is None else key, sample_shape=()
        )
        b = jax.lax.stop_gradient(
            b
        )  # the identity holds at a fixed b; b's own path is no part of it
        joint, log_b = log_joint(z, b), p.log_prob(b)
        checks.log_densities(joint, log_b, b, ("log_joint(z, b)", "conditional(z).log_prob(b)"))
        return joint - log_b

    return collapsed
