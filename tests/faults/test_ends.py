"""What a fit says at its end: nan gradients, a rate that is 0 or of the wrong sign, circles, and errors of 0."""

import functools

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vijax as vj
from vijax.fitting import ascent, fit, restarts
from vijax.types import Rule, Step

quiet = functools.partial(fit, reports=())


def climb(rate, curvature=1.0, lost=lambda place, g: g):
    """Ascend -½ c |x - 3|² in a leaf that moves at a rate and in another that arrives, under noise of .1."""

    def step(key, state):
        place, x = state["place"], state["x"]
        noise = 0.1 * jax.random.normal(key, (2,))
        slope = {name: curvature * (3 - x[name]) + e for name, e in zip(x, noise, strict=True)}
        slope["a"] = lost(place, slope["a"])
        moved = {
            "a": rate(place) * jnp.nan_to_num(slope["a"]),
            "b": 0.1 / (1 + place / 50) * slope["b"],
        }
        value = -0.5 * curvature * sum(jnp.square(x[name] - 3) for name in x)
        return {"place": place + 1, "x": jax.tree.map(jnp.add, x, moved)}, Step(
            value, gradient=slope
        )

    return Rule(lambda x: {"place": jnp.float32(0), "x": x}, step, lambda state: state["x"])


def ended(key, rule, steps, start=0.0):
    state = rule.init({"a": jnp.float32(start), "b": jnp.float32(3.0)})
    return quiet(key, rule, state, steps=steps)


SETTLES = lambda place: 0.1 / (1 + place / 50)


@pytest.mark.usefixtures("loose_ranks")
@pytest.mark.parametrize("shape", [(), (4,)])
def test_params_that_are_one_bare_array(key, shape):
    """N(m, 1) of the target N(3, 1): no tree was around the gradient, and `!= ()` failed."""

    def estimate(key, m):
        q = distrax.Independent(distrax.Normal(m, jnp.ones_like(m)), len(shape))
        target = lambda z: -0.5 * jnp.sum(jnp.square(z - 3))
        return vj.gradients.reparam(vj.bounds.elbo)(key, target, q, num_samples=4)

    rule = ascent(estimate, optax.sgd(0.3))
    found = quiet(key, rule, rule.init(jnp.zeros(shape)), steps=80)
    np.testing.assert_allclose(found.average, 3.0, atol=0.5)
    assert found.tail.slope.shape == shape
    if shape:
        several = restarts(key, rule, jax.vmap(rule.init)(jnp.zeros((2, 4))), steps=16, reports=())
        assert several.average.shape == shape


def test_a_gradient_that_is_nan_is_no_rest(key):
    """Skipped at every step, or at some: neither arrives, and where it ends early the fit does."""
    never = climb(SETTLES, lost=lambda place, g: g * jnp.nan)
    with pytest.warns(UserWarning, match="the gradient of 'a' is not finite in 1 of 1 numbers"):
        assert ended(key, never, 1024).steps == 1024
    at_times = climb(SETTLES, lost=lambda place, g: jnp.where(place % 64 == 63, jnp.nan, g))
    with pytest.warns(UserWarning, match="gradient of 'a' was not finite in some of the last"):
        ended(key, at_times, 1024)
    early = climb(SETTLES, lost=lambda place, g: jnp.where(place < 100, jnp.nan, g))
    found = ended(key, early, 40_000)
    assert found.stopped.startswith("stationary")
    np.testing.assert_allclose(found.average["a"], 3.0, atol=0.05)


def test_one_that_stands_still_far_away_says_so(key):
    """A rate of 0, as of a frozen leaf, and one that falls too soon; the mean gradient is 3 and some 2."""
    frozen = climb(lambda place: 0.0)
    with pytest.warns(UserWarning, match="mean gradient of 'a' is still 3 nats a unit.* frozen"):
        assert ended(key, frozen, 1024).average["a"] == 0
    too_soon = climb(lambda place: 0.1 * 0.8**place + 1e-6)
    with pytest.warns(UserWarning, match="mean gradient of 'a' is still 1.* rate is too small"):
        ended(key, too_soon, 1024)
    # Where it has arrived, a rate of 0 is no fault.
    assert ended(key, frozen, 1024, start=3.0).stopped.startswith("stationary")


def test_a_wrong_sign_is_told_that_the_bound_falls(key):
    with pytest.warns(UserWarning, match="bound fall by .* nats. The bound falls: .* wrong"):
        found = ended(key, climb(lambda place: -1e-3), 1024)
    assert "more steps" not in found.stopped
    with pytest.warns(UserWarning, match="the bound rise by .* more steps, or another rate"):
        ended(key, climb(lambda place: 1e-3), 1024)


def test_circles_are_no_rest(key):
    """The reporter's: 5 sin(t / 200) has a mean of 0, known to a third of a unit after 16 turns."""
    rule = Rule(lambda x: x, lambda key, x: (x + 1, Step(-x)), lambda x: 5 * jnp.sin(x / 200))
    with pytest.warns(UserWarning, match="does not settle: .* and the iterates spread by 3"):
        found = quiet(key, rule, jnp.float32(0.0), steps=20_000)
    assert "nothing was seen" not in found.stopped


def test_a_fit_prints_two_digits_of_its_error(key):
    """Where it is .0044 of a bound of 3.65893, it was `± 0.`."""
    found = ended(key, climb(SETTLES), 64)
    shown = found._replace(bound=jnp.float32(3.65893), bound_error=jnp.float32(0.0044))
    assert "bound=3.65893 ± 0.0044 nats" in repr(shown)
    of_two = shown._replace(bound=jnp.array([3.0, -2.5]), bound_error=jnp.array([0.0044, 1e-9]))
    assert "bound=[3 -2.5] ± [0.0044 1e-09] nats" in repr(of_two)
