"""Laplace's approximation as a family: it starts at the mode, with the curvature there."""

import warnings
from collections.abc import Callable

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
    """Gaussian at the mode of a log joint, with the covariance of its curvature there.

        q(z) = N(z; ẑ, Λ⁻¹),   ẑ = argmax log p(x, z),   Λ = -∇² log p(x, ẑ)

    For posteriors that are nearly Gaussian, over unconstrained space (`targets.transform`); else as
    the start of a fit of `full_rank`, or of the `base` of a flow.

    Args:
        log_joint: z -> (), or a dict of factors (), smooth in z.
        steps: the most steps of Newton's method from `like`, with exact Hessians: a few d³, for up
            to a few hundred latents.

    Returns:
        Family: `init(key, like)`, which jits and vmaps (the key is not needed), and `dist(params)`
        of batch shape (), with the params of `full_rank`. log_joint(ẑ) - q.log_prob(ẑ) approximates
        log p(x), exactly where the posterior is Gaussian; it is no bound. A posterior without a
        mode, as of a centered hierarchy, ends the climb at its best point: `standing(log_joint,
        params)` says whether that is a mode, and a call outside of jit warns where it is not.
        Eigenvalues of Λ that are not positive count by their absolute value, and none as less than
        rounding: a flat direction then is very wide. Where log_joint or a derivative is not finite
        at `like`, "loc" is `like`, and the scales are nan.

    Raises:
        TypeError: (init) for latents that are not float32 or float64.
        ValueError: for steps < 1; for a target with noise, or that is unbiased in its mean alone,
            as a minibatch's; (init) for a log_joint with a batch, or whose gradient is nan at
            `like` though its value is finite (outside of jit).

    Example:
        >>> family = laplace(lambda z: 4 * z - jnp.exp(z), steps=20)
        >>> params = jax.jit(family.init)(jax.random.key(0), jnp.array(1.0))
        >>> round(float(params["loc"]), 3), round(float(params["log_scale"]), 3)  # log 4, -½ log 4
        (1.386, -0.693)

    Reference: Tierney, Kadane, Accurate approximations for posterior moments and marginal
        densities, 1986.
    """
    log_joint = checks.target(log_joint, "families.laplace")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")
    plain = full_rank()

    def init(key: Array | None, like: PyTree) -> PyTree:
        params = plain.init(key, like)
        start, unravel = ravel_pytree(params["loc"])
        density = _density(log_joint, start, unravel)
        first, slope = jax.value_and_grad(density)(start)
        checks.start_gradient(first, unravel(slope), "families.laplace")
        # The mode, the root of Λ there, and how near a mode it is
        mode, root, at, taken = climb(density, start, steps)
        # Under jit or vmap nothing is known: `standing` tells afterwards.
        if is_known(at.arrived) and not bool(at.arrived):
            warnings.warn(_why(at, int(taken), root), stacklevel=2)
        # Σ = L Lᵀ from the root of Λ, in the parameters of full_rank
        log_scale, lower = parameters_of_covariance(root)
        return {"loc": unravel(mode), "log_scale": unravel(log_scale), "lower": lower}

    return Family(init, plain.dist)


def standing(log_joint: LogJoint, params: PyTree) -> Standing:
    """Return whether "loc" is a mode of a log joint, and how near one.

        slope = √(gᵀ Λ⁻¹ g),   decrement = ½ gᵀ Λ⁻¹ g,     g = ∇ log p(x, ẑ),   Λ = -∇² log p(x, ẑ)

    Check it after every fit of `laplace`, under jit too.

    Args:
        log_joint: z -> (), or a dict of factors (), smooth in z.
        params: with "loc", of `laplace`, or of `full_rank` or `mean_field`.

    Returns:
        Standing(arrived, slope, decrement, curvature), each (). Not arrived with a curvature above
        rounding: take more `steps`, or another start. Not arrived with one of 0 or below: there is
        no mode near, and the Gaussian says nothing of the posterior; write the hierarchy
        non-centered (`constraints.affine`), or fit `full_rank`.

    Raises:
        TypeError, ValueError: as `laplace` does.

    Example:
        >>> result = standing(lambda z: -0.5 * (z - 3.0) ** 2, {"loc": jnp.array(1.0)})
        >>> bool(result.arrived), round(float(result.decrement), 3)  # 2 nats below the top
        (False, 2.0)

    Reference: Boyd, Vandenberghe, Convex optimization, 2004, section 9.5 (Newton's decrement).
    """
    log_joint = checks.target(log_joint, "families.standing")
    x, unravel = ravel_pytree(params["loc"])
    return stands(_density(log_joint, x, unravel), x)


def _why(at: Standing, taken: int, root: Array) -> str:
    """Return what a climb that did not arrive says."""
    slope, curvature = float(at.slope), float(at.curvature)
    if bool(jnp.any(jnp.isnan(root))):
        return (
            "laplace did not climb: log_joint or a derivative of it is not finite at `like`, and "
            "the scales are nan; start where it is."
        )
    return (
        f"laplace did not arrive at a mode in {taken} steps: slope {slope:.2g} nats per standard "
        f"deviation, smallest curvature {curvature:.2g} of 1. Its Gaussian is a start at best; "
        "give it more `steps` or another `like`; where there is no mode, write a hierarchy "
        "non-centered (constraints.affine), or fit full_rank."
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
