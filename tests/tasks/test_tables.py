"""Files of rows arrive as they are written, and what is wrong with one is named."""

import gzip
import json
import lzma

import pyarrow
import pytest
from datasets import Dataset
from pyarrow import ipc

from lth_scale.config.errors import BadInput
from lth_scale.tasks.tables import read_table

AS_WRITTEN = ["01", "1.0", "True", "NA", "null", "None", "nan", "", "2020-01-01", "1e5", " x "]


def read(path):
    return read_table(path, "train_file").to_pydict()


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".csv.gz", ".tsv.xz"])
def test_cells_of_csv_arrive_as_they_are_written(ending, tmp_path):
    path = tmp_path / f"rows{ending}"
    separator = "," if ".csv" in ending else "\t"
    lines = [separator.join(("text", "label")), *(f"a{separator}{x}" for x in AS_WRITTEN)]
    content = ("\ufeff" + "\r\n".join(lines)).encode()
    opened = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    with opened(path, "wb") as file:
        file.write(content)
    assert read(path) == {"text": ["a"] * len(AS_WRITTEN), "label": AS_WRITTEN}


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".jsonl.gz", ".json.xz"])
def test_strings_of_json_arrive_as_they_are_written(ending, tmp_path):
    rows = [{"text": text, "label": number} for number, text in enumerate(AS_WRITTEN)]
    content = json.dumps(rows) if "l" not in ending else "\n".join(map(json.dumps, rows))
    path = tmp_path / f"rows{ending}"
    opened = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    with opened(path, "wb") as file:
        file.write(content.encode())
    assert read(path) == {"text": AS_WRITTEN, "label": [*range(len(rows))]}


def test_a_quoted_cell_may_span_lines(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('text,label\n"one\n""two"", three",x\n\nfour,y\n')
    assert read(path) == {"text": ['one\n"two", three', "four"], "label": ["x", "y"]}


def test_parquet_arrow_and_text_are_read(tmp_path):
    table = pyarrow.table({"text": ["a", "b"], "label": [["x"], ["x", "y"]]})
    Dataset(table).to_parquet(tmp_path / "rows.parquet")
    for name, write in (("file.arrow", ipc.new_file), ("stream.arrow", ipc.new_stream)):
        with write(str(tmp_path / name), table.schema) as writer:
            writer.write_table(table)
    (tmp_path / "rows.txt").write_text("one\n\ntwo\n")
    for name in ("rows.parquet", "file.arrow", "stream.arrow"):
        assert read(tmp_path / name) == table.to_pydict()
    assert read(tmp_path / "rows.txt") == {"text": ["one", "", "two"]}


def test_questions_of_squad_become_rows(tmp_path):
    answers = [{"text": "b", "answer_start": 2}]
    questions = [
        {"id": "1", "question": "q", "answers": answers},
        {"id": 2, "question": "r", "answers": [], "is_impossible": True},
    ]
    article = {"title": "t", "paragraphs": [{"context": "a b", "qas": questions}]}
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"version": "v2.0", "data": [article]}))
    rows = read(path)
    assert rows["id"] == ["1", "2"] and rows["context"] == ["a b"] * 2
    assert rows["answers"] == [
        {"text": ["b"], "answer_start": [2]},
        {"text": [], "answer_start": []},
    ]


BAD = {
    "tabs.csv": ("text\tlabel\na\tb\n", "tabs", ".tsv"),
    "semicolons.csv": ("text;label\na;b\n", "semicolons", "commas"),
    "commas.tsv": ("text,label\na,b\n", "commas", ".csv"),
    "twice.csv": ("text,text\na,b\n", "'text'|\"text\"", "rename"),
    "ragged.csv": ("text,label\na,b\na,b,c\n", "row 2", "3 values"),
    "open.csv": ('text,label\n"a,b\n', "line", "quote"),
    "empty.csv": ("", "no rows", ""),
    "header.csv": ("text,label\n", "no rows", ""),
    "types.jsonl": ('{"label": 1}\n{"label": "a"}\n{"label": 2}', "'label', row 2", "one type"),
    "list.jsonl": ('{"label": 1}\n[2]\n', "row 2", "object"),
    "object.json": ('{"data": {"a": 1}}', "data", "array"),
    "rows.xlsx": ("PK", "unknown format", ".csv"),
    "rows.parquet": ("no", "cannot be read", "again"),
    "rows.csv.gz": ("no", "cannot be read", "complete"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_with_a_file_is_named(name, tmp_path):
    content, *expected = BAD[name]
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(BadInput) as refusal:
        read(path)
    message = str(refusal.value)
    assert message.startswith(f"--train_file {path}: ") and "\n" not in message
    assert all(any(x in message for x in part.split("|")) for part in expected)
    assert ";" in message
