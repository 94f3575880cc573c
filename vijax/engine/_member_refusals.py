"""Refusals where members of the batch must be apart and are not, or cannot be shown to be."""

from collections.abc import Sequence

from vijax import checks, jaxprs

# What to use instead, where draws carry no derivative of q and where they do.
ONE_MEMBER = "Make all members one, by distrax.Independent and a sum over the batch"
UNCOUPLED = (
    "Use gradients.reparam, or gradients.dreg of a bound linear in log_w (bounds.elbo), which are "
    "right there; or make all members one, by distrax.Independent and a sum over the batch"
)


def members_coupled(
    estimator: str, cure: str, what: str, leaf: str, axes: Sequence[int], found: Sequence[object]
) -> ValueError:
    """A log_joint, or a q, in which one member of the batch reads the latents of another."""
    # The first batch axis that is not where it was: at another axis, or nowhere for a reason.
    pairs = [(a, f) for a, f in zip(axes, found, strict=True) if a != f] or [(axes[0], axes[0])]
    axis, place = pairs[0]
    # A program that no rule follows proves nothing: a declaration may stand in for the proof.
    if place in jaxprs.OPAQUE:
        where = (
            "q: independent_members = True"
            if what.startswith("q.")
            else "targets.independent_members(log_joint)"
        )
        return ValueError(
            f"{estimator} takes each member of the batch by itself, and {what} passes leaf "
            f"'{leaf}' through '{place}', where members cannot be followed. If each value reads "
            f"its own member alone, declare it: {where}. {cure}."
        )
    how = f"through '{place}'" if isinstance(place, str) else "by holding it along another axis"
    if what.startswith("q."):
        or_else = "or, if it does not, declare it on q: independent_members = True"
    else:
        or_else = (
            "normalize by running statistics, as nnx.BatchNorm(..., use_running_average=True) "
            "does; or, if each value does read its own member alone, write it for one member and "
            "jax.vmap it, or declare it: targets.independent_members(log_joint)"
        )
    return ValueError(
        f"{estimator} takes each member of the batch by itself, and {what} mixes members along "
        f"axis {axis} of leaf '{leaf}', {how}, as batch normalization, attention or a cumulative "
        f"sum over the batch do: its gradient would be biased. {cure}; {or_else}."
    )


def members_of_others(estimator: str, cure: str, what: str, how: str) -> ValueError:
    """A log_joint, or a q, that reads members under another name: those of jax.vmap or of other devices."""
    return ValueError(
        f"{estimator} takes each member of the batch by itself, and {what} reads the latents of "
        f"other members, or devices, through '{how}' over a named axis, as batch normalization "
        f"with axis_name does: its gradient would be biased. {cure}; or, if all hold the same "
        "latents, declare it: targets.independent_members(log_joint)."
    )


def bound_couples(estimator: str, bound: object) -> ValueError:
    """A bound of one's own that mixes members of the batch."""
    return ValueError(
        f"{estimator} takes each member of the batch by itself, and the bound "
        f"{checks.describe(bound)} mixes members: let it reduce the axis of the draws alone, [k, "
        "*batch] -> [*batch], or use gradients.reparam."
    )


def members_unseen(estimator: str, what: str) -> ValueError:
    """A function whose trace fails, because Python asks for the value of an array."""
    return ValueError(
        f"{estimator} takes each member of the batch by itself, and {what} asks for the value of "
        "an array in Python, so that no trace shows that members do not read each other: compute "
        "that value before, or declare it: targets.independent_members(log_joint)."
    )


def leaf_without_batch(name: str, shape: tuple[int, ...], batch: tuple[int, ...]) -> ValueError:
    """A draw whose leaf does not begin with q's batch axes, where each member of the batch has a gate."""
    return ValueError(
        f"each leaf of a draw must begin with q's batch shape {batch}; leaf '{name}' is {shape}. "
        "Use gradients.reparam, or give q that batch shape."
    )
