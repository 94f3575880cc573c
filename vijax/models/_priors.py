"""Priors of an autoencoder: standard, learned, and the encoder's own answers."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from vijax import checks, families
from vijax.calls import described
from vijax.models._conditional import Conditional
from vijax.types import Family, PyTree


class Prior(nnx.Module):
    """A prior with learned parameters: one member of any family.

        p(z) = family(φ),   φ learned with the model

    `families.mixture`, `student_t`, `spline_coupling`: what is a family for q is one for p.

    Args:
        family: any Family.
        params: where φ starts, `family.init(key, like)` or moved from there: components of a mixture
            must start apart.
        learned: the kind of variable φ is; `nnx.Variable` is none of the optimizer's, and stays.

    Raises:
        TypeError: for what is no Family.

    Example:
        >>> family = vj.families.mixture(vj.families.mean_field(scale=1.0), components=100)
        >>> params = family.init(jax.random.key(0), jnp.zeros(40))
        >>> params["components"]["loc"] = jax.random.normal(jax.random.key(1), (100, 40))
        >>> Prior(family, params)().log_prob(jnp.zeros(40)).shape
        ()

    Reference: Dilokthanakul et al., Deep unsupervised clustering with Gaussian mixture variational
        autoencoders, 2016, arXiv:1611.02648.
    """

    def __init__(self, family: Family, params: PyTree, *, learned: type = nnx.Param):
        checks.family(family, "family")
        self.dist = family.dist
        self.value = learned(params)

    def __call__(self) -> Any:
        """Return the distribution, of batch shape ()."""
        return self.dist(self.value.get_value())


def standard(like: PyTree) -> Prior:
    """The standard normal prior, which has no parameters to learn.

        p(z) = N(z; 0, I)

    Args:
        like: zeros of one datum's latents.

    Returns:
        Prior, for a `VAE` or the top of a `Ladder`.

    Raises:
        TypeError: for latents that are not floating.

    Example:
        >>> round(float(standard(jnp.zeros(2))().log_prob(jnp.zeros(2))), 3)  # -log 2π
        -1.838

    Reference: Kingma, Welling, Auto-encoding variational Bayes, 2014, arXiv:1312.6114.
    """
    family = families.mean_field(scale=1.0)
    params = family.init(None, jax.tree.map(jnp.zeros_like, like))
    return Prior(family, params, learned=nnx.Variable)


def aggregate(conditional: Conditional, x: Any, logits: Array | None = None) -> Any:
    """The mixture of q(z | x) over inputs: the aggregate posterior of data.

        q(z) = Σₙ πₙ q(z | xₙ),   π = softmax(logits), or 1/N

    For reports: of the data it is made of no prior gains more, and none of held-out data is
    promised. As a prior in training its gain on those data is memory.

    Args:
        conditional: an encoder.
        x: inputs [n, ...].
        logits: [n]; equal where None.

    Returns:
        A Distribution of batch shape (), with `log_weights` [n] and `component(j)`. Of many inputs,
        evaluate few z at a time, `jax.lax.map(q.log_prob, z, batch_size=10)`: memory is n x latents
        for each. Its draws carry no derivative of the logits, so that path estimators refuse it as
        q.

    Raises:
        ValueError: for inputs without one batch axis, or logits of another length.

    Example:
        >>> encode = Conditional(lambda x: jnp.tile(x, 2), vj.families.mean_field(), jnp.zeros(2))
        >>> aggregate(encode, jnp.ones((5, 2))).log_prob(jnp.ones(2)).shape
        ()

    Reference: Tomczak, Welling, VAE with a VampPrior, 2018, arXiv:1705.07120; Hoffman, Johnson, ELBO
        surgery, 2016.
    """
    q = conditional(x)
    if len(q.batch_shape) != 1:
        raise ValueError(f"x must be inputs [n, ...], got a batch of shape {q.batch_shape}.")
    (n,) = q.batch_shape
    # Shared params, such as a flow's, are repeated here, for a mixture's components have their own.
    logits = jnp.zeros(n) if logits is None else logits
    if logits.shape != (n,):
        raise ValueError(f"logits must have shape ({n},), as x has {n} rows, got {logits.shape}.")
    mixture = families.mixture(conditional.family, components=n)
    return mixture.dist({"logits": logits, "components": conditional.params(x)})


class VampPrior(nnx.Module):
    """The prior that is the encoder's answer to inputs of its own, learned with the model.

        p(z) = Σⱼ πⱼ q(z | uⱼ),   u and π learned

    An aggregate posterior of m pseudo-inputs in place of all data. It learns with the encoder that
    it shares, whose parameters hear both terms.

    Args:
        encoder: the `Conditional` of the VAE, the same object.
        inputs: where u starts, [m, ...]: data, or noise around their mean.

    Raises:
        TypeError: for an encoder that is no `Conditional`.

    Example:
        >>> encode = Conditional(lambda x: jnp.tile(x, 2), vj.families.mean_field(), jnp.zeros(2))
        >>> VampPrior(encode, jnp.zeros((3, 2)))().log_weights.shape
        (3,)

    Reference: Tomczak, Welling, VAE with a VampPrior, 2018, arXiv:1705.07120.
    """

    def __init__(self, encoder: Conditional, inputs: Array):
        if not isinstance(encoder, Conditional):
            raise TypeError(
                f"encoder must be the models.Conditional of the VAE, got {described(encoder)}."
            )
        self.encoder = encoder
        self.inputs = nnx.Param(jnp.asarray(inputs))
        self.logits = nnx.Param(jnp.zeros(len(inputs)))

    def __call__(self) -> Any:
        """Return the distribution, of batch shape (), by the encoder as it stands."""
        return aggregate(self.encoder, self.inputs[...], self.logits[...])
