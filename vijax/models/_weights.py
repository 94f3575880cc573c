"""Products of inputs with Gaussian weights, so drawn that the rows of a batch have noise of their own."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vijax import checks
from vijax.calls import usage

# Why the bound must be linear in log_w
WHY = (
    "rows with weights of their own estimate the ELBO without bias, but their product is no "
    "estimate of p(y, W)"
)


@usage("models.local_reparameterization")
def local_reparameterization(key: Array, x: Array, loc: Array, scale: Array) -> Array:
    """Draw x W for Gaussian weights W, anew for each row of x, by drawing the product itself.

        W ~ N(M, S²)   →   y = x M + √(x² S²) ε,   ε ~ N(0, 1) for each row and output

    For Bayesian networks with a mean-field Gaussian q. With one draw of W for a whole batch the
    noise of all rows' terms is the same, and does not average out; here it does. The mean of
    Σₙ log p(yₙ | xₙ, W) is the same, since each term has its own row alone.

    Args:
        key: a typed key.
        x: [*rows, inputs]; a column of ones makes a bias of the last row of W.
        loc, scale: M and S, [inputs, outputs], the mean and standard deviation of q.

    Returns:
        [*rows, outputs]. Rows are no longer of one W, so their sum estimates the ELBO alone: mark it
        by `targets.unbiased`, and take the divergence by `targets.exact_kl`. To predict, draw W.

    Raises:
        ValueError: for shapes that do not fit; within a target of a bound that is not linear.

    Example:
        >>> x, loc, scale = jnp.ones((4, 3)), jnp.zeros((3, 2)), jnp.ones((3, 2))
        >>> local_reparameterization(jax.random.key(0), x, loc, scale).shape
        (4, 2)

    Reference: Kingma, Salimans, Welling, Variational dropout and the local reparameterization
        trick, 2015, arXiv:1506.02557.
    """
    checks.key(key)
    checks.mean_alone(WHY)
    _fit(x, loc=loc, scale=scale)
    variance = jnp.square(x) @ jnp.square(scale)
    # A row of zeros has no noise, and the root no slope there.
    noisy = variance > 0
    deviation = jnp.where(noisy, jnp.sqrt(jnp.where(noisy, variance, 1.0)), 0.0)
    return x @ loc + deviation * jax.random.normal(key, deviation.shape, deviation.dtype)


@usage("models.flipout")
def flipout(key: Array, x: Array, weights: Array, loc: Array) -> Array:
    """Multiply x by a draw of the weights whose signs are flipped about the mean, anew for each row.

        yₙ = xₙ M + ((xₙ ∘ rₙ)(W - M)) ∘ sₙ,   rₙ, sₙ = ±1

    For weights that q draws symmetrically about M and one by one, Gaussian or not, where
    `local_reparameterization` knows no formula: each row then has W's law, and rows are
    uncorrelated given |W - M|.

    Args:
        key: a typed key.
        x: [*rows, inputs].
        weights: W, [inputs, outputs], a draw of q.
        loc: M, [inputs, outputs], what q is symmetric about: with another the law is a wrong one.

    Returns:
        [*rows, outputs], to be summed as of `local_reparameterization`.

    Raises:
        ValueError: for shapes that do not fit; within a target of a bound that is not linear.

    Example:
        >>> x, weights, loc = jnp.ones((4, 3)), jnp.ones((3, 2)), jnp.ones((3, 2))
        >>> flipout(jax.random.key(0), x, weights, loc)[0]
        Array([3., 3.], dtype=float32)

    Reference: Wen, Vicol, Ba, Tran, Grosse, Flipout: efficient pseudo-independent weight
        perturbations on mini-batches, 2018, arXiv:1803.04386.
    """
    checks.key(key)
    checks.mean_alone(WHY)
    _fit(x, weights=weights, loc=loc)
    of_inputs, of_outputs = jax.random.split(key)
    r = jax.random.rademacher(of_inputs, x.shape, x.dtype)
    s = jax.random.rademacher(of_outputs, (*x.shape[:-1], loc.shape[-1]), x.dtype)
    return x @ loc + s * ((r * x) @ (weights - loc))


def _fit(x: Array, **matrices: Array) -> None:
    (first, a), (second, b) = matrices.items()
    if jnp.ndim(a) != 2 or jnp.shape(a) != jnp.shape(b):
        raise ValueError(
            f"{first} and {second} must be matrices [inputs, outputs] of one shape, got "
            f"{list(jnp.shape(a))} and {list(jnp.shape(b))}: map over further axes with jax.vmap."
        )
    if jnp.ndim(x) == 0 or jnp.shape(x)[-1] != jnp.shape(a)[0]:
        raise ValueError(
            f"x must be [*rows, {jnp.shape(a)[0]}], as many inputs as {first} "
            f"{list(jnp.shape(a))} has rows, got {list(jnp.shape(x))}."
        )
