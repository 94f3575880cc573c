# %% [markdown]
# # A river, and five ways to its evidence
#
# The Nile's yearly flow, 1871 to 1970. Behind it a level that wanders, which the flow shows with noise:
#
# $$z_1 \sim N(1000, 500^2), \qquad z_t \mid z_{t-1} \sim N(z_{t-1}, 1469.1), \qquad x_t \mid z_t \sim N(z_t, 15099).$$
#
# One hundred latents that come one after another. For this model the Kalman filter integrates all of them exactly, so
# that **every other method can be held against the truth**: a $q$ without correlations, a chain as $q$, importance
# sampling over time, and particle filters. For most models only the others are left.

# %%
import time

started = time.perf_counter()

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

here = Path(__file__).parent if "__file__" in globals() else Path("notebooks/start")
nile = jnp.asarray(np.loadtxt(here.parent / "data" / "nile.txt").ravel(), jnp.float32)
years = 1871 + np.arange(len(nile))
OBSERVATION, LEVEL, START = 15099.0, 1469.1, (1000.0, 500.0)
closing = []  # (what, ours, exact)

# %% [markdown]
# ## The truth: Kalman
#
# `sequences.kalman_filter` returns $\log p(x)$, and `kalman_smoother` the posterior as a distribution over whole
# paths, like any other $q$.

# %%
one = jnp.ones((1, 1))
model = vj.sequences.LinearGaussian(
    jnp.full(1, START[0]), START[1] ** 2 * one, one, LEVEL * one, one, OBSERVATION * one
)
log_p = float(vj.sequences.kalman_filter(model, nile[:, None]).log_evidence)
posterior = vj.sequences.kalman_smoother(model, nile[:, None])
means, covariances = posterior.marginals()
closing.append(("log p(x), Kalman filter", log_p, -639.71172))
assert abs(log_p + 639.71172) < 2e-3

# %% [markdown]
# ## A q for all latents at once
#
# As a variational problem: $\log p(x, z)$ of a whole path, and a $q$ over paths. With independent latents, the usual
# default, $q$ cannot say that neighboring levels go together; `families.markov`, a Gaussian chain, can, at a cost that
# is as linear in time. Its parameters are found by climbing the ELBO under `dreg`, in units in which the levels are of
# size 1.

# %%
UNIT = 100.0


def log_joint(u):
    """log p(x, z) of the levels z = 1000 + 100 u, in the density of u."""
    z = START[0] + UNIT * u[:, 0]
    normal = lambda loc, variance: distrax.Normal(loc, variance**0.5)  # noqa: E731
    prior = normal(START[0], START[1] ** 2).log_prob(z[0])
    steps = normal(z[:-1], LEVEL).log_prob(z[1:]).sum()
    return prior + steps + normal(z, OBSERVATION).log_prob(nile).sum() + len(z) * jnp.log(UNIT)


objective = vj.gradients.dreg(vj.bounds.elbo)
steps = 1000 if small else 3000
found, of_family = {}, {}
for name, family in {
    "independent latents": vj.families.mean_field(),
    "a chain": vj.families.markov(),
}.items():

    def estimate(key, params, family=family):
        return objective(key, log_joint, family.dist(params), num_samples=16)

    rate = optax.cosine_decay_schedule(0.05, steps, alpha=0.01)
    rule = vj.fitting.ascent(estimate, optax.adam(rate))
    params = family.init(jax.random.key(0), jnp.zeros((len(nile), 1)))
    fit = vj.fitting.fit(jax.random.key(1), rule, rule.init(params), steps=steps, reports=())
    q = family.dist(fit.average)
    found[name] = vj.draws.weigh(jax.random.key(2), log_joint, q, num_samples=2000).log_w
    of_family[name] = q

# %% [markdown]
# **From above as well.** The posterior's own draws, exact here, give an upper bound by the same weights: `log p` lies
# between $\mathbb E_q \log w$ and $\mathbb E_p \log w$, the ELBO and the EUBO.

