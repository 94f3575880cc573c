"""Kinds of q, and kinds of target of each, for the grid of calls."""

from collections.abc import Callable
from typing import Any, NamedTuple

import distrax
import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

import vijax as vj
from tests.bare import Gauss

X = jnp.array([0.5, -1.0, 2.0], jnp.float32)
NUM_DATA = 12


class Kind(NamedTuple):
    """A kind of q: parameters, q of them, a prior of its shape; how many axes are the event's."""

    parameters: Any
    build: Callable[[Any], Any]
    prior: Callable[[Any], Any]
    axes: int = 0

    def log_density(self, theta, z):
        """Return a sum over leaves of -(z - theta)²/2, [*batch]."""
        terms = [
            -0.5 * (jnp.asarray(leaf, jnp.float32) - theta) ** 2 for leaf in jax.tree.leaves(z)
        ]
        return sum(jnp.sum(term, range(-self.axes, 0)) if self.axes else term for term in terms)


def numbers(*values):
    return jnp.array(values, jnp.float32)


def normal(p):
    return distrax.Normal(p["loc"], jnp.exp(p["log_scale"]))


def standard(like):
    return lambda theta: distrax.Normal(theta * jnp.ones_like(like), jnp.ones_like(like))


ONE = {"loc": jnp.float32(0.3), "log_scale": jnp.float32(-0.2)}
BATCH = {"loc": numbers(0.3, -0.2, 0.1), "log_scale": numbers(-0.2, 0.1, 0.0)}
PAIR = {"loc": numbers(0.3, -0.2), "log_scale": numbers(-0.2, 0.1)}
ODDS, LOGITS = jnp.float32(0.4), numbers(0.2, -0.4, 0.7)
MEAN_FIELD = vj.families.mean_field()
MIXTURE = vj.families.mixture(MEAN_FIELD, components=2)
MIXTURE_PARAMETERS = {
    "logits": numbers(0.4, -0.3),
    "components": {"loc": numbers(-0.9, 1.1), "log_scale": numbers(-0.4, -0.2)},
}


def two_normals(p):
    return {"a": normal(p["a"]), "b": normal(p["b"])}


def normal_and_bernoulli(p):
    return vj.Joint({"a": normal(p["a"]), "b": distrax.Bernoulli(p["b"])})


def hierarchy(p):
    return vj.Joint(
        {"a": normal(p["a"]), "b": lambda z: distrax.Normal(p["b"]["loc"] * z["a"], 1.0)}
    )


def mixed_hierarchy(p):
    return vj.Joint({"a": normal(p["a"]), "b": lambda z: distrax.Bernoulli(p["b"] + z["a"])})


def prior_of_two(theta):
    return {"a": distrax.Normal(theta, 1.0), "b": distrax.Normal(theta, 1.0)}


def prior_of_both(theta):
    return {"a": distrax.Normal(theta, 1.0), "b": distrax.Bernoulli(theta)}


KINDS = {
    "Normal": Kind(ONE, normal, standard(ONE["loc"])),
    "batch of Normals": Kind(BATCH, normal, standard(BATCH["loc"])),
    "mean_field": Kind(
        PAIR,
        MEAN_FIELD.dist,
        lambda theta: MEAN_FIELD.dist({"loc": theta * jnp.ones(2), "log_scale": jnp.zeros(2)}),
        axes=1,
    ),
    "Bernoulli": Kind(ODDS, distrax.Bernoulli, distrax.Bernoulli),
    "Bernoulli in float": Kind(
        ODDS,
        lambda p: distrax.Bernoulli(p, dtype=jnp.float32),
        lambda t: distrax.Bernoulli(t, dtype=jnp.float32),
    ),
    "Categorical": Kind(
        LOGITS, distrax.Categorical, lambda theta: distrax.Categorical(theta * LOGITS)
    ),
    "one-hot": Kind(
        LOGITS,
        lambda p: distrax.OneHotCategorical(p, dtype=jnp.float32),
        lambda theta: distrax.OneHotCategorical(theta * LOGITS, dtype=jnp.float32),
        axes=1,
    ),
    "mixture": Kind(MIXTURE_PARAMETERS, MIXTURE.dist, standard(ONE["loc"])),
    "Uniform(0, h)": Kind(
        jnp.float32(1.2), lambda h: distrax.Uniform(0.0, h), lambda t: distrax.Uniform(0.0, 9.0 + t)
    ),
    "two Normals": Kind({"a": ONE, "b": ONE}, two_normals, prior_of_two),
    "Normal and Bernoulli": Kind({"a": ONE, "b": ODDS}, normal_and_bernoulli, prior_of_both),
    "hierarchy": Kind({"a": ONE, "b": ONE}, hierarchy, prior_of_two),
    "mixed hierarchy": Kind({"a": ONE, "b": ODDS}, mixed_hierarchy, prior_of_both),
}


