"""Text for people: one line, printable, of bounded length."""

import re
import shlex
import textwrap
import unicodedata
from pathlib import Path

from lth_scale.config.redaction import without_secrets

LONGEST = 240  # characters of a library's error, or of a value in a file, in a message
# Where a library's error refers to its log, which is not shown here.
_LOG = "(reports?|errors?|logs?|messages?|output|traceback|table)"
_REFERS_TO_LOG = rf"\babove {_LOG}\b|\b(see|{_LOG}) above\b(?! \d)"


def reason(problem: BaseException) -> str:
    """The cause of an error in a few words, without passwords."""
    cause = without_secrets(str(problem)).rpartition("Caused by ")[2]
    return brief(cause) or type(problem).__name__


def first_line(problem: BaseException) -> str:
    """The first line of an error's message, and the next one if the first ends in a colon."""
    lines = [line.strip() for line in without_secrets(str(problem)).splitlines() if line.strip()]
    text = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    sentences = re.split(r"(?<=[.!?]) (?=[A-Z])", text)
    text = " ".join(line for line in sentences if not re.search(_REFERS_TO_LOG, line))
    return brief(text).rstrip(".") or type(problem).__name__


def brief(text: str, limit: int = LONGEST) -> str:
    """A text on one line, cut to whole sentences, else to whole words, of `limit` characters.

    A longer word is replaced by its beginning and its length.
    """
    text = " ".join(text.split())
    if len(text) <= limit:
        return text
    if ends := [match.end() for match in re.finditer(r"[.!?](?= [A-Z])", text[: limit + 2])]:
        return text[: ends[-1]]
    words = [
        word if len(word) <= limit else f"{word[: limit // 2]}… ({len(word):,} characters)"
        for word in text.split()
    ]
    return textwrap.shorten(" ".join(words), limit, break_on_hyphens=False, placeholder=" …")


def printable(text: str) -> str:
    """A text with � for characters that could control a terminal or reorder a line."""
    return "".join(character if is_printable(character) else "�" for character in text)


def is_printable(character: str) -> bool:
    """True for visible characters, spaces of every width, and newlines."""
    return character.isprintable() or character == "\n" or unicodedata.category(character) == "Zs"


def quoted(path: str | Path) -> str:
    """A path quoted for a shell, with ./ if it would look like a flag; for a terminal."""
    text = str(path)
    return printable(shlex.quote(f"./{text}" if text.startswith("-") else text))


def as_words(name: str, value: object) -> list[str]:
    """A flag as words of a command line; none for an empty list.

    True is a flag without a value; a value that begins with - is joined with =.
    """
    if value is True:
        return [f"--{name}"]
    values = [*map(str, value)] if isinstance(value, list | tuple) else [str(value)]
    if len(values) == 1 and values[0].startswith("-"):
        return [f"--{name}={values[0]}"]
    return [f"--{name}", *values] if values else []
