"""targets.collapse_gaussian and collapse_laplace: closed-form evidences, the exact conditional, every structure, and what is refused."""

from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import multivariate_normal, norm

import vijax as vj
from tests import oracles
from tests.bare import Gauss
from tests.marks import some
from vijax import gaussians

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(30, 4)), RNG.normal(size=30)
Z = {"log_s": -0.3, "log_t": 0.2}
LIKE = {"w": np.zeros(4), "c": np.zeros(())}


def regression(z, b):
    """y ~ N(Xw + c, s²), w and c ~ N(0, t²), with data in b's precision."""
    x, y = jnp.asarray(X, b["w"].dtype), jnp.asarray(Y, b["w"].dtype)
    s, t = jnp.exp(z["log_s"]), jnp.exp(z["log_t"])
    prior = jnp.sum(norm.logpdf(b["w"], 0.0, t)) + norm.logpdf(b["c"], 0.0, t)
    return prior + jnp.sum(norm.logpdf(y, x @ b["w"] + b["c"], s))


def regression_evidence(z):
    design = np.concatenate([X, np.ones((30, 1))], 1)
    noise = jnp.exp(2 * z["log_s"]) * jnp.eye(30)
    return multivariate_normal.logpdf(
        Y, jnp.zeros(30), noise + jnp.exp(2 * z["log_t"]) * design @ design.T
    )


@oracles.exact
def exactly(function, *args):
    """Return value, gradient and Hessian in float64."""
    return jax.jit(
        lambda *args: (function(*args), jax.grad(function)(*args), jax.hessian(function)(*args))
    )(*args)


def of(tree, dtype):
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), tree)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: dtype.__name__)
def test_regression(dtype):
    """Value and both derivatives of the evidence; log p(x, z, b) - log p(b | x, z) is that evidence at any draw b."""
    double = dtype == np.float64
    close = 1e-10 if double else 2e-5
    expected = exactly(regression_evidence, {name: np.float64(value) for name, value in Z.items()})
    with jax.enable_x64(True) if double else nullcontext():
        collapsed, conditional = vj.targets.collapse_gaussian(regression, of(LIKE, dtype))
        z = of(Z, dtype)
        found = jax.jit(
            lambda z: (collapsed(z), jax.grad(collapsed)(z), jax.hessian(collapsed)(z))
        )(z)
        size = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
        jax.tree.map(
            lambda f, e: np.testing.assert_allclose(f, e, atol=close * size), found, expected
        )

        @jax.jit
        def at_a_draw(key):
            b, log_b = conditional(z).sample_and_log_prob(seed=key)
            return regression(z, b) - log_b, conditional(z).log_prob(b) - log_b

        for seed in range(3):
            evidence, nothing = at_a_draw(jax.random.key(seed))
            np.testing.assert_allclose(evidence, expected[0], rtol=close)
            np.testing.assert_allclose(nothing, 0.0, atol=10 * close)


@pytest.mark.slow
def test_conditional_moments(loose_ranks):
    """The mean and covariance of p(w | x) are the textbook's, those of draws too."""
    prior = lambda w: jnp.sum(norm.logpdf(w, 0.0, 1.0))
    log_joint = lambda z, w: (
        prior(w) + jnp.sum(norm.logpdf(jnp.float32(Y), jnp.float32(X) @ w, jnp.exp(z)))
    )
    _, conditional = vj.targets.collapse_gaussian(log_joint, jnp.zeros(4))
    mean, covariance = oracles.regression_posterior(X, Y, np.exp(-0.3))
    p = conditional(jnp.float32(-0.3))
    np.testing.assert_allclose(p.mean, mean, atol=1e-5)
    draws, log_p = p.sample_and_log_prob(seed=jax.random.key(0), sample_shape=(40_000,))
    assert draws.shape == (40_000, 4)
    assert log_p.shape == (40_000,)
    error = 6 * np.sqrt(np.diag(covariance) / 40_000)
    np.testing.assert_array_less(np.abs(draws.mean(0) - mean), error)
    np.testing.assert_allclose(np.cov(draws.T), covariance, atol=0.05 * np.diag(covariance).max())
    exact = multivariate_normal.logpdf(
        draws[:5], jnp.asarray(mean, np.float32), jnp.asarray(covariance, np.float32)
    )
    np.testing.assert_allclose(log_p[:5], exact, atol=2e-4)


# --- structures


