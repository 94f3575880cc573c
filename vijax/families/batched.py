"""A batch of members of one family, and one distribution for every datum of a batch."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vijax.gaussians.affine import AffineGaussian
from vijax.gaussians.whitening import whiten
from vijax.types import Affine, PyTree, lift, offers

Dist = Callable[[PyTree], Any]


def _mapped(function: Callable[..., Any], axes: int) -> Any:
    """Return a function mapped over so many leading axes of its arguments."""
    for _ in range(axes):
        function = jax.vmap(function)
    return function


class Members:
    """Members of a family for params with leading batch axes: one for each datum, drawn apart.

    Args:
        dist: of the family, params -> a distribution of batch shape ().
        params: of the members, leaves [*batch, ...].
        batch_shape: how many there are.
        shared: params that all members have in common, without batch axes.
    """

    def __init__(
        self,
        dist: Dist,
        params: PyTree,
        batch_shape: tuple[int, ...],
        shared: dict[str, PyTree] | None = None,
    ):
        self._given_dist, self._params, self.batch_shape = dist, params, batch_shape
        self._shared = shared or {}

    def _dist(self, params: PyTree) -> Any:
        """Return the member of one datum's params."""
        return lift(self._given_dist({**params, **self._shared} if self._shared else params))

    def _one(self) -> Any:
        """Return a member of params 0, for what all members offer: their own may belong to a trace that has ended."""
        axes = len(self.batch_shape)

        def zeros(p: Any, n: int) -> Array:
            return jnp.zeros(jnp.shape(p)[n:], jnp.result_type(p))

        with jax.ensure_compile_time_eval():
            params = jax.tree.map(lambda p: zeros(p, axes), self._params)
            shared = jax.tree.map(lambda p: zeros(p, 0), self._shared)
        return lift(self._given_dist({**params, **shared} if shared else params))

    def _each(self, function: Callable[..., Any], *args: PyTree) -> Any:
        """Return function(member, its argument) of every member."""
        run = _mapped(lambda p, *a: function(self._dist(p), *a), len(self.batch_shape))
        return run(self._params, *args)

    @property
    def fixed_support(self) -> bool | None:
        """Return what the members declare of their support."""
        return getattr(self._one(), "fixed_support", None)

    def sample_and_log_prob(
        self, *, seed: Array, sample_shape: Sequence[int] = ()
    ) -> tuple[PyTree, Array]:
        """Draw one z for each member, with its log-density [*sample_shape, *batch]."""
        one, shape = self._one(), tuple(sample_shape)
        if isinstance(one, AffineGaussian):  # all noise in one call, as one such Gaussian draws it
            e = jax.random.normal(seed, (*shape, *self.batch_shape, *one.uniforms), one.dtype)
            return _mapped(lambda e: self._each(lambda q, e: q.draw(e), e), len(shape))(e)

        def draw(keys: Array) -> tuple[PyTree, Array]:
            return self._each(lambda q, k: q.sample_and_log_prob(seed=k, sample_shape=()), keys)

        return _mapped(draw, len(shape))(jax.random.split(seed, (*shape, *self.batch_shape)))

    def log_prob(self, z: PyTree, /) -> Array:
        """Return log q(z), [*batch]."""
        return self._each(lambda q, z: q.log_prob(z), z)

    def kl_divergence(self, other: Any) -> Array:
        """Return KL(q ‖ other), [*batch], of members whose own is known; other: members too, or one for all."""
        one = self._one()
        if not hasattr(one, "kl_divergence"):
            raise NotImplementedError(f"a {type(one).__name__} knows no divergence.")
        if isinstance(other, Members):
            return self._each(
                lambda q, p: q.kl_divergence(other._dist(p)),  # noqa: SLF001
                other._params,  # noqa: SLF001
            )
        whole = other.of if isinstance(other, Repeated) else other
        return self._each(lambda q: q.kl_divergence(whole))

    def entropy(self) -> Array:
        """Return H[q], [*batch], of members whose own is known."""
        if not hasattr(self._one(), "entropy"):
            raise NotImplementedError(f"a {type(self._one()).__name__} knows no entropy.")
        return self._each(lambda q: q.entropy())

    def push(self, e: Array) -> PyTree:
        """Carry standard normal noise [*batch, n] to draws, of a Gaussian family."""
        _needs_affine(self._one())
        return self._each(lambda q, e: q.affine(e), e)

    def pull(self, z: PyTree) -> Array:
        """Carry draws back to their noise, [*batch, n]."""
        _needs_affine(self._one())
        return self._each(_noise_of, z)

    def __getattr__(self, name: str) -> Any:
        # What some members offer and others do not: uniforms of a flow, the components of a mixture.
        if name not in ("uniforms", "transport", "log_weights", "component"):
            raise AttributeError(name)
        one = self._one()
        if not hasattr(one, name):
            raise AttributeError(f"members of a {type(one).__name__} have no {name}.")
        if name == "uniforms":
            return (*self.batch_shape, *one.uniforms)
        if name == "transport":
            return lambda u: self._each(lambda q, u: q.transport(u), u)
        if name == "log_weights":
            return self._each(lambda q: q.log_weights)
        return lambda j: Members(
            lambda p: self._given_dist(p).component(j), self._params, self.batch_shape, self._shared
        )


class Repeated:
    """One distribution for every datum of a batch: independent draws of it.

    Args:
        of: a distribution of batch shape ().
        batch_shape: of the data.
    """

    def __init__(self, of: Any, batch_shape: tuple[int, ...]):
        self.of, self.batch_shape = of, batch_shape

    @property
    def fixed_support(self) -> bool | None:
        """Return what it declares of its support."""
        return getattr(self.of, "fixed_support", None)

    def sample_and_log_prob(
        self, *, seed: Array, sample_shape: Sequence[int] = ()
    ) -> tuple[PyTree, Array]:
        """Draw one z for each datum, with its log-density."""
        return self.of.sample_and_log_prob(
            seed=seed, sample_shape=(*sample_shape, *self.batch_shape)
        )

    def log_prob(self, z: PyTree, /) -> Array:
        """Return log p(z), [*batch]."""
        return _mapped(self.of.log_prob, len(self.batch_shape))(z)

    def push(self, e: Array) -> PyTree:
        """Carry standard normal noise [*batch, n] to draws, of a Gaussian family."""
        _needs_affine(self.of)
        return _mapped(self.of.affine, len(self.batch_shape))(e)

    def pull(self, z: PyTree) -> Array:
        """Carry draws back to their noise, [*batch, n]."""
        _needs_affine(self.of)
        return _mapped(lambda z: _noise_of(self.of, z), len(self.batch_shape))(z)


def _noise_of(gaussian: Any, z: PyTree) -> Array:
    return whiten(gaussian, z, jnp.result_type(*jax.tree.leaves(z)))


def _needs_affine(member: Any) -> None:
    if not offers(member, Affine):
        raise TypeError(
            "push and pull need a Gaussian family, whose members offer affine(e); this one makes a "
            f"{type(member).__name__}: use gradients.dreg, which takes the prior's plain score."
        )
