"""Natural-gradient ascent in the Cholesky factor of a Gaussian q's covariance."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from vijax.types import Estimate, LogJoint
from vijax.updates import _gaussian
from vijax.updates._curvature import Curvature, Local, stein
from vijax.updates._gaussian import GaussianState, Rate, Update
from vijax.updates._natural import settling


def square_root_natural_gradient(
    *,
    num_samples: int,
    learning_rate: Rate = settling,
    curvature: Curvature = stein,
    halvings: int = 20,
) -> Update:
    """Natural-gradient ascent of the ELBO in the Cholesky factor C of the covariance: no matrix is ever inverted.

        C ← C (I + ρ Φ(I - W)),     m ← m + ρ C Cᵀ E[∇ log p],     W = E[-Cᵀ ∇² log p C]

    Φ takes the lower triangle with half the diagonal. The same direction as `natural_gradient` to first order in ρ, in
    other coordinates: positive by form, since a diagonal 1 - x is taken as 1 / (1 + x), and cheaper by an
    eigendecomposition. Near the optimum ρ = 1 converges quadratically. Far from it `natural_gradient` travels faster:
    here the mean moves by the old covariance and not by the target's curvature, and steps are cut to ρ ‖I - W‖ <= 1.

    Args:
        num_samples: draws for a step, even.
        learning_rate: ρ in (0, 1], or a function of the count of steps.
        curvature: `stein` or `hessian`.
        halvings: how often a step may be halved until fresh draws see the ELBO not fall; 0 takes steps as they come,
            unless they end in nan.

    Returns:
        Update: `init(params)` of `families.full_rank` or `families.mean_field`, `step(key, log_joint, state) -> (state,
        Estimate)`, with the ELBO in nats of the state that came in, and `params(state)`.

    Raises:
        ValueError: for an odd num_samples, a learning_rate outside (0, 1], or a negative number of halvings.
        TypeError: (init) for params of another family, or a full-rank q's in half precision.

    Reference: Tan, Analytic natural gradient updates for Cholesky factor in Gaussian variational approximation, 2022,
        arXiv:2109.00375; Lin et al., Simplifying momentum-based positive-definite submanifold optimization, 2023,
        arXiv:2302.09738; Kumar et al., Natural gradient VI: guarantees for non-conjugate models, 2025.
    """
    _gaussian.admit(num_samples, halvings, learning_rate, paired=True)

    def step(key: Any, log_joint: LogJoint, state: GaussianState) -> tuple[GaussianState, Estimate]:
        sight = _gaussian.see(key, log_joint, state, num_samples, paired=True, who="square_root_natural_gradient")
        find = curvature.dense if state.root.ndim == 2 else curvature.diagonal
        local = find(lambda e: sight.log_p(state, e), sight.noise)
        rate = _gaussian.rate_at(learning_rate, state)
        new = _gaussian.advance(state, sight, lambda share: moved(state, local, rate * share), halvings)
        return new, _gaussian.report(state, sight, local.log_p)

    return Update(_gaussian.init, step, _gaussian.params)


def _stretch(x: Array) -> Array:
    """Return 1 + x to first order, positive for every x."""
    return jnp.where(x >= 0, 1 + x, 1 / (1 - jnp.minimum(x, 0)))


def moved(state: GaussianState, local: Local, rate: Array) -> GaussianState:
    """Return the state after a step at this rate, or a lower one where q's shape would change by more than itself."""
    shape = local.curvature - (1 if state.root.ndim == 1 else jnp.eye(len(state.root), dtype=rate.dtype))
    rate = rate / jnp.maximum(1, rate * jnp.linalg.norm(shape))
    change = rate * _gaussian.push(state.root, local.slope)
    if state.root.ndim == 1:
        return _gaussian.moved(state, change, state.root * _stretch(0.5 * rate * (1 - local.curvature)))
    own = _stretch(0.5 * rate * (1 - jnp.diagonal(local.curvature)))
    return _gaussian.moved(state, change, state.root @ (jnp.diag(own) - rate * jnp.tril(local.curvature, -1)))
