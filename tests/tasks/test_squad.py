"""tasks/squad.py: windows, labels, and answers that are copied from the context."""

import csv
import json
import shutil
import time

import numpy
import pytest
import torch
from conftest import WORDS, sentence, write_jsonl
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import RobertaProcessing, TemplateProcessing
from torch.nn import functional as F
from transformers import DataCollatorWithPadding, PreTrainedTokenizerFast

from lth_scale.config.errors import BadInput
from lth_scale.config.resolution import parse
from lth_scale.tasks import registry, squad
from lth_scale.tasks.rows import read_rows
from lth_scale.tasks.squad import INPUTS, cut_windows, max_context
from lth_scale.tasks.task import Task

QUESTION = "what did the cat see ?"
LONG = " ".join(sentence(i) for i in range(12))  # some windows of 32 tokens


def example(context: str, answer: str, question: str = QUESTION, start: int | None = None) -> dict:
    start = context.index(answer) if start is None else start
    return {
        "id": f"{start}",
        "context": context,
        "question": question,
        "answers": {"text": [answer], "answer_start": [start]},
    }


def make(tokenizer, rows: list[dict], length=32, stride=8, segments=True) -> tuple[dict, dict]:
    """(columns of the windows of some rows, their batch)."""
    columns = cut_windows(
        {name: [row[name] for row in rows] for name in rows[0]}, tokenizer, length, stride, segments
    )
    listed = [
        dict(zip(columns, values, strict=True), window=i)
        for i, values in enumerate(zip(*columns.values(), strict=True))
    ]
    return columns, squad.collate(listed, DataCollatorWithPadding(tokenizer))


def pointing(batch: dict, starts=None, stops=None, high: float = 9.0) -> torch.Tensor:
    """Logits that point at the labels of each window, or at the given tokens."""
    logits = torch.zeros(len(batch["window"]), 2, batch["input_ids"].shape[1])
    n = torch.arange(len(logits))
    logits[n, 0, batch["start_positions"] if starts is None else starts] = high
    logits[n, 1, batch["end_positions"] if stops is None else stops] = high
    return logits.masked_fill(batch["attention_mask"][:, None] == 0, squad.PADDING)


def answer(context: str, rows: numpy.ndarray) -> str:
    best = rows[rows[:, 3].argmax()]
    return context[int(best[1]) : int(best[2])]


@pytest.fixture(scope="module")
def byte_level():
    """A RoBERTa-like tokenizer: bytes, no segments, two separators between the pair."""
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        [" ".join(WORDS)] * 9, vocab_size=300, special_tokens=["<s>", "<pad>", "</s>"]
    )
    tokenizer._tokenizer.post_processor = RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=True
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer, pad_token="<pad>", cls_token="<s>"
    )


@pytest.fixture
def load(small, tmp_path):
    """The task on some rows."""

    def go(rows: list[dict], **overrides) -> Task:
        for split in ("train", "validation"):
            write_jsonl(tmp_path / f"squad/{split}.jsonl", rows)
        flags = {"max_seq_length": 32, "doc_stride": 8, **overrides}
        return registry.load_task(
            parse(small(task="squad", dataset_path=tmp_path / "squad", **flags))
        )

    return go


def evaluated(task: Task, order=None, size: int = 4) -> dict[str, float]:
    """The score of logits that point at the labels, with the windows in this order."""
    order = list(range(len(task.validation))) if order is None else order
    batches = [
        task.eval_collate([task.validation[i] for i in order[n : n + size]])
        for n in range(0, len(order), size)
    ]
    return task.score(numpy.concatenate([task.rows(pointing(batch), batch) for batch in batches]))


