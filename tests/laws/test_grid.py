"""The grid: every bound under every estimator for every kind of q is unbiased, biased by design, or refused; no cell is untested.

The mean gradient of the general estimators, the model's parameters included, is a sum over all noise: every state of a coin, a few
nodes for each Gaussian (tests/enumeration.py). It is the derivative of the same sum written plainly, to rounding where noise
is discrete, else to the error of the nodes; no luck is in it, and the wrong estimators at the end are off by far more. The
special estimators draw noise in ways of their own: their cells are tests of many keys, of which one fails by chance in 10^8.
What was seen goes to out/grid.json, of which scripts/grid.py makes docs/grid.md.
"""

import json
import re
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import gamma, norm

import vijax as vj
from tests import cases, oracles, table
from tests import enumeration as enum
from tests import problems as shown
from vijax.testing import check_unbiased
from vijax.types import closed_forms

pytestmark = pytest.mark.usefixtures("unchecked")
OUT = Path(__file__).parents[2] / "out" / "grid.json"

# --- kinds of q


class Kind(NamedTuple):
    """A kind of q: its case, and the same with noise that is enumerated: enumerated(parameters, n), of leaves of sizes(n).

    nodes: n for each number of draws. within: how near iwae's mean must be, relative to the truth's largest number or 1, to
    which n is held. auto: what `auto` is on this kind, instruction by instruction; "" where it is an estimator of its own.
    prior: theta -> (prior, push, pull), of which the model is made, for gdreg. showing: q(parameters) that shows
    its parameters, as the special estimators want. moves: the support, or the values of a discrete q, depend on its
    parameters, so that no score has mean zero.
    """

    name: str
    case: cases.Case
    enumerated: Callable[[Any, int], Any]
    sizes: Callable[[int], tuple[int, ...]]
    nodes: dict[int, int]
    within: dict[int, float]
    auto: str
    prior: Callable[[Any], Any] | None = None
    showing: Callable[[Any], Any] | None = None
    moves: bool = False


class Codebook:
    """A coin that says which of two numbers is drawn; both are parameters."""

    def __init__(self, q):
        self.q = q

    def sample_and_log_prob(self, *, seed, sample_shape=()):
        coin = jax.random.bernoulli(seed, jax.nn.sigmoid(self.q["logit"]), sample_shape)
        z = self.q["values"][coin.astype(int)]
        return z, self.log_prob(z)

    def log_prob(self, z):
        second = jnp.abs(z - self.q["values"][1]) < jnp.abs(z - self.q["values"][0])
        return jax.nn.log_sigmoid(jnp.where(second, 1.0, -1.0) * self.q["logit"])


def no_density(*_):
    raise NotImplementedError("the enumerated q gives the truth")


UNIFORM = cases.LINE._replace(
    name="uniform",
    params={
        "q": {"low": np.float32([-0.7, 0.2]), "log_width": np.float32([0.4, 0.1])},
        "theta": np.float32(-0.5),
    },
    build=lambda q: distrax.Uniform(q["low"], q["low"] + jnp.exp(q["log_width"])),
    log_q=no_density,
    loose=True,
)
CODEBOOK = cases.LINE._replace(
    name="codebook",
    params={
        "q": {"logit": np.float32(0.4), "values": np.float32([-0.5, 2.2])},
        "theta": np.float32(-0.5),
    },
    build=Codebook,
    log_p=lambda theta, z: norm.logpdf(z, theta, 1.0) + norm.logpdf(1.5, z, 1.0),
    log_q=no_density,
    path=False,
)


def mixture(q, n):
    return enum.Fixed(partial(cases.MIXTURE.log_q, q), *oracles.interval(-6.5, 7.5, n))


def tower(q, n):
    later = lambda z: enum.Normal(q["keep"] * z["a"], q["log_noise"], n)
    return vj.Joint({"a": enum.Normal(q["loc"], q["log_scale"], n), "c": later})


def chain(q, n):
    return vj.Joint(
        {
            "a": enum.Normal(q["loc"], q["log_scale"], n),
            "b": lambda z: enum.Flip(q["logit"] + q["slope"] * z["a"]),
            "c": lambda z: enum.Normal(q["keep"] * z["a"] + q["jump"] * z["b"], q["log_noise"], n),
        }
    )


class Density(NamedTuple):
    log_prob: Callable[[Any], Any]
    fixed_support = True


