"""Mixtures: several members of a family with probabilities of their own."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vijax import checks
from vijax.families._adapt import adapt
from vijax.families._gaussian import fields
from vijax.numerics import log_mean_exp
from vijax.types import Distribution, Family, PyTree


class _Mixture:
    """Batch shape (); `component` may be asked for a traced number, so components differ in their parameters alone."""

    def __init__(
        self, log_weights: Float[Array, " m"], params: PyTree, dist: Callable[[PyTree], Any]
    ):
        self.log_weights, self._params, self._dist = log_weights, params, dist

    def component(self, j: int | Array) -> PyTree:
        return self._dist(jax.tree.map(lambda p: p[j], self._params))

    @property
    def fixed_support(self) -> bool | None:
        return getattr(self.component(0), "fixed_support", None)

    def sample_and_log_prob(
        self, *, seed: Array, sample_shape: Sequence[int] = ()
    ) -> tuple[PyTree, Array]:
        def one(key: Array) -> tuple[PyTree, Array]:
            of_component, of_draw = jax.random.split(key)
            # Component first; its own log q is not the mixture's.
            j = jax.random.categorical(of_component, self.log_weights)
            z, _ = self.component(j).sample_and_log_prob(seed=of_draw, sample_shape=())
            return z, self.log_prob(z)

        for _ in sample_shape:
            one = jax.vmap(one)
        return one(jax.random.split(seed, tuple(sample_shape)) if sample_shape else seed)

    def log_prob(self, z: PyTree, /) -> Array:
        # [m]: the density of z under each component
        each = jax.vmap(lambda p: self._dist(p).log_prob(z))(self._params)
        return _log_sum(self.log_weights, each)


def _log_sum(log_weights: Array, each: Array) -> Array:
    """Return log Σⱼ exp(log_weightsⱼ + eachⱼ) over axis 0, total where every component is impossible."""
    # The mean's 1/m is put back.
    return log_mean_exp(log_weights + each) + jnp.log(1.0 * each.shape[0]).astype(each.dtype)


def mixture(family: Family, *, components: int) -> Family:
    """Mixture of several members of one family, over whatever latents that family holds.

        q(z) = Σⱼ πⱼ qⱼ(z),   π = softmax(logits)

    For posteriors with more than one mode, or a shape that no member has.

    Args:
        family: of the components; they start as its `init` makes them for m keys. A family that
            ignores its key starts them all at one place, where they would stay together: move them
            apart.
        components: m.

    Returns:
        Family: `init(key, like)`, with equal probabilities, params {"logits": [m], "components":
        stacked [m, ...]}; `dist(params)` of batch shape (), with `log_weights` [m] and
        `component(j)`, which `draws.stratified` asks for. Its draws do not carry the derivative of
        the logits, so a path gradient of independent draws is refused: use `draw=draws.stratified`
        with `reparam` or `dreg(elbo)`, or a score estimator.

    Raises:
        TypeError: for what is no Family, and components that are no whole number.
        ValueError: for components < 1.

    Example:
        >>> family = mixture(vj.families.mean_field(scale=1.0), components=2)
        >>> params = family.init(jax.random.key(0), jnp.zeros(()))
        >>> params["components"]["loc"] = jnp.array([-5.0, 5.0])
        >>> round(float(family.dist(params).log_prob(5.0)), 3)  # log ½ N(5; 5, 1)
        -1.612

    Reference: Jaakkola, Jordan, Improving the mean field approximation via the use of mixture
        distributions, 1998; Morningstar, Vikram, Ham, Gallagher, Dillon, Automatic differentiation
        variational inference with mixtures, 2021, arXiv:2003.01687.
    """
    checks.family(family, "family")
    checks.static_count(components, "components")

    def init(key: Array, like: PyTree) -> PyTree:
        # One start for each component, stacked along a new axis 0
        params = [family.init(k, like) for k in jax.random.split(key, components)]
        stacked = jax.tree.map(lambda *p: jnp.stack(p), *params)
        return {
            "logits": jnp.zeros(components, jnp.result_type(*jax.tree.leaves(stacked))),
            "components": stacked,
        }

    def dist(params: PyTree) -> _Mixture:
        fields(params, "mixture", "logits", "components")
        params = jax.tree.map(jnp.asarray, params)
        return _Mixture(jax.nn.log_softmax(params["logits"]), params["components"], family.dist)

    return Family(init, dist)


class _Component:
    """Number j of a distribution whose last batch axis counts components: it draws them all, and keeps one."""

    def __init__(self, all_of_them: PyTree, j: int | Array, axis: int):
        self._all, self._j, self._axis = all_of_them, j, axis

    def sample_and_log_prob(
        self, *, seed: Array, sample_shape: Sequence[int] = ()
    ) -> tuple[PyTree, Array]:
        # The components' axis comes after the sample axes.
        at = len(sample_shape) + self._axis
        drawn = adapt(self._all).sample_and_log_prob(seed=seed, sample_shape=tuple(sample_shape))
        return jax.tree.map(lambda a: jnp.take(a, self._j, axis=at), drawn)


class _Strata:
    def __init__(self, q: Distribution, weights: PyTree, components: PyTree):
        self._q, self._components = q, components
        # Its library declares its support.
        self.adapted = q
        self._axis = len(components.batch_shape) - 1
        m = components.batch_shape[-1]
        # [m, 1, ...]: the log-probability of each state in every member of the batch
        states = jnp.arange(m).reshape((m,) + (1,) * self._axis)
        self.log_weights = jnp.moveaxis(weights.log_prob(states), 0, -1)

    def component(self, j: int | Array) -> PyTree:
        return _Component(self._components, j, self._axis)

    def sample_and_log_prob(
        self, *, seed: Array, sample_shape: Sequence[int] = ()
    ) -> tuple[PyTree, Array]:
        return self._q.sample_and_log_prob(seed=seed, sample_shape=tuple(sample_shape))

    def log_prob(self, z: PyTree, /) -> Array:
        return self._q.log_prob(z)


# What distrax and NumPyro or TFP call the weights and the components
NAMES = (
    ("mixture_distribution", "components_distribution"),
    ("mixing_distribution", "component_distribution"),
)


def strata(distribution: PyTree) -> PyTree:
    """Give a MixtureSameFamily of distrax, TFP or NumPyro what `draws.stratified` asks for.

        q(z) = Σⱼ πⱼ qⱼ(z)   →   log π [*batch, m],   j ↦ qⱼ

    A component's draw draws them all and keeps one, which costs nothing beside a model.

    Args:
        distribution: with a categorical and a distribution whose last batch axis counts components,
            under the names that distrax, TFP or NumPyro give them.

    Returns:
        A Distribution of the same draws, batch shape and densities, with `log_weights` and
        `component(j)`.

    Raises:
        TypeError: for anything else.

    Example:
        >>> weights = distrax.Categorical(probs=jnp.array([0.25, 0.75]))
        >>> parts = distrax.Normal(jnp.array([0.0, 9.0]), 1.0)
        >>> jnp.exp(strata(distrax.MixtureSameFamily(weights, parts)).log_weights).tolist()
        [0.25, 0.75]

    Reference: none; the names are the libraries' own.
    """
    for weights, components in NAMES:
        if hasattr(distribution, weights) and hasattr(distribution, components):
            return _Strata(
                adapt(distribution),
                getattr(distribution, weights),
                getattr(distribution, components),
            )
    raise TypeError(
        "strata takes a MixtureSameFamily of distrax, TFP or NumPyro, got "
        f"{type(distribution).__name__}; for your own, give it log_weights [*batch, m] and "
        "component(j)."
    )
