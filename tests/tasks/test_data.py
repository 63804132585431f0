"""tasks/rows.py, tasks/data.py: JSON of every form, and a cache that follows their content."""

import gzip
import json
import lzma
import os
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
from conftest import write_jsonl
from datasets import Dataset
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lth_scale.config.errors import BadInput
from lth_scale.config.resolution import parse
from lth_scale.tasks import data, loading
from lth_scale.tasks.glue import tokenize
from lth_scale.tasks.rows import read_rows

COLUMNS = {"sentence": "string", "label": "int64"}
GOOD = [{"sentence": "a good film", "label": 1}, {"sentence": "caf\u00e9 \U0001f408", "label": 0}]
MORE = {"data": [{"x": None}], "idx": float("nan")}
LINES = [json.dumps(row, ensure_ascii=False) for row in GOOD]


def read(path: Path, content: bytes | str, columns=COLUMNS, labels=(0, 1)) -> list[dict]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [*read_rows(path, columns, labels)]


@pytest.mark.parametrize(
    "content",
    [
        "\n".join(LINES),
        "\r\n".join([*LINES, ""]),
        "\r".join(LINES),
        "\ufeff" + "\r\n".join(LINES),
        "\n".join(f"\ufeff{line}" for line in LINES),
        "\n \n" + "\n\t\n".join([*LINES, "", ""]),
        json.dumps(GOOD),
        json.dumps(GOOD, indent=4),
        "\ufeff\n" + json.dumps(GOOD, indent="\t").replace("\n", "\r\n"),
        "[" + ",\n".join(LINES) + "]\n\n",
        "\n".join(json.dumps(row | MORE) for row in GOOD),
    ],
    ids=[
        "lines",
        "CRLF",
        "CR",
        "BOM",
        "BOMs",
        "blanks",
        "array",
        "indented array",
        "CRLF array",
        "lines in []",
        "more",
    ],
)
def test_every_way_to_write_json_gives_the_same_rows(content, tmp_path):
    assert read(tmp_path / "train.jsonl", content) == GOOD
    assert read(tmp_path / "train.jsonl.xz", lzma.compress(content.encode())) == GOOD


