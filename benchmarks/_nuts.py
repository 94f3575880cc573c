"""Reference draws of the forum's models by NumPyro's NUTS, and how far they can be relied on.

Run once in double precision, four chains, and again four times as long where that was too short, and kept under
out/reference. A kept file is of use while log p at fixed points is what it was when the file was made; it is made anew
otherwise.
"""

import itertools
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

import vijax as vj
from benchmarks._forum import Question
from benchmarks._peers import peer

FOLDER = Path("out") / "reference"
CHAINS, WARM_UP, DRAWS = 4, 800, 1200  # a chain
RHAT, ESS = 1.01, 400  # 400 draws' worth: means to .05 sd


class Reference(NamedTuple):
    """Draws of what a question reports, and the worst R-hat and effective sample size among them.

    Fields:
        draws: {name: [chains * draws, ...]}.
        rhat: the largest of the reported numbers.
        ess: the least, of the numbers and of their squares, in draws.
        divergences: of all draws after the warm-up.
        seconds: that sampling took.
    """

    draws: dict[str, np.ndarray]
    rhat: float
    ess: float
    divergences: int
    seconds: float

    @property
    def sound(self) -> bool:
        return self.rhat <= RHAT and self.ess >= ESS


def target_of(question: Question) -> vj.targets.Transformed:
    """Return what NUTS samples: without labels that may switch."""
    return vj.targets.transform(question.log_joint, question.identified or question.constraints)


def probe(question: Question) -> np.ndarray:
    """Return log p at the start and near it, which changes with model and data."""
    target = target_of(question)
    y, unravel = ravel_pytree(target.unconstrain(question.start))
    near = [y + scale * np.cos(np.arange(y.size)) for scale in (0.0, 0.1, -0.2)]
    return np.array([float(target.log_joint(unravel(at))) for at in near])


def reference(name: str, question: Question) -> Reference:
    """Return the reference of a question, kept or made; to be called in double precision."""
    path = FOLDER / f"{name.replace(' ', '-')}.npz"
    seen = probe(question)
    if path.exists():
        kept = dict(np.load(path))
        if np.allclose(kept.pop("probe"), seen, rtol=1e-6):
            numbers = [kept.pop(f) for f in ("rhat", "ess", "divergences", "seconds")]
            return Reference(
                kept, *map(float, numbers[:2]), int(numbers[2]), seconds=float(numbers[3])
            )
    made = sample(question)
    if not made.sound:
        made = sample(question, 4 * DRAWS)
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_suffix(".part.npz")
    numbers = {name: value for name, value in made._asdict().items() if name != "draws"}
    np.savez_compressed(whole, probe=seen, **made.draws, **numbers)
    whole.replace(path)
    return made


def sample(question: Question, draws: int = DRAWS) -> Reference:
    infer, diagnostics = peer("numpyro.infer"), peer("numpyro.diagnostics")
    target = target_of(question)
    y, unravel = ravel_pytree(target.unconstrain(question.start))
    kernel = infer.NUTS(
        potential_fn=lambda v: -target.log_joint(unravel(v)), target_accept_prob=0.95
    )
    chains = infer.MCMC(
        kernel,
        num_warmup=WARM_UP,
        num_samples=draws,
        num_chains=CHAINS,
        chain_method="vectorized",
        progress_bar=False,
    )
    began = time.perf_counter()
    starts = y + 0.1 * jax.random.normal(jax.random.key(1), (CHAINS, y.size), y.dtype)
    chains.run(jax.random.key(0), init_params=starts, extra_fields=("diverging",))
    v = chains.get_samples(group_by_chain=True)
    seconds = time.perf_counter() - began
    report = lambda v: question.report(target.constrain(unravel(v)))  # noqa: E731
    found = jax.tree.map(np.asarray, jax.lax.map(jax.vmap(report), v))
    rhat = max(float(np.max(r)) for r in jax.tree.leaves(vj.diagnostics.rhat(by_draws(found))))
    ess = min(least_ess(diagnostics, leaf) for leaf in found.values())
    kept = {n: leaf.reshape(-1, *leaf.shape[2:]).astype(np.float32) for n, leaf in found.items()}
    if question.identified:
        kept = relabelled(kept)
    diverging = chains.get_extra_fields()["diverging"]
    return Reference(kept, rhat, ess, int(np.sum(diverging)), seconds)


def by_draws(found: dict[str, np.ndarray]) -> dict[str, Array]:
    return {name: jnp.asarray(leaf) for name, leaf in found.items()}


def least_ess(diagnostics: Any, leaf: np.ndarray) -> float:
    """Return the least effective sample size of draws [chains, n, ...] and of their squares about the mean."""
    squares = np.square(leaf - leaf.mean((0, 1)))
    return min(float(np.min(diagnostics.effective_sample_size(part))) for part in (leaf, squares))


def relabelled(draws: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the draws under every order of the labels, which the last axis of each leaf counts."""
    count = next(iter(draws.values())).shape[-1]
    orders = [list(order) for order in itertools.permutations(range(count))]
    return {n: np.concatenate([leaf[..., o] for o in orders]) for n, leaf in draws.items()}
