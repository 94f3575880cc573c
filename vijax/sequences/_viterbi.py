"""The most likely path of a hidden Markov chain."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vijax.folds import Fold, backward, sequential
from vijax.sequences._hmm import factors, scaled


class MostLikely(NamedTuple):
    """The path of a hidden Markov chain that explains the data best.

    Fields:
        path: its states, [T].
        log_joint: log p(x, c) of it, () in nats.
    """

    path: Int[Array, " time"]
    log_joint: Float[Array, ""]


def viterbi(
    log_initial: Float[Array, " s"],
    log_transition: Float[Array, "s s"] | Float[Array, "t s s"],
    log_likelihood: Float[Array, "steps s"],
    *,
    observed: Bool[Array, " steps"] | None = None,
    fold: Fold = sequential,
) -> MostLikely:
    """Most likely path of a hidden Markov chain of S states and T steps.

        c* = argmax_c p(c₁) p(x₁ | c₁) Πₜ p(cₜ₊₁ | cₜ) p(xₜ₊₁ | cₜ₊₁)

    For a segmentation or a decoding. It is one path: the likeliest state of each step by itself is the
    largest of `hmm(...).posterior.log_marginals()`, and the two differ.

    Args:
        log_initial: log p(c₁), [S] in nats, -inf where impossible.
        log_transition: log p(cₜ₊₁ = j | cₜ = i) at [i, j], [S, S]; or at [t, i, j], [T-1, S, S].
        log_likelihood: log p(xₜ | cₜ = s), [T, S].
        observed: [T], False where xₜ is missing.
        fold: `sequential`, T S² in T steps; or `associative`, T S³ in about log₂ T.

    Returns:
        MostLikely(path, log_joint). Of paths that are equally likely to rounding, that whose last state
        has the smallest number, then the one before it, and so on. The slope of log_joint is the
        path's own, a subgradient at ties. Where no path is possible log_joint is -inf, and the path
        means nothing. For batches use jax.vmap.

    Raises:
        ValueError: where the shapes do not fit, or T = 0.

    Example:
        >>> stay = jnp.log(jnp.array([[0.9, 0.1], [0.1, 0.9]]))
        >>> seen = jnp.log(jnp.array([[0.8, 0.2], [0.8, 0.2], [0.3, 0.7], [0.8, 0.2]]))
        >>> viterbi(jnp.log(jnp.full(2, 0.5)), stay, seen).path.tolist()
        [0, 0, 0, 0]

    Reference: Viterbi, Error bounds for convolutional codes and an asymptotically optimum decoding
        algorithm, 1967; Särkkä, García-Fernández, Temporal parallelization of inference in hidden
        Markov models, 2021, arXiv:2102.05743.
    """
    first, steps = factors(log_initial, log_transition, log_likelihood, observed)
    # log p of the best path to each state, up to a constant of each step: [T, S]
    stopped, links = jax.lax.stop_gradient((first, steps))
    best = fold(_row, scaled(stopped), links)
    # The state before, for every state after, [T-1, S]; argmax takes the smallest of equals.
    maps = jnp.argmax(best[:-1, :, None] + links, 1)
    path = backward(fold, lambda at, link: link[at], jnp.argmax(best[-1]), maps)
    taken = jax.vmap(lambda link, i, j: link[i, j])(steps, path[:-1], path[1:])
    return MostLikely(path, first[path[0]] + jnp.sum(taken))


def _row(row: Array, matrix: Array) -> Array:
    """Multiply a row, or each row of a matrix, by a matrix in the max-plus algebra, up to a constant."""
    product: Array = jnp.max(row[..., :, None] + (matrix[None] if row.ndim == 2 else matrix), -2)
    return scaled(product)
