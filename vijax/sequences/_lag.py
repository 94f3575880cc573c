"""What is known of a state a few steps later: smoothing with a fixed lag."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vijax import checks
from vijax.folds import sequential
from vijax.numerics import log_normalized
from vijax.sequences._algebra import Element, after, element, pull, tell, transpose
from vijax.sequences._filter import kalman_filter
from vijax.sequences._hmm import factors, filter_states, log_sum, scaled
from vijax.sequences._model import LinearGaussian, Observations, Observed, steps
from vijax.trees import scan


def fixed_lag_smoother(
    model: LinearGaussian, x: Observations, *, lag: int, mask: Observed = None
) -> tuple[Float[Array, "time d"], Float[Array, "time d d"]]:
    """Each state of a linear-Gaussian chain, given the data up to a few steps after it.

        p(zₜ | x₁..ₘ),   m = min(t + lag, T)

    For estimates while data still come in. With lag 0 it is the filter, and with T - 1 the smoother.

    Args:
        model: a LinearGaussian without a diffuse start; its matrices may change in time.
        x: [T, p]; what stands in masked places is not read.
        lag: how many later observations a state is told of; a Python int. The cost is lag T d³ in
            lag steps beside the filter's.
        mask: [T] or [T, p], True where x is observed; all of it where None.

    Returns:
        Means [T, d] and covariances [T, d, d].

    Raises:
        TypeError: for a model that is none, a mask that is not boolean, a lag that is no int.
        ValueError: for T = 0, or shapes that do not agree; a lag below 0; a diffuse start.

    Example:
        >>> one = jnp.ones((1, 1))
        >>> walk = LinearGaussian(jnp.zeros(1), one, one, one, one, one)
        >>> means, covs = fixed_lag_smoother(walk, jnp.array([[2.0], [2.0], [9.0]]), lag=1)
        >>> round(float(means[0, 0]), 3)  # 6/5: 9.0 is not heard yet
        1.2

    Reference: Anderson, Moore, Optimal filtering, 1979, chapter 7.
    """
    checks.static_count(lag, "lag", least=0)
    if isinstance(model, LinearGaussian) and model.diffuse is not None:
        raise ValueError(
            "model has a diffuse start, of which the first states are undetermined: give "
            "initial_cov a large variance and diffuse=None, or use kalman_smoother."
        )
    with jax.default_matmul_precision("highest"):
        known = kalman_filter(model, x, mask=mask)
        return _fixed_lag(lag, model, x, mask, known.mean, known.cov)


@partial(jax.jit, static_argnums=0)
def _fixed_lag(
    lag: int, model: LinearGaussian, x: Array, mask: Array | None, mean: Array, cov: Array
) -> tuple[Array, Array]:
    elements, offset, eta = jax.vmap(element)(steps(model, x, mask))
    # exp(ηᵀ z - ½ zᵀ J z), what the steps after zₜ say of it: each turn hears one step more.
    carry = (jnp.zeros_like(eta), jnp.zeros_like(elements.precision))

    def turn(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        slope, precision = carry
        gain = jax.vmap(tell)(elements, precision)[0]
        back = transpose(gain)
        told = eta + back @ (slope - precision @ offset)
        return (after(told), after(jax.vmap(pull)(elements, gain, precision))), None

    (slope, precision), _ = scan(turn, carry, None, length=lag)
    # The filter's Gaussian, told so much of its state
    alone = Element(jnp.zeros_like(cov), cov, jnp.zeros_like(cov))
    _, smoothed = jax.vmap(tell)(alone, precision)
    moved = smoothed @ (slope - precision @ mean[..., None])
    return mean + moved[..., 0], smoothed


def fixed_lag_marginals(
    log_initial: Float[Array, " s"],
    log_transition: Float[Array, "s s"] | Float[Array, "t s s"],
    log_likelihood: Float[Array, "steps s"],
    *,
    lag: int,
    observed: Bool[Array, " steps"] | None = None,
) -> Float[Array, "steps s"]:
    """Each state of a hidden Markov chain, given the data up to a few steps after it.

        log p(cₜ = s | x₁..ₘ),   m = min(t + lag, T)

    For estimates while data still come in. With lag 0 it is the filter, and with T - 1
    `hmm(...).posterior.log_marginals()`.

    Args:
        log_initial: log p(c₁), [S] in nats, -inf where impossible.
        log_transition: log p(cₜ₊₁ = j | cₜ = i) at [i, j], [S, S]; or at [t, i, j], [T-1, S, S].
        log_likelihood: log p(xₜ | cₜ = s), [T, S].
        lag: how many later observations a state is told of; a Python int. The cost is lag T S².
        observed: [T], False where xₜ is missing.

    Returns:
        Log-probabilities [T, S]; for batches use jax.vmap. Uniform where the data are impossible.

    Raises:
        TypeError: for a lag that is no int.
        ValueError: where the shapes do not fit, T = 0, or the lag is below 0.

    Example:
        >>> stay = jnp.log(jnp.array([[0.9, 0.1], [0.1, 0.9]]))
        >>> seen = jnp.log(jnp.array([[0.5, 0.5], [0.9, 0.1], [0.1, 0.9]]))
        >>> known = fixed_lag_marginals(jnp.log(jnp.full(2, 0.5)), stay, seen, lag=1)
        >>> round(float(jnp.exp(known[0, 0])), 2)  # .9 · .9 + .1 · .1
        0.82

    Reference: Rabiner, A tutorial on hidden Markov models, 1989 (its recursions, ended early).
    """
    checks.static_count(lag, "lag", least=0)
    first, links = factors(log_initial, log_transition, log_likelihood, observed)
    # log p(xₜ₊₁..ₜ₊ₗ | cₜ), up to a constant of each step: each turn hears one step more.
    nothing = jnp.zeros_like(first)[None]

    def turn(future: Array, _: None) -> tuple[Array, None]:
        told = log_sum(jnp.moveaxis(links + future[1:, None, :], 2, 0))
        return jnp.concatenate([jax.vmap(scaled)(told), nothing]), None

    start = jnp.broadcast_to(nothing, (links.shape[0] + 1, first.shape[0]))
    future, _ = scan(turn, start, None, length=lag)
    return log_normalized((filter_states(sequential, first, links) + future).T).T
