"""student_t: densities and draws against SciPy's multivariate t, gradients against quadrature, the tails it is for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.scipy.stats import norm, t
from scipy.stats import kstest, multivariate_t

import vijax as vj
from tests import oracles
from vijax.testing import check_unbiased

families = vj.families
BASES = {
    "mean_field": families.mean_field(scale=0.6),
    "full_rank": families.full_rank(scale=0.6),
    "low_rank": families.low_rank(rank=2, scale=0.6),
}
LIKE = {"a": jnp.float32(0.5), "b": jnp.array([1.0, -1.0])}


def away(family, like, key):
    flat, unravel = ravel_pytree(family.init(key, like))
    return flat + 0.4 * jax.random.normal(
        jax.random.fold_in(key, 1), flat.shape, flat.dtype
    ), unravel


def loc_and_shape(gaussian, noise):
    """Return loc and S Sᵀ of an affine map."""
    push = lambda e: ravel_pytree(gaussian.affine(e))[0]
    root = np.asarray(jax.jacobian(push)(jnp.zeros(noise)), np.float64)
    return np.asarray(push(jnp.zeros(noise)), np.float64), root @ root.T


@pytest.mark.parametrize("base", list(BASES))
@pytest.mark.parametrize("degrees", [0.7, 5])
def test_density_and_draws_are_those_of_scipy(base, degrees, key):
    """Densities of draws and of points far away; squared distances of draws are d F(d, ν): Kolmogorov's p above 1e-6."""
    family = families.student_t(degrees=degrees, base=BASES[base])
    flat, unravel = away(family, LIKE, key)
    q, gaussian = family.dist(unravel(flat)), BASES[base].dist(unravel(flat))
    z, log_q = jax.jit(lambda: q.sample_and_log_prob(seed=key, sample_shape=(2000, 2)))()
    assert jax.tree.map(jnp.shape, z) == {"a": (2000, 2), "b": (2000, 2, 2)}
    rows = (
        np.concatenate([np.asarray(z["a"])[..., None], z["b"]], -1)
        .reshape(-1, 3)
        .astype(np.float64)
    )
    loc, shape = loc_and_shape(gaussian, gaussian.uniforms)
    truth = multivariate_t(loc, shape, df=degrees).logpdf(rows)
    np.testing.assert_allclose(log_q.ravel(), truth, rtol=2e-4, atol=2e-4)
    squares = np.einsum("ni,ij,nj->n", rows - loc, np.linalg.inv(shape), rows - loc) / 3
    assert kstest(squares, "f", (3, degrees)).pvalue > 1e-6
    assert kstest(squares, "f", (3, 2 * degrees)).pvalue < 1e-6  # the control
    far = jax.jit(q.log_prob)({"a": jnp.float32(1e4), "b": jnp.array([1e4, 0.0])})
    np.testing.assert_allclose(
        far, multivariate_t(loc, shape, df=degrees).logpdf([1e4, 1e4, 0]), rtol=1e-4
    )


def target(z):
    return t.logpdf(z, 3.0, 0.4, 0.8)


