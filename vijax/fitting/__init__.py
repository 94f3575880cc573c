"""The optional outer ring: whole fits. Nothing else in vijax imports it."""

from vijax.fitting._maximize import Maximum, maximize

__all__ = ["Maximum", "maximize"]
