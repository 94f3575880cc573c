"""Every public function that takes a target, given every kind of target: it is right, or refused with a cure.

Each target here has the values of the plain one, whatever its kind: its minibatch is of all the
data, its noise is none. So where a kind is accepted the outcome is that of the plain target.
"""

import inspect
import re
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import vijax as vj
from tests.bare import Gauss
from tests.faults.judging import CURE
from tests.marks import but

pytestmark = pytest.mark.usefixtures("loose_ranks", "unchecked")
T, KEY, X = vj.targets, jax.random.key(0), jnp.array([0.5, -1.0, 2.0], jnp.float32)
FAMILY, FULL = vj.families.mean_field(), vj.families.full_rank()
Q = FAMILY.dist({"loc": jnp.array([0.3, -0.2]), "log_scale": jnp.array([-0.2, 0.1])})
ZERO, PAIR = jnp.zeros(()), jnp.zeros(2)


# --- kinds of target, of z alone or of (z, b)


def prior(z, b=0.0):
    return jnp.sum(norm.logpdf(z)) + jnp.sum(norm.logpdf(b, jnp.sum(z), 1.0))


def terms(z, b=0.0):
    return norm.logpdf(X, jnp.sum(z) + jnp.sum(b), 1.0)


def plain(*z):
    return prior(*z) + jnp.sum(terms(*z))


def noisy(key, *z):
    return plain(*z) + 0.0 * jax.random.normal(key)


def with_aux(key, *z):
    return noisy(key, *z), {"seen": X}


MINIBATCH = T.minibatch(prior, terms, num_data=3)
KINDS = {
    "plain": plain,
    "minibatch": MINIBATCH,
    "minibatch within": lambda *z: 1.0 * MINIBATCH(*z),
    "unbiased": T.unbiased(noisy),
    "unbiased, key fixed": partial(T.unbiased(noisy), key=KEY),
    "keyed": T.keyed(noisy),
    "keyed, key fixed": partial(T.keyed(noisy), key=KEY),
    "aux": T.keyed(with_aux, has_aux=True),
    "aux, key fixed": partial(T.keyed(with_aux, has_aux=True), key=KEY),
    "holds log_q": T.exact_entropy(plain, Q),
}
EXACT = {"plain", "keyed, key fixed"}
AND_AUX = EXACT | {"aux, key fixed"}
AND_NOISE = AND_AUX | {"keyed", "aux"}
ALL_BUT_Q = set(KINDS) - {"holds log_q"}
WITHOUT_AUX = ALL_BUT_Q - {"aux", "aux, key fixed"}


# --- the functions


class Row(NamedTuple):
    """A call of a target, and the kinds that it takes."""

    call: Any
    takes: Any


def conditional(z):
    return Gauss(jnp.sum(z) * jnp.ones(2), jnp.zeros(2), event=1)


def one_step(make):
    def call(target):
        rule = make(target, num_samples=4)
        state, step = rule.step(KEY, rule.init(FULL.init(KEY, PAIR)))
        return rule.params(state), step.value

    return call


def under(bound, make=vj.gradients.reparam):
    return lambda target: make(bound)(KEY, target, Q, num_samples=4).value


under_elbo = under(vj.bounds.elbo)  # takes every kind: for what is left of a target


def minorized(target):
    how = {"predictor": lambda z, b: b, "rest": target, "like": PAIR, "steps": 2}
    return T.minorize(T.minorizers.jaakkola_jordan, **how).collapsed(PAIR)


def standing_fit():
    rule = vj.types.Rule(
        lambda params: params,
        lambda key, params: (params, vj.types.Step(jnp.float32(0.0))),
        lambda params: params,
    )
    return vj.fitting.fit(KEY, rule, FAMILY.init(KEY, PAIR), steps=1, reports=())


FOUND = standing_fit()


def many_paths(target):
    return vj.solvers.multi_pathfinder(KEY, target, jnp.zeros((2, 2)), num_samples=4, steps=3).elbo


def response(target):
    params = FAMILY.init(KEY, PAIR)
    return vj.solvers.linear_response(KEY, target, FAMILY, params, num_samples=4).mean


