"""Against collapse: a floor under each latent's rate, and the weight of the KL that holds a rate."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vijax.calls import is_known


def free_bits(kl: Array, *, floor: float | Array) -> Array:
    """KL of a batch with λ nats free for each latent: still a lower bound beside it, biased by design.

        Σ_j max(λ, 1/N Σₙ KLₙⱼ)

    A latent whose mean KL is below λ has no gradient. The floor is above the KL, so that
    E log p(x | z) less this is below the ELBO; report the ELBO itself, of the plain KL.

    Args:
        kl: [*batch, latents] in nats.
        floor: λ, in nats.

    Returns:
        [*batch]: the sum, the same for each datum, as `targets.exact_kl(..., kl=)` takes it.

    Raises:
        ValueError: for a kl without axes of data and latents, and a negative floor.

    Example:
        >>> free_bits(jnp.array([[0.0, 3.0], [0.1, 1.0]]), floor=0.5)
        Array([2.5, 2.5], dtype=float32)

    Reference: Kingma, Salimans, Jozefowicz, Chen, Sutskever, Welling, Improving variational inference
        with inverse autoregressive flow, 2016, arXiv:1606.04934.
    """
    if jnp.ndim(kl) < 2:
        raise ValueError(
            f"kl must be [*batch, latents], one number for each latent, got {jnp.shape(kl)}: the "
            "floor is on each latent's mean over the data."
        )
    if is_known(floor) and not floor >= 0:
        raise ValueError(f"floor must be 0 or more, nats for each latent, got {floor}.")
    mean = jnp.mean(kl, tuple(range(kl.ndim - 1)))
    return jnp.broadcast_to(jnp.sum(jnp.maximum(mean, floor)), kl.shape[:-1])


class Rate(NamedTuple):
    """The state of a `hold_rate`: the weight of the KL, β, as its logarithm, ()."""

    log_beta: Array

    @property
    def beta(self) -> Array:
        """Return β, ()."""
        return jnp.exp(self.log_beta)


class RateHolder(NamedTuple):
    """How β follows a rate, made by `hold_rate`.

    Fields:
        init: () -> Rate, at β = 1.
        update: (Rate, rate in nats ()) -> Rate.
    """

    init: Callable[[], Rate]
    update: Callable[[Rate, Array], Rate]


def hold_rate(
    target: float, *, step_size: float = 0.01, least: float = 1e-3, most: float = 1e3
) -> RateHolder:
    """Weigh the KL so that its mean over data stays at a target: no bound of log p(x) where β < 1.

        log β ← log β + η (KL / R - 1),   objective E log p(x | z) - β KL

    For a rate that is chosen, in place of a schedule that is tried. β moves by itself, once a step;
    report the ELBO, at β = 1, beside the objective.

    Args:
        target: R, in nats for each datum.
        step_size: η.
        least, most: the limits of β.

    Returns:
        RateHolder(init, update): pure functions, for a training loop under jit; `state.beta` is the
        weight of the next step.

    Raises:
        ValueError: for a target or step_size that is not positive, and limits that do not hold 1.

    Example:
        >>> holder = hold_rate(10.0)
        >>> state = holder.update(holder.init(), jnp.array(20.0))  # too high a rate: a larger weight
        >>> round(float(state.beta), 3)
        1.01

    Reference: Rezende, Viola, Taming VAEs, 2018, arXiv:1810.00597 (a constraint held by its
        multiplier); Alemi, Poole, Fischer, Dillon, Saurous, Murphy, Fixing a broken ELBO, 2018,
        arXiv:1711.00464 (rates as targets).
    """
    if not (0 < target < math.inf and step_size > 0 and 0 < least <= 1 <= most):
        raise ValueError(
            "target and step_size must be positive, and least <= 1 <= most, got "
            f"{target}, {step_size}, {least} and {most}."
        )

    def init() -> Rate:
        return Rate(jnp.zeros(()))

    def update(state: Rate, rate: Array) -> Rate:
        moved = state.log_beta + step_size * (jax.lax.stop_gradient(rate) / target - 1)
        return Rate(jnp.clip(moved, math.log(least), math.log(most)))

    return RateHolder(init, update)
