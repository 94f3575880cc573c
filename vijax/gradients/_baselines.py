"""Baselines that learn from past draws, as (init, update) on a plain pytree: for `score(bound, baseline=...)`."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vijax.numerics import expand
from vijax.types import PyTree, lift


class Running(NamedTuple):
    """A running weighted mean: sums that fade, `total` of weight times value and `weight` of weights, each [*batch]."""

    total: Array
    weight: Array


@runtime_checkable
class Optimizer(Protocol):
    """What `learned` asks of an optimizer, which Optax's have."""

    def init(self, params: PyTree, /) -> PyTree:
        """Return the state at the start."""
        ...

    def update(self, updates: PyTree, state: PyTree, params: PyTree, /) -> tuple[PyTree, PyTree]:
        """Return what is to be added to the parameters, and the next state."""
        ...


class Fitted(NamedTuple):
    """A network's parameters and its optimizer's state."""

    params: PyTree
    optimizer: PyTree


class Baseline(NamedTuple):
    """A baseline that learns: plain functions on a state that passes through scan, vmap and
    checkpoints.

    Fields:
        init: what it starts from -> state.
        value: state (and what the network sees) -> the baseline in nats, stopped by `score`.
        update: (state, log_w [k, *batch], ...) -> state; after the step that used `value`, never before.
    """

    init: Callable[..., Any]
    value: Callable[..., Array]
    update: Callable[..., Any]


