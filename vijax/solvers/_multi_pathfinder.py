"""Several paths of Pathfinder, pooled by the weights of their mixture."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Key

from vijax import checks
from vijax.calls import usage
from vijax.diagnostics import khat, psis, resolution
from vijax.gaussians import AffineGaussian
from vijax.numerics import log_mean_exp
from vijax.resampling import systematic
from vijax.solvers._pathfinder import Path, pathfinder
from vijax.types import Draws, LogJoint, PyTree


class Paths(NamedTuple):
    """The results of several climbs, pooled.

    Fields:
        z: draws resampled by their smoothed weights, [num_samples], which count alike.
        draws: those of all paths, [paths * num_samples]; log q is that of the mixture of the paths'
            Gaussians, of which each path that arrived is a stratum (`draws.weights`, as in every
            `Draws`); those of paths that failed have a log p of -inf and count for nothing.
        weights: smoothed importance weights of the draws, which sum to one, [paths * num_samples].
        khat: Pareto k-hat of the mixture as a proposal, ().
        log_evidence: log mean weight of the draws, () in nats.
        q: the paths' Gaussians, stacked, [paths].
        elbo: of each, [paths].
        apart: how far apart the means of two paths are, in units of their sds: the element where
            they are furthest, [paths, paths].
        agree: which paths are less than one sd from that of the largest ELBO, [paths].
    """

    z: PyTree
    draws: Draws
    weights: Float[Array, " draws"]
    khat: Float[Array, ""]
    log_evidence: Float[Array, ""]
    q: AffineGaussian
    elbo: Float[Array, " paths"]
    apart: Float[Array, "paths paths"]
    agree: Bool[Array, " paths"]


@usage("solvers.multi_pathfinder")
def multi_pathfinder(
    key: Key[Array, ""],
    log_joint: LogJoint,
    starts: PyTree,
    *,
    num_samples: int,
    steps: int = 100,
    history: int = 10,
) -> Paths:
    """Pathfinder from several starts, pooled by smoothed importance weights and resampled.

        w = p(x, z) / (1/P Σₚ qₚ(z)),   z from every path alike

    For posteriors with several modes or long tails, and starts of which some are bad: paths that
    ended in a poor place hardly count.

    Args:
        key: a typed key, consumed.
        log_joint: z -> log p(x, z), () in nats, as for `pathfinder`.
        starts: like z, with a leading axis [paths]; `scatter` makes them.
        num_samples: of each path; and of the resampled draws.
        steps: the most steps of each path.
        history: how many pairs of steps and gradients an inverse Hessian remembers.

    Returns:
        Paths. A draw is weighed against the mixture of all paths, not against its own alone as in
        the reference, so that two paths to one mode do not count it twice, and modes keep their
        share of the evidence. A path without an ELBO is left out of mixture and draws; where all
        failed, k-hat is +inf and the log evidence -inf. The mixture itself as a q:
        families.mixture(Family(None, lambda q: q), components=P).dist({"logits": jnp.zeros(P),
        "components": result.q}).

    Raises:
        TypeError, ValueError: as `pathfinder`; ValueError for starts whose leaves have no leading
            axis in common.

    Reference: Zhang, Carpenter, Gelman, Vehtari, Pathfinder: parallel quasi-Newton variational
        inference, 2022, arXiv:2108.03782; Veach, Guibas, Optimally combining sampling techniques,
        1995 (weights of the mixture).
    """
    checks.key(key)
    paths = _number_of_paths(starts)
    key_paths, key_resampling = jax.random.split(key)

    def climb(key: Key[Array, ""], like: PyTree) -> Path:
        return pathfinder(
            key,
            log_joint,
            like,
            num_samples=num_samples,
            steps=steps,
            history=history,
        )

    result = jax.vmap(climb)(jax.random.split(key_paths, paths), starts)
    # A path that never had an ELBO has none larger than -inf.
    arrived = jnp.max(result.elbos, 1) > -jnp.inf
    pooled, weights, log_evidence = _pooled(result, arrived, num_samples)
    # Systematic resampling: draws that count alike
    chosen = systematic(key_resampling, weights, num_samples)
    resampled = jax.tree.map(lambda leaf: leaf[chosen], pooled.z)

    elbo = jnp.where(arrived & ~jnp.isnan(result.elbo), result.elbo, -jnp.inf)
    apart = _distances(result.q)
    agree = arrived & (apart[jnp.argmax(elbo)] < 1)
    return Paths(
        z=resampled,
        draws=pooled,
        weights=weights,
        khat=khat(pooled.log_w, resolution=resolution(pooled.log_p, pooled.log_q)),
        log_evidence=log_evidence,
        q=result.q,
        elbo=elbo,
        apart=apart,
        agree=agree,
    )


def _number_of_paths(starts: PyTree) -> int:
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(starts)}
    if len(lengths) != 1 or lengths == {()} or lengths == {(0,)}:
        raise ValueError(
            f"starts must have a leading axis [paths], got {jax.tree.map(jnp.shape, starts)}; see "
            "scatter."
        )
    return int(lengths.pop()[0])


def _pooled(path: Path, arrived: Array, num_samples: int) -> tuple[Draws, Array, Array]:
    """Weigh the draws of all paths against the mixture of those that arrived.

    Args:
        path: the paths, leaves [paths, ...].
        arrived: which of them have a Gaussian at all, [paths].
        num_samples: draws of each path.

    Returns:
        The draws, [paths * num_samples]; their smoothed importance weights, which sum to one; and
        the log evidence, () in nats.
    """
    z = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), path.draws.z)
    from_arrived = jnp.repeat(arrived, num_samples)

    # The mixture's density at every draw; paths that failed have no share in it.
    log_q_of_each = jax.vmap(lambda q: jax.vmap(q.log_prob)(z))(path.q)  # [paths, draws]
    share = arrived.astype(log_q_of_each.dtype) / jnp.maximum(jnp.sum(arrived), 1)
    log_q = log_mean_exp(jnp.where(arrived[:, None], log_q_of_each, -jnp.inf), weights=share)
    log_q = jnp.where(from_arrived, log_q, 0.0)

    # Draws of failed paths, and those without a density, weigh nothing.
    log_p = path.draws.log_p.reshape(-1)
    counts = from_arrived & ~jnp.isnan(log_p)
    log_p = jnp.where(counts, log_p, -jnp.inf)

    log_w = log_p - log_q
    weights = jnp.where(jnp.any(counts), jnp.exp(psis(log_w)), 0.0)
    # A draw's share of the mixture, 1/(P K) where all paths arrived
    strata = jnp.repeat(share, num_samples) / num_samples
    log_evidence = jnp.where(jnp.any(arrived), log_mean_exp(log_w, weights=strata), -jnp.inf)
    return Draws(z, log_p, log_q, strata), weights, log_evidence


def _distances(q: AffineGaussian) -> Array:
    """Return the largest difference of two paths' means, in units of sds, [paths, paths]."""

    def flat(tree: PyTree) -> Array:
        return jax.vmap(lambda leaves: ravel_pytree(leaves)[0])(tree)

    # [paths, d]; an sd of two paths is that of their mean variance.
    means, variances = flat(q.loc), flat(jax.vmap(AffineGaussian.variance)(q))
    sds = jnp.sqrt(0.5 * (variances[:, None] + variances[None]))
    return jnp.max(jnp.abs(means[:, None] - means[None]) / sds, -1, initial=0.0)


