"""IVON: its fixed point is the mean-field optimum, exactly; dtypes, chains, and gradients that are not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vijax as vj

ivon, perturb, IvonState = vj.updates.ivon, vj.updates.perturb, vj.updates.IvonState

N, NOISE, DECAY = 50, 0.4, 0.02
X = np.stack([np.ones(N), np.linspace(-1, 1, N), np.sin(np.arange(N))], 1)
Y = X @ np.array([0.5, -1.0, 0.7]) + 0.2 * np.cos(3 * np.arange(N))
PRECISION = X.T @ X / NOISE**2 + N * DECAY * np.eye(3)  # of the posterior under w ~ N(0, 1/(N δ))
MEAN = np.linalg.solve(PRECISION, X.T @ Y / NOISE**2)


def loss(params, rows=slice(None)):
    """The mean over data of -log p(y | w): no prior, no N."""
    x, y = jnp.asarray(X[rows], params["w"].dtype), jnp.asarray(Y[rows], params["w"].dtype)
    return 0.5 * jnp.mean(jnp.square((y - x[:, 0] * params["b"] - x[:, 1:] @ params["w"]) / NOISE))


START = {"b": jnp.zeros(()), "w": jnp.zeros(2)}
join = lambda tree: np.concatenate([np.ravel(tree["b"]), np.ravel(tree["w"])])


def variance(state):
    return 1 / (N * (join(state.hessian) + DECAY))


def crossed(params, state):
    """Weights at ± √d σ along each axis: what Stein's identity gives there is exact for a quadratic loss."""
    far = jnp.sqrt(
        3
        / (
            state.num_data
            * (jnp.concatenate([state.hessian["b"][None], state.hessian["w"]]) + DECAY)
        )
    )
    moves = jnp.concatenate([jnp.diag(far), -jnp.diag(far)])
    return {"b": params["b"] + moves[:, 0], "w": params["w"][None] + moves[:, 1:]}


def fit(optimizer, draw, steps, key, params=START):
    def body(carry, key):
        params, state = carry
        weights = draw(key, params, state)
        grads = jax.vmap(jax.grad(loss))(weights)
        updates, state = optimizer.update(grads, state, params, weights=weights)
        return (optax.apply_updates(params, updates), state), None

    first = (params, optimizer.init(params))
    return jax.jit(lambda keys: jax.lax.scan(body, first, keys)[0])(jax.random.split(key, steps))


def test_the_fixed_point_is_the_mean_field_optimum(x64, key):
    """Exactly, where the expectations are: the posterior's mean, and variances 1 / diag of its precision."""
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float64), START)
    optimizer = ivon(0.3, num_data=N, weight_decay=DECAY, beta2=0.9)
    params, state = fit(optimizer, lambda _, p, s: crossed(p, s), 600, key, params)
    np.testing.assert_allclose(join(params), MEAN, rtol=1e-6)
    np.testing.assert_allclose(variance(state), 1 / np.diag(PRECISION), rtol=1e-6)

    # It is where the diagonal natural gradient ends too.
    def log_joint(z):
        return -N * loss(z) - 0.5 * N * DECAY * (z["b"] ** 2 + jnp.sum(z["w"] ** 2))

    rule = vj.updates.natural_gradient(
        log_joint, num_samples=2, learning_rate=0.5, curvature=vj.updates.hessian
    )
    other = rule.init(vj.families.mean_field().init(key, params))
    step = lambda s, k: (rule.step(k, s)[0], None)
    other, _ = jax.jit(lambda keys: jax.lax.scan(step, other, keys))(jax.random.split(key, 200))
    np.testing.assert_allclose(variance(state), other.root**2, rtol=1e-6)
    np.testing.assert_allclose(join(params), join(other.loc), atol=1e-6)
    # The control: a prior that is N times too strong ends elsewhere.
    _, wrong = fit(
        ivon(0.3, num_data=N, weight_decay=DECAY * N, beta2=0.9),
        lambda _, p, s: crossed(p, s),
        600,
        key,
    )
    assert abs(variance(wrong) * np.diag(PRECISION) - 1).max() > 1e-2


