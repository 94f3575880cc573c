"""Whether it worked: numbers read off the draws."""

from vijax.diagnostics._weights import ess, khat, psis

__all__ = ["ess", "khat", "psis"]
