"""structured and given: the Gaussians and hierarchies that their parts can hold, exactly, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import multivariate_normal, norm

import vijax as vj
from tests.marks import some

families = vj.families
mean_field = families.mean_field()
PAIR = families.structured({"b": mean_field, "a": families.given("b", mean_field)})
MEAN, COVARIANCE = np.array([0.5, -1.0], np.float32), np.array([[1.0, 0.9], [0.9, 1.5]], np.float32)


def gaussian(z):
    return multivariate_normal.logpdf(jnp.stack([z["a"], z["b"]]), MEAN, COVARIANCE)


def exact():
    """Return the parameters of a | b and b under the Gaussian: regression coefficient and residual spread."""
    slope = COVARIANCE[0, 1] / COVARIANCE[1, 1]
    family = {
        "loc": MEAN[0] - slope * MEAN[1],
        "log_scale": 0.5 * np.log(COVARIANCE[0, 0] - slope * COVARIANCE[0, 1]),
    }
    return {
        "b": {"loc": MEAN[1], "log_scale": 0.5 * np.log(COVARIANCE[1, 1])},
        "a": {"family": family, "affine": np.array([[slope, 0.0]], np.float32), "network": []},
    }


def test_a_correlated_gaussian_is_held_exactly(key):
    """KL 0: every log-weight is 0 and dreg's gradient too; without the correlation it is -½ log(1 - ρ²) = .39."""
    params = jax.tree.map(jnp.asarray, exact())
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)
    assert shapes(PAIR.init(key, {"a": jnp.float32(0), "b": jnp.float32(0)})) == shapes(params)

    @jax.jit
    def look(params):
        objective = vj.gradients.dreg(vj.bounds.iwae)
        value = lambda p: objective(key, gaussian, PAIR.dist(p), num_samples=8)
        return jax.value_and_grad(lambda p: value(p).value)(params), value(params).draws.log_w

    (value, slope), log_w = look(params)
    np.testing.assert_allclose(log_w, 0.0, atol=2e-5)
    jax.tree.map(lambda g: np.testing.assert_allclose(g, 0.0, atol=2e-5), slope)
    without = {**params, "a": {**params["a"], "affine": jnp.zeros((1, 2))}}
    assert np.abs(look(without)[1]).max() > 0.1


@pytest.mark.parametrize("hidden", some([(), (8,)], "()"))
def test_a_climb_finds_it(hidden, key):
    """From the start of init, with exact Gaussian draws at fixed noise, to the evidence within .01 nats."""
    import optax

    family = families.structured(
        {"b": mean_field, "a": families.given("b", mean_field, hidden=hidden)}
    )
    objective = vj.gradients.dreg(vj.bounds.elbo)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 600))

    @jax.jit
    def run():
        params = family.init(key, {"a": jnp.float32(0), "b": jnp.float32(0)})
        value = lambda p, k, n: objective(k, gaussian, family.dist(p), num_samples=n).value

        def step(carry, k):
            params, state = carry
            updates, state = optimizer.update(jax.grad(lambda p: -value(p, k, 8))(params), state)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(
            step, (params, optimizer.init(params)), jax.random.split(key, 600)
        )
        return value(params, key, 2000)

    assert abs(run()) < 0.01


def test_a_funnel_is_held_exactly(key):
    """The spread of the later leaf moves with the earlier one: log N(theta; 0, e^tau) of two numbers, at any point."""
    family = families.structured(
        {"tau": mean_field, "theta": families.given("tau", families.full_rank())}
    )
    params = family.init(key, {"tau": jnp.float32(0.0), "theta": jnp.zeros(2)})
    vector = {"loc": np.zeros(2), "log_scale": np.ones(2), "lower": np.zeros(1)}
    params["theta"]["affine"] = jnp.concatenate(
        [jnp.asarray(vector[name], jnp.float32) for name in sorted(vector)]
    )[None]
    params["theta"]["family"] = jax.tree.map(jnp.zeros_like, params["theta"]["family"])
    for tau in (-2.0, 1.5):
        parts = family.dist(params).parts(
            {"tau": jnp.float32(tau), "theta": jnp.array([0.3, -0.4])}
        )
        np.testing.assert_allclose(
            parts["theta"], norm.logpdf(np.array([0.3, -0.4]), 0, np.exp(tau)).sum(), rtol=1e-5
        )


