# %% [markdown]
# # What the bound of an autoencoder lacks
#
# A variational autoencoder is judged by a lower bound of $\log p(x)$. **What is missing, and whose fault is it?**
# The family of $q$ may be too poor for the posterior, the encoder too poor for the family, the draws too few for
# the estimate. Each has a cure of its own, so each needs a number of its own:
#
# $$\log p(x) - L[q_\phi] = \underbrace{L[q^*] - L[q_\phi]}_{\text{amortization}}
#   + \underbrace{\log \hat p(x) - L[q^*]}_{\text{approximation}}
#   + \underbrace{\log p(x) - \log \hat p(x)}_{\text{Monte Carlo}},
#   \qquad q^* = \arg\max_{q \in \mathcal Q} L[q],$$
#
# with $L[q] = \mathbb E_q[\log p(x, z) - \log q(z)]$. The encoder's answer is refined for every image by itself
# until it is $q^*$, and $\log \hat p$ is importance sampling from the best $q$ there is (Cremer, Li and Duvenaud,
# 2018).
#
# First two cases whose answer is known in closed form, where our numbers can be wrong and be seen to be; then
# images.

# %%
import os
import sys
import time
from functools import partial
from pathlib import Path

started = time.perf_counter()

import distrax
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from jax.scipy.stats import norm
from sklearn.datasets import load_digits, load_iris

import vijax as vj

in_notebook = "ipykernel" in sys.modules
small = os.environ.get("VIJAX_SMALL", "0") not in ("", "0")
data_folder = os.environ.get("VIJAX_DATA", "")
if not in_notebook:
    matplotlib.use("Agg")
import matplotlib.pyplot as plt

