# %% [markdown]
# # Data with holes
#
# Half of a table is missing. A variational autoencoder needs no table without holes: given $z$ the entries of a row are
# independent, so that those which are missing are integrated out by being left out,
#
# $$\log p(x_o \mid z) = \sum_{d \text{ observed}} \log p(x_d \mid z), \qquad
#   \mathcal L_K = \mathbb E \log \frac1K \sum_k \frac{p(x_o \mid z_k)\, p(z_k)}{q(z_k \mid x_o)} \le \log p(x_o),$$
#
# which is the importance-weighted bound of what is there (MIWAE; Mattei and Frellsen, 2019). The same weights fill the
# holes: $\mathbb E[x_m \mid x_o] \approx \sum_k \tilde w_k\, \mathbb E[x_m \mid z_k]$.
#
# Three questions. **Are these imputations right, where the right ones are known? Are they better than what one would
# use otherwise? And what if entries are missing because of their values?**

# %%
import time
import warnings

started = time.perf_counter()

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
from jax.scipy.stats import t as student
from sklearn.datasets import load_breast_cancer
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer

import vijax as vj
from vijax import families, models

in_notebook = "ipykernel" in sys.modules
small = os.environ.get("VIJAX_SMALL", "0") not in ("", "0")
if not in_notebook:
    matplotlib.use("Agg")
import matplotlib.pyplot as plt

warnings.simplefilter("ignore", ConvergenceWarning)  # of scikit-learn's iterative imputer
closing = []  # (what, ours, beside, source)

# %% [markdown]
# ## The data
#
# 569 breast tumors, 30 measurements of each, standardized; half of all numbers are deleted at random, and the error of
# an imputation is its mean square over those. For each of several seeds another half is missing.

# %%
table = load_breast_cancer().data
table = ((table - table.mean(0)) / table.std(0)).astype(np.float32)
rows, features = table.shape
seeds, epochs, draws = (2, 40, 100) if small else (3, 1000, 10_000)


