"""spline_coupling and inverse_autoregressive: densities by quadrature, draws, derivatives, and a target that Gaussians miss."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.scipy.stats import norm

import vijax as vj
from tests import oracles
from tests.marks import some
from tests.statistics import assert_mean
from vijax.families import _networks as networks
from vijax.families import _spline
from vijax.testing import check_unbiased

pytestmark = pytest.mark.usefixtures("loose_ranks")
families = vj.families
BASE = families.full_rank(scale=0.7)
MAKES = {
    "spline_coupling": partial(families.spline_coupling, layers=2, bins=3, hidden=(4,)),
    "inverse_autoregressive": partial(families.inverse_autoregressive, layers=2, hidden=(4,)),
}
FLOWS = {name: make(base=BASE) for name, make in MAKES.items()}
LIKE = {"a": jnp.float32(0.5), "b": (jnp.array([-0.3]),)}
flows = pytest.mark.parametrize("name", list(FLOWS))


def away(family, like, key, by=0.2):
    """Return parameters away from their start, so that every one is in play, and the way back from a vector."""
    flat, unravel = ravel_pytree(family.init(key, like))
    return flat + by * jax.random.normal(
        jax.random.fold_in(key, 1), flat.shape, flat.dtype
    ), unravel


def doubled(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree)


@pytest.mark.parametrize("name", some(FLOWS, "inverse_autoregressive"))
def test_starts_as_its_base(name, key):
    """The same draws from the same key, and the same density; not so once its last layers have moved."""
    family, base = FLOWS[name], BASE.dist(BASE.init(key, LIKE))

    @jax.jit
    def look(params):
        q = family.dist(params)
        z, log_q = q.sample_and_log_prob(seed=key, sample_shape=(3, 2))
        return z, log_q, jax.vmap(jax.vmap(q.log_prob))(z)

    z, log_q, again = look(family.init(key, LIKE))
    expected, density = base.sample_and_log_prob(seed=key, sample_shape=(3, 2))
    assert jax.tree.structure(z) == jax.tree.structure(LIKE)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        (z, log_q, again),
        (expected, density, density),
    )
    flat, unravel = away(family, LIKE, key)
    z, log_q, again = look(unravel(flat))
    np.testing.assert_allclose(
        log_q, again, atol=2e-3
    )  # test_density_and_draws_agree looks in float64
    assert np.abs(np.asarray(z["a"] - expected["a"])).max() > 0.1
    assert np.abs(log_q - jax.vmap(jax.vmap(base.log_prob))(z)).max() > 0.1


@pytest.mark.slow
@flows
@pytest.mark.parametrize("d", [1, 2])
def test_density_and_draws_agree(name, d, key, x64):
    """The density integrates to 1, and its first two moments are those of the draws. By chance 2e-10; detects .12."""
    family = FLOWS[name]
    flat, unravel = away(family, jnp.zeros(d, jnp.float64), key)
    q = family.dist(unravel(flat))
    axes = [oracles.interval(-10.0, 10.0, 4001 if d == 1 else 501)] * d
    points, volumes = oracles.cross(*axes)
    points = jnp.stack(points, -1)
    mass = jnp.exp(jax.jit(jax.vmap(q.log_prob))(points)) * volumes
    np.testing.assert_allclose(mass.sum(), 1.0, atol=1e-5 if d == 1 else 1e-3)
    z, log_q = jax.jit(lambda: q.sample_and_log_prob(seed=key, sample_shape=(20_000,)))()
    np.testing.assert_allclose(jax.jit(jax.vmap(q.log_prob))(z), log_q, atol=1e-8)
    moments = lambda z: {"z": z, "z²": z**2, "product": z[:, 0] * z[:, -1] * jnp.abs(z[:, 0])}
    truth = {name: np.tensordot(mass, value, 1) for name, value in moments(points).items()}
    scale = {name: np.asarray(value).std(0) for name, value in moments(z).items()}
    shift = lambda found: {name: found[name] / scale[name] for name in scale}
    assert_mean(shift(moments(z)), shift(truth), detects=0.12)
    other, _ = BASE.dist(unravel(flat)["base"]).sample_and_log_prob(
        seed=key, sample_shape=(20_000,)
    )
    with pytest.raises(
        AssertionError, match="biased"
    ):  # the control: the base's own moments are others
        assert_mean(shift(moments(other)), shift(truth), detects=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(FLOWS))
def test_derivatives_are_all_there(name, key, x64):
    """Of a draw, its log q, and log q of a point from elsewhere, in every parameter: as central differences have them."""
    family = FLOWS[name]
    flat, unravel = away(family, doubled(LIKE), key)
    point = {"a": jnp.float64(0.1), "b": (jnp.array([0.4]),)}

    def look(flat, at):
        q = family.dist(unravel(flat))
        z, log_q = q.sample_and_log_prob(seed=key)
        return jnp.concatenate([ravel_pytree(z)[0], log_q[None], q.log_prob(at(point))[None]])

    n = flat.size
    whole = lambda v: look(v[:n], lambda z: ravel_pytree(z)[1](v[n:]))
    v = jnp.concatenate([flat, ravel_pytree(point)[0]])
    backward = jax.jit(jax.jacrev(whole))(v)
    differences = jax.jit(
        lambda: jax.lax.map(
            lambda e: (whole(v + 1e-6 * e) - whole(v - 1e-6 * e)) / 2e-6, jnp.eye(v.size)
        )
    )()
    np.testing.assert_allclose(backward.T, differences, atol=2e-6)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(whole))(v), backward, atol=1e-9)
    assert np.all(np.abs(differences).max(0) > 1e-2)


def curved(z):
    """A skewed and curved log-density, unnormalised: of one number, or of two of which one is the other's square."""
    last = norm.logpdf(z[-1], 0.4 * z[0] ** 2, 0.8) if z.size > 1 else -jnp.exp(-z[0])
    return norm.logpdf(z[0], 0.3, 1.0) + last


