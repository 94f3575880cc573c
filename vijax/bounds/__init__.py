"""Bounds of the log-evidence: arithmetic on log-weights [k, *batch], in nats, with no gradient code."""

from vijax.bounds._importance import ciwae, elbo, iwae, multi_iwae
from vijax.bounds._renyi import cubo, renyi

__all__ = ["ciwae", "cubo", "elbo", "iwae", "multi_iwae", "renyi"]
