"""Blocks of iterates against all of them; the stopping rule on chains whose answers are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj
from vijax.fitting import Verdict, _iterates, _tail, scale_units, stationary
from vijax.fitting._marginals import marginals
from vijax.fitting._tail import Found


@jax.jit
def remember(xs):
    """Add iterates [n, ...] one by one, joining blocks when they are full."""

    def one(kept, x):
        kept = _iterates.add(kept, x, jnp.bool_(1))
        n = kept.number
        return jax.lax.cond((n >= 64) & (n & (n - 1) == 0), _iterates.join, lambda k: k, kept), None

    return jax.lax.scan(one, _iterates.empty(jax.tree.map(lambda l: l[0], xs)), xs)[0]


tail_of = _tail.tail


def autoregressive(rho, n, seed=0, d=3):
    """Chains of variance 1 and autocorrelation rho: the variance of their mean is (1 + rho) / (1 - rho) / n."""
    noise = np.random.default_rng(seed).standard_normal((n, d))
    x = np.zeros((n, d))
    x[0] = noise[0]
    for i in range(1, n):
        x[i] = rho * x[i - 1] + np.sqrt(1 - rho**2) * noise[i]
    return x.astype(np.float32)


@pytest.mark.parametrize("n", [1, 3, 63, 64, 100, 1000])
def test_blocks_hold_the_means_and_spreads(n):
    x = autoregressive(0.9, n) + 100
    kept = remember(x)
    size, whole = int(kept.size), n // int(kept.size)
    assert int(kept.number) == n
    assert n <= 64 * size
    parts = x[: whole * size].astype(np.float64).reshape(whole, size, -1)
    np.testing.assert_allclose(kept.mean[:whole], parts.mean(1), rtol=1e-6)
    np.testing.assert_allclose(kept.square[:whole], parts.var(1) * size, rtol=2e-3, atol=1e-3)


def test_a_tail_is_what_all_its_iterates_say():
    x = autoregressive(0.5, 1000)
    tail = tail_of(remember(x))
    assert isinstance(tail, Found)
    end, length = 1000 // 16 * 16, int(tail.number)
    part = x[end - length : end].astype(np.float64)
    np.testing.assert_allclose(tail.average, part.mean(0), atol=1e-5)
    np.testing.assert_allclose(tail.spread, part.std(0, ddof=1), rtol=1e-3)
    halves = part[: length // 2].mean(0), part[length // 2 :].mean(0)
    np.testing.assert_allclose(tail.shift, 0.5 * np.abs(halves[1] - halves[0]), atol=1e-4)
    np.testing.assert_allclose(
        tail.ess, np.minimum(part.var(0, ddof=1) / np.square(tail.error), length), rtol=1e-3
    )


@pytest.mark.parametrize("rho", [0.0, 0.9])
def test_the_standard_error_hears_autocorrelation(rho):
    """Of 300 chains: its root mean square is the sd of their averages to 20 %; a naive one would be a quarter of it."""
    chains = np.stack([autoregressive(rho, 2000, seed, d=1) for seed in range(300)], 1)
    tail = tail_of(remember(chains))
    truth = np.sqrt((1 + rho) / (1 - rho) / int(tail.number))
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(tail.error))), truth, rtol=0.2)
    naive = 1 / np.sqrt(int(tail.number))
    assert rho == 0 or naive < 0.3 * truth


def told(params, gradient=(), taken=1.0, bound=0.0):
    """What a fit remembers of iterates like these, and gives to its rule."""
    n = len(jax.tree.leaves(params)[0])
    column = lambda x: np.broadcast_to(np.asarray(x, np.float32), (n,))
    iterates = {"bound": column(bound), "taken": column(taken), "params": params}
    kept = remember(iterates | {"marginals": (), "gradient": gradient})
    return _tail.judged(tail_of(kept))


LOOSE = stationary(error=0.2, spread=2.0)


def test_a_fit_that_still_travels_does_not_stop():
    still = autoregressive(0.5, 4096)
    travels = still + np.linspace(0, 5, 4096)[:, None].astype(np.float32)
    assert isinstance(LOOSE(told(still)), Verdict)
    assert LOOSE(told(still)).done
    verdict = LOOSE(told(travels))
    assert 3 < verdict.drift < 46  # of 45 that ten times the steps would add, what is beyond noise
    assert not verdict.done
    # One that has arrived: the tail begins after the journey.
    arrived = still + np.maximum(0, 5 - np.arange(4096) / 200)[:, None].astype(np.float32)
    tail = told(arrived)
    assert LOOSE(tail).done
    assert tail.number < 3200
    assert np.all(np.abs(tail.average) < 4 * tail.error + 0.02)


def test_a_slow_trend_without_noise_is_seen_however_small():
    """Jacobi's iteration along a valley: .002 of a unit in all of the steps, and as much for ever after."""
    slow = 0.01 * np.linspace(0, 1, 640)[:, None] * np.ones((1, 2), np.float32)
    verdict = stationary()(told(slow.astype(np.float32)))
    assert verdict.error < 0.01
    assert verdict.shift < 0.02
    np.testing.assert_allclose(verdict.drift, 0.09, rtol=0.1)
    assert not verdict.done
    # The control: a tenth of it, of which ten times the steps would not make a difference.
    assert stationary()(told((0.1 * slow).astype(np.float32))).done


