"""What is tried of the one-dimensional distributions of TFP on JAX."""

import jax.numpy as jnp

from benchmarks._cases_tfp_more import MORE
from benchmarks._tfp import BASE, GAUSS, LIBRARY, affine, case, td
from benchmarks._univariate import CIRCLE, HALF, INF, REAL, UNIT, between, kinked

__all__ = ["BASE", "CASES", "LIBRARY", "OTHERS", "affine"]
OTHERS = {
    **dict.fromkeys(
        "Autoregressive CholeskyLKJ VectorDeterministic Dirichlet FlatDirichlet LKJ "
        "DirichletMultinomial DeterminantalPointProcess GaussianProcess HiddenMarkovModel "
        "GaussianProcessRegressionModel LinearGaussianStateSpaceModel MarkovChain "
        "MatrixNormalLinearOperator MatrixTLinearOperator Multinomial "
        "MultivariateStudentTLinearOperator MultivariateNormalDiag "
        "MultivariateNormalDiagPlusLowRank MultivariateNormalDiagPlusLowRankCovariance "
        "MultivariateNormalFullCovariance MultivariateNormalLinearOperator MultivariateNormalTriL "
        "OneHotCategorical PlackettLuce PowerSpherical ExpRelaxedOneHotCategorical "
        "RelaxedOneHotCategorical SphericalUniform StudentTProcess StudentTProcessRegressionModel "
        "VariationalGaussianProcess VonMisesFisher WishartLinearOperator WishartTriL "
        "Blockwise".split(),
        "several dimensions",
    ),
    **dict.fromkeys(
        "BatchBroadcast BatchConcat BatchReshape Independent Masked Sample "
        "JointDistributionCoroutine JointDistributionCoroutineAutoBatched JointDistributionNamed "
        "JointDistributionNamedAutoBatched JointDistributionSequential "
        "JointDistributionSequentialAutoBatched".split(),
        "made of others",
    ),
    **dict.fromkeys(
        "AutoCompositeTensorDistribution Distribution JointDistribution".split(), "abstract"
    ),
    "Empirical": "its draws are data, which have no density",
    "Horseshoe": "its log_prob is an approximation",
}
CASES = [
    *(case(n, REAL, **GAUSS) for n in "Normal Logistic Gumbel Cauchy Moyal".split()),
    case("Laplace", kinked("loc"), **GAUSS),
    case("DoublesidedMaxwell", kinked("loc"), **GAUSS),
    case("GeneralizedNormal", kinked("loc"), **GAUSS, power=1.6),
    case("StudentT", REAL, df=3.5, **GAUSS),
    case("JohnsonSU", REAL, skewness=0.4, tailweight=1.3, **GAUSS),
    case("SinhArcsinh", REAL, **GAUSS, skewness=0.3, tailweight=1.2),
    case("LambertWNormal", REAL, **GAUSS, tailweight=0.2),
    case(
        "LambertWDistribution",
        REAL,
        of=lambda p: td.LambertWDistribution(
            td.Normal(p["loc"], p["scale"]), p["loc"], p["scale"], p["tailweight"]
        ),
        **GAUSS,
        tailweight=0.2,
    ),
    case("NormalInverseGaussian", REAL, **GAUSS, tailweight=1.4, skewness=0.3),
    case("ExponentiallyModifiedGaussian", REAL, **GAUSS, rate=1.3),
    case("TwoPieceNormal", kinked("loc"), **GAUSS, skewness=1.3),
    case("TwoPieceStudentT", kinked("loc"), df=3.5, **GAUSS, skewness=1.3),
    case("ExpGamma", REAL, concentration=1.4, rate=1.2),
    case("ExpInverseGamma", REAL, concentration=1.4, scale=1.2),
    case("SigmoidBeta", REAL, concentration1=1.4, concentration0=1.8),
    case("LogNormal", HALF, **GAUSS),
    case("LogLogistic", HALF, loc=0.3, scale=0.4),
    case("Exponential", HALF, rate=1.3),
    case("HalfNormal", HALF, scale=0.8),
    case("HalfCauchy", between("loc", INF), **GAUSS),
    case("HalfStudentT", between("loc", INF), df=3.5, **GAUSS),
    case("HalfCauchy, loc fixed", HALF, of=lambda p: td.HalfCauchy(0.0, p["scale"]), scale=0.8),
    case(
        "HalfStudentT, loc fixed",
        HALF,
        of=lambda p: td.HalfStudentT(p["df"], 0.0, p["scale"]),
        df=3.5,
        scale=0.8,
    ),
    case("Gamma", HALF, concentration=1.4, rate=1.2),
    case("InverseGamma", HALF, concentration=2.4, scale=1.2),
    case("GammaGamma", HALF, concentration=1.4, mixing_concentration=2.6, mixing_rate=1.2),
    case("Chi", HALF, df=2.6),
    case("Chi2", HALF, df=2.6),
    case("NoncentralChi2", HALF, df=2.6, noncentrality=0.8),
    case("Weibull", HALF, scale=0.9, concentration=1.6),
    case("InverseGaussian", HALF, loc=0.9, concentration=1.6),
    case(
        "BetaQuotient",
        HALF,
        **{
            "concentration1_numerator": 2.4,
            "concentration0_numerator": 1.8,
            "concentration1_denominator": 2.7,
            "concentration0_denominator": 1.6,
        },
    ),
    case("Beta", UNIT, concentration1=1.4, concentration0=1.8),
    case("Kumaraswamy", UNIT, concentration1=1.4, concentration0=1.8),
    case("LogitNormal", UNIT, **GAUSS),
    case(
        "ContinuousBernoulli",
        UNIT,
        of=lambda p: td.ContinuousBernoulli(p["logits"], dtype=jnp.float64),
        logits=0.7,
    ),
    case("RelaxedBernoulli", UNIT, temperature=0.8, logits=0.4),
    case("VonMises", CIRCLE, loc=0.3, concentration=1.2),
    case("Pareto", between("scale", INF), scale=0.8, concentration=2.4),
    case(
        "Pareto, scale fixed",
        (0.8, INF),
        of=lambda p: td.Pareto(p["concentration"], 0.8),
        concentration=2.4,
    ),
    case("GeneralizedPareto", between("loc", INF), **GAUSS, concentration=0.3),
    case(
        "GeneralizedPareto, loc fixed",
        HALF,
        of=lambda p: td.GeneralizedPareto(0.0, p["scale"], 0.3),
        scale=0.8,
    ),
    case(
        "GeneralizedExtremeValue",
        lambda p: (p["loc"] - p["scale"] / p["concentration"], INF),
        **GAUSS,
        concentration=0.3,
    ),
    case("Uniform", between("low", "high"), low=-0.2, high=1.2),
    case("Triangular", lambda p: (p["low"], p["peak"], p["high"]), low=-0.2, high=1.2, peak=0.4),
    case(
        "Triangular, limits fixed",
        lambda p: (0.0, p["peak"], 1.0),
        of=lambda p: td.Triangular(0.0, 1.0, p["peak"]),
        peak=0.4,
    ),
    case("PERT", between("low", "high"), low=-0.2, peak=0.4, high=1.2, temperature=3.2),
    case(
        "PERT, limits fixed",
        UNIT,
        of=lambda p: td.PERT(0.0, p["peak"], 1.0, p["temperature"]),
        peak=0.4,
        temperature=3.2,
    ),
    case(
        "Bates",
        lambda p: [p["low"] + (p["high"] - p["low"]) * i / 3 for i in range(4)],
        of=lambda p: td.Bates(3.0, p["low"], p["high"]),
        low=-0.2,
        high=1.2,
    ),
    *(
        case(name, between("low", "high"), **GAUSS, low=-0.7, high=1.4)
        for name in ("TruncatedNormal", "TruncatedCauchy")
    ),
    *(
        case(
            f"{name}, limits fixed",
            (-0.7, 1.4),
            of=lambda p, name=name: getattr(td, name)(p["loc"], p["scale"], -0.7, 1.4),
            **GAUSS,
        )
        for name in ("TruncatedNormal", "TruncatedCauchy")
    ),
    case("Deterministic", atoms=lambda p: [p["loc"]], loc=0.4),
    *MORE,
]
