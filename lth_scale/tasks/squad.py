"""Question answering: the span of a context that answers a question (as in BERT's run_squad.py).

The paper's task is SQuAD v1.1. Data of one's own may also have questions without an answer, as
SQuAD v2 does (Rajpurkar et al. 2018, arXiv:1806.03822); these are handled as in transformers'
run_qa.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForQuestionAnswering,
    BatchEncoding,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
)

from lth_scale.config.arguments import Training
from lth_scale.config.errors import BadInput
from lth_scale.config.texts import brief
from lth_scale.distributed import compat
from lth_scale.tasks import data, data_warnings
from lth_scale.tasks.inputs import agree_on_inputs
from lth_scale.tasks.loading import load_model, load_tokenizer
from lth_scale.tasks.metrics import load_metric
from lth_scale.tasks.metrics.squad.squad import exact_match, f1
from lth_scale.tasks.registry import TASKS
from lth_scale.tasks.rows import checked_answers, features, shown
from lth_scale.tasks.sources import Source, limit_sources, load_sources
from lth_scale.tasks.task import Batch, LoadedTask, Predictions, Row, label_config
from lth_scale.tasks.trivial import Trivial, constant_answer_scores

METRICS = ("f1", "exact_match")
COLUMNS = {"context": "string", "question": "string", "answers": "answers"}
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
NO_ANSWER: Mapping[str, list] = {"text": [], "answer_start": []}
# The characters at which an answer may begin and end with a token; −1 for none.
SPANS = ("begins", "ends")
# max_query_length, n_best_size and max_answer_length in run_squad.py
QUESTION_TOKENS, N_BEST, ANSWER_TOKENS = 64, 20, 30
# A question has no answer if CLS as its start and end scores higher than the best answer by more
# than this: null_score_diff_threshold in run_qa.py.
NULL_THRESHOLD = 0.0
# The logit of padding: no softmax sees it, and 0 · (PADDING − PADDING) is 0, in fp16 too.
PADDING = -1e4


@dataclass(kw_only=True)
class SquadTask(LoadedTask):
    """Question answering.

    questions: the validation questions. question_of: int (windows,), the question of each window.
    unanswerable: whether some questions have no answer. test: windows of questions to predict, or
    None; test_questions, test_question_of, test_labels: these, and their answers. facts: what was
    taken from the user's own data.
    """

    questions: Dataset
    question_of: numpy.ndarray
    metric: Any
    unanswerable: bool = False
    test: Dataset | None = None
    test_questions: Dataset | None = None
    test_question_of: numpy.ndarray | None = None
    test_labels: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy, and fp32 start and end logits (n, 2, length), PADDING for padding."""
        output = model(**{name: batch[name] for name in INPUTS if name in batch})
        logits = torch.stack([output.start_logits, output.end_logits], dim=1).float()
        if "attention_mask" in batch:  # FNet takes none, and its rows have one length
            logits = logits.masked_fill(batch["attention_mask"][:, None] == 0, PADDING)
        return _window_losses(logits, batch).mean(), logits

    def rows(self, outputs: Tensor, batch: Batch) -> numpy.ndarray:
        return best_spans(outputs, batch)

    def score(self, rows: numpy.ndarray) -> dict[str, float]:
        """F1 and exact match of each question's best window, and the mean loss of all windows.

        If some questions have no answer, also those of either kind, as in `squad_v2` of `evaluate`.
        """
        given, accepted = self._answers(rows)
        if self.unanswerable:
            scores = scores_by_kind(given, accepted)
        else:
            percent = self.metric.compute(predictions=given, references=accepted)
            scores = {name: percent[name] / 100 for name in METRICS}
        return {**scores, "loss": float(rows[:, -1].mean())}

    def predictions(self, table: numpy.ndarray, rows: Dataset, order: numpy.ndarray) -> Predictions:
        """`f1` (float32) and `exact_match` (int16, 0 or 1) of each question, not of each window."""
        given, accepted = self._answers(table)
        scores = question_scores(given, accepted)
        kept = {
            name: scores[name].astype(kind)
            for name, kind in (("f1", "float32"), ("exact_match", "int16"))
        }
        return Predictions(kept, len(given) > 1 and len({*given}) == 1)

    def trivial(self) -> Trivial:
        """The best constant answer, which may be that there is none."""
        return constant_answer_scores([row["text"] for row in self.questions["answers"][:]])

    def answers(self, table: numpy.ndarray, order: numpy.ndarray) -> list[str]:
        """The answer to each test question; "" if there is none."""
        assert self.test_questions is not None and self.test_question_of is not None
        return best_answers(table, self.test_questions, self.test_question_of, self.unanswerable)

    def _answers(self, rows: numpy.ndarray) -> tuple[list[str], list[list[str]]]:
        """The answer given to each question, in their order, and those that are accepted."""
        answered = numpy.unique(self.question_of[rows[:, 0].astype(int)])
        accepted = [answers["text"] for answers in self.questions.select(answered)["answers"]]
        given = best_answers(rows, self.questions, self.question_of, self.unanswerable)
        return given, accepted


