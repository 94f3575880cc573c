"""Kinds of q, each with a model, its parameters, and the points over which expectations are exact."""

from collections.abc import Callable
from typing import Any, NamedTuple

import distrax
import jax
import jax.numpy as jnp
import numpy as np

import vijax as vj
from tests import oracles
from tests.bare import Coin, Die, Gauss


class Case(NamedTuple):
    """A model and a q: params hold {"q", "theta"}; `log_p` and `log_q` know nothing of vijax.

    points, volumes: a grid or all states; where the batch has members, points carry no batch axis and broadcast.
    path: draws carry q's derivative. loose: `build` relies on NumPy's promotion of ranks.
    """

    name: str
    params: Any
    build: Callable[[Any], Any]
    log_p: Callable[[Any, Any], Any]
    log_q: Callable[[Any, Any], Any]
    points: Any
    volumes: Any
    path: bool = True
    loose: bool = False

    def truth(self, bound, k):
        """Return the exact Σ_batch E[bound] and its gradient in params."""
        log_p = lambda params, z: self.log_p(params["theta"], z)
        log_q = lambda params, z: self.log_q(params["q"], z)
        return oracles.value_and_grad(
            bound, log_p, log_q, self.points, self.volumes, k, self.params
        )


X = np.array([1.5, -0.3], np.float32)
f32 = np.float32

LINE = Case(  # a batch of two, one latent each
    "line",
    {
        "q": {"loc": np.array([0.2, 0.4], f32), "log_scale": np.array([-0.3, 0.1], f32)},
        "theta": f32(-0.5),
    },
    lambda q: Gauss(q["loc"], q["log_scale"]),
    lambda theta, z: oracles.gaussian_log_joint(theta, X, z),
    lambda q, z: jax.scipy.stats.norm.logpdf(z, q["loc"], jnp.exp(q["log_scale"])),
    *oracles.interval(-8.5, 9.5, 73),
)

COIN = (
    Case(  # a batch of two coins with float draws, the silent zero of a careless pathwise gradient
        "coin",
        {
            "q": {"logit": np.array([0.3, -0.6], f32)},
            "theta": {"logit": f32(0.5), "jump": f32(1.2)},
        },
        lambda q: Coin(q["logit"]),
        lambda theta, z: (
            jax.scipy.stats.bernoulli.logpmf(z, jax.nn.sigmoid(theta["logit"]))
            + jax.scipy.stats.norm.logpdf(X, theta["jump"] * z, 1.0)
        ),
        lambda q, z: jax.scipy.stats.bernoulli.logpmf(z, jax.nn.sigmoid(q["logit"])),
        np.arange(2.0),
        np.ones(2),
        path=False,
    )
)

DIE = Case(
    "die",
    {"q": np.array([0.2, -0.4, 0.7], f32), "theta": np.array([-0.8, 0.3, 0.9], f32)},
    Die,
    lambda theta, z: jax.nn.log_softmax(theta)[z] + jnp.array([-1.0, -0.2, -2.0])[z],
    lambda q, z: jax.nn.log_softmax(q)[z],
    np.arange(3),
    np.ones(3),
    path=False,
)

_RATE = np.linspace(-9.0, 4.0, 90)  # the grid is even in log z
RATE = Case(  # implicit derivatives of a rejection sampler
    "gamma",
    {"q": {"log_a": f32(1.1), "log_b": f32(0.1)}, "theta": f32(0.3)},
    lambda q: distrax.Gamma(jnp.exp(q["log_a"]), jnp.exp(q["log_b"])),
    lambda theta, z: (
        jax.scipy.stats.gamma.logpdf(z, 2.0, scale=jnp.exp(-theta))
        + 3.0 * jnp.log(z)
        - z
        - jnp.log(6.0)
    ),
    lambda q, z: jax.scipy.stats.gamma.logpdf(z, jnp.exp(q["log_a"]), scale=jnp.exp(-q["log_b"])),
    np.exp(_RATE),
    np.exp(_RATE) * (_RATE[1] - _RATE[0]),
    loose=True,
)

