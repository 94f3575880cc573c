"""Whether the contenders compute the same thing: what is fast and wrong has no business in a table of times."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from benchmarks import _contenders as contenders
from benchmarks import _model as model
from benchmarks._peers import Missing
from benchmarks._report import Row, failed, missing, row

# z-scores of loss and two projections for a dozen contenders: 4.5 is passed by chance once in some 4,000 runs.
WORST = 4.5


def distance(a: model.Params, b: model.Params) -> float:
    """Relative distance of two gradients, the larger of encoder's and decoder's."""
    return max(
        float(optax.tree.norm(optax.tree.sub(a[p], b[p])) / optax.tree.norm(b[p]))
        for p in ("encoder", "decoder")
    )


def same_noise(batch: int, k: int, x: Array) -> Iterator[Row]:
    """vijax against raw with the very noise that vijax drew."""
    params, key = model.init(jax.random.key(1)), jax.random.key(0)
    setting = f"gradient, relative distance at the same noise, batch {batch}, K = {k}"
    mean, log_scale = model.encode(params, x)

    def noise() -> Array:
        estimate = contenders.objective(contenders.REPARAM, k)
        q = contenders.Normal(mean, log_scale)
        z = estimate(key, lambda z: model.log_joint(params, x, z), q, num_samples=k).draws.z
        return (z - mean) * jnp.exp(-log_scale)

    e = jax.jit(noise)()
    for name, loss in (
        ("vijax reparam", contenders.raw_loss),
        ("vijax dreg", contenders.raw_dreg_loss),
    ):
        by_hand = jax.jit(jax.grad(loss))(params, e, x)
        for variant in [n for n in contenders.LOSSES if n.startswith(name)]:
            try:
                _, ours = jax.jit(contenders.value_and_grad(variant, batch, k))(params, key, x)
            except Missing as why:
                yield missing(variant, setting, why)
                continue
            hand = name.replace("vijax", "raw").replace("raw reparam", "raw")
            yield row(variant, setting, distance(ours, by_hand), "", bar=1e-3, against=hand)


def same_keys(name: str, batch: int, k: int, x: Array) -> Iterator[Row]:
    """The fast recipe against all examples at once, each with the key it has in the recipe."""
    params, key = model.init(jax.random.key(1)), jax.random.key(0)
    setting = f"gradient, relative distance from all examples at once, batch {batch}, K = {k}"
    gradient = contenders.REPARAM if "reparam" in name else contenders.DREG
    whole = jax.jit(jax.grad(contenders.example_loss(gradient, k)))(
        params, jax.random.split(key, batch), x
    )
    try:
        _, grouped = jax.jit(contenders.value_and_grad(name, batch, k))(params, key, x)
    except Exception as why:
        yield failed(name, setting, why)
        return
    yield row(name, setting, distance(grouped, whole), "", bar=1e-3)


def in_distribution(batch: int, k: int, x: Array, draws: int) -> Iterator[Row]:
    """Mean loss and mean gradient of every contender against raw's, in standard errors.

    A gradient is seen through its projection on raw's, encoder and decoder apart: a wrong weight on either would show.
    """
    params = model.init(jax.random.key(1))
    setting = f"means of loss and gradient against raw's, batch {batch}, K = {k}, {draws} draws"
    _, direction = jax.jit(contenders.value_and_grad("raw", batch, k))(params, jax.random.key(7), x)

    def statistics(name: str, seed: int) -> np.ndarray:
        evaluate = contenders.value_and_grad(name, batch, k)

        def one(key: Array) -> Array:
            loss, gradient = evaluate(params, key, x)
            seen = [
                optax.tree.vdot(gradient[part], direction[part]) for part in ("encoder", "decoder")
            ]
            return jnp.stack([loss, *seen])

        found = jax.jit(lambda keys: jax.lax.map(one, keys))(
            jax.random.split(jax.random.key(seed), draws)
        )
        return np.asarray(found, np.float64)

    reference = statistics("raw", 100)
    others = [n for n in contenders.STEP if n not in ("raw", "raw A/A")] + [
        "vijax dreg, groups of data"
    ]
    for i, name in enumerate(others):
        try:
            found = statistics(name, 101 + i)
        except Missing as why:
            yield missing(name, setting, why)
            continue
        error = np.sqrt((found.var(0, ddof=1) + reference.var(0, ddof=1)) / draws)
        z = (found.mean(0) - reference.mean(0)) / error
        relative = found.mean(0) / reference.mean(0)
        # What the test could see: a difference of this fraction is found four times out of five.
        detectable = np.abs((WORST + 0.84) * error / reference.mean(0))
        text = ", ".join(
            f"{p} {r:.3f}" for p, r in zip(("loss", "encoder", "decoder"), relative, strict=True)
        )
        seen = ", ".join(f"{d:.1%}" for d in detectable)
        yield row(
            name, setting, float(np.abs(z).max()), "s.e.", bar=WORST, note=f"{text}; detectable: {seen}",
            z=z.tolist(), relative=relative.tolist(), detectable=detectable.tolist(),
        )  # fmt: skip
