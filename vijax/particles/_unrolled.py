"""A state-space model as a target and a q over whole paths, without resampling."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from vijax import engine, jaxprs, trees
from vijax.calls import usage
from vijax.particles import _model as models
from vijax.particles._model import Moves, Proposal, StateSpace
from vijax.types import Distribution, LogJoint, PyTree


@usage("particles.unrolled")
def unrolled(
    model: StateSpace,
    data: PyTree,
    proposal: Proposal | None = None,
    *,
    mask: Bool[Array, " time"] | None = None,
) -> tuple[LogJoint, Distribution]:
    """Target and q over whole paths z [T, ...]: independent draws, for any bound and estimator.

        log p(x, z) = Σₜ log p(zₜ | zₜ₋₁) + log p(xₜ | zₜ),     log q(z) = Σₜ log q(zₜ | zₜ₋₁, xₜ)

    IWAE over time is `dreg(iwae)` of the two. Nothing is resampled, so that weights degenerate with T,
    where `fivo` keeps them.

    Args:
        model: a StateSpace of batch shape (); batches of sequences come by jax.vmap.
        data: a pytree with leading axis T.
        proposal: a Proposal; the model's own transition where None.
        mask: [T], False where xₜ is missing.

    Returns:
        (log_joint, q): z -> log p(x, z), () in nats; and a distribution of z, [T, ...] (of a model that
        carries, of what is drawn alone).

    Raises:
        TypeError, ValueError: as `smc`.

    Example:
        >>> normal = lambda loc: vj.families.mean_field().dist({"loc": loc, "log_scale": jnp.zeros(())})
        >>> walk = StateSpace(
        ...     lambda x: normal(jnp.zeros(())), lambda z, x: normal(z), lambda z, x: normal(x).log_prob(z)
        ... )
        >>> log_joint, q = unrolled(walk, jnp.ones(3))
        >>> estimate = vj.gradients.dreg(vj.bounds.iwae)(jax.random.key(0), log_joint, q, num_samples=8)
        >>> estimate.draws.z.shape
        (8, 3)

    Reference: Burda, Grosse, Salakhutdinov, Importance weighted autoencoders, 2016,
        arXiv:1509.00519; Chung et al., A recurrent latent variable model for sequential data, 2015,
        arXiv:1506.02216.
    """
    steps = models.admit(model, data, proposal)
    models.admit_mask(mask, steps)

    def log_joint(z: PyTree) -> Array:
        def density(moves: Moves, z: PyTree, state: PyTree, x: PyTree) -> Array:
            x, observed = x
            p = moves.q if moves.p is None else moves.p
            emission = model.emission(state, x)
            return p.log_prob(z) + (
                emission if observed is None else jnp.where(observed, emission, 0.0)
            )

        return _sum(model, None, (data, mask), z, density)

    return log_joint, _Chain(model, proposal, (data, mask), steps)


class _Chain:
    """A distribution of paths, drawn step by step."""

    def __init__(self, model: StateSpace, proposal: Proposal | None, slices: PyTree, steps: int):
        self.model, self.proposal, self.slices, self.steps = model, proposal, slices, steps
        self.reparameterized, self.fixed_support = _abilities(model, proposal, slices)

    def sample_and_log_prob(
        self, *, seed: Array, sample_shape: Sequence[int] = ()
    ) -> tuple[PyTree, Array]:
        shape = tuple(sample_shape)
        draw: Callable[[Array], tuple[PyTree, Array]] = self._draw
        for _ in shape:
            draw = jax.vmap(draw)
        return draw(jax.random.split(seed, shape) if shape else seed)

    def _draw(self, key: Array) -> tuple[PyTree, Array]:
        def one(moves: Moves, t: Array | int) -> tuple[PyTree, tuple[PyTree, Array]]:
            seed = jax.random.fold_in(key, t)
            z, log_q = moves.q.sample_and_log_prob(seed=seed, sample_shape=())
            return moves.state(z), (z, log_q)

        z, log_q = _along(self.model, self.proposal, self.slices, jnp.arange(self.steps), one)
        return z, jnp.sum(log_q, 0)

    def log_prob(self, z: PyTree, /) -> Array:
        def density(moves: Moves, z: PyTree, state: PyTree, x: PyTree) -> Array:
            return moves.q.log_prob(z)

        return _sum(self.model, self.proposal, self.slices, z, density)


def _abilities(model: StateSpace, proposal: Proposal | None, slices: PyTree) -> tuple[bool, bool]:
    """Return whether draws of every step carry their derivative, and whether their supports stay."""
    found = []

    def one(moves: Moves, t: Array) -> tuple[PyTree, Array]:
        key = jax.random.key(0)
        paths = jaxprs.paths(moves.q, engine.iid, key)
        carried = all(path.broken is None for path in paths.values())
        found.append((carried, jaxprs.moving_support(moves.q, key, paths) is None))
        return moves.state(moves.q.sample_and_log_prob(seed=key, sample_shape=())[0]), t

    steps = models.length_of(slices[0])
    jax.eval_shape(lambda: _along(model, proposal, slices, jnp.arange(steps), one))
    return all(carried for carried, _ in found), all(stays for _, stays in found)


def _sum(
    model: StateSpace,
    proposal: Proposal | None,
    slices: PyTree,
    z: PyTree,
    density: Callable[[Moves, PyTree, PyTree, PyTree], Array],
) -> Array:
    """Return the sum over steps of a density of the path z."""
    inputs = z, slices

    def one(moves: Moves, at: PyTree) -> tuple[PyTree, Array]:
        z, x = at
        state = moves.state(z)
        return state, density(moves, z, state, x)

    return jnp.sum(_along(model, proposal, slices, inputs, one), 0)


def _along(
    model: StateSpace,
    proposal: Proposal | None,
    slices: PyTree,
    inputs: PyTree,
    one: Callable[[Moves, Any], tuple[PyTree, PyTree]],
) -> PyTree:
    """Run (moves, input of the step) -> (state, output) along the chain; return the outputs [T, ...]."""
    x, at = models.at((slices[0], inputs), 0)
    state, first = one(models.start(model, proposal, x), at)

    def step(state: PyTree, xs: PyTree) -> tuple[PyTree, PyTree]:
        x, at = xs
        return one(models.move(model, proposal, state, x), at)

    rest = jax.tree.map(lambda leaf: jnp.asarray(leaf)[1:], (slices[0], inputs))
    _, others = trees.scan(step, state, rest)
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, others)
