"""Whether it worked: numbers read off the draws."""

from vijax.diagnostics._weights import ess, khat

__all__ = ["ess", "khat"]