def best_answers(
    rows: numpy.ndarray, questions: Dataset, question_of: numpy.ndarray, unanswerable: bool
) -> list[str]:
    """The answers of the questions that have windows in `rows`, in the order of the questions.

    rows: as `best_spans` returns them. question_of: int (windows,), the question of each window.
    unanswerable: whether the answer may be "", if the lowest score of CLS is above that of the
    best span by more than NULL_THRESHOLD.
    """
    # A question's best window first; among ties the earlier one.
    rows = rows[numpy.lexsort((rows[:, 0], -rows[:, 3]))]
    numbers = question_of[rows[:, 0].astype(int)]
    answered, best = numpy.unique(numbers, return_index=True)
    spans = zip(questions.select(answered)["context"], rows[best, 1:3].astype(int), strict=True)
    given = [context[start:stop].strip() for context, (start, stop) in spans]
    if not unanswerable:
        return given
    null_scores = numpy.full(len(questions), numpy.inf)
    numpy.minimum.at(null_scores, numbers, rows[:, 4])
    is_null = null_scores[answered] - rows[best, 3] > NULL_THRESHOLD
    return ["" if null else text for text, null in zip(given, is_null, strict=True)]


def question_scores(given: list[str], accepted: list[list[str]]) -> dict[str, numpy.ndarray]:
    """F1 and exact match of the answer given to each question, float64 from 0 to 1.

    accepted: the right answers to each question; where there are none, the empty one is right.
    """
    pairs = [(text, answers or [""]) for text, answers in zip(given, accepted, strict=True)]
    exact = [max(exact_match(text, answer) for answer in answers) for text, answers in pairs]
    overlap = [max(f1(text, answer) for answer in answers) for text, answers in pairs]
    # No words are shared where there are none.
    is_null = numpy.array([not answers for answers in accepted])
    return {"f1": numpy.where(is_null, exact, overlap), "exact_match": numpy.array(exact)}


def scores_by_kind(given: list[str], accepted: list[list[str]]) -> dict[str, float]:
    """Mean F1 and exact match of all questions, and of those with and without an answer."""
    scores = question_scores(given, accepted)
    has_answer = numpy.array([bool(answers) for answers in accepted])
    kinds = {"HasAns": has_answer, "NoAns": ~has_answer}
    return {name: float(values.mean()) for name, values in scores.items()} | {
        f"{kind}_{short}": float(scores[name][chosen].mean())
        for kind, chosen in kinds.items()
        for name, short in (("f1", "f1"), ("exact_match", "exact"))
        if chosen.any()
    }


def load_squad(args: Training) -> SquadTask:
    """Load SQuAD; --max_train_samples and --max_eval_samples count questions. Raises BadInput."""
    return _load(args, load_offset_tokenizer(args), data.load_splits(args, COLUMNS))


def load_question_answering(args: Training) -> SquadTask:
    """Load the user's own questions; with --version_2_with_negative some without an answer.

    Limits count questions. Raises BadInput.
    """
    tokenizer = load_offset_tokenizer(args)
    sources = limit_sources(args, load_sources(args))
    splits = {
        split: checked_questions(args, source, needs_answers=split != "test")
        for split, source in sources.items()
    }
    task = _load(args, tokenizer, splits)
    task.facts = {"text_columns": [*TASKS[args.task].texts]}
    return task


