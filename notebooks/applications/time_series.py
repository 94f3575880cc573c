# %% [markdown]
# # Volatility that moves, and levels that jump
#
# Two series with hidden states that no Kalman filter integrates. **Stochastic volatility**: daily returns whose
# variance follows a chain of its own,
#
# $$h_t = \mu + \phi (h_{t-1} - \mu) + \sigma \eta_t, \qquad y_t \sim N(0, e^{h_t}).$$
#
# The state is one number, so a fine grid makes it a hidden Markov chain, which is summed out to many digits: an exact
# answer for a model that has no closed form. **A switching model**: the level of the Nile, a random walk that jumps in
# some years, $s_t \in \{0, 1\}$ a Markov chain, $z_t \sim N(z_{t-1}, Q_{s_t})$. Given all $s$ it is Kalman's; there are
# $2^T$ of them.
#
# How near do a chain as $q$, particles, and particles with the linear part integrated come to the truth, and what does
# it say of the data?

# %%
import time

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
from jax.scipy.special import logsumexp
from jax.scipy.stats import norm

import vijax as vj
from vijax import families, particles, sequences

in_notebook = "ipykernel" in sys.modules
small = os.environ.get("VIJAX_SMALL", "0") not in ("", "0")
if not in_notebook:
    matplotlib.use("Agg")
import matplotlib.pyplot as plt

here = Path(__file__).parent if "__file__" in globals() else Path("notebooks/applications")
closing = []  # (what, ours, beside, source)

# %% [markdown]
# ## Returns
#
# The last 500 daily returns of the S&P 500 in the series to the end of 2018 that the package `arch` ships, in percent,
# less their mean (`pip install arch`). Without it, and small, returns that are **simulated** from the model.

# %%
try:
    if small:
        raise ImportError
    from arch.data import sp500

    prices = sp500.load()["Adj Close"].to_numpy()
    returns = 100 * np.diff(np.log(prices))[-500:]
    source = "S&P 500"
except ImportError:
    rng, h = np.random.default_rng(0), [-1.0]
    for _ in range(119 if small else 499):
        h.append(-1.0 + 0.95 * (h[-1] + 1.0) + 0.3 * rng.normal())
    returns, source = np.exp(np.asarray(h) / 2) * rng.normal(size=len(h)), "simulated"
y = jnp.asarray(returns - returns.mean(), jnp.float32)
T = len(y)
print(f"{T} daily returns, {source}, standard deviation {float(y.std()):.2f}")

# %% [markdown]
# ## The evidence by a grid
#
# $p(y \mid \mu, \phi, \sigma)$ with $h$ on a grid of points closer to each other than $\sigma$, where sums over a
# Gaussian kernel are integrals to many digits: `sequences.hmm` of the grid's points. It is a function of three numbers
# with a derivative, $h$ integrated: a Rao-Blackwellization, for any bound and estimator.


# %%
def volatility(y, h):
    """log p(y | h)."""
    return norm.logpdf(y, 0.0, jnp.exp(h / 2))


POINTS = 40 if small else 80


def on_grid(theta, points=POINTS):
    """The chain of a grid's points, within five stationary standard deviations of the mean."""
    stationary = theta["sigma"] / jnp.sqrt(1 - theta["phi"] ** 2)
    grid = theta["mu"] + stationary * jnp.linspace(-5.0, 5.0, points)
    to = norm.logpdf(
        grid, theta["mu"] + theta["phi"] * (grid[:, None] - theta["mu"]), theta["sigma"]
    )
    first = norm.logpdf(grid, theta["mu"], stationary)
    normal = jax.nn.log_softmax
    return grid, sequences.hmm(normal(first), normal(to), volatility(y[:, None], grid))


def log_prior(theta):
    phi = distrax.Beta(20.0, 1.5).log_prob((theta["phi"] + 1) / 2)
    return norm.logpdf(theta["mu"], 0.0, 2.0) + phi + norm.logpdf(theta["sigma"], 0.0, 0.5)


