"""The posteriors of posteriordb as log-densities over named latents, with their constraints and reference draws.

Each is written from its Stan definition. A folder of posteriordb holds data.json and draws.json.zip of each.
"""

import json
import math
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import gammaln
from jax.scipy.stats import beta, cauchy, gamma, norm

import vijax as vj
from benchmarks._report import Options, Row, missing

Data = dict[str, Any]
Latents = dict[str, Array]


class Posterior(NamedTuple):
    """A log-density and what it is known to give.

    Fields:
        name: posteriordb's.
        target: over free numbers, with the way to the latents and back.
        start: free numbers to start from.
        report: latents -> the quantities that reference draws are of.
        reference: those draws, {name: [n, ...]}.
    """

    name: str
    target: vj.targets.Transformed
    start: Latents
    report: Callable[[Latents], Latents]
    reference: dict[str, np.ndarray]


class Model(NamedTuple):
    """A posterior before it has seen data: `log_joint(data)`, the constraints and a start among the latents."""

    log_joint: Callable[[Data], Callable[[Latents], Array]]
    constraints: Callable[[Data], dict[str, Any]]
    start: Callable[[Data], Latents]
    report: Callable[[Data], Callable[[Latents], Latents]] = lambda data: lambda z: z


POSITIVE = vj.targets.constraints.positive
MIXTURE = "low_dim_gauss_mix-low_dim_gauss_mix"
CAUCHY = math.log(2)  # what half of a symmetric prior leaves out


def half_cauchy(x: Array, scale: float) -> Array:
    return cauchy.logpdf(x, 0, scale) + CAUCHY


def student_t(x: Array, nu: float, loc: float, scale: float) -> Array:
    constant = (
        math.lgamma((nu + 1) / 2)
        - math.lgamma(nu / 2)
        - 0.5 * math.log(nu * math.pi)
        - math.log(scale)
    )
    return constant - (nu + 1) / 2 * jnp.log1p(((x - loc) / scale) ** 2 / nu)


def regression(
    design: Callable[[Data], tuple[Array, Array]], *, prior: bool = False, cauchy: bool = False
) -> Model:
    """A linear regression with flat priors, or normal(0, 10) ones, or a half-Cauchy of the noise's scale.

    Where a prior is flat the evidence is that of an improper model: of use for comparing fits, and for nothing else.
    """

    def log_joint(data: Data) -> Callable[[Latents], Array]:
        x, y = design(data)

        def log_p(z: Latents) -> Array:
            found = jnp.sum(norm.logpdf(y, x @ z["beta"], z["sigma"]))
            if prior:
                found += (
                    jnp.sum(norm.logpdf(z["beta"], 0, 10))
                    + norm.logpdf(z["sigma"], 0, 10)
                    + math.log(2)
                )
            return found + (half_cauchy(z["sigma"], 2.5) if cauchy else 0.0)

        return log_p

    start = lambda data: {"beta": jnp.zeros(design(data)[0].shape[1]), "sigma": jnp.ones(())}  # noqa: E731
    return Model(log_joint, lambda data: {"beta": None, "sigma": POSITIVE}, start)


def columns(*found: Any) -> Array:
    return jnp.stack(
        [jnp.broadcast_to(jnp.asarray(c, float), np.shape(found[-1])) for c in found], 1
    )


def _ark(data: Data) -> tuple[Array, Array]:
    k, y = data["K"], jnp.asarray(data["y"], float)
    lags = [y[k - 1 - i : len(y) - 1 - i] for i in range(k)]
    return jnp.stack(lags, 1), y[k:]


def ark(data: Data) -> Callable[[Latents], Array]:
    lags, y = _ark(data)

    def log_p(z: Latents) -> Array:
        prior = (
            norm.logpdf(z["alpha"], 0, 10)
            + jnp.sum(norm.logpdf(z["beta"], 0, 10))
            + half_cauchy(z["sigma"], 2.5)
        )
        return prior + jnp.sum(norm.logpdf(y, z["alpha"] + lags @ z["beta"], z["sigma"]))

    return log_p