def test_it_loads_its_columns_and_trains(load):
    rows = [{**example(LONG, "good dog"), "title": "T"}, example("the dog ran far .", "ran far")]
    task = load(rows)
    assert set(task.train.column_names) == {*INPUTS, "start_positions", "end_positions"}
    batch = task.eval_collate([task.validation[i] for i in (0, 1, len(task.validation) - 1)])
    loss, logits = task.loss(task.model, batch)
    loss.backward()
    assert (
        logits.shape == (3, 2, 32)
        and logits.dtype == torch.float32
        and torch.isfinite(logits).all()
    )
    results = task.rows(logits, batch)
    assert results.shape == (3, 5) and results.dtype == numpy.float64
    assert list(task.score(results)) == ["f1", "exact_match", "loss"]
    assert task.score(results)["loss"] == pytest.approx(loss.item(), rel=1e-6)


def test_limits_count_questions_and_the_stride_is_part_of_the_cache_key(load):
    rows = [example(LONG, "good dog")] * 3
    one, two = load(rows, max_train_samples=1, max_eval_samples=2), load(rows, doc_stride=4)
    assert 2 * len(one.train) == len(one.validation)
    assert len(two.train) == len(two.validation) > 3 * len(one.train)


@pytest.mark.parametrize("kind", ["tokenizer", "byte_level"])
def test_windows_start_doc_stride_tokens_apart_and_cover_the_context(kind, request):
    tokenizer = request.getfixturevalue(kind)
    segments = kind == "tokenizer"
    columns, _ = make(tokenizer, [example(LONG, "good dog")], segments=segments)
    whole = tokenizer(LONG, add_special_tokens=False, return_offsets_mapping=True)
    room = (
        32
        - len(tokenizer(QUESTION, add_special_tokens=False)["input_ids"])
        - (3 if segments else 4)
    )
    assert ("token_type_ids" in columns) == segments
    assert columns["part"] == list(range(len(columns["part"]))) and len(columns["part"]) > 4
    for i, (ids, ends) in enumerate(zip(columns["input_ids"], columns["ends"], strict=True)):
        inside = [token for token, end in zip(ids, ends, strict=True) if end >= 0]
        assert inside == whole["input_ids"][8 * i : 8 * i + room]
        assert [end for end in ends if end >= 0] == [b for _, b in whole["offset_mapping"]][
            8 * i : 8 * i + room
        ]
    assert max(map(max, columns["ends"])) == len(LONG)


def test_a_stride_longer_than_a_window_leaves_no_gap(tokenizer):
    columns, _ = make(tokenizer, [example(LONG, "good dog")], stride=500)
    ends = [end for row in columns["ends"] for end in row if end >= 0]
    assert ends == [
        b
        for _, b in tokenizer(
            LONG, add_special_tokens=False, return_offsets_mapping=True
        ).offset_mapping
    ]


@pytest.mark.parametrize("kind", ["tokenizer", "byte_level"])
def test_every_answer_is_recovered_wherever_it_is(kind, request):
    tokenizer = request.getfixturevalue(kind)
    words, whole_windows = LONG.split(), set()
    for i in range(0, len(words) - 1):
        start, text = len(" ".join(words[:i])) + bool(i), " ".join(words[i : i + 2])
        columns, batch = make(
            tokenizer, [example(LONG, text, start=start)], segments=kind == "tokenizer"
        )
        rows = squad.best_spans(pointing(batch), batch)
        assert answer(LONG, rows) == text and rows[rows[:, 3].argmax(), 1] == start
        whole_windows.add(sum(end > 0 for end in columns["end_positions"]))
        assert all(
            (a > 0) == (b > 0)
            for a, b in zip(columns["start_positions"], columns["end_positions"], strict=True)
        )
    assert min(whole_windows) >= 1 and max(whole_windows) > 1