constraints = vj.targets.constraints
spaces = {"mu": None, "phi": constraints.interval(-1.0, 1.0), "sigma": constraints.positive}
target = vj.targets.transform(
    lambda theta: log_prior(theta) + on_grid(theta)[1].log_evidence, spaces
)
start = target.unconstrain(
    {"mu": jnp.zeros(()), "phi": jnp.asarray(0.9), "sigma": jnp.asarray(0.3)}
)
full_rank = families.full_rank()
rule = vj.updates.natural_gradient(target.log_joint, num_samples=16)
fit = vj.fitting.fit(
    jax.random.key(0),
    rule,
    rule.init(full_rank.init(None, start)),
    steps=25 if small else 80,
    reports=(),
)
drawn = vj.fitting.weigh(
    jax.random.key(1), fit, target.log_joint, full_rank, num_samples=100 if small else 1000
)
theta_draws = jax.vmap(target.constrain)(drawn.z)
summary = vj.diagnostics.summarize(drawn._replace(z=theta_draws))
print(summary)
w = np.asarray(vj.numerics.normalized_weights(drawn.log_w))
theta = {
    name: jnp.asarray(float((w * np.asarray(leaf)).sum())) for name, leaf in theta_draws.items()
}
print("\nPosterior mean: " + ", ".join(f"{name} {float(leaf):.3f}" for name, leaf in theta.items()))

# %% [markdown]
# ## One axis for all, at the posterior mean
#
# At these three numbers: the exact $\log p(y)$ by a grid, twice as fine for its own error; a chain as $q$, and
# independent latents; importance sampling with the chain; bootstrap filters, whose log evidence is below the truth on
# average.

# %%
exact, finer = (float(on_grid(theta, points)[1].log_evidence) for points in (POINTS, 2 * POINTS))
print(f"log p(y) {exact:.4f} by {POINTS} points, {finer:.4f} by {2 * POINTS}")
closing.append(("returns: log p(y) by a grid, nats", exact, finer, "a grid twice as fine"))
assert abs(exact - finer) < 2e-3 * (1 + abs(finer) / 1000)
scale = theta["sigma"] / jnp.sqrt(1 - theta["phi"] ** 2)


def path_joint(h):
    """log p(y, h) of a path in units of its stationary spread."""
    h = theta["mu"] + scale * h[:, 0]
    first = norm.logpdf(h[0], theta["mu"], scale)
    moves = norm.logpdf(h[1:], theta["mu"] + theta["phi"] * (h[:-1] - theta["mu"]), theta["sigma"])
    return first + moves.sum() + volatility(y, h).sum() + T * jnp.log(scale)


objective = vj.gradients.dreg(vj.bounds.elbo)
found, steps = {}, 600 if small else 3000
for name, family in {
    "independent latents": families.mean_field(),
    "a chain": families.markov(),
}.items():

    def estimate(key, params, family=family):
        return objective(key, path_joint, family.dist(params), num_samples=8)

    rule = vj.fitting.ascent(estimate, optax.adam(optax.cosine_decay_schedule(0.03, steps, 0.01)))
    state = rule.init(family.init(None, jnp.zeros((T, 1))))
    fitted = vj.fitting.fit(jax.random.key(2), rule, state, steps=steps, reports=(), stop=None)
    q = family.dist(fitted.average)
    found[name] = vj.draws.weigh(jax.random.key(3), path_joint, q, num_samples=2000), q

model = particles.StateSpace(
    initial=lambda x: distrax.Normal(theta["mu"], scale),
    transition=lambda h, x: distrax.Normal(
        theta["mu"] + theta["phi"] * (h - theta["mu"]), theta["sigma"]
    ),
    emission=lambda h, x: volatility(x, h),
)
repeats = 50 if small else 400
always = particles.always(particles.systematic)


@partial(jax.jit, static_argnums=1)
def bootstrap(key, count):
    def one(key):
        found = particles.smc(key, model, y, num_particles=count, resample=always)
        return found.log_evidence

    return jax.lax.map(one, jax.random.split(key, repeats))


print(f"\n{'nats from log p(y)':32}{'mean':>9}")
for name, (draws, _) in found.items():
    elbo, iwae = float(vj.bounds.elbo(draws.log_w)), float(vj.bounds.iwae(draws.log_w))
    khat = float(vj.diagnostics.khat(draws.log_w))
    print(f"  {name:30}{elbo - exact:9.3f}   IWAE-2000 {iwae - exact:7.3f}, k-hat {khat:.2f}")
    closing.append((f"returns: ELBO of {name}, nats", elbo, exact, "grid"))
    assert elbo < exact + 0.1
counts = (30, 100) if small else (100, 1000)
spread = {}
for count in counts:
    log_z = np.asarray(bootstrap(jax.random.key(4), count), np.float64)
    ratio = np.exp(log_z - exact)
    spread[count] = log_z.std()
    print(
        f"  {f'bootstrap filter, N = {count}':30}{log_z.mean() - exact:9.3f}   sd {log_z.std():.2f}, "
        f"E Ẑ / p(y) {ratio.mean():.3f} +- {ratio.std() / repeats**0.5:.3f}"
    )
    assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / repeats**0.5 + 0.01
