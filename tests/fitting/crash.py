"""A fit that is killed and begun again: `python -m tests.fitting.crash FOLDER` ends it, and prints a digest of all it has."""

import hashlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vijax.fitting import Checkpoints, ascent, fit, jsonl
from vijax.types import Draws, Estimate

STEPS, EVERY = 600, 40


def estimate(key, params, memory):
    """A baseline and a cursor are carried too."""
    e = jax.random.normal(key, (4,))
    log_p = -0.5 * jnp.sum(jnp.square(params["loc"] + e - memory["cursor"] % 3))
    memory = {"cursor": memory["cursor"] + 1, "baseline": 0.9 * memory["baseline"] + 0.1 * log_p}
    return Estimate(log_p, Draws(None, log_p[None], jnp.zeros(1))), memory


RULE = ascent(estimate, optax.adam(0.01))


def run(folder, **options):
    state = RULE.init({"loc": jnp.zeros(4)}, {"cursor": jnp.int32(0), "baseline": jnp.float32(0.0)})
    saves = None if folder is None else Checkpoints(f"{folder}/steps", every=EVERY)
    reports = () if folder is None else [jsonl(f"{folder}/metrics.jsonl")]
    options = {
        "steps": STEPS,
        "stop": None,
        "log_every": 20,
        "reports": reports,
        "checkpoints": saves,
    } | options
    return fit(jax.random.key(3), RULE, state, **options)


def digest(found):
    leaves = jax.tree.leaves((found.state, found.tail, found.bound, found.log_w))
    return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in leaves)).hexdigest()


if __name__ == "__main__":
    print(digest(run(sys.argv[1])))
