"""tasks/data_warnings.py: one line about data whose scores mean little, none about other data."""

import json

import pytest
from conftest import sentence, write_jsonl

from lth_scale.config.resolution import parse
from lth_scale.tasks import registry
from lth_scale.tasks.registry import TASKS


@pytest.fixture
def warnings(small, tmp_path, caplog):
    """The warnings of loading a task. row: number → row; change: (split, rows) → rows."""

    def go(task, row, change=lambda split, rows: rows, **flags) -> list[str]:
        for split, numbers in (("train", range(40)), (TASKS[task].validation, range(40, 70))):
            write_jsonl(tmp_path / f"data/{split}.jsonl", change(split, [row(i) for i in numbers]))
        caplog.clear()
        registry.load_task(parse(small(task=task, dataset_path=tmp_path / "data", **flags)))
        return [
            r.getMessage().removeprefix(f"--dataset_path {tmp_path}/data: ") for r in caplog.records
        ]

    return go


def review(i: int) -> dict:
    return {"sentence": f"{sentence(i)} {i}", "label": i % 2}


def pair(i: int) -> dict:
    return {"sentence1": f"{sentence(i)} {i}", "sentence2": sentence(i + 1), "label": i % 11 / 2}


def question(i: int) -> dict:
    words = f"{sentence(i)} {i}".split()
    text, start = words[i % 5], len(" ".join(words[: i % 5])) + bool(i % 5)
    return {
        "context": " ".join(words),
        "question": "what ?",
        "answers": {"text": [text], "answer_start": [start]},
    }


def article(i: int) -> dict:
    return {"text": " ".join(f"{sentence(i + j)} {i}" for j in range(9))}


@pytest.mark.parametrize(
    ("task", "row"), [("sst2", review), ("stsb", pair), ("squad", question), ("mlm", article)]
)
def test_good_data_gives_no_warning(task, row, warnings):
    assert warnings(task, row) == []


@pytest.mark.parametrize(
    "task", [name for name, kind in TASKS.items() if kind.dataset[0] == "nyu-mll/glue"]
)
def test_warns_about_a_split_without_a_class(task, warnings):
    kind = TASKS[task]
    classes = len(kind.labels)

    def row(i: int) -> dict:
        label = 2.5 if classes == 1 else i * classes // 70  # sorted by class
        return {text: f"{sentence(i + n)} {i}" for n, text in enumerate(kind.texts)} | {
            "label": label
        }

    lines = warnings(task, row, max_train_samples=20)
    if task == "stsb":
        assert lines == [
            f"{split}: score 2.5 is correct in {n} of its {n} rows; {help}"
            for split, n, help in (
                ("train", 20, "shuffle the file, or raise --max_train_samples"),
                ("validation", 30, "add other rows"),
            )
        ]
        return
    train, validation = lines
    missing = "1, 2" if classes == 3 else "1"
    assert train == (
        f"train: none of its 20 rows has label {missing}, so label 0 is always correct; "
        "shuffle the file, or raise --max_train_samples"
    )
    assert validation.startswith(f"{kind.validation}: none of its 30 rows has label 0")


@pytest.mark.parametrize(("rare", "warned"), [(1, True), (2, False)])
def test_warns_about_a_class_that_is_nearly_always_correct(rare, warned, warnings):
    def change(split, rows):
        return [
            row | {"label": int(n < rare or (split == "train" and n % 2))}
            for n, row in enumerate(rows)
        ]

    lines = warnings("sst2", review, change)
    assert lines == ["validation: label 0 is correct in 29 of its 30 rows; add other rows"] * warned


@pytest.mark.parametrize(("task", "row"), [("sst2", review), ("squad", question), ("mlm", article)])
def test_warns_about_validation_rows_that_are_also_in_train(task, row, warnings):
    lines = warnings(task, row, lambda split, rows: [row(i) for i in range(20)] + rows[:12])
    assert (
        len(lines) == 1 and "validation: 20 of its 32 distinct rows are also in train" in lines[0]
    )
    assert warnings(task, row, lambda split, rows: [row(i) for i in range(10)] + rows[:12]) == []