@pytest.mark.parametrize("kind", ["tokenizer", "byte_level"])
@pytest.mark.parametrize(
    "text",
    [
        "10\u00a0000 good\u00a0dogs",
        "Café Zoë",
        "cafe\u0301 mat",
        "🐈\u200d⬛ cat 👍🏽",
        "sea—house",
        "d'Été,  two",
        "Straße",
        "中文 mat",
    ],
)
@pytest.mark.parametrize("where", [0, 150, None], ids=["start", "middle", "end"])
def test_the_answer_is_copied_from_the_context(kind, text, where, request):
    before = "" if where == 0 else LONG[:where] + " "
    context = before + text + ("" if where is None else " " + LONG)
    rows = [example(context, text, start=len(before))]
    _, batch = make(
        request.getfixturevalue(kind), rows, length=64, stride=16, segments=kind == "tokenizer"
    )
    assert answer(context, squad.best_spans(pointing(batch), batch)) == text


def official_max_context(counts: list[int], step: int) -> list[int]:
    """The rule as run_squad.py states it, token by token."""
    best = []
    for token in range(step * (len(counts) - 1) + counts[-1]):
        scores = []
        for i, count in enumerate(counts):
            left, right = token - i * step, i * step + count - 1 - token
            scores.append(min(left, right) + 0.01 * count if left >= 0 and right >= 0 else -1)
        best.append(scores.index(max(scores)))
    return best


@pytest.mark.parametrize(
    ("counts", "step"), [([5], 5), ([20, 20, 20, 7], 8), ([10, 10, 3], 10), ([9, 9, 9, 9], 1)]
)
def test_the_best_window_is_the_one_with_the_most_context(counts, step):
    assert max_context(counts, step).tolist() == official_max_context(counts, step)


def test_an_answer_does_not_start_outside_its_best_window(tokenizer):
    columns, batch = make(tokenizer, [example(LONG, "good dog")])
    begins, ends = torch.tensor(columns["begins"][1]), torch.tensor(columns["ends"][1])
    token = int(((begins < 0) & (ends >= 0)).nonzero()[0])
    one = {name: tensor[1:2] for name, tensor in batch.items()}
    only = pointing(one, token, token).masked_fill(pointing(one, token, token) == 0, -50.0)
    first = squad.best_spans(only, one)[0]
    assert first[1] != columns["ends"][1][token] and first[3] < 0


@pytest.mark.parametrize(
    ("start", "stop"),
    [(0, 0), (2, 10), (12, 11), (10, 3)],
    ids=["CLS", "question", "backwards", "ends in question"],
)
def test_an_invalid_span_gives_the_empty_answer(start, stop, tokenizer, monkeypatch):
    monkeypatch.setattr(squad, "N_BEST", 1)
    _, batch = make(tokenizer, [example("the cat sat on the mat .", "mat")])
    rows = squad.best_spans(pointing(batch, start, stop), batch)
    assert rows[0, 1:4].tolist() == [0, 0, -numpy.inf]


def test_an_answer_has_at_most_30_tokens(tokenizer, monkeypatch):
    monkeypatch.setattr(squad, "N_BEST", 1)
    context = " ".join(["cat"] * 60)
    _, batch = make(tokenizer, [example(context, "cat")], length=96)
    first = int((batch["ends"][0] >= 0).nonzero()[0])
    assert answer(context, squad.best_spans(pointing(batch, first, first + 29), batch)) == " ".join(
        ["cat"] * 30
    )
    assert answer(context, squad.best_spans(pointing(batch, first, first + 30), batch)) == ""


def test_a_long_question_is_cut_to_64_tokens(tokenizer):
    columns, _ = make(
        tokenizer, [example(LONG, "good dog", " ".join(["cat"] * 100))], length=96, stride=16
    )
    cat = tokenizer.convert_tokens_to_ids("cat")
    assert columns["input_ids"][0][:66] == [
        tokenizer.cls_token_id,
        *[cat] * 64,
        tokenizer.sep_token_id,
    ]
    assert len(columns["input_ids"][0]) == 96


