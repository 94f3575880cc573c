"""Extremes, end to end: objectives whose draws are impossible under the model, single, or of low precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj
from tests.bare import Die, Gauss
from tests.marks import some
from tests.problems import OBJECTIVES, SameGauss, assert_close
from vijax.types import closed_forms

INF = np.inf


@pytest.mark.slow
def test_vimco_with_an_impossible_draw_is_finite(key):
    """Where the textbook replaces a draw by the geometric mean of the others it gets nan: the control."""
    log_w = jnp.array([0.3, -INF, -1.0])[:, None]

    def textbook(l):
        k = l.shape[0]
        geometric = (l.sum(0, keepdims=True) - l) / (k - 1)
        swapped = jnp.where(jnp.eye(k, dtype=bool)[:, :, None], geometric[:, None], l[None])
        return jax.nn.logsumexp(l, axis=0)[None] - jax.nn.logsumexp(swapped, axis=1)

    assert np.any(np.isnan(textbook(log_w)))
    signal = vj.bounds.iwae(log_w)[None] - closed_forms(vj.bounds.iwae).leave_one_out(log_w)
    assert np.all(np.isfinite(signal))

    def value(logits, name):
        log_joint = lambda z: jnp.array([0.3, -INF, -1.0])[z]
        make = {"vimco": vj.gradients.vimco, "score": vj.gradients.score}[name]
        return make(vj.bounds.iwae)(key, log_joint, Die(logits), num_samples=16).value

    for name in ("vimco", "score"):
        slope = jax.grad(value)(jnp.zeros(3), name)
        assert np.all(np.isfinite(slope))
        assert np.abs(slope).max() > 0


def half_line(name, chunk_size, num_samples=6):
    """Return an objective's value where the model forbids z < 0, as a function of q's parameters."""

    def value(params, key):
        inside = lambda z: jnp.where(z > 0, z, 1.0)
        log_joint = lambda z: jnp.where(z > 0, -inside(z) - jnp.square(jnp.log(inside(z))), -INF)
        q = Gauss(params["loc"], params["log_scale"])
        return jnp.sum(
            OBJECTIVES[name](
                key, log_joint, q, num_samples=num_samples, chunk_size=chunk_size
            ).value
        )

    return value


@pytest.mark.parametrize("name", ["reparam(iwae)", "dreg(iwae)", "vimco(iwae)", "auto(iwae)"])
def test_objectives_with_impossible_draws(name, key):
    """Some draws of each datum impossible, all of them for the last: finite gradients, chunked = whole."""
    params = {"loc": jnp.array([0.2, 0.0, -30.0]), "log_scale": jnp.array([0.0, 0.4, 0.1])}
    run = lambda size: jax.grad(half_line(name, size))(params, key)
    found = jax.jit(lambda: {str(size): run(size) for size in (None, 2, 6)})()
    for size, gradient in found.items():
        assert_close(gradient, found["None"], err_msg=f"chunk_size {size}")
        assert all(np.all(np.isfinite(leaf)) for leaf in gradient.values())
        assert np.abs(gradient["loc"][:2]).min() > 1e-3
        assert gradient["loc"][2] == 0


@pytest.mark.parametrize("name", ["reparam(iwae)", "dreg(iwae)", "dreg(own)", "score(elbo)"])
def test_one_draw(name, key):
    """K = 1 is the ELBO for every bound here: dreg of any is sticking the landing."""
    params = {"loc": jnp.array([0.9, 1.4]), "log_scale": jnp.array([-2.0, -1.4])}
    elbo = {"reparam": "reparam(elbo)", "dreg": "dreg(elbo)", "score": "score(elbo)"}[
        name.split("(")[0]
    ]
    objectives = OBJECTIVES | {"reparam(elbo)": vj.gradients.reparam(vj.bounds.elbo)}
    make = lambda name: jax.value_and_grad(
        lambda p: jnp.sum(
            objectives[name](
                key, lambda z: -(z**2), Gauss(p["loc"], p["log_scale"]), num_samples=1
            ).value
        )
    )
    assert_close(make(name)(params), make(elbo)(params))


HALVES = [(jnp.bfloat16, False), (jnp.bfloat16, True), (jnp.float16, False), (jnp.float16, True)]


def kept(case):
    dtype, mixed = case
    return f"{dtype.__name__}, {'latents alone' if mixed else 'all'}"


@pytest.mark.parametrize("case", some(HALVES, "bfloat16, latents alone", name=kept))
@pytest.mark.slow
def test_objectives_in_half_precision(case, key):
    """Latents and q in half precision, the model in the same or in float32: gradients near float32's, in q's dtype."""
    dtype, mixed = case

    def value(params, name, chunk_size):
        q = SameGauss(params["loc"], params["log_scale"])
        log_joint = lambda z: -jnp.square((z.astype(jnp.float32) if mixed else z) - 0.5)
        return jnp.sum(
            OBJECTIVES[name](key, log_joint, q, num_samples=6, chunk_size=chunk_size).value
        )

    single = {"loc": jnp.array([0.25, 1.0]), "log_scale": jnp.array([-0.5, -0.25])}
    names = ["reparam(iwae)", "dreg(iwae)", "vimco(iwae)"]
    run = lambda p: {f"{n} {c}": jax.grad(value)(p, n, c) for n in names for c in (None, 4, 6)}
    found = jax.jit(run)(jax.tree.map(lambda a: a.astype(dtype), single))
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(found))
    found = jax.tree.map(lambda a: a.astype(jnp.float32), found)
    assert_close(
        found,
        jax.jit(run)(single),
        rtol=60 * float(jnp.finfo(dtype).eps),
        atol=60 * float(jnp.finfo(dtype).eps),
    )
