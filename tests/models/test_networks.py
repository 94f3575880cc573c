"""Networks: shapes, rows in one axis under vmap, half precision with its error bounded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vijax as vj
from vijax.models import (
    MLP,
    VAE,
    Conditional,
    ConvDecoder,
    ConvEncoder,
    flat_dot_general,
    num_params,
    standard,
)

pytestmark = pytest.mark.usefixtures("loose_ranks")  # Flax adds biases by NumPy's promotion


def dots(closed):
    """Ranks of the left sides of all products in a jaxpr, inner ones too."""
    found = []
    for equation in closed.jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            found.append(equation.invars[0].aval.ndim)
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda p: hasattr(p, "jaxpr")
        ):
            if hasattr(inner, "jaxpr"):
                found += dots(inner)
    return found


def test_flat_layers_keep_rows_in_one_axis_and_their_values(key):
    """Products have two axes where plain ones have three; values and slopes agree."""
    build = lambda **how: MLP(3, (4,), 2, rngs=nnx.Rngs(0), **how)
    z = jax.random.normal(key, (5, 6, 3))

    def loss(state, graph, z):
        return jnp.sum(jnp.sin(jax.vmap(nnx.merge(graph, state))(z)))

    graph, state = nnx.split(build(dot_general=flat_dot_general))
    plain, _ = nnx.split(build())
    flat_ranks, plain_ranks = (
        dots(jax.make_jaxpr(lambda z, g=g: loss(state, g, z))(z)) for g in (graph, plain)
    )
    assert flat_ranks == [2, 2]
    assert plain_ranks == [3, 3]
    slopes = [jax.jit(jax.grad(loss), static_argnums=1)(state, g, z) for g in (graph, plain)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *slopes)


def test_convolutions_down_and_up():
    """Sides that are no powers of two, more than one batch axis, batch statistics of every layer."""
    down = ConvEncoder((7, 6, 1), (3, 4), 5, normalize=nnx.BatchNorm, rngs=nnx.Rngs(0))
    up = ConvDecoder(5, (4, 3), (7, 6, 2), normalize=nnx.BatchNorm, rngs=nnx.Rngs(1))
    graph, state = nnx.split((down, up))

    def run(x):
        down, up = nnx.merge(graph, state, copy=True)
        return down(x), up(down(x))

    shapes = jax.eval_shape(run, jnp.ones((2, 3, 7, 6, 1)))
    assert tuple(s.shape for s in shapes) == ((2, 3, 5), (2, 3, 7, 6, 2))


def test_half_precision_of_the_networks_moves_the_bound_little(key):
    """bfloat16 layers, float32 log-weights: 64 pixels, 100 draws of 8 data, the same draws' noise.

    Log-weights of about -45 nats move by .05 on average and .3 at most, and IWAE by .05; rounded to bfloat16
    themselves (the control), they would be off by up to .125 each, in steps of a quarter.
    """
    normal, latents = vj.families.mean_field(scale=1.0), jnp.zeros(4)
    x = (jax.random.uniform(key, (8, 64)) < 0.4).astype(jnp.float32)

    def log_w(dtype):
        layers = lambda m, n: MLP(m, (32,), n, dtype=dtype, rngs=nnx.Rngs(0))
        encoder = Conditional(layers(64, num_params(normal, latents)), normal, latents)
        decoder = Conditional(layers(4, 64), vj.families.bernoulli(), jnp.full(64, 0.4))
        vae = VAE(encoder, decoder, standard(latents))
        objective = vj.gradients.reparam(vj.bounds.iwae)
        return objective(key, vae.log_joint(x), vae.q(x), num_samples=100).draws.log_w

    whole, half = jax.jit(lambda: (log_w(None), log_w(jnp.bfloat16)))()
    assert half.dtype == jnp.float32
    off = np.abs(half - whole)
    assert 1e-4 < off.mean() < 0.05
    assert off.max() < 0.3
    iwae = lambda l: np.asarray(vj.bounds.iwae(l))
    np.testing.assert_allclose(iwae(half), iwae(whole), atol=0.05)
    rounded = np.abs(whole.astype(jnp.bfloat16).astype(jnp.float32) - whole)
    assert rounded.max() > 0.1


def test_refusals(unchecked):
    with pytest.raises(ValueError, match="product of dense layers"):
        flat_dot_general(jnp.ones((2, 3)), jnp.ones((2, 3)), (((0,), (0,)), ((), ())))
