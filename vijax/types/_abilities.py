"""Optional abilities of q: what some estimators, draws and targets ask of it."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Float

from vijax.types._values import Distribution, PyTree


@runtime_checkable
class Transport(Protocol):
    """q made of uniforms: what antithetic and quasi-Monte Carlo draws ask for."""

    @property
    def uniforms(self) -> tuple[int, ...]:
        """Return the shape of the uniforms that make one draw."""
        ...

    def transport(self, u: Float[Array, "..."]) -> PyTree:
        """Carry uniforms of shape `uniforms` to one draw, smoothly in them and the parameters."""
        ...


@runtime_checkable
class Affine(Protocol):
    """q as an affine map of normal noise: what flows, `student_t` and `gauss_hermite` ask for."""

    @property
    def uniforms(self) -> tuple[int, ...]:
        """Return the shape of the noise that makes one draw."""
        ...

    def affine(self, e: Float[Array, "..."]) -> PyTree:
        """Carry standard normal noise, of shape `uniforms`, to one draw, loc + S e."""
        ...


@runtime_checkable
class Centered(Protocol):
    """A distribution that names a point of its support without noise: where `collapse` evaluates."""

    def center(self) -> PyTree:
        """Return a point where the density is positive and large, such as the mean of one peak."""
        ...


@runtime_checkable
class Stratified(Protocol):
    """q as a mixture of m components: what `draws.stratified` asks for."""

    @property
    def log_weights(self) -> Float[Array, "*batch m"]:
        """Return the log-probability of each component."""
        ...

    def component(self, j: int | Array) -> Any:
        """Return component j, a number or a traced integer (), as something that draws like q."""
        ...


@runtime_checkable
class Support(Protocol):
    """q that declares where its density is positive, as NumPyro's distributions do."""

    @property
    def support(self) -> Any:
        """Return the set, in the words of q's own library."""
        ...


@runtime_checkable
class Entropy(Protocol):
    """q whose entropy has a closed form: what `targets.exact_entropy` asks for."""

    def entropy(self) -> Float[Array, "*batch"]:
        """Return H[q] in nats."""
        ...


@runtime_checkable
class Divergence(Protocol):
    """q with a closed-form divergence from some distributions: what `targets.exact_kl` asks for."""

    def kl_divergence(self, other: Distribution) -> Float[Array, "*batch"]:
        """Return KL(q ‖ other) in nats; NotImplementedError where none is known."""
        ...


@runtime_checkable
class Sampled(Protocol):
    """A distribution of TFP or NumPyro: what `families.adapt` lends vijax's two methods."""

    def log_prob(self, value: PyTree, /) -> Float[Array, "*batch"]:
        """Return log q(z)."""
        ...

    def sample(self, *args: Any, **kwargs: Any) -> PyTree:
        """Draw z: TFP takes (sample_shape, seed), NumPyro (key, sample_shape)."""
        ...


def offers(q: object, ability: type) -> bool:
    """Return whether q has all that a Protocol asks for, its methods callable.

    Unlike isinstance this finds what a wrapper forwards by `__getattr__`, on every Python.

    Example:
        >>> offers(distrax.Normal(0.0, 1.0), Entropy)
        True
    """
    return all(_has(q, name, ability) for name in vars(ability) if not name.startswith("_"))


def _has(q: object, name: str, ability: type) -> bool:
    # A property of the Protocol may be any attribute of q; all else must be a method.
    if isinstance(vars(ability)[name], property):
        return hasattr(q, name)
    return callable(getattr(q, name, None))
