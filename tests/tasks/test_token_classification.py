"""tasks/token_classification.py: tags of words, aligned with tokens, and their scores."""

import csv
import json
import logging
import shutil

import numpy
import pytest
import torch
from conftest import write_jsonl
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from tokenizers import ByteLevelBPETokenizer
from tokenizers.processors import RobertaProcessing
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from lth_scale import Ticket
from lth_scale.config.errors import BadInput
from lth_scale.config.resolution import parse
from lth_scale.science.example_scores import examples_of
from lth_scale.tasks import registry
from lth_scale.tasks.entities import count_entities, count_tags
from lth_scale.tasks.inputs import has_segments
from lth_scale.tasks.task import PredictsTest
from lth_scale.tasks.token_classification import (
    IGNORED,
    constant_tag_scores,
    first_pieces,
    tag_scores,
)
from lth_scale.tracking import predictions

PEOPLE, PLACES, OTHERS = ("cat", "dog"), ("sea", "house"), ("the", "saw", "a", "by", "on")


def tagged(i: int) -> dict[str, list[str]]:
    """A row of words and BIO tags that depends on i alone."""
    person = ["good"] * (i % 2) + [PEOPLE[i % 2]]
    words = [*OTHERS[: 1 + i % 4], *person, *OTHERS[i % 5 :], PLACES[i // 2 % 2]]
    tags = ["O"] * (1 + i % 4) + ["B-PER", "I-PER"][: len(person)]
    return {"tokens": words, "ner_tags": [*tags, *["O"] * len(OTHERS[i % 5 :]), "B-LOC"]}


def conll(rows: list[dict]) -> str:
    pairs = (zip(row["tokens"], row["ner_tags"], strict=True) for row in rows)
    return "\n".join("".join(f"{word} {tag}\n" for word, tag in row) for row in pairs)


@pytest.fixture
def flags(tmp_path):
    """Flags of files with these rows: lists of rows become JSON Lines, texts CoNLL."""

    def write(split: str, rows) -> str:
        if not isinstance(rows, str):
            return str(write_jsonl(tmp_path / f"{split}.jsonl", rows))
        (tmp_path / f"{split}.conll").write_text(rows)
        return str(tmp_path / f"{split}.conll")

    def make(train, validation=None, **others) -> dict:
        validation = train if validation is None else validation
        files = {"train_file": write("train", train), "validation_file": write("val", validation)}
        return {"task": "token-classification", "dataset_path": None, **files, **others}

    return make


@pytest.fixture
def load(flags, small):
    """The task on these rows."""

    def go(train, validation=None, **others):
        given = flags(train, validation, **others)
        return registry.load_task(parse(small(**given)))

    return go


ROWS = [tagged(i) for i in range(12)]


def evaluated(task, right: bool = True, order=None) -> tuple[dict, numpy.ndarray]:
    """Score and table of a network that is always right, or that always says tag 0."""
    order = range(len(task.validation)) if order is None else order
    batch = task.eval_collate([task.validation[i] for i in order])
    labels = batch["labels"][batch["labels"] != IGNORED]
    numbers = labels if right else torch.zeros_like(labels)
    logits = torch.nn.functional.one_hot(numbers, len(task.labels)) * 9.0
    table = task.rows(logits, batch)
    return task.score(table), table


def test_the_first_piece_of_a_word_has_its_tag_and_no_other_token_has_one():
    words = [None, 0, 0, 1, 3, None]
    assert first_pieces(words, [5, 6, 7, 8]) == [IGNORED, 5, IGNORED, 6, 8, IGNORED]


@pytest.mark.parametrize("kind", ["lists", "conll"])
def test_words_and_tags_are_those_of_the_file(kind, load, tokenizer):
    task = load(ROWS if kind == "lists" else f"-DOCSTART- O\n\n{conll(ROWS)}")
    assert task.labels == ("B-LOC", "B-PER", "I-PER", "O")
    assert len(task.train) == len(task.validation) == 12
    for row, encoded in zip(ROWS, task.train, strict=True):
        labels = [task.labels[label] for label in encoded["labels"] if label != IGNORED]
        assert labels == row["ner_tags"]
        text = tokenizer.decode(encoded["input_ids"], skip_special_tokens=True)
        assert text == " ".join(row["tokens"])
    config = task.model.config
    assert config.label2id == {"B-LOC": 0, "B-PER": 1, "I-PER": 2, "O": 3}
    assert "words are in column 'tokens', tags in 'ner_tags'" in task.remark


def test_the_loss_is_the_mean_over_words_and_that_of_the_models_own(load):
    task = load(ROWS)
    task.model.eval()
    batch = task.collate([task.train[i] for i in range(5)])
    loss, logits = task.loss(task.model, batch)
    assert logits.shape == (sum(len(row["tokens"]) for row in ROWS[:5]), 4)
    assert loss.item() == pytest.approx(task.model(**batch).loss.item(), rel=1e-5)
    assert task.rows(logits, batch)[:, -1].mean() == pytest.approx(loss.item(), rel=1e-5)


def test_entities_are_those_of_each_row_by_itself(load):
    """An entity does not continue in the next row."""
    rows = [
        {"tokens": ["the", "cat"], "ner_tags": ["O", "B-PER"]},
        {"tokens": ["dog", "sea"], "ner_tags": ["I-PER", "O"]},
    ]
    task = load(rows)
    score, table = evaluated(task)
    assert score["f1"] == score["accuracy"] == 1 and next(iter(score)) == "f1"
    assert table[:, 0].tolist() == [1, 0, 1, 0]
    kept = task.predictions(table, task.validation, numpy.arange(2)).arrays
    assert kept["entities"].tolist() == kept["hits"].tolist() == [1, 1]


def test_kept_predictions_are_in_the_order_of_the_rows_and_give_the_score(load):
    task = load(ROWS)
    order = numpy.array([3, 0, 5, 1, 2, 4, 11, 10, 9, 8, 7, 6])
    score, table = evaluated(task, order=order)
    table[::3, 1] = 0
    score = task.score(table)
    kept = task.predictions(table, task.validation, order)
    labels = [task.labels[i] for i in kept.arrays["label"]]
    assert labels == [tag for row in ROWS for tag in row["ner_tags"]]
    assert kept.arrays["length"].tolist() == [len(row["tokens"]) for row in ROWS]
    assert not kept.is_constant and 0 < score["f1"] < 1
    for metric in ("f1", "precision", "recall", "accuracy"):
        assert examples_of(kept.arrays, metric).value == pytest.approx(score[metric])
    assert examples_of(kept.arrays, "macro_f1") is None


def test_a_network_that_gives_every_word_one_tag_is_constant(load):
    task = load(ROWS)
    _, table = evaluated(task, right=False)
    assert task.predictions(table, task.validation, numpy.arange(12)).is_constant


def test_words_beyond_the_length_are_counted_and_have_no_prediction(load, caplog):
    with caplog.at_level(logging.WARNING):
        task = load(ROWS, max_seq_length=8)
    words = sum(len(row["tokens"]) for row in ROWS)
    seen = sum(min(6, len(row["tokens"])) for row in ROWS)
    assert f"{words - seen} of its {words} words, in " in caplog.text
    assert "are beyond 8 tokens: they are neither trained on nor scored" in caplog.text
    _, table = evaluated(task)
    kept = task.predictions(table, task.validation, numpy.arange(12)).arrays
    assert len(table) == seen and len(kept["prediction"]) == words
    assert (kept["prediction"] == -1).sum() == words - seen
    assert (kept["prediction"] == kept["label"]).sum() == seen == kept["words"].sum()


def test_a_word_without_a_token_is_said_and_shifts_no_tag(load, caplog):
    rows = [*ROWS, {"tokens": ["the", "\u200b", "cat"], "ner_tags": ["O", "O", "B-PER"]}]
    with caplog.at_level(logging.WARNING):
        task = load(rows)
    assert "1 words, the first of them in row 13, are no token of this tokenizer" in caplog.text
    labels = [task.labels[label] for label in task.train[12]["labels"] if label != IGNORED]
    assert labels == ["O", "B-PER"]


def test_a_row_without_tokens_does_not_break_the_others(load):
    rows = [*ROWS, {"tokens": ["\u200b"], "ner_tags": ["O"]}]
    task = load(rows)
    score, table = evaluated(task)
    kept = task.predictions(table, task.validation, numpy.arange(13)).arrays
    assert score["f1"] == 1 and kept["words"][12] == 0 and kept["prediction"][-1] == -1
    batch = task.collate([task.train[12]])
    assert task.loss(task.model, batch)[0].item() == 0


def test_tags_without_prefixes_are_scored_by_word(load):
    rows = [{"words": row["tokens"], "tags": [t[-3:] for t in row["ner_tags"]]} for row in ROWS]
    task = load(rows)
    score, _ = evaluated(task)
    assert [*score] == ["f1", "precision", "recall", "accuracy", "macro_f1", "loss"]
    assert "the micro F1 over words, as the tags have no B- and I-" in task.remark
    assert task.labels == ("LOC", "O", "PER")


def test_scores_by_word_are_those_of_scikit_learn():
    from sklearn.metrics import f1_score

    generator = numpy.random.default_rng(0)
    tags = numpy.array(["A", "B", "C", "O"])
    labels, predicted = (
        [tags[generator.integers(4, size=n)].tolist() for n in (5, 1, 9)] for _ in range(2)
    )
    flat = [[tag for row in rows for tag in row] for rows in (labels, predicted)]
    scores = tag_scores(predicted, labels, count_tags)
    named = {"labels": ["A", "B", "C"]}
    assert scores["f1"] == pytest.approx(f1_score(*flat, average="micro", **named))
    assert scores["macro_f1"] == pytest.approx(f1_score(*flat, average="macro", **named))


def test_without_any_entity_undefined_scores_are_0():
    scores = tag_scores([["O", "O"]], [["O", "O"]], count_entities)
    assert scores == {"f1": 0, "precision": 0, "recall": 0, "accuracy": 1}


def test_integers_are_tags_in_numerical_order(load):
    rows = [
        {"tokens": ["the"] * 3, "tags": [10, 9, 2]},
        {"tokens": ["cat", "dog"], "tags": [2, 10]},
    ]
    assert load(rows).labels == ("2", "9", "10")


def test_a_class_label_keeps_its_names(load, flags, small, tmp_path):
    names = ["O", "B-PER", "I-PER", "B-LOC"]
    columns = {"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=names))}
    rows = Dataset.from_list(ROWS, features=Features(columns))
    DatasetDict(train=rows, validation=rows).save_to_disk(tmp_path / "saved")
    given = flags(ROWS) | {"train_file": None, "validation_file": None}
    task = registry.load_task(parse(small(**given, dataset_name=tmp_path / "saved")))
    assert task.labels == tuple(names)
    assert [names[i] for i in task.train[0]["labels"] if i != IGNORED] == ROWS[0]["ner_tags"]


def test_trivial_predictors_are_the_best_constant_the_majority_and_o():
    labels = [["O", "B-A"], ["B-A"], ["O", "O", "B-B", "I-B"]]
    scores = constant_tag_scores(labels, count_entities)
    assert scores["majority"] == scores["outside"]
    assert scores["outside"] == {"f1": 0, "precision": 0, "recall": 0, "accuracy": 3 / 7}
    # Always B-A: seven entities, two of them among the three.
    assert scores["constant"]["f1"] == pytest.approx(2 * 2 / (7 + 3))
    assert scores["constant"]["accuracy"] == 3 / 7
    assert "outside" not in constant_tag_scores([["X", "Y"]], count_tags)


def test_the_task_knows_the_trivial_scores_of_the_words_that_the_network_sees(load):
    task = load(ROWS, max_seq_length=8)
    seen = [row["ner_tags"][:6] for row in ROWS]
    assert task.trivial() == constant_tag_scores(seen, count_entities)


@pytest.fixture(scope="module")
def byte_level_bert(tmp_path_factory, tiny_bert):
    """A checkpoint whose tokenizer takes a word in the middle of a text with the space before."""
    backend = ByteLevelBPETokenizer()
    words = [f"the {word} saw" for word in (*PEOPLE, *PLACES, *OTHERS)]
    backend.train_from_iterator(words * 9, 300, special_tokens=["<s>", "<pad>", "</s>", "<mask>"])
    backend._tokenizer.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0))
    directory = tmp_path_factory.mktemp("byte_level")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend._tokenizer,
        **dict(pad_token="<pad>", cls_token="<s>", sep_token="</s>", mask_token="<mask>"),
    )
    tokenizer.save_pretrained(directory)
    sizes = BertConfig.from_pretrained(tiny_bert).to_dict() | {"vocab_size": 300, "pad_token_id": 1}
    BertForMaskedLM(BertConfig(**sizes)).save_pretrained(directory)
    return directory


