"""Whether bounds lie where they are said to, in expectation."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vijax import checks
from vijax.testing._trial import Report, conclude, design, examine, flat, numbers, spread


def check_bound_order(
    key: Key[Array, ""],
    log_weights: Callable[[Any], Float[Array, "k *batch"]],
    bounds: Sequence[Any],
    *,
    detects: float,
    level: float = 1e-6,
    power: float = 0.999,
    max_keys: int = 1_000_000,
    pilot: int = 2000,
    batch_size: int = 1000,
) -> Report:
    """Assert that bounds rise in expectation, E[bounds[0]] <= E[bounds[1]] <= ..., for every member
    of the batch.

        z = mean of (bounds[i](log_w) - bounds[i+1](log_w)) / (sd / √n)

    For a bound of yours among known ones. The test is one-sided, on the same draws, which takes out
    what the bounds have in common.

    Args:
        key: a typed key, consumed.
        log_weights: key -> log-weights in nats, such as `lambda key: draws.weigh(key, log_joint, q, num_samples=8)
            .log_w`.
        bounds: from low to high: functions log_w [k, *batch] -> [*batch], or numbers known, () or [*batch], as in
            `[bounds.elbo, mine, lambda l: bounds.iwae(l[:4]), bounds.iwae, log_p]`.
        detects: the step down, in nats, that must not be missed; a hundredth of it is let pass.
        level: probability that bounds in order fail.
        power: probability that a step down of `detects` is found.
        max_keys: the most keys to spend, besides the pilot's.
        pilot: keys from which the spread is taken; as to what is assumed, see `check_unbiased`.
        batch_size: how many keys at a time; memory grows with it alone.

    Returns:
        Report(z, limit, path, bias, detectable, num_keys, kurtosis), of the step that came nearest to failing.

    Raises:
        AssertionError: where a bound lies above the next, or a difference is nan or infinite.
        TypeError: for a raw key, or counts that are not Python ints.
        ValueError: where max_keys do not suffice to tell, for fewer than two bounds, and for bounds that do not reduce
            the sample axis alone.

    Example:
        >>> log_weights = lambda key: jax.random.normal(key, (4,))
        >>> order = [vj.bounds.elbo, vj.bounds.iwae, 0.5]  # log E[eˣ] = ½
        >>> report = check_bound_order(jax.random.key(0), log_weights, order, detects=0.5)
        >>> report.z < report.limit
        True

    Reference: Burda, Grosse, Salakhutdinov, Importance weighted autoencoders, 2016, arXiv:1509.00519.
    """
    checks.key(key)
    if len(bounds) < 2:
        raise ValueError(f"an order is of two bounds or more, got {len(bounds)}.")
    batch = jax.eval_shape(log_weights, key).shape[1:]
    # "0: elbo", "1: iwae", ...: names in reports and messages.
    labels = [
        f"{i}: {checks.describe(b)}" if callable(b) else f"{i}: {b}" for i, b in enumerate(bounds)
    ]

    def steps(key: Key[Array, ""]) -> dict[str, Array]:
        log_w = log_weights(key)
        values = []
        for label, bound in zip(labels, bounds, strict=True):
            # A number known has shape () or the batch's; a bound must have reduced the draws alone.
            value = jnp.asarray(bound(log_w) if callable(bound) else bound)
            if value.shape != batch and (callable(bound) or value.shape != ()):
                raise ValueError(
                    f"a bound maps [k, *batch] to [*batch]: from {log_w.shape} {label} made "
                    f"{value.shape}."
                )
            values.append(jnp.broadcast_to(value, batch))
        # Below 0 in expectation where the order holds.
        return {
            f"({labels[i]}) - ({labels[i + 1]})": values[i] - values[i + 1]
            for i in range(len(values) - 1)
        }

    shapes = jax.eval_shape(steps, key)
    names, sizes = numbers(shapes), spread(detects, shapes)
    how = level, power, pilot, max_keys, batch_size
    d = design(len(names), *how, one_sided=True)
    trial = jax.jit(partial(examine, deviation=lambda key: flat(steps(key)), detects=sizes, d=d))(
        key
    )
    return conclude(trial, names, sizes, d, "out of order")
