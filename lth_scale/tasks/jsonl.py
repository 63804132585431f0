"""JSON Lines files: lines, values, and errors that name the line."""

import json
import lzma
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from lth_scale.config.errors import BadInput

Parsed = TypeVar("Parsed")
# First bytes of files that are not UTF-8 text.
SIGNATURES = {
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"\x1f\x8b": "compressed with gzip",
    b"\xfd7zXZ": "compressed with xz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"BZh": "compressed with bzip2",
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "Parquet",
}
UTF8_BOM = b"\xef\xbb\xbf"
BLANKS = re.compile(r"\s*")


def parse_rows(path: Path, parse: Callable[[Any], Parsed]) -> Iterator[Parsed]:
    """`parse` each value of a JSON Lines file (or its .xz), or each element of a single JSON array.

    Raises BadInput with the number of the line if the file is not valid, or `parse` raises
    ValueError.
    """
    try:
        with lzma.open(path) if path.suffix == ".xz" else path.open("rb") as file:
            for number, value in _values(_lines(file)):
                try:
                    row = parse(value)
                except ValueError as error:
                    raise ValueError(f"line {number}: {error}") from None
                yield row
    except (EOFError, lzma.LZMAError, OSError) as error:
        raise BadInput(
            f"--dataset_path {path}: cannot be read to the end ({error}); write the file again"
        ) from error
    except ValueError as error:
        raise BadInput(f"--dataset_path {path}: {error}") from None


def _lines(file: Iterable[bytes]) -> Iterator[tuple[int, str]]:
    """Number and text of each line, for all line endings, without byte-order marks.

    Raises ValueError if a line is not UTF-8 text.
    """
    number = 0
    for chunk in file:
        if number == 0:
            _check_signature(chunk)
        for line in chunk.splitlines():
            number += 1
            yield number, _decode_line(number, line.removeprefix(UTF8_BOM))


def _check_signature(start: bytes) -> None:
    for signature, encoding in SIGNATURES.items():
        if start.startswith(signature):
            raise ValueError(f"is {encoding}, not JSON Lines in UTF-8; convert the file")


def _decode_line(number: int, line: bytes) -> str:
    if b"\0" in line:
        raise ValueError(
            f"line {number}: contains NUL bytes, as UTF-16 and truncated files do; "
            "write the file again"
        )
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"line {number}: not UTF-8 (byte 0x{line[error.start]:02x}); convert the file"
        ) from None


def _values(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, Any]]:
    """Line number and value of every line that is not blank, or of every element of an array."""
    texts = ((number, text.strip()) for number, text in lines if text.strip())
    for count, (number, text) in enumerate(texts):
        if count == 0 and text.startswith("["):
            yield from _elements(number, "\n".join([text, *(text for _, text in lines)]))
            return
        value, end = _decode_value(number, text, 0)
        if end < len(text):
            raise _invalid(number, "Extra data")
        yield number, value


def _elements(number: int, text: str) -> Iterator[tuple[int, Any]]:
    """Line number and value of every element of the array `text`, which starts in line `number`."""
    if text[1:].strip() == "]":
        return
    counted, position, separator = 0, 1, ","
    while separator == ",":
        position = _skip_blanks(text, position)
        number, counted = number + text.count("\n", counted, position), position
        value, position = _decode_value(number, text, position)
        yield number, value
        separator, position = text[position : position + 1], position + 1
    if separator != "]" or text[position:].strip():
        reason = "Extra data" if separator == "]" else "Expecting ',' delimiter"
        raise _invalid(number + text.count("\n", counted, _skip_blanks(text, position)), reason)


def _decode_value(number: int, text: str, start: int) -> tuple[Any, int]:
    """Decode the value at `text[start:]`, which is in line `number`.

    Returns the value and the index of what follows it.
    """
    try:
        value, end = DECODER.raw_decode(text, start)
        return value, _skip_blanks(text, end)
    except RecursionError:
        raise _invalid(number, "nested too deeply") from None
    except ValueError as error:
        line = number + text.count("\n", start, getattr(error, "pos", start))
        raise _invalid(line, str(error).partition(":")[0]) from None


def _invalid(line: int, reason: str) -> ValueError:
    return ValueError(
        f"line {line}: invalid JSON ({reason}); write one complete object on each line"
    )


def _skip_blanks(text: str, position: int) -> int:
    match = BLANKS.match(text, position)
    return match.end() if match else position


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError if a key is repeated."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        [(key, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"duplicate key {key!r}")
    return fields


DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys)