def chain(z, b):
    """A walk of two numbers, seen with noise: b [T, 2]."""
    steps = norm.logpdf(b[1:], 0.9 * b[:-1] + 0.1 * jnp.sin(z), jnp.exp(z))
    seen = norm.logpdf(
        jnp.asarray(Y[: len(b)], b.dtype)[:, None],
        b @ jnp.array([[1.0, 0.3], [0.2, 1.0]], b.dtype),
        0.5,
    )
    return jnp.sum(norm.logpdf(b[0], 0.0, 1.0)) + jnp.sum(steps) + jnp.sum(seen)


@pytest.mark.parametrize("steps", some([1, 2, 3, 4, 17], "1"))
def test_a_chain_is_the_dense_answer(steps):
    like = jnp.zeros((steps, 2))
    both = [
        vj.targets.collapse_gaussian(chain, like, precision=p)
        for p in (gaussians.tridiagonal, gaussians.dense)
    ]
    (thin, p), (full, q) = both

    @jax.jit
    def every(z):
        b, log_b = p(z).sample_and_log_prob(seed=jax.random.key(2))
        seen = jax.value_and_grad(thin)(z), log_b, p(z).mean
        return seen, (jax.value_and_grad(full)(z), q(z).log_prob(b), q(z).mean)

    one, other = every(jnp.float32(0.3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), one, other)
    np.testing.assert_allclose(one[0][0], other[0][0], rtol=2e-5)


def apart(z, b):
    return jnp.sum(norm.logpdf(jnp.float32(Y), b, jnp.exp(z))) + jnp.sum(norm.logpdf(b, 0.0, 2.0))


@pytest.mark.slow
def test_independent_numbers():
    collapsed, conditional = vj.targets.collapse_gaussian(
        apart, jnp.zeros(30), precision=gaussians.diagonal
    )
    z = jnp.float32(0.3)
    np.testing.assert_allclose(
        collapsed(z),
        norm.logpdf(jnp.float32(Y), 0.0, jnp.sqrt(4 + jnp.exp(2 * z))).sum(),
        rtol=1e-5,
    )
    b, log_b = conditional(z).sample_and_log_prob(seed=jax.random.key(0))
    np.testing.assert_allclose(apart(z, b) - log_b, collapsed(z), rtol=1e-5)


@pytest.mark.parametrize(
    ("log_joint", "like", "claim"),
    [
        (
            lambda z, b: regression(of(Z, np.float32), {"w": b, "c": z}),
            jnp.zeros(4),
            gaussians.diagonal,
        ),
        (
            lambda z, b: chain(z, b) - 0.1 * jnp.sum(b[0] * b[5]),
            jnp.zeros((7, 2)),
            gaussians.tridiagonal,
        ),
    ],
    ids=["diagonal", "tridiagonal"],
)
def test_a_structure_that_is_not_there_is_nan(log_joint, like, claim):
    collapsed, _ = vj.targets.collapse_gaussian(log_joint, like, precision=claim)
    assert jnp.isnan(jax.jit(collapsed)(jnp.float32(0.1)))


