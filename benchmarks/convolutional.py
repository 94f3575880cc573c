"""The convolutional VAE of the recipes, batch statistics and dropout, under dreg(iwae) and reparam(elbo).

Both take the same draws of the same batches from the same weights. Scikit-learn's digits, so that no folder is needed.
"""

from collections.abc import Iterator
from functools import partial
from time import perf_counter
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
LATENTS, BATCH, DRAWS, RATE, STEPS, EVALUATION, SEEDS = 10, 100, 5, 2e-3, 600, 500, (0, 1)
NORMAL = families.mean_field(scale=1.0)
OBJECTIVES = {
    "reparam(elbo)": vj.gradients.reparam(vj.bounds.elbo),
    "dreg(iwae)": vj.gradients.dreg(vj.bounds.iwae),
}


def images() -> tuple[Array, Array]:
    """Return 1,437 digits to train on and 360 held out, [n, 8, 8, 1], a pixel on above half of its range."""
    from sklearn.datasets import load_digits

    pixels = np.random.default_rng(0).permutation(load_digits().images)[..., None] > 8
    return jnp.asarray(pixels[360:], jnp.float32), jnp.asarray(pixels[:360], jnp.float32)


def build(mean_image: Array, seed: int) -> Any:
    latents, rngs = jnp.zeros(LATENTS), nnx.Rngs(seed)
    shape: Any = mean_image.shape
    down = models.ConvEncoder(
        shape, (16, 32), models.num_params(NORMAL, latents), normalize=nnx.BatchNorm, rngs=rngs
    )
    up = models.ConvDecoder(
        LATENTS, (32, 16), shape, normalize=nnx.BatchNorm, dropout=0.1, rngs=rngs
    )
    decoder = models.Conditional(up, families.bernoulli(), mean_image)
    return models.VAE(models.Conditional(down, NORMAL, latents), decoder, models.standard(latents))


@partial(jax.jit, static_argnums=(0, 1, 2))
def train(name: str, graph: Any, steps: int, params: Any, rest: Any, x: Array, key: Array) -> Any:
    """Return the trained VAE's state: Adam, a cosine to a tenth of its rate."""
    optimizer = optax.adam(optax.cosine_decay_schedule(RATE, steps, alpha=0.1))

    def loss(params: Any, rest: Any, key: Array) -> tuple[Array, Any]:
        of_rows, of_masks, of_draws = jax.random.split(key, 3)
        batch = x[jax.random.choice(of_rows, len(x), (BATCH,), replace=False)]
        vae = nnx.merge(graph, params, rest, copy=True)
        q = vae.q(batch)  # the statistics of the batch, once
        value, draws = OBJECTIVES[name](of_draws, vae.log_joint(batch), q, num_samples=DRAWS)
        vae.renew(draws.z[0], rngs=nnx.Rngs(dropout=of_masks))
        return -value.mean(), nnx.split(vae, nnx.Param, ...)[2]

    def step(carry: Any, key: Array) -> tuple[Any, None]:
        params, rest, state = carry
        slope, rest = jax.grad(loss, has_aux=True)(params, rest, key)
        updates, state = optimizer.update(slope, state)
        return (optax.apply_updates(params, updates), rest, state), None

    start = params, rest, optimizer.init(params)
    (params, rest, _), _ = jax.lax.scan(step, start, jax.random.split(key, steps))
    return params, rest


@partial(jax.jit, static_argnums=(0, 1))
def evaluate(graph: Any, draws: int, params: Any, rest: Any, x: Array) -> Array:
    """Return IWAE of every image, [n] nats: no masks, running averages."""
    vae = nnx.merge(graph, params, rest, copy=True)
    vae.eval()
    stream = partial(vj.gradients.reparam(vj.bounds.iwae), chunk_size=10)
    return stream(jax.random.key(7), vae.log_joint(x), vae.q(x), num_samples=draws).value


def run(options: Options) -> Iterator[Row]:
    x, held_out = images()
    steps, draws = (5, 20) if options.quick else (STEPS, EVALUATION)
    for seed in SEEDS[:1] if options.quick else SEEDS:
        graph, *start = nnx.split(build(x.mean(0), seed), nnx.Param, ...)
        metric = f"{steps} steps, log p(x) of {len(held_out)} held-out digits by IWAE-{draws}, seed {seed}"
        values = {}
        for name in OBJECTIVES:
            began = perf_counter()
            trained = jax.block_until_ready(
                train(name, graph, steps, *start, x, jax.random.key(seed))
            )
            seconds = perf_counter() - began
            values[name] = np.asarray(evaluate(graph, draws, *trained, held_out), np.float64)
            yield row(
                f"{name}, {DRAWS} draws", metric, float(values[name].mean()), "nats",
                seconds=seconds, note=f"trained in {seconds:.0f} s",
            )  # fmt: skip
        gain = values["dreg(iwae)"] - values["reparam(elbo)"]
        error = gain.std(ddof=1) / len(gain) ** 0.5
        judged = {} if options.quick else {"least": 0.0, "met": bool(gain.mean() > 0)}
        yield row(
            "dreg(iwae) above reparam(elbo)", f"{metric}, paired", float(gain.mean()), "nats",
            baseline="reparam(elbo)", error=float(error), note=f"± {error:.2f} over images", **judged,
        )  # fmt: skip
