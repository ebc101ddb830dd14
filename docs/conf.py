"""Sphinx configuration: ``make docs``."""

from docutils.writers.html5_polyglot import HTMLTranslator
from sphinx.application import Sphinx

from craftopt import __version__

project = "craftopt"
author = "The craftopt authors"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
autodoc_typehints = "none"  # shapes and units stand in the docstrings
autodoc_member_order = "bysource"
napoleon_google_docstring = False

html_math_renderer = "mathml"
html_theme = "furo"
html_title = "craftopt"
html_show_sourcelink = False


def setup(app: Sphinx) -> None:
    """Write formulas as MathML, which browsers show without scripts, as docutils does."""
    writer = HTMLTranslator
    app.add_html_math_renderer(
        "mathml",
        (writer.visit_math, writer.depart_math),
        (writer.visit_math_block, writer.depart_math_block),
    )
