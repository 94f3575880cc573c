"""What integrating a block of latents out brings and costs: five models, full against collapsed, beside NumPyro.

The collapsed target's q(z) is the marginal of the full target's q(z, b), never refitted; see `_blocks` for both. After
the models come the cost of `collapse_gaussian` beside the closed form by hand, and of Kalman filters by length.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax import Array
from scipy.special import logsumexp

import vijax as vj
from benchmarks import _blocks, _integrals, _measure, _programs
from benchmarks._peers import Missing
from benchmarks._report import Options, Row, failed, missing, ratio_of, row

KS, DRAWS = (1, 8, 64), 8  # draws of a bound; of a gradient
FULL, COLLAPSED, CONTROL = "full", "collapsed", "full, A/A"
GRAPH, ENUM = "numpyro TraceGraph_ELBO, full", "numpyro TraceEnum_ELBO, summed"
SURE = 4.0  # standard errors: what a theorem forbids is seen as broken beyond them

Step = Callable[[Any, Array], Array]


def log_weights(model: _blocks.Model, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return n log-weights of (z, b) and n of z, of the same draws of z."""
    q = vj.types.Joint(
        {"z": _blocks.NORMAL.dist(model.params["z"]), "b": model.block(model.params["b"])}
    )

    def one(key: Array) -> tuple[Array, Array]:
        drawn, log_q = q.sample_and_log_prob(seed=key)
        alone = _blocks.NORMAL.dist(model.params["z"]).log_prob(drawn["z"])
        return model.full(drawn["z"], drawn["b"]) - log_q, model.collapsed(drawn["z"]) - alone

    keys = jax.random.split(jax.random.key(0), n)
    full, collapsed = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=512))(keys)
    return np.asarray(full, np.float64), np.asarray(collapsed, np.float64)


def weights(model: _blocks.Model, options: Options) -> Iterator[Row]:
    """Bounds and variances, and whether the two theorems hold of them."""
    n = 2**13 if options.quick else 2**18
    exact = model.exact()
    yield row("log p(x)", f"{model.name}: exact", exact, "nats")
    full, collapsed = (log_w - exact for log_w in log_weights(model, n))
    for k in KS:
        both = [logsumexp(log_w.reshape(-1, k), 1) - np.log(k) for log_w in (full, collapsed)]
        metric = f"{model.name}: gap of the bound of K = {k}"
        gaps = [-float(b.mean()) for b in both]
        for name, gap, b in zip((FULL, COLLAPSED), gaps, both, strict=True):
            yield row(
                name,
                metric,
                gap,
                "nats",
                FULL,
                ratio_of(gap, gaps[0]),
                se=float(b.std() / len(b) ** 0.5),
                draws=n,
            )
        yield _ordered("full's less the collapsed's", metric, both[0] - both[1], "nats")
    for metric, of in (("w / p(x)", np.exp), ("log w", np.asarray)):
        metric = f"{model.name}: variance of {metric}"
        variances = [float(of(log_w).var()) for log_w in (full, collapsed)]
        for name, value in zip((FULL, COLLAPSED), variances, strict=True):
            unit = "" if of is np.exp else "nats²"
            yield row(name, metric, value, unit, FULL, ratio_of(value, variances[0]), draws=n)
        if of is np.exp:
            yield _ordered(
                "E w² of the collapsed less the full's",
                metric,
                np.exp(2 * collapsed) - np.exp(2 * full),
                "",
            )
    for name, log_w in (
        (FULL, full),
        (COLLAPSED, collapsed),
    ):  # the full one knows nothing of what was integrated
        w = np.exp(log_w)
        off = abs(w.mean() - 1) / (w.std() / n**0.5)
        yield row(
            name,
            f"{model.name}: mean of w / p(x), from 1 in standard errors",
            float(off),
            "se",
            bar=6.0,
        )


def _ordered(name: str, metric: str, difference: np.ndarray, unit: str) -> Row:
    """A mean that is at most 0 by a theorem, judged with its noise."""
    mean, error = float(difference.mean()), float(difference.std() / len(difference) ** 0.5)
    note = "as it must" if mean <= 0 else f"{mean / error:.1f} standard errors above"
    return row(
        name, f"{metric}; the theorem: at most 0", mean, unit, bar=SURE * error, note=note, se=error
    )


