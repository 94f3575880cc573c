"""What the bound of an autoencoder lacks of log p on held-out images, in parts: encoder, family, finitely many draws.

One autoencoder on binarized MNIST, 784-300-300-40, is trained under the ELBO; then every one of 100 test images gets a
q of its own by `solvers.refine`: independent latents, a full covariance, a flow, each begun where the one before ended.
`diagnostics.gaps` reads the parts off their log-weights. Before that the ELBO in its three forms: drawn whole,
with the KL in closed form, with the entropy in closed form. Needs the folder `binarized_mnist` in --data.
"""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import vijax as vj
from benchmarks import _model
from benchmarks._report import Options, Row, row

PIXELS, HIDDEN, LATENTS, BATCH = 784, 300, 40, 100
DRAWS, EVIDENCE, CHUNK = 1_000, 5_000, 20
USABLE = 0.7  # k-hat
FAMILIES = {
    "mean-field": vj.families.mean_field(),
    "full covariance": vj.families.full_rank(),
    "flow": vj.families.spline_coupling(
        layers=2, bins=4, hidden=(16,), base=vj.families.full_rank()
    ),
}
# Steps of each refinement, draws for each image and step, rate of Adam, and what doubling the steps may bring, in nats.
# A flow has thousands of numbers for an image, whose noise at a higher rate costs more than they gain: its rate is
# low, it is still rising, and log p is read off the full covariance.
EFFORT = {
    "mean-field": (600, 4, 0.02, 0.02),
    "full covariance": (1000, 8, 0.02, 0.02),
    "flow": (400, 4, 0.0005, 0.1),
}

Params = dict[str, Any]
streamed = vj.gradients.reparam(vj.bounds.iwae)


def images(data: Path | None, split: str, count: int) -> np.ndarray:
    path = (data or Path()) / "binarized_mnist" / "binarized_mnist.npz"
    if data is None or not path.exists():
        raise SystemExit(
            f"gaps reads --data DIR/binarized_mnist/binarized_mnist.npz; {path} is missing."
        )
    with np.load(path) as archive:
        packed = archive[split]
    # Not the first ones: of the test images those are harder, by 10 nats, than all ten thousand.
    rows = np.random.default_rng(0).permutation(len(packed))[:count]
    return np.unpackbits(packed[rows], axis=-1).astype(np.float32)


def init(key: Array, mean_image: np.ndarray) -> Params:
    """Glorot-uniform weights; the output's bias at the log-odds of the mean image."""
    draw = jax.nn.initializers.glorot_uniform()

    def layers(key: Array, sizes: list[int]) -> list[tuple[Array, Array]]:
        keys = jax.random.split(key, len(sizes) - 1)
        return [
            (draw(k, (a, b)), jnp.zeros(b)) for k, a, b in zip(keys, sizes, sizes[1:], strict=False)
        ]

    of_encoder, of_decoder = jax.random.split(key)
    decoder = layers(of_decoder, [LATENTS, HIDDEN, HIDDEN, PIXELS])
    p = np.clip(mean_image, 0.001, 0.999)
    decoder[-1] = (decoder[-1][0], jnp.asarray(np.log(p / (1 - p))))
    return {
        "encoder": layers(of_encoder, [PIXELS, HIDDEN, HIDDEN, 2 * LATENTS]),
        "decoder": decoder,
    }


def encode(params: Params, x: Array) -> Params:
    """The encoder's answer, as the params of `families.members(mean_field())`."""
    loc, log_scale = jnp.split(_model.network(params["encoder"], x), 2, -1)
    return {"loc": loc, "log_scale": log_scale}


def log_joint(params: Params, x: Array, z: Array) -> Array:
    logits = _model.network(params["decoder"], z)
    return _model.bernoulli(logits, x) + _model.standard_normal(z)


