# %% [markdown]
# # Integrate what can be integrated
#
# A model has parts that no formula can handle and parts that any textbook can. Variational inference is for the first
# kind; asked to do both, it pays for the second in nats. The cure is eighty years old and is called
# Rao-Blackwellization: integrate exactly what can be integrated, and guess at the rest.
#
# The cure is seldom taken, because it means to rewrite the model. Here it is one line: the model stays as it was
# written, and is transformed. We take a ridge regression of real data, bound its evidence from below in four ways,
# account for every nat that each of them loses, and draw the coefficients afterwards from their exact conditional. Then
# the same is done to a discrete latent, the year in which the Nile changed. Every number printed is checked against
# its exact value, by quadrature or enumeration, in the cell that prints it.

# %%
import itertools
import math
import os
import sys
import textwrap
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from jax.scipy.linalg import block_diag
from jax.scipy.special import logsumexp
from jax.scipy.stats import norm
from jax.scipy.stats import t as student
from sklearn.datasets import load_diabetes

import vijax as vj
from vijax.solvers import maximize

in_notebook = "ipykernel" in sys.modules
small = os.environ.get("VIJAX_SMALL", "0") not in ("", "0")
if not in_notebook:
    matplotlib.use("Agg")
import matplotlib.pyplot as plt

jax.config.update("jax_enable_x64", True)
B, D, F, G = vj.bounds, vj.draws, vj.families, vj.gradients
out = Path("out")
out.mkdir(exist_ok=True)
plt.rcParams.update(
    {"axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 110, "font.size": 9}
)
INK, LOW, HIGH, GREY, PALE = "#1f2933", "#2166ac", "#b2182b", "#8795a1", "#d5dce3"
LOG_2PI = math.log(2 * math.pi)

# %% [markdown]
# ## The model, written naively
#
# Progression of diabetes in 442 patients, from ten measurements: age, sex, body mass, blood pressure and six of blood
# serum. Data and columns are standardised. How strong the noise is, and how large coefficients are, is not known:
#
# $$y \sim N(Xw,\, s^2), \qquad w \sim N(0,\, t^2 I), \qquad \log s,\ \log t \sim N(0, 1).$$
#
# In code, twelve unknowns: $z = (\log s, \log t)$ and the coefficients $w$.

# %%
data = load_diabetes()
x, y = (np.asarray(a, np.float64) for a in (data.data, data.target))
x, y = jnp.asarray((x - x.mean(0)) / x.std(0)), jnp.asarray((y - y.mean()) / y.std())
n, d = x.shape


def log_joint(z, w):
    scales = norm.logpdf(z["log_s"]) + norm.logpdf(z["log_t"])
    prior = norm.logpdf(w, 0.0, jnp.exp(z["log_t"])).sum()
    return scales + prior + norm.logpdf(y, x @ w, jnp.exp(z["log_s"])).sum()


# %% [markdown]
# ## Then collapsed, by one line
#
# As a function of $w$ alone, with $z$ held, the log joint is a quadratic. vijax sees this in the jaxpr of its Hessian,
# which does not read $w$, and integrates by the gradient and the Hessian. Nothing is stated, and nothing rewritten.

# %%
collapsed, conditional = vj.targets.collapse_gaussian(log_joint, jnp.zeros(d))

# %% [markdown]
# `collapsed(z)` is $\log p(y, z)$, a function of two numbers; `conditional(z)` is $p(w \mid z, y)$, for later. What it
# saved us is this, the same by hand from the eigenvalues of $X^\top X$. And because two dimensions are few, the truth
# that all below is measured against comes from a grid.

# %%
eigenvalues, basis = np.linalg.eigh(x.T @ x)
along = basis.T @ np.asarray(x.T @ y)


def by_hand(log_s, log_t):
    """Return log p(y, log s, log t), elementwise over two arrays of one shape."""
    s2, t2 = np.exp(2 * log_s)[..., None], np.exp(2 * log_t)[..., None]
    spread = s2 + t2 * eigenvalues
    log_det = np.log(spread).sum(-1) + (n - d) * 2 * log_s
    square = (float(y @ y) - (t2 * along**2 / spread).sum(-1)) / s2[..., 0]
    return -0.5 * (n * LOG_2PI + log_det + square + log_s**2 + log_t**2) - LOG_2PI


points = {"log_s": np.array([-0.6, -0.3, 0.2]), "log_t": np.array([-3.0, -1.5, 1.0])}
difference = jax.jit(jax.vmap(collapsed))(points) - by_hand(*points.values())
print(f"collapsed by autodiff - by hand: {float(abs(difference).max()):.0e} nats")
assert abs(difference).max() < 1e-9

axes = np.linspace(-0.75, 0.1, 241), np.linspace(-4.0, 2.5, 361)
log_s, log_t = np.meshgrid(*axes, indexing="ij")
area = math.prod(a[1] - a[0] for a in axes)
on_grid = by_hand(log_s, log_t)
log_evidence = float(logsumexp(on_grid)) + math.log(area)
posterior = np.exp(on_grid - log_evidence)  # p(log s, log t | y)
print(f"log p(y) = {log_evidence:.6f} nats, by quadrature")
assert abs(log_evidence - -491.883911) < 1e-6

# %% [markdown]
# ## Four guesses
#
# All Gaussian, and all fitted in the same loop: Adam, on the ELBO without the score of $q$, `dreg(elbo)`. From the
# coarsest: twelve independent Gaussians; a full covariance for the coefficients, independent of the scales, which is
# what conditional conjugacy suggests to variational Bayes; one Gaussian of all twelve; and the collapsed target, with
# a Gaussian of the two that are left. A family draws from Sobol's points, which quieten the loop; a dict of families,
# independent draws.

# %%
scales = {"log_s": jnp.array(-0.3), "log_t": jnp.array(-1.0)}
everything = {**scales, "w": jnp.zeros(d)}
naive = lambda z: log_joint(z, z["w"])  # noqa: E731
mean_field, full = F.mean_field(), F.full_rank()
parts = {"log_s": mean_field, "log_t": mean_field, "w": full}
steps = 2000 if small else 5000


@partial(jax.jit, static_argnums=(0, 1, 2))
def fit(target, dist, draw, start):
    """Return q's parameters after some thousand steps of Adam."""
    objective = G.dreg(B.elbo, draw=draw)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.03, steps))

    def step(state, key):
        params, moments = state
        loss = lambda p: -objective(key, target, dist(p), num_samples=32).value  # noqa: E731
        updates, moments = optimizer.update(jax.grad(loss)(params), moments)
        return (optax.apply_updates(params, updates), moments), None

    keys = jax.random.split(jax.random.key(0), steps)
    return jax.lax.scan(step, (start, optimizer.init(start)), keys)[0][0]


