"""Enumerable models of discrete latents, and gradients of objectives by the thousand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

import vijax as vj
from tests import cases

f32 = np.float32


class Bits:
    """Independent Bernoullis over the last axis, draws of a given dtype."""

    def __init__(self, logits, dtype=jnp.float32):
        self.logits, self.dtype = jnp.asarray(logits), dtype

    def sample_and_log_prob(self, *, seed, sample_shape=()):
        p = jax.nn.sigmoid(self.logits)
        z = (jax.random.uniform(seed, (*sample_shape, *p.shape)) < p).astype(self.dtype)
        return z, self.log_prob(z)

    def log_prob(self, z):
        return jnp.sum(z * self.logits - jax.nn.softplus(self.logits), -1)


class Choice:
    """A categorical for each member of the batch, draws one-hot or whole numbers."""

    def __init__(self, logits, hot=False):
        self.logits, self.hot = jnp.asarray(logits), hot

    def sample_and_log_prob(self, *, seed, sample_shape=()):
        z = jax.random.categorical(seed, self.logits, shape=(*sample_shape, *self.logits.shape[:-1]))
        z = jax.nn.one_hot(z, self.logits.shape[-1]) if self.hot else z
        return z, self.log_prob(z)

    def log_prob(self, z):
        hot = z if self.hot else jax.nn.one_hot(z, self.logits.shape[-1])
        return jnp.sum(hot * jax.nn.log_softmax(self.logits), -1)


class Normal:
    """Independent normals that show their loc and scale; batch shape loc.shape."""

    def __init__(self, loc, scale):
        self.loc, self.scale = jnp.asarray(loc), jnp.asarray(scale)

    def sample_and_log_prob(self, *, seed, sample_shape=()):
        z = self.loc + self.scale * jax.random.normal(seed, (*sample_shape, *self.loc.shape), self.loc.dtype)
        return z, self.log_prob(z)

    def log_prob(self, z):
        return norm.logpdf(z, self.loc, self.scale)


def all_bits(d):
    return np.array(list(itertools.product([0.0, 1.0], repeat=d)), f32)


def _bits_log_p(theta, z):
    prior = jnp.sum(z * theta["logits"][None] - jax.nn.softplus(theta["logits"])[None], -1)
    mean = jnp.sum(z * theta["weight"][None], -1) - 1.5 * z[..., 0] * z[..., 2]
    return prior + norm.logpdf(cases.X, mean, 1.0)


BITS = cases.Case(  # a batch of two, three bits each, that explain each other away
    "bits",
    {
        "q": np.array([[0.3, -0.8, 1.1], [-0.4, 0.2, -1.3]], f32),
        "theta": {"logits": np.array([0.5, -0.3, 0.1], f32), "weight": np.array([1.2, -0.7, 0.9], f32)},
    },
    Bits,
    _bits_log_p,
    lambda q, z: jnp.sum(z * q - jax.nn.softplus(q), -1),
    all_bits(3),
    np.ones(8),
    path=False,
)

_STATES = np.array([[-0.8, 0.3, 0.9, -0.2], [0.1, 0.7, -1.0, 0.4]], f32)
_TABLE = np.array([[-1.0, -0.2, -2.0, 0.5], [0.3, -1.5, 0.2, -0.4]], f32)


def _hot_log_p(theta, hot):
    """Quadratic in the point, so that the gradient at a corner is not that of a line."""
    score = jnp.sum(hot * (jax.nn.log_softmax(theta)[None] + _TABLE), -1)
    return score - 0.5 * jnp.square(jnp.sum(hot * _TABLE, -1))


HOT = cases.Case(  # a batch of two, one variable of four states each, one-hot
    "hot",
    {"q": _STATES, "theta": np.array([0.2, -0.5, 0.4, 0.1], f32)},
    lambda q: Choice(q, hot=True),
    _hot_log_p,
    lambda q, z: jnp.sum(z * jax.nn.log_softmax(q), -1),
    np.eye(4, dtype=f32),
    np.ones(4),
    path=False,
)

WHOLE = HOT._replace(  # the same in whole numbers
    name="whole",
    build=Choice,
    log_p=lambda theta, z: _hot_log_p(theta, jax.nn.one_hot(z, 4)),
    log_q=lambda q, z: jnp.sum(jax.nn.one_hot(z, 4) * jax.nn.log_softmax(q), -1),
    points=np.arange(4),
)

_BOTH = list(itertools.product(range(2), range(3)))
DICT = cases.Case(  # one member, a bit beside a variable of three states
    "dict",
    {
        "q": {"b": np.array([0.4], f32), "a": np.array([0.3, -0.6, 0.5], f32)},
        "theta": np.array([0.7, -0.4, 0.2], f32),
    },
    lambda q: {"b": Bits(q["b"], jnp.int32), "a": Choice(q["a"])},
    lambda theta, z: jax.nn.log_softmax(theta)[z["a"]] + norm.logpdf(0.8, z["b"][..., 0] * z["a"] - theta[0], 1.0),
    lambda q, z: jax.nn.log_softmax(q["a"])[z["a"]] + z["b"][..., 0] * q["b"][..., 0] - jax.nn.softplus(q["b"][..., 0]),
    {"b": np.array([[b] for b, _ in _BOTH]), "a": np.array([a for _, a in _BOTH])},
    np.ones(6),
    path=False,
)
CASES = [BITS, HOT, WHOLE, DICT]


def value_and_grads(key, case, objectives, num_samples, n, chunk_size=None):
    """Return Σ_batch value [n] and gradients [n, ...] of every objective for n keys, in one compilation."""

    def total(params, objective, key):
        log_joint = lambda z: case.log_p(params["theta"], z)  # noqa: E731
        q = case.build(params["q"])
        return jnp.sum(objective(key, log_joint, q, num_samples=num_samples, chunk_size=chunk_size).value)

    def every(key):
        return {name: jax.value_and_grad(total)(case.params, make, key) for name, make in objectives.items()}

    return jax.jit(jax.vmap(every))(jax.random.split(key, n))


def truths(case, objectives, bound=vj.bounds.elbo, k=1):
    """Return what `value_and_grads` must have for means."""
    return dict.fromkeys(objectives, case.truth(bound, k))


def of_q(found, name):
    """Return the gradients in q of one objective."""
    return found[name][1]["q"]
