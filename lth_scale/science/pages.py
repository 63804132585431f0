"""Sections of text, tables and figures as an HTML page or as Markdown, from `templates/`.

All text is shown literally: names and notes are the user's.
"""

import base64
import re
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from lth_scale.config.markdown import LABEL, Section, Table, clean, literal, markdown_table
from lth_scale.science.figures import DPI

# How an answer begins, and the class of its colour; the text says the same without the colour.
ANSWERS = {"matches": "good", "worse": "bad", "undecided": "open", "no verdict": "open"}
# What LaTeX has no character for.
LATEX = {"θ": "$\\theta$", "±": "$\\pm$", "−": "$-$", "—": "---", "δ": "$\\delta$", "·": "$\\cdot$"}
LATEX |= {"₀": "$_0$", "′": "$'$", "″": "$''$", "≥": "$\\ge$", "\u00a0": "~", "×": "$\\times$"}


def html(title: str, note: str, sections: Sequence[Section], answer: Section | None = None) -> str:
    """One HTML file that contains its figures. answer: shown first, before a list of contents."""
    return _render("report.html", title, note, sections, answer)


def markdown(
    title: str, note: str, sections: Sequence[Section], answer: Section | None = None
) -> str:
    """Markdown that refers to its figures as files in the same directory; as `html`."""
    return _render("report.md", title, note, sections, answer)


def latex(table: Table) -> str:
    """A table for LaTeX with the package booktabs."""
    import pandas  # here, because the speed check writes pages without it

    rows = pandas.DataFrame([*table.rows], columns=pandas.Index(table.header))
    text = rows.to_latex(index=False, escape=True, caption=table.title)
    return text.translate(str.maketrans(LATEX)).replace("$$", "")


def _render(
    template: str, title: str, note: str, sections: Sequence[Section], answer: Section | None
) -> str:
    sources = dict.fromkeys(source for section in sections for source in section.sources)
    numbers = {source: number for number, source in enumerate(sources, start=1)}
    content = {"title": title, "note": note, "sections": sections, "answer": answer}
    return TEMPLATES.get_template(template).render(**content, numbers=numbers)


def _unbroken(text: str) -> str:
    """A text whose numbers and signs stay on one line, such as `p < 0.001`."""
    return re.sub(r" (?=[=±%<])|(?<=[=±<]) ", "\u00a0", text)


def _answer(cell: str, header: str) -> str:
    """The class of a cell that begins or ends with an answer, as does its header; "" of others."""
    texts = (cell, cell.rpartition(", ")[2], header if cell not in ("—", "none") else "")
    answers = [name for x in texts for answer, name in ANSWERS.items() if x.startswith(answer)]
    return next(iter(answers), "")


def _anchor(title: str) -> str:
    """The fragment that GitHub gives to a heading: `#do-the-tickets-match`."""
    return re.sub(r"[^\w\- ]", "", clean(title).lower()).replace(" ", "-")


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
    "anchor": _anchor,
    "answer": _answer,
    "base64": lambda content: base64.b64encode(content).decode(),
    "clean": clean,
    "css_width": _css_width,
    "label": lambda text: literal(text, LABEL),
    "literal": literal,
    "markdown_table": markdown_table,
    "unbroken": _unbroken,
}
TEMPLATES.globals["not_drawn"] = "This figure could not be drawn: {}.".format
