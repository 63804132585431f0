"""Sections of text, tables and figures as an HTML page or as Markdown, from `templates/`.

All text is shown literally: names and notes are the user's.
"""

import base64
import re
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from lth_scale.config.markdown import LABEL, Section, clean, literal, markdown_table
from lth_scale.science.figures import DPI


def html(title: str, note: str, sections: Sequence[Section]) -> str:
    """One HTML file that contains its figures."""
    return _render("report.html", title, note, sections)


def markdown(title: str, note: str, sections: Sequence[Section]) -> str:
    """Markdown that refers to its figures as files in the same directory."""
    return _render("report.md", title, note, sections)


def _render(template: str, title: str, note: str, sections: Sequence[Section]) -> str:
    return TEMPLATES.get_template(template).render(title=title, note=note, sections=sections)


def _unbroken(text: str) -> str:
    """A text whose numbers and signs stay on one line, such as `p < 0.001`."""
    return re.sub(r" (?=[=±%<])|(?<=[=±<]) ", "\u00a0", text)


def _css_width(png: bytes) -> int:
    """The width of a PNG in CSS pixels, from its IHDR chunk."""
    return int.from_bytes(png[16:20]) * 96 // DPI


TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=select_autoescape(["html"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
TEMPLATES.filters |= {
    "base64": lambda content: base64.b64encode(content).decode(),
    "clean": clean,
    "css_width": _css_width,
    "label": lambda text: literal(text, LABEL),
    "literal": literal,
    "markdown_table": markdown_table,
    "unbroken": _unbroken,
}
TEMPLATES.globals["not_drawn"] = "This figure could not be drawn: {}.".format
