"""Stratified draws: every component of a mixture in turn, and the derivative of its logits exact through the weights."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import vijax as vj
from tests import oracles
from tests.bare import Coin
from tests.statistics import assert_mean, assert_variance_ratio
from vijax.draws import stratified, weigh

FAMILY = vj.families.mixture(vj.families.mean_field(), components=2)
PARAMS = {
    "q": {
        "logits": np.array([0.4, -0.3], np.float32),
        "components": {
            "loc": np.array([-0.9, 1.1], np.float32),
            "log_scale": np.array([-0.4, -0.2], np.float32),
        },
    },
    "theta": np.float32(0.3),
}
POINTS, VOLUMES = oracles.interval(-9.0, 9.0, 181)


def log_joint(theta, z):
    """z ~ N(theta, 2²), x | z ~ N(z²/2, 1) at x = 1: two modes."""
    return norm.logpdf(z, theta, 2.0) + norm.logpdf(1.0, 0.5 * z**2, 1.0)


def log_parts(q, z):
    return norm.logpdf(
        z[:, None], q["components"]["loc"][None], jnp.exp(q["components"]["log_scale"])[None]
    )


@oracles.exact
def truth(bound):
    """E[bound] and its gradient over a draw of each component, (z₁, z₂) ~ q₁ q₂, weighted by π."""

    def value(params):
        log_pi = jax.nn.log_softmax(params["q"]["logits"])
        parts = log_parts(params["q"], POINTS)
        log_w = log_joint(params["theta"], POINTS) - jax.nn.logsumexp(log_pi[None] + parts, axis=1)
        each = VOLUMES[:, None] * jnp.exp(parts)
        pair = jnp.stack(jnp.broadcast_arrays(log_w[:, None], log_w[None]))
        return jnp.sum(
            each[:, 0][:, None] * each[:, 1][None] * bound(pair, weights=jnp.exp(log_pi))
        )

    return jax.jit(jax.value_and_grad(value))(PARAMS)


def gradients(key, objectives, num_samples, n, build=FAMILY.dist):
    """Return value and gradient of every objective for n keys, in one compilation."""

    def value(params, objective, key):
        target = lambda z: log_joint(params["theta"], z)
        return objective(key, target, build(params["q"]), num_samples=num_samples).value

    every = lambda key: {
        n: jax.value_and_grad(value)(PARAMS, o, key) for n, o in objectives.items()
    }
    return jax.jit(jax.vmap(every))(jax.random.split(key, n))


def strata(q):
    """Return the same mixture as distrax has it."""
    parts = distrax.Normal(q["components"]["loc"], jnp.exp(q["components"]["log_scale"]))
    return vj.families.strata(
        distrax.MixtureSameFamily(distrax.Categorical(logits=q["logits"]), parts)
    )


def test_every_component_in_turn(key):
    """Row i is of component i mod m, weighed by its share of the rounds; log q is the mixture's."""
    far = {"loc": jnp.array([-100.0, 0.0, 100.0]), "log_scale": jnp.zeros(3)}
    q = vj.families.mixture(vj.families.mean_field(), components=3).dist(
        {"logits": jnp.arange(3.0), "components": far}
    )
    draws = weigh(key, lambda z: -0.5 * z**2, q, num_samples=6, draw=stratified)
    np.testing.assert_array_equal(np.round(draws.z / 100), [-1, 0, 1, -1, 0, 1])
    assert len(np.unique(draws.z)) == 6
    np.testing.assert_allclose(draws.log_q, jax.vmap(q.log_prob)(draws.z), rtol=1e-6)
    np.testing.assert_allclose(
        draws.weights, np.tile(jax.nn.softmax(jnp.arange(3.0)), 2) / 2, rtol=1e-6
    )
    assert not stratified.independent


@pytest.mark.slow
@pytest.mark.parametrize("build", [FAMILY.dist, strata], ids=lambda build: build.__name__)
def test_unbiased(build, key, loose_ranks):
    """Values and gradients in logits, components and model, 2 draws. By chance 2e-10 a number; detects .08."""
    renyi = lambda log_w, *, weights=None: vj.bounds.renyi(log_w, alpha=0.5, weights=weights)
    objectives = {
        "reparam(elbo)": (vj.gradients.reparam, vj.bounds.elbo),
        "dreg(elbo)": (vj.gradients.dreg, vj.bounds.elbo),
        "reparam(iwae)": (vj.gradients.reparam, vj.bounds.iwae),
        "reparam(renyi)": (vj.gradients.reparam, renyi),
    }
    found = gradients(
        key, {n: g(b, draw=stratified) for n, (g, b) in objectives.items()}, 2, 60_000, build
    )
    assert_mean(found, {n: truth(b) for n, (_, b) in objectives.items()}, detects=0.08)