def test_draws_and_minibatches_end_there_too(key):
    """Weights at random and a fifth of the data: within the noise that the rates leave."""
    optimizer = ivon(lambda t: 0.3 / (1 + t / 100), num_data=N, weight_decay=DECAY, beta2=0.998)

    def body(carry, key):
        params, state = carry
        key_rows, key = jax.random.split(key)
        rows = jax.random.choice(key_rows, N, (10,), replace=False)
        weights = perturb(key, params, state, num_samples=4)
        x, y = jnp.asarray(X, jnp.float32)[rows], jnp.asarray(Y, jnp.float32)[rows]
        one = lambda p: (
            0.5 * jnp.mean(jnp.square((y - x[:, 0] * p["b"] - x[:, 1:] @ p["w"]) / NOISE))
        )
        updates, state = optimizer.update(
            jax.vmap(jax.grad(one))(weights), state, params, weights=weights
        )
        return (optax.apply_updates(params, updates), state), None

    first = (START, optimizer.init(START))
    params, state = jax.jit(lambda keys: jax.lax.scan(body, first, keys)[0])(
        jax.random.split(key, 4000)
    )
    np.testing.assert_allclose(variance(state), 1 / np.diag(PRECISION), rtol=0.3)
    np.testing.assert_allclose(join(params), MEAN, atol=0.1)


def test_what_is_drawn(key):
    """N(m, 1/(N (h + δ))), in the shapes and dtypes of params."""
    params = {"b": jnp.float32(2.0), "w": jnp.full(2, -1.0, jnp.float16)}
    state = ivon(0.1, num_data=100, weight_decay=0.5, initial_hessian=0.5).init(params)
    weights = perturb(key, params, state, num_samples=20_000)
    assert jax.tree.map(lambda w: (w.shape, w.dtype), weights) == {
        "b": ((20_000,), jnp.float32),
        "w": ((20_000, 2), jnp.float16),
    }
    np.testing.assert_allclose(
        np.std(np.asarray(weights["w"], np.float64), 0), 0.1, rtol=0.04
    )  # 8 standard errors
    np.testing.assert_allclose(np.mean(np.asarray(weights["b"])), 2.0, atol=0.006)


def test_dtypes_and_shapes_are_kept_and_chains_work(key):
    params = {"half": jnp.ones((2, 3), jnp.bfloat16), "nest": [jnp.float32(0.5)]}
    optimizer = optax.chain(ivon(0.1, num_data=10, weight_decay=0.1), optax.scale(2.0))
    state = optimizer.init(params)
    weights = perturb(key, params, state[0], num_samples=3)
    updates, state = jax.jit(optimizer.update)(weights, state, params, weights=weights)
    alike = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert alike(updates) == alike(params) == alike(optax.apply_updates(params, updates))
    assert {leaf.dtype for leaf in jax.tree.leaves(state[0].hessian)} == {jnp.dtype("float32")}
    assert isinstance(state[0], IvonState)
    assert state[0].steps == 1


def test_gradients_that_are_not_finite_change_nothing(key):
    optimizer = ivon(0.1, num_data=10, weight_decay=0.1)
    state = optimizer.init(START)
    weights = perturb(key, START, state, num_samples=2)
    bad = {"b": jnp.array([jnp.nan, 1.0]), "w": jnp.ones((2, 2))}
    updates, after = optimizer.update(bad, state, START, weights=weights)
    assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(updates))
    jax.tree.map(
        np.testing.assert_array_equal,
        (after.momentum, after.hessian),
        (state.momentum, state.hessian),
    )
    # A wildly negative curvature leaves h + δ positive; the control, without the square, would not.
    grads = jax.tree.map(lambda w, p: -1e3 * (w - p[None]), weights, START)
    _, after = ivon(0.1, num_data=10, weight_decay=0.1, beta2=0.5).update(
        grads, state, START, weights=weights
    )
    assert all(jnp.all(leaf + 0.1 > 0) for leaf in jax.tree.leaves(after.hessian))


def test_hyperparameters_may_be_injected(unchecked):
    """optax.inject_hyperparams makes the optimizer anew at each update, there with traced numbers."""
    numbers = {"learning_rate": 0.1, "num_data": 10, "weight_decay": 0.1}
    weights = jax.tree.map(lambda p: jnp.ones((1, *jnp.shape(p))), START)
    found = [
        jax.jit(lambda s, o=o: o.update(weights, s, START, weights=weights)[0])(o.init(START))
        for o in (ivon(**numbers), optax.inject_hyperparams(ivon)(**numbers))
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *found)


