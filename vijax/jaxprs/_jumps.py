"""Distributions of libraries whose density jumps where their draws pass, which no path sees.

Told by class alone: a conditional of a Joint is asked after the trace that made it has ended.
"""

from typing import Any

CLIPPED = (
    "has both a density and values of positive probability, which draws reach by a jump of log q"
)
# Classes of distrax whose log-density jumps, by why.
_JUMPS = {
    **dict.fromkeys(("Clipped", "ClippedNormal", "ClippedLogistic"), CLIPPED),
    "CategoricalUniform": "has a density that jumps from bin to bin, which no path sees",
}
_PARTS = "is a mixture whose parts may end at different places, where its density jumps"
# Classes whose support has no limits of their own, by what it is; of NumPyro its `support` tells.
_REAL = frozenset(
    "Normal Laplace Logistic Gumbel LogStddevNormal MultivariateNormalDiag MultivariateNormalTri "
    "MultivariateNormalFullCovariance StudentT Cauchy GeneralizedNormal SinhArcsinh JohnsonSU "
    "MultivariateNormalTriL MultivariateNormalLinearOperator Moyal".split()
)
# Likewise, of classes on part of the line.
_OTHERS = {
    **dict.fromkeys(
        "Gamma Exponential LogNormal InverseGamma InverseGaussian Chi Chi2 HalfNormal HalfCauchy "
        "HalfStudentT Weibull LogLogistic".split(),
        "positive",
    ),
    **dict.fromkeys("Beta Kumaraswamy LogitNormal".split(), "unit"),
}
# Classes of NumPyro's constraints that hold no limits of their own.
_WITHOUT_LIMITS = frozenset(
    "_Real _RealVector _Positive _Nonnegative _UnitInterval _Simplex _Circular".split()
)


def jumping_density(q: object) -> str | None:
    """Return why log q of a library's class jumps where its draws pass, or None."""
    # What is inside a wrapper: of families.adapt, of a transformation, of Independent.
    for name in ("adapted", "distribution", "base_dist"):
        inner = getattr(q, name, None)
        why = jumping_density(inner) if inner is not None and not isinstance(inner, str) else None
        if why is not None:
            return why
    package, name = type(q).__module__.partition(".")[0], type(q).__name__
    if package == "distrax" and name in _JUMPS:
        return _JUMPS[name]
    if package in ("distrax", "numpyro", "tensorflow_probability"):
        # All components must end at the same places, and these be known.
        parts = _parts(q, name)
        supports = {_support(part) for part in parts}
        if parts and (None in supports or len(supports) > 1):
            return _PARTS
    return None


def _parts(q: Any, name: str) -> list[Any]:
    """Return the components of a mixture."""
    if name == "MixtureOfTwo":
        return [q._component_a, q._component_b]
    if name in ("MixtureSameFamily", "MixtureGeneral", "MixtureSameFamilyDistribution"):
        # One distribution with a batch axis for its components; MixtureGeneral has a list instead.
        for of_one in ("components_distribution", "component_distribution"):
            if getattr(q, of_one, None) is not None:
                return [getattr(q, of_one)]
        return list(getattr(q, "component_distributions", ()))
    return list(q.components) if name in ("Mixture", "_Mixture") else []


def _support(part: object) -> str | None:
    """Return what a component's support is, where it has no limits of its own."""
    while type(part).__name__ in ("Independent", "_Independent", "ExpandedDistribution"):
        part = getattr(part, "base_dist", None) or getattr(part, "distribution", None)
    name = type(part).__name__.removeprefix("_")
    if type(part).__module__.startswith("numpyro"):
        constraint = getattr(part, "support", None)
        while type(constraint).__name__ == "_IndependentConstraint":
            constraint = getattr(constraint, "base_constraint", None)
        kind = type(constraint).__name__
        return kind if kind in _WITHOUT_LIMITS else None
    return "real" if name in _REAL else _OTHERS.get(name)
