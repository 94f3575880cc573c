"""Joint, attributes through partial, and what counts as a distribution."""

from collections import OrderedDict
from functools import partial, wraps
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import vijax as vj
from tests.bare import Coin, Gauss
from vijax.types import (
    Affine,
    Caveat,
    Distribution,
    Divergence,
    Draws,
    Entropy,
    Properties,
    Sampled,
    Stratified,
    Support,
    Transport,
    closed_forms,
    derive,
    is_conditional,
    lift,
    offers,
    properties,
    with_closed_forms,
)

A = Gauss(jnp.array([0.1, 0.2]), jnp.zeros(2))


class Pair(NamedTuple):
    first: object
    second: object


def given(z):
    first = z["a"] if isinstance(z, dict) else z[0]
    return Gauss(2 * first, jnp.full(2, -1.0))


CONTAINERS = {
    "dict": {"a": A, "b": given},
    "ordered": OrderedDict(b=A, a=lambda z: Gauss(2 * z["b"], jnp.full(2, -1.0))),
    "tuple": (A, given),
    "list": [A, given],
    "named tuple": Pair(A, given),
}


@pytest.mark.parametrize("kind", list(CONTAINERS))
def test_a_joint_of_any_container(kind, key):
    """Drawn in order, given the earlier leaves, handed back in the container it came in; log q is the sum of parts."""
    q = vj.Joint(CONTAINERS[kind])
    z, log_q = q.sample_and_log_prob(seed=key)
    assert type(z) is (dict if isinstance(CONTAINERS[kind], dict) else type(CONTAINERS[kind]))
    first, second = (z[name] for name in q.names())
    expected = A.log_prob(first) + norm.logpdf(second, 2 * first, jnp.exp(-1.0))
    np.testing.assert_allclose(log_q, expected, rtol=1e-5)
    np.testing.assert_allclose(q.log_prob(z), expected, rtol=1e-5)
    parts = q.parts(z)
    assert list(parts) == q.names()
    np.testing.assert_allclose(sum(parts.values()), expected, rtol=1e-5)
    many, log_many = q.sample_and_log_prob(seed=key, sample_shape=(3, 4))
    assert log_many.shape == (3, 4, 2)
    np.testing.assert_allclose(jax.vmap(jax.vmap(q.log_prob))(many), log_many, rtol=1e-4, atol=1e-5)


def test_nested_joints(key):
    """A leaf may be a Joint itself, or a dict of distributions, and may depend on nested earlier ones."""
    q = vj.Joint({"u": {"a": A, "b": given}, "v": lambda z: Gauss(z["u"]["b"], jnp.zeros(2))})
    z, log_q = q.sample_and_log_prob(seed=key)
    inner = A.log_prob(z["u"]["a"]) + norm.logpdf(z["u"]["b"], 2 * z["u"]["a"], jnp.exp(-1.0))
    np.testing.assert_allclose(log_q, inner + norm.logpdf(z["v"], z["u"]["b"], 1.0), rtol=1e-5)
    np.testing.assert_allclose(q.log_prob(z), log_q, rtol=1e-5)


@pytest.mark.slow
def test_nested_joints_under_objectives(key):
    """A coin inside a nested dict: auto differentiates what has a path, and the whole is what a flat Joint gives."""

    def slope(nested, p):
        coin = lambda a: Coin(p["logit"] + a)
        if nested:
            q = {"u": {"a": Gauss(p["loc"], jnp.zeros(2))}, "v": lambda z: coin(z["u"]["a"])}
            log_joint = lambda z: norm.logpdf(z["u"]["a"]) + z["v"]
        else:
            q = {"a": Gauss(p["loc"], jnp.zeros(2)), "v": lambda z: coin(z["a"])}
            log_joint = lambda z: norm.logpdf(z["a"]) + z["v"]
        return vj.gradients.auto(vj.bounds.iwae)(key, log_joint, q, num_samples=4).value.sum()

    params = {"loc": jnp.array([0.3, -0.2]), "logit": jnp.array([0.1, 0.4])}
    found = jax.grad(lambda p: slope(True, p))(params)
    assert all(np.all(np.isfinite(leaf)) and np.all(leaf != 0) for leaf in found.values())


def test_what_is_lifted():
    assert lift(A) is A
    assert isinstance(lift({"a": A}), vj.Joint)
    with pytest.raises(
        TypeError, match=r"q must offer sample_and_log_prob.*got ArrayImpl.*families.adapt"
    ):
        lift(jnp.zeros(2))
    for empty in ({}, (), []):
        with pytest.raises(TypeError, match="non-empty"):
            lift(empty)
    with pytest.raises(ValueError, match="z has 1 leaves where this Joint draws 2"):
        vj.Joint((A, given)).parts((jnp.zeros(2),))


def test_closed_forms_through_partial():
    """Keywords travel with the function: those of the outer partial win."""

    @with_closed_forms(
        gate=lambda x, *, alpha, beta=0.0: (x, alpha, beta),
        linear=True,
        power=lambda *, alpha, beta=0: alpha,
    )
    def bound(x, *, alpha, beta=0.0):
        return x

    once = partial(bound, alpha=1)
    twice = partial(once, alpha=2, beta=3)
    assert closed_forms(once).gate(0) == (0, 1, 0.0)
    assert closed_forms(twice).gate(0) == (0, 2, 3)
    assert (closed_forms(once).power(), closed_forms(twice).power()) == (1, 2)
    assert closed_forms(twice).linear is True
    assert closed_forms(twice).leave_one_out is None
    assert closed_forms(lambda x: x).linear is False