@pytest.mark.parametrize("changed", ["weight_decay", "num_data", "temperature"])
def test_a_hyperparameter_that_changes_is_heeded(changed, x64, key):
    """By a schedule and by hand: the fit ends where one with the last value from the start ends.

    The control: the first value ends elsewhere.
    """
    first = {"num_data": float(N), "weight_decay": DECAY}
    last = {
        "weight_decay": first | {"weight_decay": 10 * DECAY},
        "num_data": first | {"num_data": 3.0 * N},
        "temperature": first | {"num_data": N / 0.5},  # N over a temperature
    }[changed]
    which = "num_data" if changed == "temperature" else changed
    schedule = optax.piecewise_constant_schedule(first[which], {50: last[which] / first[which]})
    start = jax.tree.map(lambda p: jnp.asarray(p, jnp.float64), START)
    make = optax.inject_hyperparams(ivon)

    def crossed_of(decay, params, state):
        """As `crossed`, with the state's own N and δ."""
        h = jnp.concatenate([state.hessian["b"][None], state.hessian["w"]])
        far = jnp.sqrt(3 / (state.num_data * (h + state.weight_decay)))
        moves = jnp.concatenate([jnp.diag(far), -jnp.diag(far)])
        return {"b": params["b"] + moves[:, 0], "w": params["w"][None] + moves[:, 1:]}

    def ends(optimizer, by_hand=None):
        def body(carry, step):
            params, state = carry
            if by_hand:
                now = jnp.where(step < 50, first[which], by_hand)
                state = state._replace(hyperparams={**state.hyperparams, which: now})
            weights = crossed_of(None, params, state.inner_state)
            grads = jax.vmap(jax.grad(loss))(weights)
            updates, state = optimizer.update(grads, state, params, weights=weights)
            return (optax.apply_updates(params, updates), state), None

        (params, state), _ = jax.lax.scan(body, (start, optimizer.init(start)), jnp.arange(600))
        inner = state.inner_state
        h = join_traced(inner.hessian)
        return jnp.append(join_traced(params), 1 / (inner.num_data * (h + inner.weight_decay)))

    join_traced = lambda tree: jnp.concatenate([tree["b"][None], tree["w"]])
    own = lambda numbers, **more: make(0.3, **{**numbers, "beta2": 0.9, **more})
    scheduled, by_hand, right, wrong = jax.jit(
        lambda: (
            ends(own(first, **{which: schedule})),
            ends(own(first), by_hand=last[which]),
            ends(own(last)),
            ends(own(first)),
        )
    )()
    np.testing.assert_allclose(scheduled, right, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(by_hand, right, rtol=1e-6, atol=1e-8)
    assert np.abs(wrong / right - 1).max() > 0.05


def test_the_precision_stays_positive_where_the_weight_decay_falls(key):
    """h may lie anywhere above -δ; a tenth of δ leaves h + δ positive, and nothing is nan."""
    state = ivon(0.1, num_data=10, weight_decay=1.0).init(START)
    state = state._replace(hessian=jax.tree.map(lambda h: -0.9 * jnp.ones_like(h), state.hessian))
    later = ivon(0.1, num_data=10, weight_decay=0.1, beta2=0.9)
    weights = perturb(key, START, state)
    for grads in (
        jax.tree.map(jnp.ones_like, weights),
        jax.tree.map(lambda w: w * jnp.nan, weights),
    ):
        _, after = later.update(grads, state, START, weights=weights)
        assert all(jnp.all(h + after.weight_decay > 0) for h in jax.tree.leaves(after.hessian))
        assert np.isfinite(join(perturb(key, START, after))).all()


def test_what_is_refused(unchecked, key):
    for wrong, message in (
        ({"num_data": 0, "weight_decay": 1.0}, "num_data must be at least 1, got 0"),
        ({"num_data": 5, "weight_decay": 0.0}, "weight_decay must be positive, got 0.0"),
        (
            {"num_data": 5, "weight_decay": 1.0, "initial_hessian": -1.0},
            "initial_hessian must be at least 0",
        ),
        (
            {"num_data": 5, "weight_decay": 1.0, "beta1": 1.0},
            "beta1 must be at least 0 and below 1",
        ),
        (
            {"num_data": 5, "weight_decay": 1.0, "beta2": 1.5},
            "beta2 must be at least 0 and below 1",
        ),
        ({"num_data": 5, "weight_decay": 1.0, "clip_radius": -1.0}, "clip_radius must be positive"),
        (
            {"num_data": 5, "weight_decay": jnp.array([0.0, 1.0])},
            r"weight_decay must be one number, .* got shape \(2,\)",
        ),
        ({"num_data": np.ones(1), "weight_decay": 1.0}, "num_data must be one number"),
    ):
        with pytest.raises(ValueError, match=message):
            ivon(0.1, **wrong)
    optimizer = ivon(0.1, num_data=10, weight_decay=0.1)
    state = optimizer.init(START)
    with pytest.raises(ValueError, match="needs params, the mean, and weights"):
        optimizer.update(START, state, START)
    with pytest.raises(ValueError, match=r"grads and weights must be \[k, \*\(\)\]"):
        optimizer.update(START, state, START, weights=START)
    with pytest.raises(TypeError, match="state must be an IvonState, got tuple"):
        perturb(key, START, (state,))
