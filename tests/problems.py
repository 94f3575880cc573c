"""Problems that several tests share: one for the laws of transformation, and discrete models."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

import vijax as vj
from tests import cases, table
from tests.bare import Coin, Gauss

f32 = np.float32


def assert_close(found, expected, rtol=2e-5, atol=2e-5, err_msg=""):
    jax.tree.map(
        lambda f, e: np.testing.assert_allclose(f, e, rtol=rtol, atol=atol, err_msg=err_msg),
        found,
        expected,
    )


# --- the laws of transformation: integer labels, a key and floats closed over, every kind of latent

K, N = 5, 3


# The noise is float32 in either precision, so that float32 and float64 see the same draws.


class SameGauss(Gauss):
    def sample_and_log_prob(self, *, seed, sample_shape=()):
        noise = jax.random.normal(seed, self.loc.shape, jnp.float32).astype(self.loc.dtype)
        z = self.loc + jnp.exp(self.log_scale) * noise
        return z, self.log_prob(z)


class SameCoin(Coin):
    def sample_and_log_prob(self, *, seed, sample_shape=()):
        z = jax.random.uniform(seed, self.logit.shape, jnp.float32) < jax.nn.sigmoid(self.logit)
        z = z.astype(self.logit.dtype)
        return z, self.log_prob(z)


OBJECTIVES = {
    "reparam(iwae)": vj.gradients.reparam(vj.bounds.iwae),
    "dreg(iwae)": vj.gradients.dreg(vj.bounds.iwae),
    "dreg(elbo)": vj.gradients.dreg(vj.bounds.elbo),
    "dreg(own)": vj.gradients.dreg(table.own_bound),
    "vimco(iwae)": vj.gradients.vimco(vj.bounds.iwae),
    "score(elbo)": vj.gradients.score(vj.bounds.elbo),
    "auto(iwae)": vj.gradients.auto(vj.bounds.iwae),
}


def inputs(seed=0, dtype=np.float32):
    """Return params and data: a mixed bag of floats, integers and a key."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(0.5 * rng.normal(size=shape), dtype)

    params = {
        "q": {"loc": draw(N), "log_scale": draw(N) - 0.5, "logit": draw(N)},
        "theta": {"weight": draw(3), "shift": draw()},
    }
    return params, {
        "x": draw(N) + 1,
        "label": jnp.asarray(rng.integers(0, 3, N)),
        "mask": jax.random.key(seed),
    }


def posterior(q, mixed):
    gauss = SameGauss(q["loc"], q["log_scale"])
    return {"a": gauss, "b": lambda z: SameCoin(q["logit"] + z["a"])} if mixed else gauss


def log_joint(theta, data, z):
    """A category and a number for each datum; the closed-over key fixes noise on the features."""
    a, b = (z["a"], z["b"]) if isinstance(z, dict) else (z, jnp.ones_like(z))
    noise = jax.random.normal(data["mask"], (N, 3), jnp.float32).astype(a.dtype)
    logits = (a * b)[:, None] * theta["weight"][None] + noise
    label = jnp.take_along_axis(jax.nn.log_softmax(logits), data["label"][:, None], 1)[:, 0]
    number = norm.logpdf(data["x"], a + theta["shift"], 1.0)
    return norm.logpdf(a, 0, 1.0) - b * jnp.log(2.0) + label + number


def value(name, chunk_size=None, num_samples=K):
    """Return (params, data, key) -> Σ_batch of the objective."""

    def run(params, data, key):
        def target(z):
            return log_joint(params["theta"], data, z)

        q = posterior(params["q"], mixed=name.startswith("auto"))
        objective = OBJECTIVES[name]
        estimate = objective(key, target, q, num_samples=num_samples, chunk_size=chunk_size)
        return jnp.sum(estimate.value)

    return run


# --- discrete latents, enumerated, and gradients of objectives by the thousand


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
        shape = (*sample_shape, *self.logits.shape[:-1])
        z = jax.random.categorical(seed, self.logits, shape=shape)
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
        noise = jax.random.normal(seed, (*sample_shape, *self.loc.shape), self.loc.dtype)
        z = self.loc + self.scale * noise
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
        "theta": {
            "logits": np.array([0.5, -0.3, 0.1], f32),
            "weight": np.array([1.2, -0.7, 0.9], f32),
        },
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


def _dict_log_p(theta, z):
    mean = z["b"][..., 0] * z["a"] - theta[0]
    return jax.nn.log_softmax(theta)[z["a"]] + norm.logpdf(0.8, mean, 1.0)


def _dict_log_q(q, z):
    bit, logit = z["b"][..., 0], q["b"][..., 0]
    return jax.nn.log_softmax(q["a"])[z["a"]] + bit * logit - jax.nn.softplus(logit)


_BOTH = list(itertools.product(range(2), range(3)))
DICT = cases.Case(  # one member, a bit beside a variable of three states
    "dict",
    {
        "q": {"b": np.array([0.4], f32), "a": np.array([0.3, -0.6, 0.5], f32)},
        "theta": np.array([0.7, -0.4, 0.2], f32),
    },
    lambda q: {"b": Bits(q["b"], jnp.int32), "a": Choice(q["a"])},
    _dict_log_p,
    _dict_log_q,
    {"b": np.array([[b] for b, _ in _BOTH]), "a": np.array([a for _, a in _BOTH])},
    np.ones(6),
    path=False,
)
DISCRETE = [BITS, HOT, WHOLE, DICT]


def value_and_grads(key, case, objectives, num_samples, n, chunk_size=None):
    """Return Σ_batch value [n] and gradients [n, ...] of every objective for n keys, compiled once."""

    def total(params, objective, key):
        def log_joint(z):
            return case.log_p(params["theta"], z)

        q = case.build(params["q"])
        estimate = objective(key, log_joint, q, num_samples=num_samples, chunk_size=chunk_size)
        return jnp.sum(estimate.value)

    def every(key):
        run = jax.value_and_grad(total)
        return {name: run(case.params, objective, key) for name, objective in objectives.items()}

    return jax.jit(jax.vmap(every))(jax.random.split(key, n))


def truths(case, objectives, bound=vj.bounds.elbo, k=1):
    """Return what `value_and_grads` must have for means."""
    return dict.fromkeys(objectives, case.truth(bound, k))


def of_q(found, name):
    """Return the gradients in q of one objective."""
    return found[name][1]["q"]
