"""What is tried of NumPyro's one-dimensional distributions."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpyro.distributions as nd
from numpyro.distributions import transforms as nt

import vijax as vj
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

LIBRARY = "numpyro"
BASE = nd.Distribution
LOGITS = (0.3, -0.4, 0.6)
OTHERS = {
    **dict.fromkeys(
        "DirichletMultinomial CAR LKJ LKJCholesky CirculantNormal Dirichlet EulerMaruyama "
        "GaussianRandomWalk GaussianStateSpace InverseWishart InverseWishartCholesky "
        "LowRankMultivariateNormal MatrixNormal MultivariateNormal MultivariateStudentT Wishart "
        "WishartCholesky ZeroSumNormal GaussianCopula GaussianCopulaBeta ProjectedNormal "
        "SineBivariateVonMises SineSkewed MultinomialLogits MultinomialProbs".split(),
        "several dimensions",
    ),
    **dict.fromkeys(
        "IntervalCensoredDistribution LeftCensoredDistribution RightCensoredDistribution".split(),
        "a likelihood: its draws are not of its density",
    ),
    **dict.fromkeys(
        "ExpandedDistribution Independent MaskedDistribution TransformedDistribution".split(),
        "made of others",
    ),
    "Distribution": "abstract",
    "ImproperUniform": "cannot be sampled",
    "Unit": "has no value",
    "TruncatedPolyaGamma": "has no parameter",
}


def affine(q: Any, shift: Any, scale: Any) -> Any:
    inner = nd.TransformedDistribution(q.adapted, nt.AffineTransform(shift, scale))
    return vj.families.adapt(inner)


def _case(
    cls: str,
    pieces: Places = (),
    *,
    atoms: Places = (),
    of: Any = None,
    jumps: bool = False,
    **parameters: Any,
) -> Case:
    make: Callable[[Parameters], Any] = of or (lambda p: getattr(nd, cls)(**p))
    return Case(
        f"numpyro {cls}", lambda p: vj.families.adapt(make(p)), parameters, pieces, atoms, jumps
    )


def _normal(p: Parameters) -> Any:
    return nd.Normal(p["loc"], p["scale"])


GAUSS = dict(loc=0.3, scale=0.8)
COUNTS, FEW = range(80), range(6)
LIMITS = dict(low=0.4, high=2.2)
CASES = [
    *(_case(n, REAL, **GAUSS) for n in "Normal Logistic Gumbel Cauchy".split()),
    _case("Laplace", kinked("loc"), **GAUSS),
    _case("SoftLaplace", REAL, **GAUSS),
    _case("AsymmetricLaplace", kinked("loc"), **GAUSS, asymmetry=1.3),
    _case("AsymmetricLaplaceQuantile", kinked("loc"), **GAUSS, quantile=0.4),
    _case("StudentT", REAL, df=3.5, **GAUSS),
    _case("LogNormal", HALF, **GAUSS),
    _case("Exponential", HALF, rate=1.3),
    _case("HalfNormal", HALF, scale=0.8),
    _case("HalfCauchy", HALF, scale=0.8),
    _case("Gamma", HALF, concentration=1.4, rate=1.2),
    _case("InverseGamma", HALF, concentration=2.4, rate=1.2),
    _case("Chi2", HALF, df=2.6),
    _case("Weibull", HALF, scale=0.9, concentration=1.6),
    _case("Gompertz", HALF, concentration=0.8, rate=1.2),
    _case("Dagum", HALF, concentration=1.8, sharpness=2.6, scale=0.9),
    _case("Beta", UNIT, concentration1=1.4, concentration0=1.8),
    _case("BetaProportion", UNIT, mean=0.4, concentration=3.2),
    _case("Kumaraswamy", UNIT, concentration1=1.4, concentration0=1.8),
    _case("RelaxedBernoulliLogits", UNIT, temperature=0.8, logits=0.4),
    _case("VonMises", CIRCLE, loc=0.3, concentration=1.2),
    _case("Levy", between("loc", INF), **GAUSS),
    _case("Pareto", between("scale", INF), scale=0.8, alpha=2.4),
    _case("LowerTruncatedPowerLaw", between("low", INF), alpha=-2.4, low=0.8),
    _case("DoublyTruncatedPowerLaw", between("low", "high"), alpha=-1.4, low=0.8, high=2.0),
    _case("Uniform", between("low", "high"), low=-0.2, high=1.2),
    _case("LogUniform", between("low", "high"), low=0.6, high=1.8),
    *(
        _case(
            f"{side}TruncatedDistribution of {base}{', limits fixed' if fixed else ''}",
            (lambda p, at=at: [p.get(e, e) if isinstance(e, str) else e for e in at])
            if not fixed
            else [dict(low=-0.7, high=1.4).get(e, e) for e in at],
            of=lambda p, side=side, base=base, ends=ends: getattr(
                nd, f"{side}TruncatedDistribution"
            )(
                getattr(nd, base)(p["loc"], 0.8),
                **{e: p.get(e, dict(low=-0.7, high=1.4)[e]) for e in ends},
            ),
            loc=0.3,
            **({} if fixed else {e: dict(low=-0.7, high=1.4)[e] for e in ends}),
        )
        for base in ("Normal", "Cauchy")
        for side, ends, at in (
            ("Left", ("low",), ("low", INF)),
            ("Right", ("high",), (-INF, "high")),
            ("TwoSided", ("low", "high"), ("low", "high")),
        )
        for fixed in (True, False)
    ),
    *(
        _case(
            f"{side}TruncatedGamma{'' if free else ', limits fixed'}",
            (lambda p, at=at: [p[e] if isinstance(e, str) else e for e in at])
            if free
            else [LIMITS.get(e, e) if isinstance(e, str) else e for e in at],
            of=lambda p, side=side, names=names, free=free: getattr(nd, f"{side}TruncatedGamma")(
                nd.Gamma(p["concentration"], p["rate"]),
                **{e: p[e] if free else LIMITS[e] for e in names},
            ),
            concentration=1.4,
            rate=1.2,
            **({e: LIMITS[e] for e in names} if free else {}),
        )
        for side, names, at in (
            ("Left", ("low",), ("low", INF)),
            ("Right", ("high",), (0.0, "high")),
            ("TwoSided", ("low", "high"), ("low", "high")),
        )
        for free in (True, False)
    ),
    _case("FoldedDistribution", HALF, of=lambda p: nd.FoldedDistribution(_normal(p)), **GAUSS),
    _case("HurdleGamma", HALF, atoms=(0.0,), gate=0.3, concentration=1.4, rate=1.2),
    _case("HurdleLogNormal", HALF, atoms=(0.0,), gate=0.3, **GAUSS),
    _case("Delta", atoms=lambda p: [p["v"]], v=0.4),
    # --- discrete
    _case("BernoulliLogits", atoms=(0, 1), logits=0.4),
    _case("BernoulliProbs", atoms=(0, 1), probs=0.4),
    _case("BinomialLogits", atoms=FEW, of=lambda p: nd.BinomialLogits(p["logits"], 5), logits=0.4),
    _case("BinomialProbs", atoms=FEW, of=lambda p: nd.BinomialProbs(p["probs"], 5), probs=0.4),
    _case("CategoricalLogits", atoms=(0, 1, 2), logits=LOGITS),
    _case(
        "CategoricalProbs",  # it does not normalize what it is given
        atoms=(0, 1, 2),
        of=lambda p: nd.CategoricalProbs(p["probs"] / p["probs"].sum()),
        probs=(0.2, 0.3, 0.5),
    ),
    _case("GeometricLogits", atoms=COUNTS, logits=0.4),
    _case("GeometricProbs", atoms=COUNTS, probs=0.4),
    _case("Poisson", atoms=COUNTS, rate=1.4),
    _case("ZeroInflatedPoisson", atoms=COUNTS, gate=0.3, rate=1.4),
    _case("HurdlePoisson", atoms=COUNTS, gate=0.3, rate=1.4),
    _case(
        "HurdleProbs",
        atoms=COUNTS,
        of=lambda p: nd.HurdleProbs(nd.Poisson(p["rate"]), p["gate"]),
        gate=0.3,
        rate=1.4,
    ),
    _case(
        "HurdleLogits",
        atoms=COUNTS,
        of=lambda p: nd.HurdleLogits(nd.Poisson(p["rate"]), p["gate_logits"]),
        gate_logits=0.3,
        rate=1.4,
    ),
    _case(
        "ZeroInflatedProbs",
        atoms=COUNTS,
        of=lambda p: nd.ZeroInflatedProbs(nd.Poisson(p["rate"]), p["gate"]),
        gate=0.3,
        rate=1.4,
    ),
    _case(
        "ZeroInflatedLogits",
        atoms=COUNTS,
        of=lambda p: nd.ZeroInflatedLogits(nd.Poisson(p["rate"]), p["gate_logits"]),
        gate_logits=0.3,
        rate=1.4,
    ),
    _case("GammaPoisson", atoms=range(200), concentration=2.4, rate=1.2),
    _case("NegativeBinomial2", atoms=range(200), mean=1.4, concentration=2.4),
    _case("NegativeBinomialLogits", atoms=range(200), total_count=2.4, logits=-0.4),
    _case("NegativeBinomialProbs", atoms=range(200), total_count=2.4, probs=0.4),
    _case(
        "BetaBinomial",
        atoms=FEW,
        of=lambda p: nd.BetaBinomial(p["concentration1"], p["concentration0"], 5),
        concentration1=1.4,
        concentration0=1.8,
    ),
    _case(
        "BetaNegativeBinomial",
        atoms=range(20_000),
        of=lambda p: nd.BetaNegativeBinomial(p["concentration1"], p["concentration0"], 2),
        concentration1=6.4,
        concentration0=1.8,
    ),
    _case(
        "OrderedLogistic",
        atoms=(0, 1, 2),
        of=lambda p: nd.OrderedLogistic(p["predictor"], p["cutpoints"]),
        predictor=0.3,
        cutpoints=(-0.4, 0.7),
    ),
    _case(
        "DiscreteUniform",
        atoms=FEW,
        of=lambda p: nd.DiscreteUniform(0 * p["unused"].astype(int), 5),
        unused=0.3,
    ),
    # --- made of others
    *(
        _case(
            f"TransformedDistribution of a Normal by {name}",
            ends,
            of=lambda p, transforms=transforms: nd.TransformedDistribution(_normal(p), transforms),
            **GAUSS,
        )
        for name, ends, transforms in (
            ("exp", HALF, nt.ExpTransform()),
            ("a sigmoid", UNIT, nt.SigmoidTransform()),
            ("a softplus", HALF, nt.SoftplusTransform()),
            (
                "a sigmoid, then a line",
                (-1.0, 3.0),
                [nt.SigmoidTransform(), nt.AffineTransform(-1.0, 4.0)],
            ),
        )
    ),
    _case(
        "TransformedDistribution of a Beta by exp",
        (1.0, float(jnp.e)),
        of=lambda p: nd.TransformedDistribution(nd.Beta(p["a"], p["b"]), nt.ExpTransform()),
        a=1.4,
        b=1.8,
    ),
    _case(
        "TransformedDistribution of a Gamma by a power",
        HALF,
        of=lambda p: nd.TransformedDistribution(
            nd.Gamma(p["concentration"], 1.2), nt.PowerTransform(p["power"])
        ),
        concentration=1.4,
        power=0.7,
    ),
    _case(
        "MixtureSameFamily",
        REAL,
        of=lambda p: nd.MixtureSameFamily(
            nd.Categorical(logits=p["logits"]), nd.Normal(p["loc"], 0.7)
        ),
        logits=(0.3, -0.2),
        loc=(-0.5, 1.0),
    ),
    _case(
        "MixtureSameFamily of Betas",
        UNIT,
        of=lambda p: nd.MixtureSameFamily(
            nd.Categorical(logits=p["logits"]), nd.Beta(p["concentration"], 1.5)
        ),
        logits=(0.3, -0.2),
        concentration=(1.4, 2.5),
    ),
    _case(
        "MixtureSameFamily of Uniforms",
        lambda p: (0.0, p["high"][0], p["high"][1]),
        jumps=True,
        of=lambda p: nd.MixtureSameFamily(
            nd.Categorical(logits=p["logits"]), nd.Uniform(jnp.zeros(2), p["high"])
        ),
        logits=(0.3, -0.2),
        high=(0.8, 1.4),
    ),
    _case(
        "MixtureGeneral",
        REAL,
        of=lambda p: nd.MixtureGeneral(
            nd.Categorical(logits=p["logits"]), [nd.Normal(p["loc"], 0.7), nd.Logistic(1.0, 0.4)]
        ),
        logits=(0.3, -0.2),
        loc=-0.5,
    ),
    _case(
        "MixtureGeneral of a Normal and a Uniform",
        lambda p: (-INF, 0.0, p["high"], INF),
        jumps=True,
        of=lambda p: nd.MixtureGeneral(
            nd.Categorical(logits=p["logits"]),
            [nd.Normal(0.2, 0.7), nd.Uniform(0.0, p["high"])],
            support=nd.constraints.real,
        ),
        logits=(0.3, -0.2),
        high=0.9,
    ),
]