def line_prior(theta):
    return Density(lambda z: norm.logpdf(z, theta, 1.0)), lambda e: theta + e, lambda z: z - theta


def rate_prior(theta):
    scale = jnp.exp(-theta)
    return (
        Density(lambda z: gamma.logpdf(z, 2.0, scale=scale)),
        lambda e: e * scale,
        lambda z: z / scale,
    )


def tower_prior(theta):
    prior = Density(lambda z: norm.logpdf(z["a"], theta, 1.0) + norm.logpdf(z["c"], z["a"], 1.0))
    pull = lambda z: {"a": z["a"] - theta, "c": z["c"] - z["a"]}
    return prior, lambda e: {"a": theta + e["a"], "c": theta + e["a"] + e["c"]}, pull


FINE = {2: 90, 3: 45, 4: 22, 5: 14}
ROUNDING = dict.fromkeys((2, 3, 4, 5), 1e-13)
alone = lambda n: (n,)
KINDS = [
    Kind(
        "Gaussian",
        cases.LINE,
        lambda q, n: enum.Normal(q["loc"], q["log_scale"], n),
        alone,
        FINE,
        {2: 2e-3, 3: 1e-3, 4: 1e-2, 5: 2e-2},
        "reparam",
        line_prior,
        lambda q: shown.Normal(q["loc"], jnp.exp(q["log_scale"])),
    ),
    Kind(
        "Gamma",
        cases.RATE,
        lambda q, n: enum.Gamma(q["log_a"], q["log_b"], n),
        alone,
        FINE,
        {2: 1e-4, 3: 1e-4, 4: 1e-3, 5: 5e-3},
        "reparam",
        rate_prior,
    ),
    Kind(
        "Bernoulli",
        cases.COIN,
        lambda q, _: enum.Flip(q["logit"]),
        lambda _: (2,),
        FINE,
        ROUNDING,
        "vimco",
        None,
        lambda q: distrax.Bernoulli(q["logit"]),
    ),
    Kind(
        "categorical",
        cases.DIE,
        lambda q, _: enum.Throw(q),
        lambda _: (3,),
        FINE,
        ROUNDING,
        "vimco",
        None,
        shown.Choice,
    ),
    Kind(
        "mixture",
        cases.MIXTURE,
        mixture,
        alone,
        {2: 90, 3: 45, 4: 22, 5: 16},
        dict.fromkeys((2, 3, 4, 5), 5e-4),
        "vimco",
    ),
    Kind(
        "hierarchy, Gaussian",
        cases.TOWER,
        tower,
        lambda n: (n, n),
        {2: 16, 3: 9, 4: 6, 5: 5},
        {2: 5e-3, 3: 5e-3, 4: 5e-2, 5: 5e-2},
        "reparam",
        tower_prior,
    ),
    Kind(
        "hierarchy, mixed",
        cases.CHAIN,
        chain,
        lambda n: (n, 2, n),
        {2: 12, 3: 7, 4: 5, 5: 4},
        {2: 2e-2, 3: 2e-2, 4: 5e-2, 5: 1e-1},
        "",
    ),
    Kind(
        "moving support",
        UNIFORM,
        lambda q, n: enum.Uniform(q["low"], q["log_width"], n),
        alone,
        {2: 24, 3: 16, 4: 12, 5: 9},
        dict.fromkeys((2, 3, 4, 5), 1e-6),
        "reparam",
        line_prior,
        moves=True,
    ),
    Kind("moving atoms", CODEBOOK, no_density, alone, FINE, ROUNDING, "", moves=True),
]
KIND = {kind.name: kind for kind in KINDS}

# --- estimators: (bound, kind, theta) -> an objective


def general(make):
    return lambda bound, kind, theta: make(bound)


def gdreg(bound, kind, theta):
    prior, push, pull = (
        kind.prior(theta)
        if kind.prior
        else (Density(lambda z: 0.0 * theta), lambda e: e, lambda z: z)
    )
    return vj.gradients.gdreg(bound, prior=prior, push=push, pull=pull)


def stateful(make, parameters):
    """Return the objective of an estimator that takes a state and gives one back."""

    def objective(bound):
        return lambda *args, num_samples: make(bound)(*args, parameters, num_samples=num_samples)[0]

    return general(objective)


