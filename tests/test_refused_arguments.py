"""Refusals of arguments: shapes, counts, keys, and pairs of bound, draw and target that would be biased."""

import importlib.util
from functools import partial

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj
from tests import table
from tests.bare import Coin, Gauss
from tests.marks import some

pytestmark = pytest.mark.usefixtures("unchecked")

N = 4
X = jnp.linspace(-1.0, 1.0, N)
Q = Gauss(jnp.zeros(N), jnp.zeros(N))
EVERY = {row.name: row.objective for row in table.GRADIENTS}
EVERY["split"] = lambda bound, **kwargs: vj.gradients.split(model=bound, q=bound, **kwargs)
every = pytest.mark.parametrize("make", list(EVERY))


def good(z):
    return -0.5 * (z - X) ** 2


def estimate(make, *, key=None, log_joint=good, q=Q, bound=vj.bounds.iwae, num_samples=2, **kwargs):
    key = jax.random.key(0) if key is None else key
    return EVERY[make](bound)(key, log_joint, q, num_samples=num_samples, **kwargs).value


# --- shapes

WRONG = {
    "mean over the batch": (
        lambda z: jnp.mean(good(z)),
        Q,
        r"shape \(\) .* has \(4,\).*one value for each member",
    ),
    "wrong length": (lambda z: good(z)[:3], Q, r"shape \(3,\) for one draw.*\(4,\)"),
    "event axes kept": (
        lambda z: jnp.stack([good(z)] * 3, -1),
        Q,
        r"shape \(4, 3\).*sum over the event axes",
    ),
    "forgotten Independent": (
        lambda z: jnp.sum(z, -1),
        Gauss(jnp.zeros((N, 3)), jnp.zeros((N, 3))),
        r"distrax.Independent\(q, reinterpreted_batch_ndims=1\)",
    ),
    "outer product": (
        lambda z: good(z)[:, None] + X[None],
        Q,
        r"\(4, 4\).*broadcast against itself",
    ),
    "integer": (lambda z: jnp.zeros(N, jnp.int32), Q, "real floating"),
    "nothing": (lambda z: None, Q, r"shape \(4,\), got None; does it lack a return"),
    "a list": (lambda z: [good(z)], Q, "got a list of 1.*separate factors in a dict"),
    "a factor": (lambda z: {"x": good(z), "y": None}, Q, r"log_joint\(z\)\['y'\] must be an array"),
    "no factor": (lambda z: {}, Q, "empty dict"),
    "events of a single latent": (
        lambda z: -(z**2),
        Gauss(jnp.zeros(3), jnp.zeros(3), event=1),
        "sum over the event",
    ),
}


@every
@pytest.mark.parametrize("kind", list(WRONG))
def test_shapes_of_log_joint(make, kind):
    log_joint, q, message = WRONG[kind]
    with pytest.raises((ValueError, TypeError), match=message):
        estimate(make, log_joint=log_joint, q=q)
    with pytest.raises((ValueError, TypeError), match=message):
        vj.draws.weigh(jax.random.key(0), log_joint, q, num_samples=2)


@every
@pytest.mark.parametrize(
    ("bound", "message"),
    [
        (vj.bounds.renyi, "renyi is not.*alpha"),
        (partial(vj.bounds.renyi, alhpa=0.5), "renyi with alhpa is not"),
        (vj.gradients.reparam(vj.bounds.iwae), "objective is not: .*estimator"),
        (vj.gradients.reparam, "reparam is not: .*Give the estimator a bound"),
        (jax.random.key(0), r"got a key: .*\(key, log_joint, q, num_samples=16\)"),
        (None, "bound must be callable"),
    ],
    ids=["missing", "misspelt", "an objective", "an estimator", "a key", "none"],
)
def test_bounds_that_cannot_be_called(make, bound, message):
    with pytest.raises(TypeError, match=message):
        estimate(make, bound=bound)


def test_weights_do_not_fit_a_bound_without_a_draw():
    bound = partial(vj.bounds.iwae, weights=jnp.array([0.3, 0.7]))
    with pytest.raises(ValueError, match="bound to weights of 2 draws.*leave `weights` out"):
        estimate("vimco", bound=bound)