closing.append((f"returns: E Ẑ / p(y), N = {counts[1]}", ratio.mean(), 1.0, "unbiased"))
assert spread[counts[1]] < spread[counts[0]]
chain = float(vj.bounds.elbo(found["a chain"][0].log_w))
alone = float(vj.bounds.elbo(found["independent latents"][0].log_w))
assert chain > alone

# %% [markdown]
# ## A level that jumps
#
# The Nile again, its level now with two kinds of years: quiet ones, in which it hardly moves, and with probability .02
# a jump of standard deviation 200 (the year after a jump is quiet with probability .9). Everything is fixed, as the
# question is the integration. The first twelve years have $2^{12}$ sequences of kinds, and Kalman's filter for each:
# the exact sum. `particles.conditionally_gaussian` draws the kinds alone and carries Kalman's moments; beside it
# particles of kind and level both.

# %%
nile = jnp.asarray(np.loadtxt(here.parent / "data" / "nile.txt").ravel(), jnp.float32)
one = jnp.ones((1, 1))
QUIET, JUMP, NOISE = 20.0, 200.0, 120.0
ODDS = jnp.log(jnp.array([[0.98, 0.02], [0.9, 0.1]]))
FIRST = 1000.0, 300.0


def enumerate_kinds(x):
    """log p(x): the sum over all sequences of kinds of Kalman's evidence; the first year's kind moves nothing."""
    years = len(x)
    kinds = jnp.asarray((np.arange(2 ** (years - 1))[:, None] >> np.arange(years - 1)) & 1)

    def of_kinds(kinds):
        before = jnp.concatenate([jnp.zeros(1, kinds.dtype), kinds[:-1]])
        cov = jnp.where(kinds == 1, JUMP**2, QUIET**2)[:, None, None]
        linear = sequences.LinearGaussian(
            jnp.full(1, FIRST[0]), FIRST[1] ** 2 * one, one, cov, one, NOISE**2 * one
        )
        return ODDS[before, kinds].sum() + sequences.kalman_filter(linear, x[:, None]).log_evidence

    return float(logsumexp(jax.jit(jax.vmap(of_kinds))(kinds)))


def kind_after(kind):
    return distrax.Categorical(logits=ODDS[kind])


def spread_of(kind):
    return jnp.where(kind == 1, JUMP, QUIET)


integrated = particles.conditionally_gaussian(
    initial=lambda x: distrax.Categorical(logits=jnp.array([0.0, -jnp.inf])),
    transition=lambda kind, x: kind_after(kind),
    start=lambda kind: (jnp.full(1, FIRST[0]), FIRST[1] ** 2 * one),
    linear=lambda kind, x: particles.GaussianStep(
        one, spread_of(kind) ** 2 * one, one, NOISE**2 * one
    ),
    observation=lambda x: x[None],
)


def both(loc, scale, kinds):
    return vj.types.Joint({"kind": kinds, "level": lambda z: distrax.Normal(loc, scale(z["kind"]))})


sampled = particles.StateSpace(
    initial=lambda x: both(
        jnp.asarray(FIRST[0]),
        lambda kind: jnp.asarray(FIRST[1]),
        distrax.Categorical(logits=jnp.array([0.0, -jnp.inf])),
    ),
    transition=lambda z, x: both(z["level"], spread_of, kind_after(z["kind"])),
    emission=lambda z, x: norm.logpdf(x, z["level"], NOISE),
)


@partial(jax.jit, static_argnums=(1, 2))
def filters(key, kind, count, x):
    def run(key):
        return particles.smc(key, kind, x, num_particles=count, resample=always).log_evidence

    return jax.lax.map(run, jax.random.split(key, repeats))


short = nile[: 8 if small else 13]
truth = enumerate_kinds(short)
print(
    f"\nThe Nile's first {len(short)} years: log p(x) {truth:.4f}, {2 ** (len(short) - 1)} sequences"
)
for name, kind in {"level integrated": integrated, "level sampled": sampled}.items():
    log_z = np.asarray(filters(jax.random.key(5), kind, 100, short), np.float64)
    ratio = np.exp(log_z - truth)
    error = ratio.std() / repeats**0.5
    of_all = np.asarray(filters(jax.random.key(6), kind, 100, nile), np.float64)
    print(
        f"  {name:18} E Ẑ / p(x) {ratio.mean():.4f} +- {error:.4f}; all {len(nile)} years: "
        f"log Ẑ {of_all.mean():.2f}, variance {of_all.var():.3f}"
    )
    assert abs(ratio.mean() - 1) < 4.5 * error
    closing.append((f"Nile: E Ẑ / p(x), {name}", ratio.mean(), 1.0, "sum over all kinds"))
    spread[name] = of_all.var()
