"""Scrambled Sobol points: each uniform, together a net, and unbiased under every objective that takes coupled draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import qmc

import vijax as vj
from tests import cases
from tests.bare import Gauss
from tests.marks import some
from tests.statistics import assert_mean, assert_variance_ratio
from vijax.draws import iid, sobol, weigh


class Cube:
    """Uniforms themselves, to look at."""

    def __init__(self, *shape):
        self.uniforms = shape

    def transport(self, u):
        return u

    def sample_and_log_prob(self, *, seed, sample_shape=()):
        u = jax.random.uniform(seed, (*sample_shape, *self.uniforms))
        return u, jnp.zeros(sample_shape)

    def log_prob(self, u):
        return jnp.float32(0.0)


def points(key, num_samples, *shape):
    return weigh(
        key, lambda u: jnp.float32(0.0), Cube(*shape), num_samples=num_samples, draw=sobol
    ).z


@pytest.mark.parametrize("m", some([0, 1, 5, 9], "0", "1"))
def test_the_first_points_are_a_net(m, key):
    """Of 2ᵐ points in the plane every elementary cell of volume 2⁻ᵐ holds one, and so along each of 40 axes."""
    u = np.asarray(points(key, 2**m, 40), np.float64)
    for a in range(m + 1):
        cells = np.floor(u[:, :2] * [2**a, 2 ** (m - a)]) @ [2 ** (m - a), 1]
        np.testing.assert_array_equal(np.sort(cells), np.arange(2**m))
    np.testing.assert_array_equal(
        np.sort(np.floor(u * 2**m), 0), np.broadcast_to(np.arange(2**m)[:, None], u.shape)
    )
    if m:
        np.testing.assert_array_equal(
            points(key, 2**m - 1, 40), u[:-1]
        )  # the first points, whatever comes after


@pytest.mark.parametrize("d", [1, 2, 5])
def test_as_even_as_those_of_scipy(d, key):
    """L2 discrepancy, mean over 50 scrambles: that of SciPy's to 10%, and far below independent points'."""
    of = lambda u: np.mean([qmc.discrepancy(np.asarray(p, np.float64)) for p in u])
    keys = jax.random.split(key, 50)
    ours = of(jax.jit(jax.vmap(lambda k: points(k, 256, d)))(keys))
    theirs = of([qmc.Sobol(d, seed=i).random(256) for i in range(50)])
    independent = of(jax.random.uniform(key, (50, 256, d)))
    assert abs(ours / theirs - 1) < 0.1
    assert ours < independent / 5


def test_each_point_is_uniform(key):
    """Moments of every one of 5 points, and of products of pairs of axes: by chance 2e-10 a number; detects .02."""
    u = jax.jit(jax.vmap(lambda k: points(k, 5, 3)))(jax.random.split(key, 50_000))
    found = {"u": u, "u^2": u**2, "digit": jnp.floor(u * 64) % 2, "pairs": u[..., :2] * u[..., 1:]}
    truth = {"u": 1 / 2, "u^2": 1 / 3, "digit": 1 / 2, "pairs": 1 / 4}
    assert_mean(found, {n: np.full(found[n].shape[1:], t) for n, t in truth.items()}, detects=0.025)
    plain = np.broadcast_to(qmc.Sobol(3, scramble=False).random(8)[:5], u.shape)
    with pytest.raises(
        AssertionError, match="biased"
    ):  # the control: points without their scramble
        assert_mean({"u": plain}, {"u": np.full((5, 3), 0.5)}, detects=0.025)


def test_strictly_inside():
    """The least and the greatest word there is, in float32 and float64."""
    from vijax.draws import _qmc

    ends = jnp.array([0, 2**32 - 1], jnp.uint32)
    for on, dtype in ((False, jnp.float32), (True, jnp.float64)):
        with jax.enable_x64(on):
            u = _qmc.unit(ends)
            assert u.dtype == dtype
            assert 0 < u[0] < 1e-6
            assert 1 - 1e-6 < u[1] < 1
            assert np.all(np.isfinite(jax.scipy.special.ndtri(u)))


def test_shapes_of_uniforms(key):
    """A matrix of uniforms, and none: the points of a vector, laid out."""
    np.testing.assert_array_equal(points(key, 8, 2, 3).reshape(8, 6), points(key, 8, 6))
    assert points(key, 8).shape == (8,)


def gradients(key, objectives, case, k, n):
    def value(params, objective, key):
        target = lambda z: case.log_p(params["theta"], z)
        return objective(key, target, case.build(params["q"]), num_samples=k).value

    every = lambda key: {
        name: jax.grad(value)(case.params, o, key) for name, o in objectives.items()
    }
    return jax.jit(jax.vmap(every))(jax.random.split(key, n))


def test_unbiased_with_less_variance(key):
    """elbo over two correlated latents, 16 draws: the docstrings' ratios, for equal evaluations of the model.

    By chance 2e-10 a number; detects .1. Measured: sobol 10 and 13, antithetic 1.1 and 1.8.
    """
    case, elbo, draws = (
        cases.MAKES[1],
        vj.bounds.elbo,
        {"iid": iid, "sobol": sobol, "antithetic": vj.draws.antithetic},
    )
    makes = {"reparam": vj.gradients.reparam, "dreg": vj.gradients.dreg}
    objectives = {
        f"{m} {d}": make(elbo, draw=draw) for m, make in makes.items() for d, draw in draws.items()
    }
    found = gradients(key, objectives, case, 16, 20_000)
    assert_mean(found, dict.fromkeys(found, case.truth(elbo, 1)[1]), detects=0.1)
    q = {name: grads["q"] for name, grads in found.items()}
    assert_variance_ratio(q["reparam iid"], q["reparam sobol"], at_least=7.0)
    assert_variance_ratio(q["dreg iid"], q["dreg sobol"], at_least=9.0)
    assert_variance_ratio(q["dreg iid"], q["dreg antithetic"], at_least=1.4)


@pytest.mark.slow
def test_a_leaf_given_another(key):
    """a ~ N(m, e²ˢ), b ~ N(r a, I) under log p = -½ a² - ½ |b - 1|²: E[log w] and its slopes in closed form.

    By chance 2e-10 a number; detects .05. The value's variance, measured: sobol 18 times less, antithetic 3.
    """
    family = vj.families.mean_field()

    def build(p):
        first = family.dist({"loc": p["m"], "log_scale": p["s"]})
        return {
            "a": first,
            "b": lambda z: family.dist({"loc": p["r"] * z["a"], "log_scale": jnp.zeros(2)}),
        }

    def exact(p):
        second = p["m"] ** 2 + jnp.exp(2 * p["s"])
        from_one = jnp.sum(p["r"] ** 2 * second - 2 * p["r"] * p["m"] + 2)
        constant = 0.5 + p["s"] + 1 + 1.5 * jnp.log(2 * jnp.pi)
        return -0.5 * (second + from_one) + constant

    def value(p, key, draw):
        log_joint = lambda z: -0.5 * z["a"] ** 2 - 0.5 * jnp.sum((z["b"] - 1) ** 2)
        return vj.gradients.reparam(vj.bounds.elbo, draw=draw)(
            key, log_joint, build(p), num_samples=16
        ).value

    params = {"m": jnp.float32(0.4), "s": jnp.float32(-0.3), "r": jnp.array([0.5, -1.0])}
    draws = {"iid": iid, "sobol": sobol, "antithetic": vj.draws.antithetic}
    every = lambda key: {
        name: jax.value_and_grad(value)(params, key, draw) for name, draw in draws.items()
    }
    found = jax.jit(jax.vmap(every))(jax.random.split(key, 20_000))
    assert_mean(found, dict.fromkeys(found, jax.value_and_grad(exact)(params)), detects=0.05)
    values = {name: value for name, (value, _) in found.items()}
    assert_variance_ratio(values["iid"], values["sobol"], at_least=10.0)
    assert_variance_ratio(values["iid"], values["antithetic"], at_least=2.0)
    with pytest.raises(TypeError, match="of every leaf; Gauss lacks them"):
        weigh(key, lambda z: 0.0, build(params) | {"c": Gauss(0.0, 0.0)}, num_samples=2, draw=sobol)


@pytest.mark.slow
def test_transforms(key):
    """chunks = whole, jit = plain, vmap over keys = one by one."""
    case = cases.MAKES[1]
    objective = vj.gradients.reparam(vj.bounds.iwae, draw=sobol)

    def value(params, key, size=None):
        target = lambda z: case.log_p(params["theta"], z)
        return objective(key, target, case.build(params["q"]), num_samples=7, chunk_size=size).value

    params, grad = jax.tree.map(jnp.asarray, case.params), jax.value_and_grad(value)
    expected = grad(params, key)
    close = lambda f, e: np.testing.assert_allclose(f, e, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, jax.jit(grad, static_argnums=2)(params, key, 3), expected)
    several = jax.jit(jax.vmap(lambda k: grad(params, k)))(jnp.stack([jax.random.key(9), key]))
    jax.tree.map(lambda s, e: close(s[1], e), several, expected)


def test_refusals(key, unchecked):
    target = lambda z: jnp.sum(z)
    with pytest.raises(TypeError, match=r"q.uniforms .*q.transport.*vijax.families"):
        weigh(key, target, Gauss(0.0, 0.0), num_samples=2, draw=sobol)
    with pytest.raises(ValueError, match=r"at most 21201 dimensions, q.uniforms asks for 30000"):
        weigh(key, target, Cube(30_000), num_samples=2, draw=sobol)
    q = vj.families.mean_field().dist({"loc": jnp.zeros(2), "log_scale": jnp.zeros(2)})
    with pytest.raises(ValueError, match=r"dreg\(iwae\) needs independent draws"):
        vj.gradients.dreg(vj.bounds.iwae, draw=sobol)(key, target, q, num_samples=2)
    assert iid.independent
    assert not sobol.independent
