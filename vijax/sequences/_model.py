"""Linear-Gaussian state space models as arrays, and the checks of their shapes."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Real

# What users hand over; NumPy arrays too
Observations = Real[Array | np.ndarray, "time p"]
Observed = Bool[Array | np.ndarray, "time"] | Bool[Array | np.ndarray, "time p"] | None


class LinearGaussian(NamedTuple):
    """A linear-Gaussian state space model over T steps, states z [T, d], observations x [T, p].

        z₁ = initial_mean + diffuse δ + N(0, initial_cov)
        zₜ₊₁ = transition zₜ + transition_offset + N(0, transition_cov)
        xₜ = emission zₜ + emission_offset + N(0, emission_cov)

    A diffuse start has one convention: δ [m] is flat with density 1, so log p(x) = log ∫ p(x | δ) dδ, which is the
    limit of log p(x) + m/2 log 2πκ for δ ~ N(0, κ I), κ → ∞. A state that is wholly diffuse has initial_cov 0 and
    diffuse I; columns of I for some coordinates alone leave the others their own start. Programs that approximate it
    by a proper start of large variance and drop the first terms, do `Filtered.log_predictive[m:].sum()`.

    Fields, each fixed or with a leading time axis (states' own: T - 1 steps between T states; emissions': T):
        initial_mean: [d].
        initial_cov: [d, d].
        transition: [d, d] or [T - 1, d, d].
        transition_cov: [d, d] or [T - 1, d, d]; it may be singular, save where paths are drawn or judged.
        emission: [p, d] or [T, p, d].
        emission_cov: [p, p] or [T, p, p], positive definite.
        transition_offset: [d] or [T - 1, d]; inputs B u go here. 0 where None.
        emission_offset: [p] or [T, p]. 0 where None.
        diffuse: [d, m], directions of the start of which nothing is known. None where None.
    """

    initial_mean: Float[Array, " d"]
    initial_cov: Float[Array, "d d"]
    transition: Float[Array, "*steps d d"]
    transition_cov: Float[Array, "*steps d d"]
    emission: Float[Array, "*time p d"]
    emission_cov: Float[Array, "*time p p"]
    transition_offset: Float[Array, "*steps d"] | None = None
    emission_offset: Float[Array, "*time p"] | None = None
    diffuse: Float[Array, "d m"] | None = None


class Steps(NamedTuple):
    """A model and its data, step by step: the start is a transition from 0, and what is missing has emission 0.

    A missing component of x becomes the number 0 that was predicted as N(0, 1): it moves nothing, and adds to log p(x)
    no more than its constant. Columns beside the first are the slopes of the same quantity in δ.
    """

    transition: Array  # [T, d, d], the first 0
    offset: Array  # [T, d, 1 + m]
    cov: Array  # [T, d, d]
    emission: Array  # [T, p, d]
    emission_cov: Array  # [T, p, p]
    x: Array  # [T, p, 1 + m]
    observed: Array  # [T], how many components are observed


def steps(model: LinearGaussian, x: ArrayLike, mask: ArrayLike | None) -> Steps:
    """Spread a model over the steps of its data, after checking every shape."""
    if not isinstance(model, LinearGaussian):
        raise TypeError(f"model must be a sequences.LinearGaussian, got {type(model).__name__}.")
    if jnp.ndim(x) != 2:
        cure = "x[:, None] for numbers" if jnp.ndim(x) == 1 else "jax.vmap over several sequences"
        raise ValueError(f"x must be one sequence [time, p], got {jnp.shape(x)}; use {cure}.")
    if jnp.ndim(model.initial_mean) != 1:
        raise ValueError(
            f"initial_mean must be [d], got {jnp.shape(model.initial_mean)}; batches of models "
            "come by jax.vmap."
        )
    (t, p), d = jnp.shape(x), jnp.shape(model.initial_mean)[0]
    if t == 0 or p == 0 or d == 0:
        raise ValueError(
            f"a chain needs a step, a state and an observation: x is {(t, p)}, initial_mean is "
            f"{(d,)}."
        )
    m = _columns(model.diffuse, t, p, d)
    parts = [leaf for leaf in model if leaf is not None]
    dtype = jnp.result_type(*parts, x)
    dtype = dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.result_type(float)

    def spread(name: str, event: tuple[int, ...], length: int) -> Array:
        value = getattr(model, name)
        value = jnp.zeros(event) if value is None else value
        shape = jnp.shape(value)
        if shape not in (event, (length, *event)):
            raise ValueError(
                f"{name} has shape {shape}, expected {event} or, changing in time, "
                f"{(length, *event)}, for states of {d} (initial_mean {(d,)}) and x of shape "
                f"{(t, p)}. Batches of models come by jax.vmap."
            )
        value = jnp.asarray(value, dtype)
        # Symmetrized, so that a gradient is symmetric too, in every form of the filter
        if name.endswith("_cov"):
            value = 0.5 * (value + jnp.swapaxes(value, -1, -2))
        return value if value.ndim > len(event) else jnp.broadcast_to(value[None], (length, *event))

    shape = jnp.shape(model.initial_cov)
    if shape != (d, d):
        raise ValueError(
            f"initial_cov has shape {shape}, expected {(d, d)} for initial_mean of shape {(d,)}."
        )
    initial_cov = spread("initial_cov", (d, d), 1)
    # [d, 1 + m]: the mean of z₁ at δ = 0, and its slopes in δ; later offsets have slope 0.
    start = [jnp.asarray(model.initial_mean, dtype)[:, None]]
    start += [] if m == 0 else [jnp.asarray(model.diffuse, dtype)]
    offset = jnp.pad(spread("transition_offset", (d,), t - 1)[..., None], ((0, 0), (0, 0), (0, m)))
    observed = observed_parts(mask, t, p)
    missing = ~observed
    # A missing component reads nothing, and has unit noise of its own.
    emission, emission_cov = spread("emission", (p, d), t), spread("emission_cov", (p, p), t)
    unit = jnp.broadcast_to(jnp.eye(p, dtype=dtype)[None], emission_cov.shape)
    centered = jnp.asarray(x, dtype) - spread("emission_offset", (p,), t)
    return Steps(
        jnp.concatenate([jnp.zeros((1, d, d), dtype), spread("transition", (d, d), t - 1)]),
        jnp.concatenate([jnp.concatenate(start, 1)[None], offset]),
        jnp.concatenate([initial_cov, spread("transition_cov", (d, d), t - 1)]),
        jnp.where(missing[:, :, None], 0, emission),
        jnp.where(missing[:, :, None] | missing[:, None, :], unit, emission_cov),
        jnp.pad(jnp.where(missing, 0, centered)[..., None], ((0, 0), (0, 0), (0, m))),
        jnp.sum(observed, 1).astype(dtype),
    )


def _columns(diffuse: ArrayLike | None, t: int, p: int, d: int) -> int:
    if diffuse is None:
        return 0
    shape = jnp.shape(diffuse)
    if len(shape) != 2 or shape[0] != d or not 0 < shape[1] <= d:
        raise ValueError(
            f"diffuse has shape {shape}, expected (d, m) with 1 <= m <= d for initial_mean of "
            f"shape {(d,)}: a column for each direction, or None."
        )
    if t * p < shape[1]:
        raise ValueError(
            f"x of shape {(t, p)} cannot tell {shape[1]} diffuse directions (diffuse is {shape}) "
            "apart."
        )
    return int(shape[1])


def observed_parts(mask: ArrayLike | None, t: int, p: int) -> Array:
    if mask is None:
        return jnp.ones((t, p), bool)
    if jnp.result_type(mask) != jnp.bool_:
        raise TypeError(
            f"mask must be boolean, True where x is observed, got {jnp.result_type(mask)}."
        )
    shape = jnp.shape(mask)
    if shape not in ((t,), (t, p)):
        raise ValueError(
            f"mask has shape {shape}, expected {(t,)} or {(t, p)} for x of shape {(t, p)}."
        )
    mask = jnp.asarray(mask)
    return mask if mask.ndim == 2 else jnp.broadcast_to(mask[:, None], (t, p))
