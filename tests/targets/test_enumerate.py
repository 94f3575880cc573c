"""targets.enumerate: brute force over all joint states, exactly, at S evaluations; and the sites that are not independent."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp
from jax.scipy.stats import norm

import vijax as vj

enumerate_ = vj.targets.enumerate
X = jnp.array([0.3, -1.0, 2.0, 0.1])
PARAMS = {"z": jnp.array([0.1, 1.2, -0.8]), "logits": jnp.array([0.2, -0.4, 0.9])}


def together(log_joint, z, paths, batch=0):
    """log Σ over paths of exp log_joint, whole paths at a time, [*batch]; leaves of paths [all, *batch, *plate, ...]."""

    def one(c):
        found = log_joint(z, c)
        factors = found.values() if isinstance(found, dict) else [found]
        return sum(jnp.sum(f, range(batch, f.ndim)) for f in factors)

    return jax.vmap(one)(paths)


def every(sizes, sites):
    """Return all assignments of states to sites for each leaf, [Π S^N, *sites]."""
    n = math.prod(sites)
    ranges = [range(s) for s in sizes for _ in range(n)]
    rows = np.array(list(itertools.product(*ranges)), np.int32).reshape(-1, len(sizes), *sites)
    return [jnp.asarray(rows[:, i]) for i in range(len(sizes))]


def mixture(p, c):
    log_weights = jax.nn.log_softmax(p["logits"])
    return {
        "prior": jnp.sum(norm.logpdf(p["z"])),
        "x": log_weights[c] + norm.logpdf(X, p["z"][c], 0.7),
    }


def labelled(p, c):
    """A latent class and, given it, a switch, at each site."""
    log_weights = jax.nn.log_softmax(p["logits"])
    switch = jax.nn.log_sigmoid((2.0 * c["switch"] - 1) * p["z"][c["class"]])
    return (
        log_weights[c["class"]]
        + switch
        + norm.logpdf(X, p["z"][c["class"]] + 3.0 * c["switch"], 1.0)
    )


def grid(p, c):
    """A plate of two axes, cells of a table."""
    rows = X[:2, None] * p["z"][None, :]
    return jax.nn.log_softmax(p["logits"])[c] + norm.logpdf(rows, p["z"][c], 1.0)


def spins(p, c):
    """Values that are not 0, 1, ...: a sign, and a one-hot label."""
    return (
        p["z"][0] * c["spin"]
        + c["label"] @ p["logits"]
        + norm.logpdf(X, c["spin"] * c["label"][:, 1])
    )


MODELS = {
    "mixture": (mixture, 3, (4,), [3]),
    "two leaves": (labelled, {"class": 3, "switch": 2}, (4,), [3, 2]),
    "a table": (grid, 3, (2, 3), [3]),
    "values": (
        spins,
        {"label": np.eye(3, dtype=np.float32), "spin": np.array([-1.0, 1.0], np.float32)},
        (4,),
        [3, 2],
    ),
}


def paths_of(states, sites, sizes):
    leaves, tree = jax.tree.flatten(states)
    found = every(sizes, sites)
    return jax.tree.unflatten(
        tree,
        [
            f if isinstance(s, int) else jnp.asarray(s)[f]
            for s, f in zip(leaves, found, strict=True)
        ],
    )


@pytest.mark.parametrize("name", list(MODELS))
def test_it_is_brute_force(name):
    """The value and its gradient, over 3^4 to 6^4 joint states."""
    log_joint, states, plate, sizes = MODELS[name]
    target = enumerate_(log_joint, states, plate=plate).log_joint
    brute = lambda p: logsumexp(together(log_joint, p, paths_of(states, plate, sizes)))
    found, expected = (jax.jit(jax.value_and_grad(f))(PARAMS) for f in (target, brute))
    jax.tree.map(
        lambda f, e: np.testing.assert_allclose(f, e, rtol=1e-5, atol=1e-5), found, expected
    )


@pytest.mark.slow
def test_second_derivatives_and_double_precision(x64):
    params = jax.tree.map(lambda a: a.astype(jnp.float64), PARAMS)
    target = enumerate_(mixture, 3, plate=(4,)).log_joint
    brute = lambda p: logsumexp(together(mixture, p, paths_of(3, (4,), [3])))
    np.testing.assert_allclose(target(params), brute(params), rtol=1e-12)
    expected = jax.jit(jax.hessian(brute))(params)
    for order in (jax.hessian, lambda f: jax.jacfwd(jax.jacfwd(f))):
        found = jax.jit(order(target))(params)
        jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, atol=1e-10), found, expected)


@pytest.mark.parametrize("name", list(MODELS))
def test_the_posterior_is_brute_force(name, key):
    """log p(c | x, z) of every path; the marginals; and 20,000 draws, whose log-density is the one they are given."""
    log_joint, states, plate, sizes = MODELS[name]
    paths = paths_of(states, plate, sizes)

    @jax.jit
    def everything():
        posterior = enumerate_(log_joint, states, plate=plate).posterior(PARAMS)
        c, log_prob = posterior.sample_and_log_prob(seed=key, sample_shape=(20_000,))
        log_prob_of = jax.vmap(posterior.log_prob)
        exact = jax.nn.log_softmax(together(log_joint, PARAMS, paths))
        return posterior.log_probs, log_prob_of(paths), c, log_prob, log_prob_of(c), exact

    log_probs, of_paths, c, log_prob, of_draws, exact = jax.tree.map(np.asarray, everything())
    np.testing.assert_allclose(of_paths, exact, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(log_prob, of_draws, rtol=1e-5, atol=1e-5)
    first = tuple(np.asarray(f)[(slice(None), *(0,) * len(plate))] for f in every(sizes, plate))
    marginal = np.zeros(sizes)
    np.add.at(marginal, first, np.exp(exact))
    np.testing.assert_allclose(np.exp(log_probs[(0,) * len(plate)]), marginal, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.shape[1:], b.shape[1:]), c, paths)
    # Each path's share, within 6.5 standard errors of its own or 3 draws.
    drawn, wanted = (
        np.concatenate(
            [np.asarray(leaf, np.float32).reshape(len(leaf), -1) for leaf in jax.tree.leaves(tree)],
            1,
        )
        for tree in (c, paths)
    )
    for at in np.argsort(-exact)[:5]:
        hit, p = np.mean(np.all(drawn == wanted[at], 1)), np.exp(exact[at])
        assert abs(hit - p) < 6.5 * np.sqrt(p * (1 - p) / 20_000) + 3 / 20_000


@pytest.mark.slow
def test_members_of_a_batch_are_sites():
    """A local latent and a label for each datum; then a plate within each member: [*batch] is kept, the plate summed."""
    z = jnp.array([0.3, -0.2, 0.9, 1.4])
    local = lambda z, c: norm.logpdf(z) + jnp.log(0.5) + norm.logpdf(X, z + 2.0 * c, 1.0)
    target, posterior = enumerate_(local, 2, batch=(4,))
    exact = jnp.logaddexp(local(z, jnp.zeros(4)), local(z, jnp.ones(4)))
    np.testing.assert_allclose(target(z), exact, rtol=1e-6)
    c, log_prob = posterior(z).sample_and_log_prob(seed=jax.random.key(0), sample_shape=(7,))
    assert c.shape == log_prob.shape == (7, 4)
    np.testing.assert_allclose(
        local(z, c[0]) - log_prob[0], exact, rtol=1e-5
    )  # the candidate's identity
    data = jnp.stack([X, X + 1, X - 2], 1)  # [4, 3]
    both = lambda z, c: {"z": norm.logpdf(z), "x": norm.logpdf(data, z[:, None] + 2.0 * c, 1.0)}
    found = enumerate_(both, 2, batch=(4,), plate=(3,)).log_joint(z)
    terms = [norm.logpdf(data, z[:, None] + 2.0 * s, 1.0) for s in (0, 1)]
    np.testing.assert_allclose(found, norm.logpdf(z) + jnp.logaddexp(*terms).sum(1), rtol=1e-6)
    assert enumerate_(both, 2, batch=(4,), plate=(3,)).posterior(z).log_probs.shape == (4, 3, 2)


def test_a_global_latent_above_a_plate():
    """Enumerated twice: Σ_g Π_n Σ_c, at 2 x 3 evaluations, is brute force over 2 x 3^4 states."""
    whole = lambda z, g, c: {
        "g": jnp.log(jnp.array([0.3, 0.7]))[g] + norm.logpdf(z),
        "x": jnp.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])[g][c]
        + norm.logpdf(X, z * (1 + g) + c, 1.0),
    }
    inner = enumerate_(lambda zg, c: whole(*zg, c), 3, plate=(4,)).log_joint
    target = enumerate_(lambda z, g: inner((z, g)), 2).log_joint
    paths = paths_of(3, (4,), [3])
    brute = lambda z: logsumexp(
        jnp.stack([together(lambda z, c, g=g: whole(z, jnp.int32(g), c), z, paths) for g in (0, 1)])
    )
    z = jnp.float32(0.4)
    found, expected = (jax.jit(jax.value_and_grad(f))(z) for f in (target, brute))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.slow
def test_impossible_states():
    """A -inf state counts for nothing, with gradient 0; where all are, -inf, gradient 0, and a uniform posterior."""

    def log_joint(z, c, impossible):
        return jnp.where(
            impossible[:, None][jnp.arange(4), 0] & (c > 0), -jnp.inf, norm.logpdf(X, z[c], 1.0)
        )

    some = jnp.array([True, False, True, False])
    z = PARAMS["z"]
    target, posterior = enumerate_(lambda z, c: log_joint(z, c, some), 3, plate=(4,))
    each = norm.logpdf(X[:, None], z[None], 1.0)
    possible = lambda z: jnp.sum(
        jnp.where(
            some, norm.logpdf(X, z[0], 1.0), logsumexp(norm.logpdf(X[:, None], z[None], 1.0), 1)
        )
    )
    np.testing.assert_allclose(target(z), possible(z), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(target)(z), jax.grad(possible)(z), rtol=1e-5)
    np.testing.assert_allclose(
        jax.jit(jax.hessian(target))(z), jax.jit(jax.hessian(possible))(z), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(posterior(z).log_probs[0], [0.0, -np.inf, -np.inf])
    np.testing.assert_allclose(posterior(z).log_probs[1], jax.nn.log_softmax(each[1]), rtol=1e-5)
    assert posterior(z).log_prob(jnp.array([1, 0, 0, 0])) == -jnp.inf
    assert posterior(z).log_prob(jnp.array([7, 0, 0, 0])) == -jnp.inf  # no state at all
    assert np.all(np.isfinite(jax.jacobian(lambda z: jnp.exp(posterior(z).log_probs))(z)))
    nothing, posterior = enumerate_(lambda z, c: jnp.where(X > 5.0, z[c], -jnp.inf), 3, plate=(4,))
    assert nothing(z) == -jnp.inf
    np.testing.assert_array_equal(jax.grad(nothing)(z), jnp.zeros(3))
    np.testing.assert_allclose(posterior(z).log_probs, np.full((4, 3), -np.log(3)), rtol=1e-6)
    np.testing.assert_array_equal(
        jax.jacobian(lambda z: posterior(z).log_probs)(z), np.zeros((4, 3, 3))
    )


def test_far_states_keep_their_log_probability():
    """A state 200 nats below another is not -inf."""
    posterior = enumerate_(lambda z, c: z * c, 2, plate=(1,)).posterior(jnp.float32(-200.0))
    np.testing.assert_allclose(posterior.log_probs[0], [0.0, -200.0])


def sizes_in(jaxpr):
    for eqn in jaxpr.eqns:
        yield from (math.prod(v.aval.shape) for v in eqn.outvars)
        for inner in eqn.params.values():
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield from sizes_in(getattr(inner, "jaxpr", inner))


def test_it_costs_s_evaluations():
    """XLA's flops grow with S and with N alone, and no array is larger than S terms of N sites; 3^64 is 3.4e30."""

    def log_joint(z, c):
        return jnp.sin(z * c + jnp.arange(1.0 * c.shape[0])) ** 3

    def cost(s, n):
        target = enumerate_(log_joint, s, plate=(n,)).log_joint
        lowered = jax.jit(jax.grad(target)).lower(jnp.float32(0.3)).compile()
        found = lowered.cost_analysis()
        return (found[0] if isinstance(found, list) else found)["flops"], max(
            sizes_in(jax.make_jaxpr(target)(0.3).jaxpr)
        )

    (base, largest), (wide, _), (long, _) = cost(3, 64), cost(6, 64), cost(3, 128)
    assert largest <= 3 * 64
    assert wide < 2.3 * base
    assert long < 2.3 * base


