"""VSBC passes a right model and fails three wrong ones; its false alarms are as many as stated; predictive draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.statistics import assert_mean
from vijax.diagnostics import Calibration, predictive, vsbc
from vijax.diagnostics._calibration import _symmetry, _uniformity
from vijax.types import Draws

# theta ~ N(0, 1) in three scalars, x | theta ~ N(theta, SIGMA²); the posterior is N(x, SIGMA²) / (1 + SIGMA²).
SIGMA = 0.8
FALSE_ALARMS = 1e-6  # of each call below


def prior(key):
    return {"a": jax.random.normal(key), "b": jax.random.normal(jax.random.fold_in(key, 1), (2,))}


def simulate(key, theta):
    keys = dict(zip(theta, jax.random.split(key), strict=True))
    return {name: t + SIGMA * jax.random.normal(keys[name], t.shape) for name, t in theta.items()}


def fitted(*, spread=1.0, shift=0.0, prior_sd=1.0, draws=99):
    """The posterior under a prior N(0, prior_sd²), moved by `shift` and scaled by `spread` in units of its sd."""
    precision = 1 / prior_sd**2 + 1 / SIGMA**2
    sd = precision**-0.5

    def fit(key, x):
        noise = lambda i, leaf: jax.random.normal(jax.random.fold_in(key, i), (draws, *leaf.shape))
        post = lambda i, leaf: (
            (leaf / SIGMA**2 / precision + shift * sd)[None] + spread * sd * noise(i, leaf)
        )
        return {name: post(i, leaf) for i, (name, leaf) in enumerate(x.items())}

    return fit


RIGHT = {"spread": 1.0, "shift": 0.0, "prior_sd": 1.0}
KINDS = {
    "right": {},
    "under-dispersed": {"spread": 0.6},
    "biased": {"shift": 0.5},
    "wrong prior": {"prior_sd": 0.5},
}


@pytest.mark.slow
def test_vsbc(key):
    """Family-wise over 2 tests of 3 latents at a rate of 1e-6, 400 replications: one right model, three wrong ones."""
    kinds = [RIGHT | kind for kind in KINDS.values()]
    stacked = {name: jnp.array([kind[name] for kind in kinds]) for name in RIGHT}
    look = jax.jit(
        jax.vmap(lambda kind: vsbc(key, prior, simulate, fitted(**kind), replications=400))
    )
    found = look(stacked)
    assert isinstance(found, Calibration)
    assert found.probabilities["b"].shape == (4, 400, 2)
    assert jax.tree.map(jnp.shape, found.symmetry) == {"a": (4,), "b": (4, 2)}
    assert found.p_value[0] > FALSE_ALARMS
    assert np.all(found.p_value[1:] < FALSE_ALARMS)
    symmetric = np.minimum(found.symmetry["a"], found.symmetry["b"].min(1))
    assert symmetric[2] < FALSE_ALARMS
    # Too narrow, and about the right place on average: what only uniformity hears.
    assert symmetric[[1, 3]].min() > 1e-3
    assert found.uniformity["b"][jnp.array([1, 3])].max() < 1e-4


@jax.jit
def p_values(p):
    return _symmetry(p), _uniformity(p)


@pytest.mark.slow
def test_false_alarms(x64):
    """Of 4,000 right fits each test alarms as often as it says; and the walk's law is that of all 2¹⁰ walks."""
    rng = np.random.default_rng(0)
    for found in p_values(jnp.asarray(rng.uniform(size=(150, 4000)))):
        assert_mean((found <= 0.05) * 1.0, np.float64(np.mean(found <= 0.05)), detects=1.0)
        assert 0.03 < np.mean(found <= 0.05) < 0.07  # six standard errors
        assert np.mean(found <= 0.001) < 0.005
    signs = 2 * ((np.arange(1024)[None] >> np.arange(10)[:, None]) & 1) - 1
    p = 0.5 + signs * np.linspace(0.45, 0.01, 10)[:, None]
    found, _ = p_values(jnp.asarray(rng.permuted(p, axis=0)))
    reach = np.abs(np.cumsum(signs, 0)).max(0)
    np.testing.assert_allclose(found, [(reach >= r).mean() for r in reach], rtol=1e-9)
    # The control: probabilities like half of the uniform ones raise nearly every alarm.
    assert all(
        np.mean(found < 1e-3) > 0.99
        for found in p_values(jnp.asarray(rng.uniform(size=(150, 50)) / 2))
    )


