# %% [markdown]
# # Neurons: the free energy, a receptor's filters, and hidden dynamics
#
# The variational free energy of theoretical neuroscience is the negative ELBO, $F = -\mathcal L$, so the same functions
# serve three questions. **Where does predictive coding settle? What does a real neuron listen for, and how surely is
# that known? Can the rates of many neurons be read from their spikes, if the dynamics behind them are learned?**

# %%
import time

started = time.perf_counter()

import json
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from flax import nnx
from jax.scipy.stats import norm, poisson
from scipy.ndimage import gaussian_filter1d

import vijax as vj
from vijax import families, models

in_notebook = "ipykernel" in sys.modules
small = os.environ.get("VIJAX_SMALL", "0") not in ("", "0")
if not in_notebook:
    matplotlib.use("Agg")
import matplotlib.pyplot as plt

here = Path(__file__).parent if "__file__" in globals() else Path("notebooks/applications")
closing = []  # (what, ours, beside, source)

# %% [markdown]
# ## Predictive coding settles on the mode
#
# Two layers of causes, $z_2 \sim N(0, I)$, $z_1 \mid z_2 \sim N(W_2 z_2, I)$, $x \mid z_1 \sim N(W_1 z_1, I)$. With a
# $q$ that is a point, $F(z) = -\log p(x, z)$ up to a constant, and units that follow $\dot z = -\partial F / \partial
# z$ move by the prediction errors of the layers beside them (Rao and Ballard, 1999). They must come to rest at the
# mode of the posterior, which is Gaussian here, so that the mode is its mean: `targets.collapse_gaussian` finds it in
# one step.

# %%
with jax.enable_x64(True):
    rng = np.random.default_rng(0)
    upper, lower = (jnp.asarray(rng.normal(size=shape) / 2) for shape in ((6, 3), (10, 6)))
    x = jnp.asarray(rng.normal(size=10))

    def layers(z):
        causes, inputs = z
        of_causes = norm.logpdf(causes).sum() + norm.logpdf(inputs, upper @ causes).sum()
        return of_causes + norm.logpdf(x, lower @ inputs).sum()

    @jax.jit
    def settle(z):
        flow = jax.grad(lambda z: -layers(z))

        def move(_, z):
            return jax.tree.map(lambda z, slope: z - 0.05 * slope, z, flow(z))

        return jax.lax.fori_loop(0, 5_000, move, z)

    start = jnp.zeros(3), jnp.zeros(6)
    at_rest = settle(start)
    mode = vj.targets.collapse_gaussian(lambda _, z: layers(z), start)[1](()).mean
    off = max(float(jnp.abs(a - b).max()) for a, b in zip(at_rest, mode, strict=True))
print(f"Predictive coding comes to rest {off:.0e} from the posterior's mode")
closing.append(("predictive coding: distance from the mode", off, 0.0, "exact"))
assert off < 1e-6

# %% [markdown]
# ## What a receptor listens for
#
# An auditory receptor of a grasshopper, two recordings of 10 s: the sound's envelope and the times of its spikes
# (`notebooks/data/`). In each millisecond the neuron fires with a rate that three filters of the last 20 ms make,
#
# $$\log \lambda_t = b + \sum_\tau k_\tau s_{t-\tau} + \sum_\tau m_\tau (s^2_{t-\tau} - 1) + \sum_\tau h_\tau
#   y_{t-\tau}, \qquad y_t \sim \mathrm{Poisson}(\lambda_t),$$
#
# of the standardized log envelope $s$, of its square, and of the neuron's own spikes. Filters are smooth: a Gaussian
# process over the lag is their prior, the lag on a log scale for the spikes. $q$ is a full-rank Gaussian over all
# filters, whitened by the prior's Cholesky factor. Its ELBO has no noise: the expectation of each Poisson term is an
# integral over one Gaussian number (`targets.gauss_hermite`), so L-BFGS climbs it (`solvers.maximize`). Being a bound
# of the evidence it also says how smooth the filters should be.
#
# Each second window of ten is held out with the one five seconds away; the measure is the log-likelihood there over
# that of a constant rate, in bits a spike.

