"""When a stochastic fit may stop: iterates are stationary, and their average is known."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vijax.fitting._marginals import scale_units
from vijax.fitting._tail import Tail
from vijax.types import PyTree

FAR = 0.03  # units: a trend that leads no further in ten times the steps is none
STOOD = 0.5  # of the steps: where fewer are taken q stands still, wherever it is


class Verdict(NamedTuple):
    """What a stopping rule answers: of each criterion the number that is furthest from it, ().

    Fields:
        done: whether all was met.
        error: the largest standard error of the average, in units.
        shift: the largest half distance of the tail's two halves, in units.
        spread: the largest standard deviation of the iterates, in units.
        drift: how far the largest trend would lead in ten times the steps, in units.
        slope: the largest mean gradient that noise does not explain, in nats for a unit.
        taken: the share of the steps that moved the state.
    """

    done: Array
    error: Array
    shift: Array
    spread: Array
    drift: Array
    slope: Array
    taken: Array


def stationary(
    *,
    error: float = 0.0075,
    spread: float = 0.15,
    unit: Callable[[PyTree], PyTree] = scale_units,
) -> Callable[[Tail], Verdict]:
    """Stop once nothing moves, and the average of the iterates is known well enough.

        max se(θ̄) / unit < .0075,    max |θ̄ - θ̄ of a half| / unit < .015,    max sd(θ) / unit < .15
        trend, mean gradient: none that noise does not explain

    It cannot detect a plateau, a trend slower than the noise shows, or one of several optima: use
    `restarts`.

    Args:
        error: the largest standard error of the averaged parameters, in units.
        spread: the largest standard deviation of the iterates, in units, which bounds the bias that a
            constant rate leaves in averages.
        unit: params -> a pytree like it, or a prefix of it, the unit of each number.

    Returns:
        A rule Tail -> Verdict, for `fit` or for a loop of your own; it jits. Of a dense Gaussian each
        latent's own mean and scale is judged, not the triangle. A trend counts by where it would lead in
        ten times the steps; the mean gradient tells iterates that have arrived from those that a falling
        rate has brought to rest. The bound plays no part: as the rate falls it rises with the noise that
        goes. A rule that takes fewer than half of its steps has not arrived.

    Raises:
        ValueError: for limits that can never be met.

    Example:
        >>> still, moving = {"m": jnp.zeros(())}, {"m": jnp.ones(())}
        >>> tail = Tail(still, still, still, still, still, still, (), 0.0, 1.0, 100)
        >>> bool(stationary()(tail).done), bool(stationary()(tail._replace(drift=moving)).done)
        (True, False)

    Reference: Welandawe, Andersen, Vehtari, Huggins, Robust, automated, and accurate black-box
        variational inference, 2022, arXiv:2203.15945; Dhaka, Catalina, Andersen, Magnusson,
        Huggins, Vehtari, Robust, accurate stochastic optimization for variational inference, 2020,
        arXiv:2009.00666 (batch means of the iterates' tail).
    """
    for name, value in (("error", error), ("spread", spread)):
        if not value > 0:
            raise ValueError(f"{name} must be above 0, got {value!r}: no fit would ever stop.")

    def rule(tail: Tail) -> Verdict:
        units = jax.tree.broadcast(unit(tail.average), tail.error)
        errors, shifts, spreads, drifts = (
            _largest(tree, units) for tree in (tail.error, tail.shift, tail.spread, tail.drift)
        )
        # In nats for a unit already.
        slope = _largest(tail.slope)
        taken = jnp.min(jnp.asarray(tail.taken, jnp.float32))
        known = (errors < error) & (shifts < 2 * error) & (spreads < spread)
        # Known, at rest, and at rest because it has arrived. A nan, as of a gradient that is nan at
        # every step, is no sign of rest.
        rests = (drifts <= FAR) & (slope <= FAR)
        done = known & rests & (taken > STOOD)
        return Verdict(done, errors, shifts, spreads, drifts, slope, taken)

    return rule


def _largest(tree: PyTree, units: PyTree = None) -> Array:
    """Return the largest size of any number in a tree, in units, ()."""
    # `initial` is for leaves without a number.
    units = jax.tree.map(jnp.ones_like, tree) if units is None else units
    sizes = jax.tree.map(lambda x, unit: jnp.max(jnp.abs(x) / unit, initial=0.0), tree, units)
    leaves = [jnp.asarray(leaf, jnp.float32) for leaf in jax.tree.leaves(sizes)]
    return jnp.max(jnp.stack([jnp.float32(0.0), *leaves]))
