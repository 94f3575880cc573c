"""Constraints in half precision: what they are in float64 to the rounding of z, and never on their boundary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj
from tests.marks import but

C = vj.targets.constraints
VECTOR = np.array([0.5, -3.0, 2.0, -1.25, 0.75, 4.0])
NUMBERS = np.array([-7.0, -4.0, -0.5, 0.0, 0.5, 2.0, 4.0, 8.0])
CONSTRAINTS = {
    "real": (C.real, NUMBERS),
    "positive": (C.positive, NUMBERS),
    "softplus": (C.softplus, NUMBERS),
    "interval(0, 1)": (C.interval(0.0, 1.0), NUMBERS),
    "interval(low)": (C.interval(low=-1.0), NUMBERS),
    "interval(high)": (C.interval(high=1.0), NUMBERS),
    "affine": (C.affine(0.5, 2.0), NUMBERS),
    "ordered": (C.ordered, VECTOR),
    "simplex": (C.simplex, VECTOR),
    "cholesky_correlation": (C.cholesky_correlation, VECTOR),
    "cholesky_covariance": (C.cholesky_covariance, VECTOR),
}


HALVES = {"float16": jnp.float16, "bfloat16": jnp.bfloat16}
EACH_HALF = [(name, half) for name in CONSTRAINTS for half in HALVES]
DEAR = [f"{n}-float16" for n in ("simplex", "ordered", "cholesky_covariance")]


@pytest.mark.parametrize("case", but(EACH_HALF, *DEAR, name="{0[0]}-{0[1]}".format))
def test_half_precision_is_rounding_alone(case):
    name, half = case
    dtype = HALVES[half]
    constraint, y = CONSTRAINTS[name]
    y = jnp.asarray(y, dtype)
    eps = float(jnp.finfo(dtype).eps)

    def both(y):
        (z, log_jacobian), pull = jax.vjp(constraint.forward, y)
        along = jnp.arange(z.size).reshape(z.shape).astype(z.dtype)
        slope = pull((along, jnp.zeros_like(log_jacobian)))[0]
        return z, log_jacobian, slope, constraint.inverse(z)

    found = jax.jit(both)(y)
    assert all(leaf.dtype == dtype for leaf in found)
    with jax.enable_x64(True):
        expected = both(jnp.asarray(y, jnp.float64))
    for f, e in zip(found[:3], expected[:3], strict=True):
        f, e = np.asarray(f, np.float64), np.asarray(e)
        np.testing.assert_allclose(f, e, rtol=4 * eps, atol=4 * eps * np.abs(e).max())


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_stays_inside(dtype):
    far = jnp.asarray([-60.0, -12.0, 12.0, 60.0], dtype)
    for constraint in (C.positive, C.softplus):
        z = constraint.forward(far)[0]
        assert np.all((z > 0) & np.isfinite(z))
    z = C.interval(0.0, 1.0).forward(far)[0]
    assert np.all((z > 0) & (z < 1))
    assert np.all(np.diff(C.ordered.forward(-far[::-1])[0].astype(jnp.float32)) > 0)
    z = C.simplex.forward(far)[0]
    assert np.all((z > 0) & (z < 1))
    for constraint in (C.cholesky_correlation, C.cholesky_covariance):
        z = constraint.forward(jnp.asarray([60.0, -60.0, -60.0], dtype))[0]
        assert np.all(jnp.diagonal(z, axis1=-2, axis2=-1) > 0)
        assert np.all(np.isfinite(z))


def test_the_inverse_in_half_precision():
    """log z, and what softplus and interval undo, are taken in float32 and rounded once."""
    z = jnp.asarray([0.01, 0.3, 0.9], jnp.bfloat16)
    x = np.asarray(z, np.float64)
    expected = {
        C.positive: np.log(x),
        C.softplus: np.log(np.expm1(x)),
        C.interval(0.0, 1.0): np.log(x / (1 - x)),
    }
    for constraint, y in expected.items():
        found = constraint.inverse(z)
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(found, np.float64), y, rtol=2**-7)