def test_byte_level_tokenizers_see_words_as_within_a_text(load, byte_level_bert, tmp_path):
    task = load(ROWS, model_name_or_path=byte_level_bert)
    pieces = task.tokenizer.convert_ids_to_tokens(task.train[1]["input_ids"])
    assert "Ġcat" in pieces or "Ġdog" in pieces
    task.tokenizer.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    words = ROWS[1]["tokens"]
    assert again(words, is_split_into_words=True)["input_ids"] == task.train[1]["input_ids"]
    assert has_segments(task.model)


def test_test_rows_are_predicted_word_by_word(load, tmp_path):
    rows = [{"tokens": row["tokens"]} for row in ROWS]
    path = write_jsonl(tmp_path / "test.jsonl", rows)
    task = load(ROWS, max_seq_length=8, test_file=path)
    assert isinstance(task, PredictsTest) and not task.test_labels
    order = numpy.array([5, 0, 1, 2, 3, 4, 6, 7, 8, 11, 10, 9])
    batch = task.eval_collate([task.validation[i] for i in order])
    labels = batch["labels"][batch["labels"] != IGNORED]
    table = task.rows(torch.nn.functional.one_hot(labels, 4) * 9.0, batch)
    expected = [row["ner_tags"][:6] + ["?"] * (len(row["tokens"]) - 6) for row in ROWS]
    assert task.answers(table, order) == [*map(" ".join, expected)]