@pytest.mark.slow
@pytest.mark.parametrize("degrees", [1.5, 6.0])
def test_gradients_are_unbiased(degrees, key):
    """reparam and dreg of elbo and iwae against quadrature, K = 2. Chance 1e-6; a bias of .1 nats is found."""
    family = families.student_t(degrees=degrees, base=families.mean_field())
    params = {"loc": jnp.float32(-0.3), "log_scale": jnp.float32(0.2)}
    # On a grid in the logarithm of z, since the tails reach far.
    grid, step = oracles.interval(-9.5, 9.5, 801)
    points, volumes = np.sinh(grid), step * np.cosh(grid)
    bounds = {
        "elbo": (vj.bounds.elbo, lambda l: l.mean(0)),
        "iwae": (vj.bounds.iwae, lambda l: jax.nn.logsumexp(l, 0) - jnp.log(l.shape[0] * 1.0)),
    }
    makes = {"reparam": vj.gradients.reparam, "dreg": vj.gradients.dreg}
    log_q = lambda params, z: family.dist(params).log_prob(z)
    plain = {name: jnp_bound for name, (_, jnp_bound) in bounds.items()}
    truth = {
        name: oracles.value_and_grad(
            bound,
            lambda _, z: target(z),
            log_q,
            points,
            volumes,
            2 if name == "iwae" else 1,
            params,
        )[1]
        for name, bound in plain.items()
    }

    def estimate(key):
        slope = lambda make, bound: jax.grad(
            lambda p: make(bound)(key, target, family.dist(p), num_samples=2).value
        )(params)
        return {
            name: {m: slope(make, bound) for m, make in makes.items()}
            for name, (bound, _) in bounds.items()
        }

    expected = {
        name: dict.fromkeys(makes, jax.tree.map(np.float32, truth[name])) for name in bounds
    }
    check_unbiased(key, estimate, expected, detects=0.1)
    expected["iwae"]["dreg"] = {
        **expected["iwae"]["dreg"],
        "log_scale": expected["iwae"]["dreg"]["log_scale"] + 0.1,
    }
    with pytest.raises(AssertionError, match="biased"):
        check_unbiased(key, estimate, expected, detects=0.1)


def test_heavy_tails_are_covered(key):
    """log-weights of a Cauchy target: a Gaussian's k-hat is above .7, a t's with one degree is below .5."""
    log_joint = lambda z: jnp.sum(t.logpdf(z, 1.0))
    params = families.full_rank(scale=1.0).init(key, jnp.zeros(1))

    def khat(family):
        q = family.dist(params)
        z, log_q = q.sample_and_log_prob(seed=key, sample_shape=(4000,))
        return vj.diagnostics.khat(jax.vmap(log_joint)(z) - log_q)

    gaussian, student = jax.jit(
        lambda: (khat(families.full_rank()), khat(families.student_t(degrees=1.0)))
    )()
    assert gaussian > 0.7
    assert student < 0.5


@pytest.mark.slow
def test_limits_and_extremes(key):
    """Many degrees are the Gaussian; few draw finite numbers or infinities, never nan; fifty latents start finite."""
    params = families.full_rank().init(key, jnp.zeros(50))
    gaussian, near = families.full_rank().dist(params), families.student_t(degrees=1e9).dist(params)
    z, log_q = near.sample_and_log_prob(seed=key)
    np.testing.assert_allclose(log_q, gaussian.log_prob(z), rtol=1e-4)
    z, _ = (
        families.student_t(degrees=0.05)
        .dist(params)
        .sample_and_log_prob(seed=key, sample_shape=(200,))
    )
    assert not np.any(np.isnan(z))
    q = families.student_t(degrees=3, base=families.mean_field()).dist(
        families.mean_field().init(key, jnp.zeros(50))
    )
    value = vj.gradients.dreg(vj.bounds.elbo)(
        key, lambda z: jnp.sum(norm.logpdf(z)), q, num_samples=2
    ).value
    assert np.isfinite(value)


def test_refusals(key, unchecked):
    for degrees in (0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="degrees must be positive and finite"):
            families.student_t(degrees=degrees)
    with pytest.raises(TypeError, match="fixed when the function is traced"):
        jax.jit(lambda n: families.student_t(degrees=n).init(key, jnp.zeros(2)))(3.0)
    flow = families.student_t(degrees=3, base=families.mixture(families.mean_field(), components=2))
    with pytest.raises(TypeError, match="base of student_t.*makes a _Mixture"):
        flow.dist(flow.init(key, jnp.zeros(2)))
    q = families.student_t(degrees=3).dist(families.full_rank().init(key, LIKE))
    with pytest.raises(ValueError, match="z must be one draw of this family"):
        q.log_prob(jnp.zeros(3))
    with pytest.raises(TypeError, match="q.uniforms"):
        vj.gradients.reparam(vj.bounds.elbo, draw=vj.draws.antithetic)(
            key, lambda z: z["a"], q, num_samples=2
        )
