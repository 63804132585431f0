"""SQuAD v1.1: the span of a context that answers a question (as in BERT's run_squad.py)."""

from collections.abc import Iterator
from dataclasses import dataclass
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
from lth_scale.tasks import data, data_warnings
from lth_scale.tasks.inputs import agree_on_inputs
from lth_scale.tasks.loading import load_model, load_tokenizer
from lth_scale.tasks.metrics import load_metric
from lth_scale.tasks.metrics.squad.squad import exact_match, f1
from lth_scale.tasks.registry import TASKS
from lth_scale.tasks.task import Batch, LoadedTask, Predictions, Row, label_config
from lth_scale.tasks.trivial import Trivial, constant_answer_scores

COLUMNS = {"context": "string", "question": "string", "answers": "answers"}
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# The characters at which an answer may begin and end with a token; −1 for none.
SPANS = ("begins", "ends")
# max_query_length, n_best_size and max_answer_length in run_squad.py
QUESTION_TOKENS, N_BEST, ANSWER_TOKENS = 64, 20, 30
# The logit of padding: no softmax sees it, and 0 · (PADDING − PADDING) is 0, in fp16 too.
PADDING = -1e4


@dataclass(kw_only=True)
class SquadTask(LoadedTask):
    """Question answering.

    questions: the validation questions. question_of: int (windows,), the question of each window.
    """

    questions: Dataset
    question_of: numpy.ndarray
    metric: Any

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
        """F1 and exact match of each question's best window, and the mean loss of all windows."""
        given, accepted = self._answers(rows)
        percent = self.metric.compute(predictions=given, references=accepted)
        scores = {name: percent[name] / 100 for name in TASKS["squad"].metrics}
        return {**scores, "loss": float(rows[:, 4].mean())}

    def predictions(self, table: numpy.ndarray, rows: Dataset, order: numpy.ndarray) -> Predictions:
        """`f1` (float32) and `exact_match` (int16, 0 or 1) of each question, not of each window."""
        given, accepted = self._answers(table)
        pairs = [*zip(given, accepted, strict=True)]
        kept = {
            name: numpy.array(
                [max(metric(text, answer) for answer in answers) for text, answers in pairs], kind
            )
            for name, metric, kind in (("f1", f1, "float32"), ("exact_match", exact_match, "int16"))
        }
        return Predictions(kept, len(given) > 1 and len({*given}) == 1)

    def trivial(self) -> Trivial:
        """The best constant answer."""
        return constant_answer_scores([row["text"] for row in self.questions["answers"][:]])

    def _answers(self, rows: numpy.ndarray) -> tuple[list[str], list[list[str]]]:
        """The answer given to each question, in their order, and those that are accepted."""
        # A question's best window first; among ties the earlier one.
        rows = rows[numpy.lexsort((rows[:, 0], -rows[:, 3]))]
        questions = self.question_of[rows[:, 0].astype(int)]
        answered, best = numpy.unique(questions, return_index=True)
        asked = self.questions.select(answered)
        spans = zip(asked["context"], rows[best, 1:3].astype(int), strict=True)
        given = [context[start:stop].strip() for context, (start, stop) in spans]
        return given, [answers["text"] for answers in asked["answers"]]


def load_squad(args: Training) -> SquadTask:
    """Load SQuAD; --max_train_samples and --max_eval_samples count questions. Raises BadInput."""
    tokenizer = load_tokenizer(args)
    if not tokenizer.is_fast:
        raise BadInput(
            f"--task {args.task}: {type(tokenizer).__name__}, the tokenizer of "
            f"{args.model_name_or_path}, does not report where tokens are in the text; use a model "
            "with a tokenizer.json, or another task"
        )
    tokenizer.truncation_side = "right"  # windows are counted from the start of a context
    splits = data.load_splits(args, COLUMNS)
    loaded = load_model(args, AutoModelForQuestionAnswering, tokenizer, **label_config())
    # Answers are counted from the left.
    inputs = agree_on_inputs(args, loaded.model, tokenizer, texts=2, may_pad_left=False)
    options = {"length": inputs.length, "stride": args.doc_stride, "segments": inputs.segments}
    train, validation = (
        data.encode(splits[split], cut_windows, tokenizer, **options)
        for split in TASKS["squad"].splits
    )
    _warn_about_data(args, splits)
    part = validation["part"][:]
    validation = validation.remove_columns("part").add_column("window", [*range(len(part))])
    return SquadTask(
        **vars(loaded),
        train=train.remove_columns([*SPANS, "part"]),
        validation=validation,
        collator=partial(
            collate, collator=DataCollatorWithPadding(tokenizer, inputs.padding, inputs.length)
        ),
        questions=splits["validation"],
        question_of=numpy.cumsum(numpy.equal(part, 0)) - 1,
        metric=load_metric("squad"),
    )


