"""Calls that do not fit a fit or a summary: each is answered by what was found and how to call."""

import jax
import jax.numpy as jnp
import pytest

import vijax as vj
from vijax import fitting
from vijax.diagnostics import summarize, summarize_members
from vijax.types import Draws, Rule, Step
from vijax.updates import natural_gradient

pytestmark = pytest.mark.usefixtures("unchecked")

KEY, AT = jax.random.key(0), jnp.zeros(())
RULE = Rule(lambda x: x, lambda key, x: (x, Step(-x)), lambda x: x)
Z = jax.random.normal(KEY, (50,))
DRAWS = Draws({"a": Z}, Z, Z)
MEAN_FIELD = vj.families.mean_field()


def run(**given):
    return fitting.fit(KEY, RULE, AT, **{"steps": 8, "reports": ()} | given)


WRONG = {
    "no state": (
        lambda: fitting.fit(KEY, RULE, steps=8),
        "missing .*'state'. Call it as fitting.fit",
    ),
    "num_steps": (lambda: fitting.fit(KEY, RULE, AT, num_steps=8), "num_steps=.* steps=5000"),
    "no states": (lambda: fitting.restarts(KEY, RULE, steps=8), "Call it as fitting.restarts"),
    "no optimizer": (lambda: fitting.ascent(abs), "Call it as fitting.ascent"),
    "no num_samples": (
        lambda: fitting.weigh(KEY, None, abs, MEAN_FIELD),
        "num_samples.* Call it as fitting.weigh",
    ),
    "stop uncalled": (
        lambda: run(stop=fitting.stationary),
        "got a function, stationary.* brackets",
    ),
    "stop a number": (lambda: run(stop=5), "stop must be a function .* got 5"),
    "stop a bool": (
        lambda: run(stop=lambda tail: True, steps=600),
        "must return a fitting.Verdict",
    ),
    "watch": (lambda: run(watch="x"), "watch must be a function, got 'x'"),
    "bar uncalled": (lambda: run(reports=[fitting.bar]), r"fitting.bar\(\) .* brackets"),
    "family": (lambda: natural_gradient(abs, MEAN_FIELD), "Call it as updates.natural_gradient"),
    "weights": (lambda: summarize(Z, Z), "Call it as diagnostics.summarize"),
    "members": (lambda: summarize_members(Z, Z), "Call it as diagnostics.summarize_members"),
    "list": (
        lambda: summarize(DRAWS._replace(log_p=[0.0])),
        "log_p of draws must be .* got a list",
    ),
    "constrain": (lambda: summarize(DRAWS, constrain={"a": abs}), "constrain must be a function"),
    "None": (
        lambda: summarize(DRAWS, constrain=lambda z: None),
        "must return a pytree .* got None",
    ),
    "text": (lambda: summarize(DRAWS, constrain=lambda z: "x"), "must return a pytree .* got 'x'"),
    "complex": (lambda: summarize(DRAWS._replace(z={"a": 1j * Z})), "leaf 'a' is complex64"),
    "keys": (
        lambda: summarize(DRAWS._replace(z={"a": jax.random.split(KEY, 50)})),
        "leaf 'a' is key",
    ),
    "traced": (lambda: jax.eval_shape(lambda d: len(str(summarize(d))), DRAWS), "outside of jit"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_call_that_does_not_fit(name):
    call, words = WRONG[name]
    with pytest.raises(TypeError, match=words):
        call()


def test_calls_that_fit_pass():
    verdict = lambda tail: fitting.stationary()(tail)
    told = []
    found = run(stop=verdict, watch=lambda x: {"x": x}, reports=[told.append])
    assert found.steps == told[-1]["step"] == 8
    whole = Draws({"a": jnp.arange(50), "b": Z > 0}, Z, Z)
    assert summarize(whole, constrain=lambda z: {**z, "one": 1.0}).names == ("a", "b", "one")
