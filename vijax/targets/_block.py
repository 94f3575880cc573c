"""log p(x, z, ·) as a function of one vector for each member of the batch: derivatives, mode, and whether it is one."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vijax import calls
from vijax.gaussians import Gaussian, Precision, dense
from vijax.gaussians.affine import LOG_2PI
from vijax.gaussians.conditional import ravel_after
from vijax.trees import own_point, scan
from vijax.types import PyTree


def precisely(function: Callable[[PyTree], Any]) -> Callable[[PyTree], Any]:
    """Multiply matrices in full: a GPU's TensorFloat-32 would leave a log-determinant three digits."""

    def run(z: PyTree) -> Any:
        with jax.default_matmul_precision("highest"):
            return function(z)

    return run


class Block:
    """log p(x, z, ·) as a function of one vector, and its derivatives."""

    def __init__(
        self, log_joint: Callable[..., PyTree], z: PyTree, like: PyTree, precision: Precision
    ):
        self.like = like = jax.tree.map(jnp.asarray, like)
        self.batch = _batch(jax.eval_shape(lambda: log_joint(z, like)), like)
        self.join, self.split = ravel_after(like, len(self.batch), precision.kept)
        self.precision = precision
        self.density = lambda v: summed(log_joint(z, self.split(v)))
        self.slope = jax.grad(lambda v: jnp.sum(self.density(v)))
        # A vector is [*batch, d], or [*batch, T, d] of a chain; `axes` are those of one member.
        shape = jax.eval_shape(self.join, like).shape
        self.axes = tuple(range(len(self.batch), len(shape)))
        self.size = math.prod(shape[len(self.batch) :])

    def at(self, v: Array) -> Array:
        """Return a point whose derivatives are each device's own."""
        return own_point(self.density, v)

    def product(self, v: Array, e: Array) -> Array:
        """Return Λ e at v."""
        return -jax.jvp(self.slope, (v,), (e,))[1]

    def matrix(self, v: Array) -> Any:
        """Return Λ at v."""
        return self.precision.probe(lambda e: self.product(v, e), v)

    def integral(
        self, near: Array, root: PyTree, valid: Array, mode: Array | None = None
    ) -> tuple[Array, Gaussian]:
        """Return ∫ exp of the quadratic through `near`, in nats, and the Gaussian that it is made of."""
        # Marked before it is used, so that these solves wait for those that decided whether it is valid:
        # jax 0.10 may wait for ever where two cores take two batches of solves at once.
        near = self.marked(near, valid)
        # The quadratic's maximum, ½ gᵀ Λ⁻¹ g above `near`, and its Gaussian integral
        value, g = self.density(near), self.slope(near)
        step = self.precision.solve(root, g)
        value = value + 0.5 * jnp.sum(g * step, self.axes)
        value += 0.5 * self.size * LOG_2PI - self.precision.half_log_det(root)
        mean = self.split(near + step if mode is None else mode)
        mean = jax.tree.map(lambda a: self.marked(a, valid), mean)
        # By its step, so that whoever draws from the Gaussian solves after the mean is there.
        solved = valid & jnp.all(jnp.isfinite(step), self.axes)
        root = jax.tree.map(lambda a: self.marked(a, solved), root)
        return self.marked(value, valid), Gaussian(mean, root, self.precision)

    def marked(self, a: Array, valid: Array) -> Array:
        """Return an array, nan with its derivatives for members of the batch that are not valid."""
        # A product, so that derivatives are nan too
        sure = jnp.where(valid, 1.0, jnp.nan).astype(a.dtype)
        return a * sure.reshape(*sure.shape, *(1,) * (a.ndim - sure.ndim))


def summed(log_p: PyTree) -> Any:
    """Return the log joint, whose factors may come in a dict."""
    return sum(log_p.values()) if isinstance(log_p, dict) else log_p


def _batch(log_p: PyTree, like: PyTree) -> tuple[int, ...]:
    """Return log_joint's batch shape, with which every leaf of b must begin."""
    values = list(log_p.values()) if isinstance(log_p, dict) else [log_p]
    shapes = {getattr(value, "shape", None) for value in values}
    if len(shapes) != 1 or not all(
        jnp.issubdtype(getattr(value, "dtype", bool), jnp.floating) for value in values
    ):
        raise TypeError(
            "log_joint(z, b) must return floats [*batch], or a dict of such factors; got "
            f"{log_p!r}."
        )
    batch: tuple[int, ...] = values[0].shape
    for path, leaf in jax.tree.leaves_with_path(like):
        if leaf.shape[: len(batch)] != batch or (batch and leaf.shape == ()):
            raise ValueError(
                f"log_joint(z, b) has shape {batch}, with which every leaf of b must begin, and "
                f"like{jax.tree_util.keystr(path)} has {leaf.shape}: sum over the data, without "
                "keepdims; a batch of b has its axes first."
            )
    return batch


