"""Collapse by autodiff: latents in which log p(x, z, b) is quadratic are integrated out, and nothing is stated."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vijax import checks, jaxprs
from vijax.gaussians import Gaussian, Precision, dense
from vijax.gaussians.affine import LOG_2PI
from vijax.gaussians.conditional import ravel_after
from vijax.types import LogJoint, PyTree


def collapse_gaussian(
    log_joint: Callable[[PyTree, PyTree], Array], like: PyTree, *, precision: Precision = dense
) -> tuple[LogJoint, Callable[[PyTree], Gaussian]]:
    """Integrate b out of log p(x, z, b) exactly where it is quadratic in b; its gradient and Hessian say how.

        log p(x, z) = log p(x, z, b*) + d/2 log 2π - ½ log |Λ|,     Λ = -∇²_b log p,   b* = b + Λ⁻¹ ∇_b log p  at any b

    For linear-Gaussian parts of a model: coefficients, factor loadings, states of a chain, given scales and whatever
    else is not linear. The target that is left has fewer latents, so every bound of it is at least as tight. Draw b
    afterwards from the exact conditional:

        collapsed, conditional = collapse_gaussian(log_joint, jnp.zeros(20))
        ... objective(key, collapsed, q, ...);     b, _ = conditional(z).sample_and_log_prob(seed=key)

    Costs d products of the Hessian with a vector (dense), one (`gaussians.diagonal`) or three for each number of a
    block (`gaussians.tridiagonal`), and stays as stable as a Cholesky factor; use float64 where Λ's condition number is
    above 1e5. The value is nan where Λ is not positive definite, so that the integral is infinite, or cannot be told
    from a singular one in these floats; for a structure that Λ does not have; and where members of the batch depend on
    each other's b.

    Args:
        log_joint: (z, b) -> log p(x, z, b), [*batch] in nats.
        like: a b for its structure, shapes and dtypes, leaves [*batch, ...]; chains [*batch, T, ...].
        precision: `gaussians.dense`, `diagonal` or `tridiagonal`, what zeros Λ has.

    Returns:
        The collapsed target z -> log p(x, z), and z -> p(b | x, z), a distribution over b with batch shape [*batch].

    Raises:
        TypeError: for a `like` that holds no floats.
        ValueError: for a target with noise or of a minibatch, and (when called) for a log_joint
            that is not quadratic in b.

    Reference: Casella, Robert, Rao-Blackwellisation of sampling schemes, 1996; Hoffman, Johnson, Tran, Autoconj:
        recognizing and exploiting conjugacy without a domain-specific language, 2018, arXiv:1811.11926.
    """
    log_joint = checks.target(log_joint, "targets.collapse_gaussian", cure=checks.CONDITIONAL)
    require_floats(like)

    @_precisely
    def found(z: PyTree) -> tuple[Array, Gaussian]:
        f = _Function(log_joint, z, like, precision)
        v = jnp.zeros_like(f.join(f.like))
        _quadratic(f, v)
        slope, curvature = jax.linearize(f.slope, v)  # whose primal part all directions share
        matrix = precision.probe(lambda e: -curvature(e), v)
        root = precision.factor(matrix)
        # Newton's step is exact from any fixed point, and so are its derivatives in z. From one near the mode, where
        # a first step arrives, nothing large cancels.
        near = jax.lax.stop_gradient(v + precision.solve(root, slope))
        return f.integral(near, root, _holds(f, precision, matrix, root, v))

    return lambda z: found(z)[0], lambda z: found(z)[1]


def laplace(
    log_joint: Callable[[PyTree, PyTree], Array],
    like: PyTree,
    *,
    steps: int = 20,
    precision: Precision = dense,
) -> tuple[LogJoint, Callable[[PyTree], Gaussian]]:
    """Integrate b out of log p(x, z, b) approximately, by a Gaussian at its mode; neither a lower nor an upper bound.

        log p(x, z) ≈ log p(x, z, b*) + d/2 log 2π - ½ log |Λ(b*)|,     b* = argmax_b,   Λ = -∇²_b log p

    When log_joint is smooth and nearly quadratic in b, as for the coefficients of a regression given their scale; exact
    where `collapse_gaussian` is, and the error falls with the number of data per latent elsewhere. Derivatives in z
    follow the mode.

    Args:
        log_joint: (z, b) -> log p(x, z, b), [*batch] in nats, with two derivatives in b.
        like: the b from which Newton's method starts, leaves [*batch, ...].
        steps: how many steps it takes, each halved up to ten times until it climbs.
        precision: `gaussians.dense`, `diagonal` or `tridiagonal`, what zeros Λ has.

    Returns:
        The approximate target z -> log p(x, z), nan where no maximum was reached, and z -> N(b*, Λ⁻¹).

    Raises:
        TypeError: for a `like` that holds no floats.
        ValueError: for a target with noise, or that is unbiased in its mean alone, as a minibatch's.

    Reference: Tierney, Kadane, Accurate approximations for posterior moments and marginal densities, 1986; Rue,
        Martino, Chopin, Approximate Bayesian inference for latent Gaussian models, 2009.
    """
    log_joint = checks.target(log_joint, "targets.laplace", cure=checks.CONDITIONAL)
    require_floats(like)

    @_precisely
    def found(z: PyTree) -> tuple[Array, Gaussian]:
        f = _Function(log_joint, z, like, precision)
        matrix_at = lambda v: precision.probe(lambda e: f.product(v, e), v)  # noqa: E731

        def newton(v: Array, _: None) -> tuple[Array, None]:
            g = f.slope(v)
            step = precision.solve(precision.factor(matrix_at(v)), g)
            # Where the function is not concave, its gradient climbs too.
            step = jnp.where(jnp.all(jnp.isfinite(step), f.axes, keepdims=True), step, g)
            tried = v[None] + step[None] * (0.5 ** jnp.arange(11.0)).astype(v.dtype).reshape(
                -1, *(1,) * v.ndim
            )
            values = jax.vmap(f.density)(jnp.concatenate([tried, v[None]]))
            best = jnp.argmax(jnp.where(jnp.isnan(values), -jnp.inf, values), 0)
            at = best.reshape(1, *best.shape, *(1,) * (v.ndim - best.ndim))
            return jnp.take_along_axis(jnp.concatenate([tried, v[None]]), at, 0)[0], None

        start = f.join(f.like)
        near = jax.lax.stop_gradient(jax.lax.scan(newton, start, None, length=steps)[0])
        root = precision.factor(jax.lax.stop_gradient(matrix_at(near)))
        g = f.slope(near)
        left = precision.solve(root, g)
        # The mode moves with z as two of Newton's steps do, to second order, and Λ with the mode.
        mode = near + left
        mode = mode + precision.solve(root, f.slope(mode))
        # In posterior standard deviations, or as near as floats of the mode's size can be.
        eps = jnp.finfo(start.dtype).eps
        far, size = (jnp.max(jnp.abs(a), f.axes, initial=0.0) for a in (left, near))
        arrived = (jnp.sum(g * left, f.axes) <= eps**0.5) | (far <= 8 * eps * size)
        matrix = matrix_at(mode)
        root = precision.factor(matrix)
        settled = jax.lax.stop_gradient(arrived) & _holds(f, precision, matrix, root, near)
        return f.integral(near, root, settled, mode)

    return lambda z: found(z)[0], lambda z: found(z)[1]


def _precisely(function: Callable[[PyTree], Any]) -> Callable[[PyTree], Any]:
    """Multiply matrices in full: a GPU's TensorFloat-32 would leave a log-determinant three digits."""

    def run(z: PyTree) -> Any:
        with jax.default_matmul_precision("highest"):
            return function(z)

    return run


