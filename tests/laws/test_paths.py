"""Paths and scores: which draws carry a derivative, which supports move, and what a q declares, however deep."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj
from vijax.bounds import elbo, iwae
from vijax.gradients import auto, dreg, reparam, score, vimco

pytestmark = pytest.mark.usefixtures("loose_ranks")


class Duck:
    """A q made of two functions."""

    def __init__(self, sample, log_prob):
        self._sample, self.log_prob = sample, log_prob

    def sample_and_log_prob(self, *, seed, sample_shape=()):
        z = self._sample(seed)
        return z, self.log_prob(z)


def mean_gradient(objective, build, log_joint, at, key, n):
    one = jax.grad(lambda p, key: jnp.sum(objective(key, log_joint, build(p), num_samples=2).value))
    found = jax.jit(jax.vmap(one, (None, 0)))(at, jax.random.split(key, n))
    return found.mean(), found.std() / n**0.5


def parabola(z):
    return -0.5 * (z - 1.0) ** 2


def test_auto_scores_what_reaches_a_density_through_a_jump(key):
    """A Gaussian that decides a coin's odds by its sign has no path to them.

    The truth, with t = 3b - .1b² and p = σ(±2): d/dm of KL's closed form and of E[t + H], by quadrature over a. At 6
    standard errors of .0065 a false failure has probability 2e-9; the path's answer, -.2957, is 128 of them away.
    """

    def coin(z):
        return distrax.Bernoulli(logits=2 * jnp.sign(z["a"]))

    def build(m):
        return vj.Joint({"a": distrax.Normal(m, 1.0), "b": coin})

    def log_joint(z):
        return distrax.Normal(0.0, 1.0).log_prob(z["a"]) + 3.0 * z["b"] - 0.1 * z["b"] ** 2

    p = jax.nn.sigmoid(2.0)
    gain = 2.9 * (
        p - (1 - p)
    )  # between positive and negative a; the coin's entropy is the same on both sides
    exact = -0.3 + gain * jnp.exp(distrax.Normal(0.3, 1.0).log_prob(0.0))
    mean, error = mean_gradient(auto(elbo), build, log_joint, jnp.array(0.3), key, 60_000)
    assert abs(mean - exact) < 6 * error
    assert error < 0.01


def stopped(m):
    normal = distrax.Normal(m, 1.0)
    return Duck(lambda key: jax.lax.stop_gradient(normal.sample(seed=key)), normal.log_prob)


def largest(logit):
    logits = jnp.stack([logit, 0 * logit])
    log_p = jax.nn.log_softmax(logits)

    def top(key):
        return jax.lax.top_k(logits + jax.random.gumbel(key, (2,)), 1)[1][0].astype(jnp.float32)

    return Duck(top, lambda z: jnp.where(z < 0.5, log_p[0], log_p[1]))


@pytest.mark.parametrize(("build", "through"), [(stopped, "stop_gradient"), (largest, "top_k")])
def test_samplers_without_a_path_are_refused(build, through, key):
    for gradient in (reparam, dreg):
        with pytest.raises(
            ValueError, match=f"'z' depends on a parameter through '{through}'.*vimco"
        ):
            gradient(elbo)(key, parabola, build(jnp.array(0.5)), num_samples=2)
    assert np.isfinite(auto(elbo)(key, parabola, build(jnp.array(0.5)), num_samples=2).value)


def indicator(h):
    return Duck(lambda key: h * jax.random.uniform(key), lambda z: jnp.log((z < h) * (z > 0) / h))


def bare_uniform(h):
    return Duck(lambda key: h * jax.random.uniform(key), lambda z: -jnp.log(h))


@pytest.mark.parametrize("build", [indicator, bare_uniform, lambda h: distrax.Uniform(0.0, h)])
def test_moving_supports_are_refused_by_all_that_use_the_score(build, key):
    q = build(jnp.array(0.8))
    for gradient in (dreg, score, vimco):
        with pytest.raises(ValueError, match="mean of q's score.*Use gradients.reparam"):
            gradient(elbo)(key, parabola, q, num_samples=2)
    exact = jax.grad(lambda h: -0.5 * (h**2 / 3 - h + 1) + jnp.log(h))(0.8)
    mean, error = mean_gradient(reparam(elbo), build, parabola, jnp.array(0.8), key, 20_000)
    assert abs(mean - exact) < 6 * error


@pytest.mark.slow
def test_a_declared_path_is_believed(key):
    # Its bins are found by comparisons, yet it is smooth.
    spline = distrax.RationalQuadraticSpline(jnp.zeros(13), -2.0, 2.0)
    q = distrax.Transformed(distrax.Normal(0.3, 1.0), spline)
    with pytest.raises(ValueError, match="families.adapt\\(q, reparameterized=True\\)"):
        dreg(iwae)(key, parabola, q, num_samples=4)
    declared = vj.families.adapt(q, reparameterized=True)
    found = dreg(iwae)(key, parabola, declared, num_samples=4).value
    np.testing.assert_allclose(found, vimco(iwae)(key, parabola, q, num_samples=4).value, rtol=1e-5)


# --- supports that move, wherever a score is taken


def crossed(low):
    """Return a q on (low, inf), whose sampler clips so that no path is left: continuous, and broken."""

    def sample(key):
        z = jnp.maximum(low + jax.random.exponential(key), low)
        return jnp.where(z > low, z, low)

    return Duck(sample, lambda z: jnp.where(z < low, -jnp.inf, low - z))


@pytest.mark.parametrize("make", [auto, score, vimco])
@pytest.mark.parametrize(
    "build",
    [
        crossed,
        lambda low: {"u": crossed(low), "b": distrax.Bernoulli(probs=0.3)},
        lambda h: {"n": {"u": distrax.Uniform(0.0, h), "b": distrax.Bernoulli(probs=0.3)}},
        lambda h: {
            "u": distrax.Uniform(0.0, h),
            "b": lambda z: distrax.Bernoulli(probs=jnp.where(z["u"] > 0.5, 0.8, 0.2)),
        },
    ],
    ids=["broken", "broken leaf", "nested", "pulled in by a jump"],
)
def test_a_score_over_a_moving_support_is_refused(make, build, key):
    def log_joint(z):
        return -sum(jnp.sum(leaf) ** 2 for leaf in jax.tree.leaves(z))

    with pytest.raises(ValueError, match="fixed"):
        jax.grad(lambda p: make(elbo)(key, log_joint, build(p), num_samples=4).value)(1.3)


def test_auto_still_takes_the_path_of_a_moving_support(key):
    """The control: beside a coin, and not inside its score, the uniform keeps its path. Truth ⅔ h (½ + ½ .3) + 1/h."""

    def build(h):
        return {"u": distrax.Uniform(0.0, h), "b": distrax.Bernoulli(probs=0.3)}

    def log_joint(z):
        return jnp.where(z["b"] > 0, 1.0, 0.5) * z["u"] ** 2

    found, error = mean_gradient(auto(elbo), build, log_joint, 1.3, key, 20_000)
    assert abs(found - (2 / 3 * 1.3 * 0.65 + 1 / 1.3)) < 6 * error < 0.05


# --- declarations, however deep


@jax.custom_jvp
def below(u, p):
    return (u < p).astype(jnp.float32)


@below.defjvp
def _below_jvp(primals, tangents):
    return below(*primals), jnp.zeros_like(primals[0])


class Declared:
    """A coin behind a derivative that says zero, or a shifted normal behind a comparison; each declares what it is."""

    def __init__(self, p, reparameterized):
        self.p, self.reparameterized = p, reparameterized

    def sample_and_log_prob(self, *, seed, sample_shape=()):
        if self.reparameterized:
            e = jax.random.normal(seed)
            z = jnp.where(e > self.p, e, e) + self.p
        else:
            z = below(jax.random.uniform(seed), self.p)
        return z, self.log_prob(z)

    def log_prob(self, z):
        if self.reparameterized:
            return -0.5 * (z - self.p) ** 2
        return z * jnp.log(self.p) + (1 - z) * jnp.log1p(-self.p)


def test_declarations_hold_in_nested_joints(key):
    def nest(p, yes):
        return {"a": {"b": Declared(p, yes), "c": lambda z: distrax.Normal(z["b"], 1.0)}}

    def log_joint(z):
        return 2.0 * z["a"]["b"]

    with pytest.raises(
        ValueError, match=r"leaf 'a\.b' comes from a q that declares reparameterized = False"
    ):
        reparam(elbo)(key, log_joint, nest(0.3, False), num_samples=2)
    found, error = mean_gradient(auto(elbo), lambda p: nest(p, False), log_joint, 0.3, key, 20_000)
    assert abs(found - (2.0 - jnp.log(0.3 / 0.7))) < 6 * error < 0.5  # slope of 2 p + entropy
    found, _ = mean_gradient(reparam(elbo), lambda p: nest(p, True), log_joint, 0.3, key, 10)
    np.testing.assert_allclose(found, 2.0, rtol=1e-5)
