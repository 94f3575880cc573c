"""Nonlinear state space models with Gaussian noise, filtered as if their states were Gaussian."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vijax.gaussians.affine import LOG_2PI, AffineGaussian
from vijax.gaussians.roots import TriangularRoot
from vijax.gaussians.triangle import to_parameters, unit_triangle
from vijax.sequences._algebra import cholesky, corrected, forward, log_det, symmetric, transpose
from vijax.sequences._filter import Filtered
from vijax.sequences._linearize import Linearize, Map, extended
from vijax.sequences._model import Observations, Observed, observed_parts
from vijax.trees import scan


class NonlinearGaussian(NamedTuple):
    """A state space model of functions with Gaussian noise, states z [T, d], observations x [T, p].

        z₁ = initial_mean + N(0, initial_cov)
        zₜ₊₁ = transition(zₜ) + N(0, transition_cov)
        xₜ = emission(zₜ) + N(0, emission_cov)

    Fields:
        initial_mean: [d].
        initial_cov: [d, d].
        transition: [d] -> [d].
        transition_cov: [d, d] or [T - 1, d, d].
        emission: [d] -> [p].
        emission_cov: [p, p] or [T, p, p], positive definite.
    """

    initial_mean: Float[Array | np.ndarray, " d"]
    initial_cov: Float[Array | np.ndarray, "d d"]
    transition: Map
    transition_cov: Float[Array | np.ndarray, "*steps d d"]
    emission: Map
    emission_cov: Float[Array | np.ndarray, "*time p p"]


def condition(
    mean: Float[Array | np.ndarray, " d"],
    cov: Float[Array | np.ndarray, "d d"],
    x: Float[Array | np.ndarray, " p"],
    *,
    emission: Map,
    emission_cov: Float[Array | np.ndarray, "p p"],
    linearize: Linearize = extended,
) -> AffineGaussian:
    """Gaussian of a state that has been observed: one update of an extended or unscented filter.

        q(z) ≈ N(z; mean, cov) N(x; h(z), R) / Z

    A proposal of particle filters: given a particle, with `mean` f(zₜ₋₁) and `cov` Q, it is
    the locally optimal one, exactly so where h is linear.

    Args:
        mean: of the state before x is seen, [d].
        cov: [d, d], positive definite.
        x: the observation, [p].
        emission: h, [d] -> [p].
        emission_cov: R, [p, p].
        linearize: `extended`, or `unscented`.

    Returns:
        A Gaussian over z [d], as `families.full_rank` makes it.

    Raises:
        ValueError: for shapes that do not agree.

    Example:
        >>> q = condition(
        ...     jnp.zeros(1), jnp.eye(1), jnp.array([2.0]), emission=lambda z: z, emission_cov=jnp.eye(1)
        ... )
        >>> round(float(q.loc[0]), 3), round(float(q.variance()[0]), 3)
        (1.0, 0.5)

    Reference: Doucet, Godsill, Andrieu, On sequential Monte Carlo sampling methods for Bayesian
        filtering, 2000; van der Merwe, Doucet, de Freitas, Wan, The unscented particle filter, 2000.
    """
    mean, cov, x = jnp.asarray(mean), jnp.asarray(cov), jnp.asarray(x)
    seen = jnp.ones(x.shape, bool)
    with jax.default_matmul_precision("highest"):
        mean, cov, _ = _update(linearize, emission, jnp.asarray(emission_cov), mean, cov, x, seen)
        log_scale, lower = to_parameters(cholesky(cov))
    return AffineGaussian(mean, TriangularRoot(log_scale, unit_triangle(lower, mean.shape[0])))


def gaussian_filter(
    model: NonlinearGaussian,
    x: Observations,
    *,
    linearize: Linearize = extended,
    mask: Observed = None,
) -> Filtered:
    """Extended or unscented Kalman filter: states of a nonlinear chain, taken for Gaussian.

        p(zₜ | x₁..ₜ) ≈ N(mₜ, Pₜ),   each step through an affine map of the state and noise

    Fast, and not exact unless the model is linear: a start for `families.markov`, or a check of a
    particle filter. log_evidence is no bound.

    Args:
        model: a NonlinearGaussian.
        x: [T, p]; what stands in masked places is not read.
        linearize: `extended`, by derivatives, or `unscented`, by points.
        mask: [T] or [T, p], True where x is observed; all of it where None.

    Returns:
        Filtered(log_evidence, log_predictive, mean, cov), approximate. Those of `kalman_filter`
        where the functions are linear.

    Raises:
        TypeError: for a model that is none, or a mask that is not boolean.
        ValueError: for T = 0, or shapes that do not agree.

    Example:
        >>> one = jnp.eye(1)
        >>> model = NonlinearGaussian(jnp.zeros(1), one, jnp.sin, one, lambda z: z, one)
        >>> points = vj.sequences.unscented
        >>> result = gaussian_filter(model, jnp.array([[2.0], [1.0]]), linearize=points)
        >>> result.mean.shape, round(float(result.mean[0, 0]), 3)  # x₁ / 2
        ((2, 1), 1.0)

    Reference: Jazwinski, Stochastic processes and filtering theory, 1970; Julier, Uhlmann, A new
        extension of the Kalman filter to nonlinear systems, 1997; Särkkä, Bayesian filtering and
        smoothing, 2013.
    """
    initial, links, first_link = _links(model, x, mask)

    def update(predicted: tuple[Array, Array], link: _Link) -> tuple[Array, Array, Array]:
        return _update(linearize, model.emission, link.noise, *predicted, link.x, link.seen)

    def step(
        known: tuple[Array, Array], link: _Link
    ) -> tuple[tuple[Array, Array], tuple[Array, Array, Array]]:
        mean, cov = known
        ahead = linearize(model.transition, mean, cov)
        spread = ahead.slope @ cov @ transpose(ahead.slope) + ahead.cov + link.moved
        updated = update((ahead.mean, symmetric(spread)), link)
        return updated[:2], updated

    with jax.default_matmul_precision("highest"):
        first = update(initial, first_link)
        _, later = scan(step, first[:2], links)
    means, covs, terms = (jnp.concatenate([a[None], b]) for a, b in zip(first, later, strict=True))
    return Filtered(jnp.sum(terms), terms, means, covs)


class _Link(NamedTuple):
    """What a step needs beside its state: covariances of both noises, the observation, what is seen of it."""

    moved: Array
    noise: Array
    x: Array
    seen: Array


def _update(
    linearize: Linearize,
    emission: Map,
    noise: Array,
    mean: Array,
    cov: Array,
    x: Array,
    seen: Array,
) -> tuple[Array, Array, Array]:
    """Return mean and covariance of a state told x, and log p(x | what was known before)."""
    y = linearize(emission, mean, cov)
    # A missing component reads nothing, and has unit noise of its own.
    slope = jnp.where(seen[:, None], y.slope, 0)
    unit = jnp.eye(x.shape[0], dtype=cov.dtype)
    noise = jnp.where(seen[:, None] & seen[None], symmetric(noise) + y.cov, unit)
    surprise = jnp.where(seen, jnp.where(seen, x, 0) - y.mean, 0)
    gain, left, lower = corrected(cov, slope, noise)
    white = forward(lower, surprise[:, None])
    size = jnp.sum(seen).astype(cov.dtype)
    log_predictive = -0.5 * (jnp.sum(jnp.square(white)) + log_det(lower) + size * LOG_2PI)
    return mean + gain @ surprise, left, log_predictive


def _links(
    model: NonlinearGaussian, x: Observations, mask: Observed
) -> tuple[tuple[Array, Array], _Link, _Link]:
    """Return the start, the links of steps 2 to T, and that of step 1, after checking every shape."""
    if not isinstance(model, NonlinearGaussian):
        raise TypeError(f"model must be a sequences.NonlinearGaussian, got {type(model).__name__}.")
    if jnp.ndim(x) != 2 or 0 in jnp.shape(x):
        raise ValueError(
            f"x must be one sequence [time, p], T >= 1, got {jnp.shape(x)}; use x[:, None] for "
            "numbers, jax.vmap over several sequences."
        )
    (t, p), d = (
        jnp.shape(x),
        jnp.shape(model.initial_mean)[-1] if jnp.ndim(model.initial_mean) else 0,
    )
    arrays = [leaf for leaf in model if not callable(leaf)]
    dtype = jnp.result_type(*arrays, x)
    dtype = dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.result_type(float)

    def spread(name: str, event: tuple[int, ...], length: int | None = None) -> Array:
        value = jnp.asarray(getattr(model, name), dtype)
        many = event if length is None else (length, *event)
        if value.shape not in (event, many):
            raise ValueError(
                f"{name} has shape {value.shape}, expected {event}"
                + ("" if length is None else f" or, changing in time, {many}")
                + f", for initial_mean of shape {jnp.shape(model.initial_mean)} and x {(t, p)}."
            )
        return value if value.shape == many else jnp.broadcast_to(value[None], many)

    mean, cov = spread("initial_mean", (d,)), spread("initial_cov", (d, d))
    for name, size in (("transition", d), ("emission", p)):
        out = jax.eval_shape(getattr(model, name), mean)
        if getattr(out, "shape", None) != (size,):
            raise ValueError(
                f"{name} must map a state {(d,)} to {(size,)}, got "
                f"{jax.tree.map(jnp.shape, out)} for x of shape {(t, p)}."
            )
    seen = observed_parts(mask, t, p)
    moved, noise = spread("transition_cov", (d, d), t - 1), spread("emission_cov", (p, p), t)
    x = jnp.asarray(x, dtype)
    first = _Link(jnp.zeros((d, d), dtype), noise[0], x[0], seen[0])
    return (mean, symmetric(cov)), _Link(moved, noise[1:], x[1:], seen[1:]), first