blocks = lambda params: {name: parts[name].dist(params[name]) for name in parts}  # noqa: E731
fits = {
    "all diagonal": fit(naive, mean_field.dist, D.sobol, mean_field.init(None, everything)),
    "full over w": fit(
        naive, blocks, D.iid, {name: parts[name].init(None, everything[name]) for name in parts}
    ),
    "full over all": fit(naive, full.dist, D.sobol, full.init(None, everything)),
    "w integrated out": fit(collapsed, full.dist, D.sobol, full.init(None, scales)),
}

# %% [markdown]
# ## Where every nat went
#
# For any $q(z, w) = q(z)\, q(w \mid z)$ the gap is two divergences, one for what had to be guessed and one for what
# need not have been:
#
# $$\log p(y) = \mathrm{ELBO} + \mathrm{KL}(q(z) \,\|\, p(z \mid y)) + \mathbb E_{q(z)}\, \mathrm{KL}(q(w \mid z) \,\|\,
# p(w \mid z, y)).$$
#
# The last term is what collapsing removes, whatever $q(z)$ is. Here each of the three is computed by itself, exactly:
# given $z$ all is Gaussian, over $z$ Gauss and Hermite do the first and the last, and the grid the one between. That
# their sum is $\log p(y)$ is then no tautology.

# %%
nodes, node_weights = np.polynomial.hermite_e.hermegauss(24)
node_weights = jnp.asarray(np.outer(node_weights, node_weights).ravel() / node_weights.sum() ** 2)
nodes = jnp.asarray(np.stack(np.meshgrid(nodes, nodes, indexing="ij"), -1).reshape(-1, 2))


