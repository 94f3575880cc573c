"""Which latent is to blame: k-hat of each one's marginal density ratio, from the joint log-weights alone."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vijax.diagnostics._chains import normal_scores
from vijax.diagnostics._moments import agree
from vijax.diagnostics._weights import Tail, fit_tail, unresolved
from vijax.types import PyTree

FEW = 10  # values: a polynomial through so few says nothing of what lies beyond them


def marginal_khat(
    z: PyTree,
    log_w: Float[Array, "k *batch"],
    *,
    resolution: Float[Array, "*batch"] | None = None,
) -> PyTree:
    """Pareto k-hat of every latent's own marginal: which of them q gets wrong, where `khat` says that it is wrong.

        rᵢ(zᵢ) = p(zᵢ | x) / q(zᵢ) = E_q[w | zᵢ] / p(x),     log rᵢ ≈ a sᵢ² + b sᵢ + c,   sᵢ the normal score of zᵢ
        log E_q[w | zᵢ] ≈ E_q[l | zᵢ] + E_q[max(l - E_q[l | zᵢ], 0)² | zᵢ],   l = log w;     k̂ᵢ = max(2a, k-hat of rᵢ)

    The marginal k-hat of Yao et al., without the posterior's marginals that it asks for: the log-weights are regressed
    on each latent, and so are the squares of what lies above the fit; noise in a logarithm has no heavy tail. So it
    stays a guide where the joint k-hat is far above 1 and corrected moments are none, and hears what the joint one
    does not in a few thousand draws: a q that sees a short piece of a narrow ridge. It is exact for Gaussian marginals
    and log-normal weights around them (half their variance is then the mean square above), and there it is
    1 - sd_q² / sd_p²: .5 is a spread of .7 of the right one, .7 of .55. A monotone map of a latent changes nothing. A
    latent that is wrong alone is flagged alone; under `mean_field` all those that are correlated are. A joint fault
    without marginal ones is for `khat` to find. A latent of ten values or fewer has no tail: -inf.

    Args:
        z: draws, a pytree of [k, *batch, *event], k at least 25; some thousands for a noise below .1.
        log_w: log-weights in nats, [k, *batch]; impossible draws (-inf) take no part in the regressions.
        resolution: as for `khat`.

    Returns:
        A pytree like one draw, [*batch, *event]; near 0 or below where the marginal is right. Fewer than 25 draws, or
        none that is possible, give +inf, a +inf weight and floats that do not resolve the spread +inf, and a nan in
        weights or latent nan, as `khat` does.

    Raises:
        ValueError: for leaves that do not begin with log_w's shape.

    Reference: Yao, Vehtari, Simpson, Gelman, Yes, but did it work? Evaluating variational inference, 2018,
        arXiv:1802.02538, section 3.
    """
    agree(z, log_w)
    k, columns = log_w.shape[0], log_w.size // max(log_w.shape[0], 1)
    dtype = jnp.promote_types(log_w.dtype, jnp.float32)
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
    return jax.vmap(lambda x, log_w, r: fit_tails(x, log_w, r)[1])(x, log_w, r)


def fit_tails(x: Array, log_w: Array, r: Array) -> tuple[Tail, Array]:
    """Return the tail of the joint log-weights [k], and k-hat of every latent of x [d, k], by one program for all.

    Args:
        x: latents in rows.
        log_w: log-weights in nats.
        r: their resolution, ().
    """
    hidden = unresolved(log_w, r)[1]
    log_ratio, tail_index = jax.vmap(_log_ratio, (0, None))(x, log_w)
    # Regressions have no more than their coefficients' rounding.
    rounding = jnp.where(jnp.arange(len(x) + 1) == 0, r, 0.0)
    columns = jnp.concatenate([log_w[None], log_ratio])
    tails = jax.vmap(fit_tail, (0, 0, None))(columns, rounding, hidden)
    joint = jax.tree.map(lambda leaf: leaf[0], tails)
    # Where the spread is hidden the fits are +inf, and nothing is above it.
    return joint, jnp.maximum(tail_index, tails.shape[1:])


def _log_ratio(x: Array, log_w: Array) -> tuple[Array, Array]:
    """Return log E[w | x] up to a constant at every draw, and its tail index 2a, from x and log w, both [k]."""
    possible = log_w != -jnp.inf
    top = jnp.max(log_w)
    relative = jnp.where(possible, log_w, 0.0) - jnp.where(jnp.isfinite(top), top, 0.0)
    basis, fit = _quadratic_fit(normal_scores(x, x.size), possible)
    # E[w | x] of weights that are log-normal given x: the mean of log w, and half its variance, which is the mean
    # square of what lies above.
    mean = fit(relative)
    coefficients = mean + fit(jnp.square(jnp.maximum(relative - basis @ mean, 0.0)))
    return _where_undefined(x, top, basis @ coefficients, 2 * coefficients[2])


def _quadratic_fit(score: Array, possible: Array) -> tuple[Array, Callable[[Array], Array]]:
    """Return the basis of a parabola in the scores, [k, 3], and least squares on it over the possible draws."""
    # Hermite's polynomials: uncorrelated under the scores, so that the three equations are solved in float32 as well.
    basis = jnp.stack([jnp.ones_like(score), score, score**2 - 1], 1)
    used = jnp.where(possible[:, None], basis, 0.0)
    ridge = jnp.finfo(basis.dtype).eps * score.shape[0]
    inverse = _inverse(used.T @ used + ridge * jnp.eye(3, dtype=basis.dtype))

    def fit(y: Array) -> Array:
        return inverse @ (used.T @ jnp.where(possible, y, 0.0))

    return basis, fit


def _inverse(a: Array) -> Array:
    """Return the inverse of a small positive definite matrix by Gauss and Jordan, which compiles faster than LAPACK."""
    n = len(a)
    both = jnp.concatenate([a, jnp.eye(n, dtype=a.dtype)], 1)
    for i in range(n):
        others = both[:, i] - jnp.eye(n, dtype=a.dtype)[i]
        both = both - jnp.outer(others, both[i] / both[i, i])
    return both[:, n:]


def _where_undefined(
    x: Array, top: Array, log_ratio: Array, tail_index: Array
) -> tuple[Array, Array]:
    """Answer a nan, an infinite weight, no possible draw, and a latent without a tail.

    The index is -inf there, so that the k-hat of these ratios decides: `khat` answers each of them.
    """
    is_nan = jnp.isnan(jnp.sum(x))
    undefined = is_nan | ~jnp.isfinite(top)
    tailless = jnp.sum(jnp.diff(jnp.sort(x)) > 0) < FEW
    answered = jnp.where(is_nan, jnp.nan, top)
    log_ratio = jnp.where(undefined, answered, jnp.where(tailless, 0.0, log_ratio))
    return log_ratio, jnp.where(undefined | tailless, -jnp.inf, tail_index)
