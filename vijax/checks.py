"""Checks at trace time, each with a message that names the argument, what was found, and the cure."""

import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from os import path as paths_of
from re import findall
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vijax import types


def key(key: Any) -> None:
    """Refuse anything but one typed key."""
    dtype = getattr(key, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key):
        found, cure = f"{key!r:.40}", ""
        if isinstance(key, int):
            cure = f"; a seed becomes a key by jax.random.key({key})"
        elif dtype is not None:
            found, cure = f"{dtype}{list(jnp.shape(key))}", "; wrap a raw key with jax.random.wrap_key_data"
        raise TypeError(f"key must be a typed key, jax.random.key(seed), got {found}{cure}.")
    if key.shape != ():
        raise ValueError(f"key must be one key of shape (), got {key.shape}; vmap over keys, or pass one of them.")


def num_samples(num_samples: Any, chunk_size: Any = None, *, least: int = 1, why: str = "") -> None:
    """Refuse sample counts that are not static whole numbers of at least `least`."""
    for name, value, low in (("num_samples", num_samples, least), ("chunk_size", chunk_size, 1)):
        if name == "chunk_size" and value is None:
            continue
        if isinstance(value, bool) or not hasattr(value, "__index__") or isinstance(value, jax.core.Tracer):
            raise TypeError(f"{name} must be a Python int, fixed when the function is traced; got {value!r}.")
        if value < low:
            reason = f" {why}" if why and name == "num_samples" else ""
            raise ValueError(f"{name} must be at least {low}, got {value}.{reason}")


def family(family: Any, name: str) -> None:
    """Refuse what is no family; nearly always one that was not called."""
    if not (hasattr(family, "init") and hasattr(family, "dist")):
        raise TypeError(f"{name} must be a Family, such as families.full_rank() with its brackets, got {family!r:.60}.")


def whole(value: Any, name: str, why: str = "") -> None:
    """Refuse counts that are not whole numbers of at least 1."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be a whole number, got {value!r}.")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}{why}.")


# Set while a log_joint is evaluated of which more than the mean counts. JAX's caches heed it: what was traced under a
# linear bound is traced, and judged, anew.
_exact = jax.make_user_context()


def linear(bound: Any, log_joint: Any) -> Any:
    """Refuse a bound that is not linear in log_w for a target that is only unbiased under one that is.

    Returns log_joint, or where the bound is not linear one that refuses such a target inside other functions as well.
    """
    if types.closed_forms(bound).linear:
        return log_joint
    if why := types.properties(log_joint).only_mean:
        raise ValueError(f"{why}, so its bound must be linear in log_w: use bounds.elbo, not {describe(bound)}.")
    return exact(log_joint)


def exact(log_joint: Any) -> Any:
    """Return log_joint, with its marks, such that a target within it which is only unbiased itself is refused."""

    def guarded(*z: Any, **given: Any) -> Any:
        with _exact("log_joint"):
            return log_joint(*z, **given)

    return types.derive(log_joint, guarded)


def only_linear(why: str) -> None:
    """Refuse, inside a target that is unbiased but not its exponential, to be evaluated for more than its mean."""
    if _exact.value:
        raise ValueError(
            f"{why}, and here, inside another function, it is asked for more than its mean: use bounds.elbo, or the "
            "plain log joint of all the data."
        )


def is_mean(bound: Any) -> bool:
    """Whether a bound is the mean of log-weights: one that says it is linear may be a sum, or have a minus sign."""
    if not types.closed_forms(bound).linear:
        return False
    try:
        with jax.ensure_compile_time_eval():
            return bool(np.allclose(bound(jnp.array([[0.0], [1.0], [5.0]], jnp.float32)), 2.0, rtol=1e-5))
    except (TypeError, ValueError):  # it holds weights, of another number of draws or not known while tracing
        return False


def own_terms(log_joint: Any, estimator: str) -> None:
    """Refuse a target that holds terms of q in closed form, where the estimator takes log p and log q apart."""
    if types.properties(log_joint).holds_log_q:
        raise ValueError(
            f"{estimator} needs the log joint itself, and this target holds terms of q in closed form: use "
            "gradients.reparam, dreg, score, vimco or auto, or the plain log_joint."
        )


def independent(bound: Any, draw: Any, estimator: str) -> None:
    """Refuse coupled draws, and strata, where the estimator's derivation needs independent draws from q."""
    _is_draw(draw)
    if draw.independent:
        return
    if types.closed_forms(bound).linear:
        return
    how = "coupled" if draw.weights is None else "strata, each from its own part of q"
    raise ValueError(
        f"{estimator}({describe(bound)}) needs independent draws, and these are {how}: its gradient would be biased. "
        "Use gradients.reparam, or dreg of a bound linear in log_w (bounds.elbo)."
    )


def uncoupled(bound: Any, draw: Any, estimator: str) -> None:
    """Refuse coupled draws under a bound whose own statement is about independent ones."""
    _is_draw(draw)
    if types.closed_forms(bound).independent and not draw.independent:
        raise ValueError(
            f"{estimator}({describe(bound)}): what {describe(bound)} says holds for independent draws, and these are "
            "coupled; use draws.iid, or another of vijax.bounds."
        )


def _is_draw(draw: Any) -> None:
    if not isinstance(draw, types.Draw):
        raise TypeError(f"draw must be a types.Draw, as draws.iid and draws.antithetic are, got {describe(draw)}.")


