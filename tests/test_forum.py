"""The forum's models of the benchmark `verdict`: what was integrated out is exact, and what is counted is what is said."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import vijax as vj
from benchmarks import _after, _forum, _forum_groups, _nuts, _report, verdict
from benchmarks.verdict import Judged

pytestmark = pytest.mark.usefixtures("loose_ranks")  # the models are written as users write them


def test_half_cauchy_of_a_normal():
    """The density of λ(u) for a standard normal u is half-Cauchy, in both tails too."""
    u = jnp.array([-8.0, -3.0, -0.5, 0.3, 2.0, 8.0])
    log_lam, slope = jax.jvp(_after.log_half_cauchy, (u,), (jnp.ones_like(u),))
    density = norm.logpdf(u) - jnp.log(slope) - log_lam
    np.testing.assert_allclose(density, _forum.half_cauchy(jnp.exp(log_lam)), rtol=2e-5)
    assert np.abs(norm.logpdf(u) - _forum.half_cauchy(jnp.exp(log_lam))).max() > 0.1  # the control


def test_half_normal_of_a_normal():
    """The density of x(u) for a standard normal u is half-normal."""
    u = jnp.array([-3.0, -0.5, 0.3, 2.0, 8.0])
    x, slope = jax.jvp(lambda u: _after.half_normal(u, 2.0), (u,), (jnp.ones_like(u),))
    density = norm.logpdf(u) - jnp.log(slope)
    np.testing.assert_allclose(density, _forum.half_normal(x, 2.0), rtol=1e-4)
    assert np.abs(norm.logpdf(u) - _forum.half_normal(x, 2.0)).max() > 0.1  # the control


@pytest.mark.slow
def test_item_response_by_flow_is_the_same_model():
    """log p of the latents as images of normals = log p of the latents + log |their Jacobian|."""
    key, change = jax.random.key(0), _after.item_response_by_flow()
    names = change.question.start
    w = {n: 0.5 * jax.random.normal(key, jnp.shape(v)) for n, v in names.items()}
    z = {n: v for n, v in change.question.report(w | {"ability": None}).items() if n != "ability"}
    slopes = [jax.grad(_after.half_normal)(w["u_sd"], 2.0)]
    slopes += [jax.grad(_after.half_normal)(w["u_spread"], 1.0)]
    jacobian = jnp.log(jnp.array(slopes)).sum() + 10 * jnp.log(z["sd"] * z["spread"])
    plain = _after.item_response().question.log_joint(z) + jacobian
    np.testing.assert_allclose(change.question.log_joint(w), plain, rtol=1e-5)


@pytest.mark.slow
def test_slopes_integrated_out():
    """log p of what is left = log p(z, b) - log p(b | z), at a b of no kind in particular."""
    whole, change = _forum_groups.slopes(None), _after.slopes()
    z = _forum_groups.slopes_start() | {"tau": jnp.array([0.7, 0.4, 1.2]), "mean": jnp.ones(3)}
    b = {"effects": jax.random.normal(jax.random.key(0), (20, 3))}
    left = jax.jit(change.question.log_joint)(z)
    exact = whole.log_joint(z | b) - jnp.sum(change.drawn(z).log_prob(b))
    np.testing.assert_allclose(left, exact, rtol=2e-6)
    assert abs(left - whole.log_joint(z | b)) > 1.0


@pytest.mark.slow
def test_coefficients_integrated_out():
    """The horseshoe's two forms have one density, once scales are counted in the same units."""
    whole, change = _forum.horseshoe(None), _after.horseshoe()
    u = 0.5 * jax.random.normal(jax.random.key(0), (_forum.COLUMNS,))
    z = {"sigma": jnp.array(0.8), "c2": jnp.array(0.6), "u_tau": jnp.array(-0.4), "u_lam": u}
    b = {"effect": jax.random.normal(jax.random.key(1), (_forum.COLUMNS,))}

    def log_lam(u):
        return jax.jvp(_after.log_half_cauchy, (u,), (jnp.ones_like(u),))

    (log_tau, slope_tau), (log_lam, slope_lam) = log_lam(z["u_tau"]), log_lam(u)
    tau0 = _forum.horseshoe_tau0(z["sigma"])
    full = {"sigma": z["sigma"], "c2": z["c2"], "tau": tau0 * jnp.exp(log_tau)}
    full |= {"lam": jnp.exp(log_lam)}
    spread = _forum.slab(full)
    full |= {"beta": spread * b["effect"]}
    jacobian = jnp.log(tau0) + log_tau + jnp.log(slope_tau) + jnp.sum(log_lam + jnp.log(slope_lam))
    exact = whole.log_joint(full) + jacobian + jnp.sum(jnp.log(spread))
    left = jax.jit(change.question.log_joint)(z)
    np.testing.assert_allclose(left, exact - change.drawn(z).log_prob(b), rtol=1e-5)
    reported = change.question.report(z | b)
    for name, value in whole.report(full).items():
        np.testing.assert_allclose(reported[name], value, rtol=2e-5, atol=1e-6)


