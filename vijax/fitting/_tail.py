"""The tail of a fit's iterates: their average, how well it is known, and whether they still move."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vijax.fitting._iterates import BLOCKS, Iterates
from vijax.types import PyTree

WINDOWS = 5  # tails that are tried
BATCHES = 8  # of a tail, whose means show a trend and the noise about it
GRADIENT_ERRORS = 4.5  # a mean gradient of fewer standard errors is noise
HORIZON = 10  # times the steps: how far a trend is followed


class Tail(NamedTuple):
    """The last iterates, from where they look stationary.

    Fields:
        average: their mean, like an iterate.
        error: its Monte Carlo standard error, by means of batches: autocorrelation is in it.
        spread: the standard deviation of the iterates.
        ess: how many independent iterates would give that error.
        shift: half of what lies between the means of its two halves: 0 but for noise.
        drift: how far ten times the steps would lead by the part of a trend that noise does not
            explain; 0 where noise explains it.
        slope: the part of the mean gradient that noise does not explain, for one unit each; () where
            the rule reports none.
        rise: the drift of the bound, in nats.
        taken: what share of the steps moved the state.
        number: how many iterates it holds, ().
    """

    average: PyTree
    error: PyTree
    spread: PyTree
    ess: PyTree
    shift: PyTree
    drift: PyTree
    slope: PyTree
    rise: Any
    taken: Any
    number: Any


class Found(NamedTuple):
    """What a tail's blocks show of each number that is remembered, leaves like those of an iterate.

    Fields:
        average, error, spread, ess, shift, drift: as in `Tail`.
        certain: the part of the average that noise does not explain.
        number: how many iterates the tail holds.
    """

    average: PyTree
    error: PyTree
    spread: PyTree
    ess: PyTree
    shift: PyTree
    drift: PyTree
    certain: PyTree
    number: Any

    def part(self, name: str) -> Tail:
        """Return the tail of what is remembered by a name: `params`, or their `marginals`."""
        return Tail(
            average=self.average[name],
            error=self.error[name],
            spread=self.spread[name],
            ess=self.ess[name],
            shift=self.shift[name],
            drift=self.drift[name],
            slope=self.certain["gradient"],
            rise=self.drift["bound"],
            taken=self.average["taken"],
            number=self.number,
        )


def tail(iterates: Iterates) -> Found:
    """Return the tail whose average is known best, of five: from a quarter of the whole to 95 %.

    On the host and in float64: it is asked for rarely, and there is nothing to compile.
    """
    kept = jax.device_get(iterates)
    blocks = _blocks(kept)
    with np.errstate(all="ignore"):
        # Longer tails average more, shorter ones have forgotten the start.
        candidates = [blocks.last(length) for length in _lengths(len(blocks.mean))]
        chosen = candidates[_best(candidates)]
        average, error, spread, ess = _average(chosen)
        shift = np.sqrt(_apart(chosen))
        drift = _drift(chosen, int(kept.number))
        certain = beyond(average, GRADIENT_ERRORS * error)
    number = np.int32(len(chosen.mean) * chosen.size)
    # Rows of all numbers, cut into the leaves of one iterate.
    rows = average, error, spread, ess, shift, drift, certain
    fields = dict(zip(Found._fields, (_like(kept.mean, row) for row in rows), strict=False))
    return Found(**fields, number=number)


def judged(found: Found) -> Tail:
    """Return what a stopping rule is given: of a dense Gaussian each latent's own mean and scale."""
    return found.part("marginals" if jax.tree.leaves(found.average["marginals"]) else "params")


