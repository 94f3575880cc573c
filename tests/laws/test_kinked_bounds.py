"""Bounds of one's own: a kink in one is read from its jaxpr, and refused by what takes a second derivative of it.

What a missed one does is in tests/bounds/test_generators.py, the total variation under dreg.
"""

from functools import partial

import distrax
import jax
import jax.numpy as jnp
import pytest

from vijax import bounds, gradients
from vijax.bounds import generators
from vijax.types import with_closed_forms

pytestmark = pytest.mark.usefixtures("loose_ranks")  # distrax adds by NumPy's promotion
KEY = jax.random.key(0)


def hinge(log_w):
    return jnp.maximum(log_w, -1.0).mean(0)


def by_hand(log_w):
    top = log_w.max(0)
    return jnp.log(jnp.mean(jnp.exp(log_w - top), 0)) + top


KINKED = {
    "hinge": hinge,
    "median": lambda log_w: jnp.median(log_w, 0),
    "clip": lambda log_w: jnp.clip(log_w, -10.0, 10.0).mean(0),
    "distance of a divergence": partial(bounds.f_divergence, f=jnp.abs),
    "largest term, by hand": by_hand,  # it cancels; no reading of the jaxpr says so
}
SMOOTH = {
    "logsumexp": lambda log_w: jax.nn.logsumexp(log_w, 0),
    "stopped largest term": lambda log_w: (
        jnp.log(jnp.mean(jnp.exp(log_w - jax.lax.stop_gradient(log_w.max(0))), 0))
        + jax.lax.stop_gradient(log_w.max(0))
    ),
    "of two of vijax": lambda log_w: 0.5 * bounds.elbo(log_w) + 0.5 * bounds.iwae(log_w),
    "softplus": lambda log_w: jax.nn.softplus(log_w).mean(0),
    "spread": lambda log_w: log_w.mean(0) - jnp.var(log_w, 0),
    "divergence": partial(bounds.f_divergence, f=lambda log_u: jnp.square(jnp.expm1(log_u))),
    "dual": partial(bounds.f_divergence, f=generators.dual(generators.pearson)),
    "declared": with_closed_forms(smooth=True)(lambda log_w: by_hand(log_w)),
}
TWICE = {
    "dreg": gradients.dreg,
    "split": lambda bound: gradients.split(model=bounds.elbo, q=bound),
    "gdreg": partial(gradients.gdreg, prior=distrax.Normal(0.0, 1.0), push=lambda e: e, pull=lambda z: z),
}  # fmt: skip
ONCE = {name: getattr(gradients, name) for name in ("reparam", "vimco", "score", "auto")}


def value(objective, mean=0.3, key=KEY, num_samples=4):
    q = distrax.Normal(mean * jnp.ones(2), 1.0)
    return objective(key, lambda z: -((z - 2.0) ** 2), q, num_samples=num_samples).value.sum()


@pytest.mark.parametrize("bound", KINKED)
@pytest.mark.parametrize("estimator", TWICE)
def test_a_kink_is_refused(estimator, bound):
    with pytest.raises(ValueError, match=r"has one at '\w+'.*gradients\.reparam"):
        jax.eval_shape(lambda: value(TWICE[estimator](KINKED[bound])))


@pytest.mark.parametrize("bound", SMOOTH)
@pytest.mark.parametrize("estimator", ["dreg", "split"])
def test_a_smooth_bound_passes(estimator, bound):
    jax.eval_shape(lambda: value(TWICE[estimator](SMOOTH[bound])))


@pytest.mark.parametrize("estimator", ONCE)
def test_one_derivative_may_meet_a_kink(estimator):
    jax.eval_shape(lambda: value(ONCE[estimator](hinge)))


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_a_kink_is_refused_in_chunks_and_under_transformations(chunk_size):
    objective = gradients.dreg(hinge)
    q = distrax.Normal(jnp.zeros(2), 1.0)
    call = lambda key: (
        objective(key, lambda z: -(z**2), q, num_samples=4, chunk_size=chunk_size).value
    )
    with pytest.raises(ValueError, match="has one at 'max'"):
        jax.jit(jax.vmap(call))(jax.random.split(jax.random.key(0), 3))
