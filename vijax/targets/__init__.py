"""Change the question: log_joint -> log_joint."""

from vijax.targets._collapse import collapse
from vijax.targets._keyed import keyed
from vijax.targets._minibatch import minibatch

__all__ = ["collapse", "keyed", "minibatch"]
