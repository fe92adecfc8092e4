"""The documentation site: `make docs` builds it into .scratch/docs, warnings are errors."""

from pathlib import Path

import cnnf_brain

project = "cnnf-brain"
author = "cnnf-brain developers"
copyright = f"2026, {author}"
version = release = cnnf_brain.__version__

extensions = [
    "myst_nb",  # Markdown, and notebooks as Markdown, which the build runs
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
templates_path = ["_templates"]
exclude_patterns = []

myst_heading_anchors = 4  # the anchors that GitHub makes, which the pages link to
myst_enable_extensions = ["dollarmath"]
nb_execution_mode = "cache"  # a notebook runs again where its code has changed
nb_execution_cache_path = str(Path(__file__).parents[1] / ".scratch" / "notebooks")
nb_merge_streams = True
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_execution_show_tb = True

autodoc_typehints = "none"  # signatures have them in the source; the docstrings say shapes, units and ranges
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

html_theme = "pydata_sphinx_theme"
html_title = "cnnf-brain"
html_theme_options = {
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "show_prev_next": False,
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_sidebars = {"index": [], "start": []}
copybutton_exclude = ".linenos, .gp, .go"
