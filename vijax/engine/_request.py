"""An admitted call of an objective: what an estimator needs is checked here, once, for every estimator."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from vijax import calls, checks, jaxprs
from vijax.engine import _member_refusals as member_refusals
from vijax.engine import _refusals as refusals
from vijax.engine._bound import is_mean, with_weights
from vijax.engine._evaluate import Plan, evaluate, plan
from vijax.engine._members import Members
from vijax.engine._states import States, states
from vijax.types import (
    Bound,
    ClosedForms,
    Distribution,
    Draw,
    Joint,
    LogJoint,
    Properties,
    PyTree,
    closed_forms,
    lift,
    properties,
)


class Needs(NamedTuple):
    """What an estimator's derivation asks for; a call that lacks it is refused.

    Fields:
        least: the fewest draws, and `why`.
        path: draws carry the whole derivative of q's parameters.
        fixed_support: the support of q stays where it is, so that its score has mean zero.
        independent: draws are independent and each from q, unless the bound is linear.
        smooth: the bound has no kink.
        plain_target: the target is log p(x, z) itself, without terms of q in closed form.
        mean: why the bound must be a mean of log-weights, a clause; "" where any will do.
        members: log p and log q of each member of the batch read the latents of that member alone.
        gated_members: the same, unless the bound that q's path gets is linear.
    """

    least: int = 1
    why: str = ""
    path: bool = False
    fixed_support: bool = False
    independent: bool = False
    smooth: bool = False
    plain_target: bool = False
    mean: str = ""
    members: bool = False
    gated_members: bool = False


@dataclass(eq=False)
class Request:
    """One admitted call of an objective: what it was given, and what is derived from it once.

    Fields:
        estimator: its name, for messages.
        key: consumed by `seeds`.
        log_joint: the target, and `target`, its properties.
        q: a distribution.
        draw: how to draw from it.
        num_samples: how many draws.
        chunk_size: how many are evaluated at a time, or None.
        bound: of log-weights; it has been told of the draws' weights.
        path_bound: the bound whose derivatives q's path gets; most often the same.
        weights: of the draws, [k] or [k, *batch]; None where they count alike.
        forms: closed forms of the bound.
        beyond_mean: whether more than the mean of log p counts.
        members: the evidence that members of the batch are apart; None until `require` asks for it.
        needs_smooth: whether the jaxpr of its bound must show no kink, since nothing declares it.
        traces: of log_joint, made once for each shape of a draw.
    """

    estimator: str
    key: Key[Array, ""]
    log_joint: LogJoint
    target: Properties
    q: Any
    draw: Draw
    num_samples: int
    chunk_size: int | None
    bound: Bound
    path_bound: Bound
    weights: Array | None
    forms: ClosedForms
    beyond_mean: bool
    members: Members | None = None
    needs_smooth: bool = False
    traces: dict[Any, Any] = field(default_factory=dict)

    @cached_property
    def seeds(self) -> Plan:
        """All the randomness of the call, a row for each draw."""
        return self.plan(self.draw, self.num_samples)

    def plan(self, draw: Draw, rows: int) -> Plan:
        """Return all the randomness for draws of another kind or number; it consumes the key."""
        return plan(self.key, self.target.keyed, draw, rows)

    @cached_property
    def paths(self) -> dict[str, jaxprs.Path]:
        """What carries the derivative of q's parameters to each leaf of its draws."""
        if isinstance(self.q, Joint):
            return jaxprs.by_leaf(self.joint_paths)
        return jaxprs.paths(self.q, self.draw, self.key)

    @cached_property
    def joint_paths(self) -> dict[Any, dict[str, jaxprs.Path]]:
        """The same for each conditional of a Joint."""
        return jaxprs.joint_paths(self.q, self.key)

    @cached_property
    def scored(self) -> set[Any]:
        """The leaves of a Joint that need a score; refuses those whose support moves."""
        scored = jaxprs.scored_leaves(self.q, self.key, self.joint_paths)
        if scored.moving is not None:
            raise refusals.support_moves(self.estimator, scored.moving)
        return scored.names

    @cached_property
    def states(self) -> States:
        """The states of a discrete q; refuses any other."""
        of_q = states(self.q, self.key, self.estimator)
        if self.members is not None:
            # Its density is that of the logits, each member's its own.
            self.members.proven = True
        return of_q

    @cached_property
    def is_mean(self) -> bool:
        """Whether the bound is the mean of log-weights."""
        return is_mean(self.bound, self.forms)

    def sample(self, seeds: Plan) -> tuple[PyTree, Array]:
        """Return the draws of some seeds and log q of them, with a leading axis."""
        return jax.vmap(lambda seed: self.draw.sample(seed, self.q))(seeds.draw)

    def sample_members(self, seeds: Plan) -> tuple[PyTree, Array]:
        """Return draws as `sample` does; refuse leaves that do not begin with q's batch axes."""
        z, log_q = self.sample(seeds)
        for name, leaf in checks.named_leaves(z):
            if jnp.shape(leaf)[: log_q.ndim] != log_q.shape:
                raise member_refusals.leaf_without_batch(name, jnp.shape(leaf)[1:], log_q.shape[1:])
        return z, log_q

    def evaluate(
        self, z: PyTree, log_q: Array, seeds: Plan, target: LogJoint | None = None
    ) -> tuple[Array, PyTree]:
        """Return log p of draws, [k, *batch], and the auxiliary output; of another form of the target if given."""
        return evaluate(
            self.log_joint if target is None else target,
            z,
            log_q,
            seeds.model,
            known=self.target if target is None else None,
            beyond_mean=self.beyond_mean,
            members=self.members,
            traces=self.traces,
        )

    def stopped_log_prob(self, z: PyTree) -> Callable[[PyTree], Array]:
        """Return log q as a function of draws like z, [k, ...], alone, its parameters stopped.

        Stopping q itself leaks: a distribution may hold its parameters where jax.tree.map does not
        find them, so they are stopped where they enter its jaxpr.
        """
        return jaxprs.stopped(jax.vmap(self.q.log_prob), z)[0]


