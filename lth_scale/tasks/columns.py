"""Which columns of the user's own rows hold the texts, the words and the labels."""

from collections.abc import Sequence
from typing import NamedTuple

import pyarrow
from datasets import ClassLabel, Dataset

from lth_scale.config.errors import BadInput
from lth_scale.tasks.sources import Source

LABELS = ("label", "labels")  # names of a label column that need no flag


def is_text(rows: Dataset, column: str) -> bool:
    """True if the values of a column are strings."""
    kind = rows.data.schema.field(column).type
    return bool(pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind))


def label_column(source: Source, given: str | None) -> str:
    """The label column: the one given, else one called label or labels. Raises BadInput."""
    if given:
        source.require([given], "label_column_name")
        return given
    found = [name for name in LABELS if name in source.rows.column_names]
    if len(found) != 1:
        raise BadInput(
            f"{source.name}: has {'both' if found else 'none'} of the columns "
            f"{' and '.join(map(repr, LABELS))}; specify --label_column_name, one of "
            f"{source.column_list()}{source.header_hint()}"
        )
    return found[0]


def text_columns(source: Source, given: str | None, labels: str) -> tuple[str, ...]:
    """One or two text columns: those given, else the only one beside `labels`. Raises BadInput."""
    if given:
        names = tuple(name.strip() for name in given.split(","))
        source.require(names, "text_column_names")
        if len(names) > 2 or len({*names}) < len(names) or labels in names:
            raise BadInput(
                f"--text_column_names {given}: not one text or a pair of two beside the label "
                f"column {labels!r}; name one column, or two such as a,b"
            )
    else:
        others = (name for name in source.rows.column_names if name != labels)
        names = tuple(name for name in others if is_text(source.rows, name))
        if len(names) != 1:
            raise BadInput(
                f"{source.name}: has {len(names) or 'no'} columns of strings beside {labels!r}; "
                f"specify --text_column_names, one or two of {source.column_list()}"
                f"{source.header_hint()}"
            )
    return names


def check_texts(source: Source, columns: Sequence[str]) -> None:
    """Raise BadInput if a text is missing or is not a string."""
    for column in columns:
        values = source.rows.with_format("arrow")[:][column]
        if not is_text(source.rows, column):
            raise BadInput(
                f"{source.name}: column {column!r} has values of type {values.type}; use a column "
                "of strings"
            )
        if values.null_count:
            row = values.is_null().index(True).as_py()
            raise source.bad(row, column, "has no text; fill it in, or remove the row")


def class_names(source: Source, column: str) -> tuple[str, ...]:
    """The names of the classes that the dataset declares, in their order, or ()."""
    feature = source.rows.features[column]
    feature = getattr(feature, "feature", feature)  # of a list
    return tuple(feature.names) if isinstance(feature, ClassLabel) else ()


class ColumnKind(NamedTuple):
    """What a column has to hold, the flag that names it, its usual names, and how to get one."""

    content: str
    flag: str
    usual: tuple[str, ...]
    remedy: str


def find_column(source: Source, kind: ColumnKind, columns: Sequence[str], given: str | None) -> str:
    """The column that a flag names, or else the only one that it can be. Raises BadInput.

    columns: those that hold what is needed. given: the value of the flag, or None.
    """
    if given:
        source.require([given], kind.flag)
    named = [given] if given else [name for name in kind.usual if name in columns]
    column = (named or (columns if len(columns) == 1 else [""]))[0]
    if column in columns:
        return column
    if given:
        problem = f"--{kind.flag} {given}: {source.name}: this column does not hold {kind.content}"
    elif columns:
        problem = f"{source.name}: columns {', '.join(map(repr, columns))} hold {kind.content}"
    else:
        problem = f"{source.name}: none of the columns {source.column_list()} holds {kind.content}"
    raise BadInput(f"{problem}; {f'choose one with --{kind.flag}' if columns else kind.remedy}")
