"""Expectations under the posterior, by weighted draws that are used and forgotten."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from vijax import checks
from vijax.calls import described, function, usage
from vijax.engine import Plan, evaluate, iid, plan, split_rows
from vijax.numerics import expand
from vijax.trees import scan
from vijax.types import Distribution, LogJoint, PyTree, lift, properties

CURE = "give it all the data"


class Expectation(NamedTuple):
    """A self-normalized expectation.

    Fields:
        value: Σₖ w̃ₖ f(zₖ), like f(z), [*batch, ...].
        error: its standard error by the delta method, like f(z).
        log_w: log-weights in nats, [k, *batch], for `diagnostics.khat` and `ess`.
    """

    value: PyTree
    error: PyTree
    log_w: Array


class Sums(NamedTuple):
    """What is gathered on the way, in units of exp(top): vₖ = exp(log wₖ - top), Σ over draws so far.

    Fields:
        top: the largest log-weight, [*batch].
        total: Σ v, [*batch].
        squares: Σ v², [*batch].
        mean: of each leaf of f, m = Σ v f / Σ v, [*batch, ...].
        first: Σ v² (f - m).
        second: Σ v² (f - m)².
    """

    top: Array
    total: Array
    squares: Array
    mean: list[Array]
    first: list[Array]
    second: list[Array]


@usage(
    "draws.expectation",
    "draws.expectation(key, log_joint, q, f, num_samples=10_000, chunk_size=100)",
)
def expectation(
    key: Key[Array, ""],
    log_joint: LogJoint,
    q: Distribution | PyTree,
    f: Callable[[PyTree], PyTree],
    *,
    num_samples: int,
    chunk_size: int | None = None,
) -> Expectation:
    """Posterior expectation of any function of the latents, by self-normalized weights of q's draws, in a stream.

        E[f(z) | x] ≈ Σₖ w̃ₖ f(zₖ),     se² = c Σₖ w̃ₖ² (f(zₖ) - m)²,     w̃ = softmax(log w),   c = 1 / (1 - Σₖ w̃ₖ²)

    For what is imputed, predicted or corrected at ten thousands of draws: neither draws nor values of f are kept.

    Args:
        key: a typed key, consumed; the draws are those of `weigh` with it.
        log_joint: z -> log p(x, z), [*batch], in nats, of one draw.
        q: a distribution with batch shape [*batch], or a pytree of them.
        f: one draw -> a pytree of [*batch, ...], numbers or booleans; what it shares with log_joint, such as a
            decoder, is computed once.
        num_samples: k.
        chunk_size: how many draws are in memory at a time, all where None; the result depends on it by rounding alone.

    Returns:
        Expectation. Believe it, and its error, where `diagnostics.khat(log_w)` is below .7. It is biased by about 1/ESS
        of a posterior standard deviation, where one draw has all the weight the error is +inf, and where none is
        possible the value is nan. No derivative passes (stop_gradient).

    Raises:
        TypeError: for a raw key, a q without the two methods, an f that is no function or not of real numbers.
        ValueError: for counts below 1, leaves of f(z) that do not begin with [*batch], and a target that is unbiased in
            its mean alone.

    Example:
        >>> q = distrax.Normal(0.0, 1.0)
        >>> log_joint = lambda z: q.log_prob(z) + z  # the posterior is N(1, 1)
        >>> found = expectation(
        ...     jax.random.key(0), log_joint, q, lambda z: z**2, num_samples=10_000, chunk_size=100
        ... )
        >>> abs(float(found.value) - 2) < 4 * float(found.error)
        True

    Reference: Owen, Monte Carlo theory, methods and examples, 2013, section 9.2; Milakov, Gimelshein, Online
        normalizer calculation for softmax, 2018, arXiv:1805.02867.
    """
    checks.key(key)
    checks.num_samples(num_samples, chunk_size)
    function(f, "f")
    log_joint = checks.target(log_joint, "draws.expectation", keyed=True, has_aux=True, cure=CURE)
    posterior = lift(q)
    seeds = plan(key, properties(log_joint).keyed, iid, num_samples)
    chunks, k, number, rows = split_rows(seeds, num_samples if chunk_size is None else chunk_size)

    def of_chunk(seeds: Plan) -> tuple[Array, PyTree]:
        """Return log-weights [rows, *batch] and values of f, leaves [rows, *batch, ...]."""
        z, log_q = jax.vmap(lambda seed: iid.sample(seed, posterior))(seeds.draw)
        log_p, _ = evaluate(log_joint, z, log_q, seeds.model)
        values = jax.vmap(f)(z)
        _check_values(values, log_q)
        log_w = log_p - log_q
        least = jnp.promote_types(log_w.dtype, jnp.float32)
        return log_w, jax.tree.map(lambda a: a.astype(jnp.promote_types(a.dtype, least)), values)

    # Shapes alone: nothing is drawn here.
    log_w, values = jax.eval_shape(of_chunk, jax.tree.map(lambda a: a[0], chunks))
    leaves, tree = jax.tree.flatten(values)
    zeros = [[jnp.zeros(a.shape[1:], a.dtype) for a in leaves] for _ in range(3)]
    none = jnp.zeros(log_w.shape[1:], jnp.promote_types(log_w.dtype, jnp.float32))
    start = Sums(jnp.full_like(none, -jnp.inf), none, none, *zeros)

    def one_chunk(sums: Sums, chunk: tuple[Array, Plan]) -> tuple[Sums, Array]:
        is_draw, seeds = chunk
        log_w, values = of_chunk(seeds)
        # Rows that fill the last chunk have no weight.
        counted = jnp.where(expand(is_draw, log_w), log_w, -jnp.inf).astype(none.dtype)
        return _added(sums, counted, jax.tree.leaves(values)), log_w

    is_draw = (jnp.arange(number * rows) < k).reshape(number, rows)
    sums, each = scan(one_chunk, start, (is_draw, chunks))
    results = [_finished(sums, leaf) for leaf in range(len(leaves))]
    value, error = (jax.tree.unflatten(tree, part) for part in zip(*results, strict=True))
    every = each.reshape(number * rows, *each.shape[2:])[:k]
    return jax.lax.stop_gradient(Expectation(value, error, every))


def _check_values(values: PyTree, log_q: Array) -> None:
    """Refuse values of f, [rows, *batch, ...], that are no numbers or lack the batch."""
    if not jax.tree.leaves(values):
        raise TypeError(f"f must return arrays, got {described(values)}; does it lack a return?")
    for name, leaf in checks.named_leaves(values):
        if not any(
            jnp.issubdtype(leaf.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)
        ):
            raise TypeError(
                f"f must return real numbers, leaf '{name}' is {leaf.dtype}: its parts, .real and .imag."
            )
        if leaf.shape[: log_q.ndim] != log_q.shape:
            raise ValueError(
                f"each leaf of f(z) must begin with q's batch shape {log_q.shape[1:]}, leaf '{name}' is "
                f"{leaf.shape[1:]}: one value for each member of the batch."
            )


def _added(sums: Sums, log_w: Array, leaves: list[Array]) -> Sums:
    """Add a chunk: its own weighted moments are taken first, then both are moved to the common mean."""
    # A weight of +inf takes all, as in `numerics.normalized_weights`.
    log_w = jnp.minimum(log_w, jnp.finfo(log_w.dtype).max)
    top = jnp.maximum(sums.top, jnp.max(log_w, 0))
    # Where no draw is possible so far every weight is 0, in any units.
    unit = jnp.where(top == -jnp.inf, 0.0, top)
    shrink, v = jnp.exp(sums.top - unit), jnp.exp(log_w - unit[None])
    old_total, old_squares = sums.total * shrink, sums.squares * shrink**2
    new_total, new_squares = jnp.sum(v, 0), jnp.sum(v**2, 0)
    total = old_total + new_total
    share = new_total / jnp.where(total == 0, 1.0, total)
    means, firsts, seconds = [], [], []
    for f, mean, first, second in zip(leaves, sums.mean, sums.first, sums.second, strict=True):
        weight, of_leaf = expand(v, f), expand(new_total, mean)
        # What has no weight counts for nothing, whatever f is there.
        f = jnp.where(weight > 0, f, 0.0)
        rough = jnp.sum(weight * f, 0) / jnp.where(of_leaf == 0, 1.0, of_leaf)
        off = jnp.where(weight > 0, f - rough[None], 0.0)
        common = mean + expand(share, mean) * (rough - mean)
        scale = expand(shrink, mean) ** 2
        old = _moved(common - mean, expand(old_squares, mean), scale * first, scale * second)
        new = _moved(
            common - rough,
            expand(new_squares, mean),
            jnp.sum(weight**2 * off, 0),
            jnp.sum((weight * off) ** 2, 0),
        )
        means.append(common)
        firsts.append(old[0] + new[0])
        seconds.append(old[1] + new[1])
    return Sums(top, total, old_squares + new_squares, means, firsts, seconds)


def _moved(by: Array, squares: Array, first: Array, second: Array) -> tuple[Array, Array]:
    """Return Σ v² (f - m) and Σ v² (f - m)² of a mean m that has moved."""
    return first - by * squares, second - 2 * by * first + by**2 * squares


def _finished(sums: Sums, leaf: int) -> tuple[Array, Array]:
    """Return the expectation of a leaf of f, and its standard error."""
    none = sums.total == 0
    total = jnp.where(none, 1.0, sums.total)
    squares = sums.squares / total**2
    # Within rounding of 1 there is one draw, and no spread is known.
    unknown = (1 - squares <= 8 * jnp.finfo(squares.dtype).eps) | none
    c = 1 / jnp.where(unknown, 1.0, 1 - squares)
    mean, second = sums.mean[leaf], sums.second[leaf]
    unknown, none, c, total = (expand(a, mean) for a in (unknown, none, c, total))
    error = jnp.sqrt(c * jnp.maximum(second, 0.0)) / total
    return jnp.where(none, jnp.nan, mean), jnp.where(unknown, jnp.inf, error)
