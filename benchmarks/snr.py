"""Rainforth's experiment: the signal-to-noise ratio of gradients against the number of draws, with its figure."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.stats import norm

import vijax as vj
from benchmarks._report import Options, Row, missing, ratio_of, row

# z ~ N(mu, I), x | z ~ N(z, I), q(z | x) = N(A x + b, 2/3 I), in 20 dimensions. At A = I/2, b = mu/2 the mean of q is
# the posterior's; every parameter is moved from there by N(0, .01^2), since at an optimum nothing has a signal.
D, MOVED, SPREAD = 20, 0.01, 2 / 3
ROWS = 40_000  # draws x keys in memory at a time
FIGURE = Path("out") / "snr.png"
MODEL, PLAIN, DREG = "model, plain or dreg", "q, plain", "q, dreg"


class Gaussian(NamedTuple):
    """q, written plainly: one event of D numbers."""

    mean: Array

    def sample_and_log_prob(
        self, *, seed: Any, sample_shape: tuple[int, ...] = ()
    ) -> tuple[Array, Array]:
        z = self.mean + SPREAD**0.5 * jax.random.normal(seed, (*sample_shape, D))
        return z, self.log_prob(z)

    def log_prob(self, z: Array, /) -> Array:
        return norm.logpdf(z, self.mean, SPREAD**0.5).sum(-1)


def problem(seed: int) -> tuple[dict[str, Any], Array]:
    """Parameters near their optimum, and one datum drawn from the model."""
    rng = np.random.default_rng(seed)
    mu = rng.normal(size=D)
    x = mu + np.sqrt(2.0) * rng.normal(size=D)
    best = {"model": mu, "q": {"A": np.eye(D) / 2, "b": mu / 2}}
    moved = jax.tree.map(
        lambda a: jnp.asarray(a + MOVED * rng.normal(size=a.shape), jnp.float32), best
    )
    return moved, jnp.asarray(x, jnp.float32)


def value(key: Array, params: Any, gradient: Any, x: Array, k: int) -> Array:
    def log_joint(z: Array) -> Array:
        return norm.logpdf(z, params["model"], 1.0).sum(-1) + norm.logpdf(x, z, 1.0).sum(-1)

    q = Gaussian(params["q"]["A"] @ x + params["q"]["b"])
    return gradient(vj.bounds.iwae)(key, log_joint, q, num_samples=k).value


def ratios(k: int, keys: int, params: Any, x: Array) -> dict[str, float]:
    """SNR of the model's gradient and of q's in b, averaged over coordinates."""
    found: dict[str, float] = {}
    for name, gradient in ((PLAIN, vj.gradients.reparam), (DREG, vj.gradients.dreg)):
        of = partial(value, gradient=gradient, x=x, k=k)
        moments = partial(
            vj.testing.gradient_moments, num_keys=keys, batch_size=max(1, min(keys, ROWS // k))
        )
        snr = jax.jit(lambda key, params, of=of, moments=moments: moments(key, of, params))(
            jax.random.key(0), params
        ).snr
        found |= {MODEL: float(snr["model"].mean()), name: float(snr["q"]["b"].mean())}
    return found


def figure(ks: list[int], found: dict[str, list[float]], floor: float) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(figsize=(5.5, 4), layout="constrained")
    styles = {MODEL: ("o-", "#1b6ca8"), DREG: ("s-", "#2a9d5c"), PLAIN: ("^-", "#c8553d")}
    for name, (style, colour) in styles.items():
        axes.loglog(ks, found[name], style, color=colour, markersize=5)
        axes.annotate(
            name,
            (ks[-1], found[name][-1]),
            (6, 0),
            textcoords="offset points",
            va="center",
            color=colour,
        )
    for name in (MODEL, DREG):
        axes.loglog(ks, found[name][-1] * np.sqrt(np.asarray(ks) / ks[-1]), ":", color="0.6", lw=1)
    axes.axhspan(floor / 3, floor, color="0.93", lw=0, zorder=0)
    text = "noise of this measurement"
    axes.annotate(text, (ks[0], floor), (0, -4), textcoords="offset points", va="top", color="0.5")
    axes.set(xlabel="draws K (dotted: √K)", ylabel="signal-to-noise ratio of one gradient")
    axes.set(xlim=(ks[0] / 1.5, ks[-1] ** 1.4), ylim=(floor / 3, None))
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    FIGURE.parent.mkdir(exist_ok=True)
    fig.savefig(FIGURE, dpi=160)
    plt.close(fig)


def run(options: Options) -> Iterator[Row]:
    ks = [1, 4, 16, 64] if options.quick else [1, 4, 16, 64, 256, 1024]
    keys = 4_000 if options.quick else 20_000
    params, x = problem(0)
    floor = float(np.sqrt(2 / np.pi / keys))  # E|mean| / sd of a mean that is zero
    found: dict[str, list[float]] = {MODEL: [], PLAIN: [], DREG: []}
    for k in ks:
        for name, snr in ratios(k, keys, params, x).items():
            found[name].append(snr)
            first = found[name][0]
            yield row(
                name, f"signal-to-noise ratio of one gradient, K = {k}, {keys} keys", snr, "", "K = 1",
                ratio_of(snr, first), k=k, floor=floor,
            )  # fmt: skip

    metric = f"from K = {ks[0]} to K = {ks[-1]}"

    def slope(name: str, n: int) -> float:
        return float(np.polyfit(np.log(ks[-n:]), np.log(found[name][-n:]), 1)[0])

    yield row(
        MODEL, f"{metric}: |exponent of K - 1/2|", abs(slope(MODEL, len(ks)) - 0.5), "", bar=0.05
    )
    if not options.quick:
        yield row(
            DREG,
            f"{metric}: |exponent of K - 1/2| from K = 64 on",
            abs(slope(DREG, 3) - 0.5),
            "",
            bar=0.1,
        )
    yield row(
        DREG, f"{metric}: its first over its last", found[DREG][0] / found[DREG][-1], "", bar=0.9
    )
    # Unlike the others it ends in the noise: twice the floor is nothing that a training step could use.
    yield row(
        PLAIN, f"{metric}: its last over its first", found[PLAIN][-1] / found[PLAIN][0], "", bar=0.6
    )
    if not options.quick:
        yield row(
            PLAIN,
            f"{metric}: its last over the noise of the measurement",
            found[PLAIN][-1] / floor,
            "",
            bar=2.0,
        )
    try:
        figure(ks, found, floor)
    except ImportError as why:
        yield missing(str(FIGURE), "figure", why)
    else:
        yield row(str(FIGURE), "figure", None, "")