def moments(params):
    """Return mean and covariance of a Gaussian family at its parameters, or of a dict of families."""
    if "loc" not in params:
        each = [moments(params[name]) for name in parts]
        return jnp.concatenate([m for m, _ in each]), block_diag(*(c for _, c in each))
    flat = lambda tree: jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])  # noqa: E731
    mean, root = flat(params["loc"]), jnp.eye(flat(params["loc"]).size)
    if "lower" in params:
        root = root.at[np.tril_indices(mean.size, -1)].set(params["lower"])
    root = jnp.exp(flat(params["log_scale"]))[:, None] * root
    return mean, root @ root.T


def entropy(cov):
    return 0.5 * (jnp.linalg.slogdet(cov)[1] + len(cov) * (1 + LOG_2PI))


@jax.jit
def terms(mean, cov):
    """Return the ELBO and E KL(q(w | z) ‖ p(w | z, y)) of a Gaussian q of z and w, exactly."""
    slope = jnp.linalg.solve(cov[:2, :2], cov[:2, 2:]).T
    given_z = cov[2:, 2:] - slope @ cov[:2, 2:]  # the covariance of q(w | z)

    def at(e):
        off = jnp.linalg.cholesky(cov[:2, :2]) @ e
        z = {"log_s": mean[0] + off[0], "log_t": mean[1] + off[1]}
        w, p = mean[2:] + slope @ off, conditional(z)
        spread = jnp.trace(
            p.root @ p.root.T @ given_z
        )  # p.root @ p.root.T is the precision of p(w | z, y)
        distance = jnp.sum((p.root.T @ (w - p.mean)) ** 2)
        log_dets = 2 * jnp.log(jnp.diagonal(p.root)).sum() + jnp.linalg.slogdet(given_z)[1]
        return log_joint(z, w) - 0.5 * spread, 0.5 * (spread + distance - d - log_dets)

    expected, divergence = jax.vmap(at)(nodes)
    return node_weights @ expected + entropy(cov), node_weights @ divergence


@jax.jit
def collapsed_bound(mean, cov):
    """Return the ELBO of a Gaussian q of z alone, exactly."""
    at = lambda z: collapsed({"log_s": z[0], "log_t": z[1]})  # noqa: E731
    z = mean + nodes @ jnp.linalg.cholesky(cov).T
    return node_weights @ jax.vmap(at)(z) + entropy(cov)


def divergence_of_scales(mean, cov):
    """Return KL(q(z) ‖ p(z | y)), on the grid."""
    log_q = jax.scipy.stats.multivariate_normal.logpdf(np.stack([log_s, log_t], -1), mean, cov)
    return float(jnp.sum(jnp.exp(log_q) * (log_q - np.log(posterior)))) * area


OPTIMA = {  # the best of each, from L-BFGS on its exact bound
    "all diagonal": -495.001160,
    "full over w": -492.028513,
    "full over all": -491.955783,
    "w integrated out": -491.898949,
}
ladder = {}
print(
    "q                       ELBO  + KL of scales + E KL of w =   log p(y) |  optimum  same q(z), w integrated out"
)
for name, params in fits.items():
    mean, cov = moments(params)
    of_z = mean[:2], cov[:2, :2]
    by_scales, bound = divergence_of_scales(*of_z), float(collapsed_bound(*of_z))
    elbo, by_w = (bound, 0.0) if len(mean) == 2 else map(float, terms(mean, cov))
    ladder[name] = elbo, by_scales, by_w
    total = elbo + by_scales + by_w
    print(
        f"{name:17s} {elbo:11.4f} {by_scales:15.4f} {by_w:11.4f} {total:13.4f}  | {OPTIMA[name]:9.4f} {bound:14.4f}"
    )
    assert abs(total - log_evidence) < 1e-6
    assert OPTIMA[name] - 2e-3 < elbo < OPTIMA[name] + 1e-6
    assert elbo - 1e-9 <= bound < log_evidence
assert np.all(np.diff([elbo for elbo, _, _ in ladder.values()]) > 0.05)

