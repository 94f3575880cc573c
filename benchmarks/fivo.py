"""Maddison et al.'s table of filtering bounds on the JSB chorales: one VRNN by ELBO, IWAE and FIVO, four particles.

A chorale is a sequence of chords, 88 keys each. Equal models, steps and particles; Adam with a rate that falls; the
parameters that the validation set likes best by the objective's own bound. Each is then judged on the test set by all
three bounds with 128 particles, in nats a chord: the best of them is the model's, the one of its own name what was
climbed. The authors made over 100,000 steps at a rate of 3e-5; each row says how many it made. Needs `polymusic` in
--data.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

import vijax as vj
from benchmarks._report import Options, Row, row

particles, models = vj.particles, vj.models
LATENTS, BATCH, PARTICLES, EXACT = 32, 8, 4, 128
NORMAL = vj.families.mean_field(scale=1.0)
# log p of a chord by the authors, remembered; and the net bits of a coder by the same three (Ruan et al., 2021, its
# authors' README), in nats.
REMEMBERED = {"ELBO": -8.60, "IWAE": -7.86, "FIVO": -6.90}
CODED = {
    name: -bits * np.log(2) for name, bits in (("ELBO", 12.54), ("IWAE", 11.90), ("FIVO", 10.96))
}


class Chorales(NamedTuple):
    """Sequences of one length, [n, T, keys], and how long each is, [n]."""

    chords: Array
    lengths: Array


class VRNN(nnx.Module):
    """A recurrent network that has heard all earlier latents and chords; prior, encoder and keys given its state."""

    def __init__(self, frequencies: Array, *, rngs: nnx.Rngs):
        keys, like = len(frequencies), jnp.zeros(LATENTS)
        size = models.num_params(NORMAL, like)
        network = partial(models.MLP, hidden=(LATENTS,), activation=nnx.relu, rngs=rngs)
        self.cell = nnx.OptimizedLSTMCell(2 * LATENTS, LATENTS, rngs=rngs)
        self.of_chord = network(keys, outputs=LATENTS)
        self.of_latent = network(LATENTS, outputs=LATENTS)
        self.prior = models.Conditional(network(LATENTS, outputs=size), NORMAL, like)
        self.encoder = models.Conditional(network(2 * LATENTS, outputs=size), NORMAL, like)
        self.keys = network(2 * LATENTS, outputs=keys)
        self.odds = nnx.Param(jnp.log(frequencies) - jnp.log1p(-frequencies))
        self.frequencies = nnx.Variable(frequencies)

    def heard(self, state: Any, before: Array) -> Any:
        """Return the network's state before a chord: after the latent and the chord before it."""
        inputs = [self.of_latent(state.z), self.of_chord(before - self.frequencies[...])]
        return self.cell(state.carried, jnp.concatenate(inputs, -1))[0]

    def state_space(self) -> tuple[Any, Any]:
        """Return the model and the proposal of chords with those before them, (x, before)."""
        silent = (jnp.zeros(LATENTS), jnp.zeros(LATENTS))

        def given(h: Any) -> Any:
            return particles.carrying(self.prior(h[1]), lambda _: h)

        def encoded(h: Any, x: Array) -> Any:
            chord = self.of_chord(x - self.frequencies[...])
            return self.encoder(jnp.concatenate([h[1], chord], -1))

        def emission(state: Any, x: Any) -> Array:
            inputs = [self.of_latent(state.z), state.carried[1]]
            logits = self.odds[...] + self.keys(jnp.concatenate(inputs, -1))
            return jnp.sum(x[0] * logits - jax.nn.softplus(logits), -1)

        model = particles.StateSpace(
            lambda x: given(silent), lambda state, x: given(self.heard(state, x[1])), emission
        )
        proposal = particles.Proposal(
            lambda x: encoded(silent, x[0]), lambda state, x: encoded(self.heard(state, x[1]), x[0])
        )
        return model, proposal


def filtered(
    key: Array, vrnn: VRNN, chords: Array, length: Array, *, count: int, how: Any
) -> Array:
    """Return log Z-hat of one chorale, () nats."""
    model, proposal = vrnn.state_space()
    before = jnp.concatenate([jnp.zeros_like(chords[:1]), chords[:-1]])
    estimate = particles.fivo(
        key, model, (chords, before), proposal, num_particles=count, resample=how, length=length
    )
    return estimate.value


def elbo(key: Array, vrnn: VRNN, chords: Array, length: Array, *, count: int) -> Array:
    """Return the mean over so many single particles."""
    one = partial(filtered, count=1, how=particles.never)
    keys = jax.random.split(key, count)
    return jnp.mean(jax.vmap(lambda key: one(key, vrnn, chords, length))(keys))


BOUNDS: dict[str, Callable[..., Array]] = {
    "ELBO": elbo,
    "IWAE": partial(filtered, how=particles.never),
    "FIVO": partial(filtered, how=particles.adaptive(vj.resampling.systematic)),
}


def per_chord(name: str, count: int, key: Array, vrnn: VRNN, data: Chorales) -> Array:
    """Return a bound of all chorales over all their chords."""
    keys = jax.random.split(key, len(data.chords))
    each = jax.vmap(lambda *given: BOUNDS[name](given[0], vrnn, *given[1:], count=count))
    return jnp.sum(each(keys, *data)) / jnp.sum(data.lengths)


