"""Devices: eight, with the batch or the samples laid out over them, give the numbers of one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import vijax as vj
from tests.bare import Gauss
from tests.problems import assert_close

MAKERS = {"reparam": vj.gradients.reparam, "dreg": vj.gradients.dreg}


@pytest.fixture
def mesh():
    assert len(jax.devices()) == 8
    return jax.make_mesh((8,), ("i",), axis_types=(AxisType.Auto,))


def step(make, draw, chunk_size=None):
    def total(params, x, key):
        q = Gauss(params["loc"] + params["slope"] * x, jnp.full_like(x, -0.2))
        target = lambda z: norm.logpdf(z, 0.0, 1.0) + norm.logpdf(x, params["gain"] * z, 1.0)
        how = {} if draw is None else {"draw": draw}
        estimate = make(vj.bounds.iwae, **how)(
            key, target, q, num_samples=16, chunk_size=chunk_size
        )
        return jnp.sum(estimate.value), estimate.draws.log_p

    return jax.jit(jax.value_and_grad(total, has_aux=True))


PARAMS = {"loc": jnp.float32(0.1), "slope": jnp.float32(0.4), "gain": jnp.float32(1.2)}
X = np.linspace(-2, 2, 16, dtype=np.float32)


@pytest.mark.parametrize("chunk_size", [None, 5])
@pytest.mark.parametrize("make", list(MAKERS))
def test_a_sharded_batch(make, chunk_size, mesh, key):
    """Two data on each device: the data's layout is all it takes."""
    run = step(MAKERS[make], None, chunk_size)
    (value, log_p), gradient = run(
        PARAMS, jax.device_put(X, NamedSharding(mesh, PartitionSpec("i"))), key
    )
    assert_close(((value, log_p), gradient), run(PARAMS, X, key))
    assert len(log_p.sharding.device_set) == 8
    assert log_p.addressable_shards[0].data.shape == (16, 2)


@pytest.mark.parametrize("make", list(MAKERS))
def test_sharded_samples(make, mesh, key):
    """Two draws on each device, by draws.sharded."""
    draw = vj.draws.sharded(vj.draws.iid, NamedSharding(mesh, PartitionSpec("i")))
    found = step(MAKERS[make], draw)(PARAMS, X, key)
    assert_close(found, step(MAKERS[make], vj.draws.iid)(PARAMS, X, key))
    log_p = found[0][1]
    assert len(log_p.sharding.device_set) == 8
    assert log_p.addressable_shards[0].data.shape == (2, 16)


def test_draw_k_is_the_same_on_every_layout(mesh, key):
    """Noise is a function of key and sample index alone."""
    sharded = vj.draws.sharded(vj.draws.iid, NamedSharding(mesh, PartitionSpec("i")))
    q = Gauss(jnp.zeros(3), jnp.zeros(3))
    look = lambda draw: jax.jit(
        lambda key: vj.draws.weigh(key, lambda z: -jnp.square(z), q, num_samples=16, draw=draw).z
    )(key)
    np.testing.assert_array_equal(look(sharded), look(vj.draws.iid))


# --- shard_map, whose types say what differs over devices


def on_each(body, mesh, *shared):
    """Return the sum over eight devices of what each says of its two data."""

    def summed(*args):
        return jax.lax.psum(jnp.sum(body(*args)), "i")

    data, whole = PartitionSpec("i"), PartitionSpec()
    specs = (*(whole for _ in shared), data)
    return jax.shard_map(summed, mesh=mesh, in_specs=specs, out_specs=whole)(*shared, X)


def one_by_one(body, *shared):
    return jnp.sum(jax.vmap(lambda x: body(*shared, x))(X.reshape(8, 2)))


@pytest.mark.parametrize(("rows", "shared"), [(1, True), (1, False), (2, True)])
def test_chunks_inside_shard_map(rows, shared, mesh, key):
    """D: the scan's carries differed in type. One datum a device is a single pass where it shares no parameters."""

    def body(params, x, own=None):
        params = params if shared or own is None else own(params)
        x = x[:rows]
        q = Gauss(params["loc"] + params["slope"] * x, -0.2 + 0 * x)
        target = lambda z: -0.5 * z**2 - 0.5 * (x - params["gain"] * z) ** 2
        objective = vj.gradients.dreg(vj.bounds.iwae)
        return objective(key, target, q, num_samples=6, chunk_size=4).value

    apart = lambda params: jax.lax.pcast(params, "i", to="varying")
    mapped = lambda params: on_each(partial(body, own=apart), mesh, params)
    found = jax.jit(jax.value_and_grad(mapped))(PARAMS)
    assert_close(found, jax.jit(jax.value_and_grad(lambda p: one_by_one(body, p)))(PARAMS))


def _collapsed(gain, x):
    log_joint = lambda z, b: -0.5 * (z**2 + (b - z) ** 2 + (x - gain * b) ** 2)
    return vj.targets.collapse_gaussian(log_joint, jnp.zeros(x.shape))[0](jnp.zeros(x.shape))


def _laplace(gain, x):
    log_joint = lambda z, b: -0.5 * (z**2 + (b - z) ** 2) + x * b - gain * jnp.exp(b)
    return vj.targets.collapse_laplace(log_joint, jnp.zeros(x.shape))[0](jnp.zeros(x.shape))


def _flow(gain, x):
    family = vj.families.inverse_autoregressive(hidden=(2,), layers=1)
    params = family.init(jax.random.key(0), jnp.zeros(2))
    q = family.dist(jax.tree.map(lambda leaf: leaf * gain * x[0], params))
    return q.log_prob(x)


def _natural_gradient(gain, x):
    """A step of each device's own rule."""
    log_joint = lambda z: -0.5 * jnp.sum((z - gain * x) ** 2)
    rule = vj.updates.natural_gradient(log_joint, num_samples=4, curvature=vj.updates.hessian)
    params = vj.families.full_rank().init(jax.random.key(0), x)
    return rule.params(rule.step(jax.random.key(1), rule.init(params))[0])["loc"]


@pytest.mark.parametrize("body", [_collapsed, _laplace, _flow, _natural_gradient])
def test_inner_derivatives_are_each_devices_own(body, mesh):
    """Of a point that devices share JAX gives the sum of their slopes: -27.4 for -21.3 of a collapsed target."""
    gain = jnp.float32(0.7)
    found = jax.jit(lambda gain: on_each(body, mesh, gain))(gain)
    assert_close(found, jax.jit(lambda gain: one_by_one(body, gain))(gain))