LARGE = {  # beside 1e4 what is not there is small
    "diagonal": (
        lambda z, b: (
            -0.5 * jnp.sum(jnp.array([1e4, 2.0, 2.0]) * b**2)
            - jnp.tanh(z) * b[1] * b[2]
            + jnp.sum(b)
        ),
        jnp.zeros(3),
        gaussians.diagonal,
    ),
    "tridiagonal": (
        lambda z, b: -5e3 * b[0, 0] ** 2 - jnp.sum(b**2) + 0.9 * b[1, 0] * b[5, 0] + z * jnp.sum(b),
        jnp.zeros((6, 1)),
        gaussians.tridiagonal,
    ),
    "members": (
        lambda z, b: (
            z * b.sum(1)
            - 5e3 * b[:, 0] ** 2
            - b[:, 1] ** 2
            - 0.5 * (b[0, 1] - b[1, 1]) ** 2 * jnp.array([1.0, 0, 0])
        ),
        jnp.zeros((3, 2)),
        gaussians.dense,
    ),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_large_number_does_not_hide_it_and_nothing_finite_is_left(name):
    log_joint, like, claim = LARGE[name]
    collapsed, conditional = vj.targets.collapse_gaussian(log_joint, like, precision=claim)

    @jax.jit
    def seen(z):
        p = conditional(z)
        return (
            jax.value_and_grad(lambda z: jnp.sum(collapsed(z)))(z),
            p.mean.sum(),
            p.log_prob(like).sum(),
        )

    assert all(np.isnan(leaf) for leaf in jax.tree.leaves(seen(jnp.float32(0.3))))


def test_members_that_depend_on_each_other_are_nan():
    coupled, _ = vj.targets.collapse_gaussian(
        lambda z, b: -0.5 * b[:, 0] ** 2 - 0.5 * (jnp.sum(b) - z) ** 2, jnp.zeros((3, 1))
    )
    assert jnp.all(jnp.isnan(jax.jit(coupled)(jnp.zeros(3))))


def test_no_conditional_is_nan():
    improper, _ = vj.targets.collapse_gaussian(lambda z, b: z * jnp.sum(b**2), jnp.zeros(3))
    assert jnp.isnan(improper(jnp.float32(0.1)))
    assert jnp.isfinite(improper(jnp.float32(-0.1)))


# --- batches and transformations


def batched(z, b):
    """Three members, each with coefficients of its own; z [3]."""
    seen = norm.logpdf(jnp.float32(Y)[None], b @ jnp.float32(X).T, jnp.exp(z)[:, None])
    return jnp.sum(seen, -1) + jnp.sum(norm.logpdf(b, 0.0, 1.0), -1)


@pytest.mark.slow
def _coefficients(rows, scale, prior=0.0):
    """Return the evidence of three coefficients on `rows` observations, with a prior of that precision or none."""
    x = jnp.asarray(scale * X[:rows, :3])
    like = jnp.zeros(3, x.dtype)
    fit = lambda z, b: -0.5 * jnp.sum((x @ b - z) ** 2) - 0.5 * prior * jnp.sum(b**2)
    return vj.targets.collapse_gaussian(fit, like)[0](jnp.asarray(0.3, x.dtype))


@pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])
def test_a_singular_precision_is_nan_at_any_scale(double):
    """Two observations of three coefficients and no prior: the integral is infinite, whatever a pivot is rounded to."""
    with jax.enable_x64(double):
        # A weak prior is enough, so long as it is not lost in rounding.
        for rows, prior, sound in [(2, 0.0, False), (3, 0.0, True), (2, 1e-3, True)]:
            run = jax.jit(
                lambda scale, rows=rows, p=prior: _coefficients(rows, scale, p * scale**2)
            )
            for scale in (1e-3, 0.3, 1.0, 7.0, 1e3):
                assert np.isfinite(run(scale)) == sound


def test_a_singular_chain_is_nan():
    """Differences alone leave the level free; one weak observation of it does not."""

    @jax.jit
    def walk(weak):
        log_joint = lambda z, b: -0.5 * jnp.sum(jnp.diff(b) ** 2) - 0.5 * weak * b[0] ** 2
        structure = gaussians.tridiagonal
        return vj.targets.collapse_gaussian(log_joint, jnp.zeros(12), precision=structure)[0](0.0)

    assert np.isnan(walk(0.0))
    np.testing.assert_allclose(walk(0.01), 6 * np.log(2 * np.pi) - 0.5 * np.log(0.01), rtol=1e-4)


@pytest.mark.slow
def test_batches_and_transformations():
    z = jnp.array([-0.5, 0.0, 0.4])
    whole, conditional = vj.targets.collapse_gaussian(batched, jnp.zeros((3, 4)))
    one, _ = vj.targets.collapse_gaussian(lambda z, b: batched(z[None], b[None])[0], jnp.zeros(4))
    alone = jax.jit(jax.value_and_grad(one))
    loop, slope = (jnp.stack(found) for found in zip(*[alone(z[i]) for i in range(3)], strict=True))
    runs = (
        jax.value_and_grad(lambda z: whole(z).sum()),
        jax.vmap(jax.value_and_grad(one)),
        jax.value_and_grad(lambda z: jax.vmap(one)(z).sum()),
        lambda z: jax.jvp(whole, (z,), (jnp.ones(3),)),
    )
    for value, grad in jax.jit(lambda z: [run(z) for run in runs])(z):
        np.testing.assert_allclose(value, loop if value.shape else loop.sum(), rtol=1e-5)
        np.testing.assert_allclose(grad, slope, rtol=1e-4, atol=1e-4)
    b, log_b = jax.jit(lambda z: conditional(z).sample_and_log_prob(seed=jax.random.key(0)))(z)
    np.testing.assert_allclose(batched(z, b) - log_b, loop, rtol=1e-5)


