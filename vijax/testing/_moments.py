"""Moments of whatever a key gives, gathered batch by batch: memory does not grow with the number of keys."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from vijax import checks
from vijax.types import PyTree


class Moments(NamedTuple):
    """What many gradients look like, each field a pytree like the parameters.

    Fields:
        mean: the mean gradient; its standard error is sd / sqrt(num_keys).
        sd: the standard deviation of one gradient.
        snr: abs(mean) / sd, the signal-to-noise ratio of one gradient; 0 / 0 is 0.
    """

    mean: PyTree
    sd: PyTree
    snr: PyTree


class Sums(NamedTuple):
    """A count, and pytrees of the mean and of the sums of 2nd, 3rd and 4th powers of deviations from it."""

    keys: Array
    mean: PyTree
    m2: PyTree
    m3: PyTree
    m4: PyTree


def gradient_moments(
    key: Key[Array, ""],
    value: Callable[[Any, PyTree], Array],
    params: PyTree,
    *,
    num_keys: int,
    batch_size: int = 1000,
) -> Moments:
    """Mean, standard deviation and signal-to-noise ratio of a stochastic gradient, number by number.

        mean = Ê[g],   sd = (Ê[(g - mean)²])^½,   snr = |mean| / sd,      g = ∇_params value(key, params)

    When estimators are to be compared at equal cost, or to see whether a gradient still says anything: an SNR of one
    over the square root of the steps you average is noise. It is itself estimated: below 1/sqrt(num_keys) it
    is the noise of this function. Jittable, with `value`, num_keys and batch_size static.

    Args:
        key: a typed key, consumed.
        value: (key, params) -> a scalar, such as `lambda key, p: objective(key, ..., num_samples=8).value.mean()`.
        params: a pytree of floats.
        num_keys: how many gradients.
        batch_size: how many of them at a time; memory grows with it alone.

    Returns:
        Moments of pytrees like params, in the value's unit (nats) per unit of each parameter.

    Raises:
        TypeError: for a raw key, or counts that are not Python ints.
        ValueError: for num_keys < 2, or a value that is not a scalar.

    Reference: Rainforth et al., Tighter variational bounds are not necessarily better, 2018, arXiv:1802.04537.
    """
    checks.key(key)
    checks.static_count(num_keys, "num_keys", least=2)
    checks.static_count(batch_size, "batch_size")
    shape = jax.eval_shape(value, key, params)
    if not hasattr(shape, "shape") or shape.shape != ():
        raise ValueError(
            f"value(key, params) must be a scalar, got {shape}; an Estimate's is [*batch]: take the mean."
        )
    sums = gather(
        key,
        lambda key: jax.grad(value, argnums=1)(key, params),
        num_keys,
        min(batch_size, num_keys),
    )
    sd = deviation(sums)
    snr = jax.tree.map(lambda m, s: jnp.abs(m) / s, sums.mean, sd)
    return Moments(sums.mean, sd, jax.tree.map(lambda r: jnp.where(jnp.isnan(r), 0.0, r), snr))


def gather(key: Any, estimate: Callable[[Any], PyTree], num_keys: Any, batch_size: int) -> Sums:
    """Return the sums over num_keys, which may be traced, of an estimate; key i does not depend on batch_size."""

    def wide(tree: PyTree) -> PyTree:
        # Sums in half precision would stall.
        return jax.tree.map(lambda a: a.astype(jnp.promote_types(a.dtype, jnp.float32)), tree)

    start = jax.eval_shape(lambda key: wide(estimate(key)), key)
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), start)

    def step(carry: tuple[Array, Sums]) -> tuple[Array, Sums]:
        first, sums = carry
        index = first + jnp.arange(batch_size)
        found = wide(jax.vmap(lambda i: estimate(jax.random.fold_in(key, i)))(index))
        return first + batch_size, merge(sums, _sums(found, index < num_keys))

    sums = Sums(jnp.zeros((), jnp.float32), zero, zero, zero, zero)
    return jax.lax.while_loop(lambda carry: carry[0] < num_keys, step, (jnp.asarray(0), sums))[1]


def _sums(found: PyTree, counts: Array) -> Sums:
    """Return the sums of one batch, of which only the rows that count are looked at."""
    n = jnp.sum(counts).astype(jnp.float32)

    def rows(a: Array) -> Array:
        return counts.reshape(-1, *(1,) * (a.ndim - 1))

    def mean(a: Array) -> Array:
        return (jnp.sum(jnp.where(rows(a), a, 0), 0) / n).astype(a.dtype)

    center = jax.tree.map(mean, found)

    def power(p: int) -> PyTree:
        def leaf(a: Array, c: Array) -> Array:
            return jnp.sum(jnp.where(rows(a), (a - c[None]) ** p, 0), 0)

        return jax.tree.map(leaf, found, center)

    return Sums(n, center, power(2), power(3), power(4))


def merge(a: Sums, b: Sums) -> Sums:
    """Return the sums of two batches together, by Pébay's update, which cancels nothing."""
    n = a.keys + b.keys
    share, other = a.keys / n, b.keys / n

    def one(sides: tuple[Array, ...]) -> tuple[Array, ...]:
        ma, a2, a3, a4, mb, b2, b3, b4 = sides
        d = mb - ma
        both = share * b.keys
        m3 = a3 + b3 + d**3 * both * (share - other) + 3 * d * (share * b2 - other * a2)
        m4 = a4 + b4 + d**4 * both * (share**2 - share * other + other**2)
        m4 = m4 + 6 * d**2 * (share**2 * b2 + other**2 * a2) + 4 * d * (share * b3 - other * a3)
        return tuple(m.astype(ma.dtype) for m in (ma + d * other, a2 + b2 + d**2 * both, m3, m4))

    leaves = [jax.tree.leaves(tree) for tree in (*a[1:], *b[1:])]
    merged = [one(found) for found in zip(*leaves, strict=True)]
    tree = jax.tree.structure(a.mean)
    return Sums(n, *(jax.tree.unflatten(tree, [m[i] for m in merged]) for i in range(4)))


def deviation(sums: Sums) -> PyTree:
    """Return the standard deviation of one estimate."""
    return jax.tree.map(
        lambda m2: jnp.sqrt(m2 / jnp.maximum(sums.keys - 1, 1).astype(m2.dtype)), sums.m2
    )
