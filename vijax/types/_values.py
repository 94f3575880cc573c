"""The kinds of function that vijax is made of, and the values they exchange."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float, Key

# Params, latents and states may be any pytree of arrays, which a type checker cannot say.
PyTree = Any
LogJoint = Callable[..., Any]
"""z -> log p(x, z), [*batch], or a dict of factors each [*batch], unnormalized: z is ONE draw, any
pytree."""


@runtime_checkable
class Distribution(Protocol):
    """What vijax asks of q: two methods, of which distrax has both; `families.adapt` lends them to TFP and NumPyro."""

    def sample_and_log_prob(
        self, *, seed: Key[Array, ""], sample_shape: Sequence[int]
    ) -> tuple[PyTree, Array]:
        """Draw z and return it with log q(z), shape [*sample_shape, *batch]."""
        ...

    def log_prob(self, z: PyTree, /) -> Array:
        """Return log q(z), shape [*batch]."""
        ...


class Draw(NamedTuple):
    """A way to draw: all that is random is planned first, so that no result depends on chunk size
    or device count.

    Fields:
        seeds: (key, num_samples) -> a pytree with leading axis k, one row for each draw.
        sample: (one row of seeds, q) -> (z, log q(z)), one draw.
        independent: whether the k draws are independent and each from q, which dreg, score, vimco and auto rely on.
        weights: (q, num_samples) -> [k] or [k, *batch], differentiable, the weight of each draw where they do not count
            alike; Σₖ weightsₖ f(zₖ) must be unbiased for E_q[f].
    """

    seeds: Callable[[Any, int], PyTree]
    sample: Callable[[PyTree, Any], tuple[PyTree, Array]]
    independent: bool
    weights: Callable[[Any, int], Array] | None = None


@runtime_checkable
class Bound(Protocol):
    """Arithmetic on log-weights: [k, *batch] -> [*batch]; it holds no gradient code."""

    def __call__(
        self, log_w: Float[Array, "k *batch"], /, *, weights: Array | None = None
    ) -> Float[Array, "*batch"]:
        """Return the bound of the log-weights of k draws; `weights` sum to 1 over axis 0 and default to 1/k."""
        ...


@jax.tree_util.register_static
class Caveat(str):
    """What is to be known of some draws, a clause: static, so that it passes through jit, vmap and scan."""

    __slots__ = ()


class Draws(NamedTuple):
    """What an objective evaluated: k draws and their log-densities, gradients stopped.

    Fields:
        z: the latents [k, *batch, ...]; None where `chunk_size` kept them from being stored.
        log_p: log p(x, z) in nats, [k, *batch].
        log_q: log q(z) in nats, [k, *batch].
        weights: of strata: how much of q each draw stands for, so that Σₖ weightsₖ f(zₖ) is unbiased for E_q[f],
            summing to 1 over axis 0; None means 1/k. Importance weights are no part of them: those are in log_w.
        aux: what a `targets.keyed(..., has_aux=True)` model returned beside log p, stacked over k.
        only_mean: why log_p is right in its mean alone, as of a minibatch; None where it is log p(x, z). Such draws
            have no importance weights, and no diagnostic takes them.
    """

    z: PyTree
    log_p: Array
    log_q: Array
    weights: Array | None = None
    aux: PyTree = None
    only_mean: Caveat | None = None

    @property
    def log_w(self) -> Array:
        """Log-weights log p(x, z) - log q(z) in nats, [k, *batch]."""
        return self.log_p - self.log_q


class Level(NamedTuple):
    """How far a randomly truncated sum goes: `value`, () or [*batch], out of levels of these `probabilities` [m]."""

    value: Array
    probabilities: Array


class Estimate(NamedTuple):
    """An objective's answer: `value` [*batch] in nats, the only differentiable part, and its
    stopped `draws`.

    Second derivatives of the value are right for `reparam`, and for estimators where they choose what it does; of the
    others they are refused.
    """

    value: Array
    draws: Draws


@runtime_checkable
class Objective(Protocol):
    """A bound together with its gradient: what every estimator of `vijax.gradients` makes of a
    bound.

        (key, log_joint, q, *, num_samples, chunk_size=None) -> Estimate
    """

    def __call__(
        self,
        key: Key[Array, ""],
        log_joint: LogJoint,
        q: Distribution | PyTree,
        *,
        num_samples: int,
        chunk_size: int | None = None,
    ) -> Estimate:
        """Estimate the bound from `num_samples` draws, `chunk_size` of them in memory at a time.

        Args:
            key: a typed key, consumed.
            log_joint: z -> log p(x, z) in nats, [*batch], of one draw.
            q: a distribution with batch shape [*batch], or a dict, list or tuple of them.
            num_samples: k.
            chunk_size: how many draws are evaluated at a time; all of them where None.

        Returns:
            Estimate(value, draws): differentiate the value in what q and log_joint close over.

        Raises:
            TypeError: for a raw key, or a q that is not a distribution.
            ValueError: for shapes that do not agree, and for what the estimator cannot be right for.
        """
        ...


class Family(NamedTuple):
    """A variational family: `init(key, like) -> params` and `dist(params) -> Distribution`.

    Fields:
        init: (key, like) -> params, a pytree of floats, of a q about like, which is one draw of z;
            a family that draws nothing there takes None for a key.
        dist: params -> q of batch shape (), an array, or a dict or tuple of arrays, as like is.
    """

    init: Callable[..., PyTree]
    dist: Callable[[PyTree], Any]


class Step(NamedTuple):
    """What a rule reports of one step, at the state that came in.

    Fields:
        value: the estimate of the bound, () in nats.
        draws: what it was made of; None where the rule draws nothing.
        gradient: of `value`, like params or a part of them; None where the rule shows none.
        taken: what share of the step was taken, (): 0 where the state stayed as it was.
    """

    value: Array
    draws: Draws | None = None
    gradient: PyTree = None
    # 1 for rules that always move, and that need not say so.
    taken: float | Array = 1.0


class Rule(NamedTuple):
    """An update rule: what a training loop repeats, `fitting.fit` or a loop of your own.

    Fields:
        init: (params, memory=None) -> state.
        step: (key, state) -> (state, Step).
        params: state -> params.
    """

    init: Callable[..., Any]
    step: Callable[[Any, Any], tuple[Any, Step]]
    params: Callable[[Any], PyTree]
