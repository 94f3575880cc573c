"""What carries the derivative of q to its draws, and what support stays where it is: read from jaxprs, or refused."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vijax import checks, dataflow, types

NOISE = dataflow.Flow(smooth=frozenset({"noise"}))
PARAMETER = dataflow.Flow(smooth=frozenset({"parameter"}))
DRAW = dataflow.Flow(smooth=frozenset({"draw"}))
CURE = (
    "use gradients.vimco or gradients.score, or gradients.auto to choose for each leaf (for mixtures, draws.stratified)"
)


class Path(NamedTuple):
    """What a sampler's jaxpr says of one leaf: what breaks its path derivative, if anything, and whether it is a
    continuous draw that parameters reach.
    """

    broken: str | None
    parametric: bool


def require(q: Any, draw: types.Draw, key: Any, estimator: str) -> dict[str, Path]:
    """Refuse a q whose draws do not carry the whole derivative of its parameters; return the paths of its leaves.

    Decided from the sampler's jaxpr: a parameter that reaches a leaf through a comparison, argmax, rounding, cast or
    index is missing from that leaf's derivative, and a leaf that noise reaches only so is discrete.
    """
    found = of(q, draw, key)
    for leaf, path in found.items():
        if path.broken is not None:
            raise ValueError(
                f"{estimator} needs draws that carry the derivative of q, and leaf '{leaf}' {path.broken}; {CURE}."
            )
    return found


def of(q: Any, draw: types.Draw, key: Any) -> dict[str, Path]:
    """Return the path of each leaf of q's draws."""
    if isinstance(q, types.Joint):
        return _flat(of_joint(q, key))
    closed, shape = dataflow.trace(lambda k: draw.sample(jax.tree.map(lambda s: s[0], draw.seeds(k, 2)), q)[0], key)
    return _paths(q, shape, dataflow.analyse(closed, [NOISE], PARAMETER))


def of_joint(q: types.Joint, key: Any) -> dict[Any, dict[str, Path]]:
    """Return the paths of each conditional; an earlier leaf counts as a parameter where it carries a derivative."""
    return _walk(lambda: q, q.names(), key, [], [])


def _walk(get: Any, names: list[Any], key: Any, given: list[Any], flows: list[dataflow.Flow]) -> dict[Any, Any]:
    """Look at each conditional of the Joint `get(*given)` in turn, and into those that are Joints themselves."""
    earlier: dict[Any, Any] = {}
    flows_of: dict[Any, list[dataflow.Flow]] = {}
    found: dict[Any, dict[str, Path]] = {}
    for name in names:
        parts: list[Any] = []

        def part(*given: Any, name: Any = name) -> Any:
            return get(*given[:-1]).conditional(name, given[-1])

        def draw(key: Any, *given: Any, part: Any = part, parts: list[Any] = parts) -> Any:
            parts.append(part(*given))
            return parts[-1].sample_and_log_prob(seed=key, sample_shape=())[0]

        now = [*given, dict(earlier)]
        inputs = [*flows, *(f for other in sorted(earlier) for f in flows_of[other])]  # as JAX flattens a dict
        closed, shape = dataflow.trace(draw, key, *now)
        if isinstance(parts[-1], types.Joint):
            found[name] = _flat(_walk(part, parts[-1].names(), key, now, inputs))
        else:
            found[name] = _paths(parts[-1], shape, dataflow.analyse(closed, [NOISE, *inputs], PARAMETER))
        carried = all(path.broken is None for path in found[name].values())
        flows_of[name] = [PARAMETER if carried else dataflow.Flow()] * len(jax.tree.leaves(shape))
        earlier[name] = shape
    return found


def _order(z: Any) -> list[Any]:
    """Return the names of a Joint's draw in the order in which JAX flattens it."""
    return sorted(z) if isinstance(z, dict) else list(range(len(z)))


def _flat(found: dict[Any, dict[str, Path]]) -> dict[str, Path]:
    parts = found.items()
    return {str(n) if leaf == "z" else f"{n}.{leaf}": path for n, leaves in parts for leaf, path in leaves.items()}


def _paths(q: Any, shape: Any, flows: list[dataflow.Flow]) -> dict[str, Path]:
    declared = getattr(q, "reparameterized", None)
    found = {}
    for (name, leaf), flow in zip(checks.named_leaves(shape), flows, strict=True):
        continuous = jnp.issubdtype(leaf.dtype, jnp.inexact) and ("noise" in flow.smooth or bool(declared))
        reached = continuous and "parameter" in flow.sources()
        found[name] = Path(_broken(leaf, flow, declared=declared), reached)
    return found


