"""Every `>>>` example of a docstring runs and prints what it says, module by module."""

import doctest
import importlib
import pkgutil

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vijax

NAMES = {"jax": jax, "jnp": jnp, "np": np, "optax": optax, "distrax": distrax, "vj": vijax}
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def source(module) -> str:
    return module.module_finder.find_spec(module.name).loader.get_source(module.name)


SOURCES = {m.name: source(m) for m in pkgutil.walk_packages(vijax.__path__, "vijax.")}


@pytest.mark.parametrize("name", [name for name, text in SOURCES.items() if ">>>" in text])
def test_examples_print_what_they_say(name, loose_ranks, unchecked):
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs=NAMES, optionflags=FLAGS)
    assert not result.failed
    assert result.attempted == SOURCES[name].count(">>> "), "doctest does not see all examples"