class _Function:
    """log p(x, z, ·) as a function of one vector, and its derivatives."""

    def __init__(self, log_joint: Any, z: PyTree, like: PyTree, precision: Precision):
        self.like = like = jax.tree.map(jnp.asarray, like)
        self.batch = _batch(jax.eval_shape(lambda: log_joint(z, like)), like)
        self.join, self.split = ravel_after(like, len(self.batch), precision.kept)
        self.precision = precision
        self.density = lambda v: summed(log_joint(z, self.split(v)))
        self.slope = jax.grad(lambda v: jnp.sum(self.density(v)))
        shape = jax.eval_shape(self.join, like).shape
        self.axes = tuple(range(len(self.batch), len(shape)))
        self.size = math.prod(shape[len(self.batch) :])

    def product(self, v: Array, e: Array) -> Array:
        """Return Λ e at v."""
        return -jax.jvp(self.slope, (v,), (e,))[1]

    def integral(
        self, near: Array, root: Any, valid: Array, mode: Any = None
    ) -> tuple[Array, Gaussian]:
        """Return ∫ exp of the quadratic through `near`, in nats, and the Gaussian that it is made of."""
        value, g = self.density(near), self.slope(near)
        step = self.precision.solve(root, g)
        value = value + 0.5 * jnp.sum(g * step, self.axes)
        value += 0.5 * self.size * LOG_2PI - self.precision.half_log_det(root)
        mean = self.split(near + step if mode is None else mode)
        sure = jnp.where(valid, 1.0, jnp.nan).astype(
            near.dtype
        )  # a factor: derivatives are nan with the value
        mark = lambda a: a * sure.reshape(*sure.shape, *(1,) * (a.ndim - sure.ndim))  # noqa: E731
        mean, root = jax.tree.map(mark, (mean, root))
        return value * sure, Gaussian(mean, root, self.precision)


