"""A Gaussian q on its way: its state, how it is made of params, and where a step may move it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from vijax.gaussians.triangle import from_parameters, half_log_det, to_parameters
from vijax.trees import strong_dtypes
from vijax.types import PyTree


class GaussianState(NamedTuple):
    """A Gaussian q = N(loc, L Lᵀ) on its way.

    Fields:
        loc: like z.
        root: L, lower triangular [d, d]; or the standard deviations [d], where q is mean-field.
        steps: how many were made, ().
        taken: what share of the last step was taken, (): 0 where q stayed as it was.
        memory: what the target carries from step to step, such as a data cursor; None where it
            carries nothing.
    """

    loc: PyTree
    root: Array
    steps: Int[Array, ""]
    taken: Float[Array, ""]
    memory: PyTree = None


def init(params: PyTree, memory: PyTree = None) -> GaussianState:
    """Return the state of `families.mean_field`'s or `families.full_rank`'s params."""
    kinds = ({"loc", "log_scale"}, {"loc", "log_scale", "lower"})
    if not isinstance(params, dict) or set(params) not in kinds:
        found = list(params) if isinstance(params, dict) else type(params).__name__
        raise TypeError(
            "params must be those of families.mean_field (loc, log_scale) or families.full_rank "
            f"(loc, log_scale, lower), got {found}: begin with families.full_rank().init(key, "
            "like)."
        )
    loc, _ = ravel_pytree(params["loc"])
    # A family of one's own may have params of these names and other shapes.
    of_loc, of_scale = (jax.tree.map(jnp.shape, params[name]) for name in ("loc", "log_scale"))
    lower = jnp.shape(params["lower"]) if "lower" in params else None
    triangle = (loc.size * (loc.size - 1) // 2,)
    if of_loc != of_scale or lower not in (None, triangle):
        raise ValueError(
            f"params must have a log_scale for each loc, and of lower one number for each pair, {triangle}; "
            f"got loc {of_loc}, log_scale {of_scale}, lower {lower}: a family of your own takes fitting.ascent."
        )
    log_scale = ravel_pytree(params["log_scale"])[0].astype(loc.dtype)
    root = jnp.exp(log_scale)
    # [d] of a mean-field q; [d, d] where params hold a triangle.
    if "lower" in params:
        if jnp.finfo(loc.dtype).bits < 32:
            raise TypeError(
                f"a full-rank q is updated in float32 or float64, got {loc.dtype}: it factorizes "
                "matrices."
            )
        root = from_parameters(log_scale, params["lower"])
    # A step returns strong dtypes, and a loop wants the state to keep its own.
    taken = jnp.ones((), loc.dtype)
    strong_loc, strong_memory = strong_dtypes((params["loc"], memory))
    return GaussianState(strong_loc, root, jnp.int32(0), taken, strong_memory)


def params(state: GaussianState) -> PyTree:
    """Return the params of the family that the state came from."""
    check_state(state)
    _, unravel = ravel_pytree(state.loc)
    if state.root.ndim == 1:
        return {"loc": state.loc, "log_scale": unravel(jnp.log(state.root))}
    log_scale, lower = to_parameters(state.root)
    return {"loc": state.loc, "log_scale": unravel(log_scale), "lower": lower}


def check_state(state: object) -> None:
    """Refuse what is not the state of a Gaussian rule, nearly always the params of a family."""
    if not isinstance(state, GaussianState):
        raise TypeError(
            "state must be what the rule's init(params) returned, got a "
            f"{type(state).__name__}; begin with rule.init(params)."
        )


def replaced(state: GaussianState, change: Array, root: Array) -> GaussianState:
    """Return the state with another mean and root, in the dtypes that it had."""
    loc, unravel = ravel_pytree(state.loc)
    new_loc = unravel((loc + change).astype(loc.dtype))
    return state._replace(loc=new_loc, root=root.astype(state.root.dtype))


def is_gaussian(state: GaussianState) -> Array:
    """Whether a state is a Gaussian at all: a finite mean, and a root of full rank."""
    finite = jnp.all(jnp.isfinite(ravel_pytree(state.loc)[0]))
    return finite & jnp.isfinite(half_log_det(state.root))
