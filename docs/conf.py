"""How the documentation is built: the README, and the docstrings of each folder."""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from _formulas import block as formulas  # noqa: E402
from _formulas import is_formula  # noqa: E402
from sphinx.pycode import ModuleAnalyzer  # noqa: E402

project = "vijax"
author = "The vijax authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon"]
html_theme = "furo"
nb_execution_mode = "off"
html_show_copyright = False
default_role = "code"  # single backticks
smartquotes = False  # B' is a derivative
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_use_rtype = False
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Fields", "params_style")]
exclude_patterns = ["_build"]
suppress_warnings = ["myst.header", "ref.python"]
myst_heading_anchors = 3


# Ways to draw, and the files that say what each is.
VALUES = {
    f"vijax.draws.{name}": f"vijax.{file}"
    for name, file in {
        "iid": "engine._evaluate",
        "antithetic": "draws._antithetic",
        "sobol": "draws._qmc",
        "stratified": "draws._stratified",
    }.items()
}


def mend(app, what, name, obj, options, lines):
    """Make reStructuredText of docstrings: formulas stay as they stand, stars and lone letters are no markup."""
    text = "\n".join(lines).expandtabs()
    text = re.sub(
        r"(?m)^Reference: ((?:.|\n)*?)(?=\n\s*\n|\Z)",
        lambda m: "Reference: " + " ".join(m[1].split()),
        text,
    )
    # Napoleon takes what stands before a colon for a type. A sentence gets an empty one.
    text = re.sub(
        r"(?m)^(Returns:\n    )(?=[^:\n]*: )(?![A-Z][\w.]*(?:\[[^\n]*?\])?: )", r"\1: ", text
    )
    out, section = [], False
    rows = iter([*text.split("\n"), ""])
    for line in rows:
        indented = line.startswith("    ")
        if line and not indented:
            section = bool(re.fullmatch(r"(Args|Returns|Raises|Fields):", line))
        elif indented and not section:
            block = [line]
            for line in rows:  # noqa: B020, PLW2901
                if line and not line.startswith("    "):
                    break
                block.append(line)
            formula = is_formula(block)
            out += formulas(block) if formula else ["::", "", *block, ""]
        parts = line.split("`")  # every second one is code
        line = "`".join(p if i % 2 else re.sub(r"([*|])", r"\\\1", p) for i, p in enumerate(parts))
        if line[:4] != "    " or section:
            out.append(re.sub(r": ([A-Za-z])\.$", r": \1 .", line) if section else line)
    lines[:] = out


def values(app, what, name, obj, options, lines):
    """Give values, which have no docstring of their own, the string that follows them in their file."""
    if what == "data" and name in VALUES:
        written = ModuleAnalyzer.for_module(VALUES[name]).find_attr_docs()
        first, *rest = written["", name.rsplit(".", 1)[1]]
        lines[:] = [f": {first}", *rest]  # Napoleon takes what stands before a colon for a type.


def skip(app, what, name, obj, skip, options):
    """Leave out the fields of tuples, which their class describes."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field") else None


def link(app, page, source):
    """Let links to names on API pages, which serve readers of the files, be checked as names."""
    source[0] = re.sub(r"(\]\(|\]: )api/\w+\.md#(vijax\.)", r"\1#\2", source[0])


def setup(app):
    """Tell Sphinx of it, before napoleon has its turn."""
    app.connect("source-read", link)
    app.connect("autodoc-process-docstring", values, priority=300)
    app.connect("autodoc-process-docstring", mend, priority=400)
    app.connect("autodoc-skip-member", skip)