CASES = [(name, d) for name in FLOWS for d in (1, 2)]


@flows
@pytest.mark.parametrize("estimator", [vj.gradients.reparam, vj.gradients.dreg])
def test_paths_are_taken(estimator, name, key):
    def value(params):
        q = FLOWS[name].dist(params)
        target = lambda z: -0.5 * (z["a"] ** 2 + jnp.sum(z["b"][0] ** 2))
        return estimator(vj.bounds.iwae)(key, target, q, num_samples=2).value

    jax.eval_shape(jax.grad(value), FLOWS[name].init(key, LIKE))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]} {case[1]}")
def test_gradients_are_unbiased(case, key):
    """reparam and dreg of the elbo against quadrature of q (log p - log q). Chance 1e-6; a bias of .3 nats is found."""
    name, d = case
    family = FLOWS[name]
    flat, unravel = away(family, jnp.zeros(d), key)
    points, volumes = oracles.cross(*[oracles.interval(-9.0, 9.0, 2001 if d == 1 else 351)] * d)

    @oracles.exact
    def slope(flat, points, volumes):
        def elbo(flat):
            q = family.dist(unravel(flat))
            log_q, log_p = jax.vmap(lambda z: (q.log_prob(z), curved(z)))(points)
            return jnp.sum(volumes * jnp.exp(log_q) * (log_p - log_q))

        return jax.jit(jax.grad(elbo))(flat)

    # Along eight directions at random, in which every parameter takes part: fewer numbers to compare.
    directions = np.linalg.qr(np.random.default_rng(0).normal(size=(flat.size, 8)))[0] * np.sqrt(
        flat.size / 8
    )
    truth = (slope(np.asarray(flat), np.stack(points, -1), volumes) @ directions).astype(np.float32)
    makes = {"reparam": vj.gradients.reparam, "dreg": vj.gradients.dreg}

    def estimate(key):
        def slope(make):
            value = lambda flat: (
                make(vj.bounds.elbo)(key, curved, family.dist(unravel(flat)), num_samples=4).value
            )
            return jax.grad(value)(flat) @ directions.astype(np.float32)

        return {name: slope(make) for name, make in makes.items()}

    report = check_unbiased(key, estimate, dict.fromkeys(makes, truth), detects=0.3)
    assert report.num_keys > 1000
    # The control: a truth that is off by what must be found.
    wrong = {"reparam": truth, "dreg": truth + np.float32(0.3) * np.eye(8, dtype=np.float32)[3]}
    with pytest.raises(AssertionError, match="biased"):
        check_unbiased(key, estimate, wrong, detects=0.3)


