"""Moments of whatever a key gives, gathered batch by batch: memory does not grow with the number of keys."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from vijax import checks
from vijax.types import PyTree


class Moments(NamedTuple):
    """Moments of a gradient over keys, each field a pytree like the parameters.

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
    """Mean, standard deviation and signal-to-noise ratio of a stochastic gradient, number by
    number.

        mean = Ê[g],   sd = (Ê[(g - mean)²])^½,   snr = |mean| / sd,      g = ∇_params value(key, params)

    To compare estimators at equal cost: an SNR below one over the square root of the steps that you
    average is noise.

    Args:
        key: a typed key, consumed.
        value: (key, params) -> a scalar, such as `lambda key, p: objective(key, ..., num_samples=8).value.mean()`.
        params: a pytree of floats.
        num_keys: how many gradients. An SNR below 1/sqrt(num_keys) is the noise of this function.
        batch_size: how many of them at a time; memory grows with it alone.

    Returns:
        Moments of pytrees like params, in the value's unit (nats) per unit of each parameter. Jittable,
        with `value`, num_keys and batch_size static.

    Raises:
        TypeError: for a raw key, or counts that are not Python ints.
        ValueError: for num_keys < 2, or a value that is not a scalar.

    Example:
        >>> value = lambda key, x: x * (3.0 + jax.random.bernoulli(key))  # g is 3 or 4
        >>> moments = gradient_moments(jax.random.key(0), value, 1.0, num_keys=10_000)
        >>> round(float(moments.mean), 1), round(float(moments.sd), 1)
        (3.5, 0.5)

    Reference: Rainforth et al., Tighter variational bounds are not necessarily better, 2018, arXiv:1802.04537.
    """
    checks.key(key)
    checks.static_count(num_keys, "num_keys", least=2)
    checks.static_count(batch_size, "batch_size")
    shape = jax.eval_shape(value, key, params)
    if not hasattr(shape, "shape") or shape.shape != ():
        raise ValueError(
            f"value(key, params) must be a scalar, got {shape}; an Estimate's is [*batch]: take "
            "the mean."
        )
    sums = gather(
        key,
        lambda key: jax.grad(value, argnums=1)(key, params),
        num_keys,
        min(batch_size, num_keys),
    )
    sd = deviation(sums)
    # 0 / 0, of a gradient that is always 0, has no signal.
    snr = jax.tree.map(lambda m, s: jnp.abs(m) / s, sums.mean, sd)
    return Moments(sums.mean, sd, jax.tree.map(lambda r: jnp.where(jnp.isnan(r), 0.0, r), snr))


def gather(
    key: Key[Array, ""],
    estimate: Callable[[Any], PyTree],
    num_keys: int | Array,
    batch_size: int,
) -> Sums:
    """Return the sums over num_keys, which may be traced, of an estimate; key i does not depend on batch_size."""

    def wide(tree: PyTree) -> PyTree:
        # Sums in half precision would stall.
        return jax.tree.map(lambda a: a.astype(jnp.promote_types(a.dtype, jnp.float32)), tree)

    # Zeros in the shapes of an estimate: the sums of no keys.
    start = jax.eval_shape(lambda key: wide(estimate(key)), key)
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), start)

    def step(carry: tuple[Array, Sums]) -> tuple[Array, Sums]:
        first, sums = carry
        # Key i is fold_in(key, i); of the last batch only those below num_keys count.
        index = first + jnp.arange(batch_size)
        values = wide(jax.vmap(lambda i: estimate(jax.random.fold_in(key, i)))(index))
        return first + batch_size, merge(sums, _sums(values, index < num_keys))

    sums = Sums(jnp.zeros((), jnp.float32), zero, zero, zero, zero)
    return jax.lax.while_loop(lambda carry: carry[0] < num_keys, step, (jnp.asarray(0), sums))[1]


def _sums(values: PyTree, counts: Array) -> Sums:
    """Return the sums of one batch, of the rows that count."""
    n = jnp.sum(counts).astype(jnp.float32)

    # [batch_size] to [batch_size, *1s], to select rows of a leaf.
    def rows(a: Array) -> Array:
        return counts.reshape(-1, *(1,) * (a.ndim - 1))

    def mean(a: Array) -> Array:
        return (jnp.sum(jnp.where(rows(a), a, 0), 0) / n).astype(a.dtype)

    # Deviations are from the batch's own mean, so that powers of them do not cancel.
    center = jax.tree.map(mean, values)

    def power(p: int) -> PyTree:
        def leaf(a: Array, c: Array) -> Array:
            return jnp.sum(jnp.where(rows(a), (a - c[None]) ** p, 0), 0)

        return jax.tree.map(leaf, values, center)

    return Sums(n, center, power(2), power(3), power(4))


def merge(a: Sums, b: Sums) -> Sums:
    """Return the sums of two batches together, by Pébay's update, which cancels nothing."""
    n = a.keys + b.keys
    share, other = a.keys / n, b.keys / n

    def one(sides: tuple[Array, ...]) -> tuple[Array, ...]:
        ma, a2, a3, a4, mb, b2, b3, b4 = sides
        # With d the difference of the means, each sum is both parts' own and terms in d.
        d = mb - ma
        both = share * b.keys
        m3 = a3 + b3 + d**3 * both * (share - other) + 3 * d * (share * b2 - other * a2)
        m4 = a4 + b4 + d**4 * both * (share**2 - share * other + other**2)
        m4 = m4 + 6 * d**2 * (share**2 * b2 + other**2 * a2) + 4 * d * (share * b3 - other * a3)
        return tuple(m.astype(ma.dtype) for m in (ma + d * other, a2 + b2 + d**2 * both, m3, m4))

    # Leaf by leaf: eight numbers of both batches in, the four of their union out.
    leaves = [jax.tree.leaves(tree) for tree in (*a[1:], *b[1:])]
    merged = [one(sides) for sides in zip(*leaves, strict=True)]
    tree = jax.tree.structure(a.mean)
    return Sums(n, *(jax.tree.unflatten(tree, [m[i] for m in merged]) for i in range(4)))


def deviation(sums: Sums) -> PyTree:
    """Return the standard deviation of one estimate."""
    return jax.tree.map(
        lambda m2: jnp.sqrt(m2 / jnp.maximum(sums.keys - 1, 1).astype(m2.dtype)), sums.m2
    )
