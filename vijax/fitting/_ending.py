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
from vijax.types import PyTree

UNSURE = 0.1  # units: an average known no better is no answer

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
        said = _stood(step, loop, tail) or _moved(loop, tail)
    if said:
        warnings.warn(f"{said} ({stopped})", stacklevel=5)
        stopped = f"{stopped}; {said}"
    elif verdict is not None:
        stopped += (
            f"; nothing was seen to move, and the average is known to a standard error of "
            f"{verdict.error:.2g} units, the spread of the iterates {verdict.spread:.2g}"
        )
    return stopped


def _stood(step: Callable[..., Any], loop: Loop, tail: Tail) -> str:
    """Say that steps were not taken, or led nowhere, and why."""
    taken = float(np.min(tail.taken, initial=1.0))
    lost = [name for name, leaf in checks.named_leaves(tail.slope) if np.isnan(leaf).any()]
    if not int(loop.iterates.number) or not (lost or taken <= STOOD):
        return ""
    # The step is done once more, to find out whether its gradient is finite.
    counts = jax.jit(partial(_trouble.counts, step))(loop.key, loop.state)
    # A nan in the gradient is nearly always of masked data; the leaf says whose.
    for name in _trouble.names(*jax.device_get(counts)):
        if name.startswith(_trouble.GRADIENT):
            leaf, _, numbers = name.partition(",")
            return f"no right step can be taken, for {leaf} is not finite in{numbers}: {MASK}"
    if lost:
        return (
            f"{_trouble.GRADIENT} '{lost[0]}' was not finite in some of the last steps, so that "
            f"nothing says whether q has arrived: {MASK}"
        )
    return (
        f"{1 - taken:.0%} of the last steps were not taken, so q stands still where it may not "
        "have arrived: give the rule more draws (num_samples), or begin nearer to the target, at "
        "solvers.pathfinder or families.laplace"
    )


def _moved(loop: Loop, tail: Tail) -> str:
    """Say which number was still moving, is not where its gradient leads, or is not known."""
    if int(loop.iterates.number // loop.iterates.size) < 4 * BATCHES:
        # Too few blocks of iterates to tell a trend.
        return ""
    units = scale_units(tail.average)
    drift, going = _furthest(tail.drift, units)
    slope, left = _furthest(tail.slope)
    error, unsure = _furthest(tail.error, units)
    still = np.all(dict(checks.named_leaves(tail.spread)).get(left, np.inf) == 0)
    if drift > FAR and not (still and slope > FAR):
        return f"it was still moving: {_course(drift, going, tail)}"
    if slope > FAR:
        halted = "stands still: it is frozen, or the rate is 0" if still else ""
        return (
            f"it has not arrived: the mean gradient of '{left}' is still {slope:.2g} nats a unit, "
            f"and it {halted or 'no longer goes that way: the rate is too small'}, or has fallen "
            "too soon"
        )
    if error > UNSURE:
        spread, _ = _furthest(tail.spread, units)
        return (
            f"it goes nowhere and does not settle: the average of '{unsure}' is known to a "
            f"standard error of {error:.2g} units, and the iterates spread by {spread:.2g}. Give it "
            "more steps or a smaller rate"
        )
    return ""


def _course(drift: float, name: str, tail: Tail) -> str:
    """Say where a trend would lead, and the bound with it, and what to do."""
    rise = np.ravel(tail.rise)
    ahead = f"on this course, in ten times the steps '{name}' would go {drift:.2g} units further"
    if np.max(rise, initial=-np.inf) < 0:
        return (
            f"{ahead} and the bound fall by {-np.min(rise):.2g} nats. The bound falls: the rate is "
            "too large, or its sign wrong, for what is maximized takes a positive rate"
        )
    bound = f" and the bound rise by {np.max(rise):.2g} nats" if np.max(rise, initial=0.0) else ""
    return (
        f"{ahead}{bound}. Give it more steps, or another rate (a smaller one where the bound "
        "jumps), or a mean-field q of correlated latents updates.natural_gradient(log_joint, "
        "curvature=updates.hessian); what never comes to rest is an improper posterior"
    )


def _furthest(tree: PyTree, units: PyTree = None) -> tuple[float, str]:
    """Return the largest size in units of any number in a tree but nan, and its leaf's name."""
    units = jax.tree.map(np.ones_like, tree) if units is None else units

    def size(x: Any, unit: Any) -> Any:
        sizes = np.abs(x) / unit
        return np.max(np.where(np.isnan(sizes), 0.0, sizes), initial=0.0)

    sizes = jax.tree.map(size, tree, units)
    named = [(float(size), name) for name, size in checks.named_leaves(sizes)]
    return max(named, default=(0.0, ""))
