"""When a stochastic fit may stop: iterates are stationary, and their average is known."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vijax.fitting._iterates import Tail
from vijax.types import PyTree


class Verdict(NamedTuple):
    """What a stopping rule found at the number that is furthest from being met, each ().

    Fields:
        done: whether all was met.
        rhat: the largest.
        error: the largest standard error of the average, in units.
        ess: the smallest effective number of iterates.
    """

    done: Array
    rhat: Array
    error: Array
    ess: Array


def scale_units(average: PyTree) -> PyTree:
    """Return the unit of each parameter's error: q's own scale for its location, 1 for the rest.

        unit(loc) = exp(log_scale),     unit(anything else) = 1

    A location is known well enough when its error is small beside the posterior's own spread;
    logarithms of scales and relative triangles are numbers without a unit already. This reads
    params as `vijax.families` write them: wherever a dict has `loc` and `log_scale` of the same
    shapes. For others write your own, as a pytree like params.

    Args:
        average: params.

    Returns:
        A pytree like params.

    Reference: Welandawe, Andersen, Vehtari, Huggins, Robust, automated, and accurate black-box
        variational inference, 2022, arXiv:2203.15945.
    """
    if isinstance(average, Mapping):
        found = {name: scale_units(part) for name, part in average.items()}
        if {"loc", "log_scale"} <= set(average):
            loc, log_scale = average["loc"], average["log_scale"]
            if jax.tree.map(jnp.shape, loc) == jax.tree.map(jnp.shape, log_scale):
                found["loc"] = jax.tree.map(jnp.exp, log_scale)
        return found
    if isinstance(average, (list, tuple)):
        parts = [scale_units(part) for part in average]
        return type(average)(*parts) if hasattr(average, "_fields") else type(average)(parts)
    return jax.tree.map(jnp.ones_like, average)


def stationary(
    *,
    rhat: float = 1.1,
    error: float = 0.02,
    ess: float = 50.0,
    unit: Callable[[PyTree], PyTree] = scale_units,
) -> Callable[[Tail], Verdict]:
    """Stop once the iterates are stationary, and their average is known well enough.

        max R̂ < 1.1,    max se(θ̄) / unit < .02,    min ess > 50     over all parameters

    With a constant step size iterates first travel, then wander about the optimum. R-hat of the two
    halves of a tail tells one from the other; while they wander, the average of the tail is far
    better than any of them, and the means of its batches say how well it is known. The bound's own
    noise, which is many times what a step gains, plays no part. It cannot see a fit that has not
    left a plateau, nor one of several optima: use `restarts`. With a step size that goes to zero,
    iterates stand still wherever they are: this rule is for a constant one.

    Args:
        rhat: the largest R-hat allowed; the tail is chosen to have the smallest, from the last
            quarter to 95 % of all.
        error: the largest standard error of the averaged parameters, in units.
        ess: the fewest effectively independent iterates.
        unit: params -> a pytree like it, or a prefix of it, the unit of each number.

    Returns:
        A rule Tail -> Verdict, for `fit` or for a loop of your own; it jits.

    Raises:
        ValueError: for limits that can never be met.

    Reference: Welandawe, Andersen, Vehtari, Huggins, Robust, automated, and accurate black-box
        variational inference, 2022, arXiv:2203.15945; Dhaka, Catalina, Andersen, Magnusson,
        Huggins, Vehtari, Robust, accurate stochastic optimization for variational inference, 2020,
        arXiv:2009.00666. Of theirs this is the rule at one step size.
    """
    for name, value, least in (("rhat", rhat, 1.0), ("error", error, 0.0), ("ess", ess, -1.0)):
        if not value > least:
            raise ValueError(
                f"{name} must be above {least:g}, got {value!r}: no fit would ever stop."
            )

    def rule(tail: Tail) -> Verdict:
        units = jax.tree.broadcast(unit(tail.average), tail.error)
        relative = jax.tree.map(lambda e, u: jnp.max(e / u, initial=0.0), tail.error, units)
        errors = [jnp.asarray(l, jnp.float32) for l in jax.tree.leaves(relative)]
        counts = [
            jnp.asarray(jnp.min(l, initial=jnp.inf), jnp.float32) for l in jax.tree.leaves(tail.ess)
        ]
        largest = jnp.max(jnp.stack([jnp.float32(0.0), *errors]))
        fewest = jnp.min(jnp.stack([jnp.asarray(tail.number, jnp.float32), *counts]))
        done = (tail.worst < rhat) & (largest < error) & (fewest > ess)
        return Verdict(done, tail.worst, largest, fewest)

    return rule
