"""What to try after a verdict of 2: other forms of the forum's models that a family of vijax fits.

Each integrates out exactly what it can, and draws it anew afterwards from its exact conditional; what is left is given
a form in which the prior is a normal distribution, which the data do not bend far.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.scipy.special import ndtri
from jax.scipy.stats import norm

import vijax as vj
from benchmarks import _forum, _forum_groups
from benchmarks._forum import POSITIVE, Latents, Question, given
from benchmarks.stopping import Method


class Change(NamedTuple):
    """Another form of a model.

    Fields:
        question: of the latents that are left; its report may read those drawn afterwards.
        drawn: z -> the conditional of what was integrated out, a dict.
        fit: how it is fitted, a name and a method; None for the forum's full-rank Gaussian.
    """

    question: Question
    drawn: Callable[[Latents], Any]
    fit: tuple[str, Method] | None = None


def complete(
    change: Change, target: vj.targets.Transformed, key: Array, draws: vj.Draws
) -> vj.Draws:
    """Return the draws of what is left, constrained, with those of what was integrated out; weights as they are."""

    def one(key: Array, y: Latents) -> Latents:
        z = target.constrain(y)
        return z | change.drawn(z).sample_and_log_prob(seed=key)[0]

    keys = jax.random.split(key, draws.log_q.shape)
    return draws._replace(z=jax.jit(jax.vmap(jax.vmap(one)))(keys, draws.z))


def log_half_cauchy(u: Array) -> Array:
    """Return log λ of a half-Cauchy λ as a function of a standard normal u: the logarithm is odd in u."""
    return -jnp.sign(u) * jnp.log(jnp.tan(0.5 * math.pi * norm.cdf(-jnp.abs(u))))


def without_coefficients(
    scales: Callable[[Latents], Latents],
    log_prior: Callable[[Latents], Array],
    constraints: dict[str, Any],
    start: Latents,
) -> Change:
    """Return the horseshoe with its coefficients integrated out.

    Args:
        scales: z -> z with τ and λ.
        log_prior: z -> log p of what τ and λ are made of.
        constraints: of these.
        start: of these.
    """
    log_likelihood = _forum.horseshoe_answers()

    def log_joint(z: Latents, b: Latents) -> Array:
        beta = _forum.slab(scales(z)) * b["effect"]  # in units of their scales, well conditioned
        prior = log_prior(z) + _forum.horseshoe_rest(z) + jnp.sum(norm.logpdf(b["effect"]))
        return prior + log_likelihood(beta, z["sigma"])

    like = {"effect": jnp.zeros(_forum.COLUMNS)}
    collapsed, conditional = vj.targets.collapse_gaussian(log_joint, like)

    def report(z: Latents) -> Latents:
        z = scales(z)
        return _forum.horseshoe_report(z | {"beta": _forum.slab(z) * z["effect"]})

    bounds = {"sigma": POSITIVE, "c2": POSITIVE} | constraints
    start = given(sigma=1.0, c2=1.0) | start
    return Change(Question(collapsed, bounds, start, report), conditional)


def horseshoe_positive() -> Change:
    start = given(tau=0.01, lam=np.ones(_forum.COLUMNS))
    bounds = {"tau": POSITIVE, "lam": POSITIVE}
    return without_coefficients(lambda z: z, _forum.horseshoe_scales, bounds, start)


def horseshoe() -> Change:
    def scales(z: Latents) -> Latents:
        tau = _forum.horseshoe_tau0(z["sigma"]) * jnp.exp(log_half_cauchy(z["u_tau"]))
        return z | {"tau": tau, "lam": jnp.exp(log_half_cauchy(z["u_lam"]))}

    def log_prior(z: Latents) -> Array:
        return norm.logpdf(z["u_tau"]) + jnp.sum(norm.logpdf(z["u_lam"]))

    start = given(u_tau=0.1, u_lam=np.full(_forum.COLUMNS, 0.1))
    return without_coefficients(scales, log_prior, {"u_tau": None, "u_lam": None}, start)


def abilities() -> tuple[Callable[[Latents], Array], Callable[[Latents], Any]]:
    """Return log p of each person's answers, abilities summed over by quadrature, and their conditional."""

    def people(z: Latents, b: Latents) -> Array:
        return _forum.item_answers(z, b["ability"])

    return vj.targets.quadrature(people, {"ability": jnp.zeros(50)}, nodes=9, steps=6)


