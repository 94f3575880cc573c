"""Supports that distrax, NumPyro and TFP declare, as arrays that stand for every value in one."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vijax.jaxprs._samplers import between, on_simplex, onto_reals
from vijax.types import PyTree

INF = math.inf
# The ends of supports of distrax, whose distributions declare nothing.
_DISTRAX = {
    **dict.fromkeys(
        "Normal Laplace Logistic Gumbel LogStddevNormal MultivariateNormalDiag "
        "MultivariateNormalTri MultivariateNormalFullCovariance MultivariateNormalFromBijector "
        "MultivariateNormalDiagPlusLowRank".split(),
        (-INF, INF),
    ),
    "Gamma": (0.0, INF),
    "Beta": (0.0, 1.0),
    "VonMises": (-math.pi, math.pi),
}
_WRAPPERS = ("Independent", "ExpandedDistribution", "MaskedDistribution")  # of NumPyro
# Of a transformed distribution, once its support is no set that NumPyro names.
_UNKNOWN = object()


def library(q: object) -> str:
    """Return which of the three libraries defines the class of q, or ""."""
    package = type(q).__module__.partition(".")[0]
    return package if package in ("distrax", "numpyro", "tensorflow_probability") else ""


def declared_support(q: object) -> PyTree | None:
    """Return draws that stand for all of q's support, where its library declares it, or None."""
    try:
        return _image(q)
    except Exception:  # whatever a library raises where it declares nothing: then it is not known
        return None


class _NotDeclared(Exception):
    """A distribution whose library says nothing of its support."""


def _image(q: Any) -> Any:
    while hasattr(q, "adapted"):  # by families.adapt, or as strata
        q = q.adapted
    # By the library of its class; a user's subclass of NumPyro's counts where it states a support.
    of = {
        "distrax": _distrax,
        "numpyro": _numpyro,
        "tensorflow_probability": _tensorflow_probability,
    }.get(library(q))
    if of is None:
        of = _numpyro if _declares_itself(q) else None
    if of is None:
        raise _NotDeclared
    return of(q)


# --- distrax


def _distrax(q: Any) -> Any:
    name = type(q).__name__
    if name in _DISTRAX:
        return between(*_DISTRAX[name], (*q.batch_shape, *q.event_shape), q.dtype)
    if name == "Dirichlet":
        return on_simplex((*q.batch_shape, *q.event_shape), q.dtype)
    if name in ("Uniform", "CategoricalUniform"):
        return between(q.low, q.high, q.batch_shape, q.dtype)
    if name == "Independent":
        return _image(q.distribution)
    if name == "MixtureSameFamily":
        return _image(q.components_distribution)
    if name == "MixtureOfTwo":
        return _any_of([_image(q._component_a), _image(q._component_b)])
    if name == "Joint":
        return jax.tree.map(_image, q.distributions, is_leaf=lambda d: hasattr(d, "log_prob"))
    if name in ("Clipped", "ClippedNormal", "ClippedLogistic"):  # atoms at both ends
        return jnp.clip(_image(q.distribution), q.minimum, q.maximum)
    if name == "Transformed":
        return _through(q.bijector, _image(q.distribution))
    raise _NotDeclared


def _any_of(images: Sequence[Any]) -> Any:
    """Return the support of a mixture, whose parts do not hide each other's ends."""
    union = images[0]
    for image in images[1:]:
        union = jnp.where(between(0.0, 1.0) > 0.5, union, image)
    return union


def _through(bijector: Any, z: Any) -> Any:
    """Carry a support through a bijector of distrax, or of TFP."""
    name, module = type(bijector).__name__, type(bijector).__module__
    # Maps of the real line onto itself, which their jaxprs do not show.
    if name == "LambertWTail" or _is_masked_line(bijector):
        return onto_reals(z)
    # distrax and TFP apply the last bijector of a chain first.
    if name == "Chain":
        for inner in reversed(bijector.bijectors):
            z = _through(inner, z)
        return z
    if module.startswith("distrax."):
        if name == "Sigmoid":
            return jax.nn.sigmoid(z)
        if name == "Inverse":
            return _backward(bijector.bijector, z)
        if name == "Block":
            return _through(bijector.bijector, z)
        if _is_layer(bijector):
            return _onto(bijector, z)
    try:
        return bijector.forward(z)
    except TypeError:  # TFP's own may have another dtype, and says so
        return bijector.forward(z.astype(jnp.float64 if z.dtype == jnp.float32 else jnp.float32))


def _backward(bijector: Any, z: Any) -> Any:
    """Carry a support through the inverse of a bijector of distrax."""
    name = type(bijector).__name__
    if name == "Chain":
        for inner in bijector.bijectors:
            z = _backward(inner, z)
        return z
    if name == "Sigmoid":  # in a form whose jaxpr shows that it is monotone
        return -jnp.log(1 / z - 1)
    return _onto(bijector, z) if _is_layer(bijector) else bijector.inverse(z)


def _is_masked_line(bijector: object) -> bool:
    """Whether it is TFP's RealNVP or masked autoregressive flow of lines."""
    given = getattr(bijector, "parameters", None)
    return isinstance(given, dict) and given.get("shift_and_log_scale_fn") is not None


def _is_layer(bijector: object) -> bool:
    return type(bijector).__name__ in ("MaskedCoupling", "SplitCoupling", "RationalQuadraticSpline")