def dadvi(target):
    return vj.solvers.dadvi(KEY, target, FAMILY, PAIR, num_samples=4, steps=3).value


MOVES = {"transition": vj.particles.langevin(step_size=0.1)}
PATH = {"partition": vj.particles.linear_partition(2)}


def annealed(target):
    return vj.particles.ais(KEY, target, Q, num_samples=4, **MOVES, **PATH).log_w


def annealed_back(target):
    return vj.particles.reverse_ais(KEY, target, Q, jnp.zeros((4, 2)), **MOVES, **PATH).log_w


def pilot(target):
    move = vj.particles.langevin
    steps = vj.particles.pilot_step_size(KEY, target, Q, transition=move, num_samples=4, **PATH)
    return steps(0.5)


def tempered(target):
    how = {"num_particles": 4, **MOVES, **PATH}
    return vj.particles.tempered_smc(KEY, target, Q, **how).log_evidence


def adaptively_tempered(target):
    how = {"num_particles": 4, "most": 3, **MOVES}
    return vj.particles.adaptive_tempered_smc(KEY, target, Q, **how).log_evidence


def under_elbo_of(make):
    """Return the ELBO of the pair that is made of a target."""

    def call(target):
        made = make(target)
        elbo = vj.gradients.reparam(vj.bounds.elbo)
        return elbo(KEY, made.log_joint, made.q, num_samples=4).value

    return call


def dais(target):
    return vj.particles.dais(target, Q, step_size=0.1, **PATH)


def semi_implicit(make):
    given = lambda psi: Gauss(psi, jnp.zeros(2), event=1)
    return lambda target: make(target, given, Q, num_mixing=2)


def each(target):
    """Give each of two leaves an estimator; the target reads them as one array."""
    of_leaves = lambda z, **given: target(jnp.stack([z["a"], z["b"]]), **given)
    both = vj.types.derive(target, of_leaves)
    q = {"a": Gauss(0.1, 0.0), "b": Gauss(-0.2, 0.0)}
    estimators = {"a": vj.gradients.reparam, "b": vj.gradients.dreg}
    return vj.gradients.each(vj.bounds.elbo, estimators)(KEY, both, q, num_samples=4).value


