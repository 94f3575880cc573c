"""Targets from models of other libraries: NumPyro, TFP's joint distributions, and BlackJAX's log-densities."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vijax import checks, jaxprs
from vijax.targets._sites import (
    is_improper,
    is_imputed,
    layers,
    require_densities,
    require_slopes,
    without_masks,
)
from vijax.targets._transform import Transformed
from vijax.types import PyTree


def from_numpyro(
    model: Callable[..., Any], *args: Any, **kwargs: Any
) -> tuple[Transformed, PyTree]:
    """Turn a NumPyro model and its data into a target over unconstrained space, with a start.

        log_joint(y) = -potential_energy(y) = log p(x, z(y)) + log |det ∂z/∂y|,   z: {site: value}

    Coordinates, Jacobians and the order of sites are NumPyro's own (`potential_energy`,
    `constrain_fn`, `unconstrain_fn`).

    Args:
        model: with observed sites by `obs=`, or under numpyro.handlers.condition. Its latents must
            be continuous. Under `obs_mask` NumPyro makes latents of a whole site; those in the
            place of data, which nothing reads, have their own distribution as density here, and not
            none: the evidence is that of the data, and q has somewhere to go.
        args: of the model; so that they may be arguments of a jitted step, call this inside it.
        kwargs: of the model.

    Returns:
        (Transformed, start): the start is {site: zeros}, NumPyro's `init_to_feasible`.
        Deterministic sites are not latents: map them over draws with
        numpyro.infer.Predictive(model, posterior_samples=jax.vmap(constrain)(draws.z)).

    Raises:
        ValueError: for discrete and Delta latents, subsampled plates, `param` and `mutable` sites,
            and latents without a density in some direction (masked or improper, and not read), each
            named; for noise of the model's own, as of numpyro.prng_key; for no latent at all; (when
            called) for a dict of other sites, of which NumPyro would draw those that are missing.

    Reference: Phan, Pradhan, Jankowiak, Composable effects for flexible and accelerated
        probabilistic programming in NumPyro, 2019, arXiv:1912.11554.
    """
    import numpyro
    from numpyro.infer import util

    # One run at a feasible point shows the sites, their shapes and their distributions.
    feasible = numpyro.handlers.substitute(
        numpyro.handlers.seed(model, jax.random.key(0)),
        substitute_fn=numpyro.infer.init_to_feasible,
    )
    sites = numpyro.handlers.trace(feasible).get_trace(*args, **kwargs)
    latents = {}
    for name, site in sites.items():
        if site["type"] == "param":
            raise ValueError(
                f"site '{name}' is a param, which no posterior covers: give it a prior by "
                "numpyro.sample, or fix it by numpyro.handlers.substitute."
            )
        if site["type"] == "mutable":
            raise ValueError(
                f"site '{name}' is mutable state, which an adapted model cannot hand on: write log "
                "p(x, z) and use targets.keyed with has_aux=True."
            )
        if site["type"] == "plate" and site["args"] and site["args"][0] != site["value"].shape[0]:
            raise ValueError(
                f"plate '{name}' subsamples {site['value'].shape[0]} of {site['args'][0]}: give it "
                "all the data, and write minibatches with targets.minibatch."
            )
        if site["type"] != "sample" or site["is_observed"]:
            continue
        if site["fn"].support.is_discrete:
            raise ValueError(
                f"site '{name}' is a discrete latent ({type(site['fn']).__name__}), which free "
                "numbers cannot hold: sum it out in the model (a mixture distribution), or write "
                "log p(x, z) and use targets.enumerate."
            )
        if any(isinstance(layer, numpyro.distributions.Delta) for layer in layers(site["fn"])):
            raise ValueError(
                f"site '{name}' is a Delta, which has no density: use "
                f"numpyro.deterministic('{name}', value)."
            )
        latents[name] = site["value"]
    if not latents:
        raise ValueError("the model has no latent site: every numpyro.sample is observed.")
    # Latents in the place of data, which nothing else reads
    imputed = {name for name in latents if is_imputed(name, sites)}

    # A site without a value would be drawn anew; the seed only serves models that draw what they
    # observe.
    def seeded_by(key: Array) -> Callable[..., PyTree]:
        return numpyro.handlers.seed(without_masks(model, imputed), key)

    seeded = seeded_by(jax.random.key(0))

    # NumPyro draws a site that is missing, in silence.
    def named(y: PyTree) -> PyTree:
        if not isinstance(y, Mapping) or set(y) != set(latents):
            given = sorted(y) if isinstance(y, Mapping) else f"a {type(y).__name__}"
            raise ValueError(
                f"y must be a dict of the model's latent sites, {sorted(latents)}, got {given}."
            )
        return y

    def unconstrain(z: PyTree) -> PyTree:
        return util.unconstrain_fn(
            seeded, args, kwargs, {name: jnp.asarray(z[name]) for name in latents}
        )

    target = Transformed(
        lambda y: -util.potential_energy(seeded, args, kwargs, named(y)),
        lambda y: util.constrain_fn(seeded, args, kwargs, named(y)),
        unconstrain,
    )
    start = jax.tree.map(jnp.zeros_like, unconstrain(latents))
    # Whether the density depends on the key, which would then be frozen.
    read = jaxprs.reads(
        lambda key, y: -util.potential_energy(seeded_by(key), args, kwargs, y),
        jax.random.key(0),
        start,
    )
    if 0 in read:
        raise ValueError(
            "the model draws noise of its own, as by numpyro.prng_key(), which one key would "
            "freeze: make it a site, or use targets.keyed with log p = "
            "-potential_energy(numpyro.handlers.seed(model, key), args, kwargs, y)."
        )
    # Zero slopes everywhere would let q grow without end.
    improper = [name for name in latents if name not in imputed and is_improper(sites[name])]

    def log_density(y: PyTree) -> Array:
        return jnp.asarray(util.log_density(seeded, args, kwargs, target.constrain(y))[0])

    require_slopes(target.log_joint, log_density, start, improper)
    return target, start


def from_tfp(joint: PyTree, observed: PyTree) -> tuple[Transformed, PyTree]:
    """Turn a TFP (JAX substrate) JointDistribution and data into a target and zeros to start from.

        log_joint(y) = log p(x, z(y)) + log |det ∂z/∂y|,   z(y): the default event-space bijectors

    Data are pinned (`experimental_pin`), and the latents mapped from unconstrained space by the
    bijectors that TFP chooses (`experimental_default_event_space_bijector`).

    Args:
        joint: a JointDistribution whose log_prob is one number, as the AutoBatched ones' is.
        observed: {name: value}, or for a model without names a list with None where a part is
            latent.

    Returns:
        (Transformed, start): latents in the container TFP gives them, a named tuple or a list; the
        start is zeros.

    Raises:
        ValueError: for latents that are discrete, Deterministic or Masked, named, and for a
            log-density with a batch shape.
        TypeError: for what is no joint distribution.

    Reference: Piponi, Moore, Dillon, Joint distributions for TensorFlow Probability, 2020,
        arXiv:2001.11819.
    """
    if not hasattr(joint, "experimental_pin"):
        raise TypeError(f"from_tfp needs a JointDistribution of TFP, got {type(joint).__name__}.")
    # The rest of the model given what is observed
    pinned = (
        joint.experimental_pin(**observed)
        if isinstance(observed, Mapping)
        else joint.experimental_pin(*observed)
    )
    require_densities(joint, observed)
    # Shapes and dtypes of the latents, without a draw
    like = jax.eval_shape(lambda: pinned.sample_unpinned(seed=jax.random.key(0)))
    for name, leaf in checks.named_leaves(like):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(_discrete(name, leaf.dtype))
    try:
        bijector = pinned.experimental_default_event_space_bijector()
        start = jax.eval_shape(bijector.inverse, like)
    # A discrete latent of a float dtype, as TFP's Poisson, fails here.
    except (AttributeError, NotImplementedError, TypeError) as error:
        raise ValueError(
            _discrete("one of the latents", "a distribution without an event-space bijector")
        ) from error

    def log_joint(y: PyTree) -> Array:
        log_p = pinned.unnormalized_log_prob(bijector.forward(y))
        if jnp.shape(log_p) != ():
            raise ValueError(
                f"the joint log-density has batch shape {jnp.shape(log_p)}, expected (): use a "
                "JointDistribution...AutoBatched, or wrap parts in tfd.Independent."
            )
        return log_p + bijector.forward_log_det_jacobian(y)

    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), start)
    return Transformed(log_joint, bijector.forward, bijector.inverse), zeros


def _discrete(name: str, kind: object) -> str:
    return (
        f"'{name}' is {kind}: free numbers hold continuous latents alone. Sum discrete ones out "
        "in the model (a MixtureSameFamily), or write log p(x, z) and use targets.enumerate."
    )


def from_logdensity(
    logdensity_fn: Callable[[PyTree], Array], like: PyTree
) -> tuple[Transformed, PyTree]:
    """Turn a log-density as BlackJAX has it, of one position, into a target and its start.

        log_joint(y) = logdensity_fn(y),   z = y

    It is a target as it stands; this checks its shape once, and gives it the fields of the other
    adapters. Latents with constraints: `targets.transform`.

    Args:
        logdensity_fn: position -> (), in nats, unnormalized.
        like: a position in unconstrained space, which is also the start.

    Returns:
        (Transformed, start): constrain and unconstrain change nothing.

    Raises:
        TypeError: for a position with leaves that are not floats.
        ValueError: for a log-density that is no scalar.

    Example:
        >>> target, start = from_logdensity(lambda y: -jnp.sum(y**2), jnp.ones(3))
        >>> float(target.log_joint(start))
        -3.0

    Reference: Cabezas, Corenflos, Lao, Louf, BlackJAX: composable Bayesian inference in JAX, 2024,
        arXiv:2402.10797.
    """
    checks.target(logdensity_fn, "adapters.from_logdensity", only_mean=True, what="logdensity_fn")
    start = jax.tree.map(jnp.asarray, like)
    for name, leaf in checks.named_leaves(start):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"leaf '{name}' of the position is {leaf.dtype}; a log-density of free numbers "
                "takes floats."
            )
    result = jax.eval_shape(logdensity_fn, start)
    if getattr(result, "shape", None) != ():
        shapes = jax.tree.map(jnp.shape, result)
        raise ValueError(
            f"logdensity_fn must return one number for one position, got {shapes}; sum over the "
            "data."
        )
    return Transformed(logdensity_fn, lambda y: y, lambda z: z), start
