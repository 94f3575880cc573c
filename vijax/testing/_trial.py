"""A z-test of many means at once: a pilot run says how many keys it needs, and it is made once, at fresh ones."""

from collections.abc import Callable
from statistics import NormalDist
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Key

from vijax import checks
from vijax.testing._moments import Sums, gather
from vijax.types import PyTree

# In place of no variance at all.
TINY = 1e-37
# Keys: float32 counts no further.
MOST = 2**24
# Of `detects`: a bias so small is let pass, since rounding and the truth's own error make one.
SLACK = 0.01


class Report(NamedTuple):
    """What a check that has passed measured, at the number that came nearest to failing.

    Fields:
        z: its distance from the truth in standard errors.
        limit: the z that would have failed.
        path: its name, such as q.loc[3].
        bias: its mean deviation from the truth, in the estimate's own unit.
        detectable: the largest bias that could have been missed, as a share of what `detects` asked for.
        num_keys: how many keys it took.
        kurtosis: the largest of any number; 3 for a normal.
    """

    z: float
    limit: float
    path: str
    bias: float
    detectable: float
    num_keys: int
    kurtosis: float


class Design(NamedTuple):
    """How sure a check is, and what it may spend.

    Fields:
        limit: the z that fails, in standard errors.
        margin: how far beyond the limit an effect must lie to be found with the power asked for.
        one_sided: whether only deviations above 0 are wrong.
        pilot, max_keys, batch_size: in keys.
    """

    limit: float
    margin: float
    one_sided: bool
    pilot: int
    max_keys: int
    batch_size: int


class Trial(NamedTuple):
    """What `conclude` is reached from, [c] but for num_keys and needed.

    Fields:
        bias, error: mean deviation and its standard error, in the estimate's own unit.
        z: how many standard errors the bias lies beyond the slack.
        share: the smallest bias that is found with the power asked for, in units of `detects`.
        lean: the logarithm of the factor by which skewness bends the tail at the limit.
        kurtosis: 3 for a normal.
        num_keys, needed: what was spent, and what the pilot asked for.
    """

    bias: Array
    error: Array
    z: Array
    share: Array
    lean: Array
    kurtosis: Array
    num_keys: Array
    needed: Array


def limit(level: float, comparisons: int, *, one_sided: bool = False) -> float:
    """Return the z that a standard normal exceeds with probability level / comparisons (Bonferroni)."""
    return -NormalDist().inv_cdf(level / comparisons / (1 if one_sided else 2))


def margin(power: float) -> float:
    """Return how many standard errors beyond the limit an effect must lie to be found with this probability."""
    return NormalDist().inv_cdf(power)


def z_score(off: ArrayLike, error: ArrayLike, slack: ArrayLike) -> Any:
    """Return how many standard errors `off` lies beyond `slack`, 0 where it does not."""
    # Of NumPy or JAX, whichever comes in.
    distance: Any = off
    return (distance > slack) * (distance - slack) / (error + TINY)


def design(
    numbers: int,
    level: float,
    power: float,
    pilot: int,
    max_keys: int,
    batch_size: int,
    *,
    one_sided: bool,
) -> Design:
    """Check what the user asked for, and turn it into standard errors."""
    checks.static_count(pilot, "pilot", least=2)
    checks.static_count(max_keys, "max_keys", least=2)
    checks.static_count(batch_size, "batch_size")
    for name, value in (("level", level), ("power", power)):
        if not 0 < value < 1:
            raise ValueError(f"{name} is a probability between 0 and 1, got {value}.")
    if max_keys > MOST:
        raise ValueError(
            f"max_keys must be at most 2**24, which float32 can count, got {max_keys:,}."
        )
    # Shared among the numbers, so that the level is that of all together.
    z = limit(level, numbers, one_sided=one_sided)
    pilot = min(pilot, max_keys)
    return Design(z, margin(power), one_sided, pilot, max_keys, min(batch_size, pilot))


