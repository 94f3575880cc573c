"""The grid: each core bound under each core estimator for every kind of q is unbiased, or refused with a cure; no cell is untested.

A cell is unbiased if its mean gradient, the model's parameters included, is that of quadrature or enumeration: the whole grid fails
by chance once in a million runs, and a bias of a cell's `detects` is caught with probability .999. What the test of all cells
has seen goes to out/grid.json, of which scripts/grid.py makes docs/grid.md. The wrong estimators in test_unbiased.py are the control.
"""

import json
import re
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj
from tests import cases, oracles, table
from vijax.testing import check_unbiased

pytestmark = pytest.mark.usefixtures("unchecked")
OUT = Path(__file__).parents[2] / "out" / "grid.json"


class Kind(NamedTuple):
    """A kind of q: its case, how many draws, the most keys, and the bias that must be seen (times the estimator's own).

    auto: what `auto` is on this kind, instruction by instruction; "" where it is an estimator of its own.
    grid: fewer points for more draws, k -> (points, volumes); the case's own where None.
    """

    name: str
    case: cases.Case
    draws: int
    keys: int
    detects: float
    auto: str
    grid: Callable[[int], Any] | None = None


def line(k):
    return oracles.interval(-6.5, 7.5, {1: 401, 2: 57, 3: 41}.get(k, 25))


def rate(k):
    log_z = np.linspace(-9.0, 4.0, {1: 401, 2: 90, 3: 50}.get(k, 27))
    return np.exp(log_z), np.exp(log_z) * (log_z[1] - log_z[0])


def mixture(k):
    return oracles.interval(-9.5, 10.5, {1: 401, 2: 101, 3: 51}.get(k, 27))


KINDS = [
    Kind("Gaussian", cases.LINE, 2, 100_000, 0.14, "reparam", line),
    Kind("Gamma", cases.RATE, 2, 50_000, 0.16, "reparam", rate),
    Kind("Bernoulli", cases.COIN, 3, 60_000, 0.025, "vimco"),
    Kind("categorical", cases.DIE, 3, 60_000, 0.025, "vimco"),
    Kind("mixture", cases.MIXTURE, 2, 40_000, 0.1, "vimco", mixture),
    Kind("hierarchy, Gaussian", cases.TOWER, 2, 70_000, 0.1, "reparam"),
    Kind("hierarchy, mixed", cases.CHAIN, 2, 150_000, 0.08, ""),
]
KIND = {kind.name: kind for kind in KINDS}
# The rest of the catalogue is held to the truth on Gaussians, Bernoullis and categoricals in test_unbiased.py.
BOUNDS = [row for row in table.BOUNDS if row.public in ("", "elbo", "iwae", "multi_iwae", "ciwae", "renyi", "cubo")]
LEVEL = 1e-6 / 2 / len(KINDS) / len(table.GRADIENTS)
# Bounds whose gradients are on another scale than the elbo's: their `detects` in units of the kind's own.
SCALE = {"renyi(2)": 1.5}
# What every run tests of the kinds that take a second or more for each bound, most of it XLA's; the rest is `make slow`. Of
# Gammas even these are too many: each cell compiles the rejection sampler and its implicit derivative. test_makes_of_q has one.
ALWAYS = {
    "Gaussian": {"elbo", "iwae", "multi_iwae(2)", "own"},
    "Gamma": set(),
    "Bernoulli": {"elbo", "iwae", "multi_iwae(2)", "own"},
    "categorical": {"elbo", "iwae"},
    "mixture": {"iwae"},
    "hierarchy, Gaussian": {"iwae"},
    "hierarchy, mixed": {"iwae"},
}
CELLS: dict[tuple[str, str, str], dict[str, Any]] = {}  # (kind, estimator, bound) -> what was seen


def refused(kind, estimator):
    """Return whether the promise leaves no choice: an estimator of paths, and draws without them."""
    return estimator.path and not kind.case.path


def cell_value(kind, row, objective, params, key):
    """Return Σ_batch of the objective for one key."""
    log_joint = lambda z: kind.case.log_p(params["theta"], z)
    q = kind.case.build(params["q"])
    return jnp.sum(objective(row.function)(key, log_joint, q, num_samples=num_samples(kind, row)).value)


def num_samples(kind, row):
    return 2 * row.groups if row.groups > 1 else kind.draws


# --- the truth


def same_in_expectation(row, k):
    """Return a bound and a k with the expectation of `row` at k, cheaper to enumerate: a mean of rows is one row's."""
    if row.groups > 1:
        return vj.bounds.iwae, k // row.groups
    log_w = np.random.default_rng(0).normal(size=(k, 64)).astype(np.float32)
    one_by_one = np.mean([row.function(log_w[i : i + 1]) for i in range(k)], 0) if row.name in MEANS else np.inf
    return (row.function, 1) if np.allclose(row.function(log_w), one_by_one, atol=1e-5) else (row.function, k)


MEANS = {"elbo"}


