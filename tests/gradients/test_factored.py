"""gradients.factored: exact mean gradients where leaves depend on each other in every way, and less noise the more leaves there are."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

import vijax as vj
from tests import enumeration as enum
from tests.bare import Coin
from tests.targets.test_exact_kl import Flip, Known, Normal
from vijax.gradients import _factored

elbo = vj.bounds.elbo


def coins():
    """Three coins, the last given the first; factors of one, of two and of none."""
    params = {
        "q": {"a": 0.4, "b": -0.3, "c": 0.6, "slope": -0.8},
        "theta": {"u": 0.7, "v": -0.4, "w": 0.2},
    }
    build = lambda q: {
        "a": Flip(q["a"]),
        "b": Flip(q["b"]),
        "c": lambda e: Flip(q["c"] + q["slope"] * e["a"]),
    }
    log_p = lambda t, z: {
        "none": norm.logpdf(
            t["u"], 0.0, 1.0
        ),  # not in the order of the alphabet, into which JAX puts a dict
        "a": norm.logpdf(t["u"], z["a"], 1.0),
        "ab": norm.logpdf(t["v"], z["b"] * z["a"], 0.8),
        "b": jnp.where(z["b"] > 0.5, t["w"], -0.3),
        "c": norm.logpdf(t["w"], 2 * z["c"], 0.7),
    }
    return params, build, log_p, (2, 2, 2)


def mixed():
    """A normal with a path, a coin given it, a normal given the coin, and a coin on its own."""
    params = {
        "q": {"loc": 0.3, "slope": 0.8, "jump": 0.5, "d": -0.2},
        "theta": {"u": 0.7, "v": -0.4},
    }
    build = lambda q: {
        "a": Normal(q["loc"], jnp.full_like(q["loc"], -0.4), 12),
        "b": lambda e: Flip(q["slope"] * e["a"]),
        "c": lambda e: Normal(q["jump"] * e["b"] + 0.2 * e["a"], jnp.full_like(e["a"], -0.3), 12),
        "d": Flip(q["d"]),
    }
    log_p = lambda t, z: {
        "a": norm.logpdf(z["a"], t["u"], 1.0),
        "c": norm.logpdf(z["c"], t["v"], 0.9),
        "bd": norm.logpdf(t["u"], z["b"] + z["d"], 1.0),
        "d": norm.logpdf(t["v"], z["d"], 1.0),
    }
    return params, build, log_p, (12, 2, 12, 2)


def check(case, objective, *, whole=False):
    params, build, log_p, sizes = case()
    params = jax.tree.map(jnp.float64, params)
    problem = enum.Problem(params, build, lambda t, z: sum(log_p(t, z).values()), sizes)

    def make(theta):
        log_joint = (lambda z: sum(log_p(theta, z).values())) if whole else partial(log_p, theta)
        return lambda key, _, q, *, num_samples: objective(
            key, log_joint, q, num_samples=num_samples
        )

    with jax.numpy_rank_promotion("allow"):
        found, expected = (
            problem.mean(make, 2, symmetric=True),
            problem.truth(elbo, 2, symmetric=True),
        )
    jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, atol=1e-9), found, expected)


@pytest.mark.parametrize("case", [coins, pytest.param(mixed, marks=pytest.mark.slow)])
@pytest.mark.parametrize("whole", [pytest.param(False, marks=pytest.mark.slow), True])
def test_its_mean_is_the_gradient(case, whole, x64):
    check(case, vj.gradients.factored(elbo), whole=whole)


@pytest.mark.parametrize("lost", ["ab", "c"])
def test_a_factor_lost_that_depends_is_a_bias(lost, x64, monkeypatch):
    """The control: "ab" depends on a directly, "c" only through the coin that is drawn given a."""
    kept = _factored._factors
    cut = lambda *args: {
        name: on - {"a", "c"} if name == lost else on for name, on in kept(*args).items()
    }
    monkeypatch.setattr(_factored, "_factors", cut)
    with pytest.raises(AssertionError):
        check(coins, vj.gradients.factored(elbo))


def test_what_depends_on_what(key):
    """Each leaf's factors, as a person would list them."""
    params, build, log_p, _ = coins()
    q = vj.Joint(build(jax.tree.map(jnp.float32, params["q"])))
    z = {name: jnp.zeros(2) for name in "abc"}
    of_p = _factored._factors(partial(log_p, params["theta"]), z, jnp.zeros(2), None, q)
    assert of_p == {"none": set(), "a": {"a"}, "ab": {"a", "b"}, "b": {"b"}, "c": {"c"}}
    of_q = _factored._densities(q, z)
    assert of_q == {"a": {"a"}, "b": {"b"}, "c": {"a", "c"}}
    assert [_factored._downstream(n, of_q) for n in "abc"] == [{"a", "c"}, {"b"}, {"c"}]


