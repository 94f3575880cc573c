"""Refusals: what would be silently wrong is a clear error while tracing, and its message names the cure."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorflow_probability.substrates import jax as tfp

import vijax as vj
from tests.marks import some
from tests.statistics import assert_mean

pytestmark = pytest.mark.usefixtures("loose_ranks", "unchecked")

PATHS = {"reparam": vj.gradients.reparam, "dreg": vj.gradients.dreg}
paths = pytest.mark.parametrize("make", list(PATHS))
adapt = vj.families.adapt


def gradient(objective, build, params, key=None, log_joint=None, num_samples=2):
    """Differentiate an objective in q's parameters, as every training step does: the parameters are tracers."""

    def value(params):
        q = build(params)
        target = log_joint or (
            lambda z: sum(jnp.sum(jnp.asarray(leaf, jnp.float32)) for leaf in jax.tree.leaves(z))
        )
        return objective(
            jax.random.key(0) if key is None else key, target, q, num_samples=num_samples
        ).value.sum()

    return jax.jit(jax.grad(value))(params)


# --- q whose draws do not carry the derivative; the leaf is named

P = jnp.float32(0.3)
V = jnp.array([0.1, 0.2, -0.3])
HALF = jnp.float32(0.5)


def quantized(p):
    return distrax.Quantized(distrax.Normal(p, 1.0))


def mixture(p):
    parts = distrax.Normal(jnp.array([0.0, 1.0]), jnp.ones(2))
    return distrax.MixtureSameFamily(distrax.Categorical(logits=jnp.stack([p, 0.0])), parts)


DISCRETE = {
    "integer": (lambda p: distrax.Bernoulli(logits=p), P, r"leaf 'z' is discrete \(int32\)"),
    "Bernoulli in float": (
        lambda p: distrax.Bernoulli(logits=p, dtype=jnp.float32),
        P,
        "leaf 'z' depends on a parameter",
    ),
    "Categorical": (lambda p: distrax.Categorical(logits=p), V, r"leaf 'z' is discrete \(int32\)"),
    "OneHotCategorical in float": (
        lambda p: distrax.OneHotCategorical(logits=p, dtype=jnp.float32),
        V,
        "leaf 'z'",
    ),
    "Quantized": (quantized, P, "leaf 'z' depends on a parameter through '(round|ceil|floor)'"),
    "MixtureSameFamily": (mixture, P, "leaf 'z' depends on a parameter"),
    "TFP Bernoulli in float": (
        lambda p: adapt(tfp.distributions.Bernoulli(p, dtype=jnp.float32)),
        P,
        "leaf 'z'",
    ),
    "TFP Poisson": (lambda p: adapt(tfp.distributions.Poisson(jnp.exp(p))), P, "leaf 'z'"),
    "Independent": (
        lambda p: distrax.Independent(distrax.Bernoulli(logits=p, dtype=jnp.float32), 1),
        V,
        "leaf 'z' depends on a parameter",
    ),
    "Transformed": (
        lambda p: distrax.Transformed(quantized(p), distrax.ScalarAffine(0.0, 2.0)),
        P,
        "leaf 'z'",
    ),
    "dict": (
        lambda p: {
            "good": distrax.Normal(p, 1.0),
            "bad": distrax.Bernoulli(logits=p, dtype=jnp.float32),
        },
        P,
        "leaf 'bad' depends on a parameter",
    ),
    "Joint": (
        lambda p: vj.Joint(
            {
                "a": distrax.Normal(p, 1.0),
                "b": lambda z: distrax.Bernoulli(logits=z["a"], dtype=jnp.float32),
            }
        ),
        P,
        "leaf 'b' depends on a parameter",
    ),
    "nested": (lambda p: {"outer": {"bad": quantized(p)}}, P, "leaf 'outer.bad'"),
    "tuple": (lambda p: (distrax.Normal(p, 1.0), quantized(p)), P, "leaf '1'"),
    "threshold inside": (
        lambda p: distrax.Normal(jnp.where(p > 0, 1.0, -1.0) * p, 1.0),
        P,
        "leaf 'z'",
    ),
}