def test_a_question_that_leaves_no_room_is_refused(load):
    with pytest.raises(BadInput, match=r"--max_seq_length 32: the question 'cat cat .* use 96"):
        load([example(LONG, "good dog", " ".join(["cat"] * 29))])
    assert len(load([example(LONG, "good dog", " ".join(["cat"] * 28))]).train) > 20
    with pytest.raises(BadInput, match="--doc_stride 0"):
        load([example(LONG, "good dog")], doc_stride=0)


def test_the_score_takes_the_best_window_of_each_question_in_any_order(load):
    rows = [
        example(LONG, "good dog"),
        example("the dog ran far .", "ran far"),
        example(LONG, "far", start=LONG.rindex("far")),
    ]
    task = load(rows)
    count = len(task.validation)
    assert count > len(rows)
    straight = evaluated(task)
    assert straight["f1"] == straight["exact_match"] == 1
    for size, order in (
        (1, range(count)[::-1]),
        (7, numpy.random.default_rng(0).permutation(count).tolist()),
    ):
        assert evaluated(task, list(order), size) == pytest.approx(straight)


def test_the_score_is_a_fraction_and_the_first_of_tied_windows_wins(load):
    task = load([example(LONG, "good dog"), example("the cat sat .", "sat")])
    count = len(task.validation)
    text = LONG.index("good dog")
    table = numpy.zeros((count, 5))
    table[:, 0], table[:, 3], table[:, 4] = numpy.arange(count), -numpy.inf, 2.0
    table[0, 1:4] = text, text + 8, 5.0
    table[1, 1:4] = 0, 3, 5.0
    table[-1, 1:4] = 4, 11, 1.0  # "cat sat", of which "sat" is right
    for rows in (table, table[::-1]):
        assert task.score(rows) == pytest.approx(
            {"f1": (1 + 2 / 3) / 2, "exact_match": 0.5, "loss": 2.0}
        )
    table[:, 3] = -numpy.inf
    table[:, 1:3] = 0
    assert task.score(table) == {"f1": 0.0, "exact_match": 0.0, "loss": 2.0}


def test_padding_does_not_change_the_loss_and_divergences_are_finite(load):
    task = load([example(LONG, "good dog"), example("a cat .", "cat")])
    task.model.eval()
    short = task.validation[len(task.validation) - 1]
    alone, together = task.eval_collate([short]), task.eval_collate([task.validation[0], short])
    loss, logits = task.loss(task.model, alone)
    padded = task.loss(task.model, together)[1]
    assert logits.shape[2] < padded.shape[2] == 32
    assert task.rows(padded, together)[1, 4] == pytest.approx(loss.item(), rel=1e-5)
    logs = F.log_softmax(padded, dim=-1)
    other = F.log_softmax(padded.flip(1), dim=-1)
    divergence = F.kl_div(logs, other, log_target=True, reduction="none")
    assert torch.isfinite(divergence).all() and (logs.exp()[1, :, logits.shape[2] :] == 0).all()


def test_the_tokenizers_sides_do_not_change_the_windows(load, tiny_bert, tmp_path):
    shutil.copytree(tiny_bert, tmp_path / "left")
    path = tmp_path / "left/tokenizer_config.json"
    sides = {"truncation_side": "left", "padding_side": "left"}
    path.write_text(json.dumps({**json.loads(path.read_text()), **sides}))
    rows = [
        example(LONG, "good dog"),
        example(LONG, "far", start=LONG.rindex("far")),
        example("a cat .", "cat"),
    ]
    plain, left = load(rows), load(rows, model_name_or_path=tmp_path / "left")
    assert left.validation[:] == plain.validation[:] and evaluated(left) == evaluated(plain)
    one, other = (
        task.eval_collate([task.validation[i] for i in (0, -1)]) for task in (plain, left)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_label_of_a_window_without_the_answer_is_its_cls():
    words = {
        word: i
        for i, word in enumerate(
            ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted({*WORDS, *QUESTION.split()})]
        )
    }
    backend = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    ids = [("[SEP]", words["[SEP]"]), ("[CLS]", words["[CLS]"])]
    backend.post_processor = TemplateProcessing(
        single="$A [SEP] [CLS]", pair="$A [SEP] $B:1 [SEP]:1 [CLS]:2", special_tokens=ids
    )
    names = {
        name: f"[{name[:3].upper()}]"
        for name in ("pad_token", "unk_token", "cls_token", "sep_token")
    }
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    columns, batch = make(
        tokenizer, [example(LONG, "good dog", "what did the [CLS] see ?")], segments=False
    )
    without = [
        i
        for i, (a, b) in enumerate(
            zip(columns["start_positions"], columns["end_positions"], strict=True)
        )
        if a == b == len(columns["input_ids"][i]) - 1
    ]
    assert without and all(
        columns["input_ids"][i][columns["start_positions"][i]] == words["[CLS]"] for i in without
    )
    assert answer(LONG, squad.best_spans(pointing(batch), batch)) == "good dog"


