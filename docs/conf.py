"""Sphinx configuration: ``make docs``."""

from docutils.writers.html5_polyglot import HTMLTranslator
from sphinx.application import Sphinx

from craftopt import __version__

project = "craftopt"
author = copyright = "the craftopt authors"
version = release = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
nb_execution_mode = "off"  # `make notebooks` has executed them
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
autodoc_typehints = "none"  # shapes and units stand in the docstrings
autodoc_member_order = "bysource"
napoleon_google_docstring = False

html_math_renderer = "mathml"
html_theme = "furo"
html_title = "craftopt"
html_show_sourcelink = False
html_static_path = ["static"]
html_css_files = ["craftopt.css"]
linkcheck_timeout = 20


def setup(app: Sphinx) -> None:
    """Write formulas as MathML, which browsers show without scripts, as docutils does."""
    writer = HTMLTranslator
    app.add_html_math_renderer(
        "mathml",
        (writer.visit_math, writer.depart_math),
        (writer.visit_math_block, writer.depart_math_block),
    )
