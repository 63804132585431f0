"""Sections of text, tables and figures as Markdown.

The writers take plain text, untrusted names and notes included, and escape it so that it is shown
unchanged.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from lth_scale.config.texts import printable

# What would act as Markdown in CommonMark, GitHub's, MLflow's (Showdown) or Python-Markdown. The
# last character of a match is escaped; the rest stays readable in the file.
ACTIVE = r"""
    [\\`*{|~$]                            # code, emphasis, attributes, cells, deletion, formulas
    | (?<![^\W_])_ | _(?![^\W_])          # emphasis, but not within_a_word
    | \](?=\s*[\[(:])                     # a link, an image, or the definition of one
    | <(?!\s) | (?<=\\)< | &(?=[\#\w])     # a tag or an address, an entity
    | :(?=//|[\w+-]+:) | \bwww\.          # an address, an emoji
    | (?<!\w)@(?=\w) | @(?=[\w-]+\.\w)    # a mention, a mail address
    | \#(?=\#*$)                          # the end of a heading
    | ^[\#>\[]                            # a heading, a quotation, a definition
    | ^-(?=[-\s]|$) | ^\+(?=\s|$) | ^\d+[.)](?=\s|$)    # a rule, a list
"""
LITERAL = re.compile(ACTIVE, re.VERBOSE)
LABEL = re.compile(rf"{ACTIVE} | [\[\]]", re.VERBOSE)


@dataclass(frozen=True)
class Table:
    """Rows of plain text; the same for Markdown and HTML."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Picture(Protocol):
    """A figure for a page."""

    @property
    def png(self) -> bytes:
        """The figure as PNG; empty if drawing failed."""

    def files(self, name: str) -> dict[str, bytes]:
        """The figure in every format by file name, without those that failed; name: of the PNG."""


@dataclass
class Section:
    """A heading and its content.

    pictures: (caption, figure) by the file name of the PNG. details: tables that are folded,
    below what `reading` says about them. sources: of numbers that were not measured here, shown as
    footnotes.
    """

    title: str
    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: dict[str, tuple[str, Picture]] = field(default_factory=dict)
    reading: list[str] = field(default_factory=list)
    details: list[Table] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)


def clean(text: str) -> str:
    """A text on one line, without what could control a terminal or reorder the line."""
    return printable(re.sub(r"\s", " ", text)).strip()


def literal(text: str, active: re.Pattern[str] = LITERAL) -> str:
    """Escape a text as one line of Markdown; with LABEL also inside a link or an image."""
    return active.sub(_escape, clean(text))


def _escape(match: re.Match[str]) -> str:
    before, last = match[0][:-1], match[0][-1]
    # Every renderer undoes a backslash before these; other characters need an entity.
    if last in "\\`*{|_[]-+.)":
        return f"{before}\\{last}"
    return before + {"<": "&lt;", ">": "&gt;", "&": "&amp;"}.get(last, f"&#{ord(last)};")


def code(text: str) -> str:
    """`text` as inline code."""
    text = clean(text)
    fence = "`" * (1 + _longest_run(text))
    space = " " if "`" in text else ""
    return f"{fence}{space}{text}{space}{fence}"


def code_block(text: str, language: str) -> str:
    """`text` as a fenced code block."""
    fence = "`" * max(3, 1 + _longest_run(text))
    return f"{fence}{language}\n{text}\n{fence}"


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def markdown_table(table: Table, align: bool = False) -> str:
    """A table as Markdown, without its title.

    align: pad cells for a terminal, columns of numbers to the right and others to the left.
    """
    lines = [[*map(literal, row)] for row in (table.header, *table.rows)]
    rule = ["---"] * len(table.header)
    if align:
        columns = [_aligned(column) for column in zip(*lines, strict=True)]
        lines = [[*row] for row in zip(*columns, strict=True)]
        rule = ["-" * (len(cell) + 2) for cell in lines[0]]
    header, *rows = (f"| {' | '.join(row)} |" for row in lines)
    return "\n".join([header, f"|{'|'.join(rule)}|" if align else f"| {' | '.join(rule)} |", *rows])


def _aligned(column: Sequence[str]) -> list[str]:
    width = max(map(len, column))
    is_numeric = all(re.match(r"[-+−\d]|nan|inf", cell) for cell in column[1:])
    return [cell.rjust(width) if is_numeric else cell.ljust(width) for cell in column]