# %%
figure, axis = plt.subplots(figsize=(7.2, 3.1))
edge, gaps = 0.172, {name: log_evidence - elbo for name, (elbo, _, _) in ladder.items()}
for row, (name, (_, by_scales, by_w)) in enumerate(ladder.items()):
    axis.barh(row, -by_scales, height=0.46, color=LOW, lw=0)
    axis.barh(row, -min(by_w, edge - by_scales), left=-by_scales, height=0.46, color=HIGH, lw=0)
    if gaps[name] > edge:
        for at in (0.008, 0.012):  # the bar is cut, and says so
            axis.plot([-edge + at, -edge + at + 0.004], [row - 0.3, row + 0.3], color="white", lw=2)
        axis.text(
            -edge + 0.022, row, f"← {gaps[name]:.3f}", va="center", color="white", weight="bold"
        )
    else:
        axis.text(
            -gaps[name] - 0.002,
            row,
            f"{gaps[name]:.3f}",
            va="center",
            ha="right",
            color=INK,
            weight="bold",
        )
axis.axvline(0.0, color=INK, lw=1.6)
axis.text(-0.002, 3.5, f"log p(y) = −{abs(log_evidence):.3f}", ha="right", color=INK)
axis.text(-0.0015, 1.3, "guessing the scales", color=LOW, ha="right", va="bottom", fontsize=8)
axis.text(
    -0.088,
    1.3,
    "guessing the coefficients, given the scales",
    color=HIGH,
    ha="center",
    va="bottom",
    fontsize=8,
)
axis.set_yticks(
    range(4),
    [
        "12 independent\nGaussians",
        "full covariance\nof w",
        "full covariance\nof all 12",
        "w integrated out",
    ],
)
axis.get_yticklabels()[3].set_weight("bold")
axis.tick_params(axis="y", length=0)
axis.spines["left"].set_visible(False)
axis.set(xlim=(-edge, 0.001), ylim=(-0.5, 3.9), xlabel="nats below log p(y)")
axis.set_xticks([-0.15, -0.1, -0.05, 0.0], ["0.15", "0.10", "0.05", "0"])
share = 1 - gaps["w integrated out"] / gaps["full over w"]
assert 0.88 < share < 0.91
figure.suptitle(
    "One line closes nine tenths of the gap that a full covariance of w leaves",
    x=0.01,
    ha="left",
    weight="bold",
)
figure.tight_layout()
figure.savefig(out / "rao_blackwell_ladder.png", dpi=160)

# %% [markdown]
# ## The coefficients, afterwards
#
# Integrated out is not lost. Draw the scales from $q$ and the coefficients from `conditional(z)`, exactly; what error
# there is comes from the scales alone. Below, 95% intervals of every coefficient. Four of the blood measurements, s1 to
# s4, are cholesterols and nearly collinear: the data know certain sums of them well, and each of them badly. Twelve
# independent Gaussians cannot say that, and call sure what nobody knows. A full covariance of $w$ can, but it knows one
# $t$ only: where that is uncertain the intervals of s1 and s2 are an eighth too short.

# %%
draws = 4000 if small else 40_000


@jax.jit
def coefficients(key):
    """Draw from q(log s, log t) p(w | log s, log t, y)."""
    for_z, for_w = jax.random.split(key)
    z, _ = full.dist(fits["w integrated out"]).sample_and_log_prob(seed=for_z)
    return conditional(z).sample_and_log_prob(seed=for_w)[0]


w = np.asarray(
    jax.lax.map(coefficients, jax.random.split(jax.random.key(1), draws), batch_size=1000)
)
s2, t2, mass = np.exp(2 * log_s.ravel()), np.exp(2 * log_t.ravel()), posterior.ravel() * area
shrunk = t2[:, None] / (s2[:, None] + t2[:, None] * eigenvalues)  # p(w | z, y), in the basis of XᵀX
centre = mass @ (shrunk * along)
off = shrunk * along - centre
spread = np.diag(mass @ (s2[:, None] * shrunk)) + (off * mass[:, None]).T @ off
exact_mean, exact_sd = basis @ centre, np.sqrt(np.diag(basis @ spread @ basis.T))

summary = {"exact": (exact_mean, exact_sd), "w integrated out": (w.mean(0), w.std(0))}
for name in ("full over w", "all diagonal"):
    mean, cov = moments(fits[name])
    summary[name] = np.asarray(mean[2:]), np.sqrt(np.diag(cov)[2:])
