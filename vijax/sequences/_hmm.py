"""Hidden Markov chains summed out exactly: evidence, marginals, and draws of the whole path."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vijax.folds import Fold, backward, sequential
from vijax.numerics import log_mean_exp, log_normalized


class Path(NamedTuple):
    """The exact posterior of a chain's states, as a chain from the last state to the first: a distribution of c [T].

    A pytree; what `jax.vmap` makes of it keeps its methods, with batch axes [*batch].

    Fields:
        log_last: log p(c_T = s | x), [*batch, S].
        log_back: log p(cₜ = i | cₜ₊₁ = j, x) at [..., t, i, j], [*batch, T-1, S, S].
    """

    log_last: Array
    log_back: Array

    def sample_and_log_prob(
        self, *, seed: Array, sample_shape: Sequence[int] = (), fold: Fold = sequential
    ) -> tuple[Array, Array]:
        """Draw paths [*sample_shape, *batch, T], which no fold changes; return them with log p(c | x)."""
        shape = tuple(sample_shape) + self.log_last.shape[:-1]
        # Gumbel noise for every step and state, so that no fold changes the draw
        noise = jax.random.gumbel(
            seed, (*shape, self.log_back.shape[-3] + 1, self.log_last.shape[-1])
        )
        draw = self._batched(partial(_draw, fold))
        for _ in tuple(sample_shape):
            draw = jax.vmap(draw, (None, None, 0))
        c = draw(self.log_last, self.log_back, noise.astype(self.log_last.dtype))
        log_prob = self.log_prob
        for _ in tuple(sample_shape):
            log_prob = jax.vmap(log_prob)
        return c, log_prob(c)

    def log_prob(self, c: Array, /) -> Array:
        """Return log p(c | x) of a path c [*batch, T], shape [*batch]."""
        c = jnp.asarray(c)
        if not jnp.issubdtype(c.dtype, jnp.integer):
            raise TypeError(f"a path holds whole numbers, the states; got {c.dtype}.")
        expected = (*self.log_last.shape[:-1], self.log_back.shape[-3] + 1)
        if jnp.shape(c) != expected:
            raise ValueError(f"a path has shape {expected}, [*batch, T]; got {jnp.shape(c)}.")
        log_prob = self._batched(_log_prob)(self.log_last, self.log_back, c)
        # A state outside of 0 ... S-1 would index another one.
        possible = jnp.all((c >= 0) & (c < self.log_last.shape[-1]), -1)
        return jnp.where(possible, log_prob, -jnp.inf)

    def log_marginals(self, *, fold: Fold = sequential) -> Array:
        """Return log p(cₜ = s | x), [*batch, T, S]: forward-backward."""
        return jnp.asarray(self._batched(partial(_marginals, fold))(self.log_last, self.log_back))

    def log_pairs(self, *, fold: Fold = sequential) -> Array:
        """Return log p(cₜ = i, cₜ₊₁ = j | x), [*batch, T-1, S, S]."""
        return self.log_back + self.log_marginals(fold=fold)[..., 1:, None, :]

    def _batched(self, function: Callable[..., Any]) -> Callable[..., Any]:
        for _ in range(self.log_last.ndim - 1):
            function = jax.vmap(function)
        return function


class HMM(NamedTuple):
    """What is left when a chain's states are summed out.

    Fields:
        log_evidence: log p(x), () in nats.
        posterior: p(c | x), a distribution of the path c [T].
    """

    log_evidence: Array
    posterior: Path


def hmm(
    log_initial: Float[Array, " s"],
    log_transition: Float[Array, "s s"] | Float[Array, "t s s"],
    log_likelihood: Float[Array, "steps s"],
    *,
    observed: Bool[Array, " steps"] | None = None,
    fold: Fold = sequential,
) -> HMM:
    """Sum out a hidden Markov chain of S states and T steps.

        log p(x) = log Σ_c p(c₁) p(x₁ | c₁) Πₜ p(cₜ₊₁ | cₜ) p(xₜ₊₁ | cₜ₊₁)

    For latents that are a discrete chain (regimes, segments, alignments), at a cost of T S². What
    the arrays depend on stays latent or learned.

    Args:
        log_initial: log p(c₁), [S] in nats, -inf where impossible. Factors need not be normalized:
            then log_evidence is the log partition function.
        log_transition: log p(cₜ₊₁ = j | cₜ = i) at [i, j], [S, S]; or at [t, i, j], [T-1, S, S].
        log_likelihood: log p(xₜ | cₜ = s), [T, S].
        observed: [T], False where xₜ is missing: its log-likelihood then counts for nothing, nan
            included. (A gradient of the log-likelihood at a nan is yours to avoid: fill in any
            number.)
        fold: `sequential`, or `associative` for a tree of S × S log-space matrix products, T S³ in
            about log₂ T steps: equal numbers, but in float32 where states that cannot be reached
            explain the data far better than those that can: some .02 nats are lost in 1,000 steps
            of 50 nats each.

    Returns:
        HMM(log_evidence, posterior): log p(x), (), whose derivative is the posterior's marginals,
        to any order; and p(c | x): `sample_and_log_prob` (exact draws of the path), `log_prob`,
        `log_marginals()` [T, S], `log_pairs()` [T-1, S, S]. For batches use jax.vmap, whose
        posterior keeps its methods. Impossible data has log_evidence -inf with gradient 0, and a
        uniform posterior.

    Raises:
        ValueError: where the shapes do not fit, or T = 0.

    Example:
        >>> stay = jnp.log(jnp.array([[0.9, 0.1], [0.1, 0.9]]))
        >>> chain = jax.jit(hmm)(jnp.log(jnp.full(2, 0.5)), stay, jnp.zeros((4, 2)))
        >>> path = jnp.array([0, 0, 1, 1])  # 0.5 · 0.9 · 0.1 · 0.9
        >>> round(float(jnp.exp(chain.posterior.log_prob(path))), 4)
        0.0405

    Reference: Rabiner, A tutorial on hidden Markov models, 1989; Särkkä, García-Fernández, Temporal
        parallelization of inference in hidden Markov models, 2021, arXiv:2102.05743.
    """
    first, steps = factors(log_initial, log_transition, log_likelihood, observed)
    filtered = filter_states(fold, first, steps)
    last = filtered[-1]
    # p(cₜ | cₜ₊₁, x) ∝ p(cₜ | x₁..ₜ) p(cₜ₊₁ | cₜ), [T-1, S, S], normalized over cₜ
    back = jax.vmap(log_normalized)(filtered[:-1, :, None] + steps)
    return HMM(_evidence(fold, first, steps), Path(last, back))


def factors(
    log_initial: Array, log_transition: Array, log_likelihood: Array, observed: Array | None
) -> tuple[Array, Array]:
    """Return the chain as one row [S] and T-1 matrices [T-1, S, S]."""
    initial, transition, likelihood = (
        jnp.asarray(a) for a in (log_initial, log_transition, log_likelihood)
    )
    s = initial.shape[-1] if initial.ndim else 0
    if (
        likelihood.ndim != 2
        or initial.ndim != 1
        or likelihood.shape[1] != s
        or 0 in likelihood.shape
    ):
        raise ValueError(
            f"log_initial must be [S] and log_likelihood [T, S] with T >= 1, got {initial.shape} "
            f"and {likelihood.shape}; for batches use jax.vmap."
        )
    t = likelihood.shape[0]
    if transition.shape not in ((s, s), (t - 1, s, s)):
        raise ValueError(
            f"log_transition must be {(s, s)} or [T-1, S, S] = {(t - 1, s, s)}, got "
            f"{transition.shape}."
        )
    if observed is not None:
        present = jnp.asarray(observed)
        if present.shape != (t,) or present.dtype != bool:
            raise ValueError(
                f"observed must be booleans of shape [T] = {(t,)}, got "
                f"{present.dtype}{list(present.shape)}."
            )
        likelihood = jnp.where(present[:, None], likelihood, 0.0)
    steps = (
        jnp.broadcast_to(transition, (t - 1, s, s)) if transition.ndim == 3 else transition[None]
    )
    # Each matrix carries the likelihood of the state it leads to.
    return initial + likelihood[0], steps + likelihood[1:, None, :]


def log_sum(x: Array) -> Array:
    return log_mean_exp(x) + math.log(x.shape[0])


def scaled(x: Array) -> Array:
    """Bring the largest entry to 0, so that a long chain loses no digits to the size of its evidence."""
    top = jax.lax.stop_gradient(jnp.max(x))
    return x - jnp.where(jnp.isfinite(top), top, 0.0)


def _row(row: Array, matrix: Array) -> Array:
    """Multiply a row, or each row of a matrix, by a matrix, in logs and up to a factor."""
    # log Σₖ exp(aₖᵢ + bₖⱼ), over [k, i, j]
    a = row.T if row.ndim == 2 else row[:, None]
    product = log_sum(a[:, :, None] + matrix[:, None, :])
    return scaled(product if row.ndim == 2 else product[0])


def filter_states(fold: Fold, first: Array, steps: Array) -> Array:
    """Return log p(cₜ | x₁...xₜ), [T, S]."""
    return log_normalized(fold(_row, scaled(first), steps).T).T


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _evidence(fold: Fold, first: Array, steps: Array) -> Array:
    """Return log Σ over paths: the sum of log p(xₜ₊₁ | x₁...xₜ), each of the size of one datum's."""
    predicted = filter_states(fold, first, steps)[:-1, :, None] + steps
    s = first.shape[0]
    # log p(xₜ₊₁ | x₁..ₜ): the sum over both states, [T-1]
    each = (
        log_sum(jnp.moveaxis(predicted.reshape(-1, s * s), 1, 0))
        if len(steps)
        else jnp.zeros(0, first.dtype)
    )
    return log_sum(first) + jnp.sum(each)