D, F = vj.diagnostics, vj.families
INK, LOW, HIGH, GREY, PALE = "#1f2933", "#2166ac", "#b2182b", "#8795a1", "#d5dce3"
plt.rcParams.update(
    {"axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 110, "font.size": 9}
)
closing = []  # (what, ours, exact, source)

# %% [markdown]
# ## One Gaussian for two humps: the approximation gap, exactly
#
# $p(z) = \tfrac12 N(z; -a, 1) + \tfrac12 N(z; a, 1)$ is normalized, so $\log p = 0$ and minus the best ELBO is
# the gap. `bounds.elbo` at nodes with their weights has no noise, and `solvers.maximize` climbs it to rounding,
# from the two kinds of optimum: a wide Gaussian over both humps, and a narrow one on one of them. At $a = 2$ the
# first is better, at $a = 4$ the second, which leaves $\log 2$ on the table.

# %%
nodes = jnp.linspace(-9.0, 9.0, 401)
node_weights = jnp.exp(norm.logpdf(nodes)) / jnp.sum(jnp.exp(norm.logpdf(nodes)))
mean_field = F.mean_field()


def humps(a, z):
    return jnp.logaddexp(norm.logpdf(z, a), norm.logpdf(z, -a)) - jnp.log(2.0)


def elbo_at_nodes(a, params):
    q = mean_field.dist(params)
    z = jax.vmap(q.affine)(nodes[:, None])
    log_w = jax.vmap(partial(humps, a))(z) - jax.vmap(q.log_prob)(z)
    return vj.bounds.elbo(log_w, weights=node_weights)


@jax.jit
def gap_of_one(a, loc, log_scale):
    """The gap that a climb from this Gaussian ends at."""
    start = {"loc": loc, "log_scale": log_scale}
    return -vj.solvers.maximize(partial(elbo_at_nodes, a), start, steps=200).value


distances = jnp.asarray([0.5, 1.0, 1.5, 2.0, 2.25, 2.5, 2.75, 3.0, 3.5, 4.0, 5.0])
wide = [gap_of_one(a, 0.0 * a, 0.5 * jnp.log1p(a**2)) for a in distances]
narrow = [gap_of_one(a, a, 0.0 * a) for a in distances]
gaps_of_humps = np.stack([np.asarray(wide), np.asarray(narrow)], 1)  # [distances, 2]
published = {2.0: 0.226508, 4.0: 0.693053}
for a, exact in published.items():
    found = float(gaps_of_humps[list(map(float, distances)).index(a)].min())
    closing.append(
        (f"two humps, a = {a:g}: approximation gap of a Gaussian", found, exact, "quadrature")
    )
    assert abs(found - exact) < 1e-4

# %% [markdown]
# **A richer family closes it.** Two components, drawn by strata so that their weights have a gradient, and
# nothing is left.

# %%
two = F.mixture(F.mean_field(scale=1.0), components=2)
stratified = vj.gradients.reparam(vj.bounds.elbo, draw=vj.draws.stratified)


def gap_of_mixture(a, key):
    def estimate(key, params):
        return stratified(key, partial(humps, a), two.dist(params), num_samples=64)

    rule = vj.fitting.ascent(estimate, optax.adam(optax.cosine_decay_schedule(0.05, 300)))
    params = two.init(key, jnp.zeros(()))
    params["components"]["loc"] = jnp.array([-0.5, 0.7]) * a

    def step(state, key):
        return rule.step(key, state)[0], None

    run = jax.jit(lambda state: jax.lax.scan(step, state, jax.random.split(key, 300))[0])
    q = two.dist(rule.params(run(rule.init(params))))
    z = jnp.linspace(-15.0, 15.0, 6001)
    log_q = jax.vmap(q.log_prob)(z)
    return float(jnp.trapezoid(jnp.exp(log_q) * (log_q - humps(a, z)), z))


closed = gap_of_mixture(4.0, jax.random.key(0))
closing.append(("two humps, a = 4: of a mixture of two", closed, 0.0, "below .01"))
assert abs(closed) < 0.01

# %% [markdown]
# ## A linear autoencoder: no gap at all, and the β at which each latent dies
#
# With $x \mid z \sim N(W z, \sigma^2 I)$ the posterior is Gaussian, its mean linear in $x$ and its covariance the
# same for every datum: a linear encoder amortizes without loss, a mean-field $q$ is exact once $W$'s columns are
# orthogonal, and the best ELBO is the likelihood of probabilistic PCA (Lucas et al., 2019). Under a weight
# $\beta$ on the KL, at fixed $\sigma^2$, the loading keeps $W^2 = \max(\lambda_i - \beta \sigma^2, 0)$ of each
# eigenvalue: latent $i$ dies at $\beta = \lambda_i / \sigma^2$, and not because of anything that a better encoder
# could mend.
#
# The mean bound reads nothing of the data but their second moments, so four rows with those of iris stand for all
# 150 flowers.

# %%
eigenvalues, axes = np.linalg.eigh(np.cov(load_iris().data.T, ddof=0))
iris = jnp.asarray(2.0 * np.sqrt(eigenvalues)[:, None] * axes.T, jnp.float32)  # irisᵀ iris / 4 = C
eigenvalues = eigenvalues[::-1]


def linear_start():
    keys = jax.random.split(jax.random.key(1))
    return {
        "decode": 0.1 * jax.random.normal(keys[0], (3, 4)),
        "encode": 0.1 * jax.random.normal(keys[1], (4, 3)),
        "log_scale": jnp.zeros(3),
    }


def linear_elbo(beta, variance, params):
    """Draws at mean ± √3 scale along each axis integrate what is quadratic in three latents exactly."""

    def log_weights(e):
        z = iris @ params["encode"] + jnp.exp(params["log_scale"]) * e
        log_likelihood = jnp.sum(norm.logpdf(iris, z @ params["decode"], variance**0.5), -1)
        log_q = jnp.sum(norm.logpdf(e) - params["log_scale"])
        return log_likelihood + beta * (jnp.sum(norm.logpdf(z), -1) - log_q)

    e = jnp.sqrt(3.0) * jnp.concatenate([jnp.eye(3), -jnp.eye(3)])
    return vj.bounds.elbo(jax.vmap(log_weights)(e)).mean()


@jax.jit
def linear_fit(beta, variance):
    found = vj.solvers.maximize(partial(linear_elbo, beta, variance), linear_start(), steps=2000)
    return found.value, jnp.linalg.svd(found.params["decode"], compute_uv=False) ** 2


# pPCA: the noise is the eigenvalue that is left out, and log|C| is that of the data's covariance.
betas = np.asarray([1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 100.0])
best, _ = linear_fit(betas[0], float(eigenvalues[3]))
ppca = -0.5 * (4 * np.log(2 * np.pi) + np.log(eigenvalues).sum() + 4)
closing.append(("linear autoencoder on iris, 3 latents: best ELBO", float(best), ppca, "pPCA"))
assert abs(float(best) - ppca) < 1e-3

NOISE = 0.05
loadings = np.stack([linear_fit(beta, NOISE)[1] for beta in betas])  # [betas, 3]
theory = np.maximum(eigenvalues[None, :3] - betas[:, None] * NOISE, 0.0)
off = np.abs(loadings - theory).max()
closing.append(("squared loadings over β: largest error", float(off), 0.0, "max(λ - β σ², 0)"))
assert off < 5e-3

# %% [markdown]
# ## Images
#
# scikit-learn's digits, each pixel drawn once; with `VIJAX_DATA` the binarized MNIST there, and a network of
# Cremer et al.'s kind. A decoder of two hidden layers, an encoder with independent latents, trained under the
# ELBO.

# %%
if data_folder and not small:
    with np.load(Path(data_folder) / "binarized_mnist" / "binarized_mnist.npz") as archive:
        train_set, test_set = (
            np.unpackbits(archive[name], axis=-1).astype(np.float32) for name in ("train", "test")
        )
    hidden, latents, epochs, shown, refine_steps = 300, 40, 20, 100, 1200
    name = "binarized MNIST"
else:
    digits = load_digits().data
    digits = np.random.default_rng(0).permutation(digits)
    pixels = (np.random.default_rng(1).random(digits.shape) < digits / 16).astype(np.float32)
    test_set, train_set = pixels[:360], pixels[360:]
    hidden, latents, epochs, shown, refine_steps = 100, 10, 150, 100, 1200
    name = "scikit-learn's digits"
if small:
    epochs, shown, refine_steps = 20, 20, 200
batch = 100


def layers(key, sizes):
    keys = jax.random.split(key, len(sizes) - 1)
    draw = jax.nn.initializers.glorot_uniform()
    return [
        (draw(k, (a, b)), jnp.zeros(b)) for k, a, b in zip(keys, sizes, sizes[1:], strict=False)
    ]


def network(layers, x):
    for weight, bias in layers[:-1]:
        x = jnp.tanh(jnp.dot(x, weight) + jnp.broadcast_to(bias, (*x.shape[:-1], len(bias))))
    weight, bias = layers[-1]
    return jnp.dot(x, weight) + jnp.broadcast_to(bias, (*x.shape[:-1], len(bias)))


def encode(params, x):
    """The encoder's answer, as the params of `members(mean_field())`."""
    loc, log_scale = jnp.split(network(params["encoder"], x), 2, axis=-1)
    return {"loc": loc, "log_scale": log_scale}


def log_joint(params, x, z):
    return norm.logpdf(z).sum(-1) + log_likelihood(params, x, z)


def log_likelihood(params, x, z):
    logits = network(params["decoder"], z)
    return (x * logits - jax.nn.softplus(logits)).sum(-1)


independent = F.members(F.mean_field())
d = train_set.shape[1]
keys = jax.random.split(jax.random.key(2), 2)
params = {
    "encoder": layers(keys[0], [d, hidden, hidden, 2 * latents]),
    "decoder": layers(keys[1], [latents, hidden, hidden, d]),
}
steps = epochs * (len(train_set) // batch)
optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))
batches = vj.fitting.minibatches(num_data=len(train_set), batch_size=batch)
images = jnp.asarray(train_set, jnp.uint8)
objective = vj.gradients.dreg(vj.bounds.elbo)


