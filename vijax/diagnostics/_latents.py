"""Per-latent k-hat: that of each one's marginal density ratio, from the joint log-weights alone."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vijax.diagnostics._chains import normal_scores
from vijax.diagnostics._moments import agree
from vijax.diagnostics._weights import Tail, fit_tail, unresolved
from vijax.types import PyTree

FEW = 10  # values: a polynomial through so few says nothing of what lies beyond them
_FAR = 5  # times the spread above the median, below which log-weights are cut
SMALL = 225  # draws, of whose tail a k-hat above .7 may be chance


def marginal_khat(
    z: PyTree,
    log_w: Float[Array, "k *batch"],
    *,
    resolution: Float[Array, "*batch"] | None = None,
) -> PyTree:
    """Per-latent k-hat: which marginals q gets wrong, where `khat` is high.

        rᵢ(zᵢ) = p(zᵢ | x) / q(zᵢ),   log rᵢ ≈ a sᵢ² + b sᵢ + c,   k̂ᵢ = max(2a, k-hat of rᵢ)

    It stays a guide where the joint k-hat is far above 1.

    Args:
        z: draws, a pytree of [k, *batch, *event], k at least 25; some thousands for a noise below .1.
        log_w: log-weights in nats, [k, *batch], regressed on the normal score sᵢ of each latent; impossible draws
            (-inf) take no part in the regressions.
        resolution: as for `khat`.

    Returns:
        A pytree like one draw, [*batch, *event]; near 0 or below where the marginal is right. Under `mean_field` all
        correlated latents are flagged; a joint fault without marginal ones, and a far tail that a parabola misses, are
        for `khat` to find: of a single latent believe that one. For Gaussian
        marginals and log-normal weights around them it is exact, 1 - sd_q² / sd_p²: .5 is a spread of .7 of the right
        one, .7 of .55. No monotone map of a latent changes it, and one of ten values or fewer has no tail, -inf. Fewer
        than 25 draws, or none that is possible, give +inf, a +inf weight and floats that do not resolve the spread
        +inf, and a nan in weights or latent nan, as `khat` does.

    Raises:
        ValueError: for leaves that do not begin with log_w's shape.

    Example:
        >>> z = jax.scipy.special.ndtri((jnp.arange(1000) + 0.5) / 1000)  # q = N(0, 1)
        >>> log_w = 0.375 * z**2  # the posterior is N(0, 2²): k-hat is 1 - 1 / 4
        >>> round(float(marginal_khat(z, log_w)), 1)
        0.8

    Reference: Yao, Vehtari, Simpson, Gelman, Yes, but did it work? Evaluating variational inference, 2018,
        arXiv:1802.02538, section 3.
    """
    agree(z, log_w)
    k, columns = log_w.shape[0], log_w.size // max(log_w.shape[0], 1)
    dtype = jnp.promote_types(log_w.dtype, jnp.float32)
    # The batch flattened to columns: r [columns], weights [columns, k].
    r = unresolved(log_w, resolution)[0].reshape(columns)
    weights = jnp.moveaxis(log_w, 0, -1).reshape(columns, k).astype(dtype)

    def of_leaf(leaf: Array) -> Array:
        leaf = jnp.asarray(leaf, jnp.promote_types(jnp.result_type(leaf), dtype))
        latents = jnp.moveaxis(leaf.reshape(k, columns, -1), 0, -1)  # [columns, event, k]
        return _of_members(latents, weights, r).reshape(leaf.shape[1:])

    return jax.tree.map(of_leaf, z)


@jax.jit
def _of_members(x: Array, log_w: Array, r: Array) -> Array:
    """Return k-hats [members, d] of latents [members, d, k] and log-weights [members, k]."""
    return jax.vmap(lambda x, log_w, r: fit_tails(x, log_w, r, x[:0])[1])(x, log_w, r)


def fit_tails(x: Array, log_w: Array, r: Array, sizes: Array) -> tuple[Tail, Array, Array]:
    """Return the tail of the joint log-weights [k], and k-hat of every latent of x [d, k], by one program for all.

    Args:
        x: latents in rows.
        log_w: log-weights in nats.
        r: their resolution, ().
        sizes: logs of sizes of other numbers, [n, k], whose k-hats are returned too; -inf where a tail is ties, or of
            too few draws to tell.
    """
    d, n = len(x), len(sizes)
    hidden = unresolved(log_w, r)[1]
    # [d, k], [d]: of each latent log r at every draw, and 2a.
    log_ratio, tail_index = jax.vmap(_log_ratio, (0, None))(x, log_w)
    # Regressions and sizes have no more than their own rounding, and nothing hides the spread of sizes.
    rounding = jnp.where(jnp.arange(1 + d + n) == 0, r, 0.0)
    hides = hidden & (jnp.arange(1 + d + n) <= d)
    # The joint weights first, [1 + d + n, k], so that one compiled fit serves them all.
    columns = jnp.concatenate([log_w[None], log_ratio, sizes])
    tails = jax.vmap(fit_tail)(columns, rounding, hides)
    joint = jax.tree.map(lambda leaf: leaf[0], tails)
    quartile = tails.largest.shape[1] // 4
    told = (tails.largest[:, quartile] > tails.largest[:, 0]) & (log_w.size > SMALL)
    own = jnp.where(told, tails.shape, -jnp.inf)[1 + d :]
    # Where the spread is hidden the fits are +inf, and nothing is above it.
    return joint, jnp.maximum(tail_index, tails.shape[1 : 1 + d]), own


def _log_ratio(x: Array, log_w: Array) -> tuple[Array, Array]:
    """Return log E[w | x] up to a constant at every draw, and its tail index 2a, from x and log w, both [k]."""
    possible = log_w != -jnp.inf
    top = jnp.max(log_w)
    # In units of the largest, since only differences count.
    relative = jnp.where(possible, log_w, 0.0) - jnp.where(jnp.isfinite(top), top, 0.0)
    # Weights far below the others are as good as 0, however far that is; a q of heavy tails has them, and squares of
    # their logarithms would be all that a regression sees.
    middle, high = jnp.nanquantile(jnp.where(possible, relative, jnp.nan), jnp.array([0.5, 0.9]))
    relative = jnp.maximum(relative, middle - _FAR * (high - middle))
    basis, fit = _quadratic_fit(normal_scores(x, x.size), possible)
    # Weights that are log-normal given x have log E[w | x] = E[l | x] + Var[l | x] / 2, l = log w; half the variance
    # is taken as E[max(l - E[l | x], 0)² | x], since noise below the mean makes no heavy tail.
    mean = fit(relative)
    coefficients = mean + fit(jnp.square(jnp.maximum(relative - basis @ mean, 0.0)))
    # The score's coefficient 2 is a; the tail of exp(a s²) under a normal score has index 2a.
    return _where_undefined(x, top, basis @ coefficients, 2 * coefficients[2])


def _quadratic_fit(score: Array, possible: Array) -> tuple[Array, Callable[[Array], Array]]:
    """Return the basis of a parabola in the scores, [k, 3], and least squares on it over the possible draws."""
    # Hermite's polynomials: uncorrelated under the scores, so that the three equations are solved in float32 as well.
    basis = jnp.stack([jnp.ones_like(score), score, score**2 - 1], 1)
    used = jnp.where(possible[:, None], basis, 0.0)
    # The Gram matrix of the possible draws; the ridge keeps it definite where these are few.
    ridge = jnp.finfo(basis.dtype).eps * score.shape[0]
    inverse = _inverse(used.T @ used + ridge * jnp.eye(3, dtype=basis.dtype))

    def fit(y: Array) -> Array:
        """Return the coefficients (c, b, a), [3], of a response [k]."""
        return inverse @ (used.T @ jnp.where(possible, y, 0.0))

    return basis, fit


def _inverse(a: Array) -> Array:
    """Return the inverse of a small positive definite matrix by Gauss and Jordan, which compiles faster than LAPACK."""
    n = len(a)
    # [a, 1] becomes [1, a⁻¹]; a positive definite matrix needs no pivoting.
    both = jnp.concatenate([a, jnp.eye(n, dtype=a.dtype)], 1)
    for i in range(n):
        # Column i of the left half is made the i-th unit vector.
        others = both[:, i] - jnp.eye(n, dtype=a.dtype)[i]
        both = both - jnp.outer(others, both[i] / both[i, i])
    return both[:, n:]


def _where_undefined(
    x: Array, top: Array, log_ratio: Array, tail_index: Array
) -> tuple[Array, Array]:
    """Answer a nan, an infinite weight, no possible draw, and a latent without a tail.

    The index is -inf there, so that the k-hat of these ratios decides: `khat` answers each of them.
    """
    # A nan anywhere in x or the weights makes the sum nan, or top.
    is_nan = jnp.isnan(jnp.sum(x))
    undefined = is_nan | ~jnp.isfinite(top)
    tailless = jnp.sum(jnp.diff(jnp.sort(x)) > 0) < FEW
    # What `khat` reads the answer from: nan, or the infinite top itself.
    answered = jnp.where(is_nan, jnp.nan, top)
    log_ratio = jnp.where(undefined, answered, jnp.where(tailless, 0.0, log_ratio))
    return log_ratio, jnp.where(undefined | tailless, -jnp.inf, tail_index)