print(
    "        exact mean ± sd     sd over the exact one:  w integrated out   full over w   all diagonal"
)
for i, name in enumerate(data.feature_names):
    ratios = [
        summary[q][1][i] / exact_sd[i] for q in ("w integrated out", "full over w", "all diagonal")
    ]
    print(
        f"{name:5s} {exact_mean[i]:9.3f} ± {exact_sd[i]:.3f} {ratios[0]:39.3f} {ratios[1]:13.3f} {ratios[2]:14.3f}"
    )
noise = 5 * exact_sd / math.sqrt(draws)
assert np.all(abs(w.mean(0) - exact_mean) < noise + 0.03 * exact_sd)
assert np.all(abs(w.std(0) / exact_sd - 1) < 5 / math.sqrt(2 * draws) + 0.03)
assert 0.85 < (summary["full over w"][1] / exact_sd).min() < 0.88
narrowest = (summary["all diagonal"][1] / exact_sd).min()
assert 0.21 < narrowest < 0.24

# %%
order = np.argsort(exact_mean)
figure, axis = plt.subplots(figsize=(7.2, 4.2))
axis.axvline(0.0, color=GREY, lw=0.8)
axis.barh(
    range(d),
    3.92 * exact_sd[order],
    left=(exact_mean - 1.96 * exact_sd)[order],
    height=0.74,
    color=PALE,
    lw=0,
)
styles = {
    "w integrated out": (0.21, LOW, "o"),
    "full over w": (0.0, INK, "s"),
    "all diagonal": (-0.21, HIGH, "D"),
}
for name, (shift, color, marker) in styles.items():
    mean, sd = (a[order] for a in summary[name])
    axis.errorbar(
        mean, np.arange(d) + shift, xerr=1.96 * sd, fmt=marker, ms=3.4, color=color, lw=1.6
    )
ends = {
    "w integrated out, drawn afterwards": LOW,
    "full covariance of w": INK,
    "12 independent Gaussians": HIGH,
    "shaded: the exact posterior": "#66727e",
}
for row, (label, color) in enumerate(ends.items()):
    axis.text(-0.6, d - 0.85 - 0.5 * row, label, color=color, va="center", fontsize=8.5)
axis.set_yticks(range(d), [data.feature_names[i] for i in order])
axis.tick_params(axis="y", length=0)
axis.spines["left"].set_visible(False)
axis.set(xlabel="coefficient, with the 95% interval", xlim=(-0.61, 0.5), ylim=(-0.6, d - 0.4))
figure.suptitle(
    f"Independent Gaussians make s1's interval {1 / narrowest:.1f} times too short",
    x=0.01,
    ha="left",
    weight="bold",
)
figure.tight_layout()
figure.savefig(out / "rao_blackwell_coefficients.png", dpi=160)

# %% [markdown]
# ## What is promised, and what is not
#
# With $w_1(z_1)$ the weight once $z_2$ is integrated out, $\mathbb E[w \mid z_1] = w_1(z_1)$ wherever $q(z_2 \mid z_1)$
# covers the conditional: the collapsed weight is the mean of the full one, given what they share. So, by Jensen's
# inequality (Casella and Robert, 1996),
#
# - **the weight** varies no more, $\mathrm{Var}[w_1] \le \mathrm{Var}[w]$;
# - **every bound** that is a concave function of an average of weights is no looser: the ELBO, and IWAE at any $K$;
# - **the log-weight**, which is what the ELBO averages, may vary *more*. Nothing promises that it does not.
#
# The last is no fine print. Eight states suffice: $z_1$ is one of two, with $w_1 = \tfrac43$ or $\tfrac23$; $z_2$ is
# one of four, and $p(z_2 \mid z_1, x)$ even. Let $q(z_2 \mid z_1)$ be even too where $w_1 = \tfrac23$; where $w_1 =
# \tfrac43$ let it sit on two of the four states, but for one draw in a thousand. That loses a factor of two just where
# the weight is twice as large: the log-weights become equal, and all too low but for the rare one. Everything is finite
# here, so the table is exact.

