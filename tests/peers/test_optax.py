"""Cases of Optax's monte_carlo tests (removed there since), ported to vijax. Facts and figures are the peer's, the code is not."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("loose_ranks", "unchecked"),
    pytest.mark.filterwarnings("ignore"),
]
elbo = vj.bounds.elbo
G = vj.gradients

O = "optax/monte_carlo/stochastic_gradient_estimators_test.py::"
COUNT = {"score": 500_000, "measure_valued": 100_000, "reparam": 50_000}
WEIGHTED = {"score": 5_000_000, "measure_valued": 500_000, "reparam": 50_000}


def grads(how, f, mean, log_scale, k):
    """Gradient of E_q[f]: that of E_q[f] + H[q], with the entropy's own (0, 1) taken away."""

    def value(p):
        q = (
            distrax.Independent(distrax.Normal(p[0], jnp.exp(p[1])), 1)
            if how != "measure_valued"
            else distrax.Normal(p[0], jnp.exp(p[1]))
        )
        if how == "measure_valued":
            q = distrax.Independent(q, 1)
        objective = getattr(G, how)(elbo)
        if (
            how == "score"
        ):  # the entropy is the same for every draw: away with it, so that the signal is f as in Optax
            objective = G.score(elbo, baseline=jax.lax.stop_gradient(q.entropy()))
        return objective(
            jax.random.key(1), vj.targets.exact_entropy(f, q), q, num_samples=k, chunk_size=k // 50
        ).value

    m, s = jax.jit(jax.grad(value))(
        (jnp.asarray(mean, jnp.float32), jnp.asarray(log_scale, jnp.float32))
    )
    return [m, s - 1.0]


HOW = pytest.mark.parametrize("how", list(COUNT))


@HOW
@pytest.mark.parametrize("c", [0.1, 0.9])
def test_constant(row, how, c):
    got = grads(
        how, lambda x: jnp.float32(c) + 0.0 * x.sum(), 1.5 * np.ones(3), np.zeros(3), COUNT[how]
    )
    row(
        O + "test_constant_function",
        f"{how}, f = {c}",
        f"{how}(elbo) on exact_entropy(f, q)",
        [np.zeros(3), np.zeros(3)],
        got,
        rtol=1e-2,
        atol=5e-3,
    )


@HOW
@pytest.mark.parametrize(("m", "s"), [(0.5, -1.0), (0.8, 0.1)])
def test_linear(row, how, m, s):
    got = grads(
        how, jnp.sum, m * np.ones(3), s * np.ones(3), COUNT[how] * (4 if how == "score" else 1)
    )  # the peer's 500,000 are 2 standard errors of score
    row(
        O + "test_linear_function",
        f"{how}, mean {m}, log scale {s}",
        f"{how}(elbo) on exact_entropy(f, q)",
        [np.ones(3), np.zeros(3)],
        got,
        rtol=1e-2,
        atol=1e-2,
    )


@HOW
def test_quadratic(row, how):
    got = grads(how, lambda x: jnp.sum(x**2) / 2, np.ones(3), 0.3 * np.ones(3), COUNT[how])
    row(
        O + "test_quadratic_function",
        how,
        f"{how}(elbo) on exact_entropy(f, q)",
        [np.ones(3), np.exp(0.6) * np.ones(3)],
        got,
        rtol=1e-2,
        atol=5e-2,
    )


NON = {
    "sum_cos_x": ([1.0], [1.0], lambda x: jnp.sum(jnp.cos(x))),
    "sum_log_x": ([10.0], [0.0], lambda x: jnp.sum(jnp.log(x))),
    "sum_cos_2x": ([1.0, 2.0], [1.0, -2.0], lambda x: jnp.sum(jnp.cos(2 * x))),
    "cos_sum_2x": ([1.0, 2.0], [1.0, -2.0], lambda x: jnp.cos(jnp.sum(2 * x))),
}


@pytest.mark.parametrize("name", list(NON))
def test_non_polynomial(row, name):
    m, s, f = NON[name]
    row(
        O + "test_non_polynomial_function_consistency_with_pathwise",
        name,
        "measure_valued(elbo) beside reparam(elbo)",
        grads("reparam", f, m, s, 100_000),
        grads("measure_valued", f, m, s, 100_000),
        rtol=5e-1,
        atol=1e-1,
    )


def test_raises_for_non_gaussian(row):
    with pytest.raises(ValueError, match="measure_valued"):
        G.measure_valued(elbo)(
            jax.random.key(0), lambda z: -z, distrax.Gamma(2.0, 1.0), num_samples=3
        )
    row(
        O + "test_raises_error_for_non_gaussian",
        "Gamma is refused",
        "measure_valued(elbo)",
        0.0,
        0.0,
    )