def diamonds(data: Data) -> Callable[[Latents], Array]:
    x, y = jnp.asarray(data["X"], float)[:, 1:], jnp.asarray(data["Y"], float)
    x = x - jnp.mean(x, 0)

    def log_p(z: Latents) -> Array:
        prior = jnp.sum(norm.logpdf(z["b"])) + student_t(z["Intercept"], 3, 8, 10)
        prior += student_t(z["sigma"], 3, 0, 10) + math.log(2)
        return prior + jnp.sum(norm.logpdf(y, z["Intercept"] + x @ z["b"], z["sigma"]))

    return log_p


def schools(data: Data) -> Callable[[Latents], Array]:
    y, sigma = jnp.asarray(data["y"], float), jnp.asarray(data["sigma"], float)

    def log_p(z: Latents) -> Array:
        prior = (
            half_cauchy(z["tau"], 5)
            + norm.logpdf(z["mu"], 0, 5)
            + jnp.sum(norm.logpdf(z["theta"], z["mu"], z["tau"]))
        )
        return prior + jnp.sum(norm.logpdf(y, z["theta"], sigma))

    return log_p


SCHOOLS = {"mu": None, "tau": POSITIVE, "theta": None}
NONCENTERED = SCHOOLS | {"theta": lambda z: vj.targets.constraints.affine(z["mu"], z["tau"])}


def schools_start(data: Data) -> Latents:
    return {"mu": jnp.zeros(()), "tau": jnp.ones(()), "theta": jnp.zeros(data["J"])}


def garch(data: Data) -> Callable[[Latents], Array]:
    y = jnp.asarray(data["y"], float)

    def log_p(z: Latents) -> Array:
        def step(variance: Array, last: Array) -> tuple[Array, Array]:
            variance = z["alpha0"] + z["alpha1"] * (last - z["mu"]) ** 2 + z["beta1"] * variance
            return variance, variance

        first = jnp.asarray(data["sigma1"] ** 2, y.dtype)
        _, rest = jax.lax.scan(step, first, y[:-1])
        return jnp.sum(norm.logpdf(y, z["mu"], jnp.sqrt(jnp.concatenate([first[None], rest]))))

    return log_p


GARCH = {
    "mu": None,
    "alpha0": POSITIVE,
    "alpha1": vj.targets.constraints.interval(0.0, 1.0),
    "beta1": lambda z: vj.targets.constraints.interval(0.0, 1 - z["alpha1"]),
}


def poisson_process(data: Data) -> Callable[[Latents], Array]:
    k, root = jnp.asarray(data["k"]), gp_root(data)

    def log_p(z: Latents) -> Array:
        prior = (
            gamma.logpdf(z["rho"], 25, scale=1 / 4) + norm.logpdf(z["alpha"], 0, 2) + math.log(2)
        )
        prior += jnp.sum(norm.logpdf(z["f_tilde"]))
        f = root(z)
        return prior + jnp.sum(k * f - jnp.exp(f) - gammaln(k + 1.0))

    return log_p


def gp_root(data: Data) -> Callable[[Latents], Array]:
    x = jnp.asarray(data["x"], float)

    def f(z: Latents) -> Array:
        cov = z["alpha"] ** 2 * jnp.exp(-0.5 * ((x[:, None] - x[None]) / z["rho"]) ** 2)
        return jnp.linalg.cholesky(cov + 1e-10 * jnp.eye(len(x))) @ z["f_tilde"]

    return f


def gp_report(data: Data) -> Callable[[Latents], Latents]:
    f = gp_root(data)
    return lambda z: {"rho": z["rho"], "alpha": z["alpha"], "f": f(z)}


def kilpisjarvi(data: Data) -> Callable[[Latents], Array]:
    x, y = jnp.asarray(data["x"], float), jnp.asarray(data["y"], float)

    def log_p(z: Latents) -> Array:
        prior = norm.logpdf(z["alpha"], data["pmualpha"], data["psalpha"])
        prior += norm.logpdf(z["beta"], data["pmubeta"], data["psbeta"])
        return prior + jnp.sum(norm.logpdf(y, z["alpha"] + z["beta"] * x, z["sigma"]))

    return log_p


