"""Text for people: one line, printable, of a bounded length."""

import re
import shlex
import textwrap
import unicodedata
from pathlib import Path
from typing import Any

from lth_scale.config.redaction import without_secrets

LONGEST = 240  # characters of a library's error, or of a value in a file, that a message has
# Where a library's error refers to what it has logged, which is not shown here.
SHOWN = "(reports?|errors?|logs?|messages?|output|traceback|table)"
ELSEWHERE_SAID = rf"\babove {SHOWN}\b|\b(see|{SHOWN}) above\b(?! \d)"


def reason(problem: BaseException) -> str:
    """What went wrong, in a few words without passwords."""
    cause = without_secrets(str(problem)).rpartition("Caused by ")[2]
    return brief(cause) or type(problem).__name__


def brief(text: str, most: int = LONGEST) -> str:
    """A text on one line: all of it, or as many whole sentences, else whole words, as `most` characters hold.

    Of a word that is longer than that, the beginning and the length are left.
    """
    text = " ".join(text.split())
    if len(text) <= most:
        return text
    ends = [found.end() for found in re.finditer(r"[.!?](?= [A-Z])", text[: most + 2])]
    if ends:
        return text[: ends[-1]]
    words = " ".join(_beginning(word, most) for word in text.split())
    return textwrap.shorten(words, most, break_on_hyphens=False, placeholder=" …")


def _beginning(word: str, most: int) -> str:
    return word if len(word) <= most else f"{word[: most // 2]}… ({len(word):,} characters)"


def printable(text: str) -> str:
    """A text without what could drive a terminal or reorder a line: names in files are anybody's."""
    return "".join(each if is_printable(each) else "�" for each in text)


def is_printable(character: str) -> bool:
    """True for what is seen, spaces of every width and the end of a line."""
    return character.isprintable() or character == "\n" or unicodedata.category(character) == "Zs"


def is_text(name: str) -> bool:
    """False for what Python has of a file's name that is not UTF-8."""
    try:
        return bool(name.encode()) or not name
    except UnicodeEncodeError:
        return False


def first_line(problem: BaseException) -> str:
    """The first line that says something, with the next one where it only leads up to that."""
    lines = [line.strip() for line in without_secrets(str(problem)).splitlines() if line.strip()]
    text = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    sentences = re.split(r"(?<=[.!?]) (?=[A-Z])", text)
    text = " ".join(each for each in sentences if not re.search(ELSEWHERE_SAID, each))
    return brief(text).rstrip(".") or type(problem).__name__


def quoted(path: str | Path) -> str:
    """A path as one word of a shell's command line, which is no flag; for a terminal."""
    text = str(path)
    return printable(shlex.quote(f"./{text}" if text.startswith("-") else text))


def as_words(name: str, value: Any) -> list[str]:
    """A flag as words of a command line: true is a flag without a value, and one that begins with - is joined.

    Nothing for a list of no values.
    """
    values = [str(each) for each in (value if isinstance(value, list | tuple) else [value])]
    if value is True:
        return [f"--{name}"]
    if not values:
        return []
    return (
        [f"--{name}={values[0]}"]
        if values[0].startswith("-") and len(values) == 1
        else [f"--{name}", *values]
    )


def shortened(text: str) -> str:
    """A text in which no number is longer than a hundred digits."""
    return re.sub(r"\d{101,}", lambda found: f"{found[0][:20]}… ({len(found[0])} digits)", text)
