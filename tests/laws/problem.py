"""One problem for the laws of transformation: integer labels, a key and float data closed over, every kind of latent."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

import vijax as vj
from tests import table
from tests.bare import Coin, Gauss

K, N = 5, 3


# The noise is float32 in either precision, so that float32 and float64 see the same draws.


class SameGauss(Gauss):
    def sample_and_log_prob(self, *, seed, sample_shape=()):
        z = self.loc + jnp.exp(self.log_scale) * jax.random.normal(seed, self.loc.shape, jnp.float32).astype(
            self.loc.dtype
        )
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
    draw = lambda *shape: jnp.asarray(0.5 * rng.normal(size=shape), dtype)  # noqa: E731
    params = {
        "q": {"loc": draw(N), "log_scale": draw(N) - 0.5, "logit": draw(N)},
        "theta": {"weight": draw(3), "shift": draw()},
    }
    return params, {"x": draw(N) + 1, "label": jnp.asarray(rng.integers(0, 3, N)), "mask": jax.random.key(seed)}


def posterior(q, mixed):
    gauss = SameGauss(q["loc"], q["log_scale"])
    return {"a": gauss, "b": lambda z: SameCoin(q["logit"] + z["a"])} if mixed else gauss


def log_joint(theta, data, z):
    """A categorical label and a number for each datum, with noise on the label's features that the closed-over key fixes."""
    a, b = (z["a"], z["b"]) if isinstance(z, dict) else (z, jnp.ones_like(z))
    noise = jax.random.normal(data["mask"], (N, 3), jnp.float32).astype(a.dtype)
    logits = (a * b)[:, None] * theta["weight"][None] + noise
    label = jnp.take_along_axis(jax.nn.log_softmax(logits), data["label"][:, None], 1)[:, 0]
    return norm.logpdf(a, 0, 1.0) - b * jnp.log(2.0) + label + norm.logpdf(data["x"], a + theta["shift"], 1.0)


def value(name, chunk_size=None, num_samples=K):
    """Return (params, data, key) -> Σ_batch of the objective."""

    def run(params, data, key):
        target = lambda z: log_joint(params["theta"], data, z)  # noqa: E731
        q = posterior(params["q"], mixed=name.startswith("auto"))
        return jnp.sum(OBJECTIVES[name](key, target, q, num_samples=num_samples, chunk_size=chunk_size).value)

    return run


def assert_close(found, expected, rtol=2e-5, atol=2e-5, err_msg=""):
    jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, rtol=rtol, atol=atol, err_msg=err_msg), found, expected)