def loss(params, key, x):
    q = independent.dist(encode(params, x))
    return -objective(key, partial(log_joint, params, x), q, num_samples=1).value.mean()


@jax.jit
def train(params):
    def step(carry, key):
        params, state, cursor = carry
        rows, cursor = batches.next(cursor)
        gradient = jax.grad(loss)(params, key, images[rows].astype(jnp.float32))
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state, cursor), None

    start = params, optimizer.init(params), batches.init(jax.random.key(3))
    return jax.lax.scan(step, start, jax.random.split(jax.random.key(4), steps))[0][0]


params = train(params)

# %% [markdown]
# **Three forms of one bound.** The ELBO may be drawn whole, or with the KL in closed form, or with the entropy:
# one mean, of three variances. Which is the smallest depends on how near $q$ is to the posterior, where the terms of
# the whole log-weight cancel draw by draw; far off, as early in a training, the closed forms are quieter.

# %%
test = jnp.asarray(test_set[:shown])
prior = distrax.Independent(distrax.Normal(jnp.zeros(latents), jnp.ones(latents)), 1)


def posterior(params, x):
    answer = encode(params, x)
    return distrax.Independent(distrax.Normal(answer["loc"], jnp.exp(answer["log_scale"])), 1)


@jax.jit
def three_forms(key, params):
    q, whole = posterior(params, test), partial(log_joint, params, test)
    forms = (
        whole,
        vj.targets.exact_kl(partial(log_likelihood, params, test), prior, q),
        vj.targets.exact_entropy(whole, q),
    )
    draw = partial(vj.gradients.reparam(vj.bounds.elbo), num_samples=200)
    return [draw(key, form, q).draws.log_w for form in forms]  # [draws, images] of each


