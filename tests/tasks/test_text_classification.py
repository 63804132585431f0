"""The user's own texts with classes, labels or numbers become a task."""

import json

import numpy
import pytest
import torch
from conftest import sentence
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from lth_scale import imp
from lth_scale.config.errors import BadInput
from lth_scale.config.resolution import parse
from lth_scale.tasks import registry
from lth_scale.tasks.registry import metric_named
from lth_scale.tasks.task import KeepsPredictions, KnowsTrivialScores, PredictsTest

BASE = ("--task", "text-classification", "--report_to", "none", "--target_sparsity", "0.1")


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def parsed(tiny_bert):
    def go(*words):
        return parse(
            [*BASE, "--max_steps", "1", "--model_name_or_path", str(tiny_bert), *map(str, words)]
        )

    return go


@pytest.fixture
def load(parsed, tmp_path):
    """The task on rows of train, of which a copy is validation unless it is given."""

    def go(train, *words, validation=None):
        files = {"train": train, "validation": train if validation is None else validation}
        paths = [
            word
            for split, rows in files.items()
            for word in (f"--{split}_file", write_rows(tmp_path / f"{split}.jsonl", rows))
        ]
        return registry.load_task(parsed(*paths, *words))

    return go


def texts_with(labels, **more):
    return [{"text": sentence(i), "label": label, **more} for i, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([10, 9, -1, 10], ("-1", "9", "10")),
        (["10", "9", "09"], ("09", "10", "9")),
        (["b", "a", "B", "NA", "1.0"], ("1.0", "B", "NA", "a", "b")),
        ([True, False], ("False", "True")),
    ],
)
def test_classes_are_in_one_order_and_in_the_saved_config(labels, expected, load):
    task = load(texts_with(labels))
    assert task.targets.labels == expected
    assert task.model.config.label2id == {name: i for i, name in enumerate(expected)}
    assert [expected[i] for i in task.train["labels"]] == [str(label) for label in labels]
    assert task.facts["labels"] == [*expected]


def test_a_declared_class_label_keeps_its_names(parsed, tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["z", "a"])})
    rows = Dataset.from_dict({"text": [sentence(i) for i in range(4)], "label": [0, 1, 1, 0]})
    splits = DatasetDict(train=rows.cast(features), validation=rows.cast(features))
    splits.save_to_disk(tmp_path / "saved")
    task = registry.load_task(parsed("--dataset_name", tmp_path / "saved"))
    assert task.targets.labels == ("z", "a") and task.train["labels"][:] == [0, 1, 1, 0]


def test_several_labels_are_trained_by_binary_cross_entropy(load):
    rows = texts_with([["a", "b"], [], ["b"], ["c", "a"]])
    task = load(rows)
    assert task.model.config.problem_type == "multi_label_classification"
    batch = task.collate([task.train[i] for i in range(4)])
    loss, logits = task.loss(task.model, batch)
    expected = torch.tensor([[1.0, 1, 0], [0, 0, 0], [0, 1, 0], [1, 0, 1]])
    assert (batch["labels"] == expected).all()
    bce = torch.nn.functional.binary_cross_entropy_with_logits(logits, expected)
    assert loss.item() == pytest.approx(bce.item())
    table = task.rows(logits, batch)
    assert table[:, -1].mean() == pytest.approx(loss.item())
    kept = task.predictions(table, task.validation, numpy.arange(4))
    assert kept.arrays["prediction"].tolist() == (logits > 0).int().tolist()
    assert [*task.score(table)] == ["micro_f1", "macro_f1", "loss"]


def test_a_separator_divides_strings_into_labels(load):
    task = load(texts_with(["a; b", "", "b", "a;c"]), "--label_separator", ";")
    assert task.targets.labels == ("a", "b", "c")
    assert task.train["labels"][:] == [[1, 1, 0], [0, 0, 0], [0, 1, 0], [1, 0, 1]]


@pytest.mark.parametrize("width", [1, 2])
def test_numbers_are_trained_by_squared_errors(width, load):
    numbers = [[i / 3, 2.0 - i][:width] for i in range(6)]
    labels = [number[0] for number in numbers] if width == 1 else numbers
    task = load(texts_with(labels), "--do_regression")
    batch = task.collate([task.train[i] for i in range(6)])
    loss, logits = task.loss(task.model, batch)
    table = task.rows(logits, batch)
    assert logits.shape == (6, width)
    assert loss.item() == pytest.approx(table[:, -1].mean(), rel=1e-5)
    assert [*task.score(table)] == ["pearson", "spearman", "loss"]
    kept = task.predictions(table, task.validation, numpy.arange(6)).arrays
    assert kept["label"].dtype == numpy.float32
    assert kept["label"].reshape(6, width).tolist() == pytest.approx(numpy.array(numbers))


def test_two_texts_are_a_pair_of_segments(load):
    rows = [{"a": "one two", "b": "three", "label": i % 2} for i in range(4)]
    task = load(rows, "--text_column_names", "a,b")
    expected = task.tokenizer("one two", "three")
    assert task.train[0]["input_ids"] == expected["input_ids"]
    assert task.train[0]["token_type_ids"] == expected["token_type_ids"]