@cache
def truths(name):
    """Return {bound: exact gradient} for one kind of q, with one program for each number of draws."""
    kind, case = KIND[name], KIND[name].case
    plans = {row.name: same_in_expectation(row, num_samples(kind, row)) for row in BOUNDS}
    log_p = lambda params, z: case.log_p(params["theta"], z)
    log_q = lambda params, z: case.log_q(params["q"], z)
    found = {}
    for k in {k for _, k in plans.values()}:
        names = [row for row, plan in plans.items() if plan[1] == k]
        points, volumes = kind.grid(k) if kind.grid else (case.points, case.volumes)
        bounds = [plans[row][0] for row in names]
        _, slopes = oracles.values_and_slopes(bounds, log_p, log_q, points, volumes, k, case.params)
        found |= {row: jax.tree.map(lambda leaf, i=i: leaf[i], slopes) for i, row in enumerate(names)}
    return found


# --- the cells


def same(kind, estimator):
    """Return the estimator that auto is on this kind, if it is one."""
    return table.GRADIENT.get(kind.auto) if estimator.name == "auto" else None


def parts():
    """Yield every cell once: by kind, estimator and a list of bounds, in a program of their own."""
    for kind in KINDS:
        for estimator in table.GRADIENTS:
            cheap = refused(kind, estimator) or same(kind, estimator)
            always = [row for row in BOUNDS if cheap or row.name in ALWAYS.get(kind.name, {row.name})]
            rest = [row for row in BOUNDS if row not in always]
            name = f"{kind.name}-{estimator.name}"
            if always:
                yield pytest.param(kind, estimator, always, id=name)
            if rest:
                yield pytest.param(kind, estimator, rest, id=f"{name}-rest", marks=pytest.mark.slow)


@pytest.mark.parametrize(("kind", "estimator", "rows"), list(parts()))
def test_every_bound(kind, estimator, rows, key):
    with jax.numpy_rank_promotion("allow" if kind.case.loose else "raise"):
        if refused(kind, estimator):
            refusals(kind, estimator, rows, key)
        elif other := same(kind, estimator):
            the_same(kind, estimator, other, rows, key)
        else:
            unbiased(kind, estimator, rows, key)


def refusals(kind, estimator, rows, key):
    for row in rows:
        with pytest.raises(ValueError, match=r"(?i)use (gradients|bounds)\.\w+") as error:
            jax.eval_shape(partial(cell_value, kind, row, estimator.objective), kind.case.params, key)
        CELLS[kind.name, estimator.name, row.name] = {"verdict": "refused", "why": str(error.value)}


def the_same(kind, estimator, other, rows, key):
    """Here auto is another estimator, which has cells of its own: the same program but for its names."""
    for row in rows:
        programs = [
            re.sub(r"0x[0-9a-f]+", "", str(jax.make_jaxpr(jax.grad(partial(cell_value, kind, row, make)))(*args)))
            for make in (estimator.objective, other.objective)
            for args in [(kind.case.params, key)]
        ]
        assert programs[0] == programs[1], f"auto({row.name}) is not {other.name}({row.name})"
        CELLS[kind.name, estimator.name, row.name] = {"verdict": "unbiased", "same as": other.name}


def unbiased(kind, estimator, rows, key):
    """One program for all bounds, which tells them apart; it finds out itself how many keys it needs."""
    slope = lambda row, key: jax.grad(partial(cell_value, kind, row, estimator.objective))(kind.case.params, key)
    detects = {row.name: kind.detects * estimator.detects * SCALE.get(row.name, 1.0) for row in rows}
    report = check_unbiased(
        key,
        lambda key: {row.name: slope(row, key) for row in rows},
        {row.name: truths(kind.name)[row.name] for row in rows},
        detects={name: jax.tree.map(lambda _, d=d: d, kind.case.params) for name, d in detects.items()},
        level=LEVEL,
        max_keys=kind.keys,
    )
    for row in rows:
        seen = {"verdict": "unbiased", "detects": detects[row.name], "keys": report.num_keys}
        CELLS[kind.name, estimator.name, row.name] = seen


def test_no_cell_is_untested():
    """The parts hold every cell, and those asked for, before this test, were seen; they are kept for the documentation."""
    cell = lambda row: (row["kind"], row["estimator"], row["bound"])
    grid = [(kind.name, e.name, row.name) for kind in KINDS for e in table.GRADIENTS for row in BOUNDS]
    planned = [[(kind.name, e.name, row.name) for row in rows] for kind, e, rows in (part.values for part in parts())]
    assert sorted(sum(planned, [])) == sorted(grid)
    assert all(CELLS.keys() >= set(part) or not CELLS.keys() & set(part) for part in planned)
    before = {cell(row): row for row in json.loads(OUT.read_text())} if OUT.exists() else {}
    now = {name: dict(zip(("kind", "estimator", "bound"), name, strict=True), **seen) for name, seen in CELLS.items()}
    rows = [(before | now)[name] for name in grid if name in before | now]
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(rows, indent=1) + "\n")
