"""Conditional: the params it places, the distributions it makes, and what it refuses."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.scipy.stats import norm

import vijax as vj
from vijax.models import Conditional, num_params

pytestmark = pytest.mark.usefixtures("loose_ranks")  # Flax adds biases by NumPy's promotion

NORMAL = vj.families.mean_field(scale=1.0)


def linear(n, inputs=3, seed=0):
    return nnx.Linear(inputs, n, rngs=nnx.Rngs(seed))


def test_it_is_the_family_at_what_the_network_says(key):
    """Densities, draws and divergences of a Gaussian encoder beside the formulas, over two batch axes."""
    like = jnp.array([0.5, -1.0])

    @jax.jit
    def run(x, z):
        encode = Conditional(linear(4), NORMAL, like)
        q, prior = encode(x), NORMAL.dist(NORMAL.init(None, jnp.zeros(2)))
        drawn, log_q = q.sample_and_log_prob(seed=key, sample_shape=(7,))
        assert drawn.shape == (7, 5, 2, 2)
        loc, s = jnp.split(encode.network(x), 2, -1)
        m = like + loc
        return {
            "log_prob": (q.log_prob(z), norm.logpdf(z, m, jnp.exp(s)).sum(-1)),
            "of draws": (log_q, jax.vmap(q.log_prob)(drawn)),
            "kl": (q.kl_divergence(prior), 0.5 * (jnp.exp(2 * s) + m**2 - 1 - 2 * s).sum(-1)),
            "entropy": (q.entropy(), (s + 0.5 + 0.5 * np.log(2 * np.pi)).sum(-1)),
            "noise": (q.push(q.pull(z)), z),
        }

    of_x, of_z = jax.random.split(key)
    found = run(jax.random.normal(of_x, (5, 2, 3)), jax.random.normal(of_z, (5, 2, 2)))
    for name, (ours, truth) in found.items():
        np.testing.assert_allclose(ours, truth, rtol=1e-4, atol=1e-5, err_msg=name)


FAMILIES = {
    "full_rank": vj.families.full_rank(),
    "student_t": vj.families.student_t(degrees=5, base=NORMAL),
    "flow": vj.families.inverse_autoregressive(layers=1, hidden=(4,), base=NORMAL),
}


@pytest.mark.parametrize("name", list(FAMILIES))
def test_members_are_the_familys_own(name, key):
    """Of each datum: the density of `family.dist` at its params, and draws that carry it."""
    family = FAMILIES[name]
    moves = ("base",) if name == "flow" else None

    @jax.jit
    def run(x):
        outputs = num_params(family, jnp.zeros(2), moves)
        encode = Conditional(linear(outputs), family, jnp.zeros(2), moves=moves)
        z, log_q = encode(x).sample_and_log_prob(seed=key)
        ends = jax.tree.map(lambda p: p[jnp.array([0, -1])], (encode.params(x), z))
        at = [jax.tree.map(lambda p, i=i: p[i], ends) for i in range(2)]
        own = jnp.stack([family.dist(params).log_prob(z) for params, z in at])
        return log_q[jnp.array([0, -1])], encode(x).log_prob(z)[jnp.array([0, -1])], own

    log_q, again, own = run(jax.random.normal(key, (4, 3)))
    np.testing.assert_allclose(log_q, own, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(again, own, rtol=1e-4, atol=1e-5)


def test_a_mixture_of_each_datum_draws_by_strata(key):
    """Its components are offered, so that `stratified` draws are taken, and plain path gradients are refused."""
    family = vj.families.mixture(NORMAL, components=2)
    log_joint = lambda z: -jnp.sum(z**2, -1)

    @partial(jax.jit, static_argnums=1)
    def run(x, draw):
        n = num_params(family, jnp.zeros(1))
        q = Conditional(linear(n), family, jnp.zeros(1), key=key)(x)
        return vj.gradients.reparam(vj.bounds.elbo, draw=draw)(key, log_joint, q, num_samples=2), (
            q.log_weights
        )

    x = jax.random.normal(key, (3, 3))
    (value, draws), log_weights = run(x, vj.draws.stratified)
    # One draw of each component, weighed by it.
    np.testing.assert_allclose(draws.weights, jnp.exp(log_weights).T, rtol=1e-5)
    truth = (draws.weights * draws.log_w).sum(0)
    np.testing.assert_allclose(value, truth, rtol=1e-5)
    with pytest.raises(ValueError, match="stratified"):
        run(x, vj.draws.iid)


def test_antithetic_draws_of_each_datum(key):
    """Uniforms u and 1 - u of a Gaussian encoder: the mean of each pair is its location."""

    @jax.jit
    def run(x):
        encode = Conditional(linear(4), NORMAL, jnp.zeros(2))
        objective = vj.gradients.reparam(vj.bounds.elbo, draw=vj.draws.antithetic)
        draws = objective(key, lambda z: -jnp.sum(z**2, -1), encode(x), num_samples=2).draws
        return draws.z, encode.params(x)["loc"]

    z, loc = run(jax.random.normal(key, (3, 3)))
    np.testing.assert_allclose(z.mean(0), loc, rtol=1e-3, atol=1e-4)


def test_maps_are_dealt_to_their_pixels():
    """Channels of a map are the params of a pixel: the first the location's, the second the scale's."""
    like = jnp.zeros((2, 3, 1))
    maps = jnp.arange(4 * 2 * 3 * 2.0).reshape(4, 2, 3, 2)
    params = Conditional(lambda x: maps, NORMAL, like).params(None)
    np.testing.assert_array_equal(params["loc"][..., 0], maps[..., 0])
    np.testing.assert_array_equal(params["log_scale"][..., 0], maps[..., 1])


def test_what_the_network_does_not_move_is_learned():
    """A decoder of one noise level: loc by the network, log_scale a parameter shared by all data."""
    decode = Conditional(linear(3, inputs=2), NORMAL, jnp.zeros(3), moves=("loc",))
    assert num_params(NORMAL, jnp.zeros(3), ("loc",)) == 3
    x, z = jnp.ones((4, 3)), jnp.ones((4, 2))
    graph, params, rest = nnx.split(decode, nnx.Param, ...)
    slope = jax.grad(lambda p: nnx.merge(graph, p, rest)(z).log_prob(x).sum())(params)
    error = x - decode.network(z)
    np.testing.assert_allclose(
        slope["shared"].get_value()["log_scale"], (error**2 - 1).sum(0), rtol=1e-5, atol=1e-5
    )


def test_a_network_in_half_precision_meets_densities_in_float32(key):
    encode = Conditional(
        nnx.Linear(3, 4, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)), NORMAL, jnp.zeros(2)
    )
    z, log_q = encode(jnp.ones((2, 3))).sample_and_log_prob(seed=key)
    assert (z.dtype, log_q.dtype) == (jnp.float32, jnp.float32)


def test_refusals(unchecked):
    with pytest.raises(ValueError, match=r"returned \[2, 5\], and the family has 4 params"):
        Conditional(linear(5), NORMAL, jnp.zeros(2))(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="moves must name params"):
        Conditional(linear(4), NORMAL, jnp.zeros(2), moves=("mean",))
    with pytest.raises(TypeError, match="family must be a Family"):
        Conditional(linear(4), NORMAL.dist, jnp.zeros(2))
    student = Conditional(linear(4), FAMILIES["student_t"], jnp.zeros(2))(jnp.ones((2, 3)))
    with pytest.raises(TypeError, match="push and pull need a Gaussian family"):
        student.push(jnp.zeros((2, 2)))
