"""Annealed importance sampling, and the same path walked backwards from the posterior."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vijax import calls, checks
from vijax.calls import usage
from vijax.engine import split
from vijax.particles._partitions import Partition, rising
from vijax.particles._tempered import NO_DERIVATIVE, Ends, ends, start
from vijax.particles._transitions import Transition
from vijax.trees import scan, strong_dtypes
from vijax.types import Distribution, LogJoint, PyTree


class Annealed(NamedTuple):
    """Chains along a path of temperatures, independent of each other.

    Fields:
        z: where they end, leaves [k, *batch, ...].
        log_w: their log-weights in nats, [k, *batch].
        acceptance: the mean probability of acceptance at each temperature, in the order of the
            partition, [T, *batch].
    """

    z: PyTree
    log_w: Float[Array, "k *batch"]
    acceptance: Float[Array, "t *batch"]


@usage(
    "particles.ais",
    "particles.ais(key, log_joint, q, partition=..., transition=..., num_samples=100)",
)
def ais(
    key: Key[Array, ""],
    log_joint: LogJoint,
    q: Distribution | PyTree,
    *,
    partition: Partition,
    transition: Transition,
    num_samples: int,
) -> Annealed:
    """Annealed importance sampling: chains from q to the posterior, whose weights have mean p(x).

        log w = Σₜ (βₜ - βₜ₋₁) (log p(x, zₜ₋₁) - log q(zₜ₋₁)),   zₜ moved from zₜ₋₁ within q^(1-βₜ) p^βₜ

    For log p(x) where no q is close enough; every bound and diagnostic judges the log-weights, and
    log mean w is below log p(x) in expectation.

    Args:
        key: a typed key, consumed.
        log_joint: z -> log p(x, z), [*batch] in nats, with a gradient in z.
        q: a distribution over floats with batch shape [*batch], or a pytree of them: where the
            chains start. A fitted q needs far fewer temperatures than the prior.
        partition: 0 = β₀ ≤ ... ≤ β_T = 1, [T + 1]. Time grows with T, memory does not.
        transition: `hmc(...)`, `langevin(...)` or a move of your own that leaves a density
            invariant; its step size must not depend on these chains.
        num_samples: k.

    Returns:
        Annealed. An impossible chain has log-weight -inf. Not differentiable: see `dais`.

    Raises:
        TypeError: for a raw key, or discrete latents.
        ValueError: for a partition that does not rise from 0 to 1, shapes that do not agree, members
            of the batch that read each other; for a target with noise or of a minibatch; when
            differentiated.

    Example:
        >>> q = distrax.Normal(0.0, 1.0)
        >>> log_joint = lambda z: distrax.Normal(1.0, 0.5).log_prob(z) + 3.0
        >>> made = ais(jax.random.key(0), log_joint, q, partition=vj.particles.linear_partition(50),
        ...     transition=vj.particles.langevin(step_size=0.5), num_samples=500)
        >>> bool(abs(vj.bounds.iwae(made.log_w) - 3.0) < 0.1)
        True

    Reference: Neal, Annealed importance sampling, 2001, arXiv:physics/9803008.
    """
    checks.key(key)
    checks.num_samples(num_samples)
    path = ends("particles.ais", log_joint, q)
    calls.function(transition, "transition")
    betas = rising(partition)
    of_start, of_moves = _two(split(key, num_samples))
    z = strong_dtypes(start(of_start, path.q))

    def step(carry: PyTree, link: tuple[Array, Array, Array]) -> tuple[PyTree, Array]:
        z, log_w = carry
        number, before, beta = link
        log_w = log_w + _share(beta - before, path.log_ratio(z))
        z, acceptance = moved(of_moves, number, path, transition, z, beta)
        return (z, log_w), jnp.mean(acceptance, 0)

    carry = z, _none(path, z)
    (z, log_w), acceptance = scan(step, carry, _links(betas))
    refusal = NO_DERIVATIVE.format("particles.ais")
    return checks.value_alone(Annealed(z, log_w, acceptance), refusal)


@usage(
    "particles.reverse_ais",
    "particles.reverse_ais(key, log_joint, q, z, partition=..., transition=...)",
)
def reverse_ais(
    key: Key[Array, ""],
    log_joint: LogJoint,
    q: Distribution | PyTree,
    z: PyTree,
    *,
    partition: Partition,
    transition: Transition,
) -> Annealed:
    """Annealed importance sampling backwards, from the posterior to q: its 1/w has mean 1/p(x).

        log w = Σₜ (βₜ - βₜ₋₁) (log p(x, zₜ₋₁) - log q(zₜ₋₁)),   zₜ₋₁ moved from zₜ within q^(1-βₜ) p^βₜ

    The upper half of bidirectional Monte Carlo: -log mean 1/w is above log p(x) in expectation.
    With `ais` along the same path, `diagnostics.sandwich` has both.

    Args:
        key: a typed key, consumed.
        log_joint: as for `ais`.
        q: as for `ais`.
        z: exact draws of the posterior, leaves [s, *batch, ...]. There is one for free where x was
            simulated from the model: the z that x came from, s = 1.
        partition: as for `ais`.
        transition: as for `ais`. It must be reversible, as Metropolis' moves are: a sweep over
            latents in a fixed order is not.

    Returns:
        Annealed: log_w [s, *batch], and z where the chains end, draws of nearly q.

    Raises:
        TypeError: for a raw key, or discrete latents.
        ValueError: as `ais`; for a z without a leading axis of draws.

    Example:
        >>> q, posterior = distrax.Normal(0.0, 1.0), distrax.Normal(1.0, 0.5)
        >>> z = posterior.sample(seed=jax.random.key(0), sample_shape=(500,))
        >>> made = reverse_ais(jax.random.key(1), lambda z: posterior.log_prob(z) + 3.0, q, z,
        ...     partition=vj.particles.linear_partition(50),
        ...     transition=vj.particles.langevin(step_size=0.5))
        >>> bool(abs(-vj.bounds.iwae(-made.log_w) - 3.0) < 0.1)
        True

    Reference: Grosse, Ghahramani, Adams, Sandwiching the marginal likelihood using bidirectional
        Monte Carlo, 2015, arXiv:1511.02543.
    """
    checks.key(key)
    path = ends("particles.reverse_ais", log_joint, q)
    calls.function(transition, "transition")
    betas = rising(partition)
    z = strong_dtypes(z)
    keys = split(key, _number_of_draws(path, z))

    def step(carry: PyTree, link: tuple[Array, Array, Array]) -> tuple[PyTree, Array]:
        z, log_w = carry
        number, before, beta = link
        z, acceptance = moved(keys, number, path, transition, z, beta)
        log_w = log_w + _share(beta - before, path.log_ratio(z))
        return (z, log_w), jnp.mean(acceptance, 0)

    carry = z, _none(path, z)
    (z, log_w), acceptance = scan(step, carry, _links(betas), reverse=True)
    refusal = NO_DERIVATIVE.format("particles.reverse_ais")
    return checks.value_alone(Annealed(z, log_w, acceptance), refusal)


def moved(
    keys: Key[Array, " k"],
    number: Array,
    path: Ends,
    transition: Transition,
    z: PyTree,
    beta: Array,
) -> tuple[PyTree, Array]:
    """Return draws moved at an inverse temperature, each by its own key, and their acceptance."""
    log_density = path.between(beta)

    def one(key: Key[Array, ""], z: PyTree) -> tuple[PyTree, Array]:
        return transition(jax.random.fold_in(key, number), log_density, z, beta)

    return jax.vmap(one)(keys, z)


def _two(keys: Key[Array, " k"]) -> tuple[Key[Array, " k"], Key[Array, " k"]]:
    both = jax.vmap(jax.random.split)(keys)
    return both[:, 0], both[:, 1]


def _links(betas: Array) -> tuple[Array, Array, Array]:
    """Return of each step its number and the inverse temperatures before and after it."""
    return jnp.arange(len(betas) - 1), betas[:-1], betas[1:]


def _share(width: Array, log_ratio: Array) -> Array:
    """Return a step's part of the log-weight; of no width, where an infinite ratio counts for nothing."""
    return jnp.where(width > 0, width.astype(log_ratio.dtype) * log_ratio, 0.0)


def _none(path: Ends, z: PyTree) -> Array:
    """Return log-weights of 0 for draws z."""
    shape = jax.eval_shape(path.log_ratio, z)
    return jnp.zeros(shape.shape, shape.dtype)


def _number_of_draws(path: Ends, z: PyTree) -> int:
    """Return the leading axis of draws; refuse leaves that do not have it before the shape of q's."""
    one = jax.eval_shape(lambda key: start(key[None], path.q), jax.random.key(0))
    of_q: Any = jax.tree.structure(one)
    if of_q != jax.tree.structure(z):
        raise ValueError(f"z must be a pytree as q draws it, {of_q}, got {jax.tree.structure(z)}.")
    shapes = [
        (a.shape[1:], jnp.shape(b)) for a, b in zip(*map(jax.tree.leaves, (one, z)), strict=True)
    ]
    number = {b[:1] for _, b in shapes}
    if len(number) != 1 or number == {()} or any(a != b[1:] for a, b in shapes):
        raise ValueError(
            "z must hold draws of the posterior, leaves [s, ...] of one s and q's shapes "
            f"{[a for a, _ in shapes]}, got {[b for _, b in shapes]}; one draw is z[None]."
        )
    return int(number.pop()[0])
