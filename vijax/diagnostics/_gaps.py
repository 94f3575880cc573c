"""What a bound lacks of log p, in parts: the encoder's, the family's, and that of finitely many draws."""

from html import escape
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vijax.calls import log_weights, usage
from vijax.diagnostics._evidence import HAS_VARIANCE, Measured, log_mean, mean_of
from vijax.diagnostics._weights import khat
from vijax.numerics import normalized_weights

USABLE = 0.7  # k-hat up to which log p is near its limit


class Gaps(NamedTuple):
    """Parts of log p - ELBO, each `Measured` [*batch] in nats; `print(gaps)` shows their means over data.

    Fields:
        amortization: ELBO of the refined q less that of the encoder's: what one network for all data costs.
        approximation: the estimate of log p less the ELBO of the refined q: what its family costs.
        monte_carlo: what the estimate of log p, of finitely many draws, still lacks, to first order.
        total: log p less the ELBO of the encoder's q, the sum of the three.
        log_evidence: log p, the estimate with the last part added.
        khat: of the weights that log p is estimated from; where it is above .7 all but the first part may be short.
    """

    amortization: Measured
    approximation: Measured
    monte_carlo: Measured
    total: Measured
    log_evidence: Measured
    khat: Float[Array, "*batch"]

    @property
    def mean(self) -> dict[str, Measured]:
        """Means over data, each with the standard error that its spread over data gives, () in nats."""
        return {name: _over_data(part) for name, part in self._asdict().items() if name != "khat"}

    def __str__(self) -> str:
        means, khats = self.mean, np.asarray(self.khat)
        rows = [
            f"  {name.replace('_', ' '):<14} {float(value):10.4f} ± {float(error):.4f}"
            for name, (value, error) in means.items()
        ]
        good = float(np.mean(khats <= USABLE)) if khats.size else float("nan")
        return "\n".join(
            [
                f"log p - ELBO of {khats.size} data, in nats, means and their standard errors over data",
                *rows,
                f"k-hat up to {USABLE:g} for {good:.0%} of the data",
            ]
        )

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"


@usage("diagnostics.gaps", "diagnostics.gaps(log_w, log_w_refined)")
def gaps(
    log_w: Float[Array, "k *batch"],
    log_w_refined: Float[Array, "r *batch"],
    log_w_evidence: Float[Array, "s *batch"] | None = None,
) -> Gaps:
    """What the ELBO of an encoder lacks of log p, in three parts that add up, none below 0 but by noise.

        log p - L[q] = (L[q*] - L[q]) + (log p̂ - L[q*]) + (log p - log p̂),     log p - log p̂ ≈ Var(w) / 2 S E[w]²

    Which of network, family and number of draws to improve. q* is `solvers.refine`'s.

    Args:
        log_w: log p(x, z) - log q(z | x) at draws of the encoder's q, in nats, [k, *batch].
        log_w_refined: the same at draws of the refined q of the same data, [r, *batch].
        log_w_evidence: the same at draws of the best proposal there is, such as a refined full covariance where q* is
            of independent latents, [s, *batch]; log_w_refined where None. Some thousands, for a k-hat that is stable.

    Returns:
        Gaps. The last part is the jackknife's correction, never below 0. Where `khat` is above .5 the errors of all
        that holds log p are +inf, as that of `evidence` is; means over data, `Gaps.mean`, have theirs from the spread
        over data. Jittable.

    Raises:
        ValueError: for k, r or s = 0, or batches that differ.

    Example:
        >>> log_w, refined = jnp.array([-9.0, -5.0] * 50), jnp.array([-4.0, -2.0] * 50)
        >>> parts = gaps(log_w, refined)
        >>> [round(float(part.value), 2) for part in (parts.amortization, parts.approximation)]
        [4.0, 0.43]

    Reference: Cremer, Li, Duvenaud, Inference suboptimality in variational autoencoders, 2018, arXiv:1801.03558;
        Nowozin, Debiasing evidence approximations, 2018 (the jackknife).
    """
    same = log_w_evidence is None
    evidence_w = log_w_refined if log_w_evidence is None else log_w_evidence
    for weights in (log_w, log_w_refined, evidence_w):
        log_weights(weights, "diagnostics.gaps")
    shapes = [a.shape for a in (log_w, log_w_refined, evidence_w)]
    if len({shape[1:] for shape in shapes}) != 1:
        raise ValueError(
            f"all log-weights must be [draws, *batch] of the same data, got {shapes}: draws come first, and the "
            "encoder's and the refined q are asked about the same data."
        )
    encoder, refined = mean_of(log_w), mean_of(log_w_refined)
    tail = khat(evidence_w)
    estimate = log_mean(evidence_w, tail)
    rest = _shortfall(evidence_w, tail)
    # Of the same draws log mean w and mean log w move together, and their difference is never below 0.
    apart = jnp.hypot(estimate.error, refined.error)
    approximation = Measured(
        estimate.value - refined.value, _paired_error(evidence_w, tail) if same else apart
    )
    log_evidence = Measured(estimate.value + rest.value, jnp.hypot(estimate.error, rest.error))
    return Gaps(
        amortization=_minus(refined, encoder),
        approximation=approximation,
        monte_carlo=rest,
        total=_minus(log_evidence, encoder),
        log_evidence=log_evidence,
        khat=tail,
    )