@_evidence.defjvp
def _evidence_jvp(
    fold: Fold, primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    first, steps = primals
    value = _evidence(fold, first, steps)
    filtered = filter_states(fold, first, steps)
    path = Path(filtered[-1], jax.vmap(log_normalized)(filtered[:-1, :, None] + steps))
    marginals = _marginals(fold, path.log_last, path.log_back)
    # The slope is the posterior's expected number of each start and transition.
    possible = (value > -jnp.inf).astype(first.dtype)
    pairs = jnp.exp(path.log_back + marginals[1:, None, :])
    slope = jnp.sum(jnp.exp(marginals[0]) * tangents[0]) + jnp.sum(pairs * tangents[1])
    return value, possible * slope


def _marginals(fold: Fold, last: Array, back: Array) -> Array:
    # Rows times matrices from the last state on: cₜ₊₁ indexes the rows.
    marginals = backward(fold, _row, last, jnp.swapaxes(back, 1, 2))
    return log_normalized(marginals.T).T


def _draw(fold: Fold, last: Array, back: Array, noise: Array) -> Array:
    """Draw a path by Gumbel's trick: the noise of a step makes a map from the next state to this, and maps compose."""
    # [T-1, j]: the state before, for every state j after
    maps = jnp.argmax(back + noise[:-1, :, None], 1)
    end = jnp.argmax(last + noise[-1])
    return backward(fold, lambda at, step: step[at], end, maps)


def _log_prob(last: Array, back: Array, c: Array) -> Array:
    steps = jax.vmap(lambda b, i, j: b[i, j])(back, c[:-1], c[1:])
    return last[c[-1]] + jnp.sum(steps)
