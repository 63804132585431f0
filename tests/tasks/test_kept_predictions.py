"""What tasks keep of an evaluation, and what trivial predictors score on their data."""

import math

import numpy
import pytest
import torch
from conftest import sentence, write_jsonl
from test_squad import LONG, example

from lth_scale.config.resolution import parse
from lth_scale.tasks import registry
from lth_scale.tasks.mlm import IGNORED
from lth_scale.tasks.registry import TASKS
from lth_scale.tasks.task import KeepsPredictions, KnowsTrivialScores


@pytest.fixture
def load(small, tmp_path):
    """A GLUE task whose validation rows have these labels; the rows of each split differ."""

    def go(name: str, **labels: list[float]):
        kind = TASKS[name]
        for number, split in enumerate(kind.splits):
            rows = [
                {text: sentence(i + number) for text in kind.texts} | {"label": label}
                for i, label in enumerate(labels.get(split, labels["validation"]))
            ]
            write_jsonl(tmp_path / name / f"{split}.jsonl", rows)
        return registry.load_task(parse(small(task=name, dataset_path=tmp_path / name)))

    return go


def table_of(predictions, labels) -> numpy.ndarray:
    return numpy.stack([predictions, labels, numpy.ones(len(labels))], axis=1).astype(float)


def test_every_task_of_the_paper_keeps_predictions_and_knows_trivial_scores():
    from lth_scale.tasks.glue import GlueTask
    from lth_scale.tasks.mlm import MlmTask
    from lth_scale.tasks.squad import SquadTask

    for kind in (GlueTask, MlmTask, SquadTask):
        assert issubclass(kind, KeepsPredictions) and issubclass(kind, KnowsTrivialScores)


def test_predictions_of_classes_are_in_the_order_of_the_rows(load):
    task = load("sst2", validation=[0, 1, 1, 0])
    order = numpy.array([2, 0, 3, 1])
    kept = task.predictions(table_of([0, 1, 0, 1], [1, 0, 0, 1]), task.validation, order)
    assert kept.arrays["prediction"].tolist() == [1, 1, 0, 0]
    assert kept.arrays["label"].tolist() == [0, 1, 1, 0] == task.validation["labels"][:]
    assert {array.dtype for array in kept.arrays.values()} == {numpy.dtype("int16")}
    assert not kept.is_constant


@pytest.mark.parametrize(
    ("name", "predictions", "constant"),
    [
        ("sst2", [1, 1, 1], True),
        ("sst2", [1, 1, 0], False),
        ("stsb", [2.5, 2.5 + 1e-6, 2.5], True),
        ("stsb", [2.5, 2.51, 2.5], False),
        ("stsb", [0.0, 1e-8, -1e-8], True),
    ],
)
def test_a_constant_prediction_is_noticed(name, predictions, constant, load):
    task = load(name, validation=[0, 1, 0])
    kept = task.predictions(table_of(predictions, [0, 1, 0]), task.validation, numpy.arange(3))
    assert kept.is_constant is constant
    assert kept.arrays["prediction"].tolist() == pytest.approx(predictions)
    if name == "stsb":
        assert kept.arrays["prediction"].dtype == kept.arrays["label"].dtype == numpy.float32


def test_the_prediction_of_a_single_row_is_not_called_constant(load):
    task = load("sst2", validation=[1])
    kept = task.predictions(table_of([1], [1]), task.validation, numpy.arange(1))
    assert not kept.is_constant


def test_the_trivial_scores_of_mnli_are_those_of_both_sets(load):
    task = load("mnli", validation=[0, 0, 1], validation_mismatched=[2, 2, 2, 1])
    trivial = task.trivial()
    assert trivial["constant"] == {"accuracy": 2 / 3, "accuracy_mismatched": 0.75}
    assert trivial["chance"].keys() == {"accuracy", "accuracy_mismatched"}


def test_regressions_have_a_constant_without_correlation(load):
    task = load("stsb", validation=[0.5, 3.0, 5.0])
    assert task.trivial() == {"constant": {"pearson": 0.0, "spearman": 0.0}}


@pytest.fixture
def squad(small, tmp_path):
    rows = [example(LONG, "good dog"), example("the cat sat .", "sat"), example(LONG, "its old")]
    for split in ("train", "validation"):
        write_jsonl(tmp_path / f"squad/{split}.jsonl", rows)
    flags = {"max_seq_length": 32, "doc_stride": 8, "dataset_path": tmp_path / "squad"}
    return registry.load_task(parse(small(task="squad", **flags)))


