"""The forum's models of groups, functions and mixtures, and the table of all ten; see `_forum`."""

import math
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import gammaln
from jax.scipy.stats import norm

from benchmarks import _forum
from benchmarks._forum import (
    POSITIVE,
    Latents,
    Question,
    constraints,
    given,
    half_normal,
    inverse_gamma,
    numbers,
    standardized,
)

GROUPS = 20


def sleepers() -> tuple[Array, Array, Array]:
    """Return covariates [20, 11, 3], answers [20, 11] and which are there, 4 to 11 in each of 20 groups; drawn."""
    draw = np.random.default_rng(5)
    there = np.arange(11) < draw.integers(4, 12, (GROUPS, 1))
    x = np.concatenate([np.ones((GROUPS, 11, 1)), draw.normal(size=(GROUPS, 11, 2))], 2)
    root = np.diag([1.0, 0.6, 0.4]) @ np.linalg.cholesky(0.5 * np.eye(3) + 0.5)
    coefficients = np.array([1.0, 0.5, -0.3]) + draw.normal(size=(GROUPS, 3)) @ root.T
    y = np.einsum("gic,gc->gi", x, coefficients) + 0.8 * draw.normal(size=(GROUPS, 11))
    return *numbers(x, np.where(there, y, 0)), jnp.asarray(there)


def slopes_scales(z: Latents) -> Array:
    """Return the log prior of all but the effects; LKJ(2) is a density of the numbers below the root's diagonal."""
    prior = (
        jnp.sum(norm.logpdf(z["mean"], 0, 3))
        + jnp.sum(half_normal(z["tau"], 1.5))
        + half_normal(z["sigma"], 1.5)
    )
    diagonal = jnp.diagonal(z["corr"])
    return prior + 3 * jnp.log(diagonal[1]) + 2 * jnp.log(diagonal[2])


def slopes_answers(z: Latents, effects: Array, data: tuple[Array, Array, Array]) -> Array:
    """Return the log prior of each group's effects, in units of their root, and its log likelihood, [20]."""
    x, y, there = data
    coefficients = z["mean"] + effects @ (z["tau"][:, None] * z["corr"]).T
    each = norm.logpdf(y, jnp.einsum("gic,gc->gi", x, coefficients), z["sigma"])
    return jnp.sum(norm.logpdf(effects), 1) + jnp.sum(jnp.where(there, each, 0.0), 1)


SLOPES = {
    "mean": None,
    "tau": POSITIVE,
    "sigma": POSITIVE,
    "corr": constraints.cholesky_correlation,
}


def slopes_start() -> Latents:
    return given(mean=np.zeros(3), tau=np.ones(3), sigma=1.0, corr=np.eye(3))


def slopes_report(z: Latents) -> Latents:
    corr = z["corr"] @ z["corr"].T
    coefficients = z["mean"] + z["effects"] @ (z["tau"][:, None] * z["corr"]).T
    between = jnp.stack([corr[1, 0], corr[2, 0], corr[2, 1]])
    found = {name: z[name] for name in ("tau", "sigma", "mean")}
    return found | {"corr": between, "coefficients": coefficients}


def slopes(root: Path | None) -> Question:
    data = sleepers()

    def log_joint(z: Latents) -> Array:
        return slopes_scales(z) + jnp.sum(slopes_answers(z, z["effects"], data))

    start = slopes_start() | {"effects": jnp.zeros((GROUPS, 3))}
    return Question(log_joint, SLOPES | {"effects": None}, start, slopes_report)


def ragged(root: Path | None) -> Question:
    """Counts of a gene in 700 cells of ten types, 8 to 240 cells of each: negative binomial, types from one normal."""
    if root is None or not (path := root / "pbmc" / "pbmc68k_reduced.npz").exists():
        raise FileNotFoundError("pbmc/pbmc68k_reduced.npz, in --data DIR or VIJAX_DATA")
    data = np.load(path)
    counts = data["counts"][:, list(data["gene"]).index("CD74")]
    y, offset = numbers(counts, np.log(data["total"] / np.median(data["total"])))
    kind = np.asarray(data["label"], int)

    def log_joint(z: Latents) -> Array:
        prior = norm.logpdf(z["mean"], 0, 3) + half_normal(z["sd"], 2) + half_normal(z["size"], 10)
        prior += jnp.sum(norm.logpdf(z["level"], z["mean"], z["sd"]))
        log_mean, log_size = offset + z["level"][kind], jnp.log(z["size"])
        both = jnp.logaddexp(log_mean, log_size)
        choose = gammaln(y + z["size"]) - gammaln(z["size"]) - gammaln(y + 1)
        return prior + jnp.sum(choose + y * (log_mean - both) + z["size"] * (log_size - both))

    bounds = {"mean": None, "sd": POSITIVE, "size": POSITIVE}
    bounds |= {"level": lambda z: constraints.affine(z["mean"], z["sd"])}
    return Question(log_joint, bounds, given(mean=0.0, sd=1.0, size=1.0, level=np.zeros(10)))


