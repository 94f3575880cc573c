"""Every one-dimensional distribution of distrax, NumPyro and TFP, under every estimator: right, or refused."""

import importlib
import inspect
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun
from scipy.special import ndtri

import vijax as vj
from benchmarks._report import Options, Row, row, write
from benchmarks._univariate import Case, Truth, mapped, moves, target, truth

G, ELBO, IWAE = vj.gradients, vj.bounds.elbo, vj.bounds.iwae
ESTIMATORS = {
    "reparam": G.reparam(ELBO),
    "dreg": G.dreg(ELBO),
    "split": G.split(model=ELBO, q=ELBO),
    "score": G.score(ELBO),
    "vimco": G.vimco(ELBO),
    "auto": G.auto(ELBO),
}
# Of these only whether they refuse is asked: their truth is not the ELBO's.
ADMISSION = {
    "dreg(iwae)": G.dreg(IWAE),
    "vimco(iwae)": G.vimco(IWAE),
    "fixed": G.fixed(vj.bounds.log_variance),
    "wake": G.wake(IWAE),
}
NEEDS_NO_PATH = ("score", "vimco", "vimco(iwae)", "fixed", "wake")
LIBRARIES = ("distrax", "numpyro", "tfp")
K, KEYS, BATCH = 2, (20_000, 4_000), 4_000
KEPT = Path("out") / "supports"
COMPARISONS = 10_000  # of all: a false alarm in any has a probability of at most 1e-6
Z = float(-ndtri(1e-6 / (2 * COMPARISONS)))
RIGHT, PATH, SUPPORT, WRONG = "right", "refused: path", "refused: support", "WRONG"
LIBRARY = "library"  # the library's own fault: what it draws, its density, or the derivative of it


class Verdict(NamedTuple):
    """Fields: one of the words above, the largest distance in standard errors, and a note."""

    word: str
    z: float | None = None
    note: str = ""


def _first_line(error: Exception) -> str:
    """Return what an error says, without the places that it names further down."""
    said = str(error).splitlines()
    return f"{type(error).__name__}: {said[0][:300] if said else ''}"


def library(name: str) -> Any:
    return importlib.import_module(f"benchmarks._cases_{name}")


def cases(name: str) -> list[Case]:
    """Return a library's cases, each in its own parameters and under an affine map."""
    found = library(name)
    return [*found.CASES, *(mapped(case, found.affine) for case in found.CASES)]


def unlisted(name: str) -> list[str]:
    """Return the classes of a library that the table neither tries nor says why it does not."""
    found = library(name)
    module = {"distrax": "distrax", "numpyro": "numpyro.distributions"}.get(
        name, "tensorflow_probability.substrates.jax.distributions"
    )
    tried = {case.name.split(" ")[1].rstrip(",") for case in found.CASES} | set(found.OTHERS)
    return [
        n
        for n, value in vars(importlib.import_module(module)).items()
        if inspect.isclass(value) and issubclass(value, found.BASE) and n not in tried
    ]


# --- one case


def refusal(message: str) -> str:
    return SUPPORT if "mean of q's score" in message else PATH


def admitted(case: Case, estimators: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Verdict]]:
    """Return the gradients, as functions of the parameters and a key, and the refusals."""
    functions, refused, seen = {}, {}, {}
    key = jax.random.key(0)
    for name, objective in estimators.items():

        def value(theta: Any, key: Any, objective: Any = objective) -> Any:
            return objective(key, target, case.build(theta), num_samples=K).value

        try:
            closed = jax.make_jaxpr(jax.value_and_grad(value))(case.theta, key)
            # Two estimators may come to the same program: auto is another one, for a single leaf.
            functions[name] = seen.setdefault(str(closed), jaxpr_as_fun(closed))
        except (ValueError, TypeError) as error:
            message = str(error)
            ours = "gradients." in message or "families.adapt" in message
            refused[name] = Verdict(
                refusal(message) if ours else "error", note=message.splitlines()[0][:300]
            )
        except Exception as error:  # of the library's own making
            refused[name] = Verdict("error", note=_first_line(error))
    return functions, refused