# %%
epsilon = 1e-3
w_1 = np.array([4 / 3, 2 / 3])
q_2 = np.array([[(1 - epsilon) / 2, (1 - epsilon) / 2, epsilon / 2, epsilon / 2], [0.25] * 4])
pair = (
    np.log(w_1[:, None] * 0.25 / q_2).ravel(),
    (0.5 * q_2).ravel(),
)  # log-weights of the eight states, and their mass
alone = np.log(w_1), np.array([0.5, 0.5])


def exactly(log_w, mass):
    """Return E[IWAE] at K = 1, 2 and 4, Var[w] and Var[log w], by enumeration of all K-tuples of states."""
    bounds = []
    for k in (1, 2, 4):
        tuples = np.array(list(itertools.product(range(len(mass)), repeat=k))).T
        bounds.append(float(mass[tuples].prod(0) @ np.asarray(B.iwae(jnp.asarray(log_w[tuples])))))
    variance = lambda v: float(mass @ (v - mass @ v) ** 2)  # noqa: E731
    assert abs(mass @ np.exp(log_w) - 1) < 1e-12  # E[w] = p(x) = 1, of either
    return *bounds, variance(np.exp(log_w)), variance(log_w)


of_pair, of_one = exactly(*pair), exactly(*alone)
print("                    K = 1     K = 2     K = 4  |    Var[w]   Var[log w]     (log p(x) = 0)")
for name, row in (("both drawn", of_pair), ("z2 integrated out", of_one)):
    print(f"{name:17s} {row[0]:9.4f} {row[1]:9.4f} {row[2]:9.4f}  | {row[3]:9.4f} {row[4]:12.4f}")
assert all(a < b < 0 for a, b in zip(of_pair[:3], of_one[:3], strict=True))
assert abs(of_one[0] - (math.log(2 / 3) + math.log(2) / 2)) < 1e-12
assert abs(of_one[3] - 1 / 9) < 1e-12
assert of_pair[3] > 1000 * of_one[3]  # the weight: far less
assert abs(of_one[4] - math.log(2) ** 2 / 4) < 1e-12
assert of_pair[4] < 0.25 * of_one[4]  # its logarithm: more

# %% [markdown]
# ## A latent that is discrete: when did the Nile change?
#
# A hundred years of flow at Aswan, and a level that may have dropped once (Cobb, 1978). Two levels, a noise, and the
# number $c$ of years at the first level, any of 1 to 99. A discrete latent has no path for a gradient to follow; summed
# out, it needs none. `enumerate` returns the collapsed target and the exact posterior of $c$.
#
# What is left is three numbers, and of these the levels are a quadratic again, for any $c$. Both collapses compose: the
# levels inside, the year outside, and one number is left to guess.

# %%
here = Path(__file__).parent if "__file__" in globals() else Path("notebooks")
nile = jnp.asarray(np.loadtxt(here / "data" / "nile.txt").ravel()) / 100  # in 10¹⁰ cubic metres
years, year = jnp.arange(1, 100), np.arange(1871, 1971)


def log_joint_nile(z, c):
    level = jnp.where(jnp.arange(100) < c, z["level"][0], z["level"][1])
    prior = (
        norm.logpdf(z["level"], 9.0, 3.0).sum() + norm.logpdf(z["log_s"], 0.3, 0.5) - math.log(99)
    )
    return prior + norm.logpdf(nile, level, jnp.exp(z["log_s"])).sum()


summed, when = vj.targets.enumerate(log_joint_nile, years)

inner, levels = vj.targets.collapse_gaussian(
    lambda z, level: log_joint_nile({"level": level, "log_s": z[0]}, z[1]), jnp.zeros(2)
)
both, when_both = vj.targets.enumerate(lambda log_s, c: inner((log_s, c)), years)

# %% [markdown]
# The truth, by hand again: given $c$ and $s$ both halves are Gaussian with a Gaussian mean; a sum over $c$, and one
# dimension by quadrature. The bounds are fitted by `solvers.maximize`, L-BFGS on the ELBO at fixed draws, and judged
# by Gauss and Hermite.

# %%


