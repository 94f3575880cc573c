"""What is tried of distrax's one-dimensional distributions."""

from collections.abc import Callable
from typing import Any

import distrax as dx
import jax.numpy as jnp

from benchmarks._univariate import (
    CIRCLE,
    HALF,
    INF,
    REAL,
    UNIT,
    Case,
    Parameters,
    Places,
    between,
    kinked,
)

LIBRARY = "distrax"
BASE = dx.Distribution
LOGITS = (0.3, -0.4, 0.6)
OTHERS = {
    **dict.fromkeys(
        "Dirichlet Multinomial MultivariateNormalDiag MultivariateNormalDiagPlusLowRank "
        "MultivariateNormalFromBijector MultivariateNormalFullCovariance MultivariateNormalTri "
        "OneHotCategorical".split(),
        "several dimensions",
    ),
    **dict.fromkeys(("Independent", "Joint"), "made of others"),
    "Distribution": "abstract",
    "Greedy": "certain, at a whole number",
}


def affine(q: Any, shift: Any, scale: Any) -> Any:
    return dx.Transformed(q, dx.ScalarAffine(shift, scale))


def _case(
    cls: str,
    pieces: Places = (),
    *,
    atoms: Places = (),
    of: Any = None,
    jumps: bool = False,
    **parameters: Any,
) -> Case:
    make: Callable[[Parameters], Any] = of or (lambda p: getattr(dx, cls)(**p))
    return Case(f"distrax {cls}", make, parameters, pieces, atoms, jumps)


def _normal(p: Parameters) -> Any:
    return dx.Normal(p["loc"], p["scale"])


def _two(kind: Any, **fixed: Any) -> Callable[[Parameters], Any]:
    def make(p: Parameters) -> Any:
        return dx.MixtureSameFamily(dx.Categorical(logits=p["logits"]), kind(p))

    return make


BINS = [-1.0, -1 / 3, 1 / 3, 1.0]
CASES = [
    _case("Normal", REAL, loc=0.3, scale=0.8),
    _case("LogStddevNormal", REAL, loc=0.3, log_scale=-0.2),
    _case("Laplace", kinked("loc"), loc=0.3, scale=0.8),
    _case("Logistic", REAL, loc=0.3, scale=0.8),
    _case("Gumbel", REAL, loc=0.3, scale=0.8),
    _case("Gamma", HALF, concentration=1.4, rate=1.2),
    _case("Beta", UNIT, alpha=1.4, beta=1.8),
    _case("VonMises", CIRCLE, loc=0.3, concentration=1.2),
    _case("Uniform", between("low", "high"), low=-0.2, high=1.2),
    _case("Deterministic", atoms=lambda p: [p["loc"]], loc=0.4),
    _case("Bernoulli", atoms=(0, 1), logits=0.4),
    _case("Bernoulli, probs", atoms=(0, 1), of=lambda p: dx.Bernoulli(probs=p["probs"]), probs=0.4),
    _case("Categorical", atoms=(0, 1, 2), logits=LOGITS),
    _case(
        "Categorical, probs",
        atoms=(0, 1, 2),
        of=lambda p: dx.Categorical(probs=p["probs"]),
        probs=(0.2, 0.3, 0.5),
    ),
    _case(
        "Softmax", atoms=(0, 1, 2), of=lambda p: dx.Softmax(p["preferences"]), preferences=LOGITS
    ),
    _case(
        "EpsilonGreedy",
        atoms=(0, 1, 2),
        of=lambda p: dx.EpsilonGreedy(p["preferences"], 0.3),
        preferences=LOGITS,
    ),
    _case(
        "CategoricalUniform, fixed bins",
        BINS,
        jumps=True,
        of=lambda p: dx.CategoricalUniform(low=-1.0, high=1.0, logits=p["logits"]),
        logits=LOGITS,
    ),
    _case(
        "CategoricalUniform",
        lambda p: [p["low"] + (p["high"] - p["low"]) * i / 3 for i in range(4)],
        jumps=True,
        low=-1.0,
        high=1.0,
        logits=LOGITS,
    ),
    *(
        _case(
            name,
            (-1.0, 1.0),
            atoms=(-1.0, 1.0),
            of=lambda p, name=name: getattr(dx, name)(p["loc"], p["scale"], -1.0, 1.0),
            loc=0.3,
            scale=0.8,
        )
        for name in ("ClippedNormal", "ClippedLogistic")
    ),
    _case(
        "Clipped, limits free",
        lambda p: (p["low"], p["high"]),
        atoms=lambda p: (p["low"], p["high"]),
        of=lambda p: dx.Clipped(dx.Normal(p["loc"], 0.8), p["low"], p["high"]),
        loc=0.3,
        low=-0.8,
        high=1.1,
    ),
    _case(
        "Quantized",
        atoms=range(-3, 4),
        of=lambda p: dx.Quantized(_normal(p), -3.0, 3.0),
        loc=0.3,
        scale=0.8,
    ),
    _case(
        "MixtureSameFamily",
        REAL,
        of=_two(lambda p: dx.Normal(p["loc"], 0.7)),
        logits=(0.3, -0.2),
        loc=(-0.5, 1.0),
    ),
    _case(
        "MixtureSameFamily of Gammas",
        HALF,
        of=_two(lambda p: dx.Gamma(p["concentration"], 1.2)),
        logits=(0.3, -0.2),
        concentration=(1.3, 2.5),
    ),
    _case(
        "MixtureSameFamily of Uniforms",
        lambda p: (0.0, p["high"][0], p["high"][1]),
        jumps=True,
        of=_two(lambda p: dx.Uniform(jnp.zeros(2), p["high"])),
        logits=(0.3, -0.2),
        high=(0.8, 1.4),
    ),
    _case(
        "MixtureOfTwo",
        REAL,
        of=lambda p: dx.MixtureOfTwo(p["prob"], dx.Normal(p["loc"], 0.7), dx.Logistic(1.0, 0.4)),
        prob=0.4,
        loc=-0.3,
    ),
    _case(
        "MixtureOfTwo of a Normal and a Uniform",
        lambda p: (-INF, 0.0, p["high"], INF),
        jumps=True,
        of=lambda p: dx.MixtureOfTwo(p["prob"], dx.Normal(0.2, 0.7), dx.Uniform(0.0, p["high"])),
        prob=0.4,
        high=0.9,
    ),
    *(
        _case(
            f"Transformed Normal by {name}",
            ends,
            of=lambda p, bijector=bijector: dx.Transformed(_normal(p), bijector),
            loc=0.3,
            scale=0.8,
        )
        for name, ends, bijector in (
            ("Tanh", (-1.0, 1.0), dx.Tanh()),
            ("Sigmoid", UNIT, dx.Sigmoid()),
            ("Lambda exp", HALF, dx.Lambda(jnp.exp, jnp.log)),
            ("GumbelCDF", UNIT, dx.GumbelCDF()),
            (
                "Inverse Sigmoid of Sigmoid",
                REAL,
                dx.Chain([dx.Inverse(dx.Sigmoid()), dx.Sigmoid()]),
            ),
            ("Chain", (1.0, 4.0), dx.Chain([dx.ScalarAffine(1.0, 3.0), dx.Sigmoid()])),
        )
    ),
    _case(
        "Transformed Beta by an Inverse line",
        (-1.0, 1.0),
        of=lambda p: dx.Transformed(
            dx.Beta(p["alpha"], 1.6),
            dx.Chain([dx.Inverse(dx.ScalarAffine(0.5, 0.5))]),
        ),
        alpha=1.7,
    ),
]
