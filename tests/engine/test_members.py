"""Which models keep the members of a batch apart, as the trace shows: none that couples them passes.

Nothing is run: an objective that needs members apart is traced, and refuses or not.
"""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.scipy.stats import norm
from jax.sharding import PartitionSpec as P

import vijax as vj

pytestmark = pytest.mark.usefixtures("loose_ranks", "unchecked")
N, D, T = 6, 4, 3
rng = np.random.default_rng(0)
X = rng.normal(size=(N, D)).astype(np.float32)
LABELS = rng.integers(D, size=N)
SQUARE = rng.normal(size=(N, N)).astype(np.float32)
W = rng.normal(size=(D, D)).astype(np.float32)
ROWS = rng.permutation(N)


def traced(log_joint, z=(N, D), batch=1, gradient=vj.gradients.score, bound=vj.bounds.iwae):
    """Trace an objective of a Gaussian q whose draws are z, of which the first axes are the batch."""
    q = distrax.Independent(distrax.Normal(jnp.zeros(z), 1.0), len(z) - batch)

    def value(key):
        return gradient(bound)(key, log_joint, q, num_samples=2).value

    return jax.eval_shape(value, jax.random.key(0))


def total(x):
    """Sum over all but the first axis."""
    return jnp.sum(x, range(1, x.ndim))


def module(make, **call):
    """Return a log_joint of a module of Flax between z and data."""
    network = make(nnx.Rngs(0))
    return lambda z: total(norm.logpdf(jnp.asarray(X), network(z, **call)))


def recurrent(z):
    """A network over time, of all members at once."""
    steps = jnp.moveaxis(z.reshape(N, 2, 2), 1, 0)
    return total(
        jax.lax.scan(
            lambda h, x: (jnp.tanh(h @ W + x.sum(-1, keepdims=True)),) * 2, jnp.zeros((N, D)), steps
        )[0]
    )


def attention(z):
    """Attention over two places of each member."""
    h = z.reshape(N, 2, 2)
    return total(jax.nn.softmax(jnp.einsum("nid,njd->nij", h, h), -1) @ h)


def over_devices(function, **specs):
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    return jax.shard_map(function, mesh=mesh, **specs)


@jax.custom_vjp
def own_derivative(z):
    return total(jnp.sin(z))


own_derivative.defvjp(lambda z: (own_derivative(z), z), lambda z, g: (g[:, None] * jnp.cos(z),))

