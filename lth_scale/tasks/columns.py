"""Which column of the user's own data holds what a task needs."""

from collections.abc import Sequence
from typing import NamedTuple

from lth_scale.config.errors import BadInput
from lth_scale.tasks.sources import Source

STRINGS = ("string", "large_string")  # types of `datasets`


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
