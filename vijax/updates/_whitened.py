"""The target in units of q: log p and log q as functions of standard normal noise."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key

from vijax import engine
from vijax.gaussians.affine import standard_log_density
from vijax.gaussians.triangle import half_log_det, times_root
from vijax.trees import own_point
from vijax.types import Caveat, Draws, LogJoint, PyTree, Step, properties
from vijax.updates._gaussian import GaussianState


class Whitened(NamedTuple):
    """The target in units of a Gaussian q: z = loc + L e, where e is standard normal under q.

    Fields:
        noise: e, [k, d], from which a step is made.
        fresh_noise: others, [k, d], by which it is judged: the noise that made a step flatters it.
        log_p: (state, e [k, d]) -> log p(x, z), [k] in nats.
    """

    noise: Float[Array, "k d"]
    fresh_noise: Float[Array, "k d"]
    log_p: Callable[[GaussianState, Array], Array]


def whiten(
    key: Key[Array, ""],
    log_joint: LogJoint,
    state: GaussianState,
    num_samples: int,
    *,
    paired: bool,
) -> Whitened:
    """Draw the noise of a step, in mirrored pairs if asked, and write log p as a function of it."""
    size, dtype = state.root.shape[0], ravel_pytree(state.loc)[0].dtype
    key_noise, key_fresh, key_model = jax.random.split(key, 3)
    # The model's noise is that of the draws' rows, and the same before and after a step.
    model_keys = engine.plan(key_model, properties(log_joint).keyed, engine.iid, num_samples).model

    def log_p(state: GaussianState, e: Array) -> Array:
        # The target is given log q for its shape alone; targets that add log q are refused.
        log_q = jax.lax.stop_gradient(log_density(state, e))
        value, _ = engine.evaluate(log_joint, latents(state, e), log_q, model_keys)
        return value.astype(e.dtype)

    def normal(key: Key[Array, ""]) -> Array:
        """Return standard normal noise, [k, d]; mirrored pairs are rows i and i + k/2."""
        e = jax.random.normal(key, (num_samples // 2 if paired else num_samples, size), dtype)
        return jnp.concatenate([e, -e]) if paired else e

    return Whitened(normal(key_noise), normal(key_fresh), log_p)


def latents(state: GaussianState, e: Float[Array, "k d"]) -> PyTree:
    """Return the draws z = loc + L e, leaves [k, ...]."""
    # Each row e [d] becomes a pytree like z.
    loc, unravel = ravel_pytree(state.loc)
    return jax.vmap(lambda e: unravel(loc + times_root(state.root, e)))(e)


def log_density(state: GaussianState, e: Float[Array, "k d"]) -> Float[Array, " k"]:
    """Return log q of the draws that noise becomes, [k] in nats."""
    return standard_log_density(e) - half_log_det(state.root)


def report(
    state: GaussianState, target: Whitened, log_p: Float[Array, " k"], only_mean: str
) -> Step:
    """Return the ELBO of the state that came in, with its draws and its gradient by the mean.

    A loop that does not use the gradient does not pay for it: XLA leaves it out.
    """
    log_q = log_density(state, target.noise)
    caveat = Caveat(only_mean) if only_mean else None
    drawn = Draws(latents(state, target.noise), log_p, log_q, only_mean=caveat)

    # q's entropy does not depend on the mean, so this is the gradient of the ELBO by it.
    def mean_log_p(loc: PyTree) -> Array:
        return jnp.mean(target.log_p(state._replace(loc=loc), target.noise))

    gradient = {"loc": jax.grad(mean_log_p)(own_point(mean_log_p, state.loc))}
    return Step(jnp.mean(log_p - log_q), drawn, gradient)
