"""The contenders, by hand, by vijax and by peers, made comparable: every loss is a function of (params, key, x)."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

import vijax as vj
from benchmarks import _model as model
from benchmarks import _peers as peers
from benchmarks._model import Loss, Params, reduce

ValueAndGrad = Callable[[Params, Array, Array], tuple[Array, Params]]
LogJoint = Callable[[Params, Array, Array], Array]

# By hand ------------------------------------------------------------------------------------------------------------


def flat_log_joint(params: Params, x: Array, z: Array) -> Array:
    # Rows in one axis: with two, XLA on a CPU transposes the cotangent in memory before each weight's gradient, a tenth
    # of all the bytes of the step. What is best by hand is not what vmap or a [k, batch] network does.
    logits = model.decode(params, z.reshape(-1, model.LATENTS)).reshape(*z.shape[:-1], model.PIXELS)
    return model.bernoulli(logits, x) + model.standard_normal(z)


def raw_loss(params: Params, e: Array, x: Array, log_joint: LogJoint = flat_log_joint) -> Array:
    """Plain IWAE for noise e [k, batch, 50], or the ELBO at k = 1."""
    mean, log_scale = model.encode(params, x)
    log_q = model.standard_normal(e) - jnp.sum(log_scale, -1)
    return -jnp.mean(reduce(log_joint(params, x, mean + jnp.exp(log_scale) * e) - log_q))


def raw(k: int, loss: Callable[..., Array] = raw_loss) -> Loss:
    return lambda params, key, x: loss(
        params, jax.random.normal(key, (k, len(x), model.LATENTS)), x
    )


@jax.custom_jvp
def gated(z: Array, gate: Array) -> Array:
    return z


@gated.defjvp
def _gated_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return primals[0], tangents[0] * primals[1][..., None]


def raw_dreg_loss(params: Params, e: Array, x: Array) -> Array:
    """DReG in two looks, which the compiler merges: the first finds the weights, the second gates what z sends back."""
    mean, log_scale = model.encode(params, x)
    z = mean + jnp.exp(log_scale) * e
    stopped_mean, stopped_log_scale = jax.lax.stop_gradient((mean, log_scale))

    def log_w(z: Array) -> Array:
        log_q = model.standard_normal((z - stopped_mean) * jnp.exp(-stopped_log_scale)) - jnp.sum(
            stopped_log_scale, -1
        )
        return flat_log_joint(params, x, z) - log_q

    if e.shape[0] > 1:
        z = gated(z, jax.nn.softmax(jax.lax.stop_gradient(log_w(jax.lax.stop_gradient(z))), 0))
    return -jnp.mean(reduce(log_w(z)))


# vijax --------------------------------------------------------------------------------------------------------------


class Normal:
    """The smallest q that vijax takes, with raw's arithmetic."""

    def __init__(self, mean: Array, log_scale: Array):
        self.mean, self.log_scale = mean, log_scale

    def sample_and_log_prob(
        self, *, seed: Any, sample_shape: tuple[int, ...] = ()
    ) -> tuple[Array, Array]:
        e = jax.random.normal(seed, (*sample_shape, *self.mean.shape))
        return self.mean + jnp.exp(self.log_scale) * e, model.standard_normal(e) - jnp.sum(
            self.log_scale, -1
        )

    def log_prob(self, z: Array, /) -> Array:
        return model.standard_normal((z - self.mean) * jnp.exp(-self.log_scale)) - jnp.sum(
            self.log_scale, -1
        )


def objective(gradient: Callable[..., Any], k: int) -> Any:
    return gradient(vj.bounds.elbo if k == 1 else vj.bounds.iwae)


@jax.custom_batching.custom_vmap
def flat_matmul(x: Array, weight: Array) -> Array:
    """x @ weight that vmap over x turns into one matrix product with all rows in one axis, as raw's.

    For layers that are only seen under vmap, as those of log_joint are: outside it a custom_vmap has no reverse mode.
    """
    return x @ weight


@flat_matmul.def_vmap
def _flat_matmul_vmap(
    size: int, batched: list[bool], x: Array, weight: Array
) -> tuple[Array, bool]:
    if not batched[0] or batched[1]:
        raise NotImplementedError("only x may be batched.")
    return (x.reshape(-1, x.shape[-1]) @ weight).reshape(*x.shape[:-1], -1), True


def flat_matmul_log_joint(params: Params, x: Array, z: Array) -> Array:
    logits = model.network(params["decoder"], z, flat_matmul)
    return model.bernoulli(logits, x) + model.standard_normal(z)


def vijax(
    k: int,
    gradient: Callable[..., Any],
    family: Callable[..., Any] = Normal,
    chunk: int | None = None,
    log_joint: LogJoint = model.log_joint,
) -> Loss:
    estimate = objective(gradient, k)
    if family is peers.distrax_normal:
        peers.peer("distrax")

    def loss(params: Params, key: Array, x: Array) -> Array:
        q = family(*model.encode(params, x))
        return -jnp.mean(
            estimate(key, partial(log_joint, params, x), q, num_samples=k, chunk_size=chunk).value
        )

    return loss


def example_loss(gradient: Callable[..., Any], k: int) -> Callable[..., Array]:
    """Mean over examples, each with a key and an objective of its own: nothing in it depends on how data is grouped."""
    estimate = objective(gradient, k)

    def one(params: Params, key: Array, x: Array) -> Array:
        q = Normal(*model.encode(params, x))
        return -estimate(key, partial(model.log_joint, params, x), q, num_samples=k).value

    return lambda params, keys, x: jnp.mean(jax.vmap(one, (None, 0, 0))(params, keys, x))


