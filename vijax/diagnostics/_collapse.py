"""Latents watched: how much each one tells of the data, and an alarm where none of them does."""

from html import escape
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vijax.calls import described, usage
from vijax.types import Divergence, PyTree, offers

# What is tried against collapse, in the order of its cost.
CURES = (
    "warm β up from 0 (the recipe KL annealing), leave each latent some nats (free bits), fix or lower the noise of "
    "the decoder, train the encoder for more steps than the decoder, or give the decoder less to explain x with "
    "by itself"
)
NAMED = 10  # dead latents that are listed by number


class Collapse(NamedTuple):
    """Which latents the data use; `print(collapse)`.

    Fields:
        mean: KL of each latent, averaged over data, [*event] in nats.
        largest: the largest KL of each over data, [*event] in nats.
        dead: whether it is under the limit for every datum, [*event].
        alive: how many are not dead, ().
        limit: in nats.
    """

    mean: Float[Array, "*event"]
    largest: Float[Array, "*event"]
    dead: Bool[Array, "*event"]
    alive: Int[Array, ""]
    limit: float

    def __str__(self) -> str:
        dead, alive, total = np.asarray(self.dead), int(self.alive), int(np.size(self.dead))
        rate = float(np.sum(np.asarray(self.mean)))
        first = f"{alive} of {total} latents are alive, with {rate:.2f} nats for a datum in all"
        if alive == total:
            return f"{first}."
        under = f"under {self.limit:g} nats for every datum"
        if alive == 0:
            return f"Collapsed: {first}. Each is {under}, so that q ignores x. Try: {CURES}."
        numbers = ", ".join(map(str, np.flatnonzero(dead)[:NAMED]))
        more = ", ..." if dead.sum() > NAMED else ""
        return (
            f"{first}. Dead, {under}: {numbers}{more}. Some may be more than the data need: that is no fault "
            f"where fewer latents give the same bound. If it is not so: {CURES}."
        )

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"


@usage("diagnostics.latent_kl", "diagnostics.latent_kl(q, prior)")
def latent_kl(q: PyTree, prior: PyTree) -> Float[Array, "*all"]:
    """KL of every latent and every datum in closed form: what each latent tells of each datum.

        KLₙᵤ = KL(q(zᵤ | xₙ) ‖ p(zᵤ)),     Σᵤ KLₙᵤ = KL(q(z | xₙ) ‖ p(z))

    For an encoder of independent latents. Its mean over data is what free bits and capacity schedules steer; of other
    posteriors and priors `surgery` gives the total alone.

    Args:
        q: a distribution of independent latents, [*batch, *event] with or without Independent around it, as distrax
            and TFP have them; or a diagonal multivariate normal.
        prior: one like it, of the same shape or [*event].

    Returns:
        [*batch, *event], in nats, differentiable.

    Raises:
        TypeError: for a q or prior whose latents depend on each other, or a pair without a closed form.

    Example:
        >>> q = distrax.Independent(distrax.Normal(jnp.array([[0.0, 1.0], [0.0, 3.0]]), 1.0), 1)
        >>> prior = distrax.Independent(distrax.Normal(jnp.zeros(2), 1.0), 1)
        >>> latent_kl(q, prior).tolist()
        [[0.0, 0.5], [0.0, 4.5]]

    Reference: Burda, Grosse, Salakhutdinov, Importance weighted autoencoders, 2016, arXiv:1509.00519; Kingma,
        Salimans, Jozefowicz, Chen, Sutskever, Welling, Improving variational inference with inverse autoregressive
        flow, 2016, arXiv:1606.04934 (free bits).
    """
    of_q, of_prior = _factors(q), _factors(prior)
    if _is_normal(of_q) and _is_normal(of_prior):
        return _normal_kl(of_q, of_prior)
    refusal = (
        f"no KL of each latent is known of q = {described(q)} from prior = {described(prior)}: "
        "the latents of both must be independent, such as "
        "distrax.Independent(distrax.Normal(loc, scale), 1). Of a mixture, a flow or a full "
        "covariance take the total, diagnostics.surgery(key, q, prior, num_samples=...).rate."
    )
    if not offers(of_q, Divergence) or tuple(getattr(of_q, "event_shape", ())) != ():
        raise TypeError(refusal)
    try:
        return jnp.asarray(of_q.kl_divergence(of_prior))
    except NotImplementedError as error:  # what distrax and TFP raise for a pair that they lack
        raise TypeError(refusal) from error


def _factors(p: Any) -> Any:
    """Return the distribution of single latents that Independent and `families.adapt` are around."""
    p = getattr(p, "adapted", p)
    while type(p).__name__ == "Independent":
        p = p.distribution
    return p


def _is_normal(p: Any) -> bool:
    """Whether p is a library's Gaussian of independent numbers."""
    return type(p).__name__ in ("Normal", "MultivariateNormalDiag") and hasattr(p, "stddev")


