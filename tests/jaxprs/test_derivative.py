"""What a jaxpr says of how parameters and noise reach an output: smoothly, through a jump, or through the host."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vijax.jaxprs import Flow, flows, trace

NOISE, PARAMETER = Flow(smooth=frozenset({"noise"})), Flow(smooth=frozenset({"parameter"}))


def flow(function, count=1):
    """Analyse function(noise, parameter): noise is the argument, the parameter is closed over as a tracer."""
    found = []

    def inside(parameter):
        closed, _ = trace(lambda noise: function(noise, parameter), jnp.ones(3))
        found.extend(flows(closed, [NOISE], PARAMETER))
        return parameter.sum()

    jax.grad(inside)(jnp.ones(3))
    assert len(found) == count
    return found[0]


SMOOTH = {
    "arithmetic": lambda e, p: p * e + jnp.exp(p),
    "matrix": lambda e, p: jnp.outer(p, p) @ e,
    "where on noise": lambda e, p: jnp.where(e > 0, p * e, 2 * p * e),
    "reshaped": lambda e, p: jnp.reshape(p[None] + e[None], (3,)),
    "indexed by constants": lambda e, p: p[jnp.array([2, 0, 1])] + e,
    "sorted": lambda e, p: jnp.sort(p + e),
    "max": lambda e, p: jnp.maximum(p, e),
    "cumulative": lambda e, p: jnp.cumsum(p * e),
    "scan": lambda e, p: jax.lax.scan(lambda c, x: (c * x[0] + x[1], c), 1.0, (p, e))[1] + 0 * p,
    "jit": jax.jit(lambda e, p: p * e),
    "custom derivative": lambda e, p: jax.nn.relu(p * e),
    "implicit gamma": lambda e, p: jax.random.gamma(jax.random.key(0), jnp.exp(p)) + e,
    "conditional on noise": lambda e, p: jax.lax.cond(e[0] > 0, lambda: p * e, lambda: 2 * p * e),
    "while over a count": lambda e, p: jax.lax.while_loop(
        lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] * p), (0, e)
    )[1],
    "square root and clip": lambda e, p: jnp.clip(jnp.sqrt(p) * e, -3, 3),
    "half precision": lambda e, p: (
        (p * e).astype(jnp.float16).astype(jnp.float32) + p.astype(jnp.bfloat16)
    ),
    "reduced to bfloat16": lambda e, p: jax.lax.reduce_precision(p * e, 8, 7),
    "reduced to float16": lambda e, p: jax.lax.reduce_precision(p * e, 5, 10),
    "printed": lambda e, p: (
        jax.debug.print("{}", p),
        jax.debug.callback(lambda p: None, p),
        p * e,
    )[2],
    "remat": lambda e, p: jax.checkpoint(lambda p: jnp.sin(p) * e)(p),
}
BROKEN = {
    "comparison": (lambda e, p: (e < p).astype(jnp.float32), "lt"),
    "argmax": (lambda e, p: jax.nn.one_hot(jnp.argmax(p + e), 3), None),
    "floor": (lambda e, p: jnp.floor(p + e), "floor"),
    "round": (lambda e, p: jnp.round(p * e), "round"),
    "sign": (lambda e, p: jnp.sign(p) * e, "sign"),
    "cast": (lambda e, p: (p * e).astype(jnp.int32).astype(jnp.float32), "cast"),
    "index": (lambda e, p: e[(p * e).astype(jnp.int32)], None),
    "where on a parameter": (lambda e, p: jnp.where(p > 0, e, -e), "gt"),
    "index of a product": (
        lambda e, p: jnp.ones(3).at[(p * e).astype(jnp.int32)].multiply(e),
        None,
    ),
    "index of a write": (lambda e, p: jnp.ones(3).at[(p * e).astype(jnp.int32)].set(e), None),
    "argsort": (lambda e, p: e[jnp.argsort(p + e)], None),
    "conditional on a parameter": (
        lambda e, p: jax.lax.cond(p[0] > 0, lambda: e, lambda: -e),
        None,
    ),
    "while on a parameter": (
        lambda e, p: jax.lax.while_loop(lambda s: jnp.all(s < 10 * p), lambda s: s + 1, e),
        None,
    ),
    "inside jit": (jax.jit(lambda e, p: jnp.floor(p) + e), "floor"),
    "inside scan": (
        lambda e, p: jax.lax.scan(lambda c, x: (c + jnp.floor(x), c), 0.0, p)[1] + e,
        "floor",
    ),
    "inside vmap": (lambda e, p: jax.vmap(lambda e, p: (e < p).astype(jnp.float32))(e, p), "lt"),
    "float8": (lambda e, p: (p * e).astype(jnp.float8_e4m3fn).astype(jnp.float32), "cast"),
    "float4": (lambda e, p: (p * e).astype(jnp.float4_e2m1fn).astype(jnp.float32), "cast"),
    "one bit of mantissa": (lambda e, p: jax.lax.reduce_precision(p * e, 5, 1), "reduce_precision"),
    "half a bfloat16": (lambda e, p: jax.lax.reduce_precision(p * e, 8, 6), "reduce_precision"),
    "three bits of exponent": (
        lambda e, p: jax.lax.reduce_precision(p * e, 3, 10),
        "reduce_precision",
    ),
    "stopped": (lambda e, p: jax.lax.stop_gradient(p) + e, "stop_gradient"),
}


@pytest.mark.parametrize("name", list(SMOOTH))
def test_smooth(name):
    found = flow(SMOOTH[name])
    assert found.broken_by("parameter") is None
    assert {"parameter", "noise"} <= found.sources()
    assert "parameter" in found.smooth
    assert not found.opaque


@pytest.mark.parametrize("name", list(BROKEN))
def test_broken(name):
    function, how = BROKEN[name]
    found = flow(function)
    assert found.broken_by("parameter") is not None
    assert how in (None, found.broken_by("parameter"))


def test_both_ways_at_once():
    """A parameter that arrives smoothly and through a jump counts as broken."""
    found = flow(lambda e, p: p * e + jnp.floor(p))
    assert "parameter" in found.smooth
    assert found.broken_by("parameter") == "floor"


def test_the_host_is_opaque():
    found = flow(
        lambda e, p: jax.pure_callback(np.sin, jax.ShapeDtypeStruct((3,), jnp.float32), p * e)
    )
    assert found.opaque == {"pure_callback"}
    assert found.broken_by("parameter") == "pure_callback"


def test_noise_through_a_jump():
    """Discrete noise that no parameter touches: a fair coin."""
    found = flow(lambda e, p: jnp.where(e > 0, 1.0, 0.0) + 0 * jnp.ones(3))
    assert "noise" not in found.smooth
    assert found.broken_by("noise") is not None
    assert found.broken_by("parameter") is None


def test_what_is_not_a_parameter():
    """Integers, keys and NumPy constants have no derivative to lose."""
    found = flow(
        lambda e, p: jnp.where(jnp.arange(3) > 1, e, 2 * e) * np.array([1.0, 2.0, 3.0], np.float32)
    )
    assert "parameter" not in found.sources()


def test_outputs_are_told_apart():
    """One leaf smooth, one broken, one untouched."""

    def inside(parameter):
        closed, _ = trace(
            lambda e: {"a": parameter * e, "b": jnp.floor(parameter), "c": e}, jnp.ones(3)
        )
        a, b, c = flows(closed, [NOISE], PARAMETER)
        assert a.broken_by("parameter") is None
        assert b.broken_by("parameter") == "floor"
        assert c.sources() == {"noise"}
        return parameter.sum()

    jax.grad(inside)(jnp.ones(3))