@pytest.mark.slow
def test_fewer_latents_are_a_tighter_bound(key):
    """The elbo of the collapsed target is above the full one with the same q(z), by six standard errors and more."""
    z_q = Gauss(jnp.zeros(2), jnp.full(2, -1.0), event=1)
    full = lambda z: regression({"log_s": z["z"][0], "log_t": z["z"][1]}, z["b"]) + prior(z["z"])
    prior = lambda z: jnp.sum(norm.logpdf(z, 0.0, 0.4))
    collapsed, _ = vj.targets.collapse_gaussian(
        lambda z, b: regression({"log_s": z[0], "log_t": z[1]}, b) + prior(z), of(LIKE, np.float32)
    )
    w = Gauss(jnp.zeros(4), jnp.full(4, -1.5), event=1)
    q = {"z": z_q, "b": {"w": w, "c": Gauss(jnp.float32(0.0), jnp.float32(-1.5))}}
    estimate = vj.gradients.reparam(vj.bounds.elbo)
    both = jax.jit(
        lambda: [estimate(key, f, g, num_samples=20_000) for f, g in ((collapsed, z_q), (full, q))]
    )()
    error = [e.draws.log_w.std() / 20_000**0.5 for e in both]
    assert both[0].value - both[1].value > 6 * sum(error)


# --- refusals


@pytest.mark.parametrize(
    ("log_joint", "how"),
    [
        (lambda z, b: -jnp.sum(jnp.abs(b)) - jnp.sum(b**2), "abs"),  # whose Hessian does not read b
        (lambda z, b: -jnp.sum(b**4), "integer_pow"),
        (lambda z, b: jnp.sum(norm.logpdf(jnp.float32(Y[:4]), b, jnp.exp(b[0]))), "exp"),
        (
            lambda z, b: jnp.sum(jnp.where(jnp.abs(b) < 1, -0.5 * b**2, 0.5 - jnp.abs(b))),
            "abs",
        ),  # Huber
        (lambda z, b: -jnp.sum(jax.nn.softplus(b)), r"\w+"),
        (lambda z, b: -b[0] * b[1] * b[2], "mul"),
        (lambda z, b: -jnp.sum(b**2) - jnp.sum(jnp.round(b)), "round"),
        (lambda z, b: -jnp.sum(z / (1 + b**2)), "div"),
        (
            lambda z, b: (
                -b @ b
                + z * jax.lax.reduce_window(b, -jnp.inf, jax.lax.max, (2,), (2,), "VALID").sum()
            ),
            r"\w+",
        ),
        (lambda z, b: -jnp.sum(b**2) + jax.lax.stop_gradient(b).sum(), "stop_gradient"),
        (lambda z, b: jax.lax.scan(lambda c, x: (jnp.sin(c) * x, None), z, b)[0], "sin|mul"),
    ],
)
def test_what_is_not_quadratic_is_refused(log_joint, how):
    collapsed, conditional = vj.targets.collapse_gaussian(log_joint, jnp.zeros(4))
    for function in (collapsed, conditional):
        with pytest.raises(
            ValueError, match=rf"not quadratic in b: '({how})' keeps b .* targets.collapse_laplace"
        ):
            jax.eval_shape(lambda f=function: jax.tree.leaves(f(jnp.float32(0.3)))[0])


def test_a_scan_over_quadratic_terms_passes():
    terms = lambda z, b: jax.lax.scan(lambda c, x: (c - jnp.exp(z) * x**2 + x, None), 0.0 * z, b)[0]
    collapsed, _ = vj.targets.collapse_gaussian(terms, jnp.zeros(3))
    expected = 3 * (0.25 * jnp.exp(-0.3) + 0.5 * jnp.log(jnp.pi) - 0.15)
    np.testing.assert_allclose(collapsed(jnp.float32(0.3)), expected, rtol=1e-5)


def in_a_reference(z, b):
    cell = jax.new_ref(jnp.zeros_like(b))
    cell[...] = b
    return -jnp.sum(b**2) + jnp.sum(jnp.sin(cell[...]))


def test_factors_are_summed():
    factors = lambda z, b: {"prior": norm.logpdf(b, z, 1.0), "seen": norm.logpdf(2.0, b, 1.0)}
    collapsed, _ = vj.targets.collapse_gaussian(factors, 0.0)
    np.testing.assert_allclose(
        jax.jit(collapsed)(jnp.float32(0.5)), norm.logpdf(1.5, 0.0, 2**0.5), rtol=1e-6
    )


