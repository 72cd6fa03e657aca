"""Sphinx configuration; `make docs` treats warnings as errors."""

import equitune

project = "equitune"
author = "The equitune developers"
copyright = "2026, The equitune developers"
release = equitune.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
# Every reference has to lead somewhere; those to other libraries lead out of this site.
nitpicky = True
nitpick_ignore_regex = [
    (
        r"py:.*",
        r"(torch|nn|F|collections|typing|pathlib|hypothesis|st|matplotlib|gymnasium|numpy|optional)\b.*",
    ),
    (r"py:.*", r"(stable_baselines3|transformers|argparse|jinja2)\b.*"),
    (r"py:class", r"Tensor|Module|Parameter|Size|Figure|Any|Callable|Sequence|Mapping|Iterable"),
    # Annotations that abbreviate, and what is behind a public class.
    (r"py:class", r"equitune\..*\b_\w+\..*|Actions|AnchorShapes|BoxFormat|Gradient|Method"),
    (r"py:class", r"Permutations|Scaled|Scorer"),
]
html_theme = "furo"
html_title = "equitune"
exclude_patterns = ["_build"]
napoleon_google_docstring = True
napoleon_numpy_docstring = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
# Docstrings write the order of a group as |G|, which reStructuredText takes for a substitution.
rst_prolog = r".. |G| replace:: \|G\|"
