"""tasks/glue.py: columns, heads and metrics of the nine tasks."""

import json

import numpy
import pytest
import torch
from conftest import sentence, write_jsonl
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score, matthews_corrcoef

from lth_scale.config.resolution import parse
from lth_scale.tasks import registry
from lth_scale.tasks.registry import TASKS
from lth_scale.tasks.task import Task


@pytest.fixture
def load(small, tmp_path):
    """The task on ten rows in the Hub's columns."""

    def go(name: str, **overrides) -> Task:
        kind = TASKS[name]
        classes = len(kind.labels)
        labels = [i * 0.5 if classes == 1 else i % classes for i in range(10)]
        rows = [
            {
                **{text: sentence(3 * i + j) for j, text in enumerate(kind.texts)},
                "label": label,
                "idx": i,
            }
            for i, label in enumerate(labels)
        ]
        for split in kind.splits:
            write_jsonl(tmp_path / name / f"{split}.jsonl", rows)
        return registry.load_task(
            parse(small(task=name, dataset_path=tmp_path / name, **overrides))
        )

    return go


@pytest.mark.parametrize(
    "name", [name for name, kind in TASKS.items() if kind.dataset[0] == "nyu-mll/glue"]
)
def test_every_task_loads_its_columns_and_trains(name, load):
    task = load(name)
    batch = task.collate([task.train[i] for i in range(4)])
    loss, logits = task.loss(task.model, batch)
    loss.backward()
    assert logits.shape == (4, len(TASKS[name].labels)) and torch.isfinite(loss)
    assert len(task.train) == len(task.validation) == 10
    scores = task.score(task.rows(logits, batch))
    assert list(scores) == [*TASKS[name].metrics, "loss"]


def test_mnli_has_mismatched_rows_if_their_file_exists(load, small, tmp_path):
    task = load("mnli", max_eval_samples=4)
    assert (
        list(task.more) == ["mismatched"]
        and len(task.more["mismatched"]) == len(task.validation) == 4
    )
    assert task.more["mismatched"].column_names == task.validation.column_names
    (tmp_path / "mnli/validation_mismatched.jsonl").unlink()
    assert registry.load_task(parse(small(task="mnli", dataset_path=tmp_path / "mnli"))).more == {}
    assert load("sst2").more == {}


@pytest.mark.parametrize("name", ["mrpc", "stsb"])
def test_a_pair_is_one_sequence_of_two_segments(name, load, tokenizer):
    task = load(name)
    first, second = sentence(0), sentence(1)
    assert task.train[0]["input_ids"] == tokenizer(first, second)["input_ids"]
    assert set(task.train[0]["token_type_ids"]) == {0, 1}


def test_long_texts_are_truncated_and_samples_limited(load):
    task = load("mrpc", max_seq_length=9, max_train_samples=6, max_eval_samples=3)
    assert (len(task.train), len(task.validation)) == (6, 3)
    assert max(len(ids) for ids in task.train["input_ids"]) == 9


def test_metrics_equal_those_of_scikit_learn_and_scipy(load):
    generator = numpy.random.default_rng(0)
    labels, losses = generator.integers(0, 2, 50), generator.random(50)
    predicted = numpy.where(generator.random(50) < 0.7, labels, 1 - labels)
    table = numpy.stack([predicted, labels, losses], axis=1).astype(float)
    scores = load("mrpc").score(table)
    assert scores["accuracy"] == (predicted == labels).mean()
    assert scores["f1"] == f1_score(labels, predicted)
    assert scores["loss"] == pytest.approx(losses.mean())
    assert load("cola").score(table)["matthews_correlation"] == matthews_corrcoef(labels, predicted)
    scale = numpy.stack([generator.random(50), generator.random(50), losses], axis=1)
    scores = load("stsb").score(scale)
    assert scores["pearson"] == pytest.approx(pearsonr(scale[:, 0], scale[:, 1]).statistic)
    assert scores["spearman"] == pytest.approx(spearmanr(scale[:, 0], scale[:, 1]).statistic)


def test_the_correlation_of_constant_scores_is_0(load):
    table = numpy.stack([numpy.ones(5), numpy.arange(5.0), numpy.ones(5)], axis=1)
    assert load("stsb").score(table) == {"pearson": 0.0, "spearman": 0.0, "loss": 1.0}


def test_a_changed_file_is_read_again(small, tmp_path):
    rows = [{"sentence": sentence(i), "label": i % 2} for i in range(8)]
    for split in ("train", "validation"):
        write_jsonl(tmp_path / f"d/{split}.jsonl", rows)
    args = parse(small(dataset_path=tmp_path / "d"))
    assert len(registry.load_task(args).train) == 8
    write_jsonl(tmp_path / "d/train.jsonl", [*rows, *rows])
    assert len(registry.load_task(args).train) == 16
    assert json.loads((tmp_path / "d/train.jsonl").read_text().splitlines()[0]) == rows[0]
