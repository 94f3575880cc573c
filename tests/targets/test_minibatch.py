"""minibatch: N/B on the likelihood alone, unbiased over minibatches for the elbo, and the refusals that follow."""

from functools import partial

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import vijax as vj
from tests.bare import Gauss
from tests.statistics import assert_mean
from vijax import solvers

DATA = np.linspace(-1.0, 2.0, 12).astype(np.float32)


def target(x, num_data=12):
    return vj.targets.minibatch(
        lambda z: norm.logpdf(z), lambda z: norm.logpdf(x, z, 1.0), num_data=num_data
    )


def test_the_factor_is_on_the_likelihood_alone():
    """All the data: the log joint. Half of it: twice its likelihood, the prior once."""
    z = jnp.float32(0.4)
    full = norm.logpdf(z) + norm.logpdf(DATA, z, 1.0).sum()
    np.testing.assert_allclose(target(DATA)(z), full, rtol=1e-6)
    np.testing.assert_allclose(
        target(DATA[:6])(z), norm.logpdf(z) + 2 * norm.logpdf(DATA[:6], z, 1.0).sum(), rtol=1e-6
    )


def test_a_batch_of_latents_keeps_its_axes():
    """Terms are [B, *batch]: here three members, each with a latent of its own and the same data."""
    z = jnp.array([0.1, 0.2, 0.3])
    log_joint = vj.targets.minibatch(
        lambda z: norm.logpdf(z), lambda z: norm.logpdf(DATA[:, None], z[None], 1.0), num_data=24
    )
    expected = [norm.logpdf(v) + 2 * norm.logpdf(DATA, v, 1.0).sum() for v in z]
    np.testing.assert_allclose(log_joint(z), expected, rtol=1e-6)


def test_the_elbo_and_its_gradient_are_unbiased_over_minibatches(key):
    """Random minibatches of 3 of 12 against the whole data, q's gradient by dreg. By chance 2e-10 a number; detects .25.

    The control scales the whole log joint, prior too, and is off by 3 times the prior's slope, about 4.
    """
    params = {"loc": jnp.float32(1.5), "log_scale": jnp.float32(-1.0)}

    def value(params, key, scaled_prior):
        key, pick = jax.random.split(key)
        x = jax.random.choice(pick, DATA, (3,), replace=False)
        extra = 4.0 if scaled_prior else 1.0
        log_joint = vj.targets.minibatch(
            lambda z: extra * norm.logpdf(z), lambda z: norm.logpdf(x, z, 1.0), num_data=12
        )
        q = Gauss(params["loc"], params["log_scale"])
        return vj.gradients.dreg(vj.bounds.elbo)(key, log_joint, q, num_samples=1).value

    def exact(params):
        m, s = params["loc"], jnp.exp(params["log_scale"])
        expected = (
            -0.5 * (m**2 + s**2) - 0.5 * jnp.sum((DATA - m) ** 2 + s**2) - 6.5 * jnp.log(2 * jnp.pi)
        )
        return expected + 0.5 * jnp.log(2 * jnp.pi * jnp.e) + params["log_scale"]

    keys = jax.random.split(key, 60_000)
    run = lambda wrong: jax.jit(jax.vmap(lambda k: jax.grad(value)(params, k, wrong)))(keys)
    assert_mean(run(False), jax.grad(exact)(params), detects=0.35)
    with pytest.raises(AssertionError, match="biased"):
        assert_mean(run(True), jax.grad(exact)(params), detects=0.35)


def test_refusals():
    with pytest.raises(ValueError, match="12 data cannot stand for num_data = 5"):
        target(DATA, num_data=5)(jnp.float32(0.0))
    with pytest.raises(TypeError, match="num_data must be a Python int"):
        target(DATA, num_data=True)
    with pytest.raises(ValueError, match="one term for each datum"):
        vj.targets.minibatch(lambda z: z, lambda z: z, num_data=3)(jnp.float32(0.0))


