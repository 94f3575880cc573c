"""mixture and strata: densities against a sum over components, draws, any pytree of latents, every library's mixture."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import norm

import vijax as vj
from tests.marks import some
from tests.statistics import assert_mean

LIKE = {"a": jnp.float32(0.5), "b": jnp.array([1.0, -1.0])}
FAMILY = vj.families.mixture(vj.families.low_rank(rank=1, scale=0.5), components=3)
LOGITS = np.array([0.2, -0.5, 0.9], np.float32)
LOC, SCALE = np.array([-1.0, 0.5, 2.0], np.float32), np.array([0.4, 1.0, 0.3], np.float32)


def log_density(z):
    """Log of the mixture of three normals at z, by SciPy."""
    log_pi = LOGITS - logsumexp(LOGITS)
    return logsumexp(
        log_pi + norm.logpdf(np.asarray(z, np.float64)[..., None], LOC, SCALE), axis=-1
    )


@pytest.mark.slow
def test_over_a_pytree(key):
    """Starts with equal shares and components apart; log q is the weighted sum of the components' own densities."""
    params = FAMILY.init(key, LIKE)
    np.testing.assert_array_equal(params["logits"], np.zeros(3))
    assert params["components"]["loc"]["b"].shape == (3, 2)
    assert len(np.unique(np.asarray(params["components"]["factor"])[:, 0])) == 3
    q = FAMILY.dist({**params, "logits": LOGITS})
    z, log_q = q.sample_and_log_prob(seed=key, sample_shape=(4, 2))
    assert jax.tree.map(jnp.shape, z) == {"a": (4, 2), "b": (4, 2, 2)}
    parts = np.stack([jax.vmap(jax.vmap(q.component(j).log_prob))(z) for j in range(3)], -1)
    np.testing.assert_allclose(np.exp(q.log_weights).sum(), 1.0, rtol=1e-6)
    np.testing.assert_allclose(
        log_q, logsumexp(np.asarray(q.log_weights) + parts, axis=-1), rtol=1e-4
    )
    np.testing.assert_allclose(log_q, jax.vmap(jax.vmap(q.log_prob))(z), rtol=1e-6)


def ours():
    components = {"loc": LOC, "log_scale": np.log(SCALE)}
    return vj.families.mixture(vj.families.mean_field(), components=3).dist(
        {"logits": LOGITS, "components": components}
    )


def of_distrax():
    parts = distrax.Normal(jnp.asarray(LOC), jnp.asarray(SCALE))
    return vj.families.strata(
        distrax.MixtureSameFamily(distrax.Categorical(logits=jnp.asarray(LOGITS)), parts)
    )


def of_tfp():
    from tensorflow_probability.substrates import jax as tfp

    tfd = tfp.distributions
    return vj.families.strata(
        tfd.MixtureSameFamily(tfd.Categorical(logits=LOGITS), tfd.Normal(LOC, SCALE))
    )


def of_numpyro():
    import numpyro.distributions as dist

    return vj.families.strata(
        dist.MixtureSameFamily(dist.Categorical(logits=LOGITS), dist.Normal(LOC, SCALE))
    )


@pytest.mark.parametrize(
    "make",
    some([ours, of_distrax, of_tfp, of_numpyro], "of_numpyro", name=lambda make: make.__name__),
)
def test_draws_and_densities(make, key, loose_ranks):
    """Density, shares and mean square of the plain sampler and of each component. By chance 2e-10; detects .1."""
    q = make()
    z, log_q = q.sample_and_log_prob(seed=key, sample_shape=(20_000,))
    np.testing.assert_allclose(log_q, log_density(z), rtol=1e-4, atol=1e-4)
    share = np.exp(LOGITS) / np.exp(LOGITS).sum()
    np.testing.assert_allclose(jnp.exp(q.log_weights), share, rtol=1e-5)
    found = {"mean": z, "square": z**2}
    assert_mean(found, {"mean": share @ LOC, "square": share @ (LOC**2 + SCALE**2)}, detects=0.2)
    keys = jax.random.split(key, 5_000)
    one = lambda key, j: q.component(j).sample_and_log_prob(seed=key, sample_shape=())[0]
    each = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))(keys, jnp.arange(3))
    assert_mean({"mean": each}, {"mean": LOC}, detects=0.15)


def test_impossible_draws(key):
    """Far from every component: finite density, and a gradient that says where they are."""
    q, far = ours(), jnp.float32(1e4)
    assert np.isfinite(q.log_prob(far))
    np.testing.assert_allclose(
        jax.grad(q.log_prob)(far), -(far - LOC[1]) / SCALE[1] ** 2, rtol=1e-4
    )


@pytest.mark.slow
def test_batches_of_distrax(key, loose_ranks):
    """Batch (2,) of three components of two-dimensional events: log_weights [2, 3], a component's draw [2, 2]."""
    parts = distrax.Independent(
        distrax.Normal(jnp.arange(12.0).reshape(2, 3, 2), jnp.full((2, 3, 2), 1e-3)), 1
    )
    q = vj.families.strata(
        distrax.MixtureSameFamily(distrax.Categorical(logits=jnp.zeros((2, 3))), parts)
    )
    assert q.log_weights.shape == (2, 3)
    z, log_q = q.component(1).sample_and_log_prob(seed=key, sample_shape=(5,))
    np.testing.assert_array_equal(np.round(z), np.broadcast_to([[2, 3], [8, 9]], (5, 2, 2)))
    assert log_q.shape == (5, 2)


def test_refusals(unchecked):
    with pytest.raises(ValueError, match="components must be at least 1, got 0"):
        vj.families.mixture(vj.families.mean_field(), components=0)
    not_called = vj.families.full_rank
    for made_of in (
        lambda: vj.families.mixture(not_called, components=2),
        lambda: vj.families.student_t(degrees=3, base=not_called),
        lambda: vj.families.spline_coupling(base=not_called),
    ):
        with pytest.raises(TypeError, match="must be a Family.*with its brackets"):
            made_of()
    with pytest.raises(
        TypeError, match=r"strata takes a MixtureSameFamily .*got Normal.*log_weights"
    ):
        vj.families.strata(distrax.Normal(0.0, 1.0))