def moving_average(*, decay: float) -> Baseline:
    """Moving average of past log-weights as a baseline, which keeps `score` unbiased.

        b ← Σ_past decayᵃᵍᵉ w f / Σ_past decayᵃᵍᵉ w,     f = log w

    With w = 1 it is REINFORCE's baseline; with the `squared_scores` of the draws as weights,
    black-box VI's optimal control variate. For one draw; with more, see `vimco`.

    Args:
        decay: from 0 (the last step alone) to below 1; .99 remembers about a hundred steps.

    Returns:
        Baseline(init, value, update): init() makes the state of one mean, init(batch shape) that of a
        mean for each member; value(state), 0 before the first update; update(state, log_w,
        weights=None), after the step that used the value. `score` keeps the derivative of -log q in
        log w, one more score: the very best baseline is value(state) - 1.

    Raises:
        ValueError: for a decay outside [0, 1); (update) for log-weights whose batch does not fit the state's.

    Example:
        >>> baseline = moving_average(decay=0.9)
        >>> state = baseline.update(baseline.init(), jnp.array([2.0, 4.0]))
        >>> round(float(baseline.value(state)), 3)
        3.0

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
                f"this baseline has shape {shape}, and log_w {log_w.shape} a batch "
                f"{log_w.shape[1:]}."
            )
        if weights is not None and jnp.shape(weights)[:1] != log_w.shape[:1]:
            raise ValueError(
                f"weights must be [k] or [k, *batch] as log_w {log_w.shape}, got "
                f"{jnp.shape(weights)}."
            )
        w = (
            jnp.ones_like(log_w)
            if weights is None
            else jnp.broadcast_to(expand(weights, log_w), log_w.shape)
        )
        # One draw of no mass would spoil the mean for good.
        w = jnp.where(jnp.isfinite(log_w), w, 0.0)
        # A state of shape () averages over the batch as well.
        axes: Any = 0 if shape else None
        fresh = jnp.sum(w * jnp.where(jnp.isfinite(log_w), log_w, 0.0), axes), jnp.sum(w, axes)
        # Sums of w f and of w, faded alike, so that their quotient is a mean from the first step on.
        faded = (
            decay * state.total + (1 - decay) * fresh[0],
            decay * state.weight + (1 - decay) * fresh[1],
        )
        return jax.lax.stop_gradient(
            Running(*(jnp.asarray(f, t.dtype) for f, t in zip(faded, state, strict=True)))
        )

    return Baseline(init, value, update)


def learned(apply: Callable[..., Array], optimizer: Optimizer) -> Baseline:
    """Learned network as a baseline: fitted by least squares to past log-weights, it keeps `score`
    unbiased.

        b = b_ψ(x),     ψ ← one step of the optimizer on ½ mean (log w - b_ψ(x))²

    For amortized inference with one draw, where data differ in the level of their log-weights. With
    more, try `vimco` first.

    Args:
        apply: (ψ, *inputs) -> [*batch] in nats, or () for all; inputs are data, never draws.
        optimizer: of Optax, or any with init(ψ) and update(gradient, state, ψ) -> (step, state).

    Returns:
        Baseline(init, value, update), with init(ψ), value(state, *inputs) and update(state, log_w,
        *inputs), after the step that used the value.

    Raises:
        ValueError: (update) for a baseline whose shape is not the batch's.

    Example:
        >>> baseline = learned(lambda level: level, optax.sgd(0.5))
        >>> state = baseline.update(baseline.init(jnp.zeros(())), jnp.array([2.0, 4.0]))
        >>> round(float(baseline.value(state)), 3)  # half of the way to the mean, 3
        1.5

    Reference: Mnih, Gregor, Neural variational inference and learning in belief networks, 2014, arXiv:1402.0030.
    """

    def init(params: PyTree) -> Fitted:
        return Fitted(params, optimizer.init(params))

    def value(state: Fitted, *inputs: Any) -> Array:
        return jax.lax.stop_gradient(apply(state.params, *inputs))

    def update(state: Fitted, log_w: Float[Array, "k *batch"], *inputs: Any) -> Fitted:
        observed = jax.lax.stop_gradient(log_w)
        counts = jnp.isfinite(observed)  # one draw of no mass would spoil the network for good

        def loss(params: PyTree) -> Array:
            b = apply(params, *inputs)
            if jnp.shape(b) not in ((), log_w.shape[1:]):
                raise ValueError(
                    f"this baseline has shape {jnp.shape(b)}, and log_w {log_w.shape} a batch "
                    f"{log_w.shape[1:]}."
                )
            # [k, *batch]: what is left to explain, of the rows that count.
            off = jnp.where(counts, observed, 0.0) - jnp.where(
                counts, jnp.broadcast_to(b, observed.shape), 0.0
            )
            return 0.5 * jnp.sum(jnp.square(off)) / jnp.maximum(jnp.sum(counts), 1)

        step, optimized = optimizer.update(
            jax.grad(loss)(state.params), state.optimizer, state.params
        )
        moved = jax.tree.map(lambda p, s: (p + s).astype(p.dtype), state.params, step)
        return jax.lax.stop_gradient(Fitted(moved, optimized))

    return Baseline(init, value, update)


def squared_scores(dist: Callable[[PyTree], Any], params: PyTree, z: PyTree) -> Float[Array, "k"]:
    """Squared norms of the score of each draw, the weights under which a running mean is the
    optimal baseline.

        ‖∇_params Σ_batch log q(zₖ)‖²

    One backward pass through q for each draw, none through the model.

    Args:
        dist: params -> q.
        params: q's parameters, any pytree of floats.
        z: draws with leading axis k, as `Estimate.draws.z` has them.

    Returns:
        [k], stopped.

    Example:
        >>> z = jnp.array([1.0, 2.0])
        >>> squared_scores(lambda loc: distrax.Normal(loc, 1.0), 0.0, z).round(3).tolist()  # z²
        [1.0, 4.0]

    Reference: Ranganath, Gerrish, Blei, Black box variational inference, 2014, arXiv:1401.0118.
    """
    # ∇_params log q(zₖ), leaves [k, ...]; a batch is summed, as a loss would.
    score = jax.vmap(lambda z: jax.grad(lambda p: jnp.sum(lift(dist(p)).log_prob(z)))(params))(z)
    square = [jnp.sum(jnp.square(leaf), range(1, leaf.ndim)) for leaf in jax.tree.leaves(score)]
    return jax.lax.stop_gradient(sum(square, jnp.asarray(0.0)))