def admit(
    estimator: str,
    bound: Bound,
    path_bound: Bound,
    draw: Draw,
    needs: Needs,
    key: Key[Array, ""],
    log_joint: LogJoint,
    q: Distribution | PyTree,
    num_samples: int,
    chunk_size: int | None,
) -> Request:
    """Check what all objectives ask of the bound, the target, q and the draws; return the request.

    Example:
        >>> elbo, iid, q = vj.bounds.elbo, vj.draws.iid, distrax.Normal(0.0, 1.0)
        >>> log_joint, key = lambda z: -0.5 * z**2, jax.random.key(0)
        >>> request = admit("score", elbo, elbo, iid, Needs(), key, log_joint, q, 4, None)
        >>> request.seeds.rows, request.is_mean, request.beyond_mean
        (4, True, False)
    """
    checks.key_and_counts(key, num_samples, chunk_size)
    calls.function(log_joint, "log_joint")
    forms, target = closed_forms(bound), properties(log_joint)
    one_bound = path_bound is bound
    linear_path = forms.linear if one_bound else closed_forms(path_bound).linear
    # Under a bound that is not linear, log p that is right in its mean alone gives a biased value.
    beyond_mean = not (forms.linear and linear_path)
    if beyond_mean and target.only_mean:
        raise refusals.only_mean_unbiased(target.only_mean, path_bound if forms.linear else bound)
    if not isinstance(draw, Draw):
        raise refusals.not_a_draw(draw)
    _refuse_dependent(estimator, path_bound, draw, needs, linear=linear_path)
    if forms.independent and not draw.independent:
        raise refusals.coupled(estimator, bound)
    q = q if isinstance(q, Distribution) else lift(q)
    # Strata: the bound is told how much of q each draw stands for.
    weights = None if draw.weights is None else draw.weights(q, num_samples)
    weighted_bound = bound if weights is None else with_weights(bound, weights)
    return Request(
        estimator=estimator,
        key=key,
        log_joint=log_joint,
        target=target,
        q=q,
        draw=draw,
        num_samples=num_samples,
        chunk_size=chunk_size,
        bound=weighted_bound,
        path_bound=weighted_bound if one_bound else path_bound,
        weights=weights,
        forms=forms if weights is None else closed_forms(weighted_bound),
        beyond_mean=beyond_mean,
    )


def require(request: Request, needs: Needs) -> None:
    """Refuse a call that lacks what the estimator's derivation needs."""
    name, bound, path_bound = request.estimator, request.bound, request.path_bound
    if request.num_samples < needs.least:
        raise refusals.too_few_draws(request.num_samples, needs.least, needs.why)
    if needs.plain_target and request.target.holds_log_q:
        raise refusals.holds_log_q(name)
    if needs.mean and not request.is_mean:
        raise refusals.not_a_mean(name, bound, needs.mean)
    forms = request.forms if path_bound is bound else closed_forms(path_bound)
    # Before the weights were asked for, unless the estimator was chosen only then.
    _refuse_dependent(name, path_bound, request.draw, needs, linear=forms.linear)
    if needs.smooth and forms.smooth is False:
        raise refusals.has_a_kink(name, path_bound)
    # Linear, gated and power bounds are smooth; of any other the jaxpr must show it.
    said = forms.smooth or forms.linear or forms.gate or forms.power
    request.needs_smooth = needs.smooth and not said
    if request.weights is not None and path_bound is not bound:
        raise refusals.two_bounds_and_weights(name)
    # Draws that are weighed by member are of one stratum for all members at a time.
    by_member = request.weights is not None and request.weights.ndim > 1
    if by_member or needs.members or (needs.gated_members and not forms.linear):
        request.members = Members(
            name,
            path_bound,
            request.q,
            declared=request.target.independent_members,
            proven=bool(getattr(request.q, "independent_members", False)),
            cure=lambda: "Use draws.iid" if by_member else _without_coupling(request),
        )
    if needs.path:
        _refuse_without_path(request, needs)
    if needs.fixed_support:
        _refuse_moving_support(request)


def _without_coupling(request: Request) -> str:
    """Return what to use where members are coupled: no path estimator where draws have no path."""
    broken = any(path.broken for path in request.paths.values())
    return member_refusals.ONE_MEMBER if broken else member_refusals.UNCOUPLED


def _refuse_dependent(
    estimator: str, bound: Bound, draw: Draw, needs: Needs, *, linear: bool
) -> None:
    """Refuse coupled draws, and strata, where the derivation needs independent draws from q."""
    if needs.independent and not (draw.independent or linear):
        raise refusals.not_independent(estimator, bound, draw)


def _refuse_without_path(request: Request, needs: Needs) -> None:
    """Refuse a q whose draws do not carry the whole derivative of its parameters, naming the leaf."""
    for leaf, path in request.paths.items():
        if path.broken is not None:
            # All that is to be declared is named at once.
            both = needs.fixed_support and path.parametric
            moving = jaxprs.moving_support(request.q, request.key, request.paths) if both else None
            raise refusals.no_path(request.estimator, leaf, path, moving)


def _refuse_moving_support(request: Request) -> None:
    """Refuse a q whose support, or whose values where it is discrete, may move with its parameters."""
    moving = jaxprs.moving_support(request.q, request.key, request.paths)
    if moving is not None:
        raise refusals.support_moves(request.estimator, moving)
