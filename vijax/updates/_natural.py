"""Natural-gradient ascent of the ELBO of a Gaussian q, and how its precision stays positive."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

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

    The mix is exact: with a Gaussian target and ρ = 1 one step arrives. A saddle is left in
    proportion to how sharp it is, and a standard deviation grows no more than fourfold in a step.
    The default of `natural_gradient`.

    Args:
        w: eigenvalues of E[-Lᵀ ∇² log p L], [d]; 1 where q has the target's curvature.
        rate: ρ, ().

    Returns:
        [d], positive: the eigenvalues of the new precision in units of the old one.

    Reference: Dauphin et al., Identifying and attacking the saddle point problem, 2014,
        arXiv:1406.2572 (the size).
    """
    return jnp.maximum(1 + rate * (jnp.abs(w) - 1), 1 / 16)


def quadratic(w: Array, rate: Array) -> Array:
    """Mix natural parameters, and add half the square of the change, which keeps them positive.

        1 + δ + ½ δ²,   δ = ρ (w - 1);   that is Λ + ρ G + ½ ρ² G Λ⁻¹ G,   G = E[-∇² log p] - Λ

    At least ½ whatever the curvature is, so a standard deviation grows by no more than √2 in a
    step. It agrees with the mix to first order alone: with a Gaussian target it arrives
    quadratically, not at once. For small rates.

    Args:
        w: eigenvalues of E[-Lᵀ ∇² log p L], [d]; 1 where q has the target's curvature.
        rate: ρ, ().

    Returns:
        [d], positive: the eigenvalues of the new precision in units of the old one.

    Reference: Lin, Schmidt, Khan, Handling the positive-definite constraint in the Bayesian
        learning rule, 2020, arXiv:2002.10060.
    """
    change = rate * (w - 1)
    return 1 + change + 0.5 * jnp.square(change)


def settling(count: Array) -> Array:
    """The default learning rate: 1 for twenty steps, which travel, then 30/(t + 10), which average.

        ρₜ = 30 / max(30, t + 10)

    Steps of length 1 arrive but keep the noise of one step's draws; ρ ~ 1/t averages over the steps
    since. It falls slowly, so that a funnel is walked to its end: 10/(t - 10) stops .3 nats short
    in eight schools, centred, after 1,000 steps, and gains nothing elsewhere. Where the target
    changes (minibatches of a model that still learns) use a constant instead.

    Args:
        count: how many steps were made, ().

    Returns:
        ρ, ().

    Reference: Robbins, Monro, A stochastic approximation method, 1951.
    """
    return 30 / jnp.maximum(30, count + 10)


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

        Λ ← (1 - ρ) Λ + ρ E[-∇² log p],     m ← m + ρ Λ⁻¹ E[∇ log p]     (with the new Λ)

    This is the Fisher matrix's inverse times the ELBO's gradient in natural parameters, by Bonnet's
    and Price's identities. For smooth targets of up to some hundreds of latents it needs tens of
    steps where stochastic gradients need thousands. A step costs one gradient for each draw; with
    `curvature=hessian` d products with the Hessian besides, for which a quarter of the draws
    suffice where log_joint is nearly quadratic, and which heavy tails mislead. Draws come in
    mirrored pairs, under which E[∇ log p] of a Gaussian target is exact; with `hessian` and ρ = 1
    one step then arrives.

    A mean-field q sees each latent by itself, Λ diagonal: along correlations, as those of an
    intercept and a slope, its mean then creeps. With `hessian` the mean moves by Newton's step in
    all latents together and arrives; the variances are those of the diagonal as before.

    Every step is judged before it is taken, by as many fresh draws: it is halved until the ELBO
    does not fall, and left out where it always would, so that a wild start, a funnel or a nan leave
    q finite. `state.taken` says what share was taken; zeros in a row mean that noise is all that is
    left to climb, or too few draws to see a rise.

        rule = natural_gradient(log_joint)
        found = fitting.fit(key, rule, rule.init(params), steps=5000)

    Where the target changes from step to step, as with minibatches, what it carries on is a memory:

        def target(cursor):
            rows, cursor = batches.next(cursor)     # fitting.minibatches(num_data=N, batch_size=B)
            return targets.minibatch(log_prior, lambda z: log_lik(z, x[rows]), num_data=N), cursor

        rule = natural_gradient(target, num_samples=64, learning_rate=0.1)
        state = rule.init(params, memory=batches.init(key))

    Args:
        log_joint: z -> log p(x, z), () for one draw, in nats; or, where `init` is given a memory,
            memory -> (log_joint, memory), called once a step. The target may be of
            `targets.minibatch`.
        num_samples: draws for a step, even; by default max(64, 2 d) of a full-rank q, 64 of a
            mean-field one; 16 may do for `hessian`. Fewer than d are warned of, under `stein` and
            full rank: the noise of d² numbers keeps steps from being taken.
        learning_rate: ρ in (0, 1], or a function of the count of steps; `fit` averages the
            iterates of a constant, such as .2, as well.
        curvature: `stein` or `hessian`.
        retraction: how the precision stays positive, `clipped` or `quadratic`.
        halvings: how often a step may be halved; 0 takes steps as they come, unless they end in
            nan.

    Returns:
        types.Rule: `init(params, memory=None)` of params of `families.full_rank` or `mean_field`,
        `step(key, state) -> (state, Step)`, with the ELBO in nats of the state that came in, and
        `params(state)`. The step is not for differentiating.

    Raises:
        ValueError: for an odd num_samples, a learning_rate outside (0, 1], or a negative number of
            halvings; (step) for leaves of q that log_joint never reads.
        TypeError: (init) for params of another family, or a full-rank q's in half precision.

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
        dense = local.curvature.ndim == 2
        diagonal = jnp.diagonal(local.curvature) if dense else local.curvature
        newton = _newton(local) if dense else local.slope

        def shrink(share: Array) -> GaussianState:
            precision = retraction(diagonal, rate * share)
            change = state.root * (rate * share * newton / (1 if dense else precision))
            return _gaussian.replaced(state, change, state.root / jnp.sqrt(precision))

        return shrink
    # In units of q the old precision is the identity, so that the two mix eigenvalue by eigenvalue.
    w, axes = jnp.linalg.eigh(local.curvature)
    turned, slope = state.root @ axes, axes.T @ local.slope

    def turn(share: Array) -> GaussianState:
        precision = retraction(w, rate * share)
        change = turned @ (rate * share * slope / precision)
        return _gaussian.replaced(state, change, triangle(turned / jnp.sqrt(precision)[None]))

    return turn


def _newton(local: Local) -> Array:
    """Return Newton's step of the mean in units of q, negative curvature by its size."""
    w, axes = jnp.linalg.eigh(local.curvature)
    size = jnp.abs(w)
    least = w.size * jnp.finfo(w.dtype).eps * jnp.max(size)
    return axes @ ((axes.T @ local.slope) / jnp.maximum(size, least))
