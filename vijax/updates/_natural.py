"""Natural-gradient ascent of the ELBO of a Gaussian q, and how its precision stays positive."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from vijax.calls import usage
from vijax.gaussians.triangle import triangle
from vijax.types import Rule
from vijax.updates import _gaussian, _rule
from vijax.updates._curvature import Curvature, Local, local_at, stein
from vijax.updates._gaussian import GaussianState
from vijax.updates._rule import Proposal, Rate
from vijax.updates._whitened import Whitened

Retraction = Callable[[Array, Array], Array]
"""(eigenvalues of the target's curvature in units of q's, rate) -> those of the new precision."""


def clipped(w: Array, rate: Array) -> Array:
    """Mix natural parameters as they are, with the size of negative curvature, and 1/16 at least.

        max(1 + ρ (|w| - 1), 1/16)

    The default of `natural_gradient`: with a Gaussian target and ρ = 1 one step arrives. A saddle is left in
    proportion to its curvature.

    Args:
        w: eigenvalues of E[-Lᵀ ∇² log p L], [d]; 1 where q has the target's curvature.
        rate: ρ, ().

    Returns:
        [d], positive: the eigenvalues of the new precision in units of the old one. At 1/16 a standard
        deviation grows fourfold in a step.

    Example:
        >>> clipped(jnp.array([1.0, 4.0, -4.0, 0.0]), jnp.array(1.0)).tolist()
        [1.0, 4.0, 4.0, 0.0625]

    Reference: Dauphin et al., Identifying and attacking the saddle point problem, 2014,
        arXiv:1406.2572 (the size).
    """
    return jnp.maximum(1 + rate * (jnp.abs(w) - 1), 1 / 16)


def quadratic(w: Array, rate: Array) -> Array:
    """Mix natural parameters, and add half the square of the change, which keeps them positive.

        1 + δ + ½ δ²,   δ = ρ (w - 1)

    For small rates: with a Gaussian target it converges quadratically, not at once.

    Args:
        w: eigenvalues of E[-Lᵀ ∇² log p L], [d]; 1 where q has the target's curvature.
        rate: ρ, ().

    Returns:
        [d], at least ½: the eigenvalues of the new precision in units of the old one, so a standard
        deviation grows by no more than √2 in a step. The precision is Λ + ρ G + ½ ρ² G Λ⁻¹ G, with
        G = E[-∇² log p] - Λ.

    Example:
        >>> quadratic(jnp.array([1.0, 2.0, 0.0]), jnp.array(1.0)).tolist()
        [1.0, 2.5, 0.5]

    Reference: Lin, Schmidt, Khan, Handling the positive-definite constraint in the Bayesian
        learning rule, 2020, arXiv:2002.10060.
    """
    change = rate * (w - 1)
    return 1 + change + 0.5 * jnp.square(change)


def settling(count: Array) -> Array:
    """The default learning rate: 1 for twenty steps, which travel, then 30/(t + 10), which average.

        ρₜ = 30 / max(30, t + 10)

    ρ ~ 1/t averages over the noise of steps. Where the target changes, as with minibatches of a model
    that still learns, use a constant.

    Args:
        count: how many steps were made, (). A faster fall stops short: 10/(t - 10) by .3 nats in the
            centered eight schools after 1,000 steps.

    Returns:
        ρ, ().

    Example:
        >>> [round(float(settling(jnp.array(t))), 3) for t in (0, 20, 50, 290)]
        [1.0, 1.0, 0.5, 0.1]

    Reference: Robbins, Monro, A stochastic approximation method, 1951.
    """
    return 30 / jnp.maximum(30, count + 10)


@usage("updates.natural_gradient", "updates.natural_gradient(log_joint, num_samples=64)")
def natural_gradient(
    log_joint: Callable[..., Any],
    *,
    num_samples: int | None = None,
    learning_rate: Rate = settling,
    curvature: Curvature = stein,
    retraction: Retraction = clipped,
    halvings: int = 10,
) -> Rule:
    """Natural-gradient ascent of the ELBO of a Gaussian q: Newton's method, averaged over q.

        Λ ← (1 - ρ) Λ + ρ E[-∇² log p],     m ← m + ρ Λ⁻¹ E[∇ log p]

    For smooth targets of up to some hundreds of latents: tens of steps, where stochastic gradients
    need thousands.

    Args:
        log_joint: z -> log p(x, z), () for one draw, in nats; or, where `init` is given a memory,
            memory -> (log_joint, memory), called once a step: for minibatches the memory is the
            cursor of `fitting.minibatches`, and the target of `targets.minibatch`.
        num_samples: draws for a step, even, in mirrored pairs, under which E[∇ log p] of a Gaussian
            target is exact; by default max(64, 2 d) of a full-rank q, 64 of a mean-field one; 16 may
            do for `hessian`. Fewer than d are warned of, under `stein` and full rank: the noise of d²
            numbers keeps steps from being taken.
        learning_rate: ρ in (0, 1], or a function of the count of steps; `fit` averages the
            iterates of a constant, such as .2, as well.
        curvature: `stein`, one gradient for each draw, or `hessian`, d products with the Hessian
            besides: then ρ = 1 arrives at a Gaussian target in one step, and a mean-field q moves its
            mean by Newton's step in all latents together, where under `stein` it creeps along
            correlations. Heavy tails mislead it.
        retraction: how the precision stays positive, `clipped` or `quadratic`.
        halvings: how often a step may be halved. Each is judged by as many fresh draws, halved until
            the ELBO does not fall, and left out where it always would, so that a wild start, a funnel
            or a nan leave q finite; 0 takes steps as they come, unless they end in nan.

    Returns:
        types.Rule: `init(params, memory=None)` of params of `families.full_rank` or `mean_field`,
        `step(key, state) -> (state, Step)`, with the ELBO in nats of the state that came in, and
        `params(state)`; for `fitting.fit`, and not for differentiating. The mean moves by the new Λ.
        `state.taken` says what share was taken;
        zeros in a row mean that noise is all that is left to climb, or too few draws to detect a rise.

    Raises:
        ValueError: for an odd num_samples, a learning_rate outside (0, 1], or a negative number of
            halvings; (step) for leaves of q that log_joint never reads.
        TypeError: (init) for params of another family, or a full-rank q's in half precision.

    Example:
        >>> log_joint = lambda z: -0.5 * jnp.sum((z - 3.0) ** 2)
        >>> rule = natural_gradient(log_joint, num_samples=4)
        >>> params = {"loc": jnp.zeros(2), "log_scale": jnp.zeros(2)}  # of families.mean_field
        >>> state, step = jax.jit(rule.step)(jax.random.key(0), rule.init(params))
        >>> [round(float(m), 3) for m in rule.params(state)["loc"]]  # one Newton step
        [3.0, 3.0]

    Reference: Khan, Rue, The Bayesian learning rule, 2023, arXiv:2107.04562; Opper, Archambeau, The
        variational Gaussian approximation revisited, 2009.
    """

    def move(state: GaussianState, local: Local, rate: Array) -> Callable[[Array], GaussianState]:
        return mover(state, local, rate, retraction)

    return curvature_rule(
        log_joint,
        move,
        name="natural_gradient",
        num_samples=num_samples,
        learning_rate=learning_rate,
        curvature=curvature,
        halvings=halvings,
    )


def curvature_rule(
    log_joint: Callable[..., Any],
    move: Callable[[GaussianState, Local, Array], Callable[[Array], GaussianState]],
    *,
    name: str,
    num_samples: int | None,
    learning_rate: Rate,
    curvature: Curvature,
    halvings: int,
) -> Rule:
    """Make a rule whose steps follow from slope and curvature.

    Args:
        log_joint: as in `natural_gradient`.
        move: (state, slope and curvature there, learning rate) -> (share of the step -> state after
            it).
        name: of the rule, for messages.
        num_samples: draws for a step, as in `natural_gradient`.
        learning_rate: as in `natural_gradient`.
        curvature: as in `natural_gradient`.
        halvings: as in `natural_gradient`.

    Returns:
        Rule.
    """
    _rule.check_rate(learning_rate)
    _rule.check_counts(num_samples, halvings, paired=True)

    def propose(state: GaussianState, target: Whitened) -> Proposal:
        local = local_at(curvature, state, target)
        return Proposal(local.log_p, move(state, local, _rule.rate_at(learning_rate, state)))

    return _rule.gaussian_rule(
        log_joint, propose, name=name, num_samples=num_samples, paired=True, halvings=halvings
    )


def mover(
    state: GaussianState, local: Local, rate: Array, retraction: Retraction
) -> Callable[[Array], GaussianState]:
    """Return share -> the state after a step of that share of the rate."""
    if state.root.ndim == 1:
        # Of a whole [d, d] curvature the variances read the diagonal, the mean all of it.
        dense = local.curvature.ndim == 2
        diagonal = jnp.diagonal(local.curvature) if dense else local.curvature
        newton = _newton(local) if dense else local.slope

        def shrink(share: Array) -> GaussianState:
            """Return the mean-field state: σ ← σ / √precision, all in units of the old σ."""
            precision = retraction(diagonal, rate * share)
            change = state.root * (rate * share * newton / (1 if dense else precision))
            return _gaussian.replaced(state, change, state.root / jnp.sqrt(precision))

        return shrink
    # In units of q the old precision is the identity, so that the two mix eigenvalue by eigenvalue.
    w, axes = jnp.linalg.eigh(local.curvature)
    # L A and Aᵀ g: both in the eigenvectors A of the curvature.
    turned, slope = state.root @ axes, axes.T @ local.slope

    def turn(share: Array) -> GaussianState:
        """Return the full-rank state, whose covariance is L A diag(1 / precision) Aᵀ Lᵀ."""
        precision = retraction(w, rate * share)
        change = turned @ (rate * share * slope / precision)
        # Any root will do for the covariance; the state holds the triangular one.
        return _gaussian.replaced(state, change, triangle(turned / jnp.sqrt(precision)[None]))

    return turn


def _newton(local: Local) -> Array:
    """Return Newton's step of the mean in units of q, negative curvature by its size."""
    w, axes = jnp.linalg.eigh(local.curvature)
    size = jnp.abs(w)
    # Directions without curvature would be walked along without end.
    least = w.size * jnp.finfo(w.dtype).eps * jnp.max(size)
    return axes @ ((axes.T @ local.slope) / jnp.maximum(size, least))