@usage("solvers.scatter")
def scatter(key: Key[Array, ""], like: PyTree, *, paths: int, spread: float = 2.0) -> PyTree:
    """Starts for several paths: uniform around one, in every unconstrained coordinate.

        startₚ = like + spread · u,   u ~ U(-1, 1)

    Args:
        key: a typed key, consumed.
        like: the middle, a pytree of floats; zeros are a good one for standardized latents.
        paths: how many.
        spread: half the width, in unconstrained units; 2 is what Stan starts its chains with.

    Returns:
        Like `like`, with a leading axis [paths].

    Raises:
        TypeError: for a raw key, or a number of paths that is not a Python int.
        ValueError: for paths < 1.

    Example:
        >>> starts = scatter(jax.random.key(0), {"mu": 0.0, "theta": jnp.zeros(3)}, paths=5)
        >>> starts["theta"].shape, bool(jnp.all(jnp.abs(starts["theta"]) <= 2))
        ((5, 3), True)

    Reference: Stan reference manual, 2024, Initialization.
    """
    checks.key(key)
    checks.static_count(paths, "paths")
    vector, unravel = ravel_pytree(jax.tree.map(jnp.asarray, like))
    moves = spread * jax.random.uniform(key, (paths, vector.size), vector.dtype, -1.0, 1.0)
    return jax.vmap(unravel)(vector[None] + moves)
