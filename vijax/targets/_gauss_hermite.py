"""The likelihood's expectation over a Gaussian q by quadrature in one dimension: an ELBO without noise."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vijax import checks, jaxprs
from vijax.calls import usage
from vijax.targets._exact_kl import WHY
from vijax.targets._hermite import hermite
from vijax.types import Affine, LogJoint, PyTree, derive, offers, properties

# Why only its mean is right, and what is to be done about a likelihood of a minibatch
EXPECTED = WHY.format("expected likelihood")
SITE = "give it the terms of all the data, or scale those of a minibatch by N/B inside"


@usage("targets.gauss_hermite")
def gauss_hermite(
    log_site: Callable[[Array], Array],
    predictor: Callable[[PyTree], Array],
    q: PyTree,
    *,
    nodes: int = 32,
) -> LogJoint:
    """Expectation over a Gaussian q of a likelihood of linear predictors, by quadrature.

        E_q[Σₙ log f(xₙ)] ≈ Σₙ Σᵢ wᵢ log f(mₙ + sₙ eᵢ),     xₙ ~ N(mₙ, sₙ²) under q

    For generalized linear models and Gaussian processes at their data. As the likelihood of `exact_kl`
    it gives an ELBO without noise, for `solvers.maximize`.

    Args:
        log_site: x -> log f(x) in nats, element by element, of predictor(z)'s shape; data closed
            over. Smooth: of a site with a kink or a jump (a Laplace density, a hinge) the slopes
            would be wrong, and it is refused. Where every log f is concave (logistic, probit,
            Poisson), this ELBO is concave in the mean and the Cholesky factor of q together. Of a
            minibatch of B data out of N, N/B times the terms; `targets.minibatch` is left out.
        predictor: z -> x, any shape, linear in z (a constant may be added).
        q: a Gaussian of `vijax.families`, the same that the objective gets.
        nodes: of the quadrature, exact for polynomials of degree 2 nodes - 1. At s of 1, 2 and 4,
            32 are off by 1e-14, 3e-8 and 1e-4 of a logistic site, 1e-14, 2e-8 and 7e-5 of a probit
            one, 1e-9, 4e-7 and 3e-3 of a Student-t of scale 1, and .01 to .2 of one of scale .2:
            see `gauss_hermite_error` for yours.

    Returns:
        A target z -> () that does not depend on z, for `exact_kl` and bounds linear in log_w.

    Raises:
        TypeError: for a q that is no Gaussian family, or nodes that are no whole number.
        ValueError: for nodes < 1 or > 370, or (when called) a predictor that is not linear, sites of another
            shape, and sites that are seen to have a kink or a jump and are not declared smooth,
            `types.derive(log_site, log_site, smooth=True)`.

    Example:
        >>> q = vj.families.mean_field().dist({"loc": jnp.ones(2), "log_scale": jnp.zeros(2)})
        >>> target = gauss_hermite(lambda x: -(x**2), lambda z: 3 * z[0] + 4 * z[1], q)
        >>> round(float(target(jnp.zeros(2))), 2)  # -(7² + 5²)
        -74.0

    Reference: Challis, Barber, Gaussian Kullback-Leibler approximate inference, 2013.
    """
    _check(q, nodes)
    log_site = checks.target(log_site, "targets.gauss_hermite", what="log_site", cure=SITE)

    def target(z: PyTree) -> Array:
        # Refused wherever log p itself is needed
        checks.mean_alone(EXPECTED)
        dtype = jax.eval_shape(q.log_prob, z).dtype
        return jaxprs.mean_alone(jnp.sum(_expected(log_site, predictor, q, (nodes,), dtype)[0]))

    return derive(target, target, only_mean=EXPECTED)


@usage("targets.gauss_hermite_error")
def gauss_hermite_error(
    log_site: Callable[[Array], Array],
    predictor: Callable[[PyTree], Array],
    q: PyTree,
    *,
    nodes: int = 32,
) -> Float[Array, "..."]:
    """Error of `gauss_hermite` at each site, against about twice as many nodes.

        errorₙ = E₂ₖ₊₁[log f(xₙ)] - Eₖ[log f(xₙ)],     k = nodes

    Check it at the q that a fit ended at. Where it matters, take more nodes, or estimate the
    likelihood from draws.

    Args:
        log_site: as for `gauss_hermite`. Sites that are narrow beside the spread of x (a Cauchy of
            scale .05 where s is 1) are smooth, and still not integrated by some tens of nodes.
        predictor: as for `gauss_hermite`.
        q: the Gaussian.
        nodes: k, those of the fit.

    Returns:
        Signed errors in nats, of predictor(z)'s shape. Their sum is the change of the bound, and
        its gradient in q's parameters that of the slope.

    Raises:
        TypeError, ValueError: as `gauss_hermite` does; and for more than 184 nodes.

    Example:
        >>> q = vj.families.mean_field().dist({"loc": jnp.zeros(1), "log_scale": jnp.zeros(1)})
        >>> error = gauss_hermite_error(lambda x: -(x**2), lambda z: 5 * z[0], q, nodes=1)
        >>> round(float(error), 2)  # one node takes 0 for -25
        -25.0

    Reference: Davis, Rabinowitz, Methods of numerical integration, 1984, section 4.9.
    """
    _check(q, 2 * nodes + 1 if isinstance(nodes, int) else nodes)
    log_site = checks.target(log_site, "targets.gauss_hermite", what="log_site", cure=SITE)
    dtype = jax.eval_shape(lambda: q.log_prob(q.affine(jnp.zeros(q.uniforms)))).dtype
    fewer, more = _expected(log_site, predictor, q, (nodes, 2 * nodes + 1), dtype)
    return more - fewer


def _check(q: PyTree, nodes: int) -> None:
    checks.static_count(nodes, "nodes")
    if not offers(q, Affine):
        raise TypeError(
            "gauss_hermite needs one Gaussian of vijax.families over all latents (mean_field, "
            "full_rank, low_rank), which says how its draws are made of standard noise; got "
            f"{type(q).__name__}."
        )
    hermite(nodes)


def _expected(
    log_site: Callable[[Array], Array],
    predictor: Callable[[PyTree], Array],
    q: PyTree,
    counts: tuple[int, ...],
    dtype: np.dtype[Any],
) -> list[Array]:
    """Return the expectation of each site, by each count of nodes."""

    def of_noise(e: Array) -> Array:
        return predictor(q.affine(e))

    # x = mean + J e: its value at zero noise, and its variance, the squared rows of J
    zero = jnp.zeros(q.uniforms, dtype)
    _linear(of_noise, zero)
    mean, push = jax.linearize(of_noise, zero)
    variance = jnp.sum(jnp.square(jax.vmap(push)(jnp.eye(zero.size, dtype=zero.dtype))), 0)
    # Where x does not vary, neither does its sd with the parameters; √ alone would say nan.
    varies = variance > 0
    sd = jnp.where(varies, jnp.sqrt(jnp.where(varies, variance, 1.0)), 0.0)
    # Nodes step over a kink: the value would be close, and the slope wrong.
    _smooth(log_site, mean)
    expectations = []
    for nodes in counts:
        # Nodes for the weight e^(-e²/2), whose weights sum to √2π
        points, weights = hermite(nodes)
        sites = jax.vmap(lambda e: log_site(mean + sd * e))(jnp.asarray(points, mean.dtype))
        shares = jnp.asarray(weights / np.sqrt(2 * np.pi), sites.dtype)
        expectations.append(jnp.tensordot(shares, sites, 1))
    return expectations


def _smooth(log_site: Callable[[Array], Array], x: Array) -> None:
    """Refuse sites of another shape, and those with a kink or a jump, whose slopes nodes step over."""
    shape = getattr(jax.eval_shape(log_site, x), "shape", None)
    if shape != x.shape:
        raise ValueError(
            f"log_site(x) must have the shape of x = predictor(z), {x.shape}, one value for each "
            f"element; got {shape}."
        )
    blame = None if properties(log_site).smooth else jaxprs.not_smooth(log_site, x)
    if blame is None:
        return
    if blame.opaque:
        raise ValueError(
            f"log_site keeps x in '{blame.primitive}', where it cannot be followed; write it "
            "without."
        )
    raise ValueError(
        f"log_site is not smooth in x: it has a kink or a jump at '{blame.primitive}', which nodes "
        "step over, with wrong slopes. Leave this likelihood to draws, log_joint(z) = sum of "
        "log_site(predictor(z)) + log_prior(z), under gradients.reparam(bounds.elbo), or use a "
        "smooth one. Where kinks in its form cancel, write it by jax.nn.softplus or "
        "jnp.logaddexp, or declare it: types.derive(log_site, log_site, smooth=True)."
    )


def _linear(function: Callable[[Array], Array], e: Array) -> None:
    """Refuse a predictor whose derivative depends on z, or that reaches it through a jump: |z| has two derivatives."""
    blame = jaxprs.not_linear(function, e)
    if blame is None:
        return
    if blame.opaque:
        raise ValueError(
            f"predictor keeps z in '{blame.primitive}', where it cannot be followed; write it "
            "without."
        )
    raise ValueError(
        f"predictor is not linear in z: '{blame.primitive}' keeps z in its derivative. Put what "
        "follows the linear part in log_site; an x that is not Gaussian under q has no quadrature "
        "in one dimension: leave it to draws, with the plain log-likelihood."
    )