def answers(task, *spans: tuple[int, int]) -> numpy.ndarray:
    """A table in which the last window of each question has this answer and the best score."""
    table = numpy.zeros((len(task.validation), 5))
    table[:, 0], table[:, 3] = numpy.arange(len(table)), -numpy.inf
    for question, span in enumerate(spans):
        window = numpy.flatnonzero(task.question_of == question)[-1]
        table[window, 1:4] = *span, 1.0
    return table


def test_a_question_has_one_f1_and_one_exact_match_in_the_order_of_the_questions(squad):
    start = LONG.index("good dog")
    table = answers(squad, (start, start + 8), (4, 11), (0, 0))  # "good dog", "cat sat", ""
    order = numpy.random.default_rng(0).permutation(len(table))
    for rows, numbers in ((table, numpy.arange(len(table))), (table[order], order)):
        kept = squad.predictions(rows, squad.validation, numbers)
        assert kept.arrays["f1"].tolist() == pytest.approx([1, 2 / 3, 0])
        assert kept.arrays["exact_match"].tolist() == [1, 0, 0]
        assert not kept.is_constant
        scores = squad.score(rows)
        for name, array in kept.arrays.items():
            assert array.mean() == pytest.approx(scores[name])


def test_questions_that_all_get_no_answer_or_the_same_one_are_noticed(squad):
    nothing = answers(squad, (0, 0), (0, 0), (0, 0))
    same = answers(squad, *[(0, 3)] * 3)  # "the"
    assert LONG[:3] == "the"
    for table in (nothing, same):
        kept = squad.predictions(table, squad.validation, numpy.arange(len(table)))
        assert kept.is_constant


def test_the_trivial_score_of_squad_is_that_of_a_constant_answer(squad):
    # "good dog", "sat" or "its old": each is right once, and shares no word with the others
    assert squad.trivial() == {"constant": {"f1": 1 / 3, "exact_match": 1 / 3}}


def test_the_results_of_masked_tokens_are_summed_by_block(small, text_data):
    task = registry.load_task(parse(small(task="mlm", dataset_path=text_data)))
    labels = numpy.array(task.validation["labels"])
    masked = labels != IGNORED
    tokens = labels[masked]
    losses = numpy.arange(len(tokens)) / 7
    predicted = numpy.where(numpy.arange(len(tokens)) % 2, tokens, 0)
    table = numpy.stack([predicted, tokens, losses], axis=1).astype(float)
    kept = task.predictions(table, task.validation, numpy.arange(len(labels)))
    assert kept.arrays["masked"].tolist() == masked.sum(axis=1).tolist()
    assert kept.arrays["loss"].dtype == numpy.float32 and not kept.is_constant
    block = masked.nonzero()[0]
    for i in range(len(labels)):
        assert kept.arrays["loss"][i] == pytest.approx(losses[block == i].sum())
        assert kept.arrays["correct"][i] == (predicted == tokens)[block == i].sum()
    scores = task.score(table)
    total = kept.arrays["masked"].sum()
    assert kept.arrays["loss"].sum() / total == pytest.approx(scores["loss"])
    assert kept.arrays["correct"].sum() / total == scores["accuracy"]
    table[:, 0] = 7
    assert task.predictions(table, task.validation, numpy.arange(len(labels))).is_constant


def test_the_unigram_model_does_not_predict_special_tokens(small, text_data):
    task = registry.load_task(parse(small(task="mlm", dataset_path=text_data)))
    trivial = task.trivial()
    tokens = numpy.array(task.train["input_ids"]).ravel()
    plain = tokens[~numpy.isin(tokens, task.tokenizer.all_special_ids)]
    labels = torch.tensor(task.validation["labels"])
    labels = labels[labels != IGNORED].numpy()
    vocabulary = len(task.tokenizer)
    counts = numpy.bincount(plain, minlength=vocabulary) + 1
    expected = -numpy.log(counts[labels] / counts.sum()).mean()
    assert trivial["unigram"]["loss"] == pytest.approx(expected)
    assert trivial["unigram"]["accuracy"] == (labels == numpy.bincount(plain).argmax()).mean()
    assert trivial["chance"]["loss"] == pytest.approx(math.log(vocabulary))
    assert trivial["constant"]["accuracy"] >= trivial["unigram"]["accuracy"]