def checked_questions(args: Training, source: Source, needs_answers: bool = True) -> Dataset:
    """The rows of a source with the columns of COLUMNS. Raises BadInput for a row that is wrong.

    needs_answers: False if the rows are to be predicted only, and null stands for none.
    """
    if not needs_answers and "answers" not in source.rows.column_names:
        source = replace(source, rows=source.rows.add_column("answers", [None] * len(source)))
    for column in COLUMNS:
        if column not in source.rows.column_names:
            raise BadInput(
                f"{source.name}: no column {column!r}, only {source.column_list()}; use SQuAD's: "
                f"{', '.join(COLUMNS)}"
            )
    rows = source.rows.select_columns([*COLUMNS])

    def checked() -> Iterator[Row]:
        for i, row in enumerate(rows):
            if not needs_answers and row["answers"] is None:
                row["answers"] = NO_ANSWER
            yield _checked_question(source, i, row, answerable)

    answerable = needs_answers and not args.version_2_with_negative
    key = data.fingerprint("questions", answerable, compat.fingerprint(rows))
    return data.materialize(checked, key, features(COLUMNS))


def _checked_question(source: Source, number: int, row: Row, answerable: bool) -> Row:
    """The row with the answers as two lists. Raises BadInput.

    answerable: whether there has to be an answer.
    """
    for column in ("context", "question"):
        if not isinstance(row[column], str):
            raise source.bad(number, column, f"{shown(row[column])} is no text; write a string")
    try:
        answers = checked_answers(as_lists(row["answers"]), row["context"])
    except ValueError as error:
        raise source.bad(number, "answers", str(error)) from None
    if answerable and not answers["text"]:
        raise source.bad(
            number,
            "answers",
            "the question has no answer; use --version_2_with_negative, or remove the row",
        )
    return {**row, "answers": answers}


def load_offset_tokenizer(args: Training) -> PreTrainedTokenizerBase:
    """Load a tokenizer that reports where tokens are in the text. Raises BadInput."""
    tokenizer = load_tokenizer(args)
    if not tokenizer.is_fast:
        raise BadInput(
            f"--task {args.task}: {type(tokenizer).__name__}, the tokenizer of "
            f"{args.model_name_or_path}, does not report where tokens are in the text; use a model "
            "with a tokenizer.json, or another task"
        )
    return tokenizer


def as_lists(answers: Any) -> dict[str, list]:
    """Answers as SQuAD on the Hub has them, from these or from a list of objects.

    Anything else is returned as answers without a text, which no check accepts.
    """
    if isinstance(answers, list) and all(isinstance(answer, dict) for answer in answers):
        names = ("text", "answer_start")
        return {name: [answer.get(name) for answer in answers] for name in names}
    return answers if isinstance(answers, dict) else {}


def _load(
    args: Training, tokenizer: PreTrainedTokenizerBase, splits: dict[str, Dataset]
) -> SquadTask:
    """The task on train and validation questions, with the columns of COLUMNS."""
    tokenizer.truncation_side = "right"  # windows are counted from the start of a context
    loaded = load_model(args, AutoModelForQuestionAnswering, tokenizer, **label_config())
    # Answers are counted from the left.
    inputs = agree_on_inputs(args, loaded.model, tokenizer, texts=2, may_pad_left=False)
    options = {"length": inputs.length, "stride": args.doc_stride, "segments": inputs.segments}
    if args.version_2_with_negative:
        options["unanswerable"] = True
    encoded = {
        split: data.encode(rows, cut_windows, tokenizer, **options)
        for split, rows in splits.items()
    }
    _warn_about_data(args, {split: splits[split] for split in ("train", "validation")})
    train, (validation, question_of) = encoded["train"], _numbered(encoded["validation"])
    unused = [name for name in (*SPANS, "part", "cls") if name in train.column_names]
    test: dict[str, Any] = {}
    if "test" in splits:
        test["test"], test["test_question_of"] = _numbered(encoded["test"])
        answers = [row["text"] for row in splits["test"]["answers"][:]]
        test |= {"test_questions": splits["test"], "test_labels": [*map("; ".join, answers)]}
    return SquadTask(
        **vars(loaded),
        train=train.remove_columns(unused),
        validation=validation,
        collator=partial(
            collate, collator=DataCollatorWithPadding(tokenizer, inputs.padding, inputs.length)
        ),
        questions=splits["validation"],
        question_of=question_of,
        metric=load_metric("squad"),
        unanswerable=args.version_2_with_negative,
        **test,
    )


