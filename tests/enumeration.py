"""Keys that enumerate: the mean of an estimator over all its noise is a finite sum, without an error bar and without luck.

A key is a number below s^k, for s states of one draw's noise. Split among k draws it gives each its digit in base s; split again
among a draw's leaves, it gives each its digit in mixed radix; and a leaf that asks for random bits is told its digit. The leaves
below draw accordingly: a Gaussian at nodes of Gauss-Hermite quadrature, a coin in both its states.
"""

import math
from itertools import combinations_with_replacement

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import define_prng_impl
from jax.scipy.stats import gamma, norm

import vijax as vj
from tests import oracles
from tests.bare import Coin, Die, Gauss


def counter(sizes):
    """Return the kind of key whose draws have leaves of these sizes: a number and its depth (0 for an estimate's, 1 for a draw's)."""
    s = math.prod(sizes)

    def split(key, shape):
        rows = np.arange(shape[0])
        of_draw = key[0] // np.array([s**i for i in rows], np.uint32) % s
        place = np.array([math.prod(sizes[:i]) for i in rows], np.uint32)
        of_leaf = (
            key[0] // place % np.array([sizes[i] if i < len(sizes) else 1 for i in rows], np.uint32)
        )
        number = jnp.where(key[1] == 0, of_draw, of_leaf)
        return jnp.stack([number, jnp.full_like(number, key[1] + 1)], -1)

    def bits(key, width, shape):
        return jnp.broadcast_to(key[0], shape).astype(f"uint{width}")

    return define_prng_impl(
        key_shape=(2,),
        seed=lambda seed: jnp.stack([seed.astype(jnp.uint32), jnp.zeros((), jnp.uint32)]),
        split=split,
        random_bits=bits,
        fold_in=lambda key, _: key,
        name=f"counter{sizes}",
    )


def tuples(s, k, *, symmetric):
    """Return the numbers of all k-tuples of s states, and how often each counts; of a symmetric bound only the sorted ones."""
    if not symmetric:
        return np.arange(s**k, dtype=np.uint32), np.ones(s**k)
    rows = np.array(list(combinations_with_replacement(range(s), k)))
    runs = np.stack([(rows == i).sum(1) for i in range(s)])
    factorials = np.array([math.factorial(i) for i in range(k + 1)], np.float64)
    return (rows * s ** np.arange(k)).sum(1).astype(np.uint32), factorials[k] / factorials[
        runs
    ].prod(0)


# --- leaves: `at` a digit they draw, and count with `log_weight` in any mean over their digits


class _Enumerated:
    # Its draws are made of bits, which show nothing of their range.
    fixed_support = True

    def sample_and_log_prob(self, *, seed, sample_shape=()):
        z = self.at(jax.random.bits(seed, sample_shape))
        return z, self.log_prob(z)


class Normal(_Enumerated, Gauss):
    reparameterized = True

    def __init__(self, loc, log_scale, size):
        super().__init__(loc, log_scale)
        self.nodes, weights = np.polynomial.hermite_e.hermegauss(size)
        self.log_weights = np.log(weights / weights.sum())

    def at(self, digit):
        return self.loc + jnp.exp(self.log_scale) * jnp.asarray(self.nodes)[digit]

    def log_weight(self, digit):
        return jnp.broadcast_to(jnp.asarray(self.log_weights)[digit], self.loc.shape)


class Gamma(_Enumerated):
    """Its quantiles at those of a normal's nodes, with the derivative of the quantile function."""

    reparameterized = True

    def __init__(self, log_a, log_b, size):
        self.log_a, self.log_b = log_a, log_b
        self.nodes, self.volumes = oracles.interval(-6.0, 6.0, size)

    def at(self, digit):
        from tensorflow_probability.substrates import jax as tfp

        return tfp.math.igammainv(
            jnp.exp(self.log_a), norm.cdf(jnp.asarray(self.nodes)[digit])
        ) / jnp.exp(self.log_b)

    def log_weight(self, digit):
        return norm.logpdf(jnp.asarray(self.nodes)[digit]) + jnp.log(self.volumes[0])

    def log_prob(self, z):
        return gamma.logpdf(z, jnp.exp(self.log_a), scale=jnp.exp(-self.log_b))


class Uniform(_Enumerated):
    """A support that moves: [low, low + width], at the nodes of Gauss-Legendre quadrature."""

    reparameterized, fixed_support = True, False

    def __init__(self, low, log_width, size):
        self.low, self.log_width = low, log_width
        nodes, weights = np.polynomial.legendre.leggauss(size)
        self.nodes, self.log_weights = (1 + nodes) / 2, np.log(weights / 2)

    def at(self, digit):
        return self.low + jnp.exp(self.log_width) * jnp.asarray(self.nodes)[digit]

    def log_weight(self, digit):
        return jnp.broadcast_to(jnp.asarray(self.log_weights)[digit], self.low.shape)

    def log_prob(self, z):
        return jnp.broadcast_to(-self.log_width, jnp.shape(z))