def measured(case: Case, functions: dict[str, Any], keys: int, seed: int = 0) -> dict[str, Any]:
    """Return the mean and standard error of the value and the gradient of each estimator."""
    theta = case.theta
    different = {
        n: f for i, (n, f) in enumerate(functions.items()) if f not in [*functions.values()][:i]
    }

    @jax.jit
    def sums(seeds: Any) -> Any:
        found = jax.vmap(lambda key: {n: f(theta, key) for n, f in different.items()})(seeds)
        return jax.tree.map(lambda x: (jnp.sum(x, 0), jnp.sum(x**2, 0)), found)

    batch = min(BATCH, keys)
    seeds = jax.random.split(jax.random.key(seed), (keys // batch, batch))
    parts = [sums(s) for s in seeds]
    total = jax.tree.map(lambda *x: np.sum(np.stack([*x]), 0), *parts)
    n = keys // batch * batch
    moments = {
        name: [
            (first / n, np.sqrt(np.maximum(second / n - (first / n) ** 2, 0) / n))
            for first, second in pairs
        ]
        for name, pairs in total.items()
    }
    return {n: moments[m] for n, f in functions.items() for m, g in different.items() if f is g}


def judged(case: Case, exact: Truth, found: dict[str, Any]) -> dict[str, Verdict]:
    """Compare means with the truth, in standard errors."""

    def distance(at: Any, of: Any, error: Any) -> float:
        mean, se = at
        far = np.max(np.abs(mean - of) / np.hypot(se, np.asarray(error) + 1e-7))
        return float(far) if np.isfinite(far) else float("inf")

    verdicts = {}
    for name, (value, slope) in found.items():
        z, z_value = distance(slope, exact.gradient, exact.error), distance(value, exact.value, 0)
        note = f"mean {np.round(slope[0], 4)}, truth {np.round(exact.gradient, 4)}"
        if z <= Z:
            verdicts[name] = Verdict(RIGHT, z)
        elif abs(exact.mass - 1) > 1e-6:
            verdicts[name] = Verdict(LIBRARY, z, f"its density has mass {exact.mass}; {note}")
        elif z_value > Z:
            verdicts[name] = Verdict(LIBRARY, z, f"its draws are not of its density; {note}")
        elif not right_derivative(case):
            verdicts[name] = Verdict(LIBRARY, z, f"its log_prob has a wrong derivative; {note}")
        else:
            verdicts[name] = Verdict(WRONG, z, note)
    return verdicts


def right_derivative(case: Case, step: float = 1e-5) -> bool:
    """Whether a library's own derivative of log_prob is that of its values, at most of 15 draws."""
    theta = case.theta
    seeds = jax.random.split(jax.random.key(1), 15)
    q = case.build(theta)
    z = jax.vmap(lambda key: q.sample_and_log_prob(seed=key)[0])(seeds)

    @jax.jit
    def log_q(theta: Any) -> Any:
        return jax.vmap(case.build(theta).log_prob)(z)

    found = np.asarray(jax.jit(jax.jacfwd(log_q))(theta))
    steps = step * np.eye(len(theta))
    exact = np.stack([(log_q(theta + h) - log_q(theta - h)) / (2 * step) for h in steps], -1)
    return bool(np.all(np.median(np.abs(found - exact), 0) < 1e-4))


def check(case: Case, keys: int, *, only: dict[str, Any] = ESTIMATORS) -> dict[str, Verdict]:
    """Return the verdict on each estimator."""
    functions, verdicts = admitted(case, only)
    if functions:
        exact = truth(case)
        verdicts |= judged(case, exact, measured(case, functions, keys))
    return verdicts


def unmet(case: Case, verdicts: dict[str, Verdict]) -> list[str]:
    """Return the estimators that are wrong, or refuse a fixed support."""
    fixed = not moves(case)

    def bad(name: str, verdict: Verdict) -> bool:
        if verdict.word == WRONG:
            return True
        if not fixed:
            return False
        return verdict.word == SUPPORT or (verdict.word == PATH and name in NEEDS_NO_PATH)

    return [name for name, verdict in verdicts.items() if bad(name, verdict)]


# --- all


def run(options: Options) -> Iterator[Row]:
    """Yield a row for each case. What is in `out/supports` was run before: delete it to begin anew."""
    jax.config.update("jax_enable_x64", True)
    for name in LIBRARIES:
        yield from rows(name, KEYS[options.quick])


def rows(name: str, keys: int) -> Iterator[Row]:
    """Yield the rows of a library, each kept in a file as soon as it is known."""
    for missing in unlisted(name):
        yield row(f"{name} {missing}", "classes that are not listed", 1.0, "class", bar=0)
    for cls, why in library(name).OTHERS.items():
        yield row(f"{name} {cls}", "not tried", None, "", note=why)
    path = KEPT / f"{name}-{keys}.json"
    known = {r["name"]: r for r in json.loads(path.read_text())} if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    for case in cases(name):
        if case.name not in known:
            known[case.name] = _row(case, keys)
            write([*known.values()], path)
        yield known[case.name]


def _row(case: Case, keys: int) -> Row:
    start = time.time()
    try:
        verdicts = check(case, keys)
        # These differ from the others by their bound alone.
        verdicts |= admitted(case, ADMISSION)[1] if ", shifted" not in case.name else {}
    except Exception as error:
        note = _first_line(error)
        return row(case.name, "cannot be built", None, "", note=note)
    if all(v.word == "error" for v in verdicts.values()):
        return row(case.name, "cannot be built", None, "", note=next(iter(verdicts.values())).note)
    bad = unmet(case, verdicts)
    told = [n for n, v in verdicts.items() if n in bad or v.word in (LIBRARY, "error")]
    zs = [v.z for v in verdicts.values() if v.z is not None]
    return row(
        case.name,
        "moving support" if moves(case) else "fixed support",
        float(len(bad)),
        "unmet",
        bar=0,
        verdicts={n: v.word for n, v in verdicts.items()},
        largest_z=max(zs, default=None),
        seconds=round(time.time() - start, 1),
        note="; ".join(
            [
                ", ".join(f"{n} {v.word}" for n, v in verdicts.items()),
                *(f"{n}: {verdicts[n].note}" for n in told),
            ]
        ),
    )