TOTAL = lambda z: jnp.sum(z)  # a predictor of one number
ROWS = {
    "targets.collapse": Row(lambda t: T.collapse(t, conditional)(PAIR), EXACT),
    "targets.collapse_error": Row(lambda t: T.collapse_error(KEY, t, conditional, PAIR), EXACT),
    "targets.collapse_gaussian": Row(lambda t: T.collapse_gaussian(t, PAIR)[0](PAIR), EXACT),
    "targets.collapse_laplace": Row(lambda t: T.collapse_laplace(t, PAIR, steps=2)[0](PAIR), EXACT),
    "targets.quadrature": Row(lambda t: T.quadrature(t, PAIR, nodes=2)[0](PAIR), EXACT),
    "targets.quadrature_error": Row(lambda t: T.quadrature_error(t, PAIR, nodes=2)(PAIR), EXACT),
    "targets.enumerate": Row(lambda t: T.enumerate(t, 2).log_joint(PAIR), EXACT),
    "targets.minorize": Row(minorized, EXACT),
    "targets.tied, log_prior": Row(lambda t: T.tied(t, plain, Q, num_data=3)(PAIR), EXACT),
    "targets.tied, log_likelihood": Row(lambda t: T.tied(plain, t, Q, num_data=3)(PAIR), EXACT),
    "targets.gauss_hermite": Row(lambda t: T.gauss_hermite(t, TOTAL, Q)(PAIR), EXACT),
    "targets.gauss_hermite_error": Row(lambda t: T.gauss_hermite_error(t, TOTAL, Q), EXACT),
    "targets.transform": Row(lambda t: under_elbo(T.transform(t, None).log_joint), ALL_BUT_Q),
    "targets.exact_kl": Row(lambda t: under_elbo(T.exact_kl(t, Q, Q)), ALL_BUT_Q),
    "targets.exact_entropy": Row(lambda t: under_elbo(T.exact_entropy(t, Q)), ALL_BUT_Q),
    "targets.minibatch": Row(
        lambda t: under_elbo(T.minibatch(t, terms, num_data=3)), EXACT | {"unbiased, key fixed"}
    ),
    "targets.adapters.from_logdensity": Row(
        lambda t: under_elbo(T.adapters.from_logdensity(t, PAIR)[0].log_joint),
        EXACT | {"unbiased, key fixed", "minibatch", "minibatch within"},
    ),
    "families.laplace": Row(lambda t: vj.families.laplace(t).init(KEY, PAIR), EXACT),
    "families.standing": Row(lambda t: vj.families.standing(t, {"loc": PAIR}), EXACT),
    "draws.weigh": Row(lambda t: vj.draws.weigh(KEY, t, Q, num_samples=4).log_w, AND_NOISE),
    "draws.expectation": Row(
        lambda t: vj.draws.expectation(KEY, t, Q, lambda z: z, num_samples=4).value, AND_NOISE
    ),
    "fitting.weigh": Row(
        lambda t: vj.fitting.weigh(KEY, FOUND, t, FAMILY, num_samples=4).log_w, AND_NOISE
    ),
    "updates.batch_and_match": Row(one_step(vj.updates.batch_and_match), AND_AUX),
    "updates.natural_gradient": Row(one_step(vj.updates.natural_gradient), ALL_BUT_Q),
    "updates.square_root_natural_gradient": Row(
        one_step(vj.updates.square_root_natural_gradient), ALL_BUT_Q
    ),
    "solvers.pathfinder": Row(
        lambda t: vj.solvers.pathfinder(KEY, t, PAIR, num_samples=4, steps=3).elbo, AND_AUX
    ),
    "solvers.multi_pathfinder": Row(many_paths, AND_AUX),
    "solvers.dadvi": Row(dadvi, AND_NOISE),
    "solvers.linear_response": Row(response, AND_NOISE),
    # Its function may hold an objective of elbo, under which the mean alone counts.
    "solvers.maximize": Row(
        lambda t: vj.solvers.maximize(t, PAIR, steps=3).value, EXACT | {"minibatch within"}
    ),
    "particles.ais": Row(annealed, EXACT),
    "particles.reverse_ais": Row(annealed_back, EXACT),
    "particles.pilot_step_size": Row(pilot, EXACT),
    "particles.tempered_smc": Row(tempered, EXACT),
    "particles.adaptive_tempered_smc": Row(adaptively_tempered, EXACT),
    "particles.dais": Row(under_elbo_of(dais), EXACT),
    "particles.semi_implicit": Row(
        under_elbo_of(semi_implicit(vj.particles.semi_implicit)), WITHOUT_AUX
    ),
    "particles.semi_implicit_upper": Row(
        under_elbo_of(semi_implicit(vj.particles.semi_implicit_upper)), WITHOUT_AUX
    ),
    "gradients.reparam, elbo": Row(under_elbo, set(KINDS)),
    "gradients.reparam, iwae": Row(under(vj.bounds.iwae), AND_NOISE),
    "gradients.dreg, iwae": Row(under(vj.bounds.iwae, vj.gradients.dreg), AND_NOISE),
    "gradients.wake, iwae": Row(under(vj.bounds.iwae, vj.gradients.wake), AND_NOISE),
    "gradients.vimco, elbo": Row(under(vj.bounds.elbo, vj.gradients.vimco), set(KINDS)),
    "gradients.each": Row(each, ALL_BUT_Q),
}


@pytest.mark.parametrize(
    "name",
    but(
        ROWS,
        "particles.reverse_ais",
        "particles.pilot_step_size",
        "particles.tempered_smc",
        "particles.semi_implicit_upper",
        "solvers.multi_pathfinder",
        "solvers.dadvi",
        "solvers.linear_response",
        "updates.square_root_natural_gradient",
        "gradients.each",
    ),
)
def test_a_kind_of_target_is_taken_or_refused_with_a_cure(name):
    row = ROWS[name]
    for kind, target in KINDS.items():
        try:
            jax.eval_shape(lambda target=target: row.call(target))
        except (TypeError, ValueError) as error:
            assert kind not in row.takes, f"{kind} is refused: {error}"
            assert isinstance(error, ValueError), f"{kind}: {error!r}"
            assert CURE.search(str(error)), f"{kind} is refused without a cure: {error}"
            assert "positional argument" not in str(error), f"{kind}: {error}"
        else:
            assert kind in row.takes, f"{kind} is taken"