@paths
@pytest.mark.parametrize("kind", list(DISCRETE))
def test_a_q_without_a_path(make, kind):
    build, params, message = DISCRETE[kind]
    if kind == "threshold inside":
        build = jumps
    with pytest.raises(ValueError, match=f"{make} needs draws .*{message}.*gradients.vimco"):
        gradient(PATHS[make](vj.bounds.iwae), build, params)


class jumps:
    """Draws that jump with a parameter inside the sampler: a Gaussian whose sign the parameter decides."""

    def __init__(self, p):
        self.p = p

    def sample_and_log_prob(self, *, seed, sample_shape=()):
        z = jnp.where(self.p > 0, 1.0, -1.0) + jax.random.normal(seed)
        return z, self.log_prob(z)

    def log_prob(self, z):
        return -0.5 * (z - jnp.where(self.p > 0, 1.0, -1.0)) ** 2


def declared(q):
    """distrax's sigmoid switches formula by a comparison; it is continuous there, which only a person can say."""
    q.reparameterized = True
    return q


VALID = {
    "Gamma": (lambda p: distrax.Gamma(jnp.exp(p), 1.0), P),
    "Beta": (lambda p: distrax.Beta(jnp.exp(p), 2.0), P),
    "Dirichlet": (lambda p: distrax.Dirichlet(jnp.exp(p)), V),
    "Laplace": (lambda p: distrax.Laplace(p, 1.0), P),
    "Logistic": (lambda p: distrax.Logistic(p, 1.0), P),
    "MultivariateNormalTri": (lambda p: distrax.MultivariateNormalTri(p, jnp.diag(jnp.exp(p))), V),
    "LogStddevNormal": (lambda p: distrax.LogStddevNormal(p, p), P),
    "TFP Normal": (lambda p: adapt(tfp.distributions.Normal(p, 1.0)), P),
    "TFP Gamma": (lambda p: adapt(tfp.distributions.Gamma(jnp.exp(p), 1.0)), P),
    "TFP StudentT": (lambda p: adapt(tfp.distributions.StudentT(4.0, p, jnp.exp(p))), P),
    "log-normal flow": (
        lambda p: distrax.Transformed(distrax.Normal(p, 1.0), distrax.Lambda(jnp.exp, jnp.log)),
        P,
    ),
    "sigmoid flow, declared": (
        lambda p: declared(distrax.Transformed(distrax.Normal(p, 1.0), distrax.Sigmoid())),
        P,
    ),
    "mean_field": (lambda p: vj.families.mean_field().dist({"loc": p, "log_scale": p}), V),
    "dict": (
        lambda p: {"a": distrax.Normal(p, 1.0), "b": lambda z: distrax.Gamma(jnp.exp(z["a"]), 1.0)},
        P,
    ),
}


@paths
@pytest.mark.parametrize(
    "kind",
    some(
        VALID, "Gamma", "Laplace", "MultivariateNormalTri", "log-normal flow", "mean_field", "dict"
    ),
)
def test_a_q_with_a_path_passes(make, kind):
    build, params = VALID[kind]
    slope = gradient(PATHS[make](vj.bounds.iwae), build, params)
    assert np.all(np.isfinite(slope))
    assert np.any(slope != 0)


# --- declarations


class Callback:
    """Draws made by the host: nothing can be seen of how they depend on parameters."""

    def __init__(self, p):
        self.p = p

    def sample_and_log_prob(self, *, seed, sample_shape=()):
        noise = jax.pure_callback(
            lambda u: np.asarray(u), jax.ShapeDtypeStruct((), jnp.float32), jax.random.normal(seed)
        )
        return self.p + noise, self.log_prob(self.p + noise)

    def log_prob(self, z):
        return -0.5 * (z - self.p) ** 2


