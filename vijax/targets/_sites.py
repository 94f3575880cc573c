"""Sites of other libraries' models: which have a density everywhere, and which can be given one."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vijax.calls import is_known
from vijax.types import PyTree


def layers(distribution: object) -> Iterator[object]:
    """Yield a distribution, and what it expands, masks, transforms, or calls independent."""
    while distribution is not None:
        yield distribution
        distribution = getattr(
            distribution, "base_dist", getattr(distribution, "distribution", None)
        )


def is_imputed(name: str, sites: Mapping[str, Any]) -> bool:
    """Whether a NumPyro site holds what obs_mask leaves out, and elements in the place of data that none reads."""
    # Under obs_mask NumPyro makes sites x_observed and x_unobserved of x.
    base = name.removesuffix("_unobserved")
    beside = sites.get(f"{base}_observed")
    return base != name and base in sites and beside is not None and bool(beside["is_observed"])


def is_improper(site: Mapping[str, Any]) -> bool:
    """Whether a NumPyro site may have no density of its own in some direction."""
    improper = ("MaskedDistribution", "ImproperUniform")
    return any(type(layer).__name__ in improper for layer in layers(site["fn"]))


def without_masks(model: Callable[..., Any], names: Collection[str]) -> Callable[..., Any]:
    """Return a NumPyro model in which some sites have their density everywhere."""
    from numpyro.primitives import Messenger

    class Unmask(Messenger):  # type: ignore[misc]
        def process_message(self, msg: dict[str, Any]) -> None:
            while msg.get("name") in names and type(msg["fn"]).__name__ == "MaskedDistribution":
                msg["fn"] = msg["fn"].base_dist

    return Unmask(model) if names else model


def require_slopes(
    log_joint: Callable[[PyTree], Array],
    log_density: Callable[[PyTree], Array],
    start: Mapping[str, Array],
    names: Sequence[str],
) -> None:
    """Refuse sites of which an element has no density: q would grow without end there.

    Its slope is 0 wherever it is evaluated, but for that of the log-Jacobian; which is a density by
    itself only where it falls at both ends, as of an interval or a simplex, whose uniform is proper.

    Args:
        log_joint: y -> log p(x, z(y)) + log |det ∂z/∂y|.
        log_density: y -> log p(x, z(y)).
        start: where y is of the right shapes.
        names: of the sites.
    """
    if not names:
        return
    # Two points at random: a slope of 0 at both is one everywhere.
    some = [
        jax.tree.map(lambda y, k=k: jax.random.normal(k, y.shape, y.dtype), start)
        for k in jax.random.split(jax.random.key(0), 2)
    ]
    slopes = [jax.grad(log_density)(y) for y in some]
    # Slopes of the whole density at both ends: positive below and negative above, it falls there.
    low, high = (
        jax.grad(log_joint)(jax.tree.map(lambda y, end=end: jnp.full_like(y, end), start))
        for end in (-5.0, 5.0)
    )
    for name in names:
        # Elements without a slope at both points, unless the log-Jacobian alone is a density
        flat = (slopes[0][name] == 0) & (slopes[1][name] == 0)
        flat &= ~((low[name] > 0) & (high[name] < 0))
        traced = not is_known(flat)
        if traced or bool(jnp.any(flat)):
            what = "may have elements" if traced else f"has {int(jnp.sum(flat))} elements"
            raise ValueError(
                f"site '{name}' {what} without a density, which the rest of the model does not "
                "read: q would grow there without end. Leave padding out, mask observed sites "
                "alone (obs_mask= for missing data), or give it a prior"
                + ("; adapt the model outside of jit to have it checked." if traced else ".")
            )


def require_densities(joint: PyTree, observed: PyTree) -> None:
    """Refuse latents of TFP that are constants, or that have no density where they are masked."""
    parts, _ = joint.sample_distributions(seed=jax.random.key(0))
    parts = parts._asdict() if hasattr(parts, "_asdict") else parts
    named = parts if isinstance(parts, Mapping) else dict(enumerate(parts))
    given = observed if isinstance(observed, Mapping) else dict(enumerate(observed))
    for name, part in named.items():
        # What is observed may be constant or masked.
        kinds = {type(layer).__name__ for layer in layers(part)} if given.get(name) is None else ()
        if "Deterministic" in kinds or "VectorDeterministic" in kinds:
            raise ValueError(
                f"latent {name!r} is Deterministic, which has no density: compute it where it is "
                "used."
            )
        if "Masked" in kinds:
            raise ValueError(
                f"latent {name!r} is Masked: it has no density where it is masked, and q would "
                "grow there without end. Leave padding out, and mask observed parts alone."
            )
