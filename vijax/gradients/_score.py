"""Score-function gradients: derivatives of log q, weighted by how good each draw was."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Key

from vijax import checks, draws, pathways
from vijax.draws import Plan
from vijax.gradients._curvature import without_each
from vijax.gradients._objective import admit, estimate
from vijax.numerics import with_score
from vijax.types import Bound, Estimate, LogJoint, Objective


def _look(log_joint: LogJoint, q: Any) -> Any:
    def look(seeds: Plan) -> Any:
        z, _ = jax.vmap(lambda seed: draws.iid.sample(seed, q))(seeds.draw)
        z = jax.lax.stop_gradient(z)
        log_q = jax.vmap(q.log_prob)(z)
        log_p, aux = draws.evaluate(log_joint, z, log_q, seeds.model)
        return (log_p, log_q, None), (z, aux)

    return look


def score(bound: Bound, *, baseline: ArrayLike | None = None) -> Objective:
    """Score-function gradient (REINFORCE) of any bound: unbiased for any q of fixed support, with the highest variance.

        ∇φ = E[Σₖ (B - b) ∇ log q(zₖ)] + E[Σₖ B'ₖ ∇φ log wₖ|z];   for elbo draw k's signal is (log wₖ - b)/K

    When one draw is all you can afford; with two or more, `vimco` needs no baseline and has less variance.

    Args:
        bound: of `vijax.bounds`, or any log_w [k, *batch] -> [*batch].
        baseline: b in nats, broadcast against [*batch] and stopped; it must not depend on these draws. A running mean
            of past values is the usual choice; build the objective inside the step, `score(elbo, baseline=mean)`.

    Returns:
        An Objective: (key, log_joint, q, *, num_samples, chunk_size=None) -> Estimate, value [*batch] in nats. Second
        derivatives mean nothing here. log_joint must not couple members of the batch.

    Raises:
        TypeError: (when called) for a raw key or a q that is not a distribution.
        ValueError: (when called) for shapes that do not agree.

    Reference: Williams, Simple statistical gradient-following algorithms for connectionist reinforcement learning,
        1992; Ranganath, Gerrish, Blei, Black box variational inference, 2014, arXiv:1401.0118.
    """

    def signal(log_w: Array) -> Array:
        own = bound(log_w)
        b = 0.0 if baseline is None else jnp.asarray(baseline)
        try:
            fits = jnp.broadcast_shapes(jnp.shape(b), own.shape) == own.shape
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(f"baseline has shape {jnp.shape(b)}, which does not broadcast to the batch {own.shape}.")
        if checks.is_mean(bound):
            return (log_w - jnp.broadcast_to(b, own.shape)[None]) / log_w.shape[0]
        return jnp.broadcast_to((own - b)[None], log_w.shape)

    def objective(
        key: Key[Array, ""], log_joint: LogJoint, q: Any, *, num_samples: int, chunk_size: int | None = None
    ) -> Estimate:
        log_joint, q = admit(key, log_joint, q, num_samples, chunk_size, bound)
        pathways.continuous_support(q, key, draws.iid, "score")
        value = lambda p, q, _: surrogate(bound, p - q, signal, q)  # noqa: E731
        seeds = draws.plan(key, log_joint, draws.iid, num_samples)
        return estimate(_look(log_joint, q), value, seeds, chunk_size)

    return objective


def vimco(bound: Bound) -> Objective:
    """Leave-one-out score gradient of any bound: for any q of fixed support; first choice without a path.

        ∇φ = E[Σₖ (B - B₋ₖ) ∇ log q(zₖ)] + E[Σₖ B'ₖ ∇φ log wₖ|z],   B₋ₖ: the bound of the other draws

    For iwae this is VIMCO, for elbo leave-one-out REINFORCE. Draw k is dropped rather than replaced by the others'
    geometric mean, so a weight of -inf is harmless; O(k) where the bound knows its `leave_one_out`, O(k²) otherwise.

    Args:
        bound: of `vijax.bounds`, or any log_w [k, *batch] -> [*batch] that also judges k - 1 draws.

    Returns:
        An Objective: (key, log_joint, q, *, num_samples, chunk_size=None) -> Estimate, value [*batch] in nats. Second
        derivatives mean nothing here. log_joint must not couple members of the batch.

    Raises:
        TypeError: (when called) for a raw key or a q that is not a distribution.
        ValueError: (when called) for num_samples < 2, a bound that cannot lose a draw, or shapes that do not agree.

    Reference: Mnih, Rezende, Variational inference for Monte Carlo objectives, 2016, arXiv:1602.06725; Kool, van Hoof,
        Welling, Buy 4 REINFORCE samples, get a baseline for free, 2019.
    """

    def objective(
        key: Key[Array, ""], log_joint: LogJoint, q: Any, *, num_samples: int, chunk_size: int | None = None
    ) -> Estimate:
        log_joint, q = admit(key, log_joint, q, num_samples, chunk_size, bound, least=2, why=ALONE)
        pathways.continuous_support(q, key, draws.iid, "vimco")
        value = lambda p, q, _: surrogate(bound, p - q, lambda w: left_out(bound, w), q)  # noqa: E731
        seeds = draws.plan(key, log_joint, draws.iid, num_samples)
        return estimate(_look(log_joint, q), value, seeds, chunk_size)

    return objective


ALONE = "A draw is judged against the others; with one draw use gradients.score with a baseline."


def left_out(bound: Bound, log_w: Array) -> Array:
    """Return B - B₋ₖ for each draw, [k, *batch]."""
    others = without_each(bound, log_w)
    checks.rows(others, log_w, bound)
    # Others that are all impossible offer no comparison; 0 in their place depends on no draw, so no bias comes of it.
    return bound(log_w)[None] - jnp.where(jnp.isfinite(others), others, 0.0)


def surrogate(bound: Bound, log_w: Array, signal: Any, log_q: Array) -> Array:
    """Return the bound, with Σₖ signalₖ ∇ log qₖ added to its derivative."""
    value = bound(log_w)
    s = jax.lax.stop_gradient(signal(jax.lax.stop_gradient(log_w)))
    # An infinite value is reported as it is; it says nothing of where to go.
    s = jnp.where(jnp.isfinite(s), s, 0.0)
    return with_score(value, value + jnp.sum(s * log_q, 0))