APART = {
    "matmul": lambda z: total(norm.logpdf(X, jnp.tanh(z @ W) @ W)),
    "weights on the left": lambda z: total((W @ z.T).T),
    "layer normalization by hand": lambda z: total(
        (z - z.mean(-1, keepdims=True)) / jnp.sqrt(z.var(-1, keepdims=True) + 1e-3)
    ),
    "embedding": lambda z: total(jnp.asarray(W)[LABELS] * z),
    "picked by label": lambda z: jax.nn.log_softmax(z)[jnp.arange(N), LABELS],
    "picked by NumPy's label": lambda z: jax.nn.log_softmax(z)[np.arange(N), LABELS],
    "taken along": lambda z: jnp.take_along_axis(z, LABELS[:, None], 1)[:, 0],
    "picked by its own state": lambda z: z[jnp.arange(N), jnp.argmax(z, -1)],
    "set by label": lambda z: total(z.at[jnp.arange(N), LABELS].set(z[:, 0] ** 2)),
    "one-hot": lambda z: total(jax.nn.one_hot(jnp.argmax(z, -1), D) * z),
    "merged axes": lambda z: total((z.reshape(N * 2, 2) @ W[:2]).reshape(N, 2, D)),
    "merged, normalized and split": lambda z: total(
        jax.nn.softmax(z.reshape(N * 2, 2), -1).reshape(N, 4)
    ),
    "groups of members": lambda z: jax.lax.map(
        lambda rows: total(jnp.sin(rows)), z.reshape(3, 2, D)
    ).reshape(N),
    "map in batches": lambda z: jax.lax.map(lambda row: jnp.sum(row**2), z, batch_size=2),
    "recurrent": recurrent,
    "attention over places": attention,
    "vmap": lambda z: jax.vmap(lambda z, x: norm.logpdf(x, jnp.dot(W, z)).sum())(z, X),
    "scan over members": lambda z: jax.lax.scan(lambda c, r: (c, jnp.sum(r**2)), 0.0, z)[1],
    "sort of latents": lambda z: jnp.sort(z, -1)[:, 0] + jax.lax.top_k(z, 2)[0][:, 1],
    "cumulative over latents": lambda z: total(jnp.cumsum(z, -1)),
    "ragged": lambda z: total(jnp.where(X > 0, norm.logpdf(X, z), 0.0)),
    "dropout": lambda z: total(
        jnp.where(jax.random.bernoulli(jax.random.key(0), 0.5, z.shape), z, 0)
    ),
    "covariance of each": lambda z: jax.vmap(
        lambda z: jnp.linalg.slogdet(jnp.eye(D) + jnp.outer(z, z))[1]
    )(z),
    "solve for each": lambda z: total(
        jnp.linalg.solve(jnp.eye(D) + z[:, :, None] * z[:, None, :], jnp.ones((N, D, 1)))[..., 0]
    ),
    "windows": lambda z: total(
        jax.lax.reduce_window(z, -jnp.inf, jax.lax.max, (1, 2), (1, 2), "VALID")
    ),
    "derivative of its own": lambda z: own_derivative(z) + total(jax.nn.silu(z)),
    "checkpoint": lambda z: total(jax.checkpoint(lambda z: jnp.sin(z @ W))(z)),
    "loop until each arrives": lambda z: jax.vmap(
        lambda a: jax.lax.while_loop(lambda a: a > 0.1, lambda a: a / 2, a)
    )(jnp.square(total(z))),
    "gradient of an energy": lambda z: total(jax.grad(lambda z: jnp.sum(jnp.cos(z @ W)))(z)),
    "special functions": lambda z: total(
        jax.scipy.special.betainc(1 + z**2, 2.0, 0.3) + jax.scipy.special.gammainc(1 + z**2, 0.5)
    ),
    "sharding": lambda z: total(over_devices(jnp.sin, in_specs=P("d"), out_specs=P("d"))(z)),
    "in the mean over devices": lambda z: total(
        over_devices(
            lambda z: z - jax.lax.pmean(z, "d"), in_specs=P(None, "d"), out_specs=P(None, "d")
        )(z)
    ),
    "categorical": lambda z: distrax.Categorical(logits=z).log_prob(LABELS),
    "multivariate": lambda z: distrax.MultivariateNormalDiag(z, jnp.exp(z)).log_prob(X),
    "linear": module(
        lambda rngs: nnx.Sequential(
            nnx.Linear(D, 8, rngs=rngs), nnx.gelu, nnx.Linear(8, D, rngs=rngs)
        )
    ),
    "LayerNorm": module(lambda rngs: nnx.LayerNorm(D, rngs=rngs)),
    "GroupNorm": module(lambda rngs: nnx.GroupNorm(D, 2, rngs=rngs)),
    "running statistics": module(
        lambda rngs: nnx.BatchNorm(D, use_running_average=True, rngs=rngs)
    ),
    "no member but itself": lambda z: jnp.zeros(N),
}
IMAGES = {
    "Conv": lambda rngs: nnx.Conv(2, 2, (2, 2), rngs=rngs),
    "ConvTranspose": lambda rngs: nnx.ConvTranspose(2, 2, (2, 2), strides=2, rngs=rngs),
    "GroupNorm of channels": lambda rngs: nnx.GroupNorm(2, 1, rngs=rngs),
}
COUPLED = {
    "batch normalization": lambda z: total((z - z.mean(0)) / jnp.sqrt(z.var(0) + 1e-3)),
    "centred": lambda z: total(z) - total(z).mean(),
    "attention over the batch": lambda z: total(jax.nn.softmax(z @ z.T, -1) @ z),
    "cumulative": lambda z: jnp.cumsum(total(z)),
    "sorted": lambda z: jnp.sort(total(z)),
    "rolled": lambda z: total(jnp.roll(z, 1, 0)),
    "flipped": lambda z: total(z[::-1]),
    "permuted": lambda z: total(z[ROWS]),
    "mixed by a matrix": lambda z: total(SQUARE @ z),
    "mixed on the right": lambda z: total((z.T @ SQUARE).T),
    "normalized over the batch": lambda z: jax.nn.log_softmax(total(z)),
    "summed by group": lambda z: jax.ops.segment_sum(total(z), np.array([0, 0, 1, 1, 2, 2]), N),
    "picked from another": lambda z: z[(jnp.arange(N) + 1) % N, LABELS],
    "set in another": lambda z: total(z.at[ROWS, LABELS].set(z[:, 0])),
    "carried from one to the next": lambda z: jax.lax.scan(
        lambda c, r: (c + jnp.sum(r), c), 0.0, z
    )[1],
    "split wrongly": lambda z: total(jnp.moveaxis(z.reshape(2, N, 2), 1, 0)),
    "merged, rolled and split": lambda z: total(jnp.roll(z.reshape(N * D), 1).reshape(N, D)),
    "loop until all arrive": lambda z: jax.lax.while_loop(
        lambda a: jnp.any(a > 0.1), lambda a: a / 2, jnp.square(total(z))
    ),
    "branch for all": lambda z: jax.lax.cond(z[0, 0] > 0, jnp.sin, jnp.cos, total(z)),
    "mean over devices": lambda z: total(
        over_devices(lambda z: z - jax.lax.pmean(z, "d"), in_specs=P("d"), out_specs=P("d"))(z)
    ),
    "host": lambda z: jax.pure_callback(
        lambda z: np.float32(z).sum(-1),
        jax.ShapeDtypeStruct((N,), jnp.float32),
        z,
        vmap_method="expand_dims",
    ),
    "BatchNorm": lambda z: total(
        nnx.merge(*nnx.split(nnx.BatchNorm(D, rngs=nnx.Rngs(0))), copy=True)(
            z, use_running_average=False
        )
    ),
}