def steps(model: _blocks.Model) -> dict[str, tuple[Step, Any]]:
    """Return the ELBO of both targets, of DRAWS draws, as functions of q's parameters and a key."""
    g, elbo = vj.gradients, vj.bounds.elbo
    drawn = g.auto(elbo) if model.discrete else g.reparam(elbo)

    def full(params: Any, key: Array) -> Array:
        q = {"z": _blocks.NORMAL.dist(params["z"]), "b": model.block(params["b"])}
        return drawn(
            key, lambda latents: model.full(latents["z"], latents["b"]), q, num_samples=DRAWS
        ).value

    def collapsed(params: Any, key: Array) -> Array:
        q = _blocks.NORMAL.dist(params["z"])
        return g.reparam(elbo)(key, model.collapsed, q, num_samples=DRAWS).value

    return {FULL: (full, model.params), COLLAPSED: (collapsed, {"z": model.params["z"]})}


def gradients(kind: str, model: _blocks.Model, options: Options) -> Iterator[Row]:
    """Variance of the gradient in q(z)'s parameters, and what a step costs."""
    found = steps(model)
    for name, summed in ((GRAPH, False), (ENUM, True)):
        try:
            of = _programs.loss(kind, model, summed=summed, particles=DRAWS)
        except Missing as why:
            yield missing(name, f"{model.name}: a step", why)
        else:
            params = found[COLLAPSED if summed else FULL][1]
            found[name] = (lambda params, key, of=of: -of(params, key), params)
    n = 400 if options.quick else 5_000
    keys = list(jax.random.split(jax.random.key(1), n))
    ready = lambda step, params: jax.jit(jax.value_and_grad(step)).lower(params, keys[0]).compile()  # noqa: E731
    compiled = {name: ready(step, params) for name, (step, params) in found.items()}
    metric = f"{model.name}: variance of the gradient in q(z), summed, {DRAWS} draws"
    moments: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, (_, params) in found.items():
        seen = [jax.tree.leaves(compiled[name](params, key)[1]["z"]) for key in keys]
        slopes = np.stack(
            [np.concatenate([np.ravel(leaf) for leaf in leaves]) for leaves in seen]
        ).astype(np.float64)
        moments[name] = slopes.mean(0), slopes.var(0, ddof=1)
        value, base = (float(moments[of][1].sum()) for of in (name, FULL))
        yield row(name, metric, value, "nats²", FULL, ratio_of(value, base), draws=n)
    for theirs, ours in (
        (GRAPH, FULL),
        (ENUM, COLLAPSED),
    ):  # the same model, the same q: the same gradient on average
        if theirs in moments:
            (mean, var), (other, spread) = moments[theirs], moments[ours]
            off = float(np.max(np.abs(mean - other) / np.sqrt((var + spread) / n)))
            yield row(
                theirs, f"{metric}; its mean from ours, in standard errors", off, "se", bar=6.0
            )
    calls = {
        name: functools.partial(compiled[name], params, keys[0])
        for name, (_, params) in found.items()
    }
    calls[CONTROL] = calls[FULL]
    costs = {name: _measure.cost(program) for name, program in compiled.items()}
    rounds = 5 if options.quick else 25
    timings = _measure.paired(calls, FULL, rounds, control=CONTROL, least=5e-3, warm=2)
    for name in found:
        yield timings.row(name, f"{model.name}: time of a step", FULL)
    for what, unit in (("flops", "FLOP"), ("bytes accessed", "B")):
        metric = f"{model.name}: {what} of a step by XLA, loops' bodies once"
        for name in found:
            value, base = costs[name].get(what), costs[FULL].get(what)
            yield row(name, metric, value, unit, FULL, ratio_of(value, base))


def run(options: Options) -> Iterator[Row]:
    for kind, make in _blocks.MODELS.items():
        try:
            model = make()
            yield from weights(model, options)
            yield from gradients(kind, model, options)
        except Exception as why:
            yield failed(kind, "measured", why)
    yield from _integrals.rows(options)
