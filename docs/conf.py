"""How the documentation is built: the README, and the docstrings of each folder."""

project = "vijax"
author = "The vijax authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
nb_execution_mode = "off"
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
exclude_patterns = ["_build"]
suppress_warnings = ["myst.header", "myst.xref_missing", "docutils"]
