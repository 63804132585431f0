"""Sections of text, tables and pictures, as Markdown and as one HTML file that needs no other.

The writers take plain text and show it as it is, whatever it holds: names and notes are anybody's.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from lth_scale.config.texts import printable

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


def markdown_table(table: Table, aligned: bool = False) -> str:
    """A table as Markdown, without its title.

    aligned: pad the cells for a terminal, columns of numbers to the right.
    """
    lines = [[*map(literal, line)] for line in (table.header, *table.rows)]
    rule = f"| {' | '.join(['---'] * len(table.header))} |"
    if aligned:
        columns = map(_padded, zip(*lines, strict=True))
        lines = [[*cells] for cells in zip(*columns, strict=True)]
        rule = f"|{'|'.join('-' * (len(cell) + 2) for cell in lines[0])}|"
    header, *rows = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([header, rule, *rows])


def _padded(column: Sequence[str]) -> list[str]:
    """The cells of a column at one width, to the right if each below the header has a digit."""
    width = max(map(len, column))
    numbers = all(re.search(r"\d", cell) for cell in column[1:])
    return [cell.rjust(width) if numbers else cell.ljust(width) for cell in column]
