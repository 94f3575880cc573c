"""Two and more layers of latents: a Joint for q, a factor for each layer, and the prior as a map of noise."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from vijax.models._autoencoder import (
    evaluated,
    for_each,
    refuse_others,
    renewed,
    target,
)
from vijax.models._conditional import Conditional
from vijax.types import Joint, LogJoint, PyTree


class Ladder(nnx.Module):
    """Two and more layers of latents, each conditional given data or other layers.

        q(z | x) = Π_l q(z_l | …),    p(x, z) = p(z_top) Π_l p(z_l | …) p(x | …)

    Bottom-up, top-down or with skips, as the names in `given` say. q is a `types.Joint`, so that
    `auto`, `factored` and `gdreg` work on its leaves.

    Args:
        encoder: {latent: Conditional}, in the order they are drawn; each is `given` "x" or earlier
            latents.
        decoder: {latent: Conditional, or a prior for the top, …, "x": Conditional}, from the top
            down; each is `given` latents before it. Both name the same latents.

    Raises:
        TypeError: for what is no `Conditional`; a decoder's first is a prior.
        ValueError: for latents that differ, and for what is given later names.

    Example:
        >>> normal, zeros = vj.families.mean_field(scale=1.0), jnp.zeros(1)
        >>> layer = lambda given: Conditional(lambda h: jnp.tile(h, 2), normal, zeros, given=given)
        >>> pixel = Conditional(lambda z: z, vj.families.bernoulli(), jnp.full(1, 0.5), given="low")
        >>> ladder = Ladder(
        ...     {"low": layer("x"), "top": layer("low")},
        ...     {"top": vj.models.standard(zeros), "low": layer("top"), "x": pixel},
        ... )
        >>> sorted(ladder.log_joint(jnp.ones((3, 1)))({"low": jnp.ones((3, 1)), "top": jnp.ones((3, 1))}))
        ['low', 'top', 'x']

    Reference: Sønderby, Raiko, Maaløe, Sønderby, Winther, Ladder variational autoencoders, 2016,
        arXiv:1602.02282; Burda, Grosse, Salakhutdinov, Importance weighted autoencoders, 2016,
        arXiv:1509.00519.
    """

    def __init__(self, encoder: Mapping[str, Conditional], decoder: Mapping[str, Any]):
        if set(decoder) != {*encoder, "x"} or list(decoder)[-1] != "x":
            raise ValueError(
                f"decoder must name the encoder's latents, {list(encoder)}, and 'x' last, got "
                f"{list(decoder)}."
            )
        _in_order("encoder", encoder, ["x"])
        top, *rest = decoder
        if isinstance(decoder[top], Conditional):
            raise TypeError(f"decoder[{top!r}] must be a prior, such as models.standard(like).")
        _in_order("decoder", {n: decoder[n] for n in rest}, [top])
        self.encoder, self.decoder = nnx.Dict(encoder), nnx.Dict(decoder)
        # A Dict sorts its names; the order is part of the model.
        self.drawn, self.generated = tuple(encoder), tuple(decoder)

    def q(self, x: PyTree, *, rngs: nnx.Rngs | None = None) -> Joint:
        """Return q(z | x), a Joint of conditionals of batch shape [*batch]; `rngs` for layers given x alone."""
        given = {} if rngs is None else {"rngs": rngs}

        def of(name: str) -> Any:
            module = self.encoder[name]
            if module.given == ("x",):
                return module(x, **given)
            # Layers given draws run within the objective's map over draws: by running averages, without masks.
            return lambda earlier: evaluated(module)(_inputs(module, {**earlier, "x": x}))

        return Joint({name: of(name) for name in self.drawn})

    def log_joint(self, x: PyTree) -> LogJoint:
        """Return the target z -> {layer: log p(layer | …), "x": log p(x | …)}, each [*batch] in nats."""
        prior = self.distribution()

        def log_p(decoder: Any, z: PyTree, **given: Any) -> dict[str, Array]:
            values = {**z, "x": x}
            return _parts(decoder, self.generated, prior, values, self._ndim(), given)

        return target(self.decoder, log_p)

    def prior(self) -> "LadderPrior":
        """Return p(z), with the `push` and `pull` that `gradients.gdreg` asks for."""
        decoder = evaluated(self.decoder)
        return LadderPrior(decoder, self.generated[:-1], self.distribution(), self._ndim())

    def distribution(self) -> Any:
        """Return p of the top latents, of batch shape ()."""
        return evaluated(self.decoder)[self.generated[0]]()

    def generate(self, key: Array, num_samples: int) -> PyTree:
        """Draw data from the model, [num_samples, ...]."""
        decoder = evaluated(self.decoder)
        top, *rest = self.generated
        keys = jax.random.split(key, len(self.generated))
        first = self.distribution()
        values = {top: first.sample_and_log_prob(seed=keys[0], sample_shape=(num_samples,))[0]}
        for name, of_layer in zip(rest, keys[1:], strict=True):
            layer = decoder[name](_inputs(decoder[name], values))
            values[name] = layer.sample_and_log_prob(seed=of_layer, sample_shape=())[0]
        return values["x"]

    def renew(self, z: PyTree, *, rngs: nnx.Rngs | None = None) -> None:
        """Move the decoder's running averages by one batch of draws, gradients stopped."""
        for name in self.generated[1:]:
            renewed(self.decoder[name], _inputs(self.decoder[name], z), rngs)

    def _ndim(self) -> int:
        return int(self.encoder[self.generated[0]].event_ndim)


