"""adapt: TFP and NumPyro distributions lent the two methods, draws and densities untouched."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import vijax as vj

pytestmark = pytest.mark.usefixtures("loose_ranks")


class NumpyroStyle:
    """sample(key, sample_shape), as NumPyro spells it."""

    def sample(self, key, sample_shape=()):
        return 1.0 + jax.random.normal(key, sample_shape)

    def log_prob(self, z):
        return norm.logpdf(z, 1.0, 1.0)


def makes():
    from tensorflow_probability.substrates import jax as tfp

    return {
        "TFP": tfp.distributions.Normal(jnp.float32(1.0), jnp.float32(1.0)),
        "NumPyro": NumpyroStyle(),
    }


@pytest.mark.parametrize("make", ["TFP", "NumPyro"])
def test_adapted(make, key):
    distribution = makes()[make]
    q = vj.families.adapt(distribution)
    z, log_q = q.sample_and_log_prob(seed=key, sample_shape=(4,))
    assert z.shape == (4,)
    np.testing.assert_allclose(log_q, norm.logpdf(z, 1.0, 1.0), rtol=1e-5)
    np.testing.assert_allclose(q.log_prob(z), distribution.log_prob(z))
    expected = distribution.sample(seed=key) if make == "TFP" else distribution.sample(key)
    np.testing.assert_array_equal(q.sample_and_log_prob(seed=key)[0], expected)
    estimate = vj.gradients.dreg(vj.bounds.iwae)(
        key, lambda z: norm.logpdf(z, 0.0, 1.0), q, num_samples=3
    )
    assert estimate.value.shape == ()


def test_what_cannot_be_adapted():
    with pytest.raises(TypeError, match="adapt needs .*sample and log_prob"):
        vj.families.adapt(jnp.zeros(3))


# --- a q of several leaves: the error names the leaf, whose own distribution is declared


class Guarded:
    """m + e, its noise behind an index that picks one of two that are the same."""

    def __init__(self, m):
        self.m = m

    def sample_and_log_prob(self, *, seed, sample_shape=()):
        z = jax.random.normal(seed, sample_shape) + self.m
        z = jnp.stack([z, z])[(z > self.m).astype(int)]
        return z, self.log_prob(z)

    def log_prob(self, z):
        return norm.logpdf(z, self.m, 1.0)


ESTIMATORS = {
    "reparam": vj.gradients.reparam(vj.bounds.elbo),
    "dreg": vj.gradients.dreg(vj.bounds.elbo),
    "split": vj.gradients.split(model=vj.bounds.elbo, q=vj.bounds.iwae),
    "auto": vj.gradients.auto(vj.bounds.iwae),
    "score": vj.gradients.score(vj.bounds.iwae),
}


def normal(m=0.0):
    return vj.families.mean_field().dist({"loc": jnp.asarray(m), "log_scale": jnp.zeros(())})


def declared(m):
    return vj.families.adapt(Guarded(m), reparameterized=True, fixed_support=True)


def containers(make):
    return {
        "dict": (lambda m: {"x": normal(), "y": make(m)}, "y"),
        "tuple": (lambda m: (normal(), make(m)), "1"),
        "callable": (lambda m: {"x": normal(), "y": lambda earlier: make(m)}, "y"),
        "nested": (lambda m: {"x": normal(), "a": {"y": make(m)}}, r"a\.y"),
    }


def log_joint(z):
    return sum(norm.logpdf(leaf) for leaf in jax.tree.leaves(z))


def gradient(objective, q):
    def value(m):
        return objective(jax.random.key(0), log_joint, q(m), num_samples=4).value

    return jax.grad(value)(jnp.array(0.3))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_leaf_is_declared_by_itself(name):
    q, same = containers(declared)["dict"][0], containers(normal)["dict"][0]
    found = jax.jit(lambda: [gradient(ESTIMATORS[name], build) for build in (q, same)])()
    np.testing.assert_allclose(*found, rtol=1e-5)


@pytest.mark.parametrize("container", containers(Guarded))
def test_the_error_names_the_leaf_to_be_declared(container):
    (q, leaf), (cured, _) = containers(Guarded)[container], containers(declared)[container]
    for name, words in {
        "reparam": f"leaf '{leaf}' depends .* of the distribution of this leaf: families.adapt",
        "score": f"here, in leaf '{leaf}', .*If the support of this leaf .*families.adapt",
    }.items():
        with pytest.raises(ValueError, match=words):
            jax.eval_shape(lambda name=name: gradient(ESTIMATORS[name], q))
        jax.eval_shape(lambda name=name: gradient(ESTIMATORS[name], cured))


def test_containers_and_functions_are_not_adapted():
    with pytest.raises(TypeError, match="got a dict: adapt each distribution in it"):
        vj.families.adapt({"y": normal()}, reparameterized=True)
    with pytest.raises(TypeError, match="got a function: adapt what it returns"):
        vj.families.adapt(lambda earlier: normal(), reparameterized=True)


# --- what was declared before, by a library, q or an adaptor, holds in an adaptor of it


def truncated(m):
    from numpyro import distributions

    return distributions.TruncatedNormal(m, 1.0, low=-1.0, high=2.0)


def test_an_adapted_q_is_adapted_again():
    adapt = vj.families.adapt
    q = adapt(adapt(Guarded(0.3), fixed_support=True), reparameterized=True)
    assert (q.fixed_support, q.reparameterized) == (True, True)
    assert adapt(q, fixed_support=False).fixed_support is False
    own = Guarded(0.3)
    own.independent_members = own.reparameterized = True
    assert adapt(own, fixed_support=True).reparameterized
    assert adapt(own, fixed_support=True).independent_members


def test_the_ends_that_its_library_declares_stay():
    """Of a truncated normal, whose gradient is found by quadrature."""
    z = jnp.linspace(-1.0, 2.0, 1001)

    def elbo(m):
        log_q = truncated(m).log_prob(z)
        return jax.scipy.integrate.trapezoid(jnp.exp(log_q) * (norm.logpdf(z) - log_q), z)

    def estimate(m):
        q = vj.families.adapt(vj.families.adapt(truncated(m)), reparameterized=True)
        return ESTIMATORS["dreg"](jax.random.key(0), norm.logpdf, q, num_samples=20_000).value

    exact, found = jax.jit(lambda m: (jax.grad(elbo)(m), jax.grad(estimate)(m)))(0.7)
    np.testing.assert_allclose(found, exact, atol=0.004)  # 5 standard errors
    assert abs(exact) > 0.3


def test_all_that_is_to_be_declared_is_named_at_once():
    def gradient_of(name, make):
        return jax.eval_shape(lambda: gradient(ESTIMATORS[name], make))

    both = "declare it of .*reparameterized=True.*Besides, .*fixed_support=True"
    with pytest.raises(ValueError, match=both):
        gradient_of("dreg", Guarded)
    with pytest.raises(ValueError, match="reparameterized=True") as error:
        gradient_of("reparam", Guarded)
    assert "fixed" not in str(error.value)
    gradient_of("dreg", declared)