def test_two_methods_that_disagree():
    """Where k equals the batch the shapes would broadcast, and the gradient be wrong without a word."""

    class Flat:
        sample_and_log_prob = staticmethod(Q.sample_and_log_prob)

        def log_prob(self, z):
            return jnp.sum(Q.log_prob(z))

    with pytest.raises(ValueError, match="the two methods of q must agree"):
        estimate("dreg", q=Flat(), num_samples=N)


@pytest.mark.parametrize(
    "z", [{"a": jnp.ones(1)}, {"a": jnp.ones(3), "b": jnp.ones(2)}, {"b": jnp.ones(2)}, jnp.ones(5)]
)
def test_a_family_takes_its_own_structure(z):
    family = vj.families.mean_field()
    q = family.dist(family.init(jax.random.key(0), {"a": jnp.zeros(2), "b": jnp.zeros(3)}))
    with pytest.raises(ValueError, match="z must be one draw of this family"):
        q.log_prob(z)


def test_aux_must_be_a_pair():
    target = vj.targets.keyed(lambda key, z: good(z), has_aux=True)
    with pytest.raises(TypeError, match=r"returns \(log_p, aux\)"):
        estimate("reparam", log_joint=target)


def test_the_draw_is_described():
    q = {"a": Q, "b": lambda z: Q}
    with pytest.raises(ValueError, match=r"The draw: a \(4,\), b \(4,\)"):
        estimate("reparam", q=q, log_joint=lambda z: jnp.sum(z["a"] + z["b"]))


def outer(z):
    column = np.linspace(-1.0, 1.0, len(z), dtype=np.float32)[:, None]
    return -0.5 * jnp.mean((z - column) ** 2, 0)  # averaged back to (N,): no shape betrays it


def estimate_outer(make, size, log_joint=outer, **kwargs):
    q = Gauss(jnp.zeros(size), jnp.zeros(size))
    return estimate(make, q=q, log_joint=log_joint, **kwargs)


# JAX remembers traces by shape, and with them that nobody complained: a size of its own for each test and estimator.


@every
@pytest.mark.usefixtures("loose_ranks")
def test_outer_broadcasts_name_the_place(make):
    size, line = 20 + list(EVERY).index(make), outer.__code__.co_firstlineno + 2
    with pytest.raises(
        ValueError, match=rf"\({size},\) against \({size}, 1\).*arguments.py:{line};.*x\[:, 0\]"
    ):
        estimate_outer(make, size)


@pytest.mark.parametrize("make", some(EVERY, "dreg", "vimco", "auto"))
@pytest.mark.usefixtures("loose_ranks")
@pytest.mark.parametrize("chunk_size", [None, 1])
def test_outer_broadcasts_are_refused_each_time(make, chunk_size):
    """The second call too, jitted or not: a cell of a notebook is run again."""
    size = 30 + 2 * list(EVERY).index(make) + (chunk_size or 0)
    for _ in range(2):
        with pytest.raises(ValueError, match="outer product"):
            estimate_outer(make, size, chunk_size=chunk_size)
        with pytest.raises(ValueError, match="outer product"):
            jax.jit(lambda key: estimate_outer(make, size, key=key, chunk_size=chunk_size))(
                jax.random.key(0)
            )


@pytest.mark.usefixtures("loose_ranks")
@pytest.mark.parametrize(("folder", "size"), [("project", 50), ("vijax", 51)])
def test_the_place_is_found_in_a_folder_of_any_name(folder, size, tmp_path):
    """A clone of vijax is a folder called vijax, and a user's model may well live in it."""
    file = tmp_path / folder / "model.py"
    file.parent.mkdir()
    file.write_text(
        "def log_joint(column, z):\n    shifted = z - column\n    return (shifted**2).mean(0)\n"
    )
    spec = importlib.util.spec_from_file_location("model", file)
    model = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(model)
    with pytest.raises(ValueError, match=r"model.py:2;"):
        estimate_outer(
            "reparam", size, log_joint=lambda z: model.log_joint(jnp.zeros((size, 1)), z)
        )


