"""What a conjugate model hands over: the exact conditional of b, and the log marginal likelihood beside it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vijax import checks
from vijax.calls import usage
from vijax.types import PyTree


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Conjugate:
    """p(b | x, z) as a distribution, with log ∫ p(b | z) L(b) db in closed form.

    A pytree of arrays: jax.vmap over whatever makes one gives one with a batch.

    Args:
        posterior: the distribution of b, batch shape [*batch, *events].
        log_marginal: in nats, [*batch].
        events: how many of the posterior's last batch axes belong to one b.
    """

    posterior: Any
    log_marginal: Array
    events: int = field(default=0, metadata={"static": True})

    def sample_and_log_prob(
        self, *, seed: Array, sample_shape: Sequence[int] = ()
    ) -> tuple[PyTree, Array]:
        """Draw b and return it with log p(b | x, z)."""
        b, log_p = self.posterior.sample_and_log_prob(seed=seed, sample_shape=sample_shape)
        return b, _total(log_p, self.events)

    def log_prob(self, b: PyTree, /) -> Array:
        """Return log p(b | x, z), [*batch] in nats."""
        return _total(self.posterior.log_prob(b), self.events)

    @property
    def fixed_support(self) -> bool | None:
        """Return what the posterior declares of its support."""
        return getattr(self.posterior, "fixed_support", None)

    def center(self) -> PyTree:
        """Return the mean of b."""
        return self.posterior.center()


@usage("conjugate.independent")
def independent(conditional: Conjugate, axes: int = 1) -> Conjugate:
    """Make the last batch axes of a conjugate one latent, with log-densities summed over them.

        log p(b | x, z) = Σᵢ log p(bᵢ | x, z),     log p(x | z) = Σᵢ log p(xᵢ | z)

    For rates of many counts or probabilities of many coins, each with its own data, under one
    log_joint: what `distrax.Independent` is for distrax's distributions.

    Args:
        conditional: of `targets.conjugate`, batch shape [*batch, *events].
        axes: how many event axes.

    Returns:
        The same, with batch shape [*batch].

    Raises:
        TypeError: for what is no conjugate, or axes that are no whole number.
        ValueError: for axes < 1, or more than the batch has.

    Example:
        >>> from vijax.targets import conjugate
        >>> coins = conjugate.beta_bernoulli(1.0, 1.0, successes=jnp.array([1, 0]), failures=1)
        >>> coins.log_marginal.shape, conjugate.independent(coins).log_marginal.shape
        ((2,), ())

    Reference: none.
    """
    if not isinstance(conditional, Conjugate):
        raise TypeError(
            f"conditional must be one of targets.conjugate, got {type(conditional).__name__}; for "
            "a distribution of distrax use distrax.Independent."
        )
    checks.static_count(axes, "axes")
    # The log marginal has the batch axes that are left, which the next events come from.
    batch = jnp.shape(conditional.log_marginal)
    if axes > len(batch):
        raise ValueError(f"axes must be at most {len(batch)}, of a batch {batch}; got {axes}.")
    marginal = _total(conditional.log_marginal, axes)
    return replace(conditional, log_marginal=marginal, events=conditional.events + axes)


def _total(x: Array, axes: int) -> Array:
    return jnp.sum(x, tuple(range(x.ndim - axes, x.ndim)))
