"""Chunks: chunk_size changes no number, and a model with a scan is evaluated no more often than it says."""

from functools import partial

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import vijax as vj
from tests.bare import Gauss
from tests.marks import some
from tests.problems import OBJECTIVES, K, assert_close, inputs, value

# Ways to split 7 draws: one by one, with a remainder, in one piece; and where it costs little, 4 + 3 and more than whole.
SIZES = {name: (1, 3, 7) for name in OBJECTIVES} | {"reparam(iwae)": (1, 3, 4, 6, 7, 100)}


@pytest.mark.parametrize("name", some(OBJECTIVES, "dreg(own)", "vimco(iwae)"))
def test_chunked_is_whole(name, key):
    params, data = inputs()
    sizes = SIZES[name]
    run = lambda size: jax.value_and_grad(value(name, size, 7))
    found = jax.jit(
        lambda params: {str(size): run(size)(params, data, key) for size in (None, *sizes)}
    )(params)
    for size in sizes:
        assert_close(found[str(size)], found["None"], err_msg=f"chunk_size {size}")


def test_draws_do_not_depend_on_chunks(key):
    """log p and log q of draw k come back in order, and z only where it was never cut."""
    params, data = inputs()
    q = Gauss(params["q"]["loc"], params["q"]["log_scale"])
    run = partial(
        vj.gradients.reparam(vj.bounds.elbo),
        key,
        lambda z: norm.logpdf(data["x"], z, 1.0),
        q,
        num_samples=7,
    )
    whole, parts = run().draws, run(chunk_size=3).draws
    assert_close((parts.log_p, parts.log_q), (whole.log_p, whole.log_q))
    assert parts.z is None
    assert whole.z.shape == (7, 3)
    np.testing.assert_array_equal(run(chunk_size=7).draws.z, whole.z)


# --- models that hold a scan


def scanned(x, z):
    """log p of a random walk seen with noise, by lax.scan over time; z is its start."""

    def step(state, x):
        state = jnp.tanh(1.3 * state)
        return state, norm.logpdf(x, state, 1.0)

    return norm.logpdf(z, 0.0, 1.0) + jax.lax.scan(step, z, x)[1].sum(0)


def unrolled(x, z):
    total, state = norm.logpdf(z, 0.0, 1.0), z
    for now in x:
        state = jnp.tanh(1.3 * state)
        total = total + norm.logpdf(now, state, 1.0)
    return total


def walk(model, name, chunk_size):
    x = jnp.array([0.3, 0.9, -0.2, 0.5])

    def total(params, key):
        q = Gauss(params["loc"], params["log_scale"])
        target = partial(model, params["gain"] * x)
        return jnp.sum(OBJECTIVES[name](key, target, q, num_samples=K, chunk_size=chunk_size).value)

    return jax.value_and_grad(total), {
        "loc": jnp.float32(0.4),
        "log_scale": jnp.float32(-0.5),
        "gain": jnp.float32(1.1),
    }


@pytest.mark.parametrize("chunk_size", some([None, 2, K], "None", "2"))
@pytest.mark.parametrize("name", some(["dreg(iwae)", "vimco(iwae)"], "dreg(iwae)"))
def test_a_scan_in_the_model(name, chunk_size, key):
    run, params = walk(scanned, name, chunk_size)
    plain, _ = walk(unrolled, name, None)
    assert_close(jax.jit(run)(params, key), jax.jit(plain)(params, key))


