"""check_unbiased and check_bound_order: verdicts, refusals, and the error rates that they promise, by simulation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj
from tests.marks import some
from vijax.testing import Report, check_bound_order, check_unbiased
from vijax.testing._trial import design, examine, limit, margin

RIGHT = {"a": jnp.zeros(3), "b": jnp.array(1.0)}


def estimate(key):
    return {"a": jax.random.normal(key, (3,)), "b": jax.random.exponential(key)}


# --- verdicts


def test_a_right_estimator_passes_with_its_numbers(key):
    report = check_unbiased(key, estimate, RIGHT, detects=0.1)
    assert isinstance(report, Report)
    assert report.z < report.limit == limit(1e-6, 4)
    assert report.path in {"a[0]", "a[1]", "a[2]", "b"}
    assert abs(report.bias) < 0.1
    assert 0.5 < report.detectable <= 1.0
    assert report.kurtosis > 6.0  # an exponential's is 9
    assert (
        5000 < report.num_keys < 15_000
    )  # ((5.2 + 3.1) / .1)^2 and the pilot's doubt, or for an exponential's skewness


def test_a_biased_one_is_named(key):
    with pytest.raises(AssertionError, match=r"biased: a\[1\] is off by -0\..* 1 of 4 numbers"):
        check_unbiased(key, estimate, RIGHT | {"a": jnp.array([0.0, 0.1, 0.0])}, detects=0.1)


def test_another_estimator_as_the_truth(key):
    """The same draws are taken for both, so that what they share cancels; a number that never varies passes too."""
    shifted = lambda key: jax.tree.map(lambda a: a + 0.02, estimate(key))
    report = check_unbiased(key, estimate, estimate, detects=0.01)
    assert report.z == report.bias == 0.0
    assert report.num_keys == 2000
    with pytest.raises(AssertionError, match="4 of 4 numbers"):
        check_unbiased(key, shifted, estimate, detects=0.01)
    check_unbiased(key, lambda key: estimate(jax.random.fold_in(key, 1)), estimate, detects=0.2)


def test_an_effect_for_each_leaf(key):
    off = RIGHT | {"a": jnp.array([0.0, 0.1, 0.0])}
    with pytest.raises(AssertionError):
        check_unbiased(key, estimate, off, detects={"a": 0.1, "b": 0.5})
    with pytest.raises(AssertionError):
        check_unbiased(key, estimate, off, detects={"a": jnp.array([0.5, 0.1, 0.5]), "b": 0.5})


def test_what_cannot_be_told_is_said(key):
    """Too few keys, with the number that would do; tails that no normal limit covers; a nan."""
    with pytest.raises(ValueError, match=r"cannot tell: .* takes some [\d,]+ keys: raise max_keys"):
        check_unbiased(key, lambda key: estimate(key)["a"], RIGHT["a"], detects=0.01, max_keys=3000)
    with pytest.raises(ValueError, match=r"tails are too heavy .*\(kurtosis"):
        check_unbiased(
            key,
            lambda key: jnp.exp(6 * jax.random.normal(key)),
            np.exp(18.0),
            detects=5e6,
            max_keys=100_000,
        )
    with pytest.raises(AssertionError, match="nan or infinite"):
        check_unbiased(key, lambda key: jnp.log(jax.random.normal(key)), 0.0, detects=0.1)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"key": jax.random.PRNGKey(0)}, TypeError, "typed key"),
        ({"truth": {"a": jnp.zeros(3)}}, ValueError, "pytree like the estimate"),
        ({"truth": RIGHT | {"a": jnp.zeros(2)}}, ValueError, r"'a' is \(2,\) against \(3,\)"),
        ({"detects": 0.0}, ValueError, "detects must be positive"),
        ({"detects": {"a": 1.0}}, ValueError, "detects must be one number"),
        ({"level": 1.5}, ValueError, "level is a probability"),
        ({"max_keys": 2**25}, ValueError, "at most"),
        ({"pilot": 1}, ValueError, "pilot must be at least 2"),
        ({"batch_size": 1e3}, TypeError, "batch_size must be a Python int"),
        ({"estimate": lambda key: {}, "truth": {}}, ValueError, "no numbers"),
    ],
)
def test_refusals(changed, error, message, key):
    with pytest.raises(error, match=message):
        check_unbiased(
            **({"key": key, "estimate": estimate, "truth": RIGHT, "detects": 0.1} | changed)
        )


def log_weights(key):
    """Return log-normal weights of mean 1, so that log p = 0: [8, 2]."""
    return jax.random.normal(key, (8, 2)) - 0.5


@pytest.mark.slow
def test_bounds_in_order(key):
    half = lambda log_w: vj.bounds.iwae(log_w[:4])
    rising = [vj.bounds.elbo, half, vj.bounds.iwae, 0.0]
    report = check_bound_order(key, log_weights, rising, detects=0.02)
    assert report.z == 0.0
    assert report.bias < 0.0
    check_bound_order(key, log_weights, [vj.bounds.iwae, jnp.zeros(2)], detects=0.05)
    with pytest.raises(
        AssertionError, match=r"out of order: \(2: iwae\) - \(3: elbo\)\[.\] is off by \+0\."
    ):
        check_bound_order(key, log_weights, [*rising[:3], vj.bounds.elbo, 0.0], detects=0.02)
    with pytest.raises(AssertionError, match=r"out of order: \(0: iwae\) - \(1: -0\.1\)"):
        check_bound_order(key, log_weights, [vj.bounds.iwae, -0.1], detects=0.02)


@pytest.mark.usefixtures("unchecked")
def test_order_refuses(key):
    with pytest.raises(ValueError, match="two bounds or more"):
        check_bound_order(key, log_weights, [vj.bounds.elbo], detects=0.1)
    with pytest.raises(ValueError, match=r"\[\*batch\].* made \(\)"):
        check_bound_order(key, log_weights, [jnp.mean, vj.bounds.elbo], detects=0.1)


# --- the rates, at levels where they can be seen

REPETITIONS = 400


def sample(key, kind, bias=0.0):
    """Return five numbers of mean `bias` (the first) and 0: normal, skewed, and of few large values."""
    if kind == "normal":
        e = jax.random.normal(key, (5,))
    elif kind == "skewed":
        e = jax.random.exponential(key, (5,)) - 1
    else:
        e = jax.random.normal(key, (5,)) * jnp.where(
            jax.random.uniform(jax.random.fold_in(key, 1), (5,)) < 0.1, 3.0, 0.3
        )
    return e.at[0].add(bias)


def failures(key, deviation, d, detects=0.2):
    run = jax.vmap(lambda key: examine(key, deviation, jnp.full(5, detects), d))
    trial = jax.jit(run)(jax.random.split(key, REPETITIONS))
    assert np.all(trial.needed <= d.max_keys)
    return np.asarray(trial.z.max(1) > d.limit), trial


@pytest.mark.parametrize("one_sided", some([False, True], "False"))
@pytest.mark.parametrize("kind", some(["normal", "skewed", "few"], "few"))
def test_false_failures_are_as_rare_as_promised(kind, one_sided, key):
    """At level .05 over five numbers: 20 of 400 expected; 2 or 45 would be chance less than once in a million."""
    d = design(
        5, level=0.05, power=0.9, one_sided=one_sided, pilot=200, max_keys=20_000, batch_size=200
    )
    failed, _ = failures(key, partial(sample, kind=kind), d)
    assert 2 < failed.sum() < 45, failed.sum()


@pytest.mark.parametrize("kind", some(["normal", "skewed", "few"], "skewed"))
def test_power_is_as_designed(kind, key):
    """A bias of `detects` is found in 90 % or more; half of it in far fewer, so keys are not spent beyond the design."""
    d = design(
        5, level=0.05, power=0.9, one_sided=False, pilot=200, max_keys=20_000, batch_size=200
    )
    found, _ = failures(key, partial(sample, kind=kind, bias=0.2), d)
    assert found.mean() > 0.9 - 5 * np.sqrt(0.09 / REPETITIONS)
    half, _ = failures(key, partial(sample, kind=kind, bias=0.1), d)
    assert half.mean() < 0.75


def test_looking_again_and_again_would_fail_the_law(key):
    """The control: one test after each of ten batches, stopped at the first that fails, is wrong three times as often."""
    d = design(
        5, level=0.05, power=0.9, one_sided=False, pilot=200, max_keys=20_000, batch_size=200
    )

    def peeking(key):
        means = jax.random.normal(key, (10, 5)) / jnp.sqrt(200)  # of ten batches
        steps = jnp.arange(1.0, 11.0)[:, None]
        return jnp.max(jnp.abs(jnp.cumsum(means, 0) / steps) * jnp.sqrt(200 * steps)) > d.limit

    failed = np.asarray(jax.vmap(peeking)(jax.random.split(key, REPETITIONS)))
    assert failed.sum() > 45


def test_the_normal_distribution():
    """Against SciPy, far out."""
    from scipy.stats import norm

    np.testing.assert_allclose(limit(1e-6, 5000), norm.isf(1e-10), rtol=1e-12)
    np.testing.assert_allclose(limit(1e-6, 5000, one_sided=True), norm.isf(2e-10), rtol=1e-12)
    np.testing.assert_allclose(margin(0.999), norm.ppf(0.999), rtol=1e-12)