def examine(
    key: Key[Array, ""], deviation: Callable[[Any], Array], detects: Array, d: Design
) -> Trial:
    """Size the run by a pilot, and test once on fresh keys: the pilot's means are never used.
    Jittable.

    Keys are enough for two things: that a bias of `detects` lies limit + margin standard errors out, taking the pilot's
    variance three of its own standard errors high; and that the normal limit holds for skewed samples, where the tail
    of a studentized mean is off by a factor exp(skewness z³ / 3√n), which is kept below e.
    """
    key_pilot, key_run = jax.random.split(key)

    # [c], in units of `detects`: 1 is a bias that must be found.
    def scaled(key: Array) -> Array:
        return deviation(key) / detects

    sums = gather(key_pilot, scaled, d.pilot, d.batch_size)
    variance, skewness, kurtosis = shape(sums)
    # High by three of the variance's own standard errors, √((kurtosis - 1) / n) of it.
    variance = variance * (1 + 3 * jnp.sqrt(jnp.maximum(kurtosis - 1, 0.0) / sums.keys))
    # Keys for the power asked for, and keys for a normal mean; at least as many as the pilot's.
    enough = ((d.limit + d.margin) / (1 - SLACK)) ** 2 * variance
    normal = jnp.where(_negligible(variance, d, d.pilot), 0.0, (skewness * d.limit**3 / 3) ** 2)
    needed = jnp.max(jnp.maximum(enough, normal))
    needed = jnp.ceil(jnp.where(jnp.isnan(needed), d.pilot, jnp.maximum(needed, d.pilot)))
    sums = gather(key_run, scaled, jnp.minimum(needed, d.max_keys).astype(jnp.int32), d.batch_size)

    # The test itself, of the fresh keys alone.
    variance, skewness, kurtosis = shape(sums)
    error = jnp.sqrt(variance / sums.keys)
    z = z_score(sums.mean if d.one_sided else jnp.abs(sums.mean), error, SLACK)
    # The tail's factor in logarithms, exp(skewness z³ / 3√n); of mere rounding it says nothing.
    lean = jnp.abs(skewness) * d.limit**3 / (3 * jnp.sqrt(sums.keys))
    lean = jnp.where(_negligible(variance, d, sums.keys), 0.0, lean)
    share = (d.limit + d.margin) * error + SLACK
    return Trial(sums.mean * detects, error * detects, z, share, lean, kurtosis, sums.keys, needed)


def _negligible(variance: Array, d: Design, n: int | Array) -> Array:
    """Say where all spread is rounding, far within the slack, so that its shape does not matter."""
    return d.limit * jnp.sqrt(variance / n) < SLACK


def shape(sums: Sums) -> tuple[Array, Array, Array]:
    """Return variance, skewness and kurtosis; 0 and 3 where nothing varies."""
    # Central moments over powers of the second, which is 1 where nothing varies.
    variance = sums.m2 / jnp.maximum(sums.keys - 1, 1)
    second = jnp.where(sums.m2 > 0, sums.m2 / sums.keys, 1.0)
    skewness = jnp.where(sums.m2 > 0, sums.m3 / sums.keys / second**1.5, 0.0)
    return variance, skewness, jnp.where(sums.m2 > 0, sums.m4 / sums.keys / second**2, 3.0)


