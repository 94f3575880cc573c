"""Random levels: their distribution, and the telescoping sums that they make unbiased."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj
from tests import oracles
from tests.marks import some
from tests.statistics import assert_mean

LOG_Z, S = 0.4, 0.7
harmonic, geometric, level = vj.draws.harmonic, vj.draws.geometric, vj.draws.level


def test_probabilities():
    np.testing.assert_allclose(np.cumsum(harmonic(6)[::-1])[::-1], 1 / np.arange(1, 7), rtol=1e-6)
    p = np.asarray(geometric(5))
    np.testing.assert_allclose(p[1:] / p[:-1], 2**-1.5, rtol=1e-6)
    for p in (harmonic(1), harmonic(6), geometric(1), geometric(5, ratio=0.5)):
        np.testing.assert_allclose(p.sum(), 1, rtol=1e-6)


def test_levels_have_their_probabilities(key):
    """Given in any scale: what is returned beside the level sums to 1. Detects .01."""
    drawn = level(key, 5 * harmonic(4), shape=(60_000,))
    np.testing.assert_allclose(drawn.probabilities, harmonic(4), rtol=1e-6)
    assert_mean(jax.nn.one_hot(drawn.value, 4), np.asarray(harmonic(4)), detects=0.02)
    assert level(key, harmonic(4)).value.shape == ()


def test_refusals(key, unchecked):
    with pytest.raises(TypeError, match="typed key"):
        level(jnp.zeros(2, jnp.uint32), harmonic(4))
    with pytest.raises(ValueError, match="vector"):
        level(key, jnp.float32(0.5))
    with pytest.raises(ValueError, match="not negative"):
        level(key, [-1.0, 2.0])
    with pytest.raises(ValueError, match="nor all 0"):
        level(key, jnp.zeros(3))
    with pytest.raises(ValueError, match="number of levels"):
        harmonic(0)
    with pytest.raises(ValueError, match="ratio must be positive"):
        geometric(3, ratio=-1.0)


# --- what levels are for


def telescoped(key, bound, probabilities, k, n, shape):
    """Return n estimates at log-normal weights, each with a level of its own or one for each of a batch of two."""

    def one(key):
        key_w, key_level = jax.random.split(key)
        log_w = LOG_Z - S**2 / 2 + S * jax.random.normal(key_w, (k, 2))
        return bound(log_w, level=level(key_level, probabilities, shape=shape))

    return jax.jit(jax.vmap(one))(jax.random.split(key, n))


CASES = {
    "sumo": (vj.bounds.sumo, harmonic(8), 8),
    "sumo of fewer draws than levels": (vj.bounds.sumo, harmonic(8), 5),
    "sumo, geometric": (vj.bounds.sumo, geometric(8, ratio=0.7), 8),
    "mlmc_iwae": (vj.bounds.mlmc_iwae, geometric(4), 8),
}


@pytest.mark.parametrize("name", some(CASES, "mlmc_iwae"))
def test_the_mean_over_levels_is_iwae_of_all_draws(name, key):
    """E over draws and level against the exact E[IWAE_k]; the ELBO is .2 below. Detects .05."""
    bound, probabilities, k = CASES[name]
    exact = oracles.log_normal_power_mean(k, 1.0, LOG_Z, S)
    found = telescoped(key, bound, probabilities, k, 200_000, () if name == "sumo" else (2,))
    assert_mean({"value": found}, {"value": np.broadcast_to(exact, 2)}, detects=0.05)


@pytest.mark.parametrize("name", ["sumo", "mlmc_iwae"])
def test_a_wrong_probability_fails(name, key):
    """The control: levels drawn by one rule and weighed by another."""
    bound, probabilities, k = CASES[name]
    wrong = jnp.full_like(probabilities, 1 / len(probabilities))
    lying = lambda log_w, *, level: bound(log_w, level=level._replace(probabilities=wrong))
    found = telescoped(key, lying, probabilities, k, 100_000, (2,))
    exact = oracles.log_normal_power_mean(k, 1.0, LOG_Z, S)
    with pytest.raises(AssertionError, match="biased"):
        assert_mean({"value": found}, {"value": np.broadcast_to(exact, 2)}, detects=0.08)


def test_a_truncated_sum_alone_fails(key):
    """The other control: the sum up to the level without dividing by its probability."""
    bound, probabilities, k = CASES["sumo"]
    careless = lambda log_w, *, level: bound(
        log_w, level=level._replace(probabilities=jnp.eye(k)[-1])
    )
    found = telescoped(key, careless, probabilities, k, 100_000, ())
    exact = oracles.log_normal_power_mean(k, 1.0, LOG_Z, S)
    with pytest.raises(AssertionError, match="biased"):
        assert_mean({"value": found}, {"value": np.broadcast_to(exact, 2)}, detects=0.08)


def test_a_level_inside_an_objective(key):
    """One trace serves every level; a sumo that loses a draw is a sumo, and an mlmc_iwae that would lose one is refused."""
    traces = []

    @jax.jit
    def run(key):
        traces.append(0)
        key_level, key_draw = jax.random.split(key)
        bound = partial(vj.bounds.sumo, level=level(key_level, harmonic(4)))
        q = vj.families.mean_field().dist({"loc": jnp.zeros(1), "log_scale": jnp.zeros(1)})
        return vj.gradients.vimco(bound)(key_draw, lambda z: -jnp.sum(z**2), q, num_samples=4).value

    assert len({float(run(jax.random.fold_in(key, i))) for i in range(4)}) == 4
    assert len(traces) == 1
    bound = partial(vj.bounds.mlmc_iwae, level=level(key, geometric(3)))
    q = vj.families.mean_field().dist({"loc": jnp.zeros(1), "log_scale": jnp.zeros(1)})
    with pytest.raises(ValueError, match="use gradients.score, or bounds.sumo"):
        vj.gradients.vimco(bound)(key, lambda z: -jnp.sum(z**2), q, num_samples=4)


# --- a probability that is divided by must not be zero

sumo, mlmc_iwae = vj.bounds.sumo, vj.bounds.mlmc_iwae
LACKING = {  # bound, probabilities, draws
    "mlmc_iwae without its middle": (mlmc_iwae, [0.5, 0.0, 0.5], 4),
    "mlmc_iwae without its last": (mlmc_iwae, [0.6, 0.4, 0.0], 4),
    "sumo without its tail": (sumo, [0.5, 0.5, 0.0, 0.0], 4),
    "sumo without its last": (sumo, [0.5, 0.2, 0.3, 0.0], 4),
    "sumo of a tail that underflows": (sumo, 0.01 ** np.arange(64), 64),
}
ENOUGH = {
    "mlmc_iwae without its first": (mlmc_iwae, [0.0, 0.4, 0.6], 4),
    "sumo with a gap": (sumo, [0.5, 0.0, 0.5, 0.0], 3),
    "sumo of fewer draws": (sumo, [0.5, 0.5, 0.0, 0.0], 2),
}
KINDS = {"numpy": np.float32, "jax": jnp.float32, "list": lambda p: [float(x) for x in p]}


def of(bound, key, probabilities, k):
    return bound(0.1 * jnp.arange(1.0 * k), level=level(key, probabilities))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LACKING)
def test_mass_that_is_divided_by_is_asked_for(name, kind, key):
    """Known probabilities are refused, under jit too, whatever kind of array they come in."""
    bound, probabilities, k = LACKING[name]
    given = KINDS[kind](probabilities)
    run = lambda: of(bound, key, given, k)
    for call in (run, lambda: jax.eval_shape(run)):
        with pytest.raises(ValueError, match="needs a positive probability of .* draws.harmonic"):
            call()


@pytest.mark.parametrize("name", LACKING)
def test_traced_mass_that_is_missing_gives_nan(name, key):
    bound, probabilities, k = LACKING[name]
    run = jax.jit(lambda p: of(bound, key, p, k))
    assert np.isnan(run(jnp.float32(probabilities)))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ENOUGH)
def test_zero_mass_that_is_not_needed_passes(name, key):
    bound, probabilities, k = ENOUGH[name]
    assert np.isfinite(of(bound, key, probabilities, k))
    assert np.isfinite(jax.jit(lambda p: of(bound, key, p, k))(jnp.float32(probabilities)))


def test_a_gap_that_is_not_needed_costs_no_bias(key):
    """The control of the refusals: sumo with no mass at level 1 has the mean of iwae. Detects .05."""
    exact = oracles.log_normal_power_mean(3, 1.0, LOG_Z, S)
    found = telescoped(key, sumo, np.array([0.5, 0.0, 0.5]), 3, 100_000, ())
    assert_mean({"value": found}, {"value": np.broadcast_to(exact, 2)}, detects=0.05)


def test_a_level_of_no_mass_spoils_no_derivative(key):
    level = vj.types.Level(jnp.asarray(1), jnp.array([0.0, 0.4, 0.6]))
    slope = jax.grad(lambda l: mlmc_iwae(l, level=level))(jnp.array([0.1, -0.3, 0.5, 0.2]))
    assert np.all(np.isfinite(slope))
    np.testing.assert_allclose(slope.sum(), 1.0, rtol=1e-6)


def test_an_estimate_of_random_length_is_refused_inside_iwae(key):
    """Its mean is right, its exponential is not: inside elbo it passes, inside iwae it does not."""
    q = vj.families.mean_field().dist({"loc": jnp.zeros(1), "log_scale": jnp.zeros(1)})

    def model(key, z):
        bound = partial(sumo, level=level(key, harmonic(4)))
        within = lambda w: -jnp.sum((w - z) ** 2)
        return vj.gradients.reparam(bound)(key, within, q, num_samples=4).value

    def run(bound):
        target = vj.targets.keyed(model)
        return lambda: vj.gradients.reparam(bound)(key, target, q, num_samples=2).value

    with pytest.raises(ValueError, match="bounds.iwae, whose exponential .* use bounds.elbo"):
        jax.eval_shape(run(vj.bounds.iwae))
    assert jax.eval_shape(run(vj.bounds.elbo)).shape == ()