@pytest.mark.slow
def test_abilities_integrated_out():
    """Nine nodes about the mode beside a sum over 401 points; Laplace's single node is off by more."""
    z = _forum.item_start() | {"log_slope": jnp.linspace(-0.8, 0.8, 10), "mean": jnp.array(0.5)}
    grid = jnp.linspace(-8, 8, 401)
    terms = jax.vmap(lambda x: _forum.item_answers(z, jnp.full(50, x)))(grid)
    exact = jax.nn.logsumexp(terms, 0) + math.log(grid[1] - grid[0])
    left = _after.item_response().question.log_joint(z) - _forum.item_prior(z)
    np.testing.assert_allclose(left, jnp.sum(exact), atol=2e-3)
    one_node, _ = vj.targets.collapse_laplace(
        _forum.item_answers, jnp.zeros(50), precision=vj.gaussians.diagonal
    )
    assert abs(jnp.sum(one_node(z)) - jnp.sum(exact)) > 0.02


def test_labels_under_every_order():
    draws = {"at": np.arange(6.0).reshape(2, 3), "sd": np.arange(12.0).reshape(2, 2, 3)}
    found = _nuts.relabelled(draws)
    assert {name: leaf.shape for name, leaf in found.items()} == {"at": (12, 3), "sd": (12, 2, 3)}
    np.testing.assert_allclose(found["at"].mean(0), np.full(3, 2.5))
    own = {
        tuple(np.concatenate([a[None], sd]).ravel()) for a, sd in zip(*found.values(), strict=True)
    }
    assert len(own) == 12  # leaves keep together: as many draws as orders, none twice
    ordered = jax.vmap(_forum_groups.sorted_labels)(jax.tree.map(jnp.asarray, found))
    np.testing.assert_array_equal(ordered["sd"], np.tile(draws["sd"], (6, 1, 1)))


def question(shift):
    log_joint = lambda z: -0.5 * jnp.sum((z["x"] - shift) ** 2)
    return _forum.Question(log_joint, {"x": None}, {"x": jnp.zeros(2)})


def reference(rhat=1.0, ess=1000.0):
    return _nuts.Reference({"x": np.random.default_rng(0).normal(size=(400, 2))}, rhat, ess, 0, 1.0)


def test_a_reference_is_kept_for_its_own_model(monkeypatch, tmp_path):
    """It is read again; another model of the same name is sampled anew, and one that is too short once longer."""
    asked = []

    def sample(question, draws=_nuts.DRAWS):
        asked.append(draws)
        return reference(ess=1000.0 if draws > _nuts.DRAWS or len(asked) < 3 else 100.0)

    monkeypatch.setattr(_nuts, "FOLDER", tmp_path)
    monkeypatch.setattr(_nuts, "sample", sample)
    made, again = (_nuts.reference("a", question(0.0)) for _ in range(2))
    np.testing.assert_array_equal(made.draws["x"], again.draws["x"])
    assert made[1:] == again[1:]
    assert asked == [_nuts.DRAWS]
    _nuts.reference("a", question(0.5))
    assert asked == [_nuts.DRAWS] * 2
    assert _nuts.reference("b", question(0.5)).sound
    assert asked == [*[_nuts.DRAWS] * 3, 4 * _nuts.DRAWS]


