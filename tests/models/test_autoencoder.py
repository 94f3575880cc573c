"""VAE: unbiased gradients through the modules, batch statistics and dropout with several draws, what it generates."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vijax as vj
from tests import oracles
from tests.statistics import assert_mean
from vijax.models import MLP, VAE, Conditional, Prior, num_params, standard

pytestmark = pytest.mark.usefixtures("loose_ranks")  # Flax adds biases by NumPy's promotion

NORMAL = vj.families.mean_field(scale=1.0)
X = jnp.array([[1.0, 0.0], [1.0, 1.0]])  # two data of two pixels


def tiny(latents=1, prior=None, **how):
    """A VAE of two pixels; its weights are those of seeds."""
    like = jnp.zeros(latents)
    encoder = MLP(2, (3,), num_params(NORMAL, like), rngs=nnx.Rngs(0), **how)
    decoder = MLP(latents, (3,), 2, rngs=nnx.Rngs(1), **how)
    return VAE(
        Conditional(encoder, NORMAL, like),
        Conditional(decoder, vj.families.bernoulli(), jnp.array([0.7, 0.4])),
        prior or standard(like),
    )


def learned():
    """A prior whose location and scale learn, away from 0 and 1."""
    return Prior(NORMAL, {"loc": jnp.full(1, 0.3), "log_scale": jnp.full(1, -0.2)})


def wrong(bound):
    """Sticking the landing under any bound: right for the ELBO alone."""

    def objective(key, log_joint, q, *, num_samples, still):
        stuck = lambda z: log_joint(z) + q.log_prob(z) - still.log_prob(z)
        return vj.gradients.reparam(bound)(key, stuck, q, num_samples=num_samples)

    return objective


def test_gradients_are_unbiased_through_the_modules(key):
    """Encoder, decoder and learned prior, by quadrature over z; K = 2, 40,000 keys.

    Detects .4 (dreg) and 1; sticking the landing under iwae does not pass.
    """
    graph, params, rest = nnx.split(tiny(prior=learned()), nnx.Param, ...)
    merge = lambda params: nnx.merge(graph, params, rest)
    points, volumes = oracles.interval(-25.0, 25.0, 201)
    at = lambda z: jnp.full((2, 1), 1.0) * z
    truth = lambda bound, k: oracles.value_and_grad(
        bound,
        lambda p, z: merge(p).log_joint(X)(at(z)),
        lambda p, z: merge(p).q(X).log_prob(at(z)),
        points, volumes, k, params,
    )[1]  # fmt: skip
    objectives = {
        "dreg(iwae)": partial(vj.gradients.dreg(vj.bounds.iwae), num_samples=2),
        "reparam(elbo)": partial(vj.gradients.reparam(vj.bounds.elbo), num_samples=1),
    }

    def value(params, name, key):
        vae = merge(params)
        if name == "wrong":
            still = nnx.merge(graph, jax.lax.stop_gradient(params), rest).q(X)
            objective = partial(wrong(vj.bounds.iwae), num_samples=2, still=still)
        else:
            objective = objectives[name]
        return objective(key, vae.log_joint(X), vae.q(X)).value.sum()

    names = [*objectives, "wrong"]
    every = lambda key: {n: jax.grad(value)(params, n, key) for n in names}
    found = jax.jit(jax.vmap(every))(jax.random.split(key, 40_000))
    iwae, elbo = truth(vj.bounds.iwae, 2), truth(vj.bounds.elbo, 1)
    assert_mean(found["dreg(iwae)"], iwae, detects=0.4)
    assert_mean(found["reparam(elbo)"], elbo, detects=1.0)
    with pytest.raises(AssertionError, match="biased"):
        assert_mean(found["wrong"], iwae, detects=1.0)


@pytest.fixture
def normalized():
    """A VAE with batch statistics in both networks, over 5 latents."""
    return tiny(latents=5, normalize=nnx.BatchNorm)


def test_batch_statistics_of_x_once_and_running_averages_of_the_decoder(key, normalized):
    """The encoder's averages move once for any K; the decoder's are constants of the step, and move by `renew` alone."""
    vae = normalized
    x = jax.random.normal(key, (6, 2))
    objective = vj.gradients.dreg(vj.bounds.iwae)
    encoder, decoder = vae.encoder.network.norms[0], vae.decoder.network.norms[0]
    q = vae.q(x)
    hidden = vae.encoder.network.layers[0](x)
    np.testing.assert_allclose(encoder.mean[...], 0.01 * hidden.mean(0), rtol=1e-4, atol=1e-6)
    draws = objective(key, vae.log_joint(x), q, num_samples=3).draws
    np.testing.assert_allclose(encoder.mean[...], 0.01 * hidden.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(decoder.mean[...], jnp.zeros(3))
    # Members are apart: another datum's latents change nothing of the first.
    target, z = vae.log_joint(x), draws.z[0]
    np.testing.assert_allclose(target(z)[0], target(z.at[1:].add(1.0))[0], rtol=1e-6)
    vae.renew(z)
    hidden = vae.decoder.network.layers[0](z)
    np.testing.assert_allclose(decoder.mean[...], 0.01 * hidden.mean(0), rtol=1e-4, atol=1e-6)
    assert not decoder.use_running_average  # as it was


def test_renewing_has_no_derivative_and_a_step_carries_the_rest(key, normalized):
    """A whole training step under jit: the gradient with and without `renew` is one."""
    graph, params, rest = nnx.split(normalized, nnx.Param, ...)
    x = jax.random.normal(key, (6, 2))

    def loss(params, rest, renew):
        vae = nnx.merge(graph, params, rest, copy=True)
        objective = vj.gradients.dreg(vj.bounds.iwae)
        value, draws = objective(key, vae.log_joint(x), vae.q(x), num_samples=3)
        if renew:
            vae.renew(draws.z[0])
        after = nnx.split(vae, nnx.Param, ...)[2]
        moved = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(nnx.state(vae, nnx.BatchStat)))
        return -value.mean() + (moved if renew else 0.0) * 0, after

    step = jax.jit(jax.grad(loss, has_aux=True), static_argnums=2)
    (with_it, after), (without, _) = step(params, rest, True), step(params, rest, False)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), with_it, without
    )
    before = rest["decoder"]["network"]["norms"][0]["mean"].get_value()
    assert np.abs(after["decoder"]["network"]["norms"][0]["mean"].get_value() - before).max() > 1e-4


def test_each_draw_has_a_mask_of_its_own(key):
    """Dropout that is on makes a keyed target; off, a plain one, the same number each time."""
    vae, x, z = tiny(dropout=0.5), X, jnp.ones((2, 1))
    target = vae.log_joint(x)
    assert vj.types.properties(target).keyed
    values = jax.jit(lambda keys: jax.vmap(lambda k: target(z, key=k))(keys))
    assert len(np.unique(values(jax.random.split(key, 8))[:, 0])) > 1

    @jax.jit
    def run(key):  # draws within 1e-5 of 0: what differs between them is the mask
        narrow = Conditional(lambda x: jnp.stack([0 * x[:, 0], 0 * x[:, 0] - 12], -1), NORMAL, z[0])
        objective = vj.gradients.dreg(vj.bounds.iwae)
        return objective(key, target, narrow(x), num_samples=8).draws.log_p

    assert np.ptp(run(key)[:, 0]) > 0.01
    vae.eval()
    assert not vj.types.properties(vae.log_joint(x)).keyed
    np.testing.assert_array_equal(vae.log_joint(x)(z), vae.log_joint(x)(z))


def test_exact_kl_gives_the_divergence_exactly(key):
    """log_likelihood under targets.exact_kl: no draw of the KL, whose value is the formula's."""
    vae = tiny()
    q = vae.q(X)
    target = vj.targets.exact_kl(vae.log_likelihood(X), vae.distribution(), q)
    objective = vj.gradients.reparam(vj.bounds.elbo)
    value, draws = objective(key, target, q, num_samples=2)
    likelihood = jax.vmap(vae.log_likelihood(X))(draws.z).mean(0)
    kl = q.kl_divergence(vae.distribution())
    np.testing.assert_allclose(value, likelihood - kl, rtol=1e-4)


def test_it_generates_what_it_models(key):
    """Frequencies of 4,000 images of two pixels against p(x) by quadrature. By chance 5e-11 each; .08 is found."""
    vae = tiny()
    z, volumes = oracles.interval(-8.0, 8.0, 81)
    states = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
    target = vae.log_joint(states)
    log_p = jax.vmap(lambda z: target(jnp.full((4, 1), 1.0) * z))(jnp.asarray(z, jnp.float32))
    truth = (np.exp(np.asarray(log_p, np.float64)) * volumes[:, None]).sum(0)
    np.testing.assert_allclose(truth.sum(), 1, rtol=1e-5)
    x = np.asarray(vae.generate(key, 4_000))
    one_hot = (x[:, None] == states).all(-1).astype(np.float32)
    assert_mean(one_hot, truth, detects=0.1)
    with pytest.raises(AssertionError, match="biased"):
        assert_mean(one_hot, truth[::-1], detects=0.1)


def test_refusals(unchecked):
    vae = tiny()
    with pytest.raises(TypeError, match=r"decoder must be a models\.Conditional"):
        VAE(vae.encoder, vae.decoder.network, vae.prior)
