"""Step sizes for every temperature, found before the chains that count."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Key

from vijax import calls, checks
from vijax.calls import usage
from vijax.engine import split
from vijax.numerics import expand
from vijax.particles._annealed import moved
from vijax.particles._partitions import Partition, rising
from vijax.particles._tempered import ends, start
from vijax.particles._transitions import Transition
from vijax.trees import scan, strong_dtypes
from vijax.types import Distribution, LogJoint, PyTree


@usage("particles.pilot_step_size")
def pilot_step_size(
    key: Key[Array, ""],
    log_joint: LogJoint,
    q: Distribution | PyTree,
    *,
    partition: Partition,
    transition: Callable[..., Transition],
    num_samples: int,
    step_size: float = 0.1,
    acceptance: float = 0.7,
    num_moves: int = 10,
) -> Callable[[ArrayLike], Array]:
    """Find a step size for every temperature by chains of its own, as a function of β.

        log ε += mean acceptance - wanted,   after each of `num_moves` moves at each temperature

    The chains that count then use a step that does not depend on them, so that their weights stay
    unbiased: give them another key.

    Args:
        key: a typed key, consumed.
        log_joint: as for `ais`.
        q: as for `ais`.
        partition: [T + 1] from 0 to 1; ten temperatures are enough, between which log ε is
            interpolated.
        transition: step_size= -> a transition: `langevin`, or `partial(hmc, num_steps=5)`.
        num_samples: chains, whose acceptance is averaged: some tens.
        step_size: where to start.
        acceptance: wanted, between 0 and 1: .6 for `langevin`, .8 for `hmc` are usual.
        num_moves: moves at each temperature.

    Returns:
        β -> ε, [*batch]: a step for each member, to give `langevin`, `hmc` or `dais`.

    Raises:
        TypeError: for a raw key, or discrete latents.
        ValueError: as `ais`; for an acceptance outside (0, 1).

    Example:
        >>> q, log_joint = distrax.Normal(0.0, 1.0), lambda z: distrax.Normal(0.0, 0.1).log_prob(z)
        >>> step = pilot_step_size(jax.random.key(0), log_joint, q, transition=vj.particles.langevin,
        ...     partition=vj.particles.linear_partition(10), num_samples=50)
        >>> bool(step(0.0) > 5 * step(1.0))  # the posterior is ten times as narrow
        True

    Reference: Robbins, Monro, A stochastic approximation method, 1951; Andrieu, Thoms, A tutorial on
        adaptive MCMC, 2008.
    """
    checks.key(key)
    checks.num_samples(num_samples)
    checks.static_count(num_moves, "num_moves")
    calls.function(transition, "transition")
    if not 0 < acceptance < 1:
        raise ValueError(f"acceptance must be between 0 and 1, got {acceptance!r}.")
    if not step_size > 0:
        raise ValueError(f"step_size must be above 0, got {step_size!r}.")
    path = ends("particles.pilot_step_size", log_joint, q)
    betas = rising(partition)
    of_start, of_moves = jax.random.split(key)
    keys = split(of_moves, num_samples)
    z = strong_dtypes(start(split(of_start, num_samples), path.q))

    def adapt(beta: Array, carry: PyTree, number: Array) -> tuple[PyTree, None]:
        z, log_step = carry
        move = transition(step_size=jnp.exp(log_step))
        z, found = moved(keys, number, path, move, z, beta)
        return (z, log_step + jnp.mean(found, 0) - acceptance), None

    def at_temperature(carry: PyTree, link: tuple[Array, Array]) -> tuple[PyTree, Array]:
        numbers, beta = link
        carry, _ = scan(lambda carry, number: adapt(beta, carry, number), carry, numbers)
        return carry, carry[1]

    like = jax.eval_shape(path.log_ratio, z)
    log_step = jnp.full(like.shape[1:], jnp.log(step_size), like.dtype)
    numbers = jnp.arange(len(betas) * num_moves).reshape(len(betas), num_moves)
    _, log_steps = scan(at_temperature, (z, log_step), (numbers, betas))
    log_steps = jax.lax.stop_gradient(log_steps)

    def steps(beta: ArrayLike) -> Array:
        # Linear in β between the temperatures on both sides
        after = jnp.clip(jnp.searchsorted(betas, beta), 1, len(betas) - 1)
        width = betas[after] - betas[after - 1]
        share = jnp.where(width > 0, (beta - betas[after - 1]) / jnp.where(width > 0, width, 1), 1)
        share = expand(share.astype(log_steps.dtype), log_steps[0])
        return jnp.exp((1 - share) * log_steps[after - 1] + share * log_steps[after])

    return steps
