"""Ten models that people bring to forums, as a user of vijax writes them: data, a log joint, its constraints, a start.

Real data: diabetes and wine of scikit-learn; `uci/wine-quality-red.npz` and `pbmc/pbmc68k_reduced.npz` of --data. Drawn
from the model by a fixed seed: stochastic volatility, item response, censored Weibull, change points, slopes.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn import log_sigmoid
from jax.scipy.special import gammaln
from jax.scipy.stats import beta as beta_prior
from jax.scipy.stats import gamma, norm

import vijax as vj

Latents = dict[str, Array]
constraints = vj.targets.constraints
POSITIVE = constraints.positive


class Question(NamedTuple):
    """A model with its data.

    Fields:
        log_joint: of the latents z, in nats.
        constraints: of z, for `targets.transform`.
        start: a z.
        report: z -> what is compared with the reference.
        identified: constraints under which NUTS samples, where labels of `constraints` may switch.
    """

    log_joint: Callable[[Latents], Array]
    constraints: dict[str, Any]
    start: Latents
    report: Callable[[Latents], Latents] = lambda z: z
    identified: dict[str, Any] | None = None


def given(**values: Any) -> Latents:
    return {name: jnp.asarray(value, float) for name, value in values.items()}


def numbers(*data: Any) -> list[Array]:
    return [jnp.asarray(d, float) for d in data]


def standardized(x: Any) -> np.ndarray:
    x = np.asarray(x, float)
    return (x - x.mean(0)) / x.std(0)


def half_normal(x: Array, scale: float) -> Array:
    return norm.logpdf(x, 0, scale) + math.log(2)


def half_cauchy(x: Array) -> Array:
    return math.log(2 / math.pi) - jnp.log1p(x**2)


def inverse_gamma(x: Array, shape: float, rate: float) -> Array:
    return shape * math.log(rate) - math.lgamma(shape) - (shape + 1) * jnp.log(x) - rate / x


# --- regularised horseshoe


COLUMNS, PATIENTS = 28, 442


def diabetes() -> tuple[np.ndarray, np.ndarray]:
    """Ten covariates of diabetes patients, the squares of all but sex, and the products of those with sex."""
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True)
    sex, rest = x[:, 1:2], np.delete(x, 1, 1)
    return standardized(np.concatenate([x, rest**2, sex * rest], 1)), standardized(y)


def slab(z: Latents) -> Array:
    """Return the sd of each coefficient: the horseshoe's τ λ, and no more than the slab's c."""
    square = jnp.square(z["tau"] * z["lam"])
    return jnp.sqrt(z["c2"] * square / (z["c2"] + square))


def horseshoe_tau0(sigma: Array) -> Array:
    """Return the scale of τ where some 6 coefficients of 28 count (Piironen, Vehtari, 2017)."""
    return 6 / (COLUMNS - 6) * sigma / math.sqrt(PATIENTS)


def horseshoe_scales(z: Latents) -> Array:
    """Return the log prior of τ and λ."""
    tau0 = horseshoe_tau0(z["sigma"])
    return half_cauchy(z["tau"] / tau0) - jnp.log(tau0) + jnp.sum(half_cauchy(z["lam"]))


def horseshoe_rest(z: Latents) -> Array:
    """Return the log prior of the slab's variance and of the noise."""
    return inverse_gamma(z["c2"], 2.0, 2.0) + half_normal(z["sigma"], 1.0)


def horseshoe_answers() -> Callable[[Array, Array], Array]:
    """Return (coefficients, σ) -> log likelihood, which the data enter through XᵀX, Xᵀy and yᵀy alone."""
    x, y = diabetes()
    gram, cross, square = numbers(x.T @ x, x.T @ y, y @ y)

    def log_likelihood(b: Array, sigma: Array) -> Array:
        left = square - 2 * cross @ b + b @ gram @ b
        return -PATIENTS * (jnp.log(sigma) + 0.5 * math.log(2 * math.pi)) - 0.5 * left / sigma**2

    return log_likelihood


def horseshoe_report(z: Latents) -> Latents:
    logs = {f"log_{name}": jnp.log(z[name]) for name in ("tau", "lam", "c2", "sigma")}
    return logs | {"beta": z["beta"]}