def hierarchy(z):
    mu, tau = z["top"]["mu"], z["top"]["log_tau"]
    return {
        "top": norm.logpdf(mu, 0.0, 2.0) + norm.logpdf(tau),
        "theta": jnp.sum(norm.logpdf(z["theta"], mu, jnp.exp(tau))),
        "x": jnp.sum(norm.logpdf(jnp.array([1.0, 2.0, 0.5]), z["theta"], 1.0)),
    }


TREE = families.structured(
    {
        "top": families.student_t(degrees=5),
        "theta": families.given("top", families.full_rank(), hidden=(3,)),
        "more": families.structured({"p": mean_field, "q": families.given("p", mean_field)}),
        "last": families.given(
            ("more", "theta"), families.mixture(families.low_rank(rank=1), components=2)
        ),
    }
)
LIKE = {
    "top": {"mu": jnp.float32(0.0), "log_tau": jnp.float32(0.0)},
    "theta": jnp.zeros(3),
    "more": {"p": jnp.zeros(2), "q": jnp.float32(1.0)},
    "last": jnp.zeros(2),
}


@pytest.mark.slow
def test_subtrees_and_estimators_of_a_hierarchy(key):
    """A Joint of Joints: log q is the sum of its parts, auto and antithetic's refusal see leaves, vmap over parameters."""
    keys = jax.random.split(key, 2)

    @jax.jit
    def look(of_start):
        params = jax.vmap(TREE.init, (0, None))(of_start, LIKE)

        def one(params):
            q = TREE.dist(params)
            z, log_q = q.sample_and_log_prob(seed=key, sample_shape=(4,))
            parts = jax.vmap(q.parts)(z)
            objective = vj.gradients.auto(vj.bounds.iwae)
            target = lambda z: (
                sum(hierarchy(z).values())
                + jnp.sum(norm.logpdf(z["last"]))
                + norm.logpdf(z["more"]["q"])
                + jnp.sum(norm.logpdf(z["more"]["p"]))
            )
            slope = jax.grad(lambda p: objective(key, target, TREE.dist(p), num_samples=3).value)(
                params
            )
            return z, log_q, parts, slope

        return jax.vmap(one)(params)

    z, log_q, parts, slope = look(keys)
    assert jax.tree.structure(jax.tree.map(lambda a: 0, z)) == jax.tree.structure(
        jax.tree.map(lambda a: 0, LIKE)
    )
    np.testing.assert_allclose(sum(parts.values()), log_q, rtol=1e-4)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(slope))
    affine = slope["last"][
        "affine"
    ]  # the mixture's draws jump, so that its slope is a score's, and there all the same
    assert np.abs(affine).max() > 1e-3
    q = TREE.dist(TREE.init(key, LIKE))
    with pytest.raises(ValueError, match="leaf 'last' depends on a parameter through 'argmax'"):
        vj.gradients.dreg(vj.bounds.elbo)(key, lambda z: jnp.sum(z["last"]), q, num_samples=2)


def test_fifty_latents_start_finite(key):
    family = families.structured(
        {"a": mean_field, "b": families.given("a", families.full_rank(), hidden=(16,))}
    )
    params = family.init(key, {"a": jnp.full(10, 5.0), "b": jnp.full(40, -5.0)})
    target = lambda z: jnp.sum(norm.logpdf(z["a"])) + jnp.sum(norm.logpdf(z["b"]))
    value = jax.jit(
        lambda p: (
            vj.gradients.dreg(vj.bounds.elbo)(key, target, family.dist(p), num_samples=2).value
        )
    )
    assert np.isfinite(value(params))


def test_refusals(key, unchecked):
    with pytest.raises(ValueError, match="at least one name"):
        families.structured({})
    with pytest.raises(TypeError, match="part 'a' must be a Family or families.given"):
        families.structured({"a": mean_field.init})
    with pytest.raises(
        ValueError, match=r"part 'a' is given \['b'\], and the parts before it are \[\]"
    ):
        families.structured({"a": families.given("b", mean_field), "b": mean_field})
    with pytest.raises(ValueError, match=r"names of the parts, \['b', 'a'\], got \['a'\]"):
        PAIR.init(key, {"a": jnp.zeros(())})
    with pytest.raises(ValueError, match="got a tuple"):
        PAIR.init(key, (jnp.zeros(()),))
    with pytest.raises(TypeError, match="family must be a Family"):
        families.given("a", "b")
    with pytest.raises(ValueError, match="at least one earlier leaf"):
        families.given((), mean_field)
    with pytest.raises(ValueError, match="hidden must be a tuple of widths"):
        families.given("a", mean_field, hidden=3)
    assert isinstance(families.given("a", mean_field), families.Given)
