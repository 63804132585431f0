"""SQuAD v1.1: the span of a context that answers a question (as in BERT's run_squad.py)."""

from dataclasses import dataclass
from typing import Any

import numpy
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForQuestionAnswering, DataCollatorWithPadding

from lth_scale.config.arguments import Training
from lth_scale.tasks import data, data_warnings
from lth_scale.tasks.inputs import agree_on_inputs
from lth_scale.tasks.loading import load_model, load_tokenizer
from lth_scale.tasks.metrics import load_metric
from lth_scale.tasks.registry import TASKS
from lth_scale.tasks.squad_windows import INPUTS, SPANS, cut_windows
from lth_scale.tasks.task import Batch, LoadedTask, Row, label_config
from lth_scale.tasks.tokenizer_checks import check_offsets

COLUMNS = {"context": "string", "question": "string", "answers": "answers"}
N_BEST, ANSWER_TOKENS = 20, 30  # n_best_size and max_answer_length in run_squad.py
# The logit of padding: no softmax sees it, and 0 · (PADDING − PADDING) is 0, in fp16 too.
PADDING = -1e4


@dataclass(kw_only=True)
class SquadTask(LoadedTask):
    """Question answering.

    questions: the validation questions. question_of: int (windows,), the question of each window.
    """

    collator: DataCollatorWithPadding
    questions: Dataset
    question_of: numpy.ndarray
    metric: Any

    def collate(self, rows: list[Row]) -> Batch:
        """Windows as tensors of shape (n, longest) or (n, length)."""
        return collate(rows, self.collator)

    eval_collate = collate

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy, and fp32 start and end logits (n, 2, length), PADDING for padding."""
        output = model(**{name: batch[name] for name in INPUTS if name in batch})
        logits = torch.stack([output.start_logits, output.end_logits], dim=1).float()
        if "attention_mask" in batch:  # FNet takes none, and its rows have one length
            logits = logits.masked_fill(batch["attention_mask"][:, None] == 0, PADDING)
        return window_losses(logits, batch).mean(), logits

    def rows(self, outputs: Tensor, batch: Batch) -> numpy.ndarray:
        """See `best_spans`."""
        return best_spans(outputs, batch)

    def score(self, rows: numpy.ndarray) -> dict[str, float]:
        """F1 and exact match of each question's best window, and the mean loss of all windows."""
        # A question's best window first; among ties the earlier one.
        rows = rows[numpy.lexsort((rows[:, 0], -rows[:, 3]))]
        questions = self.question_of[rows[:, 0].astype(int)]
        answered, best = numpy.unique(questions, return_index=True)
        asked = self.questions.select(answered)
        spans = rows[best, 1:3].astype(int)
        texts = [
            row["context"][start:stop].strip()
            for row, (start, stop) in zip(asked, spans, strict=True)
        ]
        answers = [row["answers"]["text"] for row in asked]
        percent = self.metric.compute(predictions=texts, references=answers)
        scores = {name: percent[name] / 100 for name in TASKS["squad"].metrics}
        return {**scores, "loss": float(rows[:, 4].mean())}


def load_squad(args: Training) -> SquadTask:
    """Load SQuAD; --max_train_samples and --max_eval_samples count questions. Raises BadInput."""
    tokenizer = load_tokenizer(args)
    check_offsets(args.task, args.model_name_or_path, tokenizer)
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
    warn_about_data(args, splits)
    return SquadTask(
        **vars(loaded),
        train=train.remove_columns([*SPANS, "part"]),
        validation=validation.add_column("window", list(range(len(validation)))).remove_columns(
            "part"
        ),
        collator=DataCollatorWithPadding(tokenizer, inputs.padding, inputs.length),
        questions=splits["validation"],
        question_of=numpy.cumsum(numpy.equal(validation["part"][:], 0)) - 1,
        metric=load_metric("squad"),
    )


def warn_about_data(args: Training, splits: dict[str, Dataset]) -> None:
    """Warn about texts, and answers that are nearly constant or start at the same character."""
    kind = TASKS["squad"]
    data_warnings.warn_about_texts(args, splits, kind.texts, filled=("question",))
    rows = splits["validation"]["answers"][:]
    for name, key in (("answer", "text"), ("an answer at character", "answer_start")):
        answers = [value for row in rows for value in {*row[key]}]
        data_warnings.warn_if_constant(args, "validation", answers, len(rows), name)


def collate(rows: list[Row], collator: DataCollatorWithPadding) -> Batch:
    """Pad windows and their spans to one length, with −1 for the spans."""
    inputs = collator(
        [{name: value for name, value in row.items() if name not in SPANS} for row in rows]
    )
    width = inputs["input_ids"].shape[1]
    spans = {}
    for name in SPANS:
        if name in rows[0]:
            tensors = [torch.tensor(row[name]) for row in rows]
            padded = pad_sequence(tensors, batch_first=True, padding_value=-1)
            spans[name] = F.pad(padded, (0, width - padded.shape[1]), value=-1)
    return {**inputs, **spans}


def window_losses(logits: Tensor, batch: Batch) -> Tensor:
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
    columns = (
        scores,
        numpy.where(allowed, begins[n, starts], 0),
        numpy.where(allowed, ends[n, stops], 0),
    )
    score, first, after = (
        numpy.take_along_axis(column.reshape(len(best), -1), top, 1)[:, 0] for column in columns
    )
    losses = window_losses(logits.detach(), batch).cpu()
    return numpy.stack([batch["window"].cpu(), first, after, score, losses], axis=1, dtype=float)