def _onto(layer: Any, z: Any) -> Any:
    """Splines with straight tails, and coupling layers of maps of the real line onto itself."""
    name = type(layer).__name__
    if name == "RationalQuadraticSpline":
        return onto_reals(z)
    if name == "MaskedCoupling":
        return _through(layer._inner_bijector(layer.conditioner(jnp.zeros_like(z))), z)
    # A split coupling changes one part, given the other: onto the line, if its inner map is.
    kept, changed = layer._split(jnp.zeros_like(z))
    inner = layer._inner_bijector(layer.conditioner(kept))
    return onto_reals(_through(inner, onto_reals(z, jnp.shape(changed))), jnp.shape(z))


# --- NumPyro


def _declares_itself(q: object) -> bool:
    """Whether a user's class, made of NumPyro's, states `support` where it states its draws."""
    classes = type(q).__mro__
    if not any(c.__module__.startswith("numpyro.") for c in classes):
        return False
    # The most derived class that states each, counted along the order of resolution.
    at = {
        name: next((i for i, c in enumerate(classes) if name in vars(c)), len(classes))
        for name in ("support", "sample", "log_prob")
    }
    return at["support"] <= min(at["sample"], at["log_prob"])


def _numpyro(q: Any) -> Any:
    name = type(q).__name__
    shape = (*q.batch_shape, *q.event_shape)
    if name in _WRAPPERS:
        return jnp.broadcast_to(_image(q.base_dist), shape)
    if name == "MixtureGeneral":
        return _any_of([_image(part) for part in q.component_distributions])
    if hasattr(q, "transforms") and hasattr(q, "base_dist"):
        # A mixture's declared support does not tell where its parts end.
        whole = type(_scalar_part(q.base_dist)).__name__ != "MixtureGeneral"
        support, z = q.base_dist.support if whole else _UNKNOWN, _image(q.base_dist)
        # A transform that starts from exactly its domain ends in its codomain; others are traced.
        for transform in q.transforms:
            if support is not _UNKNOWN and _same_set(support, transform.domain):
                support = transform.codomain
                z = _of_constraint(support, jnp.shape(transform(z)))
            else:
                support, z = _UNKNOWN, transform(z)
        return z
    return _of_constraint(q.support, shape)


def _scalar_part(q: Any) -> Any:
    """Return what NumPyro's wrappers of shape hold."""
    while type(q).__name__ in _WRAPPERS:
        q = q.base_dist
    return q


def _same_set(a: object, b: object) -> bool:
    """Whether two constraints are the same, without limits of their own."""
    a, b = _scalar(a), _scalar(b)
    return type(a) is type(b) and not jax.tree.leaves((a, b)) and type(a).__name__ != "object"


def _scalar(constraint: Any) -> Any:
    while type(constraint).__name__ == "_IndependentConstraint":
        constraint = constraint.base_constraint
    return constraint


def _of_constraint(constraint: Any, shape: tuple[int, ...]) -> Any:
    constraint = _scalar(constraint)
    low, high = getattr(constraint, "lower_bound", None), getattr(constraint, "upper_bound", None)
    name = type(constraint).__name__
    if low is not None or high is not None:
        return between(-INF if low is None else low, INF if high is None else high, shape)
    # Any other array that a constraint holds may be a limit of a kind that is not known here.
    limits = [leaf for leaf in jax.tree.leaves(constraint) if not isinstance(leaf, (bool, int))]
    if limits or getattr(constraint, "is_discrete", False):
        raise _NotDeclared
    if name == "_Real":
        return between(-INF, INF, shape)
    if name == "_UnitInterval":
        return between(0.0, 1.0, shape)
    if name == "_Simplex":
        return on_simplex(shape)
    if name == "_Circular":
        return between(-math.pi, math.pi, shape)
    # A set without limits of its own, of which only that is used: two ends, whatever they are.
    return between(-1.0, 1.0, shape)


# --- TFP


def _tensorflow_probability(q: Any) -> Any:
    # A copy made here shows the constants that it was given as what they are.
    q = q.copy()
    name = type(q).__name__.lstrip("_")
    if name in ("TransformedDistribution", "LambertWDistribution"):
        return _through(q.bijector, _image(q.distribution))
    if name == "MixtureSameFamily":
        return _image(q.components_distribution)
    if name in ("Mixture", "Inflated"):
        return _any_of([_image(part) for part in q.components])
    if name == "Deterministic":
        return jnp.asarray(q.mean())
    if name == "GeneralizedPareto" and _is_positive(q.parameters["concentration"]):
        return between(q.loc, INF, q.batch_shape, q.dtype)
    # The bijector from the real line onto the event space says where its ends are.
    make = getattr(q, "experimental_default_event_space_bijector", None)
    bijector = make() if make is not None else None
    if bijector is None or isinstance(q.event_shape, (dict, list)):
        raise _NotDeclared
    shape = (*q.batch_shape, *bijector.inverse_event_shape(q.event_shape))
    for dtype in (q.dtype, jnp.float32):  # its bijectors may not have the dtype of its draws
        try:
            return bijector.forward(between(-INF, INF, shape, dtype))
        except TypeError:
            continue
    raise _NotDeclared


def _is_positive(value: object) -> bool:
    """Whether a number that is known while tracing is not negative."""
    return not isinstance(value, jax.core.Tracer) and bool(np.all(np.asarray(value) >= 0))