def _numbered(windows: Dataset) -> tuple[Dataset, numpy.ndarray]:
    """Windows to evaluate with their numbers, and the question of each, int (windows,)."""
    part = windows["part"][:]
    numbered = windows.remove_columns("part").add_column("window", [*range(len(part))])
    return numbered, numpy.cumsum(numpy.equal(part, 0)) - 1


def _warn_about_data(args: Training, splits: dict[str, Dataset]) -> None:
    """Warn about texts, and answers that are nearly constant or start at the same character."""
    texts = TASKS["squad"].texts
    data_warnings.warn_about_texts(args, splits, texts, filled=("question",))
    rows = splits["validation"]["answers"][:]
    for name, key, none in (("answer", "text", ""), ("an answer at character", "answer_start", -1)):
        answers = [value for row in rows for value in {*row[key]} or {none}]
        data_warnings.warn_if_constant(args, "validation", answers, len(rows), name)


def cut_windows(
    batch: dict,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    stride: int,
    segments: bool,
    unanswerable: bool = False,
) -> dict:
    """Cut contexts into windows of `length` tokens whose starts are `stride` tokens apart.

    Returns the columns of `_windows` for all questions of the batch, and if some are `unanswerable`
    also `cls`, the position of CLS. Raises BadInput if a question leaves no room for its context.
    """
    rows: list[Row] = []
    columns = (batch[name] for name in ("question", "context", "answers"))
    for question, context, answers in zip(*columns, strict=True):
        question, space = _fit(question, tokenizer, length)
        step = min(stride, space)
        encoded = tokenizer(
            question,
            context,
            truncation="only_second",
            max_length=length,
            stride=space - step,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_token_type_ids=None if segments else False,  # None: if the tokenizer has them
        )
        rows += _windows(encoded, answers, step, tokenizer.cls_token_id)
    names = rows[0].keys() - (set() if unanswerable else {"cls"})
    return {name: [row[name] for row in rows] for name in rows[0] if name in names}


def _fit(question: str, tokenizer: PreTrainedTokenizerBase, length: int) -> tuple[str, int]:
    """Cut the question to 64 tokens; returns it and the number of tokens left for the context."""
    question = question.strip()
    encoded = tokenizer(question, return_offsets_mapping=True, add_special_tokens=False)
    if offsets := encoded["offset_mapping"][:QUESTION_TOKENS]:
        question = question[: offsets[-1][1]]
    tokens = len(tokenizer(question, add_special_tokens=False)["input_ids"])
    space = length - tokens - tokenizer.num_special_tokens_to_add(True)
    if space <= 0:
        raise BadInput(
            f"--max_seq_length {length}: the question {brief(question)!r} leaves no room for its "
            f"context; use {QUESTION_TOKENS + 32} or more"
        )
    return question, space


def _windows(
    encoded: BatchEncoding, answers: dict[str, list], step: int, cls_id: int | None
) -> Iterator[Row]:
    """The windows of one question in order, whose starts are `step` tokens apart.

    Each has the model's inputs, `begins` and `ends` (see SPANS), `part` (its number), `cls` (the
    position of CLS), and start_positions and end_positions: the tokens of the first answer, or CLS
    if there is none or the window does not contain all of it. CLS need not be first (XLNet); it is
    0 if the tokenizer has none.
    """
    texts = [encoded.sequence_ids(i) for i in range(len(encoded["input_ids"]))]
    # The positions of the context's tokens.
    parts = [numpy.array([part == 1 for part in text]).nonzero()[0] for text in texts]
    offsets = [numpy.array(encoded["offset_mapping"][i])[tokens] for i, tokens in enumerate(parts)]
    best_window = max_context([len(tokens) for tokens in parts], step)
    context = numpy.concatenate([*(part[:step] for part in offsets[:-1]), offsets[-1]])
    start, text = next(zip(answers["answer_start"], answers["text"], strict=True), (0, ""))
    stop = start + len(text)
    first_answer = ((context[:, 1] > start) & (context[:, 0] < stop)).nonzero()[0]
    for i, tokens in enumerate(parts):
        ids, answer = encoded["input_ids"][i], first_answer - i * step
        special = enumerate(zip(ids, texts[i], strict=True))
        cls = next((k for k, (id, text) in special if text is None and id == cls_id), 0)
        positions = [cls, cls]
        if len(answer) and answer[0] >= 0 and answer[-1] < len(tokens):
            positions = tokens[answer[[0, -1]]].tolist()
        begins, ends = numpy.full((2, len(ids)), -1)
        is_best = best_window[i * step :][: len(tokens)] == i
        begins[tokens] = numpy.where(is_best, offsets[i][:, 0], -1)
        ends[tokens] = offsets[i][:, 1]
        yield {
            **{name: encoded[name][i] for name in INPUTS if name in encoded},
            "begins": begins.tolist(),
            "ends": ends.tolist(),
            "part": i,
            "cls": cls,
            "start_positions": positions[0],
            "end_positions": positions[1],
        }