def test_a_record_on_a_partial_counts():
    """What is said of a partial is read before what is said of the function in it."""

    def target(scale, z):
        return -scale * z**2

    noisy = derive(target, partial(target, 1.0), only_mean="it is noisy")
    assert properties(noisy).only_mean == "it is noisy"
    assert properties(partial(noisy)).only_mean == "it is noisy"
    assert properties(target) == Properties()
    with pytest.raises(ValueError, match="it is noisy, so its bound must be linear"):
        vj.gradients.reparam(vj.bounds.iwae)(jax.random.key(0), noisy, A, num_samples=2)
    kink = with_closed_forms(smooth=False)(partial(lambda x, *, c: jnp.abs(x - c), c=1.0))
    assert closed_forms(kink).smooth is False
    with pytest.raises(TypeError, match="lambda z: model.log_joint"):
        derive(jnp.zeros, vj.types.Joint({"a": A}).log_prob, keyed=True)


def test_an_attribute_of_the_users_own_is_no_record():
    class Model:
        properties = {"colour": "blue"}

        def __call__(self, z):
            return jnp.sum(z)

    assert properties(Model()) == Properties()


def test_properties_are_derived():
    """Whoever wraps a target states what it changes, and inherits the rest."""

    def inner(key, z):
        return z

    target = derive(inner, lambda z, *, key: inner(key, z), keyed=True, only_mean="it is noisy")
    wrapped = derive(target, lambda z, *, key: target(z, key=key), has_aux=True)
    assert properties(inner) == Properties()
    assert properties(partial(wrapped)).keyed
    # A key that a partial binds is fixed.
    assert properties(partial(wrapped, key=0)) == Properties(has_aux=True, only_mean="it is noisy")


def test_draws():
    draws = Draws(None, jnp.array([1.0, 2.0]), jnp.array([0.5, 3.0]))
    np.testing.assert_allclose(draws.log_w, [0.5, -1.0])
    assert (draws.weights, draws.aux, draws.only_mean) == (None, None, None)


def test_a_caveat_of_draws_is_static():
    """It passes through jit, vmap, scan and a stopped gradient, and is no leaf."""
    draws = Draws(jnp.zeros(2), jnp.zeros(2), jnp.ones(2), only_mean=Caveat("it is noisy"))
    assert len(jax.tree.leaves(draws)) == 3
    through = jax.jit(jax.vmap(jax.lax.stop_gradient))(draws)
    last, _ = jax.lax.scan(lambda d, _: (jax.tree.map(jnp.sin, d), None), through, length=2)
    assert through.only_mean == last.only_mean == "it is noisy"


def test_a_wrapper_does_not_inherit_closed_forms(key):
    """functools.wraps copies a bound's gate to a function that computes another thing."""

    @wraps(vj.bounds.iwae)
    def half(log_w, *, weights=None):
        return 2 * vj.bounds.iwae(log_w / 2, weights=weights)

    def log_joint(z):
        return -0.5 * (z - 1.0) ** 2

    def slope(bound):
        dreg = vj.gradients.dreg(bound)
        return jax.grad(lambda m: dreg(key, log_joint, Gauss(m, 0.0), num_samples=4).value)(0.3)

    np.testing.assert_allclose(slope(half), slope(lambda log_w: half(log_w)), rtol=1e-6)
    assert closed_forms(jax.jit(half)).gate is None
    assert closed_forms(jax.jit(jax.vmap(vj.bounds.iwae))).gate is None
    assert closed_forms(jax.jit(jax.jit(vj.bounds.iwae))).gate is not None
    assert abs(slope(half) - slope(vj.bounds.iwae)) > 1e-3


ABILITIES = {
    "mean_field": {Affine, Divergence, Entropy, Transport},
    "mixture": {Stratified},
    "flow": {Transport},
    "bare": set(),
}


class Forwarding:
    """A wrapper that has its inner distribution's abilities, and answers for none itself."""

    def __init__(self, inner):
        self._inner = inner

    def __getattr__(self, name):
        return getattr(self._inner, name)


@pytest.mark.parametrize("name", list(ABILITIES))
def test_abilities_are_asked_of_protocols(name, key):
    """isinstance and offers agree, and offers sees through a wrapper."""
    families = vj.families
    makes = {
        "mean_field": families.mean_field(),
        "mixture": families.mixture(families.mean_field(), components=2),
        "flow": families.inverse_autoregressive(base=families.full_rank(), layers=1, hidden=(2,)),
    }
    q = makes[name].dist(makes[name].init(key, jnp.zeros(2))) if name in makes else A
    every = {Affine, Divergence, Entropy, Stratified, Support, Transport}
    assert {ability for ability in every if offers(q, ability)} == ABILITIES[name]
    assert {ability for ability in every if isinstance(q, ability)} == ABILITIES[name]
    assert {ability for ability in every if offers(Forwarding(q), ability)} == ABILITIES[name]
    assert offers(q, Distribution)
    assert not offers(q, Sampled)


def test_an_ability_whose_method_is_no_function_is_not_offered():
    class Odd:
        uniforms = (2,)
        affine = None
        support = None

    assert not offers(Odd(), Affine)
    assert offers(Odd(), Support)


def test_what_is_conditional():
    assert is_conditional(given)
    assert not is_conditional(A)
    assert not is_conditional(type("Called", (), {"__call__": None, "log_prob": None})())
