"""A declaration where the trace cannot show that members of the batch are independent."""

from typing import Any

from vijax import calls
from vijax.calls import usage
from vijax.types import LogJoint, PyTree, derive


@usage("targets.independent_members")
def independent_members(log_joint: LogJoint) -> LogJoint:
    """Declare that log p of each member of the batch reads the latents of that member alone.

        log_joint(z)[n] = f(n, z[n]),   n an index of [*batch]

    For a correct log_joint that `gradients.score`, `vimco` or `dreg`, which give each member a
    signal of its own, refuse because its jaxpr does not show this.

    Args:
        log_joint: z -> log p(x, z), [*batch] in nats; of any kind. The declaration is taken on
            trust: a wrong one is a biased gradient. Write it last, around all that is derived.

    Returns:
        The same target, with its declaration.

    Example:
        >>> log_joint = lambda z: -(jnp.sort(z)[jnp.argsort(jnp.argsort(z))] ** 2)  # z again
        >>> q = distrax.Normal(jnp.zeros(3), 1.0)
        >>> target, vimco = independent_members(log_joint), vj.gradients.vimco(vj.bounds.elbo)
        >>> vimco(jax.random.key(0), target, q, num_samples=4).value.shape
        (3,)

    Reference: Ioffe, Szegedy, Batch normalization, 2015, arXiv:1502.03167, which couples members.
    """
    calls.function(log_joint, "log_joint")

    def declared(z: PyTree, **given: Any) -> Any:
        return log_joint(z, **given)

    return derive(log_joint, declared, independent_members=True)
