"""Batch and match: a Gaussian whose scores match the target's, by closed-form updates."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from vijax import checks, types
from vijax.types import Estimate, LogJoint, PyTree
from vijax.updates import _gaussian
from vijax.updates._curvature import slopes
from vijax.updates._gaussian import GaussianState, Rate, Update


def batch_and_match(*, num_samples: int, learning_rate: Rate | None = None, halvings: int = 0) -> Update:
    """Match the scores of a full-rank Gaussian to the target's at a batch of draws, near the last q, without an ELBO.

        qₜ₊₁ = argmin_q  1/B Σ_b ‖∇ log q(z_b) - ∇ log p(z_b)‖²_Σ + 2/λₜ KL(qₜ ‖ q),     ‖v‖²_Σ = vᵀ Σ v

    Its covariance solves Σ U Σ + Σ = V, with V from the draws' spread and U from the scores'. Here both are kept as
    roots and never squared: one singular value decomposition of a [d, B + 1] matrix solves the equation, in O(d² B)
    where B < d beside the O(d³) of the triangle, and single precision loses no definiteness. For smooth targets of up
    to some hundreds of latents; unlike the ELBO's the divergence is large where the tails of q meet heavy ones of p,
    and `halvings` > 0 keeps the ELBO from falling.
    Start it near the target, as at `families.laplace(log_joint).init(key, like)`: from far outside, where scores are
    large beside the start's spread, it collapses.

    Args:
        num_samples: the batch B, from 2; more is both steadier and, since λ grows with it, faster.
        learning_rate: λ > 0, or a function of the count of steps t; by default the paper's B d / (t + 1). Constant B d
            for targets that are nearly Gaussian.
        halvings: how often λ may be halved until fresh draws see the ELBO not fall; 0 takes steps as they come, unless
            they end in nan.

    Returns:
        Update: `init(params)` of `families.full_rank`, `step(key, log_joint, state) -> (state, Estimate)`, with the
        ELBO in nats of the state that came in, and `params(state)`.

    Raises:
        ValueError: for num_samples < 2, a learning_rate that is not positive, a negative number of halvings; (step) for
            a minibatch, whose noise would be matched as if it were the target's.
        TypeError: (init) for params of another family, or in half precision.

    Reference: Cai, Modi, Pillaud-Vivien, Margossian, Gower, Blei, Saul, Batch and match: black-box variational
        inference with a score-based divergence, 2024, arXiv:2402.14758.
    """
    rule = 1.0 if learning_rate is None else learning_rate
    _gaussian.admit(num_samples, halvings, rule, paired=False, most=float("inf"))
    if num_samples < 2:
        raise ValueError(f"num_samples must be at least 2, got {num_samples}: a batch of one has no spread to match.")

    def init(params: PyTree) -> GaussianState:
        state = _gaussian.init(params)
        if state.root.ndim == 1:
            raise TypeError("batch_and_match needs params of families.full_rank: its update fills the covariance.")
        return state

    def step(key: Any, log_joint: LogJoint, state: GaussianState) -> tuple[GaussianState, Estimate]:
        if why := types.properties(log_joint).only_mean:
            raise ValueError(f"{why}, and scores are matched in square: use natural_gradient, or all of the data.")
        sight = _gaussian.see(key, checks.exact(log_joint), state, num_samples, paired=False, who="batch_and_match")
        log_p, found = slopes(lambda e: sight.log_p(state, e), sight.noise)
        by_count = lambda t: num_samples * found.shape[1] / (t + 1)  # noqa: E731
        schedule = by_count if learning_rate is None else learning_rate
        rate = _gaussian.rate_at(schedule, state)
        move = lambda share: matched(state, sight.noise, found, rate * share)  # noqa: E731
        return _gaussian.advance(state, sight, move, halvings), _gaussian.report(state, sight, log_p)

    return Update(init, step, _gaussian.params)


def matched(state: GaussianState, noise: Array, slopes: Array, rate: Array) -> GaussianState:
    """Return the closed-form minimiser, from draws and scores in units of q: e = L⁻¹(z - m) and Lᵀ ∇ log p, [k, d]."""
    size, d = noise.shape
    weight = rate / (1 + rate)
    center, score = jnp.mean(noise, 0), jnp.mean(slopes, 0)
    # U = Q Qᵀ and V = L R Rᵀ Lᵀ in roots; then Σ = L R X Rᵀ Lᵀ where X A Aᵀ X + X = I, A = Rᵀ Q.
    spread = [jnp.sqrt(rate / size) * (noise - center[None]).T, jnp.sqrt(weight) * center[:, None]]
    root = _gaussian.triangle(jnp.concatenate([jnp.eye(d, dtype=noise.dtype), *spread], 1))
    of_scores = jnp.concatenate(
        [jnp.sqrt(rate / size) * (slopes - score[None]).T, jnp.sqrt(weight) * score[:, None]], 1
    )
    axes, s, _ = jnp.linalg.svd(root.T @ of_scores, full_matrices=False)
    x = 2 / (1 + jnp.hypot(1.0, 2 * s))
    times = lambda x, v: v + axes @ ((x - 1).reshape(-1, *[1] * (v.ndim - 1)) * (axes.T @ v))  # noqa: E731
    wide = state.root @ root
    change = weight * (wide @ times(x, root.T @ score) + state.root @ center)
    return _gaussian.moved(state, change, _gaussian.triangle(wide @ times(jnp.sqrt(x), jnp.eye(d, dtype=x.dtype))))
