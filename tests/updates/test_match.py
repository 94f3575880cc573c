"""Batch and match: its quadratic equation, the limits of its rate, exactness with a Gaussian target, bad starts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj
from tests.updates.test_natural import (
    DATA,
    MEAN,
    PRECISION,
    ROOT,
    covariance,
    full,
    gaussian,
    logistic,
    run,
    scale_unknown,
    start,
    vector,
)
from vijax.updates import _match

updates = vj.updates


@pytest.mark.parametrize("size", [2, 9], ids=["thin", "wide"])
def test_the_update_solves_its_matrix_equation(size, x64, key):
    """Σ U Σ + Σ = V, and the mean that goes with it, in the paper's words: with fewer draws than latents, and with more."""
    rate, d = 3.7, 4
    keys = jax.random.split(key, 4)
    root = jnp.tril(jax.random.normal(keys[0], (d, d))) + 2 * jnp.eye(d)
    loc = jax.random.normal(keys[1], (d,))
    noise, scores = jax.random.normal(keys[2], (size, d)), 3 * jax.random.normal(keys[3], (size, d))
    state = updates.GaussianState(loc, root, jnp.int32(0), jnp.ones(()))
    new = jax.jit(_match.matched)(state, noise, scores @ root, jnp.asarray(rate))

    z, old, sigma = (
        np.asarray(loc[None] + noise @ root.T),
        np.asarray(root @ root.T),
        np.asarray(covariance(new)),
    )
    center, score = z.mean(0), np.asarray(scores).mean(0)
    spread = (z - center).T @ (z - center) / size
    of_scores = (np.asarray(scores) - score).T @ (np.asarray(scores) - score) / size
    u = rate * of_scores + rate / (1 + rate) * np.outer(score, score)
    v = old + rate * spread + rate / (1 + rate) * np.outer(loc - center, loc - center)
    np.testing.assert_allclose(sigma @ u @ sigma + sigma, v, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(
        new.loc, (np.asarray(loc) + rate * (sigma @ score + center)) / (1 + rate), rtol=1e-9
    )
    assert jnp.all(jnp.diagonal(new.root) > 0)
    np.testing.assert_array_equal(new.root, jnp.tril(new.root))
    # The control: the old covariance does not solve it.
    assert abs(old @ u @ old + old - v).max() > 0.1


def test_a_gaussian_target_is_matched_exactly(x64, key):
    """No noise is left at the end, since scores of a matched Gaussian are exact; and the score-based divergence falls."""
    update = updates.batch_and_match(gaussian, num_samples=8, learning_rate=24.0)

    def divergence(state):
        """E_q ‖∇ log q - ∇ log p‖²_Σ of Gaussians, in closed form."""
        sigma = covariance(state)
        gap, off = jnp.linalg.inv(sigma) - PRECISION, PRECISION @ (vector(state.loc) - MEAN)
        return jnp.trace(gap @ sigma @ gap @ sigma) + off @ sigma @ off

    def body(state, key):
        return update.step(key, state)[0], divergence(state)

    state, falls = jax.jit(lambda keys: jax.lax.scan(body, update.init(start()), keys))(
        jax.random.split(key, 40)
    )
    np.testing.assert_allclose(vector(state.loc), MEAN, atol=1e-9)
    np.testing.assert_allclose(covariance(state), ROOT @ ROOT.T, atol=1e-9)
    assert falls[10] < 1e-12 < falls[3] < 0.1 * falls[0]
    q = full.dist(update.params(state))
    z, log_q = q.sample_and_log_prob(seed=key, sample_shape=(8,))
    assert jnp.ptp(jax.vmap(gaussian)(z) - log_q) < 1e-7
    # The control: one step is not enough.
    assert falls[1] > 1e-3


@pytest.mark.slow
def test_the_rate_is_how_far_it_goes(x64, key):
    """λ → 0 leaves q as it was."""
    still, _ = run(
        updates.batch_and_match(gaussian, num_samples=4, learning_rate=1e-9), start(), key, 1
    )
    np.testing.assert_allclose(covariance(still), 0.25 * np.eye(3), atol=1e-6)
    np.testing.assert_allclose(vector(still.loc), 0.0, atol=1e-6)
    schedule = updates.batch_and_match(
        gaussian, num_samples=4, learning_rate=lambda t: 12 / (t + 1)
    )
    default = updates.batch_and_match(gaussian, num_samples=4)
    moved = [run(rule, start(), key, 3)[0] for rule in (schedule, default)]
    np.testing.assert_allclose(
        moved[0].root, moved[1].root
    )  # the default is the paper's B d / (t + 1)


@pytest.mark.parametrize("halvings", [pytest.param(0, marks=pytest.mark.slow), 10])
def test_nothing_turns_nan_five_standard_deviations_away(halvings, key):
    """In float32; scores of e^10 and more. Looking before it steps, it arrives besides."""
    update = updates.batch_and_match(scale_unknown, num_samples=16, halvings=halvings)
    for log_sigma in (-5.0, 5.0):
        params = full.init(key, {"log_sigma": jnp.float32(log_sigma), "mu": jnp.float32(0.0)})
        state, _ = run(update, params, key, 150)
        assert jax.tree.all(jax.tree.map(lambda x: jnp.all(jnp.isfinite(x)), state))
        assert jnp.all(jnp.diagonal(covariance(state)) > 0)
    if halvings:
        assert abs(state.loc["log_sigma"] - np.log(DATA.std())) < 0.5


@pytest.mark.slow
def test_seeds_by_vmap_are_seeds_one_by_one(key):
    update = updates.batch_and_match(logistic, num_samples=8)
    keys = jax.random.split(key, 3)
    one = lambda key: update.step(key, update.init(full.init(key, jnp.zeros(2))))
    many, alone = jax.jit(jax.vmap(one))(keys), jax.jit(one)(keys[1])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[1], b, rtol=2e-3, atol=2e-4), many, alone
    )


def test_a_traced_rate(key):
    state = updates.batch_and_match(logistic, num_samples=8).init(full.init(key, jnp.zeros(2)))
    found = [
        step(
            lambda r: updates.batch_and_match(logistic, num_samples=8, learning_rate=r).step(
                key, state
            )[0]
        )(16.0)
        for step in (lambda f: f, jax.jit)
    ]
    np.testing.assert_allclose(found[0].loc, found[1].loc, rtol=1e-4)


def test_what_is_refused(unchecked, key):
    with pytest.raises(ValueError, match="num_samples must be at least 2, got 1"):
        updates.batch_and_match(logistic, num_samples=1)
    for rate in (0.0, -1.0):
        with pytest.raises(ValueError, match="learning_rate must be a number positive"):
            updates.batch_and_match(logistic, num_samples=2, learning_rate=rate)
    update = updates.batch_and_match(logistic, num_samples=2)
    with pytest.raises(TypeError, match="needs params of families.full_rank"):
        update.init(vj.families.mean_field().init(key, jnp.zeros(2)))
    target = vj.targets.minibatch(lambda z: -(z**2), lambda z: -(z[None] ** 2), num_data=2)
    with pytest.raises(
        ValueError, match="needs the exact log_joint.* use updates.natural_gradient"
    ):
        updates.batch_and_match(target, num_samples=2).step(
            key, update.init(full.init(key, jnp.zeros(())))
        )