def beyond(x: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Return what is left of numbers after a reach towards 0."""
    return np.sign(x) * np.maximum(np.abs(x) - reach, 0)


class _Blocks(NamedTuple):
    """Whole blocks of iterates, all leaves in one row, in float64.

    Fields:
        mean: [blocks, numbers].
        square: sums of squared deviations from those means.
        size: how many iterates a block holds.
        rounding: the variance that rounding gives to a number that stands still, [numbers].
    """

    mean: np.ndarray
    square: np.ndarray
    size: int
    rounding: np.ndarray

    def last(self, length: int) -> "_Blocks":
        """Return the last blocks; all of them for a length of 0."""
        return self._replace(mean=self.mean[-length:], square=self.square[-length:])

    def batches(self, number: int) -> np.ndarray:
        """Return the means of that many batches, [number, numbers]; what is over at the start is left out."""
        # Equal batches of whole blocks, the newest to the end.
        length = max(len(self.mean) // number, 1)
        return self.mean[-number * length :].reshape(-1, length, self.mean.shape[1]).mean(1)

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and variance of the iterates."""
        # Within blocks and between them.
        center = self.mean.mean(0)
        spread = (self.square + self.size * np.square(self.mean - center)).sum(0)
        return center, spread / max(len(self.mean) * self.size - 1, 1)


def _blocks(kept: Iterates) -> _Blocks:
    """Return the whole blocks, in float64; the one that is being filled is left out."""
    number = min(int(kept.number // kept.size), BLOCKS)
    # [blocks, numbers] each: all leaves side by side.
    mean, square = (
        np.concatenate(
            [np.reshape(l, (BLOCKS, -1)).astype(np.float64) for l in jax.tree.leaves(tree)], 1
        )[:number]
        for tree in (kept.mean, kept.square)
    )
    leaves = jax.tree.leaves(kept.mean)
    eps = np.concatenate([np.full(l[0].size, jnp.finfo(l.dtype).eps) for l in leaves])
    # A sum of a few iterates that are one number is off by some of its last digits.
    rounding = np.square(16 * eps * np.abs(mean[-1] if number else 0.0))
    return _Blocks(mean, square, int(kept.size), rounding)


def _lengths(blocks: int) -> list[int]:
    """Return the lengths of the tails that are tried, even numbers of blocks."""
    shortest = max(blocks // 4, 2)
    shares = np.linspace(0, 1, WINDOWS)
    lengths = (shortest + shares * max(0.95 * blocks - shortest, 0)).astype(int) // 2 * 2
    return [int(length) for length in lengths]


def _like(tree: PyTree, row: np.ndarray) -> PyTree:
    """Cut a row of all numbers into the leaves of one iterate, in their dtypes."""
    leaves, structure = jax.tree.flatten(tree)
    parts = np.split(row, np.cumsum([leaf[0].size for leaf in leaves])[:-1])
    cut = [
        part.reshape(leaf.shape[1:]).astype(leaf.dtype)
        for part, leaf in zip(parts, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, cut)


def _best(candidates: list[_Blocks]) -> int:
    """Return which tail to take, by the mean over numbers of their squared errors and variances.

    A shift counts as an error, and a variance since iterates of a larger rate bias an average. The
    longest of those that are about as good as the best: which is best by a little is chance.
    """
    if len(candidates[0].mean) < BATCHES or not candidates[0].mean.size:
        return len(candidates) - 1
    # [candidates, numbers]: squared error with the shift in it, and variance, each as a share of the least.
    errors = np.stack([_squared_error(c.batches(BATCHES)) + _apart(c) for c in candidates])
    variances = np.stack([c.moments()[1] for c in candidates])
    # A tail with a nan is none, as of a gradient that was nan early: fmin passes it by.
    least = [np.fmin.reduce(each) for each in (errors, variances)]
    shares = np.maximum(errors / least[0], variances / least[1])
    # What stands still is known from any tail.
    shares = np.where(variances <= candidates[0].rounding, 1.0, shares)
    worse = np.mean(np.nan_to_num(shares, nan=np.inf, posinf=1e9), 1)
    return int(np.flatnonzero(worse <= 2 * np.min(worse))[-1])


def _apart(blocks: _Blocks) -> np.ndarray:
    """Return the squared error that a trend between the two halves would leave, [numbers]."""
    if len(blocks.mean) < 2:
        return np.full(blocks.mean.shape[1], np.inf)
    early, late = blocks.batches(2)
    return np.square(0.5 * (late - early))


def _average(blocks: _Blocks) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return mean, its standard error, spread and effective number of iterates, [numbers] each."""
    numbers = blocks.mean.shape[1]
    if len(blocks.mean) == 0:
        unknown = np.full(numbers, np.inf)
        return np.zeros(numbers), unknown, unknown, np.zeros(numbers)
    center, variance = blocks.moments()

    # Batches of one block, of two, and eight of them: the longer hold more of the autocorrelation,
    # and the largest error is taken.
    error = _squared_error(blocks.mean)
    for number in (len(blocks.mean) // 2, BATCHES):
        if 1 < number <= len(blocks.mean):
            error = np.maximum(error, _squared_error(blocks.batches(number)))

    count = len(blocks.mean) * blocks.size
    of_still = np.where(np.isnan(error), np.nan, count)
    # Variance of an iterate over that of the mean; no more than there are.
    ess = np.where(error > blocks.rounding, variance / error, of_still)
    return center, np.sqrt(error), np.sqrt(variance), np.minimum(ess, count)


def _squared_error(batches: np.ndarray) -> np.ndarray:
    """Return the squared standard error of a mean by those of batches; one batch tells nothing."""
    n = len(batches)
    if n < 2:
        return np.full(batches.shape[1], np.inf)
    return batches.var(0, ddof=1) / n


def _drift(blocks: _Blocks, total: int) -> np.ndarray:
    """Return what a straight trend would add in ten times the steps, [numbers]; inf of few blocks.

    A trend counts by what is left of it after as many standard errors as no noise is likely to
    reach: P(|t| > c) ≈ 50 / c⁶ of six degrees of freedom, 1 in 2 over all numbers. A chance one
    delays the end of a fit until the next verdict; one that is missed ends it too soon.
    """
    if len(blocks.mean) < BATCHES:
        return np.full(blocks.mean.shape[1], np.inf)
    batches = blocks.batches(BATCHES)
    # Least squares of the batches' means on centered time: slope = Σ t y / Σ t².
    time = np.arange(BATCHES) - (BATCHES - 1) / 2
    trend = time @ batches / (time @ time)
    rest = batches - batches.mean(0) - time[:, None] * trend
    error = np.sqrt(np.square(rest).sum(0) / (BATCHES - 2) / (time @ time))
    certain = beyond(trend, (100 * trend.size) ** (1 / 6) * error)
    # From the end on, in batches: nine times the steps so far.
    ahead = (HORIZON - 1) * total / (len(blocks.mean) * blocks.size / BATCHES)
    return np.where(np.square(trend * BATCHES) > blocks.rounding, certain * ahead, 0.0 * trend)
