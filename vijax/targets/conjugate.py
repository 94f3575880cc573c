"""Conjugate models: the exact conditional p(b | x, z), ready for `targets.collapse`, and the log marginal beside it.

Each takes the prior's parameters, which may depend on z, and the data or what is sufficient of them, and gives a
`Conjugate`: a distribution of b, vijax's two methods, batch shape [*batch], that has `log_marginal` besides, [*batch].
What may depend on z is an array [*batch] or a number. `independent(given, axes)` makes batch axes those of one latent.

    collapsed = collapse(log_prior, lambda z: conjugate.gamma_poisson(exp(z), 1.3, total=x, exposure=1))

Here log_prior(z) is what the model holds beside the conjugate part, and no b is evaluated. Or state all of it,
log_joint(z, b), from which the same follows less quickly, and with fewer digits where shapes are large.

    log_marginal = log ∫ p(b | z) L(b) db,     L what of the likelihood depends on b, as each says

Reference: Gelman, Carlin, Stern, Dunson, Vehtari, Rubin, Bayesian data analysis, 3rd edition, 2013, chapters 2, 3, 14.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from vijax.calls import described, is_known, usage
from vijax.gaussians import Gaussian, dense
from vijax.gaussians.affine import LOG_2PI
from vijax.targets._conjugate import Conjugate, independent
from vijax.targets._exponential import Beta, Dirichlet, Gamma, NormalGamma, NormalInverseGamma
from vijax.targets._regression import floating, regression
from vijax.targets._rising import log_coupling, log_rising, log_rising_excess, scaled_log1p

__all__ = [
    "Conjugate",
    "beta_bernoulli",
    "dirichlet_multinomial",
    "gamma_poisson",
    "gamma_poisson_by_mean",
    "independent",
    "linear_regression",
    "linear_regression_unknown_noise",
    "normal_gamma",
]


@usage("conjugate.beta_bernoulli")
def beta_bernoulli(
    a: ArrayLike, b: ArrayLike, *, successes: ArrayLike, failures: ArrayLike
) -> Conjugate:
    """Return p(probability | x, z) = Beta(a + successes, b + failures): coins, or binomial counts.

        probability ~ Beta(a, b),   xₙ | probability ~ Bernoulli(probability)
        L = probability^successes (1 - probability)^failures

    All arguments [*batch]; draws [*batch].

    Example:
        >>> coin = beta_bernoulli(1.0, 1.0, successes=2, failures=1)
        >>> round(float(coin.log_marginal), 3)  # log B(3, 2) = log 1/12
        -2.485
    """
    a, b, s, f = _together(a=a, b=b, successes=successes, failures=failures)
    # All successes first, then all failures: each is less likely the more the others weigh.
    log_marginal = -log_coupling(a, b, s) - log_coupling(b, a + s, f)
    return Conjugate(Beta(a + s, b + f), log_marginal)


@usage("conjugate.gamma_poisson")
def gamma_poisson(
    a: ArrayLike, b: ArrayLike, *, total: ArrayLike, exposure: ArrayLike
) -> Conjugate:
    """Return p(rate | x, z) = Gamma(a + total, b + exposure), b a rate: counts.

        rate ~ Gamma(a, b),   xₙ | rate ~ Poisson(rate · exposureₙ)
        L = rate^total e^(-rate · exposure),   total = Σ xₙ,   exposure = Σ exposureₙ

    All arguments [*batch]; draws [*batch]. L leaves out Σ xₙ log exposureₙ - log xₙ!. Where a and b
    are large and both made of one shape parameter, its slope is a small difference that floats do
    not hold: use `gamma_poisson_by_mean`.

    Example:
        >>> float(gamma_poisson(1.0, 1.0, total=5, exposure=2).center())  # (1 + 5) / (1 + 2)
        2.0
    """
    a, b, n, t = _together(a=a, b=b, total=total, exposure=exposure)
    # log Γ(a + n) - log Γ(a) + a log b - (a + n) log (b + t)
    log_marginal = log_rising(a, n) - a * jnp.log1p(t / b) - n * jnp.log(b + t)
    return Conjugate(Gamma(a + n, b + t), log_marginal)


@usage("conjugate.gamma_poisson_by_mean")
def gamma_poisson_by_mean(
    mean: ArrayLike, shape: ArrayLike, *, total: ArrayLike, exposure: ArrayLike
) -> Conjugate:
    """Return `gamma_poisson(shape, shape / mean)`, negative binomial counts, for any shape.

        rate ~ Gamma(shape, shape / mean),   xₙ | rate ~ Poisson(rate · exposureₙ)

    All arguments [*batch]; draws [*batch]. Value and slopes keep their digits however large the shape is.

    Example:
        >>> given = gamma_poisson_by_mean(2.0, 1e9, total=3, exposure=1)
        >>> round(float(given.log_marginal), 3)  # a Poisson's of rate 2: 3 log 2 - 2
        0.079
    """
    mean, shape, n, t = _together(mean=mean, shape=shape, total=total, exposure=exposure)
    log_marginal = log_rising_excess(shape, n) - scaled_log1p(shape, t * mean)
    log_marginal = log_marginal + n * (jnp.log(mean) - jnp.log1p(t * mean / shape))
    return Conjugate(Gamma(shape + n, shape / mean + t), log_marginal)


@usage("conjugate.dirichlet_multinomial")
def dirichlet_multinomial(concentration: ArrayLike, *, counts: ArrayLike) -> Conjugate:
    """Return p(probabilities | x, z) = Dirichlet(concentration + counts): categories in any order.

        probabilities ~ Dirichlet(concentration),   xₙ | probabilities ~ Categorical(probabilities)
        L = Πₛ probabilitiesₛ^countsₛ

    Both arguments [*batch, s]; draws [*batch, s].

    Example:
        >>> given = dirichlet_multinomial(jnp.ones(2), counts=jnp.array([2, 0]))
        >>> given.center().tolist()  # (1 + 2, 1 + 0) / 4
        [0.75, 0.25]
    """
    shape = np.shape(counts)
    if shape != np.shape(concentration) or not shape:
        raise ValueError(
            f"counts and concentration must be [*batch, s], got {shape} and "
            f"{np.shape(concentration)}."
        )
    c, n = _together(concentration=concentration, counts=counts)
    # One category after the other: against the posterior of those before and the prior of those behind.
    edge = [(0, 0)] * (c.ndim - 1)
    before = jnp.pad(jnp.cumsum((c + n)[..., :-1], -1), [*edge, (1, 0)])
    behind = jnp.pad(jax.lax.cumsum(c[..., 1:], c.ndim - 1, reverse=True), [*edge, (0, 1)])
    log_marginal = -jnp.sum(log_coupling(c, before + behind, n), -1)
    return Conjugate(Dirichlet(c + n), log_marginal)


@usage("conjugate.normal_gamma")
def normal_gamma(
    loc: ArrayLike, strength: ArrayLike, a: ArrayLike, b: ArrayLike, *, x: ArrayLike
) -> Conjugate:
    """Return p(mean, precision | x, z) of a normal with both unknown.

        precision ~ Gamma(a, b),   mean ~ N(loc, 1 / (strength · precision)),   xₙ ~ N(mean, 1 / precision)
        L = Πₙ N(xₙ; mean, 1 / precision)

    x is [n, *batch], the other arguments [*batch]; draws {"mean", "precision"}, each [*batch].
    """
    x = floating(jnp.asarray(x))
    if x.ndim == 0:
        raise ValueError("x must have a leading axis of data, [n, *batch], got shape ().")
    n = x.shape[0]
    # Sums of squares about the average, and of the average about loc: neither cancels.
    average = jnp.sum(x, 0) / max(n, 1)
    within = jnp.sum(jnp.square(x - average[None]), 0)
    loc, strength, a, b, average, within = _together(
        loc=loc, strength=strength, a=a, b=b, x=average, within=within
    )
    between = n * strength / (strength + n) * jnp.square(average - loc)
    half = 0.5 * (within + between)
    mean = (strength * loc + n * average) / (strength + n)
    posterior = NormalGamma(mean, strength + n, a + 0.5 * n, b + half)
    log_marginal = _student(a, b, half, n) - 0.5 * jnp.log1p(n / strength)
    return Conjugate(posterior, log_marginal)


@usage("conjugate.linear_regression")
def linear_regression(
    design: ArrayLike, y: ArrayLike, *, noise: ArrayLike, loc: ArrayLike, scale: ArrayLike
) -> Conjugate:
    """Return p(weights | y, z) of a linear regression whose noise is known, or part of z.

        weights ~ N(loc, diag(scale²)),   y ~ N(design · weights, noise² I);   L = N(y; design · weights, noise² I)

    noise is [*batch], loc and scale numbers or [*batch, d]; draws [*batch, d]. Where noise differs from row to row,
    divide y and the design by it and give noise = 1. `jax.vmap` gives each member of a batch a design of its own.
    """
    (noise,), (scale,) = _together(noise=noise), _together(scale=scale)
    given = regression(design, y, 1 / jnp.square(noise), loc, scale)
    n = jnp.shape(design)[0]
    log_marginal = given.shrunk - 0.5 * given.squares - n * (jnp.log(noise) + 0.5 * LOG_2PI)
    return Conjugate(Gaussian(given.mean, given.cholesky, dense), log_marginal)


@usage("conjugate.linear_regression_unknown_noise")
def linear_regression_unknown_noise(
    design: ArrayLike, y: ArrayLike, *, a: ArrayLike, b: ArrayLike, loc: ArrayLike, scale: ArrayLike
) -> Conjugate:
    """Return p(weights, variance | y, z) of a linear regression whose noise is unknown, scale being relative to it.

        variance ~ InverseGamma(a, b),   weights ~ N(loc, variance · diag(scale²)),   y ~ N(design · weights, variance)
        L = N(y; design · weights, variance · I)

    a and b are [*batch], loc and scale numbers or [*batch, d]; draws {"weights" [*batch, d], "variance" [*batch]}.
    """
    (scale,) = _together(scale=scale)
    given = regression(
        design, y, jnp.ones(jnp.broadcast_shapes(jnp.shape(a), jnp.shape(b))), loc, scale
    )
    n = jnp.shape(design)[0]
    a, b, half = _together(a=a, b=b, half=0.5 * given.squares)
    posterior = NormalInverseGamma(given.mean, given.cholesky, a + 0.5 * n, b + half)
    return Conjugate(posterior, _student(a, b, half, n) + given.shrunk)


def _student(a: Array, b: Array, half: Array, n: int) -> Array:
    """Return log ∫ Gamma(τ; a, b) (τ/2π)^(n/2) e^(-τ half) dτ."""
    rising = log_rising(a, 0.5 * n) - a * jnp.log1p(half / b)
    return rising - 0.5 * n * (jnp.log(b + half) + LOG_2PI)


# Arguments by name: those above 0, and those that are sums of counts or of times.
_ABOVE_ZERO = frozenset("a b mean shape concentration strength noise scale".split())
_SUMS = frozenset("successes failures total exposure counts".split())


def _together(**named: ArrayLike) -> list[Array]:
    """Broadcast arrays, numbers among them, to one shape and one floating dtype; refuse what cannot be right."""
    arrays = [_numbers(name, value) for name, value in named.items()]
    shapes = {name: jnp.shape(a) for name, a in zip(named, arrays, strict=True) if jnp.ndim(a)}
    # As NumPy would, but for axes that it adds in front: [3, 1] with [2] is an outer product.
    try:
        shape = jnp.broadcast_shapes(*shapes.values())
    except ValueError:
        shape = None
    if shape is None or len({len(of) for of in shapes.values()}) > 1:
        raise ValueError(
            f"arguments must be numbers or arrays of one shape [*batch], got {shapes}; x[None] gives an axis in front."
        )
    dtype = jnp.result_type(*arrays)
    return [floating(jnp.broadcast_to(jnp.asarray(a, dtype), shape)) for a in arrays]


def _numbers(name: str, value: ArrayLike) -> ArrayLike:
    """Return a value, of a list an array; refuse what holds no numbers, and those out of range that are known."""
    value = np.asarray(value, float) if isinstance(value, (list, tuple)) else value
    if not isinstance(value, (int, float, jax.Array, np.ndarray, np.generic)):
        raise TypeError(f"{name} must be numbers, got {described(value)}.")
    if not is_known(value):
        return value
    known = np.asarray(value)
    # Written so that a nan is refused as well.
    if name in _ABOVE_ZERO and not np.all(known > 0):
        raise ValueError(f"{name} must be above 0, got {known!s:.60}.")
    if name in _SUMS and not np.all(known >= 0):
        raise ValueError(f"{name} must be at least 0, got {known!s:.60}.")
    return value
