"""Every public function once, with what the laws need to know of it. A new one costs one row here."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import vijax as vj

INF = float("inf")

# --- bounds


class BoundRow(NamedTuple):
    """`function` with its hyperparameters bound.

    keeps_constants: equal log-weights l give l. below: E at any k is at most log p(x). power: n where the bound is the power
    mean 1/n log mean w^n, so that the log-normal oracle knows it. groups: what num_samples must be a multiple of; least: the
    fewest draws of each group; doubles: num_samples must be a power of two. moves: what adding 1 to every log-weight adds
    to the bound, None where that depends on them. symmetric: no draw differs from another (within its group). weighted:
    takes weights. at_zero: its value where every draw is impossible; one_impossible: where one of several is, None if that
    is finite. loses: can judge one draw less, which vimco and auto ask for. smooth: without kinks, which dreg asks for. scale: how much more its gradient varies, in units
    of its own, than iwae's on a line and on states.
    """

    name: str
    public: str
    function: Callable[..., Any]
    keeps_constants: bool = True
    below: bool = True
    power: float | None = None
    groups: int = 1
    least: int = 1
    doubles: bool = False
    moves: float | None = 1.0
    symmetric: bool = True
    weighted: bool = True
    at_zero: float = -INF
    one_impossible: float | None = -INF
    loses: bool = True
    smooth: bool = True
    scale: tuple[float, float] = (1.0, 1.0)

    def draws(self, k):
        """Return the fewest draws that the bound takes, `k` or more in each group."""
        k = max(k, self.least) * self.groups
        return 1 << (k - 1).bit_length() if self.doubles else k

    def takes(self, estimator):
        """Return whether a gradient estimator takes this bound; see the tests of refusals for those that do not."""
        return (self.smooth or estimator != "dreg") and (
            self.loses or estimator not in ("vimco", "auto")
        )


def own_bound(log_w, *, weights=None):
    """Return a smooth bound that carries no closed forms: half the mean, half the IWAE."""
    return 0.5 * jnp.mean(log_w, 0) + 0.5 * (
        jax.nn.logsumexp(log_w, axis=0) - jnp.log(1.0 * log_w.shape[0])
    )


@vj.types.with_closed_forms(smooth=True)  # as functools.partial would have it
def sumo(log_w):
    """Return SUMO at a level that all but the last draw reach, or the only one."""
    k = log_w.shape[0]
    return vj.bounds.sumo(
        log_w, level=vj.types.Level(jnp.asarray(max(k - 2, 1)), vj.draws.harmonic(max(k, 2)))
    )


@vj.types.with_closed_forms(
    smooth=True, leave_one_out=vj.types.closed_forms(vj.bounds.mlmc_iwae).leave_one_out
)
def mlmc_iwae(log_w):
    """Return MLMC at the last level, which uses every draw."""
    m = max(log_w.shape[0].bit_length(), 1)
    return vj.bounds.mlmc_iwae(
        log_w, level=vj.types.Level(jnp.asarray(m - 1), vj.draws.geometric(m))
    )


PARTITION = (0.0, 0.1, 0.4, 1.0)
neither = partial(BoundRow, below=False)
bounds, generators = vj.bounds, vj.bounds.generators

BOUNDS = [
    BoundRow("elbo", "elbo", bounds.elbo, power=0.0),
    BoundRow("iwae", "iwae", bounds.iwae, power=1.0, one_impossible=None),
    BoundRow(
        "multi_iwae(2)",
        "multi_iwae",
        partial(bounds.multi_iwae, groups=2),
        groups=2,
        one_impossible=None,
    ),
    BoundRow("ciwae(.3)", "ciwae", partial(bounds.ciwae, beta=0.3)),
    BoundRow(
        "renyi(.5)", "renyi", partial(bounds.renyi, alpha=0.5), power=0.5, one_impossible=None
    ),
    BoundRow("renyi(2)", "renyi", partial(bounds.renyi, alpha=2.0), power=-1.0),
    neither("cubo(2)", "cubo", partial(bounds.cubo, n=2.0), power=2.0, one_impossible=None),
    neither("eubo", "eubo", bounds.eubo, one_impossible=None),
    neither("tvo_lower", "tvo_lower", partial(bounds.tvo_lower, partition=PARTITION)),
    neither(
        "tvo_upper",
        "tvo_upper",
        partial(bounds.tvo_upper, partition=PARTITION),
        one_impossible=None,
    ),
    *[
        neither(
            f"jackknife({order})",
            "jackknife",
            partial(bounds.jackknife, order=order),
            least=order + 1,
            weighted=False,
            one_impossible=None,
        )
        for order in (1, 2, 3)
    ],
    neither("sumo", "sumo", sumo, weighted=False, symmetric=False, one_impossible=None),
    neither(
        "mlmc_iwae",
        "mlmc_iwae",
        mlmc_iwae,
        doubles=True,
        weighted=False,
        symmetric=False,
        loses=False,
        scale=(1.6, 6.6),
    ),
    neither(
        "exp_cubo(2)",
        "exp_cubo",
        partial(bounds.exp_cubo, n=2.0, reference=-1.5),
        scale=(2.0, 20.0),
        keeps_constants=False,
        moves=None,
        at_zero=0.0,
        one_impossible=None,
    ),
    neither(
        "perturbative(3)",
        "perturbative",
        partial(bounds.perturbative, order=3, reference=-1.5),
        scale=(18.0, 2.0),
        keeps_constants=False,
        moves=None,
    ),
    neither(
        "log_variance",
        "log_variance",
        bounds.log_variance,
        scale=(3.0, 2.0),
        keeps_constants=False,
        least=2,
        moves=0.0,
        weighted=False,
        at_zero=INF,
        one_impossible=INF,
    ),
    neither(
        "f_divergence(jensen_shannon)",
        "f_divergence",
        partial(bounds.f_divergence, f=generators.jensen_shannon),
        keeps_constants=False,
        moves=None,
        at_zero=math.log(2),
        one_impossible=None,
    ),
    neither(
        "f_divergence(total_variation)",
        "f_divergence",
        partial(bounds.f_divergence, f=generators.total_variation),
        keeps_constants=False,
        moves=None,
        at_zero=0.5,
        one_impossible=None,
        smooth=False,
    ),
    BoundRow("own", "", own_bound, weighted=False),
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
    "bounds": dict.fromkeys({row.public for row in BOUNDS} - {""}, "tests/table.py")
    | {"generators": "tests/bounds/test_generators.py"},
    "gradients": dict.fromkeys((row.name for row in GRADIENTS), "tests/table.py")
    | {
        "arm": "tests/gradients/test_coupled.py",
        "disarm": "tests/gradients/test_coupled.py",
        "each": "tests/gradients/test_each.py",
        "factored": "tests/gradients/test_factored.py",
        "fixed": "tests/gradients/test_wake.py",
        "gdreg": "tests/gradients/test_hierarchical.py",
        "gumbel_rao": "tests/gradients/test_relaxed.py",
        "gumbel_softmax": "tests/gradients/test_relaxed.py",
        "local_expectation": "tests/gradients/test_sums.py",
        "measure_valued": "tests/gradients/test_measure.py",
        "learned": "tests/gradients/test_baselines.py",
        "moving_average": "tests/gradients/test_baselines.py",
        "rebar": "tests/gradients/test_control.py",
        "relax": "tests/gradients/test_control.py",
        "sleep": "tests/gradients/test_wake.py",
        "split": "tests/gradients/test_split.py",
        "squared_scores": "tests/gradients/test_baselines.py",
        "straight_through": "tests/gradients/test_relaxed.py",
        "top_states": "tests/gradients/test_sums.py",
        "wake": "tests/gradients/test_wake.py",
    },
    "draws": {
        "Expectation": "tests/draws/test_expectation.py",
        "antithetic": "tests/draws/test_draws.py",
        "expectation": "tests/draws/test_expectation.py",
        "geometric": "tests/draws/test_level.py",
        "harmonic": "tests/draws/test_level.py",
        "iid": "tests/draws/test_draws.py",
        "level": "tests/draws/test_level.py",
        "sharded": "tests/laws/test_devices.py",
        "sobol": "tests/draws/test_qmc.py",
        "stratified": "tests/draws/test_stratified.py",
        "weigh": "tests/draws/test_draws.py",
    },
    "families": {
        "adapt": "tests/families/test_adapt.py",
        "bernoulli": "tests/families/test_observations.py",
        "beta_binomial": "tests/families/test_observations.py",
        "committed_rate": "tests/families/test_committed.py",
        "discretized_logistics": "tests/families/test_observations.py",
        "Given": "tests/families/test_structured.py",
        "full_rank": "tests/families/test_gaussian.py",
        "given": "tests/families/test_structured.py",
        "inverse_autoregressive": "tests/families/test_flow.py",
        "laplace": "tests/families/test_laplace.py",
        "low_rank": "tests/families/test_gaussian.py",
        "mean_field": "tests/families/test_gaussian.py",
        "markov": "tests/families/test_markov.py",
        "members": "tests/families/test_members.py",
        "mixture": "tests/families/test_mixture.py",
        "spline_coupling": "tests/families/test_flow.py",
        "standing": "tests/families/test_laplace.py",
        "strata": "tests/families/test_mixture.py",
        "structured": "tests/families/test_structured.py",
        "student_t": "tests/families/test_student.py",
    },
    "sequences": {
        "Linearized": "tests/sequences/test_nonlinear.py",
        "MostLikely": "tests/sequences/test_viterbi.py",
        "NonlinearGaussian": "tests/sequences/test_nonlinear.py",
        "associative": "tests/sequences/test_fold.py",
        "autoregressive": "tests/sequences/test_autoregressive.py",
        "condition": "tests/sequences/test_nonlinear.py",
        "extended": "tests/sequences/test_nonlinear.py",
        "fixed_lag_marginals": "tests/sequences/test_lag.py",
        "fixed_lag_smoother": "tests/sequences/test_lag.py",
        "gaussian_filter": "tests/sequences/test_nonlinear.py",
        "hmm": "tests/sequences/test_hmm.py",
        "sequential": "tests/sequences/test_fold.py",
        "unscented": "tests/sequences/test_nonlinear.py",
        "viterbi": "tests/sequences/test_viterbi.py",
        "Filtered": "tests/sequences/test_filter.py",
        "LinearGaussian": "tests/sequences/test_filter.py",
        "kalman_filter": "tests/sequences/test_filter.py",
        "kalman_smoother": "tests/sequences/test_smoother.py",
        "parallel_kalman_filter": "tests/sequences/test_filter.py",
        "parallel_kalman_smoother": "tests/sequences/test_smoother.py",
    },
    "particles": {
        "Carried": "tests/particles/test_paths.py",
        "Filtered": "tests/particles/test_smc.py",
        "GaussianStep": "tests/particles/test_collapse.py",
        "Population": "tests/particles/test_paths.py",
        "Proposal": "tests/particles/tossed.py",
        "StateSpace": "tests/particles/test_smc.py",
        "adaptive": "tests/particles/test_smc.py",
        "always": "tests/particles/test_smc.py",
        "backward_simulate": "tests/particles/test_paths.py",
        "carrying": "tests/particles/test_paths.py",
        "conditional_smc": "tests/particles/test_paths.py",
        "conditionally_discrete": "tests/particles/test_collapse.py",
        "conditionally_gaussian": "tests/particles/test_collapse.py",
        "fisher": "tests/particles/test_nile.py",
        "fivo": "tests/particles/test_nile.py",
        "history": "tests/particles/test_paths.py",
        "multinomial": "tests/test_resampling.py",
        "never": "tests/particles/test_smc.py",
        "rao_blackwell": "tests/particles/test_collapse.py",
        "residual": "tests/test_resampling.py",
        "scored": "tests/particles/test_forms.py",
        "smc": "tests/particles/test_smc.py",
        "stratified": "tests/test_resampling.py",
        "systematic": "tests/test_resampling.py",
        "trace_back": "tests/particles/test_paths.py",
        "transported": "tests/particles/test_transported.py",
        "unrolled": "tests/particles/test_transported.py",
        "Annealed": "tests/particles/test_annealed.py",
        "Extended": "tests/particles/test_dais.py",
        "Tempered": "tests/particles/test_samplers.py",
        "adaptive_tempered_smc": "tests/particles/test_samplers.py",
        "ais": "tests/particles/test_annealed.py",
        "dais": "tests/particles/test_dais.py",
        "geometric_partition": "tests/particles/test_annealed.py",
        "hmc": "tests/particles/test_transitions.py",
        "langevin": "tests/particles/test_transitions.py",
        "linear_partition": "tests/particles/test_annealed.py",
        "pilot_step_size": "tests/particles/test_annealed.py",
        "reverse_ais": "tests/particles/test_annealed.py",
        "semi_implicit": "tests/particles/test_semi_implicit.py",
        "semi_implicit_upper": "tests/particles/test_semi_implicit.py",
        "sigmoid_partition": "tests/particles/test_annealed.py",
        "tempered_smc": "tests/particles/test_samplers.py",
    },
    "targets": {
        "Minorized": "tests/targets/test_minorize.py",
        "Transformed": "tests/targets/test_transform.py",
        "adapters": "tests/targets/test_adapters.py",
        "collapse": "tests/targets/test_collapse.py",
        "collapse_error": "tests/targets/test_collapse.py",
        "collapse_gaussian": "tests/targets/test_quadratic.py",
        "collapse_laplace": "tests/targets/test_quadratic.py",
        "conjugate": "tests/targets/test_conjugate.py",
        "constraints": "tests/targets/test_transform.py",
        "exact_entropy": "tests/targets/test_exact_kl.py",
        "exact_kl": "tests/targets/test_exact_kl.py",
        "enumerate": "tests/targets/test_enumerate.py",
        "gauss_hermite": "tests/targets/test_gauss_hermite.py",
        "gauss_hermite_error": "tests/targets/test_gauss_hermite.py",
        "independent_members": "tests/targets/test_independent_members.py",
        "keyed": "tests/laws/test_flax.py",
        "minibatch": "tests/targets/test_minibatch.py",
        "missing": "tests/targets/test_missing.py",
        "minorize": "tests/targets/test_minorize.py",
        "minorizers": "tests/targets/test_minorizers.py",
        "quadrature": "tests/targets/test_quadrature.py",
        "quadrature_error": "tests/targets/test_quadrature.py",
        "tied": "tests/targets/test_tied.py",
        "transform": "tests/targets/test_transform.py",
        "unbiased": "tests/faults/test_nested.py",
    },
    "fitting": {
        "Checkpoints": "tests/fitting/test_checkpoint.py",
        "Curve": "tests/fitting/test_fit.py",
        "Fit": "tests/fitting/test_fit.py",
        "Restarts": "tests/fitting/test_restarts.py",
        "Restored": "tests/fitting/test_checkpoint.py",
        "Verdict": "tests/fitting/test_iterates.py",
        "ascent": "tests/fitting/test_ascent.py",
        "bar": "tests/fitting/test_reports.py",
        "fit": "tests/fitting/test_fit.py",
        "jsonl": "tests/fitting/test_reports.py",
        "minibatches": "tests/fitting/test_minibatches.py",
        "restarts": "tests/fitting/test_restarts.py",
        "restore": "tests/fitting/test_checkpoint.py",
        "save": "tests/fitting/test_checkpoint.py",
        "scale_units": "tests/fitting/test_iterates.py",
        "stationary": "tests/fitting/test_iterates.py",
        "weigh": "tests/faults/test_standing_still.py",
    },
    "models": {
        "MLP": "tests/models/test_networks.py",
        "VAE": "tests/models/test_autoencoder.py",
        "Conditional": "tests/models/test_conditional.py",
        "ConvDecoder": "tests/models/test_networks.py",
        "ConvEncoder": "tests/models/test_networks.py",
        "Ladder": "tests/models/test_ladder.py",
        "Prior": "tests/models/test_priors.py",
        "Rate": "tests/models/test_rates.py",
        "RateHolder": "tests/models/test_rates.py",
        "VampPrior": "tests/models/test_priors.py",
        "aggregate": "tests/models/test_priors.py",
        "flat_dot_general": "tests/models/test_networks.py",
        "flipout": "tests/models/test_weights.py",
        "free_bits": "tests/models/test_rates.py",
        "hold_rate": "tests/models/test_rates.py",
        "local_reparameterization": "tests/models/test_weights.py",
        "num_params": "tests/models/test_conditional.py",
        "standard": "tests/models/test_priors.py",
    },
    "solvers": {
        "Maximum": "tests/solvers/test_maximize.py",
        "Path": "tests/solvers/test_pathfinder.py",
        "Paths": "tests/solvers/test_pathfinder.py",
        "Refined": "tests/solvers/test_refine.py",
        "Response": "tests/solvers/test_dadvi.py",
        "dadvi": "tests/solvers/test_dadvi.py",
        "dense": "tests/solvers/test_dadvi.py",
        "linear_response": "tests/solvers/test_dadvi.py",
        "maximize": "tests/solvers/test_maximize.py",
        "multi_pathfinder": "tests/solvers/test_pathfinder.py",
        "pathfinder": "tests/solvers/test_pathfinder.py",
        "refine": "tests/solvers/test_refine.py",
        "scatter": "tests/solvers/test_pathfinder.py",
    },
    "diagnostics": {
        "Calibration": "tests/diagnostics/test_calibration.py",
        "Collapse": "tests/diagnostics/test_collapse.py",
        "Corrected": "tests/diagnostics/test_moments.py",
        "Gaps": "tests/diagnostics/test_gaps.py",
        "Measured": "tests/diagnostics/test_moments.py",
        "Members": "tests/diagnostics/test_members.py",
        "Sandwich": "tests/diagnostics/test_moments.py",
        "Summary": "tests/diagnostics/test_summary.py",
        "Surgery": "tests/diagnostics/test_surgery.py",
        "activity": "tests/diagnostics/test_collapse.py",
        "collapse": "tests/diagnostics/test_collapse.py",
        "ess": "tests/diagnostics/test_weights.py",
        "evidence": "tests/diagnostics/test_moments.py",
        "gaps": "tests/diagnostics/test_gaps.py",
        "khat": "tests/diagnostics/test_weights.py",
        "latent_kl": "tests/diagnostics/test_collapse.py",
        "marginal_khat": "tests/diagnostics/test_latents.py",
        "moments": "tests/diagnostics/test_moments.py",
        "predictive": "tests/diagnostics/test_calibration.py",
        "psis": "tests/diagnostics/test_weights.py",
        "resolution": "tests/diagnostics/test_resolution.py",
        "rhat": "tests/diagnostics/test_chains.py",
        "sandwich": "tests/diagnostics/test_moments.py",
        "summarize": "tests/diagnostics/test_summary.py",
        "summarize_members": "tests/diagnostics/test_members.py",
        "surgery": "tests/diagnostics/test_surgery.py",
        "to_arviz": "tests/diagnostics/test_arviz.py",
        "verdict": "tests/diagnostics/test_summary.py",
        "vsbc": "tests/diagnostics/test_calibration.py",
    },
    "updates": {
        "Curvature": "tests/updates/test_natural.py",
        "GaussianState": "tests/updates/test_natural.py",
        "IvonState": "tests/updates/test_ivon.py",
        "batch_and_match": "tests/updates/test_match.py",
        "clipped": "tests/updates/test_natural.py",
        "hessian": "tests/updates/test_natural.py",
        "ivon": "tests/updates/test_ivon.py",
        "natural_gradient": "tests/updates/test_natural.py",
        "perturb": "tests/updates/test_ivon.py",
        "quadratic": "tests/updates/test_natural.py",
        "settling": "tests/updates/test_natural.py",
        "square_root_natural_gradient": "tests/updates/test_natural.py",
        "stein": "tests/updates/test_curvature.py",
    },
    "gaussians": {
        "AffineGaussian": "tests/gaussians/test_affine.py",
        "Gaussian": "tests/gaussians/test_precision.py",
        "Precision": "tests/gaussians/test_precision.py",
        "dense": "tests/gaussians/test_precision.py",
        "diagonal": "tests/gaussians/test_precision.py",
        "tridiagonal": "tests/gaussians/test_precision.py",
    },
    "types": dict.fromkeys(vj.types.__all__, "tests/test_types.py"),
    "testing": {
        "Moments": "tests/testing/test_moments.py",
        "Report": "tests/testing/test_checks.py",
        "check_bound_order": "tests/testing/test_checks.py",
        "check_unbiased": "tests/testing/test_checks.py",
        "gradient_moments": "tests/testing/test_moments.py",
    },
}