def test_trivial_predictors_are_those_under_each_metric(load):
    task = load(texts_with(["a"] * 6 + ["b"] * 2 + ["c"] * 2))
    trivial = task.trivial()
    assert trivial["constant"]["accuracy"] == 0.6
    assert trivial["constant"]["macro_f1"] == pytest.approx(2 * 0.6 / 1.6 / 3)
    assert 0.1 < trivial["chance"]["accuracy"] < 0.6
    assert isinstance(task, KeepsPredictions) and isinstance(task, KnowsTrivialScores)
    assert isinstance(task, PredictsTest)


def test_the_best_constant_of_several_labels_has_the_frequent_ones(load):
    task = load(texts_with([["a", "b"]] * 5 + [["a"]] * 3 + [["c"]]))
    # {a, b}: 13 hits, 18 predicted, 14 correct labels
    assert task.trivial()["constant"]["micro_f1"] == pytest.approx(2 * 13 / (18 + 14))


def test_less_is_better_where_the_metric_says_so(load):
    task = load(texts_with([0.0, 1.0, 5.0]), "--do_regression", "--metric_name", "mae")
    assert metric_named("mae").sign == -1
    assert task.trivial()["constant"]["mae"] == pytest.approx(5 / 3)  # of the median


METRIC = """
import datasets
import evaluate

class Halved(evaluate.Metric):
    def _info(self):
        kinds = {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(description="", citation="", features=datasets.Features(kinds))

    def _compute(self, predictions, references):
        same = sum(x == y for x, y in zip(predictions, references))
        return {"halved_accuracy": same / len(references) / 2}
"""


def test_a_metric_of_a_local_file_is_the_first_with_its_direction(load, tmp_path):
    path = tmp_path / "halved_accuracy.py"
    path.write_text(METRIC)
    words = ("--metric_name", path, "--greater_is_better", "false")
    task = load(texts_with(["a", "a", "b"]), *words)
    scores = task.score(numpy.array([[0.0, 0, 1], [1, 0, 1], [1, 1, 1]]))
    assert [*scores] == ["halved_accuracy", "accuracy", "macro_f1", "loss"]
    assert scores["halved_accuracy"] == pytest.approx(1 / 3)
    assert task.trivial()["constant"]["halved_accuracy"] == pytest.approx(1 / 6)
    known = metric_named("halved_accuracy")
    assert (known.sign, known.scale, known.delta) == (-1, 1, None)


BAD = {
    "unknown": (["a", "b"], ["a", "c"], (), "validation.jsonl: column 'label', row 2: label \"c\""),
    "one class": (["a", "a"], None, (), "1 class"),
    "missing": (["a", None, "b"], None, (), "row 2: has no label"),
    "blank": (["a", " ", "b"], None, (), "row 2: has no label"),
    "fraction": ([0.5, 1.0], None, (), "--do_regression"),
    "no number": (["1", "x"], None, ("--do_regression",), 'row 2: "x" is not a finite number'),
    "widths": ([[1, 2], [3]], None, ("--do_regression",), "row 2: has 1 numbers"),
    "nan": (["1", "nan"], None, ("--do_regression",), "row 2"),
    "f1": (["a", "b", "c"], None, ("--metric_name", "f1"), "--metric_name f1: cannot score"),
    "column": (["a", "b"], None, ("--label_column_name", "topic"), "'text', 'label'"),
    "text": (["a", "b"], None, ("--text_column_names", "review"), "'text', 'label'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_labels_and_columns_are_one_line_with_file_column_and_row(case, load):
    labels, validation, words, expected = BAD[case]
    with pytest.raises(BadInput) as refusal:
        load(texts_with(labels), *words, validation=validation and texts_with(validation))
    message = str(refusal.value)
    assert expected in message and ";" in message and "\n" not in message
    assert any(flag in message for flag in ("train_file", "validation_file", "metric_name"))


def test_a_column_that_is_not_unambiguous_is_not_guessed(load):
    with pytest.raises(
        BadInput, match=r"2 columns of strings.*--text_column_names.*'text', 'label', 'title'"
    ):
        load(texts_with(["a", "b"], title="x"))


def test_test_rows_are_predicted_by_the_dense_network_and_the_last_ticket(parsed, tmp_path):
    rows = write_rows(tmp_path / "train.jsonl", texts_with(["a", "b"] * 8))
    test = [{"text": sentence(i)} for i in range(5)]
    files = ("--train_file", rows, "--validation_file", rows)
    tested = ("--test_file", write_rows(tmp_path / "test.jsonl", test))
    args = parsed(*files, *tested, "--output_dir", tmp_path / "out")
    imp.run(args)
    lines = (tmp_path / "out/predictions.csv").read_text().splitlines()
    assert lines[0] == "row,dense,ticket" and len(lines) == 6
    assert [line.split(",")[0] for line in lines[1:]] == [*"12345"]
    assert {answer for line in lines[1:] for answer in line.split(",")[1:]} <= {"a", "b"}
    other = [*test[:-1], {"text": "another"}]
    write_rows(tmp_path / "test.jsonl", other)
    with pytest.raises(BadInput, match=r"test\.jsonl was sha256"):
        imp.run(args)
