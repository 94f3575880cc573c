"""Second derivatives are those of the first, or refused: never the derivative of a value that was stopped on the way."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj
from tests.bare import Coin, Gauss
from tests.marks import some
from tests.problems import Bits, Choice, Normal

pytestmark = pytest.mark.usefixtures("unchecked")
G, elbo, iwae = vj.gradients, vj.bounds.elbo, vj.bounds.iwae
KEY = jax.random.key(0)

# --- estimators: the derivatives of one whose gradient is right in its mean alone are refused


def smooth(z):
    return -0.25 * (z - 1) ** 2 + jnp.sin(z)


def bits(z):
    return -jnp.square(jnp.sum(z, -1) - 0.7)


def line(p):
    return Gauss(p, -0.4)


def coins(p):
    return Bits(jnp.stack([p, -p], -1))


def mixed(p):
    return {"a": Gauss(p, -0.4), "b": Coin(p)}


def of_mixed(z):
    return smooth(z["a"]) * (1 + z["b"])


PRIOR = Gauss(0.0, 0.0)
gdreg = partial(G.gdreg, prior=PRIOR, push=lambda e: e, pull=lambda z: z)
SHAPES = {"scale": jnp.float32(1.0), "log_temperature": jnp.float32(-0.5)}
CONTROL = lambda parameters, z, relaxed: parameters["scale"] * jnp.sum(jnp.tanh(z), -1)  # noqa: E731

# name: (estimator of a bound, target, q(p), more positional arguments)
ONCE = {
    "arm": (G.arm(elbo), bits, coins),
    "auto": (G.auto(iwae), of_mixed, mixed),
    "disarm": (G.disarm(elbo), bits, coins),
    "dreg": (G.dreg(elbo), smooth, line),
    "dreg, gated": (G.dreg(iwae), smooth, line),
    "dreg, of a bound of one's own": (
        G.dreg(lambda log_w: jax.nn.logsumexp(log_w, axis=0)),
        smooth,
        line,
    ),
    "each": (G.each(elbo, {"a": G.reparam, "b": G.vimco}), of_mixed, mixed),
    "factored": (G.factored(elbo), of_mixed, mixed),
    "fixed": (G.fixed(vj.bounds.log_variance), smooth, line),
    "gdreg": (gdreg(iwae), smooth, line),
    "gumbel_rao": (G.gumbel_rao(elbo, temperature=0.5, inner=2), bits, coins),
    "local_expectation": (G.local_expectation(elbo), bits, coins),
    "measure_valued": (G.measure_valued(elbo), smooth, lambda p: Normal(p, 0.6)),
    "rebar": (G.rebar(elbo), bits, coins, SHAPES),
    "relax": (G.relax(elbo, control=CONTROL), bits, coins, SHAPES),
    "score": (G.score(elbo), smooth, line),
    "split": (G.split(model=iwae, q=elbo), smooth, line),
    "straight_through": (G.straight_through(elbo, temperature=0.5), bits, coins),
    "top_states": (
        G.top_states(elbo, states=1),
        bits,
        lambda p: Choice(jnp.stack([p, -p, 0 * p], -1), hot=True),
    ),
    "vimco": (G.vimco(iwae), smooth, line),
    "wake": (G.wake(iwae), smooth, line),
}
P = np.array([0.3, -0.2], np.float32)


def value_of(case, **how):
    objective, target, q, *more = case

    def value(p, key=KEY):
        result = objective(key, target, q(p), *more, num_samples=4, **how)
        return jnp.sum(result.value if isinstance(result, vj.types.Estimate) else result[0].value)

    return value


def test_every_estimator_is_here():
    others = {"moving_average", "learned", "squared_scores", "sleep"}
    assert {name.split(",")[0] for name in (*ONCE, *WHOLE)} == set(G.__all__) - others


@pytest.mark.parametrize("name", some(ONCE, *list(ONCE)[::2]))
def test_a_second_derivative_is_refused(name):
    value = value_of(ONCE[name])
    assert jax.eval_shape(jax.grad(value), P).shape == P.shape
    with pytest.raises(ValueError, match="differentiated twice.*gradients.reparam"):
        jax.eval_shape(jax.hessian(value), P)


VALUE = value_of(ONCE["dreg, gated"])
SECOND = {
    "reverse over reverse": jax.grad(lambda p: jnp.sum(jax.grad(VALUE)(p))),
    "forward over forward": jax.jacfwd(jax.jacfwd(VALUE)),
    "reverse over forward": jax.jacrev(jax.jacfwd(VALUE)),
    "of a linearization": lambda p: jax.jvp(lambda p: jax.linearize(VALUE, p)[1](p), (p,), (p,)),
    "a product with the Hessian": lambda p: jax.jvp(jax.grad(VALUE), (p,), (p,)),
    "members of a batch": jax.vmap(jax.hessian(VALUE), in_axes=1),
    "compiled": jax.jit(jax.hessian(jax.jit(VALUE))),
    "rematerialized": jax.hessian(jax.checkpoint(VALUE)),
    "in a loop": lambda p: jax.lax.scan(lambda c, _: (jax.hessian(VALUE)(c)[0], None), p, None, 2),
    "of a loop": jax.hessian(
        lambda p: jax.lax.scan(lambda c, _: (c + VALUE(p), None), 0.0, None, 2)
    ),
    "by another parameter": lambda p: jax.jacfwd(jax.grad(with_theta), 1)(p, jnp.float32(1.0)),
    **{
        f"in chunks of {size}": jax.grad(
            lambda p, size=size: jnp.sum(
                jax.grad(value_of(ONCE["dreg, gated"], chunk_size=size))(p)
            )
        )
        for size in (2, 4)
    },
}


def with_theta(p, theta):
    return jnp.sum(G.dreg(iwae)(KEY, lambda z: theta * smooth(z), line(p), num_samples=4).value)


@pytest.mark.parametrize("how", SECOND)
def test_a_second_derivative_is_refused_in_every_mode(how):
    p = jnp.asarray(np.stack([P, P]) if how == "members of a batch" else P)
    with pytest.raises(ValueError, match="differentiated twice"):
        jax.eval_shape(SECOND[how], p)


def test_a_first_derivative_passes_every_transformation():
    p, along = jnp.asarray(P), jnp.array([0.4, -1.0])

    def in_a_loop(p):
        return jax.lax.scan(lambda total, _: (total + VALUE(p), None), 0.0, None, 2)[0] / 2

    @jax.jit
    def several(p):
        slope = jax.grad(VALUE)(p)
        found = [
            jax.vmap(jax.grad(VALUE))(p[None])[0],
            jax.grad(jax.jit(VALUE))(p),
            jax.grad(jax.checkpoint(VALUE))(p),
            jax.grad(in_a_loop)(p),
            jax.jacfwd(VALUE)(p),
            jax.linear_transpose(jax.linearize(VALUE, p)[1], p)(jnp.float32(1.0))[0],
            jax.grad(value_of(ONCE["dreg, gated"], chunk_size=2))(p),
        ]
        return slope, found, jax.jvp(VALUE, (p,), (along,))[1]

    slope, found, changed = several(p)
    for other in found:
        np.testing.assert_allclose(other, slope, rtol=1e-5)
    np.testing.assert_allclose(changed, slope @ along, rtol=1e-5)


def test_a_gradient_that_is_only_looked_at_is_taken_at_stopped_parameters():
    """The cure that the refusal names; and what does not read the value is free to be differentiated."""

    def loss(p):
        return VALUE(p), jax.grad(VALUE)(jax.lax.stop_gradient(p))

    slope, shown = jax.grad(loss, has_aux=True)(jnp.asarray(P))
    np.testing.assert_allclose(slope, shown, rtol=1e-6)
    pull = jax.grad(lambda scale: scale * jnp.sum(jax.grad(VALUE)(jnp.asarray(P))))
    np.testing.assert_allclose(pull(2.0), jnp.sum(slope), rtol=1e-5)


@pytest.mark.parametrize("outer", ["gdreg", "each"])
def test_an_objective_inside_another_that_takes_slopes_of_its_target(outer):
    """The outer estimator takes a derivative of log_joint on the way, and stops it: that is no second one."""

    def inner(key, z, theta):
        target = lambda w: -jnp.square(theta * w - z)
        return G.dreg(elbo)(key, target, line(theta), num_samples=2).value - jnp.square(z)

    def value(p):
        if outer == "gdreg":
            target = vj.targets.keyed(lambda key, z: inner(key, z, p))
            return gdreg(elbo)(KEY, target, line(p), num_samples=2).value
        target = vj.targets.keyed(lambda key, z: inner(key, z["a"], p) * (1 + z["b"]))
        q = {"b": Coin(p), "a": Gauss(p, -0.4)}
        return G.each(elbo, {"a": G.reparam, "b": G.vimco})(KEY, target, q, num_samples=2).value

    assert jax.eval_shape(jax.grad(value), jnp.float32(0.3)).shape == ()


# --- estimators that drop nothing


def antithetic(p):
    return vj.families.mean_field().dist({"loc": p, "log_scale": jnp.full_like(p, -0.4)})


WHOLE = {
    "reparam": (G.reparam(iwae), smooth, line),
    "reparam, antithetic": (
        G.reparam(iwae, draw=vj.draws.antithetic),
        lambda z: jnp.sum(smooth(z)),
        antithetic,
    ),
    "auto": (G.auto(iwae), smooth, line),
    "factored": (G.factored(elbo), smooth, line),
    "gumbel_softmax": (G.gumbel_softmax(iwae, temperature=0.5), bits, coins),
}
HOW = [(name, None) for name in WHOLE] + [("reparam", 1), ("reparam", 3), ("reparam", 4)]


def assert_differentiable_twice(function, x, step=1e-5, atol=1e-6):
    """Assert that the slope of the gradient along a direction is the difference of gradients there."""
    x = jax.tree.map(jnp.asarray, x)
    direction = jax.tree.map(
        lambda a: jnp.cos(1.0 + jnp.arange(a.size, dtype=a.dtype)).reshape(a.shape), x
    )

    def both(x):
        slope = jax.grad(function)
        moved = lambda by: slope(jax.tree.map(lambda a, d: a + by * d, x, direction))
        differences = jax.tree.map(lambda a, b: (a - b) / (2 * step), moved(step), moved(-step))

        def along(x):
            return sum(
                jnp.vdot(a, d)
                for a, d in zip(*map(jax.tree.leaves, (slope(x), direction)), strict=True)
            )

        return jax.grad(along)(x), differences

    second, differences = jax.jit(both)(x)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=1e-5), second, differences
    )
    assert max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(second)) > 10 * atol


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("name", "chunk_size"), HOW)
def test_second_derivatives_of_what_drops_nothing(name, chunk_size):
    value = value_of(WHOLE[name], chunk_size=chunk_size)
    assert_differentiable_twice(value, P.astype(np.float64))