class Fixed(_Enumerated):
    """Any density over points that do not move with its parameters, so that its draws carry no derivative."""

    reparameterized = False

    def __init__(self, log_prob, points, volumes):
        self.log_prob, self.points, self.volumes = log_prob, points, volumes

    def at(self, digit):
        return jnp.asarray(self.points)[digit]

    def log_weight(self, digit):
        return jnp.log(jnp.asarray(self.volumes)[digit]) + self.log_prob(self.at(digit))


class Flip(_Enumerated, Coin):
    reparameterized = False

    def at(self, digit):
        return jnp.broadcast_to(digit, self.logit.shape).astype(self.logit.dtype)

    def log_weight(self, digit):
        return self.log_prob(self.at(digit))


class Throw(_Enumerated, Die):
    def at(self, digit):
        return digit.astype(int)

    def log_weight(self, digit):
        return self.log_prob(self.at(digit))


def walk(q, sizes, digit):
    """Return (z, log weight [*batch], log q(z)) at one digit of one draw."""
    q = vj.types.lift(q)
    if not isinstance(q, vj.Joint):
        z = q.at(digit)
        return z, q.log_weight(digit), q.log_prob(z)
    leaves, weight = {}, 0.0
    for name, size in zip(q.names(), sizes, strict=True):
        part = q.conditional(name, leaves)
        leaves[name] = part.at(digit % size)
        weight = weight + part.log_weight(digit % size)
        digit = digit // size
    return q.collect(leaves), weight, q.log_prob(leaves)


# --- means over all noise


def _sum_of(slope, numbers, counts, like, size=1 << 14):
    """Return Σ over numbers of slope(batch of numbers, their counts), batch by batch."""
    pad = -len(numbers) % min(size, len(numbers))
    numbers, counts = np.pad(numbers, (0, pad)), np.pad(counts, (0, pad))
    rows = (
        numbers.reshape(-1, min(size, len(numbers))),
        counts.reshape(-1, min(size, len(numbers))),
    )
    add = lambda total, row: (jax.tree.map(jnp.add, total, slope(*row)), None)
    return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, like), jax.tree.map(jnp.asarray, rows))[0]


class Problem:
    """A q of enumerated leaves with its model: build(params["q"]) and log_p(params["theta"], z)."""

    def __init__(self, params, build, log_p, sizes):
        self.params, self.build, self.log_p, self.sizes = params, build, log_p, sizes
        self.states = math.prod(sizes)
        self.impl = counter(sizes)

    def _seen(self, params):
        """Return log weights and log w, [s, *batch], of all the states of one draw."""
        q = self.build(params["q"])
        z, weight, log_q = jax.vmap(lambda n: walk(q, self.sizes, n))(
            np.arange(self.states, dtype=np.uint32)
        )
        return weight, jax.vmap(lambda z: self.log_p(params["theta"], z))(z) - log_q

    def _digits(self, numbers, k):
        return (
            numbers[None]
            // np.array([self.states**i for i in range(k)], np.uint32)[:, None]
            % self.states
        )

    def truth(self, bound, k, *, symmetric):
        """Return ∇ Σ_tuples Π weights B(log w): plain derivatives of a plain sum, with no estimator in it."""

        def total(params, numbers, counts):
            weight, log_w = self._seen(params)
            digits = self._digits(numbers, k)
            mass = jnp.exp(weight[digits].sum(0))
            return jnp.sum(
                mass * counts.reshape(-1, *(1,) * (mass.ndim - 1)) * bound(log_w[digits])
            )

        slope = lambda *row: jax.grad(total)(self.params, *row)
        return _sum_of(slope, *tuples(self.states, k, symmetric=symmetric), self.params)

    def mean(self, make, k, *, symmetric):
        """Return the mean gradient of the objective make(theta) over all keys."""
        weight = jax.lax.stop_gradient(self._seen(self.params)[0])

        def total(params, numbers, counts):
            def one(number):
                key = jax.random.wrap_key_data(
                    jnp.stack([number, jnp.zeros_like(number)]), impl=self.impl
                )
                log_joint = lambda z: self.log_p(params["theta"], z)
                return make(params["theta"])(
                    key, log_joint, self.build(params["q"]), num_samples=k
                ).value

            mass = jnp.exp(weight[self._digits(numbers, k)].sum(0))
            return jnp.sum(
                mass * counts.reshape(-1, *(1,) * (mass.ndim - 1)) * jax.vmap(one)(numbers)
            )

        slope = lambda *row: jax.grad(total)(self.params, *row)
        return _sum_of(slope, *tuples(self.states, k, symmetric=symmetric), self.params)
