"""Does a fit stop when it has arrived, and never before? Natural gradients, Adam at a settling rate, and restarts.

Each fit is run three times: under the default stopping rule, for all of its steps, and for ten times as many. It has
arrived where the mean and the standard deviation of every latent are within `NEAR` of where ten times the steps lead,
in units of the standard deviation there. A fit that is in the file of --json already is not run again. Needs the folder
`posteriordb` in --data or VIJAX_DATA.
"""

import itertools
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.flatten_util import ravel_pytree

import vijax as vj
from benchmarks import _posteriors
from benchmarks._report import Options, Row, failed, row

NEAR, LONGER, SEEDS = 0.05, 10, 3
STARTS = 4  # of restarts, scattered by half a unit
QUICK = ("kidiq-kidscore_momiq",)
SLOW = ("garch-garch11", "diamonds-diamonds")  # last
STOPS = vj.fitting.stationary()
FIT = "steps when it stopped"


class Method(NamedTuple):
    """A way to fit: the rule of a log joint, the family of its params, its steps, and the number of starts."""

    rule: Callable[[Callable[..., Array]], vj.types.Rule]
    family: vj.types.Family
    steps: int
    starts: int = 1


def settling(count: Array) -> Array:
    """Robbins and Monro's: .1 at first, falling as the root of the steps."""
    return 0.1 / jnp.sqrt(1 + count / 100)


def adam(family: vj.types.Family) -> Callable[[Callable[..., Array]], vj.types.Rule]:
    objective = vj.gradients.dreg(vj.bounds.elbo)

    def rule(log_joint: Callable[..., Array]) -> vj.types.Rule:
        def estimate(key: Array, params: Any) -> vj.types.Estimate:
            return objective(key, log_joint, family.dist(params), num_samples=8)

        return vj.fitting.ascent(estimate, optax.adam(settling))

    return rule


def newton(log_joint: Callable[..., Array]) -> vj.types.Rule:
    return vj.updates.natural_gradient(log_joint, num_samples=16, curvature=vj.updates.hessian)


FULL, MEAN = vj.families.full_rank(), vj.families.mean_field()
METHODS = {
    "full-rank, natural gradient": Method(vj.updates.natural_gradient, FULL, 1000),
    "mean-field, natural gradient": Method(vj.updates.natural_gradient, MEAN, 1000),
    "mean-field, Adam": Method(adam(MEAN), MEAN, 10_000),
    "full-rank, natural gradient, restarts": Method(
        vj.updates.natural_gradient, FULL, 1000, STARTS
    ),
    "mean-field, natural gradient, hessian": Method(newton, MEAN, 1000),
    "full-rank, Adam": Method(adam(FULL), FULL, 10_000),
}


def apart(a: Any, b: Any, family: vj.types.Family) -> float:
    """Return how far two q's are apart, at the latent furthest off, in sds of the second."""

    def moments(params: Any) -> tuple[Array, Array]:
        q = family.dist(params)
        return ravel_pytree(q.loc)[0], jnp.sqrt(ravel_pytree(q.variance())[0])

    (mean, sd), (mean_far, sd_far) = moments(a), moments(b)
    off = jnp.concatenate([mean - mean_far, sd - sd_far]) / jnp.tile(sd_far, 2)
    return float(jnp.max(jnp.abs(off)))


def once(method: Method, rule: vj.types.Rule, like: Any, seed: int, **options: Any) -> Any:
    """Return the fit, its answer, and the steps that it made."""
    key = jax.random.key(seed)
    given = {"reports": (), **options}
    if method.starts == 1:
        found = vj.fitting.fit(key, rule, rule.init(method.family.init(key, like)), **given)
        return found.average, found
    vector, unravel = ravel_pytree(like)
    moves = 0.5 * jax.random.normal(key, (method.starts, vector.size), vector.dtype)
    starts = jax.vmap(lambda move: method.family.init(key, unravel(vector + move)))(moves)
    several = vj.fitting.restarts(key, rule, jax.vmap(rule.init)(starts), **given)
    return several.average, several.fit


def measure(name: str, method: Method, load: Callable[[], Any], earlier: set[int]) -> Iterator[Row]:
    """Yield a row for each seed that is not known yet."""
    if earlier >= set(range(SEEDS)):
        return
    posterior = load()
    rule = method.rule(posterior.target.log_joint)
    for seed in sorted(set(range(SEEDS)) - earlier):
        began = time.perf_counter()
        run = lambda steps, stop, seed=seed: once(  # noqa: E731
            method, rule, posterior.start, seed, steps=steps, stop=stop
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a fit that has not arrived says so
            stopped_at, found = run(method.steps, STOPS)
            at_end, _ = run(method.steps, None)
            far, _ = run(LONGER * method.steps, None)
        fired = found.stopped.startswith("stationary")
        end, stop = (apart(at, far, method.family) for at in (at_end, stopped_at))
        yield row(
            name,
            f"{posterior.name}: {FIT}",
            found.steps if fired else None,
            "steps",
            posterior=posterior.name,
            seed=seed,
            fired=fired,
            arrived=end <= NEAR,
            early=fired and not stop <= NEAR,
            at_end=end,
            at_stop=stop if fired else None,
            seconds=time.perf_counter() - began,
            note=f"seed {seed}: {end:.3f} sd off at the end"
            + (f", {stop:.3f} where it stopped" if fired else f"; {found.stopped[:150]}"),
        )


def counts(rows: list[Row]) -> Iterator[Row]:
    for name in (*METHODS, "all"):
        own = [r for r in rows if name in (r["name"], "all")]
        arrived = [r for r in own if r["arrived"]]
        missed = sum(not r["fired"] for r in arrived)
        if own:
            note = f"of {len(arrived)} that arrived, of {len(own)}"
            yield row(name, "arrived and not stopped", missed, "", bar=len(arrived) / 4, note=note)
            early = [r for r in own if r["early"]]
            note = f"of {sum(r['fired'] for r in own)} that stopped: " + ", ".join(
                f"{r['posterior']} {r['at_stop']:.3f} sd" for r in early
            )
            yield row(name, "stopped before", len(early), "", bar=0, note=note)


def known(r: Row) -> bool:
    """Whether a row of an earlier run is a fit, not to be run again."""
    return FIT in r["metric"] and "seed" in r


def run(options: Options) -> Iterator[Row]:
    def rows(root: Path) -> Iterator[Row]:
        seen: list[Row] = []
        names = [n for n in _posteriors.MODELS if n not in SLOW], SLOW
        for some in [QUICK] if options.quick else names:
            for (name, method), posterior in itertools.product(METHODS.items(), some):
                is_this = lambda r, n=name, p=posterior: (r["name"], r["posterior"]) == (n, p)  # noqa: E731
                own = list(filter(is_this, options.earlier))
                yield from own
                seen += own
                load = partial(_posteriors.load, root, posterior)
                try:
                    for found in measure(name, method, load, {r["seed"] for r in own}):
                        seen.append(found)
                        yield found
                except Exception as why:
                    yield failed(name, posterior, why)
        yield from counts(seen)

    yield from _posteriors.over(options, rows)
