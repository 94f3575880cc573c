"""The house: imports run one way, files are short, every public function says its formula and its reference."""

import ast
import doctest
import inspect
import math
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vijax"
FILES = sorted(PACKAGE.rglob("*.py"))

# Who may import whom; a room may always import its own files.
GROUND = {"types", "numerics", "trees", "calls", "raised", "checks", "resampling", "folds"}
LOOK = GROUND | {"gaussians", "jaxprs"}
MAY_IMPORT = {
    # The ground.
    "types": set(),
    "numerics": {"types"},
    "trees": {"types"},
    "resampling": set(),
    "folds": {"types", "trees"},
    "calls": {"types"},
    "raised": {"types", "trees"},
    "checks": {"types", "calls", "trees", "raised"},
    "gaussians": {"types", "trees", "folds"},
    "jaxprs": {"types", "trees", "checks"},
    # What every objective does, and the kinds of function.
    "engine": {"types", "numerics", "trees", "calls", "raised", "checks", "jaxprs"},
    "draws": GROUND | {"jaxprs", "engine"},
    "gradients": GROUND | {"jaxprs", "engine", "draws"},
    # They rest on the ground and jaxprs, and never import each other.
    **dict.fromkeys(("bounds", "targets", "families", "sequences", "diagnostics"), LOOK),
    # They evaluate log_joint as objectives do.
    "updates": LOOK | {"engine"},
    "particles": LOOK | {"engine", "draws"},
    "testing": GROUND | {"draws"},
    # Outside: no room imports them, nor does one the other.
    "solvers": LOOK | {"engine", "draws", "bounds", "gradients", "diagnostics"},
    "fitting": GROUND | {"jaxprs", "draws", "diagnostics"},
    "models": LOOK | {"draws", "bounds", "gradients", "targets", "families", "sequences"},
    "coding": LOOK | {"draws", "bounds", "gradients", "targets", "families", "models"},
}
# Optional libraries, and the rooms that may import them, inside a function alone. JAX itself depends on SciPy.
OPTIONAL = dict.fromkeys(("arviz_stats", "distrax", "tensorflow_probability"), {"families"}) | {
    "arviz_base": {"diagnostics"},
    "flax": {"models"},
    "numpyro": {"targets"},
    "optax": {"fitting", "solvers", "updates"},
    "orbax": {"fitting"},
    "scipy": {"families", "draws"},
    "tqdm": {"fitting"},
}