CUT = f"{LINES[0]}\n{LINES[1][:-9]}"
WRONG = {
    "utf-16": ("\n".join(LINES).encode("utf-16"), "is UTF-16"),
    "utf-16 without a mark": (LINES[0].encode("utf-16-le"), "line 1: contains NUL bytes"),
    "gzip": (gzip.compress(LINES[0].encode()), "is compressed with gzip"),
    "xz": (lzma.compress(LINES[0].encode()), "is compressed with xz"),
    "latin-1": (
        f'{LINES[0]}\n{{"sentence": "caf\xe9"}}'.encode("latin-1"),
        r"line 2: not UTF-8 \(byte 0xe9",
    ),
    "latin-1 in an array": (f'[{LINES[0]},\n"\xe9"]'.encode("latin-1"), "line 2: not UTF-8"),
    "zeros after a crash": (LINES[0].encode() + b"\n" + bytes(9), "line 2: contains NUL bytes"),
    "cut": (CUT, "line 2: invalid JSON"),
    "cut, ended by CR": (CUT.replace("\n", "\r"), "line 2: invalid JSON"),
    "cut array": (f"[\n{LINES[0]},\n\n{LINES[1][:-9]}", "line 4: invalid JSON"),
    "array that is not closed": (f"[{LINES[0]}\n", "line 1: invalid JSON .*delimiter"),
    "array without a comma": (f"[\n{LINES[0]}\n{LINES[0]}]", "line 3: invalid JSON .*delimiter"),
    "array with a last comma": (f"[\n{LINES[0]},\n]", "line 3: invalid JSON"),
    "two arrays": (f"[{LINES[0]}]\n[{LINES[0]}]", "line 2: invalid JSON .Extra data"),
    "bad row of an array": (
        json.dumps([*GOOD, {"sentence": 1}], indent=1),
        "line 10: .*sentence.* is 1",
    ),
    "an object over many lines": (
        json.dumps(GOOD[0], indent=1),
        "line 1: invalid JSON .*one complete object on each line",
    ),
    "rows inside an object": (
        json.dumps({"version": "1.1", "data": GOOD}),
        "line 1: .*rows are nested in 'data'",
    ),
    "two rows in a line": (" ".join(LINES), "line 1: invalid JSON .Extra data"),
    "comma after a row": (",\n".join(LINES), "line 1: invalid JSON .Extra data"),
    "a comment": (f"{LINES[0]}\n# more\n", "line 2: invalid JSON"),
    "a key twice": (
        '{"sentence": "x", "label": 0, "label": 1}',
        "line 1: invalid JSON .duplicate key 'label'",
    ),
    "deep in a column that is not read": (
        f'{LINES[0]}\n{{"x": {"[" * 10**5}',
        "line 2: invalid JSON .nested too deeply",
    ),
    "a number of 5,000 digits": (
        f'{{"sentence": "x", "label": {"9" * 5000}}}',
        "line 1: invalid JSON .Exceeds",
    ),
    "words": ("good film\t1\n", "line 1: invalid JSON"),
    "a text": (f'{LINES[0]}\n"x"', "line 2: not a JSON object"),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_invalid_file_is_refused_with_the_line(case, tmp_path):
    content, message = WRONG[case]
    with pytest.raises(
        BadInput, match=f"^--dataset_path {tmp_path}/train.jsonl: {message}"
    ) as problem:
        read(tmp_path / "train.jsonl", content)
    assert (
        "\n" not in str(problem.value)
        and ";" in str(problem.value)
        and len(str(problem.value)) < 400
    )


@pytest.mark.parametrize(
    "value",
    [
        "null",
        "true",
        '"1"',
        "1.0",
        "NaN",
        "-Infinity",
        "1e400",
        "[1]",
        "{}",
        "-1",
        "2",
        "9" * 400,
        "1e0",
    ],
)
def test_an_invalid_label_is_refused_with_the_line(value, tmp_path):
    with pytest.raises(
        BadInput, match=r"train.jsonl: line 2: .*label.*(an integer|out of range 0 … 1)"
    ):
        read(tmp_path / "train.jsonl", f'{LINES[0]}\n{{"sentence": "x", "label": {value}}}')


@pytest.mark.parametrize(
    "value", ["NaN", "Infinity", "-0.1", "5.01", "1e400", "true", '"2.5"', "null", "9" * 400]
)
def test_an_invalid_score_is_refused_with_the_line(value, tmp_path):
    columns, scale = {"label": "float32"}, (0.0, 5.0)
    assert read(tmp_path / "a", '{"label": 5}\n{"label": 0.0}\n{"label": 4.2}', columns, scale)
    with pytest.raises(BadInput, match=r"a: line 2: .*label.*(a number|out of range 0.0 … 5.0)"):
        read(tmp_path / "a", f'{{"label": 5}}\n{{"label": {value}}}', columns, scale)


@pytest.mark.parametrize("label", [-1, 2, None])
def test_an_invalid_label_of_the_hub_is_refused_with_the_row(label):
    rows = Dataset.from_dict({"label": [0, 1, label, 0]})
    with pytest.raises(
        BadInput,
        match=r"glue: train: label (-1|2|null) of row 3 is out of range 0 … 1; .*--dataset_path",
    ):
        data.check_labels("dataset glue: train", rows, (0, 1))
    data.check_labels("dataset glue: train", rows.select([0, 1, 3]), (0, 1))
    with pytest.raises(BadInput, match="label NaN of row 1"):
        data.check_labels("stsb", Dataset.from_dict({"label": [float("nan")]}), (0.0, 5.0))


def test_only_the_rows_used_of_the_hub_are_checked(small, monkeypatch):
    rows = Dataset.from_dict({"sentence": ["a", "b", "c"], "label": [0, 1, -1], "idx": [0, 1, 2]})
    monkeypatch.setattr(data, "load_hub", lambda *name: {"train": rows, "validation": rows})
    args = parse(small(dataset_path=None))
    splits = data.load_splits(
        replace(args, max_train_samples=2, max_eval_samples=1), COLUMNS, (0, 1)
    )
    assert splits["train"][:] == {"sentence": ["a", "b"], "label": [0, 1]}
    with pytest.raises(
        BadInput, match="dataset nyu-mll/glue: validation: label -1 of row 3 is out of range 0 … 1"
    ):
        data.load_splits(replace(args, max_train_samples=2, max_eval_samples=None), COLUMNS, (0, 1))


def test_integers_are_valid_scores(tmp_path):
    path = write_jsonl(tmp_path / "train.jsonl", [{"label": 5}, {"label": 2.5}, {"label": 0}])
    assert data.load_local(path, {"label": "float32"}, (0.0, 5.0))["label"][:] == [5.0, 2.5, 0.0]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("\\ud83d", "\ufffd"),
        ("a\\ude00\\ud83d b", "a\ufffd\ufffd b"),
        ("\\ud83d\\ude00", "\U0001f600"),
    ],
)
def test_an_unpaired_surrogate_becomes_one_replacement_character(text, wanted, tmp_path):
    path = tmp_path / "train.jsonl"
    assert read(path, f'{{"sentence": "{text}", "label": 1}}') == [{"sentence": wanted, "label": 1}]
    assert data.load_local(path, COLUMNS, (0, 1))[0]["sentence"] == wanted


