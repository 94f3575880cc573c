"""Constrained latents mapped to unconstrained space, for a q over ℝⁿ."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vijax import checks
from vijax.calls import is_known, usage
from vijax.targets.constraints import Constraint, Logged, real
from vijax.types import LogJoint, PyTree, derive, properties


class Transformed(NamedTuple):
    """A target over unconstrained y, and the maps to the latents z and back.

    Fields:
        log_joint: y -> log p(x, z(y)) + log |det ∂z/∂y|, [*batch] in nats; or a dict of factors, with one more for
            each constrained leaf.
        constrain: y -> z, of one draw; of several by jax.vmap.
        unconstrain: z -> y; what a family's `init` takes as `like`, from any z inside its constraints.
    """

    log_joint: LogJoint
    constrain: Callable[[PyTree], PyTree]
    unconstrain: Callable[[PyTree], PyTree]


@usage("targets.transform")
def transform(log_joint: LogJoint, constraints: PyTree) -> Transformed:
    """Change variables to unconstrained space where latents are positive, bounded, ordered, ...

        log p(x, y) = log p(x, z(y)) + log |det ∂z/∂y|,     whose integral over y is the same p(x)

    For a q over ℝⁿ, such as a Gaussian. The evidence and the log-weights do not change.

    Args:
        log_joint: z -> log p(x, z), [*batch] in nats, or a dict of factors; leaves of z are
            [*batch, *event], and the Jacobian is summed over event axes: those that log_joint's
            value has not. Noise, auxiliary output and minibatches (`keyed`, `minibatch`) stay what
            they are. Targets that hold q are made of the result, with the q over y, as
            `exact_entropy(target, q)`; latents are integrated out (`collapse`, ...) before.
        constraints: for each leaf of z one of `targets.constraints`, or None for a leaf that is
            unconstrained (or discrete); one for a whole subtree counts for each of its leaves. In
            dicts, tuples and lists also callables of the leaves before them, constrained, in the
            order written: earlier -> constraint, or a further container of them.

    Returns:
        Transformed: (log_joint, constrain, unconstrain). A family's `init` takes
        unconstrain(start), and jax.vmap(constrain) maps an estimate's draws to the latents.

    Raises:
        TypeError: for what is no constraint; (when called) for integers under a constraint.
        ValueError: for a target that holds terms of q in closed form; (when called) where
            constraints and latents have different leaves, a constraint does not fit its leaf's
            shape, or a leaf does not begin with the batch axes of log_joint's value.

    Example:
        >>> from vijax.targets.constraints import affine, positive
        >>> target, constrain, unconstrain = transform(
        ...     lambda z: -z["tau"] - z["x"] ** 2,
        ...     {"tau": positive, "x": lambda earlier: affine(5.0, earlier["tau"])},
        ... )
        >>> jax.tree.map(float, constrain({"tau": 0.0, "x": 2.0}))
        {'tau': 1.0, 'x': 7.0}

    Reference: Kucukelbir, Tran, Ranganath, Gelman, Blei, Automatic differentiation variational
        inference, 2017, arXiv:1603.00788; Stan reference manual, 2024, Constraint transforms.
    """
    log_joint = checks.target(
        log_joint, "targets.transform", keyed=True, only_mean=True, has_aux=True
    )
    _refuse_others(constraints, ())
    has_aux = properties(log_joint).has_aux

    def forward(y: PyTree) -> tuple[PyTree, list[tuple[str, Array]]]:
        # A list, since two leaves may have one name, and each its Jacobian
        log_jacobians: list[tuple[str, Array]] = []

        def visit(constraint: Constraint, leaf: PyTree, name: str) -> tuple[PyTree, PyTree]:
            z, log_jacobian = constraint.forward(leaf)
            log_jacobians.append((name, log_jacobian))
            return z, z

        return _walk(visit, constraints, y, ())[1], log_jacobians

    def unconstrain(z: PyTree) -> PyTree:
        def visit(constraint: Constraint, leaf: PyTree, _: str) -> tuple[PyTree, PyTree]:
            y = constraint.inverse(leaf)
            if is_known(y) and np.isnan(y).any():
                raise ValueError(
                    f"a start must lie inside of its constraint, and {np.asarray(leaf)!s:.60} does not, for its free "
                    "value is nan: give it one inside."
                )
            # Later constraints read the leaf as forward makes it, with its logarithms if it has them.
            again = constraint.forward(y)[0]
            return y, again if isinstance(again, Logged) else leaf

        return _walk(visit, constraints, z, ())[0]

    def target(y: PyTree, **given: Any) -> Any:
        z, log_jacobians = forward(y)
        out = log_joint(z, **given)
        if has_aux and not (isinstance(out, tuple) and len(out) == 2):
            raise TypeError(
                f"a target with has_aux=True returns (log_p, aux), got {type(out).__name__}."
            )
        log_p, aux = out if has_aux else (out, None)
        factors = list(log_p.values()) if isinstance(log_p, dict) else [log_p]
        if not factors or any(
            factor is None or isinstance(factor, (tuple, list)) for factor in factors
        ):
            # Every objective refuses this, and says why.
            return out
        # What a Jacobian has beyond the batch are event axes.
        batch = jnp.shape(factors[0])
        sums = [(name, _over_events(value, batch, name)) for name, value in log_jacobians]
        # Factors stay apart, so that each leaf's score reads only its own.
        if isinstance(log_p, dict):
            log_p = dict(log_p)
            for name, value in sums:
                name = f"log-Jacobian of {name}"
                log_p[name] = log_p[name] + value if name in log_p else value
        else:
            log_p = sum((value for _, value in sums), jnp.asarray(log_p))
        return (log_p, aux) if has_aux else log_p

    # A constraint may read other members' leaves.
    target = derive(log_joint, target, independent_members=False)
    return Transformed(target, lambda y: forward(y)[0], unconstrain)


Visit = Callable[[Constraint, PyTree, str], tuple[PyTree, PyTree]]
Path = tuple[Any, ...]


def _walk(visit: Visit, constraints: PyTree, tree: PyTree, path: Path) -> tuple[PyTree, PyTree]:
    """Visit the leaves in the order of the constraints; return what was made of them, and them constrained."""
    if constraints is None or constraints is real:
        return tree, tree
    if isinstance(constraints, Constraint):
        leaves, structure = jax.tree_util.tree_flatten_with_path(
            tree, is_leaf=lambda leaf: isinstance(leaf, Logged)
        )

        def name(keys: tuple[Any, ...]) -> str:
            inner = jax.tree_util.keystr(keys, simple=True, separator=".")
            return _show((*path, inner) if keys else path)

        pairs = [_visit(visit, constraints, leaf, name(keys)) for keys, leaf in leaves]
        made, constrained = zip(*pairs, strict=True) if pairs else ((), ())
        return jax.tree.unflatten(structure, made), jax.tree.unflatten(structure, constrained)
    _same_names(constraints, tree, path)
    # What `visit` made of the leaves so far, and the same leaves constrained, by name
    collected: tuple[dict[Any, Any], dict[Any, Any]] = ({}, {})
    for name in _names(constraints):
        part, here = constraints[name], (*path, name)
        # A callable makes the constraint of the leaves before it.
        if callable(part):
            part = _given(part, _collect(tree, collected[1]), here)
            _refuse_others(part, here)
        for into, value in zip(collected, _walk(visit, part, tree[name], here), strict=True):
            into[name] = value
    return _collect(tree, collected[0]), _collect(tree, collected[1])


def _visit(visit: Visit, constraint: Constraint, leaf: PyTree, name: str) -> tuple[PyTree, PyTree]:
    # A Python number's own type is weak, and gives way to any other.
    leaf = jax.tree.map(lambda part: jnp.asarray(part, jnp.result_type(part)), leaf)
    first = leaf.value if isinstance(leaf, Logged) else leaf
    if not jnp.issubdtype(first.dtype, jnp.floating):
        raise TypeError(
            f"leaf '{name}' is {first.dtype}: a constraint is for floats, 2.0 for 2; give a "
            "discrete leaf None."
        )
    try:
        return visit(constraint, leaf, name)
    except ValueError as error:
        raise ValueError(f"the constraint of leaf '{name}', {first.shape}: {error}") from error


def _given(make: Callable[[PyTree], PyTree], earlier: PyTree, path: Path) -> PyTree:
    try:
        return make(earlier)
    except (KeyError, IndexError) as error:
        raise ValueError(
            f"the constraint of leaf '{_show(path)}' asks for {error}, and the leaves before it "
            f"are {_names(earlier)}: write a leaf's constraint after those of the leaves that it "
            "reads."
        ) from error


def _over_events(log_jacobian: Array, batch: tuple[int, ...], name: str) -> Array:
    shape = jnp.shape(log_jacobian)
    if shape[: len(batch)] != batch:
        raise ValueError(
            f"log_joint(z) has shape {batch}, and leaf '{name}' has {shape} before the axes of its "
            "constraint: a leaf must be [*batch, *event], *batch the shape of log_joint(z). Sum "
            "log_joint over event axes, or give the leaf its batch axes first."
        )
    return jnp.sum(log_jacobian, tuple(range(len(batch), len(shape))))


def _refuse_others(constraints: PyTree, path: Path) -> None:
    """Refuse what is neither a constraint nor a container of them; a callable needs leaves before it."""
    if constraints is None or isinstance(constraints, Constraint):
        return
    if not isinstance(constraints, (Mapping, tuple, list)):
        why = ""
        if callable(constraints):
            why = (
                ": a callable of earlier leaves belongs inside a dict, tuple or list; or does it "
                "lack its arguments?"
            )
        raise TypeError(
            f"constraints at '{_show(path)}' must be one of targets.constraints, None, or a dict, "
            f"tuple or list of them, got {constraints!r:.60}{why}"
        )
    for name in _names(constraints):
        if isinstance(constraints[name], Constraint) or not callable(constraints[name]):
            _refuse_others(constraints[name], (*path, name))


def _same_names(constraints: PyTree, tree: PyTree, path: Path) -> None:
    own, given = _names(constraints), _names(tree)
    alike = isinstance(constraints, Mapping) == isinstance(tree, Mapping)
    if given is None or not alike or len(own) != len(given) or set(own) != set(given):
        shapes = jax.tree.map(jnp.shape, tree)
        raise ValueError(
            f"constraints and latents must have the same leaves at '{_show(path)}': constraints is "
            f"a {type(constraints).__name__} of {own}, the latents have shapes {shapes}. Give each "
            "latent a constraint, or None where it is free."
        )


def _names(tree: PyTree) -> Any:
    if isinstance(tree, Mapping):
        return list(tree)
    return list(range(len(tree))) if isinstance(tree, (tuple, list)) else None


def _collect(like: PyTree, leaves: Mapping[Any, Any]) -> PyTree:
    """Put leaves in a container of the latents' kind; a tuple of all or of the first ones."""
    if isinstance(like, Mapping):
        return dict(leaves)
    if hasattr(like, "_fields") and len(leaves) == len(like):
        return type(like)(*leaves.values())
    return list(leaves.values()) if isinstance(like, list) else tuple(leaves.values())


def _show(path: Path) -> str:
    return ".".join(map(str, path)) or "z"