def banana(z):
    """z₁ ~ N(0, 1), z₂ | z₁ ~ N(z₁², ¼): a log-density with integral 1."""
    return norm.logpdf(z[0]) + norm.logpdf(z[1], z[0] ** 2, 0.5)


def climb(
    family, target, like, key, *, steps, num_samples=32, make=vj.gradients.dreg, draw=vj.draws.iid
):
    """Return the elbo of 20,000 draws after Adam with a cosine schedule."""
    import optax

    objective = make(vj.bounds.elbo, draw=draw)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.02, steps))
    value = lambda params, key, k: objective(key, target, family.dist(params), num_samples=k).value

    def step(carry, key):
        params, state = carry
        updates, state = optimizer.update(
            jax.grad(lambda p: -value(p, key, num_samples))(params), state
        )
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def run(key):
        of_start, of_steps, of_end = jax.random.split(key, 3)
        params = family.init(of_start, like)
        (params, _), _ = jax.lax.scan(
            step, (params, optimizer.init(params)), jax.random.split(of_steps, steps)
        )
        return value(params, of_end, 20_000)

    return float(run(key))


WIDE = {
    "spline_coupling": families.spline_coupling(hidden=(16,)),
    "inverse_autoregressive": families.inverse_autoregressive(layers=4),
    "full_rank": families.full_rank(),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(WIDE))
def test_a_banana(name, key):
    """log Z is 0: the flows come within .2 of it in 1,000 steps (.07 was seen); the control, a Gaussian, stays below -.5."""
    found = climb(WIDE[name], banana, jnp.zeros(2), key, steps=1000, make=vj.gradients.reparam)
    assert -0.75 < found < -0.5 if name == "full_rank" else -0.2 < found < 0.01


@pytest.mark.slow
def test_a_mixture_of_flows(key):
    """Two of them under stratified draws fit two skewed modes, log Z = 0; independent draws are refused."""
    apart = families.mixture(FLOWS["spline_coupling"], components=2)

    def init(key, like):
        params = apart.init(key, like)
        params["components"]["base"]["loc"] = jnp.array([-2.0, 2.0])
        return params

    def skewed(z):
        gumbel = lambda r: -r - jnp.exp(-r)
        return jnp.logaddexp(jnp.log(0.3) + gumbel(z + 2.0), jnp.log(0.7) + gumbel(2.0 - z))

    family = vj.types.Family(init, apart.dist)
    elbo = climb(
        family, skewed, jnp.float32(0.0), key, steps=300, num_samples=8, draw=vj.draws.stratified
    )
    assert -0.06 < elbo < 0.01
    with pytest.raises(
        ValueError, match="dreg needs draws that carry the derivative of q.*draws.stratified"
    ):
        vj.gradients.dreg(vj.bounds.elbo)(
            key, skewed, family.dist(family.init(key, jnp.float32(0.0))), num_samples=2
        )


@pytest.mark.parametrize("name", some(FLOWS, "inverse_autoregressive"))
def test_one_trace_for_all_and_vmap_is_a_loop(name, key):
    """A scan of steps over a batch of parameters traces the target as often as one; members equal their own run."""
    family, traced = FLOWS[name], []

    def target(z):
        traced.append(0)
        return curved(jnp.stack([z["a"], z["b"][0][0]]))

    def value(params, key):
        return vj.gradients.dreg(vj.bounds.iwae)(
            key, target, family.dist(params), num_samples=3
        ).value

    @jax.jit
    def run(keys, of_start):
        params = jax.vmap(family.init, (0, None))(of_start, LIKE)
        return jax.lax.scan(lambda _, k: (None, jax.vmap(value, (0, None))(params, k)), None, keys)[
            1
        ]

    keys = jax.random.split(key, 3)
    found, first = run(keys, keys[:2]), len(traced)
    again = run(keys[::-1], keys[:2])
    assert first == len(traced)
    np.testing.assert_allclose(found, again[::-1], rtol=1e-5)
    one = jax.jit(lambda k: value(family.init(keys[1], LIKE), k))(keys[2])
    np.testing.assert_allclose(found[2, 1], one, rtol=1e-4)


