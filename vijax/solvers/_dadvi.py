"""A fit at fixed draws: the noise is drawn once, and the deterministic function that is left is maximized."""

import jax
from jaxtyping import Array, Key

from vijax import calls, checks, draws
from vijax.bounds import elbo
from vijax.calls import usage
from vijax.gradients import reparam
from vijax.solvers._maximize import Maximum, climb
from vijax.types import Draw, Family, LogJoint, PyTree


@usage("solvers.dadvi")
def dadvi(
    key: Key[Array, ""],
    log_joint: LogJoint,
    family: Family,
    like: PyTree,
    *,
    num_samples: int,
    draw: Draw = draws.iid,
    steps: int = 1000,
    slope: float | None = None,
) -> Maximum:
    """Fit a family at fixed draws: the noise is that of every step, so that L-BFGS can converge.

        φ̂ = argmaxᵩ  1/K Σₖ log p(x, T(εₖ, φ)) - log q(T(εₖ, φ)),     ε₁ ... ε_K drawn once

    No learning rate, no schedule, and an optimum that can be differentiated (`linear_response`).
    For mean-field families.

    Args:
        key: a typed key, consumed; the same one goes to `linear_response`.
        log_joint: z -> log p(x, z), () in nats, smooth in z; noise of the model (`targets.keyed`)
            is drawn once with the draws.
        family: whose draws carry the derivative of its parameters, as the Gaussian ones.
        like: what the family's `init` takes.
        num_samples: K. Some tens suffice for a mean-field family in any dimension. A full
            covariance overfits: with K ≤ d the function has no maximum (the climb ends at `steps`
            with a `slope` left), so take K of several d, or another fit.
        draw: how to draw; `draws.sobol` and `draws.antithetic` leave less error at the same K.
        steps: the most L-BFGS steps.
        slope: where to stop, as `maximize` has it.

    Returns:
        Maximum: params of the family, value (the bound at the fixed draws, which is optimistic:
        estimate it anew with another key), slope, steps.

    Raises:
        TypeError, ValueError: as `gradients.reparam` and `maximize` do; ValueError for a target
            that is unbiased in its mean alone, as a minibatch's, whose maximum would be its own.

    Example:
        >>> def fit(key):
        ...     family, like = vj.families.mean_field(), jnp.zeros(3)
        ...     return dadvi(key, lambda z: -jnp.sum(z**2), family, like, num_samples=30)
        >>> shapes = jax.eval_shape(fit, jax.random.key(0))
        >>> shapes.params["loc"].shape, shapes.value.shape
        ((3,), ())

    Reference: Giordano, Ingram, Broderick, Black box variational inference with a deterministic
        objective: faster, more accurate, and even more black box, 2024, arXiv:2304.05527.
    """
    target = checks.target(log_joint, "solvers.dadvi", keyed=True, has_aux=True)
    checks.key(key)
    checks.family(family, "family")
    calls.latents(like)
    objective = reparam(elbo, draw=draw)
    # A key of the start's own, which no draw uses
    start = family.init(jax.random.fold_in(key, num_samples), like)

    # The same key at every step: a function without noise
    def bound(params: PyTree) -> Array:
        return objective(key, target, family.dist(params), num_samples=num_samples).value

    return climb(bound, start, steps=steps, slope=slope, owner=log_joint)