def _normal_kl(q: Any, prior: Any) -> Array:
    """Return the KL of each of two lots of independent normals, [*batch, *event]."""
    parts = [jnp.asarray(a) for p in (q, prior) for a in (p.mean(), p.stddev())]
    shape = jnp.broadcast_shapes(*(a.shape for a in parts))
    m, s, prior_m, prior_s = (jnp.broadcast_to(a, shape) for a in parts)
    # log s₀/s + (s² + (m - m₀)²) / 2 s₀² - ½, with the ratio of the scales formed once.
    log_ratio = jnp.log(s) - jnp.log(prior_s)
    return 0.5 * (jnp.expm1(2 * log_ratio) + jnp.square((m - prior_m) / prior_s)) - log_ratio


@usage("diagnostics.activity", "diagnostics.activity(draws.z)")
def activity(z: PyTree) -> PyTree:
    """How far the mean of every latent moves from datum to datum: a latent is active above .01.

        Aᵤ = Varₙ(E_q[zᵤ | xₙ])  ≈  Varₙ(z̄ₙᵤ) - mean over n of s²ₙᵤ / K

    For any q that can be drawn from; the units are those of the prior, in which .01 is a tenth of a standard deviation.

    Args:
        z: draws of q, a pytree of [k, n, *event], k at least 2, of n data. Where the means are known,
            `jnp.var(q.mean(), 0, ddof=1)` is the same without noise.

    Returns:
        A pytree of [*event], in squares of the latent's units; the noise of the draws is taken off, so that a dead
        latent is around 0, on either side. Jittable.

    Raises:
        ValueError: for fewer than 2 draws of each, or fewer than 2 data.

    Example:
        >>> z = jnp.array([[[0.9, 0.0], [3.1, 0.0]], [[1.1, 0.0], [2.9, 0.0]]])  # 2 draws, 2 data, 2 latents
        >>> [round(float(a), 2) for a in activity(z)]  # the means are 1 and 3
        [1.99, 0.0]

    Reference: Burda, Grosse, Salakhutdinov, Importance weighted autoencoders, 2016, arXiv:1509.00519, appendix C.
    """

    def of(leaf: Array) -> Array:
        leaf = jnp.asarray(leaf)
        if leaf.ndim < 2 or min(leaf.shape[:2]) < 2:
            raise ValueError(
                "z must hold leaves [k, n, *event] of k >= 2 draws of each of n >= 2 data, got "
                f"{leaf.shape}: from one draw the spread of q cannot be told from that of its means. Draw more, or "
                "take jnp.var(q.mean(), 0, ddof=1)."
            )
        k = leaf.shape[0]
        noise = jnp.mean(jnp.var(leaf, 0, ddof=1), 0) / k
        return jnp.var(jnp.mean(leaf, 0), 0, ddof=1) - noise

    return jax.tree.map(of, z)


@usage("diagnostics.collapse", "diagnostics.collapse(diagnostics.latent_kl(q, prior))")
def collapse(kl: Float[Array, "n *event"], *, limit: float = 0.01) -> Collapse:
    """The alarm for posterior collapse: latents whose KL is under a limit for every datum.

        deadᵤ = maxₙ KLₙᵤ < .01,     collapsed where all are dead

    Ask it of held-out data, early and late in a training.

    Args:
        kl: of each datum and latent, in nats, [n, *event], as `latent_kl` gives it; or of each datum alone, [n], where
            q has no KL of single latents.
        limit: in nats, above 0.

    Returns:
        Collapse; `print` it outside of jit. A KL that is nan counts as alive, for it is another fault. A latent that is
        alive may still be ignored by the decoder.

    Raises:
        ValueError: for no data, and a limit that is not positive.

    Example:
        >>> print(collapse(jnp.array([[0.0, 0.5], [0.001, 4.5]])))
        1 of 2 latents are alive, with 2.50 nats for a datum in all. Dead, under 0.01 nats for every datum: 0. ...

    Reference: Bowman, Vilnis, Vinyals, Dai, Jozefowicz, Bengio, Generating sentences from a continuous space, 2016,
        arXiv:1511.06349; Lucas, Tucker, Grosse, Norouzi, Don't blame the ELBO! A linear VAE perspective on posterior
        collapse, 2019, arXiv:1911.02469.
    """
    if not limit > 0:
        raise ValueError(
            f"limit must be above 0 nats, got {limit!r}: no latent would ever be dead."
        )
    kl = jnp.asarray(kl)
    if kl.ndim == 0 or kl.shape[0] == 0:
        raise ValueError(
            f"kl must be [n, *event] of n >= 1 data, got {kl.shape}: latent_kl(q, prior)."
        )
    largest = jnp.max(kl, 0)
    dead = largest < limit
    return Collapse(jnp.mean(kl, 0), largest, dead, jnp.sum(~dead), limit)
