"""Flax modules of autoencoders: a network and a family to a conditional, conditionals to q and log_joint; layers."""

from vijax.models._autoencoder import VAE
from vijax.models._conditional import Conditional, num_params
from vijax.models._ladder import Ladder
from vijax.models._networks import MLP, ConvDecoder, ConvEncoder, flat_dot_general
from vijax.models._priors import Prior, VampPrior, aggregate, standard
from vijax.models._rates import Rate, RateHolder, free_bits, hold_rate
from vijax.models._weights import flipout, local_reparameterization

__all__ = [
    "Conditional",
    "ConvDecoder",
    "ConvEncoder",
    "Ladder",
    "MLP",
    "Prior",
    "Rate",
    "RateHolder",
    "VAE",
    "VampPrior",
    "aggregate",
    "flat_dot_general",
    "flipout",
    "free_bits",
    "hold_rate",
    "local_reparameterization",
    "num_params",
    "standard",
]
