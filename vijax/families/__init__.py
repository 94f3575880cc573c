"""What may answer: params -> q, over any pytree of latents."""

from vijax.families._adapt import adapt
from vijax.families._gaussian import full_rank, low_rank, mean_field
from vijax.families._mixture import mixture, strata

__all__ = ["adapt", "full_rank", "low_rank", "mean_field", "mixture", "strata"]
