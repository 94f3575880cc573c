"""q that is a mixture of infinitely many: of a conditional, over a mixing distribution."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from vijax import calls, checks, jaxprs
from vijax.calls import usage
from vijax.engine import iid
from vijax.numerics import log_mean_exp
from vijax.particles._extended import Extended, several
from vijax.types import Distribution, Joint, LogJoint, PyTree, derive, lift

Conditional = Callable[[PyTree], Any]
UPPER = (
    "a mean of q(z | ψ) over draws that did not make z is too small where it matters, and p(x, z) "
    "over it has a mean above p(x)"
)


class _SemiImplicit:
    """q(z, ψ₀ ... ψ_K), of which ψ₀ made z: draws {"z", "mixing"}, mixing [*batch, K + 1, *event].

    Its density is q(ψ₀) ... q(ψ_K) times that of z given all of them, which `given` makes of the log
    q(z | ψₖ), [K + 1, *batch].
    """

    def __init__(
        self,
        conditional: Conditional,
        mixing: Any,
        num_mixing: int,
        given: Callable[[Array], Array],
    ):
        self._conditional, self._mixing = conditional, mixing
        self._num_mixing, self._given = num_mixing, given

    def sample_and_log_prob(
        self, *, seed: Array, sample_shape: Sequence[int] = ()
    ) -> tuple[PyTree, Array]:
        def one(seed: Key[Array, ""]) -> tuple[PyTree, Array]:
            of_mixing, of_z = jax.random.split(seed)
            keys = jax.random.split(of_mixing, self._num_mixing + 1)
            psi, log_q = jax.vmap(self._draw_mixing)(keys)
            first = lift(self._conditional(jax.tree.map(lambda a: a[0], psi)))
            z, log_q_z = first.sample_and_log_prob(seed=of_z, sample_shape=())
            if log_q_z.shape != log_q.shape[1:]:
                raise ValueError(
                    "mixing and conditional(psi) must have one batch shape, got "
                    f"{log_q.shape[1:]} and {log_q_z.shape}: where axes belong to one draw, wrap "
                    "the distribution, distrax.Independent."
                )
            batch = log_q_z.ndim
            made = {"z": z, "mixing": jax.tree.map(lambda a: jnp.moveaxis(a, 0, batch), psi)}
            return made, self.log_prob(made)

        return several(one, seed, sample_shape)

    @property
    def fixed_support(self) -> bool | None:
        """Return True where ψ, and z given ψ, have supports that stay; else None: the draws must show it."""

        def of_z(earlier: PyTree) -> Any:
            return lift(self._conditional(earlier["mixing"]))

        # As two leaves one after another, for z's support is followed through no network of ψ.
        chain, key = Joint({"mixing": self._mixing, "z": of_z}), jax.random.key(0)
        moving = jaxprs.moving_support(chain, key, jaxprs.paths(chain, iid, key))
        return True if moving is None else None

    def _draw_mixing(self, key: Key[Array, ""]) -> tuple[PyTree, Array]:
        psi, log_q = self._mixing.sample_and_log_prob(seed=key, sample_shape=())
        return psi, log_q

    def log_prob(self, extended: PyTree, /) -> Array:
        of_mixing, of_z = self.parts(extended)
        return of_mixing + self._given(of_z)

    def parts(self, extended: PyTree) -> tuple[Array, Array]:
        """Return Σₖ log q(ψₖ), [*batch], and log q(z | ψₖ), [K + 1, *batch]."""
        z = extended["z"]
        batch = jax.eval_shape(self._draw_mixing, jax.random.key(0))[1].ndim
        psi = jax.tree.map(lambda a: jnp.moveaxis(a, batch, 0), extended["mixing"])
        of_mixing = jnp.sum(jax.vmap(self._mixing.log_prob)(psi), 0)
        return of_mixing, jax.vmap(lambda psi: lift(self._conditional(psi)).log_prob(z))(psi)


@usage("particles.semi_implicit")
def semi_implicit(
    log_joint: LogJoint,
    conditional: Conditional,
    mixing: Distribution | PyTree,
    *,
    num_mixing: int,
) -> Extended:
    """Semi-implicit q, a mixture of q(z | ψ) over ψ, on a space where its density is known.

        log w = log p(x, z) - log 1/(K+1) Σₖ q(z | ψₖ),   ψ₀ ... ψ_K ~ mixing,   z ~ q(z | ψ₀),   E w = p(x)

    For skewed and multimodal posteriors by networks that need not be invertible: let `conditional`
    pass noise ψ through one. The ELBO rises to that of ∫ q(z | ψ) q(ψ) dψ as K grows.

    Args:
        log_joint: z -> log p(x, z), [*batch] in nats; with noise of the model or of a minibatch too.
        conditional: ψ -> q(z | ψ), a distribution with batch shape [*batch], or a pytree of them.
        mixing: q(ψ), with the same batch shape, with parameters or without.
        num_mixing: K, further draws of ψ beside the one that made z; at 0 the bound is that of (z, ψ)
            alone.

    Returns:
        Extended: log_joint and q over {"z", "mixing"}, mixing with an axis of K + 1 behind the
        batch's. The weights are exact importance weights of that space, so every bound and estimator
        applies; the axis counts as part of the draw, at K + 1 evaluations of `conditional` each.

    Raises:
        TypeError: for a K that is no Python int.
        ValueError: for a negative one, or batch shapes that differ; for a target with terms of q in
            closed form, or auxiliary output.

    Example:
        >>> log_joint = lambda z: distrax.Normal(0.0, 2.0).log_prob(z)  # log p(x) = 0
        >>> noise, given = distrax.Normal(0.0, 1.0), lambda e: distrax.Normal(jnp.sqrt(3.0) * e, 1.0)
        >>> pair = semi_implicit(log_joint, given, noise, num_mixing=20)  # the posterior, at K = ∞
        >>> elbo = vj.gradients.reparam(vj.bounds.elbo)
        >>> bool(-0.1 < elbo(jax.random.key(0), *pair[:2], num_samples=1000).value < 0)
        True

    Reference: Yin, Zhou, Semi-implicit variational inference, 2018, arXiv:1805.11183; Sobolev,
        Vetrov, Importance weighted hierarchical variational inference, 2019, arXiv:1905.03290 (why
        the weights are exact).
    """
    checks.static_count(num_mixing, "num_mixing", least=0)
    # z given all ψ: any of them may have made it.
    q = _SemiImplicit(
        conditional, _checked(log_joint, conditional, mixing), num_mixing, log_mean_exp
    )

    def extended_log_joint(extended: PyTree, **given: Any) -> Any:
        of_mixing, _ = q.parts(extended)
        return _plus(log_joint(extended["z"], **given), of_mixing)

    target = derive(log_joint, extended_log_joint, independent_sites=False)
    return Extended(target, q, lambda extended: extended["z"])


@usage("particles.semi_implicit_upper")
def semi_implicit_upper(
    log_joint: LogJoint,
    conditional: Conditional,
    mixing: Distribution | PyTree,
    *,
    num_mixing: int,
) -> Extended:
    """Semi-implicit q, from above: an upper bound of its ELBO, biased by design, for the ELBO alone.

        E[log p(x, z) - log 1/K Σₖ q(z | ψₖ)]  ≥  ELBO of ∫ q(z | ψ) q(ψ) dψ,   ψ₀ ... ψ_K ~ mixing,   z ~ q(z | ψ₀)

    With `semi_implicit` it tells how many ψ are enough: K where the two agree. It is above the ELBO
    and may be above log p(x), so do not train by it.

    Args:
        log_joint: as for `semi_implicit`.
        conditional: as for `semi_implicit`.
        mixing: as for `semi_implicit`.
        num_mixing: K, at least 1: draws of ψ, of which none made z.

    Returns:
        Extended: log_joint and q over {"z", "mixing"}, for objectives of `bounds.elbo`; of any bound
        that is not linear in log_w it is refused, for E w exceeds p(x).

    Raises:
        TypeError: for a K that is no Python int.
        ValueError: for one below 1, or batch shapes that differ; by any objective of a bound that is
            not linear.

    Example:
        >>> log_joint = lambda z: distrax.Normal(0.0, 2.0).log_prob(z)  # log p(x) = 0
        >>> noise, given = distrax.Normal(0.0, 1.0), lambda e: distrax.Normal(jnp.sqrt(3.0) * e, 1.0)
        >>> pair = semi_implicit_upper(log_joint, given, noise, num_mixing=20)
        >>> elbo = vj.gradients.reparam(vj.bounds.elbo)
        >>> bool(elbo(jax.random.key(0), *pair[:2], num_samples=1000).value > 0)
        True

    Reference: Yin, Zhou, Semi-implicit variational inference, 2018, arXiv:1805.11183; Molchanov,
        Kharitonov, Sobolev, Vetrov, Doubly semi-implicit variational inference, 2019,
        arXiv:1810.02789.
    """
    checks.static_count(num_mixing, "num_mixing", least=1)
    # The density of what was drawn: z by the first ψ.
    q = _SemiImplicit(
        conditional, _checked(log_joint, conditional, mixing), num_mixing, lambda of_z: of_z[0]
    )

    def extended_log_joint(extended: PyTree, **given: Any) -> Any:
        of_mixing, of_z = q.parts(extended)
        more = of_mixing + of_z[0] - log_mean_exp(of_z[1:])
        return _plus(log_joint(extended["z"], **given), more)

    target = derive(log_joint, extended_log_joint, independent_sites=False, only_mean=UPPER)
    return Extended(target, q, lambda extended: extended["z"])


def _checked(log_joint: LogJoint, conditional: Conditional, mixing: Any) -> Any:
    """Return the mixing distribution; refuse targets whose value cannot be added to."""
    calls.function(conditional, "conditional")
    checks.target(log_joint, "particles.semi_implicit", keyed=True, only_mean=True)
    return lift(mixing)


def _plus(log_p: Any, more: Array) -> Any:
    """Return log p with a term more, which is a factor of its own where there are factors."""
    if isinstance(log_p, dict):
        return {**log_p, "mixing": more}
    checks.log_densities(log_p, more, {})
    return log_p + more