@pytest.mark.usefixtures("loose_ranks")
def test_broadcasts_that_are_meant_pass():
    """Scalars, a vector against the rows of a matrix, and equal ranks are no accident."""
    weights = jnp.ones((N, 3))
    for log_joint in (
        lambda z: good(z) + 1.0,
        lambda z: good(z) + jnp.sum(weights + jnp.ones(3), -1),
        lambda z: jnp.mean((z[None, :] - X[:, None]) ** 2, 0),
    ):
        assert estimate("reparam", log_joint=log_joint).shape == (N,)


# --- counts and keys


@every
def test_num_samples_has_no_default(make):
    with pytest.raises(TypeError, match="num_samples"):
        EVERY[make](vj.bounds.iwae)(jax.random.key(0), good, Q)


@every
@pytest.mark.parametrize("name", ["num_samples", "chunk_size"])
def test_counts_are_positive_and_static(make, name):
    with pytest.raises(ValueError, match=f"{name} must be at least [12], got 0"):
        estimate(make, **{name: 0})
    with pytest.raises(TypeError, match=f"{name} must be a Python int"):
        estimate(make, **{name: True})
    with pytest.raises(TypeError, match=f"{name} must be a Python int"):
        estimate(make, **{name: 2.0})
    with pytest.raises(
        TypeError, match=f"{name} must be a Python int, fixed when the function is traced"
    ):
        jax.jit(lambda count: estimate(make, **{name: count}))(2)


@pytest.mark.parametrize("make", ["vimco", "auto"])
def test_one_draw_has_nobody_to_be_judged_against(make):
    coin = Coin(jnp.zeros(N))
    with pytest.raises(
        ValueError, match="num_samples must be at least 2, got 1.*gradients.score with a baseline"
    ):
        estimate(make, q=coin, num_samples=1)
    with pytest.raises(ValueError, match="at least 2, got 1.*gradients.score"):
        estimate(make, q={"a": coin}, log_joint=lambda z: good(z["a"]), num_samples=1)
    assert np.all(np.isfinite(estimate("score", q=coin, num_samples=1)))
    assert np.all(np.isfinite(estimate("auto", num_samples=1)))  # nothing here needs a score


@every
def test_keys_are_single_and_typed(make):
    with pytest.raises(
        TypeError, match=r"typed key, jax.random.key\(seed\), got uint32\[2\].*wrap_key_data"
    ):
        estimate(make, key=jax.random.PRNGKey(0))
    with pytest.raises(ValueError, match=r"one key of shape \(\), got \(3,\).*vmap over keys"):
        estimate(make, key=jax.random.split(jax.random.key(0), 3))
    with pytest.raises(TypeError, match="typed key"):
        estimate(make, key=0)


@every
def test_q_is_a_distribution(make):
    with pytest.raises(TypeError, match=r"q must offer sample_and_log_prob.*families.adapt"):
        estimate(make, q=jnp.zeros(3))
    with pytest.raises(TypeError, match="non-empty"):
        estimate(make, q={})


@pytest.mark.parametrize("make", [vj.gradients.reparam, vj.gradients.dreg])
def test_a_draw_is_a_draw(make):
    with pytest.raises(TypeError, match=r"draw must be a types.Draw, as draws.iid .*, got normal"):
        make(vj.bounds.elbo, draw=jax.random.normal)(jax.random.key(0), good, Q, num_samples=2)


# --- pairs that would be biased


@pytest.mark.slow
def test_coupled_draws_under_a_curved_dreg():
    q = vj.families.mean_field().dist({"loc": jnp.zeros(2), "log_scale": jnp.zeros(2)})
    target = lambda z: -jnp.sum(z**2)
    run = lambda make, bound: (
        make(bound, draw=vj.draws.antithetic)(jax.random.key(0), target, q, num_samples=4).value
    )
    with pytest.raises(
        ValueError, match=r"dreg\(iwae\) needs independent draws.*gradients.reparam.*bounds.elbo"
    ):
        run(vj.gradients.dreg, vj.bounds.iwae)
    with pytest.raises(ValueError, match="independent draws"):
        run(vj.gradients.dreg, lambda log_w: jnp.mean(log_w, 0))  # not known to be linear
    for make, bound in [
        (vj.gradients.dreg, vj.bounds.elbo),
        (vj.gradients.reparam, vj.bounds.iwae),
        (vj.gradients.reparam, vj.bounds.elbo),
    ]:
        assert np.isfinite(run(make, bound))