@pytest.mark.parametrize(
    ("task", "row", "lost"),
    [
        ("sst2", review, {"sentence": "cut \ud83d here"}),
        ("stsb", pair, {"sentence2": "\ude00"}),
        ("squad", question, {"question": "who \udbff\udbff ?"}),
        ("mlm", article, {"text": "caf\ufffd " * 40}),
    ],
)
def test_warns_about_lost_characters_in_every_run(task, row, lost, warnings):
    def change(split, rows):
        return [r | (lost if split == "train" and n in (6, 9) else {}) for n, r in enumerate(rows)]

    for _ in range(2):  # the second time from the cache
        (line,) = warnings(task, row, change)
        assert line.startswith("train: 2 of 40 rows, the first of them row 7, contain U+FFFD")


@pytest.mark.parametrize(
    ("task", "row", "column"),
    [("sst2", review, "sentence"), ("stsb", pair, "sentence2"), ("squad", question, "question")],
)
def test_warns_about_empty_texts(task, row, column, warnings):
    (line,) = warnings(
        task,
        row,
        lambda split, rows: [*rows, rows[0] | {column: " \n"}] if split == "train" else rows,
    )
    assert (
        line == "train: 1 of 41 rows, the first of them row 41, have an empty text; fill it in, or "
        "remove the row"
    )


def test_blank_texts_of_mlm_give_no_warning(warnings):
    assert warnings("mlm", article, lambda split, rows: [{"text": ""}] * 99 + rows) == []


def first_word(split: str, rows: list[dict]) -> list[dict]:
    return [
        row | {"answers": {"text": [row["context"].split()[0]], "answer_start": [0]}}
        for row in rows
    ]


def same_word(split: str, rows: list[dict]) -> list[dict]:
    return [
        row | {"context": "." * n + " cat", "answers": {"text": ["cat"], "answer_start": [n + 1]}}
        for n, row in enumerate(rows, 50 * (split == "train"))
    ]


@pytest.mark.parametrize(
    ("change", "answer"), [(first_word, "an answer at character 0"), (same_word, 'answer "cat"')]
)
def test_warns_about_answers_that_are_nearly_constant(change, answer, warnings):
    lines = warnings("squad", question, change, max_seq_length=64)
    assert lines == [f"validation: {answer} is correct in 30 of its 30 rows; add other rows"]


def test_warns_about_few_masked_tokens(warnings):
    (line,) = warnings("mlm", article, max_eval_samples=3)
    assert line.startswith("validation: only ") and "of its 3 blocks are masked" in line
    assert "raise --max_eval_samples" in line


def test_warns_about_a_validation_split_of_one_row(warnings):
    for task, row in (("cola", review), ("stsb", pair), ("squad", question)):
        assert any("of its 1 rows" in line for line in warnings(task, row, max_eval_samples=1)), (
            task
        )


@pytest.mark.parametrize("task", ["cola", "stsb"])
def test_an_undefined_correlation_counts_as_0_with_a_warning(task, small, search, tmp_path, caplog):
    for split in ("train", "validation"):
        write_jsonl(
            tmp_path / f"d/{split}.jsonl", [review(i) | pair(i) | {"label": 1} for i in range(12)]
        )
    out = search(task=task, dataset_path=tmp_path / "d", max_steps=1, target_sparsity=0.1)
    rows = json.loads((out / "results.json").read_text(), parse_constant=pytest.fail)
    assert [next(iter(row["eval"].values())) for row in rows] == [0.0, 0.0]
    lines = [
        r.getMessage() for r in caplog.records if "the correlation is undefined" in r.getMessage()
    ]
    assert "all 12 labels are 1, so the correlation is undefined and counts as 0" in lines


@pytest.mark.parametrize(("size", "warned"), [(12, False), (13, True)])
def test_warns_about_a_batch_larger_than_train(size, warned, search, caplog):
    search(max_train_samples=12, max_steps=1, target_sparsity=0.1, per_device_train_batch_size=size)
    warning = (
        f"a batch of {size} repeats some of the 12 rows of train; "
        "lower --per_device_train_batch_size, or provide more rows"
    )
    assert (warning in caplog.text) == warned
