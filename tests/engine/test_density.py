"""A q whose library has no density at given values is refused in vijax's words, naming the leaf."""

import distrax
import jax
import jax.numpy as jnp
import pytest

import vijax as vj
from vijax.bounds import elbo

pytestmark = pytest.mark.usefixtures("loose_ranks")


def bend(x):
    return x + jnp.exp(x)


class OfNumPyro:
    """As NumPyro's transformed distributions, whose error says nothing."""

    def sample(self, key, sample_shape=()):
        return jax.random.normal(key, sample_shape)

    def log_prob(self, z):
        raise NotImplementedError


class Cached:
    """As TFP's bijectors, which remember what a value of the same trace was made of."""

    def __init__(self, m):
        self.m, self.made = m, []

    def sample_and_log_prob(self, *, seed, sample_shape=()):
        z = self.m + jax.random.normal(seed, sample_shape)
        self.made.append(z)
        return z, self.log_prob(z)

    def log_prob(self, z):
        if not any(z is made for made in self.made):
            raise NotImplementedError("inverse not implemented")
        return -0.5 * (z - self.m) ** 2


def bent(m):
    return distrax.Transformed(distrax.Normal(m, 1.0), distrax.Lambda(bend))


def value(estimator, q, log_joint=lambda z: -sum(jnp.sum(y**2) for y in jax.tree.leaves(z))):
    objective = getattr(vj.gradients, estimator)(elbo)
    return jax.eval_shape(lambda: objective(jax.random.key(0), log_joint, q, num_samples=2).value)


@pytest.mark.parametrize("estimator", ["dreg", "score", "vimco"])
@pytest.mark.parametrize(
    ("q", "of"),
    [
        (bent(0.3), "Transformed"),
        ({"x": distrax.Normal(0.0, 1.0), "y": bent(0.3)}, r"leaf 'y', Transformed,"),
        ((distrax.Normal(0.0, 1.0), {"y": lambda z: bent(0.3)}), r"leaf '1', leaf 'y', Tran.*,"),
        (vj.families.adapt(Cached(0.3), fixed_support=True), "Cached"),
    ],
)
def test_a_density_without_an_inverse(estimator, q, of):
    words = f"{estimator} evaluates .* log_prob of {of} is not .* an inverse.*gradients.reparam"
    with pytest.raises(ValueError, match=words):
        value(estimator, q)
    value("reparam", q)


def test_a_draw_without_a_density_has_no_estimator():
    words = r"of OfNumPyro is not implemented: give .*distrax.Lambda\(forward, inverse\)\."
    with pytest.raises(ValueError, match=words):
        value("reparam", vj.families.adapt(OfNumPyro()))


def test_an_error_of_the_model_stays_its_own():
    def log_joint(z):
        raise NotImplementedError("no such model")

    with pytest.raises(NotImplementedError, match="no such model"):
        value("dreg", distrax.Normal(0.0, 1.0), log_joint)
