"""Lower bounds of log-likelihood terms that are quadratic in x, and where each is best put: for `targets.minorize`.

Each is a `Minorizer` of a term log f(x), x a predictor that is linear in the latents (quadratic, for `mixture`). Terms
are taken one by one: x [...] or, for classes, logits x [..., c]. `tangent` and `parabola` make further ones.

    lower(x, at) ≤ log f(x) for every x and at;     E[lower(x, at)] is largest at at = touch(E[T(x)])

Reference: Jordan, Ghahramani, Jaakkola, Saul, An introduction to variational methods for graphical models, 1999;
    Palmer, Wipf, Kreutz-Delgado, Rao, Variational EM algorithms for non-Gaussian latent variable models, 2006.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln
from jaxtyping import Array, ArrayLike

from vijax.trees import scan
from vijax.types import PyTree


def _same(t: PyTree) -> PyTree:
    return t


class Minorizer(NamedTuple):
    """A lower bound of log f with local parameters.

    Fields:
        lower: (x, at) -> a lower bound on log f(x) in nats, quadratic in x, one value for each term.
        statistics: x -> T(x), a pytree at most quadratic in x; where `at` is best put depends on its mean alone.
        touch: E[T(x)] -> the at that maximises E[lower(x, at)]; most often the mean itself.
    """

    lower: Callable[[PyTree, PyTree], PyTree]
    statistics: Callable[[PyTree], PyTree] = _same
    touch: Callable[[PyTree], PyTree] = _same


def tangent(
    convex: Callable[[PyTree], Array],
    statistics: Callable[[Array], PyTree] = _same,
    rest: Callable[[Array], Array | float] = lambda x: 0.0,
) -> Minorizer:
    """Return the tangent of a log f that is convex in some statistics of x, at their mean.

        log f(x) = h(T(x)) + g(x) ≥ h(at) + ⟨∇h(at), T(x) - at⟩ + g(x),     at = E[T(x)],   h convex

    For T = x² these are the scale mixtures of Gaussians (Student-t, logistic, horseshoe); touches log f at any x.

    Args:
        convex: h, T -> values in nats, term by term.
        statistics: T, at most quadratic in x.
        rest: g, at most quadratic in x; by default 0.
    """

    def lower(x: Array, at: PyTree) -> Array:
        value, change = jax.jvp(convex, (at,), (jax.tree.map(jnp.subtract, statistics(x), at),))
        return value + change + rest(x)

    return Minorizer(lower, statistics)


def parabola(log_f: Callable[[Array], Array], curvature: Callable[[Array], Array]) -> Minorizer:
    """Return the parabola of a log f whose curvature is bounded, at the mean of x.

        log f(x) ≥ log f(at) + ⟨∇ log f(at), d⟩ - ½ dᵀ B d,     d = x - at,   at = E[x],   -∇² log f ≼ B everywhere

    The same curvature wherever it is put: one precision matrix does for every `at`, so that the mean of the Gaussian
    that minorize ends at is the mode of log p(x, z, ·). Touches log f at any x.

    Args:
        log_f: x -> values in nats, term by term.
        curvature: d -> dᵀ B d.

    Reference: Böhning, Lindsay, Monotonicity of quadratic-approximation algorithms, 1988.
    """

    def lower(x: Array, at: Array) -> Array:
        value, change = jax.jvp(log_f, (at,), (x - at,))
        return value + change - 0.5 * curvature(x - at)

    return Minorizer(lower)


# --- two classes: log σ(x), with the label's sign in x


def _log_cosh(s: Array) -> Array:
    """Return log 2 cosh(½ √s), with its derivatives at 0 too: 1/8 and -1/96."""
    near = s < 0.04
    y = 0.25 * jnp.where(near, s, 0.0)
    series = jnp.zeros_like(y)
    for c in (-691 / 935550, 31 / 14175, -17 / 2520, 1 / 45, -1 / 12, 1 / 2):
        series = y * (c + series)
    root = jnp.sqrt(jnp.where(near, 1.0, s))
    return jnp.where(near, math.log(2) + series, jax.nn.softplus(root) - 0.5 * root)


jaakkola_jordan = tangent(lambda s: -_log_cosh(s), jnp.square, lambda x: 0.5 * x)
"""log σ(x) ≥ log σ(ξ) + (x - ξ)/2 - tanh(ξ/2)/(4ξ) (x² - ξ²),   at = ξ² = E[x²].

