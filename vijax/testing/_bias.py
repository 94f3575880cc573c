"""Whether an estimator is unbiased."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from vijax import checks
from vijax.testing._trial import Report, design, examine, flat, judge, numbers, spread
from vijax.types import PyTree


def check_unbiased(
    key: Key[Array, ""],
    estimate: Callable[[Any], PyTree],
    truth: PyTree | Callable[[Any], PyTree],
    *,
    detects: Any,
    level: float = 1e-6,
    power: float = 0.999,
    max_keys: int = 1_000_000,
    pilot: int = 2000,
    batch_size: int = 1000,
) -> Report:
    """Assert that E[estimate(key)] is the truth; a bias of `detects` in any one number is found.

        z = |mean of estimate - truth| / (sd / √n),     n = ((z_level + z_power) sd / detects)²,    sd from a pilot run

    For a gradient estimator, a bound or a control variate of yours. The right one passes but with probability
    `level`, over all numbers together; one that is off by `detects` anywhere fails with probability `power`. Keys are
    as many as that takes, and the test looks once, at keys that the pilot did not use. A bias of a hundredth of
    `detects` is let pass, as the truth's own error. Assumed: keys give independent estimates whose mean is normal at n,
    for which n grows with their skewness too. Tails too heavy for that fail with a ValueError, not as biased; tails
    that none of the keys meets are not seen, so look at the report's kurtosis.

    Args:
        key: a typed key, consumed.
        estimate: key -> a pytree of numbers, such as `lambda key: jax.grad(value)(params, key)`.
        truth: the exact value, a pytree alike; or another estimator known to be right, key -> a pytree alike, which is
            given the same keys: the difference varies least where both make of them the same draws.
        detects: the bias that must not be missed, in the estimate's own unit: one number, or a pytree alike.
        level: probability that a right estimator fails.
        power: probability that a bias of `detects` in one number is found.
        max_keys: the most keys to spend, besides the pilot's.
        pilot: keys from which the spread is taken.
        batch_size: how many keys at a time; memory grows with it alone.

    Returns:
        Report(z, limit, path, bias, detectable, num_keys, kurtosis), of the number that came nearest to failing.

    Raises:
        AssertionError: where the estimate is biased, nan or infinite; it names the number.
        TypeError: for a raw key, or counts that are not Python ints.
        ValueError: where the keys do not suffice to tell, with the number that would; for an estimate and a truth that
            are not alike; for arguments out of range.

    Reference: Shao, A Cramér type large deviation result for Student's t-statistic, 1999; Stein, A two-sample test
        for a linear hypothesis whose power is independent of the variance, 1945.
    """
    checks.key(key)
    shapes = jax.eval_shape(estimate, key)
    expected = jax.eval_shape(truth, key) if callable(truth) else truth
    _alike(shapes, expected)
    names, sizes = numbers(shapes), spread(detects, shapes)
    how = level, power, pilot, max_keys, batch_size
    d = design(len(names), *how, one_sided=False)

    def deviation(key: Any) -> Array:
        return flat(estimate(key)) - flat(truth(key) if callable(truth) else truth)

    trial = jax.jit(partial(examine, deviation=deviation, detects=sizes, d=d))(key)
    return judge(trial, names, sizes, d, "biased")


def _alike(found: PyTree, expected: PyTree) -> None:
    """Refuse a truth of another structure, or with leaves of another shape."""
    ours: Any = jax.tree.structure(found)
    if ours != (theirs := jax.tree.structure(expected)):
        raise ValueError(f"truth must be a pytree like the estimate: {theirs} against {ours}.")
    for (name, leaf), other in zip(
        checks.named_leaves(found), jax.tree.leaves(expected), strict=True
    ):
        if jnp.shape(leaf) != jnp.shape(other):
            raise ValueError(
                f"truth must have the shapes of the estimate: '{name}' is {jnp.shape(other)} against {jnp.shape(leaf)}."
            )