def test_the_bounds_are_in_order(key):
    """elbo < siwae of one round < of eight < log p, by five standard errors each."""
    log_p = jax.nn.logsumexp(log_joint(PARAMS["theta"], POINTS) + jnp.log(VOLUMES))

    def mean(k):
        objective = vj.gradients.reparam(vj.bounds.iwae, draw=stratified)
        target = lambda z: log_joint(PARAMS["theta"], z)
        value = lambda key: objective(key, target, FAMILY.dist(PARAMS["q"]), num_samples=k).value
        found = jax.jit(jax.vmap(value))(jax.random.split(key, 20_000))
        return float(jnp.mean(found)), float(jnp.std(found)) / 20_000**0.5

    (two, error), (many, small) = mean(2), mean(16)
    assert float(truth(vj.bounds.elbo)[0]) < two - 5 * error
    assert two + 5 * error < many
    assert many < float(log_p) - 5 * small


@pytest.mark.slow
def test_the_logits_of_distrax(key, loose_ranks):
    """Truth .505: stratified draws find it, the path through a plain draw finds exactly 0. Detects .02, by chance 2e-10."""
    logits, loc = jnp.array([0.0, 0.0]), jnp.array([-1.0, 1.0])
    build = lambda l: distrax.MixtureSameFamily(
        distrax.Categorical(logits=l), distrax.Normal(loc, jnp.full(2, 0.6))
    )
    target = lambda z: norm.logpdf(z, 1.01, 1.0)
    log_q = build(logits).log_prob(POINTS)
    share = jnp.exp(norm.logpdf(POINTS, 1.0, 0.6)) - jnp.exp(
        log_q
    )  # d/d logit₁ of q is π₁ (q₁ - q)
    exact = jnp.sum(VOLUMES * 0.5 * share * (target(POINTS) - log_q))
    assert abs(exact - 0.505) < 5e-4

    objective = vj.gradients.dreg(vj.bounds.elbo, draw=stratified)
    value = lambda l, key: objective(key, target, vj.families.strata(build(l)), num_samples=4).value

    def naive(l, key):
        z = build(l).sample(seed=key)
        return target(z) - jax.lax.stop_gradient(build(l).log_prob(z))

    keys = jax.random.split(key, 20_000)
    found, wrong = (
        jax.jit(jax.vmap(jax.grad(f), (None, 0)))(logits, keys)[:, 1] for f in (value, naive)
    )
    assert_mean({"logit": found}, {"logit": exact}, detects=0.02)
    assert np.all(np.asarray(wrong) == 0.0)
    with pytest.raises(AssertionError, match="biased"):
        assert_mean({"logit": wrong}, {"logit": exact}, detects=0.02)


@pytest.mark.slow
def test_wrong_estimators_fail(key):
    """dreg's gate on strata passed off as independent, and draws that forget their weights."""
    passed_off = stratified._replace(independent=True)
    wrong = {
        "gated": (vj.gradients.dreg(vj.bounds.iwae, draw=passed_off), vj.bounds.iwae),
        "alike": (
            vj.gradients.dreg(vj.bounds.elbo, draw=stratified._replace(weights=None)),
            vj.bounds.elbo,
        ),
        "fixed": (
            vj.gradients.dreg(
                vj.bounds.elbo,
                draw=stratified._replace(
                    weights=lambda q, k: jax.lax.stop_gradient(stratified.weights(q, k))
                ),
            ),
            vj.bounds.elbo,
        ),
    }
    found = gradients(key, {name: objective for name, (objective, _) in wrong.items()}, 2, 60_000)
    for name, (_, bound) in wrong.items():
        with pytest.raises(AssertionError, match="biased"):
            assert_mean({name: found[name][1]}, {name: truth(bound)[1]}, detects=0.08)


@pytest.mark.slow
def test_the_exact_posterior(key):
    """Where q is the posterior, dreg(elbo) has gradient 0 draw by draw, the logits' included."""

    def value(q, chunk_size=None):
        target = lambda z: FAMILY.dist(PARAMS["q"]).log_prob(z) - 1.5
        objective = vj.gradients.dreg(vj.bounds.elbo, draw=stratified)
        return objective(key, target, FAMILY.dist(q), num_samples=6, chunk_size=chunk_size).value

    for size in (None, 4):
        found, grads = jax.value_and_grad(value)(PARAMS["q"], size)
        np.testing.assert_allclose(found, -1.5, rtol=1e-6)
        jax.tree.map(lambda g: np.testing.assert_allclose(g, 0.0, atol=2e-6), grads)


