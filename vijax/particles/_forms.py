"""Gradients of a particle filter's log evidence, each with its promise in its first line."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from vijax import checks, engine, jaxprs
from vijax.calls import usage
from vijax.numerics import with_score
from vijax.particles._model import Moves, Proposal, StateSpace
from vijax.particles._resample import SYSTEMATIC, Resampler, always
from vijax.particles._run import Filtered, Form, Inputs, Moved, Selected, by_member, gather, run
from vijax.particles._smc import as_kept, by_index, by_path, ratio, stopped
from vijax.resampling import multinomial
from vijax.types import Draws, Estimate, PyTree

Twist = Callable[[Any, Any], Array]


@usage("particles.fivo", "particles.fivo(key, model, data, proposal, num_particles=16)")
def fivo(
    key: Key[Array, ""],
    model: StateSpace,
    data: PyTree,
    proposal: Proposal | None = None,
    *,
    num_particles: int,
    resample: Resampler = SYSTEMATIC,
    twist: Twist | None = None,
    mask: Bool[Array, "time *batch"] | None = None,
    length: Int[Array, "*batch"] | int | None = None,
) -> Estimate:
    """Filtering bound E log Ẑ ≤ log p(x), maximized, with a gradient biased by design: it drops the
    score of resampling.

        ∇ log Ẑ(z(ε, φ), a)   at fixed ancestors a;      dropped:  log Ẑ Σₜ ∇ log P(aₜ | wₜ)

    FIVO, AESMC and VSMC train models and proposals by it, for its low variance. With
    `resample=never` nothing is dropped: IWAE over time, unbiased.

    Args:
        key: a typed key, consumed.
        model: a StateSpace.
        data: a pytree with leading axis T.
        proposal: a Proposal, whose draws carry the derivative of its parameters; the model's own
            transition where None.
        num_particles: N.
        resample: `never`, `always(scheme)`, `adaptive(scheme)`.
        twist, mask, length: as of `smc`; a learned twist is SIXO's.

    Returns:
        Estimate(value, draws): log Ẑ [*batch] in nats. One filter is one draw, of log-weight log Ẑ;
        draws.aux holds its `Filtered`.

    Raises:
        TypeError, ValueError: as `smc`; for draws that miss part of the derivative, as discrete ones.

    Example:
        >>> normal = lambda loc: vj.families.mean_field().dist({"loc": loc, "log_scale": jnp.zeros(())})
        >>> def value(shift):
        ...     walk = vj.particles.StateSpace(
        ...         lambda x: normal(shift), lambda z, x: normal(z), lambda z, x: normal(x).log_prob(z)
        ...     )
        ...     return fivo(jax.random.key(0), walk, jnp.ones(3), num_particles=100).value
        >>> bool(jax.grad(value)(0.0) > 0)
        True

    Reference: Maddison et al., Filtering variational objectives, 2017, arXiv:1705.09279; Le et al.,
        Auto-encoding sequential Monte Carlo, 2018, arXiv:1705.10306; Naesseth et al., Variational
        sequential Monte Carlo, 2018, arXiv:1705.11140.
    """
    form = Form(partial(by_whole_path, "fivo"), by_index(resample, as_kept))
    inputs = Inputs(twist, mask, length)
    return as_estimate(run(key, model, data, proposal, num_particles, form, inputs))


@usage("particles.scored", "particles.scored(key, model, data, proposal, num_particles=16)")
def scored(
    key: Key[Array, ""],
    model: StateSpace,
    data: PyTree,
    proposal: Proposal | None = None,
    *,
    num_particles: int,
    baseline: Float[Array, "time *batch"] | None = None,
    twist: Twist | None = None,
    mask: Bool[Array, "time *batch"] | None = None,
    length: Int[Array, "*batch"] | int | None = None,
) -> Estimate:
    """Filtering bound E log Ẑ ≤ log p(x), maximized, with an unbiased gradient of E log Ẑ, of high
    variance: it keeps the score of resampling.

        ∇ E log Ẑ = E Σₜ [∇ log Ẑₜ + (log Ẑₜ - bₜ) Σ_{s ≤ t} ∇ log P(aₛ | wₛ)],     log Ẑ = Σₜ log Ẑₜ

    For a model or proposal that must climb E log Ẑ itself, and for discrete states: draws without a
    path get their score too.

    Args:
        key: a typed key, consumed.
        model: a StateSpace.
        data: a pytree with leading axis T.
        proposal: a Proposal of fixed support; the model's own transition where None.
        num_particles: N. They are resampled at every step, multinomially: of other schemes the
            score has no variance, and adaptive ones jump.
        baseline: [T, *batch] in nats, taken off log Ẑₜ where it multiplies scores. It must not depend
            on these draws: the increments of another filter, a mean of earlier ones. Without it the
            noise is many times larger.
        twist, mask, length: as of `smc`.

    Returns:
        Estimate(value, draws): log Ẑ [*batch] in nats, as of `fivo`. Derivatives of any order are
        unbiased.

    Raises:
        TypeError, ValueError: as `smc`; for draws without a path whose support moves; inside a
            function that is not linear in the value, where a gradient that is right in its mean is
            not enough.

    Example:
        >>> die = lambda logits: distrax.Categorical(logits=logits)
        >>> def value(logit):
        ...     logits = jnp.stack([logit, 0.0])
        ...     coin = vj.particles.StateSpace(
        ...         lambda x: die(logits), lambda z, x: die(logits), lambda z, x: jnp.where(z == x, -0.1, -2.3)
        ...     )
        ...     return scored(jax.random.key(0), coin, jnp.array([0, 0, 1]), num_particles=10).value
        >>> slope = jax.grad(value)(0.0)

    Reference: Maddison et al., Filtering variational objectives, 2017, arXiv:1705.09279, section 3.3;
        Foerster et al., DiCE: the infinitely differentiable Monte Carlo estimator, 2018,
        arXiv:1802.05098.
    """
    form = Form(by_path_or_score, scored_selection(always(multinomial)))
    inputs = Inputs(twist, mask, length, baseline=baseline)
    result = as_estimate(run(key, model, data, proposal, num_particles, form, inputs))
    through = checks.needs_own_derivative()
    if through is not None:
        refusal = (
            "the derivative of particles.scored is right in its mean alone, and here, inside another "
            f"function, it would pass through {through}: use particles.fisher, whose gradient "
            "times Ẑ is unbiased, or pass it through sums alone. The value alone may stand here."
        )
        return result._replace(value=checks.value_alone(result.value, refusal))
    return result


@usage("particles.fisher", "particles.fisher(key, model, data, proposal, num_particles=16)")
def fisher(
    key: Key[Array, ""],
    model: StateSpace,
    data: PyTree,
    proposal: Proposal | None = None,
    *,
    num_particles: int,
    resample: Resampler = SYSTEMATIC,
    twist: Twist | None = None,
    mask: Bool[Array, "time *batch"] | None = None,
    length: Int[Array, "*batch"] | int | None = None,
) -> Estimate:
    """Log evidence log Ẑ with a consistent gradient of log p(x), biased by design as 1/N: Fisher's
    identity over the particles' paths.

        ∇ log Ẑ = Σᵢ wᵀᵢ ∇ log p(x₁..T, zⁱ₁..T),      E Ẑ ∇ log Ẑ = ∇ p(x)   without bias

    For maximum likelihood, discrete states included. The proposal gets no gradient: draws are held,
    and weights are divided by what they were drawn with. The gradient of bounds.iwae over R filters
    weighs each by its Ẑ.

    Args:
        key: a typed key, consumed.
        model: a StateSpace, whose densities are differentiated at fixed z.
        data: a pytree with leading axis T.
        proposal: a Proposal; the model's own transition where None.
        num_particles: N.
        resample: `never`, `always(scheme)`, `adaptive(scheme)`.
        twist, mask, length: as of `smc`.

    Returns:
        Estimate(value, draws): log Ẑ [*batch] in nats, as of `fivo`. Second derivatives are consistent
        as well.

    Raises:
        TypeError, ValueError: as `smc`; for a transition whose support moves with its parameters.

    Example:
        >>> normal = lambda loc: vj.families.mean_field().dist({"loc": loc, "log_scale": jnp.zeros(())})
        >>> def value(shift):
        ...     walk = vj.particles.StateSpace(
        ...         lambda x: normal(shift), lambda z, x: normal(z), lambda z, x: normal(x).log_prob(z)
        ...     )
        ...     return fisher(jax.random.key(0), walk, jnp.ones(3), num_particles=100).value
        >>> bool(jax.grad(value)(0.0) > 0)
        True

    Reference: Ścibior, Wood, Differentiable particle filtering without modifying the forward pass,
        2021, arXiv:2106.10314; Poyiadjis, Doucet, Singh, Particle approximations of the score and
        observed information matrix in state space models, 2011.
    """
    form = Form(held, by_index(resample, with_score))
    inputs = Inputs(twist, mask, length)
    return as_estimate(run(key, model, data, proposal, num_particles, form, inputs))


# --- what becomes of a draw


def by_whole_path(estimator: str, key: Array, moves: Moves, index: Array, given: PyTree) -> Moved:
    """Draw with the derivative of the path, of which nothing may be missing."""
    for leaf, path in jaxprs.paths(moves.q, engine.iid, key).items():
        if path.broken is not None:
            raise ValueError(
                f"particles.{estimator} needs draws that carry the derivative of the proposal, and "
                f"leaf '{leaf}' {path.broken}; use particles.scored, which takes the score of such "
                "draws, or particles.fisher for the model's parameters."
            )
    return by_path(key, moves, index, given)


def by_path_or_score(key: Array, moves: Moves, index: Array, given: PyTree) -> Moved:
    """Draw with the derivative of the path, or held and with a score where part of the path is missing."""
    paths = jaxprs.paths(moves.q, engine.iid, key)
    if all(path.broken is None for path in paths.values()):
        return by_path(key, moves, index, given)
    _refuse_moving("scored", moves.q, key, paths)
    z = stopped(moves.q.sample_and_log_prob(seed=key, sample_shape=())[0])
    log_q = moves.q.log_prob(z)
    return Moved(z, ratio(moves, z, log_q), log_q)


def held(key: Array, moves: Moves, index: Array, given: PyTree) -> Moved:
    """Draw and hold: the weight is divided by the density it was drawn with, which is a constant."""
    p = moves.q if moves.p is None else moves.p
    _refuse_moving("fisher", p, key, jaxprs.paths(p, engine.iid, key))
    z = stopped(moves.q.sample_and_log_prob(seed=key, sample_shape=())[0])
    log_q = jax.lax.stop_gradient(moves.q.log_prob(z))
    return Moved(z, p.log_prob(z) - log_q)


def _refuse_moving(estimator: str, q: Any, key: Array, paths: dict[str, jaxprs.Path]) -> None:
    moving = jaxprs.moving_support(q, key, paths)
    if moving is not None:
        where = f", in leaf '{moving.leaf}'," if moving.leaf else ""
        raise ValueError(
            f"particles.{estimator} takes the mean of a score for zero, which it is only while the "
            f"support of the draws is fixed; here{where} {moving.why}. Use particles.fivo, where "
            "draws carry their derivative, or declare q.fixed_support = True where it holds."
        )


# --- what becomes of a choice


def scored_selection(resample: Resampler) -> Callable[[Array, PyTree, Array], Selected]:
    """Return a selection of independent ancestors: their log-probability is the sum of their log-weights."""

    def select(key: Array, z: PyTree, log_weights: Array) -> Selected:
        ancestors, kept = by_member(resample, key, log_weights)
        score = jnp.sum(gather(log_weights, ancestors), 0)
        return Selected(gather(z, ancestors), kept, ancestors, score)

    return select


def as_estimate(result: Filtered) -> Estimate:
    """Report one filter as one draw, whose weight is Ẑ."""
    value = result.log_evidence
    aux = jax.tree.map(lambda leaf: leaf[None], result)
    draws = Draws(None, value[None], jnp.zeros_like(value[None]), None, aux)
    return Estimate(value, stopped(draws))