def test_rows_can_be_padded_to_max_length(load, tokenizer):
    task = load([example("the cat sat .", "cat"), example("the dog ran far .", "ran far")])
    rows = [task.validation[i] for i in (0, 1)]
    collators = (
        DataCollatorWithPadding(tokenizer),
        DataCollatorWithPadding(tokenizer, "max_length", 32),
    )
    short, whole = (squad.collate(rows, collator) for collator in collators)
    assert {tuple(whole[name].shape) for name in ("input_ids", "attention_mask", *squad.SPANS)} == {
        (2, 32)
    }
    width = short["input_ids"].shape[1]
    assert all(
        torch.equal(whole[name][:, :width], short[name]) for name in ("input_ids", *squad.SPANS)
    )
    assert (whole["begins"][:, width:] == -1).all() and (
        whole["attention_mask"][:, width:] == 0
    ).all()


@pytest.mark.parametrize(
    "ids",
    [["a", "b", "c"], ["a", "a", "a"], ["", "", ""], [7, 7, 8], [None] * 3, [["x"]] * 3, None],
    ids=["unique", "one", "empty", "integers", "null", "lists", "no column"],
)
def test_every_row_counts_once_with_any_id(ids, load):
    rows = [
        example(LONG, "good dog"),
        example("the dog ran far .", "ran far"),
        example("the cat sat by the sea .", "sea"),
    ]
    rows = [{name: row[name] for name in row if name != "id"} for row in rows]
    task = load([row if ids is None else {"id": ids[i], **row} for i, row in enumerate(rows)])
    assert evaluated(task)["exact_match"] == 1
    batch = task.eval_collate([task.validation[i] for i in range(len(task.validation))])
    table = task.rows(pointing(batch), batch)
    table[-1, 1:3] = 0  # the last question is answered by nothing
    assert task.score(table)["f1"] == pytest.approx(2 / 3)


def test_the_first_answer_is_learned_and_the_best_one_is_scored(load):
    context = "the cat sat on a mat and saw the sea"
    answers = {
        "text": ["the cat", "mat", "sea"],
        "answer_start": [0, 17, 33],
        "answer_id": [1, 2, 3],
    }
    task = load([{"context": context, "question": QUESTION, "answers": answers}])
    assert evaluated(task)["exact_match"] == 1
    table = numpy.array([[0, 17, 20, 1.0, 0.5]])
    assert task.score(table) == {"f1": 1.0, "exact_match": 1.0, "loss": 0.5}


def test_an_unpaired_surrogate_does_not_shift_offsets(load):
    context = "the \ud83d cat \U0001f408 sat \ude00\ud83d far away"
    row = {
        "context": context,
        "question": QUESTION,
        "answers": {"text": ["far"], "answer_start": [19]},
    }
    assert evaluated(load([row]))["exact_match"] == 1
    with pytest.raises(BadInput, match='line 1: answer "far" is not at character 20'):
        load(
            [row | {"answers": {"text": ["far"], "answer_start": [20]}}]
        )  # as in UTF-16, which counts the cat twice