@pytest.mark.slow
def test_transforms(key, loose_ranks):
    """A batch of three mixtures of distrax: chunks = whole, jit = plain, vmap over keys = one by one."""
    objective = vj.gradients.reparam(vj.bounds.iwae, draw=stratified)
    params = {"logits": jnp.array([[0.1, -0.2]] * 3), "loc": jnp.arange(6.0).reshape(3, 2)}

    def value(params, key, size=None):
        parts = distrax.Normal(params["loc"], 0.5 * jnp.ones((3, 2)))
        q = distrax.MixtureSameFamily(distrax.Categorical(logits=params["logits"]), parts)
        seen = objective(
            key,
            lambda z: norm.logpdf(z, 1.0, 1.0),
            vj.families.strata(q),
            num_samples=6,
            chunk_size=size,
        )
        return jnp.sum(seen.value), seen.draws.weights

    grad = jax.value_and_grad(value, has_aux=True)
    (expected, weights), gradient = grad(params, key)
    assert weights.shape == (6, 3)
    (found, _), of_chunks = jax.jit(grad, static_argnums=2)(params, key, 4)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    close = lambda f, e: np.testing.assert_allclose(f, e, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, of_chunks, gradient)
    several = jax.jit(jax.vmap(lambda k: grad(params, k)[1]))(jnp.stack([jax.random.key(9), key]))
    jax.tree.map(lambda s, e: close(s[1], e), several, gradient)


def test_refusals(key, unchecked):
    """What a stratified draw cannot be, and what a mixture cannot do without it."""
    q, target = FAMILY.dist(PARAMS["q"]), lambda z: -0.5 * z**2
    run = lambda make, bound, q=q, k=4, **how: make(bound, **how)(key, target, q, num_samples=k)
    reparam, dreg, elbo, iwae = (
        vj.gradients.reparam,
        vj.gradients.dreg,
        vj.bounds.elbo,
        vj.bounds.iwae,
    )
    with pytest.raises(ValueError, match="multiple of 2, got 3"):
        run(reparam, elbo, k=3, draw=stratified)
    with pytest.raises(TypeError, match=r"q.log_weights.*families.mixture.*families.strata"):
        run(
            reparam,
            elbo,
            q=vj.families.mean_field().dist(PARAMS["q"]["components"]),
            draw=stratified,
        )
    with pytest.raises(ValueError, match="dreg.*strata.*reparam"):
        run(dreg, iwae, draw=stratified)
    with pytest.raises(TypeError, match="takes no weights.*weights=None"):
        run(reparam, lambda log_w: jnp.mean(log_w, 0), draw=stratified)
    for make in (reparam, dreg):
        with pytest.raises(ValueError, match="leaf 'z' depends on a parameter.*draws.stratified"):
            jax.grad(lambda p, make=make: run(make, elbo, q=FAMILY.dist(p)))(PARAMS["q"])
    coins = vj.families.mixture(vj.types.Family(lambda key, like: like, Coin), components=2)
    params = {"logits": jnp.zeros(2), "components": jnp.array([0.2, -0.3])}
    with pytest.raises(ValueError, match="leaf 'z' depends on a parameter"):
        jax.grad(lambda p: run(reparam, elbo, q=coins.dist(p), draw=stratified).value)(params)


def test_what_is_saved(key):
    """Gradient variance at equal model evaluations, q as in PARAMS: the numbers of the docstring."""
    objectives = {
        "vimco": vj.gradients.vimco(vj.bounds.elbo),
        "reparam": vj.gradients.reparam(vj.bounds.elbo, draw=stratified),
        "dreg": vj.gradients.dreg(vj.bounds.elbo, draw=stratified),
    }
    found = {name: grads["q"] for name, (_, grads) in gradients(key, objectives, 4, 20_000).items()}
    assert_variance_ratio(found["vimco"], found["dreg"], at_least=5.0)  # measured 8
    assert_variance_ratio(found["vimco"], found["reparam"], at_least=2.5)  # 4
    logits = {name: grads["logits"] for name, grads in found.items()}
    assert_variance_ratio(logits["vimco"], logits["dreg"], at_least=2.0)  # 3
