"""What is tried of NumPyro's one-dimensional distributions."""

from benchmarks._cases_numpyro_more import MORE
from benchmarks._numpyro import BASE, GAUSS, LIBRARY, LIMITS, affine, case, gaussian, nd
from benchmarks._univariate import CIRCLE, HALF, INF, REAL, UNIT, between, kinked

__all__ = ["BASE", "CASES", "LIBRARY", "OTHERS", "affine"]
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
CASES = [
    *(case(n, REAL, **GAUSS) for n in "Normal Logistic Gumbel Cauchy".split()),
    case("Laplace", kinked("loc"), **GAUSS),
    case("SoftLaplace", REAL, **GAUSS),
    case("AsymmetricLaplace", kinked("loc"), **GAUSS, asymmetry=1.3),
    case("AsymmetricLaplaceQuantile", kinked("loc"), **GAUSS, quantile=0.4),
    case("StudentT", REAL, df=3.5, **GAUSS),
    case("LogNormal", HALF, **GAUSS),
    case("Exponential", HALF, rate=1.3),
    case("HalfNormal", HALF, scale=0.8),
    case("HalfCauchy", HALF, scale=0.8),
    case("Gamma", HALF, concentration=1.4, rate=1.2),
    case("InverseGamma", HALF, concentration=2.4, rate=1.2),
    case("Chi2", HALF, df=2.6),
    case("Weibull", HALF, scale=0.9, concentration=1.6),
    case("Gompertz", HALF, concentration=0.8, rate=1.2),
    case("Dagum", HALF, concentration=1.8, sharpness=2.6, scale=0.9),
    case("Beta", UNIT, concentration1=1.4, concentration0=1.8),
    case("BetaProportion", UNIT, mean=0.4, concentration=3.2),
    case("Kumaraswamy", UNIT, concentration1=1.4, concentration0=1.8),
    case("RelaxedBernoulliLogits", UNIT, temperature=0.8, logits=0.4),
    case("VonMises", CIRCLE, loc=0.3, concentration=1.2),
    case("Levy", between("loc", INF), **GAUSS),
    case("Pareto", between("scale", INF), scale=0.8, alpha=2.4),
    case("LowerTruncatedPowerLaw", between("low", INF), alpha=-2.4, low=0.8),
    case("DoublyTruncatedPowerLaw", between("low", "high"), alpha=-1.4, low=0.8, high=2.0),
    case("Uniform", between("low", "high"), low=-0.2, high=1.2),
    case("LogUniform", between("low", "high"), low=0.6, high=1.8),
    *(
        case(
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
        case(
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
    case("FoldedDistribution", HALF, of=lambda p: nd.FoldedDistribution(gaussian(p)), **GAUSS),
    case("HurdleGamma", HALF, atoms=(0.0,), gate=0.3, concentration=1.4, rate=1.2),
    case("HurdleLogNormal", HALF, atoms=(0.0,), gate=0.3, **GAUSS),
    case("Delta", atoms=lambda p: [p["v"]], v=0.4),
    *MORE,
]
