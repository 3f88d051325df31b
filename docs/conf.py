"""Sphinx: the pages of this folder as a site. Every one of them also reads as it is."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from hybrid import __version__  # noqa: E402 - the package as it is here, installed or not

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "flask-hybrid"
author = "the authors of flask-hybrid"
project_copyright = author
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
html_theme = "furo"
html_title = f"flask-hybrid {release}"
html_show_sourcelink = False

# Headings are link targets by the names that forges give them too.
myst_heading_anchors = 4
# Docstrings put code in single backticks.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
copybutton_prompt_text = r"\$ "
copybutton_prompt_is_regexp = True


def indented_is_code(
    _app: object, _kind: str, _name: str, _thing: object, _options: object, lines: list[str]
) -> None:
    """An indented paragraph in a docstring is code, without reStructuredText's `::`."""
    inside = False
    marked: list[str] = []
    for before, line in zip(["", *lines], lines, strict=False):
        deep = line.startswith("    ")
        if deep and not inside and not before.strip():
            marked += ["::", ""]
        inside = deep or (inside and not line.strip())
        marked.append(line)
    lines[:] = marked


def setup(app: "Sphinx") -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", indented_is_code)
