"""IVON: a diagonal Gaussian over a network's weights, at the price of Adam, by Optax."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int, Key

from vijax import checks
from vijax.calls import is_known
from vijax.trees import finite_leaves, where
from vijax.types import PyTree
from vijax.updates._rule import Rate

Number = int | float | Array


class IvonState(NamedTuple):
    """Where IVON is; the mean of its Gaussian is the params themselves.

    Fields:
        momentum: like params, the running mean of gradients.
        hessian: like params, h: the running diagonal of the mean loss's Hessian.
        steps: how many were made, ().
        num_data: N of the next draws, ().
        weight_decay: δ of the next draws, ().
    """

    momentum: PyTree
    hessian: PyTree
    steps: Int[Array, ""]
    num_data: Float[Array, ""]
    weight_decay: Float[Array, ""]


def ivon(
    learning_rate: Rate,
    *,
    num_data: Number,
    weight_decay: Number,
    initial_hessian: Number = 1.0,
    beta1: Number = 0.9,
    beta2: Number = 0.99999,
    clip_radius: Number = float("inf"),
) -> Any:
    """Improved variational online Newton: a diagonal Gaussian over params, as an Optax optimizer.

        ĥ = E[∇l(w) (w - m)] / σ²,   σ² = 1 / (N (h + δ))
        h ← β₂ h + (1 - β₂) ĥ + ½ (1 - β₂)² (h - ĥ)² / (h + δ)
        g ← β₁ g + (1 - β₁) E[∇l(w)],   m ← m - α (g / (1 - β₁ᵗ) + δ m) / (h + δ)

    For networks, where `natural_gradient` is too expensive; it converges to the mean-field optimum.

    Args:
        learning_rate: α, of Newton's scale (.1 to 1 where the Hessian is right), or a function of
            the count of steps.
        num_data: N, the number of data behind the mean; or N over a temperature. The loss l is the
            MEAN negative log-likelihood of a datum in nats, also over a minibatch, without N/B.
        weight_decay: δ > 0: the prior of every weight is N(0, 1/(N δ)), and is not to be put into the
            loss too.
        initial_hessian: h at the start; larger is more careful.
        beta1: memory of the momentum.
        beta2: memory of the Hessian, which comes from gradients at perturbed weights (Stein's
            identity); noisy estimates want 1 - 1e-5, the default, and short runs less.
        clip_radius: the largest size of (g + δ m) / (h + δ) in any element.

    Returns:
        optax.GradientTransformationExtraArgs, of which `update` takes `weights` besides, and grads at
        them, of one draw or [k, ...] alike; updates have the dtypes of params, momentum and Hessian are
        kept in float32 at least. A step whose gradients are not finite changes nothing but the count of
        steps, and N and δ. Every hyperparameter may be changed or scheduled by
        `optax.inject_hyperparams(ivon)(0.1, num_data=N, weight_decay=schedule)`, and takes effect at the
        next update (initial_hessian at init alone); weights are then drawn at `state.inner_state`, with
        the N and δ of the update before them.

    Raises:
        ValueError: for num_data < 1, weight_decay <= 0 (an improper prior: σ² would have no bound),
            an initial_hessian below 0, beta1 or beta2 outside [0, 1), a clip_radius that is not
            positive, or an array for any of them; (update) without params or weights.

    Example:
        >>> optimizer, params = ivon(0.5, num_data=100, weight_decay=0.01), {"w": jnp.zeros(3)}
        >>> state = optimizer.init(params)
        >>> weights = perturb(jax.random.key(0), params, state, num_samples=4)
        >>> grads = jax.vmap(jax.grad(lambda p: jnp.mean((p["w"] - 1) ** 2)))(weights)
        >>> updates, state = optimizer.update(grads, state, params, weights=weights)
        >>> weights["w"].shape, updates["w"].shape, int(state.steps)
        ((4, 3), (3,), 1)

    Reference: Shen et al., Variational learning is effective for large deep networks, 2024,
        arXiv:2402.17641; Lin, Schmidt, Khan, Handling the positive-definite constraint in the
        Bayesian learning rule, 2020, arXiv:2002.10060.
    """
    import optax

    for name, value, fine, allowed in (
        ("num_data", num_data, lambda n: n >= 1, "at least 1"),
        ("weight_decay", weight_decay, lambda d: d > 0, "positive"),
        ("initial_hessian", initial_hessian, lambda h: h >= 0, "at least 0"),
        ("beta1", beta1, lambda b: 0 <= b < 1, "at least 0 and below 1"),
        ("beta2", beta2, lambda b: 0 <= b < 1, "at least 0 and below 1"),
        ("clip_radius", clip_radius, lambda r: r > 0, "positive"),
    ):
        if jnp.ndim(value):
            raise ValueError(
                f"{name} must be one number, shared by all params, got shape {jnp.shape(value)}."
            )
        # Traced where optax.inject_hyperparams makes the optimizer anew in a jitted step.
        if not (not is_known(value) or fine(value)):
            raise ValueError(f"{name} must be {allowed}, got {value}.")

    def init(params: PyTree) -> IvonState:
        def full(value: Number) -> PyTree:
            return jax.tree.map(lambda p: jnp.full(jnp.shape(p), value, _wide(p)), params)

        return IvonState(full(0.0), full(initial_hessian), jnp.int32(0), *numbers())

    def numbers() -> tuple[Array, Array]:
        return jnp.asarray(num_data, jnp.float32), jnp.asarray(weight_decay, jnp.float32)

    def update(
        grads: PyTree, state: IvonState, params: PyTree = None, *, weights: PyTree = None, **_: Any
    ) -> tuple[PyTree, IvonState]:
        if params is None or weights is None:
            raise ValueError(
                "update(grads, state, params, weights=weights) needs params, the mean, and "
                "weights, what `perturb(key, params, state)` drew and grads were taken at."
            )
        rate = learning_rate(state.steps) if callable(learning_rate) else learning_rate
        count = state.steps + 1

        def kept(h: Array) -> Array:
            # Where δ falls, negative curvature shrinks with it: h + δ stays positive.
            shrunk = jnp.minimum(jnp.asarray(weight_decay) / state.weight_decay, 1)
            return jnp.where(h < 0, h * shrunk.astype(h.dtype), h)

        def leaf(
            g: Array, w: Array, p: Array, momentum: Array, h: Array
        ) -> tuple[Array, Array, Array]:
            if jnp.shape(g) != jnp.shape(w) or not jnp.ndim(g) or jnp.shape(g)[1:] != jnp.shape(p):
                raise ValueError(
                    f"grads and weights must be [k, *{jnp.shape(p)}], as `perturb` draws them and "
                    f"jax.vmap(jax.grad(loss)) answers; got {jnp.shape(g)} and {jnp.shape(w)}."
                )
            g, w, p = (jnp.asarray(x, h.dtype) for x in (g, w, p))
            # In units of the Gaussian that the weights were drawn from; the rest is of today's δ.
            n, before = state.num_data.astype(h.dtype), state.weight_decay.astype(h.dtype)
            # ĥ = E[∇l(w) (w - m)] / σ², like p.
            stein = jnp.mean(g * (w - p[None]), 0) * (n * (h + before))
            decay, h = jnp.asarray(weight_decay, h.dtype), kept(h)
            momentum = beta1 * momentum + (1 - beta1) * jnp.mean(g, 0)
            # Newton's step of the mean loss with its prior; the momentum's start at 0 is corrected for.
            step = (momentum / (1 - beta1 ** count.astype(h.dtype)) + decay * p) / (h + decay)
            # The term of second order keeps h + δ positive whatever ĥ is.
            change = (1 - beta2) * (stein - h)
            h = h + change + 0.5 * jnp.square(change) / (h + decay)
            return -rate * jnp.clip(step, -clip_radius, clip_radius), momentum, h

        # A pytree of triples becomes three pytrees.
        made = jax.tree.map(leaf, grads, weights, params, state.momentum, state.hessian)
        steps, momentum, hessian = jax.tree.transpose(
            jax.tree.structure(params), jax.tree.structure((0, 0, 0)), made
        )
        # A step that is not finite leaves the mean, the momentum and the Hessian as they were.
        finite = jnp.all(jnp.stack(finite_leaves((steps, momentum, hessian))))
        steps = where(finite, steps, jax.tree.map(jnp.zeros_like, steps))
        steps = jax.tree.map(lambda s, p: s.astype(jnp.result_type(p)), steps, params)
        momentum, hessian = where(
            finite, (momentum, hessian), (state.momentum, jax.tree.map(kept, state.hessian))
        )
        return steps, IvonState(momentum, hessian, count, *numbers())

    return optax.GradientTransformationExtraArgs(init, update)


def perturb(
    key: Key[Array, ""], params: PyTree, state: IvonState, *, num_samples: int = 1
) -> PyTree:
    """Draw weights from IVON's Gaussian: for gradients while training, for predictions afterwards.

        w ~ N(m, 1 / (N (h + δ)))

    Args:
        key: a typed key, consumed.
        params: the mean m, a pytree of floats.
        state: of `ivon`; where it is one link of an `optax.chain`, that link's.
        num_samples: k.

    Returns:
        Like params, leaves [k, ...] in the dtypes of params.

    Raises:
        TypeError: for a raw key, or a state that is not IVON's.

    Example:
        >>> params = {"w": jnp.zeros((3, 2)), "b": jnp.zeros(2)}
        >>> state = ivon(0.5, num_data=100, weight_decay=0.01).init(params)
        >>> jax.tree.map(jnp.shape, perturb(jax.random.key(0), params, state, num_samples=4))
        {'b': (4, 2), 'w': (4, 3, 2)}

    Reference: Shen et al., Variational learning is effective for large deep networks, 2024,
        arXiv:2402.17641.
    """
    checks.key(key)
    checks.num_samples(num_samples)
    if not isinstance(state, IvonState):
        raise TypeError(
            f"state must be an IvonState, got {type(state).__name__}; of an optax.chain, pass "
            "IVON's link."
        )
    # A key for each leaf, in a tree like params.
    leaves, tree = jax.tree.flatten(params)
    keys = jax.tree.unflatten(tree, list(jax.random.split(key, len(leaves))))

    def draw(key: Key[Array, ""], p: Array, h: Array) -> Array:
        # σ = (N (h + δ))^-½, with the N and δ of the last update.
        scale = jax.lax.rsqrt(state.num_data * (h + state.weight_decay)).astype(h.dtype)
        noise = jax.random.normal(key, (num_samples, *jnp.shape(p)), h.dtype)
        return (jnp.asarray(p, h.dtype)[None] + scale[None] * noise).astype(jnp.result_type(p))

    return jax.tree.map(draw, keys, params, state.hessian)


def _wide(p: ArrayLike) -> DTypeLike:
    # In half precision 1 - beta2 would be rounded away.
    return jnp.promote_types(jnp.result_type(p), jnp.float32)
