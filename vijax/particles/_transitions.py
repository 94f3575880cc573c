"""Moves that leave a density as it is: what annealing does at each temperature."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Key

from vijax import checks
from vijax.calls import is_known
from vijax.numerics import expand
from vijax.particles._leapfrog import StepSize, half_square, leapfrog, normal_like, steps_like
from vijax.types import PyTree

LogDensity = Callable[[PyTree], Array]
Transition = Callable[[Key[Array, ""], LogDensity, PyTree, ArrayLike], tuple[PyTree, Array]]
"""(key, log_density: z -> [*batch], z, β) -> (z, probability of acceptance [*batch]): one draw moved, reversibly."""


def hmc(*, step_size: StepSize, num_steps: int) -> Transition:
    """Hamiltonian Monte Carlo: leapfrog steps from a fresh momentum, accepted by Metropolis' rule.

        (z', ρ') = leapfrog(z, ρ),   ρ ~ N(0, I),   accepted with probability min(1, π(z') N(ρ') / π(z) N(ρ))

    Leaves every density invariant at any step size, reversibly. Eight of ten accepted is near the
    best; `pilot_step_size` finds the step for it.

    Args:
        step_size: a number, one for each member of the batch [*batch], a pytree like z (such as the
            scales of q, times a number), or a function β -> any of these.
        num_steps: leapfrog steps in a move, each a gradient of log_joint and of q.

    Returns:
        A transition (key, log_density, z, beta) -> (z, probability of acceptance [*batch]). From an
        impossible z every possible one is accepted; a proposal of density nan never is.

    Raises:
        TypeError: for a number of steps that is no Python int.
        ValueError: for one below 1, or a step size that is known not to be positive; (called) for a
            step size of another shape.

    Example:
        >>> move = hmc(step_size=0.5, num_steps=4)
        >>> z, accepted = move(jax.random.key(0), lambda z: -0.5 * z**2, jnp.array(1.0), 1.0)
        >>> z.shape, bool(accepted > 0.9)
        ((), True)

    Reference: Neal, MCMC using Hamiltonian dynamics, 2011, arXiv:1206.1901.
    """
    checks.static_count(num_steps, "num_steps")
    if isinstance(step_size, (int, float)) and is_known(step_size) and not step_size > 0:
        raise ValueError(f"step_size must be above 0, got {step_size!r}.")

    def move(
        key: Key[Array, ""], log_density: LogDensity, z: PyTree, beta: ArrayLike
    ) -> tuple[PyTree, Array]:
        of_momentum, of_acceptance = jax.random.split(key)
        momentum = normal_like(of_momentum, z)
        shape = jax.eval_shape(log_density, z).shape
        steps = steps_like(step_size, beta, z, shape)
        new, end, before, after = leapfrog(log_density, z, momentum, steps, num_steps)
        batch = len(shape)
        log_ratio = (after - half_square(end, batch)) - (before - half_square(momentum, batch))
        # A proposal that no float can judge is rejected; so is one impossible place for another.
        log_ratio = jnp.where(jnp.isnan(log_ratio), -jnp.inf, log_ratio)
        uniform = jax.random.uniform(of_acceptance, shape, log_ratio.dtype)
        accepted = uniform < jnp.exp(jnp.minimum(log_ratio, 0.0))
        z = jax.tree.map(lambda new, old: jnp.where(expand(accepted, new), new, old), new, z)
        return z, jnp.exp(jnp.minimum(log_ratio, 0.0))

    return move


def langevin(*, step_size: StepSize) -> Transition:
    """Metropolis-adjusted Langevin: a step along the gradient with noise, accepted by Metropolis' rule.

        z' = z + ½ε² ∇log π(z) + ε e,   e ~ N(0, I),   accepted with min(1, π(z') p(z | z') / π(z) p(z' | z))

    One leapfrog step of `hmc`. Cheap moves, many temperatures; `hmc` where latents are many or
    strongly correlated.

    Args:
        step_size: ε, a number, one for each member of the batch [*batch], a pytree like z, or a
            function β -> any of these.

    Returns:
        A transition (key, log_density, z, beta) -> (z, probability of acceptance [*batch]).

    Raises:
        ValueError: for a step size that is known not to be positive; (called) for one of another
            shape.

    Example:
        >>> move = langevin(step_size=0.5)
        >>> z, accepted = move(jax.random.key(0), lambda z: -0.5 * z**2, jnp.array(1.0), 1.0)
        >>> z.shape, bool(accepted > 0.9)
        ((), True)

    Reference: Roberts, Tweedie, Exponential convergence of Langevin distributions and their discrete
        approximations, 1996; Besag, comments on Grenander and Miller, 1994.
    """
    return hmc(step_size=step_size, num_steps=1)
