"""Every public function once, with what the laws need to know of it. A new one costs one row here."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import vijax as vj

# --- bounds


class BoundRow(NamedTuple):
    """`function` with its hyperparameters bound.

    keeps_constants: equal log-weights l give l. below: E at any k is at most log p(x). power: n where the bound is the power
    mean 1/n log mean w^n, so that the log-normal oracle knows it. groups: what num_samples must be a multiple of.
    """

    name: str
    public: str
    function: Callable[..., Any]
    keeps_constants: bool = True
    below: bool = True
    power: float | None = None
    groups: int = 1


def own_bound(log_w, *, weights=None):
    """Return a smooth bound that carries no closed forms: half the mean, half the IWAE."""
    return 0.5 * jnp.mean(log_w, 0) + 0.5 * (jax.nn.logsumexp(log_w, axis=0) - jnp.log(1.0 * log_w.shape[0]))


BOUNDS = [
    BoundRow("elbo", "elbo", vj.bounds.elbo, power=0.0),
    BoundRow("iwae", "iwae", vj.bounds.iwae, power=1.0),
    BoundRow("multi_iwae(2)", "multi_iwae", partial(vj.bounds.multi_iwae, groups=2), groups=2),
    BoundRow("ciwae(.3)", "ciwae", partial(vj.bounds.ciwae, beta=0.3)),
    BoundRow("renyi(.5)", "renyi", partial(vj.bounds.renyi, alpha=0.5), power=0.5),
    BoundRow("renyi(2)", "renyi", partial(vj.bounds.renyi, alpha=2.0), power=-1.0),
    BoundRow("cubo(2)", "cubo", partial(vj.bounds.cubo, n=2.0), power=2.0, below=False),
    BoundRow("own", "", own_bound),
]
BOUND = {row.name: row for row in BOUNDS}

# --- gradients


class GradientRow(NamedTuple):
    """`objective` of a bound. path: needs draws that carry q's derivative. least: fewest draws.

    detects: the bias that a test of many draws must be able to see, relative to the test's own scale: more noise, less sight.
    """

    name: str
    objective: Callable[..., Any]
    path: bool
    least: int = 1
    detects: float = 1.0


GRADIENTS = [
    GradientRow("reparam", vj.gradients.reparam, path=True),
    GradientRow("dreg", vj.gradients.dreg, path=True),
    GradientRow("score", vj.gradients.score, path=False, detects=3.0),
    GradientRow("vimco", vj.gradients.vimco, path=False, least=2, detects=2.0),
    GradientRow("auto", vj.gradients.auto, path=False, least=2, detects=2.0),
]
GRADIENT = {row.name: row for row in GRADIENTS}

# The gradients that are biased, and say so in the first line of their docstring.
BIASED = {"gumbel_rao", "gumbel_softmax", "straight_through"}

# --- everything public, and the file that holds it to account where no row above does

PUBLIC = {
    "bounds": {row.public for row in BOUNDS} - {""},
    "gradients": {
        **dict.fromkeys((row.name for row in GRADIENTS), "tests/table.py"),
        "arm": "tests/gradients/test_coupled.py",
        "disarm": "tests/gradients/test_coupled.py",
        "gumbel_rao": "tests/gradients/test_relaxed.py",
        "gumbel_softmax": "tests/gradients/test_relaxed.py",
        "local_expectation": "tests/gradients/test_sums.py",
        "measure_valued": "tests/gradients/test_measure.py",
        "moving_average": "tests/gradients/test_baselines.py",
        "rebar": "tests/gradients/test_control.py",
        "relax": "tests/gradients/test_control.py",
        "squared_scores": "tests/gradients/test_baselines.py",
        "straight_through": "tests/gradients/test_relaxed.py",
        "top_states": "tests/gradients/test_sums.py",
        "gdreg": "tests/gradients/test_hierarchical.py",
    },
    "draws": {
        "Plan": "tests/draws/test_draws.py",
        "antithetic": "tests/draws/test_draws.py",
        "chunked": "tests/draws/test_draws.py",
        "evaluate": "tests/draws/test_draws.py",
        "iid": "tests/draws/test_draws.py",
        "online": "tests/laws/test_one_pass.py",
        "plan": "tests/draws/test_draws.py",
        "sharded": "tests/laws/test_devices.py",
        "sobol": "tests/draws/test_qmc.py",
        "stratified": "tests/draws/test_stratified.py",
        "weigh": "tests/draws/test_draws.py",
    },
    "families": {
        "adapt": "tests/families/test_adapt.py",
        "full_rank": "tests/families/test_gaussian.py",
        "low_rank": "tests/families/test_gaussian.py",
        "mean_field": "tests/families/test_gaussian.py",
        "mixture": "tests/families/test_mixture.py",
        "strata": "tests/families/test_mixture.py",
    },
    "targets": {
        "collapse": "tests/targets/test_collapse.py",
        "keyed": "tests/laws/test_flax.py",
        "minibatch": "tests/targets/test_minibatch.py",
    },
    "diagnostics": {
        "ess": "tests/diagnostics/test_weights.py",
        "khat": "tests/diagnostics/test_weights.py",
    },
}