@pytest.mark.slow
def test_discrete_latents_ties_and_nan(key):
    """Equal values are broken by chance, so a right fit of a coin is uniform; one nan anywhere is heard."""

    def fit(key, x):
        return (jax.random.uniform(key, (50,)) < 0.3).astype(jnp.int32)

    coin = lambda key: (jax.random.uniform(key) < 0.3).astype(jnp.int32)
    right = jax.jit(lambda key: vsbc(key, coin, lambda key, t: t, fit, replications=300))(key)
    assert right.p_value > FALSE_ALARMS
    assert np.unique(right.probabilities).size > 200
    broken = lambda key, x: jnp.where(x > 2, jnp.nan, x + jax.random.normal(key, (50,)))
    wrong = jax.jit(
        lambda key: vsbc(key, jax.random.normal, lambda key, t: t, broken, replications=300)
    )(key)
    assert np.isnan(wrong.p_value)


@pytest.mark.slow
def test_batches_change_nothing(key):
    look = lambda size: (
        vsbc(key, prior, simulate, fitted(), replications=30, batch_size=size).probabilities
    )
    whole, parts = jax.jit(lambda: (look(None), look(7)))()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), whole, parts)


def test_predictive(key):
    """One key for each draw; weights resample: each draw within one of k times its weight, impossible ones never."""
    z = {"loc": jnp.arange(4000.0), "scale": jnp.full(4000, 0.5)}
    draw = lambda key, z: z["loc"] + z["scale"] * jax.random.normal(key)
    noise = (predictive(key, draw, z) - z["loc"]) / 0.5
    assert_mean(
        {"mean": noise, "square": noise**2},
        {"mean": np.float64(0.0), "square": np.float64(1.0)},
        detects=0.3,
    )
    log_w = (
        jnp.asarray(np.random.default_rng(0).normal(size=4000), jnp.float32)
        .at[jnp.array([0, 7, 3999])]
        .set(-jnp.inf)
    )
    chosen = jax.jit(lambda key: predictive(key, lambda key, z: z["loc"], z, log_w))(key)
    counts = np.bincount(np.asarray(chosen, int), minlength=4000)
    assert counts.sum() == 4000
    assert np.abs(counts - 4000 * np.asarray(jax.nn.softmax(log_w))).max() < 1.01
    assert counts[[0, 7, 3999]].sum() == 0


def test_refusals(key, unchecked):
    with pytest.raises(ValueError, match="one leading axis of draws; got"):
        vsbc(key, prior, simulate, lambda key, x: x, replications=20)
    with pytest.raises(ValueError, match="at least 10"):
        vsbc(key, prior, simulate, fitted(), replications=5)
    with pytest.raises(TypeError, match="Python int"):
        vsbc(key, prior, simulate, fitted(), replications=20.0)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        vsbc(key, prior, simulate, fitted(), replications=20, batch_size=0)
    with pytest.raises(TypeError, match=r"jax\.random\.key"):
        predictive(0, lambda key, z: z, jnp.zeros(3))
    with pytest.raises(TypeError, match=r"draws\.z, with draws\.log_w apart; got Draws"):
        predictive(key, lambda key, z: z, Draws(jnp.zeros(3), jnp.zeros(3), jnp.zeros(3)))
    with pytest.raises(ValueError, match="leaf 'b'"):
        predictive(key, lambda key, z: z, {"a": jnp.zeros(3), "b": jnp.zeros(4)})