_CHAIN_POINTS = oracles.cross(
    oracles.interval(-4.2, 5.0, 17), (np.arange(2.0), np.ones(2)), oracles.interval(-5.8, 6.6, 21)
)
CHAIN = Case(  # Gaussian -> Bernoulli -> Gaussian, each conditional on the earlier draws; the grid is good to 1e-8 at k = 2
    "chain",
    jax.tree.map(
        np.float32,
        {
            "q": {
                "loc": 0.4,
                "log_scale": -0.3,
                "logit": -0.8,
                "slope": 0.9,
                "keep": 0.5,
                "jump": 0.3,
                "log_noise": -0.2,
            },
            "theta": {"loc": -0.3, "jump": 1.2},
        },
    ),
    lambda q: vj.Joint(
        {
            "a": Gauss(q["loc"], q["log_scale"]),
            "b": lambda z: Coin(q["logit"] + q["slope"] * z["a"]),
            "c": lambda z: Gauss(q["keep"] * z["a"] + q["jump"] * z["b"], q["log_noise"]),
        }
    ),
    lambda theta, z: oracles.chain_log_joint(theta, 1.6, z),
    oracles.chain_log_q,
    dict(zip("abc", _CHAIN_POINTS[0], strict=True)),
    _CHAIN_POINTS[1],
    path=False,
)

_TOWER_POINTS = oracles.cross(oracles.interval(-4.6, 5.2, 26), oracles.interval(-5.4, 6.6, 26))
TOWER = Case(  # Gaussian -> Gaussian: the later one's distribution depends on the earlier draw
    "tower",
    {
        "q": {
            key: f32(value)
            for key, value in dict(loc=0.4, log_scale=-0.3, keep=0.6, log_noise=-0.2).items()
        },
        "theta": f32(-0.3),
    },
    lambda q: vj.Joint(
        {
            "a": Gauss(q["loc"], q["log_scale"]),
            "c": lambda z: Gauss(q["keep"] * z["a"], q["log_noise"]),
        }
    ),
    lambda theta, z: (
        jax.scipy.stats.norm.logpdf(z["a"], theta, 1.0)
        + jax.scipy.stats.norm.logpdf(z["c"], z["a"], 1.0)
        + jax.scipy.stats.norm.logpdf(1.6, z["c"], 1.0)
    ),
    lambda q, z: (
        jax.scipy.stats.norm.logpdf(z["a"], q["loc"], jnp.exp(q["log_scale"]))
        + jax.scipy.stats.norm.logpdf(z["c"], q["keep"] * z["a"], jnp.exp(q["log_noise"]))
    ),
    dict(zip("ac", _TOWER_POINTS[0], strict=True)),
    _TOWER_POINTS[1],
)

MIXTURE = (
    Case(  # two modes, and a mixture of two Gaussians: its draws pass through a choice of component
        "mixture",
        {
            "q": {
                "logits": np.array([0.5, -0.2], f32),
                "loc": np.array([-1.0, 1.4], f32),
                "log_scale": np.array([-0.2, 0.1], f32),
            },
            "theta": f32(0.7),
        },
        lambda q: distrax.MixtureSameFamily(
            distrax.Categorical(q["logits"]), distrax.Normal(q["loc"], jnp.exp(q["log_scale"]))
        ),
        lambda theta, z: (
            jax.scipy.stats.norm.logpdf(z, 0.0, 2.0)
            + jax.scipy.stats.norm.logpdf(1.5, jnp.sqrt(1 + z**2), 0.8)
            + theta * z
        ),
        lambda q, z: jax.scipy.special.logsumexp(
            jax.nn.log_softmax(q["logits"])
            + jax.scipy.stats.norm.logpdf(
                jnp.expand_dims(z, -1), q["loc"], jnp.exp(q["log_scale"])
            ),
            axis=-1,
        ),
        *oracles.interval(-9.5, 10.5, 101),
        path=False,
        loose=True,
    )
)

_PLANE_POINTS = oracles.cross(oracles.interval(-4.6, 5.2, 22), oracles.interval(-5.0, 4.6, 22))


def _plane_log_p(theta, z):
    z0, z1 = z[..., 0], z[..., 1]
    prior = jax.scipy.stats.norm.logpdf(z0, theta, 1.0) + jax.scipy.stats.norm.logpdf(z1, 0.0, 1.0)
    return prior + jax.scipy.stats.norm.logpdf(1.2, z0 + 0.7 * z1, 0.8)


