"""What is tried of NumPyro's one-dimensional distributions: discrete ones, and those made of others."""

import jax.numpy as jnp

from benchmarks._numpyro import COUNTS, FEW, GAUSS, LOGITS, case, gaussian, nd, nt
from benchmarks._univariate import HALF, INF, REAL, UNIT

MORE = [
    # --- discrete
    case("BernoulliLogits", atoms=(0, 1), logits=0.4),
    case("BernoulliProbs", atoms=(0, 1), probs=0.4),
    case("BinomialLogits", atoms=FEW, of=lambda p: nd.BinomialLogits(p["logits"], 5), logits=0.4),
    case("BinomialProbs", atoms=FEW, of=lambda p: nd.BinomialProbs(p["probs"], 5), probs=0.4),
    case("CategoricalLogits", atoms=(0, 1, 2), logits=LOGITS),
    case(
        "CategoricalProbs",  # it does not normalize what it is given
        atoms=(0, 1, 2),
        of=lambda p: nd.CategoricalProbs(p["probs"] / p["probs"].sum()),
        probs=(0.2, 0.3, 0.5),
    ),
    case("GeometricLogits", atoms=COUNTS, logits=0.4),
    case("GeometricProbs", atoms=COUNTS, probs=0.4),
    case("Poisson", atoms=COUNTS, rate=1.4),
    case("ZeroInflatedPoisson", atoms=COUNTS, gate=0.3, rate=1.4),
    case("HurdlePoisson", atoms=COUNTS, gate=0.3, rate=1.4),
    case(
        "HurdleProbs",
        atoms=COUNTS,
        of=lambda p: nd.HurdleProbs(nd.Poisson(p["rate"]), p["gate"]),
        gate=0.3,
        rate=1.4,
    ),
    case(
        "HurdleLogits",
        atoms=COUNTS,
        of=lambda p: nd.HurdleLogits(nd.Poisson(p["rate"]), p["gate_logits"]),
        gate_logits=0.3,
        rate=1.4,
    ),
    case(
        "ZeroInflatedProbs",
        atoms=COUNTS,
        of=lambda p: nd.ZeroInflatedProbs(nd.Poisson(p["rate"]), p["gate"]),
        gate=0.3,
        rate=1.4,
    ),
    case(
        "ZeroInflatedLogits",
        atoms=COUNTS,
        of=lambda p: nd.ZeroInflatedLogits(nd.Poisson(p["rate"]), p["gate_logits"]),
        gate_logits=0.3,
        rate=1.4,
    ),
    case("GammaPoisson", atoms=range(200), concentration=2.4, rate=1.2),
    case("NegativeBinomial2", atoms=range(200), mean=1.4, concentration=2.4),
    case("NegativeBinomialLogits", atoms=range(200), total_count=2.4, logits=-0.4),
    case("NegativeBinomialProbs", atoms=range(200), total_count=2.4, probs=0.4),
    case(
        "BetaBinomial",
        atoms=FEW,
        of=lambda p: nd.BetaBinomial(p["concentration1"], p["concentration0"], 5),
        concentration1=1.4,
        concentration0=1.8,
    ),
    case(
        "BetaNegativeBinomial",
        atoms=range(20_000),
        of=lambda p: nd.BetaNegativeBinomial(p["concentration1"], p["concentration0"], 2),
        concentration1=6.4,
        concentration0=1.8,
    ),
    case(
        "OrderedLogistic",
        atoms=(0, 1, 2),
        of=lambda p: nd.OrderedLogistic(p["predictor"], p["cutpoints"]),
        predictor=0.3,
        cutpoints=(-0.4, 0.7),
    ),
    case(
        "DiscreteUniform",
        atoms=FEW,
        of=lambda p: nd.DiscreteUniform(0 * p["unused"].astype(int), 5),
        unused=0.3,
    ),
    # --- made of others
    *(
        case(
            f"TransformedDistribution of a Normal by {name}",
            ends,
            of=lambda p, transforms=transforms: nd.TransformedDistribution(gaussian(p), transforms),
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
    case(
        "TransformedDistribution of a Beta by exp",
        (1.0, float(jnp.e)),
        of=lambda p: nd.TransformedDistribution(nd.Beta(p["a"], p["b"]), nt.ExpTransform()),
        a=1.4,
        b=1.8,
    ),
    case(
        "TransformedDistribution of a Gamma by a power",
        HALF,
        of=lambda p: nd.TransformedDistribution(
            nd.Gamma(p["concentration"], 1.2), nt.PowerTransform(p["power"])
        ),
        concentration=1.4,
        power=0.7,
    ),
    case(
        "MixtureSameFamily",
        REAL,
        of=lambda p: nd.MixtureSameFamily(
            nd.Categorical(logits=p["logits"]), nd.Normal(p["loc"], 0.7)
        ),
        logits=(0.3, -0.2),
        loc=(-0.5, 1.0),
    ),
    case(
        "MixtureSameFamily of Betas",
        UNIT,
        of=lambda p: nd.MixtureSameFamily(
            nd.Categorical(logits=p["logits"]), nd.Beta(p["concentration"], 1.5)
        ),
        logits=(0.3, -0.2),
        concentration=(1.4, 2.5),
    ),
    case(
        "MixtureSameFamily of Uniforms",
        lambda p: (0.0, p["high"][0], p["high"][1]),
        jumps=True,
        of=lambda p: nd.MixtureSameFamily(
            nd.Categorical(logits=p["logits"]), nd.Uniform(jnp.zeros(2), p["high"])
        ),
        logits=(0.3, -0.2),
        high=(0.8, 1.4),
    ),
    case(
        "MixtureGeneral",
        REAL,
        of=lambda p: nd.MixtureGeneral(
            nd.Categorical(logits=p["logits"]), [nd.Normal(p["loc"], 0.7), nd.Logistic(1.0, 0.4)]
        ),
        logits=(0.3, -0.2),
        loc=-0.5,
    ),
    case(
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
