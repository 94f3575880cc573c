"""Targets with noise or state of their own: noise of the model, and noise of the estimate of log p."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array

from vijax import calls, checks, jaxprs
from vijax.calls import usage
from vijax.types import LogJoint, PyTree, derive

# Why only the mean is right, for the errors of what needs log p itself
WHY = "an unbiased estimate of log p(x, z) has an exponential whose mean is larger than p(x, z)"


@usage("targets.keyed")
def keyed(function: Callable[[Any, PyTree], Any], *, has_aux: bool = False) -> LogJoint:
    """Make a target of f(key, z) whose noise belongs to the model, anew for each draw.

        log_joint(zₖ) = f(keyₖ, zₖ),     E exp f(key, z) ≤ p(x, z)

    For dropout masks, latents that f integrates out by an inner bound or a particle filter, and
    batch statistics. Bounds of it stay lower bounds.

    Args:
        function: (key, z) -> log p(x, z), [*batch] in nats; with `has_aux`, (log p, aux). Where its
            mean is log p itself (a random minibatch, a random time of a diffusion), use `unbiased`:
            here every bound but `elbo` would exceed log p(x), by half the variance of f and more,
            with no error raised. A Flax module whose variables change is made anew within,
            `nnx.merge(graphdef, params, rest, copy=True)`.
        has_aux: whether f returns a pair; `Estimate.draws.aux` then holds aux of every draw,
            gradients stopped.

    Returns:
        A target for any objective; called by hand it takes `log_joint(z, key=key)`. The key of draw
        k depends on (key, k) alone.

    Raises:
        ValueError: (when called) without a key.

    Example:
        >>> def with_dropout(key, z):
        ...     return -0.5 * jnp.sum(jnp.where(jax.random.bernoulli(key, 0.5, (3,)), z, z) ** 2)
        >>> target = keyed(with_dropout)
        >>> float(target(2.0, key=jax.random.key(0)))
        -6.0

    Reference: Gal, Ghahramani, Dropout as a Bayesian approximation, 2016, arXiv:1506.02142, for the
        use; Andrieu, Roberts, The pseudo-marginal approach for efficient Monte Carlo computations,
        2009, for E exp f = p.
    """
    calls.function(function, "function")

    def log_joint(
        *z: PyTree, key: Array | None = None
    ) -> PyTree:  # of several where (z, b) is asked for
        return function(_given(key), *z)

    return derive(function, log_joint, keyed=True, has_aux=has_aux)


@usage("targets.unbiased")
def unbiased(function: Callable[[Any, PyTree], Any], *, has_aux: bool = False) -> LogJoint:
    """Make a target of f(key, z), an unbiased estimate of log p, anew for each draw.

        log_joint(zₖ) = f(keyₖ, zₖ),     E f(key, z) = log p(x, z)

    For a random time of a diffusion model, or a random subset of the data for each draw. One
    minibatch for all draws of a step: `minibatch`.

    Args:
        function: (key, z) -> an estimate of log p(x, z), [*batch] in nats; with `has_aux`,
            (log p, aux). Where E exp f is right instead (dropout masks, an inner bound, a particle
            filter), use `keyed`.
        has_aux: whether f returns a pair, as for `keyed`.

    Returns:
        A target for objectives of `bounds.elbo`; called by hand it takes `log_joint(z, key=key)`.
        Its bound must be linear in log_w, since E exp f exceeds p(x, z), by the factor exp(variance
        / 2) where f is normal; any other is refused, also where this target stands inside a
        function.

    Raises:
        ValueError: by any objective of a bound that is not linear, or of a log_joint that is not
            linear in this one's value, and by whatever needs log p itself; (when called) without a
            key.

    Example:
        >>> x = jnp.ones(6)
        >>> target = unbiased(lambda key, z: 6 / 2 * jnp.sum(z * jax.random.choice(key, x, (2,))))
        >>> float(target(0.5, key=jax.random.key(0)))  # 6 terms of 0.5
        3.0

    Reference: Hoffman, Blei, Wang, Paisley, Stochastic variational inference, 2013,
        arXiv:1206.7051; Kingma, Salimans, Poole, Ho, Variational diffusion models, 2021,
        arXiv:2107.00630.
    """
    calls.function(function, "function")

    def log_joint(*z: PyTree, key: Array | None = None) -> PyTree:
        checks.mean_alone(WHY)
        result = function(_given(key), *z)
        # Marked, so that whatever is not linear in this value is refused.
        if has_aux and isinstance(result, tuple):
            return jax.tree.map(jaxprs.mean_alone, result[0]), *result[1:]
        return jax.tree.map(jaxprs.mean_alone, result)

    return derive(function, log_joint, keyed=True, has_aux=has_aux, only_mean=WHY)


def _given(key: Array | None) -> Array:
    if key is None:
        raise ValueError(
            "this target takes a key, log_joint(z, key=key), and was called without one: give it "
            "to an objective as it is, or wrap the call, targets.keyed(lambda key, z: ... "
            "log_joint(z, key=key))."
        )
    return key
