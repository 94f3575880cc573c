"""The last sentence of a fit: whether it arrived, what still moved, and why it stood still."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from vijax import checks
from vijax.fitting import _tail, _trouble
from vijax.fitting._loop import Loop
from vijax.fitting._marginals import scale_units
from vijax.fitting._stopping import FAR, STOOD, Verdict
from vijax.fitting._tail import BATCHES, Tail

# The usual cause of a gradient that is nan where the value is finite.
MASK = (
    "data that are nan are masked before the density as well as after it, "
    "where(mask, log_prob(where(mask, y, 0)), 0)"
)


def ending(step: Callable[..., Any], loop: Loop, stopped: str, verdict: Verdict | None) -> str:
    """Return why a fit stopped, and what is to be known of it; warn where its answer misleads."""
    tail = _tail.judged(_tail.tail(loop.iterates))
    # Infinite errors of short tails divide by each other here, which is no fault.
    with np.errstate(all="ignore"):
        stood, moved = _stood(step, loop, tail), _moved(loop, tail)
    for said in (stood, moved):
        if said:
            stopped = f"{stopped}; {said}"
            warnings.warn(f"{said} ({stopped.split(';')[0]})", stacklevel=4)
    if verdict is not None and not (stood or moved):
        stopped += (
            f"; nothing was seen to move, and the average is known to a standard error of "
            f"{verdict.error:.2g} units, the spread of the iterates {verdict.spread:.2g}"
        )
    return stopped


def _stood(step: Callable[..., Any], loop: Loop, tail: Tail) -> str:
    """Say that steps were not taken, and why."""
    taken = float(np.min(tail.taken, initial=1.0))
    if not int(loop.iterates.number) or taken > STOOD:
        return ""
    # The step is done once more, to find out whether its gradient is finite.
    counts = jax.jit(partial(_trouble.counts, step))(loop.key, loop.state)
    # A nan in the gradient is nearly always of masked data; the leaf says whose.
    for name in _trouble.names(*jax.device_get(counts)):
        if name.startswith(_trouble.GRADIENT):
            leaf, _, numbers = name.partition(",")
            return f"no step can be taken, for {leaf} is not finite in{numbers}: {MASK}"
    return (
        f"{1 - taken:.0%} of the last steps were not taken, so q stands still where it may not "
        "have arrived: give the rule more draws (num_samples), or begin nearer to the target, at "
        "solvers.pathfinder or families.laplace"
    )


def _moved(loop: Loop, tail: Tail) -> str:
    """Say which number was still moving, and the bound."""
    if int(loop.iterates.number // loop.iterates.size) < 4 * BATCHES:
        # Too few blocks of iterates to tell a trend.
        return ""
    units = scale_units(tail.average)
    # In units of each parameter, at the number of each leaf that goes furthest.
    drifts = jax.tree.map(lambda x, unit: np.max(np.abs(x) / unit, initial=0.0), tail.drift, units)
    # The leaf that would go furthest, by name.
    named = [(float(drift), name) for name, drift in checks.named_leaves(drifts)]
    drift, name = max(named, default=(0.0, ""))
    rise = float(np.max(tail.rise, initial=0.0))
    if not drift > FAR:
        return ""
    bound = f" and the bound rise by {rise:.2g} nats" if rise > 0 else ""
    return (
        f"it was still moving: on this course, in ten times the steps '{name}' would go "
        f"{drift:.2g} units further{bound}. Give it more steps or a larger rate, or a mean-field "
        "q of correlated latents updates.natural_gradient(log_joint, curvature=updates.hessian)"
    )