def gaussian_process(root: Path | None) -> Question:
    """Progress of 442 patients' diabetes as a smooth function of their body mass: a Gaussian process in 15 sines.

    Reference: Solin, Särkkä, Hilbert space methods for reduced-rank Gaussian process regression, 2020.
    """
    from sklearn.datasets import load_diabetes

    covariates, progress = load_diabetes(return_X_y=True)
    mass, half_width = standardized(covariates[:, 2]), 5.0
    frequency = np.arange(1, 16) * np.pi / (2 * half_width)
    sines = np.sin(np.outer(mass + half_width, frequency)) / np.sqrt(half_width)
    basis, y, squares = numbers(sines, standardized(progress), frequency**2)

    def function(z: Latents) -> Array:
        density = math.sqrt(2 * math.pi) * z["length"] * jnp.exp(-(z["length"] ** 2) * squares / 2)
        return basis @ (z["scale"] * jnp.sqrt(density) * z["weight"])

    def log_joint(z: Latents) -> Array:
        prior = inverse_gamma(z["length"], 3.0, 3.0) + half_normal(z["scale"], 1)
        prior += half_normal(z["noise"], 1) + jnp.sum(norm.logpdf(z["weight"]))
        return prior + jnp.sum(norm.logpdf(y, function(z), z["noise"]))

    def report(z: Latents) -> Latents:
        logs = {f"log_{name}": jnp.log(z[name]) for name in ("length", "scale", "noise")}
        return logs | {"f": function(z)[::20]}

    bounds = dict.fromkeys(("length", "scale", "noise"), POSITIVE) | {"weight": None}
    start = given(length=1.0, scale=1.0, noise=0.7, weight=np.zeros(15))
    return Question(log_joint, bounds, start, report)


def mixture(root: Path | None) -> Question:
    """Two measurements of 178 wines, a mixture of three; nothing says which component is the first."""
    from sklearn.datasets import load_wine

    (x,) = numbers(standardized(load_wine().data[:, [6, 9]]))  # flavanoids and color

    def log_joint(z: Latents) -> Array:
        prior = jnp.sum(norm.logpdf(z["at"], 0, 1.5)) + jnp.sum(norm.logpdf(z["height"], 0, 1.5))
        # log-normal(-.7, .5) spreads, Dirichlet(4, 4, 4) shares
        prior += jnp.sum(norm.logpdf(jnp.log(z["sd"]), -0.7, 0.5) - jnp.log(z["sd"]))
        prior += 3 * jnp.sum(jnp.log(z["share"])) + math.lgamma(12) - 3 * math.lgamma(4)
        each = norm.logpdf(x[:, :1], z["at"], z["sd"][0]) + jnp.log(z["share"])
        each += norm.logpdf(x[:, 1:], z["height"], z["sd"][1])
        return prior + jnp.sum(jax.nn.logsumexp(each, 1))

    bounds = {"at": None, "height": None, "sd": POSITIVE, "share": constraints.simplex}
    start = given(
        at=[-1.2, 0.0, 1.0], height=[1.0, -0.8, 0.3], sd=np.full((2, 3), 0.5), share=np.ones(3) / 3
    )
    return Question(log_joint, bounds, start, identified=bounds | {"at": constraints.ordered})


def sorted_labels(z: Latents) -> Latents:
    """Return the mixture's latents in the order of the components' first measurement: `constrain=` for summarize."""
    order = jnp.argsort(z["at"])
    return {name: leaf[..., order] for name, leaf in z.items()}


SLOPES_NAME, HORSESHOE, ITEM_RESPONSE = (
    "correlated slopes",
    "regularised horseshoe",
    "item response",
)
MIXTURE = "unordered mixture"
MODELS: dict[str, Callable[[Path | None], Question]] = {
    SLOPES_NAME: slopes,
    HORSESHOE: _forum.horseshoe,
    ITEM_RESPONSE: _forum.item_response,
    MIXTURE: mixture,
    "censored Weibull": _forum.weibull,
    "Gaussian process": gaussian_process,
    "change points": _forum.change_points,
    "stochastic volatility": _forum.volatility,
    "ragged groups": ragged,
    "ordered logistic": _forum.ordered_logistic,
}
