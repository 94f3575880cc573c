"""ArviZ's DataTree of draws: groups, chains, names; its own tables and plots take it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vijax.diagnostics import rhat, to_arviz
from vijax.types import Draws, Estimate

pytest.importorskip("arviz_base")
RUNS, K = 3, 50


@pytest.fixture
def draws():
    rng = np.random.default_rng(0)
    z = {"mu": rng.normal(size=(RUNS, K)), "deep": {"log_tau": rng.normal(size=(RUNS, K, 4))}}
    return jax.tree.map(
        jnp.asarray, Draws(z, rng.normal(size=(RUNS, K)), rng.normal(size=(RUNS, K)))
    )


def test_groups(draws):
    """Restarts are chains; latents carry their names, through `constrain` too; every draw has log p and log q."""
    tree = to_arviz(
        draws,
        constrain=lambda z: {"mu": z["mu"], "tau": jnp.exp(z["deep"]["log_tau"])},
        observed=jnp.arange(4.0),
        predictive={"x": draws.z["deep"]["log_tau"]},
        log_likelihood=draws.z["deep"]["log_tau"],
        coords={"school": list("abcd")},
        dims={"tau": ["school"]},
    )
    assert set(tree.children) == {
        "posterior",
        "unconstrained_posterior",
        "sample_stats",
        "observed_data",
        "posterior_predictive",
        "log_likelihood",
    }
    assert dict(tree["posterior"].sizes) == {"chain": RUNS, "draw": K, "school": 4}
    np.testing.assert_allclose(
        tree["posterior"]["tau"], np.exp(draws.z["deep"]["log_tau"]), rtol=1e-5
    )
    np.testing.assert_array_equal(
        tree["unconstrained_posterior"]["deep.log_tau"], draws.z["deep"]["log_tau"]
    )
    for name, value in (("log_p", draws.log_p), ("log_q", draws.log_q), ("log_w", draws.log_w)):
        np.testing.assert_array_equal(tree["sample_stats"][name], value)
    assert tree["observed_data"]["x"].shape == (4,)
    assert tree["posterior_predictive"]["x"].shape == (RUNS, K, 4)


def test_one_run(draws):
    """One run is one chain; a bare array is z; predictive draws may lack the chain's axis as the draws do."""
    z, log_p, log_q, *_ = jax.tree.map(lambda a: a[0], draws)
    tree = to_arviz(Draws(z["mu"], log_p, log_q), predictive=z["deep"]["log_tau"])
    assert tree["posterior"]["z"].shape == (1, K)
    assert tree["posterior_predictive"]["x"].shape == (1, K, 4)
    with pytest.raises(
        ValueError, match=r"posterior_predictive must begin with \[runs, k\] = \(3, 50\)"
    ):
        to_arviz(draws, predictive=jnp.zeros((K, 2)))


def test_what_arviz_cannot_hold(draws):
    """Names of its own are refused; bfloat16 is widened; an Estimate is taken for its draws."""
    z, log_p, log_q, *_ = jax.tree.map(lambda a: a[0], draws)
    with pytest.raises(ValueError, match="the name 'draw' for itself"):
        to_arviz(Draws({"draw": z["mu"]}, log_p, log_q))
    half = Estimate(log_p, Draws({"mu": z["mu"].astype(jnp.bfloat16)}, log_p, log_q))
    assert to_arviz(half)["posterior"]["mu"].dtype == np.float32


def test_no_latent_is_lost(draws):
    """Two that would be called alike keep their values, each by a name of its own; a dimension's name is refused."""
    z, log_p, log_q, *_ = jax.tree.map(lambda a: a[0], draws)
    twice = {"a": {"b": z["mu"]}, "a.b": -z["mu"]}
    group = to_arviz(Draws(twice, log_p, log_q))["posterior"]
    assert len(group.data_vars) == 2
    np.testing.assert_array_equal(group["['a']['b']"][0], z["mu"])
    np.testing.assert_array_equal(group["['a.b']"][0], -z["mu"])
    tau = z["deep"]["log_tau"]
    with pytest.raises(ValueError, match="leaf 'tau_dim_0' of posterior"):
        to_arviz(Draws({"tau": tau, "tau_dim_0": z["mu"]}, log_p, log_q))
    with pytest.raises(ValueError, match="leaf 'school' of posterior"):
        to_arviz(Draws({"tau": tau, "school": z["mu"]}, log_p, log_q), dims={"tau": ["school"]})


def test_strata_are_resampled(draws):
    """ArviZ takes every draw alike, so those of weight zero are left out, with their predictions."""
    first = jnp.where(jnp.arange(K) < 10, 0.1, 0.0)
    weighted = draws._replace(weights=jnp.broadcast_to(first, (RUNS, K)))
    tree = to_arviz(weighted, predictive=draws.z["mu"])
    for group, name in (("posterior", "mu"), ("posterior_predictive", "x")):
        values, counts = np.unique(np.asarray(tree[group][name][0]), return_counts=True)
        np.testing.assert_array_equal(values, np.sort(draws.z["mu"][0, :10]))
        assert counts.min() >= K / 10 - 1
    np.testing.assert_array_equal(tree["posterior"]["mu"], tree["posterior_predictive"]["x"])


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_tables_of_arviz(draws):
    stats = pytest.importorskip("arviz_stats")
    tree = to_arviz(draws, log_likelihood=-(draws.z["deep"]["log_tau"] ** 2))
    table = stats.summary(tree)
    assert "mu" in table.index
    np.testing.assert_allclose(stats.rhat(tree)["mu"], rhat(draws.z["mu"]), atol=1e-4)
    with pytest.warns(UserWarning, match="Estimated shape parameter"):  # these draws are noise
        loo = stats.loo_approximate_posterior(
            tree, tree["sample_stats"]["log_p"], tree["sample_stats"]["log_q"]
        )
    assert np.isfinite(loo.elpd)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_plots_of_arviz(draws):
    plots = pytest.importorskip("arviz_plots")
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    tree = to_arviz(draws, observed=jnp.arange(4.0), predictive=draws.z["deep"]["log_tau"])
    for name in (
        "plot_dist",
        "plot_forest",
        "plot_trace",
        "plot_pair",
        "plot_rank",
        "plot_ppc_dist",
    ):
        assert getattr(plots, name)(tree, backend="matplotlib") is not None, name
    matplotlib.pyplot.close("all")
