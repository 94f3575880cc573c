"""From draws to the numbers of a summary, all of them by one compiled program."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vijax import raised
from vijax.calls import described, function, is_known, usage
from vijax.checks import named_scalars
from vijax.diagnostics._chains import rhat_among
from vijax.diagnostics._evidence import mean_of
from vijax.diagnostics._moments import weighted_moments
from vijax.diagnostics._posterior import of_draws, without_a_mean
from vijax.diagnostics._runs import as_runs, shares_of, taken_alike
from vijax.diagnostics._summary import Summary
from vijax.diagnostics._verdict import verdict
from vijax.numerics import comparable
from vijax.types import Draws, Estimate, PyTree

FEW = 1_000_000  # numbers among the draws, of which the faster to compile program takes a second


@usage(
    "diagnostics.summarize",
    "diagnostics.summarize(draws.weigh(key, log_joint, q, num_samples=4000))",
)
def summarize(
    draws: Draws | Estimate, *, constrain: Callable[[PyTree], PyTree] | None = None
) -> Summary:
    """Summary of a fit from draws of q: moments plain and corrected, evidence, k-hat, and a verdict.

        print(summarize(draws.weigh(key, target, q, num_samples=4000), constrain=target.constrain))

    A few thousand draws make k-hat stable. No mode or mass is detected where no draw of any run falls. For a batch of
    posteriors see `summarize_members`.

    Args:
        draws: `Draws`, or the `Estimate` of an objective, with log_w [k], or [runs, k] of restarts as jax.vmap makes
            them. Strata count by their weights.
        constrain: one draw of z -> the latents to report, such as `Transformed.constrain`, or any function of them;
            where labels may switch, one that sorts them.

    Returns:
        Summary, arrays; it prints nothing by itself. Given restarts, the table is of the run with the highest ELBO, and
        R-hat compares it with those whose ELBO is not far worse: by 10 nats and 4 standard errors, where a mode would
        have e⁻¹⁰ of the mass, or nan. The verdict's sentence counts those left out.

    Raises:
        ValueError: for draws without z, of a batch of posteriors, and those of a minibatch or another target that is
            right in its mean alone.

    Example:
        >>> q = vj.families.mean_field().dist({"loc": jnp.zeros(2), "log_scale": jnp.zeros(2)})
        >>> target = lambda z: -0.5 * jnp.sum(z**2) - jnp.log(2 * jnp.pi) - 3.0
        >>> result = summarize(vj.draws.weigh(jax.random.key(0), target, q, num_samples=500))
        >>> result.names, round(float(result.log_evidence.value), 3), int(result.verdict)
        (('z[0]', 'z[1]'), -3.0, 0)

    Reference: Vehtari, Simpson, Gelman, Yao, Gabry, Pareto smoothed importance sampling, 2024, arXiv:1507.02646; Yao,
        Vehtari, Simpson, Gelman, Yes, but did it work? Evaluating variational inference, 2018, arXiv:1802.02538.
    """
    draws = as_runs(draws)
    z = draws.z if constrain is None else _constrained(constrain, draws.z)
    names = named_scalars(jax.tree.map(lambda leaf: leaf[0, 0], z))
    alike = taken_alike(draws) if len(draws.log_q) > 1 else None
    # R-hat takes all draws alike, so strata are resampled for it.
    given = z, draws.log_p, draws.log_q, shares_of(draws), alike
    numbers = (_compiled_fast if _runs_once(given) else _compiled_well)(*given)
    return numbers._replace(names=tuple(names), num_samples=draws.log_q.shape[1])


def _constrained(constrain: Callable[[PyTree], PyTree], z: PyTree) -> PyTree:
    """Return what is reported of draws [runs, k, ...]; refuse what holds no numbers."""
    function(constrain, "constrain")

    def one(z: PyTree) -> PyTree:
        made = raised.evaluated("constrain", constrain, z)
        leaves = jax.tree.leaves(made)
        odd = [
            leaf
            for leaf in leaves
            if not hasattr(leaf, "dtype") and not isinstance(leaf, float | int)
        ]
        if odd or not leaves:
            raise TypeError(
                f"constrain(z) must return a pytree of arrays, got {described(odd[0] if odd else made)}: a dict such "
                "as {'rate': jnp.exp(z['log_rate'])}."
            )
        return made

    return jax.vmap(jax.vmap(one))(z)


def _numbers(z: PyTree, log_p: Array, log_q: Array, shares: Array, alike: Array | None) -> Summary:
    """Return the summary, but for its names, of draws [runs, k, ...].

    Args:
        z: what is reported.
        log_p, log_q: [runs, k].
        shares: of each draw in q, [runs, k].
        alike: indices of draws that count alike, [runs, k], or None for all as they are.
    """
    runs, k = log_p.shape
    # [runs, k, d]: every latent scalar a column.
    flat = jnp.concatenate([jnp.reshape(leaf, (runs, k, -1)) for leaf in jax.tree.leaves(z)], 2)
    log_w = jnp.where(shares > 0, log_p - log_q, -jnp.inf)
    # The run with the highest ELBO, and those not worse by far, [runs].
    elbos = jax.vmap(lambda log_w, share: mean_of(log_w, weights=share))(log_w, shares)
    # A draw that log_joint forbids makes an ELBO -inf, and q no other one: its possible draws are compared.
    possible = jnp.where(log_w > -jnp.inf, shares, 0.0)
    possible = possible / jnp.sum(possible, 1, keepdims=True)
    among_possible = jax.vmap(lambda log_w, share: mean_of(log_w, weights=share))(log_w, possible)
    best, compared = comparable(among_possible.value, among_possible.error)
    x, share = flat[best], shares[best]
    of_q = of_draws(x, log_p[best], log_q[best], share)
    # Moments under q, and under its smoothed weights, which k-hat is about; [2, d] each.
    pair = jnp.stack([share, of_q.smoothed])
    mean, sd, error, _ = jax.vmap(weighted_moments, (0, None))(pair, x)
    # R-hat of the runs compared, nan where the best stands alone, which is no disagreement.
    agreement, alone = None, jnp.sum(compared) < 2
    if runs > 1:
        among = flat if alike is None else jax.vmap(lambda x, chosen: x[chosen])(flat, alike)
        agreement = jnp.where(alone, jnp.nan, rhat_among(among, compared))
    # How many draws of each latent no float holds, in the runs compared: R-hat has no answer there.
    lost = jnp.sum(~jnp.isfinite(flat) & (shares > 0)[..., None] & compared[:, None, None], (0, 1))
    level = verdict(
        of_q.worst_khat,
        of_q.ess_under_q,
        num_samples=k,
        rhat=None
        if agreement is None
        else jnp.where(alone, 1.0, jnp.max(jnp.where(lost > 0, 1.0, agreement))),
        resolution=of_q.resolution,
    )
    level = without_a_mean(level, of_q, lost)
    return Summary(
        names=(),
        mean=mean[0],
        sd=sd[0],
        corrected_mean=mean[1],
        corrected_sd=sd[1],
        error=error[1],
        marginal_khat=of_q.marginal_khat,
        rhat=agreement,
        elbo=of_q.elbo,
        log_evidence=of_q.log_evidence,
        ess=of_q.ess,
        khat=of_q.khat,
        resolution=of_q.resolution,
        not_finite=lost,
        own_khat=of_q.own_khat,
        weighted_khat=of_q.weighted_khat,
        elbos=elbos,
        compared=compared,
        num_samples=k,
        verdict=level,
    )


# Of most fits the numbers are computed once, and to compile a program well takes a CPU longer than to run a bad one.
_compiled_well = jax.jit(_numbers)
_compiled_fast = jax.jit(_numbers, compiler_options={"xla_backend_optimization_level": 0})


def _runs_once(given: PyTree) -> bool:
    """Return whether to compile fast, which is for the outermost program, on a CPU, and not too many numbers."""
    leaves = jax.tree.leaves(given)
    outermost = is_known(leaves)
    return (
        outermost
        and jax.default_backend() == "cpu"
        and sum(jnp.size(leaf) for leaf in leaves) <= FEW
    )