@pytest.mark.parametrize(
    ("rhat", "ess", "sound"), [(1.004, 900, True), (1.02, 900, False), (1.0, 99, False)]
)
def test_a_poor_reference_judges_nothing(monkeypatch, rhat, ess, sound):
    monkeypatch.setattr(_nuts, "reference", lambda name, question: reference(rhat, ess))
    monkeypatch.setattr(_forum_groups, "MODELS", {"a": lambda root: question(0.0)})
    asked = []
    rows = list(verdict.forum(None, False, lambda case: asked.append(case.family) or iter(())))
    assert asked == (list(verdict.OF_FORUM) if sound else [])
    assert [row["value"] for row in rows] == [rhat, ess]
    assert ("not judged" in rows[0]["note"]) is not sound


def case(load):
    return verdict.Case("a", verdict.FULL_RANK, verdict.FAMILIES[verdict.FULL_RANK], load, 0.5)


def test_a_case_that_is_known_is_not_run_again():
    def never():
        raise RuntimeError("it was run again")

    left = {"name": "a", "metric": case(never).metric, "alone": [[0, 0.1, 0.1]], "level": 1}
    left |= {"q": 0.5, "corrected": 0.1}
    seen = []
    assert list(verdict.judged_rows((left,), seen, case(never))) == [left]
    assert seen == [([Judged(0, 0.1, 0.1)], Judged(1, 0.5, 0.1))]
    other = left | {"name": "b"}
    (row,) = verdict.judged_rows((other,), seen, case(never))
    assert row["met"] is False
    assert "it was run again" in row["note"]
    assert len(seen) == 1


def test_an_interrupted_run_keeps_what_is_known(tmp_path):
    """What is known and has not had its turn, what is new, and no counts of an earlier run."""
    path = tmp_path / "rows.json"
    fits = [_report.row(name, "verdict", 1.0, "", alone=[]) for name in "abc"]
    _report.write([*fits, _report.row("misses", "all", 3.0, "")], path)
    earlier = _report.read(path, verdict.known)
    assert list(earlier) == fits

    def rows():
        yield fits[0]
        yield _report.row("new", "verdict", 0.0, "", alone=[])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _report.follow(rows(), _report.Table(), path, earlier)
    assert [r["name"] for r in _report.read(path, lambda r: True)] == ["a", "new", "b", "c"]
    assert _report.read(path, None) == ()


def test_counts():
    """A miss is a wrong fit that is believed, an alarm a right one that is not; bars where restarts were seen."""
    right, cured, flagged = Judged(0, 0.1, 0.1), Judged(1, 0.9, 0.1), Judged(2, 0.9, 0.9)
    wrong, weights, told_off = Judged(0, 0.9, 0.9), Judged(1, 0.9, 0.9), Judged(2, 0.1, 0.1)
    value = lambda judged: [r["value"] for r in verdict.counts("", judged, strict=True)]
    assert value([right, cured, flagged]) == [0, 0, 0, 0]
    assert value([wrong, weights, told_off]) == [2, 1, 1, 1]
    met = lambda judged: [r["met"] for r in verdict.counts("", judged, strict=True) if "met" in r]
    assert met([right] * 10 + [told_off]) == [True, True, True]
    assert met([right] * 5 + [told_off, wrong]) == [False, False, False]


@pytest.mark.slow
def test_a_gaussian_is_believed_and_a_wrong_family_is_not():
    """The whole way of a case, by functions that users call: 5 correlated latents, of which mean-field knows nothing."""
    cov = 0.9 + 0.1 * np.eye(5)
    precision = jnp.asarray(np.linalg.inv(cov), float)
    log_joint = lambda z: -0.5 * z["x"] @ precision @ z["x"]
    draws = np.random.default_rng(0).multivariate_normal(np.zeros(5), cov, 4000)
    found = _nuts.Reference({"x": draws}, 1.0, 4000.0, 0, 1.0)
    asked = _forum.Question(log_joint, {"x": None}, {"x": jnp.zeros(5)})
    judged = {c.family: verdict.measure(c)[1] for c in verdict.forum_cases("a", asked, found)}
    assert judged[verdict.FULL_RANK].level == 0
    assert judged[verdict.FULL_RANK].q < 0.1
    assert judged[verdict.MEAN_FIELD].level == 2
    assert judged[verdict.MEAN_FIELD].q > 0.5
