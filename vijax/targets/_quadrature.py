"""Latents of one or two numbers a group integrated out by adaptive Gauss-Hermite quadrature: random effects."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vijax import checks
from vijax.calls import usage
from vijax.gaussians import Gaussian, dense
from vijax.numerics import log_mean_exp, normalized_weights
from vijax.targets._block import Block, climbed, holds, precisely, require_floats
from vijax.targets._hermite import hermite
from vijax.types import LogJoint, PyTree

# The most nodes in all, nᵈ for d numbers
_MOST = 10_000
# Where the search beyond the nodes begins at least, in standard deviations; how many times it goes on
# four times as far; and the points on each axis.
_REACH, _RINGS, _POINTS = 8.0, 8, 49


@usage("targets.quadrature")
def quadrature(
    log_joint: Callable[[PyTree, PyTree], Array],
    like: PyTree,
    *,
    nodes: int = 24,
    steps: int = 12,
) -> tuple[LogJoint, Callable[[PyTree], Gaussian]]:
    """Integrate b out by adaptive Gauss-Hermite quadrature, each member of the batch by itself.

        log p(x, z) = log Σᵢ wᵢ exp(log p(x, z, bᵢ) + ½ |eᵢ|²) - ½ log |Λ|,     bᵢ = b* + L⁻ᵀ eᵢ

    For random effects of one or two numbers a group: off by 1e-8 where `collapse_laplace` is by 0.1 nats.

    Args:
        log_joint: (z, b) -> log p(x, z, b), [*batch] in nats, smooth in b: a term for each group,
            which reads its own b alone. Densities of b with two far peaks, or a kink, are not
            integrated well: see `quadrature_error`.
        like: the b from which Newton's method starts, leaves [*batch, ...].
        nodes: n for each number of b, nᵈ for d of them; exact where log p is quadratic but for a
            polynomial factor of degree 2n - 1. 1 is Laplace's approximation.
        steps: how many of Newton's steps lead to the mode b*, at which Λ = L Lᵀ = -∇²_b log p.

    Returns:
        The target z -> log p(x, z), [*batch], to be summed over groups, nan where no mode was
        reached; and z -> the Gaussian with the mean and covariance of p(b | x, z), by the same
        nodes. The derivative is that of the integral, at fixed nodes.

    Raises:
        TypeError: for a `like` that holds no floats, or nodes that are no whole number.
        ValueError: for more than 370 nodes for each number, 10,000 in all; for a target with noise, or that is unbiased
            in its mean alone, as a minibatch's.

    Example:
        >>> groups, effects = quadrature(lambda z, b: z * b - jnp.exp(b), jnp.full(3, 2.0))
        >>> log_p = jax.jit(groups)(jnp.full(3, 11.0))
        >>> log_p.shape, round(float(log_p[0]), 3)  # log Γ(11)
        ((3,), 15.104)

    Reference: Liu, Pierce, A note on Gauss-Hermite quadrature, 1994; Pinheiro, Bates,
        Approximations to the log-likelihood function in the nonlinear mixed-effects model, 1995.
    """
    log_joint = _checked(log_joint, like, nodes, steps, "targets.quadrature")

    @precisely
    def result(z: PyTree) -> tuple[Array, Gaussian]:
        f, at, root, valid = _grid(log_joint, z, like, steps)
        value, conditional = _sums(f, at, root, nodes)
        return value * valid, jax.tree.map(
            lambda leaf: leaf * valid.reshape(*valid.shape, *(1,) * (leaf.ndim - valid.ndim)),
            conditional,
        )

    return lambda z: result(z)[0], lambda z: result(z)[1]


@usage("targets.quadrature_error")
def quadrature_error(
    log_joint: Callable[[PyTree, PyTree], Array],
    like: PyTree,
    *,
    nodes: int = 24,
    steps: int = 12,
) -> Callable[[PyTree], Array]:
    """Error of `quadrature` in each group, against about twice as many nodes and the mass beyond them.

        error = log (p₂ₙ₊₁(x, z) + p_beyond(x, z)) - log pₙ(x, z)

    Check it at the z that a fit ended at. Mass beyond the nodes, of a second peak or a heavy tail, is looked
    for on grids that widen to 5e5 standard deviations. A peak that is narrow beside the distance of the
    nodes is not seen, nor one far off that is narrow beside its distance.

    Args:
        log_joint: as for `quadrature`.
        like: as for `quadrature`.
        nodes: n, those of the fit. Of n = 1 or 2 it can be far too small, since 2n + 1 are too few.
        steps: as for `quadrature`.

    Returns:
        z -> signed errors in nats, [*batch]. Their sum over groups is the error of the target, and
        its gradient that of the slope, but for the mass beyond. Of kinks, jumps and heavy tails
        it says the size alone, and can be half of what is missed.

    Raises:
        TypeError, ValueError: as `quadrature` does.

    Example:
        >>> error = quadrature_error(lambda z, b: z * b - jnp.exp(b), jnp.array(2.0), nodes=3)
        >>> round(float(jax.jit(error)(11.0)), 4)
        0.0075

    Reference: Davis, Rabinowitz, Methods of numerical integration, 1984, section 4.9.
    """
    log_joint = _checked(log_joint, like, nodes, steps, "targets.quadrature_error")
    hermite(2 * nodes + 1)

    @precisely
    def error(z: PyTree) -> Array:
        f, at, root, valid = _grid(log_joint, z, like, steps)
        fewer, more = (_sums(f, at, root, n)[0] for n in (nodes, 2 * nodes + 1))
        # log (1 + p_beyond / p), of the size of p_beyond itself
        beyond = jax.nn.softplus(jax.lax.stop_gradient(_beyond(f, at, root, nodes) - more))
        return (more - fewer + beyond) * valid

    return error


def _checked(
    log_joint: Callable[..., Array], like: PyTree, nodes: int, steps: int, who: str
) -> Callable[..., Array]:
    log_joint = checks.target(log_joint, who, cure=checks.CONDITIONAL)
    checks.static_count(nodes, "nodes")
    checks.static_count(steps, "steps", least=0)
    require_floats(like)
    hermite(nodes)
    return log_joint


def _grid(
    log_joint: Callable[..., Array], z: PyTree, like: PyTree, steps: int
) -> tuple[Block, Array, Array, Array]:
    """Return b near its mode, the root of Λ there, neither with a derivative, and 1, or nan where it is no mode."""
    f = Block(log_joint, z, like, dense)
    # The last step, Λ⁻¹ g, tells how far the mode is.
    near = climbed(f, steps)
    matrix = f.matrix(near)
    root, g = dense.factor(matrix), f.slope(near)
    left = dense.solve(root, g)
    # A tenth of a standard deviation from the mode is near enough for nodes.
    eps = jnp.finfo(near.dtype).eps
    far, size = (jnp.max(jnp.abs(a), f.axes, initial=0.0) for a in (left, near))
    arrived = (jnp.sum(g * left, f.axes) <= 0.01) | (far <= 8 * eps * size)
    valid = jnp.where(arrived & holds(f, dense, matrix, root, near), 1.0, jnp.nan)
    return f, *jax.lax.stop_gradient((near, root, valid.astype(near.dtype)))


def _sums(f: Block, at: Array, root: Array, nodes: int) -> tuple[Array, Gaussian]:
    """Return log Σᵢ wᵢ p(x, z, bᵢ) and the Gaussian of the moments of b."""
    if nodes**f.size > _MOST:
        raise ValueError(
            f"b has {f.size} numbers in each member of the batch {f.batch}, and {nodes} nodes for "
            f"each make {nodes**f.size}, more than {_MOST}: give `like` the groups' axes first, "
            "and log_joint a term for each group; take fewer nodes, or targets.collapse_laplace."
        )
    e, log_weights = (jnp.asarray(part, at.dtype) for part in _nodes(nodes, f.size))
    log_p = _densities(f, at, root, e)
    terms = log_p + log_weights.reshape(-1, *(1,) * (log_p.ndim - 1))
    # log Σ, less log |L| for the change of variables
    value = log_mean_exp(terms) + math.log(len(e)) - dense.half_log_det(root)
    # Moments of the noise e, in which b is at + L⁻ᵀ e, so that the precision is L C⁻¹ Lᵀ.
    weights = normalized_weights(terms)
    mean = jnp.einsum("k...,kd->...d", weights, e)
    centered = e.reshape(len(e), *(1,) * len(f.batch), f.size) - mean[None]
    covariance = jnp.einsum("k...,k...d,k...e->...de", weights, centered, centered)
    inner = dense.factor(jnp.linalg.inv(covariance))
    moved = at + dense.push(root, mean)
    return value, Gaussian(f.split(moved), jnp.matmul(root, inner), dense)


def _densities(f: Block, at: Array, root: Array, e: Array) -> Array:
    """Return log p at bᵢ = b* + L⁻ᵀ eᵢ for every member, [nodes, *batch]."""
    push = jax.vmap(lambda one: dense.push(root, jnp.broadcast_to(one, at.shape)))
    log_p: Array = jax.vmap(f.density)(at[None] + push(e))
    return log_p


def _beyond(f: Block, at: Array, root: Array, nodes: int) -> Array:
    """Return the log of the mass beyond 2 nodes + 1 nodes, by grids of ever wider rings, [*batch]."""
    # A square ring from a quarter of the unit square to its edge, and the volume of a cell
    count = min(_POINTS, int(_MOST ** (1 / f.size)))
    axis = np.linspace(-1, 1, count)
    square = np.stack([x.ravel() for x in np.meshgrid(*[axis] * f.size)], -1)
    ring = jnp.asarray(square[np.max(np.abs(square), -1) > 0.25], at.dtype)
    width = 2 / (count - 1)

    def mass(radius: Array) -> Array:
        log_p = _densities(f, at, root, radius * ring)
        # Far out a log p that overflows may be nan, which is no mass that is seen.
        log_p = jnp.where(jnp.isnan(log_p), -jnp.inf, log_p)
        return log_mean_exp(log_p) + math.log(len(ring)) + f.size * jnp.log(radius * width)

    reach = max(_REACH, float(np.max(hermite(2 * nodes + 1)[0])))
    masses = jax.lax.map(mass, jnp.asarray(reach * 4.0 ** np.arange(1, _RINGS + 1), at.dtype))
    return log_mean_exp(masses) + math.log(_RINGS) - dense.half_log_det(root)


def _nodes(count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return standard normal nodes [countˢⁱᶻᵉ, size], and the logarithms of their weights for any density of e."""
    # A grid of one-dimensional rules; ½ e² turns weights for the normal into ones for any density.
    points, weights = hermite(count)
    each = np.meshgrid(*[np.arange(count)] * size, indexing="ij")
    index = np.stack([axis.ravel() for axis in each], -1)
    e = points[index]
    return e, np.sum(np.log(weights)[index] + 0.5 * e**2, -1)
