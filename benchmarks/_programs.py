"""The models of `_blocks` as NumPyro's users write them, with the same q: both blocks drawn, or the discrete summed."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from benchmarks import _blocks as blocks
from benchmarks._blocks import Model
from benchmarks._peers import Missing, peer

Program = Callable[[], None]


def loss(kind: str, model: Model, *, summed: bool, particles: int) -> Callable[[Any, Array], Array]:
    """Return (params, key) -> minus NumPyro's ELBO, of TraceGraph_ELBO or, with b summed out, TraceEnum_ELBO."""
    numpyro, infer = peer("numpyro"), peer("numpyro.infer")
    dist = numpyro.distributions
    if summed:
        if not model.discrete:
            raise Missing("numpyro: it sums discrete latents alone")
        peer("funsor")
        elbo = infer.TraceEnum_ELBO(num_particles=particles, max_plate_nesting=1)
    else:
        elbo = infer.TraceGraph_ELBO(num_particles=particles)
    how = lambda: {"infer": {"enumerate": "parallel"}} if summed else {}  # noqa: E731  # NumPyro writes into it
    program, of_block = globals()[kind](numpyro, dist, model, how)

    def guide() -> None:
        loc, root = numpyro.param("loc"), numpyro.param("root")
        numpyro.sample("z", dist.MultivariateNormal(loc, scale_tril=root))
        if not summed:
            of_block(numpyro.param("b"))

    def of(params: Any, key: Array) -> Array:
        given = {
            "loc": params["z"]["loc"],
            "root": blocks.root_of(params["z"]),
            "b": params.get("b"),
        }
        return elbo.loss(key, given, program, guide)

    return of


def ridge(numpyro: Any, dist: Any, model: Model, _: Any) -> tuple[Program, Callable[[Any], None]]:
    x, y = model.data

    def program() -> None:
        z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        w = numpyro.sample("w", dist.Normal(jnp.zeros(x.shape[1]), jnp.exp(z[1])).to_event(1))
        numpyro.sample("y", dist.Normal(x @ w, jnp.exp(z[0])).to_event(1), obs=y)

    def draw(b):
        return numpyro.sample("w", dist.MultivariateNormal(b["loc"], scale_tril=blocks.root_of(b)))

    return program, draw


def counts(numpyro: Any, dist: Any, model: Model, _: Any) -> tuple[Program, Callable[[Any], None]]:
    x = model.data

    def program() -> None:
        z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        with numpyro.plate("units", len(x)):
            rate = numpyro.sample("rate", dist.Gamma(jnp.exp(z[0]), jnp.exp(z[1])))
            numpyro.sample("x", dist.Poisson(rate), obs=x)

    def draw(b: Any) -> None:
        with numpyro.plate("units", len(x)):
            numpyro.sample("rate", dist.Gamma(jnp.exp(b["log_a"]), jnp.exp(b["log_b"])))

    return program, draw


def mixture(
    numpyro: Any, dist: Any, model: Model, how: Any
) -> tuple[Program, Callable[[Any], None]]:
    x = model.data

    def program() -> None:
        z = numpyro.sample("z", dist.Normal(blocks.PRIOR, 1.0).to_event(1))
        with numpyro.plate("data", len(x)):
            c = numpyro.sample(
                "c", dist.Categorical(logits=jnp.stack([jnp.zeros(()), z[3]])), **how()
            )
            numpyro.sample("x", dist.Normal(z[:2][c], jnp.exp(z[2])), obs=x)

    def draw(b: Any) -> None:
        with numpyro.plate("data", len(x)):
            numpyro.sample("c", dist.Categorical(logits=b["logits"]))

    return program, draw


def _chain(
    numpyro: Any, dist: Any, steps: int, how: Any, seen: Callable[[int, Any], None]
) -> tuple[Program, Callable[[Any], None]]:
    """A chain written out step by step, as TraceEnum_ELBO and TraceGraph_ELBO both read it."""

    def walk() -> None:
        markov = peer("numpyro.contrib.funsor").markov if how() else lambda times: times
        c: Any = None
        for t in markov(range(steps)):
            logits = blocks.START if c is None else blocks.STAY[c]
            c = numpyro.sample(f"c{t}", dist.Categorical(logits=logits), **how())
            seen(t, c)

    def draw(b: Any) -> None:
        for t in range(steps):
            numpyro.sample(f"c{t}", dist.Categorical(logits=b["logits"][t]))

    return walk, draw


def hidden(
    numpyro: Any, dist: Any, model: Model, how: Any
) -> tuple[Program, Callable[[Any], None]]:
    x, held = model.data, {}
    seen = lambda t, c: numpyro.sample(f"x{t}", dist.Normal(held["z"][c], blocks.SPREAD), obs=x[t])  # noqa: E731
    walk, draw = _chain(numpyro, dist, len(x), how, seen)

    def program() -> None:
        held["z"] = numpyro.sample("z", dist.Normal(blocks.PRIOR[:2], 1.0).to_event(1))
        walk()

    return program, draw


def switching(
    numpyro: Any, dist: Any, model: Model, how: Any
) -> tuple[Program, Callable[[Any], None]]:
    x, held = model.data, {}

    def seen(t: int, c: Any) -> None:
        before = held["z"][t - 1] if t else 0.0
        numpyro.sample(
            f"z{t}", dist.Normal(before * blocks.DECAY[c], blocks.NOISE[c]), obs=held["z"][t]
        )

    walk, draw = _chain(numpyro, dist, len(x), how, seen)

    def program() -> None:
        flat = dist.ImproperUniform(
            dist.constraints.real_vector, (), (len(x),)
        )  # their density is that of the steps
        held["z"] = numpyro.sample("z", flat)
        numpyro.sample("x", dist.Normal(held["z"], blocks.SEEN).to_event(1), obs=x)
        walk()

    return program, draw