def test_num_data_is_a_whole_number(unchecked):
    with pytest.raises(TypeError, match="num_data must be a Python int"):
        target(DATA, num_data=12.5)


def test_the_factor_cannot_be_applied_twice():
    """Nested, wherever the inner one hides; one after another is fine, and so is a call after one that failed."""
    z = jnp.float32(0.4)
    inner = target(DATA[:6])
    likelihood = lambda z: norm.logpdf(DATA[:6], z, 1.0)
    for prior, terms, name in (
        (inner, likelihood, "log_prior is itself"),
        (partial(inner), likelihood, "log_prior is itself"),
        (norm.logpdf, inner, "log_likelihood is itself"),
    ):
        with pytest.raises(ValueError, match=name):
            vj.targets.minibatch(prior, terms, num_data=12)
    hidden = vj.targets.minibatch(norm.logpdf, lambda z: inner(z) * jnp.ones(6), num_data=12)
    jitted = jax.jit(inner)
    jitted(z)  # its trace is cached, which must not hide it
    cached = vj.targets.minibatch(norm.logpdf, lambda z: jitted(z) * jnp.ones(6), num_data=12)
    for call in (
        hidden,
        jax.jit(hidden),
        vj.targets.transform(hidden, None).log_joint,
        cached,
        jax.jit(cached),
    ):
        with pytest.raises(ValueError, match="applied twice"):
            call(z)
    np.testing.assert_allclose(inner(z), norm.logpdf(z) + 2 * likelihood(z).sum(), rtol=1e-6)


def test_no_function_around_it_hides_it_from_a_bound(key):
    """A closure carries no mark: what is asked of the target is told to it from above, through jit's caches too."""
    terms = vj.targets.minibatch(norm.logpdf, lambda z: norm.logpdf(DATA[:3], z, 1.0), num_data=12)
    q, z = Gauss(jnp.float32(1.0), jnp.float32(-1.0)), jnp.float32(0.3)
    for hidden in (lambda z: terms(z), jax.jit(lambda z: terms(z))):
        np.testing.assert_allclose(hidden(z), terms(z), rtol=1e-6)
        estimate = lambda bound, hidden=hidden: (
            vj.gradients.dreg(bound)(key, hidden, q, num_samples=2).value
        )
        assert jnp.isfinite(estimate(vj.bounds.elbo))
        with pytest.raises(ValueError, match=r"minibatch.*inside another function.*bounds\.elbo"):
            estimate(vj.bounds.iwae)
        assert jnp.isfinite(estimate(vj.bounds.elbo))  # and what was refused leaves no trace
    rule = vj.updates.batch_and_match(lambda z: terms(z[0]), num_samples=8)
    state = rule.init(vj.families.full_rank().init(key, jnp.zeros(1)))
    with pytest.raises(ValueError, match="inside another function"):
        rule.step(key, state)
    with pytest.raises(ValueError, match="inside another function"):
        solvers.pathfinder(key, lambda z: terms(z[0]), jnp.zeros(1), num_samples=8)
    with pytest.raises(ValueError, match="inside another function"):
        vj.targets.collapse_gaussian(lambda z, b: terms(z) - b**2, jnp.zeros(()))[0](z)


@pytest.mark.usefixtures("loose_ranks")
def test_a_keyed_minibatch_stays_a_minibatch(key):
    def parabola(z):
        return -0.5 * (z - 1.0) ** 2

    plain = vj.targets.minibatch(parabola, lambda z: jnp.stack([parabola(z)]), num_data=9)
    keyed = vj.targets.keyed(partial(lambda target, key, z: target(z), plain))
    with pytest.raises(ValueError, match="linear"):
        vj.gradients.reparam(vj.bounds.iwae)(key, plain, distrax.Normal(0.0, 1.0), num_samples=2)
    assert keyed(jnp.array(0.3), key=key) == plain(jnp.array(0.3))