def horseshoe(root: Path | None) -> Question:
    log_likelihood = horseshoe_answers()

    def log_joint(z: Latents) -> Array:
        prior = horseshoe_scales(z) + horseshoe_rest(z)
        prior += jnp.sum(norm.logpdf(z["beta"], 0, slab(z)))
        return prior + log_likelihood(z["beta"], z["sigma"])

    bounds = dict.fromkeys(("sigma", "tau", "c2", "lam"), POSITIVE)
    bounds |= {"beta": lambda z: constraints.affine(0.0, slab(z))}
    start = given(sigma=1.0, tau=0.01, c2=1.0, lam=np.ones(COLUMNS), beta=np.zeros(COLUMNS))
    return Question(log_joint, bounds, start, horseshoe_report)


# --- chains and panels


def volatility(root: Path | None) -> Question:
    """Stochastic volatility of 60 returns, drawn from the model."""
    draw = np.random.default_rng(1)
    h = np.zeros(60)
    for t in range(60):
        h[t] = -1 + (0.95 * (h[t - 1] + 1) if t else 0.0) + 0.3 * draw.normal()
    (y,) = numbers(np.exp(h / 2) * draw.normal(size=60))

    lags = np.subtract.outer(np.arange(60), np.arange(60))

    def path(z: Latents) -> Array:
        """Return log variances h: h₁ of the stationary spread, hₜ = μ + φ (hₜ₋₁ - μ) + σ eₜ, as a matrix times e."""
        decay = jnp.where(lags >= 0, jnp.exp(np.maximum(lags, 0) * jnp.log(z["phi"])), 0.0)
        first = z["e"].at[0].divide(jnp.sqrt(1 - z["phi"] ** 2))
        return z["mu"] + z["sigma"] * (decay @ first)

    def log_joint(z: Latents) -> Array:
        prior = norm.logpdf(z["mu"], 0, 2) + half_normal(z["sigma"], 0.5)
        prior += beta_prior.logpdf(z["phi"], 20, 1.5) + jnp.sum(norm.logpdf(z["e"]))
        return prior + jnp.sum(norm.logpdf(y, 0, jnp.exp(path(z) / 2)))

    def report(z: Latents) -> Latents:
        return {"mu": z["mu"], "phi": z["phi"], "sigma": z["sigma"], "h": path(z)}

    bounds = {"mu": None, "phi": constraints.interval(0.0, 1.0), "sigma": POSITIVE, "e": None}
    return Question(log_joint, bounds, given(mu=0.0, phi=0.9, sigma=0.2, e=np.zeros(60)), report)


def change_points(root: Path | None) -> Question:
    """Counts of 8 series over 40 months, each of which changes its rate once; the months are summed out. Drawn."""
    draw = np.random.default_rng(2)
    rates, when = draw.normal([2.0, 1.2], 0.4, (8, 2)), draw.integers(10, 30, 8)
    means = np.exp(np.where(np.arange(40) < when[:, None], rates[:, :1], rates[:, 1:]))
    (y,) = numbers(draw.poisson(means))

    def log_joint(z: Latents) -> Array:
        prior = jnp.sum(norm.logpdf(z["mean"], 0, 3)) + jnp.sum(half_normal(z["sd"], 1))
        prior += jnp.sum(norm.logpdf(z["rate"], z["mean"], z["sd"]))
        each = y[:, :, None] * z["rate"][:, None] - jnp.exp(z["rate"])[:, None]
        so_far = jnp.cumsum(
            each, 1
        )  # [8, 40, 2]: of the first c months before, and of the rest after
        split = so_far[:, :-1, 0] + so_far[:, -1:, 1] - so_far[:, :-1, 1]
        summed = jax.nn.logsumexp(split, 1) - math.log(39)
        return prior + jnp.sum(summed) - jnp.sum(gammaln(y + 1))

    bounds = {"mean": None, "sd": POSITIVE}
    bounds |= {"rate": lambda z: constraints.affine(z["mean"][None], z["sd"][None])}
    start = given(mean=[1.5, 1.5], sd=[0.5, 0.5], rate=np.tile([1.6, 1.4], (8, 1)))
    return Question(log_joint, bounds, start)


# --- items and ranks


