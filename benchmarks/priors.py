"""Priors of a variational autoencoder at equal decoder and budget: what each gains over N(0, I), with its error.

With --json an interrupted run goes on where it left off: 20 epochs come first, in minutes, then two seeds at 200.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

import vijax as vj
from benchmarks._report import Options, Row, row

models, families = vj.models, vj.families
HIDDEN, LATENTS, BATCH, RATE = 300, 40, 100, 1e-3
COMPONENTS, PSEUDO, DEGREES = 100, 200, 5.0
TEST, DRAWS = 1_000, 500
SETTINGS = ((20, 0), (200, 0), (200, 1))  # epochs, seed
# How much the literature's priors must gain over the standard one after 20 epochs, in nats.
LEAST = {"mixture of 100": 1.2, "VampPrior of 200": 1.5}
METRIC = "{} epochs, log p(x) of {} test images by IWAE-{}, seed {}"
OF_AGGREGATE = "ELBO with the aggregate posterior as prior, encoder and decoder of the standard one, {} epochs, seed {}"
NORMAL = families.mean_field(scale=1.0)


def mixture(encoder: Any, images: Array, key: Array) -> nnx.Module:
    family = families.mixture(NORMAL, components=COMPONENTS)
    params = family.init(key, jnp.zeros(LATENTS))
    params["components"]["loc"] = jax.random.normal(key, (COMPONENTS, LATENTS))
    return models.Prior(family, params)


def student(encoder: Any, images: Array, key: Array) -> nnx.Module:
    family = families.student_t(degrees=DEGREES, base=NORMAL)
    return models.Prior(family, family.init(key, jnp.zeros(LATENTS)))


def vamp(encoder: Any, images: Array, key: Array) -> nnx.Module:
    return models.VampPrior(encoder, images[:PSEUDO])


PRIORS: dict[str, Callable[[Any, Array, Array], nnx.Module]] = {
    "standard": lambda encoder, images, key: models.standard(jnp.zeros(LATENTS)),
    "mixture of 100": mixture,
    "Student-t, 5 degrees": student,
    "VampPrior of 200": vamp,
}


def build(prior: str, images: Array, seed: int) -> Any:
    """784-300-300-40 and its mirror image; the initial weights of a seed are those of every prior."""
    rngs, latents = nnx.Rngs(seed), jnp.zeros(LATENTS)
    pixels = images.shape[1]
    hidden = (HIDDEN, HIDDEN)
    down = models.MLP(pixels, hidden, models.num_params(NORMAL, latents), rngs=rngs)
    up = models.MLP(LATENTS, hidden, pixels, dot_general=models.flat_dot_general, rngs=rngs)
    encoder = models.Conditional(down, NORMAL, latents)
    decoder = models.Conditional(up, families.bernoulli(), images.mean(0))
    key = jax.random.key(100 + seed)
    return models.VAE(encoder, decoder, PRIORS[prior](encoder, images, key))


def train(prior: str, images: Array, seed: int, epochs: int) -> tuple[Any, Any]:
    """Return the graph and the trained state of an ELBO with one draw, Adam's rate falling to a tenth by a cosine."""
    graph, params, rest = nnx.split(build(prior, images, seed), nnx.Param, ...)
    per_epoch = len(images) // BATCH
    rate = optax.cosine_decay_schedule(RATE, epochs * per_epoch, alpha=0.1)
    optimizer = optax.adam(rate)
    objective = vj.gradients.reparam(vj.bounds.elbo)

    def loss(params: Any, key: Array, x: Array) -> Array:
        vae = nnx.merge(graph, params, rest)
        return -jnp.mean(objective(key, vae.log_joint(x), vae.q(x), num_samples=1).value)

    def step(images: Array, carry: Any, given: tuple[Array, Array]) -> tuple[Any, Array]:
        params, state = carry
        value, slope = jax.value_and_grad(loss)(params, given[0], images[given[1]])
        updates, state = optimizer.update(slope, state)
        return (optax.apply_updates(params, updates), state), -value

    @jax.jit
    def epoch(carry: Any, images: Array, key: Array) -> tuple[Any, Array]:
        of_order, of_draws = jax.random.split(key)
        rows = jax.random.permutation(of_order, len(images))[: per_epoch * BATCH]
        keys = jax.random.split(of_draws, per_epoch)
        return jax.lax.scan(partial(step, images), carry, (keys, rows.reshape(per_epoch, BATCH)))

    carry = params, optimizer.init(params)
    for key in jax.random.split(jax.random.key(seed), epochs):
        carry, _ = epoch(carry, images, key)
    return graph, nnx.merge_state(jax.block_until_ready(carry[0]), rest)


