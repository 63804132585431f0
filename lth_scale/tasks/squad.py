"""SQuAD v1.1: the span of a context that answers a question, in windows as in BERT's release (run_squad.py)."""

from functools import partial

import numpy
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForQuestionAnswering,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
)

from lth_scale.config.arguments import Training
from lth_scale.config.errors import BadInput
from lth_scale.config.texts import brief
from lth_scale.distributed import compat
from lth_scale.tasks import data, data_warnings, metrics, tokenization
from lth_scale.tasks.base import Batch, Task, labelled
from lth_scale.tasks.loading import load_model, load_tokenizer

COLUMNS = {"context": "string", "question": "string", "answers": "answers"}
QUESTION_TOKENS, BEST, ANSWER_TOKENS = (
    64,
    20,
    30,
)  # run_squad.py: max_query_length, n_best_size, max_answer_length
PADDING = (
    -1e4
)  # a logit that no softmax sees, finite in fp16 too, so that 0 · (PADDING − PADDING) is 0
SPANS = ("begins", "ends")  # characters where an answer may begin, or end, with a token; else −1
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def windows(
    batch: dict, tokenizer: PreTrainedTokenizerBase, length: int, stride: int, segments: bool
) -> dict:
    """The columns of `cut` for each window of each question of the batch, in order. Raises BadInput."""
    rows = zip(batch["question"], batch["context"], batch["answers"], strict=True)
    found = [window for row in rows for window in cut(*row, tokenizer, length, stride, segments)]
    return {name: [window[name] for window in found] for name in found[0]}


def fit(question: str, tokenizer: PreTrainedTokenizerBase, length: int) -> tuple[str, int]:
    """(the question cut to 64 tokens, how many tokens of context fit beside it). Raises BadInput where none does."""
    question = question.strip()
    offsets = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)[
        "offset_mapping"
    ]
    question = question[: offsets[:QUESTION_TOKENS][-1][1]] if offsets else question
    taken = len(
        tokenizer(question, add_special_tokens=False)["input_ids"]
    ) + tokenizer.num_special_tokens_to_add(True)
    if taken >= length:
        raise BadInput(
            f"--max_seq_length {length}: the question {brief(question)!r} leaves no room for its context; "
            f"give {QUESTION_TOKENS + 32} or more"
        )
    return question, length - taken


def cut(
    question: str,
    context: str,
    answers: dict,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    stride: int,
    segments: bool,
) -> list[dict]:
    """The windows of at most `length` tokens over one context, whose starts are `stride` tokens apart, as rows.

    Besides the model's inputs: `begins` and `ends` (see SPANS); start_positions and end_positions, the tokens of the
    first answer, or that of CLS where the window has not all of it; `part`, the window's number.
    """
    question, room = fit(question, tokenizer, length)
    step = min(stride, room)
    encoded = tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=length,
        stride=room - step,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_token_type_ids=None if segments else False,  # None: where the tokenizer has them
    )
    inside = [
        numpy.equal(encoded.sequence_ids(i), 1).nonzero()[0]
        for i in range(len(encoded["input_ids"]))
    ]
    offsets = [numpy.array(encoded["offset_mapping"][i])[where] for i, where in enumerate(inside)]
    whole = numpy.concatenate([*(part[:step] for part in offsets[:-1]), offsets[-1]])
    owner = widest([len(where) for where in inside], step)
    start, stop = answers["answer_start"][0], answers["answer_start"][0] + len(answers["text"][0])
    answer = ((whole[:, 1] > start) & (whole[:, 0] < stop)).nonzero()[0]
    found = []
    for i, where in enumerate(inside):
        begins, ends = numpy.full((2, len(encoded["input_ids"][i])), -1)
        begins[where] = numpy.where(owner[i * step :][: len(where)] == i, offsets[i][:, 0], -1)
        ends[where] = offsets[i][:, 1]
        has_all = len(answer) and i * step <= answer[0] and answer[-1] < i * step + len(where)
        cls = place_of_cls(encoded["input_ids"][i], encoded.sequence_ids(i), tokenizer)
        first, last = where[answer[[0, -1]] - i * step].tolist() if has_all else (cls, cls)
        inputs = {name: encoded[name][i] for name in INPUTS if name in encoded}
        found.append(
            {
                **inputs,
                "begins": begins.tolist(),
                "ends": ends.tolist(),
                "part": i,
                "start_positions": first,
                "end_positions": last,
            }
        )
    return found