def _warn_about_data(args: Training, splits: dict[str, Dataset]) -> None:
    """Warn about texts, and answers that are nearly constant or start at the same character."""
    texts = TASKS["squad"].texts
    data_warnings.warn_about_texts(args, splits, texts, filled=("question",))
    rows = splits["validation"]["answers"][:]
    for name, key in (("answer", "text"), ("an answer at character", "answer_start")):
        answers = [value for row in rows for value in {*row[key]}]
        data_warnings.warn_if_constant(args, "validation", answers, len(rows), name)


def cut_windows(
    batch: dict, tokenizer: PreTrainedTokenizerBase, length: int, stride: int, segments: bool
) -> dict:
    """Cut contexts into windows of `length` tokens whose starts are `stride` tokens apart.

    Returns the columns of `_windows` for all questions of the batch. Raises BadInput if a question
    leaves no room for its context.
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
    return {name: [row[name] for row in rows] for name in rows[0]}


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

    Each has the model's inputs, `begins` and `ends` (see SPANS), `part` (its number), and
    start_positions and end_positions: the tokens of the first answer, or CLS if the window does not
    contain all of it. CLS need not be first (XLNet); it is 0 if the tokenizer has none.
    """
    texts = [encoded.sequence_ids(i) for i in range(len(encoded["input_ids"]))]
    # The positions of the context's tokens.
    parts = [numpy.array([part == 1 for part in text]).nonzero()[0] for text in texts]
    offsets = [numpy.array(encoded["offset_mapping"][i])[tokens] for i, tokens in enumerate(parts)]
    best_window = max_context([len(tokens) for tokens in parts], step)
    context = numpy.concatenate([*(part[:step] for part in offsets[:-1]), offsets[-1]])
    start = answers["answer_start"][0]
    stop = start + len(answers["text"][0])
    first_answer = ((context[:, 1] > start) & (context[:, 0] < stop)).nonzero()[0]
    for i, tokens in enumerate(parts):
        ids, answer = encoded["input_ids"][i], first_answer - i * step
        if len(answer) and answer[0] >= 0 and answer[-1] < len(tokens):
            positions = tokens[answer[[0, -1]]].tolist()
        else:
            special = enumerate(zip(ids, texts[i], strict=True))
            cls = (k for k, (id, text) in special if text is None and id == cls_id)
            positions = [next(cls, 0)] * 2
        begins, ends = numpy.full((2, len(ids)), -1)
        is_best = best_window[i * step :][: len(tokens)] == i
        begins[tokens] = numpy.where(is_best, offsets[i][:, 0], -1)
        ends[tokens] = offsets[i][:, 1]
        yield {
            **{name: encoded[name][i] for name in INPUTS if name in encoded},
            "begins": begins.tolist(),
            "ends": ends.tolist(),
            "part": i,
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
    """The best answer of each window, float64 (n, 5).

    The columns are the window's number, the answer's first character and the one after its last,
    its score and the window's loss. The score is the sum of two logits; it is −inf, and the answer
    empty, if the N_BEST starts and ends allow none.
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
    losses = _window_losses(logits.detach(), batch).cpu()
    return numpy.stack([batch["window"].cpu(), *chosen, losses], axis=1, dtype=float)
