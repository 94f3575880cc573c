"""Fits at fixed draws: a deterministic function climbed to its top, then differentiated there."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key

from vijax import draws
from vijax.bounds import elbo
from vijax.fitting._maximize import Maximum, maximize
from vijax.gradients import reparam
from vijax.types import Draw, Family, LogJoint, PyTree

Solve = Callable[[Callable[[Array], Array], Array], Array]
"""(v -> A v, b [n]) -> A⁻¹ b, for a symmetric A that is positive definite where the fit arrived."""


class Response(NamedTuple):
    """What the top of a fixed-draw fit says of a quantity g(z), a pytree ravelled to [m].

    Fields:
        mean: of g under q, over the fixed draws, like g; it varies far less with them than params["loc"] does, as
            the optimum makes up for where they lie.
        sd: the linear-response standard deviation, like g: the root of `covariance`'s diagonal.
        covariance: [m, m].
        error: how far `mean` may be off because the draws are few, like g: its standard error over keys. It does not
            include what the family misses. nan for draws that are not independent.
    """

    mean: PyTree
    sd: PyTree
    covariance: Float[Array, "m m"]
    error: PyTree


def dadvi(
    key: Key[Array, ""],
    log_joint: LogJoint,
    family: Family,
    like: PyTree,
    *,
    num_samples: int,
    draw: Draw = draws.iid,
    steps: int = 1000,
    slope: float | None = None,
) -> Maximum:
    """Fit a family at fixed draws: the same noise at every step, so that L-BFGS climbs to the top and knows it.

        φ̂ = argmaxᵩ  1/K Σₖ log p(x, T(εₖ, φ)) - log q(T(εₖ, φ)),     ε₁ ... ε_K drawn once

    No learning rate, no schedule, and a top that can be differentiated (`linear_response`). For mean-field families,
    where some tens of draws suffice in any dimension. A full covariance overfits: with K ≤ d draws the function has no
    top (the climb ends at `steps` with a `slope` left), so take K of several d, or another fit.

    Args:
        key: a typed key, consumed; the same one goes to `linear_response`.
        log_joint: z -> log p(x, z), () in nats, smooth in z.
        family: whose draws carry the derivative of its parameters, as the Gaussian ones.
        like: what the family's `init` takes.
        num_samples: K.
        draw: how to draw; `draws.sobol` and `draws.antithetic` leave less error at the same K.
        steps: the most L-BFGS steps.
        slope: where to stop, as `maximize` has it.

    Returns:
        Maximum: params of the family, value (the bound at the fixed draws, which is an optimist: estimate it anew
        with another key), slope, steps.

    Raises:
        TypeError, ValueError: as `gradients.reparam` and `maximize` do.

    Reference: Giordano, Ingram, Broderick, Black box variational inference with a deterministic objective: faster, more
        accurate, and even more black box, 2024, arXiv:2304.05527.
    """
    objective = reparam(elbo, draw=draw)
    climb = lambda params: objective(key, log_joint, family.dist(params), num_samples=num_samples).value  # noqa: E731
    return maximize(climb, family.init(jax.random.fold_in(key, num_samples), like), steps=steps, slope=slope)


def dense(product: Callable[[Array], Array], b: Float[Array, " n"]) -> Float[Array, " n"]:
    """Solve A x = b by a Cholesky factor of all of A; nan where A is not positive definite.

        A = [A e₁ ... A eₙ],   x = A⁻¹ b

    For up to some thousand parameters. Beyond, solve by products alone, as
    lambda product, b: jax.scipy.sparse.linalg.cg(product, b, tol=1e-8)[0] does.

    Args:
        product: v -> A v, [n] -> [n], A symmetric.
        b: [n].

    Returns:
        [n].

    Reference: none; the algorithm is Cholesky's.
    """
    a = jax.vmap(product)(jnp.eye(b.shape[0], dtype=b.dtype))
    return jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(0.5 * (a + a.T)), True), b)


def linear_response(
    key: Key[Array, ""],
    log_joint: LogJoint,
    family: Family,
    params: PyTree,
    *,
    num_samples: int,
    draw: Draw = draws.iid,
    of: Callable[[PyTree], PyTree] = lambda z: z,
    solve: Solve = dense,
) -> Response:
    """Covariances from how the optimum moves when the target is tilted, and the error left by the fixed draws.

        Cov(gᵢ, gⱼ) = ∂E_q[gᵢ]/∂tⱼ  for the target p(x, z) exp(t·g(z))   = ∇mᵢᵀ (-∇²F)⁻¹ ∇mⱼ,     mᵢ = E_q[gᵢ]
        error²      = 1/K Var(gₖ + ∇mᵀ (-∇²F)⁻¹ ∇Fₖ)                     (F = 1/K Σₖ Fₖ: the fit's own function)

    A mean-field q has too small sds where latents are correlated, and still its means answer a tilt as the posterior's
    do: for a Gaussian posterior these covariances are exact. With the arguments that `dadvi` had, at the params it
    returned; elsewhere (the slope is not 0, another key) the formulas do not hold.

    Args:
        key: the key of the fit.
        log_joint: the fit's.
        family: the fit's.
        params: where it ended.
        num_samples: the fit's.
        draw: the fit's.
        of: z -> the quantities wanted, a pytree of floats: `constrain`, or a prediction; z itself by default.
        solve: (v -> A v, b) -> A⁻¹ b; `dense`, or conjugate gradients.

    Returns:
        Response: mean, sd, covariance, error. nan where params is no strict maximum.

    Raises:
        TypeError, ValueError: as `draws.weigh`.

    Reference: Giordano, Broderick, Jordan, Covariances, robustness, and variational Bayes, 2018, arXiv:1709.02536;
        Giordano, Ingram, Broderick, 2024, arXiv:2304.05527.
    """
    flat, unravel = ravel_pytree(params)

    def look(vector: Array) -> tuple[Array, Array]:
        seen = draws.weigh(key, log_joint, family.dist(unravel(vector)), num_samples=num_samples, draw=draw)
        values = jax.vmap(lambda z: ravel_pytree(of(z))[0])(seen.z)
        weights = jnp.ones(num_samples, values.dtype) / num_samples if seen.weights is None else seen.weights
        return seen.log_w * weights * num_samples, values * (weights * num_samples)[:, None]

    climbed: Callable[[Array], Array] = jax.grad(lambda vector: jnp.mean(look(vector)[0]))
    product = lambda v: -jax.jvp(climbed, (flat,), (v,))[1]  # noqa: E731
    values, pull = jax.vjp(lambda vector: jnp.mean(look(vector)[1], 0), flat)
    pushes = jax.vmap(lambda e: pull(e)[0])(jnp.eye(values.shape[0], dtype=values.dtype))  # ∇m, [m, n]
    moves = jax.vmap(lambda b: solve(product, b))(pushes)
    covariance = moves @ pushes.T
    seen, terms = look(flat)[1], jax.vmap(lambda move: jax.jvp(lambda v: look(v)[0], (flat,), (move,))[1])(moves)
    influence = seen + terms.T
    spread = jnp.std(influence, 0) / jnp.sqrt(1.0 * max(num_samples - 1, 1))
    error = spread if draw.independent and num_samples > 1 else jnp.full_like(spread, jnp.nan)
    like = jax.eval_shape(of, jax.eval_shape(lambda v: _one(family.dist(unravel(v)), key), flat))
    back = ravel_pytree(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like))[1]
    return Response(back(values), back(jnp.sqrt(jnp.diagonal(covariance))), covariance, back(error))


def _one(q: Any, key: Any) -> PyTree:
    return q.sample_and_log_prob(seed=key, sample_shape=())[0]