def test_many_windows_take_linear_time():
    began = time.process_time()
    assert max_context([300] * 10**4, 100)[[0, 199, 200, 10**6]].tolist() == [0, 0, 1, 9999]
    assert time.process_time() - began < 5


GOOD = example("the cat sat", "cat")
BAD = [
    ({"answers": None}, "'answers' is null"),
    ({"answers": [{"text": "cat", "answer_start": 4}]}, "'answers' is a list"),
    ({"answers": {"text": ["cat"]}}, "two lists of equal length"),
    ({"answers": {"text": [], "answer_start": []}}, "'answers' is empty"),
    ({"answers": {"text": ["the cat sat on it"], "answer_start": [0]}}, "not at character 0"),
    ({"answers": {"text": ["cat"], "answer_start": [True]}}, '"cat" at true'),
    ({"answers": {"text": ["cat"], "answer_start": [4.0]}}, '"cat" at 4.0'),
    ({"answers": {"text": ["cat", None], "answer_start": [4, 4]}}, "answer null"),
    ({"answers": {"text": ["cat"], "answer_start": [10**30]}}, "not at character 10{30}"),
    ({"answers": {"text": ["cat"], "answer_start": [4, 4]}}, "two lists of equal length"),
    ({"answers": {"text": "cat", "answer_start": 4}}, "two lists of equal length"),
    ({"answers": {"text": ["cat"], "answer_start": [5]}}, "not at character 5"),
    ({"answers": {"text": ["sat", "cat"], "answer_start": [8, -7]}}, '"cat" at -7'),
    ({"answers": {"text": ["cat"], "answer_start": ["4"]}}, '"cat" at "4"'),
    ({"answers": {"text": [" "], "answer_start": [3]}}, "non-empty"),
    ({"question": 3}, "'question' is 3"),
]


@pytest.mark.parametrize(("change", "named"), BAD, ids=[named for _, named in BAD])
def test_invalid_rows_are_refused_with_the_line(change, named, tmp_path):
    path = write_jsonl(tmp_path / "train.jsonl", [GOOD, {**GOOD, **change}])
    with pytest.raises(BadInput, match=f"line 2: .*{named}"):
        list(read_rows(path, squad.COLUMNS))
    assert json.loads(path.read_text().splitlines()[0]) == GOOD


def unanswerable(i: int) -> dict:
    return example(sentence(i), "", "who is the king ?") | {"answers": NONE}


NONE = {"text": [], "answer_start": []}
MIXED = [example("the dog ran far .", "ran far"), unanswerable(3), example(LONG, "good dog")]


@pytest.fixture
def load_own(small, tmp_path):
    """Question answering on a file of these rows."""

    def go(rows, name: str = "train.jsonl", **flags) -> Task:
        path = tmp_path / name
        path.write_text(rows) if isinstance(rows, str) else write_jsonl(path, rows)
        files = {"train_file": path, "validation_file": path, "dataset_path": None}
        return registry.load_task(
            parse(
                small(
                    **{"task": "question-answering", "max_seq_length": 32, "doc_stride": 8}
                    | files
                    | flags
                )
            )
        )

    return go


def nested(rows: list[dict]) -> str:
    """The rows as SQuAD's own files have them, with an article each."""
    articles = []
    for row in rows:
        pairs = zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
        answers = [{"text": text, "answer_start": start} for text, start in pairs]
        question = {"id": row["id"], "question": row["question"], "answers": answers}
        paragraph = {"context": row["context"], "qas": [question | {"is_impossible": not answers}]}
        articles.append({"title": "T", "paragraphs": [paragraph]})
    return json.dumps({"version": "v2.0", "data": articles})


