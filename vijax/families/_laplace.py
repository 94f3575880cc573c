"""Laplace's approximation as a family: it starts at the mode, with the curvature there."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from vijax import checks
from vijax.families._gaussian import full_rank
from vijax.gaussians.triangle import factor_of_inverse, parameters_of_covariance
from vijax.types import Family, LogJoint, PyTree

_TRIES = 100  # halvings of a step: Newton's step from a flat place, such as a logistic tail, is too long by far


def laplace(log_joint: LogJoint, *, steps: int = 100) -> Family:
    """Gaussian at the mode of a log joint, with the covariance of its curvature there; params and q are `full_rank`'s.

        q(z) = N(z; ẑ, Λ⁻¹),   ẑ = argmax log p(x, z),   Λ = -∇² log p(x, ẑ)
        log p(x) ≈ log p(x, ẑ) + d/2 log 2π - ½ log |Λ|  =  log_joint(ẑ) - q.log_prob(ẑ)

    As it is, where the posterior is nearly Gaussian; else as the start of a fit of `full_rank`, or of the `base` of a
    flow. `init` climbs from `like` by Newton's method with exact Hessians, damped by halving steps: a few d³, for up to
    a few hundred latents, transformed to ℝ first (`targets.transform`). The evidence of the second line is exact where
    the posterior is Gaussian, and no bound.

    It ends where no step is uphill beyond rounding, or after `steps`, and keeps the best point: whether it arrived,
    `jax.grad(log_joint)(params["loc"])` says. Eigenvalues of Λ (of its correlation matrix, in float32 too) that are not
    positive, away from a mode, count by their absolute value, and none as less than rounding, so that the covariance
    exists; a flat direction then is very wide. Where log_joint or a derivative is not finite at `like` there is no
    climb: "loc" is `like`, and the scales are nan.

    Args:
        log_joint: z -> (), or a dict of factors (), smooth in z.
        steps: the most steps to climb.

    Returns:
        Family: `init(key, like)`, which jits and vmaps (the key is not needed), and `dist(params)` of batch shape ().

    Raises:
        TypeError: (init) for latents that are not float32 or float64.
        ValueError: for steps < 1; for a target with noise, or that is unbiased in its mean alone, as a minibatch's;
            (init) for a log_joint with a batch.

    Reference: Tierney, Kadane, Accurate approximations for posterior moments and marginal densities, 1986.
    """
    log_joint = checks.target(log_joint, "families.laplace")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")
    plain = full_rank()

    def init(key: Any, like: PyTree) -> PyTree:
        params = plain.init(key, like)
        start, unravel = ravel_pytree(params["loc"])
        if jnp.finfo(start.dtype).bits < 32:
            raise TypeError(
                f"laplace needs latents in float32 or float64, got {start.dtype}: it inverts a matrix."
            )

        def density(x: Array) -> Array:
            out = log_joint(unravel(x))
            total = sum(out.values()) if isinstance(out, dict) else out
            if jnp.shape(total) != ():
                raise ValueError(
                    f"log_joint(z) has shape {jnp.shape(total)} where laplace needs (): sum over the data, or jax.vmap "
                    "over `init` for a batch of posteriors."
                )
            return jnp.asarray(total, start.dtype)

        mode, root = _climb(density, start, steps)
        log_scale, lower = parameters_of_covariance(root)
        return {"loc": unravel(mode), "log_scale": unravel(log_scale), "lower": lower}

    return Family(init, plain.dist)


def _climb(
    density: Callable[[Array], Array], start: Float[Array, " d"], steps: int
) -> tuple[Float[Array, " d"], Float[Array, "d d"]]:
    """Return the mode and a root of the covariance there, root rootᵀ = Λ⁻¹."""
    eps = jnp.finfo(start.dtype).eps
    slope = jax.grad(density)

    def look(x: Array) -> tuple[Array, Array, Array]:
        return density(x), slope(x), factor_of_inverse(-jax.hessian(density)(x))

    def going(carry: Any) -> Array:
        *_, count, uphill = carry
        return uphill & (count < steps)

    def step(carry: Any) -> Any:
        x, (value, g, root), count, _ = carry
        white = root.T @ g
        gain = jnp.sum(jnp.square(white))  # twice what a quadratic function gains by the whole step
        direction = root @ white
        # Below rounding of the value only the slope can tell uphill.
        noise = 8 * eps * jnp.maximum(1.0, jnp.abs(value))

        def better(t: Array) -> Array:
            there = density(x + t * direction)
            left = jnp.sum(jnp.square(root.T @ slope(x + t * direction)))
            enough = (there >= value + 1e-4 * t * gain) & (1e-4 * t * gain > 0) & (there > value)
            return enough | ((there >= value - noise) & (left < 0.25 * gain))

        tries = jnp.where(gain > noise, _TRIES, 1)
        halvings = jax.lax.while_loop(
            lambda n: (n < tries) & ~better(0.5**n), lambda n: n + 1, jnp.zeros((), start.dtype)
        )
        found = halvings < tries
        # A step far too long may be uphill and yet overshoot: halve it on while that is better.
        along = lambda n: density(x + 0.5**n * direction)  # noqa: E731
        halvings = jax.lax.while_loop(
            lambda n: found & (n < _TRIES) & (along(n + 1) > along(n) + noise),
            lambda n: n + 1,
            halvings,
        )
        x = jnp.where(found, x + 0.5**halvings * direction, x)
        return x, look(x), count + 1, found

    first = look(start)
    sure = (
        jnp.isfinite(first[0]) & jnp.all(jnp.isfinite(first[1])) & jnp.all(jnp.isfinite(first[2]))
    )
    mode, (_, _, root), _, _ = jax.lax.while_loop(going, step, (start, first, jnp.int32(0), sure))
    return mode, jnp.where(sure, root, jnp.nan)