def test_a_search_predicts_a_test_file_with_tags(search, flags, tmp_path):
    path = tmp_path / "test.conll"
    path.write_text(conll([{"tokens": ["the", "cat"], "ner_tags": ["O", "B-NEW"]}, ROWS[0]]))
    out = search(**flags(ROWS, max_steps=2, target_sparsity=0.1, test_file=path))
    with (out / "predictions.csv").open() as file:
        lines = [*csv.DictReader(file)]
    assert [line["label"] for line in lines] == ["O B-NEW", " ".join(ROWS[0]["ner_tags"])]
    for line in lines:
        assert len(line["ticket"].split()) == len(line["label"].split())
        assert {*line["ticket"].split(), *line["dense"].split()} <= {"B-LOC", "B-PER", "I-PER", "O"}


def test_a_search_keeps_its_labels_and_predictions_and_transfers(search, transfer, flags, tmp_path):
    given = flags(conll(ROWS * 3), conll(ROWS), max_steps=8, target_sparsity=0.2)
    out = search(**given)
    rows = json.loads((out / "results.json").read_text())
    assert [*rows[0]["eval"]] == ["f1", "precision", "recall", "accuracy", "loss"]
    assert {"constant", "majority", "outside"} == {*rows[0]["trivial"]}
    for row in rows:
        kept = predictions.read(out / f"rounds/0{row['round']}")
        assert examples_of(kept, "f1").value == pytest.approx(row["eval"]["f1"])
    ticket = out / "ticket.safetensors"
    assert Ticket.load(ticket).task == "token-classification"
    moved = transfer(ticket=ticket, **given | {"target_sparsity": None})
    assert "f1" in json.loads((moved / "results.json").read_text())[0]["eval"]