The best parabola of the logistic, at any Gaussian: the one to take for two classes. Touches at x = ±ξ.

Reference: Jaakkola, Jordan, Bayesian parameter estimation via variational methods, 2000.
"""

bohning = parabola(jax.nn.log_sigmoid, lambda d: 0.25 * jnp.square(d))
"""log σ(x) ≥ log σ(ψ) + σ(-ψ) (x - ψ) - (x - ψ)²/8,   at = ψ = E[x].

Looser than `jaakkola_jordan`, and of one curvature for all terms.

Reference: Böhning, Multinomial logistic regression algorithm, 1992.
"""


# --- several classes: log softmax(x) at a label, x [..., c]


def _pick(x: Array, label: ArrayLike) -> Array:
    label = jnp.asarray(label)
    if not jnp.issubdtype(label.dtype, jnp.integer):
        raise TypeError(
            f"label must be whole numbers [...], for logits x [..., c]; got {label.dtype}."
        )
    index = jnp.broadcast_to(label, x.shape[:-1])[..., None]
    return jnp.take_along_axis(x, index, -1)[..., 0]


def bohning_softmax(label: ArrayLike) -> Minorizer:
    """Return Böhning's parabola of log softmax at a label.

        B = ½ [I - 11ᵀ/c],   at = ψ = E[x],   x and ψ [..., c]

    Tight for few classes, and of one curvature; a logit that is 0 for reference may stand among the c. label [...] is
    whole numbers.

    Reference: Böhning, Multinomial logistic regression algorithm, 1992.
    """

    def spread(d: Array) -> Array:
        return jnp.sum(jnp.square(d), -1) - jnp.square(jnp.sum(d, -1)) / d.shape[-1]

    def log_f(x: Array) -> Array:
        return _pick(x, label) - jax.nn.logsumexp(x, -1)

    return parabola(log_f, lambda d: 0.5 * spread(d))


def bouchard(label: ArrayLike) -> Minorizer:
    """Return Bouchard's bound of log softmax at a label: a product of logistics, each bounded by `jaakkola_jordan`.

        log Σⱼ exp xⱼ ≤ α + Σⱼ log(1 + exp(xⱼ - α)),     at = (α, ξ²),   ξⱼ² = E[(xⱼ - α)²]

    For many classes whose logits vary much, where Böhning's curvature is too large. At a point the slack is from 0,
    where one logit stands out, to (c - 1) log(c/(c - 1)), where all are equal. Given α the best ξ is in closed form,
    and what is left is convex in α, one number for each term: `touch` finds it by 20 steps of Newton's method within a
    bracket (to take turns instead, as is usual, is still off by .01 nats after 40 rounds where logits are 10 apart).
    label [...] is whole numbers, T = (x, x²).

    Reference: Bouchard, Efficient bounds for the softmax function and applications to approximate inference in hybrid
        models, 2007.
    """

    def lower(x: Array, at: tuple[Array, Array]) -> Array:
        alpha, squares = at
        return (
            _pick(x, label)
            - alpha
            + jnp.sum(jaakkola_jordan.lower(alpha[..., None] - x, squares), -1)
        )

    def touch(mean: tuple[Array, Array]) -> tuple[Array, Array]:
        x, c = mean[0], mean[0].shape[-1]
        variance = jnp.maximum(mean[1] - jnp.square(x), 0.0)

        def squares(alpha: Array) -> Array:
            return variance + jnp.square(x - alpha[..., None])

        def slack(alpha: Array) -> Array:
            return jnp.sum((1 - 0.5 * c) * alpha) + jnp.sum(_log_cosh(squares(alpha)))

        def newton(alpha: Array) -> tuple[Array, Array]:
            slope, curvature = jax.jvp(jax.grad(slack), (alpha,), (jnp.ones_like(alpha),))
            return slope, alpha - slope / jnp.maximum(curvature, 1e-6)

        def step(
            carry: tuple[Array, Array, Array], _: None
        ) -> tuple[tuple[Array, Array, Array], None]:
            low, high, alpha = carry
            slope, tried = newton(alpha)
            low, high = jnp.where(slope < 0, alpha, low), jnp.where(slope < 0, high, alpha)
            return (
                low,
                high,
                jnp.where((tried >= low) & (tried <= high), tried, 0.5 * (low + high)),
            ), None

        low = jnp.min(
            x, -1
        )  # where the slope is negative; positive where every logistic is within 1/c of its end
        high = jnp.max(x, -1) + jnp.sqrt(0.5 * c * jnp.max(variance, -1)) + math.log(2 * c)
        (_, _, found), _ = scan(step, (low, high, 0.5 * (low + high)), None, length=20)
        alpha = newton(jax.lax.stop_gradient(found))[
            1
        ]  # at the end Newton's step has the derivatives of the end
        return alpha, squares(alpha)

    return Minorizer(lower, lambda x: (x, jnp.square(x)), touch)


def one_vs_each(label: ArrayLike, binary: Minorizer = jaakkola_jordan) -> Minorizer:
    """Return the one-vs-each bound of log softmax at a label: the label against each other class alone.

        log softmaxᵢ(x) ≥ Σ_{j≠i} log σ(xᵢ - xⱼ),   each bounded by a minorizer of two classes

    Tight where one other class at most is in question, whatever the number of classes; equal to `binary` for two.
    label [...] is whole numbers; `at` is binary's, for all c differences, of which the label's own does not count.

    Reference: Titsias, One-vs-each approximation to softmax for scalable estimation of probabilities, 2016,
        arXiv:1609.07410.
    """

    def gaps(x: Array) -> Array:
        return _pick(x, label)[..., None] - x

    def lower(x: Array, at: PyTree) -> Array:
        own = jax.nn.one_hot(
            jnp.broadcast_to(jnp.asarray(label), x.shape[:-1]), x.shape[-1], dtype=bool
        )
        return jnp.sum(jnp.where(own, 0.0, binary.lower(gaps(x), at)), -1)

    return Minorizer(lower, lambda x: binary.statistics(gaps(x)), binary.touch)


# --- heavy tails, mixtures


def student_t(df: ArrayLike) -> Minorizer:
    """Return the bound of log t_ν(r), a Student-t of scale 1: at = ξ² = E[r²].

        log t_ν(r) ≥ log t_ν(ξ) - ½ (ν + 1)/(ν + ξ²) (r² - ξ²)

    For a regression that outliers do not move: r = (y - predictor)/scale, with -log scale in the rest. The weight of a
    term is (ν + 1)/(ν + ξ²), as in EM for the t. `df` is ν, a number or an array as r.

    Reference: Tipping, Lawrence, Variational inference for Student-t models, 2005.
    """

    def log_density(s: Array) -> Array:
        nu = jnp.asarray(df, s.dtype)
        scale = gammaln(0.5 * (nu + 1)) - gammaln(0.5 * nu) - 0.5 * jnp.log(math.pi * nu)
        return scale - 0.5 * (nu + 1) * jnp.log1p(s / nu)

    return tangent(log_density, jnp.square)


mixture = tangent(lambda x: jax.nn.logsumexp(x, -1))
"""log Σⱼ exp xⱼ ≥ Σⱼ rⱼ (xⱼ - log rⱼ),   r = softmax(at),   at = E[x],   x = log πⱼ fⱼ, [..., c].

EM's bound of a mixture whose components are Gaussian, or quadratic in the latents: responsibilities r are `at`, and
they start from the `like` of minorize, which must tell the components apart. Touches at any x.

Reference: Dempster, Laird, Rubin, Maximum likelihood from incomplete data via the EM algorithm, 1977; Neal, Hinton, A
    view of the EM algorithm that justifies incremental, sparse, and other variants, 1998.
"""


def each(*minorizers: Minorizer) -> Minorizer:
    """Return the minorizer of several kinds of terms side by side: x, at, T and lower are tuples, one of each.

    log p(x | z) = Σ log f₁(x₁) + Σ log f₂(x₂) + ...,   x = (x₁, x₂, ...)
    """

    def apply(field: str, *args: PyTree) -> tuple[PyTree, ...]:
        return tuple(getattr(m, field)(*a) for m, *a in zip(minorizers, *args, strict=True))

    return Minorizer(
        lambda x, at: apply("lower", x, at),
        lambda x: apply("statistics", x),
        lambda mean: apply("touch", mean),
    )