def summed(log_p: Any) -> Any:
    """Return the log joint, whose factors may come in a dict."""
    return sum(log_p.values()) if isinstance(log_p, dict) else log_p


def _batch(log_p: Any, like: PyTree) -> tuple[int, ...]:
    """Return log_joint's batch shape, with which every leaf of b must begin."""
    values = list(log_p.values()) if isinstance(log_p, dict) else [log_p]
    shapes = {getattr(value, "shape", None) for value in values}
    if len(shapes) != 1 or not all(
        jnp.issubdtype(getattr(value, "dtype", bool), jnp.floating) for value in values
    ):
        raise TypeError(
            f"log_joint(z, b) must return floats [*batch], or a dict of such factors; got {log_p!r}."
        )
    batch: tuple[int, ...] = values[0].shape
    for path, leaf in jax.tree.leaves_with_path(like):
        if leaf.shape[: len(batch)] != batch or (batch and leaf.shape == ()):
            raise ValueError(
                f"log_joint(z, b) has shape {batch}, with which every leaf of b must begin, and like"
                f"{jax.tree_util.keystr(path)} has {leaf.shape}: sum over the data, without keepdims; a batch of b has "
                "its axes first."
            )
    return batch


def require_floats(like: PyTree) -> None:
    """Refuse a b that is no pytree of floats of full precision."""
    leaves = jax.tree.leaves(like)
    if not leaves or not all(
        jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in leaves
    ):
        raise TypeError(f"like must be a pytree of float arrays, shaped as b; got {like!r}.")
    if any(jnp.finfo(jnp.result_type(leaf)).bits < 32 for leaf in leaves):
        raise TypeError(
            "like must be of float32 or float64: Cholesky factors have no half precision."
        )


def _holds(f: _Function, precision: Precision, matrix: Any, root: Any, v: Array) -> Array:
    """Whether Λ is positive definite beyond rounding, and has the zeros that `precision` says.

    Both are seen of D^-½ Λ D^-½, whose diagonal is 1 (one large number would hide the rest), in a
    direction at random: the zeros, those between members among them, by a product with it; the smallest
    eigenvalue by two steps of inverse iteration. That of a singular matrix is rounded to a few eps.
    """
    matrix, root = jax.lax.stop_gradient((matrix, root))
    own = precision.own(matrix)
    scale = jax.lax.rsqrt(jnp.where(own > 0, own, jnp.nan)).reshape(v.shape)
    direction = jnp.cos(1.0 + jnp.arange(v.size, dtype=v.dtype)).reshape(v.shape)
    eps = jnp.finfo(v.dtype).eps

    def size(a: Array) -> Array:
        return jnp.sqrt(jnp.sum(jnp.square(a), f.axes, keepdims=True))

    once = precision.solve(root, direction / size(direction) / scale) / scale
    twice = precision.solve(root, once / size(once) / scale) / scale
    definite = jnp.all(16 * eps * size(twice) < 1, f.axes)
    if precision is dense and not f.batch:
        return jax.lax.stop_gradient(definite)
    e = scale * direction
    seen, said = scale * f.product(v, e), scale * precision.times(matrix, e)
    close = eps**0.5 * jnp.max(jnp.abs(seen), f.axes, keepdims=True, initial=0.0)
    return jax.lax.stop_gradient(definite & jnp.all(jnp.abs(seen - said) <= close, f.axes))


def _quadratic(f: _Function, v: Array) -> None:
    """Refuse a log_joint whose Hessian depends on b, or that reaches it through a jump: |b| has Hessian 0."""
    blame = jaxprs.not_quadratic(f.density, v)
    if blame is None:
        return
    if blame.opaque:
        raise ValueError(
            f"log_joint keeps b in '{blame.primitive}', where its Hessian cannot be followed; write it without."
        )
    raise ValueError(
        f"log_joint is not quadratic in b: '{blame.primitive}' keeps b in its Hessian. Give `like` only those latents "
        "in which it is (scales, rates and whatever multiplies b stay in z), or rewrite it so (a Student-t is a "
        "Gaussian with a Gamma scale in z; for logistic and other terms with quadratic bounds see targets.minorize); "
        "what is integrated already, take together with b in one `like`; for a library's check of arguments, switch it "
        "off (validate_args=False). targets.laplace integrates approximately."
    )
