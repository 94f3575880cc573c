"""Models with noise and state: a Flax NNX decoder with Dropout and BatchNorm, through targets.keyed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.scipy.stats import norm

import vijax as vj
from tests.bare import Gauss
from tests.marks import some
from tests.problems import assert_close
from vijax import engine

pytestmark = pytest.mark.usefixtures("loose_ranks")  # Flax adds biases by NumPy's promotion

K, N, D = 8, 4, 3
MAKERS = {"reparam": vj.gradients.reparam, "dreg": vj.gradients.dreg}


class Decoder(nnx.Module):
    def __init__(self, *, dropout, rngs):
        self.inner = nnx.Linear(2, 6, rngs=rngs)
        self.noise = nnx.Dropout(0.5) if dropout else None
        self.norm = None if dropout else nnx.BatchNorm(6, rngs=rngs)
        self.outer = nnx.Linear(6, D, rngs=rngs)

    def __call__(self, z, key):
        h = jnp.tanh(self.inner(z))
        h = self.norm(h) if self.noise is None else self.noise(h, rngs=nnx.Rngs(dropout=key))
        return self.outer(h)


def log_density(mean, x, z):
    return norm.logpdf(z, 0.0, 1.0).sum(-1) + norm.logpdf(x, mean, 1.0).sum(-1)


@pytest.fixture
def setting(key):
    x = jax.random.normal(jax.random.fold_in(key, 1), (N, D))
    q = {"loc": 0.3 * x[:, :2], "log_scale": jnp.full((N, 2), -0.4)}
    return x, q, jax.random.fold_in(key, 2)


def posterior(q):
    return Gauss(q["loc"], q["log_scale"], event=1)


DROPOUT = [(make, chunk_size) for chunk_size in (None, 3) for make in MAKERS]


@pytest.mark.parametrize("case", some(DROPOUT, "dreg-3", name=lambda case: f"{case[0]}-{case[1]}"))
def test_dropout_differs_from_draw_to_draw(case, setting):
    """Masks are a function of (key, k) alone, and the gradient is that of a hand loop over the draws seen."""
    make, chunk_size = case
    x, q, key = setting
    graph, theta = nnx.split(Decoder(dropout=True, rngs=nnx.Rngs(0)))
    target = lambda theta: vj.targets.keyed(
        lambda key, z: (
            log_density(nnx.merge(graph, theta)(z, key), x, z),
            jax.random.key_data(key),
        ),
        has_aux=True,
    )

    def total(theta):
        objective = MAKERS[make](vj.bounds.elbo)
        estimate = objective(key, target(theta), posterior(q), num_samples=K, chunk_size=chunk_size)
        return jnp.sum(estimate.value), estimate.draws.aux

    # The hand loop: the same draws and model keys, straight from the plan.
    plan = engine.plan(key, True, vj.draws.iid, K)

    def by_hand(theta):
        log_w = []
        for k in range(K):
            z, log_q = posterior(q).sample_and_log_prob(seed=plan.draw[k])
            log_w.append(log_density(nnx.merge(graph, theta)(z, plan.model[k]), x, z) - log_q)
        return jnp.sum(jnp.mean(jnp.stack(log_w), 0))

    gradient, keys = jax.jit(jax.grad(total, has_aux=True))(theta)
    assert_close(gradient, jax.jit(jax.grad(by_hand))(theta), atol=1e-5)
    assert len(np.unique(keys, axis=0)) == K


@pytest.mark.slow
def test_one_mask_for_all_draws_is_something_else(setting):
    """The control: with the key ignored the gradient is another."""
    x, q, key = setting
    graph, theta = nnx.split(Decoder(dropout=True, rngs=nnx.Rngs(0)))

    def total(theta, fixed):
        log_joint = lambda key, z: log_density(
            nnx.merge(graph, theta)(z, jax.random.key(0) if fixed else key), x, z
        )
        target = vj.targets.keyed(log_joint)
        return jnp.sum(
            vj.gradients.reparam(vj.bounds.elbo)(key, target, posterior(q), num_samples=K).value
        )

    differ = jax.tree.map(
        lambda a, b: jnp.abs(a - b).max(),
        *[jax.grad(total)(theta, fixed) for fixed in (True, False)],
    )
    assert max(jax.tree.leaves(differ)) > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("chunk_size", [None, 3, K])
@pytest.mark.parametrize("make", list(MAKERS))
def test_batch_statistics_come_back(make, chunk_size, setting):
    """has_aux: the statistics after each draw, stacked over 8, gradients stopped, equal to a hand loop's."""
    x, q, key = setting
    graph, theta, state = nnx.split(Decoder(dropout=False, rngs=nnx.Rngs(0)), nnx.Param, ...)

    def log_joint(theta, z):
        decoder = nnx.merge(
            graph, theta, state, copy=True
        )  # its state mutates: a shared one would leak a tracer
        mean = decoder(z, None)
        return log_density(mean, x, z), nnx.state(decoder, nnx.BatchStat)

    def total(theta):
        target = vj.targets.keyed(lambda key, z: log_joint(theta, z), has_aux=True)
        objective = MAKERS[make](vj.bounds.elbo)
        estimate = objective(key, target, posterior(q), num_samples=K, chunk_size=chunk_size)
        return jnp.sum(estimate.value), estimate.draws.aux

    gradient, found = jax.jit(jax.grad(total, has_aux=True))(theta)
    plan = engine.plan(key, True, vj.draws.iid, K)
    each = [
        log_joint(theta, posterior(q).sample_and_log_prob(seed=plan.draw[k])[0])[1]
        for k in range(K)
    ]
    assert_close(found, jax.tree.map(lambda *leaves: jnp.stack(leaves), *each), atol=1e-5)
    assert all(leaf.shape[0] == K for leaf in jax.tree.leaves(found))
    spread = jax.tree.map(lambda leaf: np.ptp(leaf, axis=0).max(), found)
    assert min(jax.tree.leaves(spread)) > 1e-4  # each draw has statistics of its own
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient)) > 1e-2

    of_aux = jax.grad(
        lambda theta: sum(jnp.sum(leaf) for leaf in jax.tree.leaves(total(theta)[1]))
    )(theta)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(of_aux))


def test_a_keyed_target_by_hand(key):
    """Called by hand it takes its key by name, and a target that is not keyed is never given one."""
    target = vj.targets.keyed(lambda key, z: z + jax.random.normal(key))
    np.testing.assert_allclose(target(1.0, key=key), 1.0 + jax.random.normal(key))
    with pytest.raises(ValueError, match="takes a key"):
        target(1.0)