# %%
LAGS = 20
recordings = np.load(here.parent / "data" / "grasshopper.npz")
lags = np.arange(LAGS, dtype=float)


def lagged(signal, first):
    """Return [time, lags]: the signal `first` and more milliseconds ago."""
    grown = np.concatenate([np.zeros(first + LAGS), signal])
    views = np.lib.stride_tricks.sliding_window_view(grown, LAGS)[1 : len(signal) + 1]
    return views[:, ::-1]


def smooth(positions, length, size):
    """Cholesky factor of a Gaussian process's covariance over the lags."""
    squares = (positions[:, None] - positions) ** 2
    return np.linalg.cholesky(size**2 * np.exp(-squares / (2 * length**2)) + 1e-6 * np.eye(LAGS))


def priors(length):
    """Of each filter; that of the spikes is over the logarithm of the lag."""
    return {
        "stimulus": smooth(lags, length, 0.5),
        "history": smooth(np.log1p(lags), 0.7, 2.0),
        "square": smooth(lags, length, 0.3),
    }


def signals(recording):
    """Return the spikes of each millisecond, and what each filter runs over."""
    spikes = np.histogram(recordings[f"spike_us_{recording}"] / 1000, np.arange(10_001))[0]
    sound = np.log(recordings[f"stimulus_ms_{recording}"])
    sound = (sound - sound.mean()) / sound.std()
    over = {
        "stimulus": lagged(sound, 0),
        "history": lagged(spikes.astype(float), 1),
        "square": lagged(sound**2 - 1, 0),
    }
    return spikes.astype(np.float32), over


full_rank, unit = families.full_rank(scale=0.1), families.mean_field(scale=1.0)


@jax.jit
def receptor(design, spikes):
    """Maximize the ELBO of the weights; the first is the constant's."""
    start = jnp.zeros(design.shape[1]).at[0].set(-1.2)
    prior = unit.dist(unit.init(None, jnp.zeros_like(start)))

    def elbo(params):
        q = full_rank.dist(params)
        likelihood = vj.targets.gauss_hermite(
            lambda log_rate: spikes * log_rate - jnp.exp(log_rate),
            lambda weights: design @ weights, q, nodes=8,
        )  # fmt: skip
        target = vj.targets.exact_kl(likelihood, prior, q)
        objective = vj.gradients.reparam(vj.bounds.elbo)
        return objective(jax.random.key(0), target, q, num_samples=1).value

    return vj.solvers.maximize(elbo, full_rank.init(None, start), steps=60 if small else 300)


@jax.jit
def predicted(key, params, design, spikes):
    """Log predictive probability of each millisecond, over 200 draws of the filters, without its constant."""
    weights = full_rank.dist(params).sample_and_log_prob(seed=key, sample_shape=(200,))[0]
    log_rate = jax.lax.map(lambda w: design @ w, weights)
    terms = spikes * log_rate - jnp.exp(log_rate)
    return vj.bounds.iwae(terms)


window = np.arange(10_000) // 1000
folds = [window % 5 == f for f in range(5)]
models_of_neuron = {
    "stimulus": ("stimulus",),
    "stimulus, history": ("stimulus", "history"),
    "stimulus, history, square": ("stimulus", "history", "square"),
}
of_all = list(models_of_neuron)[-1]


def design_of(over, parts, prior):
    columns = [over[part] @ prior[part] for part in parts]
    return np.concatenate([np.full((10_000, 1), 2.0), *columns], 1).astype(np.float32)


LENGTH = 0.75
if not small:
    print("\nELBO of recording 1 by the length scale of the stimulus filters, nats")
    spikes, over = signals(1)
    elbos = {}
    for length in (0.75, 1.5, 3.0):
        design = design_of(over, models_of_neuron[of_all], priors(length))
        elbos[length] = float(receptor(design, spikes).value)
        print(f"  {length:4} ms {elbos[length]:10.1f}")
    assert max(elbos, key=elbos.get) == LENGTH