def item_response() -> Change:
    each, conditional = abilities()

    def log_joint(z: Latents) -> Array:
        return _forum.item_prior(z) + jnp.sum(each(z))

    question = Question(log_joint, _forum.ITEMS, _forum.item_start())
    return Change(question, conditional)


def half_normal(u: Array, scale: float) -> Array:
    """Return the half-normal of this scale as a function of a standard normal u."""
    return -scale * ndtri(0.5 * norm.cdf(-u))


def item_response_by_flow() -> Change:
    each, conditional = abilities()

    def items(w: Latents) -> Latents:
        sd, spread = half_normal(w["u_sd"], 2.0), half_normal(w["u_spread"], 1.0)
        z = {"mean": w["mean"], "sd": sd, "spread": spread, "log_slope": spread * w["u_slope"]}
        return z | {"difficulty": w["mean"] + sd * w["u_difficulty"]}

    def log_joint(w: Latents) -> Array:
        normals = [w["u_sd"], w["u_spread"], w["u_slope"], w["u_difficulty"]]
        prior = norm.logpdf(w["mean"], 0, 2) + sum(jnp.sum(norm.logpdf(u)) for u in normals)
        return prior + jnp.sum(each(items(w)))

    def report(w: Latents) -> Latents:
        return items(w) | {"ability": w["ability"]}

    def rule(log_joint: Callable[..., Array]) -> vj.types.Rule:
        def estimate(key: Array, params: Any) -> vj.types.Estimate:
            return objective(key, log_joint, family.dist(params), num_samples=32)

        return vj.fitting.ascent(estimate, optax.adam(optax.cosine_decay_schedule(5e-3, steps)))

    start = given(mean=0.0, u_sd=0.0, u_spread=0.0, u_slope=np.zeros(10), u_difficulty=np.zeros(10))
    question = Question(log_joint, dict.fromkeys(start), start, report)
    family, steps = vj.families.spline_coupling(layers=8, hidden=(32, 32)), 10_000
    objective = vj.gradients.reparam(vj.bounds.elbo)
    return Change(
        question, lambda w: conditional(items(w)), ("flow", Method(rule, family, steps, 2))
    )


def slopes() -> Change:
    data = _forum_groups.sleepers()

    def groups(z: Latents, b: Latents) -> Array:
        return _forum_groups.slopes_answers(z, b["effects"], data)

    like = {"effects": jnp.zeros((_forum_groups.GROUPS, 3))}
    each, conditional = vj.targets.collapse_gaussian(groups, like)

    def log_joint(z: Latents) -> Array:
        return _forum_groups.slopes_scales(z) + jnp.sum(each(z))

    question = Question(
        log_joint, _forum_groups.SLOPES, _forum_groups.slopes_start(), _forum_groups.slopes_report
    )
    return Change(question, conditional)


# The last of each model is what the docs advise.
CHANGES: dict[str, dict[str, Callable[[], Change]]] = {
    _forum_groups.HORSESHOE: {
        "coefficients integrated out": horseshoe_positive,
        "coefficients integrated out, half-Cauchy scales as images of normals": horseshoe,
    },
    _forum_groups.ITEM_RESPONSE: {
        "abilities integrated out by quadrature": item_response,
        "abilities integrated out, scales as images of normals": item_response_by_flow,
    },
    _forum_groups.SLOPES_NAME: {"slopes integrated out, group by group": slopes},
}
