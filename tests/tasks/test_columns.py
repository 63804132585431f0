"""tasks/columns.py: the column that a flag names, or the only one that it can be."""

import pytest
from datasets import Dataset

from lth_scale.config.errors import BadInput
from lth_scale.tasks.columns import ColumnKind, find_column
from lth_scale.tasks.sources import Source

KIND = ColumnKind("texts", "text_column_name", ("text", "body"), "write some")


def find(columns: list[str], given: str | None = None) -> str:
    rows = Dataset.from_dict({name: ["x"] for name in [*columns, "number"]})
    return find_column(Source(rows, "--train_file f.csv"), KIND, columns, given)


def test_a_named_column_comes_before_a_usual_one_and_that_before_any_other():
    assert find(["a", "text"], "a") == "a"
    assert find(["a", "body", "text"]) == "text"
    assert find(["a"]) == "a"


@pytest.mark.parametrize(
    ("columns", "given", "message"),
    [
        (["a", "b"], None, "--train_file f.csv: columns 'a', 'b' hold texts; choose one with"),
        ([], None, "none of the columns 'number' holds texts; write some"),
        (["a"], "number", "--text_column_name number: --train_file f.csv: this column does not"),
        (["a"], "c", "--text_column_name c: --train_file f.csv has no column 'c', only 'a', 'num"),
    ],
)
def test_what_cannot_be_decided_is_refused_with_the_columns_and_a_remedy(columns, given, message):
    with pytest.raises(BadInput) as error:
        find(columns, given)
    assert message in str(error.value)