# %%
drawn, _ = posterior.sample_and_log_prob(seed=jax.random.key(3), sample_shape=(2000,))
u = (drawn - START[0]) / UNIT
sandwiches = {}
print(f"{'log p(x) = ' + format(log_p, '.3f'):24}{'ELBO':>10}{'EUBO':>10}")
for name, q in of_family.items():
    at_posterior = jax.jit(jax.vmap(lambda u, q=q: log_joint(u) - q.log_prob(u)))(u)
    sandwiches[name] = vj.diagnostics.sandwich(found[name], at_posterior)
    lower, upper = float(sandwiches[name].elbo.value), float(sandwiches[name].eubo.value)
    print(f"{name:24}{lower:10.3f}{upper:10.3f}")
    assert lower < log_p + 0.05
    assert upper > log_p - 0.05
gap = {name: log_p - float(s.elbo.value) for name, s in sandwiches.items()}
closing.append(("ELBO of a chain", float(sandwiches["a chain"].elbo.value), log_p))
assert gap["a chain"] < 0.05

# The best independent Gaussian has the posterior's means and the diagonal of its precision: a gap in closed form.
diagonal = np.full(len(nile), 1 / OBSERVATION + 2 / LEVEL)
diagonal[0] = 1 / OBSERVATION + 1 / LEVEL + 1 / START[1] ** 2
diagonal[-1] = 1 / OBSERVATION + 1 / LEVEL
off = np.full(len(nile) - 1, -1 / LEVEL)
precision = np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1)
best = 0.5 * (np.log(diagonal).sum() - np.linalg.slogdet(precision)[1])
closing.append(("gap of independent latents", gap["independent latents"], best))
assert abs(gap["independent latents"] - best) < 0.1

# %% [markdown]
# ## Particles
#
# A model for `particles` is written for one particle: where it starts, how it moves, what it emits. Of $N$ that move at
# random those are kept, in proportion, that explain the year's flow (the bootstrap filter). $\hat Z$, the product of
# their mean weights, is unbiased, so $\mathbb E \log \hat Z$ is a lower bound, FIVO's. Without resampling the same
# draws give the importance-weighted bound over time, whose weights degenerate: a hundred years are too many for a
# hundred particles. (Where $\log \hat Z$ varies by several nats, the mean of $\hat Z$ is carried by filters too rare to
# be among these, and neither it nor its error is to be believed.)


# %%
def level(loc, scale):
    return vj.families.mean_field().dist({"loc": loc, "log_scale": jnp.log(scale)})


river = vj.particles.StateSpace(
    initial=lambda x: level(jnp.asarray(START[0]), jnp.asarray(START[1])),
    transition=lambda z, x: level(z, jnp.asarray(LEVEL**0.5)),
    emission=lambda z, x: level(z, jnp.asarray(OBSERVATION**0.5)).log_prob(x),
)


def given(loc, variance, x):
    """The next level given the one before and the flow: the best that a proposal can know of one year."""
    left = 1 / (1 / variance + 1 / OBSERVATION)
    return level(left * (loc / variance + x / OBSERVATION), jnp.asarray(left**0.5))


guided = vj.particles.Proposal(
    initial=lambda x: given(START[0], START[1] ** 2, x),
    transition=lambda z, x: given(z, LEVEL, x),
)
repeats = 200 if small else 1000


@partial(jax.jit, static_argnums=(1, 2, 3))
def filters(key, particles, proposal, resample):
    """log Ẑ of so many independent filters."""

    def run(key):
        return vj.particles.smc(
            key, river, nile, proposal=proposal, num_particles=particles, resample=resample
        ).log_evidence

    return jax.vmap(run)(jax.random.split(key, repeats))


always = vj.particles.always(vj.particles.systematic)
ways = {
    "no resampling, N = 100": (100, None, vj.particles.never),
    "bootstrap, N = 10": (10, None, always),
    "bootstrap, N = 100": (100, None, always),
    "bootstrap, N = 1000": (1000, None, always),
    "guided, N = 100": (100, guided, always),
}
if small:
    del ways["bootstrap, N = 1000"]