def max_context(counts: list[int], step: int) -> numpy.ndarray:
    """For each token of a context, the first window with the most context around it.

    This is token_is_max_context of run_squad.py. counts: tokens of each window; step: tokens from
    one start to the next. Returns int (tokens,).
    """
    most = numpy.full(step * (len(counts) - 1) + counts[-1], -numpy.inf)
    best = numpy.zeros(len(most), dtype=int)
    for i, count in enumerate(counts):
        window = slice(i * step, i * step + count)
        distance = numpy.arange(count)
        context = numpy.minimum(distance, distance[::-1]) + 0.01 * count
        better = context[: len(most[window])] > most[window]
        best[window][better] = i
        most[window][better] = context[: len(better)][better]
    return best


def collate(rows: list[Row], collator: DataCollatorWithPadding) -> Batch:
    """Pad windows and their spans to one length, with −1 for the spans."""
    batch = collator(
        [{name: value for name, value in row.items() if name not in SPANS} for row in rows]
    )
    width = batch["input_ids"].shape[1]
    spans = {}
    for name in SPANS:
        if name in rows[0]:
            tensors = [torch.tensor(row[name]) for row in rows]
            padded = pad_sequence(tensors, batch_first=True, padding_value=-1)
            spans[name] = F.pad(padded, (0, width - padded.shape[1]), value=-1)
    return {**batch, **spans}


def _window_losses(logits: Tensor, batch: Batch) -> Tensor:
    """The mean cross-entropy of each window's start and end, (n,)."""
    labels = torch.stack([batch["start_positions"], batch["end_positions"]], dim=1)
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return losses.view(-1, 2).mean(1)


def best_spans(logits: Tensor, batch: Batch) -> numpy.ndarray:
    """The best answer of each window, float64 (n, 5), or (n, 6) if `batch` has the column `cls`.

    The columns are the window's number, the answer's first character and the one after its last,
    its score, the score of CLS, and the window's loss. A score is the sum of two logits; it is
    −inf, and the answer empty, if the N_BEST starts and ends allow none.
    """
    values = logits.detach().cpu().double().numpy()
    begins, ends = (batch[name].cpu().numpy() for name in SPANS)
    best = numpy.argsort(-values, axis=-1, kind="stable")[..., :N_BEST]
    n = numpy.arange(len(best))[:, None, None]
    starts, stops = best[:, 0, :, None], best[:, 1, None, :]
    allowed = (begins[n, starts] >= 0) & (ends[n, stops] >= 0)
    allowed &= (starts <= stops) & (stops - starts < ANSWER_TOKENS)
    scores = numpy.where(allowed, values[n, 0, starts] + values[n, 1, stops], -numpy.inf)
    top = scores.reshape(len(best), -1).argmax(1)[:, None]
    first = numpy.where(allowed, begins[n, starts], 0)
    after = numpy.where(allowed, ends[n, stops], 0)
    chosen = (
        numpy.take_along_axis(column.reshape(len(best), -1), top, 1)[:, 0]
        for column in (first, after, scores)
    )
    null = [values[n[:, 0, 0], :, batch["cls"].cpu().numpy()].sum(-1)] if "cls" in batch else []
    losses = _window_losses(logits.detach(), batch).cpu()
    return numpy.stack([batch["window"].cpu(), *chosen, *null, losses], axis=1, dtype=float)
