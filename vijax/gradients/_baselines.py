"""Baselines that learn from past draws, as (init, update) on a plain pytree: for `score(bound, baseline=...)`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vijax.numerics import expand
from vijax.types import PyTree, lift


class Running(NamedTuple):
    """A running weighted mean: sums that fade, `total` of weight times value and `weight` of weights, each [*batch]."""

    total: Array
    weight: Array


class Fitted(NamedTuple):
    """A network's parameters and its optimiser's state."""

    params: PyTree
    optimizer: PyTree


class Baseline(NamedTuple):
    """A baseline that learns: plain functions on a state that passes through scan, vmap and checkpoints.

    Fields:
        init: what it starts from -> state.
        value: state (and what the network sees) -> the baseline in nats, stopped by `score`.
        update: (state, log_w [k, *batch], ...) -> state; after the step that used `value`, never before.
    """

    init: Callable[..., Any]
    value: Callable[..., Array]
    update: Callable[..., Any]


def moving_average(*, decay: float) -> Baseline:
    """Moving average of past log-weights as a baseline: it keeps `score` unbiased, being made of earlier draws alone.

        b ← Σ_past decayᵃᵍᵉ w f / Σ_past decayᵃᵍᵉ w,     f = log w;  w = 1, or ‖∇ log q(z)‖² of `squared_scores`

    With w = 1 it is REINFORCE's own baseline; with squared scores the coefficient that minimises the variance of
    (f - b) ∇ log q, the optimal control variate of black-box VI. When one draw is all you can afford, so that the
    others cannot serve for one (`vimco`):

        value, seen = score(elbo, baseline=baseline.value(state))(key, log_joint, q, num_samples=1)
        state = baseline.update(state, seen.log_w)

    Start from init(), or from init(batch shape) for a mean of each member; before anything was seen it is 0. `score`
    keeps the derivative of -log q in log w, one more score: the very best baseline is value(state) - 1.

    Args:
        decay: from 0 (the last step alone) to below 1; .99 remembers about a hundred steps.

    Returns:
        Baseline(init, value, update), with value(state) and update(state, log_w, weights=None).

    Raises:
        ValueError: for a decay outside [0, 1); (update) for log-weights whose batch does not fit the state's.

    Reference: Williams, Simple statistical gradient-following algorithms for connectionist reinforcement learning,
        1992; Ranganath, Gerrish, Blei, Black box variational inference, 2014, arXiv:1401.0118.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay must be at least 0 and below 1, got {decay!r}.")

    def init(batch: tuple[int, ...] = ()) -> Running:
        return Running(jnp.zeros(batch), jnp.zeros(batch))

    def value(state: Running) -> Array:
        return jnp.where(
            state.weight > 0, state.total / jnp.where(state.weight > 0, state.weight, 1.0), 0.0
        )

    def update(
        state: Running, log_w: Float[Array, "k *batch"], weights: Array | None = None
    ) -> Running:
        shape = jnp.shape(state.total)
        if shape not in ((), log_w.shape[1:]):
            raise ValueError(
                f"this baseline has shape {shape}, and log_w {log_w.shape} a batch {log_w.shape[1:]}."
            )
        if weights is not None and jnp.shape(weights)[:1] != log_w.shape[:1]:
            raise ValueError(
                f"weights must be [k] or [k, *batch] as log_w {log_w.shape}, got {jnp.shape(weights)}."
            )
        w = (
            jnp.ones_like(log_w)
            if weights is None
            else jnp.broadcast_to(expand(weights, log_w), log_w.shape)
        )
        # One draw of no mass would spoil the mean for good.
        w = jnp.where(jnp.isfinite(log_w), w, 0.0)
        axes: Any = 0 if shape else None
        fresh = jnp.sum(w * jnp.where(jnp.isfinite(log_w), log_w, 0.0), axes), jnp.sum(w, axes)
        faded = (
            decay * state.total + (1 - decay) * fresh[0],
            decay * state.weight + (1 - decay) * fresh[1],
        )
        return jax.lax.stop_gradient(
            Running(*(jnp.asarray(f, t.dtype) for f, t in zip(faded, state, strict=True)))
        )

    return Baseline(init, value, update)


def learned(apply: Callable[..., Array], optimizer: Any) -> Baseline:
    """Learned network as a baseline: fitted by least squares to past log-weights, it keeps `score` unbiased.

        b = b_ψ(x),     ψ ← one step of the optimiser on ½ mean (log w - b_ψ(x))²

    For amortised inference with few draws, where data differ in how well they can be explained, and so in the level of
    their log-weights; the network must not see z. With two draws or more, try `vimco` first.

        value, seen = score(elbo, baseline=baseline.value(state, x))(key, log_joint, q, num_samples=1)
        state = baseline.update(state, seen.log_w, x)

    Args:
        apply: (ψ, *inputs) -> [*batch] in nats, or () for all; inputs are data, never draws.
        optimizer: of Optax, or any with init(ψ) and update(gradient, state, ψ) -> (step, state).

    Returns:
        Baseline(init, value, update), with init(ψ), value(state, *inputs) and update(state, log_w, *inputs).

    Raises:
        ValueError: (update) for a baseline whose shape is not the batch's.

    Reference: Mnih, Gregor, Neural variational inference and learning in belief networks, 2014, arXiv:1402.0030.
    """

    def init(params: PyTree) -> Fitted:
        return Fitted(params, optimizer.init(params))

    def value(state: Fitted, *inputs: Any) -> Array:
        return jax.lax.stop_gradient(apply(state.params, *inputs))

    def update(state: Fitted, log_w: Float[Array, "k *batch"], *inputs: Any) -> Fitted:
        seen = jax.lax.stop_gradient(log_w)
        counts = jnp.isfinite(seen)  # one draw of no mass would spoil the network for good

        def loss(params: PyTree) -> Array:
            b = apply(params, *inputs)
            if jnp.shape(b) not in ((), log_w.shape[1:]):
                raise ValueError(
                    f"this baseline has shape {jnp.shape(b)}, and log_w {log_w.shape} a batch {log_w.shape[1:]}."
                )
            off = jnp.where(counts, seen, 0.0) - jnp.where(
                counts, jnp.broadcast_to(b, seen.shape), 0.0
            )
            return 0.5 * jnp.sum(jnp.square(off)) / jnp.maximum(jnp.sum(counts), 1)

        step, optimized = optimizer.update(
            jax.grad(loss)(state.params), state.optimizer, state.params
        )
        moved = jax.tree.map(lambda p, s: (p + s).astype(p.dtype), state.params, step)
        return jax.lax.stop_gradient(Fitted(moved, optimized))

    return Baseline(init, value, update)


def squared_scores(dist: Callable[[PyTree], Any], params: PyTree, z: PyTree) -> Float[Array, "k"]:
    """Squared norms of the score of each draw, the weights under which a running mean is the optimal baseline.

        ‖∇_params Σ_batch log q(zₖ)‖²

    One backward pass through q for each draw, none through the model.

    Args:
        dist: params -> q.
        params: q's parameters, any pytree of floats.
        z: draws with leading axis k, as `Estimate.draws.z` has them.

    Returns:
        [k], stopped.

    Reference: Ranganath, Gerrish, Blei, Black box variational inference, 2014, arXiv:1401.0118.
    """
    score = jax.vmap(lambda z: jax.grad(lambda p: jnp.sum(lift(dist(p)).log_prob(z)))(params))(z)
    square = [jnp.sum(jnp.square(leaf), range(1, leaf.ndim)) for leaf in jax.tree.leaves(score)]
    return jax.lax.stop_gradient(sum(square, jnp.asarray(0.0)))
