"""Per-latent choice: each leaf of q gets the estimator that its draws allow."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from vijax import draws, pathways
from vijax.draws import Plan
from vijax.gradients._objective import admit, estimate
from vijax.gradients._pathwise import reparam
from vijax.gradients._score import ALONE, left_out, surrogate, vimco
from vijax.types import Bound, Estimate, Joint, LogJoint, Objective, PyTree


def auto(bound: Bound) -> Objective:
    """Unbiased gradient of any bound for any q: pathwise where the draws carry the derivative, leave-one-out elsewhere.

        ∇φ = E[∇φ B(log w)|path] + E[Σₖ (B - B₋ₖ) Σ_{leaf without a path} ∇φ log q(leaf | earlier)]

    For dicts, tuples or a `types.Joint` of distributions, discrete next to continuous, each possibly given the
    earlier ones. A q that is one distribution gets `reparam` or `vimco` as a whole. Decided while tracing, from the
    samplers' jaxprs.

    Args:
        bound: of `vijax.bounds`, or any log_w [k, *batch] -> [*batch] that also judges k - 1 draws.

    Returns:
        An Objective: (key, log_joint, q, *, num_samples, chunk_size=None) -> Estimate, value [*batch] in nats. Second
        derivatives mean nothing unless all leaves are pathwise. log_joint must not couple members of the batch.

    Raises:
        TypeError: (when called) for a raw key or a q that is not a distribution.
        ValueError: (when called) for num_samples < 2 if any leaf has no path, or shapes that do not agree.

    Reference: Schulman, Heess, Weber, Abbeel, Gradient estimation using stochastic computation graphs, 2015,
        arXiv:1506.05254; Mnih, Rezende, Variational inference for Monte Carlo objectives, 2016, arXiv:1602.06725.
    """

    def objective(
        key: Key[Array, ""], log_joint: LogJoint, q: Any, *, num_samples: int, chunk_size: int | None = None
    ) -> Estimate:
        log_joint, q = admit(key, log_joint, q, num_samples, chunk_size, bound)
        if not isinstance(q, Joint):
            broken = any(path.broken is not None for path in pathways.of(q, draws.iid, key).values())
            chosen = vimco(bound) if broken else reparam(bound)
            return chosen(key, log_joint, q, num_samples=num_samples, chunk_size=chunk_size)
        scored = pathways.scored_leaves(q, key)
        if not scored:
            return reparam(bound)(key, log_joint, q, num_samples=num_samples, chunk_size=chunk_size)
        admit(key, log_joint, q, num_samples, chunk_size, bound, least=2, why=ALONE)

        def look(seeds: Plan) -> Any:
            z, log_q, log_q_scored = jax.vmap(lambda seed: _sample(q, seed, scored))(seeds.draw)
            log_p, aux = draws.evaluate(log_joint, z, log_q, seeds.model)
            return (log_p, log_q, log_q_scored), (z, aux)

        value = lambda p, q, scored: surrogate(bound, p - q, lambda w: left_out(bound, w), scored)  # noqa: E731
        seeds = draws.plan(key, log_joint, draws.iid, num_samples)
        return estimate(look, value, seeds, chunk_size)

    return objective


def _sample(q: Joint, key: Any, scored: set[Any]) -> tuple[PyTree, Array, Array]:
    """Draw the leaves in order, those in `scored` stopped; return them, log q, and log q of those alone.

    The density of a scored leaf keeps its derivative in earlier leaves: that is how their path reaches it.
    """
    leaves: dict[Any, Any] = {}
    log_q: Any = 0.0
    log_q_scored: Any = 0.0
    names = list(q.names())
    for name, part_key in zip(names, q.keys(key), strict=True):
        part = q.conditional(name, leaves)
        z, log_prob = part.sample_and_log_prob(seed=part_key, sample_shape=())
        if name in scored:
            z = jax.lax.stop_gradient(z)
            log_prob = part.log_prob(z)
            log_q_scored = log_q_scored + log_prob
        leaves[name] = z
        log_q = log_q + log_prob
    return q.collect(leaves), log_q, jnp.asarray(log_q_scored)
