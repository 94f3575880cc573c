"""Whole fits: the same bits however they are cut, known optima, reasons to stop, and where nan came from."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vijax as vj
from vijax.fitting import Checkpoints, Curve, Fit, ascent, fit, stationary
from vijax.fitting._trouble import NotFinite
from vijax.types import Draws, Estimate, Rule, Step

X = jnp.array([1.0, -2.0, 3.0])
SD = jnp.array([0.5, 1.0, 2.0])
FAMILY = vj.families.mean_field(scale=1.0)
OBJECTIVE = vj.gradients.reparam(vj.bounds.elbo)


def estimate(key, params):
    return OBJECTIVE(
        key, lambda z: -0.5 * jnp.sum(jnp.square((z - X) / SD)), FAMILY.dist(params), num_samples=8
    )


RULE = ascent(estimate, optax.sgd(0.02))
STATE = RULE.init(FAMILY.init(jax.random.key(0), jnp.zeros(3)))
STOP = stationary(error=0.05)


def bits(tree):
    leaves = jax.tree.leaves(tree)
    return [
        np.asarray(
            jax.random.key_data(l) if jnp.issubdtype(jnp.result_type(l), jax.dtypes.prng_key) else l
        ).tobytes()
        for l in leaves
    ]


def run(key, steps=1500, **options):
    return fit(key, RULE, STATE, **{"steps": steps, "stop": None, "reports": ()} | options)


def test_a_fit_finds_the_posterior_and_says_why_it_stopped(key):
    """Within five standard errors of the truth, which it states itself, and these within the tolerance."""
    found = run(key, 40_000, stop=STOP)
    assert isinstance(found, Fit)
    assert isinstance(found.curve, Curve)
    assert 512 <= found.steps < 40_000
    assert found.stopped.startswith(f"stationary at step {found.steps}: standard error 0.0")
    assert found.trouble is None
    off = np.abs(found.average["loc"] - X)
    # Batches hear autocorrelation up to an eighth of the tail, the shift of its halves hears the rest.
    known_to = np.hypot(found.tail.error["loc"], found.tail.shift["loc"])
    assert np.all(off < 5 * known_to)
    assert np.all(off < 0.05 * SD)
    np.testing.assert_allclose(found.average["log_scale"], np.log(SD), atol=0.25)
    # The control: it was the wandering that the average removed.
    assert STOP(found.tail).done
    assert found.tail.number * 8 <= found.steps
    exact = float(jnp.sum(jnp.log(SD)) + 1.5 * np.log(2 * np.pi))
    assert abs(found.bound - exact) < 0.1
    assert 0 < found.bound_error < 0.05
    assert found.log_w.shape == (128, 8)


def test_where_it_is_cut_changes_no_bit(key):
    whole = run(key)
    assert whole.steps == 1500
    assert whole.stopped == "all 1500 steps were made"
    for log_every in (1, 97, 1500):
        assert bits(run(key, log_every=log_every)[:6]) == bits(whole[:6])
    assert bits(run(jax.random.fold_in(key, 1)).state) != bits(whole.state)
    # Nor does being judged, by a rule that is never content.
    assert bits(run(key, stop=stationary(error=1e-9)).state) == bits(whole.state)


def test_it_is_the_plain_loop(key):
    """Up to rounding: XLA may fuse another program otherwise."""
    by_hand, _ = jax.jit(
        lambda s: jax.lax.scan(
            lambda s, i: (RULE.step(jax.random.fold_in(key, i), s)[0], None), s, jnp.arange(100)
        )
    )(STATE)
    found = run(key, 100)
    assert found.log_w.shape == (13, 8)  # no row that no step has written
    assert np.all(found.log_w != 0)
    jax.tree.map(
        lambda f, e: np.testing.assert_allclose(f, e, rtol=1e-4, atol=1e-5), found.state, by_hand
    )


def test_short_fits(key):
    """Below eight steps nothing is remembered, and the average is the last state."""
    found = run(key, 3)
    assert found.steps == 3
    assert bits(found.average) == bits(found.state.params)
    assert np.isfinite(found.bound)
    assert run(key, 20).tail.number == 2


def test_a_step_of_your_own(key):
    """No draws, no params by that name: only the bound is watched, in a state that is a tuple."""

    def step(key, state):
        x, n = state
        return (0.9 * x + jax.random.normal(key), n + 1), Step(-(x**2))

    rule = Rule(lambda x: (x, 0), step, lambda state: ())
    found = fit(
        key, rule, rule.init(jnp.float32(5.0)), steps=800, reports=(), stop=stationary(error=1.0)
    )
    # It stopped at 512 as stationary, for nothing that it was shown moved.
    assert found.state[1] == found.steps == 800
    assert found.average == ()
    assert found.stopped == "all 800 steps were made"
    np.testing.assert_allclose(found.bound, -1 / 0.19, atol=6 * found.bound_error)
    # Another part may be watched than the rule's params.
    found = fit(
        key, rule, rule.init(jnp.float32(5.0)), steps=80, reports=(), watch=lambda state: state[0]
    )
    assert np.isfinite(found.average)


def test_a_rule_of_updates_needs_no_more(key):
    """Neither a function around its step nor a word on what is watched."""
    rule = vj.updates.natural_gradient(
        lambda z: -0.5 * jnp.sum(jnp.square((z - X) / SD)), num_samples=4
    )
    found = fit(key, rule, rule.init(STATE.params), steps=40, reports=())
    np.testing.assert_allclose(found.average["loc"], X, atol=0.1)
    np.testing.assert_allclose(found.average["log_scale"], np.log(SD), atol=0.1)
    assert found.log_w.shape == (5, 4)


# --- what is not finite


def first_bad(key, threshold):
    """Return the first step whose draw is beyond the threshold, by a loop of its own."""
    draws = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i)))(jnp.arange(3000))
    return int(np.argmax(np.asarray(draws) > threshold))


def spoiling(stage):
    """A step whose bound, or gradient, or log p is nan where a draw is far out."""

    def estimate(key, params):
        e = jax.random.normal(key)
        far = e > 2.8
        z = params["good"] + e
        log_p = -0.5 * z**2 + (jnp.where(far, jnp.nan, 0.0) if stage == "log p" else 0.0)
        # A square root at 0: the value is finite, its derivative is not.
        slope = (
            jnp.sqrt(jnp.where(far, 0.0, 1.0) * jnp.square(params["bad"]))
            if stage == "gradient"
            else 0.0
        )
        value = (
            log_p - jnp.sum(slope) + (jnp.where(far, -jnp.inf, 0.0) if stage == "bound" else 0.0)
        )
        return Estimate(value, Draws(z[None], log_p[None], jnp.zeros(1)))

    return ascent(estimate, optax.adam(0.01))


@pytest.mark.parametrize(
    ("stage", "where"),
    [
        ("gradient", "the gradient of 'bad', 2 of 2 numbers"),
        ("log p", "log p, 1 of 1 numbers"),
        ("bound", "the bound, 1 of 1 numbers"),
    ],
)
def test_it_says_where_nan_arose_and_keeps_what_came_before(key, stage, where):
    rule = spoiling(stage)
    state = rule.init({"good": jnp.float32(0.1), "bad": jnp.array([1.0, 2.0])})
    expected = first_bad(key, 2.8)
    assert 100 < expected < 2900
    with pytest.warns(UserWarning, match=f"not finite in step {expected}: {where}"):
        found = fit(key, rule, state, steps=3000, stop=None, reports=())
    assert isinstance(found.trouble, NotFinite)
    assert found.steps == found.trouble.step == expected
    assert found.trouble.where == where
    assert found.stopped == f"not finite in step {expected}: {where}"
    clean = fit(key, rule, state, steps=expected, stop=None, reports=())
    assert bits(found.state) == bits(clean.state)
    assert np.all(np.isfinite(found.average["bad"]))
    # The key does it again.
    _, seen = rule.step(found.trouble.key, found.state)
    assert not np.isfinite(seen.gradient["bad"] if stage == "gradient" else seen.value).all()


def test_what_was_never_finite_is_no_trouble(key):
    """An optimiser whose best value so far begins at infinity."""
    optimizer = optax.chain(
        optax.adam(0.01), optax.contrib.reduce_on_plateau(patience=10**6, accumulation_size=10**6)
    )
    rule = ascent(estimate, optimizer)
    state = rule.init(STATE.params)
    assert any(np.isinf(leaf).any() for leaf in jax.tree.leaves(state.optimizer))
    assert fit(key, rule, state, steps=20, stop=None, reports=()).trouble is None


def test_an_interruption_loses_nothing(key):
    def interrupt(line):
        if line["step"] == 300:
            raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="interrupted after step 300"):
        found = run(key, log_every=100, reports=[interrupt])
    assert found.steps == 300
    assert found.stopped == "interrupted after step 300"
    assert bits(found[:6]) == bits(run(key, 300)[:6])


def test_neither_a_report_that_raises_nor_a_full_disk_costs_the_fit(key, tmp_path, monkeypatch):
    def broken(line):
        raise RuntimeError("disk full")

    def full(*args, **options):
        raise OSError("no space left")

    lines, whole = [], run(key, log_every=200)
    with pytest.warns(
        UserWarning,
        match="a report raised at step 200 and is told no more: RuntimeError.*disk full",
    ):
        found = run(key, log_every=200, reports=[broken, lines.append])
    assert bits(found[:6]) == bits(whole[:6])
    assert [line["step"] for line in lines][-2:] == [1400, 1500]
    monkeypatch.setattr("vijax.fitting._checkpoint.save", full)
    with pytest.warns(
        UserWarning, match="step .*00 could not be saved in .*, the last is 0: no space left"
    ):
        found = run(key, log_every=200, checkpoints=Checkpoints(tmp_path / "steps", every=300))
    assert bits(found[:6]) == bits(whole[:6])


# --- other numbers, other devices


def test_double_precision(key, x64):
    state = RULE.init(FAMILY.init(jax.random.key(0), jnp.zeros(3, jnp.float64)))
    found = fit(key, RULE, state, steps=200, stop=STOP, reports=())
    assert found.average["loc"].dtype == jnp.float64
    assert found.bound.dtype == jnp.float64


def test_a_schedule_of_the_optimiser_is_part_of_the_state(key):
    rule = ascent(estimate, optax.adam(optax.cosine_decay_schedule(0.1, 300)))
    whole = fit(key, rule, rule.init(STATE.params), steps=300, stop=None, reports=())
    assert bits(
        fit(key, rule, rule.init(STATE.params), steps=300, stop=None, reports=(), log_every=7).state
    ) == bits(whole.state)


def own(step):
    return Rule(lambda params: params, step, lambda state: ())


def test_what_is_refused(key, unchecked):
    with pytest.raises(TypeError, match="key must be a typed key"):
        run(0)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        run(key, 0)
    with pytest.raises(TypeError, match="log_every must be a Python int.*got 0.5"):
        run(key, log_every=0.5)
    with pytest.raises(
        TypeError, match="leaf 'z' was float32\\[\\] and came back as float32\\[1\\]"
    ):
        fit(key, own(lambda k, s: (s[None], Step(s))), jnp.float32(0.0), steps=2)
    with pytest.raises(TypeError, match="step must return \\(state, types.Step\\)"):
        fit(key, own(lambda k, s: s), jnp.float32(0.0), steps=2)
    with pytest.raises(TypeError, match="or that value alone; got dict"):
        fit(key, own(lambda k, s: (s, {})), jnp.float32(0.0), steps=2)
    with pytest.raises(TypeError, match="under jit or vmap use lax.scan"):
        jax.jit(lambda s: fit(key, RULE, s, steps=2).state)(STATE)
    with pytest.raises(TypeError, match="leaf 'z' is key<fry>; leave it out"):
        fit(key, own(lambda k, s: (s, Step(jnp.float32(0)))), key, steps=2, watch=lambda s: s)
    for step, name in ((RULE.step, "step"), (lambda key, state: (state, Step(0.0)), "<lambda>")):
        with pytest.raises(
            TypeError,
            match=rf"takes the rule itself.*got a function, {name}.*types.Rule\(init, step",
        ):
            fit(key, step, STATE.params, steps=2)
    with pytest.raises(TypeError, match="takes the rule itself.*got AscentState"):
        fit(key, STATE, RULE, steps=2)
    natural = vj.updates.natural_gradient(lambda z: -jnp.sum(z**2), num_samples=2)
    for rule in (RULE, natural):
        with pytest.raises(
            TypeError, match=r"init\(params\) returned, got a dict; begin with rule.init\(params\)"
        ):
            fit(key, rule, STATE.params, steps=2)


def test_a_result_is_shown_in_a_line(key):
    """Its arrays would fill pages of a notebook."""
    rule = vj.updates.natural_gradient(lambda z: -0.5 * jnp.sum(z**2))
    family = vj.families.mean_field()
    found = fit(
        key, rule, rule.init(family.init(None, jnp.zeros(2))), steps=9, reports=(), stop=None
    )
    assert repr(found).startswith("Fit(steps=9, bound=1.")
    assert "\n" not in repr(found)
