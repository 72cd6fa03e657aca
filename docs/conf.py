"""Sphinx configuration; `make docs` treats warnings as errors."""

import sys
from pathlib import Path

from sphinx.application import Sphinx

import equitune

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS / "_ext"))

import inventories  # noqa: E402
import public_names  # noqa: E402
from search_words import SearchNames  # noqa: E402

project = "equitune"
author = "The equitune developers"
copyright = "2026, The equitune developers"
release = equitune.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "sphinxcontrib.bibtex",
    "linked_names",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "_ext", "_templates", "gallery/*.ipynb", "papers/shared"]

# Every reference has to lead somewhere; those to other libraries lead out of this site.
nitpicky = True
suppress_warnings = ["config.cache"]  # of functions among the options
nitpick_ignore_regex = [
    (
        r"py:.*",
        r"(torch|nn|F|collections|typing|pathlib|hypothesis|st|matplotlib|gymnasium|numpy|optional)\b.*",
    ),
    (r"py:.*", r"(stable_baselines3|transformers|argparse|jinja2)\b.*"),
    (r"py:class", r"Tensor|Module|Parameter|Size|Figure|Any|Callable|Sequence|Mapping|Iterable"),
    # Annotations that abbreviate, and what is behind a public class.
    (r"py:class", r"equitune\..*\b_\w+\..*|Actions|AnchorShapes|BoxFormat|Gradient|Method"),
    (r"py:class", r"DeviceMesh|Permutations|Scaled|Scorer|FieldActions|Dims|abc\..*"),
]
intersphinx_mapping = inventories.reachable()

html_theme = "furo"
html_title = "equitune"
html_static_path = ["_static"]
html_css_files = ["site.css"]

# Pages of the API, one for each name; `audit` would replace `Audit` where case makes no difference.
autosummary_context = {
    "own_members": public_names.own_members,
    "guides": public_names.guides,
}
autosummary_filename_map = {"equitune.audit.audit": "equitune.audit.audit_function"}

napoleon_google_docstring = True
napoleon_numpy_docstring = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
# Docstrings write the order of a group as |G|, which reStructuredText takes for a substitution.
rst_prolog = r".. |G| replace:: \|G\|"

myst_enable_extensions = ["dollarmath", "colon_fence", "attrs_inline", "deflist"]
myst_heading_anchors = 3
# Notebooks are stored with their outputs; the tests execute them.
nb_execution_mode = "off"

bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "plain"
bibtex_reference_style = "author_year"

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .gp, .go"

# A script runs again only if its text has changed: what it drew stays in docs/gallery.
sphinx_gallery_conf = {
    "examples_dirs": ["../examples/gallery"],
    "gallery_dirs": ["gallery"],
    "filename_pattern": r"/plot_",
    "backreferences_dir": "gallery/backreferences",
    "doc_module": ("equitune",),
    "reference_url": {"equitune": None},
    "abort_on_example_error": True,
    "min_reported_time": 60,
    "download_all_examples": False,
    "show_signature": False,
    "remove_config_comments": True,
    "within_subsection_order": "FileNameSortKey",
    "image_scrapers": ("gallery_figures",),
    "write_computation_times": False,
}


def copy_notebooks(app: Sphinx) -> None:
    """The notebooks live with the examples that they import; the site needs them in its folder."""
    for notebook in (DOCS.parent / "examples").glob("*.ipynb"):
        text = notebook.read_text(encoding="utf-8").replace("](../docs/", "](../")
        copy = DOCS / "notebooks" / notebook.name
        if not copy.exists() or copy.read_text(encoding="utf-8") != text:
            copy.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> None:
    app.add_search_language(SearchNames)
    app.connect("builder-inited", copy_notebooks)
