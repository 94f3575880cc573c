"""How every test runs: eight virtual devices, strict shapes and ranks, keys that one option shifts."""

import os
import sys

# Before JAX starts. Most of a test's time is compilation, which level 0 halves; nothing here is timed.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
for flag in ("--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"):
    if flag.split("=")[0] not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

try:  # whole, before any test: an import that a warning ends, and something forgives, leaves half of it
    import numpyro.infer  # noqa: F401
except ImportError:
    pass

# Shapes in annotations are checked in tests only, and on one of the two Pythons of CI, for the checks cost a fifth of
# the time. VIJAX_TYPECHECK=0 shows whether a failure comes from an annotation.
if os.environ.get("VIJAX_TYPECHECK", str(int(sys.version_info >= (3, 12)))) == "1":
    jaxtyping.install_import_hook("vijax", "beartype.beartype")

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_addoption(parser):
    parser.addoption(
        "--seed", type=int, default=0, help="offset of every key in the tests (default 0)"
    )


@pytest.fixture
def key(request):
    """The key of this run; another one with `--seed 1`."""
    return jax.random.key(request.config.getoption("--seed"))


@pytest.fixture
def x64():
    """Double precision inside the test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def loose_ranks():
    """NumPy's promotion of ranks, which distrax, TFP and Flax rely on, and under which vijax looks for accidents."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def unchecked():
    """What a user meets: annotations are not checked, so that vijax's own errors are heard."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