def test_a_missing_file_is_reported_with_similar_names(tmp_path):
    write_jsonl(tmp_path / "train.json", GOOD)
    with pytest.raises(BadInput, match=r"train.jsonl is missing \(found train.json\); "):
        data.local_file(tmp_path, "train")


def test_long_lines_and_long_arrays_take_linear_time(tmp_path):
    began = time.process_time()
    (row,) = read(tmp_path / "a", json.dumps({"sentence": "word " * 2 * 10**6, "label": 1}))
    rows = read(tmp_path / "b", json.dumps(GOOD * 10**4, indent=1))
    assert len(row["sentence"]) == 10**7 and len(rows) == 2 * 10**4
    assert time.process_time() - began < 10


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None), max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
ROW = st.fixed_dictionaries(
    {},
    optional={
        name: JSON | usual
        for name, usual in {
            "context": st.just("the cat"),
            "question": st.just("who?"),
            "label": st.integers(-1, 3),
            "answers": st.fixed_dictionaries(
                {
                    "text": JSON | st.lists(JSON | st.just("cat"), max_size=2),
                    "answer_start": JSON | st.lists(JSON | st.just(4), max_size=2),
                }
            ),
        }.items()
    },
)
CONTENT = st.one_of(
    st.lists(ROW | JSON, max_size=4).map(lambda rows: "\n".join(map(json.dumps, rows)).encode()),
    st.lists(ROW | JSON, max_size=4).map(lambda rows: json.dumps(rows, indent=1).encode()),
    st.binary(max_size=40),
    st.tuples(st.lists(ROW, max_size=3), st.integers(0, 99), st.binary(max_size=2)).map(
        lambda parts: (
            (text := json.dumps(parts[0]).encode())[: parts[1]] + parts[2] + text[parts[1] :]
        )
    ),
)
SQUAD = {"context": "string", "question": "string", "answers": "answers", "label": "int64"}


