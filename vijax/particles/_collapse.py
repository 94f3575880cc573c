"""Rao-Blackwellized filters: what of a state has a closed form given the rest is carried as its moments."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import jax.scipy.linalg as linalg
from jaxtyping import Array, Float

from vijax.calls import usage
from vijax.gaussians.affine import LOG_2PI
from vijax.numerics import expand, log_mean_exp, log_normalized
from vijax.particles._model import Carried, StateSpace, carrying
from vijax.types import Distribution, PyTree


@usage("particles.rao_blackwell")
def rao_blackwell(
    initial: Callable[[Any], Any],
    transition: Callable[[Any, Any], Any],
    begin: Callable[[Any, Any], tuple[PyTree, Array]],
    update: Callable[[PyTree, Any, Any], tuple[PyTree, Array]],
) -> StateSpace:
    """State-space model of a part u of the states, the rest integrated out along each particle's path.

        wₜ = p(xₜ | u₁..ₜ, x₁..ₜ₋₁),     statistics sₜ of p(vₜ | u₁..ₜ, x₁..ₜ)

    A filter of it has less variance than one of (u, v), particle for particle. `conditionally_gaussian`
    and `conditionally_discrete` write begin and update for you.

    Args:
        initial: x₁ -> the distribution of u₁.
        transition: (uₜ₋₁, xₜ) -> the distribution of uₜ.
        begin: (u₁, x₁) -> (s₁, log p(x₁ | u₁)).
        update: (sₜ₋₁, uₜ, xₜ) -> (sₜ, log p(xₜ | u₁..ₜ, x₁..ₜ₋₁)); steps without data are its own
            matter, since a filter's `mask` does not reach into it.

    Returns:
        A StateSpace whose z is Carried(u, (s, log-likelihood)).

    Example:
        >>> model = rao_blackwell(
        ...     lambda x: distrax.Normal(0.0, 1.0),
        ...     lambda u, x: distrax.Normal(u, 1.0),
        ...     lambda u, x: (x, -jnp.square(x - u)),
        ...     lambda s, u, x: (s + x, -jnp.square(x - u)),
        ... )
        >>> result = vj.particles.smc(jax.random.key(0), model, jnp.ones(3), num_particles=4)
        >>> result.z.carried[0].tolist()
        [3.0, 3.0, 3.0, 3.0]

    Reference: Doucet, de Freitas, Murphy, Russell, Rao-Blackwellised particle filtering for dynamic
        Bayesian networks, 2000, arXiv:1301.3853.
    """

    def first(x: Any) -> Distribution:
        return carrying(initial(x), lambda u: begin(u, x))

    def then(state: Carried, x: Any) -> Distribution:
        return carrying(transition(state.z, x), lambda u: update(state.carried[0], u, x))

    return StateSpace(first, then, lambda state, x: state.carried[1])


class GaussianStep(NamedTuple):
    """One step of a linear-Gaussian part v, given u.

        vₜ = transition vₜ₋₁ + transition_offset + N(0, transition_cov)
        xₜ = emission vₜ + emission_offset + N(0, emission_cov)

    Fields:
        transition, transition_cov: [d, d], of no account at the first step.
        emission: [p, d].
        emission_cov: [p, p], positive definite.
        transition_offset: [d]; 0 where None.
        emission_offset: [p]; 0 where None.
    """

    transition: Float[Array, "d d"]
    transition_cov: Float[Array, "d d"]
    emission: Float[Array, "p d"]
    emission_cov: Float[Array, "p p"]
    transition_offset: Float[Array, " d"] | None = None
    emission_offset: Float[Array, " p"] | None = None


@usage("particles.conditionally_gaussian")
def conditionally_gaussian(
    initial: Callable[[Any], Any],
    transition: Callable[[Any, Any], Any],
    start: Callable[[Any], tuple[Array, Array]],
    linear: Callable[[Any, Any], GaussianStep],
    *,
    observation: Callable[[Any], Array],
) -> StateSpace:
    """State-space model whose states v are linear and Gaussian given u, integrated by Kalman's steps.

        wₜ = N(xₜ; H mₜ₋, H Pₜ₋ Hᵀ + R),     v | u₁..ₜ, x₁..ₜ ~ N(mₜ, Pₜ)

    For switching linear models, and models that are nonlinear in a few states only.

    Args:
        initial: x₁ -> the distribution of u₁.
        transition: (uₜ₋₁, xₜ) -> the distribution of uₜ.
        start: u₁ -> mean [d] and covariance [d, d] of v₁.
        linear: (uₜ, xₜ) -> GaussianStep.
        observation: slice of the data -> xₜ [p]; nan in places counts as missing.

    Returns:
        A StateSpace whose z is Carried(u, ((mean, cov), log-likelihood)).

    Example:
        >>> one = jnp.ones((1, 1))
        >>> model = conditionally_gaussian(
        ...     lambda x: distrax.Bernoulli(probs=0.5),
        ...     lambda u, x: distrax.Bernoulli(probs=0.1 + 0.8 * u),
        ...     lambda u: (jnp.zeros(1), one),
        ...     lambda u, x: GaussianStep(one, 0.1 * one, one, (1.0 + 9.0 * u) * one),
        ...     observation=lambda x: x,
        ... )
        >>> result = vj.particles.smc(jax.random.key(0), model, jnp.ones((3, 1)), num_particles=10)
        >>> result.z.carried[0][0].shape
        (10, 1)

    Reference: Doucet, Godsill, Andrieu, On sequential Monte Carlo sampling methods for Bayesian
        filtering, 2000.
    """

    def begin(u: Any, x: Any) -> tuple[tuple[Array, Array], Array]:
        return _correct(*start(u), linear(u, x), observation(x))

    def update(moments: tuple[Array, Array], u: Any, x: Any) -> tuple[PyTree, Array]:
        step = linear(u, x)
        mean, cov = moments
        mean = step.transition @ mean
        if step.transition_offset is not None:
            mean = mean + step.transition_offset
        cov = step.transition @ cov @ step.transition.T + step.transition_cov
        return _correct(mean, cov, step, observation(x))

    return rao_blackwell(initial, transition, begin, update)


def _correct(
    mean: Array, cov: Array, step: GaussianStep, x: Array
) -> tuple[tuple[Array, Array], Array]:
    """Return moments given an observation, and its log-density; a missing component reads nothing."""
    missing = jnp.isnan(x)
    # It becomes the number 0 that was predicted as N(0, 1), less that density's constant.
    emission = jnp.where(missing[:, None], 0.0, step.emission)
    unit = jnp.eye(x.shape[0], dtype=step.emission_cov.dtype)
    noise = jnp.where(missing[:, None] | missing[None], unit, step.emission_cov)
    offset = jnp.zeros_like(x) if step.emission_offset is None else step.emission_offset
    surprise = jnp.where(missing, 0.0, jnp.where(missing, 0.0, x) - offset) - emission @ mean
    root = jnp.linalg.cholesky(emission @ cov @ emission.T + noise)
    white = linalg.solve_triangular(root, surprise[:, None], lower=True)[:, 0]
    half = linalg.solve_triangular(root, emission @ cov, lower=True)
    # Joseph's form: a sum of squares stays positive in float32
    gain = linalg.solve_triangular(root, half, lower=True, trans=1).T
    kept = jnp.eye(mean.shape[0], dtype=cov.dtype) - gain @ emission
    cov = kept @ cov @ kept.T + gain @ noise @ gain.T
    constant = jnp.sum(jnp.where(missing, 0.0, LOG_2PI)) + 2 * jnp.sum(jnp.log(jnp.diagonal(root)))
    log_density = -0.5 * (jnp.sum(jnp.square(white)) + constant)
    return (mean + gain @ surprise, 0.5 * (cov + cov.T)), log_density


@usage("particles.conditionally_discrete")
def conditionally_discrete(
    initial: Callable[[Any], Any],
    transition: Callable[[Any, Any], Any],
    log_initial: Callable[[Any, Any], Float[Array, " s"]],
    log_transition: Callable[[Any, Any], Float[Array, "s s"]],
    log_likelihood: Callable[[Any, Any], Float[Array, " s"]],
) -> StateSpace:
    """State-space model with a discrete chain c of S states given u, summed out by the forward algorithm.

        wₜ = Σ_c p(cₜ = c | u₁..ₜ, x₁..ₜ₋₁) p(xₜ | c, uₜ)

    For regimes beside continuous states, at a cost of S² a step and particle.

    Args:
        initial: x₁ -> the distribution of u₁.
        transition: (uₜ₋₁, xₜ) -> the distribution of uₜ.
        log_initial: (u₁, x₁) -> log p(c₁ | u₁), [S].
        log_transition: (uₜ, xₜ) -> log p(cₜ = j | cₜ₋₁ = i, uₜ) at [i, j], [S, S].
        log_likelihood: (uₜ, xₜ) -> log p(xₜ | cₜ, uₜ), [S].

    Returns:
        A StateSpace whose z is Carried(u, (log p(cₜ | u₁..ₜ, x₁..ₜ) [S], log-likelihood)).

    Example:
        >>> model = conditionally_discrete(
        ...     lambda x: distrax.Normal(0.0, 1.0),
        ...     lambda u, x: distrax.Normal(u, 1.0),
        ...     lambda u, x: jnp.log(jnp.full(2, 0.5)),
        ...     lambda u, x: jnp.log(jnp.full((2, 2), 0.5)),
        ...     lambda u, x: distrax.Normal(u + jnp.array([-1.0, 1.0]), 1.0).log_prob(x),
        ... )
        >>> result = vj.particles.smc(jax.random.key(0), model, jnp.ones(3), num_particles=10)
        >>> result.z.carried[0].shape
        (10, 2)

    Reference: Doucet, de Freitas, Murphy, Russell, Rao-Blackwellised particle filtering for dynamic
        Bayesian networks, 2000, arXiv:1301.3853.
    """

    def weigh(predicted: Array, u: Any, x: Any) -> tuple[Array, Array]:
        # [S]: log p(cₜ, xₜ | past)
        both = predicted + log_likelihood(u, x)
        return log_normalized(both), _log_sum(both)

    def begin(u: Any, x: Any) -> tuple[Array, Array]:
        return weigh(log_initial(u, x), u, x)

    def update(filtered: Array, u: Any, x: Any) -> tuple[Array, Array]:
        rows = log_transition(u, x)
        return weigh(_log_sum(expand(filtered, rows) + rows), u, x)

    return rao_blackwell(initial, transition, begin, update)


def _log_sum(x: Array) -> Array:
    return log_mean_exp(x) + jnp.log(jnp.asarray(x.shape[0], x.dtype))