def test_a_part_without_states_is_computed_once():
    """A network of z alone runs once, not S times: the matrix product in the jaxpr has no axis of states."""
    w = jnp.ones((50, 50))
    target = enumerate_(
        lambda z, c: norm.logpdf(X, jnp.tanh(w @ z)[:3][c], 1.0), 3, plate=(4,)
    ).log_joint
    products = [
        e
        for e in jax.make_jaxpr(target)(jnp.ones(50)).jaxpr.eqns
        if e.primitive.name == "dot_general"
    ]
    assert [e.outvars[0].aval.shape for e in products] == [(50,)]


# --- what is refused


def coupled(z, c):
    return {"x": norm.logpdf(X, z["z"][c], 1.0) + 0.8 * (c == jnp.roll(c, 1))}


def test_coupled_sites_are_refused():
    """The negative control: a ring, whose sites read their neighbours. Taken on trust it is off by a nat."""
    with pytest.raises(
        ValueError, match=r"\['x'\] mixes the sites along axis 0 of c, through '.*'.*sequences.hmm"
    ):
        enumerate_(coupled, 3, plate=(4,)).log_joint(PARAMS)
    brute = logsumexp(together(coupled, PARAMS, paths_of(3, (4,), [3])))
    trusted = vj.types.derive(coupled, lambda z, c: coupled(z, c), independent_sites=True)
    assert abs(enumerate_(trusted, 3, plate=(4,)).log_joint(PARAMS) - brute) > 0.5


