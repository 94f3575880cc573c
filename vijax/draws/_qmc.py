"""Randomized quasi-Monte Carlo: draws that fill the space evenly, each of them still from q."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from vijax.draws._transport import dimensions, transport
from vijax.types import Distribution, Draw, PyTree

# Row i of the seeds holds the bits of i, as many as the last row needs: they pick out of the generating matrix, and
# their number says how much of it there must be. The key is every row's: one scramble for the whole set of points.


def _seeds(key: Key[Array, ""], num_samples: int) -> PyTree:
    places = np.arange(max(1, (num_samples - 1).bit_length()))
    bits = (jnp.arange(num_samples)[:, None] >> places[None]) & 1
    return jnp.repeat(key[None], num_samples), bits.astype(jnp.uint32)


def _sample(seed: PyTree, q: Distribution) -> tuple[PyTree, Array]:
    key, bits = seed
    # Point i is the sum over GF(2) of the direction numbers that the bits of i name.
    columns = _generators(bits.shape[0], dimensions(q, "sobol"))
    point = jax.lax.reduce(bits[:, None] * columns, np.uint32(0), jax.lax.bitwise_xor, (0,))
    z = transport(q, unit(_scramble(key, point)))
    return z, q.log_prob(z)


@lru_cache(maxsize=64)
def _generators(rows: int, dimensions: int) -> np.ndarray:
    """Return Sobol's direction numbers [rows, dimensions], 32 bits each, read off the points that
    SciPy makes of them.

    Its point n is the sum of those that the Gray code of n names; that of 2ʲ names j and j - 1.
    """
    from scipy.stats import qmc  # JAX itself depends on SciPy

    if dimensions > qmc.Sobol.MAXDIM:
        raise ValueError(
            f"Sobol's points have at most {qmc.Sobol.MAXDIM} dimensions, q.uniforms asks for "
            f"{dimensions}."
        )
    engine = qmc.Sobol(dimensions, scramble=False, bits=32)
    numbers = np.zeros((rows + 1, dimensions), np.uint32)
    # Row j + 1 is v_j, since point 2ʲ = v_j ⊕ v_{j-1}.
    for j in range(rows):
        engine.fast_forward(2**j - engine.num_generated)
        numbers[j + 1] = numbers[j] ^ (engine.random(1)[0] * 2.0**32).astype(np.uint32)
    return numbers[1:]


def _scramble(key: Key[Array, ""], point: Array) -> Array:
    """Multiply the digits of each coordinate by a random lower-triangular Toeplitz matrix, and add
    a random shift.

    Two points that share their first r digits still do, differ in the next, and are independent below it: pair by pair
    this is Owen's scrambling, so that means and variances are his, for two random words a coordinate.
    """
    diagonals, shift = jax.random.bits(key, (2, *point.shape), jnp.uint32)
    # A leading 1 makes the matrix invertible; place 31 is the most significant digit.
    diagonals |= jnp.uint32(1 << 31)
    places = jnp.arange(32, dtype=jnp.uint32)[:, None]
    # [32, d]: digit i of the point moves the word of diagonals i places down, the matrix's column.
    digits = (point[None] >> (31 - places)) & 1
    return shift ^ jax.lax.reduce(
        digits * (diagonals[None] >> places), np.uint32(0), jax.lax.bitwise_xor, (0,)
    )


def unit(word: Array) -> Array:
    """Return the middle of the cell of [0, 1) that the leading bits name: as many as a float there can hold."""
    dtype = jnp.zeros(()).dtype
    # A float of 24 bits holds (2²³ - ½) / 2²³, so that neither 0 nor 1 is returned.
    bits = 32 if dtype == jnp.float64 else 23
    return ((word >> (32 - bits)).astype(dtype) + 0.5) * 2.0**-bits


sobol = Draw(seeds=_seeds, sample=_sample, independent=False)
"""Scrambled Sobol points, zᵢ = T(uᵢ): each uᵢ ~ U(0, 1)ᵈ, and the first 2ᵐ of them a digital net.

    1/K Σᵢ f(T(uᵢ)),   uᵢ = L Cᵢ ⊕ shift

For integrals over tens of latents at most, 2ᵐ points at a time: the variance is O(K⁻³ logᵈ⁻¹ K) for
smooth f, where independent draws have O(K⁻¹). Each point alone is uniform, so what is linear in the
draws is unbiased, and iwae of coupled draws is another lower bound. Pair it with
`gradients.reparam`, or with `dreg(elbo)`; dreg of other bounds, score and vimco refuse it. Needs
q.uniforms and q.transport, as `antithetic` does. What it saves is in the guide to choosing.

Reference: Owen, Randomly permuted (t,m,s)-nets and (t,s)-sequences, 1995; Tezuka, Faure,
I-binomial scrambling of digital nets and sequences, 2003; Buchholz, Wenzel, Mandt, Quasi-Monte
Carlo variational inference, 2018, arXiv:1807.01604.
"""
