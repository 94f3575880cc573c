"""Annealing without accept steps, whose paths carry derivatives."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from vijax import checks
from vijax.calls import is_known, usage
from vijax.particles._extended import Extended, several
from vijax.particles._leapfrog import StepSize, half_square, leapfrog, steps_like
from vijax.particles._partitions import Partition, rising
from vijax.particles._tempered import ends
from vijax.trees import scan
from vijax.types import Distribution, LogJoint, PyTree, derive


class _WithMomenta:
    """q and standard normal momenta [*batch, T, *event], with densities relative to that normal."""

    def __init__(self, q: Any, num_steps: int):
        self._q, self._num_steps = q, num_steps
        # What q declares of its draws holds beside normal ones.
        self.reparameterized = getattr(q, "reparameterized", None)
        self.fixed_support = getattr(q, "fixed_support", None)
        self.independent_members = getattr(q, "independent_members", False)

    def sample_and_log_prob(
        self, *, seed: Array, sample_shape: Sequence[int] = ()
    ) -> tuple[PyTree, Array]:
        def one(seed: Key[Array, ""]) -> tuple[PyTree, Array]:
            of_q, of_momenta = jax.random.split(seed)
            z, log_q = self._q.sample_and_log_prob(seed=of_q, sample_shape=())
            leaves, tree = jax.tree.flatten(z)
            momenta = []
            keys = jax.random.split(of_momenta, len(leaves))
            for key, leaf in zip(keys, leaves, strict=True):
                shape = (*leaf.shape[: log_q.ndim], self._num_steps, *leaf.shape[log_q.ndim :])
                momenta.append(jax.random.normal(key, shape, leaf.dtype))
            return {"z": z, "momenta": jax.tree.unflatten(tree, momenta)}, log_q

        return several(one, seed, sample_shape)

    def log_prob(self, extended: PyTree, /) -> Array:
        # The normal has no parameters, so its density may be left out here and in log_joint.
        log_q: Array = self._q.log_prob(extended["z"])
        return log_q


@usage("particles.dais", "particles.dais(log_joint, q, partition=..., step_size=0.1)")
def dais(
    log_joint: LogJoint,
    q: Distribution | PyTree,
    *,
    partition: Partition,
    step_size: StepSize,
    persistence: float | Array = 0.9,
    num_steps: int = 1,
) -> Extended:
    """Differentiable annealed importance sampling: leapfrog steps from q to the posterior, none rejected.

        log w = log p(x, z_T) - log q(z₀) + Σₜ log N(ρ'ₜ) - log N(ρₜ),   (zₜ, ρ'ₜ) = leapfrog(zₜ₋₁, ρₜ) in q^(1-βₜ) p^βₜ
        ρₜ₊₁ = γ ρ'ₜ + √(1 - γ²) eₜ₊₁,   γ = persistence

    For a q that is brought nearer to the posterior by the model's own gradient, with all of q, the
    step sizes and the temperatures trained through it. UHA is another name of it.

    Args:
        log_joint: z -> log p(x, z), [*batch] in nats, with a gradient in z that is continuous:
            through a kink (a relu, an absolute value) the path jumps, and its derivative is biased,
            unseen.
        q: a distribution over floats with batch shape [*batch], or a pytree of them.
        partition: 0 = β₀ ≤ ... ≤ β_T = 1, [T + 1], which may be learned. Memory of the derivative
            grows with T.
        step_size: a number, [*batch], a pytree like z, or a function β -> any of these; it may be
            learned. Small: nothing corrects its error but the weights.
        persistence: γ in [0, 1), how much of the momentum is kept; it may be learned.
        num_steps: leapfrog steps at each temperature.

    Returns:
        Extended: log_joint and q over {"z": z₀, "momenta": e}, densities of the momenta relative to
        their own; E w = p(x), so every bound, estimator and diagnostic applies. `latents` carries a
        draw to z_T. Second derivatives of log_joint are needed by path estimators.

    Raises:
        TypeError: for discrete latents.
        ValueError: for a partition that does not rise from 0 to 1, a persistence outside [0, 1),
            members of the batch that read each other; for a target with noise or of a minibatch.

    Example:
        >>> q = distrax.Normal(0.0, 1.0)
        >>> log_joint = lambda z: distrax.Normal(2.0, 0.5).log_prob(z)  # log p(x) = 0
        >>> annealed, wide, _ = dais(log_joint, q, partition=vj.particles.linear_partition(40),
        ...     step_size=0.3)
        >>> elbo = vj.gradients.reparam(vj.bounds.elbo)
        >>> plain, path = (elbo(jax.random.key(0), *pair, num_samples=500).value
        ...     for pair in ((log_joint, q), (annealed, wide)))
        >>> bool(plain < -8), bool(path > -0.6)
        (True, True)

    Reference: Geffner, Domke, MCMC variational inference via uncorrected Hamiltonian annealing,
        2021, arXiv:2107.04150; Zhang, Hsu, Li, Finn, Grosse, Differentiable annealed importance
        sampling and the perils of gradient noise, 2021, arXiv:2107.10211.
    """
    checks.static_count(num_steps, "num_steps")
    if is_known(persistence) and not 0 <= float(persistence) < 1:
        raise ValueError(f"persistence must be in [0, 1), got {persistence!r}.")
    betas = rising(partition)
    path = ends("particles.dais", log_joint, q)

    def walk(extended: PyTree) -> tuple[PyTree, Array]:
        """Return z_T, and log p(x, z_T) with what the momenta add."""
        z, momenta = extended["z"], extended["momenta"]
        batch = path.q.log_prob(z).shape
        # [T, *batch, *event], a row for each step of the scan
        noise = jax.tree.map(lambda a: jnp.moveaxis(a, len(batch), 0), momenta)
        momentum = jax.tree.map(lambda e: e[0], noise)
        fresh = jax.tree.map(lambda e: jnp.roll(e, -1, 0), noise)  # the last is not used

        def step(carry: PyTree, link: tuple[Array, PyTree]) -> tuple[PyTree, None]:
            z, momentum, log_ratio = carry
            beta, fresh = link
            steps = steps_like(step_size, beta, z, batch)
            z, end, _, _ = leapfrog(path.between(beta), z, momentum, steps, num_steps)
            # log N(ρ') - log N(ρ)
            log_ratio = log_ratio + half_square(momentum, len(batch)) - half_square(end, len(batch))
            return (z, jax.tree.map(refreshed, end, fresh), log_ratio), None

        start = z, momentum, jnp.zeros(batch, jax.tree.leaves(momentum)[0].dtype)
        (z, _, log_ratio), _ = scan(step, start, (betas[1:], fresh))
        return z, log_ratio

    def refreshed(old: Array, fresh: Array) -> Array:
        kept = jnp.asarray(persistence, old.dtype)
        return kept * old + jnp.sqrt(1 - kept**2) * fresh

    def extended_log_joint(extended: PyTree) -> Array:
        z, log_ratio = walk(extended)
        return path.log_joint(z) + log_ratio

    target = derive(
        log_joint, extended_log_joint, independent_sites=False, independent_members=False
    )
    return Extended(
        target, _WithMomenta(path.q, len(betas) - 1), lambda extended: walk(extended)[0]
    )