def test_what_cannot_be_followed_may_be_declared():
    """A permutation there and back is independent, which its jaxpr does not tell."""

    def log_joint(z, c):
        at = jnp.array([2, 0, 3, 1])
        return norm.logpdf(X, z["z"][c][at][jnp.argsort(at)], 1.0)

    with pytest.raises(ValueError, match="gather.*independent_sites"):
        enumerate_(log_joint, 3, plate=(4,)).log_joint(PARAMS)
    declared = vj.types.derive(log_joint, log_joint, independent_sites=True)
    plain = enumerate_(lambda z, c: norm.logpdf(X, z["z"][c], 1.0), 3, plate=(4,)).log_joint
    np.testing.assert_allclose(
        enumerate_(declared, 3, plate=(4,)).log_joint(PARAMS), plain(PARAMS), rtol=1e-6
    )


REFUSED = {
    "summed over the plate": (
        lambda z, c: jnp.sum(norm.logpdf(X, z["z"][c])),
        "as a factor of z alone, and reads c",
    ),
    "wrong shape": (
        lambda z, c: norm.logpdf(X[:3], z["z"][c[:3]]),
        r"has shape \(3,\); it must have a term for each",
    ),
    "transposed": (
        lambda z, c: (z["z"][c][:, None] + jnp.zeros((4, 4))).T[:, 0] + 0 * c,
        "mixes the sites",
    ),
    "integers": (lambda z, c: c, "real floating"),
    "without c": (lambda z, c: norm.logpdf(z["z"][0]), "does not read c"),
    "a list": (lambda z, c: [norm.logpdf(X, z["z"][c])], "an array or a flat dict"),
    "nothing": (lambda z, c: None, "an array or a flat dict"),
    "a factor missing": (
        lambda z, c: {"x": norm.logpdf(X, z["z"][c]), "y": None},
        "an array or a flat dict",
    ),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_shapes_and_types(name):
    log_joint, message = REFUSED[name]
    target = enumerate_(log_joint, 3, plate=(4,))
    with pytest.raises((ValueError, TypeError), match=message):
        target.log_joint(PARAMS)
    with pytest.raises((ValueError, TypeError), match=message):
        jax.jit(lambda z: target.posterior(z).log_probs)(PARAMS)


def test_transposed_axes_are_seen():
    """Two axes of sites of one size, exchanged: the shape is right and the sites are not."""
    square = lambda z, c: norm.logpdf(c.T + z, 0.0, 1.0)
    with pytest.raises(ValueError, match="which it holds along axis 1"):
        enumerate_(square, 3, plate=(2, 2)).log_joint(jnp.float32(0.1))


@pytest.mark.usefixtures("unchecked")
def test_arguments():
    log_joint = lambda z, c: z[c]
    for states in (True, 2.0, None, jnp.float32(3.0), "ab"):
        with pytest.raises((TypeError, ValueError), match="states"):
            enumerate_(log_joint, states, plate=(4,))
    with pytest.raises(ValueError, match="at least one state"):
        enumerate_(log_joint, {"a": 2, "b": 0}, plate=(4,))
    with pytest.raises(TypeError, match=r"plate must be a shape.*\(4,\)"):
        enumerate_(log_joint, 3, plate=4)
    with pytest.raises(TypeError, match="batch must be a shape"):
        enumerate_(log_joint, 3, batch=(2.0,))
    posterior = enumerate_(lambda z, c: z["z"][c], 3, plate=(4,)).posterior(PARAMS)
    with pytest.raises(ValueError, match=r"shape \(3,\), its sites and states are \(4,\)"):
        posterior.log_prob(jnp.zeros(3, int))
    with pytest.raises(ValueError, match="structure"):
        posterior.log_prob({"c": jnp.zeros(4, int)})


def test_a_site_alone_and_a_state_alone():
    """One site of one state: the log joint itself. One site of a plate may read itself by any way."""
    target = enumerate_(lambda z, c: jnp.cumsum(z["z"][c]), 1, plate=(1,)).log_joint
    np.testing.assert_allclose(target(PARAMS), PARAMS["z"][0])
