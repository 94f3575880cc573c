# %% [markdown]
# # One task after another
#
# Data come in tasks, and when a task is over its data are gone. A network that is trained on each task in turn forgets
# the earlier ones. Bayes' rule does not: what was learned from task 1 is the prior of task 2,
#
# $$p(w \mid D_1, \dots, D_t) \propto p(D_t \mid w)\; p(w \mid D_1, \dots, D_{t-1}).$$
#
# Where the posterior of a network is out of reach, each step keeps the nearest member of a family (variational
# continual learning, VCL; Nguyen et al., 2018):
#
# $$q_t = \arg\max_q \; \mathbb E_q[\log p(D_t \mid w)] - \mathrm{KL}(q \,\|\, q_{t-1}), \qquad q_0 = p(w).$$
#
# The prior and the posterior of a step are parameters of one family, two pytrees of one form, and `targets.exact_kl`
# takes both. A **coreset** is a few data of each task that are kept: left out of the recursion, and learned from once
# more before predicting.
#
# Three questions. **Is the recursion exact where it can be? How much does a network remember by it? And what is missing
# where it forgets?**

# %%
import time

started = time.perf_counter()

import gzip
import json
import os
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from jax.scipy.stats import norm
from sklearn.datasets import load_diabetes, load_digits

import vijax as vj
from vijax.models import local_reparameterization

in_notebook = "ipykernel" in sys.modules
small = os.environ.get("VIJAX_SMALL", "0") not in ("", "0")
folder = os.environ.get("VIJAX_DATA")
if not in_notebook:
    matplotlib.use("Agg")
import matplotlib.pyplot as plt

closing = []  # (what, ours, beside, source)

# %% [markdown]
# ## Where the recursion is exact
#
# A linear regression on scikit-learn's diabetes data, in five tasks, with the noise known and $w \sim N(0, I)$. Each
# task's target is quadratic in $w$, so that `targets.collapse_gaussian` finds the posterior, which is the next task's
# prior as it stands. After the fifth it must be the posterior of all data at once, in whatever order they came.

# %%
diabetes = load_diabetes()
design = diabetes.data / diabetes.data.std(0)
response = (diabetes.target - diabetes.target.mean()) / diabetes.target.std()
with jax.enable_x64(True):
    standard = vj.families.full_rank(scale=1.0)
    posterior = standard.dist(standard.init(None, jnp.zeros(10)))
    for rows in np.array_split(np.arange(len(design)), 5):
        x, y, before = jnp.asarray(design[rows]), jnp.asarray(response[rows]), posterior

        def task_joint(_, w, x=x, y=y, before=before):
            return before.log_prob(w) + norm.logpdf(y, x @ w, 0.7).sum()

        posterior = vj.targets.collapse_gaussian(task_joint, jnp.zeros(10))[1](())
    at_once = np.linalg.solve(np.eye(10) + design.T @ design / 0.49, design.T @ response / 0.49)
    streamed = np.asarray(posterior.mean)
off = float(np.abs(streamed - at_once).max())
closing.append(("five tasks or all data: posterior means, largest difference", off, 0.0, "exact"))
assert off < 1e-10
print(f"Five tasks one by one, or all data at once: posterior means differ by {off:.0e}")

# %% [markdown]
# ## Networks: two sets of tasks
#
# *Split*: five pairs of digits (0 or 1, 2 or 3, ...), and the pair is known when a digit is asked for, so each task has
# two outputs of its own over layers that are shared. *Permuted*: all ten digits each time, their pixels in another
# order. On MNIST where `VIJAX_DATA` names a folder that holds `mnist/`; otherwise, and small, on the 8 x 8 digits of
# scikit-learn, of which there is no published number.


# %%
def idx(path):
    data = gzip.open(path).read()
    axes = data[3]
    numbers = np.frombuffer(data, np.uint8, offset=4 + 4 * axes)
    return numbers.reshape(np.frombuffer(data, ">i4", axes, 4))


real = bool(folder) and not small
if real:
    names = "train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"
    images, labels, test_images, test_labels = (
        idx(Path(folder) / "mnist" / f"{name}-ubyte.gz") for name in names
    )
    images, test_images = (i.reshape(len(i), -1) / np.float32(255) for i in (images, test_images))
