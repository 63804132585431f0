"""CoNLL-like text: a word and its tag on each line, and a blank line between sentences."""

import re
from collections.abc import Iterable, Iterator

from lth_scale.config.texts import brief

WORD_COLUMN, TAG_COLUMN = "tokens", "ner_tags"  # named as on the Hub
DOCUMENT = "-DOCSTART-"  # a line that begins with it begins a document
BLANKS = re.compile("[ \t]+")


def sentences(lines: Iterable[str]) -> Iterator[dict[str, list[str]]]:
    """The words and the tags of each sentence.

    Columns are separated by tabs if the first line has any, else by spaces; the word is in the
    first, and the tag in the last. Raises ValueError with the number of the line.
    """
    separator, columns = BLANKS, 0
    words: list[str] = []
    tags: list[str] = []
    for number, line in enumerate([*lines, ""], 1):
        if not line.strip() or line.startswith(DOCUMENT):
            if words:
                yield {WORD_COLUMN: words, TAG_COLUMN: tags}
                words, tags = [], []
            continue
        if columns == 0 and "\t" in line:
            separator = re.compile("\t")
        fields = separator.split(line.strip() if separator is BLANKS else line)
        columns = columns or len(fields)
        _check(number, line, len(fields), columns, fields[-1])
        words.append(fields[0])
        tags.append(fields[-1].strip())


def _check(number: int, line: str, count: int, columns: int, tag: str) -> None:
    """Raise ValueError unless a line has as many columns as the first one, and a tag."""
    if columns < 2:
        problem = "is a single column"
    elif count != columns:
        problem = f"does not have {columns} columns, as the first line has"
    elif not tag.strip():
        problem = "has no tag"
    else:
        return
    raise ValueError(
        f"line {number}: {brief(line)!r} {problem}; write a word first and its tag last on each "
        "line, and a blank line between sentences"
    )