def conclude(
    trial: Trial, names: list[str], detects: ArrayLike, d: Design, complaint: str
) -> Report:
    """Return a report, or raise: AssertionError where a mean is off, ValueError where this trial cannot tell."""
    # In double precision, of NumPy: the verdict is not traced.
    t: Any = Trial(*jax.tree.map(lambda a: np.asarray(a, np.float64), tuple(trial)))
    sizes = np.asarray(detects, np.float64)
    keys = int(t.num_keys)
    lost = ~np.isfinite(t.bias + t.error)
    if np.any(lost):
        raise AssertionError(
            f"{names[int(np.argmax(lost))]} is nan or infinite for some of {keys:,} keys."
        )
    # Where tails are heavy, being far out says little; of the other numbers, the farthest is the culprit.
    far = t.z > d.limit
    heavy = far & ~(t.lean <= 1.5)
    worst = int(np.argmax(np.where(heavy & np.any(far & ~heavy), 0.0, t.z)))
    # Only where all that are far out have heavy tails is it left open.
    if heavy[worst]:
        raise ValueError(
            f"cannot tell: {names[worst]} is off by {t.bias[worst]:+.3g}, {t.z[worst]:.1f} "
            f"standard errors, but its tails are too heavy for a z-test of {keys:,} keys "
            f"(kurtosis {t.kurtosis[worst]:.3g}); raise max_keys or pilot, or average more draws "
            "in each estimate."
        )
    if t.z[worst] > d.limit:
        raise AssertionError(
            f"{complaint}: {names[worst]} is off by {t.bias[worst]:+.3g}, {t.z[worst]:.1f} "
            f"standard errors of {t.error[worst]:.2g} where {d.limit:.1f} are allowed; so are "
            f"{int(np.sum(t.z > d.limit))} of {len(names)} numbers, after {keys:,} keys."
        )
    # No number is off; was a bias of `detects` large enough to be found in each of them?
    blind = int(np.argmax(t.share))
    if t.share[blind] > 1:
        how = (
            f"it takes some {int(t.needed):,} keys: raise max_keys"
            f"{' (at most 2**24)' if t.needed > MOST else ''}"
            if t.needed > d.max_keys
            else f"the pilot of {d.pilot:,} keys saw too little of its spread: raise pilot"
        )
        raise ValueError(
            f"cannot tell: {names[blind]} could be off by {t.share[blind] * sizes[blind]:.3g} "
            f"after {keys:,} keys, where detects = {sizes[blind]:.3g}; {how}, state a larger "
            "detects, or average more draws in each estimate."
        )
    kurtosis = float(np.max(t.kurtosis))
    return Report(
        float(t.z[worst]),
        d.limit,
        names[worst],
        float(t.bias[worst]),
        float(t.share[blind]),
        keys,
        kurtosis,
    )


def numbers(tree: PyTree) -> list[str]:
    """Return a name for every number in a pytree of arrays or shapes, such as q.loc[3]."""
    result = []
    for name, leaf in checks.named_leaves(tree):
        name = "value" if name == "z" else name
        result += [
            name + (str(list(index)) if index else "") for index in np.ndindex(*jnp.shape(leaf))
        ]
    if not result:
        raise ValueError("there is nothing to test: the estimate holds no numbers.")
    return result


def flat(tree: PyTree) -> Array:
    """Return all numbers of a pytree as one vector of floats, [c]."""
    leaves = [jnp.ravel(jnp.asarray(leaf)) for leaf in jax.tree.leaves(tree)]
    vector = jnp.concatenate(leaves)
    return vector if jnp.issubdtype(vector.dtype, jnp.inexact) else vector.astype(jnp.float32)


def spread(detects: float | PyTree, tree: PyTree) -> Array:
    """Return `detects`, one number or a pytree like `tree` whose leaves broadcast, as a vector of floats [c]."""
    structure: Any = jax.tree.structure(tree)
    each = (
        detects
        if structure == jax.tree.structure(detects)
        else jax.tree.map(lambda _: detects, tree)
    )
    try:
        result = flat(
            jax.tree.map(lambda d, leaf: jnp.broadcast_to(d, jnp.shape(leaf)), each, tree)
        )
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"detects must be one number, or a pytree like the estimate; got {detects!r}."
        ) from error
    if not np.all(np.asarray(result) > 0):
        raise ValueError(f"detects must be positive, in the estimate's own unit; got {detects!r}.")
    return result.astype(jnp.float32)