def train(
    name: str, seed: int, data: Chorales, valid: Chorales, rounds: int, steps: int
) -> tuple[Any, int, float]:
    """Return the best model by the validation set, the step it was reached at, and the seconds of CPU."""
    silent = data.lengths[:, None, None] <= jnp.arange(data.chords.shape[1])[:, None]
    frequencies = jnp.sum(jnp.where(silent, 0.0, data.chords), (0, 1)) / jnp.sum(data.lengths)
    graph, params, rest = nnx.split(
        VRNN(jnp.clip(frequencies, 1e-3, 1 - 1e-3), rngs=nnx.Rngs(seed)), nnx.Param, ...
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adam(optax.cosine_decay_schedule(2e-3, rounds * steps, 0.05)),
    )

    def loss(params: Any, key: Array, batch: Chorales) -> Array:
        return -per_chord(name, PARTICLES, key, nnx.merge(graph, params, rest), batch)

    def step(carry: Any, key: Array) -> tuple[Any, None]:
        params, state = carry
        of_rows, of_bound = jax.random.split(key)
        rows = jax.random.choice(of_rows, len(data.chords), (BATCH,), replace=False)
        slope = jax.grad(loss)(params, of_bound, jax.tree.map(lambda leaf: leaf[rows], data))
        updates, state = optimizer.update(slope, state)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def round_of(carry: Any, key: Array) -> tuple[Any, Array]:
        of_steps, of_valid = jax.random.split(key)
        carry, _ = jax.lax.scan(step, carry, jax.random.split(of_steps, steps))
        return carry, -loss(carry[0], of_valid, valid)

    began = process_time()
    carry, best = (params, optimizer.init(params)), (-np.inf, params, 0)
    for i, key in enumerate(jax.random.split(jax.random.key(seed), rounds)):
        carry, value = round_of(carry, key)
        if float(value) > best[0]:
            best = float(value), carry[0], (i + 1) * steps
    return nnx.merge(graph, best[1], rest), best[2], process_time() - began


def judge(vrnn: VRNN, data: Chorales, count: int) -> dict[str, float]:
    """Return each bound of the test set with many particles, chorale by chorale."""
    graph, state = nnx.split(vrnn)

    @partial(jax.jit, static_argnums=0)
    def total(name: str, keys: Array, data: Chorales) -> Array:
        def one(given: Any) -> Array:
            return BOUNDS[name](given[0], nnx.merge(graph, state), *given[1], count=count)

        return jnp.sum(jax.lax.map(one, (keys, data)))

    keys = jax.random.split(jax.random.key(7), len(data.chords))
    chords = float(jnp.sum(data.lengths))
    return {name: float(total(name, keys, data)) / chords for name in BOUNDS}


def load(data: Path | None, quick: bool) -> list[Chorales]:
    """Return the sets to train on, to choose by and to test on."""
    if data is None:
        if not quick:
            raise SystemExit("fivo needs --data DIR, a folder with polymusic/; or --quick.")
        rng = np.random.default_rng(0)
        sets = [[rng.random((6, 88)) < 0.05 for _ in range(BATCH)] for _ in range(3)]
    else:
        path = data / "polymusic" / "JSB_Chorales.mat"
        if not path.exists():
            raise SystemExit(f"--data: {path} is missing.")
        from scipy.io import loadmat

        names = ("traindata", "validdata", "testdata")
        sets = [list(loadmat(path)[name][0]) for name in names]
        sets = [s[:BATCH] for s in sets] if quick else sets
    return [together(s) for s in sets]


def together(sequences: list[np.ndarray]) -> Chorales:
    longest = max(map(len, sequences))
    grown = [np.pad(s, ((0, longest - len(s)), (0, 0))) for s in sequences]
    lengths = jnp.asarray([len(s) for s in sequences])
    return Chorales(jnp.asarray(np.stack(grown), jnp.float32), lengths)


def known(r: Row) -> bool:
    """Whether a row is a whole run, which a later one need not repeat."""
    return "bounds" in r and not r["quick"]


def run(options: Options) -> Iterator[Row]:
    data, valid, test = load(options.data, options.quick)
    rounds, steps, count = (1, 2, 4) if options.quick else (40, 250, EXACT)
    for seed in (0,) if options.quick else (0, 1):
        metric = f"log p of a chord, best of three bounds at N = {count}, {rounds * steps} steps, seed {seed}"
        found = {}
        for name in BOUNDS:
            done = (r for r in options.earlier if (r["name"], r["metric"]) == (name, metric))
            found[name] = next(done, None) or one(
                name, metric, seed, (data, valid, test), rounds, steps, count
            )
            yield found[name]
        gain = found["FIVO"]["value"] - found["ELBO"]["value"]
        yield row("FIVO less ELBO", metric, gain, "nats", baseline="ELBO")


def one(name: str, metric: str, seed: int, sets: Any, rounds: int, steps: int, count: int) -> Row:
    vrnn, at, cpu = train(name, seed, *sets[:2], rounds, steps)
    bounds = judge(vrnn, sets[2], count)
    best = max(bounds, key=lambda bound: bounds[bound])
    each = ", ".join(f"{bound} {value:.3f}" for bound, value in bounds.items())
    return row(
        name, metric, bounds[best], "nats", baseline="the authors, remembered", bounds=bounds,
        remembered=REMEMBERED[name], coded=CODED[name], cpu_seconds=cpu, step=at,
        note=f"by {best}; {each}; best on the validation set after {at} steps; {cpu / 60:.0f} minutes of CPU; "
        f"remembered {REMEMBERED[name]}, a coder's {CODED[name]:.2f}",
    )  # fmt: skip