def evaluate(graph: Any, state: Any, images: Array, draws: int) -> np.ndarray:
    """Return IWAE of so many draws of every image, [n] nats, some at a time."""
    streamed = partial(vj.gradients.reparam(vj.bounds.iwae), chunk_size=20)

    @jax.jit
    def bound(key: Array, x: Array) -> Array:
        vae = nnx.merge(graph, state)
        return streamed(key, vae.log_joint(x), vae.q(x), num_samples=draws).value

    keys = jax.random.split(jax.random.key(7), len(images) // BATCH)
    parts = [bound(k, x) for k, x in zip(keys, jnp.split(images, len(keys)), strict=True)]
    return np.asarray(jnp.concatenate(parts))


def load(data: Path | None, quick: bool) -> tuple[Array, Array]:
    if data is None:
        if not quick:
            raise SystemExit("priors needs --data DIR, a folder with binarized_mnist/; or --quick.")
        rng = np.random.default_rng(0)
        coins = (rng.random((1_200, 784)) < 0.3).astype(np.float32)
        return jnp.asarray(coins[:1_000]), jnp.asarray(coins[1_000:])
    path = data / "binarized_mnist" / "binarized_mnist.npz"
    if not path.exists():
        raise SystemExit(f"--data: {path} is missing.")
    with np.load(path) as archive:
        sets = [np.unpackbits(archive[name], axis=-1) for name in ("train", "test")]
    # The test set's first half is the easier one: a fixed thousand of all of it.
    picked = np.random.default_rng(0).permutation(len(sets[1]))[:TEST]
    train_set, test_set = sets[0], sets[1][picked]
    if quick:
        train_set, test_set = train_set[:1_000], test_set[:200]
    return jnp.asarray(train_set, jnp.float32), jnp.asarray(test_set, jnp.float32)


def known(r: Row) -> bool:
    """Whether a row is a whole training, which a later run need not repeat."""
    return "per_image" in r and not r["quick"]


def run(options: Options) -> Iterator[Row]:
    images, held_out = load(options.data, options.quick)
    draws = 20 if options.quick else DRAWS
    for epochs, seed in [(1, 0)] if options.quick else SETTINGS:
        metric = METRIC.format(epochs, len(held_out), draws, seed)
        values: dict[str, np.ndarray] = {}
        for name in PRIORS:
            before = [r for r in options.earlier if (r["name"], r["metric"]) == (name, metric)]
            if before:
                values[name] = np.asarray(before[0]["per_image"])
                yield before[0]
                continue
            start, start_cpu = perf_counter(), process_time()
            graph, state = train(name, images, seed, epochs)
            trained, cpu = perf_counter() - start, process_time() - start_cpu
            each = evaluate(graph, state, held_out, draws)
            values[name] = np.round(each.astype(np.float64), 3)
            yield row(
                name, metric, float(each.mean()), "nats", seconds=trained, cpu_seconds=cpu,
                note=f"trained in {trained:.0f} s, {cpu:.0f} s of CPU", per_image=values[name].tolist(),
            )  # fmt: skip
        judged = epochs == 20 and not options.quick
        for name in [n for n in PRIORS if n != "standard"]:
            yield gain(
                name, f"gain over the standard prior, {epochs} epochs, seed {seed}",
                values[name] - values["standard"], LEAST.get(name) if judged else None,
            )  # fmt: skip
        yield from aggregate_rows(options, images, held_out, seed, epochs)


def gain(name: str, metric: str, each: np.ndarray, least: float | None = None, **extra: Any) -> Row:
    """Return the row of a paired difference: its mean over images and the standard error of that."""
    mean, error = each.mean(), each.std(ddof=1) / len(each) ** 0.5
    note = f"± {error:.2f} over images, paired"
    if least is not None:  # a bar is the most that a number may be: of a gain it is the least
        extra |= {"least": least, "met": bool(mean >= least)}
        note += f"; at least {least}: {'met' if mean >= least else 'NOT MET'}"
    return row(
        name, metric, float(mean), "nats", baseline="standard", error=float(error), note=note, **extra
    )  # fmt: skip


def aggregate_rows(
    options: Options, images: Array, held_out: Array, seed: int, epochs: int
) -> Iterator[Row]:
    """Yield what the best prior for the ELBO of these images gains, on some of them and held out."""
    metric = OF_AGGREGATE.format(epochs, seed)
    sets = {
        f"on {len(held_out)} of the {len(images)} it is made of": images[: len(held_out)],
        "held out (no claim)": held_out,
    }
    before = {r["name"]: r for r in options.earlier if r["metric"] == metric}
    if not set(sets) <= set(before):
        graph, state = train("standard", images, seed, epochs)
        gains = jax.jit(partial(gain_of_aggregate, graph))
    for name, x in sets.items():
        if name in before:
            yield before[name]
            continue
        each = np.asarray(gains(jax.random.key(8), state, images, x), np.float64)
        yield gain(name, metric, each, per_image=np.round(each, 3).tolist())


def gain_of_aggregate(graph: Any, key: Array, state: Any, images: Array, x: Array) -> Array:
    """Return E log q(z) - log N(z; 0, I) of every x under its own q, from two draws, [n] nats."""
    vae = nnx.merge(graph, state)
    z, _ = vae.q(x).sample_and_log_prob(seed=key, sample_shape=(2,))
    best, usual = models.aggregate(vae.encoder, images), vae.distribution()
    # As many densities for each z as there are images: a few z at a time.
    each = jax.lax.map(
        lambda z: best.log_prob(z) - usual.log_prob(z), z.reshape(-1, LATENTS), batch_size=8
    )
    return each.reshape(2, -1).mean(0)