PRIORS = priors(LENGTH)
bits, filters = {}, {}
print("\nHeld-out bits a spike over a constant rate")
for recording in (1,) if small else (1, 2):
    spikes, over = signals(recording)
    for name, parts in models_of_neuron.items():
        if small and name != of_all:
            continue
        design = design_of(over, parts, PRIORS)
        gained = 0.0
        for held in folds[:1] if small else folds:
            found = receptor(design[~held], spikes[~held])
            term = predicted(jax.random.key(1), found.params, design[held], spikes[held])
            rate = spikes[~held].mean()
            gained += float(term.sum()) - (spikes[held] * np.log(rate) - rate).sum()
        fired = spikes[folds[0]].sum() if small else spikes.sum()
        bits[recording, name] = gained / fired / np.log(2)
        print(f"  recording {recording}, {name:26}{bits[recording, name]:7.3f}", flush=True)
        if name == of_all:
            filters[recording] = (found if small else receptor(design, spikes)).params
for recording in (1,) if small else (1, 2):
    for name, least in zip(models_of_neuron, (0.55, 1.1, 1.2), strict=True):
        if (recording, name) not in bits:
            continue
        closing.append(
            (f"receptor {recording}: {name}, bits a spike", bits[recording, name], 0.0, "constant")
        )
        assert bits[recording, name] > (0.3 if small else least)

# %% [markdown]
# ## Hidden dynamics
#
# Now a population, which is **simulated**: 29 neurons whose log rates are linear in the state of the Lorenz equations,
# 1 s in steps of 10 ms. A generator network that runs by itself from $z \in \mathbb R^{16}$, and an encoder that reads
# a whole trial in both directions, make an autoencoder of spikes (LFADS; Pandarinath et al., 2018), $\mathcal L =
# \mathbb E_q \sum_t \log \mathrm{Poisson}(y_t \mid \lambda_t(z)) - \mathrm{KL}(q(z \mid y) \,\|\, p(z))$. Beside it
# the spikes of each trial smoothed by a Gaussian, whose width is the best one for these very rates.

# %%
STEPS, NEURONS = 100, 29
TRIALS, BATCH, LATENTS, UNITS = (150, 30, 16, 32) if small else (1500, 50, 16, 64)
UPDATES = 40 if small else 3000


def lorenz(key, trials):
    """States [trials, steps, 3] of the Lorenz equations, standardized, after they have reached the attractor."""

    def move(state, _):
        def slope(s):
            a, b, c = s[..., 0], s[..., 1], s[..., 2]
            return jnp.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c], -1)

        for _ in range(3):  # small steps, for Euler's rule
            state = state + 0.005 * slope(state)
        return state, state

    start = jax.random.normal(key, (trials, 3)) + jnp.array([0.0, 0.0, 25.0])
    states = jax.lax.scan(move, start, None, 300 + STEPS)[1][300:]
    return ((states - jnp.array([0.0, 0.0, 23.6])) / jnp.array([7.9, 9.0, 8.6])).swapaxes(0, 1)


of_state, of_weights, of_spikes = jax.random.split(jax.random.key(0), 3)
states = jax.jit(lorenz, static_argnums=1)(of_state, TRIALS + 200)
weights = jax.random.normal(of_weights, (3, NEURONS))
weights = 0.9 * weights / jnp.linalg.norm(weights, axis=0)
rates = 0.1 * jnp.exp(states @ weights)  # spikes in 10 ms: some 10 to 15 a second
spikes = jax.random.poisson(of_spikes, rates).astype(jnp.float32)
held_out = slice(TRIALS, None)
normal = families.mean_field(scale=1.0)