def train(x: np.ndarray, epochs: int) -> Params:
    """Adam under the ELBO, one draw of each image, whose rate falls from .001 as a cosine."""
    objective = vj.gradients.dreg(vj.bounds.elbo)
    family = vj.families.members(vj.families.mean_field())
    steps = epochs * (len(x) // BATCH)
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, steps))
    params = init(jax.random.key(0), x.mean(0))
    data = jnp.asarray(x, jnp.uint8)
    batches = vj.fitting.minibatches(num_data=len(x), batch_size=BATCH)

    def loss(params: Params, key: Array, rows: Array) -> Array:
        x = data[rows].astype(jnp.float32)
        q = family.dist(encode(params, x))
        return -objective(key, partial(log_joint, params, x), q, num_samples=1).value.mean()

    def step(carry: Any, key: Array) -> tuple[Any, None]:
        params, state, cursor = carry
        rows, cursor = batches.next(cursor)
        updates, state = optimizer.update(jax.grad(loss)(params, key, rows), state)
        return (optax.apply_updates(params, updates), state, cursor), None

    start = params, optimizer.init(params), batches.init(jax.random.key(1))
    keys = jax.random.split(jax.random.key(2), steps)
    return jax.jit(lambda start: jax.lax.scan(step, start, keys)[0][0])(start)


def falling(rate: float, steps: int) -> Any:
    return optax.adam(optax.cosine_decay_schedule(rate, steps))


