"""A model small enough for a closed form, to see whose gradient of a model's parameter is right."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.stats import norm

import vijax as vj
from benchmarks import _contenders as contenders
from benchmarks._peers import Missing, peer
from benchmarks._report import Row, missing, ratio_of, row

# z ~ N(theta, 1), x | z ~ N(z, 1), q = N(m, s) fixed. Then d log w / d theta = z - theta, so the gradient of IWAE is
# E[sum of normalised weights x (z - theta)]: no autodiff needed; d log p(x) / d theta = (x - theta) / 2 is its limit.
THETA, X, MEAN, SCALE, K = 0.0, 1.3, -0.2, 1.0, 16
METRIC = f"toy: gradient of IWAE-{K} in a parameter of the model"


def closed_form(draws: int) -> tuple[float, float]:
    """Mean and standard error of the closed form, in NumPy and float64."""
    z = MEAN + SCALE * np.random.default_rng(0).standard_normal((draws, K))
    log_w = -0.5 * (z - THETA) ** 2 - 0.5 * (X - z) ** 2 + 0.5 * ((z - MEAN) / SCALE) ** 2
    w = np.exp(log_w - log_w.max(1, keepdims=True))
    slope = (w * (z - THETA)).sum(1) / w.sum(1)
    return float(slope.mean()), float(slope.std(ddof=1) / np.sqrt(draws))


class Scalar:
    """q = N(MEAN, SCALE), one number."""

    def sample_and_log_prob(
        self, *, seed: Any, sample_shape: tuple[int, ...] = ()
    ) -> tuple[Array, Array]:
        z = MEAN + SCALE * jax.random.normal(seed, sample_shape)
        return z, self.log_prob(z)

    def log_prob(self, z: Array, /) -> Array:
        return norm.logpdf(z, MEAN, SCALE)


def log_joint(theta: Array, z: Array) -> Array:
    return norm.logpdf(z, theta, 1.0) + norm.logpdf(X, z, 1.0)


def ours(gradient: Callable[..., Any]) -> Callable[[Array, Array], Array]:
    objective = gradient(vj.bounds.iwae)
    return lambda theta, key: (
        objective(key, lambda z: log_joint(theta, z), Scalar(), num_samples=K).value
    )


def tfp(estimator: str) -> Callable[[Array, Array], Array]:
    tfp = peer("tensorflow_probability.substrates.jax")
    q = tfp.distributions.Normal(MEAN, SCALE)

    def bound(theta: Array, key: Array) -> Array:
        return -tfp.vi.monte_carlo_variational_loss(
            lambda z: log_joint(theta, z), q, importance_sample_size=K, seed=key, stopped_surrogate_posterior=q,
            gradient_estimator=getattr(tfp.vi.GradientEstimators, estimator),
        )  # fmt: skip

    return bound


def run(draws: int = 20_000) -> Iterator[Row]:
    truth, error = closed_form(20 * draws)
    yield row("the closed form", METRIC, truth, f"± {error:.4f}", standard_error=error)
    yield row("its limit, d log p(x) / d theta", METRIC, (X - THETA) / 2, "exactly")
    keys = jax.random.split(jax.random.key(0), draws)
    theta = jnp.asarray(THETA)
    bounds: dict[str, Callable[[], Callable[[Array, Array], Array]]] = {
        "vijax dreg": lambda: ours(contenders.DREG),
        "vijax reparam": lambda: ours(contenders.REPARAM),
        "tfp REPARAMETERIZATION": lambda: tfp("REPARAMETERIZATION"),
        "tfp DOUBLY_REPARAMETERIZED": lambda: tfp("DOUBLY_REPARAMETERIZED"),
    }
    for name, make in bounds.items():
        try:
            slope = np.asarray(
                jax.jit(jax.vmap(jax.grad(make()), (None, 0)))(theta, keys), np.float64
            )
        except Missing as why:
            yield missing(name, METRIC, why)
            continue
        mean, spread = float(slope.mean()), float(slope.std(ddof=1) / np.sqrt(draws))
        z = (mean - truth) / float(np.hypot(spread, error))
        yield row(
            name, METRIC, mean, f"± {spread:.4f}", "the closed form", ratio_of(mean, truth), standard_error=spread, z=z,
            note=f"{z:+.1f} s.e. away",
        )  # fmt: skip
        if name.startswith("vijax"):
            yield row(f"{name}, distance from the closed form", METRIC, abs(z), "s.e.", bar=4.5)
