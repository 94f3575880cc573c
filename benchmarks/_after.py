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
from jax import Array
from jax.scipy.stats import norm

import vijax as vj
from benchmarks import _forum, _forum_groups, stopping
from benchmarks._forum import POSITIVE, Latents, Question, given
from benchmarks.stopping import Method

FULL_RANK = "full-rank"
NATURAL = Method(vj.updates.natural_gradient, stopping.FULL, 500, 6)


class Change(NamedTuple):
    """Another form of a model.

    Fields:
        question: of the latents that are left; its report may read those drawn afterwards.
        drawn: z -> the exact conditional of what was integrated out, a dict.
        what: was done, in a line.
    """

    question: Question
    drawn: Callable[[Latents], Any]
    what: str


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


def horseshoe() -> Change:
    log_likelihood = _forum.horseshoe_answers()

    def scales(z: Latents) -> Latents:
        tau = _forum.horseshoe_tau0(z["sigma"]) * jnp.exp(log_half_cauchy(z["u_tau"]))
        return z | {"tau": tau, "lam": jnp.exp(log_half_cauchy(z["u_lam"]))}

    def log_joint(z: Latents, b: Latents) -> Array:
        beta = _forum.slab(scales(z)) * b["effect"]
        prior = norm.logpdf(z["u_tau"]) + jnp.sum(norm.logpdf(z["u_lam"]))
        prior += jnp.sum(norm.logpdf(b["effect"])) + _forum.horseshoe_rest(z)
        return prior + log_likelihood(beta, z["sigma"])

    collapsed, conditional = vj.targets.collapse_gaussian(
        log_joint, {"effect": jnp.zeros(_forum.COLUMNS)}
    )

    def report(z: Latents) -> Latents:
        z = scales(z)
        return _forum.horseshoe_report(z | {"beta": _forum.slab(z) * z["effect"]})

    bounds = {"sigma": POSITIVE, "c2": POSITIVE, "u_tau": None, "u_lam": None}
    start = given(sigma=1.0, c2=1.0, u_tau=0.1, u_lam=np.full(_forum.COLUMNS, 0.1))
    return Change(
        Question(collapsed, bounds, start, report),
        conditional,
        "coefficients integrated out, half-Cauchy scales as images of normals",
    )


def item_response() -> Change:
    def people(z: Latents, b: Latents) -> Array:
        return _forum.item_answers(z, b["ability"])

    each, abilities = vj.targets.quadrature(people, {"ability": jnp.zeros(50)}, nodes=9, steps=6)

    def log_joint(z: Latents) -> Array:
        return _forum.item_prior(z) + jnp.sum(each(z))

    question = Question(log_joint, _forum.ITEMS, _forum.item_start())
    return Change(question, abilities, "abilities integrated out by quadrature")


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
    return Change(question, conditional, "slopes integrated out, group by group")


CHANGES: dict[str, tuple[tuple[str, Method, Callable[[], Change]], ...]] = {
    _forum_groups.HORSESHOE: ((FULL_RANK, NATURAL, horseshoe),),
    _forum_groups.ITEM_RESPONSE: ((FULL_RANK, NATURAL, item_response),),
    _forum_groups.SLOPES_NAME: ((FULL_RANK, NATURAL, slopes),),
}
