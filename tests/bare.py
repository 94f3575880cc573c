"""The least that vijax asks of q: two methods, written plainly and strict about ranks."""

import jax
import jax.numpy as jnp
from jax.scipy.stats import bernoulli, norm


class Gauss:
    """Independent normals with batch shape loc.shape; `event` trailing axes are summed over."""

    def __init__(self, loc, log_scale, event=0):
        self.loc, self.log_scale, self.event = jnp.asarray(loc), jnp.asarray(log_scale), event

    def sample_and_log_prob(self, *, seed, sample_shape=()):
        noise = jax.random.normal(seed, (*sample_shape, *self.loc.shape), self.loc.dtype)
        draw = lambda e: self.loc + jnp.exp(self.log_scale) * e
        log_prob = self.log_prob
        for _ in sample_shape:
            draw, log_prob = jax.vmap(draw), jax.vmap(log_prob)
        z = draw(noise)
        return z, log_prob(z)

    def log_prob(self, z):
        log_q = norm.logpdf(z, self.loc, jnp.exp(self.log_scale))
        return jnp.sum(log_q, range(-self.event, 0)) if self.event else log_q


class Coin:
    """Bernoulli with batch shape logit.shape, draws of a given dtype."""

    def __init__(self, logit, dtype=jnp.float32):
        self.logit, self.dtype = jnp.asarray(logit), dtype

    def sample_and_log_prob(self, *, seed, sample_shape=()):
        shape = (*sample_shape, *self.logit.shape)
        p = jnp.broadcast_to(jax.nn.sigmoid(self.logit), shape)
        z = (jax.random.uniform(seed, shape) < p).astype(self.dtype)
        return z, bernoulli.logpmf(z, p).astype(self.logit.dtype)

    def log_prob(self, z):
        return bernoulli.logpmf(z, jax.nn.sigmoid(self.logit)).astype(self.logit.dtype)


class Die:
    """Categorical, batch shape (), integer draws."""

    def __init__(self, logits):
        self.logits = jnp.asarray(logits)

    def sample_and_log_prob(self, *, seed, sample_shape=()):
        z = jax.random.categorical(seed, self.logits, shape=tuple(sample_shape))
        return z, self.log_prob(z)

    def log_prob(self, z):
        return jax.nn.log_softmax(self.logits)[z]