def place_of_cls(
    ids: list[int], sequence_ids: list[int | None], tokenizer: PreTrainedTokenizerBase
) -> int:
    """Where CLS is, which need not be first (XLNet's is last), or 0 where the tokenizer has none."""
    places = zip(ids, sequence_ids, strict=True)
    return next(
        (i for i, (id, text) in enumerate(places) if text is None and id == tokenizer.cls_token_id),
        0,
    )


def widest(counts: list[int], step: int) -> numpy.ndarray:
    """For each token of a context the window with the most context around it (token_is_max_context), the first of ties.

    counts: tokens of each window; step: tokens from one start to the next. Returns int (tokens,).
    """
    most = numpy.full(step * (len(counts) - 1) + counts[-1], -numpy.inf)
    owner = numpy.zeros(len(most), dtype=int)
    for i, count in enumerate(counts):
        here = slice(i * step, i * step + count)
        around = numpy.minimum(numpy.arange(count), numpy.arange(count)[::-1]) + 0.01 * count
        more = around[: len(most[here])] > most[here]
        owner[here][more], most[here][more] = i, around[: len(more)][more]
    return owner


def collate(
    rows: list[dict],
    tokenizer: PreTrainedTokenizerBase,
    padding: str = "longest",
    length: int | None = None,
) -> Batch:
    """Windows as tensors (n, longest), or (n, length) where padding is "max_length".

    `begins` and `ends` are padded with −1.
    """
    flat = [{name: value for name, value in row.items() if name not in SPANS} for row in rows]
    spans = {name: [torch.tensor(row[name]) for row in rows] for name in SPANS if name in rows[0]}
    padded = {
        name: pad_sequence(tensors, batch_first=True, padding_value=-1)
        for name, tensors in spans.items()
    }
    inputs = DataCollatorWithPadding(tokenizer, padding, length)(flat)
    width = inputs["input_ids"].shape[1]
    return {
        **inputs,
        **{
            name: F.pad(each, (0, width - each.shape[1]), value=-1) for name, each in padded.items()
        },
    }


def window_losses(logits: Tensor, batch: Batch) -> Tensor:
    """(n,): the mean cross-entropy of each window's start and end."""
    labels = torch.stack([batch["start_positions"], batch["end_positions"]], dim=1)
    return (
        F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        .view(-1, 2)
        .mean(1)
    )