print(
    f"\n{'ELBO of held-out images':28}{'mean':>10}{'variance of a draw':>22}{'less the first':>18}"
)
forms = [np.asarray(log_w) for log_w in three_forms(jax.random.key(9), params)]
for form, log_w in zip(
    ("whole", "KL in closed form", "entropy in closed form"), forms, strict=True
):
    apart = (log_w - forms[0]).mean(1)  # of the same draws, averaged over images
    error = apart.std(ddof=1) / np.sqrt(len(apart))
    print(f"{form:28}{log_w.mean():10.3f}{log_w.var(0, ddof=1).mean():22.2f}", end="")
    print(f"{apart.mean():12.3f} ± {error:.3f}")
    assert abs(apart.mean()) <= 5 * error
    if log_w is not forms[0]:
        closing.append((f"ELBO, {form}", log_w.mean(), forms[0].mean(), "the ELBO drawn whole"))

# %% [markdown]
# **The parts.** `families.members` makes of any family one for each image, and `solvers.refine` climbs each
# image's own ELBO from the encoder's answer, then doubles its steps to see whether more would bring more. The
# full covariance starts where the independent latents end, and is also what $\log p$ is sampled from: k-hat says
# whether that may be believed.

# %%
draws, at_a_time = (1000, None) if small else (2500, 50)
streamed = vj.gradients.reparam(vj.bounds.iwae)
correlated = F.members(F.full_rank())


# Held-out images, and as many that were trained on, all at once: no image knows of the others.
x = jnp.concatenate([test, jnp.asarray(train_set[:shown])])
target, start = partial(log_joint, params, x), encode(params, x)


@partial(jax.jit, static_argnums=(1, 3))
def weights(key, family, fitted, num_samples):
    q = family.dist(fitted)
    return streamed(key, target, q, num_samples=num_samples, chunk_size=at_a_time).draws.log_w