def half(values, s2):
    """Return log p(values | s²) of one half, its level integrated out."""
    m, v, off = len(values), s2 + 9.0 * len(values), values - 9.0
    square = (off @ off - 9.0 * off.sum() ** 2 / v) / s2
    return -0.5 * (m * LOG_2PI + (m - 1) * np.log(s2) + np.log(v) + square)


grid = np.linspace(-0.6, 1.2, 301)
series = np.asarray(nile)
table = np.array(
    [half(series[:c], np.exp(2 * grid)) + half(series[c:], np.exp(2 * grid)) for c in range(1, 100)]
)
table += np.asarray(norm.logpdf(grid, 0.3, 0.5)) - math.log(99)
nile_evidence = float(logsumexp(table)) + math.log(grid[1] - grid[0])
exact_when = np.exp(table - nile_evidence).sum(1) * (grid[1] - grid[0])

objective = G.reparam(B.elbo, draw=D.sobol)


def climb(target, like):
    def bound(p):
        return objective(
            jax.random.key(2), target, full.dist(p), num_samples=64 if small else 256
        ).value

    found = jax.jit(lambda start: maximize(bound, start, slope=1e-4))(full.init(None, like))
    assert found.slope < 1e-4
    return found.params


def judge(target, params, nodes_each):
    """Return the ELBO of a Gaussian q over few latents, by Gauss and Hermite."""
    e, weight = np.polynomial.hermite_e.hermegauss(nodes_each)
    mean, cov = moments(params)
    e = np.stack(np.meshgrid(*[e] * len(mean), indexing="ij"), -1).reshape(-1, len(mean))
    weight = np.array(
        [math.prod(c) for c in itertools.product(weight / weight.sum(), repeat=len(mean))]
    )
    _, unravel = jax.flatten_util.ravel_pytree(params["loc"])
    values = jax.jit(jax.vmap(lambda z: target(unravel(z))))(mean + e @ jnp.linalg.cholesky(cov).T)
    return float(weight @ values + entropy(cov))


like = {"level": jnp.array([11.0, 8.5]), "log_s": jnp.array(0.3)}
q_three, q_one = climb(summed, like), climb(both, like["log_s"])
print("Nile                                     ELBO        gap   (nats)")
rungs = {
    "c summed out, 3 Gaussians": (summed, q_three, 10),
    "levels integrated out too": (both, q_one, 24),
}
found = {name: judge(*rung) for name, rung in rungs.items()}
for name, value in found.items():
    print(f"{name:32s} {value:12.5f} {nile_evidence - value:10.5f}")
print(f"{'log p(x), by quadrature':32s} {nile_evidence:12.5f}")
first, second = found.values()
assert 0.01 < nile_evidence - first < 0.02
mean, cov = (float(m.squeeze()) for m in moments(q_one))
log_q = np.asarray(norm.logpdf(grid, mean, math.sqrt(cov)))
divergence = float(np.exp(log_q) @ (log_q - np.asarray(logsumexp(table, 0)) + nile_evidence)) * (
    grid[1] - grid[0]
)
assert abs(second + divergence - nile_evidence) < 1e-6
q_draws, _ = full.dist(q_one).sample_and_log_prob(seed=jax.random.key(3), sample_shape=(2000,))
found_when = jax.jit(jax.vmap(lambda log_s: jnp.exp(when_both(log_s).log_probs)))(q_draws).mean(0)
best = int(np.argmax(exact_when)) + 1
chance = float(found_when.max())
print(
    f"the last year before the change: {1870 + best}, with probability {exact_when.max():.3f} ({chance:.3f} by q)"
)
assert 1870 + best == 1898
assert abs(found_when - exact_when).max() < 0.005

# %% [markdown]
# The levels come back too, drawn as the coefficients were: scale from $q$, year from its exact posterior, levels from
# `levels((log_s, c))`. The band is what these draws say of the level in each year.

# %%


@jax.jit
def paths(key):
    for_s, for_c, for_level = jax.random.split(key, 3)
    log_s, _ = full.dist(q_one).sample_and_log_prob(seed=for_s)
    c, _ = when_both(log_s).sample_and_log_prob(seed=for_c)
    level, _ = levels((log_s, c)).sample_and_log_prob(seed=for_level)
    return jnp.where(jnp.arange(100) < c, level[0], level[1])