def loss(model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """(mean cross-entropy, fp32 start and end logits (n, 2, length), those of padding at PADDING)."""
    output = model(**{name: batch[name] for name in INPUTS if name in batch})
    logits = torch.stack([output.start_logits, output.end_logits], dim=1).float()
    if "attention_mask" in batch:  # FNet takes none, and has rows of one length
        logits = logits.masked_fill(batch["attention_mask"][:, None] == 0, PADDING)
    return window_losses(logits, batch).mean(), logits


def best_spans(logits: Tensor, batch: Batch) -> numpy.ndarray:
    """float64 (n, 5): each window's number, its best answer's first character and the one after its last, score, loss.

    The score is the sum of two logits, −inf (and the answer empty) where the best starts and ends allow no answer.
    """
    values = logits.detach().cpu().double().numpy()
    begins, ends = (batch[name].cpu().numpy() for name in SPANS)
    best = numpy.argsort(-values, axis=-1, kind="stable")[..., :BEST]
    n, starts, stops = (
        numpy.arange(len(best))[:, None, None],
        best[:, 0, :, None],
        best[:, 1, None, :],
    )
    allowed = (
        (begins[n, starts] >= 0)
        & (ends[n, stops] >= 0)
        & (starts <= stops)
        & (stops - starts < ANSWER_TOKENS)
    )
    scores = numpy.where(allowed, values[n, 0, starts] + values[n, 1, stops], -numpy.inf)
    top = scores.reshape(len(best), -1).argmax(1)[:, None]
    spans = (
        scores,
        numpy.where(allowed, begins[n, starts], 0),
        numpy.where(allowed, ends[n, stops], 0),
    )
    score, first, after = (
        numpy.take_along_axis(each.reshape(len(best), -1), top, 1)[:, 0] for each in spans
    )
    losses = window_losses(logits.detach(), batch).cpu()
    return numpy.stack([batch["window"].cpu(), first, after, score, losses], axis=1, dtype=float)


def caution(args: Training, splits: dict[str, Dataset]) -> None:
    """Warn of texts, and of answers that are nearly all the same, or begin at the same place."""
    data_warnings.texts(args, splits, ("question", "context"), filled=("question",))
    rows = splits["validation"]["answers"][:]
    for what, key in (("answer", "text"), ("an answer at character", "answer_start")):
        data_warnings.answers(
            args, "validation", [value for row in rows for value in {*row[key]}], len(rows), what
        )


def load_squad(args: Training) -> Task:
    """Question answering with a new head; --max_train_samples and so on count questions. Raises BadInput."""
    tokenizer = load_tokenizer(args)
    tokenization.check_offsets(args, tokenizer)
    tokenizer.truncation_side = "right"  # windows are counted from a context's beginning
    limits = {"train": args.max_train_samples, "validation": args.max_eval_samples}
    splits = data.load_splits(args, ("rajpurkar/squad", None), COLUMNS, None, limits)
    loaded = load_model(args, AutoModelForQuestionAnswering, tokenizer, **labelled())
    model = loaded.model
    inputs = tokenization.agree(args, model, tokenizer, texts=2)
    options = {"length": inputs.length, "stride": args.doc_stride, "segments": inputs.segments}
    train, validation = (
        data.encode(splits[name], windows, tokenizer, **options) for name in limits
    )
    caution(args, splits)
    validation = validation.add_column("window", list(range(len(validation))))
    questions, question_of = (
        splits["validation"],
        numpy.cumsum(numpy.equal(validation["part"][:], 0)) - 1,
    )
    metric = metrics.load_metric("squad")

    def score(rows: numpy.ndarray) -> dict[str, float]:
        rows = rows[
            numpy.lexsort((rows[:, 0], -rows[:, 3]))
        ]  # a question's best window first, the earlier of ties
        asked, first = numpy.unique(question_of[rows[:, 0].astype(int)], return_index=True)
        asked = questions.select(asked)
        texts = [
            row["context"][a:b].strip()
            for row, (a, b) in zip(asked, rows[first, 1:3].astype(int), strict=True)
        ]
        found = metric.compute(
            predictions=texts, references=[row["answers"]["text"] for row in asked]
        )
        return {name: found[name] / 100 for name in ("f1", "exact_match")} | {
            "loss": float(rows[:, 4].mean())
        }

    pad = partial(collate, tokenizer=tokenizer, padding=inputs.padding, length=inputs.length)
    return Task(
        model=model,
        prunable=loaded.prunable,
        base_sha256=loaded.base_sha256,
        remark=loaded.remark,
        tokenizer=tokenizer,
        revision=compat.commit_hash(model.config),
        train=train.remove_columns([*SPANS, "part"]),
        validation=validation.remove_columns("part"),
        collate=pad,
        eval_collate=pad,
        loss=loss,
        rows=best_spans,
        score=score,
        grouped=True,
    )
