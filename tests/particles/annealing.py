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


# --- expectations over three standard normals, by sums over a grid, in float64 and without vijax


def log_normal(x, loc, scale):
    return -0.5 * ((x - loc) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)


def grid():
    """Return three standard normals on a grid, [n] each, and the mass of every point."""
    e = np.linspace(-6, 6, 61)
    mass = np.exp(-0.5 * e**2) / np.sum(np.exp(-0.5 * e**2))
    noise = [a.ravel() for a in np.meshgrid(e, e, e, indexing="ij")]
    return noise, np.einsum("i,j,k->ijk", mass, mass, mass).ravel()


def value_and_slopes(function, params, step=1e-4):
    """Return a function of several numbers and its slopes, by central differences."""
    params = np.asarray(params, np.float64)
    ends = [(function(params + e), function(params - e)) for e in step * np.eye(len(params))]
    return float(function(params)), tuple((high - low) / (2 * step) for high, low in ends)


def humps(a):
    return lambda z: jnp.logaddexp(norm.logpdf(z, a), norm.logpdf(z, -a)) - jnp.log(2.0)
