"""Devices: eight, with the batch or the samples laid out over them, give the numbers of one."""

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
