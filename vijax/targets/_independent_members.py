"""A declaration where the trace cannot show that members of the batch are independent."""

from typing import Any

from vijax.types import LogJoint, PyTree, derive


def independent_members(log_joint: LogJoint) -> LogJoint:
    """Declare that log p of each member of the batch reads the latents of that member alone.

        log_joint(z)[n] = f(n, z[n]),   n an index of [*batch]

    Estimators that give each member a signal or a gate of its own (`gradients.score`, `vimco`, `dreg` of a bound that
    is not linear, ...) are wrong where one member reads another's latents, and read from log_joint's jaxpr that none
    does. Declare it where they refuse a log_joint that is right, say one that sorts members and puts them back. It is
    taken on trust: a wrong declaration is a biased gradient. Write it last, around all that is derived.

    Args:
        log_joint: z -> log p(x, z), [*batch] in nats; of any kind.

    Returns:
        The same target, with its declaration.

    Example:
        >>> import jax, jax.numpy as jnp, distrax
        >>> from vijax import bounds, gradients, targets
        >>> log_joint = lambda z: -(jnp.sort(z)[jnp.argsort(jnp.argsort(z))] ** 2)     # z again
        >>> target = targets.independent_members(log_joint)
        >>> q = distrax.Normal(jnp.zeros(3), 1.0)
        >>> gradients.vimco(bounds.elbo)(jax.random.key(0), target, q, num_samples=4).value.shape
        (3,)

    Reference: Ioffe, Szegedy, Batch normalization, 2015, arXiv:1502.03167, which couples members.
    """

    def declared(z: PyTree, **given: Any) -> Any:
        return log_joint(z, **given)

    return derive(log_joint, declared, independent_members=True)
