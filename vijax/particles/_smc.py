"""Particle filters: the evidence of a state-space model by sequential Monte Carlo."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from vijax import checks
from vijax.calls import usage
from vijax.particles._model import Moves, Proposal, StateSpace
from vijax.particles._resample import SYSTEMATIC, Resampler
from vijax.particles._run import (
    Filtered,
    Form,
    Inputs,
    Moved,
    Population,
    Selected,
    by_member,
    gather,
    run,
)
from vijax.types import PyTree

NO_DERIVATIVE = (
    "particles.{} has no derivative: which particle is copied is a jump of its weight. Differentiate "
    "particles.fivo (drops the score of resampling: biased by design), scored (keeps it), fisher "
    "(consistent), or transported (biased by design); where only the value is wanted, take it at "
    "jax.lax.stop_gradient of the parameters."
)


@usage("particles.smc", "particles.smc(key, model, data, num_particles=100)")
def smc(
    key: Key[Array, ""],
    model: StateSpace,
    data: PyTree,
    *,
    proposal: Proposal | None = None,
    num_particles: int,
    resample: Resampler = SYSTEMATIC,
    twist: Callable[[Any, Any], Array] | None = None,
    mask: Bool[Array, "time *batch"] | None = None,
    length: Int[Array, "*batch"] | int | None = None,
    record: Callable[[Population], PyTree] | None = None,
) -> Filtered:
    """Particle filter of a state-space model; log Ẑ is in expectation a lower bound of log p(x).

        Ẑ = Πₜ Σᵢ wₜ₋₁ⁱ p(zₜⁱ | zₜ₋₁ⁱ) p(xₜ | zₜⁱ) / q(zₜⁱ | zₜ₋₁ⁱ, xₜ),      E Ẑ = p(x₁..T)

    Filters of several keys, by jax.vmap, are independent draws: any bound judges their log Ẑ [R], and
    `diagnostics.evidence` gives the error. The N particles of one filter are coupled, and are draws of
    no bound.

    Args:
        key: a typed key, consumed.
        model: a StateSpace, written for one particle.
        data: a pytree with leading axis T, of which step t sees slice t.
        proposal: a Proposal; the model's own transition where None (the bootstrap filter). Proposals
            that read xₜ are guided.
        num_particles: N.
        resample: `never`, `always(scheme)`, `adaptive(scheme)`.
        twist: (zₜ₋₁, xₜ) -> log r, finite, [*batch]: particles are resampled by weight times r, and r
            is taken off again. What r knows of the data ahead is lookahead: log p(xₜ | zₜ₋₁) makes
            the auxiliary particle filter, a learned function of all that follows (put it into the
            data) SIXO. Ẑ is unbiased for any.
        mask: [T, *batch], False where xₜ is missing: its emission then counts for nothing. (Fill in
            any number: a gradient at a nan is nan.)
        length: [*batch], steps of each sequence where they are padded to T; later ones change nothing.
        record: Population -> what to keep of each step, stacked over T; `history` keeps all.

    Returns:
        Filtered(log_evidence, increments, z, log_weights, recorded). Under jit what is not read is not
        kept, so that memory does not grow with T. Where all weights of a step are 0, its increment and
        log_evidence are -inf, with gradient 0 in all forms, and the particles go on with equal weights.

    Raises:
        TypeError: for what is no model, proposal or key.
        ValueError: for data without a common leading axis, shapes that do not agree, N < 1; for a
            derivative of the outcome, which `fivo`, `scored`, `fisher` and `transported` have.

    Example:
        >>> normal = lambda loc: vj.families.mean_field().dist({"loc": loc, "log_scale": jnp.zeros(())})
        >>> walk = StateSpace(
        ...     lambda x: normal(jnp.zeros(())), lambda z, x: normal(z), lambda z, x: normal(x).log_prob(z)
        ... )
        >>> result = smc(jax.random.key(0), walk, jnp.array([0.0, 1.0, 1.0]), num_particles=100)
        >>> result.increments.shape, result.log_weights.shape
        ((3,), (100,))

    Reference: Doucet, de Freitas, Gordon, Sequential Monte Carlo methods in practice, 2001; Pitt,
        Shephard, Filtering via simulation: auxiliary particle filters, 1999; Lawson et al., SIXO:
        smoothing inference with twisted objectives, 2022, arXiv:2206.05952.
    """
    inputs = Inputs(twist, mask, length, record)
    form = Form(by_path, by_index(resample, as_kept))
    result = run(key, model, data, proposal, num_particles, form, inputs)
    return checks.value_alone(result, NO_DERIVATIVE.format("smc"))


def history(population: Population) -> Population:
    """Keep all particles of every step: `record=history`.

        zₜⁱ, log wₜⁱ, aₜⁱ   for t = 1 ... T

    For `trace_back` and `backward_simulate`, in memory of T N.

    Args:
        population: of one step.

    Returns:
        The same, so that `recorded` is a Population with leading axis T.

    Example:
        >>> population = Population(jnp.zeros(2), jnp.log(jnp.full(2, 0.5)), jnp.arange(2))
        >>> history(population) is population
        True

    Reference: none.
    """
    return population


# --- how derivatives pass, piece by piece


def by_path(key: Array, moves: Moves, index: Array, given: PyTree) -> Moved:
    """Draw with the derivative of the path."""
    z, log_q = moves.q.sample_and_log_prob(seed=key, sample_shape=())
    return Moved(z, ratio(moves, z, log_q))


def ratio(moves: Moves, z: PyTree, log_q: Array) -> Array:
    """Return log p(z) - log q(z), 0 where the two are one."""
    if moves.p is None:
        return jnp.zeros_like(log_q)
    log_p = moves.p.log_prob(z)
    checks.log_densities(log_p, log_q, z, ("log p(z)", "log q(z)"))
    return log_p - log_q


def as_kept(kept: Array, chosen: Array) -> Array:
    """Return the log-weights that particles go on with; the chosen ones' slopes are dropped."""
    return kept


def by_index(
    resample: Resampler, weigh: Callable[[Array, Array], Array]
) -> Callable[[Array, PyTree, Array], Selected]:
    """Return how particles are selected that are copied whole.

    Args:
        resample: of one filter.
        weigh: (log-weights that particles go on with, their ancestors' log-weights) -> the former, with
            the derivative of the form.
    """

    def select(key: Array, z: PyTree, log_weights: Array) -> Selected:
        ancestors, kept = by_member(resample, key, log_weights)
        kept = weigh(kept, gather(log_weights, ancestors))
        return Selected(gather(z, ancestors), kept, ancestors)

    return select


def stopped(z: PyTree) -> PyTree:
    """Return a draw without its derivative."""
    return jax.tree.map(jax.lax.stop_gradient, z)
