"""constraints.with_log: sparse priors integrate to one in float32, and what is lost without; inverses; refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import betaln, gammaln

import vijax as vj
from tests.marks import some
from vijax.targets import constraints as c

WITH = {
    "positive": c.with_log(c.positive),
    "softplus": c.with_log(c.softplus),
    "unit": c.with_log(c.interval(0.0, 1.0)),
    "wide": c.with_log(c.interval(-1.0, 3.0)),
    "above": c.with_log(c.interval(2.0)),
    "below": c.with_log(c.interval(high=2.0)),
    "positive_ordered": c.with_log(c.positive_ordered),
    "simplex": c.with_log(c.simplex),
}


def sparse_gamma(a):
    return lambda z: (a - 1) * z.log - z.value - gammaln(a)


def sparse_beta(a):
    return lambda z: (a - 1) * (z.log + z.log_rest) - betaln(a, a)


def sparse_dirichlet(a, k):
    return lambda z: (a - 1) * jnp.sum(z.log, -1) + gammaln(k * a) - k * gammaln(a)


def plain(density):
    """Return the density as one of z alone: its logarithms are those of what z is in float32."""
    return lambda z: density(c.Logged(z, jnp.log(z), jnp.log1p(-z)))


# name -> a -> density, constraint, how many free numbers, mass lost at a = .1 without the logarithms
SPARSE = {
    "gamma": (sparse_gamma, c.positive, 0, 0.11),
    "gamma by softplus": (sparse_gamma, c.softplus, 0, 0.11),
    "beta": (sparse_beta, c.interval(0.0, 1.0), 0, 0.139),
    "dirichlet of 2": (lambda a: sparse_dirichlet(a, 2), c.simplex, 1, 0.012),
    "dirichlet of 3": (lambda a: sparse_dirichlet(a, 3), c.simplex, 2, None),
}


def mass(density, constraint, n, a):
    """Integrate over y by the trapezoid rule: float32 densities, summed in float64."""
    target = vj.targets.transform(density, constraint).log_joint
    grid = np.linspace(-20 / a, 20 / a, 601 if n == 2 else 100_001).astype(np.float32)
    points = grid if n == 0 else np.stack(np.meshgrid(*[grid] * n), -1).reshape(-1, n)
    value = np.asarray(jax.jit(jax.vmap(target))(points), np.float64)
    return np.exp(value).sum() * float(grid[1] - grid[0]) ** max(n, 1)


@pytest.mark.parametrize("name", some(SPARSE, "gamma", "beta", "dirichlet of 2"))
def test_sparse_priors_integrate_to_one(name):
    density, constraint, n, _ = SPARSE[name]
    for a in (0.1, 0.05, 0.01):
        found = mass(density(np.float32(a)), c.with_log(constraint), n, a)
        np.testing.assert_allclose(found, 1.0, atol=1e-3, err_msg=str(a))


@pytest.mark.parametrize("name", [n for n in SPARSE if SPARSE[n][3]])
def test_what_is_lost_without_the_logarithms(name):
    """The control, and what the docstring says is lost."""
    density, constraint, n, lost = SPARSE[name]
    found = mass(plain(density(np.float32(0.1))), constraint, n, 0.1)
    np.testing.assert_allclose(found, 1 - lost, atol=5e-3)


def y_of(name):
    n = 4 if name in ("positive_ordered", "simplex") else 0
    return 2.0 * jax.random.normal(jax.random.key(1), (2, n) if n else (2, 3))


@pytest.mark.parametrize("name", WITH)
def test_logarithms_are_those_of_the_value(name, x64):
    """log = log (z - low), log_rest = log (high - z); both inverses lead back, and slopes follow."""
    constraint, y = WITH[name], y_of(name)
    low = {"wide": -1.0, "above": 2.0}.get(name, 0.0)
    high = {"unit": 1.0, "wide": 3.0, "below": 2.0}.get(name)
    z, _ = jax.jit(constraint.forward)(y)
    if name == "below":
        assert z.log is None
    else:
        np.testing.assert_allclose(z.log, np.log(z.value - low), rtol=1e-9)
    if high is None:
        assert z.log_rest is None
    else:
        np.testing.assert_allclose(z.log_rest, np.log(high - z.value), rtol=1e-9)
    for given in (z, z.value):
        np.testing.assert_allclose(constraint.inverse(given), y, rtol=1e-8)
    which = "log_rest" if name == "below" else "log"
    of = lambda y: jnp.sum(getattr(constraint.forward(y)[0], which))
    bounds = lambda y: constraint.forward(y)[0].value
    by_value = lambda y: jnp.sum(jnp.log(2.0 - bounds(y) if name == "below" else bounds(y) - low))
    np.testing.assert_allclose(
        *jax.jit(lambda y: (jax.grad(of)(y), jax.grad(by_value)(y)))(y), rtol=1e-8, atol=1e-12
    )


@pytest.mark.parametrize("name", WITH)
def test_far_beyond_what_z_reaches(name):
    """At |y| = 1,000 in float32 the logarithm and its slope are finite, and y comes back where they tell it."""
    y = jnp.where(jnp.arange(y_of(name).shape[-1]) % 2 == 0, -1000.0, 400.0)
    z, log_jacobian = jax.jit(WITH[name].forward)(y)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((z, log_jacobian)))
    total = lambda y: sum(jnp.sum(part) for part in jax.tree.leaves(WITH[name].forward(y)[0][1:]))
    assert np.all(np.isfinite(jax.jit(jax.grad(total))(y)))
    if name in ("positive", "softplus", "unit", "wide"):
        np.testing.assert_allclose(WITH[name].inverse(z), y, rtol=1e-5)


def test_inside_a_target_and_back():
    """Beside other leaves, given a plain number or a Logged one; a later leaf reads the logarithm."""
    kinds = {
        "rate": c.with_log(c.positive),
        "x": lambda z: c.affine(0.0, jnp.exp(0.5 * z["rate"].log)),
        "share": c.with_log(c.simplex),
    }
    y = {"rate": jnp.float32(-2.0), "x": jnp.float32(0.4), "share": jnp.array([0.3, -1.0])}
    log_joint = lambda z: -z["rate"].value + jnp.sum(z["share"].log) - z["x"] ** 2
    target, constrain, unconstrain = vj.targets.transform(log_joint, kinds)
    z = jax.jit(constrain)(y)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5)
    close(z["x"], 0.4 * np.exp(-1.0))
    jax.tree.map(close, unconstrain(z), y)
    plain = {"rate": z["rate"].value, "x": z["x"], "share": z["share"].value}
    jax.tree.map(close, unconstrain(plain), y)
    by_hand = log_joint(z) - 2.0 - 1.0 + float(c.simplex.forward(y["share"])[1])
    close(jax.jit(target)(y), by_hand)


def test_in_half_precision():
    z, log_jacobian = WITH["unit"].forward(jnp.bfloat16(-200.0))
    assert z.log.dtype == z.value.dtype == log_jacobian.dtype == jnp.bfloat16
    assert z.log == -200.0


@pytest.mark.usefixtures("unchecked")
def test_refusals():
    for other in (c.real, c.ordered, c.affine(0.0, 1.0), c.cholesky_covariance, c.interval, None):
        with pytest.raises(TypeError, match="constraint must be positive, softplus, interval"):
            c.with_log(other)
