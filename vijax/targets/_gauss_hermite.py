"""The likelihood's expectation over a Gaussian q by quadrature in one dimension: an ELBO without noise."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vijax import checks, jaxprs
from vijax.targets._split import WHY
from vijax.types import Affine, LogJoint, PyTree, derive, offers


def gauss_hermite(
    log_site: Callable[[Array], Array],
    predictor: Callable[[PyTree], Array],
    q: Any,
    *,
    nodes: int = 32,
) -> LogJoint:
    """Take the expectation over a Gaussian q of a likelihood of linear predictors, by quadrature in one dimension.

        E_q[Σₙ log f(xₙ)],     xₙ ~ N(mₙ, sₙ²) under q,     Σₙ Σᵢ wᵢ log f(mₙ + sₙ eᵢ)

    For generalised linear models, and Gaussian processes at their data: x = predictor(z) is linear in z, so that each
    xₙ is Gaussian by itself, however many latents there are. As the likelihood of `split` it leaves an ELBO without
    noise, which `solvers.maximize` climbs to machine precision:

        def bound(params):
            q = family.dist(params)                                    # full_rank(), mean_field() or low_rank(rank=r)
            target = split(gauss_hermite(log_site, predictor, q), prior, q)
            return reparam(elbo)(jax.random.key(0), target, q, num_samples=1).value      # whatever the key
        fit = maximize(bound, family.init(key, like))

    Where every log f is concave (logistic, probit, Poisson, Laplace), this ELBO is concave in the mean and the Cholesky
    factor of q together: it has one maximum, which this finds from anywhere.

    Args:
        log_site: x -> log f(x) in nats, element by element, of predictor(z)'s shape; data closed over.
        predictor: z -> x, any shape, linear in z (a constant may be added).
        q: a Gaussian of `vijax.families`, the same that the objective gets.
        nodes: of the quadrature, exact for polynomials of degree 2 nodes - 1; 32 are off by 3e-8 of a logistic site
            where its s is 2, by 1e-4 where it is 4 and by 6e-3 where it is 8 (64: 6e-4).

    Returns:
        A target z -> () that does not depend on z, for `split` and bounds linear in log_w.

    Raises:
        TypeError: for a q that is no Gaussian family, or nodes that are no whole number.
        ValueError: for nodes < 1, or (when called) a predictor that is not linear or sites of another shape.

    Reference: Challis, Barber, Gaussian Kullback-Leibler approximate inference, 2013.
    """
    checks.static_count(nodes, "nodes")
    if not offers(q, Affine):
        raise TypeError(
            f"gauss_hermite needs one Gaussian of vijax.families over all latents (mean_field, full_rank, low_rank), "
            f"which says how its draws are made of standard noise; got {type(q).__name__}."
        )
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    if not np.all(np.isfinite(weights)):
        raise ValueError(
            f"nodes must be at most some 250, where their weights leave float64; got {nodes}."
        )

    def target(z: PyTree) -> Array:
        checks.mean_alone(WHY.format("expected likelihood"))
        of_noise = lambda e: predictor(q.affine(e))  # noqa: E731
        zero = jnp.zeros(q.uniforms, jax.eval_shape(q.log_prob, z).dtype)
        _linear(of_noise, zero)
        mean, push = jax.linearize(of_noise, zero)
        variance = jnp.sum(jnp.square(jax.vmap(push)(jnp.eye(zero.size, dtype=zero.dtype))), 0)
        # Where x does not vary, neither does its sd with the parameters; √ alone would say nan.
        varies = variance > 0
        sd = jnp.where(varies, jnp.sqrt(jnp.where(varies, variance, 1.0)), 0.0)
        sites = jax.vmap(lambda e: log_site(mean + sd * e))(jnp.asarray(points, mean.dtype))
        if sites.shape != (nodes, *mean.shape):
            raise ValueError(
                f"log_site(x) must have the shape of x = predictor(z), {mean.shape}, one value for each element; got "
                f"{sites.shape[1:]}."
            )
        return jnp.sum(
            jnp.tensordot(jnp.asarray(weights / np.sqrt(2 * np.pi), sites.dtype), sites, 1)
        )

    return derive(target, target, only_mean=WHY.format("expected likelihood"))


def _linear(function: Callable[[Array], Array], e: Array) -> None:
    """Refuse a predictor whose derivative depends on z, or that reaches it through a jump: |z| has two derivatives."""
    blame = jaxprs.not_linear(function, e)
    if blame is None:
        return
    if blame.opaque:
        raise ValueError(
            f"predictor keeps z in '{blame.primitive}', where it cannot be followed; write it without."
        )
    raise ValueError(
        f"predictor is not linear in z: '{blame.primitive}' keeps z in its derivative. Put what follows the linear "
        "part in log_site; an x that is not Gaussian under q has no quadrature in one dimension: leave it to draws, "
        "with the plain log-likelihood."
    )
