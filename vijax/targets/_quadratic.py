"""Collapse by autodiff: latents in which log p(x, z, b) is quadratic are integrated out, and nothing is stated."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vijax import checks, jaxprs
from vijax.calls import usage
from vijax.gaussians import Gaussian, Precision, dense
from vijax.targets._block import Block, climbed, holds, precisely, require_floats
from vijax.types import LogJoint, PyTree


@usage("targets.collapse_gaussian")
def collapse_gaussian(
    log_joint: Callable[[PyTree, PyTree], Array], like: PyTree, *, precision: Precision = dense
) -> tuple[LogJoint, Callable[[PyTree], Gaussian]]:
    """Integrate b out of log p(x, z, b) exactly where it is quadratic in b, by autodiff.

        log p(x, z) = log p(x, z, b*) + d/2 log 2π - ½ log |Λ|,     Λ = -∇²_b log p

    For linear-Gaussian parts of a model: coefficients, factor loadings, states. The target has
    fewer latents, and every bound of it is at least as tight.

    Args:
        log_joint: (z, b) -> log p(x, z, b), [*batch] in nats. Scales and whatever else is not
            linear stay in z.
        like: a b for its structure, shapes and dtypes, leaves [*batch, ...]; chains [*batch, T,
            ...]. In float64 where Λ's condition number is above 1e5.
        precision: `gaussians.dense`, `diagonal` or `tridiagonal`, the zeros of Λ. The cost is d
            Hessian-vector products, one, or three for each number of a block.

    Returns:
        The collapsed target z -> log p(x, z), and z -> the exact p(b | x, z) = N(b*, Λ⁻¹), with b*
        = b + Λ⁻¹ ∇_b log p at any b, a distribution with batch shape [*batch] to draw b from. The
        value is nan where Λ is not positive definite, so that the integral is infinite, or cannot
        be told from a singular one in these floats; for zeros that Λ does not have; and where
        members of the batch depend on each other's b.

    Raises:
        TypeError: for a `like` that holds no floats.
        ValueError: for a target with noise or of a minibatch, and (when called) for a log_joint
            that is not quadratic in b.

    Example:
        >>> log_joint = lambda z, b: -0.5 * jnp.sum((b - z) ** 2)
        >>> target, conditional = collapse_gaussian(log_joint, jnp.zeros(2))
        >>> round(float(jax.jit(target)(3.0)), 3)  # log 2π
        1.838

    Reference: Casella, Robert, Rao-Blackwellisation of sampling schemes, 1996; Hoffman, Johnson,
        Tran, Autoconj: recognizing and exploiting conjugacy without a domain-specific language,
        2018, arXiv:1811.11926.
    """
    log_joint = checks.target(log_joint, "targets.collapse_gaussian", cure=checks.CONDITIONAL)
    require_floats(like)

    @precisely
    def result(z: PyTree) -> tuple[Array, Gaussian]:
        f = Block(log_joint, z, like, precision)
        v = f.at(jnp.zeros_like(f.join(f.like)))
        # Any point does: the Hessian is the same everywhere.
        _quadratic(f, v)
        slope, curvature = jax.linearize(f.slope, v)  # whose primal part all directions share
        matrix = precision.probe(lambda e: -curvature(e), v)
        root = precision.factor(matrix)
        # Newton's step is exact from any fixed point, and so are its derivatives in z. From one near the mode, where
        # a first step arrives, nothing large cancels.
        valid = holds(f, precision, matrix, root, v)
        near = jax.lax.stop_gradient(v + precision.solve(root, f.marked(slope, valid)))
        return f.integral(near, root, valid)

    return lambda z: result(z)[0], lambda z: result(z)[1]


@usage("targets.collapse_laplace")
def collapse_laplace(
    log_joint: Callable[[PyTree, PyTree], Array],
    like: PyTree,
    *,
    steps: int = 20,
    precision: Precision = dense,
) -> tuple[LogJoint, Callable[[PyTree], Gaussian]]:
    """Integrate b out by a Gaussian at its mode b*; neither a lower nor an upper bound.

        log p(x, z) ≈ log p(x, z, b*) + d/2 log 2π - ½ log |Λ|,     Λ = -∇²_b log p

    For a log_joint that is smooth and nearly quadratic in b, as in a regression's coefficients
    given their scale.

    Args:
        log_joint: (z, b) -> log p(x, z, b), [*batch] in nats, with two derivatives in b. For one or
            two numbers a member, as random effects of groups with few data, `quadrature` is exact
            and no dearer, and its difference from this is the error of this.
        like: the b from which Newton's method starts, leaves [*batch, ...].
        steps: how many steps it takes, each halved up to ten times until it climbs.
        precision: `gaussians.dense`, `diagonal` or `tridiagonal`, the zeros of Λ.

    Returns:
        The approximate target z -> log p(x, z), nan where it does not stand on a mode (Λ not
        positive definite, or a slope left after the last step), and z -> N(b*, Λ⁻¹). Derivatives in
        z follow the mode.

    Raises:
        TypeError: for a `like` that holds no floats.
        ValueError: for a target with noise, or that is unbiased in its mean alone, as a
            minibatch's.

    Example:
        >>> target, _ = collapse_laplace(lambda z, b: z * b - jnp.exp(b), jnp.array(2.0))
        >>> round(float(jax.jit(target)(11.0)), 3)  # log Γ(11) is 15.104
        15.097

    Reference: Tierney, Kadane, Accurate approximations for posterior moments and marginal
        densities, 1986; Rue, Martino, Chopin, Approximate Bayesian inference for latent Gaussian
        models, 2009.
    """
    log_joint = checks.target(log_joint, "targets.collapse_laplace", cure=checks.CONDITIONAL)
    checks.static_count(steps, "steps", least=0)
    require_floats(like)

    @precisely
    def result(z: PyTree) -> tuple[Array, Gaussian]:
        f = Block(log_joint, z, like, precision)
        near = climbed(f, steps)
        # Newton's step from there, whose matrix has no part in the derivative of the mode
        root = precision.factor(jax.lax.stop_gradient(f.matrix(near)))
        g = f.slope(near)
        left = precision.solve(root, g)
        # The mode moves with z as two of Newton's steps do, to second order, and Λ with the mode.
        mode = near + left
        mode = mode + precision.solve(root, f.slope(mode))
        # In posterior standard deviations, or as near as floats of the mode's size can be.
        eps = jnp.finfo(near.dtype).eps
        far, size = (jnp.max(jnp.abs(a), f.axes, initial=0.0) for a in (left, near))
        arrived = (jnp.sum(g * left, f.axes) <= eps**0.5) | (far <= 8 * eps * size)
        matrix = f.matrix(mode)
        root = precision.factor(matrix)
        settled = jax.lax.stop_gradient(arrived) & holds(f, precision, matrix, root, mode)
        return f.integral(near, root, settled, mode)

    return lambda z: result(z)[0], lambda z: result(z)[1]


def _quadratic(f: Block, v: Array) -> None:
    """Refuse a log_joint whose Hessian depends on b, or that reaches it through a jump: |b| has Hessian 0."""
    blame = jaxprs.not_quadratic(f.density, v)
    if blame is None:
        return
    if blame.opaque:
        raise ValueError(
            f"log_joint keeps b in '{blame.primitive}', where its Hessian cannot be followed; "
            "write it without."
        )
    raise ValueError(
        f"log_joint is not quadratic in b: '{blame.primitive}' keeps b in its Hessian. Give `like` "
        "only those latents in which it is (scales, rates and whatever multiplies b stay in z), "
        "or rewrite it so (a Student-t is a Gaussian with a Gamma scale in z; for logistic and "
        "other terms with quadratic bounds see targets.minorize); what is integrated already, "
        "take together with b in one `like`; for a library's check of arguments, switch it off "
        "(validate_args=False). targets.collapse_laplace integrates approximately."
    )
