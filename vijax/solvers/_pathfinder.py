"""Pathfinder: the best of the Gaussians that a climb to the mode passes by."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Key

from vijax import calls, checks, engine
from vijax.calls import usage
from vijax.gaussians import AffineGaussian
from vijax.solvers._path import Problem, climb_to_mode
from vijax.types import Draws, LogJoint, PyTree


class Path(NamedTuple):
    """The result of one climb.

    Fields:
        q: the Gaussian of the largest ELBO on the way.
        draws: fresh draws of it, [num_samples], with log p and log q.
        elbo: its ELBO, (), from those draws; the largest of `elbos` is optimistic.
        elbos: the ELBO of each Gaussian on the way, [steps + 1], the first that of a unit
            covariance at the start; -inf where it could not be estimated, and past the end.
        steps: how many steps were taken, ().
    """

    q: AffineGaussian
    draws: Draws
    elbo: Float[Array, ""]
    elbos: Float[Array, " path"]
    steps: Int[Array, ""]


@usage("solvers.pathfinder")
def pathfinder(
    key: Key[Array, ""],
    log_joint: LogJoint,
    like: PyTree,
    *,
    num_samples: int,
    steps: int = 100,
    history: int = 10,
) -> Path:
    """The Gaussian of the largest ELBO, of those that a climb to the mode passes by.

        qₗ = N(θₗ + Hₗ ∇log p(θₗ), Hₗ),   Hₗ the inverse Hessian of L-BFGS at step l

    A posterior in some tens of gradients, for a first result and for starting a longer fit or a
    sampler; from many starts at once, `multi_pathfinder`.

    Args:
        key: a typed key, consumed.
        log_joint: z -> log p(x, z), () in nats, or a dict of factors; over unconstrained space
            (`targets.transform`), without noise of its own.
        like: where to start; a pytree of floats of one dtype. jit and vmap over starts and keys are
            fine.
        num_samples: draws for each ELBO, with the same noise along the path, and fresh ones of the
            result.
        steps: the most steps to take; the climb ends by itself at the mode.
        history: J, how many pairs of steps and gradients the inverse Hessian remembers: O(d J)
            memory and operations, so that d may be large. Covariances are rough where J is below d:
            weigh the draws (`diagnostics.khat`, `psis`).

    Returns:
        Path. A climb that never had an ELBO, as from a start without a finite density, or under jit
        without a finite gradient, has `elbos` of -inf.

    Raises:
        TypeError: for a raw key, counts that are not whole numbers, or a start not made of floats
            of one dtype.
        ValueError: for a target with noise, of a minibatch, or with terms of q in closed form; for
            counts below 1; (outside of jit) where the gradient is nan at a start of finite density.

    Example:
        >>> def fit(key):
        ...     return pathfinder(key, lambda z: -jnp.sum(z**2), jnp.zeros(2), num_samples=4, steps=9)
        >>> shapes = jax.eval_shape(fit, jax.random.key(0))
        >>> shapes.draws.z.shape, shapes.elbos.shape
        ((4, 2), (10,))

    Reference: Zhang, Carpenter, Gelman, Vehtari, Pathfinder: parallel quasi-Newton variational
        inference, 2022, arXiv:2108.03782; Gilbert, Lemaréchal, Some numerical experiments with
        variable-storage quasi-Newton algorithms, 1989 (the diagonal).
    """
    checks.key(key)
    target = checks.target(log_joint, "solvers.pathfinder", has_aux=True)
    checks.num_samples(num_samples)
    checks.static_count(steps, "steps")
    checks.static_count(history, "history")
    position, unravel = ravel_pytree(_checked_start(like))
    key_path, key_draws = jax.random.split(key)

    # A gradient of nan at a finite density is refused here, where it can be named.
    at, slope = jax.value_and_grad(lambda x: _log_p(target, jax.vmap(unravel)(x[None]))[0])(
        position
    )
    checks.start_gradient(at, unravel(slope), "solvers.pathfinder")

    # One noise for all ELBOs of a path, [num_samples, d]: their differences feel it less.
    noise = jax.random.normal(key_path, (num_samples, position.size), position.dtype)
    log_p = partial(_log_p, target)
    climb = climb_to_mode(Problem(log_p, unravel, noise, steps, history), position)

    # Fresh draws, since the best of many ELBOs is an optimistic one
    z, log_q = climb.q.sample_and_log_prob(seed=key_draws, sample_shape=(num_samples,))
    fresh = Draws(z, log_p(z), log_q)
    return Path(climb.q, fresh, jnp.mean(fresh.log_w), climb.elbos, climb.taken)


def _log_p(log_joint: LogJoint, z: PyTree) -> Array:
    """Return log p of several draws, [k]; with the shape checks of every objective."""
    rows = jax.tree.leaves(z)[0]
    return engine.evaluate(log_joint, z, jnp.zeros(rows.shape[:1], rows.dtype))[0]


def _checked_start(like: PyTree) -> PyTree:
    calls.latents(like)
    like = jax.tree.map(jnp.asarray, like)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(like)}
    if len(dtypes) != 1 or not jnp.issubdtype(min(dtypes), jnp.floating):
        raise TypeError(
            "like must be a pytree of floats of one dtype, got "
            f"{jax.tree.map(jnp.result_type, like)}."
        )
    return like
