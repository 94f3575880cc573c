"""gradients.measure_valued: Gaussian latents against quadrature, and a model that jumps."""

from functools import partial

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import vijax as vj
from tests import cases, oracles, problems
from tests.statistics import assert_mean, assert_variance_ratio

ELBO, IWAE = vj.bounds.elbo, vj.bounds.iwae
MAKE = vj.gradients.measure_valued
NORMAL = lambda q: problems.Normal(q["loc"], jnp.exp(q["log_scale"]))
LINE = cases.LINE._replace(build=NORMAL)
PLANE = next(case for case in cases.MAKES if case.name == "Independent")


def test_unbiased_for_any_bound(key):
    bounds = {"elbo": (ELBO, 1), "iwae": (IWAE, 2)}
    objectives = {name: MAKE(bound) for name, (bound, _) in bounds.items()}
    found = problems.value_and_grads(key, LINE, objectives, 2, 100_000)
    assert_mean(found, {name: LINE.truth(*b) for name, b in bounds.items()}, detects=0.1)


@pytest.mark.slow
def test_several_latents(key, loose_ranks):
    """Two latents that the model correlates, moved in turn."""
    case = PLANE
    objectives = {"measure": MAKE(ELBO), "iwae": MAKE(IWAE)}
    found = problems.value_and_grads(key, case, objectives, 2, 40_000)
    assert_mean(found, {"measure": case.truth(ELBO, 1), "iwae": case.truth(IWAE, 2)}, detects=0.15)


JUMP = LINE._replace(log_p=lambda theta, z: norm.logpdf(z, theta, 1.0) - 2.0 * (z > 0.5))


@pytest.mark.slow
def test_a_model_that_jumps(key):
    """Where the path gives a wrong answer, which is the control: the same comparison refuses it."""
    objectives = {"measure": MAKE(ELBO), "score": vj.gradients.score(ELBO)}
    found = problems.value_and_grads(key, JUMP, objectives, 2, 60_000)
    # The grid meets the jump, so the truth is in closed form.
    truth = jump_truth(JUMP.params)
    assert_mean({"measure": found["measure"]}, {"measure": truth}, detects=0.1)
    assert_variance_ratio(
        problems.of_q(found, "score"), problems.of_q(found, "measure"), at_least=2.0
    )
    wrong = problems.value_and_grads(key, JUMP, {"path": vj.gradients.reparam(ELBO)}, 2, 20_000)
    with pytest.raises(AssertionError, match="biased"):
        assert_mean(wrong, {"path": truth}, detects=0.2)


@oracles.exact
def jump_truth(params):
    def total(params):
        m, log_s = params["q"]["loc"], params["q"]["log_scale"]
        expected = -0.5 * jnp.log(2 * jnp.pi) - 0.5 * (
            (m - params["theta"]) ** 2 + jnp.exp(2 * log_s)
        )
        entropy = 0.5 * jnp.log(2 * jnp.pi * jnp.e) + log_s
        return jnp.sum(
            expected + entropy - 2.0 * jax.scipy.stats.norm.cdf((m - 0.5) / jnp.exp(log_s))
        )

    return jax.value_and_grad(total)(params)


@pytest.mark.slow
def test_dicts_chunks_and_double_precision(x64, key):
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), LINE.params)

    def total(params, chunk_size):
        q = {"a": NORMAL(params["q"]), "b": NORMAL(params["q"])}
        log_joint = lambda z: LINE.log_p(params["theta"], z["a"]) + norm.logpdf(z["b"], z["a"])
        return MAKE(IWAE)(key, log_joint, q, num_samples=5, chunk_size=chunk_size).value.sum()

    whole, pieces = (
        jax.jit(jax.value_and_grad(total), static_argnums=1)(params, c) for c in (None, 2)
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10), whole, pieces)
    assert whole[0].dtype == jnp.float64


@pytest.mark.parametrize("q", [
    distrax.Laplace(jnp.zeros(()), jnp.ones(())), distrax.Gumbel(jnp.zeros(()), jnp.ones(())),
    distrax.Bernoulli(logits=jnp.zeros(())), vj.families.mean_field().dist({"loc": jnp.zeros(2), "log_scale": jnp.zeros(2)}),
], ids=lambda q: type(q).__name__)  # fmt: skip
def test_who_is_not_believed(q, key, loose_ranks):
    """Others have a loc and a scale too."""
    with pytest.raises(ValueError, match="measure_valued needs a q of independent normals"):
        MAKE(ELBO)(key, lambda z: jnp.zeros(()), q, num_samples=2)


def test_a_scale_that_is_a_python_number(key):
    """log p - log q = -(z - 1)² + ½ (z - m)² + c: the slope at m = 0 is 2."""
    slope = lambda key: jax.grad(
        lambda m: (
            vj.gradients.measure_valued(vj.bounds.elbo)(
                key, lambda z: -((z - 1.0) ** 2), distrax.Normal(m, 1.0), num_samples=2
            ).value
        )
    )(0.0)
    found = jax.jit(jax.vmap(slope))(jax.random.split(key, 20_000))
    assert abs(found.mean() - 2.0) < 6 * found.std() / 20_000**0.5 < 0.2


@pytest.mark.usefixtures("unchecked", "loose_ranks")
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("n", [1, 50_000])
def test_a_laplace_is_no_normal(dtype, n, key):
    q = distrax.Independent(distrax.Laplace(jnp.zeros(n, dtype), jnp.ones(n, dtype)), 1)
    with pytest.raises(ValueError, match="independent normals"):
        MAKE(ELBO)(key, lambda z: -jnp.sum(z**2), q, num_samples=1)
