"""What an objective answers to a call that would be wrong: the argument, what was found, and the cure."""

from collections.abc import Callable

import jax
from jaxtyping import Array

from vijax import checks, jaxprs
from vijax.calls import described
from vijax.types import Draw, keywords

Shaped = Array | jax.ShapeDtypeStruct

# Where draws carry no derivative of q.
CURE = (
    "use gradients.vimco or gradients.score, or gradients.auto to choose for each leaf "
    "(for mixtures, draws.stratified of families.mixture or families.strata(q))"
)


def not_a_bound(bound: Callable[..., object], error: Exception) -> TypeError:
    """A bound that cannot be called with log_w alone: a keyword is missing or misspelt."""
    names = ", ".join(keywords(bound))
    given = f" with {names}" if names else ""
    return TypeError(
        f"bound must be callable with log_w alone, and {checks.describe(bound)}{given} is not "
        f"({error}); bind its keywords, as in functools.partial(bounds.renyi, alpha=0.5)."
    )


def not_a_function(bound: object) -> TypeError:
    """A bound that is none: a key, a distribution or log-weights."""
    return TypeError(
        f"bound must be callable with log_w alone, as bounds.elbo is, got {described(bound)}: an "
        "estimator takes the bound first, and what it makes the key, the model and q: "
        "gradients.reparam(bounds.elbo)(key, log_joint, q, num_samples=16)."
    )


def an_estimator(bound: object) -> TypeError:
    """An estimator, or an objective, in the place of a bound."""
    return TypeError(
        "bound must be callable with log_w alone, as bounds.iwae is, and "
        f"{checks.describe(bound)} is not: it is an estimator, or an objective already. Give the "
        "estimator a bound, gradients.dreg(bounds.iwae)."
    )


def too_few_draws(num_samples: int, least: int, why: str) -> ValueError:
    """Fewer draws than the estimator compares."""
    return ValueError(f"num_samples must be at least {least}, got {num_samples}. {why}")


def not_a_draw(draw: object) -> TypeError:
    """A `draw=` that is no Draw."""
    return TypeError(
        "draw must be a types.Draw, as draws.iid and draws.antithetic are, got "
        f"{checks.describe(draw)}."
    )


def only_mean_unbiased(why: str, bound: object) -> ValueError:
    """A target that is unbiased in its mean alone, under a bound that is not linear."""
    return ValueError(
        f"{why}, so its bound must be linear in log_w: use bounds.elbo, not "
        f"{checks.describe(bound)}."
    )


def right_in_its_mean(estimator: str, through: str) -> str:
    """A derivative that is right in its mean alone, of an objective inside what is not linear."""
    return (
        f"the derivative of gradients.{estimator} is right in its mean alone, and here, inside "
        f"another function, it would pass through {through}: use gradients.reparam inside, or "
        "pass it through sums alone, under an outer bound that is linear in log_w (bounds.elbo). "
        "The value alone may stand here."
    )


def mean_passed_through(primitive: str) -> ValueError:
    """A target that is unbiased in its mean alone, inside a log_joint that is not linear in it."""
    return ValueError(
        "log_joint passes the value of a targets.minibatch, unbiased or gauss_hermite through "
        f"'{primitive}', which is not linear in it, and of such a value the mean alone is right: "
        "pass it through sums and factors that are free of it, or use the exact log joint, of "
        "all the data, inside."
    )


def not_a_mean(estimator: str, bound: object, why: str) -> ValueError:
    """A bound that is not the mean of log-weights, under an estimator that takes no other."""
    return ValueError(
        f"{estimator} {why}, so its bound must be linear in log_w: use bounds.elbo, or "
        f"gradients.vimco for {checks.describe(bound)}."
    )


def holds_log_q(estimator: str) -> ValueError:
    """A target with terms of q in closed form, where the estimator takes log p and log q apart."""
    return ValueError(
        f"{estimator} needs the log joint itself, and this target holds terms of q in closed "
        "form: use gradients.reparam, dreg, score, vimco or auto, or the plain log_joint."
    )


def not_independent(estimator: str, bound: object, draw: Draw) -> ValueError:
    """Coupled draws, or strata, where the estimator's derivation needs independent draws from q."""
    how = "coupled" if draw.weights is None else "strata, each from its own part of q"
    return ValueError(
        f"{estimator}({checks.describe(bound)}) needs independent draws, and these are {how}: its "
        "gradient would be biased. Use gradients.reparam, or dreg of a bound linear in log_w "
        "(bounds.elbo)."
    )


def coupled(estimator: str, bound: object) -> ValueError:
    """Coupled draws under a bound whose own statement is about independent ones."""
    name = checks.describe(bound)
    return ValueError(
        f"{estimator}({name}): what {name} says holds for independent draws, and these are "
        "coupled; use draws.iid, or another of vijax.bounds."
    )


def has_a_kink(estimator: str, bound: object, at: str | None = None) -> ValueError:
    """A bound with a kink: no second derivative shows it, and the dropped score needs it."""
    where = "" if at is None else f", and this one has one at '{at}'"
    declare = (
        ""
        if at is None
        else "; where it cancels, as the largest term of a log-sum-exp does, write it by "
        "jax.nn.logsumexp, or declare the bound by types.with_closed_forms(smooth=True)"
    )
    return ValueError(
        f"{estimator}({checks.describe(bound)}) needs a bound without kinks{where}: use "
        f"gradients.reparam{declare}."
    )


def takes_no_weights(bound: object) -> TypeError:
    """A bound that cannot be told that draws do not count alike."""
    return TypeError(
        f"these draws do not count alike, and {checks.describe(bound)} takes no weights: give it "
        "the keyword weights=None, [k, *batch] summing to 1 over axis 0, or use one of "
        "vijax.bounds."
    )


