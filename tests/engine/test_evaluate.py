"""The engine: a plan holds all randomness, evaluate adds the sample axis, chunks change no number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import vijax as vj
from tests.bare import Gauss
from vijax.draws import iid, weigh
from vijax.engine import (
    Estimator,
    Evaluated,
    Needs,
    Plan,
    Strategy,
    chunked,
    evaluate,
    make_objective,
    plan,
)

Q = Gauss(jnp.array([0.2, -0.4]), jnp.array([0.0, -0.5]))


def log_joint(z):
    return norm.logpdf(z, 0.0, 1.0)


def test_a_keyed_target_gets_keys_of_its_own(key):
    """The model's keys are not q's, one for each draw; a plan for another target has none."""
    target = vj.targets.keyed(lambda key, z: log_joint(z) + jax.random.normal(key))
    found = plan(key, True, iid, 4)
    assert isinstance(found, Plan)
    data = np.concatenate([jax.random.key_data(found.draw), jax.random.key_data(found.model)])
    assert len(np.unique(data, axis=0)) == 8
    assert plan(key, False, iid, 4).model is None
    draws = weigh(key, target, Q, num_samples=4)
    noise = jax.vmap(jax.random.normal)(found.model)
    np.testing.assert_allclose(
        draws.log_p, jax.vmap(log_joint)(draws.z) + noise[:, None], rtol=1e-5
    )


def test_evaluate_adds_the_sample_axis(key):
    z = jax.random.normal(key, (3, 2))
    log_p, aux = evaluate(log_joint, z, jnp.zeros((3, 2)))
    np.testing.assert_allclose(log_p, norm.logpdf(z))
    assert aux is None


@pytest.mark.slow
def test_chunked_is_a_map(key):
    """Values, aux and gradient of a map over rows, the remainder included; what it closes over is found."""
    weight, shift = jnp.array([1.0, 2.0]), jnp.arange(2)
    seeds = jax.random.normal(key, (7, 2))

    def values(weight, rows):
        out = jnp.sum(jnp.sin(rows * weight[None]) + shift[None], -1)
        return (out, 2 * out, None), rows[:, 0]

    def total(weight, size):
        evaluate_rows = lambda rows: values(weight, rows)
        (one, two, _), aux = (
            evaluate_rows(seeds) if size is None else chunked(evaluate_rows, seeds, size)
        )
        return jnp.sum(one * jnp.arange(7.0)) + jnp.sum(two), (one, two, aux)

    expected = jax.grad(total, has_aux=True)(weight, None)
    for size in (1, 2, 3, 7, 9):
        found = jax.grad(total, has_aux=True)(weight, size)
        jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, rtol=1e-5), found, expected)


def plain(request):
    """The strategy of a path gradient, in its shortest form."""

    def evaluated(seeds):
        z, log_q = request.sample(seeds)
        log_p, aux = request.evaluate(z, log_q, seeds)
        return Evaluated(log_p, log_q, z, aux)

    return Strategy(evaluated, lambda log_p, log_q, _: request.bound(log_p - log_q))


def test_an_estimator_states_what_it_needs(key):
    """Needs and a strategy make an objective: reparam's numbers, and its refusals by name."""
    mine = make_objective("mine", vj.bounds.iwae, iid, Estimator(Needs(path=True), plain))
    theirs = vj.gradients.reparam(vj.bounds.iwae)

    def slope(objective, chunk_size):
        def value(loc):
            q = Gauss(loc, Q.log_scale)
            return jnp.sum(objective(key, log_joint, q, num_samples=4, chunk_size=chunk_size).value)

        return jax.grad(value)(Q.loc)

    for chunk_size in (None, 2):
        np.testing.assert_allclose(slope(mine, chunk_size), slope(theirs, chunk_size), rtol=1e-6)
    bits = vj.families.adapt(Q, reparameterized=False)
    with pytest.raises(ValueError, match="mine needs draws that carry the derivative"):
        mine(key, log_joint, bits, num_samples=4)


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        (Needs(least=5, why="They are compared."), "at least 5, got 4. They are compared"),
        (Needs(mean="weighs a sum"), "mine weighs a sum, so its bound must be linear"),
        (Needs(independent=True), "accepted"),
    ],
)
def test_what_a_call_lacks_is_refused(key, needs, message):
    objective = make_objective("mine", vj.bounds.iwae, iid, Estimator(needs, plain))
    if message == "accepted":
        assert objective(key, log_joint, Q, num_samples=4).value.shape == (2,)
        return
    with pytest.raises(ValueError, match=message):
        objective(key, log_joint, Q, num_samples=4)


def test_an_estimator_that_a_request_chooses_is_held_to_its_needs(key):
    """Independence too, though the weights of the draws were asked for before it was chosen."""
    q = vj.families.mean_field().dist({"loc": jnp.zeros(2), "log_scale": jnp.zeros(2)})
    estimator = Estimator(Needs(independent=True), plain)
    for chosen in (estimator, lambda request: estimator):
        objective = make_objective("mine", vj.bounds.iwae, vj.draws.antithetic, chosen)
        with pytest.raises(ValueError, match="needs independent draws, and these are coupled"):
            objective(key, lambda z: -0.5 * jnp.sum(z**2), q, num_samples=4)