# --- targets: (kind, theta, q) -> log_joint


def plain(kind, theta, q):
    return lambda z: kind.log_density(theta, z)


def terms(kind, theta, z):
    """Return one term of the likelihood for each of the data, [3, *batch]."""
    return jnp.stack([norm.logpdf(x, kind.log_density(theta, z), 1.0) for x in X])


def minibatch(kind, theta, q):
    return vj.targets.minibatch(
        plain(kind, theta, q), lambda z: terms(kind, theta, z), num_data=NUM_DATA
    )


def keyed(kind, theta, q):
    return vj.targets.keyed(lambda key, z: kind.log_density(theta, z) + jax.random.normal(key))


def unbiased(kind, theta, q):
    return vj.targets.unbiased(lambda key, z: kind.log_density(theta, z) + jax.random.normal(key))


def keyed_with_aux(kind, theta, q):
    function = lambda key, z: (kind.log_density(theta, z) + jax.random.normal(key), {"seen": X})
    return vj.targets.keyed(function, has_aux=True)


def split(kind, theta, q):
    return vj.targets.exact_kl(plain(kind, theta, q), kind.prior(theta), q)


def exact_entropy(kind, theta, q):
    return vj.targets.exact_entropy(plain(kind, theta, q), q)


def collapse(kind, theta, q):
    def conditional(z):
        return Gauss(kind.log_density(theta, z), 0.0)

    return vj.targets.collapse(
        lambda z, b: kind.log_density(theta, z) + conditional(z).log_prob(b), conditional
    )


def factors(kind, theta, q):
    return lambda z: {
        "prior": kind.log_density(theta, z),
        "likelihood": terms(kind, theta, z).sum(0),
    }


def wrong_shape(kind, theta, q):
    return lambda z: terms(kind, theta, z)


def integer(kind, theta, q):
    return lambda z: jnp.asarray(kind.log_density(theta, z), jnp.int32)


def transformed_minibatch(kind, theta, q):
    """Return the minibatch's target through a transformation that does nothing."""
    constraints = jax.tree.map(lambda _: None, _latents(q), is_leaf=lambda leaf: leaf is not None)
    return vj.targets.transform(minibatch(kind, theta, q), constraints).log_joint


def _latents(q):
    return jax.eval_shape(
        lambda key: vj.types.lift(q).sample_and_log_prob(seed=key)[0], jax.random.key(0)
    )


def wrapped_minibatch(kind, theta, q):
    """Return a plain function that calls a minibatch's target, whose properties are lost."""
    target = minibatch(kind, theta, q)
    return lambda z: 1.0 * target(z)


TARGETS = {
    "plain": plain,
    "minibatch": minibatch,
    "minibatch, transformed": transformed_minibatch,
    "minibatch, called by a function": wrapped_minibatch,
    "keyed": keyed,
    "unbiased": unbiased,
    "keyed, has_aux": keyed_with_aux,
    "split": split,
    "exact_entropy": exact_entropy,
    "collapse": collapse,
    "dict of factors": factors,
    "wrong shape": wrong_shape,
    "integer": integer,
}
