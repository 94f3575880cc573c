"""Natural-gradient ascent in the Cholesky factor of a Gaussian q's covariance."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from vijax.calls import usage
from vijax.gaussians.triangle import times_root
from vijax.types import Rule
from vijax.updates import _gaussian
from vijax.updates._curvature import Curvature, Local, stein
from vijax.updates._gaussian import GaussianState
from vijax.updates._natural import curvature_rule, settling
from vijax.updates._rule import Rate


@usage(
    "updates.square_root_natural_gradient",
    "updates.square_root_natural_gradient(log_joint, num_samples=64)",
)
def square_root_natural_gradient(
    log_joint: Callable[..., Any],
    *,
    num_samples: int | None = None,
    learning_rate: Rate = settling,
    curvature: Curvature = stein,
    halvings: int = 20,
) -> Rule:
    """Natural-gradient ascent of the ELBO in the Cholesky factor C of the covariance.

        C ← C (I + ρ Φ(I - W)),     m ← m + ρ C Cᵀ E[∇ log p],     W = E[-Cᵀ ∇² log p C]

    Cheaper than `natural_gradient` by an eigendecomposition, and slower far from the optimum, since the
    mean moves by the old covariance.

    Args:
        log_joint: the target, or memory -> (target, memory), as in `natural_gradient`.
        num_samples: draws for a step, even; by default as in `natural_gradient`.
        learning_rate: ρ in (0, 1], or a function of the count of steps. Steps are cut to
            ρ ‖I - W‖ <= 1; near the optimum ρ = 1 converges quadratically.
        curvature: `stein` or `hessian`.
        halvings: how often a step may be halved until the ELBO of fresh draws does not fall; 0 takes
            steps as they come, unless they end in nan.

    Returns:
        types.Rule: `init(params, memory=None)` of `families.full_rank` or `families.mean_field`,
        `step(key, state) -> (state, Step)`, with the ELBO in nats of the state that came in, and
        `params(state)`. To first order in ρ the step is that of `natural_gradient`: Φ takes the lower
        triangle with half the diagonal, of which 1 - x is taken as 1 / (1 + x).

    Raises:
        ValueError: for an odd num_samples, a learning_rate outside (0, 1], or a negative number of
            halvings; (step) for leaves of q that log_joint never reads.
        TypeError: (init) for params of another family, or a full-rank q's in half precision.

    Example:
        >>> log_joint = lambda z: -0.5 * jnp.sum((z - 3.0) ** 2)
        >>> rule = square_root_natural_gradient(log_joint, num_samples=4)
        >>> params = {"loc": jnp.zeros(2), "log_scale": jnp.zeros(2)}  # of families.mean_field
        >>> state, step = jax.jit(rule.step)(jax.random.key(0), rule.init(params))
        >>> [round(float(m), 3) for m in rule.params(state)["loc"]]  # q has the target's covariance
        [3.0, 3.0]

    Reference: Tan, Analytic natural gradient updates for Cholesky factor in Gaussian variational
        approximation, 2022, arXiv:2109.00375; Lin et al., Simplifying momentum-based
        positive-definite submanifold optimization, 2023, arXiv:2302.09738; Kumar et al., Natural
        gradient VI: guarantees for non-conjugate models, 2025.
    """

    def move(state: GaussianState, local: Local, rate: Array) -> Callable[[Array], GaussianState]:
        return lambda share: moved(state, local, rate * share)

    return curvature_rule(
        log_joint,
        move,
        name="square_root_natural_gradient",
        num_samples=num_samples,
        learning_rate=learning_rate,
        curvature=curvature,
        halvings=halvings,
    )


def _stretch(x: Array) -> Array:
    """Return 1 + x to first order, positive for every x."""
    return jnp.where(x >= 0, 1 + x, 1 / (1 - jnp.minimum(x, 0)))


def moved(state: GaussianState, local: Local, rate: Array) -> GaussianState:
    """Return the state after a step, at a lower rate where q's shape would change too much."""
    # A mean-field q reads the diagonal alone of a whole curvature.
    if state.root.ndim == 1 and local.curvature.ndim == 2:
        local = local._replace(curvature=jnp.diagonal(local.curvature))
    # W - I: how far q's curvature is from the target's, in units of q.
    identity = 1 if state.root.ndim == 1 else jnp.eye(len(state.root), dtype=rate.dtype)
    shape = local.curvature - identity
    # Within ρ ‖W - I‖ <= 1 the first-order step is close to the exact one.
    rate = rate / jnp.maximum(1, rate * jnp.linalg.norm(shape))
    # C E[Cᵀ ∇ log p], since the slope is in units of q.
    change = rate * times_root(state.root, local.slope)
    if state.root.ndim == 1:
        return _gaussian.replaced(
            state, change, state.root * _stretch(0.5 * rate * (1 - local.curvature))
        )
    # I + ρ Φ(I - W): the diagonal is stretched, which keeps it positive; below it -ρ W.
    own = _stretch(0.5 * rate * (1 - jnp.diagonal(local.curvature)))
    return _gaussian.replaced(
        state, change, state.root @ (jnp.diag(own) - rate * jnp.tril(local.curvature, -1))
    )
