"""Lower bounds of log-likelihood terms that are quadratic in x, and where each is best put: for `targets.minorize`.

Each is a `Minorizer` of a term log f(x), x a predictor that is linear in the latents (quadratic, for `mixture`). Terms
are taken one by one: x [...] or, for classes, logits x [..., c]. `tangent` and `parabola` make further ones.

    lower(x, at) ≤ log f(x) for every x and at;     E[lower(x, at)] is largest at at = touch(E[T(x)])

Reference: Jordan, Ghahramani, Jaakkola, Saul, An introduction to variational methods for graphical models, 1999;
    Palmer, Wipf, Kreutz-Delgado, Rao, Variational EM algorithms for non-Gaussian latent variable models, 2006.
"""

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln
from jaxtyping import Array, ArrayLike

from vijax.targets._minorizer import Minorizer, parabola, tangent
from vijax.trees import scan
from vijax.types import PyTree

__all__ = [
    "Minorizer",
    "bohning",
    "bohning_softmax",
    "bouchard",
    "each",
    "jaakkola_jordan",
    "mixture",
    "one_vs_each",
    "parabola",
    "student_t",
    "tangent",
]

# --- two classes: log σ(x), with the label's sign in x


def _log_cosh(s: Array) -> Array:
    """Return log 2 cosh(½ √s), with its derivatives at 0 too: 1/8 and -1/96."""
    near = s < 0.04
    # log cosh √y in powers of y = s/4, by Horner's rule: √s itself has no derivative at 0.
    y = 0.25 * jnp.where(near, s, 0.0)
    series = jnp.zeros_like(y)
    for c in (-691 / 935550, 31 / 14175, -17 / 2520, 1 / 45, -1 / 12, 1 / 2):
        series = y * (c + series)
    root = jnp.sqrt(jnp.where(near, 1.0, s))
    return jnp.where(near, math.log(2) + series, jax.nn.softplus(root) - 0.5 * root)


jaakkola_jordan = tangent(lambda s: -_log_cosh(s), jnp.square, lambda x: 0.5 * x)
"""log σ(x) ≥ log σ(ξ) + (x - ξ)/2 - tanh(ξ/2)/(4ξ) (x² - ξ²),   at = ξ² = E[x²].

The best parabola of the logistic, at any Gaussian: the one to take for two classes. Touches at
x = ±ξ.

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

    Tight for few classes, and of one curvature; a reference logit of 0 may stand among the c.

    Args:
        label: [...], whole numbers.

    Example:
        >>> x = jnp.zeros(4)
        >>> round(float(bohning_softmax(0).lower(x, x)), 3)  # log ¼
        -1.386

    Reference: Böhning, Multinomial logistic regression algorithm, 1992.
    """

    def spread(d: Array) -> Array:
        return jnp.sum(jnp.square(d), -1) - jnp.square(jnp.sum(d, -1)) / d.shape[-1]

    def log_f(x: Array) -> Array:
        return _pick(x, label) - jax.nn.logsumexp(x, -1)

    return parabola(log_f, lambda d: 0.5 * spread(d))


def bouchard(label: ArrayLike) -> Minorizer:
    """Return Bouchard's bound of log softmax at a label: a product of logistics.

        log Σⱼ exp xⱼ ≤ α + Σⱼ log(1 + exp(xⱼ - α)),     at = (α, ξ²),   ξⱼ² = E[(xⱼ - α)²]

    For many classes whose logits vary much, where Böhning's curvature is too large. At a point the
    slack is from 0, where one logit stands out, to (c - 1) log(c/(c - 1)), where all are equal.

    Args:
        label: [...], whole numbers. Each logistic is bounded by `jaakkola_jordan`; T = (x, x²), and
            `touch` finds α by 20 steps of Newton's method within a bracket. (Updates in turn are
            still off by .01 nats after 40 rounds where logits are 10 apart.)

    Example:
        >>> bound, x = bouchard(0), jnp.zeros(3)
        >>> at = bound.touch(bound.statistics(x))
        >>> round(float(bound.lower(x, at) + jnp.log(3.0)), 3)  # -2 log 1.5
        -0.811

    Reference: Bouchard, Efficient bounds for the softmax function and applications to approximate
        inference in hybrid models, 2007.
    """

    def lower(x: Array, at: tuple[Array, Array]) -> Array:
        alpha, squares = at  # [...], [..., c]
        # -log (1 + exp(xⱼ - α)) = log σ(α - xⱼ)
        logistics = jnp.sum(jaakkola_jordan.lower(alpha[..., None] - x, squares), -1)
        return _pick(x, label) - alpha + logistics

    def touch(mean: tuple[Array, Array]) -> tuple[Array, Array]:
        x, c = mean[0], mean[0].shape[-1]
        variance = jnp.maximum(mean[1] - jnp.square(x), 0.0)

        # ξ² = E[(x - α)²], the best one given α
        def squares(alpha: Array) -> Array:
            return variance + jnp.square(x - alpha[..., None])

        # The part of minus the bound that depends on α, convex in it, summed over terms.
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
            # The sign of the slope says on which side the minimum is.
            low, high = jnp.where(slope < 0, alpha, low), jnp.where(slope < 0, high, alpha)
            # A Newton step that leaves the bracket gives way to bisection.
            inside = (tried >= low) & (tried <= high)
            return (low, high, jnp.where(inside, tried, 0.5 * (low + high))), None

        # The slope is negative at the smallest logit, and positive where every logistic is within
        # 1/c of its end.
        low = jnp.min(x, -1)
        high = jnp.max(x, -1) + jnp.sqrt(0.5 * c * jnp.max(variance, -1)) + math.log(2 * c)
        (_, _, minimum), _ = scan(step, (low, high, 0.5 * (low + high)), None, length=20)
        # One more Newton step from the minimum has the minimum's derivatives.
        alpha = newton(jax.lax.stop_gradient(minimum))[1]
        return alpha, squares(alpha)

    return Minorizer(lower, lambda x: (x, jnp.square(x)), touch)


