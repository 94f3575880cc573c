"""Whole paths of particles: traced back, simulated backwards, and a kernel that leaves their posterior as it is."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Key

from vijax import checks, trees
from vijax.calls import described, usage
from vijax.particles._model import Moves, Proposal, StateSpace, admit, as_distribution, at
from vijax.particles._resample import always
from vijax.particles._run import Form, Inputs, Moved, Population, gather, run
from vijax.particles._smc import NO_DERIVATIVE, as_kept, by_index, history, ratio
from vijax.resampling import multinomial
from vijax.types import PyTree


@usage("particles.trace_back")
def trace_back(recorded: Population) -> PyTree:
    """Paths of the final particles, each ancestor in turn, in T N steps.

        b_T = i,     bₜ = aₜ₊₁[bₜ₊₁],     pathⁱ = (z₁[b₁], ..., z_T[b_T])

    With the final weights they stand for p(z₁..T | x); early steps hold few different values, which
    `backward_simulate` cures.

    Args:
        recorded: of a filter with `record=history`.

    Returns:
        Paths [N, T, *batch, ...], like z.

    Raises:
        TypeError: for what is no record; ValueError: where particles were transported, which have no
            ancestors.

    Example:
        >>> recorded = Population(jnp.array([[0.0, 1.0], [2.0, 3.0]]), jnp.zeros((2, 2)), jnp.array([[0, 1], [1, 1]]))
        >>> trace_back(recorded).tolist()
        [[1.0, 2.0], [1.0, 3.0]]

    Reference: Kitagawa, Monte Carlo filter and smoother for non-Gaussian nonlinear state space
        models, 1996.
    """
    _admit(recorded)

    def step(index: Array, population: Population) -> tuple[Array, PyTree]:
        z, _, ancestors = population
        return gather(ancestors, index), gather(z, index)

    n, *batch = recorded.log_weights.shape[1:]
    last = jnp.broadcast_to(jnp.arange(n).reshape(n, *(1 for _ in batch)), (n, *batch))
    _, paths = jax.lax.scan(step, last, recorded, reverse=True)
    return _samples_first(paths)


@usage("particles.backward_simulate")
def backward_simulate(
    key: Key[Array, ""],
    model: StateSpace,
    data: PyTree,
    recorded: Population,
    *,
    num_paths: int,
) -> PyTree:
    """Paths drawn backwards from the particles of a filter; they stand for p(z₁..T | x) alike.

        P(bₜ = i | bₜ₊₁) ∝ wₜⁱ p(zₜ₊₁ | zₜⁱ)

    Each step is drawn anew from all N particles, at a cost of T N for each path, so that early steps
    are as diverse as late ones.

    Args:
        key: a typed key, consumed.
        model: the filter's StateSpace, with a transition density.
        data: the filter's.
        recorded: of a filter with `record=history`, of one sequence; for batches use jax.vmap.
        num_paths: M.

    Returns:
        Paths [M, T, ...], like z, without derivative.

    Raises:
        TypeError: for what is no record.
        ValueError: for a batch of sequences, or states that carry what came before them (`carrying`).

    Example:
        >>> normal = lambda loc: vj.families.mean_field().dist({"loc": loc, "log_scale": jnp.zeros(())})
        >>> walk = StateSpace(
        ...     lambda x: normal(jnp.zeros(())), lambda z, x: normal(z), lambda z, x: normal(x).log_prob(z)
        ... )
        >>> one, two = jax.random.split(jax.random.key(0))
        >>> result = vj.particles.smc(one, walk, jnp.ones(5), num_particles=50, record=vj.particles.history)
        >>> backward_simulate(two, walk, jnp.ones(5), result.recorded, num_paths=20).shape
        (20, 5)

    Reference: Godsill, Doucet, West, Monte Carlo smoothing for nonlinear time series, 2004.
    """
    checks.key(key)
    checks.static_count(num_paths, "num_paths")
    steps = admit(model, data, None)
    _admit(recorded)
    if recorded.log_weights.ndim != 2:
        raise ValueError(
            f"recorded must be of one sequence, with log_weights [T, N], got "
            f"{recorded.log_weights.shape}: use jax.vmap over sequences, of the filter too."
        )

    def step(z: PyTree, inputs: PyTree) -> tuple[PyTree, PyTree]:
        t, x, before = inputs

        def weigh(z_before: PyTree, z: PyTree) -> Array:
            q, complete = as_distribution(model.transition(z_before, x), "model.transition")
            if complete is not None:
                raise ValueError(
                    "backward_simulate needs states whose transition density says all that joins "
                    "them to the step before, and these carry what came before (particles.carrying): "
                    "use particles.trace_back."
                )
            return q.log_prob(z)

        # [M, N]: every path's next state under every particle
        ahead = jax.vmap(lambda z: jax.vmap(lambda b: weigh(b, z))(before.z))(z)
        logits = before.log_weights[None] + ahead
        index = jax.random.categorical(jax.random.fold_in(key, t), logits, axis=-1)
        z = gather(before.z, index)
        return z, z

    # The last state by the filter's weights, then from step T - 1 on down
    log_weights = recorded.log_weights[-1]
    index = jax.random.categorical(jax.random.fold_in(key, 0), log_weights, shape=(num_paths,))
    last = gather(at(recorded.z, -1), index)
    earlier = jax.tree.map(lambda leaf: leaf[:-1], recorded)
    later = jax.tree.map(lambda leaf: jnp.asarray(leaf)[1:], data)
    _, paths = trees.scan(step, last, (jnp.arange(1, steps), later, earlier), reverse=True)
    paths = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), paths, last)
    return checks.value_alone(_samples_first(paths), NO_DERIVATIVE.format("backward_simulate"))


@usage("particles.conditional_smc")
def conditional_smc(
    key: Key[Array, ""],
    model: StateSpace,
    data: PyTree,
    path: PyTree,
    *,
    proposal: Proposal | None = None,
    num_particles: int,
    twist: Callable[[Any, Any], Array] | None = None,
    mask: Bool[Array, "time *batch"] | None = None,
) -> Population:
    """Particle filter around a given path, which survives every resampling: the heart of particle Gibbs.

        z¹₁..T = path,  a¹ = 1;   others: aᵢ ~ w, independently,   zᵢ ~ q

    A path drawn from the outcome, by `backward_simulate` or by `trace_back` and the final weights,
    has the posterior's distribution if the given one had: a Markov kernel on whole paths.

    Args:
        key: a typed key, consumed.
        model: a StateSpace.
        data: a pytree with leading axis T.
        path: like z, [T, *batch, ...].
        proposal, twist, mask: as of `smc`.
        num_particles: N ≥ 2, the given path among them.

    Returns:
        Population with leading axis T, the given path at index 0.

    Raises:
        TypeError, ValueError: as `smc`; for num_particles < 2, or a path of another length.

    Example:
        >>> normal = lambda loc: vj.families.mean_field().dist({"loc": loc, "log_scale": jnp.zeros(())})
        >>> walk = StateSpace(
        ...     lambda x: normal(jnp.zeros(())), lambda z, x: normal(z), lambda z, x: normal(x).log_prob(z)
        ... )
        >>> path = jnp.array([1.0, 2.0, 3.0])
        >>> recorded = conditional_smc(jax.random.key(0), walk, jnp.ones(3), path, num_particles=8)
        >>> recorded.z[:, 0].tolist()
        [1.0, 2.0, 3.0]

    Reference: Andrieu, Doucet, Holenstein, Particle Markov chain Monte Carlo methods, 2010; Whiteley's
        discussion of it, for the backward simulation.
    """
    checks.static_count(num_particles, "num_particles", least=2, why=", the given path among them")
    steps = admit(model, data, proposal)
    if {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(path)} != {(steps,)}:
        raise ValueError(
            f"path must be like z with leading axis T = {steps}, got "
            f"{jax.tree.map(jnp.shape, path)}."
        )
    form = Form(_around, by_index(always(_beside_one), as_kept))
    inputs = Inputs(twist, mask, None, history, path)
    result = run(key, model, data, proposal, num_particles, form, inputs)
    return checks.value_alone(result.recorded, NO_DERIVATIVE.format("conditional_smc"))


def _beside_one(key: Array, weights: Array, num_samples: int) -> Array:
    """Choose all but the first independently; sorted as they are, the first would not be one of them."""
    others = multinomial(key, weights, num_samples - 1)
    return jnp.concatenate([jnp.zeros(1, others.dtype), others])


def _around(key: Array, moves: Moves, index: Array, given: PyTree) -> Moved:
    """Draw, or take the given path where the particle is the first."""
    z, _ = moves.q.sample_and_log_prob(seed=key, sample_shape=())
    z = trees.where(index == 0, moves.drawn(given), z)
    return Moved(z, ratio(moves, z, moves.q.log_prob(z)))


def _admit(recorded: object) -> None:
    if not isinstance(recorded, Population):
        raise TypeError(
            "recorded must be what particles.history keeps of every step, "
            f"smc(..., record=particles.history).recorded, got {described(recorded)}."
        )
    if recorded.ancestors is None or recorded.log_weights.ndim < 2:
        raise ValueError(
            "recorded must hold the ancestors [T, N, *batch] of a filter that copies particles whole; "
            "transported ones have none."
        )


def _samples_first(paths: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), paths)
