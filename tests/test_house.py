"""The house stands as it was drawn: imports run one way, files are short, docstrings complete, the README runs."""

import ast
import doctest
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import vijax as vj

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "vijax").rglob("*.py"))
# Each room may import those named here, and itself. `gradients` receives its bound and so never imports `bounds`.
GROUND = {"types", "numerics", "dataflow"}
ROOMS = {
    "types": set(),
    "numerics": set(),
    "dataflow": {"types"},
    "checks": GROUND,
    "draws": GROUND | {"checks"},
    "gradients": GROUND | {"checks", "draws"},
    "bounds": GROUND | {"checks"},
    "targets": GROUND | {"checks"},
    "families": GROUND | {"checks"},
    "diagnostics": GROUND | {"checks"},
}
FOLDERS = ["bounds", "diagnostics", "draws", "families", "gradients", "targets"]


def imported_rooms(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vijax":
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("vijax."))


def test_imports_run_one_way():
    for path in SOURCES:
        room = path.relative_to(ROOT / "vijax").parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        beyond = set(imported_rooms(path.read_text())) - ROOMS[room] - {room}
        assert not beyond, f"{path.relative_to(ROOT)} imports {beyond}"


def test_an_import_upwards_is_seen():
    assert set(imported_rooms("from vijax.gradients import dreg\nfrom vijax import checks")) == {"gradients", "checks"}


def test_files_are_short_and_open_with_their_purpose():
    for path in SOURCES:
        text = path.read_text()
        assert text.startswith('"""'), path
        assert len(text.splitlines()) <= 300, path


def public():
    for name in FOLDERS:
        room = getattr(vj, name)
        for function in room.__all__:
            if inspect.isfunction(getattr(room, function)):
                yield f"{name}.{function}", getattr(room, function)


@pytest.mark.parametrize(("name", "function"), list(public()))
def test_docstrings_are_complete(name, function):
    text = inspect.getdoc(function)
    if name in ("draws.plan", "draws.evaluate"):  # parts that objectives share, not methods of the literature
        return
    for section in ("Args:", "Returns:", "Reference:"):
        assert section in text, section
    assert "\n\n    " in text, "a formula, indented"
    assert not [p for p in inspect.signature(function).parameters if p not in text], "every argument is described"


def test_each_name_has_one_address():
    seen = {}
    for name in FOLDERS:
        for function in getattr(vj, name).__all__:
            assert seen.setdefault(function, name) == name, function


@pytest.mark.parametrize("module", ["distrax", "flax", "optax", "tensorflow_probability", "arviz_stats", "scipy.stats"])
def test_import_is_light(module):
    code = (
        f"import jax, sys; before = set(sys.modules); import vijax; sys.exit({module!r} in set(sys.modules) - before)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_every_module_can_be_imported_alone():
    names = [m.name for m in pkgutil.walk_packages(vj.__path__, "vijax.")]
    assert len(names) > 20
    code = "import importlib, sys; [importlib.import_module(n) for n in sys.argv[1:]]"
    subprocess.run([sys.executable, "-c", code, *reversed(names)], cwd=ROOT, check=True)


def test_lock_names_no_registry():
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    assert text.count("--hash=sha256:") > text.count("==")


def test_readme_runs(loose_ranks):
    found = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert found.attempted > 15
    assert found.failed == 0
