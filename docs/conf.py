"""How the documentation is built: the README, and the docstrings of each folder."""

import re

project = "vijax"
author = "The vijax authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
nb_execution_mode = "off"
smartquotes = False  # B' is a derivative
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_use_rtype = False
napoleon_custom_sections = [("Fields", "params_style")]
exclude_patterns = ["_build"]
suppress_warnings = ["myst.header", "myst.xref_missing", "ref.python"]


def mend(app, what, name, obj, options, lines):
    """Make reStructuredText of docstrings: formulas stay as they stand, stars and lone letters are no markup."""
    text = "\n".join(lines).expandtabs()
    text = re.sub(
        r"(?m)^Reference: ((?:.|\n)*?)(?=\n\s*\n|\Z)",
        lambda m: "Reference: " + " ".join(m[1].split()),
        text,
    )
    out, formula, section = [], False, False
    for line in text.split("\n"):
        indented = line.startswith("    ")
        if line and not indented:
            section, formula = bool(re.fullmatch(r"(Args|Returns|Raises|Fields):", line)), False
        elif indented and not section and not formula:
            out += ["::", ""]
            formula = True
        if not formula:
            parts = line.split("`")  # every second one is code
            line = "`".join(p if i % 2 else p.replace("*", r"\*") for i, p in enumerate(parts))
        out.append(re.sub(r": ([A-Za-z])\.$", r": \1 .", line) if section else line)
    lines[:] = out


def setup(app):
    """Tell Sphinx of it, before napoleon has its turn."""
    app.connect("autodoc-process-docstring", mend, priority=400)