def control(parameters, z, relaxed):
    return parameters * relaxed(0.7)


G = vj.gradients
GENERAL = {row.name: general(row.objective) for row in table.GRADIENTS}
GENERAL |= {"split": general(lambda bound: G.split(model=bound, q=bound)), "gdreg": gdreg}
SPECIAL = {
    "local_expectation": general(G.local_expectation),
    "top_states": general(partial(G.top_states, states=1)),
    "arm": general(G.arm),
    "disarm": general(G.disarm),
    "rebar": stateful(G.rebar, {"log_temperature": jnp.float32(-0.5), "scale": jnp.float32(1.0)}),
    "relax": stateful(partial(G.relax, control=control), jnp.float32(0.8)),
    "measure_valued": general(G.measure_valued),
    "gumbel_softmax": general(partial(G.gumbel_softmax, temperature=0.5)),
    "straight_through": general(partial(G.straight_through, temperature=0.5)),
    "gumbel_rao": general(partial(G.gumbel_rao, temperature=0.5, inner=3)),
}
ESTIMATORS = GENERAL | SPECIAL
PATH = {"reparam", "dreg", "split", "gdreg"}
LINEAR = {"arm", "disarm", "rebar", "relax", "top_states"}  # for bounds linear in log_w


def verdict(kind, name, row):
    """Say what the cell must be, by the promise and each estimator's own first lines."""
    if name in GENERAL:
        fits = kind.case.path or name not in PATH
        fits &= row.smooth or name not in PATH - {"reparam"}
        fits &= not kind.moves or (kind.case.path and name in {"reparam", "auto"})
        fits &= (
            row.loses or name not in {"vimco", "auto"} or (name, kind.auto) == ("auto", "reparam")
        )
        return "unbiased" if fits else "refused"
    at_home = (
        kind.name == "Gaussian"
        if name == "measure_valued"
        else kind.name in ("Bernoulli", "categorical")
    )
    if not at_home or (name in LINEAR and not closed_forms(row.function).linear):
        return "refused"
    # A categorical of integers has no points between its states; that of one-hot draws is tests/problems.py's HOT.
    if kind.name == "categorical" and name in table.BIASED | {"rebar", "relax"}:
        return "refused"
    return "biased" if name in table.BIASED else "unbiased"


def num_samples(row):
    """Return enough draws to lose one; of those that come in powers of two, so many that one less is none."""
    return row.draws(4 if row.doubles else row.least + 1)


# --- the cells

CELLS: dict[tuple[str, str, str], dict[str, Any]] = {}  # (kind, estimator, bound) -> what was seen
# What every run tests, each cell a second or so, most of it XLA's; the rest is `make slow`.
DEAR = {
    "Gaussian": {"reparam", "dreg", "split", "measure_valued"},
    "mixture": {"vimco"},
    "Gamma": {"dreg"},
    "hierarchy, Gaussian": {"gdreg"},
    "hierarchy, mixed": {"auto"},
    "moving support": {"reparam"},
    "moving atoms": {"score", "auto"},
    "categorical": {"vimco", "disarm"},
}
# Of those, the cells that take 3.5 seconds or more: slow as well.
SLOW = {
    "Gaussian-measure_valued",
    "Gamma-dreg",
    "Bernoulli-local_expectation",
    "Bernoulli-top_states",
    "hierarchy, Gaussian-gdreg",
    "Bernoulli-rebar",
    "Bernoulli-relax",
    "hierarchy, mixed-auto",
}


def parts():
    """Yield every cell once: by kind and estimator, with a list of bounds."""
    for kind in KINDS:
        for name in ESTIMATORS:
            special = (
                {"elbo"} if kind.name == "Bernoulli" or name in DEAR.get(kind.name, ()) else set()
            )
            few = (
                special
                if name in SPECIAL
                else {"iwae"}
                if name in DEAR.get(kind.name, ESTIMATORS)
                else set()
            )
            part = f"{kind.name}-{name}"
            often = [row for row in table.BOUNDS if row.name in few]
            rest = [row for row in table.BOUNDS if row.name not in few]
            if often:
                yield pytest.param(
                    kind, name, often, id=part, marks=pytest.mark.slow if part in SLOW else ()
                )
            if rest:
                yield pytest.param(kind, name, rest, id=f"{part}-rest", marks=pytest.mark.slow)