WORDS, TAGS = ["the", "cat"], ["O", "B-PER"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"tokens": WORDS, "ner_tags": TAGS}, {"tokens": WORDS, "ner_tags": ["O"]}],
            "column 'ner_tags', row 2: 1 tags for 2 words in column 'tokens'; give each word one",
        ),
        (
            [{"tokens": WORDS, "ner_tags": TAGS}, {"tokens": [], "ner_tags": []}],
            "column 'tokens', row 2: has no words; fill it in, or remove the row",
        ),
        (
            [{"tokens": WORDS, "ner_tags": TAGS}, {"tokens": ["a", None], "ner_tags": TAGS}],
            "column 'tokens', row 2: has a null among the words; fill it in",
        ),
        (
            [{"tokens": WORDS, "ner_tags": TAGS}, {"tokens": WORDS, "ner_tags": ["O", ""]}],
            "column 'ner_tags', row 2: tag \"\" is none of those in train (B-PER, O); correct it",
        ),
        ([{"tokens": WORDS, "ner_tags": ["O", "O"]}], "column 'ner_tags' has only the tag 'O'"),
        (
            [{"tokens": "the cat", "ner_tags": "O B-PER"}],
            "none of the columns 'tokens', 'ner_tags' holds lists of words; use JSON Lines, Parq",
        ),
        ([{"tokens": WORDS, "ner_tags": TAGS, "pos": ["D", "N"], "words": WORDS}], None),
        (
            [{"a": WORDS, "b": TAGS}],
            "columns 'a', 'b' hold lists of words; choose one with --text_column_name",
        ),
        ("the O\ncat\n", "line 2: 'cat' does not have 2 columns, as the first line has; write a"),
    ],
)
def test_rows_that_are_wrong_are_refused_by_file_column_and_row(rows, message, load):
    if message is None:
        assert load(rows).labels == ("B-PER", "O")
        return
    with pytest.raises(BadInput) as error:
        load(rows)
    assert "train." in str(error.value) and message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_tag_that_train_does_not_have_is_refused(load):
    with pytest.raises(BadInput) as error:
        load(ROWS, [*ROWS, {"tokens": WORDS, "ner_tags": ["O", "B-ORG"]}])
    text = str(error.value)
    assert "val.jsonl: column 'ner_tags', row 13: tag \"B-ORG\" is none of those in train" in text
    assert "(B-LOC, B-PER, I-PER, O); correct it" in text


