"""Polynomials of degree one and two are known from their jaxpr; what is none is blamed on a primitive."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import multivariate_normal, norm
from numpyro.distributions import Normal

from vijax.jaxprs import not_linear, not_quadratic

X = jnp.linspace(-1.0, 1.0, 4)
A = jnp.arange(16.0).reshape(4, 4) / 7 + 3 * jnp.eye(4)


@jax.custom_jvp
def doubled(b):
    return b + b


doubled.defjvps(lambda t, out, b: 2 * t)


@jax.custom_jvp
def fourth_power(b):
    return b**4


fourth_power.defjvps(lambda t, out, b: 2 * t)  # which is wrong


def declared(value, slope):
    """Return a function of a value whose derivative is declared."""
    function = jax.custom_jvp(value)
    function.defjvps(lambda t, out, b: slope(b) * t)
    return function


@jax.custom_vjp
def form(b):
    return b @ A @ b


form.defvjp(lambda b: (form(b), b), lambda b, t: (t * ((A + A.T) @ b),))

DEGREES = {
    "constant": (lambda b: jnp.float32(1.0), 0),
    "matrix": (lambda b: A @ b, 1),
    "reordered": (lambda b: jnp.roll(b[::-1], 1)[jnp.array([1, 0])].sum(), 1),
    "written": (lambda b: jnp.zeros(4).at[1].set(b[0]).at[2].add(b[1]), 1),
    "Fourier": (lambda b: jnp.fft.fft(b).real, 1),
    "convolved": (lambda b: jnp.convolve(b, X), 1),
    "linear system": (lambda b: jnp.linalg.solve(A, b), 1),
    "half precision": (lambda b: b.astype(jnp.bfloat16).astype(jnp.float32), 1),
    "recursion": (lambda b: jax.lax.scan(lambda s, x: (0.9 * s + x, s), 0.0, b)[1], 1),
    "chosen by data": (lambda b: jnp.where(X > 0, b, -b), 1),
    "branch by data": (lambda b: jax.lax.cond(X[0] > 0, lambda b: b, lambda b: 2 * b, b), 1),
    "declared derivative": (lambda b: doubled(b), 1),
    "a guard of nan": (lambda b: jnp.where(jnp.isnan(b), 0.0, b), 1),
    "nan_to_num": (jnp.nan_to_num, 1),
    "NumPyro's validation": (lambda b: Normal(b, 1.0, validate_args=True).log_prob(X), 2),
    "a declared square": (lambda b: declared(jnp.square, lambda b: 2 * b)(b), 2),
    "a declared square in a jit": (
        jax.jit(lambda b: X * declared(jnp.square, lambda b: 2 * b)(b)),
        2,
    ),
    "a declared scale": (lambda b: jax.nn.softplus(X) * b, 1),
    "a maximum free of it": (lambda b: jnp.max(X) * b, 1),
    "square": (lambda b: jnp.square(b), 2),
    "power": (lambda b: b**2, 2),
    "form": (lambda b: b @ A @ b, 2),
    "density": (lambda b: norm.logpdf(X, b, 1.5), 2),
    "multivariate density": (lambda b: multivariate_normal.logpdf(b, X, A @ A.T), 2),
    "spectrum": (lambda b: jnp.sum(jnp.fft.fft(b).real ** 2), 2),
    "scan of squares": (lambda b: jax.lax.scan(lambda s, x: (s + x**2, s), 0.0, b)[0], 2),
    "chain": (
        lambda b: jax.lax.scan(lambda s, x: ((x, s[1] - (x - s[0]) ** 2), None), (0.0, 0.0), b)[0][
            1
        ],
        2,
    ),
    "derivative of a cube": (lambda b: jax.grad(lambda b: jnp.sum(b**3))(b), 2),
    "remat in jit": (jax.jit(jax.checkpoint(lambda b: b * b[::-1])), 2),
}
HIGHER = {
    "cube": (lambda b: b**3, "integer_pow"),
    "three": (lambda b: b[0] * b[1] * b[2], "mul"),
    "product in a scan": (lambda b: jax.lax.scan(lambda s, x: (s * x, s), 1.0, b)[0], "mul"),
    "einsum": (lambda b: jnp.einsum("i,j,k->", b, b, b), "dot_general"),
    "a wrong derivative": (lambda b: fourth_power(b), "integer_pow"),
    "fourth power by a float": (
        lambda b: declared(lambda b: jnp.power(b, 4.0), lambda b: 2 * b)(b),
        r"\w+",
    ),
    "a fourth power said to be linear": (
        lambda b: declared(lambda b: jnp.exp(4 * jnp.log(jnp.abs(b))), jnp.ones_like)(b),
        r"\w+",
    ),
    "half of the slope": (
        lambda b: declared(jnp.square, lambda b: b)(b),
        "a declared derivative",
    ),
    "a linear slope for a square": (
        lambda b: declared(jnp.square, jnp.ones_like)(b),
        "a declared derivative",
    ),
    "without forward mode": (lambda b: form(b), "a declared derivative"),
    "relu": (lambda b: jax.nn.relu(b), r"\w+"),
    "a declared power in a loop": (
        lambda b: jax.lax.scan(
            lambda s, x: (s + declared(lambda x: jnp.power(x, 4.0), lambda x: 2 * x)(x), None),
            0.0,
            b,
        )[0],
        r"\w+",
    ),
    "exp": (lambda b: jnp.exp(b), "exp"),
    "quotient": (lambda b: X / b, "div"),
    "absolute": (lambda b: jnp.abs(b), "abs"),
    "declared": (lambda b: jax.nn.softplus(b), r"\w+"),
    "log of the sum": (lambda b: jax.nn.logsumexp(b), r"\w+"),
    "solver": (lambda b: jnp.linalg.solve(A + jnp.diag(b), X), r"\w+"),
    "rounded": (lambda b: jnp.round(b), "round"),
    "cast": (lambda b: b.astype(int).astype(float), "cast"),
    "float8": (lambda b: b.astype(jnp.float8_e4m3fn).astype(jnp.float32), "cast"),
    "coarse": (lambda b: jax.lax.reduce_precision(b, 5, 2), "reduce_precision"),
    "stopped": (lambda b: jax.lax.stop_gradient(b), "stop_gradient"),
    "clipped": (lambda b: jnp.clip(b, -1, 1), r"\w+"),
    "branch by itself": (lambda b: jax.lax.cond(b[0] > 0, lambda b: b, lambda b: 2 * b, b), "gt"),
}


@pytest.mark.parametrize("name", list(DEGREES))
def test_polynomials(name):
    function, degree = DEGREES[name]
    assert (not_linear(function, X) is None) == (degree <= 1)
    assert not_quadratic(function, X) is None


@pytest.mark.parametrize("name", list(DEGREES))
def test_their_differences_vanish(name):
    """The control: from its degree on, the differences of a polynomial are 0, and one below they are not."""
    function, degree = DEGREES[name]
    along = jnp.array([0.3, 1.1, -0.7, 0.5])
    values = np.array([np.asarray(function(X + 0.1 + t * along), np.float64) for t in range(5)])
    size = 1e-2 * (1 + np.abs(values).max())
    assert np.abs(np.diff(values, degree + 1, axis=0)).max() < size
    assert degree == 0 or np.abs(np.diff(values, degree, axis=0)).max() > 1e-3 * size


@pytest.mark.parametrize("name", list(HIGHER))
def test_what_is_no_such_polynomial(name):
    function, how = HIGHER[name]
    assert not_linear(function, X) is not None
    blame = not_quadratic(function, X)
    assert re.fullmatch(how, blame.primitive)
    assert not blame.opaque