# Where no draw depends on the kind: what is taken has the outcome of the plain target.
COMPARED = {
    "targets.collapse",
    "targets.minibatch",
    "updates.natural_gradient",
    "updates.batch_and_match",
    "solvers.pathfinder",
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=() if n == "updates.batch_and_match" else pytest.mark.slow)
        for n in sorted(COMPARED)
    ],
)
def test_what_is_taken_is_right(name):
    row = ROWS[name]
    expected = jax.jit(lambda: row.call(plain))()
    for kind in row.takes - {"plain"}:
        found = jax.jit(lambda kind=kind: row.call(KINDS[kind]))()
        jax.tree.map(
            lambda f, e: np.testing.assert_allclose(f, e, rtol=2e-4, atol=1e-5), found, expected
        )


@pytest.mark.parametrize("kind", sorted(AND_NOISE))
def test_weights_are_those_of_the_plain_target(kind):
    draws = vj.draws.weigh(KEY, KINDS[kind], Q, num_samples=4)
    np.testing.assert_allclose(draws.log_p, jax.vmap(plain)(draws.z), rtol=1e-5)


# --- draws that an objective or a rule reports

REPORTED = {
    "reparam(elbo)": lambda t: vj.gradients.reparam(vj.bounds.elbo)(KEY, t, Q, num_samples=50),
    "natural_gradient": lambda t: step_of(t).draws,
}


def step_of(target):
    rule = vj.updates.natural_gradient(target, num_samples=50)
    return rule.step(KEY, rule.init(FULL.init(KEY, PAIR)))[1]


@pytest.mark.parametrize("name", REPORTED)
def test_no_diagnostic_takes_draws_of_an_estimate(name):
    """Their log-weights are those of a minibatch: the table and the verdict would mean nothing."""
    for kind, taken in (
        ("plain", True),
        ("keyed", True),
        ("minibatch", False),
        ("unbiased", False),
    ):
        run = lambda kind=kind: vj.diagnostics.summarize(
            jax.eval_shape(lambda: REPORTED[name](KINDS[kind]))
        )
        if taken:
            assert jax.eval_shape(lambda kind=kind: REPORTED[name](KINDS[kind])) is not None
        else:
            with pytest.raises(ValueError, match="no importance weights.*draws.weigh"):
                run()


# --- no public function that takes a target is left out

NAMES = {"log_joint", "log_likelihood", "log_prior", "rest", "log_site", "logdensity_fn"}
ROOMS = (
    "bounds",
    "diagnostics",
    "draws",
    "families",
    "fitting",
    "particles",
    "sequences",
    "solvers",
    "targets",
)


def takers():
    """Yield the public functions with an argument that is called as a target is."""
    for room in (*ROOMS, "testing", "updates"):
        folder = getattr(vj, room)
        for name in folder.__all__:
            function = getattr(folder, name)
            if inspect.isfunction(function) and NAMES & set(inspect.signature(function).parameters):
                yield f"{room}.{name}"


# Arrays of log-likelihoods, not functions.
# What a declaration says of a target holds for any kind.
# That of `refine` is of several data, [n], and goes to dreg(elbo) as it is.
# Those of a particle or of single entries are functions of more than z.
NOT_A_TARGET = {
    "diagnostics.to_arviz",
    "particles.conditionally_discrete",
    "sequences.fixed_lag_marginals",
    "sequences.hmm",
    "sequences.viterbi",
    "solvers.refine",
    "targets.independent_members",
    "targets.missing",
}


def test_every_function_of_a_target_is_here():
    here = {re.split(",", name)[0] for name in ROWS}
    assert set(takers()) - NOT_A_TARGET <= here


def test_a_target_called_without_its_key_says_so():
    """A function around a keyed target must hand it a key: not Python's own words."""
    for target in (T.keyed(noisy), T.unbiased(noisy)):
        with pytest.raises(ValueError, match="takes a key, .* targets.keyed"):
            under_elbo(lambda z, target=target: target(z))
