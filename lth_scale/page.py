"""Sections of text, tables and pictures, as Markdown and as one HTML file that needs no other."""

import base64
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #8888 } h3 { margin: 1.5rem 0 .3rem; font-size: 1rem }
.note { border: 3px solid; padding: .6rem 1rem; font-weight: bold }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .85rem }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #8886; text-align: left; vertical-align: top }
thead th { border-bottom: 2px solid }
figure { display: inline-block; vertical-align: top; max-width: 100%; margin: 1rem 0 }
figcaption { font-size: .85rem } img { max-width: 100%; height: auto; background: white }
@media print { body { max-width: none; font-size: 9pt } figure, tr { break-inside: avoid } .wide { overflow: visible }
  table { font-size: 7pt } th, td { padding: .1rem .25rem } }
"""


@dataclass(frozen=True)
class Table:
    """Text in rows; the same for Markdown and HTML."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass
class Section:
    """A heading and what is below it; pictures are PNG by file name, with what they show.

    One that could not be drawn is empty, and the page says so.
    """

    title: str
    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: dict[str, tuple[str, bytes]] = field(default_factory=dict)


def markdown(title: str, note: str, sections: Iterable[Section]) -> str:
    """The sections as Markdown, their pictures as files beside it."""
    parts = [f"# {title}", *([f"> **{note}**"] if note else [])]
    for section in sections:
        parts += [f"## {section.title}", *section.text]
        for table in section.tables:
            parts += [f"### {table.title}", grid(table)]
        parts += [
            f"![{caption}]({name})" if png else _absent(caption) for name, (caption, png) in section.pictures.items()
        ]
    return "\n\n".join(parts) + "\n"


def grid(table: Table) -> str:
    """A table as Markdown, without its title."""
    lines = [table.header, ["---"] * len(table.header), *table.rows]
    return "\n".join("| " + " | ".join(x.replace("|", "\\|") for x in line) + " |" for line in lines)


def html(title: str, note: str, sections: Iterable[Section]) -> str:
    """The sections as HTML with their pictures in it."""
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><meta name="viewport" content="width=device-width">'
    parts = ["<!doctype html>", f'<html lang="en"><head>{head}<style>{STYLE}</style></head><body>']
    parts += [f"<h1>{escape(title)}</h1>", *([f'<p class="note">{escape(note)}</p>'] if note else [])]
    for section in sections:
        parts += [f"<section><h2>{escape(section.title)}</h2>", *(f"<p>{escape(line)}</p>" for line in section.text)]
        parts += [*map(_table, section.tables), *(_figure(*picture) for picture in section.pictures.values())]
        parts.append("</section>")
    return "\n".join([*parts, "</body></html>\n"])


def _table(table: Table) -> str:
    head, *body = (_row(row, tag) for row, tag in [(table.header, "th"), *((row, "td") for row in table.rows)])
    whole = "\n".join([f"<table><thead>{head}</thead><tbody>", *body, "</tbody></table>"])
    return f'<h3>{escape(table.title)}</h3><div class="wide">{whole}</div>'


def _row(cells: Sequence[str], tag: str) -> str:
    whole = (re.sub(r" (?=[=±%<])|(?<=[=±<]) ", "\u00a0", cell) for cell in cells)  # `p < 0.001` stays on one line
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in whole) + "</tr>"


def _absent(caption: str) -> str:
    return f"The picture of {caption} could not be drawn."


def _figure(caption: str, png: bytes) -> str:
    if not png:
        return f"<p>{escape(_absent(caption))}</p>"
    width = int.from_bytes(png[16:20]) * 96 // 150  # its IHDR's pixels, drawn at 150 an inch
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    caption = escape(caption)
    return f'<figure><img alt="{caption}" width="{width}" src="{source}"><figcaption>{caption}</figcaption></figure>'