def smooth(bound: Any, estimator: str) -> None:
    """Refuse a bound with a kink: no second derivative sees it, and the dropped score needs it."""
    if not types.closed_forms(bound).smooth:
        raise ValueError(f"{estimator}({describe(bound)}) needs a bound without kinks: use gradients.reparam.")


def describe(function: Any) -> str:
    """Return the name of a function, looking through partial."""
    while hasattr(function, "func"):
        function = function.func
    return getattr(function, "__name__", repr(function))


def log_densities(log_p: Any, log_q: Any, z: Any, names: tuple[str, str] = ("log_joint(z)", "q.log_prob(z)")) -> None:
    """Refuse a log_joint whose shape for one draw is not that of log q: the sample axis is ours, the rest is theirs."""
    of_p, of_q = names
    if not isinstance(log_p, (jax.Array, np.ndarray, np.generic, float, int)) and not hasattr(log_p, "__jax_array__"):
        found = "None; does it lack a return?" if log_p is None else f"{type(log_p).__name__}."
        raise TypeError(f"{of_p} must be an array of shape {jnp.shape(log_q)}, got {found}")
    if not jnp.issubdtype(jnp.result_type(log_p), jnp.floating):
        raise TypeError(f"{of_p} must be real floating, got {jnp.result_type(log_p)}.")
    if (p := jnp.shape(log_p)) == (q := jnp.shape(log_q)):
        return
    leaves = ", ".join(f"{name} {jnp.shape(leaf)}" for name, leaf in named_leaves(z))
    cure = "sum over the event axes of each draw and keep the batch axes."
    if len(q) > len(p) and q[: len(p)] == p:
        cure = (
            f"where {q[len(p) :]} is a batch, let {of_p} return one value for each member, neither summed nor "
            "averaged; where it belongs to one latent, wrap q: distrax.Independent(q, reinterpreted_batch_ndims="
            f"{len(q) - len(p)})."
        )
    elif len(p) == len(q) + 1 and q and p[-1] == q[-1] and p[:-1] == q:
        cure = f"the batch axis was broadcast against itself, ({p[-1]},) with ({p[-1]}, 1): give both the same rank."
    raise ValueError(
        f"{of_p} has shape {p} for one draw, where {of_q} has {q}; they must be equal ([*batch]). "
        f"The draw: {leaves}. Cure: {cure}"
    )


def batch_leads(z: Any, log_q: Any) -> None:
    """Refuse draws whose leaves do not begin with q's batch axes, which a gate for each member of the batch needs."""
    for name, leaf in named_leaves(z):
        if jnp.shape(leaf)[: log_q.ndim] != log_q.shape:
            raise ValueError(
                f"each leaf of a draw must begin with q's batch shape {log_q.shape[1:]}; leaf '{name}' is "
                f"{jnp.shape(leaf)[1:]}. Use gradients.reparam, or give q that batch shape."
            )


def rows(others: Any, log_w: Any, bound: Any) -> None:
    """Refuse a bound whose value without each draw is not one number for each draw."""
    if jnp.shape(others) != log_w.shape:
        raise ValueError(
            f"{describe(bound)} without each draw has shape {jnp.shape(others)}, expected {log_w.shape}: a bound maps "
            "[k, *batch] to [*batch] for any k."
        )


def named_leaves(z: Any) -> list[tuple[str, Any]]:
    """Return the leaves of a pytree with names a person would use; a bare array is called z."""
    paths = jax.tree_util.tree_leaves_with_path(z)
    return [(jax.tree_util.keystr(path, simple=True, separator=".") or "z", leaf) for path, leaf in paths]


@contextmanager
def outer_broadcasts(what: str) -> Iterator[None]:
    """Refuse, while tracing user code, (N,) against (N, 1): NumPy makes (N, N) of them without a word."""
    if jax.config.values["jax_numpy_rank_promotion"] != "allow":  # the caller's own setting already looks
        yield
        return
    with warnings.catch_warnings(), jax.numpy_rank_promotion("warn"):
        warnings.filterwarnings("always", "Following NumPy automatic rank promotion")
        show_others = warnings.showwarning

        def show(message: Any, *args: Any, **kwargs: Any) -> None:
            if not str(message).startswith("Following NumPy automatic rank promotion"):
                show_others(message, *args, **kwargs)
            elif (found := _accident(str(message))) is not None:
                # Raised inside the trace: one that ends in an error is not cached, so it is refused each time.
                raise ValueError(
                    f"{what} broadcasts {found[0]} against {found[1]} to an outer product at {_place()}; nearly always "
                    "a column that should be a row. Give both the same rank: x[:, 0], or a[None, :] if it is meant."
                )

        warnings.showwarning = show
        yield


def _place() -> str:
    """Return file:line of the frame that called into JAX last, or into another installed library that did."""
    inside = paths_of.join(paths_of.dirname(jax.__file__ or ""), "")
    installed = paths_of.join(paths_of.dirname(paths_of.dirname(inside)), "")  # site-packages
    frames = traceback.extract_stack()
    while frames and not frames[-1].filename.startswith(inside):  # our own, and those of warnings
        frames.pop()
    while frames and frames[-1].filename.startswith(installed):
        frames.pop()
    return f"{paths_of.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else "an unknown place"


def _accident(message: str) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    shapes = [tuple(int(n) for n in findall(r"\d+", s)) for s in findall(r"\(([\d, ]*)\)", message.split(". Set")[0])]
    for short in shapes:
        for long in shapes:
            if len(short) < len(long) and short and long[-1] == 1 and long[-2] == short[-1] > 1:
                return short, long
    return None