def test_other_refusals():
    collapse, z = vj.targets.collapse_gaussian, jnp.float32(0.3)
    with pytest.raises(
        ValueError,
        match=r"shape \(1,\), with which every leaf .* like has \(3,\): sum over the data, w",
    ):
        collapse(lambda z, b: jnp.sum(-(b**2), keepdims=True), jnp.zeros(3))[0](z)
    with pytest.raises(ValueError, match=r"shape \(5,\), .* like\['w'\] has \(3,\)"):
        collapse(lambda z, b: -((jnp.ones((5, 3)) @ b["w"]) ** 2), {"w": jnp.zeros(3)})[0](z)
    with pytest.raises(TypeError, match="must return floats"):
        collapse(lambda z, b: None, jnp.zeros(3))[0](z)
    with pytest.raises(TypeError, match="float32 or float64"):
        collapse(lambda z, b: -jnp.sum(b**2), jnp.zeros(3, jnp.bfloat16))
    if hasattr(jax, "new_ref"):
        with pytest.raises(ValueError, match="where its Hessian cannot be followed"):
            collapse(in_a_reference, jnp.zeros(3))[0](z)
    with pytest.raises(TypeError, match="pytree of float arrays"):
        vj.targets.collapse_gaussian(apart, jnp.zeros(3, int))
    part = vj.targets.minibatch(lambda z: z.sum(), lambda z: z, num_data=3)
    with pytest.raises(ValueError, match="exact log_joint"):
        vj.targets.collapse_gaussian(part, jnp.zeros(3))


# --- collapse_laplace


def test_laplace_is_exact_where_the_other_is():
    z = of(Z, np.float32)
    both = [
        make(regression, of(LIKE, np.float32))[0]
        for make in (vj.targets.collapse_laplace, vj.targets.collapse_gaussian)
    ]
    found = [jax.jit(jax.value_and_grad(f))(z) for f in both]
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3), *(slope for _, slope in found)
    )


def test_laplace_of_a_gamma_is_stirlings(x64):
    """∫ e^{(a+1) b - e^b} db = Γ(a + 1) ≈ √(2π) (a+1)^(a+½) e^-(a+1): a closed form, with its derivative in a."""
    collapsed, conditional = vj.targets.collapse_laplace(
        lambda a, b: (a + 1) * b - jnp.exp(b), jnp.zeros(())
    )
    stirling = lambda a: 0.5 * jnp.log(2 * jnp.pi) + (a + 0.5) * jnp.log(a + 1) - (a + 1)
    run, mode = jax.jit(jax.value_and_grad(collapsed)), jax.jit(lambda a: conditional(a).mean)
    for a in (0.5, 3.0, 40.0):
        value, slope = run(a)
        np.testing.assert_allclose(value, stirling(a), rtol=1e-12)
        np.testing.assert_allclose(slope, jax.grad(stirling)(a), rtol=1e-9)
        np.testing.assert_allclose(mode(a), np.log(a + 1), rtol=1e-12)


def test_laplace_says_so_where_there_is_no_maximum():
    collapsed, _ = vj.targets.collapse_laplace(lambda z, b: z * b, jnp.zeros(()))
    assert jnp.isnan(collapsed(jnp.float32(1.0)))


def test_a_minibatch_of_two_arguments_is_refused():
    part = vj.targets.minibatch(
        lambda z, b: -(b**2), lambda z, b: norm.logpdf(jnp.ones(3), b, jnp.exp(z)), num_data=9
    )
    np.testing.assert_allclose(part(0.0, 0.0), 9 * norm.logpdf(1.0), rtol=1e-6)
    with pytest.raises(ValueError, match="exact log_joint"):
        vj.targets.collapse_gaussian(part, 0.0)


def test_second_derivatives_of_laplace(x64):
    """Against central differences of its gradient, which move the mode."""
    target, _ = vj.targets.collapse_laplace(
        lambda z, b: (jnp.exp(z) + 1) * b - jnp.exp(b), jnp.zeros(())
    )
    slope = jax.jit(jax.grad(target))
    second = jax.jit(jax.hessian(target))(0.3)
    np.testing.assert_allclose(second, (slope(0.3 + 1e-5) - slope(0.3 - 1e-5)) / 2e-5, rtol=1e-6)
