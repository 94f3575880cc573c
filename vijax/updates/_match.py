"""Batch and match: a Gaussian whose scores match the target's, by closed-form updates."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from vijax import checks
from vijax.calls import usage
from vijax.gaussians.triangle import triangle
from vijax.types import LogJoint, PyTree, Rule
from vijax.updates import _gaussian, _rule
from vijax.updates._curvature import slopes
from vijax.updates._gaussian import GaussianState
from vijax.updates._rule import Proposal, Rate
from vijax.updates._whitened import Whitened


@usage("updates.batch_and_match", "updates.batch_and_match(log_joint, num_samples=64)")
def batch_and_match(
    log_joint: Callable[..., Any],
    *,
    num_samples: int,
    learning_rate: Rate | None = None,
    halvings: int = 0,
) -> Rule:
    """Match the scores of a full-rank Gaussian to the target's, near the last q, without an ELBO.

        qₜ₊₁ = argmin_q  1/B Σ_b ‖∇ log q(z_b) - ∇ log p(z_b)‖²_Σ + 2/λₜ KL(qₜ ‖ q)
        ‖v‖²_Σ = vᵀ Σ v

    For smooth targets of up to some hundreds of latents. Start at `families.laplace`: from far
    outside it collapses.

    Args:
        log_joint: the target, or memory -> (target, memory), as in `natural_gradient`.
        num_samples: the batch B, from 2; more is both steadier and, since λ grows with it, faster.
            A step costs O(d² B) where B < d, beside O(d³) of the triangle.
        learning_rate: λ > 0, or a function of the count of steps t; by default the paper's
            B d / (t + 1). Constant B d for targets that are nearly Gaussian.
        halvings: how often λ may be halved until the ELBO of fresh draws does not fall; 0 takes steps
            as they come, unless they end in nan. Where the tails of q meet heavy ones of p the
            divergence is large, unlike the ELBO's, and halvings keep the ELBO from falling.

    Returns:
        types.Rule: `init(params, memory=None)` of `families.full_rank`, `step(key, state) ->
        (state, Step)`, with the ELBO in nats of the state that came in, and `params(state)`.

    Raises:
        ValueError: for num_samples < 2, a learning_rate that is not positive, a negative number of
            halvings; (step) for a target with noise, of the model, of an estimate or of a
            minibatch, which would be matched as if it were the target's.
        TypeError: (init) for params of another family, or in half precision.

    Example:
        >>> rule = batch_and_match(lambda z: -0.5 * jnp.sum((z - 3.0) ** 2), num_samples=4)
        >>> zeros = jnp.zeros(2)
        >>> state = rule.init({"loc": zeros, "log_scale": zeros, "lower": jnp.zeros(1)})
        >>> state, step = jax.jit(rule.step)(jax.random.key(0), state)
        >>> sorted(rule.params(state)), step.draws.log_q.shape
        (['loc', 'log_scale', 'lower'], (4,))

    Reference: Cai, Modi, Pillaud-Vivien, Margossian, Gower, Blei, Saul, Batch and match: black-box
        variational inference with a score-based divergence, 2024, arXiv:2402.14758.
    """
    _rule.check_rate(1.0 if learning_rate is None else learning_rate, most=float("inf"))
    _rule.check_counts(num_samples, halvings, paired=False)
    if num_samples < 2:
        raise ValueError(
            f"num_samples must be at least 2, got {num_samples}: a batch of one has no spread to "
            "match."
        )

    def propose(state: GaussianState, target: Whitened) -> Proposal:
        log_p, scores = slopes(lambda e: target.log_p(state, e), target.noise)
        if learning_rate is None:
            rate = _rule.rate_at(num_samples * scores.shape[1] / (state.steps + 1), state)
        else:
            rate = _rule.rate_at(learning_rate, state)
        return Proposal(log_p, lambda share: matched(state, target.noise, scores, rate * share))

    return _rule.gaussian_rule(
        log_joint,
        propose,
        name="batch_and_match",
        num_samples=num_samples,
        paired=False,
        halvings=halvings,
        init=_full_rank_state,
        admit=_exact,
    )


def _full_rank_state(params: PyTree, memory: PyTree = None) -> GaussianState:
    """Return the state of full-rank params; refuse those of a mean-field q."""
    state = _gaussian.init(params, memory)
    if state.root.ndim == 1:
        raise TypeError(
            "batch_and_match needs params of families.full_rank: its update fills the covariance."
        )
    return state


def _exact(log_joint: LogJoint) -> LogJoint:
    """Refuse a target with noise of any kind: scores are matched in square, and the noise with them."""
    return checks.target(
        log_joint,
        "updates.batch_and_match",
        has_aux=True,
        cure="use updates.natural_gradient, or all of the data",
    )


def matched(state: GaussianState, noise: Array, scores: Array, rate: Array) -> GaussianState:
    """Return the closed-form minimizer, from draws and scores in units of q.

    Its covariance solves Σ U Σ + Σ = V, with V from the draws' spread and U from the scores'. Both are
    kept as roots and never squared, so that single precision loses no definiteness.

    Args:
        state: q.
        noise: e = L⁻¹(z - m), [k, d].
        scores: Lᵀ ∇ log p, [k, d].
        rate: λ, ().

    Returns:
        The state with the new mean and covariance.
    """
    size, d = noise.shape
    # What the means count beside the spread: λ / (1 + λ).
    weight = rate / (1 + rate)
    center, score = jnp.mean(noise, 0), jnp.mean(scores, 0)

    def root_of_spread(rows: Array, mean: Array) -> Array:
        """Return a [d, k + 1] root of rate · Cov + weight · mean meanᵀ."""
        around_mean = jnp.sqrt(rate / size) * (rows - mean[None]).T
        return jnp.concatenate([around_mean, jnp.sqrt(weight) * mean[:, None]], 1)

    # V is the old covariance with the draws' spread, so its root is [d, d + k + 1] before it is made a triangle.
    # In roots, U = Q Qᵀ and V = L R Rᵀ Lᵀ; then Σ = L R X Rᵀ Lᵀ where X A Aᵀ X + X = I, A = Rᵀ Q.
    before = jnp.eye(d, dtype=noise.dtype)
    root = triangle(jnp.concatenate([before, root_of_spread(noise, center)], 1))
    # A = axes diag(s) Wᵀ, so that X has eigenvalues x with s² x² + x = 1 along the axes, and 1 elsewhere.
    axes, s, _ = jnp.linalg.svd(root.T @ root_of_spread(scores, score), full_matrices=False)
    x = 2 / (1 + jnp.hypot(1.0, 2 * s))

    def times(x: Array, v: Array) -> Array:
        """Return the product of a matrix with v, [d] or [d, n]: x along the axes, 1 elsewhere."""
        return v + axes @ ((x - 1).reshape(-1, *[1] * (v.ndim - 1)) * (axes.T @ v))

    # L R, a root of V; the mean moves by the new covariance times the mean score.
    wide = state.root @ root
    change = weight * (wide @ times(x, root.T @ score) + state.root @ center)
    new_root = triangle(wide @ times(jnp.sqrt(x), jnp.eye(d, dtype=x.dtype)))
    return _gaussian.replaced(state, change, new_root)