def room(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path):
    """Yield every module that a file imports, with whether it does so when it is itself imported."""
    tree = ast.parse(path.read_text())
    inside = {
        id(n)
        for f in ast.walk(tree)
        if isinstance(f, (ast.FunctionDef, ast.Lambda))
        for n in ast.walk(f)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) not in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names]
                if node.module == "vijax"
                else [node.module]
            )
            yield from ((name, id(node) not in inside) for name in names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    own = room(path)
    if own == "__init__":
        return
    for module, _ in imports(path):
        if module.startswith("vijax."):
            other = module.split(".")[1]
            assert other == own or other in MAY_IMPORT[own], f"{own} may not import {other}"


def test_no_arrow_points_up_and_none_in_a_circle():
    """The rooms have an order in which each imports earlier ones alone."""
    left = {name: set(may) for name, may in MAY_IMPORT.items()}
    while left:
        free = {name for name, may in left.items() if not may & set(left)}
        assert free, f"a circle among {sorted(left)}"
        left = {name: may for name, may in left.items() if name not in free}


def test_no_private_name_crosses_files():
    """A name with a leading underscore is its file's own; files themselves may be private to their room."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("vijax"):
                modules = {
                    file.stem for file in (PACKAGE / Path(*node.module.split(".")[1:])).glob("*.py")
                }
                for alias in node.names:
                    assert not alias.name.startswith("_") or alias.name in modules, (
                        f"{path} imports {alias.name}"
                    )
                parts = node.module.split(".")[1:]
                private = [part for part in parts if part.startswith("_")]
                assert not private or parts[0] == room(path), f"{path} imports from {node.module}"


def test_every_room_says_what_it_maps_to_what():
    for init in PACKAGE.glob("*/__init__.py"):
        first = ast.get_docstring(ast.parse(init.read_text())).split("\n")[0]
        assert re.search(r"^[A-Z\w].{20,}", first), init


def test_the_rule_can_tell():
    """The control: a bound that imported an estimator would be found."""
    assert "gradients" not in MAY_IMPORT["bounds"]
    found = {
        module.split(".")[1]
        for module, _ in imports(PACKAGE / "gradients" / "_auto.py")
        if module.startswith("vijax.")
    }
    assert {"draws", "engine", "gradients", "types"} <= found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_optional_libraries_are_imported_lazily_where_they_belong(path):
    for module, at_once in imports(path):
        top = module.split(".")[0]
        # Flax modules are classes: their room is itself imported when it is first asked for.
        whole = (room(path), top) == ("models", "flax")
        assert top not in OPTIONAL or (room(path) in OPTIONAL[top] and (whole or not at_once)), (
            f"{path} imports {module}"
        )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_are_short_and_say_what_they_are_for(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 300
    assert re.match(r'^"""\S.*', lines[0]), "line 1 says what the file is for"


def public():
    for name in (
        "bounds",
        "diagnostics",
        "draws",
        "families",
        "fitting",
        "gradients",
        "models",
        "particles",
        "sequences",
        "solvers",
        "targets",
        "testing",
        "updates",
    ):
        folder = getattr(vj, name)
        for function in folder.__all__:
            if inspect.isfunction(inspect.unwrap(getattr(folder, function))):
                yield f"{name}.{function}", getattr(folder, function)


@pytest.mark.parametrize(
    ("name", "function"), list(public()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_docstrings(name, function):
    """A first line, an indented line of formula, arguments and a reference; a summary that names its direction if any."""
    text = inspect.getdoc(function)
    assert text, f"{name} has no docstring"
    assert re.search(r"^    \S.*$", text.split("Args:")[0], re.MULTILINE), (
        f"{name} has no formula line"
    )
    assert re.search(r"\nReference: .*(\d{4}|none)", text, re.DOTALL), f"{name} has no reference"
    for section in ("Args:", "Returns:"):
        assert section in text, f"{name} has no {section}"
    if name.startswith("bounds."):
        first = text.split("\n\n")[0]
        assert re.search("maximized|minimized", first), f"{name} does not say which way it goes"
        assert re.search("lower|upper|neither", first)


# Modules that other rooms import from, without being names that a user calls.
SHARED = {
    "families": {"batched"},
    "gaussians": {"affine", "chain", "conditional", "newton", "roots", "triangle", "whitening"},
}


def test_every_name_has_one_address():
    """Leaf files are private, and __init__ is their table of contents; a shelf of many like functions is itself a name."""
    for init in PACKAGE.glob("*/__init__.py"):
        folder = getattr(vj, init.parent.name)
        assert folder.__all__ == sorted(folder.__all__), init
        shared = SHARED.get(init.parent.name, set())
        named = {path.stem for path in init.parent.glob("*.py") if not path.stem.startswith("_")}
        assert named <= set(folder.__all__) | shared, init
        public = (
            {n for n in vars(folder) if not n.startswith("_")} - {"vijax", "jaxtyping"} - shared
        )
        assert set(folder.__all__) == public, init


def test_importing_vijax_imports_nothing_optional():
    """Nor does it start a device, which would fix JAX's settings under the user's hands."""
    code = (
        "import sys, vijax\n"
        f"print(sorted({set(OPTIONAL)!r} & set(sys.modules)))\n"
        "from jax._src import xla_bridge\n"
        "print(xla_bridge.backends_are_initialized())\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    imported, started = run.stdout.split("\n")[:2]
    assert set(ast.literal_eval(imported)) <= {"scipy"}, imported  # JAX itself imports SciPy
    assert started == "False"


def test_the_lock_names_no_address():
    for lock in ROOT.glob("*.lock"):
        assert "://" not in lock.read_text(), lock


README = ROOT / "README.md"


def blocks():
    return (
        re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if README.exists() else []
    )


@pytest.mark.skipif(not README.exists(), reason="there is no README yet")
def test_the_readme_runs(loose_ranks):
    """Its Python blocks in order, as one session; where they show a prompt, the answers too."""
    assert blocks()
    names = {}
    for block in blocks():
        if ">>>" in block:
            test = doctest.DocTestParser().get_doctest(block, names, "README.md", str(README), 0)
            runner = doctest.DocTestRunner(
                optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
            )
            runner.run(test, clear_globs=False)
            assert runner.failures == 0
            names = test.globs
        else:
            exec(compile(block, "README.md", "exec"), names)


def test_the_guide_to_extending_runs(loose_ranks):
    """Its bound with closed forms, its target that wraps another, under an objective, and its rule in a fit."""
    names = {}
    for block in re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/extend.md").read_text(), re.DOTALL
    ):
        exec(compile(block, "extend.md", "exec"), names)
    q = vj.families.mean_field().dist({"loc": jnp.zeros(()), "log_scale": jnp.zeros(())})
    bound = partial(names["tempered"], beta=0.5)
    noisy = vj.targets.keyed(lambda key, z: -0.5 * z**2)
    target = names["tempered_target"](noisy, 0.5)
    assert vj.types.properties(target).keyed
    with pytest.raises(ValueError, match="half of the sites, so its bound must be linear"):
        vj.gradients.dreg(vj.bounds.iwae)(jax.random.key(0), names["half"], q, num_samples=4)
    summed = names["random_half"](jnp.sum, jnp.sum)
    with pytest.raises(ValueError, match=r"a term for each site, \[N\], got shape \(\)"):
        vj.gradients.reparam(vj.bounds.elbo)(jax.random.key(0), summed, q, num_samples=4)
    value = vj.gradients.dreg(bound)(jax.random.key(0), target, q, num_samples=4).value
    whole = vj.draws.weigh(jax.random.key(0), target, q, num_samples=4)
    np.testing.assert_allclose(value, 0.5 * jnp.mean(whole.log_w), rtol=1e-6)
    np.testing.assert_allclose(names["result"].average["loc"], 3.0, atol=0.1)
    assert abs(names["result"].average["log_scale"]) < 0.1


def test_the_guide_to_refusals_runs(loose_ranks):
    """Its flow is refused without the declaration, and right with it."""
    names = {}
    text = (ROOT / "docs/refusals.md").read_text()
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, "refusals.md", "exec"), names)

    def value(key, m, flow):
        return names["objective"](key, lambda z: -0.5 * z**2, flow(m), num_samples=8).value

    undeclared = type("Undeclared", (names["Flow"],), {"fixed_support": None})
    with pytest.raises(ValueError, match="declare q.fixed_support = True"):
        jax.grad(lambda m: value(jax.random.key(0), m, undeclared))(0.4)
    e = np.linspace(-9, 9, 20_001)

    def elbo(m):
        slope = 1 + m * (1 - np.tanh(e) ** 2)
        z, density = e + m * np.tanh(e), np.exp(-0.5 * e**2) / math.sqrt(2 * math.pi)
        return np.trapezoid(density * (-0.5 * z**2 + 0.5 * e**2 + np.log(slope)), e)

    truth = (elbo(0.401) - elbo(0.399)) / 0.002
    gradient = lambda key: jax.grad(lambda m: value(key, m, names["Flow"]))(0.4)
    vj.testing.check_unbiased(jax.random.key(1), gradient, truth, detects=0.1)


@pytest.mark.slow
def test_the_guide_to_digits_runs(loose_ranks):
    """Its three recipes, in order."""
    names = {}
    text = (ROOT / "docs/digits.md").read_text()
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, "digits.md", "exec"), names)
    assert np.isfinite(names["target"](names["at"]))
    assert np.abs(names["error"]).max() < 1e-5
    assert names["slope"]["log_mean"] != 0


@pytest.mark.slow
def test_the_guide_after_a_two_runs(loose_ranks):
    """Slopes integrated out and drawn again, a quadrature that is exact, a scale that is the image of a normal."""
    names = {}
    text = (ROOT / "docs/after_a_two.md").read_text()
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, "after_a_two.md", "exec"), names)
    assert int(names["summary"].verdict) <= 1
    assert "effects[7,1]" in names["summary"].names
    assert np.abs(names["error"]).max() < 1e-5
    np.testing.assert_allclose(
        names["norm"].cdf(-2.0), np.arctan(names["lam"][0]) * 2 / np.pi, rtol=1e-5
    )
