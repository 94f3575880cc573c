"""A variational autoencoder of one layer of latents: the q and the log_joint that its modules form."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from vijax import targets
from vijax.calls import described
from vijax.families.batched import Repeated
from vijax.models._conditional import Conditional
from vijax.types import LogJoint, PyTree


def constant(module: nnx.Module) -> Callable[[], Any]:
    """Return what makes a fresh copy of a module, its batch statistics the running averages, constants."""
    graph, state = nnx.split(module)

    def copy() -> Any:
        # Anew at each call: a module that was changed under a trace would leak it.
        fresh = nnx.merge(graph, state, copy=True)
        fresh.set_attributes(use_running_average=True, raise_if_not_found=False)
        return fresh

    return copy


def _drops(module: nnx.Module) -> bool:
    """Return whether a module holds dropout that is on."""
    return any(
        isinstance(node, nnx.Dropout) and not node.deterministic and node.rate
        for _, node in nnx.iter_graph(module)
    )


def target(module: nnx.Module, log_density: Callable[..., Any]) -> LogJoint:
    """Return z -> log_density(copy of the module, z): keyed where a mask is drawn for each draw."""
    copy = constant(module)
    if not _drops(module):
        return lambda z: log_density(copy(), z)

    def with_masks(key: Array, z: PyTree) -> Any:
        return log_density(copy(), z, rngs=nnx.Rngs(dropout=key))

    return targets.keyed(with_masks)


def renewed(module: Conditional, inputs: Any, rngs: nnx.Rngs | None) -> None:
    """Move a network's running averages by the statistics of inputs; nothing of it has a derivative."""
    if not isinstance(module.network, nnx.Module):
        return
    graph, state = nnx.split(module.network)
    stopped = nnx.merge(graph, jax.lax.stop_gradient(state), copy=True)
    stopped.set_attributes(use_running_average=False, raise_if_not_found=False)
    stopped(jax.lax.stop_gradient(inputs), **({} if rngs is None else {"rngs": rngs}))
    nnx.update(module.network, nnx.state(stopped, nnx.BatchStat))


class VAE(nnx.Module):
    """A variational autoencoder: q(z | x), and log p(x, z) = log p(z) + log p(x | z).

        q = vae.q(x),   log_joint = vae.log_joint(x),   objective(key, log_joint, q, num_samples=k)

    A record of three modules. Split it into params and the rest as any Flax module; every estimator
    and bound takes what its methods return.

    Batch statistics and dropout are right for any number of draws: the encoder runs once, by the
    statistics of x; the decoder's are the running averages, constants of a step, which `renew`
    moves; each draw has a mask of its own.

    Args:
        encoder: `Conditional`, data to q(z | x).
        decoder: `Conditional`, latents to p(x | z).
        prior: a module that returns a distribution of batch shape () when called: `standard(like)`,
            a `Prior`, a `VampPrior` of the same encoder.

    Raises:
        TypeError: for an encoder or a decoder that is no `Conditional`.

    Example:
        >>> normal, latents = vj.families.mean_field(scale=1.0), jnp.zeros(1)
        >>> encoder = Conditional(lambda x: jnp.tile(x, 2), normal, latents)
        >>> decoder = Conditional(lambda z: z, vj.families.bernoulli(), jnp.full(1, 0.5))
        >>> vae, x = VAE(encoder, decoder, vj.models.standard(latents)), jnp.ones((3, 1))
        >>> vae.log_joint(x)(jnp.zeros((3, 1))).shape
        (3,)

    Reference: Kingma, Welling, Auto-encoding variational Bayes, 2014, arXiv:1312.6114.
    """

    def __init__(self, encoder: Conditional, decoder: Conditional, prior: nnx.Module):
        refuse_others(encoder=encoder, decoder=decoder)
        self.encoder, self.decoder, self.prior = encoder, decoder, prior

    def q(self, x: PyTree, *, rngs: nnx.Rngs | None = None) -> Any:
        """Return q(z | x), of batch shape [*batch]; `rngs` where the encoder holds dropout that is on."""
        return self.encoder(x, **({} if rngs is None else {"rngs": rngs}))

    def log_likelihood(self, x: PyTree) -> LogJoint:
        """Return the target z -> log p(x | z), [*batch] in nats, for `targets.exact_kl`; keyed where dropout is on."""
        return target(self.decoder, lambda decode, z, **given: decode(z, **given).log_prob(x))

    def log_joint(self, x: PyTree) -> LogJoint:
        """Return the target z -> log p(x, z), [*batch] in nats; keyed where the decoder's dropout is on."""
        prior, ndim = self.distribution(), self.encoder.event_ndim

        def log_p(decode: Any, z: PyTree, **given: Any) -> Array:
            likelihood = decode(z, **given).log_prob(x)
            return for_each(prior, z, ndim).log_prob(z) + likelihood

        return target(self.decoder, log_p)

    def distribution(self) -> Any:
        """Return p(z), of batch shape (); an encoder within it runs by running averages, without masks."""
        return evaluated(self.prior)()

    def generate(self, key: Array, num_samples: int) -> PyTree:
        """Draw data from the model, [num_samples, ...]."""
        of_z, of_x = jax.random.split(key)
        z, _ = self.distribution().sample_and_log_prob(seed=of_z, sample_shape=(num_samples,))
        return evaluated(self.decoder)(z).sample_and_log_prob(seed=of_x, sample_shape=())[0]

    def renew(self, z: PyTree, *, rngs: nnx.Rngs | None = None) -> None:
        """Move the decoder's running averages by one batch of draws, gradients stopped: draws.z[0] of a step."""
        renewed(self.decoder, z, rngs)


def evaluated(module: nnx.Module) -> Any:
    """Return a copy of a module for reports: running averages, and no dropout."""
    copy = constant(module)()
    copy.set_attributes(deterministic=True, raise_if_not_found=False)
    return copy


def for_each(prior: Any, z: PyTree, event_ndim: int) -> Repeated:
    """Return a prior of batch shape () for a batch of latents."""
    leaf = jax.tree.leaves(z)[0]
    return Repeated(prior, jnp.shape(leaf)[: jnp.ndim(leaf) - event_ndim])


def refuse_others(**modules: Any) -> None:
    for name, module in modules.items():
        if not isinstance(module, Conditional):
            raise TypeError(f"{name} must be a models.Conditional, got {described(module)}.")