def mixture(data: Data) -> Callable[[Latents], Array]:
    y = jnp.asarray(data["y"], float)[:, None]

    def log_p(z: Latents) -> Array:
        prior = (
            jnp.sum(norm.logpdf(z["sigma"], 0, 2) + math.log(2))
            + jnp.sum(norm.logpdf(z["mu"], 0, 2))
            + math.log(2)
        )
        prior += beta.logpdf(z["theta"], 5, 5)
        weights = jnp.log(jnp.stack([z["theta"], 1 - z["theta"]]))
        return prior + jnp.sum(jax.nn.logsumexp(weights + norm.logpdf(y, z["mu"], z["sigma"]), 1))

    return log_p


def _mesquite(data: Data) -> tuple[Array, Array]:
    logs = [
        np.log(data[name])
        for name in ("diam1", "diam2", "canopy_height", "total_height", "density")
    ]
    return columns(1.0, *logs, data["group"]), jnp.log(jnp.asarray(data["weight"], float))


def _nes(data: Data) -> tuple[Array, Array]:
    age = np.asarray(data["age_discrete"])
    ages = [age == level for level in (2, 3, 4)]
    given = [
        data["real_ideo"],
        data["race_adj"],
        *ages,
        data["educ1"],
        data["gender"],
        data["income"],
    ]
    return columns(1.0, *given), jnp.asarray(data["partyid7"], float)


def _earnings(data: Data) -> tuple[Array, Array]:
    height, male = np.asarray(data["height"], float), np.asarray(data["male"], float)
    return columns(1.0, height, male, height * male), jnp.log(jnp.asarray(data["earn"], float))


def _kids(data: Data, interaction: bool) -> tuple[Array, Array]:
    hs, iq = np.asarray(data["mom_hs"], float), np.asarray(data["mom_iq"], float)
    x = columns(1.0, hs, iq, hs * iq) if interaction else columns(1.0, iq)
    return x, jnp.asarray(data["kid_score"], float)


def _blr(data: Data) -> tuple[Array, Array]:
    return jnp.asarray(data["X"], float), jnp.asarray(data["y"], float)


def _fixed(**values: Any) -> Callable[[Data], Latents]:
    return lambda data: {name: jnp.asarray(value, float) for name, value in values.items()}


MODELS: dict[str, Model] = {
    "arK-arK": Model(
        ark,
        lambda data: {"alpha": None, "beta": None, "sigma": POSITIVE},
        _fixed(alpha=0.0, beta=[0.0] * 5, sigma=1.0),
    ),
    "diamonds-diamonds": Model(
        diamonds,
        lambda data: {"b": None, "Intercept": None, "sigma": POSITIVE},
        _fixed(b=[0.0] * 24, Intercept=0.0, sigma=1.0),
    ),
    "earnings-logearn_interaction": regression(_earnings),
    "eight_schools-eight_schools_centered": Model(schools, lambda data: SCHOOLS, schools_start),
    "eight_schools-eight_schools_noncentered": Model(
        schools, lambda data: NONCENTERED, schools_start
    ),
    "garch-garch11": Model(
        garch, lambda data: GARCH, _fixed(mu=0.0, alpha0=1.0, alpha1=0.5, beta1=0.25)
    ),
    "gp_pois_regr-gp_pois_regr": Model(
        poisson_process,
        lambda data: {"rho": POSITIVE, "alpha": POSITIVE, "f_tilde": None},
        _fixed(rho=1.0, alpha=1.0, f_tilde=[0.0] * 11),
        gp_report,
    ),
    "kidiq-kidscore_interaction": regression(lambda data: _kids(data, True), cauchy=True),
    "kidiq-kidscore_momiq": regression(lambda data: _kids(data, False), cauchy=True),
    "kilpisjarvi_mod-kilpisjarvi": Model(
        kilpisjarvi,
        lambda data: {"alpha": None, "beta": None, "sigma": POSITIVE},
        _fixed(alpha=0.0, beta=0.0, sigma=1.0),
    ),
    MIXTURE: Model(
        mixture,
        lambda data: {
            "mu": vj.targets.constraints.ordered,
            "sigma": POSITIVE,
            "theta": vj.targets.constraints.interval(0.0, 1.0),
        },
        _fixed(mu=[0.0, 1.0], sigma=[1.0, 1.0], theta=0.5),
    ),
    "mesquite-logmesquite": regression(_mesquite),
    "nes1980-nes": regression(_nes),
    "sblrc-blr": regression(_blr, prior=True),
}


