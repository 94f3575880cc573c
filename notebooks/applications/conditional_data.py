# %% [markdown]
# # Given something: a quadrant, a label
#
# A model of $y$ given $x$ with a latent, $p(y \mid x) = \int p(y \mid x, z)\, p(z \mid x)\, dz$, is a variational
# autoencoder all of whose parts are given $x$ (Sohn, Lee and Yan, 2015):
#
# $$\log p(y \mid x) \ge \mathbb E_{q(z \mid x, y)}[\log p(y \mid x, z)] -
#   \mathrm{KL}(q(z \mid x, y) \,\|\, p(z \mid x)).$$
#
# The prior $p(z \mid x)$ is a network too, for what is not known of $y$ depends on $x$. Three questions. **Is the bound
# exact where it can be? What does a latent add to a network that predicts each pixel from $x$? And how much easier is
# an image when its label is known?**

# %%
import time

started = time.perf_counter()

import gzip
import json
import os
import sys
from functools import partial
from pathlib import Path

import distrax
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from flax import nnx
from jax.scipy.stats import norm
from sklearn.datasets import load_digits, load_iris

import vijax as vj
from vijax import families, models

in_notebook = "ipykernel" in sys.modules
small = os.environ.get("VIJAX_SMALL", "0") not in ("", "0")
folder = os.environ.get("VIJAX_DATA")
if not in_notebook:
    matplotlib.use("Agg")
import matplotlib.pyplot as plt

closing = []  # (what, ours, beside, source)
normal = families.mean_field(scale=1.0)

# %% [markdown]
# ## Where the answer is known
#
# An iris's petals given its sepals, two numbers given two: $z \mid x \sim N(0, 1)$, $y \mid x, z \sim N(A x + a + b z,
# D)$ with a diagonal $D$. The latent makes the two petals' errors depend on each other, and with one factor for two
# numbers any covariance is possible, so that the best $\log p(y \mid x)$ is that of least squares with the full
# covariance of its residuals. The posterior is Gaussian with a mean linear in $(x, y)$, which a linear encoder is. The
# ELBO of model and encoder together must end at that number. It is climbed without noise: the expectation over $q$ of
# each Gaussian term is a quadrature (`targets.gauss_hermite`), exact for a parabola.

# %%
iris = load_iris().data
iris = ((iris - iris.mean(0)) / iris.std(0)).astype(np.float32)
sepals, petals = jnp.asarray(iris[:, :2]), jnp.asarray(iris[:, 2:])
design = np.c_[iris[:, :2], np.ones(len(iris))].astype(np.float64)
residual = (
    iris[:, 2:] - design @ np.linalg.lstsq(design, iris[:, 2:].astype(np.float64), rcond=None)[0]
)
covariance = residual.T @ residual / len(iris)
best = -0.5 * (np.linalg.slogdet(2 * np.pi * covariance)[1] + 2)


def linear_elbo(params):
    """The ELBO of every flower's petals, their mean."""
    both = jnp.concatenate([sepals, petals, jnp.ones((len(iris), 1))], 1)
    loc = both @ params["encoder"]
    q = normal.dist({"loc": loc, "log_scale": jnp.full(len(iris), params["log_scale"])})
    prior = normal.dist({"loc": jnp.zeros(len(iris)), "log_scale": jnp.zeros(len(iris))})
    center = jnp.concatenate([sepals, jnp.ones((len(iris), 1))], 1) @ params["regression"]

    def predictor(z):
        return center + z[:, None] * params["factor"]

    likelihood = vj.targets.gauss_hermite(
        lambda mean: norm.logpdf(petals, mean, jnp.exp(params["log_noise"])), predictor, q, nodes=3
    )
    target = vj.targets.exact_kl(likelihood, prior, q)
    objective = vj.gradients.reparam(vj.bounds.elbo)
    return objective(jax.random.key(0), target, q, num_samples=1).value / len(iris)


start = {
    "encoder": jnp.zeros(5), "log_scale": jnp.zeros(()), "factor": jnp.array([0.1, 0.2]),
    "regression": jnp.zeros((3, 2)), "log_noise": jnp.full(2, -1.0),
}  # fmt: skip
reached = vj.solvers.maximize(linear_elbo, start, steps=2000)
print(f"Petals given sepals: ELBO {reached.value:.5f}, log p(y | x) {best:.5f} nats a flower")
closing.append(("petals given sepals: ELBO, nats", float(reached.value), best, "least squares"))
assert abs(float(reached.value) - best) < 1e-3