print(f"\n{f'{repeats} filters':24}{'E log Ẑ':>10}{'sd':>8}{'E Ẑ / p(x)':>14}")
log_z = {}
for name, (particles, proposal, resample) in ways.items():
    log_z[name] = np.asarray(filters(jax.random.key(4), particles, proposal, resample), np.float64)
    ratio = np.exp(log_z[name] - log_p)
    error = ratio.std() / repeats**0.5
    print(
        f"{name:24}{log_z[name].mean():10.2f}{log_z[name].std():8.2f}{ratio.mean():9.3f} ± {error:.3f}"
    )
    assert log_z[name].mean() < log_p + 4 * log_z[name].std() / repeats**0.5
    if particles >= 100 and resample is always:
        closing.append((f"E Ẑ / p(x), {name}", ratio.mean(), 1.0))
        assert abs(ratio.mean() - 1) < 4.5 * error
variance = {name: each.var() for name, each in log_z.items()}
assert variance["guided, N = 100"] < variance["bootstrap, N = 100"] < variance["bootstrap, N = 10"]

# %% [markdown]
# ## The figure
#
# Left, the flow, the level given all of it (the band holds 95%), and paths drawn from the fitted chain. Right, all of
# them on one axis: lower bounds to the left of the truth, upper bounds to the right; of filters the mean of
# $\log \hat Z$ with the middle half of the filters.

# %%
INK, BLUE, ORANGE, GREY = "#1f2933", "#0072B2", "#D55E00", "#9aa5b1"
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
mean, sd = np.asarray(means)[:, 0], np.sqrt(np.asarray(covariances)[:, 0, 0])
left.plot(years, nile, ".", color=INK, markersize=4)
left.fill_between(years, mean - 1.96 * sd, mean + 1.96 * sd, color=BLUE, alpha=0.2, lw=0)
paths, _ = of_family["a chain"].sample_and_log_prob(seed=jax.random.key(5), sample_shape=(5,))
for path in np.asarray(START[0] + UNIT * paths[..., 0]):
    left.plot(years, path, color=BLUE, lw=0.8, alpha=0.7)
left.set(xlabel="year", ylabel="flow, 10⁸ m³")
left.set_title("The Nile, and five draws of its level", loc="left", fontsize=9)

rows = [*of_family, *log_z][::-1]
for i, name in enumerate(rows):
    if name in of_family:
        bounds = sandwiches[name]
        ends = [float(bounds.elbo.value) - log_p, float(bounds.eubo.value) - log_p]
        right.plot(ends[:1], [i], "o", color=BLUE, markersize=9)
        right.plot(ends[1:], [i], "o", color=ORANGE)
    else:
        quarter = np.quantile(log_z[name] - log_p, [0.25, 0.75])
        right.plot(quarter, [i, i], color=GREY, lw=4, solid_capstyle="butt")
        right.plot(log_z[name].mean() - log_p, i, "o", color=BLUE)
right.axvline(0, color=INK, lw=1)
right.set_yticks(range(len(rows)), rows)
right.set_xscale("symlog", linthresh=1)
ticks = (-20, -5, -1, 0, 1, 10, 100)
right.set_xticks(ticks, map(str, ticks))
right.set(xlabel="nats from log p(x)", xlim=(-40, 200))
right.set_title("Lower bounds, blue, and upper bounds, orange", loc="left", fontsize=9)
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
Path("out").mkdir(exist_ok=True)
figure.savefig("out/sequences.png", dpi=160)

# %% [markdown]
# ## Ours beside the exact numbers

# %%
print(f"\n{'':36}{'ours':>12}{'exact':>12}")
for what, ours, exact in closing:
    print(f"{what:36}{ours:12.4f}{exact:12.4f}")
print(f"\nThe figure is out/sequences.png. {time.perf_counter() - started:.0f} s in all.")

# %% [markdown]
# **References.** Durbin and Koopman, Time series analysis by state space methods, 2012 (the data and the variances).
# Gordon, Salmond and Smith, Novel approach to nonlinear/non-Gaussian Bayesian state estimation, 1993. Maddison et al.,
# Filtering variational objectives, 2017, arXiv:1705.09279. Archer et al., Black box variational inference for state
# space models, 2015, arXiv:1511.07367.