def require_floats(like: PyTree) -> None:
    """Refuse a b that is no pytree of floats of full precision."""
    calls.latents(like)
    leaves = jax.tree.leaves(like)
    if not leaves or not all(
        jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in leaves
    ):
        raise TypeError(f"like must be a pytree of float arrays, shaped as b; got {like!r}.")
    if any(jnp.finfo(jnp.result_type(leaf)).bits < 32 for leaf in leaves):
        raise TypeError(
            "like must be of float32 or float64: Cholesky factors have no half precision."
        )


def holds(f: Block, precision: Precision, matrix: PyTree, root: PyTree, v: Array) -> Array:
    """Whether Λ is positive definite beyond rounding, and has the zeros that `precision` says.

    Both are tested on D^-½ Λ D^-½, whose diagonal is 1 (one large number would hide the rest), in a
    direction at random: the zeros, those between members among them, by a product with it; the smallest
    eigenvalue by two steps of inverse iteration. That of a singular matrix is rounded to a few eps.
    """
    matrix, root, v = jax.lax.stop_gradient((matrix, root, v))
    own = precision.own(matrix)
    # D^-½; a diagonal that is not positive makes everything nan, which compares as false.
    scale = jax.lax.rsqrt(jnp.where(own > 0, own, jnp.nan)).reshape(v.shape)
    # A fixed direction with no element near 0 in common with the structure of Λ.
    direction = jnp.cos(1.0 + jnp.arange(v.size, dtype=v.dtype)).reshape(v.shape)
    eps = jnp.finfo(v.dtype).eps

    def size(a: Array) -> Array:
        return jnp.sqrt(jnp.sum(jnp.square(a), f.axes, keepdims=True))

    # Two steps of inverse iteration: the last one grows by 1 / the smallest eigenvalue.
    once = precision.solve(root, direction / size(direction) / scale) / scale
    twice = precision.solve(root, once / size(once) / scale) / scale
    definite = jnp.all(16 * eps * size(twice) < 1, f.axes)
    # A dense matrix without a batch has no zeros to verify.
    if precision is dense and not f.batch:
        return jax.lax.stop_gradient(definite)
    e = scale * direction
    # Λ e by a Hessian-vector product, and by the matrix with the zeros that `precision` gives it
    exact, structured = scale * f.product(v, e), scale * precision.times(matrix, e)
    close = eps**0.5 * jnp.max(jnp.abs(exact), f.axes, keepdims=True, initial=0.0)
    fits = jnp.all(jnp.abs(exact - structured) <= close, f.axes)
    return jax.lax.stop_gradient(definite & fits)


def climbed(f: Block, steps: int) -> Array:
    """Return the b near a mode that Newton's steps from `like` lead to, without derivatives."""
    start, precision = f.at(f.join(f.like)), f.precision

    def newton(v: Array, _: None) -> tuple[Array, None]:
        g = f.slope(v)
        step = precision.solve(precision.factor(f.matrix(v)), g)
        # Where the function is not concave, its gradient climbs too.
        step = jnp.where(jnp.all(jnp.isfinite(step), f.axes, keepdims=True), step, g)
        # Backtracking in parallel: the step halved 0 to 10 times, and no step, [12, *v.shape].
        shares = (0.5 ** jnp.arange(11.0)).astype(v.dtype).reshape(-1, *(1,) * v.ndim)
        tried = jnp.concatenate([v[None] + step[None] * shares, v[None]])
        values = jax.vmap(f.density)(tried)
        # Each member of the batch takes its own best share, [*batch].
        best = jnp.argmax(jnp.where(jnp.isnan(values), -jnp.inf, values), 0)
        at = best.reshape(1, *best.shape, *(1,) * (v.ndim - best.ndim))
        return jnp.take_along_axis(tried, at, 0)[0], None

    return jax.lax.stop_gradient(scan(newton, start, None, length=steps)[0])