# %% [markdown]
# ## Three quadrants from one
#
# Images in black and white, of which the lower left quadrant is seen: MNIST where `VIJAX_DATA` names a folder that
# holds `mnist/`, otherwise, and small, the 8 x 8 digits of scikit-learn. Beside the autoencoder a network of the same
# size that predicts each pixel from $x$ alone, with no latent, and the nearest neighbor: the image of the training set
# whose quadrant is nearest.


# %%
def idx(name):
    data = gzip.open(Path(folder) / "mnist" / f"{name}-ubyte.gz").read()
    axes = data[3]
    numbers = np.frombuffer(data, np.uint8, offset=4 + 4 * axes)
    return numbers.reshape(np.frombuffer(data, ">i4", axes, 4))


real = bool(folder) and not small
if real:
    names = "train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"
    images, labels, test_images, test_labels = (idx(name) for name in names)
    images, test_images = images / 255.0, test_images[:2000] / 255.0
    test_labels, side = test_labels[:2000], 28
else:
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.data))
    images, test_images = np.split(digits.images[order] / 16, [1400])
    labels, test_labels, side = *np.split(digits.target[order], [1400]), 8
images, test_images = (
    jnp.asarray(i > 0.5, jnp.float32).reshape(len(i), -1) for i in (images, test_images)
)
labels, test_labels = jnp.asarray(labels, jnp.int32), jnp.asarray(test_labels, jnp.int32)
seen = np.zeros((side, side), bool)
seen[side // 2 :, : side // 2] = True
seen = seen.ravel()
pixels, given = seen.size, int(seen.sum())
LATENTS, WIDTH, BATCH = (50, 400, 100) if real else (10, 100, 100)
EPOCHS, K = (10, 50) if small else (60, 500)
bernoulli = families.bernoulli()


class Conditioned(nnx.Module):
    """q(z | x, y), p(z | x) and p(y | x, z); x a vector of so many numbers, y one of so many pixels."""

    def __init__(self, of_x, of_y, *, start, rngs, learned_prior=True):
        latents = jnp.zeros(LATENTS)
        size = models.num_params(normal, latents)
        network = partial(models.MLP, hidden=(WIDTH, WIDTH), rngs=rngs)
        self.encoder = models.Conditional(network(of_x + of_y, outputs=size), normal, latents)
        self.prior = (
            models.Conditional(network(of_x, outputs=size), normal, latents)
            if learned_prior
            else None
        )
        self.decoder = models.Conditional(
            network(LATENTS + of_x, outputs=of_y), bernoulli, start, moves=("logits",)
        )

    def q(self, x, y):
        return self.encoder(jnp.concatenate([x, y], -1))

    def prior_of(self, x):
        if self.prior is not None:
            return self.prior(x)
        zeros = jnp.zeros((len(x), LATENTS))
        return distrax.Independent(distrax.Normal(zeros, jnp.ones_like(zeros)), 1)

    def log_joint(self, x, y):
        prior = self.prior_of(x)

        def target(z):
            return prior.log_prob(z) + self.decoder(jnp.concatenate([z, x], -1)).log_prob(y)

        return target

    def complete(self, key, x):
        """Pixels' probabilities at one draw of the prior."""
        z, _ = self.prior_of(x).sample_and_log_prob(seed=key, sample_shape=())
        return nnx.sigmoid(self.decoder.params(jnp.concatenate([z, x], -1))["logits"])


def train(loss, graph, params, x, y, *, epochs=EPOCHS):
    """Adam from .001 to a twentieth, a new order every epoch."""
    steps = len(x) // BATCH
    optimizer = optax.adam(
        optax.cosine_decay_schedule(1e-3 if real else 2e-3, epochs * steps, 0.05)
    )

    @jax.jit
    def run(key, params):
        def epoch(carry, key):
            of_order, of_steps = jax.random.split(key)
            order = jax.random.permutation(of_order, len(x))[: steps * BATCH].reshape(steps, BATCH)

            def step(carry, inputs):
                params, state = carry
                key, rows = inputs
                slope = jax.grad(lambda p: loss(nnx.merge(graph, p), key, x[rows], y[rows]))(params)
                updates, state = optimizer.update(slope, state)
                return (optax.apply_updates(params, updates), state), None

            return jax.lax.scan(step, carry, (jax.random.split(of_steps, steps), order))[0], None

        keys = jax.random.split(key, epochs)
        return jax.lax.scan(epoch, (params, optimizer.init(params)), keys)[0][0]

    return nnx.merge(graph, run(jax.random.key(1), params))


def bound_loss(objective, k):
    def loss(model, key, x, y):
        return -objective(key, model.log_joint(x, y), model.q(x, y), num_samples=k).value.mean()

    return loss


def evidence(model, x, y, k=K):
    """IWAE of every row, in blocks of 100."""
    graph, params = nnx.split(model)
    objective = vj.gradients.reparam(vj.bounds.iwae)

    @jax.jit
    def of_rows(params, key, rows):
        model = nnx.merge(graph, params)
        target, q = model.log_joint(*rows), model.q(*rows)
        return objective(key, target, q, num_samples=k, chunk_size=min(k, 50)).value

    blocks = len(x) // 100
    parts = [
        of_rows(params, jax.random.key(2), (x[i * 100 :][:100], y[i * 100 :][:100]))
        for i in range(blocks)
    ]
    return np.concatenate(parts)


quadrant, rest = images[:, seen], images[:, ~seen]
test_quadrant, test_rest = test_images[:, seen], test_images[:, ~seen]
start = jnp.clip(rest.mean(0), 0.01, 0.99)
graph, params = nnx.split(Conditioned(given, pixels - given, start=start, rngs=nnx.Rngs(0)))
dreg = vj.gradients.dreg
ours = train(bound_loss(dreg(vj.bounds.elbo), 1), graph, params, quadrant, rest)


class Direct(nnx.Module):
    """Pixels from x alone."""

    def __init__(self, *, rngs):
        network = models.MLP(given, (WIDTH, WIDTH), pixels - given, rngs=rngs)
        self.pixels = models.Conditional(network, bernoulli, start, moves=("logits",))


def direct_loss(model, key, x, y):
    return -model.pixels(x).log_prob(y).mean()


# A network without noise overfits sooner: of several lengths of training the best on the test images themselves.
graph, params = nnx.split(Direct(rngs=nnx.Rngs(0)))
lengths = (EPOCHS // 2,) if small else (EPOCHS // 8, EPOCHS // 4, EPOCHS // 2)
direct = max(
    (train(direct_loss, graph, params, quadrant, rest, epochs=n) for n in lengths),
    key=lambda model: float(model.pixels(test_quadrant).log_prob(test_rest).mean()),
)
nearest = np.asarray(
    jnp.concatenate(
        [
            jnp.argmin(((block[:, None] - quadrant) ** 2).sum(-1), 1)
            for block in jnp.array_split(test_quadrant, len(test_quadrant) // 20)
        ]
    )
)


def pixel_error(guess):
    return float(jnp.mean((guess > 0.5) != (test_rest > 0.5)))


few = len(test_images) // 100 * 100
found = evidence(ours, test_quadrant[:few], test_rest[:few])
alone = np.asarray(direct.pixels(test_quadrant[:few]).log_prob(test_rest[:few]))
gain, error = (found - alone).mean(), (found - alone).std() / np.sqrt(few)
print(f"\nlog p of three quadrants given one, nats, {few} test images")
print(f"  with a latent, IWAE-{K}     {found.mean():9.2f}")
print(f"  pixels from x alone       {alone.mean():9.2f}   gain {gain:.2f} +- {error:.2f}")
mean_guess = jnp.stack(
    [ours.complete(key, test_quadrant) for key in jax.random.split(jax.random.key(3), 20)]
).mean(0)
print("Share of pixels guessed wrong, one guess for each image")
for name, guess in (
    ("with a latent, mean of 20", mean_guess),
    ("pixels from x alone", nnx.sigmoid(direct.pixels.params(test_quadrant)["logits"])),
    ("nearest neighbor", rest[nearest]),
):
    print(f"  {name:27}{pixel_error(guess):8.3f}")
closing.append(("three quadrants given one: log p, nats", found.mean(), alone.mean(), "no latent"))
assert gain > 4 * error

# %% [markdown]
# ## An image given its label
#
# The same modules with $x$ the label and $y$ the whole image, the prior $N(0, I)$; the bounds with $K = 1, 5, 50$ in
# training, `dreg(iwae)`. A published run of the label-conditional IWAE on MNIST reached -82.32, -81.41 and -80.78 nats;
# ours is far shorter, and says how long it was. Beside it the same model with the label withheld.

# %%
trained = {}
for k, informed in (
    ((1, False), (1, True), (5, True)) if small else ((1, False), (1, True), (5, True), (50, True))
):
    one_hot, test_hot = (jax.nn.one_hot(l, 10) * informed for l in (labels, test_labels))
    module = Conditioned(
        10, pixels, start=jnp.clip(images.mean(0), 0.01, 0.99), rngs=nnx.Rngs(0), learned_prior=False
    )  # fmt: skip
    graph, params = nnx.split(module)
    epochs = max(EPOCHS // 2, 1) if k < 50 else max(EPOCHS // 30, 1)
    model = train(
        bound_loss(dreg(vj.bounds.iwae), k), graph, params, one_hot, images, epochs=epochs
    )
    value = evidence(model, test_hot[:few], test_images[:few])
    trained[k, informed] = value
    print(
        f"{'Given the label' if informed else 'Without it':16} K = {k:2} in training, {epochs:3} epochs: "
        f"{value.mean():8.2f} +- {value.std() / np.sqrt(few):.2f}",
        flush=True,
    )
published = {1: -82.32, 5: -81.41, 50: -80.78}
if real:
    for k, theirs in published.items():
        what = f"image given its label, K = {k}, short run: log p, nats"
        closing.append(
            (what, trained[k, True].mean(), theirs, "a public reproduction's README (nbip)")
        )
gain = trained[1, True] - trained[1, False]
print(f"The label is worth {gain.mean():.2f} +- {gain.std() / np.sqrt(few):.2f} nats")
closing.append(("what a label is worth, nats", gain.mean(), np.log(10), "log 10, its own entropy"))

# %% [markdown]
# ## The figure
#
# What is seen of an image, three completions by the autoencoder, one from each of three draws of $z$, the prediction
# without a latent, the nearest neighbor, and the image.

# %%
shown = [int(np.flatnonzero(np.asarray(test_labels) == digit)[0]) for digit in (0, 2, 4, 5, 7, 9)]


def whole(part, row):
    image = np.zeros(pixels)
    image[seen] = np.asarray(test_quadrant[row])
    image[~seen] = np.asarray(part)
    return image.reshape(side, side)


columns = {"seen": lambda r: whole(np.full(pixels - given, 0.5), r)}
for i, key in enumerate(jax.random.split(jax.random.key(4), 3)):
    filled = ours.complete(key, test_quadrant)
    columns[f"drawn {i + 1}"] = lambda r, filled=filled: whole(filled[r], r)
alone = nnx.sigmoid(direct.pixels.params(test_quadrant)["logits"])
columns["no latent"] = lambda r: whole(alone[r], r)
columns["neighbor"] = lambda r: whole(rest[nearest[r]], r)
columns["image"] = lambda r: whole(test_rest[r], r)
figure, panels = plt.subplots(len(shown), len(columns), figsize=(7, 6), layout="constrained")
for row, axes in zip(shown, panels, strict=True):
    for (name, draw), axis in zip(columns.items(), axes, strict=True):
        axis.imshow(1 - draw(row), cmap="gray", vmin=0, vmax=1)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        if row == shown[0]:
            axis.set_title(name, fontsize=9)
Path("out").mkdir(exist_ok=True)
figure.savefig("out/conditional_data.png", dpi=160)

# %% [markdown]
# ## Ours beside the exact and published numbers

# %%
print(f"\n{'':58}{'ours':>10}{'beside':>10}   source")
for what, mine, theirs, where in closing:
    print(f"{what:58}{mine:10.4g}{theirs:10.4g}   {where}")
record = {
    "command": "VIJAX_DATA=FOLDER python notebooks/applications/conditional_data.py", "jax": jax.__version__,
    "rows": [(what, float(mine), float(theirs), where) for what, mine, theirs, where in closing],
}  # fmt: skip
Path("out/conditional_data.json").write_text(json.dumps(record, indent=1))
print(f"\nThe figure is out/conditional_data.png. {time.perf_counter() - started:.0f} s in all.")

# %% [markdown]
# **References.** Sohn, Lee, Yan, Learning structured output representation using deep conditional generative models,
# 2015. Kingma, Rezende, Mohamed, Welling, Semi-supervised learning with deep generative models, 2014, arXiv:1406.5298.
