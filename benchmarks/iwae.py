"""Burda, Grosse and Salakhutdinov's table of IWAE on fixed-binarized MNIST, with their recipe, plainly and by dreg.

784-200-200-50 tanh and its mirror image; batches of 20 in one order, gradients summed over them; Adam with a slow
first moment, its second moment begun at one; stages of 1, 3, 9, ... epochs whose rates fall. All eight are 3,280
epochs, days on two cores: each row says how many it ran. A run killed midway goes on from its last checkpoint in
out/iwae, and with --json finished runs are not repeated.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

import vijax as vj
from benchmarks._report import Options, Row, row

models, families = vj.models, vj.families
HIDDEN, LATENTS, BATCH, DRAWS = (200, 200), 50, 20, 5_000
NORMAL = families.mean_field(scale=1.0)
# Authors: arXiv:1509.00519, appendix D, one stochastic layer; negative log-likelihoods by 5,000 draws.
PUBLISHED = {1: 88.71, 5: 87.63, 50: 87.10}
OBJECTIVES = {
    "reparam": vj.gradients.reparam(vj.bounds.iwae),
    "dreg": vj.gradients.dreg(vj.bounds.iwae),
}
KEPT = Path("out") / "iwae"


class Setting(NamedTuple):
    """One run: how many draws, how many of the eight stages, and the seed of weights and draws."""

    draws: int
    stages: int
    seed: int


SETTINGS = (Setting(1, 6, 0), Setting(5, 6, 0), Setting(50, 4, 0), Setting(5, 6, 1))


def rates(stages: int) -> list[float]:
    """Return the rate of every epoch: 3^i of stage i, as the authors' code rounds them."""
    return [1e-4 * round(10 ** (1 - i / 7), 1) for i in range(stages) for _ in range(3**i)]


def build(images: Array, seed: int) -> Any:
    rngs, latents = nnx.Rngs(seed), jnp.zeros(LATENTS)
    pixels = images.shape[1]
    down = models.MLP(pixels, HIDDEN, models.num_params(NORMAL, latents), rngs=rngs)
    up = models.MLP(LATENTS, HIDDEN, pixels, dot_general=models.flat_dot_general, rngs=rngs)
    decoder = models.Conditional(up, families.bernoulli(), jnp.clip(images.mean(0), 0.001, 0.999))
    encoder = models.Conditional(down, NORMAL, latents)
    return models.VAE(encoder, decoder, models.standard(latents))


def adam() -> optax.GradientTransformation:
    """Return the authors' Adam, but for its rate: the second moment starts at one, not at zero."""
    usual = optax.scale_by_adam(b1=0.99, b2=0.999, eps=1e-4)

    def init(params: Any) -> Any:
        return usual.init(params)._replace(nu=jax.tree.map(jnp.ones_like, params))

    return optax.GradientTransformation(init, usual.update)


