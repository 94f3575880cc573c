"""Families of what is observed: pixels that are on or off, counts, and grey levels."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import betaln, gammaln
from jaxtyping import Array

from vijax import checks
from vijax.calls import latents
from vijax.families._gaussian import fields
from vijax.types import Family, PyTree


class _Observation:
    """Independent discrete numbers, batch shape (): a sampler of them all, and their log-probabilities."""

    fixed_support = True

    def __init__(
        self,
        draw: Callable[[Array, tuple[int, ...]], Array],
        each: Callable[[Array], Array],
        shape: tuple[int, ...],
    ):
        self._draw, self._each, self._shape = draw, each, shape

    def sample_and_log_prob(
        self, *, seed: Array, sample_shape: Sequence[int] = ()
    ) -> tuple[Array, Array]:
        log_prob = self.log_prob
        for _ in sample_shape:
            log_prob = jax.vmap(log_prob)
        x = self._draw(seed, tuple(sample_shape))
        return x, log_prob(x)

    def log_prob(self, x: Array, /) -> Array:
        # One of another shape would broadcast.
        if jnp.shape(x) != self._shape:
            raise ValueError(
                f"x must have the shape of one draw, {self._shape}, got {jnp.shape(x)}; for several "
                "use jax.vmap(q.log_prob)."
            )
        return jnp.sum(self._each(jnp.asarray(x)))


def bernoulli(*, edge: float = 0.001) -> Family:
    """Independent numbers that are 0 or 1, from their log-odds: for binary images, and binary latents.

        log q(x) = Σ_d x_d l_d - log(1 + exp l_d)

    One exponential and one logarithm for each number, forward and backward: .73 of the time of two
    softplus.

    Args:
        edge: how near to 0 and 1 a probability may start.

    Returns:
        Family: `init(key, like)` starts at the probabilities `like`, such as the mean of the data,
        kept within edge and 1 - edge; params {"logits": like x}; `dist(params)` has batch shape (). Its
        draws carry no derivative, so that path estimators refuse it as q.

    Raises:
        TypeError: (init) for a like that is not one array of floats.
        ValueError: for an edge that is not in 0 to 1/2.

    Example:
        >>> family = bernoulli()
        >>> p = family.dist(family.init(None, jnp.array([0.5, 0.25])))
        >>> round(float(jnp.exp(p.log_prob(jnp.array([1.0, 1.0])))), 4)
        0.125

    Reference: Burda, Grosse, Salakhutdinov, Importance weighted autoencoders, 2016,
        arXiv:1509.00519 (the start at the data's mean).
    """
    if not 0 < edge < 0.5:
        raise ValueError(f"edge must be between 0 and 1/2, a probability, got {edge}.")

    def init(key: Array | None, like: PyTree) -> PyTree:
        mean = jnp.clip(_one_array(like, "bernoulli"), edge, 1 - edge)
        return {"logits": jnp.log(mean) - jnp.log1p(-mean)}

    def dist(params: PyTree) -> _Observation:
        fields(params, "bernoulli", "logits")
        logits = jnp.asarray(params["logits"])

        def draw(key: Array, shape: tuple[int, ...]) -> Array:
            uniform = jax.random.uniform(key, (*shape, *logits.shape), logits.dtype)
            return (uniform < jax.nn.sigmoid(logits)[(None,) * len(shape)]).astype(logits.dtype)

        def each(x: Array) -> Array:
            # log(1 + eˡ) = m + log(1 + e^-|l|), one exp and one log1p. |l| is 2 m - l: the slope of abs at 0
            # is 1 in JAX, and that of the sum would be 0 there, where it is ½.
            m = jnp.maximum(logits, 0)
            softplus = m + jnp.log1p(jnp.exp(logits - 2 * m))
            return x.astype(logits.dtype) * logits - softplus

        return _Observation(draw, each, logits.shape)

    return Family(init, dist)


def beta_binomial(*, trials: int) -> Family:
    """Independent counts out of n, whose probability is itself Beta(a, b): for grey levels 0 to 255.

        q(x) = Π_d C(n, x_d) B(x_d + a_d, n - x_d + b_d) / B(a_d, b_d)

    Two parameters a pixel, and log-concave or U-shaped as they say; for several peaks a pixel
    `discretized_logistics`.

    Args:
        trials: n, the largest count.

    Returns:
        Family: `init(key, like)` starts at the means `like`, counts, with a + b = 2; params
        {"log_a", "log_b"} like x; `dist(params)` has batch shape (). Its draws carry no derivative.

    Raises:
        TypeError: for trials that are no whole number; (init) for a like that is not one array of
            floats.
        ValueError: for trials < 1.

    Example:
        >>> p = beta_binomial(trials=4).dist({"log_a": jnp.zeros(1), "log_b": jnp.zeros(1)})
        >>> round(float(jnp.exp(p.log_prob(jnp.array([3.0])))), 4)  # uniform on 0 to 4
        0.2

    Reference: Townsend, Bird, Barber, Practical lossless compression with latent variables using
        bits back coding, 2019, arXiv:1901.04866 (as a likelihood of pixels).
    """
    checks.static_count(trials, "trials")

    def init(key: Array | None, like: PyTree) -> PyTree:
        mean = jnp.clip(_one_array(like, "beta_binomial") / trials, 0.001, 0.999)
        return {"log_a": jnp.log(2 * mean), "log_b": jnp.log(2 - 2 * mean)}

    def dist(params: PyTree) -> _Observation:
        fields(params, "beta_binomial", "log_a", "log_b")
        a, b = jnp.exp(params["log_a"]), jnp.exp(params["log_b"])

        def draw(key: Array, shape: tuple[int, ...]) -> Array:
            # Of so few states that each has its probability: no rejection, and nothing to accept.
            counts = jnp.arange(trials + 1, dtype=a.dtype)
            logits = jax.vmap(lambda x: each(jnp.broadcast_to(x, a.shape)))(counts)
            x = jax.random.categorical(key, logits, axis=0, shape=(*shape, *a.shape))
            return x.astype(a.dtype)

        def each(x: Array) -> Array:
            x = x.astype(a.dtype)
            n = float(trials)
            ways = math.lgamma(n + 1) - gammaln(x + 1) - gammaln(n - x + 1)
            return ways + betaln(x + a, n - x + b) - betaln(a, b)

        return _Observation(draw, each, a.shape)

    return Family(init, dist)


def discretized_logistics(*, levels: int = 256, components: int = 5) -> Family:
    """Independent grey levels, each a mixture of logistic densities integrated over the level's bin.

        q(x_d) = Σⱼ πⱼ [σ((u + h - mⱼ) / sⱼ) - σ((u - h - mⱼ) / sⱼ)],   u = 2 x_d / (L-1) - 1,   h = 1 / (L-1)

    For natural images. The first bin begins at -∞ and the last ends at ∞, so the levels' probabilities
    sum to 1; the difference is taken in logarithms and is exact for any scale.

    Args:
        levels: L; x is in 0 to L - 1.
        components: logistic densities for each number.

    Returns:
        Family: `init(key, like)` starts around the levels `like`, the components spread over ½ of
        the range; params {"logits", "loc", "log_scale"}, each [*x, components], in units of u;
        `dist(params)` has batch shape (). Its draws carry no derivative.

    Raises:
        TypeError: for counts that are no whole numbers; (init) for a like that is not one array of
            floats.
        ValueError: for levels < 2, and components < 1.

    Example:
        >>> family = discretized_logistics(levels=4, components=2)
        >>> p = family.dist(family.init(None, jnp.array([1.5])))
        >>> round(float(sum(jnp.exp(p.log_prob(jnp.array([float(x)]))) for x in range(4))), 4)
        1.0

    Reference: Salimans, Karpathy, Chen, Kingma, PixelCNN++: improving the PixelCNN with discretized
        logistic mixture likelihood, 2017, arXiv:1701.05517.
    """
    checks.static_count(levels, "levels", least=2)
    checks.static_count(components, "components")

    def init(key: Array | None, like: PyTree) -> PyTree:
        level = _one_array(like, "discretized_logistics")
        center = 2 * level / (levels - 1) - 1
        apart = jnp.linspace(-0.5, 0.5, components + 2, dtype=center.dtype)[1:-1]
        shape = (*center.shape, components)
        return {
            "logits": jnp.zeros(shape, center.dtype),
            "loc": center[..., None] + apart[(None,) * center.ndim],
            "log_scale": jnp.full(shape, math.log(0.25), center.dtype),
        }

    def dist(params: PyTree) -> _Observation:
        fields(params, "discretized_logistics", "logits", "loc", "log_scale")
        logits, loc = params["logits"], params["loc"]
        scale = jnp.exp(params["log_scale"])

        def draw(key: Array, shape: tuple[int, ...]) -> Array:
            of_component, of_level = jax.random.split(key)
            lead = (None,) * len(shape)
            j = jax.random.categorical(of_component, logits, shape=(*shape, *loc.shape[:-1]))

            def pick(a: Array) -> Array:
                each = jnp.broadcast_to(a[lead], (*shape, *a.shape))
                return jnp.take_along_axis(each, j[..., None], -1)[..., 0]

            u = pick(loc) + pick(scale) * jax.random.logistic(of_level, j.shape, loc.dtype)
            return jnp.clip(jnp.round((u + 1) * (levels - 1) / 2), 0, levels - 1)

        def each(x: Array) -> Array:
            x = x.astype(loc.dtype)[..., None]
            u, half = 2 * x / (levels - 1) - 1, 1 / (levels - 1)
            above, below = (u + half - loc) / scale, (u - half - loc) / scale
            # σ(b) - σ(a) = σ(b) σ(-a) (1 - e^(a - b)), and the last factor is of the bin's width alone.
            inside = _log_one_minus_exp(2 * half / scale)
            left = jnp.where(x <= 0, 0.0, jax.nn.log_sigmoid(-below))
            right = jnp.where(x >= levels - 1, 0.0, jax.nn.log_sigmoid(above))
            ends = (x <= 0) | (x >= levels - 1)
            log_mass = left + right + jnp.where(ends, 0.0, inside)
            return jax.nn.logsumexp(jax.nn.log_softmax(logits) + log_mass, axis=-1)

        return _Observation(draw, each, loc.shape[:-1])

    return Family(init, dist)


def _log_one_minus_exp(width: Array) -> Array:
    """Return log(1 - e^-width) of a positive width, to full precision for narrow bins and wide ones."""
    narrow = width < math.log(2)
    near, far = jnp.where(narrow, width, 1.0), jnp.where(narrow, 1.0, width)
    return jnp.where(narrow, jnp.log(-jnp.expm1(-near)), jnp.log1p(-jnp.exp(-far)))


def _one_array(like: Any, family: str) -> Array:
    """Return `like` as an array of floats; refuse other latents."""
    latents(like)
    if not hasattr(like, "dtype") or not jnp.issubdtype(like.dtype, jnp.floating):
        raise TypeError(
            f"families.{family} is of one array of floats, such as the mean of the data, got "
            f"{type(like).__name__} of {getattr(like, 'dtype', 'several leaves')}: jnp.zeros(784)."
        )
    return jnp.asarray(like)