class Shifted(Callback):
    """The same with noise that a callback has nothing to do with the parameters of: declared."""

    reparameterized, fixed_support = True, True

    def sample_and_log_prob(self, *, seed, sample_shape=()):
        noise = jax.lax.stop_gradient(jax.random.normal(seed))
        z = self.p + jnp.round(noise * 1e6) / 1e6
        return z, self.log_prob(z)


class DeclaredFalse(Shifted):
    reparameterized = False

    def sample_and_log_prob(self, *, seed, sample_shape=()):
        z = self.p + jax.random.normal(seed)
        return z, self.log_prob(z)


@paths
def test_what_cannot_be_seen_must_be_declared(make):
    objective = PATHS[make](vj.bounds.iwae)
    with pytest.raises(
        ValueError,
        match="pure_callback, which cannot be analysed: declare q.reparameterized = True",
    ):
        jax.eval_shape(lambda p: gradient(objective, Callback, p), P)
    assert np.isfinite(gradient(objective, Shifted, P))
    with pytest.raises(ValueError, match="declares reparameterized = False.*gradients.vimco"):
        gradient(objective, DeclaredFalse, P)


def test_auto_follows_a_declaration(key):
    """auto takes vimco for a q that declares False, number by number, and reparam for the same q undeclared."""

    class Silent(DeclaredFalse):
        reparameterized = None

    of = lambda make, build: gradient(make(vj.bounds.iwae), build, P, key)
    np.testing.assert_array_equal(
        of(vj.gradients.auto, DeclaredFalse), of(vj.gradients.vimco, DeclaredFalse)
    )
    np.testing.assert_array_equal(of(vj.gradients.auto, Silent), of(vj.gradients.reparam, Silent))
    assert of(vj.gradients.auto, DeclaredFalse) != of(vj.gradients.auto, Silent)


# --- a support that moves

UNIFORMS = {
    "distrax": lambda h: distrax.Uniform(0.0, h),
    "Independent": lambda h: distrax.Independent(distrax.Uniform(jnp.zeros(1), h[None]), 1),
    "TFP": lambda h: adapt(tfp.distributions.Uniform(0.0, h)),
    "shifted": lambda h: distrax.Transformed(
        distrax.Uniform(0.0, 1.0), distrax.ScalarAffine(shift=h)
    ),
    "Joint": lambda h: {"z": distrax.Uniform(0.0, h)},
}


@pytest.mark.parametrize("kind", list(UNIFORMS))
def test_dreg_refuses_a_support_that_moves(kind):
    with pytest.raises(ValueError, match="only while q's support is fixed.*gradients.reparam"):
        gradient(vj.gradients.dreg(vj.bounds.elbo), UNIFORMS[kind], jnp.float32(1.5))


def test_reparam_is_right_where_dreg_refuses(key):
    """q = U(0, h), log p = -z^2/2, h = 1.5: d/dh (log h - h^2/6) = 1/h - h/3 = .1667, by path alone -.5.

    One number, false-failure rate 2e-10; detects .02.
    """
    run = jax.vmap(
        lambda k: gradient(
            vj.gradients.reparam(vj.bounds.elbo),
            UNIFORMS["distrax"],
            jnp.float32(1.5),
            k,
            lambda z: -0.5 * z**2,
        )
    )
    found = jax.jit(run)(jax.random.split(key, 60_000))
    assert_mean({"h": found}, {"h": 1 / 1.5 - 1.5 / 3}, detects=0.02)
    with pytest.raises(AssertionError, match="biased"):
        assert_mean({"h": found - 1 / 1.5}, {"h": 1 / 1.5 - 1.5 / 3}, detects=0.02)


def test_a_bound_that_reduces_the_batch_is_refused(key):
    q = distrax.Normal(jnp.zeros(3), 1.0)
    with pytest.raises(ValueError, match=r"maps \[k, \*batch\] to \[\*batch\]"):
        vj.gradients.reparam(lambda log_w: log_w.mean())(key, lambda z: -(z**2), q, num_samples=2)
