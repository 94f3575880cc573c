"""Transforms: what jit, vmap, grad, jvp, hessian and precision return is one and the same number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import problems
from tests.marks import some
from tests.problems import OBJECTIVES, assert_close, inputs, value


def two(key):
    """Return two of everything, params, data and keys, stacked; and the same as a list."""
    each = [(*inputs(seed), jax.random.fold_in(key, seed)) for seed in (0, 1)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each), each


AXES = {"all batched": (0, 0, 0), "data batched": (None, 0, None), "keys batched": (None, None, 0)}


def named(case):
    return f"{case[0]}-{case[1]}"


SOME = some(OBJECTIVES, "reparam(iwae)", "auto(iwae)")


def stack(trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


EITHER = [
    *[(name, None) for name in ("reparam(iwae)", "dreg(iwae)", "vimco(iwae)", "auto(iwae)")],
    *[
        (name, 3)
        for name in (
            "reparam(iwae)",
            "dreg(iwae)",
            "dreg(elbo)",
            "dreg(own)",
            "score(elbo)",
            "auto(iwae)",
        )
    ],
    ("dreg(iwae)", problems.K),
]


@pytest.mark.parametrize("case", some(EITHER, "dreg(iwae)-None", name=named))
def test_vmap_and_grad_in_either_order(case, key):
    """Two problems at once, params, floats, labels and keys batched together or alone, against one at a time."""
    name, chunk_size = case
    stacked, each = two(key)
    estimate = value(name, chunk_size)
    run = jax.value_and_grad(estimate)
    one = jax.jit(run)
    expected = stack(one(*problem) for problem in each)

    def every(stacked, shared):
        found = {"vmap(grad)": jax.vmap(run)(*stacked)}
        for what, axis in AXES.items():
            args = [s if a == 0 else o for s, o, a in zip(stacked, shared, axis, strict=True)]
            total = lambda params, *rest, axis=axis: jnp.sum(
                jax.vmap(estimate, axis)(params, *rest)
            )
            found[f"grad(vmap), {what}"] = jax.value_and_grad(total)(*args)
        return found

    found = jax.jit(every)(stacked, each[0])
    assert_close(found["vmap(grad)"], expected, err_msg="vmap(grad)")
    assert_close(
        found["grad(vmap), all batched"][1], expected[1], err_msg="grad(vmap), all batched"
    )
    for what in ("data batched", "keys batched"):
        alone = [
            [p if a == 0 else o for p, o, a in zip(e, each[0], AXES[what], strict=True)]
            for e in each
        ]
        total = jax.tree.map(lambda a: a.sum(0), stack(one(*problem) for problem in alone))
        assert_close(found[f"grad(vmap), {what}"], total, err_msg=f"grad(vmap), {what}")


@pytest.mark.parametrize("chunk_size", some([None, 3], "None"))
@pytest.mark.slow
def test_without_jit_and_with_jit_inside(chunk_size, key):
    """Op by op, and under the vmap of a jitted function."""
    stacked, each = two(key)
    run = jax.value_and_grad(value("dreg(iwae)", chunk_size))
    one = jax.jit(run)
    expected = stack(one(*problem) for problem in each)
    assert_close(jax.vmap(one)(*stacked), expected)
    assert_close(run(*each[0]), jax.tree.map(lambda a: a[0], expected))
    assert np.abs(np.diff(expected[1]["q"]["loc"], axis=0)).min() > 1e-3  # the problems do differ


@pytest.mark.parametrize("name", SOME)
def test_forward_mode_is_reverse_mode(name, key):
    params, data = inputs()
    direction = inputs(7)[0]
    run = lambda params: value(name)(params, data, key)
    forward = jax.jit(lambda p: jax.jvp(run, (p,), (direction,))[1])(params)
    reverse = sum(
        jnp.vdot(a, b)
        for a, b in zip(
            *map(jax.tree.leaves, (jax.jit(jax.grad(run))(params), direction)), strict=False
        )
    )
    np.testing.assert_allclose(forward, reverse, rtol=1e-4)
    assert abs(reverse) > 1e-2


def test_forward_mode_of_chunks_is_refused(key):
    """Reverse mode only, and JAX's own error says so."""
    params, data = inputs()
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda p: value("reparam(iwae)", 3)(p, data, key), (params,), (params,))


@pytest.mark.parametrize("name", ["reparam(iwae)", "reparam(elbo)"])
def test_the_hessian_of_reparam(name, key, x64, monkeypatch):
    """Second derivatives in every parameter against central differences of the gradient, 1e-7 in float64."""
    import vijax as vj

    monkeypatch.setitem(OBJECTIVES, "reparam(elbo)", vj.gradients.reparam(vj.bounds.elbo))
    params, data = inputs(dtype=np.float64)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    gradient = jax.jit(jax.grad(lambda flat: value(name)(unravel(flat), data, key)))
    steps = 1e-5 * np.eye(flat.size)
    differences = np.stack(
        [(gradient(flat + step) - gradient(flat - step)) / 2e-5 for step in steps]
    )
    np.testing.assert_allclose(jax.jacfwd(gradient)(flat), differences, atol=1e-7)
    assert np.abs(differences).max() > 0.1


@pytest.mark.parametrize("name", SOME)
def test_float32_is_float64_rounded(name, key):
    """The same float32 noise in both precisions: 1e-4 of the value and of the gradient."""
    run = lambda dtype: jax.jit(jax.value_and_grad(value(name)))(*inputs(dtype=dtype), key)
    single = run(np.float32)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(single))
    with jax.enable_x64(True):
        double = run(np.float64)
        assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(double))
    assert_close(single, double, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name",
    some(
        ["reparam(iwae)", "dreg(iwae)", "vimco(iwae)", "auto(iwae)"], "reparam(iwae)", "dreg(iwae)"
    ),
)
def test_finite_differences(name, key, x64):
    """Reparam's gradient is the slope of its value at a fixed key; the others' are not, and this can tell."""
    params, data = inputs(dtype=np.float64)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    run = jax.jit(lambda flat: value(name)(unravel(flat), data, key))
    differences = [
        (run(flat + step) - run(flat - step)) / 2e-6 for step in 1e-6 * np.eye(flat.size)
    ]
    agrees = np.allclose(jax.grad(run)(flat), differences, atol=1e-7)
    assert agrees == (name == "reparam(iwae)")


def test_only_value_is_differentiable(key):
    """Draws in an Estimate are diagnostics: their gradient is exactly zero, while value's is not."""
    params, data = inputs()

    def drawn(params, chunk_size):
        target = lambda z: problems.log_joint(params["theta"], data, z)
        q = problems.posterior(params["q"], mixed=False)
        draws = OBJECTIVES["reparam(iwae)"](
            key, target, q, num_samples=4, chunk_size=chunk_size
        ).draws
        return jnp.sum(draws.log_p) + jnp.sum(draws.log_q) + jnp.sum(draws.log_w)

    for chunk_size in (None, 2):
        assert all(
            np.all(leaf == 0) for leaf in jax.tree.leaves(jax.grad(drawn)(params, chunk_size))
        )
