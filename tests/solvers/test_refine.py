"""refine: every datum's q arrives at the optimum of its family, or is said not to have; none falls."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vijax as vj
from vijax.solvers import Refined, refine

LOADING, NOISE = np.array([[1.0, 0.8], [0.0, 1.0], [0.5, -0.3]], np.float32), 0.5
PRECISION = np.eye(2) + LOADING.T @ LOADING / NOISE**2
X = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32) * 2
MEAN = X @ LOADING @ np.linalg.inv(PRECISION) / NOISE**2


def log_joint(z):
    """Linear Gaussian: the posterior is N(MEAN, PRECISION⁻¹) for every datum."""
    rest = jnp.asarray(X) - z @ LOADING.T
    return -0.5 * jnp.sum(z**2, -1) - 0.5 * jnp.sum(rest**2, -1) / NOISE**2


def start(family):
    return vj.families.members(family).init(None, jnp.zeros((6, 2)))


def test_every_datum_arrives(key):
    """A full covariance at the posterior, a mean-field one at its known optimum: s² = 1 / diag of the precision."""
    full = vj.families.members(vj.families.full_rank())
    run = lambda key, params: refine(key, log_joint, full, params, steps=1000)
    found = jax.jit(run)(key, start(vj.families.full_rank()))
    assert isinstance(found, Refined)
    np.testing.assert_allclose(found.params["loc"], MEAN, atol=2e-3)
    assert np.all(found.settled)
    assert np.all(found.rise.value > 1)
    # At the posterior all log-weights are alike.
    q = full.dist(found.params)
    log_w = jax.jit(lambda key: vj.draws.weigh(key, log_joint, q, num_samples=100).log_w)(key)
    assert np.all(np.std(log_w, 0) < 0.02)


def test_mean_field_at_its_optimum(key):
    family = vj.families.members(vj.families.mean_field())
    run = lambda key, params: refine(key, log_joint, family, params, steps=700, num_samples=16)
    found = jax.jit(run)(key, start(vj.families.mean_field()))
    scale = np.exp(np.asarray(found.params["log_scale"]))
    np.testing.assert_allclose(found.params["loc"], MEAN, atol=0.03)
    np.testing.assert_allclose(
        scale, np.broadcast_to(np.diag(PRECISION) ** -0.5, (6, 2)), rtol=0.03
    )


def test_noise_of_the_steps_is_not_settled(key):
    """A rate that stays leaves noise that a climb of the same length repeats, and a longer one with a schedule does not."""
    family, params = vj.families.members(vj.families.mean_field()), start(vj.families.mean_field())

    def rates(steps):
        # The shorter climb ends in noise, the longer one does not.
        rate = 0.2 if steps < 600 else optax.cosine_decay_schedule(0.1, steps)
        return optax.adam(rate)

    found = refine(
        key, log_joint, family, params, steps=600, num_samples=1, optimizer=rates, tolerance=0.01
    )
    assert not np.any(found.settled)
    assert float(found.last.value.mean()) > 0.01


def test_what_has_not_settled_is_said(key):
    """Too few steps for some data, which begin far off; and the middle, which is better, is kept where steps are too long."""
    family, params = vj.families.members(vj.families.mean_field()), start(vj.families.mean_field())
    near = {"loc": jnp.asarray(MEAN).at[0].add(8.0), "log_scale": params["log_scale"] + 1.5}
    run = lambda steps, **how: jax.jit(
        lambda near: refine(key, log_joint, family, near, steps=steps, **how)
    )
    found = run(200)(near)
    assert not bool(found.settled[0])
    assert float(found.last.value[0]) > 1
    wild = run(20, optimizer=lambda steps: optax.sgd(3.0))(near)
    # Steps that diverge leave every datum where it was, and none is called settled.
    np.testing.assert_array_equal(wild.params["loc"], near["loc"])
    np.testing.assert_array_equal(wild.rise.value, 0.0)
    assert not np.any(wild.settled)


def test_refusals(key, unchecked):
    family, params = vj.families.members(vj.families.mean_field()), start(vj.families.mean_field())
    with pytest.raises(ValueError, match="steps must be even"):
        refine(key, log_joint, family, params, steps=3)
    with pytest.raises(TypeError, match="optimizer must be a function"):
        refine(key, log_joint, family, params, steps=2, optimizer=optax.adam(0.1))
    with pytest.raises(TypeError, match="steps -> an optimizer of Optax"):
        refine(key, log_joint, family, params, steps=2, optimizer=lambda steps: 0.1)
    alone = {"loc": jnp.zeros(3), "log_scale": jnp.zeros(2)}
    with pytest.raises(ValueError, match="each datum has its own.*families.members"):
        refine(key, log_joint, family, alone, steps=2)
    one = vj.families.mean_field()
    of_one = one.init(None, jnp.zeros(2))
    with pytest.raises(ValueError, match="one value for each of the 2 data"):
        refine(key, lambda z: -jnp.sum(z**2), one, of_one, steps=2)
    with pytest.raises(ValueError, match="tolerance"):
        refine(key, log_joint, family, params, steps=2, tolerance=0.0)