@pytest.mark.parametrize(("kind", "name", "rows"), list(parts()))
def test_every_bound(kind, name, rows, key):
    for row in rows:
        with jax.numpy_rank_promotion("allow" if kind.case.loose or name in SPECIAL else "raise"):
            expected = verdict(kind, name, row)
            if expected == "refused":
                seen = {"why": refusal(kind, name, row, key)}
            elif expected == "biased":
                seen = biased(kind, name, row, key)
            elif name == "auto" and kind.auto:
                seen = the_same(kind, name, kind.auto, row, key)
            else:
                seen = (
                    by_keys(kind, name, row, key)
                    if name in SPECIAL
                    else by_enumeration(kind, name, row)
                )
            CELLS[kind.name, name, row.name] = {"verdict": expected, **seen}


def value(kind, name, row, params, key):
    """Return Σ_batch of the objective for one key, of real draws."""
    log_joint = lambda z: kind.case.log_p(params["theta"], z)
    build = kind.showing if name in SPECIAL and kind.showing else kind.case.build
    objective = ESTIMATORS[name](row.function, kind, params["theta"])
    return jnp.sum(
        objective(key, log_joint, build(params["q"]), num_samples=num_samples(row)).value
    )


def refusal(kind, name, row, key):
    """Return the words of the refusal, which must name a cure."""
    with pytest.raises(
        (ValueError, TypeError), match=r"(?i)use (gradients|bounds|one with)\b"
    ) as error:
        jax.eval_shape(partial(value, kind, name, row), kind.case.params, key)
    return str(error.value)


def biased(kind, name, row, key):
    """What says so itself in its first line, and works; how far off it is, tests/gradients/test_relaxed.py tells."""
    assert "biased" in getattr(G, name).__doc__.partition("\n\n")[0]
    found = jax.jit(jax.grad(partial(value, kind, name, row)))(kind.case.params, key)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))
    return {}


def the_same(kind, name, other, row, key):
    """Here auto is another estimator, which has cells of its own: the same program but for its names."""
    programs = [
        re.sub(
            r"0x[0-9a-f]+",
            "",
            str(jax.make_jaxpr(jax.grad(partial(value, kind, who, row)))(kind.case.params, key)),
        )
        for who in (name, other)
    ]
    assert programs[0] == programs[1], f"{name}({row.name}) is not {other}({row.name})"
    return {"same as": other}


def double(tree):
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), tree)


@cache
def enumerated(name, k, n):
    kind = KIND[name]
    return enum.Problem(
        double(kind.case.params), lambda q: kind.enumerated(q, n), kind.case.log_p, kind.sizes(n)
    )


@cache
def truth(name, row):
    """Return the problem of a cell, and its exact gradient."""
    kind, k = KIND[name], num_samples(row)
    found = enumerated(name, k, kind.nodes[k] if symmetric(row) else kind.nodes[k] * 5 // 6)
    return found, jax.jit(partial(found.truth, row.function, k, symmetric=symmetric(row)))()


def symmetric(row):
    """Whether all draws are alike to the bound, so that sorted tuples do."""
    return row.symmetric and row.groups == 1


def distance(kind, row, make):
    """Return how far the mean gradient of make(bound, kind, theta) is, relative to the truth's largest number or 1."""
    with jax.enable_x64(True):
        found, expected = truth(kind.name, row)
        mean = jax.jit(
            lambda: found.mean(
                partial(make, row.function, kind), num_samples(row), symmetric=symmetric(row)
            )
        )()
        off, size = (
            max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(tree))
            for tree in (jax.tree.map(jnp.subtract, mean, expected), expected)
        )
    return off / max(size, 1.0)


def noise(kind, row):
    """Return how much more than iwae's this bound's gradient varies, and with it the error of nodes: MLMC divides by
    the probability of its level.
    """
    return row.scale[kind.name == "hierarchy, mixed"]


def by_enumeration(kind, name, row):
    off, within = (
        distance(kind, row, ESTIMATORS[name]),
        kind.within[num_samples(row)] * noise(kind, row),
    )
    assert off <= within, (
        f"{name}({row.name}) on {kind.name} is biased by {off:.2g}, more than {within:.2g}"
    )
    return {"within": max(off, 1e-13)}


