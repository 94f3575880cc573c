"""Laplace's approximation as a family: it starts at the mode, with the curvature there."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from vijax import checks
from vijax.calls import is_known
from vijax.families._gaussian import full_rank
from vijax.gaussians.newton import Standing, climb
from vijax.gaussians.newton import standing as stands
from vijax.gaussians.triangle import parameters_of_covariance
from vijax.types import Family, LogJoint, PyTree


def laplace(log_joint: LogJoint, *, steps: int = 100) -> Family:
    """Gaussian at the mode of a log joint, with the covariance of its curvature there; params and q are `full_rank`'s.

        q(z) = N(z; ẑ, Λ⁻¹),   ẑ = argmax log p(x, z),   Λ = -∇² log p(x, ẑ)
        log p(x) ≈ log p(x, ẑ) + d/2 log 2π - ½ log |Λ|  =  log_joint(ẑ) - q.log_prob(ẑ)

    As it is, where the posterior is nearly Gaussian; else as the start of a fit of `full_rank`, or of the `base` of a
    flow. `init` climbs from `like` by Newton's method with exact Hessians: a few d³, for up to a few hundred latents,
    transformed to ℝ first (`targets.transform`). The evidence of the second line is exact where the posterior is
    Gaussian, and no bound.

    Some posteriors have no mode, as a centred hierarchy, whose density rises for ever as its scale falls to 0. The
    climb ends where no step is uphill beyond rounding or floats end, or after `steps`, and keeps the best point:
    `standing(log_joint, params)` says whether that is a mode, and a call outside of jit warns where it is not.
    Eigenvalues of Λ (of its correlation matrix, in float32 too) that are not positive count by their absolute value,
    and none as less than rounding, so that the covariance exists; a flat direction then is very wide. Where log_joint
    or a derivative is not finite at `like` there is no climb: "loc" is `like`, and the scales are nan.

    Args:
        log_joint: z -> (), or a dict of factors (), smooth in z.
        steps: the most steps to climb.

    Returns:
        Family: `init(key, like)`, which jits and vmaps (the key is not needed), and `dist(params)` of batch shape ().

    Raises:
        TypeError: (init) for latents that are not float32 or float64.
        ValueError: for steps < 1; for a target with noise, or that is unbiased in its mean alone, as a minibatch's;
            (init) for a log_joint with a batch, or whose gradient is nan at `like` though its value is finite
            (outside of jit).

    Reference: Tierney, Kadane, Accurate approximations for posterior moments and marginal densities, 1986.
    """
    log_joint = checks.target(log_joint, "families.laplace")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")
    plain = full_rank()

    def init(key: Any, like: PyTree) -> PyTree:
        params = plain.init(key, like)
        start, unravel = ravel_pytree(params["loc"])
        density = _density(log_joint, start, unravel)
        first, slope = jax.value_and_grad(density)(start)
        checks.start_gradient(first, unravel(slope), "families.laplace")
        mode, root, at, taken = climb(density, start, steps)
        if is_known(at.arrived) and not bool(at.arrived):
            warnings.warn(_why(at, int(taken)), stacklevel=2)
        log_scale, lower = parameters_of_covariance(root)
        return {"loc": unravel(mode), "log_scale": unravel(log_scale), "lower": lower}

    return Family(init, plain.dist)


def standing(log_joint: LogJoint, params: PyTree) -> Standing:
    """Return whether "loc" is a mode of a log joint, and how near one: what `laplace` arrived at.

        slope = √(gᵀ Λ⁻¹ g),   decrement = ½ gᵀ Λ⁻¹ g,     g = ∇ log p(x, ẑ),   Λ = -∇² log p(x, ẑ)

    To be asked after every fit of `laplace`, under jit too. Not arrived with a curvature above rounding: give it more
    `steps`, or another start. Not arrived with one of 0 or below: there is no mode near, and the Gaussian says nothing
    of the posterior; write the hierarchy non-centred (`constraints.affine`), or fit `full_rank`.

    Args:
        log_joint: z -> (), or a dict of factors (), smooth in z.
        params: with "loc", of `laplace`, or of `full_rank` or `mean_field`.

    Returns:
        Standing(arrived, slope, decrement, curvature), each ().

    Raises:
        TypeError, ValueError: as `laplace` does.

    Reference: Boyd, Vandenberghe, Convex optimization, 2004, section 9.5 (Newton's decrement).
    """
    log_joint = checks.target(log_joint, "families.standing")
    x, unravel = ravel_pytree(params["loc"])
    return stands(_density(log_joint, x, unravel), x)


def _why(at: Standing, taken: int) -> str:
    """Return what a climb that did not arrive says."""
    slope, curvature = float(at.slope), float(at.curvature)
    if math.isnan(slope):
        return (
            "laplace did not climb: log_joint or a derivative of it is not finite at `like`, and "
            "the scales are nan; start where it is."
        )
    return (
        f"laplace did not arrive at a mode in {taken} steps: slope {slope:.2g} nats per standard "
        f"deviation, smallest curvature {curvature:.2g} of 1. Its Gaussian is a start at best; "
        "give it more `steps` or another `like`; where there is no mode, write a hierarchy "
        "non-centred (constraints.affine), or fit full_rank."
    )


def _density(
    log_joint: LogJoint, start: Array, unravel: Callable[[Array], PyTree]
) -> Callable[[Array], Array]:
    """Return log p as a function of one vector."""
    if jnp.finfo(start.dtype).bits < 32:
        raise TypeError(
            f"laplace needs latents in float32 or float64, got {start.dtype}: it inverts a matrix."
        )

    def density(x: Array) -> Array:
        out = log_joint(unravel(x))
        total = sum(out.values()) if isinstance(out, dict) else out
        if jnp.shape(total) != ():
            raise ValueError(
                f"log_joint(z) has shape {jnp.shape(total)} where laplace needs (): sum over the "
                "data, or jax.vmap over `init` for a batch of posteriors."
            )
        return jnp.asarray(total, start.dtype)

    return density