def test_blocks_within_blocks():
    """The mean over an axis of the outer mesh mixes members, whichever function takes it."""
    mesh = jax.make_mesh((1, 1), ("d", "e"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    inner = {"in_specs": P(), "out_specs": P(), "axis_names": {"e"}}

    def target(centre):
        return lambda z: jax.shard_map(
            lambda z: total(jax.shard_map(centre, **inner)(z)),
            mesh=mesh,
            in_specs=P("d"),
            out_specs=P("d"),
            axis_names={"d"},
        )(z)

    assert traced(target(lambda z: z - jax.lax.pmean(z, "e"))).shape == (N,)
    with pytest.raises(ValueError, match="psum"):
        traced(target(lambda z: z - jax.lax.pmean(z, "d")))


@pytest.mark.parametrize("name", list(APART))
def test_what_keeps_members_apart_passes(name):
    assert traced(APART[name]).shape == (N,)


@pytest.mark.parametrize("name", list(IMAGES))
def test_convolutions_pass(name):
    network = IMAGES[name](nnx.Rngs(0))
    assert traced(lambda z: total(network(z)), (N, 4, 4, 2)).shape == (N,)


@pytest.mark.parametrize("name", list(COUPLED))
def test_what_couples_members_is_refused(name):
    with pytest.raises(
        ValueError,
        match=r"log_joint\(z\) (mixes members along axis 0 of|passes) leaf 'z'.*gradients.reparam",
    ):
        traced(COUPLED[name])
    # Right without a signal or a gate of each, and where all members are one.
    assert traced(COUPLED[name], gradient=vj.gradients.reparam).shape == (N,)
    assert traced(lambda z: COUPLED[name](z).sum(), batch=0).shape == ()
