"""One pass over chunks for a batch of one (engine.one_pass): the same numbers as the whole, with the model evaluated once forward."""

from functools import partial

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import vijax as vj
from tests import table
from tests.bare import Gauss
from tests.laws.test_chunks import count_scans
from tests.marks import some
from tests.problems import assert_close

POWERS = [row.name for row in table.BOUNDS if row.power is not None]
GRADIENTS = {"reparam": vj.gradients.reparam, "dreg": vj.gradients.dreg}


def inputs(batch=(1,), seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(0.5 * rng.normal(size=shape), np.float32)
    params = {
        "loc": draw(*batch),
        "log_scale": draw(*batch) - 0.5,
        "weight": draw(3),
        "shift": draw(),
    }
    return params, {
        "x": draw(*batch) + 1,
        "label": jnp.asarray(rng.integers(0, 3, batch)),
        "noise": jax.random.key(seed),
    }


def log_joint(params, data, scale, z):
    """A label and a number, with noise from a key that is closed over; `shift` is shared with q."""
    noise = jax.random.normal(data["noise"], (3,))
    last = lambda v: v.reshape((1,) * z.ndim + (3,))
    logits = jax.nn.log_softmax(jnp.expand_dims(z, -1) * last(params["weight"]) + last(noise))
    label = jnp.take_along_axis(logits, jnp.expand_dims(data["label"], -1), -1)[..., 0]
    return scale * (label + norm.logpdf(data["x"], z + params["shift"], 1.0) + norm.logpdf(z))


def value(gradient, bound, chunk_size, num_samples=7, scale=1.0):
    objective = GRADIENTS[gradient](table.BOUND[bound].function)

    def run(params, data, key):
        q = Gauss(params["loc"] + params["shift"], params["log_scale"])
        target = partial(log_joint, params, data, scale)
        return jnp.sum(
            3.0 * objective(key, target, q, num_samples=num_samples, chunk_size=chunk_size).value
        )

    return run


PAIRS = [(gradient, bound) for gradient in GRADIENTS for bound in POWERS]


@pytest.mark.parametrize(
    "pair",
    some(PAIRS, "reparam(iwae)", "dreg(renyi(.5))", name="{0[0]}({0[1]})".format),
)
def test_one_pass_is_whole(pair, key):
    gradient, bound = pair
    params, data = inputs()
    run = lambda size: jax.value_and_grad(value(gradient, bound, size))
    found = jax.jit(lambda p: {str(size): run(size)(p, data, key) for size in (None, 1, 3, 6)})(
        params
    )
    for size in (1, 3, 6):
        assert_close(found[str(size)], found["None"], err_msg=f"chunk_size {size}")


@pytest.mark.parametrize("scale", [1e4, 0.0])
@pytest.mark.parametrize("gradient", some(GRADIENTS, "dreg"))
def test_one_pass_at_extreme_spreads(gradient, scale, key):
    """Weights thousands of nats apart rescale the sums to nothing and back; equal ones never do."""
    params, data = inputs()
    whole, passed = (
        jax.jit(jax.value_and_grad(value(gradient, "iwae", size, 40, scale)))(params, data, key)
        for size in (None, 3)
    )
    assert_close(passed, whole, rtol=2e-4)


@pytest.mark.parametrize("batch", some([(1,), (1, 1)], "(1,)"))
@pytest.mark.slow
def test_one_pass_under_vmap(batch, key):
    """Over members with parameters of their own, or shared: the gradient of each is its own, and of all the sum."""
    pairs = [inputs(batch, seed) for seed in range(3)]
    params, data = (
        jax.tree.map(lambda *v: jnp.stack(v), *trees) for trees in zip(*pairs, strict=True)
    )
    keys = jax.random.split(key, 3)
    run = value("dreg", "iwae", 3)
    each = jax.jit(jax.vmap(jax.grad(run)))(params, data, keys)
    shared = jax.jit(jax.grad(lambda p: jnp.sum(jax.vmap(run, (None, 0, 0))(p, data, keys))))(
        pairs[0][0]
    )
    alone = [
        jax.grad(value("dreg", "iwae", None))(pairs[i][0], pairs[i][1], keys[i]) for i in range(3)
    ]
    assert_close(each, jax.tree.map(lambda *v: jnp.stack(v), *alone))
    same = [
        jax.grad(value("dreg", "iwae", None))(pairs[0][0], pairs[i][1], keys[i]) for i in range(3)
    ]
    assert_close(shared, jax.tree.map(lambda *v: sum(v), *same))


@pytest.mark.slow
@pytest.mark.parametrize("gradient", list(GRADIENTS))
def test_impossible_draws_in_one_pass(gradient, key):
    """Draws below a limit have weight 0: with some, the gradient is the whole's; with all, it is 0 and the value -inf."""
    params, data = inputs()

    def run(p, limit, size):
        target = lambda z: jnp.where(z > limit, log_joint(p, data, 1.0, z), -jnp.inf)
        q = Gauss(p["loc"], p["log_scale"])
        objective = GRADIENTS[gradient](vj.bounds.iwae)
        return objective(key, target, q, num_samples=20, chunk_size=size).value[0]

    for limit in (0.3, 1e3):
        assert_close(
            *(
                jax.jit(jax.value_and_grad(partial(run, limit=limit, size=s)))(params)
                for s in (3, None)
            )
        )
    assert run(params, 1e3, 3) == -jnp.inf


@pytest.mark.slow
def test_aux_and_keys_come_through_in_order(key):
    params, data = inputs()

    def noisy(key, z):
        mask = jax.random.bernoulli(key, 0.5)
        return log_joint(params, data, 1.0, z) + mask, {"mask": mask, "z": z}

    target = vj.targets.keyed(noisy, has_aux=True)
    q = Gauss(params["loc"], params["log_scale"])
    whole, passed = (
        vj.gradients.dreg(vj.bounds.iwae)(key, target, q, num_samples=7, chunk_size=s).draws
        for s in (None, 3)
    )
    assert_close(passed._replace(z=None), whole._replace(z=None))
    assert passed.z is None


@pytest.mark.parametrize(("batch", "scans"), [((1,), 2 * 2), ((), 3 * 2), ((2,), 3 * 2)])
@pytest.mark.parametrize("gradient", list(GRADIENTS))
def test_the_model_is_evaluated_once_forward(gradient, batch, scans, key):
    """Scans over time in the gradient of five draws in two chunks: forward and backward, or forward once more."""

    def total(loc):
        def target(z):
            return norm.logpdf(
                jax.lax.scan(lambda s, x: (jnp.tanh(s + x), None), z, jnp.ones(4))[0]
            )

        q = Gauss(loc, jnp.zeros(batch))
        return jnp.sum(
            GRADIENTS[gradient](vj.bounds.iwae)(key, target, q, num_samples=5, chunk_size=3).value
        )

    assert count_scans(jax.make_jaxpr(jax.value_and_grad(total))(jnp.zeros(batch)).jaxpr) == scans


@pytest.mark.slow
def test_slopes_of_a_traced_power(key):
    """An alpha that is traced has no power known beforehand: two passes, and the derivative in alpha as of the whole."""
    params, data = inputs()

    def run(alpha, size):
        q = Gauss(params["loc"], params["log_scale"])
        objective = vj.gradients.dreg(partial(vj.bounds.renyi, alpha=alpha))
        return objective(
            key, partial(log_joint, params, data, 1.0), q, num_samples=7, chunk_size=size
        ).value[0]

    assert_close(*(jax.grad(partial(run, size=s))(jnp.float32(0.4)) for s in (3, None)))


@pytest.mark.usefixtures("loose_ranks")
@pytest.mark.slow
def test_infinite_weights_have_no_slope_in_one_pass(key):
    def slope(bound, spike, size):
        def target(z):
            return jnp.where(z > 0, spike, -(z**2))

        def value(m):
            q = distrax.Normal(m, 1.0)
            return vj.gradients.reparam(bound)(
                key, target, q, num_samples=8, chunk_size=size
            ).value[0]

        return jax.grad(value)(jnp.zeros(1))

    for bound, spike in (
        (vj.bounds.iwae, jnp.inf),
        (partial(vj.bounds.renyi, alpha=2.0), -jnp.inf),
    ):
        np.testing.assert_array_equal(slope(bound, spike, 3), slope(bound, spike, None))
