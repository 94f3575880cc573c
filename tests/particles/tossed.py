"""A chain of two states whose filters of two particles are enumerated: every draw and every ancestor, 2^10 outcomes."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import define_prng_impl

import vijax as vj
from vijax.particles import Proposal, StateSpace

T, N, BITS = 3, 2, 10
X = jnp.array([0, 1, 1])

# A key is (number, place in the tree of keys); its digit is a bit of the number. Nodes are numbered as the filter splits:
# fold_in(t), for t >= 1 split in (select, move), and the key of moves split again by particle.


def _fold_in(key, t):
    return jnp.stack([key[0], 100 + t.astype(jnp.uint32)])


def _split(key, shape):
    children = key[1] * 8 + 1 + jnp.arange(shape[0], dtype=jnp.uint32)
    return jnp.stack([jnp.broadcast_to(key[0], children.shape), children], -1)


def _places():
    """Return which bits each key stands for: {place: first bit}."""
    places, bit = {}, 0
    for t in range(T):
        node = 100 + t
        if t:
            places[node * 8 + 1] = bit  # two ancestors
            bit += 2
        moves = node if t == 0 else node * 8 + 2
        for i in range(N):
            places[moves * 8 + 1 + i] = bit
            bit += 1
    assert bit == BITS
    return places


PLACES = _places()


def _bits(key, width, shape):
    first = sum(jnp.where(key[1] == place, bit, 0) for place, bit in PLACES.items())
    size = int(np.prod(shape))
    digits = (key[0] >> (first.astype(jnp.uint32) + jnp.arange(size, dtype=jnp.uint32))) & 1
    return digits.reshape(shape).astype(f"uint{width}")


TOSSED = define_prng_impl(
    key_shape=(2,),
    seed=lambda seed: jnp.stack([seed.astype(jnp.uint32), jnp.zeros((), jnp.uint32)]),
    split=_split,
    random_bits=_bits,
    fold_in=_fold_in,
    name="tossed",
)
NUMBERS = np.arange(2**BITS, dtype=np.uint32)


def keys():
    """Return a key for each outcome."""
    data = jnp.stack([jnp.asarray(NUMBERS), jnp.zeros_like(jnp.asarray(NUMBERS))], -1)
    return jax.random.wrap_key_data(data, impl=TOSSED)


def ancestors(key, weights, n):
    """Draw ancestors from the digits of the key, independently in proportion to weights once outcomes count as `plain` says."""
    return jax.random.bits(key, (n,)).astype(jnp.int32)


class Digit:
    """A categorical of two states whose draw is a digit of its key."""

    reparameterized, fixed_support = False, True

    def __init__(self, logit):
        self.log_p = jax.nn.log_softmax(jnp.stack([jnp.zeros_like(logit), logit]))

    def sample_and_log_prob(self, *, seed, sample_shape=()):
        z = jax.random.bits(seed, sample_shape).astype(jnp.int32)
        return z, self.log_prob(z)

    def log_prob(self, z):
        return self.log_p[z]


def model(theta, digit=Digit):
    """Return a chain; theta is (start, stay and leave, emission)."""
    emit = jax.nn.log_softmax(jnp.array([[0.3, -0.4], [-1.0, 0.8]]) * theta[2], -1)
    return StateSpace(
        lambda x: digit(theta[0]),
        lambda z, x: digit(jnp.where(z == 1, theta[1], -0.7 * theta[1])),
        lambda z, x: emit[z, x],
    )


def proposal(phi, digit=Digit):
    """Return a proposal that reads x."""
    return Proposal(lambda x: digit(phi * (x - 0.3)), lambda z, x: digit(phi * (0.5 * z + x - 0.6)))


def exact(theta):
    """Return log p(x) by the forward algorithm of the hidden Markov chain."""
    m = model(theta)
    rows = jnp.stack([m.transition(jnp.array(z), X[0]).log_p for z in (0, 1)])
    likelihood = jnp.stack([jnp.stack([m.emission(z, x) for z in (0, 1)]) for x in X])
    return vj.sequences.hmm(m.initial(X[0]).log_p, rows, likelihood).log_evidence


def plain(theta, phi, number):
    """Return log P(outcome) and log Ẑ of one outcome, written once more without vijax, each ancestor by its probability."""
    m, q = model(theta), model(theta) if phi is None else proposal(phi)
    bits = (number >> jnp.arange(BITS, dtype=jnp.uint32)) & 1
    bits, log_outcome, log_z, taken = bits.astype(jnp.int32), 0.0, 0.0, 0
    z = log_w = None
    for t, x in enumerate(X):
        if t:
            chosen = bits[taken : taken + 2]
            taken += 2
            log_outcome += jnp.sum((log_w - jax.nn.logsumexp(log_w))[chosen])
            z = z[chosen]
        new, log_w = bits[taken : taken + 2], []
        taken += 2
        for i in range(N):
            p = m.initial(x) if t == 0 else m.transition(z[i], x)
            r = q.initial(x) if t == 0 else q.transition(z[i], x)
            log_outcome += r.log_prob(new[i])
            log_w.append(p.log_prob(new[i]) - r.log_prob(new[i]) + m.emission(new[i], x))
        z, log_w = new, jnp.stack(log_w)
        log_z += jax.nn.logsumexp(log_w) - jnp.log(2.0)
    return log_outcome, log_z