def count_scans(jaxpr):
    """Count scans over time (length 4) that are evaluated, those inside a scan over chunks once for each chunk."""
    total = 0
    for eqn in jaxpr.eqns:
        times = 1
        if eqn.primitive.name == "scan":
            if eqn.params["length"] == 4:
                total += 1
                continue
            times = eqn.params["length"]
        for inner in jax.tree.leaves(
            eqn.params, is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                total += times * count_scans(inner)
    return total


@pytest.mark.parametrize(
    ("name", "chunk_size", "scans"),
    [
        ("reparam(iwae)", None, 2),
        ("dreg(elbo)", None, 2),
        ("dreg(iwae)", None, 3),  # two looks, and XLA does not merge scans
        ("dreg(iwae)", K, 2),  # one forward and one backward: what chunk_size=num_samples promises
        ("reparam(iwae)", 3, 2 * 3),  # each of two chunks: forward, again forward, backward
        ("dreg(iwae)", 3, 2 * 3),
        ("vimco(iwae)", None, 2),
    ],
)
def test_how_often_the_model_is_evaluated(name, chunk_size, scans, key):
    """Scans over time in the jaxpr of value and gradient, forward and backward together."""
    run, params = walk(scanned, name, chunk_size)
    assert count_scans(jax.make_jaxpr(run)(params, key).jaxpr) == scans


def test_memory_does_not_grow_with_draws(key):
    """Temporary memory of the compiled gradient, in chunks of 100: at 20 times the draws it may grow by log-weights alone."""
    mix = 0.1 * jnp.ones((64, 64))

    def compiled(num_samples, chunk_size):
        def total(params):
            target = lambda z: (
                jnp.sum(jnp.sin(mix @ jnp.sin(mix @ jnp.sin(z * mix[0])))) - 0.5 * z**2
            )
            q = Gauss(params, jnp.float32(0.0))
            run = OBJECTIVES["reparam(iwae)"]
            return run(key, target, q, num_samples=num_samples, chunk_size=chunk_size).value

        return (
            jax.jit(jax.grad(total))
            .lower(jnp.float32(0.3))
            .compile()
            .memory_analysis()
            .temp_size_in_bytes
        )

    few, many, whole = compiled(200, 100), compiled(4000, 100), compiled(4000, None)
    assert (
        many - few < 4000 * 4 * 20
    )  # twenty numbers for each draw, where the model makes hundreds
    assert whole > 4 * many  # the control: all at once it does grow


def parabola(z):
    return -0.5 * (z - 1.0) ** 2


@pytest.mark.usefixtures("loose_ranks")
@pytest.mark.parametrize("chunk_size", [2, 4])
def test_chunks_pass_jax_own_checks(chunk_size, key):
    def log_joint(z):
        return parabola(z) + distrax.Normal(jnp.tanh(z), 1.0).log_prob(1.0)

    def loss(m, c):
        q = distrax.Normal(m, 1.0)
        return vj.gradients.dreg(vj.bounds.iwae)(
            key, log_joint, q, num_samples=4, chunk_size=c
        ).value

    with jax.debug_key_reuse(True):
        found = jax.jit(jax.grad(partial(loss, c=chunk_size)))(0.3)
    np.testing.assert_allclose(found, jax.grad(partial(loss, c=None))(0.3), rtol=1e-5)


@pytest.mark.usefixtures("loose_ranks")
def test_an_empty_batch_is_empty_in_chunks_too(key):
    q = distrax.Normal(jnp.zeros(0), 1.0)
    for name in ("reparam", "dreg", "score", "vimco"):
        gradient = getattr(vj.gradients, name)
        assert gradient(vj.bounds.iwae)(
            key, parabola, q, num_samples=4, chunk_size=3
        ).value.shape == (0,)


@pytest.mark.usefixtures("loose_ranks")
@pytest.mark.parametrize("n", some([1, 2], "2"))
def test_chunks_do_not_stall_in_half_precision(n, key):
    """Four thousand small terms, one at a time: summed in bfloat16 they would stop at a sixth."""
    one = jnp.ones(n, jnp.bfloat16)

    def value(t, size):
        def target(z):
            return -0.5 * (z - t) ** 2

        q = distrax.Normal(0.5 * one, one)
        return vj.gradients.dreg(vj.bounds.elbo)(
            key, target, q, num_samples=4000, chunk_size=size
        ).value.sum()

    whole, single = (jax.grad(value)(jnp.bfloat16(-1), size) for size in (None, 1))
    np.testing.assert_allclose(np.float32(single), np.float32(whole), rtol=0.05)


def test_data_of_numpy_under_vmap(key):
    """Under jit, vmap hands NumPy's arrays on as they are, which no custom_vjp takes as a constant."""

    def value(slope, data, chunk_size):
        def one(x):
            q = Gauss(slope * x, -0.2 + 0 * x)
            target = lambda z: -0.5 * z**2 - 0.5 * (x - slope * z) ** 2
            objective = vj.gradients.dreg(vj.bounds.iwae)
            return objective(key, target, q, num_samples=4, chunk_size=chunk_size).value

        return jnp.sum(jax.vmap(one)(data))

    data, slope = np.linspace(-1.0, 1.0, 3, dtype=np.float32), jnp.float32(0.3)
    found = jax.jit(jax.value_and_grad(lambda slope: value(slope, data, 2)))(slope)
    assert_close(found, jax.value_and_grad(lambda slope: value(slope, data, None))(slope))