class Population(nnx.Module):
    """An encoder in both directions, a generator that runs by itself, and a readout to rates."""

    def __init__(self, *, rngs):
        self.forth, self.back = (nnx.GRUCell(NEURONS, UNITS, rngs=rngs) for _ in range(2))
        head = models.MLP(2 * UNITS, (), models.num_params(normal, jnp.zeros(LATENTS)), rngs=rngs)
        self.conditional = models.Conditional(head, normal, jnp.zeros(LATENTS))
        self.begin = nnx.Linear(LATENTS, UNITS, rngs=rngs)
        self.generator = nnx.GRUCell(1, UNITS, rngs=rngs)
        self.readout = nnx.Linear(UNITS, NEURONS, rngs=rngs)

    def q(self, y):
        def read(cell, steps):
            start = jnp.zeros((len(y), UNITS))
            return jax.lax.scan(lambda h, x: (cell(h, x)[0], None), start, steps)[0]

        steps = y.swapaxes(0, 1)
        ends = [read(self.forth, steps), read(self.back, steps[::-1])]
        return self.conditional(jnp.concatenate(ends, -1))

    def log_rates(self, z):
        """[*batch, latents] -> [*batch, steps, neurons]."""

        def move(h, _):
            h, _ = self.generator(h, jnp.zeros((*h.shape[:-1], 1)))
            return h, self.readout(h)

        begun = jnp.tanh(self.begin(z))
        return jnp.moveaxis(jax.lax.scan(move, begun, None, STEPS)[1], 0, -2) + jnp.log(0.1)

    def log_joint(self, y):
        def target(z):
            likelihood = poisson.logpmf(y, jnp.exp(self.log_rates(z))).sum((-2, -1))
            return norm.logpdf(z).sum(-1) + likelihood

        return target


graph, params = nnx.split(Population(rngs=nnx.Rngs(0)))
optimizer = optax.chain(
    optax.clip_by_global_norm(100.0),
    optax.adam(optax.cosine_decay_schedule(3e-3, UPDATES, 0.05)),
)


@jax.jit
def train(key, params):
    objective = vj.gradients.dreg(vj.bounds.elbo)

    def step(carry, key):
        params, state = carry
        of_rows, of_z = jax.random.split(key)
        y = spikes[jax.random.randint(of_rows, (BATCH,), 0, TRIALS)]

        def loss(params):
            population = nnx.merge(graph, params)
            estimate = objective(of_z, population.log_joint(y), population.q(y), num_samples=1)
            return -estimate.value.mean()

        value, slope = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(slope, state)
        return (optax.apply_updates(params, updates), state), -value

    keys = jax.random.split(key, UPDATES)
    (params, _), curve = jax.lax.scan(step, (params, optimizer.init(params)), keys)
    return params, curve


@jax.jit
def inferred(key, params):
    """Posterior mean of the rates of held-out trials, over 30 draws of z."""
    population = nnx.merge(graph, params)
    z, _ = population.q(spikes[held_out]).sample_and_log_prob(seed=key, sample_shape=(30,))
    return jax.lax.map(lambda z: jnp.exp(population.log_rates(z)), z).mean(0)


def explained(found):
    """R² of the rates of held-out trials, over all neurons and steps."""
    truth = np.asarray(rates[held_out])
    around = ((truth - truth.mean((0, 1))) ** 2).sum()
    return 1 - float(((np.asarray(found) - truth) ** 2).sum() / around)


params, curve = train(jax.random.key(1), params)
found = inferred(jax.random.key(2), params)
observed = np.asarray(spikes[held_out])
by_width = {
    w: explained(gaussian_filter1d(observed, w, axis=1)) for w in (2, 3, 4, 5, 6, 8, 10, 14)
}
width = max(by_width, key=by_width.get)
print(
    f"\nR² of the rates: learned dynamics {explained(found):.3f}, smoothing {by_width[width]:.3f} "
    f"at its best width, {10 * width} ms"
)
closing.append(
    ("R² of simulated rates", explained(found), by_width[width], "smoothing, its width tuned")
)
assert explained(found) > by_width[width] or small

