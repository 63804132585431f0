"""Sections of text, tables and pictures, as Markdown and as one HTML file that needs no other.

The writers take plain text and show it as it is, whatever it holds: names and notes are anybody's.
"""

import base64
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

from lth_scale.arguments import printable

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

# What would act as Markdown in CommonMark, GitHub's, MLflow's (Showdown) or Python-Markdown. The last character of a
# match is to be escaped; what acts nowhere is left as it is, so that the file reads well too.
ACTS = r"""
    [\\`*{|~$]                            # code, emphasis, attributes, cells, strikethrough, formulas
    | (?<![^\W_])_ | _(?![^\W_])          # emphasis, but not within_a_word
    | \](?=\s*[\[(:])                     # a link, a picture, or the definition of one
    | <(?!\s) | (?<=\\)< | &(?=[\#\w])  # a tag or an address, an entity
    | :(?=//|[\w+-]+:) | \bwww\.         # an address, an emoji
    | (?<!\w)@(?=\w) | @(?=[\w-]+\.\w)         # a mention, an address of mail
    | \#(?=\#*$)                         # the end of a heading
    | ^[\#>\[]                           # a heading, a quotation, a definition
    | ^-(?=[-\s]|$) | ^\+(?=\s|$) | ^\d+[.)](?=\s|$)    # a rule, a list
"""
LITERAL = re.compile(ACTS, re.VERBOSE)
LABEL = re.compile(rf"{ACTS} | [\[\]]", re.VERBOSE)
BACKSLASHED = "\\`*{|_[]-+.)"  # which every renderer takes back; the others need an entity


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


def clean(text: str) -> str:
    """A text on one line, without what could drive a terminal or reorder the line."""
    return printable(re.sub(r"\s", " ", text)).strip()


def literal(text: str, acts: re.Pattern[str] = LITERAL) -> str:
    """Markdown of one line that shows `text` as it is; with LABEL also as the text of a link or a picture."""
    return acts.sub(_escape, clean(text))


def _escape(found: re.Match[str]) -> str:
    last = found[0][-1]
    return found[0][:-1] + (f"\\{last}" if last in BACKSLASHED else _entity(last))


def _entity(character: str) -> str:
    return {"<": "&lt;", ">": "&gt;", "&": "&amp;"}.get(character, f"&#{ord(character)};")


def literal_in_html(text: str) -> str:
    """The same inside of an HTML element of a Markdown page, where some renderers read Markdown and some do not."""
    return LITERAL.sub(lambda found: found[0][:-1] + _entity(found[0][-1]), clean(text))


def code(text: str) -> str:
    """Markdown that shows `text` as code within a line."""
    text = clean(text)
    fence = "`" * (1 + longest_run(text))
    space = " " if "`" in text else ""
    return f"{fence}{space}{text}{space}{fence}"


def code_block(text: str, language: str) -> str:
    """Markdown that shows the lines of `text` as code."""
    fence = "`" * max(3, 1 + longest_run(text))
    return f"{fence}{language}\n{text}\n{fence}"


def longest_run(text: str) -> int:
    """How many backticks follow each other in `text` at most."""
    return max(map(len, re.findall("`+", text)), default=0)


def markdown(title: str, note: str, sections: Iterable[Section]) -> str:
    """The sections as Markdown, their pictures as files beside it."""
    parts = [f"# {literal(title)}", *([f"> **{literal(note)}**"] if clean(note) else [])]
    for section in sections:
        parts += [f"## {literal(section.title)}", *map(literal, section.text)]
        for table in section.tables:
            parts += [f"### {literal(table.title)}", grid(table)]
        parts += [
            f"![{literal(caption, LABEL)}]({name})" if png else literal(_absent(caption))
            for name, (caption, png) in section.pictures.items()
        ]
    return "\n\n".join(parts) + "\n"


def grid(table: Table) -> str:
    """A table as Markdown, without its title."""
    header, *rows = [[*map(literal, line)] for line in (table.header, *table.rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *rows))


def html(title: str, note: str, sections: Iterable[Section]) -> str:
    """The sections as HTML with their pictures in it."""
    head = f'<meta charset="utf-8"><title>{_plain(title)}</title><meta name="viewport" content="width=device-width">'
    parts = ["<!doctype html>", f'<html lang="en"><head>{head}<style>{STYLE}</style></head><body>']
    parts += [f"<h1>{_plain(title)}</h1>", *([f'<p class="note">{_plain(note)}</p>'] if clean(note) else [])]
    for section in sections:
        parts += [f"<section><h2>{_plain(section.title)}</h2>", *(f"<p>{_plain(line)}</p>" for line in section.text)]
        parts += [*map(_table, section.tables), *(_figure(*picture) for picture in section.pictures.values())]
        parts.append("</section>")
    return "\n".join([*parts, "</body></html>\n"])


def _plain(text: str) -> str:
    return escape(clean(text))


def _table(table: Table) -> str:
    head, *body = (_row(row, tag) for row, tag in [(table.header, "th"), *((row, "td") for row in table.rows)])
    whole = "\n".join([f"<table><thead>{head}</thead><tbody>", *body, "</tbody></table>"])
    return f'<h3>{_plain(table.title)}</h3><div class="wide">{whole}</div>'


def _row(cells: Sequence[str], tag: str) -> str:
    whole = (re.sub(r" (?=[=±%<])|(?<=[=±<]) ", "\u00a0", clean(cell)) for cell in cells)  # `p < 0.001` on one line
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in whole) + "</tr>"


def _absent(caption: str) -> str:
    return f"The picture of {caption} could not be drawn."


def _figure(caption: str, png: bytes) -> str:
    if not png:
        return f"<p>{escape(_absent(caption))}</p>"
    width = int.from_bytes(png[16:20]) * 96 // 150  # its IHDR's pixels, drawn at 150 an inch
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    caption = _plain(caption)
    return f'<figure><img alt="{caption}" width="{width}" src="{source}"><figcaption>{caption}</figcaption></figure>'