def test_own_questions_give_the_windows_and_scores_of_squad(load, load_own):
    rows = [example(LONG, "good dog"), example("the dog ran far .", "ran far")]
    ours, theirs = load_own(rows), load(rows)
    for split in ("train", "validation"):
        assert getattr(ours, split).to_dict() == getattr(theirs, split).to_dict()
    assert evaluated(ours) == evaluated(theirs) and evaluated(ours)["f1"] == 1


def test_nested_and_flat_files_give_the_same_windows(load_own):
    flags = {"version_2_with_negative": True}
    flat, tree = load_own(MIXED, **flags), load_own(nested(MIXED), "squad.json", **flags)
    assert flat.train.to_dict() == tree.train.to_dict()
    assert flat.validation.to_dict() == tree.validation.to_dict()
    assert {*flat.train.column_names} == {*INPUTS, "start_positions", "end_positions"}


def test_answers_may_be_a_list_of_objects(load_own):
    rows = [MIXED[0], MIXED[2]]
    pairs = [(row["answers"]["text"][0], row["answers"]["answer_start"][0]) for row in rows]
    objects = [
        row | {"answers": [{"text": text, "answer_start": start}]}
        for row, (text, start) in zip(rows, pairs, strict=True)
    ]
    ours, theirs = load_own(objects, "objects.jsonl"), load_own(rows)
    assert ours.validation.to_dict() == theirs.validation.to_dict()


def test_windows_without_an_answer_are_learned_as_cls(load_own):
    task = load_own(MIXED, version_2_with_negative=True)
    no_answer = task.question_of == 1
    for name in ("start_positions", "end_positions"):
        positions = numpy.array(task.validation[name][:])
        assert (positions[no_answer] == 0).all() and (positions[task.question_of == 0] > 0).all()
    assert task.validation["cls"][:] == [0] * len(task.validation)


def test_a_perfect_network_is_right_about_questions_of_both_kinds(load_own):
    task = load_own(MIXED, version_2_with_negative=True)
    assert [*evaluated(task)] == [
        *("f1", "exact_match", "HasAns_f1", "HasAns_exact", "NoAns_f1", "NoAns_exact", "loss")
    ]
    assert {value for name, value in evaluated(task).items() if name != "loss"} == {1.0}


@pytest.mark.parametrize(("cls", "expected"), [(8.9, "ran far"), (9.0, "ran far"), (9.1, "")])
def test_the_empty_answer_wins_if_cls_scores_higher_than_the_best_span(cls, expected, load_own):
    """null_score_diff_threshold of run_qa.py is 0: a tie goes to the span."""
    task = load_own([MIXED[0], MIXED[1]], version_2_with_negative=True)
    batch = task.eval_collate([task.validation[0]])
    logits = pointing(batch)
    logits[:, :, 0] = cls
    rows = task.rows(logits, batch)
    assert rows.shape == (1, 6) and rows[0, 4] == pytest.approx(2 * cls)
    assert task._answers(rows)[0] == [expected]


def test_the_null_score_is_the_lowest_of_a_questions_windows(load_own):
    task = load_own([MIXED[2], MIXED[1]], version_2_with_negative=True)
    first = [i for i, question in enumerate(task.question_of) if question == 0]
    batch = task.eval_collate([task.validation[i] for i in first])
    logits = pointing(batch)
    logits[:, :, 0] = 20.0  # all windows say that there is no answer,
    assert task._answers(task.rows(logits, batch))[0] == [""]
    logits[1, :, 0] = 0.0  # except for one
    assert task._answers(task.rows(logits, batch))[0] == ["good dog"]


