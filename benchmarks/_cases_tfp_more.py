"""What is tried of the one-dimensional distributions of TFP on JAX: discrete ones, and those made of others."""

import jax.numpy as jnp
import numpy as np

from benchmarks._tfp import COUNTS, FEW, GAUSS, LOGITS, ONE, case, gaussian, tb, td
from benchmarks._univariate import HALF, INF, REAL, UNIT

MORE = [
    # --- discrete
    case("Bernoulli", atoms=(0, 1), logits=0.4),
    case(
        "Bernoulli of floats",
        atoms=(0.0, 1.0),
        of=lambda p: td.Bernoulli(logits=p["logits"], dtype=jnp.float64),
        logits=0.4,
    ),
    case("PoissonLogNormalQuadratureCompound", atoms=range(200), loc=0.3, scale=0.4),
    case("ProbitBernoulli", atoms=(0, 1), probits=0.4),
    case("Binomial", atoms=FEW, of=lambda p: td.Binomial(5.0, logits=p["logits"]), logits=0.4),
    case("Categorical", atoms=(0, 1, 2), logits=LOGITS),
    case("Geometric", atoms=COUNTS, logits=0.4),
    case("Poisson", atoms=COUNTS, rate=1.4),
    case(
        "NegativeBinomial",
        atoms=range(200),
        of=lambda p: td.NegativeBinomial(
            p["total_count"], logits=p["logits"], require_integer_total_count=False
        ),
        total_count=2.4,
        logits=-0.4,
    ),
    case(
        "BetaBinomial",
        atoms=FEW,
        of=lambda p: td.BetaBinomial(5.0, p["concentration1"], p["concentration0"]),
        concentration1=1.4,
        concentration0=1.8,
    ),
    case("Skellam", atoms=range(-40, 41), rate1=1.4, rate2=0.8),
    case("Zipf", atoms=range(1, 4000), power=4.2),
    case(
        "FiniteDiscrete, fixed outcomes",
        atoms=(-1.0, 0.5, 2.0),
        of=lambda p: td.FiniteDiscrete(np.array([-1.0, 0.5, 2.0]), logits=p["logits"]),
        logits=LOGITS,
    ),
    case(
        "FiniteDiscrete",
        atoms=lambda p: list(p["outcomes"]),
        outcomes=(-1.0, 0.5, 2.0),
        logits=LOGITS,
    ),
    *(
        case(name, atoms=(0, 1, 2), cutpoints=(-0.4, 0.7), loc=0.3)
        for name in ("OrderedLogistic", "StoppingRatioLogistic")
    ),
    case(
        "Inflated Poisson",
        atoms=COUNTS,
        of=lambda p: td.Inflated(td.Poisson(p["rate"]), inflated_loc_logits=p["logits"]),
        rate=1.4,
        logits=-0.4,
    ),
    case(
        "Inflated Gamma",
        HALF,
        atoms=(0.0,),
        of=lambda p: td.Inflated(
            td.Gamma(p["concentration"], 1.2), inflated_loc_logits=p["logits"]
        ),
        concentration=1.4,
        logits=-0.4,
    ),
    case(
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
    case(
        "QuantizedDistribution",
        atoms=range(-3, 4),
        of=lambda p: td.QuantizedDistribution(gaussian(p), -3.0, 3.0),
        **GAUSS,
    ),
    # --- made of others
    *(
        case(
            f"TransformedDistribution of a Normal by {name}",
            ends,
            of=lambda p, bijector=bijector: td.TransformedDistribution(gaussian(p), bijector()),
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
    case(
        "TransformedDistribution of a Gamma by Power",
        HALF,
        of=lambda p: td.TransformedDistribution(
            td.Gamma(p["concentration"], 1.2), tb.Power(p["power"])
        ),
        concentration=1.4,
        power=0.7,
    ),
    case(
        "Mixture",
        REAL,
        of=lambda p: td.Mixture(
            td.Categorical(logits=p["logits"]), [td.Normal(p["loc"], 0.7), td.Logistic(ONE, 0.4)]
        ),
        logits=(0.3, -0.2),
        loc=-0.5,
    ),
    case(
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
        case(
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
    case(
        "MixtureSameFamily of Gammas",
        HALF,
        of=lambda p: td.MixtureSameFamily(
            td.Categorical(logits=p["logits"]), td.Gamma(p["concentration"], 1.2)
        ),
        logits=(0.3, -0.2),
        concentration=(1.3, 2.5),
    ),
    case(
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