def items() -> Array:
    """Return whether 50 people solved each of 10 items, [50, 10], drawn from the model."""
    draw = np.random.default_rng(3)
    ability, slope = draw.normal(size=(50, 1)), np.exp(0.4 * draw.normal(size=10))
    logits = slope * (ability - 0.3 - draw.normal(size=10))
    return jnp.asarray(draw.random((50, 10)) < 1 / (1 + np.exp(-logits)), float)


def item_prior(z: Latents) -> Array:
    """Return the log prior of discriminations and difficulties, with their mean and spreads."""
    prior = half_normal(z["spread"], 1) + half_normal(z["sd"], 2) + norm.logpdf(z["mean"], 0, 2)
    prior += jnp.sum(norm.logpdf(z["log_slope"], 0, z["spread"]))
    return prior + jnp.sum(norm.logpdf(z["difficulty"], z["mean"], z["sd"]))


def item_answers(z: Latents, ability: Array) -> Array:
    """Return the log prior of each ability and the log likelihood of its answers, [50]."""
    logits = jnp.exp(z["log_slope"]) * (ability[:, None] - z["difficulty"])
    return norm.logpdf(ability) + jnp.sum(log_sigmoid((2 * items() - 1) * logits), 1)


ITEMS = {
    "mean": None,
    "sd": POSITIVE,
    "spread": POSITIVE,
    "log_slope": lambda z: constraints.affine(0.0, z["spread"]),
    "difficulty": lambda z: constraints.affine(z["mean"], z["sd"]),
}


def item_start() -> Latents:
    return given(mean=0.0, sd=1.0, spread=0.4, log_slope=np.zeros(10), difficulty=np.zeros(10))


def item_response(root: Path | None) -> Question:
    def log_joint(z: Latents) -> Array:
        return item_prior(z) + jnp.sum(item_answers(z, z["ability"]))

    start = item_start() | {"ability": jnp.zeros(50)}
    return Question(log_joint, ITEMS | {"ability": None}, start)


def ordered_logistic(root: Path | None) -> Question:
    """The quality of 1,599 red wines in six ranks, given eleven measurements."""
    if root is None or not (path := root / "uci" / "wine-quality-red.npz").exists():
        raise FileNotFoundError("uci/wine-quality-red.npz, in --data DIR or VIJAX_DATA")
    data = np.load(path)
    rank = np.asarray(data["y"], int).ravel() - 3
    x, low, high = numbers(standardized(data["x"]), np.eye(7)[rank], np.eye(7)[rank + 1])

    def log_joint(z: Latents) -> Array:
        prior = jnp.sum(norm.logpdf(z["beta"], 0, 1)) + jnp.sum(norm.logpdf(z["cut"], 0, 5))
        # Beyond the outermost ranks no answer is left: e^-40.
        ends = jnp.concatenate([jnp.full(1, -40.0), z["cut"], jnp.full(1, 40.0)])
        a, b = low @ ends - x @ z["beta"], high @ ends - x @ z["beta"]
        return prior + jnp.sum(log_sigmoid(b) + log_sigmoid(-a) + jnp.log(-jnp.expm1(a - b)))

    start = given(beta=np.zeros(11), cut=[-5.0, -3.0, 0.0, 2.0, 4.0])
    return Question(log_joint, {"beta": None, "cut": constraints.ordered}, start)


def weibull(root: Path | None) -> Question:
    """150 survival times given ten covariates, a third of them censored; drawn from the model."""
    draw = np.random.default_rng(4)
    covariates = draw.normal(size=(150, 10))
    effects = np.array([0.8, -0.5, 0.3, *np.zeros(7)])
    times = np.exp(1 + covariates @ effects) * draw.weibull(1.5, 150)
    limits = draw.exponential(8.0, 150)
    x, log_t, event = numbers(covariates, np.log(np.minimum(times, limits)), times <= limits)

    def log_joint(z: Latents) -> Array:
        prior = jnp.sum(norm.logpdf(z["beta"])) + norm.logpdf(z["level"], 0, 5)
        prior += gamma.logpdf(z["shape"], 2.0)
        scaled = z["shape"] * (log_t - z["level"] - x @ z["beta"])
        return prior + jnp.sum(event * (jnp.log(z["shape"]) + scaled - log_t) - jnp.exp(scaled))

    start = given(shape=1.0, level=0.0, beta=np.zeros(10))
    return Question(log_joint, {"shape": POSITIVE, "level": None, "beta": None}, start)
