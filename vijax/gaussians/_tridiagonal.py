"""Block-tridiagonal precision matrices of chains, factored and solved along time.

Λ is (diagonal blocks [*batch, T, d, d], those below them [*batch, T - 1, d, d]), and so is L.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array

from vijax.gaussians._precision import (
    Precision,
    diagonal_of,
    matvec,
    symmetric,
    transposed_matvec,
)
from vijax.trees import own_direction, scan

# The diagonal blocks, and those below them.
Blocks = tuple[Array, Array]


def _probe(product: Callable[[Array], Array], v: Array) -> Blocks:
    """Color time in three: blocks of one color share no neighbor; one product shows them all."""
    steps, d = v.shape[-2:]
    time = jnp.arange(steps)
    colors = (time[None] % 3 == jnp.arange(3)[:, None]).astype(v.dtype)
    # [3, d, T, d]: unit vector i in every block of one color.
    directions = colors[:, None, :, None] * jnp.eye(d, dtype=v.dtype)[None, :, None, :]
    products = jax.vmap(
        jax.vmap(lambda e: product(own_direction(jnp.broadcast_to(e, v.shape), v)))
    )(directions)
    columns = jnp.moveaxis(products, 1, -1)  # [3, d, *batch, T, d] to [3, *batch, T, d, d]
    by_time = jnp.moveaxis(columns, (0, -3), (0, 1))
    color = time % 3
    own = by_time[color, time]  # [T, *batch, d, d]
    below = by_time[color[:-1], time[1:]]
    return symmetric(jnp.moveaxis(own, 0, -3)), jnp.moveaxis(below, 0, -3)


def _times(a: Blocks, v: Array) -> Array:
    # Block t of Λ v: own v_t, what lies below it from v_{t-1}, and its transpose from v_{t+1}.
    own, below = a
    down, up = matvec(below, v[..., :-1, :]), transposed_matvec(below, v[..., 1:, :])
    none = jnp.zeros_like(v[..., :1, :])
    return matvec(own, v) + jnp.concatenate([none, down], -2) + jnp.concatenate([up, none], -2)


@partial(jnp.vectorize, signature="(t,d,d),(s,d,d)->(t,d,d),(s,d,d)")
def _factor(own: Array, below: Array) -> Blocks:
    def step(root: Array, blocks: Blocks) -> tuple[Array, Blocks]:
        a, c = blocks
        # Block row t of L Lᵀ = Λ: L_{t,t-1} = Λ_{t,t-1} L_{t-1}⁻ᵀ, L_t L_tᵀ = Λ_{t,t} - L_{t,t-1} L_{t,t-1}ᵀ.
        off = solve_triangular(root, c.T, lower=True).T
        root = jnp.linalg.cholesky(a - off @ off.T)
        return root, (root, off)

    # The first block has none before it: a block of zeros below any root.
    first = jnp.eye(own.shape[-1], dtype=own.dtype)
    below = jnp.concatenate([jnp.zeros_like(own[:1]), below])
    _, (roots, offs) = scan(step, first, (own, below))
    return roots, offs[1:]


@partial(jnp.vectorize, signature="(t,d,d),(s,d,d),(t,d)->(t,d)")
def _forward(roots: Array, offs: Array, v: Array) -> Array:
    def step(y: Array, blocks: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        root, off, v = blocks
        y = solve_triangular(root, v - off @ y, lower=True)
        return y, y

    # L y = v, from the first block on.
    offs = jnp.concatenate([jnp.zeros_like(roots[:1]), offs])
    return scan(step, jnp.zeros_like(v[0]), (roots, offs, v))[1]


@partial(jnp.vectorize, signature="(t,d,d),(s,d,d),(t,d)->(t,d)")
def _backward(roots: Array, offs: Array, v: Array) -> Array:
    def step(x: Array, blocks: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        root, off, v = blocks
        x = solve_triangular(root, v - off.T @ x, lower=True, trans=1)
        return x, x

    # Lᵀ x = v, from the last block back.
    offs = jnp.concatenate([offs, jnp.zeros_like(roots[:1])])
    return scan(step, jnp.zeros_like(v[0]), (roots, offs, v), reverse=True)[1]


def _pull(root: Blocks, v: Array) -> Array:
    # Block t of Lᵀ v reads v_t and v_{t+1}.
    roots, offs = root
    up = transposed_matvec(offs, v[..., 1:, :])
    return transposed_matvec(roots, v) + jnp.concatenate([up, jnp.zeros_like(v[..., :1, :])], -2)


tridiagonal = Precision(
    kept=1,
    probe=_probe,
    times=_times,
    own=lambda a: diagonal_of(a[0]),
    factor=lambda a: _factor(*a),
    half_log_det=lambda root: jnp.sum(jnp.log(diagonal_of(root[0])), (-2, -1)),
    pull=_pull,
    push=lambda root, v: _backward(*root, v),
    solve=lambda root, v: _backward(*root, _forward(*root, v)),
)
"""A chain: leaves [*batch, T, ...] whose blocks touch their neighbors in time; T d³ operations."""
