"""Sphinx configuration: ``make docs``."""

from craftopt import __version__

project = "craftopt"
author = "The craftopt authors"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3
autodoc_typehints = "none"  # shapes and units stand in the docstrings
autodoc_member_order = "bysource"
napoleon_google_docstring = False

html_theme = "alabaster"
html_theme_options = {"description": "Expert replication and placement for MoE serving"}
html_show_sourcelink = False