def two_bounds_and_weights(estimator: str) -> ValueError:
    """Weights of draws, which hold parameters of q, under an estimator of two bounds."""
    return ValueError(
        f"{estimator} takes draws that count alike: the weights of these hold parameters of q, "
        "which would ascend the model's bound. Use draws.iid, or gradients.dreg or "
        "gradients.reparam of one bound."
    )


def no_path(
    estimator: str, leaf: str, path: jaxprs.Path, moving: jaxprs.Moving | None = None
) -> ValueError:
    """Draws that miss part of the derivative of q, whose support may move besides."""
    cure = f"; {CURE}" if path.atoms is None else f", and {path.atoms}. {jaxprs.LOOK_UP[:-1]}"
    return ValueError(
        f"{estimator} needs draws that carry the derivative of q, and leaf '{leaf}' "
        f"{path.broken}{cure}."
        f"{'' if moving is None else f' Besides, {support_moves(estimator, moving)}'}"
    )


def no_density(estimator: str, of: str, said: str, *, drawn: bool) -> ValueError:
    """A q whose library cannot give log q at given values, for want of an inverse."""
    or_else = ", or use gradients.reparam, which takes log q where it draws" if drawn else ""
    return ValueError(
        f"{estimator} evaluates log q at given values, and log_prob of {of} is not implemented"
        f"{f' ({said})' if said else ''}: give its bijector an inverse, as in "
        f"distrax.Lambda(forward, inverse){or_else}."
    )


def support_moves(estimator: str, moving: jaxprs.Moving) -> ValueError:
    """A q whose support moves with its parameters: its score does not have mean zero.

    Example:
        >>> print(support_moves("score", vj.jaxprs.Moving("high is a parameter", "Fix it.")))
        score takes the mean of q's score for zero, which it is only while q's support is fixed; here
        high is a parameter. Fix it.
    """
    where = f", in leaf '{moving.leaf}'," if moving.leaf else ""
    return ValueError(
        f"{estimator} takes the mean of q's score for zero, which it is only while q's support is "
        f"fixed; here{where} {moving.why}. {moving.cure}"
    )


def densities_disagree(path_log_q: Shaped, log_q: Shaped) -> ValueError:
    """A q whose two methods give log q of different shapes.

    Example:
        >>> print(densities_disagree(jnp.zeros(2), jnp.zeros(3)))
        q.log_prob(z) of the draws has shape (2,), and q.sample_and_log_prob gave log_q (3,); ...
    """
    return ValueError(
        f"q.log_prob(z) of the draws has shape {path_log_q.shape}, and q.sample_and_log_prob gave "
        f"log_q {log_q.shape}; the two methods of q must agree ([*batch] for one draw)."
    )


def wrong_shape_of_bound(log_q: Shaped, value: Shaped) -> ValueError:
    """A bound whose value is not [*batch]."""
    return ValueError(
        f"a bound maps [k, *batch] to [*batch]: from {log_q.shape} this one made {value.shape}."
    )


def not_one_value_per_draw(bound: object, others: Shaped, log_w: Shaped) -> ValueError:
    """A bound whose value without each draw is not one number for each draw.

    Example:
        >>> print(not_one_value_per_draw(vj.bounds.elbo, jnp.zeros(()), jnp.zeros(4)))
        elbo without each draw has shape (), expected (4,): a bound maps [k, *batch] to [*batch] ...
    """
    return ValueError(
        f"{checks.describe(bound)} without each draw has shape {others.shape}, expected "
        f"{log_w.shape}: a bound maps [k, *batch] to [*batch] for any k."
    )


def not_states(estimator: str, found: str) -> ValueError:
    """A q that is not made of independent Bernoulli or categorical variables."""
    return ValueError(
        f"{estimator} needs a q of independent Bernoulli or categorical variables that shows its "
        f"logits as q.logits (or a dict or tuple of such q), and {found}; {CURE}."
    )


def not_independent_latents(estimator: str, leaf: str) -> ValueError:
    """A leaf that is given earlier ones, where the estimator takes each leaf by itself."""
    return ValueError(
        f"{estimator} needs independent latents, and leaf '{leaf}' is given the earlier ones; "
        f"{CURE}."
    )


def differentiated_twice(estimator: str) -> ValueError:
    """A second derivative of an estimator whose first alone is right, and that in its mean."""
    return ValueError(
        f"the value of gradients.{estimator} is differentiated twice, and the derivative of its "
        "gradient is no estimate of the Hessian: use gradients.reparam, whose derivatives of any "
        "order are right, or integrate a discrete q out by targets.enumerate. Where the gradient "
        "is only evaluated, as inside another loss, take it at jax.lax.stop_gradient of the "
        "parameters."
    )


def outer_product(what: str, outer: jaxprs.Outer) -> ValueError:
    """A latent that is broadcast to an outer product, nearly always by accident."""
    return ValueError(
        f"{what} broadcasts {outer.short} against {outer.long} to an outer product at "
        f"{outer.place}; nearly always a column that should be a row. Give both the same rank: "
        "x[:, 0], or a[None, :] if it is meant."
    )


def changes_a_variable(error: Exception) -> ValueError:
    return ValueError(
        f"log_joint changes a variable of a Flax module that was made outside of it ({error}). It "
        "is traced for one draw at a time: make the module anew within it, nnx.merge(graphdef, "
        "state, copy=True). Dropout takes its key from targets.keyed, "
        "rngs=nnx.Rngs(dropout=key); batch statistics are constants of a step, module.eval(), or "
        "go out as auxiliary output of targets.keyed(has_aux=True)."
    )
