"""Covariances and errors at the maximum of a fit at fixed draws, from how that maximum moves."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key

from vijax import calls, checks, draws
from vijax.calls import usage
from vijax.types import Distribution, Draw, Family, LogJoint, PyTree

Solve = Callable[[Callable[[Array], Array], Array], Array]
"""(v -> A v, b [n]) -> A⁻¹ b, for a symmetric A that is positive definite where the fit arrived."""


class Response(NamedTuple):
    """What the maximum of a fixed-draw fit says of a quantity g(z), a pytree flattened to [m].

    Fields:
        mean: of g under q, over the fixed draws, like g; it varies far less with them than
            params["loc"] does, as the optimum makes up for where they lie.
        sd: the linear-response standard deviation, like g: the root of `covariance`'s diagonal.
        covariance: [m, m].
        error: how far `mean` may be off because the draws are few, like g: its standard error over
            keys. It does not include what the family misses. nan for draws that are not
            independent.
    """

    mean: PyTree
    sd: PyTree
    covariance: Float[Array, "m m"]
    error: PyTree


@usage("solvers.dense")
def dense(product: Callable[[Array], Array], b: Float[Array, " n"]) -> Float[Array, " n"]:
    """Solve A x = b by a Cholesky factor of all of A; nan where A is not positive definite.

        A = [A e₁ ... A eₙ],   x = A⁻¹ b

    For up to some thousand parameters.

    Args:
        product: v -> A v, [n] -> [n], A symmetric. Beyond some thousand parameters solve by
            products alone, as lambda product, b: jax.scipy.sparse.linalg.cg(product, b,
            tol=1e-8)[0] does.
        b: [n].

    Returns:
        [n].

    Example:
        >>> a = jnp.array([[2.0, 0.0], [0.0, 4.0]])
        >>> [round(float(x), 3) for x in dense(lambda v: a @ v, jnp.ones(2))]
        [0.5, 0.25]

    Reference: none; the algorithm is Cholesky's.
    """
    # All of A, a product with each unit vector
    a = jax.vmap(product)(jnp.eye(b.shape[0], dtype=b.dtype))
    return jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(0.5 * (a + a.T)), True), b)


@usage("solvers.linear_response")
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
    """Covariances from how the optimum moves with a tilt of the target, and the fixed draws' error.

        Cov(gᵢ, gⱼ) = ∂E_q[gᵢ]/∂tⱼ  for the target p(x, z) exp(t·g(z))
                    = ∇mᵢᵀ (-∇²F)⁻¹ ∇mⱼ,     mᵢ = E_q[gᵢ]

    Corrects the small sds of a mean-field q where latents are correlated: exact for a Gaussian
    posterior.

    Args:
        key: the key of the fit. Like all arguments it must be `dadvi`'s, at the params it returned:
            elsewhere (the slope is not 0, another key) the formulas do not hold.
        log_joint: the fit's.
        family: the fit's.
        params: where it ended.
        num_samples: the fit's.
        draw: the fit's.
        of: z -> the quantities wanted, a pytree of floats: `constrain`, or a prediction; z itself
            by default.
        solve: (v -> A v, b) -> A⁻¹ b; `dense`, or conjugate gradients.

    Returns:
        Response: mean, sd, covariance, error. nan where params is no strict maximum. error² is
        1/K Var(gₖ + ∇mᵀ (-∇²F)⁻¹ ∇Fₖ), with F = 1/K Σₖ Fₖ the function of the fit.

    Raises:
        TypeError, ValueError: as `draws.weigh`.

    Reference: Giordano, Broderick, Jordan, Covariances, robustness, and variational Bayes, 2018,
        arXiv:1709.02536; Giordano, Ingram, Broderick, 2024, arXiv:2304.05527.
    """
    log_joint = checks.target(log_joint, "solvers.linear_response", keyed=True, has_aux=True)
    checks.key(key)
    checks.family(family, "family")
    calls.function(of, "of")
    flat, unravel = ravel_pytree(params)

    def fixed_draws(vector: Array) -> tuple[Array, Array]:
        """Return log w and g(z) of the fit's draws, [K] and [K, m]; their means are F and m."""
        q = family.dist(unravel(vector))
        drawn = draws.weigh(key, log_joint, q, num_samples=num_samples, draw=draw)
        # [K, m]
        values = jax.vmap(lambda z: ravel_pytree(of(z))[0])(drawn.z)
        if drawn.weights is None:
            shares = jnp.ones(num_samples, values.dtype) / num_samples
        else:
            shares = drawn.weights
        # Times K, so that plain means over axis 0 are the weighted ones
        return drawn.log_w * shares * num_samples, values * (shares * num_samples)[:, None]

    # How the means move with the parameters, and the parameters with a tilt of the target.
    slope = jax.grad(lambda vector: jnp.mean(fixed_draws(vector)[0]))
    mean, slopes_of_means = _with_jacobian(lambda vector: jnp.mean(fixed_draws(vector)[1], 0), flat)
    respond = partial(solve, partial(_curvature, slope, flat))
    # (-∇²F)⁻¹ ∇mᵢ in row i, [m, n]
    moves = jax.vmap(respond)(slopes_of_means)
    covariance = moves @ slopes_of_means.T

    # What each draw would have changed: itself, and where the optimum is.
    # ∇Fₖ along each move, [m, K]
    log_w_along = jax.vmap(
        lambda move: jax.jvp(lambda vector: fixed_draws(vector)[0], (flat,), (move,))[1]
    )
    influence = fixed_draws(flat)[1] + log_w_along(moves).T
    # An error of 0, as of a constant g, is known to rounding alone.
    rounding = jnp.finfo(mean.dtype).eps * jnp.max(jnp.abs(fixed_draws(flat)[1]), 0)
    error = jnp.hypot(_standard_error(influence, independent=draw.independent), rounding)

    like = jax.eval_shape(lambda vector: of(_one_draw(family.dist(unravel(vector)), key)), flat)
    as_given = ravel_pytree(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like))[1]
    sd = jnp.sqrt(jnp.diagonal(covariance))
    return Response(as_given(mean), as_given(sd), covariance, as_given(error))


def _with_jacobian(
    function: Callable[[Array], Array], at: Float[Array, " n"]
) -> tuple[Float[Array, " m"], Float[Array, "m n"]]:
    """Return a vector-valued function and its Jacobian."""
    values, pull = jax.vjp(function, at)
    return values, jax.vmap(lambda e: pull(e)[0])(jnp.eye(values.shape[0], dtype=values.dtype))


def _curvature(slope: Callable[[Array], Array], at: Array, direction: Array) -> Array:
    """Return the product of minus the Hessian with a direction, from the gradient."""
    return -jax.jvp(slope, (at,), (direction,))[1]


def _standard_error(influence: Float[Array, "k m"], *, independent: bool) -> Float[Array, " m"]:
    """Return the standard error of a mean of k values, nan where they are not independent."""
    k = influence.shape[0]
    error = jnp.std(influence, 0) / jnp.sqrt(1.0 * max(k - 1, 1))
    return error if independent and k > 1 else jnp.full_like(error, jnp.nan)


def _one_draw(q: Distribution, key: Key[Array, ""]) -> PyTree:
    return q.sample_and_log_prob(seed=key, sample_shape=())[0]
