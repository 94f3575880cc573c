"""Gaussians by their precision: dense, diagonal or block-tridiagonal; the posteriors of linear models."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from vijax.types import PyTree

Vector = Float[Array, "..."]
"""[*batch, d], or [*batch, T, d] where a chain of T blocks is kept."""


class Precision(NamedTuple):
    """How a precision matrix Λ = L Lᵀ is found and used.

    Fields:
        kept: how many axes of each leaf after the batch stay axes of a vector; the rest is flattened.
        probe: (v -> Λ v, a vector for its shape) -> Λ, as kept.
        times: (Λ, v) -> Λ v.
        own: Λ -> its diagonal, a vector.
        factor: Λ -> L, as kept; nan where Λ is not positive definite.
        half_log_det: L -> ½ log |Λ|, [*batch].
        pull: (L, v) -> Lᵀ v.
        push: (L, v) -> L⁻ᵀ v.
        solve: (L, v) -> Λ⁻¹ v.
    """

    kept: int
    probe: Callable[[Callable[[Array], Array], Array], Any]
    times: Callable[[Any, Array], Array]
    own: Callable[[Any], Array]
    factor: Callable[[Any], Any]
    half_log_det: Callable[[Any], Array]
    pull: Callable[[Any, Array], Array]
    push: Callable[[Any, Array], Array]
    solve: Callable[[Any, Array], Array]


def _matvec(a: Array, v: Array) -> Array:
    return jnp.einsum("...ij,...j->...i", a, v)


def _transposed(a: Array, v: Array) -> Array:
    return jnp.einsum("...ji,...j->...i", a, v)


def _logs(root: Array) -> Array:
    return jnp.log(jnp.diagonal(root, axis1=-2, axis2=-1))


def _along(v: Array, direction: Array) -> Array:
    """Return a direction [d] or [T, d] for every member of v's batch."""
    return jnp.broadcast_to(direction, v.shape)


# --- dense


def _dense_probe(product: Callable[[Array], Array], v: Array) -> Array:
    columns = jax.vmap(lambda e: product(_along(v, e)))(jnp.eye(v.shape[-1], dtype=v.dtype))
    found = jnp.moveaxis(columns, 0, -1)
    return 0.5 * (found + jnp.swapaxes(found, -1, -2))


@partial(jnp.vectorize, signature="(d,d),(d)->(d)")
def _forward(root: Array, v: Array) -> Array:
    return solve_triangular(root, v, lower=True)


@partial(jnp.vectorize, signature="(d,d),(d)->(d)")
def _backward(root: Array, v: Array) -> Array:
    return solve_triangular(root, v, lower=True, trans=1)


dense = Precision(
    kept=0,
    probe=_dense_probe,
    times=_matvec,
    own=lambda a: jnp.diagonal(a, axis1=-2, axis2=-1),
    factor=jnp.linalg.cholesky,
    half_log_det=lambda root: jnp.sum(_logs(root), -1),
    pull=_transposed,
    push=_backward,
    solve=lambda root, v: _backward(root, _forward(root, v)),
)
"""Any positive definite Λ: d² numbers, d³ operations."""


# --- diagonal

diagonal = Precision(
    kept=0,
    probe=lambda product, v: product(jnp.ones_like(v)),
    times=lambda a, v: a * v,
    own=lambda a: a,
    factor=lambda a: jnp.sqrt(jnp.where(a > 0, a, jnp.nan)),
    half_log_det=lambda root: jnp.sum(jnp.log(root), -1),
    pull=lambda root, v: root * v,
    push=lambda root, v: v / root,
    solve=lambda root, v: v / root**2,
)
"""Numbers that are independent given the rest: d numbers and operations."""


# --- block-tridiagonal: (diagonal blocks [*batch, T, d, d], those below them [*batch, T - 1, d, d])


def _chain_probe(product: Callable[[Array], Array], v: Array) -> tuple[Array, Array]:
    """Three colours of time suffice: blocks of one colour touch no neighbour in common."""
    steps, d = v.shape[-2:]
    time = jnp.arange(steps)
    colours = (time[None] % 3 == jnp.arange(3)[:, None]).astype(v.dtype)
    directions = colours[:, None, :, None] * jnp.eye(d, dtype=v.dtype)[None, :, None, :]
    seen = jax.vmap(jax.vmap(lambda e: product(_along(v, e))))(directions)  # [3, d, *batch, T, d]
    columns = jnp.moveaxis(seen, 1, -1)  # [3, *batch, T, d, d]
    mine = time % 3  # which colour shows a block's own column
    own = jnp.moveaxis(columns, (0, -3), (0, 1))[mine, time]  # [T, *batch, d, d]
    below = jnp.moveaxis(columns, (0, -3), (0, 1))[mine[:-1], time[1:]]
    own, below = jnp.moveaxis(own, 0, -3), jnp.moveaxis(below, 0, -3)
    return 0.5 * (own + jnp.swapaxes(own, -1, -2)), below


def _chain_times(a: tuple[Array, Array], v: Array) -> Array:
    own, below = a
    down, up = _matvec(below, v[..., :-1, :]), _transposed(below, v[..., 1:, :])
    none = jnp.zeros_like(v[..., :1, :])
    return _matvec(own, v) + jnp.concatenate([none, down], -2) + jnp.concatenate([up, none], -2)


