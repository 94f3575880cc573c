"""Finite discrete latents summed out exactly, each site alone: S evaluations where brute force needs Sᴺ."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import Array, ArrayLike

from vijax import checks, jaxprs
from vijax.calls import usage
from vijax.numerics import log_mean_exp, log_normalized
from vijax.types import LogJoint, PyTree, properties


class Enumerated(NamedTuple):
    """What is left when discrete latents are summed out.

    Fields:
        log_joint: z -> log p(x, z), [*batch] in nats.
        posterior: z -> `Sites`, the exact p(c | x, z).
    """

    log_joint: LogJoint
    posterior: Callable[[PyTree], "Sites"]


class Sites:
    """Independent finite variables, one at each site: a distribution of c with batch shape [*batch].

    Attributes:
        log_probs: log p(c_site = s | x, z), [*batch, *plate, s₁, s₂, ...], an axis of states for each leaf of c in the
            order of JAX. Where no state is possible all are as likely.
    """

    def __init__(self, log_probs: Array, values: list[Array], tree: PyTree, batch: int):
        self.log_probs, self._values, self._tree, self._batch = log_probs, values, tree, batch
        self._sites = log_probs.ndim - len(values)

    def sample_and_log_prob(
        self, *, seed: Array, sample_shape: Sequence[int] = ()
    ) -> tuple[PyTree, Array]:
        """Draw every site; return c, leaves [*sample_shape, *batch, *plate], and log p(c | x, z)."""
        shape = self.log_probs.shape
        # One axis of joint states, [*batch, *plate, S], from which each site draws its row
        flat = self.log_probs.reshape(*shape[: self._sites], -1)
        row = jax.random.categorical(seed, flat, shape=(*sample_shape, *flat.shape[:-1]))
        log_prob = jnp.sum(
            jnp.where(_one_hot(row, flat.shape[-1]), _expand_left(flat, len(sample_shape)), 0.0), -1
        )
        # The row of a joint state is a state of each leaf.
        each = jnp.unravel_index(row, shape[self._sites :])
        c = [values[i] for values, i in zip(self._values, each, strict=True)]
        return jax.tree.unflatten(self._tree, c), self._total(log_prob, len(sample_shape))

    def log_prob(self, c: PyTree, /) -> Array:
        """Return log p(c | x, z), [*batch]; -inf for a value that is none of the states."""
        leaves, tree = jax.tree.flatten(c)
        if tree != self._tree:
            raise ValueError(
                f"c has structure {tree}, where the states that were summed have {self._tree}."
            )
        # [*batch, *plate, s₁, s₂, ...], true at the joint state that c names, an axis for each leaf
        one_hot = jnp.ones((1,) * self._sites, bool)
        for leaf, values in zip(leaves, self._values, strict=True):
            shape = (*self.log_probs.shape[: self._sites], *values.shape[1:])
            if jnp.shape(leaf) != shape:
                raise ValueError(
                    f"a leaf of c has shape {jnp.shape(leaf)}, its sites and states are {shape}."
                )
            # [*batch, *plate, s]: every element of an event must match.
            is_state = jnp.expand_dims(jnp.asarray(leaf), self._sites) == _expand_left(
                values, self._sites
            )
            is_state = jnp.all(is_state, range(self._sites + 1, is_state.ndim))
            is_state = jnp.expand_dims(is_state, range(self._sites, one_hot.ndim))
            one_hot = one_hot[..., None] & is_state
        states = tuple(range(self._sites, one_hot.ndim))
        log_prob = jnp.sum(jnp.where(one_hot, self.log_probs, 0.0), states)
        # A value that is none of the states has probability 0.
        return self._total(jnp.where(jnp.any(one_hot, states), log_prob, -jnp.inf), 0)

    def _total(self, log_prob: Array, samples: int) -> Array:
        return jnp.sum(log_prob, range(samples + self._batch, log_prob.ndim))


@usage("targets.enumerate")
def enumerate(  # the name that the field gives it; one writes targets.enumerate
    log_joint: Callable[[PyTree, PyTree], Any],
    states: PyTree,
    *,
    plate: tuple[int, ...] = (),
    batch: tuple[int, ...] = (),
) -> Enumerated:
    """Sum discrete latents out exactly, where the sites of c are independent given z.

        log p(x, z) = log p₀(z) + Σ_site log Σₛ exp f_site(z, s),     f_site at c_site = s

    For mixtures, mixed memberships and missing labels: S evaluations of log_joint for any number of
    sites. For a chain use `sequences.hmm`.

    Args:
        log_joint: (z, c) -> log p(x, z, c) in nats with a term for each site, [*batch, *plate], not
            summed over the plate; or a dict of such factors, among which [*batch] are those of z
            alone, counted once. Its jaxpr must show that no term reads another site's state. If
            each term reads its own site alone through something that cannot be followed, write it
            for one site and `jax.vmap` it, or declare `types.derive(log_joint, log_joint,
            independent_sites=True)`, which is taken on trust.
        states: a pytree like c: how many states a leaf has, 0 ... s-1 as integers; or their values
            [s, *event], no two alike (the density of a draw would count only one of them). Several
            leaves take the product of their states.
        plate: shape of the sites that share z, summed over. For a global c above a plate, enumerate
            twice: the inner target of (z, c) is the outer's log_joint.
        batch: shape of the batch of z, kept. Every leaf of c is [*batch, *plate, *event].

    Returns:
        Enumerated(log_joint, posterior): the collapsed target z -> log p(x, z), [*batch], for any
        bound and estimator; and z -> p(c | x, z), with `log_probs` and the two methods of a
        distribution, to draw c afterwards. States of -inf get gradient 0; where all are, the target
        is -inf with gradient 0. At a weight w of exactly 0 the slope of log w in log_joint is
        infinite, and that of the sum nan: sum such states by `numerics.log_mean_exp(...,
        weights=w)`.

    Raises:
        TypeError: where states, plate or batch are not whole numbers or arrays of values.
        ValueError: for no states; for a target with noise or of a minibatch; or (when called) where
            factors have other shapes, a factor of z alone reads c, or sites cannot be told to be
            independent.

    Example:
        >>> def log_joint(z, c):
        ...     return {"prior": -0.5 * z**2, "x": jnp.log(jnp.array([1.0, 3.0]))[c]}
        >>> target, posterior = enumerate(log_joint, 2, plate=(5,))
        >>> round(float(target(0.0)), 3)  # 5 log (1 + 3)
        6.931
        >>> posterior(0.0).log_probs.shape
        (5, 2)

    Reference: Obermeyer, Bingham, Jankowiak, Chiu, Pradhan, Rush, Goodman, Tensor variable
        elimination for plated factor graphs, 2019, arXiv:1902.03210.
    """
    cure = "enumerate its log-likelihood with batch=(B,), and give that target to targets.minibatch"
    log_joint = checks.target(log_joint, "targets.enumerate", cure=cure)
    for name, shape in (("plate", plate), ("batch", batch)):
        if not isinstance(shape, tuple) or not all(
            isinstance(n, int) and not isinstance(n, bool) for n in shape
        ):
            raise TypeError(
                f"{name} must be a shape, a tuple of whole numbers such as ({shape!r},), got "
                f"{shape!r}."
            )
    given, tree = jax.tree.flatten(states)
    if not given:
        raise ValueError(
            "states holds no leaf: give the number of states of c, or a pytree of them."
        )
    sites, sizes = batch + plate, [_count(s) for s in given]

    def rows(values: list[Array]) -> PyTree:
        """Return all joint states of one site, at every site: leaves [S, *sites, *event]."""
        # [leaves, S]: which state each leaf has in each joint state
        each = np.indices(tuple(sizes)).reshape(len(sizes), -1)
        at = [
            v[i].reshape(len(i), *(1,) * len(sites), *v.shape[1:])
            for v, i in zip(values, each, strict=True)
        ]
        return [jnp.broadcast_to(a, (len(a), *sites, *a.shape[1 + len(sites) :])) for a in at]

    def terms(z: PyTree) -> tuple[Array, list[Array], list[Array]]:
        """Return site terms [S, *sites], the factors free of c, and the values of the states."""
        values = [_values(s) for s in given]
        stacked = rows(values)
        # Traced once, at one joint state; the jaxpr shows which sites a factor reads.
        closed, shapes = jaxprs.trace(
            lambda leaves: _plain(log_joint(z, jax.tree.unflatten(tree, leaves))),
            [a[0] for a in stacked],
        )
        declared = properties(log_joint).independent_sites
        once = _check(closed, shapes, len(given), batch, plate, declared=declared)
        factors = jax.vmap(lambda leaves: core.jaxpr_as_fun(closed)(*leaves))(stacked)
        # Factors of z alone are equal in all rows: the first stands for them.
        free = [f[0] for f, of_z in zip(factors, once, strict=True) if of_z]
        total = sum(f for f, of_z in zip(factors, once, strict=True) if not of_z)
        return jnp.asarray(total), free, values

    def collapsed(z: PyTree) -> Array:
        each, free, _ = terms(z)
        # log Σₛ exp of each site, [*batch, *plate]
        sums = log_mean_exp(each) + math.log(each.shape[0])
        return sum(free, jnp.sum(sums, range(len(batch), sums.ndim)))

    def posterior(z: PyTree) -> Sites:
        each, _, values = terms(z)
        # [S, *batch, *plate] to [*batch, *plate, s₁, s₂, ...]
        log_probs = jnp.moveaxis(log_normalized(each), 0, -1)
        return Sites(log_probs.reshape(*log_probs.shape[:-1], *sizes), values, tree, len(batch))

    return Enumerated(collapsed, posterior)


def _plain(out: PyTree) -> PyTree:
    # JAX sorts the names of a dict, and of no other mapping.
    return dict(out) if isinstance(out, dict) else out


def _expand_left(x: Array, axes: int) -> Array:
    """Give x so many leading axes of size 1."""
    return jnp.reshape(x, (1,) * axes + x.shape)


def _one_hot(row: Array, states: int) -> Array:
    return row[..., None] == _expand_left(jnp.arange(states), row.ndim)


def _count(leaf: int | ArrayLike) -> int:
    if isinstance(leaf, bool) or not (
        isinstance(leaf, int) or (hasattr(leaf, "shape") and jnp.ndim(leaf))
    ):
        raise TypeError(
            f"states must be a whole number or an array of values [s, *event], got {leaf!r}."
        )
    count = leaf if isinstance(leaf, int) else int(leaf.shape[0])
    if count < 1:
        raise ValueError(f"a latent must have at least one state, got {count}.")
    return count


def _values(leaf: int | ArrayLike) -> Array:
    return jnp.arange(leaf) if isinstance(leaf, int) else jnp.asarray(leaf)


def _check(
    closed: core.ClosedJaxpr,
    shapes: PyTree,
    leaves: int,
    batch: tuple[int, ...],
    plate: tuple[int, ...],
    *,
    declared: bool,
) -> list[bool]:
    """Return which factors are free of c; refuse the wrong shapes, and sites not shown to be independent."""
    sites = batch + plate
    factors = dict(shapes) if isinstance(shapes, dict) else {"": shapes}
    if not factors or not all(isinstance(f, jax.ShapeDtypeStruct) for f in factors.values()):
        raise TypeError(
            f"log_joint(z, c) must return an array or a flat dict of arrays, got {shapes!r:.200}."
        )
    # An axis of one site is independent of others.
    several = [k for k, n in zip(range(len(sites)), sites, strict=True) if n > 1]
    # For each factor: the axis along which it keeps each such axis of c, or why it does not.
    flows = jaxprs.axes(closed, [tuple(several)] * leaves)
    once = []
    # A dict's leaves come sorted by name.
    for name, axes in zip(sorted(factors), flows, strict=True):
        what, factor = f"log_joint(z, c){[name] if name else ''}", factors[name]
        if not jnp.issubdtype(factor.dtype, jnp.floating):
            raise TypeError(f"{what} must be real floating, got {factor.dtype}.")
        if factor.shape not in (sites, batch):
            raise ValueError(
                f"{what} has shape {factor.shape}; it must have a term for each site, {sites} "
                f"(batch {batch}, plate {plate}), neither summed nor averaged over them, or be a "
                f"factor of z alone, {batch}."
            )
        alone = factor.shape != sites
        if alone and axes is not None:
            raise ValueError(
                f"{what} has shape {factor.shape}, as a factor of z alone, and reads c: return one "
                f"term for each site, {sites}, and leave the sum over the plate to enumerate."
            )
        if not (alone or axes is None or declared):
            _refuse_coupled(what, axes, several)
        once.append(alone)
    if all(once):
        raise ValueError("log_joint(z, c) does not read c: it has no term for each site.")
    return once


def _refuse_coupled(what: str, axes: Sequence[Any], several: list[int]) -> None:
    for axis, kept in zip(several, axes, strict=True):
        if kept != axis:
            how = (
                f"through '{kept}'"
                if isinstance(kept, str)
                else f"which it holds along axis {kept}"
                if isinstance(kept, int)
                else "which a reshape has merged with another"
            )
            raise ValueError(
                f"{what} mixes the sites along axis {axis} of c, {how}: a term that reads another "
                "site's state cannot be summed site by site. For a chain use sequences.hmm; for a "
                "few coupled sites, one latent of all their joint states. If each term does read "
                "its own site alone, write it for one site and jax.vmap it over the sites, or "
                "declare it: types.derive(log_joint, log_joint, independent_sites=True)."
            )