@every
def test_a_minibatch_goes_with_a_linear_bound(make):
    q = Gauss(jnp.float32(0.0), jnp.float32(0.0))
    target = vj.targets.minibatch(lambda z: -(z**2), lambda z: -((z - X) ** 2), num_data=100)
    for bound in (vj.bounds.iwae, vj.bounds.cubo, lambda log_w: jnp.mean(log_w, 0)):
        with pytest.raises(
            ValueError, match="minibatch estimates.*must be linear in log_w: use bounds.elbo"
        ):
            estimate(make, log_joint=target, q=q, bound=bound)
    assert np.isfinite(estimate(make, log_joint=target, q=q, bound=vj.bounds.elbo))


@every
@pytest.mark.parametrize("reduce", [jnp.sum, jnp.mean])
def test_a_minibatch_keeps_its_terms(make, reduce):
    q = Gauss(jnp.float32(0.0), jnp.float32(0.0))
    target = vj.targets.minibatch(
        lambda z: -(z**2), lambda z: reduce(-((z - X) ** 2)), num_data=100
    )
    with pytest.raises(
        ValueError, match=r"one term for each datum, \[B, \*batch\].*(Do not sum|Leave the sum)"
    ):
        estimate(make, log_joint=target, q=q, bound=vj.bounds.elbo)


@pytest.mark.usefixtures("loose_ranks")
def test_dreg_needs_draws_that_begin_with_the_batch():
    """A global latent drawn beside a batch of log-densities has no row for each gate."""

    class Shared:
        def __init__(self, p):
            self.p = p

        def sample_and_log_prob(self, *, seed, sample_shape=()):
            z = self.p + jax.random.normal(seed)
            return z, self.log_prob(z)

        def log_prob(self, z):
            return jnp.full(N, -0.5 * (z - self.p) ** 2)

    with pytest.raises(
        ValueError, match=r"begin with q's batch shape \(4,\); leaf 'z' is \(\).*gradients.reparam"
    ):
        estimate("dreg", q=Shared(jnp.float32(0.0)), log_joint=lambda z: good(z))
    assert estimate("reparam", q=Shared(jnp.float32(0.0)), log_joint=lambda z: good(z)).shape == (
        N,
    )


def test_a_bound_that_cannot_lose_a_draw():
    coin = Coin(jnp.zeros(N))
    alone = lambda log_w, **_: vj.bounds.multi_iwae(log_w, groups=2)
    with pytest.raises(ValueError, match="groups must divide"):
        estimate("vimco", q=coin, bound=alone, num_samples=4)


def test_a_baseline_must_fit_the_batch():
    objective = vj.gradients.score(vj.bounds.elbo, baseline=jnp.zeros(N + 1))
    with pytest.raises(ValueError, match=r"baseline|broadcast"):
        objective(jax.random.key(0), good, Q, num_samples=2)
    objective = vj.gradients.score(
        vj.bounds.elbo, baseline=jnp.zeros((2, N))
    )  # one for each draw: depends on draws
    with pytest.raises(ValueError, match="baseline has shape"):
        objective(jax.random.key(0), good, Q, num_samples=2)


@pytest.mark.usefixtures("loose_ranks")
def test_leaves_of_a_joint_share_one_batch():
    q = {"a": distrax.Normal(jnp.zeros(3), 1.0), "b": distrax.Normal(jnp.zeros(2), 1.0)}
    with pytest.raises(
        ValueError,
        match=r"log q\(b \| earlier\) has shape \(2,\).*Wrap event dimensions in Independent",
    ):
        estimate("reparam", q=q, log_joint=lambda z: jnp.sum(z["a"]))
