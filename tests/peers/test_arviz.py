"""Cases of arviz-stats' tests (PSIS, R-hat), beside arviz-stats itself, ported to vijax. Facts and figures are the peer's, the code is not."""

import jax.numpy as jnp
import numpy as np
import pytest
from arviz_stats.base import array_stats

import vijax as vj

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("loose_ranks", "unchecked"),
    pytest.mark.filterwarnings("ignore"),
]

T = "arviz-stats tests/base/test_array.py::TestParetoFunctions."
D = "arviz-stats tests/base/test_diagnostics.py::"


@pytest.mark.parametrize("n", [100, 225, 1000, 1600, 4000])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_psislw(row, x64, n, scale):
    lw = scale * np.random.default_rng(42).normal(size=(n,))
    want, k = array_stats.psislw(-lw)  # the peer takes log-likelihoods
    got, kk = vj.diagnostics.psis(jnp.asarray(lw)), vj.diagnostics.khat(jnp.asarray(lw))
    row(
        T + "test_psislw_basic",
        f"{n} log-weights of sd {scale:g}: k-hat and smoothed weights, beside the peer's own",
        "diagnostics.khat, diagnostics.psis",
        [np.asarray(k), np.asarray(want) - np.logaddexp.reduce(np.asarray(want))],
        [kk, got],
        rtol=1e-6,
        atol=1e-6,
    )


@pytest.mark.parametrize("name", ["r_eff = .5", "pareto_min_ss", "k-hat of draws, both tails"])
def test_missing(row, name):
    row.cannot(T + "test_psislw_r_eff, test_pareto_min_ss, test_pareto_khat", name, f"no {name}")


def test_rhat_bad(row):
    r = np.random.default_rng(0)
    x = np.vstack([20 + r.normal(size=(1, 100)), r.normal(size=(1, 100))])
    v = vj.diagnostics.rhat(jnp.asarray(x, jnp.float32))
    row(
        D + "test_rhat_bad",
        "chains 20 sd apart: above 1.1",
        "diagnostics.rhat",
        1.1,
        v,
        ok=bool(v > 1.1),
        tol="at least",
    )


@pytest.mark.parametrize("shape", [(1, 100), (2, 3)])
def test_rhat_shapes(row, shape):
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    if shape[1] < 4:
        with pytest.raises(ValueError, match="."):
            vj.diagnostics.rhat(x)
        got = np.nan
        row(
            D + "test_rhat_shape",
            f"{shape}: the peer gives nan, vijax refuses",
            "diagnostics.rhat",
            0.0,
            0.0,
        )
        return
    got = vj.diagnostics.rhat(x)
    row(
        D + "test_rhat_shape",
        f"{shape}: the peer gives nan for one chain; vijax compares its halves",
        "diagnostics.rhat",
        True,
        jnp.isfinite(got),
        rtol=0,
        atol=0,
    )