def test_tuples_and_names_out_of_order():
    """JAX flattens a dict by its sorted names, whatever the order in which leaves are drawn."""
    z = {"z": jnp.zeros(2), "a": jnp.zeros(2)}
    q = vj.Joint({"z": Coin(0.0), "a": lambda e: Coin(e["z"])})
    assert _factored._densities(q, z) == {"z": {"z"}, "a": {"z", "a"}}
    factors = lambda z: {"y": z["a"], "x": z["z"]}
    assert _factored._factors(factors, z, jnp.zeros(2), None, q) == {"y": {"a"}, "x": {"z"}}
    q, z = vj.Joint((Coin(0.0), lambda e: Coin(e[0]))), (jnp.zeros(2), jnp.zeros(2))
    assert _factored._densities(q, z) == {0: {0}, 1: {0, 1}}
    assert _factored._factors(lambda z: z[1], z, jnp.zeros(2), None, q) == {"": {1}}


FORMS = {
    "comparison": lambda a: jnp.where(a > 0.5, 1.0, 0.0),
    "index": lambda a: jnp.arange(3.0)[a.astype(int)],
    "stopped": jax.lax.stop_gradient,
    "cond": lambda a: jax.lax.cond(a > 0.5, lambda: 1.0, lambda: 2.0),
    "switch": lambda a: jax.lax.switch(a.astype(int), [lambda: 1.0, lambda: 2.0]),
    "while": lambda a: jax.lax.while_loop(lambda s: s < a, lambda s: s + 1.0, 0.0),
    "fori": lambda a: jax.lax.fori_loop(0, a.astype(int) + 1, lambda i, s: s + 1.0, 0.0),
    "scan": lambda a: jax.lax.scan(lambda s, x: (s + x, None), 0.0, jnp.stack([a, a]))[0],
    "carry": lambda a: jax.lax.scan(lambda s, x: ((s[1], s[0]), None), (0.0, a), jnp.arange(3))[0][
        0
    ],
    "custom derivative": jax.nn.relu,
    "jit": jax.jit(jnp.sin),
    "checkpoint": jax.checkpoint(jnp.sin),
    "sort": lambda a: jnp.argsort(jnp.stack([a, 0.5]))[0] * 1.0,
    "scatter": lambda a: jnp.zeros(2).at[a.astype(int)].set(1.0)[0],
    "host": lambda a: jax.pure_callback(np.asarray, jax.ShapeDtypeStruct((), jnp.float32), a),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_dependence_of_any_form_is_found(form):
    q = vj.Joint({"a": Coin(0.0), "b": Coin(0.0)})
    z = {name: jnp.zeros(2) for name in "ab"}
    factors = lambda z: {
        "one": FORMS[form](z["a"]),
        "two": FORMS[form](z["b"]),
        "three": z["a"] * FORMS[form](z["b"]),
    }
    found = _factored._factors(factors, z, jnp.zeros(2), None, q)
    assert found == {"one": {"a"}, "two": {"b"}, "three": {"a", "b"}}


# --- variance


def many(n):
    """Return n coins, each with a datum of its own, and a gradient's variance of an estimator of two draws."""
    x = np.linspace(-1.0, 2.0, n)
    names = [f"z{i:02}" for i in range(n)]
    factors = lambda z: {name: norm.logpdf(x[i], z[name], 1.0) for i, name in enumerate(names)}

    def variance(objective, key):
        def value(logits, key):
            q = {name: Coin(logits[i]) for i, name in enumerate(names)}
            return objective(key, factors, q, num_samples=2).value

        slopes = jax.jit(jax.vmap(jax.grad(value), (None, 0)))(
            jnp.linspace(-0.5, 0.5, n), jax.random.split(key, 4000)
        )
        return np.asarray(slopes, np.float64).mean(0), float(np.var(slopes, axis=0).sum())

    return variance


@pytest.mark.slow
def test_its_variance_does_not_grow_with_the_leaves(key):
    """Of twelve coins that know nothing of each other, a tenth of vimco's or less, and the same mean."""
    variance = many(12)
    (mean, own), (other, of_vimco) = (
        variance(vj.gradients.factored(elbo), key),
        variance(vj.gradients.vimco(elbo), key),
    )
    assert 10 * own < of_vimco
    np.testing.assert_allclose(mean, other, atol=6 * np.sqrt(of_vimco / 12 / 4000) + 0.01)


# --- what else objectives promise


@pytest.mark.slow
def test_chunks_batches_and_aux(key):
    x = jnp.array([0.3, -1.0, 2.0])
    q = lambda l: {"a": Coin(l), "b": Coin(-l)}
    factors = lambda z: {"a": norm.logpdf(x, z["a"], 1.0), "b": norm.logpdf(x, 2 * z["b"], 1.0)}
    keyed = vj.targets.keyed(lambda key, z: (factors(z), z["a"]), has_aux=True)

    def run(l, log_joint, chunk):
        found = vj.gradients.factored(elbo)(key, log_joint, q(l), num_samples=6, chunk_size=chunk)
        return found.value.sum(), found.draws

    value = jax.value_and_grad(run, has_aux=True)
    (one, seen), slope = value(x / 2, factors, None)
    (two, _), chunked = value(x / 2, factors, 2)
    np.testing.assert_allclose(one, two, rtol=1e-6)
    np.testing.assert_allclose(slope, chunked, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(one, seen.log_w.mean(0).sum(), rtol=1e-6)
    draws = run(x / 2, keyed, None)[1]
    np.testing.assert_array_equal(draws.aux, draws.z["a"])


def test_with_terms_in_closed_form(x64):
    """targets.exact_kl of a dict of likelihoods: exact in mean, no draw of log q left in any signal."""
    params = {"q": {"a": 0.4, "b": -0.3}, "theta": {"u": 0.7, "p": -0.5}}
    params = jax.tree.map(jnp.float64, params)
    build = lambda q: {"a": Flip(q["a"]), "b": Flip(q["b"])}
    prior = lambda t: {"a": Flip(t["p"]), "b": Flip(2 * t["p"])}
    terms = lambda t, z: {
        "a": norm.logpdf(t["u"], z["a"], 1.0),
        "b": norm.logpdf(t["u"], 2 * z["b"], 1.0),
    }
    whole = lambda t, z: sum(terms(t, z).values()) + vj.types.lift(prior(t)).log_prob(z)
    problem = enum.Problem(params, build, whole, (2, 2))

    def make(theta):
        def run(key, _, q, *, num_samples):
            log_joint = vj.targets.exact_kl(partial(terms, theta), prior(theta), q)
            return vj.gradients.factored(elbo)(key, log_joint, q, num_samples=num_samples)

        return run

    with jax.numpy_rank_promotion("allow"):
        found, expected = (
            problem.mean(make, 2, symmetric=True),
            problem.truth(elbo, 2, symmetric=True),
        )
    jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, atol=1e-9), found, expected)