def test_a_number_among_thousands_of_still_ones_counts_and_their_chance_does_not():
    """R-hat's largest over thousands is above any limit by chance; a trend must be beyond its own noise."""
    many = 0.05 * autoregressive(0.5, 4096, d=2000)
    assert stationary()(told(many)).done
    one = many.copy()
    one[:, 7] += np.linspace(0, 1, 4096)
    assert not stationary()(told(one)).done


def test_iterates_that_a_falling_rate_brought_to_rest_have_not_arrived():
    """They stand still; the gradient does not: a slope of 1 under noise of 1."""
    n = 1024
    rest = np.full((n, 2), 0.3, np.float32)
    noise = np.random.default_rng(0).standard_normal((n, 2)).astype(np.float32)
    verdict = stationary()(told(rest, gradient=noise + 1))
    assert not verdict.done
    np.testing.assert_allclose(verdict.slope, 1, atol=0.4)
    assert stationary()(told(rest, gradient=noise)).done


def test_a_rule_that_takes_no_step_has_not_arrived():
    rest = np.full((640, 2), 0.3, np.float32)
    assert not stationary()(told(rest, taken=0.0)).done
    assert not stationary()(told(rest, taken=0.4)).done
    assert stationary()(told(rest, taken=0.9)).done


def test_each_of_the_conditions_counts():
    tail = told(autoregressive(0.5, 4096))
    assert LOOSE(tail).done
    assert not stationary(error=0.001, spread=2.0)(tail).done
    assert not stationary(error=0.2)(tail).done
    for limit in ("error", "spread"):
        with pytest.raises(ValueError, match=f"{limit} must be above 0"):
            stationary(**{limit: 0.0})


def test_an_error_counts_in_units_of_the_scale():
    params = {
        "loc": jnp.array([1.0, 2.0]),
        "log_scale": jnp.log(jnp.array([10.0, 0.1])),
        "lower": jnp.zeros(1),
    }
    found = scale_units({"z": params, "rest": (jnp.ones(2), [jnp.zeros(3)])})
    np.testing.assert_allclose(found["z"]["loc"], [10.0, 0.1], rtol=1e-6)
    np.testing.assert_array_equal(found["z"]["log_scale"], 1.0)
    np.testing.assert_array_equal(found["rest"][1][0], 1.0)
    chains = {
        "loc": 100 * autoregressive(0.5, 2048),
        "log_scale": np.full((2048, 3), np.log(100), np.float32),
    }
    tail = told(chains)
    in_units = LOOSE(tail)
    assert in_units.done
    ones = lambda params: jax.tree.map(jnp.ones_like, params)
    plain = stationary(error=0.2, spread=2.0, unit=ones)(tail)
    assert not plain.done
    np.testing.assert_allclose(plain.error, 100 * in_units.error, rtol=1e-5)


@pytest.mark.parametrize("family", [vj.families.full_rank(), vj.families.low_rank(rank=2)])
def test_marginals_are_those_of_q(family, key):
    """Within other params, and under leading axes, as of restarts."""
    like = {"a": jnp.zeros(()), "b": jnp.zeros((2, 2))}

    def of(key):
        params = family.init(key, like)
        leaves, tree = jax.tree.flatten(params)
        keys = iter(jax.random.split(key, len(leaves)))
        return tree.unflatten([jax.random.normal(next(keys), leaf.shape) for leaf in leaves])

    several = jax.vmap(of)(jax.random.split(key, 3))
    found = marginals({"q": several, "rest": jnp.ones(2)})
    assert set(found["q"]) == {"loc", "log_scale"}
    expected = jax.vmap(lambda p: family.dist(p).variance())(several)
    jax.tree.map(
        lambda s, v: np.testing.assert_allclose(np.exp(2 * s), v, rtol=1e-4),
        found["q"]["log_scale"],
        expected,
    )
    mean_field = vj.families.mean_field().init(key, like)
    assert jax.tree.structure(marginals(mean_field)) == jax.tree.structure(mean_field)


def test_nothing_and_nan():
    """Constants are stationary; nan never is; what is not watched does not judge."""
    assert stationary()(told(np.ones((640, 2), np.float32))).done
    bad = autoregressive(0.5, 640)
    bad[600] = np.nan
    assert not LOOSE(told(bad)).done
    assert tail_of(remember(np.ones((1, 2), np.float32))).error[0] == np.inf
    assert stationary()(told({"x": np.ones((640, 0), np.float32)})).done