@settings(max_examples=300, deadline=None)
@given(CONTENT)
@example(b"[")
@example(b'[{"a": 1},')
@example(b"\xef\xbb\xbf")
def test_any_content_is_read_or_refused_with_the_line(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    try:
        for row in read(path, content, SQUAD, (0, 3)):
            assert row.keys() == SQUAD.keys() and row["label"] in range(4)
            json.dumps(row, ensure_ascii=False).encode()  # no unpaired surrogate is left
            for text, start in zip(
                row["answers"]["text"], row["answers"]["answer_start"], strict=True
            ):
                assert row["context"][start:].startswith(text)
    except BadInput as problem:
        assert re.match(
            rf"--dataset_path {path}: (line \d+[: ]|is [\w -]+, not JSON Lines)", str(problem)
        )


def test_rows_are_cached_by_content_not_by_path_size_or_time(tmp_path):
    here, there = (
        write_jsonl(tmp_path / name / "train.jsonl", [{"sentence": "good", "label": 1}])
        for name in ("here", "there")
    )
    rows = data.load_local(here, COLUMNS, (0, 1))
    os.utime(there, (1, 1))
    assert data.load_local(there, COLUMNS, (0, 1)).cache_files == rows.cache_files
    status = here.stat()
    write_jsonl(here, [{"sentence": "evil", "label": 0}])
    os.utime(here, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert data.load_local(here, COLUMNS, (0, 1))[0] == {"sentence": "evil", "label": 0}


def test_tokens_are_cached_by_what_the_tokenizer_does_not_by_its_path(tiny_bert, tmp_path, small):
    def loaded(name):
        return loading.load_tokenizer(parse(small(model_name_or_path=tmp_path / name)))

    def encoded(tokenizer):
        options = dict(texts=("sentence",), length=16, segments=False)
        return data.encode(rows, tokenize, tokenizer, **options)

    for name in ("uncased", "moved", "cased"):
        shutil.copytree(tiny_bert, tmp_path / name)
    path = tmp_path / "cased/tokenizer.json"
    state = json.loads(path.read_text())
    state["normalizer"] |= {"lowercase": False, "strip_accents": False}
    path.write_text(json.dumps(state))
    config = json.loads((tmp_path / "cased/tokenizer_config.json").read_text())
    (tmp_path / "cased/tokenizer_config.json").write_text(
        json.dumps(
            {
                name: value
                for name, value in config.items()
                if name not in ("do_lower_case", "strip_accents")
            }
            | {"tokenizer_class": "PreTrainedTokenizerFast"}
        )
    )
    rows = data.load_local(
        write_jsonl(tmp_path / "a.jsonl", [{"sentence": "The Cat", "label": 1}]), COLUMNS, (0, 1)
    )
    one, moved, cased = (loaded(name) for name in ("uncased", "moved", "cased"))
    assert one.get_vocab() == cased.get_vocab()
    first = encoded(one)
    assert encoded(moved).cache_files == first.cache_files == encoded(one).cache_files
    assert encoded(cased)["input_ids"][0] != first["input_ids"][0]


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def lengths(batch: dict, tokenizer) -> dict:
    return {"length": [len(text) for text in batch["sentence"]]}


def load(directory: Path, tokenizer) -> tuple[list, list]:
    """Rows and their encoding."""
    rows = data.load_local(directory / "train.jsonl", COLUMNS, (0, 1))
    return rows[:], data.encode(rows, lengths, tokenizer)[:]


@pytest.mark.parametrize("pattern", ["*.arrow", "cache-*.arrow"])
@pytest.mark.parametrize(
    "left", [0, 0.5, -8, None], ids=["empty", "half", "all but the end", "other bytes"]
)
def test_a_damaged_entry_is_rebuilt_and_kept(left, pattern, cache, sst2_data, tokenizer, caplog):
    whole = load(sst2_data, tokenizer)
    damaged = {}
    for path in cache.rglob(pattern):
        content = path.read_bytes()
        keep = len(content) + left if left and left < 0 else int(len(content) * (left or 0))
        damaged[path] = os.urandom(len(content)) if left is None else content[:keep]
        path.write_bytes(damaged[path])
    for _ in range(2):
        assert load(sst2_data, tokenizer) == whole
    assert damaged and all(path.read_bytes() == content for path, content in damaged.items())
    assert "is damaged" in caplog.text


@pytest.mark.parametrize(
    "occupy",
    [
        lambda path: path.write_text(""),
        lambda path: path.symlink_to("gone/away"),
        lambda path: path.symlink_to(path),
        os.mkfifo,
    ],
    ids=["a file", "a link to nothing", "a link to itself", "a pipe"],
)
def test_a_cache_that_is_not_writable_is_refused_in_one_line(occupy, cache, sst2_data, tokenizer):
    occupy(cache)
    with pytest.raises(
        BadInput, match=rf"HF_DATASETS_CACHE {cache}: cannot be used \(.*\); set it to"
    ) as error:
        load(sst2_data, tokenizer)
    assert "\n" not in str(error.value)
