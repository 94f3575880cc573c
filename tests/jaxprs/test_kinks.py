"""Kinks and jumps of a function of one array, read from its jaxpr."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy import special, stats

from vijax import jaxprs

AT = jnp.array([0.3, -0.7, 1.2], jnp.float32)
DATA = jnp.array([0.0, 1.0, 2.0], jnp.float32)
SIGN = jnp.array([-1.0, 1.0, 1.0], jnp.float32)


@jax.custom_jvp
def rounded(x):
    """A straight-through rounding."""
    return jnp.round(x)


rounded.defjvps(lambda t, _, x: t)


@jax.custom_vjp
def absolute(x):
    return jnp.abs(x)


absolute.defvjp(lambda x: (jnp.abs(x), x), lambda x, g: (g * jnp.sign(x),))


@jax.custom_vjp
def guarded_softplus(x):
    return jnp.where(x > 20, x, jnp.log1p(jnp.exp(x)))


guarded_softplus.defvjp(lambda x: (guarded_softplus(x), x), lambda x, g: (g * jax.nn.sigmoid(x),))


def mixture(x):
    terms = jnp.stack([stats.norm.logpdf(x, -1.0, 0.5), stats.norm.logpdf(x, 1.0, 2.0)])
    return special.logsumexp(terms, axis=0)


def scanned(f):
    return lambda x: jax.lax.scan(lambda c, y: (c, f(y)), 0.0, x)[1]


SMOOTH = {
    "logistic": lambda x: jax.nn.log_sigmoid(SIGN * x),
    "probit": lambda x: stats.norm.logcdf(SIGN * x),
    "log_ndtr": special.log_ndtr,
    "softplus": jax.nn.softplus,
    "logaddexp": lambda x: jnp.logaddexp(x, 2 * x),
    "Poisson": lambda x: stats.poisson.logpmf(DATA, jnp.exp(x)),
    "negative binomial": lambda x: stats.nbinom.logpmf(DATA, 3.0, jax.nn.sigmoid(x)),
    "Student-t": lambda x: stats.t.logpdf(DATA, 4.0, x, 0.5),
    "Cauchy": lambda x: stats.cauchy.logpdf(DATA, x, 0.5),
    "logistic density": lambda x: stats.logistic.logpdf(DATA, x),
    "gamma of a log rate": lambda x: stats.gamma.logpdf(DATA + 1, 2.0, scale=jnp.exp(x)),
    "log-sum-exp": mixture,
    "log-softmax": lambda x: jax.nn.log_softmax(jnp.stack([x, 0 * x]), 0)[0],
    "xlogy": lambda x: special.xlogy(DATA, jnp.exp(x)),
    "a choice by data": lambda x: jnp.where(DATA > 0.5, x**2, -x),
    "a guard of nan": lambda x: jnp.where(jnp.isnan(x), 0.0, -(x**2)),
    "a guard at one point": lambda x: jnp.where(x == 0, 0.0, x**2),
    "scan of smooth": scanned(lambda y: jnp.exp(-y)),
    "abs of what is positive": lambda x: jnp.log(jnp.abs(jnp.exp(x) + x**2)),
    "data alone": lambda x: x * jnp.abs(DATA) + jnp.maximum(DATA, 0.5),
    "guarded, with its derivative": guarded_softplus,
    "jit within": jax.jit(lambda x: jnp.tanh(x)),
    "sqrt of 1 + x²": lambda x: jnp.sqrt(1 + x**2),
    "a power of what is positive": lambda x: (jnp.exp(x) + DATA**2) ** 0.5,
    "rsqrt of softplus": lambda x: jax.lax.rsqrt(jax.nn.softplus(x)),
    "norm beside a constant": lambda x: jnp.linalg.norm(jnp.stack([x, 0 * x + 1]) ** 2 + 1, axis=0),
    "atan2 on the right": lambda x: jnp.arctan2(x, jnp.exp(x)),
    "arctan": jnp.arctan,
    "a whole power": lambda x: jax.lax.pow(x, 3.0) + 2.0**x,
    "roots of data": lambda x: x * jnp.sqrt(DATA) * jnp.cbrt(DATA),
}
BENT = {
    "Laplace": (lambda x: stats.laplace.logpdf(DATA, x, 0.05), "abs"),
    "hinge": (lambda x: -jnp.maximum(0.0, 1 - SIGN * x), "max"),
    "clip": (lambda x: jnp.clip(x, -1.0, 1.0), "max|min|clamp|clip"),
    "relu": (jax.nn.relu, "max"),
    "leaky_relu": (jax.nn.leaky_relu, "ge|gt"),
    "step": (lambda x: jnp.where(x > 0, 0.0, -5.0), "select_n|gt"),
    "indicator": (lambda x: (x > 0).astype(x.dtype), "gt|cast"),
    "Huber": (lambda x: jnp.where(jnp.abs(x) < 1, x**2, 2 * jnp.abs(x) - 1), "abs|lt"),
    "sign": (lambda x: x * jnp.sign(x), "sign"),
    "floor": (lambda x: jnp.floor(3 * x), "floor"),
    "straight-through": (rounded, "round"),
    "straight-through, by stopping": (
        lambda x: x + jax.lax.stop_gradient(jnp.round(x) - x),
        "round",
    ),
    "abs, with its derivative": (absolute, "abs"),
    "largest of several": (lambda x: jnp.max(jnp.stack([x, -x]), 0), "reduce_max|max"),
    "sorted": (lambda x: jnp.sort(jnp.stack([x, -x]), 0)[0], "sort"),
    "an index": (lambda x: DATA[jnp.int32(x)], "cast"),
    "cond": (
        lambda x: jax.vmap(lambda y: jax.lax.cond(y > 0, jnp.exp, jnp.sin, y))(x),
        "gt|cond|select_n",
    ),
    "scan of bent": (scanned(jnp.abs), "abs"),
    "atan2": (lambda x: jnp.arctan2(x, -1.0), "atan2"),
    "angle": (lambda x: jnp.angle(x + 1j), "atan2"),
    "a complex log": (lambda x: jnp.log(x + 0j).imag, "log"),
    "arccos": (jnp.arccos, "acos"),
    "arcsin": (lambda x: jnp.arcsin(jnp.sin(x)), "asin"),
    "sqrt of x²": (lambda x: jnp.sqrt(x**2), "sqrt"),
    "a power of x²": (lambda x: (x * x) ** 0.5, "pow|sqrt"),
    "norm": (lambda x: -jnp.linalg.norm(jnp.stack([x, 2 * x]), axis=0), "sqrt"),
    "cbrt": (jnp.cbrt, "cbrt"),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_what_is_smooth_passes(name):
    assert jax.jit(lambda: (jaxprs.not_smooth(SMOOTH[name], AT), 0)[1])() == 0
    assert jaxprs.not_smooth(SMOOTH[name], AT) is None


@pytest.mark.parametrize("name", BENT)
def test_what_bends_or_breaks_is_blamed(name):
    function, how = BENT[name]
    blame = jaxprs.not_smooth(function, AT)
    assert blame is not None
    assert re.fullmatch(how, blame.primitive), blame


def test_a_host_callback_is_opaque():
    shape = jax.ShapeDtypeStruct(AT.shape, AT.dtype)
    blame = jaxprs.not_smooth(partial(jax.pure_callback, np.sin, shape), AT)
    assert blame == jaxprs.Blame("pure_callback", opaque=True)