@partial(jnp.vectorize, signature="(t,d,d),(s,d,d)->(t,d,d),(s,d,d)")
def _chain_factor(own: Array, below: Array) -> tuple[Array, Array]:
    def step(root: Array, blocks: tuple[Array, Array]) -> Any:
        a, c = blocks
        off = solve_triangular(root, c.T, lower=True).T
        root = jnp.linalg.cholesky(a - off @ off.T)
        return root, (root, off)

    first = jnp.eye(own.shape[-1], dtype=own.dtype)
    _, (roots, offs) = jax.lax.scan(step, first, (own, jnp.concatenate([jnp.zeros_like(own[:1]), below])))
    return roots, offs[1:]


@partial(jnp.vectorize, signature="(t,d,d),(s,d,d),(t,d)->(t,d)")
def _chain_forward(roots: Array, offs: Array, v: Array) -> Array:
    def step(y: Array, blocks: Any) -> Any:
        root, off, v = blocks
        y = solve_triangular(root, v - off @ y, lower=True)
        return y, y

    offs = jnp.concatenate([jnp.zeros_like(roots[:1]), offs])
    return jax.lax.scan(step, jnp.zeros_like(v[0]), (roots, offs, v))[1]


@partial(jnp.vectorize, signature="(t,d,d),(s,d,d),(t,d)->(t,d)")
def _chain_backward(roots: Array, offs: Array, v: Array) -> Array:
    def step(x: Array, blocks: Any) -> Any:
        root, off, v = blocks
        x = solve_triangular(root, v - off.T @ x, lower=True, trans=1)
        return x, x

    offs = jnp.concatenate([offs, jnp.zeros_like(roots[:1])])
    return jax.lax.scan(step, jnp.zeros_like(v[0]), (roots, offs, v), reverse=True)[1]


def _chain_pull(root: tuple[Array, Array], v: Array) -> Array:
    roots, offs = root
    up = _transposed(offs, v[..., 1:, :])
    return _transposed(roots, v) + jnp.concatenate([up, jnp.zeros_like(v[..., :1, :])], -2)


tridiagonal = Precision(
    kept=1,
    probe=_chain_probe,
    times=_chain_times,
    own=lambda a: jnp.diagonal(a[0], axis1=-2, axis2=-1),
    factor=lambda a: _chain_factor(*a),
    half_log_det=lambda root: jnp.sum(_logs(root[0]), (-2, -1)),
    pull=_chain_pull,
    push=lambda root, v: _chain_backward(*root, v),
    solve=lambda root, v: _chain_backward(*root, _chain_forward(*root, v)),
)
"""A chain: leaves [*batch, T, ...] whose blocks touch their neighbours in time alone; T d³ operations."""


# --- the distribution


def cut(like: PyTree, batch: int, kept: int) -> tuple[Callable[[PyTree], Array], Callable[[Array], PyTree]]:
    """Return (join: a pytree like `like` -> one vector, split: its inverse), for leaves with `batch` leading axes."""
    leaves, tree = jax.tree.flatten(like)
    lead = batch + kept
    shapes = [tuple(jnp.shape(leaf)) for leaf in leaves]
    sizes = [math.prod(shape[lead:]) for shape in shapes]

    def join(z: PyTree) -> Array:
        return jnp.concatenate(
            [jnp.reshape(leaf, (*leaf.shape[:lead], math.prod(leaf.shape[lead:]))) for leaf in jax.tree.leaves(z)], -1
        )

    def split(v: Array) -> PyTree:
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        parts = [v[..., end - size : end] for end, size in zip(ends, sizes, strict=True)]
        return jax.tree.unflatten(
            tree, [jnp.reshape(part, (*v.shape[:-1], *shape[lead:])) for part, shape in zip(parts, shapes, strict=True)]
        )

    return join, split


class Gaussian:
    """N(mean, Λ⁻¹) over a pytree, by the root of its precision; what collapse_gaussian's conditional is.

        b = mean + L⁻ᵀ ε,     log N(b) = ½ log |Λ| - ½ ‖Lᵀ (b - mean)‖² - d/2 log 2π,     Λ = L Lᵀ

    Args:
        mean: a pytree of floats, leaves [*batch, ...].
        root: L, as `precision` keeps it.
        precision: `dense`, `diagonal` or `tridiagonal`.
        batch: rank of [*batch].
    """

    def __init__(self, mean: PyTree, root: Any, precision: Precision, batch: int):
        self.mean, self.root, self.precision, self.batch = mean, root, precision, batch

    def log_prob(self, z: PyTree, /) -> Array:
        """Return log N(z; mean, Λ⁻¹), [*batch] in nats."""
        join, _ = cut(self.mean, self.batch, self.precision.kept)
        off = self.precision.pull(self.root, join(z) - join(self.mean))
        axes = tuple(range(self.batch, off.ndim))
        size = math.prod(off.shape[self.batch :])
        log_det = self.precision.half_log_det(self.root)
        return log_det - 0.5 * jnp.sum(off**2, axes) - 0.5 * size * jnp.log(2 * jnp.pi).astype(off.dtype)

    def sample_and_log_prob(self, *, seed: Any, sample_shape: Any = ()) -> tuple[PyTree, Array]:
        """Draw z and return it with its log-density."""
        if sample_shape:
            draw: Callable[[Any], Any] = lambda key: self.sample_and_log_prob(seed=key)  # noqa: E731
            for _ in tuple(sample_shape):
                draw = jax.vmap(draw)
            return draw(jax.random.split(seed, tuple(sample_shape)))
        join, split = cut(self.mean, self.batch, self.precision.kept)
        mean = join(self.mean)
        noise = jax.random.normal(seed, mean.shape, mean.dtype)
        z = split(mean + self.precision.push(self.root, noise))
        return z, self.log_prob(z)