else:
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.data))
    images, test_images = np.split(digits.data[order].astype(np.float32) / 16, [1400])
    labels, test_labels = np.split(digits.target[order], [1400])

TASKS, pixels = 5, images.shape[1]
KEPT = {"split": 40, "permuted": 200} if real else {"split": 10, "permuted": 50}
# So small and so short, a network forgets no pair of digits.
kinds = ("permuted",) if small else ("split", "permuted")
WIDTHS = {"split": (256, 256), "permuted": (100, 100)} if real else dict.fromkeys(KEPT, (64,))
EPOCHS = {"split": 60, "permuted": 20} if real else dict.fromkeys(KEPT, 12 if small else 60)
BATCH, SEEDS = (256, 1) if real else (64, 2)


def tasks_of(kind, x, y):
    """Return (x, y) of each task."""
    if kind == "split":
        return [(x[y // 2 == t], y[y // 2 == t]) for t in range(TASKS)]
    return [
        (x[:, np.random.default_rng(t).permutation(pixels)] if t else x, y) for t in range(TASKS)
    ]


# %% [markdown]
# The model is a network with rectified units whose weights, biases among them, are independent Gaussians under $q$.
# Each row of a batch has noise of its own (`models.local_reparameterization`): with one draw of the weights for a whole
# batch the gradient would be far noisier. The sum over rows estimates the ELBO alone, which `targets.unbiased` says to
# the objective, and the batch stands for all N data of the task.

# %%
family = vj.families.mean_field(scale=float(np.exp(-3.0)))
objective = vj.gradients.reparam(vj.bounds.elbo)


def layer(key, inputs, outputs):
    loc = jax.random.normal(key, (inputs + 1, outputs)) * (2 / inputs) ** 0.5
    return loc.at[-1].set(0.0)


def start(kind, key):
    widths = (pixels, *WIDTHS[kind], 10)
    of_layers = jax.random.split(key, len(widths))
    return family.init(
        None,
        {f"layer {i}": layer(of_layers[i], *widths[i : i + 2]) for i in range(len(widths) - 1)},
    )


def logits(key, params, x):
    """Logits of each row under weights of its own from q; under q's means where key is None."""
    for depth, (loc, log_scale) in enumerate(
        zip(params["loc"].values(), params["log_scale"].values(), strict=True)
    ):
        x = jnp.concatenate([jax.nn.relu(x), jnp.ones((len(x), 1))], -1)
        if key is None:
            x = x @ loc
        else:
            of_layer = jax.random.fold_in(key, depth)
            x = local_reparameterization(of_layer, x, loc, jnp.exp(log_scale))
    return x


def asked(kind, outputs, y):
    """Log-probabilities; of split digits among the pair that is asked about."""
    others = (jnp.arange(10) // 2 != y[:, None] // 2) & (kind == "split")
    return jax.nn.log_softmax(jnp.where(others, -jnp.inf, outputs))


def log_likelihood(kind, key, params, x, y):
    return jnp.take_along_axis(asked(kind, logits(key, params, x), y), y[:, None], 1).sum()


def vcl(kind, key, params, prior, x, y, size):
    """The negative ELBO over N."""

    def scaled(key, _):
        return size / len(x) * log_likelihood(kind, key, params, x, y)

    q = family.dist(params)
    target = vj.targets.exact_kl(vj.targets.unbiased(scaled), family.dist(prior), q)
    return -objective(key, target, q, num_samples=1).value / size


def plain(kind, key, params, prior, x, y, size):
    """The negative log-likelihood of the means over N: no Bayes."""
    return -log_likelihood(kind, None, params, x, y) / len(x)


@partial(jax.jit, static_argnames=("kind", "loss"))
def train(keys, params, prior, data, rows, steps, *, kind, loss):
    """Adam, a falling rate, batches of `rows` (first, count); keys, params and prior have an axis of seeds."""
    optimizer = optax.scale_by_adam()
    x, y = data
    first, size = rows

    def of_seed(key, params, prior):
        def step(i, carry):
            params, state = carry
            of_rows, of_loss = jax.random.split(jax.random.fold_in(key, i))
            batch = first + jax.random.randint(of_rows, (BATCH,), 0, size)
            slope = jax.grad(loss, 2)(kind, of_loss, params, prior, x[batch], y[batch], size)
            updates, state = optimizer.update(slope, state)
            rate = (1e-3 if real else 3e-3) * (0.05 + 0.95 * jnp.cos(jnp.pi * i / steps / 2) ** 2)
            return jax.tree.map(lambda p, u: p - rate * u, params, updates), state

        return jax.lax.fori_loop(0, steps, step, (params, optimizer.init(params)))[0]

    return jax.vmap(of_seed)(keys, params, prior)


@partial(jax.jit, static_argnames=("kind", "draws"))
def right(keys, params, data, *, kind, draws):
    """Whether the mean prediction of so many draws is right, [seeds, rows]; of the means where draws is 0."""
    x, y = data

    def of_seed(key, params):
        def one(key):
            return jnp.exp(asked(kind, logits(key if draws else None, params, x), y))

        mean = jax.lax.map(one, jax.random.split(key, max(draws, 1))).mean(0)
        return mean.argmax(-1) == y

    return jax.vmap(of_seed)(keys, params)


# %% [markdown]
# Coresets are chosen at random, or by *k-center*: each datum the farthest from those that are chosen already. A task's
# outputs wait for it: until then their prior is where they start from, so that nothing moves them.


# %%
def at_random(x, count):
    return np.random.default_rng(0).choice(len(x), count, replace=False)


def k_center(x, count):
    kept, distance = [0], np.sum((x - x[0]) ** 2, 1)
    for _ in range(count - 1):
        kept.append(int(distance.argmax()))
        distance = np.minimum(distance, np.sum((x - x[kept[-1]]) ** 2, 1))
    return np.asarray(kept)


def keys(*numbers):
    return jax.random.split(jax.random.key(hash(numbers) % 2**31), SEEDS)


def prior_of(kind, before, params, task):
    """What was learned before; of outputs whose task begins N(0, 1), of those that wait what they are."""
    if kind == "permuted":
        return before
    last, turn = max(before["loc"]), jnp.arange(10) // 2

    def of_outputs(known, now):
        return jnp.where(turn < task, known, jnp.where(turn == task, 0.0, now))

    return {
        part: known | {last: of_outputs(known[last], params[part][last])}
        for part, known in before.items()
    }


def run(kind, loss, select=None):
    """Train on one task after another; return the accuracy on each task after each, [tasks, tasks, seeds]."""
    tasks, tests = tasks_of(kind, images, labels), tasks_of(kind, test_images, test_labels)
    picked = [
        select(x, KEPT[kind]) if select else np.zeros(0, int) for x, _ in tasks
    ]  # rows of each task that are kept
    rest = [np.delete(np.arange(len(y)), p) for (_, y), p in zip(tasks, picked, strict=True)]
    # One array, for one program: what each task learns from, then the coresets.
    parts = [
        (x[r], y[r]) for which in (rest, picked) for (x, y), r in zip(tasks, which, strict=True)
    ]
    data, test_data = (
        tuple(jnp.asarray(np.concatenate(part)) for part in zip(*p, strict=True))
        for p in (parts, tests)
    )
    ends = np.cumsum([0, *(len(y) for _, y in parts)])
    task_of_test = np.repeat(np.arange(TASKS), [len(y) for _, y in tests])
    steps = EPOCHS[kind] * int(ends[TASKS]) // TASKS // BATCH
    train_on = partial(train, kind=kind, loss=loss)
    params = jax.vmap(partial(start, kind))(keys(0))
    prior = jax.tree.map(jnp.zeros_like, params)
    if loss is vcl:  # the means begin where a plain network ends
        begun = train(keys(1), params, prior, data, (0, ends[1]), steps // 4, kind=kind, loss=plain)
        params = begun | {"log_scale": params["log_scale"]}
    table = np.full((TASKS, TASKS, SEEDS), np.nan)
    for t in range(TASKS):
        prior = prior_of(kind, prior, params, t)
        rows = ends[t], ends[t + 1] - ends[t]
        prior = params = train_on(keys(2, t), params, prior, data, rows, steps)
        for i in range(t + 1):
            tuned = params
            if select:  # each pair's own coreset; of permuted digits all
                first, last = (i, i + 1) if kind == "split" else (0, t + 1)
                rows = ends[TASKS + first], ends[TASKS + last] - ends[TASKS + first]
                tuned = train_on(keys(3, t, i), params, params, data, rows, 50 if small else 500)
            good = right(keys(4, t), tuned, test_data, kind=kind, draws=20 * (loss is vcl))
            good = np.asarray(good)
            if select and kind == "split":
                table[t, i] = good[:, task_of_test == i].mean(1)
                continue
            table[t, : t + 1] = [good[:, task_of_test == j].mean(1) for j in range(t + 1)]
            break
    return table


PUBLISHED = {
    "split": {"VCL": 0.955, "random coreset": 0.969, "k-center coreset": 0.984},
    "permuted": {"VCL": 0.933, "random coreset": 0.963, "k-center coreset": 0.962},
}
ways = {
    "one after another": (plain, None),
    "VCL": (vcl, None),
    "random coreset": (vcl, at_random),
    "k-center coreset": (vcl, k_center),
}
curves = {}
for kind in kinds:
    print(f"\n{kind}: accuracy over the tasks so far, %")
    for name, (loss, select) in ways.items():
        table = run(kind, loss, select)
        curves[kind, name] = np.nanmean(table, (1, 2))
        print(f"  {name:20}" + "".join(f"{100 * a:7.1f}" for a in curves[kind, name]), flush=True)
        if real and name in PUBLISHED[kind]:
            after = f"{kind}: {name}, after five tasks"
            beside = PUBLISHED[kind][name], "Nguyen et al., their figures"
            closing.append((after, curves[kind, name][-1], *beside))
    assert curves[kind, "VCL"][-1] > curves[kind, "one after another"][-1]

# %% [markdown]
# ## The figure

# %%
INK, COLORS = "#1f2933", ("#8a929b", "#0072B2", "#E69F00", "#D55E00")
figure, panels = plt.subplots(
    1, len(kinds), figsize=(4.5 * len(kinds), 3.6), sharey=True, squeeze=False, layout="constrained"
)
for panel, kind in zip(panels[0], kinds, strict=True):
    for name, color in zip(ways, COLORS, strict=True):
        panel.plot(
            range(1, TASKS + 1), 100 * curves[kind, name], "o-", color=color, ms=4, label=name
        )
        if real and name in PUBLISHED[kind]:
            panel.plot(TASKS + 0.25, 100 * PUBLISHED[kind][name], "<", color=color, ms=6)
    panel.set(xlabel="tasks seen", xticks=range(1, TASKS + 1))
    panel.set_title(f"{kind.capitalize()} digits", loc="left", fontsize=9, color=INK)
    panel.spines[["top", "right"]].set_visible(False)
panels[0, 0].set_ylabel("mean accuracy over them, %")
panels[0, 0].legend(frameon=False, fontsize=8)
Path("out").mkdir(exist_ok=True)
figure.savefig("out/continual_learning.png", dpi=160)

# %% [markdown]
# ## Ours beside the exact and published numbers

# %%
print(f"\n{'':60}{'ours':>10}{'beside':>10}   source")
for what, mine, theirs, where in closing:
    print(f"{what:60}{mine:10.3g}{theirs:10.3g}   {where}")
record = {
    "command": "VIJAX_DATA=FOLDER python notebooks/applications/continual_learning.py", "jax": jax.__version__,
    "rows": [(what, float(mine), float(theirs), where) for what, mine, theirs, where in closing],
}  # fmt: skip
Path("out/continual_learning.json").write_text(json.dumps(record, indent=1))
print(f"\nThe figure is out/continual_learning.png. {time.perf_counter() - started:.0f} s in all.")

# %% [markdown]
# **References.** Nguyen, Li, Bui, Turner, Variational continual learning, 2018, arXiv:1710.10628. Kingma, Salimans,
# Welling, Variational dropout and the local reparameterization trick, 2015, arXiv:1506.02557.