def by_keys(kind, name, row, key):
    """Many keys; a bias of a fortieth is caught with probability .999, of states, and of an eighth on a line."""
    with jax.enable_x64(True):
        expected = jax.tree.map(np.asarray, truth(kind.name, row)[1])
    detects = {"Gaussian": 0.12 * row.scale[0]}.get(kind.name, 0.025 * row.scale[1])
    slope = lambda key: jax.grad(partial(value, kind, name, row))(kind.case.params, key)
    report = check_unbiased(key, slope, expected, detects=detects, level=1e-8, max_keys=1_000_000)
    return {"detects": detects, "keys": report.num_keys}


GRID = [
    (kind.name, name, row.name) for kind in KINDS for name in ESTIMATORS for row in table.BOUNDS
]


def test_no_cell_is_untested():
    """The parts hold every cell, and of those asked for, before this test, all were seen."""
    planned = [
        [(kind.name, name, row.name) for row in rows]
        for kind, name, rows in (p.values for p in parts())
    ]
    assert sorted(sum(planned, [])) == sorted(GRID)
    assert all(CELLS.keys() >= set(part) or not CELLS.keys() & set(part) for part in planned)


@pytest.fixture(autouse=True, scope="module")
def kept():
    """Keep what was seen for the documentation, beside what other runs saw."""
    yield
    cell = lambda row: (row["kind"], row["estimator"], row["bound"])
    before = {cell(row): row for row in json.loads(OUT.read_text())} if OUT.exists() else {}
    now = {
        name: dict(zip(("kind", "estimator", "bound"), name, strict=True), **seen)
        for name, seen in CELLS.items()
    }
    rows = [(before | now)[name] for name in GRID if name in before | now]
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(rows, indent=1) + "\n")


# --- negative controls: what is wrong in the literature and in the wild is off by more than the nodes are


def draws(key, log_joint, q, num_samples):
    z, log_q = jax.vmap(lambda key: q.sample_and_log_prob(seed=key))(
        jax.random.split(key, num_samples)
    )
    return z, jax.vmap(log_joint)(z), log_q


def sticking_the_landing(bound, kind, theta):
    def objective(key, log_joint, q, *, num_samples):
        z, log_p, _ = draws(key, log_joint, q, num_samples)
        still = enum.Normal(*jax.lax.stop_gradient((q.loc, q.log_scale)), len(q.nodes))
        return vj.types.Estimate(bound(log_p - jax.vmap(still.log_prob)(z)), None)

    return objective


def squared_weights_for_the_model(bound, kind, theta):
    """TFP's DReG: the loss is gated, and with it the model's parameters."""

    def objective(key, log_joint, q, *, num_samples):
        z, log_p, _ = draws(key, log_joint, q, num_samples)
        still = enum.Normal(*jax.lax.stop_gradient((q.loc, q.log_scale)), len(q.nodes))
        log_w = log_p - jax.vmap(still.log_prob)(z)
        return vj.types.Estimate(
            jnp.sum(jax.lax.stop_gradient(jax.nn.softmax(log_w, 0) ** 2) * log_w, 0), None
        )

    return objective


def score_without_slope(bound, kind, theta):
    def objective(key, log_joint, q, *, num_samples):
        z = jax.lax.stop_gradient(draws(key, log_joint, q, num_samples)[0])
        log_q = jax.vmap(q.log_prob)(z)
        judged = bound(jax.vmap(log_joint)(z) - jax.lax.stop_gradient(log_q))
        return vj.types.Estimate(judged + jax.lax.stop_gradient(judged) * log_q.sum(0), None)

    return objective


def path_through_a_coin(bound, kind, theta):
    """What distrax gives in silence: nothing for q's parameters."""

    def objective(key, log_joint, q, *, num_samples):
        _, log_p, log_q = draws(key, log_joint, q, num_samples)
        return vj.types.Estimate(bound(log_p - log_q), None)

    return objective


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        (sticking_the_landing, "Gaussian"),
        (squared_weights_for_the_model, "Gaussian"),
        (score_without_slope, "Gaussian"),
        (score_without_slope, "Bernoulli"),
        (score_without_slope, "hierarchy, mixed"),
        (path_through_a_coin, "Bernoulli"),
    ],
)
def test_wrong_estimators_are_far_off(wrong, kind):
    row = table.BOUND["iwae"]
    assert distance(KIND[kind], row, wrong) > 10 * KIND[kind].within[num_samples(row)]