def read_draws(path: Path) -> dict[str, np.ndarray]:
    """Return reference draws by quantity, the chains one after another: {name: [n] or [n, length]}."""
    with zipfile.ZipFile(path) as archive:
        chains = json.loads(archive.read(archive.namelist()[0]))
    flat = {name: np.concatenate([chain[name] for chain in chains]) for name in chains[0]}
    found: dict[str, list[np.ndarray]] = {}
    for name, draws in flat.items():
        found.setdefault(name.split("[")[0], []).append(draws)
    return {name: draws[0] if name in flat else np.stack(draws, 1) for name, draws in found.items()}


def load(folder: Path, name: str) -> Posterior:
    """Return a posterior with its data and reference draws; ValueError where there is no such model here."""
    if name not in MODELS:
        raise ValueError(f"there is no model of {name} here; there are {', '.join(MODELS)}.")
    model = MODELS[name]
    data = json.loads((folder / name / "data.json").read_text())
    target = vj.targets.transform(model.log_joint(data), model.constraints(data))
    start = target.unconstrain(model.start(data))
    return Posterior(
        name, target, start, model.report(data), read_draws(folder / name / "draws.json.zip")
    )


def data_folder(options: Options) -> Path | None:
    root = options.data or os.environ.get("VIJAX_DATA")
    return Path(root) if root else None


def over(options: Options, rows: Callable[[Path], Iterator[Row]]) -> Iterator[Row]:
    """Yield the rows of a benchmark over this folder, in double precision; or one that says it is missing."""
    root = data_folder(options)
    if root and (found := root / "posteriordb").is_dir():
        with jax.enable_x64(True):
            yield from rows(found)
        return
    yield missing(
        "posteriordb", "reference draws", "the folder posteriordb, in --data DIR or VIJAX_DATA"
    )


def table(posterior: Posterior) -> np.ndarray:
    """Return the reference draws, [n, d], in the order in which JAX flattens what the posterior reports."""
    report = lambda y: posterior.report(posterior.target.constrain(y))  # noqa: E731
    return flat(posterior.reference, jax.eval_shape(report, posterior.start))


def flat(reference: dict[str, np.ndarray], reported: Latents) -> np.ndarray:
    """Return reference draws of what is reported, [n, d], in the order of its leaves."""
    columns = [
        np.reshape(reference[n], (-1, math.prod(reported[n].shape))) for n in sorted(reported)
    ]
    return np.concatenate(columns, 1)


def unordered(folder: Path) -> Posterior:
    """Return the mixture's posterior without the order of its means: two modes, which differ by their labels alone."""
    ordered = load(folder, MIXTURE)
    data = json.loads((folder / MIXTURE / "data.json").read_text())
    target = vj.targets.transform(
        mixture(data),
        {"mu": None, "sigma": POSITIVE, "theta": vj.targets.constraints.interval(0.0, 1.0)},
    )
    seen = ordered.reference
    other = {"mu": seen["mu"][:, ::-1], "sigma": seen["sigma"][:, ::-1], "theta": 1 - seen["theta"]}
    both = {name: np.concatenate([seen[name], other[name]]) for name in other}
    start = target.unconstrain(ordered.target.constrain(ordered.start))
    return Posterior(f"{MIXTURE} without its order", target, start, lambda z: z, both)