def one_vs_each(label: ArrayLike, binary: Minorizer = jaakkola_jordan) -> Minorizer:
    """Return the one-vs-each bound of log softmax: the label against each other class alone.

        log softmaxᵢ(x) ≥ Σ_{j≠i} log σ(xᵢ - xⱼ),   each bounded by a minorizer of two classes

    Tight where one other class at most is in question; equal to `binary` for two classes.

    Args:
        label: [...], whole numbers.
        binary: the minorizer of each logistic. `at` is its own, for all c differences, of which the
            label's own does not count.

    Example:
        >>> bound, x = one_vs_each(0), jnp.zeros(3)
        >>> round(float(bound.lower(x, bound.touch(bound.statistics(x)))), 3)  # 2 log ½
        -1.386

    Reference: Titsias, One-vs-each approximation to softmax for scalable estimation of
        probabilities, 2016, arXiv:1609.07410.
    """

    def gaps(x: Array) -> Array:
        return _pick(x, label)[..., None] - x

    def lower(x: Array, at: PyTree) -> Array:
        # The label against itself, log σ(0), is no part of the sum.
        own = jax.nn.one_hot(
            jnp.broadcast_to(jnp.asarray(label), x.shape[:-1]), x.shape[-1], dtype=bool
        )
        return jnp.sum(jnp.where(own, 0.0, binary.lower(gaps(x), at)), -1)

    return Minorizer(lower, lambda x: binary.statistics(gaps(x)), binary.touch)


# --- heavy tails, mixtures


def student_t(df: ArrayLike) -> Minorizer:
    """Return the bound of log t_ν(r), a Student-t of scale 1: at = ξ² = E[r²].

        log t_ν(r) ≥ log t_ν(ξ) - ½ (ν + 1)/(ν + ξ²) (r² - ξ²)

    For regressions robust to outliers.

    Args:
        df: ν, a number or an array like r = (y - predictor)/scale, with -log scale in the rest.

    Returns:
        A Minorizer; the weight of a term is (ν + 1)/(ν + ξ²), as in EM for the t.

    Example:
        >>> r = jnp.array(2.0)
        >>> round(float(student_t(1.0).lower(r, r**2)), 3)  # touches log 1/(π (1 + r²)) at ξ = r
        -2.754

    Reference: Tipping, Lawrence, Variational inference for Student-t models, 2005.
    """

    # log t_ν as a function of s = r², in which it is convex
    def log_density(s: Array) -> Array:
        nu = jnp.asarray(df, s.dtype)
        scale = gammaln(0.5 * (nu + 1)) - gammaln(0.5 * nu) - 0.5 * jnp.log(math.pi * nu)
        return scale - 0.5 * (nu + 1) * jnp.log1p(s / nu)

    return tangent(log_density, jnp.square)


mixture = tangent(lambda x: jax.nn.logsumexp(x, -1))
"""log Σⱼ exp xⱼ ≥ Σⱼ rⱼ (xⱼ - log rⱼ),   r = softmax(at),   at = E[x],   x = log πⱼ fⱼ, [..., c].

EM's bound of a mixture whose components are Gaussian, or quadratic in the latents: r are the
responsibilities, and start from the `like` of minorize, which must tell the components apart.
Touches at any x.

Reference: Dempster, Laird, Rubin, Maximum likelihood from incomplete data via the EM algorithm,
    1977; Neal, Hinton, A view of the EM algorithm that justifies incremental, sparse, and other
    variants, 1998.
"""


def each(*minorizers: Minorizer) -> Minorizer:
    """Return the minorizer of several kinds of terms side by side.

        log p(x | z) = Σ log f₁(x₁) + Σ log f₂(x₂) + ...,   x = (x₁, x₂, ...)

    Args:
        minorizers: one for each kind.

    Returns:
        A Minorizer whose x, at, T and lower are tuples, one of each.

    Example:
        >>> both, x = each(jaakkola_jordan, bohning), jnp.zeros(())
        >>> [round(float(lower), 3) for lower in both.lower((x, x), (x, x))]  # log ½, twice
        [-0.693, -0.693]

    Reference: none.
    """

    def apply(field: str, *args: PyTree) -> tuple[PyTree, ...]:
        return tuple(getattr(m, field)(*a) for m, *a in zip(minorizers, *args, strict=True))

    return Minorizer(
        lambda x, at: apply("lower", x, at),
        lambda x: apply("statistics", x),
        lambda mean: apply("touch", mean),
    )