def test_scores_of_both_kinds_are_those_of_squad_v2():
    """Computed by the official evaluate-v2.0.py."""
    given = ["the dog", "a small dog", "", "cat"]
    accepted = [["dog"], ["dog", "big dog"], [], []]
    assert squad.scores_by_kind(given, accepted) == pytest.approx(
        {
            **{"f1": (1 + 2 / 3 + 1) / 4, "exact_match": 2 / 4},
            **{"HasAns_f1": (1 + 2 / 3) / 2, "HasAns_exact": 1 / 2},
            **{"NoAns_f1": 1 / 2, "NoAns_exact": 1 / 2},
        }
    )
    assert "NoAns_f1" not in squad.scores_by_kind(["a"], [["a"]])


def test_kept_predictions_of_both_kinds_give_the_score(load_own):
    task = load_own(MIXED, version_2_with_negative=True)
    batch = task.eval_collate([task.validation[i] for i in range(len(task.validation))])
    table = task.rows(torch.zeros(len(task.validation), 2, 32), batch)
    kept = task.predictions(table, task.validation, numpy.arange(len(task.validation))).arrays
    score = task.score(table)
    for name in ("f1", "exact_match"):
        assert len(kept[name]) == 3 and kept[name].mean() == pytest.approx(score[name])


def test_no_answer_is_the_best_constant_if_most_questions_have_none(load_own):
    task = load_own([MIXED[0], MIXED[1], unanswerable(4)], version_2_with_negative=True)
    assert task.trivial() == {"constant": {"f1": 2 / 3, "exact_match": 2 / 3}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": NONE}, "column 'answers', row 2: the question has no answer; use --version_2"),
        ({"answers": {"text": ["ran"], "answer_start": [5]}}, 'row 2: answer "ran" is not at'),
        ({"answers": {"text": ["ran"], "answer_start": []}}, "row 2: column 'answers' needs 'te"),
        ({"answers": None}, "column 'answers', row 2: column 'answers' needs 'text' and"),
        ({"question": None}, "column 'question', row 2: null is no text; write a string"),
    ],
)
def test_an_own_row_that_is_wrong_is_refused_by_file_column_and_row(change, message, load_own):
    with pytest.raises(BadInput) as error:
        load_own([MIXED[0], MIXED[0] | change])
    assert "train.jsonl" in str(error.value) and message in str(error.value)


def test_own_data_without_a_column_is_refused_with_those_it_has(load_own):
    rows = [{"question": "a", "text": "b"}]
    with pytest.raises(BadInput, match="no column 'context', only 'question', 'text'; use SQuAD's"):
        load_own(rows)


def test_a_search_predicts_questions_of_a_test_file(search, tmp_path):
    rows = [MIXED[0], MIXED[2], MIXED[0]]
    train = write_jsonl(tmp_path / "train.jsonl", [*MIXED, *MIXED])
    without = [{name: row[name] for name in ("question", "context")} for row in rows]
    flags = {
        **{"task": "question-answering", "dataset_path": None, "train_file": train},
        **{"validation_file": train, "version_2_with_negative": True, "doc_stride": 8},
        **{"test_file": write_jsonl(tmp_path / "test.jsonl", without)},
    }
    out = search(**flags, max_steps=2, target_sparsity=0.1)
    with (out / "predictions.csv").open() as file:
        lines = [*csv.DictReader(file)]
    assert len(lines) == 3 and lines[0] == lines[2] | {"row": "1"}
    for line, row in zip(lines, rows, strict=True):
        assert line["ticket"] in row["context"] and line["dense"] in row["context"]


def test_questions_to_predict_need_no_answers_in_nested_files_either(load_own, tmp_path):
    tree = json.loads(nested(MIXED))
    for article in tree["data"]:
        del article["paragraphs"][0]["qas"][0]["answers"]
    (tmp_path / "test.json").write_text(json.dumps(tree))
    task = load_own(MIXED, version_2_with_negative=True, test_file=tmp_path / "test.json")
    assert [*task.test_labels] == ["", "", ""]
    with pytest.raises(BadInput, match="column 'answers', row 1: column 'answers' needs 'text'"):
        load_own(json.dumps(tree), "train.json", version_2_with_negative=True)
