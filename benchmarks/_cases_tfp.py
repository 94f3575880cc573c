"""What is tried of the one-dimensional distributions of TFP on JAX."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from tensorflow_probability.substrates import jax as tfp

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

td, tb = tfp.distributions, tfp.bijectors
LIBRARY = "tfp"
BASE = td.Distribution
LOGITS = (0.3, -0.4, 0.6)
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
    "PoissonLogNormalQuadratureCompound": "log_prob",
}


def affine(q: Any, shift: Any, scale: Any) -> Any:
    line = tb.Chain([tb.Shift(jnp.asarray(shift, float)), tb.Scale(scale)])
    return vj.families.adapt(td.TransformedDistribution(q.adapted, line))


def _case(
    cls: str,
    pieces: Places = (),
    *,
    atoms: Places = (),
    of: Any = None,
    jumps: bool = False,
    **parameters: Any,
) -> Case:
    make: Callable[[Parameters], Any] = of or (lambda p: getattr(td, cls)(**p))
    return Case(
        f"tfp {cls}", lambda p: vj.families.adapt(make(p)), parameters, pieces, atoms, jumps
    )


def _normal(p: Parameters) -> Any:
    return td.Normal(p["loc"], p["scale"])


GAUSS = dict(loc=0.3, scale=0.8)
COUNTS, FEW = range(80), range(6)
ONE = np.float64(1.0)  # TFP asks for one dtype throughout
CASES = [
    *(_case(n, REAL, **GAUSS) for n in "Normal Logistic Gumbel Cauchy Moyal".split()),
    _case("Laplace", kinked("loc"), **GAUSS),
    _case("DoublesidedMaxwell", kinked("loc"), **GAUSS),
    _case("GeneralizedNormal", kinked("loc"), **GAUSS, power=1.6),
    _case("StudentT", REAL, df=3.5, **GAUSS),
    _case("JohnsonSU", REAL, skewness=0.4, tailweight=1.3, **GAUSS),
    _case("SinhArcsinh", REAL, **GAUSS, skewness=0.3, tailweight=1.2),
    _case("LambertWNormal", REAL, **GAUSS, tailweight=0.2),
    _case(
        "LambertWDistribution",
        REAL,
        of=lambda p: td.LambertWDistribution(
            td.Normal(p["loc"], p["scale"]), p["loc"], p["scale"], p["tailweight"]
        ),
        **GAUSS,
        tailweight=0.2,
    ),
    _case("NormalInverseGaussian", REAL, **GAUSS, tailweight=1.4, skewness=0.3),
    _case("ExponentiallyModifiedGaussian", REAL, **GAUSS, rate=1.3),
    _case("TwoPieceNormal", kinked("loc"), **GAUSS, skewness=1.3),
    _case("TwoPieceStudentT", kinked("loc"), df=3.5, **GAUSS, skewness=1.3),
    _case("ExpGamma", REAL, concentration=1.4, rate=1.2),
    _case("ExpInverseGamma", REAL, concentration=1.4, scale=1.2),
    _case("SigmoidBeta", REAL, concentration1=1.4, concentration0=1.8),
    _case("LogNormal", HALF, **GAUSS),
    _case("LogLogistic", HALF, loc=0.3, scale=0.4),
    _case("Exponential", HALF, rate=1.3),
    _case("HalfNormal", HALF, scale=0.8),
    _case("HalfCauchy", between("loc", INF), **GAUSS),
    _case("HalfStudentT", between("loc", INF), df=3.5, **GAUSS),
    _case("HalfCauchy, loc fixed", HALF, of=lambda p: td.HalfCauchy(0.0, p["scale"]), scale=0.8),
    _case(
        "HalfStudentT, loc fixed",
        HALF,
        of=lambda p: td.HalfStudentT(p["df"], 0.0, p["scale"]),
        df=3.5,
        scale=0.8,
    ),
    _case("Gamma", HALF, concentration=1.4, rate=1.2),
    _case("InverseGamma", HALF, concentration=2.4, scale=1.2),
    _case("GammaGamma", HALF, concentration=1.4, mixing_concentration=2.6, mixing_rate=1.2),
    _case("Chi", HALF, df=2.6),
    _case("Chi2", HALF, df=2.6),
    _case("NoncentralChi2", HALF, df=2.6, noncentrality=0.8),
    _case("Weibull", HALF, scale=0.9, concentration=1.6),
    _case("InverseGaussian", HALF, loc=0.9, concentration=1.6),
    _case(
        "BetaQuotient",
        HALF,
        **{
            "concentration1_numerator": 2.4,
            "concentration0_numerator": 1.8,
            "concentration1_denominator": 2.7,
            "concentration0_denominator": 1.6,
        },
    ),
    _case("Beta", UNIT, concentration1=1.4, concentration0=1.8),
    _case("Kumaraswamy", UNIT, concentration1=1.4, concentration0=1.8),
    _case("LogitNormal", UNIT, **GAUSS),
    _case(
        "ContinuousBernoulli",
        UNIT,
        of=lambda p: td.ContinuousBernoulli(p["logits"], dtype=jnp.float64),
        logits=0.7,
    ),
    _case("RelaxedBernoulli", UNIT, temperature=0.8, logits=0.4),
    _case("VonMises", CIRCLE, loc=0.3, concentration=1.2),
    _case("Pareto", between("scale", INF), scale=0.8, concentration=2.4),
    _case(
        "Pareto, scale fixed",
        (0.8, INF),
        of=lambda p: td.Pareto(p["concentration"], 0.8),
        concentration=2.4,
    ),
    _case("GeneralizedPareto", between("loc", INF), **GAUSS, concentration=0.3),
    _case(
        "GeneralizedPareto, loc fixed",
        HALF,
        of=lambda p: td.GeneralizedPareto(0.0, p["scale"], 0.3),
        scale=0.8,
    ),
    _case(
        "GeneralizedExtremeValue",
        lambda p: (p["loc"] - p["scale"] / p["concentration"], INF),
        **GAUSS,
        concentration=0.3,
    ),
    _case("Uniform", between("low", "high"), low=-0.2, high=1.2),
    _case("Triangular", lambda p: (p["low"], p["peak"], p["high"]), low=-0.2, high=1.2, peak=0.4),
    _case(
        "Triangular, limits fixed",
        lambda p: (0.0, p["peak"], 1.0),
        of=lambda p: td.Triangular(0.0, 1.0, p["peak"]),
        peak=0.4,
    ),
    _case("PERT", between("low", "high"), low=-0.2, peak=0.4, high=1.2, temperature=3.2),
    _case(
        "PERT, limits fixed",
        UNIT,
        of=lambda p: td.PERT(0.0, p["peak"], 1.0, p["temperature"]),
        peak=0.4,
        temperature=3.2,
    ),
    _case(
        "Bates",
        lambda p: [p["low"] + (p["high"] - p["low"]) * i / 3 for i in range(4)],
        of=lambda p: td.Bates(3.0, p["low"], p["high"]),
        low=-0.2,
        high=1.2,
    ),
    *(
        _case(name, between("low", "high"), **GAUSS, low=-0.7, high=1.4)
        for name in ("TruncatedNormal", "TruncatedCauchy")
    ),
    *(
        _case(
            f"{name}, limits fixed",
            (-0.7, 1.4),
            of=lambda p, name=name: getattr(td, name)(p["loc"], p["scale"], -0.7, 1.4),
            **GAUSS,
        )
        for name in ("TruncatedNormal", "TruncatedCauchy")
    ),
    _case("Deterministic", atoms=lambda p: [p["loc"]], loc=0.4),
    # --- discrete
    _case("Bernoulli", atoms=(0, 1), logits=0.4),
    _case(
        "Bernoulli of floats",
        atoms=(0.0, 1.0),
        of=lambda p: td.Bernoulli(logits=p["logits"], dtype=jnp.float64),
        logits=0.4,
    ),
    _case("ProbitBernoulli", atoms=(0, 1), probits=0.4),
    _case("Binomial", atoms=FEW, of=lambda p: td.Binomial(5.0, logits=p["logits"]), logits=0.4),
    _case("Categorical", atoms=(0, 1, 2), logits=LOGITS),
    _case("Geometric", atoms=COUNTS, logits=0.4),
    _case("Poisson", atoms=COUNTS, rate=1.4),
    _case(
        "NegativeBinomial",
        atoms=range(200),
        of=lambda p: td.NegativeBinomial(
            p["total_count"], logits=p["logits"], require_integer_total_count=False
        ),
        total_count=2.4,
        logits=-0.4,
    ),
    _case(
        "BetaBinomial",
        atoms=FEW,
        of=lambda p: td.BetaBinomial(5.0, p["concentration1"], p["concentration0"]),
        concentration1=1.4,
        concentration0=1.8,
    ),
    _case("Skellam", atoms=range(-40, 41), rate1=1.4, rate2=0.8),
    _case("Zipf", atoms=range(1, 4000), power=4.2),
    _case(
        "FiniteDiscrete, fixed outcomes",
        atoms=(-1.0, 0.5, 2.0),
        of=lambda p: td.FiniteDiscrete(np.array([-1.0, 0.5, 2.0]), logits=p["logits"]),
        logits=LOGITS,
    ),
    _case(
        "FiniteDiscrete",
        atoms=lambda p: list(p["outcomes"]),
        outcomes=(-1.0, 0.5, 2.0),
        logits=LOGITS,
    ),
    *(
        _case(name, atoms=(0, 1, 2), cutpoints=(-0.4, 0.7), loc=0.3)
        for name in ("OrderedLogistic", "StoppingRatioLogistic")
    ),
    _case(
        "Inflated Poisson",
        atoms=COUNTS,
        of=lambda p: td.Inflated(td.Poisson(p["rate"]), inflated_loc_logits=p["logits"]),
        rate=1.4,
        logits=-0.4,
    ),
    _case(
        "Inflated Gamma",
        HALF,
        atoms=(0.0,),
        of=lambda p: td.Inflated(
            td.Gamma(p["concentration"], 1.2), inflated_loc_logits=p["logits"]
        ),
        concentration=1.4,
        logits=-0.4,
    ),
    _case(
        "ZeroInflatedNegativeBinomial",
        atoms=range(200),
        of=lambda p: td.ZeroInflatedNegativeBinomial(
            inflated_loc_logits=p["gate"],
            total_count=2.4,
            logits=p["logits"],
            require_integer_total_count=False,
        ),
        gate=-0.4,
        logits=-0.4,
    ),
    _case(
        "QuantizedDistribution",
        atoms=range(-3, 4),
        of=lambda p: td.QuantizedDistribution(_normal(p), -3.0, 3.0),
        **GAUSS,
    ),
    # --- made of others
    *(
        _case(
            f"TransformedDistribution of a Normal by {name}",
            ends,
            of=lambda p, bijector=bijector: td.TransformedDistribution(_normal(p), bijector()),
            **GAUSS,
        )
        for name, ends, bijector in (
            ("Exp", HALF, tb.Exp),
            ("Softplus", HALF, tb.Softplus),
            ("Sigmoid", UNIT, tb.Sigmoid),
            ("Tanh", (-1.0, 1.0), tb.Tanh),
            ("NormalCDF", UNIT, tb.NormalCDF),
            ("Sinh", REAL, tb.Sinh),
            ("SoftClip", (-1.0, 2.0), lambda: tb.SoftClip(np.float64(-1.0), np.float64(2.0))),
            ("Chain", (1.0, 4.0), lambda: tb.Chain([tb.Shift(1.0), tb.Scale(3.0), tb.Sigmoid()])),
        )
    ),
    _case(
        "TransformedDistribution of a Gamma by Power",
        HALF,
        of=lambda p: td.TransformedDistribution(
            td.Gamma(p["concentration"], 1.2), tb.Power(p["power"])
        ),
        concentration=1.4,
        power=0.7,
    ),
    _case(
        "Mixture",
        REAL,
        of=lambda p: td.Mixture(
            td.Categorical(logits=p["logits"]), [td.Normal(p["loc"], 0.7), td.Logistic(ONE, 0.4)]
        ),
        logits=(0.3, -0.2),
        loc=-0.5,
    ),
    _case(
        "Mixture of a Normal and a Uniform",
        lambda p: (-INF, 0.0, p["high"], INF),
        jumps=True,
        of=lambda p: td.Mixture(
            td.Categorical(logits=p["logits"]),
            [td.Normal(0.2 * ONE, 0.7), td.Uniform(0.0, p["high"])],
        ),
        logits=(0.3, -0.2),
        high=0.9,
    ),
    *(
        _case(
            f"MixtureSameFamily{', reparameterized' if reparameterize else ''}",
            REAL,
            of=lambda p, reparameterize=reparameterize: td.MixtureSameFamily(
                td.Categorical(logits=p["logits"]),
                td.Normal(p["loc"], 0.7),
                reparameterize=reparameterize,
            ),
            logits=(0.3, -0.2),
            loc=(-0.5, 1.0),
        )
        for reparameterize in (False, True)
    ),
    _case(
        "MixtureSameFamily of Gammas",
        HALF,
        of=lambda p: td.MixtureSameFamily(
            td.Categorical(logits=p["logits"]), td.Gamma(p["concentration"], 1.2)
        ),
        logits=(0.3, -0.2),
        concentration=(1.3, 2.5),
    ),
    _case(
        "MixtureSameFamily of Uniforms",
        lambda p: (0.0, p["high"][0], p["high"][1]),
        jumps=True,
        of=lambda p: td.MixtureSameFamily(
            td.Categorical(logits=p["logits"]), td.Uniform(jnp.zeros(2), p["high"])
        ),
        logits=(0.3, -0.2),
        high=(0.8, 1.4),
    ),
]
