# %% [markdown]
# # What stands between you and log p(x)
#
# Variational inference answers one question, *how likely is this data under my model?*, with numbers that are not the
# answer but lie on a known side of it. This notebook puts those numbers, all of them, on one axis. It needs no data
# and no network: everything is one or twenty dimensions of Gaussian, so that the truth is known and every claim is
# checked by a cell that fails if it is wrong.
#
# Three symbols are enough. A model $p(x, z)$ with its latent $z$; a guess $q(z)$ for the posterior $p(z \mid x)$; and
# the **weight** of a draw $z_k \sim q$,
#
# $$w_k = \frac{p(x, z_k)}{q(z_k)}, \qquad \mathbb E_q[w_k] = p(x).$$
#
# A bound is arithmetic on $\log w_1, \dots, \log w_K$, and nothing else: in vijax a function of an array `[k,
# *batch]`.

# %%
import math
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

import vijax as vj

in_notebook = "ipykernel" in sys.modules
small = os.environ.get("VIJAX_SMALL", "0") not in ("", "0")
if not in_notebook:
    matplotlib.use("Agg")
import matplotlib.pyplot as plt

jax.config.update("jax_enable_x64", True)
B, G = vj.bounds, vj.gradients
out = Path("out")
out.mkdir(exist_ok=True)
plt.rcParams.update(
    {"axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 110, "font.size": 9}
)
INK, LOW, HIGH, GREY = "#1f2933", "#2166ac", "#b2182b", "#8795a1"

# %% [markdown]
# ## The identity
#
# For any $q$ at all, $\log p(x) = \mathrm{ELBO} + \mathrm{KL}(q \,\|\, p(z \mid x))$. With $p(z) = N(0, 1)$, $p(x \mid
# z) = N(z, 1)$ and $x = 2$ both sides are known. Gauss-Hermite nodes stand in for draws, with their quadrature weights
# as `weights=`, so that the expectation is exact and the identity can be asked to hold to $10^{-12}$.
#
# The ELBO has a second reading, **reconstruction minus KL to the prior**, $\mathbb E_q[\log p(x \mid z)] -
# \mathrm{KL}(q \,\|\, p(z))$, which is a description length: the second term are the nats it takes to send $z$ when
# the receiver knows only the prior, the first what is still missing of $x$ once $z$ is there. Read down the table: as
# $q$ sharpens, reconstruction gets better and $z$ dearer, and the sum is best where $q$ is the posterior, $N(1,
# \tfrac12)$.

# %%
x, log_evidence = 2.0, float(distrax.Normal(0.0, math.sqrt(2.0)).log_prob(2.0))
prior, posterior = distrax.Normal(0.0, 1.0), distrax.Normal(1.0, math.sqrt(0.5))
nodes, node_weights = np.polynomial.hermite_e.hermegauss(40)
node_weights = jnp.asarray(node_weights / node_weights.sum())

print("   q             ELBO   + KL to posterior = log p(x)   |  reconstruction - KL to prior")
for loc, scale in ((0.0, 1.0), (1.0, 1.0), (1.0, math.sqrt(0.5)), (1.0, 0.3), (2.0, 0.1)):
    q = distrax.Normal(loc, scale)
    z = loc + scale * nodes
    log_w = prior.log_prob(z) + distrax.Normal(z, 1.0).log_prob(x) - q.log_prob(z)
    elbo = float(B.elbo(log_w, weights=node_weights))
    gap = float(q.kl_divergence(posterior))
    reconstruction = float(B.elbo(distrax.Normal(z, 1.0).log_prob(x), weights=node_weights))
    price = float(q.kl_divergence(prior))
    name = f"N({loc:.0f}, {scale:.2f}²)"
    print(
        f"{name}   {elbo:9.5f}     {gap:8.5f}      {elbo + gap:9.5f}   |  {reconstruction:9.5f}  {price:9.5f}"
    )
    assert abs(elbo + gap - log_evidence) < 1e-12
    assert abs(reconstruction - price - elbo) < 1e-12

# %% [markdown]
# ## Every bound on one axis
#
# Let the posterior be $N(\mu, 1)$ and $q$ the same but shifted by $s$. Then $\log w \sim N(\log p(x) - s^2/2,\, s^2)$
# exactly: log-normal weights, the one case where every bound has a closed form, given here in units of nats from the
# truth:
#
# | ELBO | Rényi $\alpha$ | CUBO $n$ | EUBO | TVO | IWAE at $K$ |
# |---|---|---|---|---|---|
# | $-s^2/2$ | $-\alpha s^2/2$ | $(n-1) s^2/2$ | $s^2/2$ | $s^2 (\sum_t \delta_t \beta_t - 1/2)$ | $-(e^{s^2}-1)/2K$ |
#
# The open circles are those limits. The filled ones are what an average over many sets of **16 draws** gives, and here
# the picture stops being tidy: what is an upper bound in the limit need not be one at $K = 16$. A logarithm or a
# self-normalised mean of few draws is biased towards the ELBO. Only `elbo`, `iwae` and their relatives keep their side
# of the line at every $K$. Jackknife, SUMO and multilevel IWAE aim at the line itself: no bounds, but less bias, or
# none beyond that of IWAE at their largest $K$.

# %%
s, k, repeats = 1.0, 16, 20_000 if small else 400_000
log_w = -(s**2) / 2 + s * jax.random.normal(jax.random.key(0), (k, repeats))
beta = jnp.array([0.0, 0.1, 0.4, 1.0])
steps = np.diff(beta)
level = vj.draws.level(jax.random.key(2), vj.draws.harmonic(k), shape=(repeats,))
step = vj.draws.level(jax.random.key(3), vj.draws.geometric(5), shape=(repeats,))


def iwae_of(k):
    """Return E[IWAE] over draws of their own, by NumPy."""
    fresh = -(s**2) / 2 + s * np.random.default_rng(1).normal(size=(k, repeats))
    return float(np.log(np.exp(fresh).mean(0)).mean())


CATALOGUE = [  # name, function, limit as k grows in nats from log p(x)
    ("elbo", B.elbo, -(s**2) / 2),
    ("renyi, α = 2", partial(B.renyi, alpha=2.0), -(s**2)),
    ("renyi, α = ½", partial(B.renyi, alpha=0.5), -(s**2) / 4),
    ("multi_iwae, 4 groups", partial(B.multi_iwae, groups=4), iwae_of(4)),
    ("ciwae, β = ½", partial(B.ciwae, beta=0.5), -(s**2) / 4),
    (
        "tvo_lower",
        partial(B.tvo_lower, partition=beta),
        -(s**2) / 2 + s**2 * float((steps * beta[:-1]).sum()),
    ),
    ("iwae", B.iwae, 0.0),
    ("jackknife, order 1", B.jackknife, 0.0),
    ("jackknife, order 2", partial(B.jackknife, order=2), 0.0),
    ("sumo", partial(B.sumo, level=level), 0.0),
    ("mlmc_iwae", partial(B.mlmc_iwae, level=step), 0.0),
    (
        "tvo_upper",
        partial(B.tvo_upper, partition=beta),
        -(s**2) / 2 + s**2 * float((steps * beta[1:]).sum()),
    ),
    ("eubo", B.eubo, s**2 / 2),
    ("cubo, n = 2", B.cubo, s**2 / 2),
    ("renyi, α = -1", partial(B.renyi, alpha=-1.0), s**2 / 2),
]
found = {}
print("bound                   16 draws     s.e.     limit   (nats from log p(x))")
for name, bound, limit in CATALOGUE:
    value = np.asarray(bound(log_w))
    found[name] = (value.mean(), value.std() / math.sqrt(repeats), limit)
    print(f"{name:22s} {found[name][0]:9.4f} {found[name][1]:8.4f} {limit:9.4f}")

for name in (
    "elbo",
    "renyi, α = 2",
    "renyi, α = ½",
    "multi_iwae, 4 groups",
    "ciwae, β = ½",
    "iwae",
):
    assert found[name][0] < 5 * found[name][1], f"{name} is a lower bound at any k"
assert (
    abs(found["iwae"][0] - (-(math.exp(s**2) - 1) / (2 * k))) < 0.02
)  # the first term of the bias
for name in ("sumo", "mlmc_iwae"):  # both have the expectation of IWAE at their largest k
    assert abs(found[name][0] - found["iwae"][0]) < 5 * found[name][1], name
assert abs(found["jackknife, order 1"][0]) < abs(found["iwae"][0]) / 2
assert found["eubo"][0] < found["eubo"][2] - 0.05, "self-normalised: biased towards the ELBO"

# %%
figure, axis = plt.subplots(figsize=(7.2, 4.6))
axis.axvline(0.0, color=INK, lw=1.2)
axis.text(0.0, len(CATALOGUE) - 0.2, "log p(x)", ha="center", color=INK)
for row, (name, (mean, error, limit)) in enumerate(reversed(found.items())):
    color = GREY if limit == 0 and name != "iwae" else LOW if limit <= 0 else HIGH
    axis.plot([mean, limit], [row, row], color=color, lw=1, alpha=0.5)
    axis.plot(limit, row, "o", mfc="white", mec=color, ms=6)
    axis.errorbar(mean, row, xerr=2 * error, fmt="o", color=color, ms=6)
axis.set_yticks(range(len(found)), list(reversed(found)))
axis.set_xlabel("nats from log p(x)\n● mean over sets of 16 draws     ○ limit of many draws")
axis.tick_params(axis="y", length=0)
figure.tight_layout()
figure.savefig(out / "bounds_axis.png")

# %% [markdown]
# ## The same numbers choose a different q
#
# On a posterior with two modes no Gaussian fits, and what "closest" means is decided by the bound. The target below is
# $e^{-1.3}$ times an even mixture of $N(-2, 0.6^2)$ and $N(2, 0.6^2)$. Each $q = N(m, s^2)$ is trained in the same
# loop with its own bound through the same estimator `dreg`; only the sign differs, since upper bounds are minimised.
# The ELBO picks a mode and reports the evidence $\log 2$ too low; bounds that weigh the largest $w$ more cover both
# modes, and the gap between them, and so have a lower ELBO but a finite upper bound nearby.

# %%
truth = -1.3
modes = distrax.MixtureSameFamily(
    distrax.Categorical(probs=jnp.array([0.5, 0.5])),
    distrax.Normal(jnp.array([-2.0, 2.0]), jnp.array([0.6, 0.6])),
)
log_joint = lambda z: truth + modes.log_prob(z)  # noqa: E731
normal = lambda p: distrax.Normal(p["loc"], jnp.exp(p["log_scale"]))  # noqa: E731


def fit(objective, sign, num_samples, num_steps=1500):
    """Return q's parameters after `num_steps` of Adam, from a q beside the right mode."""
    optimizer = optax.adam(optax.cosine_decay_schedule(0.03, num_steps))

    def step(state, key):
        params, moments = state
        loss = lambda p: -sign * objective(key, log_joint, normal(p), num_samples=num_samples).value  # noqa: E731
        updates, moments = optimizer.update(jax.grad(loss)(params), moments)
        return (optax.apply_updates(params, updates), moments), None

    params = {"loc": jnp.array(0.8), "log_scale": jnp.array(0.0)}
    start = params, optimizer.init(params)
    return jax.lax.scan(step, start, jax.random.split(jax.random.key(4), num_steps))[0][0]


grid = jnp.linspace(-7.0, 7.0, 4001)
BIMODAL = [
    ("elbo", G.dreg(B.elbo), 1, 32),
    ("iwae, K = 4", G.dreg(B.iwae), 1, 4),
    ("renyi, α = ½", G.dreg(partial(B.renyi, alpha=0.5)), 1, 32),
    ("cubo, n = 2", G.dreg(B.cubo), -1, 512),
    ("eubo", G.dreg(B.eubo), -1, 256),
]
fits = {name: jax.jit(partial(fit, objective, sign, n))() for name, objective, sign, n in BIMODAL}
spacing = float(grid[1] - grid[0])
assert abs(float(jax.scipy.special.logsumexp(log_joint(grid)) + math.log(spacing)) - truth) < 1e-6
print("fitted by          m       s     ELBO   log p(x)    EUBO   (nats, by quadrature)")
for name, params in fits.items():
    q = normal(params)
    log_ratio = log_joint(grid) - q.log_prob(grid)
    below = float(jnp.sum(jnp.exp(q.log_prob(grid)) * log_ratio) * spacing)
    above = float(jnp.sum(jnp.exp(log_joint(grid) - truth) * log_ratio) * spacing)
    print(
        f"{name:14s} {params['loc']:7.3f} {jnp.exp(params['log_scale']):7.3f} {below:8.3f} {truth:10.3f} {above:7.3f}"
    )
    assert below < truth < above
assert abs(fits["elbo"]["loc"]) > 1.5
assert abs(fits["eubo"]["loc"]) < 0.3

# %%
figure, axis = plt.subplots(figsize=(7.2, 3.0))
axis.fill_between(
    grid, jnp.exp(log_joint(grid) - truth), color=GREY, alpha=0.3, lw=0, label="posterior"
)
for (name, params), color in zip(
    fits.items(), plt.cm.viridis(np.linspace(0, 0.85, len(fits))), strict=True
):
    axis.plot(grid, jnp.exp(normal(params).log_prob(grid)), color=color, label=name)
axis.set(xlabel="z", ylabel="density", xlim=(-6, 6))
axis.legend(frameon=False)
figure.tight_layout()
figure.savefig(out / "bounds_modes.png")

# %% [markdown]
# ## A tighter bound is not a better teacher
#
# Rainforth and others (2018) asked what IWAE's gradient is worth: its mean over its standard deviation, as $K$ grows.
# A model of 20 dimensions, $p(z) = N(\theta, I)$, $p(x \mid z) = N(z, I)$, with $\theta$ and the encoder's offset a
# little off their best. The model's signal rises as $\sqrt K$. The encoder's sinks into noise under the plain
# gradient, and rises as $\sqrt K$ once the score of $q$ is gone, under `dreg`. Same bound, same draws: only how
# derivatives flow.

# %%
dim, keys = 20, 2000 if small else 20_000
scale = math.sqrt(2 / 3) * jnp.ones(20)  # wider than the posterior's √½, as in the paper
ks = [1, 4, 16, 64, 256]
theta = 0.01 * jax.random.normal(jax.random.key(5), (dim,))
datum = jax.random.normal(jax.random.key(6), (dim,)) * math.sqrt(2.0)
offset = 0.04 * jax.random.normal(jax.random.key(7), (dim,))


def gradient(make, k, key):
    def value(params):
        q = distrax.Independent(distrax.Normal((datum + theta) / 2 + params["offset"], scale), 1)
        target = lambda z: jnp.sum(  # noqa: E731
            distrax.Normal(params["theta"], 1.0).log_prob(z)
            + distrax.Normal(z, 1.0).log_prob(datum)
        )
        return make(B.iwae)(key, target, q, num_samples=k).value

    return jax.grad(value)({"theta": theta, "offset": offset})


def signal(make, k):
    """Return the signal-to-noise ratio of each parameter's gradient, averaged over coordinates."""
    run = jax.jit(lambda keys: jax.lax.map(partial(gradient, make, k), keys, batch_size=200))
    found = run(jax.random.split(jax.random.key(8), keys))
    return {name: float(jnp.mean(jnp.abs(g.mean(0)) / g.std(0))) for name, g in found.items()}


plain = [signal(G.reparam, k) for k in ks]
doubly = [signal(G.dreg, k) for k in ks]
print("   K   model   encoder, reparam   encoder, dreg     (signal over noise)")
for k_now, p, d in zip(ks, plain, doubly, strict=True):
    print(f"{k_now:4d} {p['theta']:7.3f} {p['offset']:12.4f} {d['offset']:16.4f}")
assert 12 < plain[-1]["theta"] / plain[0]["theta"] < 20  # √256 = 16
assert doubly[-1]["offset"] > 2 * doubly[0]["offset"]
assert plain[-1]["offset"] < plain[0]["offset"]

figure, axis = plt.subplots(figsize=(7.2, 3.0))
axis.loglog(ks, [p["theta"] for p in plain], "o-", color=INK, label="model, either way")
axis.loglog(ks, [d["offset"] for d in doubly], "o-", color=LOW, label="encoder, dreg(iwae)")
axis.loglog(ks, [p["offset"] for p in plain], "o-", color=HIGH, label="encoder, reparam(iwae)")
axis.axhline(math.sqrt(2 / math.pi / keys), color=GREY, lw=1, ls=":")
axis.text(
    ks[-1],
    0.72 * math.sqrt(2 / math.pi / keys),
    "what pure noise would show",
    color=GREY,
    ha="right",
)
axis.set(xlabel="K", ylabel="signal over noise")
axis.legend(frameon=False)
figure.tight_layout()
figure.savefig(out / "bounds_snr.png")

# %% [markdown]
# ## Often said, and not so
#
# **"Pushing up the ELBO pushes up log p(x)."** It raises a bound. With $x = 2$ and $q = N(-1, \tfrac12)$ held, moving
# the prior's mean $\mu$ towards $q$ raises the ELBO at every step while the evidence falls at every step: the slack
# shrinks instead.

# %%
q = distrax.Normal(-1.0, math.sqrt(0.5))
z = q.loc + q.scale * nodes
rising, falling = [], []
for mu in (2.0, 1.0, 0.0, -1.0):
    log_w = distrax.Normal(mu, 1.0).log_prob(z) + distrax.Normal(z, 1.0).log_prob(x) - q.log_prob(z)
    rising.append(float(B.elbo(log_w, weights=node_weights)))
    falling.append(float(distrax.Normal(mu, math.sqrt(2.0)).log_prob(x)))
    print(f"mu {mu:5.1f}   ELBO {rising[-1]:9.4f}   log p(x) {falling[-1]:8.4f}")
np.testing.assert_allclose(rising, [-10.2655, -7.7655, -6.2655, -5.7655], atol=1e-4)
np.testing.assert_allclose(falling, [-1.2655, -1.5155, -2.2655, -3.5155], atol=1e-4)

# %% [markdown]
# **"Rao-Blackwellization lowers the variance."** The slack of every bound, always. The variance of the weight, where
# the $q$ that is integrated out reaches wherever the exact conditional does. That of the *log*-weight, which is what
# the ELBO averages, not always. Let $\log w_1 = 2.4\, u$, $u \sim U(0, 1)$, be the weight
# once $z_2$ is integrated out, and let $q(z_2 \mid z_1)$ be the exact conditional cut to a set of mass $1 / w_1$. Then
# the weight of the pair is constant (and this $q$ reaches only a part: the weight's own variance rises too).

# %%
u = jax.random.uniform(jax.random.key(9), (100_000,))
collapsed = 2.4 * u  # log w with z2 integrated out
half_width = jax.scipy.stats.norm.ppf(
    0.5 + 0.5 * jnp.exp(-collapsed)
)  # mass 1 / w1 of a standard normal z2
z2 = jax.random.truncated_normal(jax.random.key(10), -half_width, half_width)
log_q2 = jax.scipy.stats.norm.logpdf(z2) + collapsed  # the conditional over its cut mass
pair = collapsed + jax.scipy.stats.norm.logpdf(z2) - log_q2
print(
    f"Var[log w]: pair {jnp.var(pair):.4f}, z2 integrated out {jnp.var(collapsed):.4f}  (2.4²/12 = .48)"
)
print(
    f"mean log w: pair {jnp.mean(pair):.4f}, z2 integrated out {jnp.mean(collapsed):.4f}  (tighter, always)"
)
assert jnp.var(pair) < 1e-12 < 0.47 < jnp.var(collapsed) < 0.49
assert jnp.mean(collapsed) > jnp.mean(pair)

# %% [markdown]
# **"CUBO is an upper bound."** Its limit is. On log-normal weights with $s = 1.5$ the limit is 1.125 above the truth,
# and with 1 or 4 draws the estimate is *below* the truth on average. The exponentiated bound, `exp_cubo`, is what is
# unbiased.

# %%
for draws, expected in ((1, -1.125), (4, -0.131), (16, 0.419)):
    log_w = -(1.5**2) / 2 + 1.5 * jax.random.normal(jax.random.key(11), (draws, repeats))
    value = B.cubo(log_w)
    print(f"K = {draws:2d}   E[cubo] {value.mean():7.3f}   expected {expected:7.3f}   limit 1.125")
    assert abs(value.mean() - expected) < 6 * value.std() / math.sqrt(repeats) + 1e-3

# %% [markdown]
# **"Draws are draws."** Not for a path gradient: a coin's draw does not move when its probability does, so the
# derivative through it is zero, and several libraries return that zero. Here it is an error while tracing, which names
# the leaf and what to use.

# %%
coin = lambda logit: distrax.Bernoulli(logits=logit, dtype=jnp.float64)  # noqa: E731
prize = lambda z: 2.0 * z  # noqa: E731
try:
    G.reparam(B.elbo)(jax.random.key(0), prize, coin(0.3), num_samples=2)
except ValueError as refusal:
    print("refused:", refusal)
else:
    raise AssertionError("a coin has no path")


def mean_gradient(logit):
    run = lambda key: G.vimco(B.elbo)(key, prize, coin(logit), num_samples=2).value  # noqa: E731
    return jnp.mean(jax.vmap(run)(jax.random.split(jax.random.key(12), repeats)))


slope = float(jax.grad(mean_gradient)(0.3))
p = 1 / (1 + math.exp(-0.3))
exact = (2.0 - 0.3) * p * (1 - p)  # d/dlogit of 2p + entropy(p)
print(f"vimco(elbo) {slope:.4f}, exact {exact:.4f}")
assert abs(slope - exact) < 0.02