def plane(name, scales, build, covariance, loose=False):
    """Return a case of two correlated latents, for Gaussian q of any make; `scales` are its parameters beside loc."""
    return Case(
        name,
        {"q": {"loc": np.array([0.3, -0.2], f32), **scales}, "theta": f32(-0.6)},
        build,
        _plane_log_p,
        lambda q, z: jax.scipy.stats.multivariate_normal.logpdf(z, q["loc"], covariance(q)),
        np.stack(_PLANE_POINTS[0], -1),
        _PLANE_POINTS[1],
        loose=loose,
    )


LOG_SCALE = {"log_scale": np.array([-0.3, -0.4], f32)}


def diagonal(q):
    return jnp.diag(jnp.exp(2 * q["log_scale"]))


# --- one Gaussian of every make that vijax meets


def tri(q):
    return (
        jnp.array([[1.0, 0.0], [0.0, 1.0]]).at[1, 0].set(q["lower"][0])
        * jnp.exp(q["log_scale"])[:, None]
    )


def factored(q):
    return diagonal(q) + q["factor"] @ q["factor"].T


def adapted(q):
    from tensorflow_probability.substrates import jax as tfp

    return vj.families.adapt(
        tfp.distributions.MultivariateNormalDiag(q["loc"], jnp.exp(q["log_scale"]))
    )


def flow(q):
    """Return a Gaussian written as a flow: a standard normal pushed through an affine bijector."""
    affine = distrax.ScalarAffine(q["loc"], log_scale=q["log_scale"])
    return distrax.Independent(
        distrax.Transformed(distrax.Normal(jnp.zeros(2), jnp.ones(2)), affine), 1
    )


def relative(q):
    """Return the covariance of families.full_rank: diag(s) (I + lower) times its transpose."""
    return tri(q) @ tri(q).T


def chained(q):
    """Return the covariance of families.markov: diag(s) (U Uᵀ)⁻¹ diag(s), of two steps."""
    unit = jnp.eye(2).at[1, 0].set(q["below"][0, 0, 0])
    scale = jnp.diag(jnp.exp(q["log_scale"]))
    return scale @ jnp.linalg.inv(unit @ unit.T) @ scale


BELOW = {
    **LOG_SCALE,
    "below": np.array([[[0.6]]], f32),
}
FACTOR = {**LOG_SCALE, "factor": np.array([[0.4], [-0.5]], np.float32)}
LOWER = {**LOG_SCALE, "lower": np.array([-0.6], np.float32)}
exp = jnp.exp
MAKES = [
    plane("bare", LOG_SCALE, lambda q: Gauss(q["loc"], q["log_scale"], event=1), diagonal),
    plane("mean_field", LOG_SCALE, lambda q: vj.families.mean_field().dist(q), diagonal),
    plane("full_rank", LOWER, lambda q: vj.families.full_rank().dist(q), relative),
    plane(
        "markov",
        BELOW,
        lambda q: vj.families.markov().dist({**q, "lower": jnp.zeros((2, 0))}),
        chained,
    ),
    plane("low_rank", FACTOR, lambda q: vj.families.low_rank(rank=1).dist(q), factored),
    plane(
        "Independent",
        LOG_SCALE,
        lambda q: distrax.Independent(distrax.Normal(q["loc"], exp(q["log_scale"])), 1),
        diagonal,
        loose=True,
    ),
    plane(
        "MultivariateNormalDiag",
        LOG_SCALE,
        lambda q: distrax.MultivariateNormalDiag(q["loc"], exp(q["log_scale"])),
        diagonal,
        loose=True,
    ),
    plane(
        "MultivariateNormalDiagPlusLowRank",
        FACTOR,
        # Its scale is D + F Fᵀ, so its covariance is that squared.
        lambda q: distrax.MultivariateNormalDiagPlusLowRank(
            q["loc"], exp(q["log_scale"]), q["factor"]
        ),
        lambda q: (
            (jnp.diag(exp(q["log_scale"])) + q["factor"] @ q["factor"].T)
            @ (jnp.diag(exp(q["log_scale"])) + q["factor"] @ q["factor"].T)
        ),
        loose=True,
    ),
    plane(
        "MultivariateNormalTri",
        LOWER,
        lambda q: distrax.MultivariateNormalTri(q["loc"], tri(q)),
        relative,
        loose=True,
    ),
    plane("TFP", LOG_SCALE, adapted, diagonal, loose=True),
    plane("flow", LOG_SCALE, flow, diagonal, loose=True),
    RATE,
]