class LadderPrior:
    """p(z) of a ladder: its density, and its draws as a map of noise.

    Args:
        decoder: {latent: module}.
        names: the latents, from the top down.
        top: p of the first, of batch shape ().
        ndim: axes of one datum's top latent.
    """

    # Of Gaussian layers, which `push` and `pull` ask for, whose support is all of space.
    fixed_support = True

    def __init__(self, decoder: Any, names: tuple[str, ...], top: Any, ndim: int):
        self._decoder, self._names, self._top, self._ndim = decoder, names, top, ndim

    def log_prob(self, z: PyTree, /) -> Array:
        """Return log p(z), [*batch] in nats."""
        parts = _parts(self._decoder, self._names, self._top, z, self._ndim, {})
        return jnp.sum(jnp.stack(list(parts.values())), 0)

    def push(self, e: PyTree) -> PyTree:
        """Carry standard normal noise, {latent: [*batch, n]}, to draws."""
        z: dict[str, Any] = {}
        for name in self._names:
            layer = _layer(self._decoder, name, self._top, z, e[name][..., None], 2)
            z[name] = layer.push(e[name])
        return z

    def pull(self, z: PyTree) -> PyTree:
        """Carry draws back to their noise."""
        return {
            name: _layer(self._decoder, name, self._top, z, z[name], self._ndim).pull(z[name])
            for name in self._names
        }


def _layer(decoder: Any, name: str, top: Any, values: Any, at: PyTree, ndim: int) -> Any:
    """Return the distribution of one layer given the layers above, for a batch of latents `at`."""
    module = decoder[name]
    if isinstance(module, Conditional):
        return module(_inputs(module, values))
    return for_each(top, at, ndim)


def _parts(
    decoder: Any, names: tuple[str, ...], top: Any, values: Any, ndim: int, given: Any
) -> dict[str, Array]:
    """Return the log-density of every layer given those above."""
    first, *rest = names
    parts = {first: for_each(top, values[first], ndim).log_prob(values[first])}
    for name in rest:
        layer = decoder[name](_inputs(decoder[name], values), **given)
        parts[name] = layer.log_prob(values[name])
    return parts


def _inputs(module: Conditional, values: Mapping[str, Any]) -> Any:
    """Return what a conditional is given, joined along the last axis."""
    parts = [values[name] for name in module.given]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, -1)


def _in_order(what: str, modules: Mapping[str, Any], known: list[str]) -> None:
    """Refuse layers that are given what is drawn later, or nothing."""
    for name, module in modules.items():
        refuse_others(**{f"{what}[{name!r}]": module})
        late = [n for n in module.given if n not in known]
        if late or not module.given:
            raise ValueError(
                f"{what}[{name!r}] is given {list(module.given)}, and what comes before it is "
                f"{known}: name one or more of these, Conditional(..., given=...)."
            )
        known = [*known, name]