@flows
@pytest.mark.parametrize(
    "base", [families.full_rank(), families.mean_field()], ids=["full_rank", "mean_field"]
)
def test_fifty_latents_start_finite(name, base, key):
    """The elbo of a start is the base's own; bigger networks change nothing, as their last layer is zero."""
    family = getattr(families, name)(base=base)
    target = lambda z: jnp.sum(norm.logpdf(z))
    value = lambda family: (
        vj.gradients.reparam(vj.bounds.elbo)(
            key, target, family.dist(family.init(key, jnp.full(50, 3.0))), num_samples=2
        ).value
    )
    np.testing.assert_allclose(*jax.jit(lambda: (value(family), value(base)))(), rtol=1e-4)


def test_every_latent_meets_every_other():
    """2 log₂ d + 6 layers keep each latent once while they move each other one, and each two layers move all."""
    for d in range(2, 80):
        orders = _spline._orders(d, 2 * (d - 1).bit_length() + 6)
        moved = np.zeros((len(orders), d), bool)
        for l, order in enumerate(orders):
            assert sorted(order) == list(range(d))
            moved[l, order[d // 2 :]] = True
        assert np.all(moved[0::2] | moved[1::2])
        meets = (~moved[:, :, None] & moved[:, None, :]).any(0)
        assert np.all(meets | np.eye(d, dtype=bool)), d
    assert _spline._orders(1, 3).tolist() == [[0]] * 3


@pytest.mark.parametrize("hidden", [(), (7,), (2, 9)])
@pytest.mark.parametrize("d", [1, 2, 5])
def test_masks_are_autoregressive(d, hidden, key):
    """Each output's derivative is zero at its own position and later ones, and with room no earlier one is missed."""
    positions = np.arange(1, d + 1)[::-1]
    masks = networks.autoregressive_masks(positions, hidden, 2)
    params = networks.init(key, (d, *hidden, 2 * d), jnp.float32)
    params = jax.tree.map(lambda leaf: jax.random.normal(key, leaf.shape), params)
    jacobian = np.asarray(
        jax.jacobian(lambda x: networks.apply(params, x, masks))(jnp.ones(d))
    ).reshape(2, d, d)
    earlier = positions[None, :] < positions[:, None]
    assert np.all(jacobian[:, ~earlier] == 0)
    assert min(hidden, default=d) < d - 1 or np.all(jacobian[:, earlier] != 0)


def test_refusals(key, unchecked):
    flow = families.spline_coupling
    with pytest.raises(
        ValueError, match="base of spline_coupling must have as many .*got 3 for 2: low_rank"
    ):
        flow(base=families.low_rank(rank=1)).init(key, jnp.zeros(2))
    with pytest.raises(TypeError, match="affine.*makes a _Mixture"):
        flow(base=families.mixture(BASE, components=2)).init(key, jnp.zeros(2))
    with pytest.raises(TypeError, match="Gaussian family"):
        families.inverse_autoregressive().init(key, jnp.arange(3))
    for wrong in ({"layers": 0}, {"bins": 0}, {"interval": 0.0}, {"hidden": 8}, {"hidden": (8, 0)}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
            flow(**wrong)
    with pytest.raises(TypeError, match="layers must be a Python int.*got 2.5"):
        flow(layers=2.5)
    q = FLOWS["spline_coupling"].dist(FLOWS["spline_coupling"].init(key, LIKE))
    with pytest.raises(ValueError, match="z must be one draw of this family.*vmap"):
        q.log_prob({"a": jnp.zeros(3), "b": (jnp.zeros((3, 1)),)})


@pytest.mark.slow
@flows
def test_transport_and_dtypes(name, key, x64):
    """Uniforms become the draws of their normal quantiles, smoothly to the ends; noise follows the latents' dtype."""
    family = FLOWS[name]
    for dtype in (jnp.float32, jnp.float64):
        flat, unravel = away(family, jnp.zeros(2, dtype), key)
        q = family.dist(unravel(flat))
        z, log_q = jax.jit(lambda q=q: q.sample_and_log_prob(seed=key))()
        assert (z.dtype, log_q.dtype) == (dtype, dtype)
        e = jax.random.normal(key, (2,), dtype)
        found = jax.jit(jax.vmap(q.transport))(
            jnp.stack([norm.cdf(e), jnp.zeros(2, dtype), jnp.ones(2, dtype)])
        )
        np.testing.assert_allclose(found[0], z, atol=1e-4 if dtype == jnp.float32 else 1e-9)
        assert np.all(np.isfinite(found))
