"""The model that every contender trains: a variational auto-encoder as plain functions of one pytree of parameters."""

import math
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

PIXELS, HIDDEN, LATENTS = 784, 200, 50
LOG_2PI = math.log(2 * math.pi)

Layers = list[tuple[Array, Array]]
Params = dict[str, Layers]
Loss = Callable[[Params, Array, Array], Array]
"""(params, key, x [batch, 784]) -> minus the bound, averaged over the batch. vijax itself returns the bound."""


def init(key: Array) -> Params:
    """Encoder 784-200-200-(50 means, 50 log-scales) and its mirror image, with Glorot's uniform weights."""

    def layers(key: Array, sizes: list[int]) -> Layers:
        keys = jax.random.split(key, len(sizes) - 1)
        draw = jax.nn.initializers.glorot_uniform()
        return [
            (draw(k, (a, b)), jnp.zeros(b)) for k, a, b in zip(keys, sizes, sizes[1:], strict=False)
        ]

    key_encoder, key_decoder = jax.random.split(key)
    return {
        "encoder": layers(key_encoder, [PIXELS, HIDDEN, HIDDEN, 2 * LATENTS]),
        "decoder": layers(key_decoder, [LATENTS, HIDDEN, HIDDEN, PIXELS]),
    }


def network(
    layers: Layers, x: Array, matmul: Callable[[Array, Array], Array] = jnp.matmul
) -> Array:
    for weight, bias in layers[:-1]:
        x = jnp.tanh(matmul(x, weight) + bias)
    weight, bias = layers[-1]
    return matmul(x, weight) + bias


def encode(params: Params, x: Array) -> tuple[Array, Array]:
    """Images [*batch, 784] -> mean and log-scale of q, [*batch, 50] each."""
    mean, log_scale = jnp.split(network(params["encoder"], x), 2, -1)
    return mean, log_scale


def decode(params: Params, z: Array) -> Array:
    return network(params["decoder"], z)


def bernoulli(logits: Array, x: Array) -> Array:
    # One exp and one log1p for each pixel, forward and backward: softplus of either sign costs half as much again.
    # |l| as 2 m - l, for JAX's slope of abs at 0 is 1, and that of the sum would be 0 where it is a half.
    m = jnp.maximum(logits, 0)
    return jnp.sum(x * logits - m - jnp.log1p(jnp.exp(logits - 2 * m)), -1)


def standard_normal(e: Array) -> Array:
    return jnp.sum(-0.5 * jnp.square(e), -1) - 0.5 * LOG_2PI * e.shape[-1]


def log_joint(params: Params, x: Array, z: Array) -> Array:
    """Log p(x, z): the same arithmetic for the hand-written contenders and for vijax."""
    return bernoulli(decode(params, z), x) + standard_normal(z)


def reduce(log_w: Array) -> Array:
    """The bound of log-weights [k, batch], by hand: IWAE, or the ELBO of one sample."""
    if log_w.shape[0] == 1:
        return log_w[0]
    return jax.nn.logsumexp(log_w, 0) - math.log(log_w.shape[0])


def images(count: int, data: Path | None = None) -> np.ndarray:
    """Binarised MNIST where `data` holds it, else coin flips: what is in an image does not change what a step costs."""
    if data is not None:
        path = data / "binarized_mnist" / "binarized_mnist.npz"
        if not path.exists():
            raise SystemExit(
                f"--data: {path} is missing; leave --data out to run on synthetic images."
            )
        with np.load(path) as archive:
            return np.unpackbits(archive["train"][:count], axis=-1).astype(np.float32)
    return (np.random.default_rng(0).random((count, PIXELS)) < 0.3).astype(np.float32)
