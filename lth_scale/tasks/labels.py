"""Labels of the user's own rows: classes, several labels or numbers, by name and in order."""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from lth_scale.config.texts import brief
from lth_scale.tasks.columns import class_names
from lth_scale.tasks.rows import shown
from lth_scale.tasks.sources import Source

INTEGER = re.compile(r"0|-?[1-9]\d*", re.ASCII)  # as int() and str() agree on it
MISSING = "has no label; add it, or remove the row"
LARGEST = 5  # classes of many that are shown


def in_order(names: set[str]) -> tuple[str, ...]:
    """Names of classes: by number if all are integers, else by code point."""
    are_integers = all(INTEGER.fullmatch(name) for name in names)
    return tuple(sorted(names, key=int if are_integers else None))


class Labels:
    """The labels of a column as the sources have them.

    separator: of several labels in a string, or None. several: whether a row may have any number.
    """

    def __init__(self, train: Source, column: str, separator: str | None):
        self.column, self.separator = column, separator
        self.declared = class_names(train, column)
        first = next((value for value in train.rows[column] if value is not None), None)
        self.several = separator is not None or isinstance(first, list)

    @property
    def key(self) -> tuple[Any, ...]:
        """What decides, besides the rows, how labels are read."""
        return self.column, self.separator, self.several, self.declared

    def texts(self, source: Source) -> list[str]:
        """The labels of each row as text; [] if the source has no column of them."""
        if self.column not in source.rows.column_names:
            return []
        declared = class_names(source, self.column)
        return [_text(value, declared) for value in source.rows[self.column][:]]

    def values(self, source: Source) -> list[list[Any]]:
        """The raw labels of each row, as a list. Raises BadInput if a label is missing."""
        column = self.column
        source.require([column], "label_column_name")
        rows = []
        for row, value in enumerate(source.rows[column][:]):
            if value is None:
                raise source.bad(row, column, MISSING)
            rows.append(self._parts(source, row, value))
        return rows

    def _parts(self, source: Source, row: int, value: Any) -> list[Any]:
        if isinstance(value, list):
            if None in value:
                raise source.bad(row, self.column, MISSING)
            return value
        if self.separator is None:
            if isinstance(value, str) and not value.strip():
                raise source.bad(row, self.column, MISSING)
            return [value]
        if not isinstance(value, str):
            raise source.bad(
                row,
                self.column,
                f"{shown(value)} is no text that --label_separator could divide; omit the flag",
            )
        parts = (part.strip() for part in value.split(self.separator))
        return [part for part in parts if part]

    def names(self, source: Source) -> list[list[str]]:
        """The names of each row's classes. Raises BadInput for what is no class."""
        rows = self.values(source)
        self._check_numbers(source, rows)
        return [[self._name(source, row, x) for x in parts] for row, parts in enumerate(rows)]

    def numbered(self, source: Source, classes: Sequence[str]) -> list[list[int]]:
        """The numbers among `classes` of each row's classes. Raises BadInput for an unknown one."""
        number = {name: i for i, name in enumerate(classes)}
        rows = self.names(source)
        for row, parts in enumerate(rows):
            if unknown := [part for part in parts if part not in number]:
                raise source.bad(
                    row,
                    self.column,
                    f"label {shown(unknown[0])} is in no training row, only "
                    f"{brief(', '.join(map(repr, classes)), 120)}; correct it, or remove the row",
                )
        return [[number[part] for part in parts] for parts in rows]

    def _name(self, source: Source, row: int, value: Any) -> str:
        if not self.declared:
            return str(value)
        if not 0 <= value < len(self.declared):
            raise source.bad(
                row, self.column, f"{value} stands for no label; remove rows without one"
            )
        return self.declared[value]

    def _check_numbers(self, source: Source, rows: list[list[Any]]) -> None:
        """Raise BadInput if the labels are numbers with a fraction, or objects."""
        for row, parts in enumerate(rows):
            for value in parts:
                if not isinstance(value, str | int | float):
                    raise source.bad(
                        row, self.column, f"{shown(value)} is no label; use a string or an integer"
                    )
        flat = [(row, value) for row, parts in enumerate(rows) for value in parts]
        numbers = [_number(value) for _, value in flat]
        are_numbers = all(number is not None for number in numbers)
        fractions = [
            row
            for (row, value), number in zip(flat, numbers, strict=True)
            if number is not None and (isinstance(value, float) or not number.is_integer())
        ]
        if are_numbers and fractions:
            raise source.bad(
                fractions[0],
                self.column,
                f"{shown(rows[fractions[0]][0])} is a number, not a class; use --do_regression to "
                "predict it, or write classes as strings or integers",
            )

    def numbers(self, source: Source) -> list[list[float]]:
        """The numbers of each row, as many in all. Raises BadInput."""
        rows = self.values(source)
        width = len(rows[0])
        numbers = []
        for row, parts in enumerate(rows):
            parsed = [_number(value) for value in parts]
            finite = [x for x in parsed if x is not None and math.isfinite(x)]
            if len(finite) < len(parsed) or not finite:
                raise source.bad(
                    row,
                    self.column,
                    f"{', '.join(map(shown, parts)) or 'nothing'} is not a finite number; correct "
                    "it, or omit --do_regression for classes",
                )
            if len(finite) != width:
                raise source.bad(
                    row,
                    self.column,
                    f"has {len(finite)} numbers, and the first row has {width}; use as many in all",
                )
            numbers.append(finite)
        return numbers


def _text(value: Any, declared: Sequence[str]) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return "; ".join(_text(part, declared) for part in value)
    return declared[value] if declared and 0 <= value < len(declared) else str(value)


def _number(value: Any) -> float | None:
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None


def describe_classes(names: list[list[str]], number: Callable[[int], str] = "{:,}".format) -> str:
    """How the training rows are distributed over the classes."""
    counts = Counter(name for parts in names for name in parts)
    largest = counts.most_common(LARGEST)
    rows = len(names)
    listed = ", ".join(
        f"{brief(repr(name), 40)} {number(count)} ({100 * count / rows:.1f} %)"
        for name, count in largest
    )
    if others := len(counts) - len(largest):
        listed += f", and {others} more"
    return f"{number(rows)} training rows of {len(counts)} classes: {listed}"