closing.append(
    (
        "Nile: variance of log Ẑ, level integrated",
        spread["level integrated"],
        spread["level sampled"],
        "level sampled",
    )
)
assert spread["level integrated"] < spread["level sampled"]

# %% [markdown]
# Which years were jumps? Paths of the kinds by their ancestors, from a filter that keeps its history.

# %%
kept = particles.smc(
    jax.random.key(7), integrated, nile, num_particles=500 if small else 5000, resample=always,
    record=particles.history,
)  # fmt: skip
paths = particles.trace_back(kept.recorded).z
weights = np.asarray(vj.numerics.normalized_weights(kept.log_weights))
jumps = (weights[:, None] * np.asarray(paths)).sum(0)
years = 1871 + np.arange(len(nile))
print("Years likely to have been jumps: ", end="")
print(", ".join(f"{y} ({p:.2f})" for y, p in zip(years, jumps, strict=True) if p > 0.2))
assert small or 1896 <= years[jumps.argmax()] <= 1901

# %% [markdown]
# ## The figure

# %%
INK, BLUE, ORANGE, GREY = "#1f2933", "#0072B2", "#D55E00", "#9aa5b1"
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
grid, summed = on_grid(theta)
marginal = np.exp(np.asarray(summed.posterior.log_marginals()))
cumulative = marginal.cumsum(1)
days = np.arange(T)
low, middle, high = (
    np.array([np.interp(p, row, grid) for row in cumulative]) for p in (0.05, 0.5, 0.95)
)
left.vlines(days, 0, np.abs(np.asarray(y)), color=GREY, lw=0.7)
left.fill_between(days, np.exp(low / 2), np.exp(high / 2), color=BLUE, alpha=0.25, lw=0)
left.plot(days, np.exp(middle / 2), color=BLUE, lw=1.2, label="by the grid, 90%")
q = found["a chain"][1]
path, _ = q.sample_and_log_prob(seed=jax.random.key(8), sample_shape=(500,))
of_chain = np.quantile(
    np.exp((float(theta["mu"]) + float(scale) * np.asarray(path)[..., 0]) / 2), [0.05, 0.95], 0
)
left.plot(days, of_chain[0], color=ORANGE, lw=0.8, ls="--", label="a chain as q, 90%")
left.plot(days, of_chain[1], color=ORANGE, lw=0.8, ls="--")
left.set(xlabel="day", ylabel="|return| and volatility, %", xlim=(0, T), ylim=(0, None))
left.legend(frameon=False, fontsize=8)
left.set_title(f"Returns, {source}", loc="left", fontsize=9)
right.plot(years, nile, ".", color=INK, ms=4)
twin = right.twinx()
twin.bar(years, jumps, color=ORANGE, width=0.8, alpha=0.8)
twin.set(ylim=(0, 2), yticks=(0, 0.5, 1))
twin.set_ylabel("probability of a jump", color=ORANGE, loc="bottom")
right.set(xlabel="year", ylabel="flow, 10⁸ m³", ylim=(0, None))
right.set_title("Years in which the Nile's level jumped", loc="left", fontsize=9)
for axes in (left, right, twin):
    axes.spines[["top"]].set_visible(False)
left.spines[["right"]].set_visible(False)
Path("out").mkdir(exist_ok=True)
figure.savefig("out/time_series.png", dpi=160)

# %% [markdown]
# ## Ours beside the exact numbers

# %%
print(f"\n{'':50}{'ours':>12}{'beside':>12}   source")
for what, mine, theirs, where in closing:
    print(f"{what:50}{mine:12.4f}{theirs:12.4f}   {where}")
record = {
    "command": "python notebooks/applications/time_series.py", "jax": jax.__version__,
    "rows": [(what, float(mine), float(theirs), where) for what, mine, theirs, where in closing],
}  # fmt: skip
Path("out/time_series.json").write_text(json.dumps(record, indent=1))
print(f"\nThe figure is out/time_series.png. {time.perf_counter() - started:.0f} s in all.")

# %% [markdown]
# **References.** Kim, Shephard, Chib, Stochastic volatility: likelihood inference and comparison with ARCH models,
# 1998. Doucet, Godsill, Andrieu, On sequential Monte Carlo sampling methods for Bayesian filtering, 2000. Archer et
# al., Black box variational inference for state space models, 2015, arXiv:1511.07367.