keys = jax.random.split(jax.random.key(5), 5)
plain = vj.solvers.refine(keys[0], target, independent, start, steps=refine_steps)
triangle = {"lower": jnp.zeros((len(x), latents * (latents - 1) // 2))}
full = vj.solvers.refine(
    keys[1], target, correlated, plain.params | triangle, steps=refine_steps, num_samples=16
)
of_encoder = weights(keys[2], independent, start, draws)
of_plain = weights(keys[3], independent, plain.params, draws)
of_full = weights(keys[4], correlated, full.params, 2 * draws)
every = {
    "mean-field": (D.gaps(of_encoder, of_plain, of_full), plain),
    "full covariance": (D.gaps(of_encoder, of_full), full),
}


def held_out(tree):
    return jax.tree.map(lambda a: a[:shown], tree)


print(f"\n{name}, {shown} held-out images")
found = {family: held_out(gaps) for family, (gaps, _) in every.items()}
for family, (_, refined) in every.items():
    last = held_out(refined.last.value)
    print(f"\n{family}: doubling the steps brought {float(last.mean()):.3f} nats", end=", ")
    print(f"{float(held_out(refined.settled).mean()):.0%} of the images settled")
    print(found[family])
    for part in ("amortization", "approximation", "monte_carlo"):
        assert float(found[family].mean[part].value) > -0.05
gaps = found["mean-field"]
log_p = gaps.log_evidence.value
short = log_p - vj.numerics.log_mean_exp(of_encoder)[:shown]
print(f"\nIWAE-{draws} from the encoder is short of it by {float(short.mean()):.2f} nats")
whole = sum(float(gaps.mean[p].value) for p in ("amortization", "approximation", "monte_carlo"))
closing.append(("the three parts, added", whole, float(gaps.mean["total"].value), "log p - ELBO"))

# %% [markdown]
# **Whose overfitting?** The bound is better on images that were trained on. Of that the decoder's share is the
# difference of $\log p$, and the encoder's the difference of the amortization gaps: one wants a smaller decoder,
# or more data, the other a few steps of refinement at test time.

# %%
trained = jax.tree.map(lambda a: a[shown:], every["mean-field"][0])
bound_gap = float(
    (trained.log_evidence.value - trained.total.value).mean() - (log_p - gaps.total.value).mean()
)
decoder_gap = float(trained.log_evidence.value.mean() - log_p.mean())
encoder_gap = float(gaps.amortization.value.mean() - trained.amortization.value.mean())
family_gap = float((gaps.approximation.value - trained.approximation.value).mean())
spread = float(np.hypot(log_p.std(), trained.log_evidence.value.std()) / np.sqrt(shown))
print(
    f"\ntrained on less held out: bound {bound_gap:.2f} nats (± {spread:.2f} by the choice of images), of which "
    f"decoder {decoder_gap:.2f}, encoder {encoder_gap:.2f}, family {family_gap:.2f}"
)

# %% [markdown]
# ## The latents
#
# Which of them are used, and what they carry: KL of each, active units, and the rate as information about the
# image and distance of the prior from the aggregate posterior (Hoffman and Johnson, 2016), an identity of the
# same draws.


# %%
@jax.jit
def watched(key, params):
    q = posterior(params, test)
    of_draws, of_surgery = jax.random.split(key)
    z, _ = q.sample_and_log_prob(seed=of_draws, sample_shape=(100,))
    surgery = D.surgery(of_surgery, q, prior, num_samples=20)
    return D.latent_kl(q, prior), D.activity(z), surgery


kl, activity, surgery = watched(jax.random.key(7), params)
print()
print(D.collapse(kl))
print(f"{int((activity > 0.01).sum())} of {latents} units are active")
identity = float(surgery.information.value + surgery.marginal.value)
closing.append(
    ("rate: information + marginal KL", identity, float(surgery.rate.value), "ELBO surgery")
)
print(
    f"rate {float(surgery.rate.value):.3f} = information {float(surgery.information.value):.3f} "
    f"(at most log {shown} = {np.log(shown):.3f}) + marginal KL {float(surgery.marginal.value):.3f}"
)

# %% [markdown]
# ## The figure

# %%
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.4), constrained_layout=True)
left.plot(distances, gaps_of_humps[:, 0], color=LOW, label="wide, over both")
left.plot(distances, gaps_of_humps[:, 1], color=HIGH, label="on one hump")
left.axhline(np.log(2), color=PALE, zorder=0)
left.plot(list(published), list(published.values()), "o", color=INK, label="exact")
left.set(xlabel="half distance a", ylabel="nats", ylim=(0, 1.2), title="One Gaussian for two humps")
left.legend(frameon=False)

grid = np.geomspace(1, 100, 200)
for i, color in enumerate((LOW, HIGH, GREY)):
    middle.plot(grid, np.sqrt(np.maximum(eigenvalues[i] - grid * NOISE, 0)), color=color)
    middle.plot(betas, np.sqrt(loadings[:, i]), "o", color=color, markersize=4)
middle.set(
    xscale="log", xlabel="β", ylabel="singular value of W", title="Latents die at a known β (iris)"
)

bottom = np.zeros(2)
for part, color in (("amortization", HIGH), ("approximation", LOW), ("monte_carlo", INK)):
    values = np.asarray([float(g.mean[part].value) for g in found.values()])
    right.bar(
        list(found), values, bottom=bottom, color=color, width=0.55, label=part.replace("_", " ")
    )
    bottom += values
right.set(ylabel="log p - ELBO, nats", title=f"{name}, held out", ylim=(0, 1.4 * bottom.max()))
right.legend(frameon=False, fontsize=8, loc="upper left")
Path("out").mkdir(exist_ok=True)
figure.savefig("out/gaps.png", dpi=160)

# %% [markdown]
# ## Ours beside the exact numbers

# %%
print(f"\n{'':52}{'ours':>10}{'exact':>20}   source")
for what, ours, theirs, where in closing:
    print(f"{what:52}{ours:10.4f}{theirs:20.4f}   {where}")
print(f"\nThe figure is out/gaps.png. {time.perf_counter() - started:.0f} s in all.")

# %% [markdown]
# **References.** Cremer, Li and Duvenaud, Inference suboptimality in variational autoencoders, 2018,
# arXiv:1801.03558. Lucas, Tucker, Grosse and Norouzi, Don't blame the ELBO! A linear VAE perspective on posterior
# collapse, 2019, arXiv:1911.02469. Hoffman and Johnson, ELBO surgery, 2016. Turner and Sahani, Two problems with
# variational expectation maximisation for time series models, 2011 (the two humps).
