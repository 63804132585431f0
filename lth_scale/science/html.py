"""Reports as one HTML page."""

import base64
import re
from collections.abc import Iterable, Sequence
from html import escape

from lth_scale.config.markdown import Section, Table, clean, missing_picture

BEGINNING = '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Report: '  # of a study's page


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


def html(title: str, note: str, sections: Iterable[Section]) -> str:
    """The sections as HTML with their pictures in it."""
    head = f'<meta charset="utf-8"><title>{_plain(title)}</title><meta name="viewport" content="width=device-width">'
    parts = ["<!doctype html>", f'<html lang="en"><head>{head}<style>{STYLE}</style></head><body>']
    parts += [
        f"<h1>{_plain(title)}</h1>",
        *([f'<p class="note">{_plain(note)}</p>'] if clean(note) else []),
    ]
    for section in sections:
        parts += [
            f"<section><h2>{_plain(section.title)}</h2>",
            *(f"<p>{_plain(line)}</p>" for line in section.text),
        ]
        parts += [
            *map(_table, section.tables),
            *(_figure(*picture) for picture in section.pictures.values()),
        ]
        parts.append("</section>")
    return "\n".join([*parts, "</body></html>\n"])


def _plain(text: str) -> str:
    return escape(clean(text))


def _table(table: Table) -> str:
    head, *body = (
        _row(row, tag) for row, tag in [(table.header, "th"), *((row, "td") for row in table.rows)]
    )
    whole = "\n".join([f"<table><thead>{head}</thead><tbody>", *body, "</tbody></table>"])
    return f'<h3>{_plain(table.title)}</h3><div class="wide">{whole}</div>'


def _row(cells: Sequence[str], tag: str) -> str:
    whole = (
        re.sub(r" (?=[=±%<])|(?<=[=±<]) ", "\u00a0", clean(cell)) for cell in cells
    )  # `p < 0.001` on one line
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in whole) + "</tr>"


def _figure(caption: str, png: bytes) -> str:
    if not png:
        return f"<p>{escape(missing_picture(caption))}</p>"
    width = int.from_bytes(png[16:20]) * 96 // 150  # its IHDR's pixels, drawn at 150 an inch
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    caption = _plain(caption)
    return f'<figure><img alt="{caption}" width="{width}" src="{source}"><figcaption>{caption}</figcaption></figure>'