def _broken(leaf: Any, flow: dataflow.Flow, *, declared: bool | None) -> str | None:
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return f"is discrete ({leaf.dtype})"
    if declared is not None:
        return None if declared else "comes from a q that declares reparameterized = False"
    if flow.opaque:
        return (
            f"comes through {min(flow.opaque)}, which cannot be analysed: declare q.reparameterized = True if draws "
            "are differentiable in its parameters, False otherwise"
        )
    if how := flow.broken_by("parameter"):
        return (
            f"depends on a parameter through '{how}', whose derivative is zero or missing (if the draw is continuous "
            "there, declare it: families.adapt(q, reparameterized=True))"
        )
    if "noise" not in flow.smooth and (how := flow.broken_by("noise")):
        return f"is discrete: its noise arrives only through '{how}'"
    return None


def support(log_prob: Any, leaves: dict[str, Path], estimator: str, given: Any = ()) -> None:
    """Refuse a q whose support moves with its parameters: dreg drops, and score uses, a score of mean zero.

    Its signs: log_prob is -inf where the draw crosses a parameter, or does not depend on a parametric leaf at all.
    `given`: the flows of further inputs of log_prob, after the leaves.
    """
    draws = [dataflow.Flow(smooth=frozenset({"draw", leaf})) for leaf in leaves]
    flow = dataflow.merge(flows := dataflow.analyse(log_prob, [*draws, *given], PARAMETER))
    uniform = [leaf for leaf, path in leaves.items() if path.parametric and leaf not in flow.sources()]
    if uniform or any("log" in f.cuts for f in flows):
        raise ValueError(
            f"{estimator} takes the mean of q's score for zero, which it is only while q's support is fixed; here "
            + (f"leaf '{uniform[0]}' is uniform on a set" if uniform else "log_prob is -inf on a set")
            + " that depends on q's parameters. Use gradients.reparam or gradients.auto, or a q of fixed support."
        )


def continuous_support(q: Any, key: Any, draw: types.Draw, estimator: str) -> None:
    """Apply `support` to a q that a score estimator draws from, where any of it is continuous."""
    found = of(q, draw, key)
    if any(path.parametric for path in found.values()):
        z = jax.eval_shape(lambda k: q.sample_and_log_prob(seed=k, sample_shape=())[0], key)
        support(dataflow.trace(q.log_prob, z)[0], found, estimator)


def scored_leaves(q: types.Joint, key: Any) -> set[Any]:
    """Return the leaves of a Joint that need a score: those without a path, and earlier ones that reach their density
    through a jump, which the density's own derivative would miss.
    """
    found = of_joint(q, key)
    scored = {name for name, leaves in found.items() if any(path.broken is not None for path in leaves.values())}
    z = jax.eval_shape(lambda k: q.sample_and_log_prob(seed=k)[0], key)
    names = q.names()
    while True:
        more = set()
        for name in scored:
            earlier = [other for other in names[: names.index(name)] if other not in scored]
            for other in earlier:

                def density(leaf: Any, z: Any, name: Any = name, other: Any = other) -> Any:
                    before = {n: leaf if n == other else z[n] for n in names[: names.index(name)]}
                    return q.conditional(name, before).log_prob(z[name])

                closed, _ = dataflow.trace(density, z[other], z)
                inputs = [DRAW] * len(jax.tree.leaves(z[other])) + [dataflow.Flow()] * len(jax.tree.leaves(z))
                if any(f.broken_by("draw") for f in dataflow.analyse(closed, inputs, dataflow.Flow())):
                    more.add(other)
        if not more:
            break
        scored |= more
    for name in scored:
        if any(path.parametric for path in found[name].values()):

            def own(leaf: Any, z: Any, name: Any = name) -> Any:
                return q.conditional(name, {n: z[n] for n in names[: names.index(name)]}).log_prob(leaf)

            # Earlier leaves that are not stopped carry the parameters here; in the order of JAX's flattening.
            given = {n: dataflow.Flow() if n in scored else PARAMETER for n in names}
            flows = [given[n] for n in _order(z) for _ in jax.tree.leaves(z[n])]
            support(dataflow.trace(own, z[name], z)[0], found[name], "auto", flows)
    return scored
