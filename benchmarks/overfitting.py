"""An autoencoder that overfits, and whose fault it is: the decoder's, the encoder's, or the family's.

The networks of `gaps`, trained on few binarized MNIST images for many epochs under the ELBO. On images that it was
trained on the bound is better than on others. Of that the difference of log p is the decoder's, the difference of the
amortization gaps the encoder's, and that of the approximation gaps the family's; the parts add up exactly. log p is
importance sampling from a full covariance, refined for each image. Needs the folder `binarized_mnist` in --data.
"""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import vijax as vj
from benchmarks import gaps
from benchmarks._report import Options, Row, row

IMAGES, EPOCHS, SHOWN, DRAWS, EVIDENCE = 2_000, 200, 100, 1_000, 5_000
PARTS = ("decoder: log p", "encoder: amortization gap", "family: approximation gap")
SURE = 4.0  # standard errors


def parts(params: gaps.Params, x: np.ndarray, share: float) -> tuple[vj.diagnostics.Gaps, Array]:
    """Return the gaps of every image, and k-hat of the proposal that log p is drawn from."""
    target = partial(gaps.log_joint, params, jnp.asarray(x))
    keys = iter(jax.random.split(jax.random.key(4), 5))

    def log_weights(family: vj.types.Family, fitted: gaps.Params, k: int) -> Array:
        q = family.dist(fitted)
        return gaps.streamed(
            next(keys), target, q, num_samples=k, chunk_size=gaps.CHUNK
        ).draws.log_w

    start = gaps.encode(params, jnp.asarray(x))
    plain = vj.families.members(gaps.FAMILIES["mean-field"])
    of_encoder, fitted, log_w = log_weights(plain, start, DRAWS), start, {}
    for name in ("mean-field", "full covariance"):
        family, (steps, per_step, rate, _) = (
            vj.families.members(gaps.FAMILIES[name]),
            gaps.EFFORT[name],
        )
        fitted = vj.solvers.refine(
            next(keys), target, family, gaps.begun(name, fitted),
            steps=2 * int(share * steps / 2), num_samples=per_step,
            optimizer=partial(gaps.falling, rate),
        ).params  # fmt: skip
        log_w[name] = log_weights(family, fitted, EVIDENCE if name != "mean-field" else DRAWS)
    best = log_w["full covariance"]
    return vj.diagnostics.gaps(of_encoder, log_w["mean-field"], best), vj.diagnostics.khat(best)


def run(options: Options) -> Iterator[Row]:
    number, epochs, shown, share = (
        (200, 5, 10, 0.02) if options.quick else (IMAGES, EPOCHS, SHOWN, 1.0)
    )
    train_set, test_set = (
        gaps.images(options.data, "train", number),
        gaps.images(options.data, "test", shown),
    )
    params = gaps.train(train_set, epochs)
    seen, khat = parts(params, train_set[:shown], share)
    held_out, khat_held_out = parts(params, test_set, share)
    setting = f"a VAE of {number} images and {epochs} epochs: {shown} of them, and {shown} held out"
    for name, of, usable in (("trained on", seen, khat), ("held out", held_out, khat_held_out)):
        log_p = of.log_evidence.value
        bad = float((usable > gaps.USABLE).mean())
        bound = float((log_p - of.total.value).mean())
        note = f"log p {float(log_p.mean()):.2f}; k-hat above .7 for {bad:.0%}"
        yield row(f"ELBO, {name}", setting, bound, "nats", log_p=float(log_p.mean()), note=note)

    def rows_of(of: vj.diagnostics.Gaps) -> tuple[Array, Array, Array]:
        return (
            of.log_evidence.value,
            -of.amortization.value,
            -(of.approximation.value + of.monte_carlo.value),
        )

    metric = f"{setting}: trained on less held out"
    total = rows_of(seen), rows_of(held_out)
    for name, a, b in zip(PARTS, *total, strict=True):
        yield difference(name, metric, a, b, judged=not options.quick and name != PARTS[2])
    whole = [sum(of) for of in total]
    yield difference("ELBO", metric, *whole, judged=not options.quick)


def difference(name: str, metric: str, seen: Array, held_out: Array, *, judged: bool) -> Row:
    """Return how much better images are that were trained on: surely so, where it is judged."""
    mean = float(seen.mean() - held_out.mean())
    error = float(jnp.sqrt(seen.var(ddof=1) / len(seen) + held_out.var(ddof=1) / len(held_out)))
    met = {"least": SURE * error, "met": mean >= SURE * error} if judged else {}
    return row(name, metric, mean, "nats", error=error, note=f"± {error:.2f} over images", **met)
