"""Whether an estimator is unbiased."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from vijax import checks
from vijax.testing._trial import Report, conclude, design, examine, flat, numbers, spread
from vijax.types import PyTree


def check_unbiased(
    key: Key[Array, ""],
    estimate: Callable[[Any], PyTree],
    truth: PyTree | Callable[[Any], PyTree],
    *,
    detects: float | PyTree,
    level: float = 1e-6,
    power: float = 0.999,
    max_keys: int = 1_000_000,
    pilot: int = 2000,
    batch_size: int = 1000,
) -> Report:
    """Assert that E[estimate(key)] is the truth; a bias of `detects` in any one number is found.

        z = |mean of estimate - truth| / (sd / √n),     n = ((z_level + z_power) sd / detects)²

    For a gradient estimator, a bound or a control variate of yours. The test is made once, at keys
    apart from the pilot's.

    Args:
        key: a typed key, consumed.
        estimate: key -> a pytree of numbers, such as `lambda key: jax.grad(value)(params, key)`; of different keys
            independent.
        truth: the exact value, a pytree alike; or another estimator known to be right, key -> a pytree alike, which is
            given the same keys: the difference varies least where both make of them the same draws.
        detects: the bias that must not be missed, in the estimate's own unit: one number, or a pytree alike. A
            hundredth of it is let pass, as the truth's own error.
        level: probability that a right estimator fails, over all numbers together.
        power: probability that a bias of `detects` in one number is found.
        max_keys: the most keys to spend, besides the pilot's.
        pilot: keys from which the spread is taken; n grows with skewness too, so that the mean is normal.
        batch_size: how many keys at a time; memory grows with it alone.

    Returns:
        Report(z, limit, path, bias, detectable, num_keys, kurtosis), of the number that came nearest to
        failing. Tails that none of the keys meets go unnoticed: read the kurtosis.

    Raises:
        AssertionError: where the estimate is biased, nan or infinite; it names the number.
        TypeError: for a raw key, or counts that are not Python ints.
        ValueError: where the keys do not suffice to tell, with the number that would, or tails are too
            heavy; for an estimate and a truth that are not alike; for arguments out of range.

    Example:
        >>> def estimate(key):  # of E[(1 + e)²] = 2
        ...     return (1.0 + jax.random.normal(key)) ** 2
        >>> report = check_unbiased(jax.random.key(0), estimate, 2.0, detects=1.0)
        >>> report.path, report.z < report.limit
        ('value', True)

    Reference: Shao, A Cramér type large deviation result for Student's t-statistic, 1999; Stein, A two-sample test
        for a linear hypothesis whose power is independent of the variance, 1945.
    """
    checks.key(key)
    # Structures and shapes alone, before any key is spent.
    shapes = jax.eval_shape(estimate, key)
    expected = jax.eval_shape(truth, key) if callable(truth) else truth
    _alike(shapes, expected)
    names, sizes = numbers(shapes), spread(detects, shapes)
    how = level, power, pilot, max_keys, batch_size
    # Each number is tested at level / numbers, Bonferroni's bound.
    d = design(len(names), *how, one_sided=False)

    # Both on the same key, so that what they have in common cancels.
    def deviation(key: Key[Array, ""]) -> Array:
        return flat(estimate(key)) - flat(truth(key) if callable(truth) else truth)

    trial = jax.jit(partial(examine, deviation=deviation, detects=sizes, d=d))(key)
    return conclude(trial, names, sizes, d, "biased")


def _alike(estimate: PyTree, expected: PyTree) -> None:
    """Refuse a truth of another structure, or with leaves of another shape."""
    ours: Any = jax.tree.structure(estimate)
    theirs: Any = jax.tree.structure(expected)
    if ours != theirs:
        raise ValueError(f"truth must be a pytree like the estimate: {theirs} against {ours}.")
    for (name, leaf), other in zip(
        checks.named_leaves(estimate), jax.tree.leaves(expected), strict=True
    ):
        if jnp.shape(leaf) != jnp.shape(other):
            raise ValueError(
                f"truth must have the shapes of the estimate: '{name}' is {jnp.shape(other)} "
                f"against {jnp.shape(leaf)}."
            )
