"""Sections of text, tables and pictures as one HTML page or as Markdown, from `templates/`.

Every text is shown literally, whatever it holds: names and notes are the user's.
"""

import base64
import re
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from lth_scale.config.markdown import LABEL, Section, clean, literal, markdown_table

DPI = 150  # of the figures


def html(title: str, note: str, sections: Sequence[Section]) -> str:
    """One HTML file that contains its pictures."""
    return _render("report.html", title, note, sections)


def markdown(title: str, note: str, sections: Sequence[Section]) -> str:
    """Markdown that refers to its pictures as files beside it."""
    return _render("report.md", title, note, sections)


def _render(template: str, title: str, note: str, sections: Sequence[Section]) -> str:
    page = TEMPLATES.get_template(template)
    return page.render(title=title, note=note, sections=sections)


def _label(text: str) -> str:
    """`literal` for the text of a link or a picture."""
    return literal(text, LABEL)


def _unbroken(text: str) -> str:
    """A text whose numbers and signs stay on one line, such as `p < 0.001`."""
    return re.sub(r" (?=[=±%<])|(?<=[=±<]) ", "\u00a0", text)


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _css_width(png: bytes) -> int:
    """The width of a PNG in CSS pixels, from its IHDR chunk."""
    return int.from_bytes(png[16:20]) * 96 // DPI


def _not_drawn(caption: str) -> str:
    return f"The picture of {caption} could not be drawn."


TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=select_autoescape(["html"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
TEMPLATES.filters |= {
    "base64": _base64,
    "clean": clean,
    "css_width": _css_width,
    "label": _label,
    "literal": literal,
    "markdown_table": markdown_table,
    "unbroken": _unbroken,
}
TEMPLATES.globals["not_drawn"] = _not_drawn