# %% [markdown]
# ## The figure
#
# Left, the receptor's filters with two standard deviations: it answers the sound of six or seven milliseconds ago, and
# is silent for two or three after a spike. Middle, what each filter is worth. Right, the rate of one neuron of the
# population in one held-out trial.

# %%
INK, BLUE, ORANGE, GREY = "#1f2933", "#0072B2", "#D55E00", "#8a929b"
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.5), layout="constrained")
weights = full_rank.dist(filters[1]).sample_and_log_prob(
    seed=jax.random.key(3), sample_shape=(500,)
)[0]
for i, (part, color) in enumerate(zip(models_of_neuron[of_all], (BLUE, ORANGE, GREY), strict=True)):
    drawn = np.asarray(weights[:, 1 + i * LAGS : 1 + (i + 1) * LAGS]) @ PRIORS[part].T
    center, spread = drawn.mean(0), drawn.std(0)
    ago = lags + (part == "history")
    left.plot(ago, center, color=color, label=part)
    left.fill_between(ago, center - 2 * spread, center + 2 * spread, color=color, alpha=0.2, lw=0)
left.axhline(0, color=INK, lw=0.6)
left.set(xlabel="milliseconds ago", ylabel="log rate", ylim=(-5, 2))
left.legend(frameon=False, fontsize=8)
left.set_title("Filters of the receptor", loc="left", fontsize=9)
for recording, color in zip(sorted({r for r, _ in bits}), (BLUE, ORANGE), strict=False):
    values = [bits.get((recording, name), np.nan) for name in models_of_neuron]
    middle.plot(values, range(3), "o", color=color, label=f"recording {recording}")
middle.set(yticks=range(3), xlim=(0, None), xlabel="held-out bits a spike", ylim=(-0.5, 2.5))
middle.set_yticklabels(["stimulus", "and history", "and square"])
middle.legend(frameon=False, fontsize=8)
middle.set_title("What filters are worth", loc="left", fontsize=9)
neuron = 3
at = np.arange(STEPS) / 100
right.plot(at, 100 * rates[TRIALS, :, neuron], color=INK, lw=1, label="truth")
right.plot(at, 100 * found[0, :, neuron], color=BLUE, label="learned dynamics")
smoothed = gaussian_filter1d(observed[0, :, neuron], width)
right.plot(at, 100 * smoothed, color=ORANGE, lw=1, label="smoothing")
times = at[observed[0, :, neuron] > 0]
right.plot(times, np.full(len(times), -5.0), "|", color=INK, ms=5)
right.set(xlabel="s", ylabel="spikes a second")
right.legend(frameon=False, fontsize=8)
right.set_title("One of 29 simulated neurons", loc="left", fontsize=9)
for axes in (left, middle, right):
    axes.spines[["top", "right"]].set_visible(False)
Path("out").mkdir(exist_ok=True)
figure.savefig("out/neurons.png", dpi=160)

# %% [markdown]
# ## Ours beside the others

# %%
print(f"\n{'':56}{'ours':>10}{'beside':>10}   source")
for what, mine, theirs, where in closing:
    print(f"{what:56}{mine:10.3g}{theirs:10.3g}   {where}")
record = {
    "command": "python notebooks/applications/neurons.py", "jax": jax.__version__,
    "rows": [(what, float(mine), float(theirs), where) for what, mine, theirs, where in closing],
}  # fmt: skip
Path("out/neurons.json").write_text(json.dumps(record, indent=1))
print(f"\nThe figure is out/neurons.png. {time.perf_counter() - started:.0f} s in all.")

# %% [markdown]
# **References.** Rao and Ballard, Predictive coding in the visual cortex, 1999. Friston, The free-energy principle,
# 2010. Pandarinath et al., Inferring single-trial neural population dynamics using sequential auto-encoders, 2018.
# Rokem et al., Spike-timing precision underlies the coding efficiency of auditory receptor neurons, 2006, for the
# recordings.
