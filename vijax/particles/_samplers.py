"""Sequential Monte Carlo along a path of temperatures: annealing in which good chains multiply."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vijax import calls, checks
from vijax.calls import usage
from vijax.engine import split
from vijax.numerics import log_mean_exp, normalized_weights
from vijax.particles._annealed import moved
from vijax.particles._partitions import Partition, rising
from vijax.particles._tempered import NO_DERIVATIVE, Ends, ends, start
from vijax.particles._transitions import Transition
from vijax.resampling import systematic
from vijax.trees import scan, strong_dtypes, while_loop
from vijax.types import Distribution, LogJoint, PyTree

HALVINGS = 30  # of the interval of inverse temperatures, below what float32 resolves


class Tempered(NamedTuple):
    """Particles at the end of a path of temperatures, coupled by resampling.

    Fields:
        z: draws that count alike, leaves [n, ...].
        log_evidence: log Ẑ in nats, (): one number for all of them. Of several independent runs, by
            vmap over keys, every bound judges these as log-weights.
        partition: inverse temperatures, [T + 1]; of an adaptive run padded by ones.
        num_temperatures: how many of them were used beside 0, ().
        acceptance: mean probability of acceptance at each temperature, [T]; 0 where padded.
    """

    z: PyTree
    log_evidence: Float[Array, ""]
    partition: Float[Array, " t1"]
    num_temperatures: Array
    acceptance: Float[Array, " t"]


@usage("particles.tempered_smc")
def tempered_smc(
    key: Key[Array, ""],
    log_joint: LogJoint,
    q: Distribution | PyTree,
    *,
    partition: Partition,
    transition: Transition,
    num_particles: int,
    num_moves: int = 1,
) -> Tempered:
    """Sequential Monte Carlo sampler along fixed temperatures, whose Ẑ has mean p(x).

        log Ẑ = Σₜ log 1/N Σₙ vₙ,   v = (p(x, z) / q(z))^(βₜ - βₜ₋₁);   particles resampled by v, then moved

    Where the weights of `ais` are unequal at the end: resampled on the way, few chains are lost. The
    log of Ẑ is below log p(x) in expectation.

    Args:
        key: a typed key, consumed.
        log_joint: z -> log p(x, z), () in nats, with a gradient in z.
        q: a distribution over floats, batch shape (), or a pytree of them; for a batch `jax.vmap`
            the whole.
        partition: 0 = β₀ ≤ ... ≤ β_T = 1, [T + 1], fixed before: that of an adaptive run with another
            key will do.
        transition: as for `ais`; its step size must not depend on these particles.
        num_particles: N.
        num_moves: transitions after each resampling.

    Returns:
        Tempered. Where all weights of a step are 0, log Ẑ is -inf. Not differentiable.

    Raises:
        TypeError: for a raw key, or discrete latents.
        ValueError: for a q of some batch shape; else as `ais`.

    Example:
        >>> q = distrax.Normal(0.0, 1.0)
        >>> log_joint = lambda z: distrax.Normal(1.0, 0.5).log_prob(z) + 3.0
        >>> made = tempered_smc(jax.random.key(0), log_joint, q, num_particles=500,
        ...     partition=vj.particles.linear_partition(20),
        ...     transition=vj.particles.langevin(step_size=0.5))
        >>> bool(abs(made.log_evidence - 3.0) < 0.1)
        True

    Reference: Del Moral, Doucet, Jasra, Sequential Monte Carlo samplers, 2006, arXiv:cond-mat/0212648.
    """
    path = _admit("particles.tempered_smc", key, log_joint, q, transition, num_particles, num_moves)
    betas = rising(partition)
    of_start, of_steps = jax.random.split(key)
    z = strong_dtypes(start(split(of_start, num_particles), path.q))

    def step(carry: PyTree, link: tuple[Array, Array, Array]) -> tuple[PyTree, Array]:
        z, log_evidence = carry
        number, before, beta = link
        of_step = jax.random.fold_in(of_steps, number)
        log_ratio = path.log_ratio(z)
        z, gained, acceptance = _turn(
            of_step, path, transition, num_moves, z, log_ratio, before, beta
        )
        return (z, log_evidence + gained), acceptance

    links = jnp.arange(len(betas) - 1), betas[:-1], betas[1:]
    none = jnp.zeros((), jax.eval_shape(path.log_ratio, z).dtype)
    (z, log_evidence), acceptance = scan(step, (z, none), links)
    made = Tempered(z, log_evidence, betas, jnp.asarray(len(betas) - 1), acceptance)
    return checks.value_alone(made, NO_DERIVATIVE.format("particles.tempered_smc"))


@usage("particles.adaptive_tempered_smc")
def adaptive_tempered_smc(
    key: Key[Array, ""],
    log_joint: LogJoint,
    q: Distribution | PyTree,
    *,
    transition: Transition,
    num_particles: int,
    num_moves: int = 1,
    conditional_ess: float = 0.9,
    most: int = 200,
) -> Tempered:
    """Sequential Monte Carlo sampler that chooses its temperatures: Ẑ is biased by that, in O(1/N).

        βₜ = max {β ≤ 1: (Σₙ vₙ)² / Σₙ vₙ² ≥ c N},   v = (p(x, z) / q(z))^(β - βₜ₋₁),   c = conditional_ess

    For a path that nobody tuned. Where an unbiased Ẑ is asked for, run `tempered_smc` along its
    `partition` with another key.

    Args:
        key: a typed key, consumed.
        log_joint: as for `tempered_smc`.
        q: as for `tempered_smc`.
        transition: as for `tempered_smc`.
        num_particles: N.
        num_moves: transitions after each resampling.
        conditional_ess: c in (0, 1), of the particles that are possible: the larger, the more
            temperatures.
        most: temperatures at most; the last goes to 1, however far that is, and acceptance and
            partition have this length.

    Returns:
        Tempered, of which `num_temperatures` says how many were used: where it is `most`, raise that.
        Where no particle is possible, log Ẑ is -inf. Not differentiable.

    Raises:
        TypeError: for a raw key, or discrete latents.
        ValueError: for a q of some batch shape, or a conditional ESS outside (0, 1); else as `ais`.

    Example:
        >>> q = distrax.Normal(0.0, 1.0)
        >>> log_joint = lambda z: distrax.Normal(1.0, 0.1).log_prob(z) + 3.0
        >>> made = adaptive_tempered_smc(jax.random.key(0), log_joint, q, num_particles=1000,
        ...     transition=vj.particles.langevin(step_size=0.2), num_moves=3)
        >>> round(float(made.log_evidence)), int(made.num_temperatures)
        (3, 10)

    Reference: Zhou, Johansen, Aston, Toward automatic model comparison: an adaptive sequential Monte
        Carlo approach, 2016, arXiv:1303.3123; Beskos, Jasra, Kantas, Thiery, On the convergence of
        adaptive sequential Monte Carlo methods, 2016, arXiv:1306.6462 (the bias).
    """
    who = "particles.adaptive_tempered_smc"
    path = _admit(who, key, log_joint, q, transition, num_particles, num_moves)
    checks.static_count(most, "most")
    if not 0 < conditional_ess < 1:
        raise ValueError(f"conditional_ess must be between 0 and 1, got {conditional_ess!r}.")
    of_start, of_steps = jax.random.split(key)
    z = strong_dtypes(start(split(of_start, num_particles), path.q))

    def unfinished(carry: PyTree) -> Array:
        number, betas = carry[0], carry[3]
        return (number < most) & (betas[number] < 1)

    def step(carry: PyTree) -> PyTree:
        number, z, log_evidence, betas, acceptance = carry
        before, log_ratio = betas[number], path.log_ratio(z)
        beta = next_temperature(log_ratio, before, conditional_ess)
        beta = jnp.where(number == most - 1, 1.0, beta)
        of_step = jax.random.fold_in(of_steps, number)
        z, gained, accepted = _turn(
            of_step, path, transition, num_moves, z, log_ratio, before, beta
        )
        betas = betas.at[number + 1].set(beta)
        return number + 1, z, log_evidence + gained, betas, acceptance.at[number].set(accepted)

    dtype = jax.eval_shape(path.log_ratio, z).dtype
    betas = jnp.ones(most + 1, dtype).at[0].set(0.0)
    carry = jnp.asarray(0), z, jnp.zeros((), dtype), betas, jnp.zeros(most, dtype)
    number, z, log_evidence, betas, acceptance = while_loop(unfinished, step, carry)
    made = Tempered(z, log_evidence, betas, number, acceptance)
    return checks.value_alone(made, NO_DERIVATIVE.format(who))


def next_temperature(log_ratio: Array, before: Array, share: float) -> Array:
    """Return the largest β up to 1 at which the conditional ESS is a share of the possible particles."""
    possible = jnp.sum(log_ratio > -jnp.inf)
    wanted = share * possible.astype(log_ratio.dtype)

    def keeps(beta: Array) -> Array:
        # (Σ v)² / Σ v², 0 where all are impossible, as `wanted` then is
        w = normalized_weights(_powers(log_ratio, beta - before))
        square = jnp.sum(w**2)
        return jnp.where(square > 0, 1 / jnp.where(square > 0, square, 1.0), 0.0) >= wanted

    def halve(_: Array, interval: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = interval
        middle = 0.5 * (low + high)
        kept = keeps(middle)
        return jnp.where(kept, middle, low), jnp.where(kept, high, middle)

    one = jnp.ones_like(before)
    low, high = jax.lax.fori_loop(0, HALVINGS, halve, (before, one))
    # The upper end, by a rounding beyond, so that every step goes on.
    return jnp.where(keeps(one), one, high)


def _admit(
    who: str,
    key: Key[Array, ""],
    log_joint: LogJoint,
    q: Distribution | PyTree,
    transition: Transition,
    num_particles: int,
    num_moves: int,
) -> Ends:
    checks.key(key)
    checks.static_count(num_particles, "num_particles")
    checks.static_count(num_moves, "num_moves")
    calls.function(transition, "transition")
    path = ends(who, log_joint, q)
    batch = jax.eval_shape(lambda key: path.log_ratio(start(key[None], path.q)), jax.random.key(0))
    if batch.shape != (1,):
        raise ValueError(
            f"{who} resamples whole draws, so q must have batch shape (), got {batch.shape[1:]}: "
            "jax.vmap the call over the batch."
        )
    return path


def _turn(
    key: Key[Array, ""],
    path: Ends,
    transition: Transition,
    num_moves: int,
    z: PyTree,
    log_ratio: Array,
    before: Array,
    beta: Array,
) -> tuple[PyTree, Array, Array]:
    """Return particles resampled and moved, what log Ẑ gains, and the mean acceptance."""
    of_ancestors, of_moves = jax.random.split(key)
    log_v = _powers(log_ratio, beta - before)
    n = log_v.shape[0]
    ancestors = systematic(of_ancestors, normalized_weights(log_v), n)
    z = jax.tree.map(lambda a: a[ancestors], z)
    keys = split(of_moves, n)

    def move(z: PyTree, number: Array) -> tuple[PyTree, Array]:
        return moved(keys, number, path, transition, z, beta)

    z, acceptance = scan(move, z, jnp.arange(num_moves))
    return z, log_mean_exp(log_v), jnp.mean(acceptance)


def _powers(log_ratio: Array, width: Array) -> Array:
    """Return log v = (βₜ - βₜ₋₁) log (p / q); of no width 0, whatever the ratio."""
    return jnp.where(width > 0, width.astype(log_ratio.dtype) * log_ratio, 0.0)
