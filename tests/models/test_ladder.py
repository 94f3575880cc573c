"""Ladder: bottom-up and top-down layers, and its estimators, gdreg among them, against quadrature."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.scipy.stats import norm

import vijax as vj
from tests import oracles
from tests.statistics import assert_mean
from vijax.models import MLP, Conditional, Ladder, Prior, standard

pytestmark = pytest.mark.usefixtures("loose_ranks")  # Flax adds biases by NumPy's promotion

NORMAL = vj.families.mean_field(scale=1.0)
X = jnp.array([[1.0, 0.0]])


def layer(inputs, given, seed, family=NORMAL, like=None, outputs=2):
    like = jnp.zeros(1) if like is None else like
    return Conditional(MLP(inputs, (), outputs, rngs=nnx.Rngs(seed)), family, like, given=given)


def pixels(given, inputs=1):
    return layer(inputs, given, 9, vj.families.bernoulli(), jnp.array([0.6, 0.4]))


def learned():
    return Prior(NORMAL, {"loc": jnp.full(1, 0.3), "log_scale": jnp.full(1, -0.2)})


def bottom_up():
    return Ladder(
        {"low": layer(2, "x", 0), "top": layer(1, "low", 1)},
        {"top": learned(), "low": layer(1, "top", 2), "x": pixels("low")},
    )


def top_down():
    """q(top | x) q(low | x, top), and pixels that hear both layers."""
    return Ladder(
        {"top": layer(2, "x", 0), "low": layer(3, ("x", "top"), 1)},
        {"top": standard(jnp.zeros(1)), "low": layer(1, "top", 2), "x": pixels(("low", "top"), 2)},
    )


@pytest.mark.parametrize("build", [bottom_up, top_down])
def test_factors_and_the_joint_are_those_of_its_layers(build, key):
    """Each factor by its own conditional, q as a chain; three draws at once."""

    @jax.jit
    def run(key):
        ladder = build()
        z, log_q = ladder.q(X).sample_and_log_prob(seed=key, sample_shape=(3,))
        at = jax.tree.map(lambda leaf: leaf[0], z)
        low = ladder.decoder["low"].params(at["top"])
        truth = norm.logpdf(at["low"], low["loc"], jnp.exp(low["log_scale"])).sum(-1)
        prior = ladder.prior()
        log_probs = log_q[0], ladder.q(X).log_prob(at), prior.log_prob(at)
        back = prior.push(prior.pull(at))
        return z, ladder.log_joint(X)(at), truth, log_probs, back, ladder.generate(key, 5)

    z, factors, truth, (log_q, again, log_prior), back, generated = run(key)
    assert jax.tree.map(jnp.shape, z) == {"low": (3, 1, 1), "top": (3, 1, 1)}
    np.testing.assert_allclose(factors["low"], truth, rtol=1e-5)
    np.testing.assert_allclose(factors["top"] + factors["low"], log_prior, rtol=1e-5)
    np.testing.assert_allclose(log_q, again, rtol=1e-4, atol=1e-5)
    for name, leaf in z.items():
        np.testing.assert_allclose(back[name], leaf[0], rtol=1e-4, atol=1e-5)
    assert generated.shape == (5, 2)


def test_gradients_are_unbiased(key):
    """gdreg(iwae), dreg(iwae) and factored(elbo), every layer, K = 2: by quadrature over both latents. Detects .3."""
    graph, params, rest = nnx.split(bottom_up(), nnx.Param, ...)
    merge = lambda params: nnx.merge(graph, params, rest)
    points, volumes = oracles.cross(oracles.interval(-5, 5, 31), oracles.interval(-5, 5, 31))
    points = {"low": points[0], "top": points[1]}
    at = lambda z: {name: jnp.full((1, 1), 1.0) * leaf for name, leaf in z.items()}
    log_p = lambda p, z: sum(merge(p).log_joint(X)(at(z)).values())
    log_q = lambda p, z: merge(p).q(X).log_prob(at(z))
    truth = oracles.value_and_grad(vj.bounds.iwae, log_p, log_q, points, volumes, 2, params)[1]

    def gdreg(ladder, still=False):
        prior = ladder.prior()
        other = merge(jax.lax.stop_gradient(nnx.state(ladder, nnx.Param))).prior()
        push = other.push if still else prior.push
        return vj.gradients.gdreg(vj.bounds.iwae, prior=prior, push=push, pull=prior.pull)

    makers = {
        "gdreg": gdreg,
        "dreg": lambda ladder: vj.gradients.dreg(vj.bounds.iwae),
        "wrong": partial(gdreg, still=True),  # a push that is not the prior's
    }

    def value(params, name, key):
        ladder = merge(params)
        objective = makers[name](ladder)
        return objective(key, ladder.log_joint(X), ladder.q(X), num_samples=2).value.sum()

    every = lambda key: {name: jax.grad(value)(params, name, key) for name in makers}
    found = jax.jit(jax.vmap(every))(jax.random.split(key, 8_000))
    assert_mean(found["gdreg"], truth, detects=0.3)
    assert_mean(found["dreg"], truth, detects=0.3)
    with pytest.raises(AssertionError, match="biased"):
        assert_mean(found["wrong"]["decoder"], truth["decoder"], detects=0.5)


def test_a_step_with_a_factor_for_each_layer(key):
    """auto and factored take the joint and the dict of factors as they are: the bound of their own draws."""
    objectives = {
        vj.bounds.iwae: vj.gradients.auto(vj.bounds.iwae),
        vj.bounds.elbo: vj.gradients.factored(vj.bounds.elbo),
    }

    @jax.jit
    def run(key):
        ladder, found = bottom_up(), []
        for bound, objective in objectives.items():
            value, draws = objective(key, ladder.log_joint(X), ladder.q(X), num_samples=3)
            log_p = jax.vmap(lambda z: sum(ladder.log_joint(X)(z).values()))(draws.z)
            found.append((value, bound(log_p - jax.vmap(ladder.q(X).log_prob)(draws.z))))
        return found

    for value, by_hand in run(key):
        assert value.shape == (1,)
        np.testing.assert_allclose(value, by_hand, rtol=1e-4, atol=1e-5)


def test_batch_statistics_within_q_are_constants(key):
    """A layer of q that is given draws runs by running averages: another datum changes nothing of the first."""

    @jax.jit
    def run(x):
        normalized = MLP(1, (3,), 2, normalize=nnx.BatchNorm, rngs=nnx.Rngs(3))
        top = Conditional(normalized, NORMAL, jnp.zeros(1), given="low")
        ladder = Ladder(
            {"low": layer(2, "x", 0), "top": top},
            {"top": standard(jnp.zeros(1)), "low": layer(1, "top", 2), "x": pixels("low")},
        )
        objective = vj.gradients.dreg(vj.bounds.iwae)
        value = objective(key, ladder.log_joint(x), ladder.q(x), num_samples=3).value
        ladder.renew({"low": x[:, :1], "top": x[:, :1]})
        return value, normalized.norms[0].mean[...]

    x = jnp.ones((4, 2))
    (value, mean), (other, _) = run(x), run(x.at[1:].set(-2.0))
    assert value.shape == (4,)
    np.testing.assert_allclose(value[0], other[0], rtol=1e-6)
    assert abs(float(value[1] - other[1])) > 0.01
    # `renew` is of the decoder, which has no batch statistics here: those of q stay as they are.
    np.testing.assert_array_equal(mean, jnp.zeros(3))


def test_refusals(unchecked):
    low, top = layer(2, "x", 0), layer(1, "low", 1)
    with pytest.raises(ValueError, match="must name the encoder's latents"):
        Ladder({"low": low}, {"top": learned(), "x": pixels("top")})
    with pytest.raises(ValueError, match="is given"):
        Ladder(
            {"top": top, "low": low},
            {"top": learned(), "low": layer(1, "top", 2), "x": pixels("low")},
        )
    with pytest.raises(TypeError, match="must be a prior"):
        Ladder({"low": low}, {"low": layer(1, "x", 2), "x": pixels("low")})