def half_missing(seed):
    there = np.ones(table.size, bool)
    there[np.random.default_rng(seed).choice(table.size, table.size // 2, replace=False)] = False
    return there.reshape(table.shape)


masks = np.stack([half_missing(seed) for seed in range(seeds)])


def error(filled, there):
    return float(np.mean((np.asarray(filled) - table)[~there] ** 2))


# %% [markdown]
# ## Where the answer is known: a linear model
#
# With $x \mid z \sim N(W z, \sigma^2 I)$, here probabilistic PCA of the whole table, everything is Gaussian: $\log
# p(x_o)$ and the best imputation, $\mathbb E[x_m \mid x_o]$, are conditionals of $N(0, W W^\top + \sigma^2 I)$. The
# target is quadratic in $z$, so that `targets.collapse_gaussian` integrates it exactly, row by row with other holes;
# and importance sampling from a $q$ that is twice too wide must come to the same.

# %%
eigenvalues, axes = np.linalg.eigh(np.cov(table.T, ddof=0))
noise = float(np.sqrt(eigenvalues[:-10].mean()))
loadings = jnp.asarray((axes[:, -10:] * np.sqrt(eigenvalues[-10:] - noise**2)).T, jnp.float32)


def linear_joint(x, there, z):
    def entries(z, x):
        return norm.logpdf(x, z @ loadings, noise)

    return norm.logpdf(z).sum(-1) + vj.targets.missing(entries, x, there)(z)


def exact(x, there):
    """Evidence and imputation of one row by dense algebra in double precision."""
    covariance = np.asarray(loadings, np.float64).T @ np.asarray(loadings) + noise**2 * np.eye(
        features
    )
    inside = covariance[np.ix_(there, there)]
    solved = np.linalg.solve(inside, x[there].astype(np.float64))
    evidence = -0.5 * (
        x[there] @ solved + np.linalg.slogdet(inside)[1] + there.sum() * np.log(2 * np.pi)
    )
    return evidence, np.where(there, x, covariance[:, there] @ solved)


few = 10
x, there = jnp.asarray(np.where(masks[0], table, np.nan)[:few]), masks[0][:few]
target, conditional = vj.targets.collapse_gaussian(
    lambda _, z: linear_joint(x, there, z), jnp.zeros((few, 10))
)
posterior = conditional(())
collapsed = np.asarray(posterior.mean) @ np.asarray(loadings)
truth = [exact(table[n], there[n]) for n in range(few)]
evidence_error = np.abs(np.asarray(target(())) - [e for e, _ in truth]).max()
imputed_error = np.abs(np.where(there, table[:few], collapsed) - [f for _, f in truth]).max()
closing.append(("linear: log p(x_o), largest error, nats", evidence_error, 0.0, "dense algebra"))
closing.append(("linear: E[x_m | x_o], largest error, sd", imputed_error, 0.0, "dense algebra"))
assert evidence_error < 1e-3
assert imputed_error < 1e-3

seen_loadings = np.where(there[:, None], np.asarray(loadings), 0.0)  # [rows, latents, features]
precision = np.eye(10) + seen_loadings @ seen_loadings.transpose(0, 2, 1) / noise**2
wide = distrax.MultivariateNormalFullCovariance(posterior.mean, 2 * np.linalg.inv(precision))
found = vj.draws.expectation(
    jax.random.key(0), partial(linear_joint, x, there), wide, lambda z: z @ loadings,
    num_samples=20_000, chunk_size=1_000,
)  # fmt: skip
off = ((found.value - collapsed) / found.error)[~there]
closing.append(
    ("linear: by weights, root mean square z", float(np.sqrt(np.mean(off**2))), 1.0, "noise")
)
assert np.sqrt(np.mean(off**2)) < 1.5

# %% [markdown]
# ## MIWAE
#
# The authors' networks: two layers of 128 each way, 15 latents, entries that are Student-t given $z$, $K = 20$; zeros
# in the holes of what the encoder reads. The objective is `dreg(iwae)`; the seeds are trained side by side, by `vmap`.

# %%
LATENTS, HIDDEN, K, BATCH = 15, (128, 128), 5 if small else 20, 64
RATE = 3e-3 if small else 1e-3
normal = families.mean_field(scale=1.0)
objective = vj.gradients.dreg(vj.bounds.iwae)


class Autoencoder(nnx.Module):
    """Encoder, and a decoder to so many numbers for each entry."""

    def __init__(self, per_entry, *, rngs):
        latents = jnp.zeros(LATENTS)
        down = models.MLP(
            features, HIDDEN, models.num_params(normal, latents), activation=nnx.relu, rngs=rngs
        )
        self.encoder = models.Conditional(down, normal, latents)
        self.up = models.MLP(LATENTS, HIDDEN, per_entry * features, activation=nnx.relu, rngs=rngs)

    def q(self, x, there):
        return self.encoder(jnp.where(there, x, 0.0))

    def decode(self, z):
        """Degrees, location and scale of every entry."""
        loc, scale, degrees = jnp.split(self.up(z), 3, axis=-1)
        return 3 + nnx.softplus(degrees), loc, 0.001 + nnx.softplus(scale)

    def log_joint(self, x, there):
        likelihood = vj.targets.missing(lambda z, x: student.logpdf(x, *self.decode(z)), x, there)
        return lambda z: norm.logpdf(z).sum(-1) + likelihood(z)


def train(build, loss, masks, epochs, seeds):
    """Return the graph, and the parameters of every seed: Adam, a cosine, all seeds at once."""
    graph, _ = nnx.split(build(0))
    starts = [nnx.state(build(seed)) for seed in range(seeds)]
    per_epoch = rows // BATCH
    optimizer = optax.adam(optax.cosine_decay_schedule(RATE, epochs * per_epoch, alpha=0.05))

    def of_seed(params, there, key):
        def step(carry, key):
            params, state = carry
            of_rows, of_draws = jax.random.split(key)
            batch = jax.random.choice(of_rows, rows, (BATCH,), replace=False)

            def negative(params):
                vae = nnx.merge(graph, params)
                return -loss(vae, of_draws, jnp.asarray(table)[batch], there[batch])

            value, slope = jax.value_and_grad(negative)(params)
            updates, state = optimizer.update(slope, state)
            return (optax.apply_updates(params, updates), state), -value

        start = params, optimizer.init(params)
        (params, _), values = jax.lax.scan(step, start, jax.random.split(key, epochs * per_epoch))
        return params, values

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    keys = jax.random.split(jax.random.key(1), seeds)
    return graph, *jax.jit(jax.vmap(of_seed))(stacked, jnp.asarray(masks), keys)


def miwae_loss(vae, key, x, there):
    return objective(key, vae.log_joint(x, there), vae.q(x, there), num_samples=K).value.mean()


def build(seed):
    return Autoencoder(3, rngs=nnx.Rngs(seed))


graph, params, curve = train(build, miwae_loss, masks, epochs, seeds)


@jax.jit
def impute(params, there, key):
    """E[x | x_o] of every entry, and k-hat of every row's weights."""
    vae, x = nnx.merge(graph, params), jnp.asarray(table)
    target, q = vae.log_joint(x, there), vae.q(x, there)
    found = vj.draws.expectation(
        key, target, q, lambda z: vae.decode(z)[1], num_samples=draws, chunk_size=50
    )
    return found.value, vj.diagnostics.khat(found.log_w)


keys = jax.random.split(jax.random.key(2), seeds)


def of_seed(params, seed):
    return jax.tree.map(lambda leaf: leaf[seed], params)


ours, khats = zip(
    *(impute(of_seed(params, s), masks[s], keys[s]) for s in range(seeds)), strict=True
)
errors = [error(filled, there) for filled, there in zip(ours, masks, strict=True)]
usual = {
    "mean": SimpleImputer(),
    "5 nearest neighbors": KNNImputer(n_neighbors=5),
    "iterative, ridge": IterativeImputer(max_iter=2 if small else 20, random_state=0),
}
beside = {
    name: [error(imputer.fit_transform(np.where(there, table, np.nan)), there) for there in masks]
    for name, imputer in usual.items()
}
print(f"Mean square error of what was deleted, {seeds} deletions")
for name, each in {"MIWAE": errors, **beside}.items():
    print(f"  {name:22}{np.mean(each):7.3f}   ({', '.join(f'{e:.3f}' for e in each)})")
usable = np.mean([np.mean(np.asarray(k) < 0.7) for k in khats])
print(f"  k-hat is below .7 for {usable:.0%} of the rows")
closing.append(
    (
        f"MIWAE, {epochs} epochs: mean square error",
        np.mean(errors),
        0.2867,
        "Mattei, Frellsen: their notebook",
    )
)
assert np.mean(errors) < np.mean(beside["mean"]) / (1.5 if small else 3)
assert small or np.mean(errors) < 0.2867

# %% [markdown]
# **Multiple imputation.** One number in a hole hides how little is known of it. Draws of $x_m$ given $x_o$ say it: $z$
# by its weight, then $x_m$ given $z$. Over all holes, a 90% interval of 99 such draws should hold nine of ten.

# %%
of_draws = 100 if small else 2_000


@jax.jit
def imputations(params, there, key):
    vae, x = nnx.merge(graph, params), jnp.asarray(table)
    of_z, of_rank, of_x = jax.random.split(key, 3)
    drawn = vj.draws.weigh(of_z, vae.log_joint(x, there), vae.q(x, there), num_samples=of_draws)
    picked = jax.random.categorical(of_rank, drawn.log_w, axis=0, shape=(99, rows))
    z = jnp.take_along_axis(drawn.z, picked[..., None], axis=0)
    degrees, loc, scale = vae.decode(z)
    return loc + scale * jax.random.t(of_x, degrees)


sampled = np.sort(np.asarray(imputations(of_seed(params, 0), masks[0], jax.random.key(3))), axis=0)
inside = (sampled[4] <= table) & (table <= sampled[94])
coverage = float(inside[~masks[0]].mean())
print(f"\n90% intervals hold {coverage:.1%} of what was deleted")
closing.append(("coverage of 90% intervals", coverage, 0.9, "nominal"))
assert abs(coverage - 0.9) < (0.15 if small else 0.1)

# %% [markdown]
# ## Missing because of its value
#
# Now the first 15 measurements are missing wherever they are above their mean, as with a meter that saturates. What is
# left is too low, and a model of what is left imputes too low. The cure is to model the deletion as well (not-MIWAE;
# Ipsen, Mattei and Frellsen, 2021): the holes become latents, $x_m \sim p(x_m \mid z)$, and the target also holds
# $\log p(s \mid x_o, x_m)$, here a logistic curve of each entry's own value, falling. In vijax that is a `Joint` of
# two leaves and one more term:
#
#     q = Joint({"z": encoder(x), "x": lambda earlier: decoder(earlier["z"])})

# %%
saturates = np.arange(features) < 15
saturated = ~(saturates & (table > 0.0))
MNAR_EPOCHS = 25 if small else 500


class Censored(Autoencoder):
    """Entries Gaussian given z, and the log-odds with which those that saturate are seen."""

    def __init__(self, *, rngs):
        super().__init__(1, rngs=rngs)
        self.log_noise = nnx.Param(jnp.full(features, -0.5))
        self.steep, self.middle = nnx.Param(jnp.zeros(features)), nnx.Param(jnp.zeros(features))

    def entry(self, z):
        loc = self.up(z)
        return distrax.Normal(loc, jnp.broadcast_to(jnp.exp(self.log_noise[...]), loc.shape))

    def log_joint(self, x, there):
        likelihood = vj.targets.missing(lambda z, x: self.entry(z).log_prob(x), x, there)
        return lambda z: norm.logpdf(z).sum(-1) + likelihood(z)

    def q_of_holes(self, x, there):
        return vj.types.Joint(
            {
                "z": self.q(x, there),
                "x": lambda earlier: distrax.Independent(self.entry(earlier["z"]), 1),
            }
        )

    def joint_of_holes(self, x, there):
        known = self.log_joint(x, there)

        def log_joint(z):
            whole = jnp.where(there, x, z["x"])
            steep, middle = (
                jnp.broadcast_to(p[...], whole.shape) for p in (self.steep, self.middle)
            )
            odds = -5 * jnp.exp(steep) * (whole - middle)
            seen = jnp.where(there, nnx.log_sigmoid(odds), nnx.log_sigmoid(-odds))
            of_mask = jnp.where(jnp.broadcast_to(saturates, whole.shape), seen, 0.0).sum(-1)
            # Entries that are seen are drawn as well, and cancel: q's density of them is the decoder's.
            return known(z["z"]) + self.entry(z["z"]).log_prob(z["x"]).sum(-1) + of_mask

        return log_joint


reparam = vj.gradients.reparam(vj.bounds.iwae)


def ignoring(vae, key, x, there):
    return objective(key, vae.log_joint(x, there), vae.q(x, there), num_samples=K).value.mean()


def modelling(vae, key, x, there):
    target, q = vae.joint_of_holes(x, there), vae.q_of_holes(x, there)
    return reparam(key, target, q, num_samples=K).value.mean()


def fill(graph, params, key, *, holes):
    vae, x = nnx.merge(graph, params), jnp.asarray(table)
    if holes:
        pair, of = (
            (vae.joint_of_holes(x, saturated), vae.q_of_holes(x, saturated)),
            lambda z: z["x"],
        )
    else:
        pair, of = (vae.log_joint(x, saturated), vae.q(x, saturated)), vae.up
    return vj.draws.expectation(key, *pair, of, num_samples=draws, chunk_size=50).value


filled = {}
for name, loss in {"the deletion ignored": ignoring, "the deletion modelled": modelling}.items():
    held, trained, _ = train(
        lambda seed: Censored(rngs=nnx.Rngs(seed)), loss, saturated[None], MNAR_EPOCHS, 1
    )
    run = jax.jit(partial(fill, held, holes=loss is modelling))
    filled[name] = np.asarray(run(of_seed(trained, 0), jax.random.key(4)))
filled["mean"] = SimpleImputer().fit_transform(np.where(saturated, table, np.nan))
filled["iterative, ridge"] = usual["iterative, ridge"].fit_transform(
    np.where(saturated, table, np.nan)
)
print(
    f"\nMissing where large       error    bias   (what is missing has mean {table[~saturated].mean():.2f})"
)
for name, values in filled.items():
    bias = float((values - table)[~saturated].mean())
    print(f"  {name:22}{error(values, saturated):7.3f}{bias:+8.3f}")
biases = {name: float((v - table)[~saturated].mean()) for name, v in filled.items()}
closing.append(
    (
        "not at random, ignored: bias of imputations, sd",
        biases["the deletion ignored"],
        0.0,
        "truth",
    )
)
closing.append(
    (
        "not at random, modelled: bias of imputations, sd",
        biases["the deletion modelled"],
        0.0,
        "truth",
    )
)
assert abs(biases["the deletion modelled"]) < abs(biases["the deletion ignored"])

# %% [markdown]
# ## The figure
#
# Left, the errors of each imputer. In the middle, imputations beside what was deleted, one dot a hole. Right, what is
# missing because it is large: ignored, its imputations lie below the line.

# %%
INK, BLUE, ORANGE = "#1f2933", "#0072B2", "#D55E00"
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
names = list(usual)[::-1] + ["MIWAE"]
values = [beside.get(name, errors) for name in names]
left.plot([np.mean(v) for v in values], names, "o", color=BLUE)
for name, each in zip(names, values, strict=True):
    left.plot(each, [name] * len(each), "|", color=INK)
left.set(xlabel="mean square error, sd²", xlim=(0, None))
left.set_title("Half of the table missing at random", loc="left", fontsize=9)
holes = ~masks[0]
show = np.random.default_rng(0).permutation(holes.sum())[:1500]
middle.plot(table[holes][show], np.asarray(ours[0])[holes][show], ".", color=BLUE, ms=2, alpha=0.5)
right_holes = ~saturated
for name, color in (("the deletion ignored", ORANGE), ("the deletion modelled", BLUE)):
    right.plot(
        table[right_holes], filled[name][right_holes], ".", color=color, ms=2, alpha=0.4, label=name
    )
for axes_, title in ((middle, "MIWAE"), (right, "Missing where large")):
    axes_.plot([-2, 5], [-2, 5], color=INK, lw=0.8)
    axes_.set(xlabel="deleted, sd", ylabel="imputed, sd", xlim=(-2.2, 5), ylim=(-2.2, 5))
    axes_.set_title(title, loc="left", fontsize=9)
right.legend(frameon=False, markerscale=5, fontsize=8)
for axes_ in (left, middle, right):
    axes_.spines[["top", "right"]].set_visible(False)
Path("out").mkdir(exist_ok=True)
figure.savefig("out/missing_data.png", dpi=160)

# %% [markdown]
# ## Ours beside the exact and published numbers

# %%
print(f"\n{'':52}{'ours':>9}{'beside':>9}   source")
for what, mine, theirs, where in closing:
    print(f"{what:52}{mine:9.4f}{theirs:9.4f}   {where}")
record = {
    "command": "python notebooks/applications/missing_data.py", "jax": jax.__version__,
    "rows": [(what, float(mine), float(theirs), where) for what, mine, theirs, where in closing],
}  # fmt: skip
Path("out/missing_data.json").write_text(json.dumps(record, indent=1))
print(f"\nThe figure is out/missing_data.png. {time.perf_counter() - started:.0f} s in all.")

# %% [markdown]
# **References.** Mattei and Frellsen, MIWAE: deep generative modelling and imputation of incomplete data sets, 2019,
# arXiv:1812.02633. Ipsen, Mattei and Frellsen, not-MIWAE: deep generative modelling with missing not at random data,
# 2021, arXiv:2006.12871.
