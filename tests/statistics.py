"""Statistical comparisons with a stated false-failure rate and a stated effect that they cannot miss."""

import jax
import numpy as np

from vijax.testing._trial import limit, margin, z_score

# The whole suite fails by chance in one run of a million: Bonferroni over at most this many compared numbers.
FALSE_FAILURE_RATE = 1e-6
COMPARISONS = 20_000
Z = limit(FALSE_FAILURE_RATE, COMPARISONS)  # 6.5 standard errors
POWER = margin(0.9987)  # an effect of Z + 3 standard errors is caught with this probability

_spent = 0


def assert_mean(samples, truth, *, detects):
    """Assert that samples, a pytree of [n, ...], have mean `truth`; fail too where a bias of `detects` could be missed.

    One number fails by chance with probability FALSE_FAILURE_RATE / COMPARISONS = 5e-11; a bias of `detects`, in the
    samples' own units and in any one number, is caught with probability .9987 or more. `detects` is one number, or one for
    each name where samples is a dict. Returns the largest distance found, in standard errors.
    """
    if isinstance(detects, dict):
        return max(
            assert_mean({name: samples[name]}, {name: truth[name]}, detects=detects[name])
            for name in samples
        )
    global _spent
    largest = 0.0
    assert jax.tree.structure(samples) == jax.tree.structure(truth)
    for (path, found), expected in zip(
        jax.tree.leaves_with_path(samples), jax.tree.leaves(truth), strict=True
    ):
        name = jax.tree_util.keystr(path)
        found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
        assert found.shape[1:] == expected.shape, (
            f"{name}: {found.shape[1:]} against {expected.shape}"
        )
        _spent += expected.size
        assert _spent <= COMPARISONS, (
            "more comparisons than the false-failure rate was divided by: raise COMPARISONS"
        )
        # Rounding is a floor where an estimator has no variance at all.
        error = np.sqrt(found.var(0, ddof=1) / len(found)) + 1e-6 * (1 + np.abs(expected))
        z = z_score(np.abs(found.mean(0) - expected), error, 0.0)
        assert np.all(z <= Z), (
            f"{name} is biased: mean {found.mean(0)}, truth {expected}, standard errors off {z}"
        )
        reach = (Z + POWER) * error
        assert np.all(reach <= detects), (
            f"{name}: too few samples, a bias of {reach.max():.3g} could be missed"
        )
        largest = max(largest, float(z.max()))
    return largest


def assert_variance_ratio(larger, smaller, *, at_least):
    """Assert that the summed variance of `larger` is `at_least` times that of `smaller`, both pytrees of [n, ...].

    With n = 20,000 draws of moderate tails the ratio's relative standard error is below 3%, so state `at_least` 25% or
    more below the expected ratio: it fails by chance less than once in 10^9.
    """
    total = lambda tree: sum(
        float(np.asarray(l, np.float64).var(0, ddof=1).sum()) for l in jax.tree.leaves(tree)
    )
    ratio = total(larger) / max(total(smaller), 1e-30)
    assert ratio >= at_least, f"variance ratio {ratio:.3g}, expected at least {at_least}"