def begun(name: str, params: Params) -> Params:
    """Params of the next family that start where those of the one before ended."""
    n, d = params["loc"].shape
    if name == "full covariance":
        return params | {"lower": jnp.zeros((n, d * (d - 1) // 2))}
    if name == "flow":
        family = vj.families.members(FAMILIES["flow"])
        return family.init(jax.random.key(3), jnp.zeros((n, d))) | {"base": params}
    return params


def run(options: Options) -> Iterator[Row]:
    epochs, number, share = (1, 10, 0.1) if options.quick else (20, 100, 1.0)
    draws, evidence = (100, 500) if options.quick else (DRAWS, EVIDENCE)
    started = time.perf_counter()
    params = train(images(options.data, "train", 5_000 if options.quick else 50_000), epochs)
    jax.block_until_ready(params)
    setting = f"{number} binarized MNIST test images, a VAE of {epochs} epochs"
    yield row("training", setting, time.perf_counter() - started, "s")
    held_out = images(options.data, "test", number)
    yield from forms(params, jnp.asarray(held_out), setting, draws)
    yield from parts(params, held_out, setting, draws, evidence, share)


def forms(params: Params, x: Array, setting: str, draws: int) -> Iterator[Row]:
    """The ELBO in three forms, of the same draws: one mean, and the variance of a draw of each."""
    answer = encode(params, x)
    q = distrax.Independent(distrax.Normal(answer["loc"], jnp.exp(answer["log_scale"])), 1)
    prior = distrax.Independent(distrax.Normal(jnp.zeros(LATENTS), jnp.ones(LATENTS)), 1)
    joint = partial(log_joint, params, x)

    def log_likelihood(z: Array) -> Array:
        return _model.bernoulli(_model.network(params["decoder"], z), x)

    targets = {
        "joint": joint,
        "closed-form KL": vj.targets.exact_kl(log_likelihood, prior, q),
        "closed-form entropy": vj.targets.exact_entropy(joint, q),
    }
    objective = vj.gradients.reparam(vj.bounds.elbo)
    key = jax.random.key(5)
    log_w = {
        name: objective(key, target, q, num_samples=draws, chunk_size=CHUNK).draws.log_w
        for name, target in targets.items()
    }
    first = log_w["joint"].mean(1)
    for name, each in log_w.items():
        variance = float(each.var(0, ddof=1).mean())
        metric = f"{setting}: the three forms, {draws} draws of each"
        yield row(f"ELBO, {name}", metric, float(each.mean()), "nats", variance=variance)
        yield row(f"variance of a draw, {name}", metric, variance, "nats²")
        # Draws are independent of each other, so that means over images are.
        off, error = _mean(each.mean(1) - first)
        if name != "joint":
            what = f"{name} less joint, in standard errors"
            note = f"{off:.4f} ± {error:.4f} nats"
            yield row(what, metric, abs(off) / error, "se", bar=4.0, note=note)


def parts(
    params: Params, x: np.ndarray, setting: str, draws: int, evidence: int, share: float
) -> Iterator[Row]:
    target = partial(log_joint, params, jnp.asarray(x))
    keys = iter(jax.random.split(jax.random.key(4), 20))

    def log_weights(family: vj.types.Family, fitted: Params, k: int) -> Array:
        run = jax.jit(
            lambda key, p: (
                streamed(key, target, family.dist(p), num_samples=k, chunk_size=CHUNK).draws.log_w
            )
        )
        return jax.block_until_ready(run(next(keys), fitted))

    started, cpu = time.perf_counter(), time.process_time()
    fitted = encode(params, jnp.asarray(x))
    encoder = vj.families.members(FAMILIES["mean-field"])
    of_encoder = log_weights(encoder, fitted, draws)
    log_w, refined = {}, {}
    for name, family in FAMILIES.items():
        family = vj.families.members(family)
        steps, per_step, rate, bar = EFFORT[name]
        before = time.perf_counter()
        refined[name] = vj.solvers.refine(
            next(keys),
            target,
            family,
            begun(name, fitted),
            steps=2 * int(share * steps / 2),
            num_samples=per_step,
            optimizer=partial(falling, rate),
        )
        fitted = refined[name].params
        log_w[name] = log_weights(family, fitted, evidence if name == "full covariance" else draws)
        (rise, _), (last, _) = map(_mean, (refined[name].rise.value, refined[name].last.value))
        seconds, settled = time.perf_counter() - before, float(refined[name].settled.mean())
        metric = f"{setting}: refinement, the size of what doubling the steps brings"
        note = (
            f"{settled:.0%} settled to .1 nats; {rise:.3f} nats above the start, in {seconds:.0f} s"
        )
        yield row(name, metric, abs(last), "nats", bar=bar, settled=settled, rise=rise, note=note)
    best = log_w["full covariance"]
    for name in FAMILIES:
        yield from _parts_of(name, vj.diagnostics.gaps(of_encoder, log_w[name], best), setting)
    seconds, used = time.perf_counter() - started, time.process_time() - cpu
    note = f"{used:.0f} s of CPU; on a machine that others use the clock says more than the work"
    yield row("gaps", f"{setting}: time", seconds, "s", bar=90.0, cpu_seconds=used, note=note)

    # Whether log p is right: k-hat of its proposal, what other proposals give, and the total from fresh draws of both.
    metric = f"{setting}: log p of {evidence} draws"
    khat = vj.diagnostics.khat(best)
    yield row("k-hat above .7, full covariance", metric, float((khat > USABLE).mean()), "", bar=0.1)
    value = vj.numerics.log_mean_exp(best)
    others = {
        "encoder": log_weights(encoder, encode(params, jnp.asarray(x)), evidence),
        "flow": log_weights(
            vj.families.members(FAMILIES["flow"]), refined["flow"].params, evidence
        ),
    }
    for name, other in others.items():
        short, error = _mean(value - vj.numerics.log_mean_exp(other))
        what = f"{name} as proposal: short of the full covariance"
        yield row(what, metric, short, "nats", se=error, note=f"± {error:.3f}")
        bad = float((vj.diagnostics.khat(other) > USABLE).mean())
        yield row(f"k-hat above .7, {name}", metric, bad, "")
    total = vj.diagnostics.gaps(of_encoder, best).total.value
    again = vj.diagnostics.gaps(others["encoder"], others["flow"]).total.value
    off, error = _mean(total - again)
    what = "the parts' sum less log p - ELBO of fresh draws"
    metric = f"{setting}: adding up, in standard errors"
    yield row(what, metric, abs(off) / error, "se", bar=4.0, note=f"{off:.4f} ± {error:.4f} nats")


def _mean(values: Array) -> tuple[float, float]:
    """Return the mean, over images or draws, and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)


def _parts_of(name: str, found: vj.diagnostics.Gaps, setting: str) -> Iterator[Row]:
    metric, means = f"{setting}: {name}", found.mean
    for part, (value, error) in means.items():
        note = f"± {float(error):.3f}"
        yield row(
            f"{name}: {part.replace('_', ' ')}",
            metric,
            float(value),
            "nats",
            se=float(error),
            note=note,
        )
    least = min(float(means[p].value) for p in ("amortization", "approximation", "monte_carlo"))
    yield row(f"{name}: below 0, the least part", metric, max(0.0, -least), "nats", bar=0.0)