@pytest.mark.slow
def test_impossible_draws_move_nothing(key):
    """A factor of -inf is reported, and gives no nan: neither to its own leaf nor to the others."""
    log_joint = lambda z: {
        "a": jnp.where(z["a"] > 0.5, -jnp.inf, 0.0),
        "b": norm.logpdf(1.0, z["b"], 1.0),
    }
    run = lambda l, k: (
        vj.gradients.factored(elbo)(
            k, log_joint, {"a": Coin(l[0]), "b": Coin(l[1])}, num_samples=3
        ).value
    )
    slopes = jax.vmap(jax.grad(run), (None, 0))(jnp.zeros(2), jax.random.split(key, 64))
    assert np.all(np.isfinite(slopes))
    assert np.any(slopes[:, 1] != 0)


def test_leaves_with_a_path_alone_are_reparam(key):
    q = {"a": Known(0.3, -0.2), "b": Known(0.1, 0.2)}
    log_joint = lambda z: {"a": norm.logpdf(z["a"]), "b": norm.logpdf(z["b"], 1.0, 1.0)}
    one, two = (
        g(elbo)(key, log_joint, q, num_samples=2).value
        for g in (vj.gradients.factored, vj.gradients.reparam)
    )
    np.testing.assert_array_equal(one, two)
    alone = vj.gradients.factored(elbo)(
        key, lambda z: norm.logpdf(z), Coin(0.3), num_samples=2
    ).value
    np.testing.assert_array_equal(
        alone,
        vj.gradients.vimco(elbo)(key, lambda z: norm.logpdf(z), Coin(0.3), num_samples=2).value,
    )


@pytest.mark.parametrize(
    "bound", [vj.bounds.iwae, partial(vj.bounds.renyi, alpha=0.5), partial(vj.bounds.cubo, n=2.0)]
)
def test_any_other_bound_is_refused(bound, key):
    q = {"a": Coin(0.3), "b": Coin(0.1)}
    with pytest.raises(
        ValueError, match=r"linear in log_w: use bounds.elbo, or gradients.vimco for"
    ):
        vj.gradients.factored(bound)(key, lambda z: {"a": z["a"], "b": z["b"]}, q, num_samples=2)


@pytest.mark.usefixtures("unchecked")
def test_refusals(key):
    q = {"a": Coin(0.3), "b": Coin(0.1)}
    factored = vj.gradients.factored(elbo)
    with pytest.raises(ValueError, match="at least 2"):
        factored(key, lambda z: {"a": z["a"]}, q, num_samples=1)
    with pytest.raises(ValueError, match=r"log_joint\(z\)\['a'\] has shape"):
        factored(key, lambda z: {"a": jnp.stack([z["a"]] * 3), "b": z["b"]}, q, num_samples=2)
    with pytest.raises(TypeError, match="empty dict"):
        factored(key, lambda z: {}, q, num_samples=2)
    with pytest.raises(TypeError, match="typed key"):
        factored(3, lambda z: {"a": z["a"]}, q, num_samples=2)