def _minus(a: Measured, b: Measured) -> Measured:
    """Return the difference of two numbers read off independent draws."""
    return Measured(a.value - b.value, jnp.hypot(a.error, b.error))


def _shortfall(log_w: Array, tail: Array) -> Measured:
    """Return by how much log mean w is short of log E w, to first order, by the jackknife; with its error.

    (k - 1) (log w̄ - mean over i of log w̄₋ᵢ), in units of the mean weight, where nothing cancels.
    """
    k = log_w.shape[0]
    if k == 1:
        unknown = jnp.full(log_w.shape[1:], jnp.inf, log_w.dtype)
        return Measured(unknown, unknown)
    share = normalized_weights(log_w)
    # log w̄₋ᵢ - log w̄ = log (1 - w̃ᵢ) - log (1 - 1/k); of one draw that has all the weight it is -inf.
    lost = -(jnp.log1p(-share) - jnp.log1p(-1 / k))
    value = (k - 1) * jnp.maximum(jnp.mean(lost, 0), 0.0)
    # Influence of each draw on Var(w) / E[w]², rᵢ = wᵢ / w̄: rᵢ² - E r² - 2 E r² (rᵢ - 1).
    r = k * share
    square = jnp.mean(r**2, 0)
    influence = r**2 - square[None] - 2 * square[None] * (r - 1)
    error = jnp.std(influence, 0) / (2 * k**1.5)
    return Measured(value, jnp.where(tail <= HAS_VARIANCE, error, jnp.inf))


def _paired_error(log_w: Array, tail: Array) -> Array:
    """Return the standard error of log mean w - mean log w of the same draws, +inf where k-hat allows none."""
    k = log_w.shape[0]
    # An impossible draw has a log-weight of -inf, and so has the mean.
    influence = k * normalized_weights(log_w) - 1 - (log_w - jnp.mean(log_w, 0)[None])
    error = jnp.sqrt(jnp.sum(influence**2, 0) / (max(k - 1, 1) * k))
    return jnp.where((tail <= HAS_VARIANCE) & jnp.isfinite(error), error, jnp.inf)


def _over_data(part: Measured) -> Measured:
    """Return the mean over data, and its standard error by their spread."""
    values = part.value.reshape(-1)
    n = max(values.size, 1)
    error = jnp.std(values, ddof=1) / n**0.5 if n > 1 else jnp.full((), jnp.inf, values.dtype)
    return Measured(jnp.mean(values), error)
