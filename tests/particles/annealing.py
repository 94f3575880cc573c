"""Chains with a known answer, and a transition that is wrong: what the tests of annealing share."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

import vijax as vj
from vijax.particles._leapfrog import leapfrog, normal_like, steps_like


def unadjusted(*, step_size, num_steps=1):
    """The wrong transition: `hmc` without its accept step."""

    def move(key, log_density, z, beta):
        batch = jax.eval_shape(log_density, z).shape
        steps = steps_like(step_size, beta, z, batch)
        new, _, before, _ = leapfrog(log_density, z, normal_like(key, z), steps, num_steps)
        return new, jnp.ones_like(before)

    return move


# --- two levels: top ~ N(0, 1), low | top ~ N(top, 1), x | low ~ N(low, noise²), a batch of x

NOISE = 0.5


def two_levels(x):
    def log_joint(z):
        of_top, of_low = norm.logpdf(z["top"]), norm.logpdf(z["low"], z["top"], 1.0)
        return of_top + of_low + norm.logpdf(x, z["low"], NOISE)

    return log_joint


def two_levels_evidence(x):
    return norm.logpdf(x, 0.0, np.sqrt(2.0 + NOISE**2))


def simulated(key, n):
    """Return z and the x that came from it, for n data: z is an exact draw of the posterior."""
    top, low, x = jax.random.normal(key, (3, n))
    low = top + low
    return {"top": top, "low": low}, low + NOISE * x


def standard(z):
    """Return a standard normal q like z."""
    family = vj.families.members(vj.families.mean_field())
    return family.dist({"loc": z, "log_scale": jax.tree.map(jnp.zeros_like, z)})


def humps(a):
    return lambda z: jnp.logaddexp(norm.logpdf(z, a), norm.logpdf(z, -a)) - jnp.log(2.0)