drawn = np.asarray(jax.vmap(paths)(jax.random.split(jax.random.key(4), draws)))
weight = exact_when @ (
    np.arange(100) < np.arange(1, 100)[:, None]
)  # probability that a year is before the change
assert abs((drawn == drawn[:, :1]).mean(0) - weight).max() < 2.5 / math.sqrt(draws) + 0.005

figure, (above, below) = plt.subplots(2, 1, figsize=(7.2, 4.2), sharex=True, height_ratios=(3, 1))
low, middle, high = np.quantile(drawn, [0.025, 0.5, 0.975], axis=0)
above.fill_between(year, low, high, color=LOW, alpha=0.22, lw=0, step="mid")
above.step(year, middle, color=LOW, lw=1.6, where="mid")
above.plot(year, series, "o-", color=GREY, mec=INK, mfc=INK, ms=2.6, lw=0.6)
above.text(1971.5, middle[-1], "level,\n95%", color=LOW, va="center", fontsize=8.5)
above.set_ylabel("flow, $10^{10}$ m³")
below.bar(year[:-1], found_when, width=0.8, color=HIGH)
below.annotate(
    f"{1870 + best}: {chance:.2f}",
    (1870 + best, chance),
    (6, -4),
    textcoords="offset points",
    color=HIGH,
    va="top",
)
below.set(
    ylabel="p(c | x)", xlabel="last year before the change", yticks=[0, 0.5], xlim=(1869, 1976)
)
figure.suptitle(
    f"The Nile changed after {1870 + best}: a year summed out, and drawn afterwards",
    x=0.01,
    ha="left",
    weight="bold",
)
figure.tight_layout()
figure.savefig(out / "rao_blackwell_nile.png", dpi=160)

# %% [markdown]
# ## What it answers when it cannot
#
# A target that is *not* quadratic is refused while tracing, not integrated wrongly: with the primitive that is to
# blame, and with ways out. So for a regression with Student-t noise, here of one coefficient; `laplace`, which the
# message names, is within a hundredth of a nat, and is no bound. A chain whose states lean on each other is no set of
# sites, and `enumerate` sends it to `sequences.hmm`.


# %%
def robust(z, b):
    return norm.logpdf(b) + student.logpdf(y[:60] - x[:60, 2] * b, 4.0, scale=jnp.exp(z)).sum()


refusals = {}
try:
    vj.targets.collapse_gaussian(robust, jnp.array(0.0))[0](jnp.array(-0.3))
except ValueError as refusal:
    refusals["collapse_gaussian"] = str(refusal)


def chain(z, c):
    steps = jnp.concatenate([jnp.zeros(1), jnp.where(c[1:] == c[:-1], jnp.log(0.9), jnp.log(0.1))])
    return steps + norm.logpdf(nile, jnp.where(c == 0, z, 8.5), 1.3)


try:
    vj.targets.enumerate(chain, 2, plate=(100,)).log_joint(jnp.array(11.0))
except ValueError as refusal:
    refusals["enumerate"] = str(refusal)
for name, message in refusals.items():
    print(textwrap.fill(f"{name}: {message}", 110), end="\n\n")
assert "'log1p' keeps b in its Hessian" in refusals["collapse_gaussian"]
assert "targets.collapse_laplace" in refusals["collapse_gaussian"]
assert "sequences.hmm" in refusals["enumerate"]

approximate = float(
    jax.jit(vj.targets.collapse_laplace(robust, jnp.array(0.0))[0])(jnp.array(-0.3))
)
b_grid = jnp.linspace(-2.0, 3.0, 2001)
exact = float(
    logsumexp(jax.vmap(partial(robust, jnp.array(-0.3)))(b_grid)) + jnp.log(b_grid[1] - b_grid[0])
)
print(f"laplace {approximate:.5f}, by quadrature {exact:.5f}")
assert abs(approximate - exact) < 0.01

# %% [markdown]
# ## In three lines
#
# 1. Write the model as it is; keep the latents that may leave as a second argument.
# 2. `collapse_gaussian` where it is quadratic, `enumerate` where it is finite, both where it is both; with your own
#    conditional, `collapse`. Any bound and any gradient goes with what is left.
# 3. What was integrated out is drawn afterwards, exactly.
