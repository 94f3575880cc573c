"""What carries q's derivative to its draws, and which support moves: facts, without a refusal."""

import distrax
import jax
import jax.numpy as jnp
import pytest

import vijax as vj
from vijax import draws, jaxprs
from vijax.jaxprs import Path

pytestmark = pytest.mark.usefixtures("loose_ranks", "unchecked")

KEY = jax.random.key(0)


def asked(ask):
    """Return what `ask(parameter)` returns where the parameter is a tracer, as in every training step."""
    answers = []

    def loss(parameter):
        answers.append(ask(parameter))
        return parameter

    jax.grad(loss)(0.3)
    return answers[0]


def hard(p):
    return distrax.Bernoulli(logits=p, dtype=jnp.float32)


def test_leaves_are_named():
    q = {"a": lambda p: distrax.Normal(p, 1.0), "b": hard, "c": lambda p: distrax.Normal(0.0, 1.0)}
    found = asked(
        lambda p: jaxprs.paths(vj.Joint({n: part(p) for n, part in q.items()}), draws.iid, KEY)
    )
    assert list(found) == ["a", "b", "c"]
    assert found["a"] == Path(None, parametric=True)
    assert found["c"].broken is None
    assert "through 'lt'" in found["b"].broken


def test_what_follows_a_leaf_without_a_path():
    """An earlier leaf counts as a parameter where it carries a derivative, in nested Joints as well."""

    def joint(p, first):
        return vj.Joint(
            {
                "z": first(p),
                "rest": lambda z: {"m": distrax.Normal(z["z"], 1.0), "n": lambda y: hard(y["m"])},
            }
        )

    smooth = asked(
        lambda p: jaxprs.paths(joint(p, lambda p: distrax.Normal(p, 1.0)), draws.iid, KEY)
    )
    assert list(smooth) == ["z", "rest.m", "rest.n"]
    assert smooth["rest.m"] == Path(None, parametric=True)
    assert "depends on a parameter" in smooth["rest.n"].broken
    broken = asked(lambda p: jaxprs.paths(joint(p, hard), draws.iid, KEY))
    assert broken["rest.m"] == Path(None, parametric=False)


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (lambda p: distrax.Normal(p, 1.0), None),
        (lambda p: distrax.Gamma(jnp.exp(p), 1.0), None),
        (lambda p: distrax.Uniform(0.0, p), "moves with q's parameters"),
    ],
)
def test_a_support_that_moves(build, why):
    def ask(p):
        q = build(p)
        return jaxprs.moving_support(q, KEY, jaxprs.paths(q, draws.iid, KEY))

    moving = asked(ask)
    assert moving is why if why is None else why in moving.why


def test_what_needs_a_score():
    """A leaf that decides by a comparison which Bernoulli is drawn needs a score though it has a path."""

    def q(p):
        return vj.Joint(
            {
                "a": distrax.Normal(p, 1.0),
                "b": distrax.Normal(p, 1.0),
                "c": lambda z: hard(jnp.where(z["a"] > 0, 1.0, -1.0) + z["b"]),
            }
        )

    scored = asked(lambda p: jaxprs.scored_leaves(q(p), KEY, jaxprs.joint_paths(q(p), KEY)))
    assert scored.names == {"a", "c"}
    assert scored.moving is None


def test_a_scored_leaf_whose_support_moves():
    def q(p):
        return vj.Joint(
            {"a": distrax.Uniform(p - 1.0, p + 1.0), "b": lambda z: hard(jnp.sign(z["a"]))}
        )

    scored = asked(lambda p: jaxprs.scored_leaves(q(p), KEY, jaxprs.joint_paths(q(p), KEY)))
    assert scored.names == {"a", "b"}
    assert "moves with q's parameters" in scored.moving.why