def train(name: str, setting: Setting, images: Array) -> tuple[Any, Any, float]:
    """Return the graph, the trained state, and the seconds of CPU; saved every few epochs."""
    graph, params, rest = nnx.split(build(images, setting.seed), nnx.Param, ...)
    optimizer, objective = adam(), OBJECTIVES[name]
    batches = images[: len(images) // BATCH * BATCH].reshape(-1, BATCH, images.shape[1])

    def total(params: Any, key: Array, x: Array) -> Array:
        vae = nnx.merge(graph, params, rest)
        bound = objective(key, vae.log_joint(x), vae.q(x), num_samples=setting.draws)
        return -jnp.sum(bound.value)

    def step(rate: Array, carry: Any, given: tuple[Array, Array]) -> tuple[Any, None]:
        params, state = carry
        updates, state = optimizer.update(jax.grad(total)(params, *given), state)
        updates = jax.tree.map(lambda u: -rate * u, updates)
        return (optax.apply_updates(params, updates), state), None

    @partial(jax.jit, donate_argnums=0)
    def epoch(carry: Any, batches: Array, key: Array, rate: Array) -> Any:
        keys = jax.random.split(key, len(batches))
        return jax.lax.scan(partial(step, rate), carry, (keys, batches))[0]

    folder = KEPT / f"{name}-{setting.draws}-{setting.stages}-{setting.seed}-{len(images)}"
    start = {"carry": (params, optimizer.init(params)), "cpu": np.zeros(())}
    saved = vj.fitting.restore(folder, start)
    carry, cpu = saved.tree["carry"], float(saved.tree["cpu"])
    schedule = rates(setting.stages)
    keys = jax.random.split(jax.random.key(setting.seed), len(schedule))
    began = process_time()
    for i in range(0 if saved.step is None else saved.step, len(schedule)):
        carry = jax.block_until_ready(epoch(carry, batches, keys[i], schedule[i]))
        if (i + 1) % 10 == 0 or i + 1 == len(schedule):
            spent = np.asarray(cpu + process_time() - began)
            vj.fitting.save(folder, i + 1, {"carry": carry, "cpu": spent}, keep=1)
    return graph, nnx.merge_state(carry[0], rest), cpu + process_time() - began


def evaluate(graph: Any, state: Any, images: Array, draws: int) -> np.ndarray:
    """Return IWAE of so many draws of every image, [n] nats: batches of images in a loop, draws in chunks."""
    streamed = partial(vj.gradients.reparam(vj.bounds.iwae), chunk_size=50)

    def of_batch(given: tuple[Array, Array]) -> Array:
        key, x = given
        vae = nnx.merge(graph, state)
        return streamed(key, vae.log_joint(x), vae.q(x), num_samples=draws).value

    batches = images.reshape(-1, BATCH, images.shape[1])
    keys = jax.random.split(jax.random.key(7), len(batches))
    bounds = jax.jit(lambda *given: jax.lax.map(of_batch, given))(keys, batches)
    return np.asarray(bounds, np.float64).ravel()


def active(graph: Any, state: Any, images: Array) -> int:
    """Count the latents whose posterior mean moves with the image: a variance above .01, as the authors count."""
    means = nnx.merge(graph, state).encoder.params(images)["loc"]
    return int(jnp.sum(jnp.var(means, 0) > 0.01))


def load(data: Path | None, quick: bool) -> tuple[Array, Array]:
    if data is None:
        if not quick:
            raise SystemExit("iwae needs --data DIR, a folder with binarized_mnist/; or --quick.")
        coins = np.random.default_rng(0).random((240, 784)) < 0.3
        return jnp.asarray(coins[:200], jnp.float32), jnp.asarray(coins[200:], jnp.float32)
    path = data / "binarized_mnist" / "binarized_mnist.npz"
    if not path.exists():
        raise SystemExit(f"--data: {path} is missing.")
    with np.load(path) as archive:
        sets = [np.unpackbits(archive[name], axis=-1) for name in ("train", "test")]
    # In the authors' order: their batches are never shuffled.
    cut = (slice(1_000), slice(200)) if quick else (slice(50_000), slice(None))
    return tuple(jnp.asarray(s[c], jnp.float32) for s, c in zip(sets, cut, strict=True))  # type: ignore[return-value]


def known(r: Row) -> bool:
    """Whether a row is a whole run, which a later one need not repeat."""
    return "per_image" in r and not r["quick"]


def run(options: Options) -> Iterator[Row]:
    images, held_out = load(options.data, options.quick)
    draws = 20 if options.quick else DRAWS
    for setting in [Setting(2, 1, 0)] if options.quick else SETTINGS:
        metric = (
            f"K = {setting.draws}, stages 1 to {setting.stages} ({len(rates(setting.stages))} epochs), "
            f"seed {setting.seed}: -log p(x) of {len(held_out)} test images by IWAE-{draws}"
        )
        each = {}
        for name in OBJECTIVES:
            found = next(
                (r for r in options.earlier if (r["name"], r["metric"]) == (name, metric)), None
            )
            found = found or one(name, metric, setting, images, held_out, draws)
            each[name] = np.asarray(found["per_image"])
            yield found
        yield difference(metric, each["dreg"] - each["reparam"], judged=setting.draws > 1)


def one(
    name: str, metric: str, setting: Setting, images: Array, held_out: Array, draws: int
) -> Row:
    graph, state, cpu = train(name, setting, images)
    each = np.round(-evaluate(graph, state, held_out, draws), 2)
    units = active(graph, state, held_out)
    error = each.std(ddof=1) / len(each) ** 0.5
    published = PUBLISHED.get(setting.draws)
    note = f"± {error:.2f} over images; {units} of {LATENTS} latents active; {cpu / 60:.0f} minutes of CPU"
    return row(
        name, metric, float(each.mean()), "nats", baseline="the authors, 8 stages",
        note=f"{note}; the authors, all stages: {published}", published=published,
        error=float(error), active=units, cpu_seconds=cpu, per_image=each.tolist(),
    )  # fmt: skip


def difference(metric: str, each: np.ndarray, *, judged: bool) -> Row:
    """Return how much more nats dreg needs than reparam, paired over images: at most .1 where they differ at all."""
    error = each.std(ddof=1) / len(each) ** 0.5
    bar = {"bar": 0.1} if judged else {}
    return row(
        "dreg less reparam", metric, float(each.mean()), "nats", baseline="reparam",
        error=float(error), note=f"± {error:.2f} over images, paired", **bar,
    )  # fmt: skip