def single_loss(gradient: Callable[..., Any], k: int, chunk: int) -> Callable[..., Array]:
    """The same for a group of one example, [1, ...]: a batch shape of (1,) lets chunks be summed up in one pass."""
    estimate = objective(gradient, k)

    def loss(params: Params, keys: Array, x: Array) -> Array:
        q = Normal(*model.encode(params, x))
        value = estimate(
            keys[0], partial(model.log_joint, params, x), q, num_samples=k, chunk_size=chunk
        ).value
        return -jnp.mean(value)

    return loss


def group_of(batch: int, k: int, rows: int = 1600) -> int:
    """The largest group of data points that divides the batch and has at most `rows` rows, points x samples."""
    return max(g for g in range(1, batch + 1) if batch % g == 0 and (g == 1 or g * k <= rows))


def vijax_in_groups(
    batch: int, k: int, gradient: Callable[..., Any], chunk: int | None = None
) -> ValueAndGrad:
    """The README's fast recipe: value and gradient of one group of data after the other, activations still in cache.

    microbatch of value_and_grad, and not micro_grad: that one makes a gradient for each example before it adds them up.
    """
    grouped = optax.microbatching.microbatch(
        jax.value_and_grad(single_loss(gradient, k, chunk) if chunk else example_loss(gradient, k)),
        argnums=(1, 2),
        microbatch_size=1 if chunk else group_of(batch, k),
        accumulator=optax.microbatching.AccumulationType.MEAN,
    )
    return lambda params, key, x: grouped(params, jax.random.split(key, batch), x)


def vijax_streaming(k: int, points: int, chunk: int) -> Loss:
    """Evaluation: lax.map over groups of `points` images, the samples of each group in chunks."""
    estimate = objective(vj.gradients.reparam, k)

    def loss(params: Params, key: Array, x: Array) -> Array:
        def group(keyed: tuple[Array, Array]) -> Array:
            key, x = keyed
            q = Normal(*model.encode(params, x))
            return estimate(
                key, partial(model.log_joint, params, x), q, num_samples=k, chunk_size=chunk
            ).value

        groups = len(x) // points
        return -jnp.mean(
            jax.lax.map(group, (jax.random.split(key, groups), x.reshape(groups, points, -1)))
        )

    return loss


# Registers ----------------------------------------------------------------------------------------------------------

REPARAM, DREG = vj.gradients.reparam, vj.gradients.dreg

LOSSES: dict[str, Callable[[int], Loss]] = {
    "raw": raw,
    "raw A/A": raw,
    "raw, rows not flattened": partial(raw, loss=partial(raw_loss, log_joint=model.log_joint)),
    "raw dreg": partial(raw, loss=raw_dreg_loss),
    "vijax reparam": partial(vijax, gradient=REPARAM),
    "vijax dreg": partial(vijax, gradient=DREG),
    "vijax dreg, flat matmul": partial(vijax, gradient=DREG, log_joint=flat_matmul_log_joint),
    "vijax dreg, distrax q": partial(vijax, gradient=DREG, family=peers.distrax_normal),
    "vijax reparam, chunks of 50": partial(vijax, gradient=REPARAM, chunk=50),
    "vijax dreg, chunks of 50": partial(vijax, gradient=DREG, chunk=50),
    "vijax dreg, chunks of 250": partial(vijax, gradient=DREG, chunk=250),
    "vijax stream, 10 points x 100": partial(vijax_streaming, points=10, chunk=100),
    "vijax stream, all points x 10": partial(vijax, gradient=REPARAM, chunk=10),
    "distrax": peers.distrax,
    "tfp": peers.tfp,
    "numpyro": peers.numpyro,
}
GROUPS: dict[str, Callable[[int, int], ValueAndGrad]] = {
    "vijax dreg, groups of data": partial(vijax_in_groups, gradient=DREG),
    "vijax reparam, groups of data": partial(vijax_in_groups, gradient=REPARAM),
    "vijax dreg, groups of 1, chunks of 1000": partial(vijax_in_groups, gradient=DREG, chunk=1000),
}
STEP = [
    "raw", "raw A/A", "raw, rows not flattened", "raw dreg", "vijax reparam", "vijax dreg", "vijax dreg, flat matmul",
    "vijax dreg, distrax q", "distrax", "tfp", "numpyro",
]  # fmt: skip


def value_and_grad(name: str, batch: int, k: int) -> ValueAndGrad:
    return GROUPS[name](batch, k) if name in GROUPS else jax.value_and_grad(LOSSES[name](k))


class State(NamedTuple):
    params: Params
    optimizer: Any
    steps: Array


Step = Callable[[State, Array, Array], tuple[State, Array]]


def training(name: str, batch: int, k: int) -> tuple[Step, State]:
    """One training step, to be jitted with its state donated, and a first state."""
    evaluate = value_and_grad(name, batch, k)
    adam = optax.adam(1e-3)

    def step(state: State, key: Array, x: Array) -> tuple[State, Array]:
        loss, gradient = evaluate(state.params, jax.random.fold_in(key, state.steps), x)
        updates, optimizer = adam.update(gradient, state.optimizer, state.params)
        return State(optax.apply_updates(state.params, updates), optimizer, state.steps + 1), loss

    params = model.init(jax.random.key(1))
    return step, State(params, adam.init(params), jnp.zeros((), jnp.int32))