def test_validation_rows_that_are_all_o_are_refused(load):
    rows = [{"tokens": ["the", "saw"], "ner_tags": ["O", "O"]}, *ROWS]
    with pytest.raises(BadInput, match=r"val.jsonl: column 'ner_tags': all tags are O, so the F1"):
        load(ROWS, rows, max_eval_samples=1)
    assert len(load(ROWS, rows, max_eval_samples=2).validation) == 2


def test_a_validation_file_needs_the_columns_of_train(load):
    with pytest.raises(
        BadInput, match=r"val.jsonl has no column 'ner_tags', only 'tokens', 'tags'"
    ):
        load(ROWS, [{"tokens": WORDS, "tags": TAGS}])
    with pytest.raises(BadInput, match=r"val.jsonl: column 'tokens' does not hold lists of words"):
        load(ROWS, [{"tokens": "the cat", "ner_tags": TAGS}])


def test_roberta_keeps_the_space_before_words_when_its_tokenizer_is_saved(
    load, byte_level_bert, tmp_path
):
    config = json.loads((byte_level_bert / "tokenizer_config.json").read_text())
    shutil.copytree(byte_level_bert, tmp_path / "roberta")
    text = json.dumps(config | {"tokenizer_class": "RobertaTokenizer", "unk_token": "<s>"})
    (tmp_path / "roberta/tokenizer_config.json").write_text(text)
    task = load(ROWS, model_name_or_path=tmp_path / "roberta")
    assert type(task.tokenizer).__name__.startswith("RobertaTokenizer")
    task.tokenizer.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    ids = again(ROWS[1]["tokens"], is_split_into_words=True)["input_ids"]
    assert ids == task.train[1]["input_ids"] and "Ġ" in again.convert_ids_to_tokens(ids)[1]
