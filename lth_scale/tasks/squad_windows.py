"""SQuAD's windows: overlapping parts of a context with the question (BERT's run_squad.py)."""

from dataclasses import dataclass
from typing import Any

import numpy
from transformers import BatchEncoding, PreTrainedTokenizerBase

from lth_scale.config.errors import BadInput
from lth_scale.config.texts import brief

QUESTION_TOKENS = 64  # max_query_length in run_squad.py
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# The characters at which an answer may begin and end with a token; −1 for none.
SPANS = ("begins", "ends")


@dataclass(frozen=True)
class Windows:
    """Cuts contexts into windows of `length` tokens whose starts are `stride` tokens apart."""

    tokenizer: PreTrainedTokenizerBase
    length: int
    stride: int
    segments: bool

    def rows(self, question: str, context: str, answers: dict[str, list]) -> list[dict]:
        """The windows of one question as rows, in order.

        Each has the model's inputs, `begins` and `ends` (see SPANS), `part` (its number), and
        start_positions and end_positions: the tokens of the first answer, or CLS if the window does
        not contain all of it. Raises BadInput if the question leaves no room for the context.
        """
        question, space = self.fit(question)
        step = min(self.stride, space)
        encoded = self.encode(question, context, overlap=space - step)
        parts = [
            numpy.array([text == 1 for text in encoded.sequence_ids(i)]).nonzero()[0]
            for i in range(len(encoded["input_ids"]))
        ]
        offsets = [
            numpy.array(encoded["offset_mapping"][i])[tokens] for i, tokens in enumerate(parts)
        ]
        best_window = max_context([len(tokens) for tokens in parts], step)
        first_answer = answer_tokens(answers, offsets, step)
        rows = []
        for i, tokens in enumerate(parts):
            begins, ends = numpy.full((2, len(encoded["input_ids"][i])), -1)
            is_best = best_window[i * step :][: len(tokens)] == i
            begins[tokens] = numpy.where(is_best, offsets[i][:, 0], -1)
            ends[tokens] = offsets[i][:, 1]
            start, end = self.positions(encoded, i, tokens, first_answer - i * step)
            rows.append(
                {
                    **{name: encoded[name][i] for name in INPUTS if name in encoded},
                    "begins": begins.tolist(),
                    "ends": ends.tolist(),
                    "part": i,
                    "start_positions": start,
                    "end_positions": end,
                }
            )
        return rows

    def fit(self, question: str) -> tuple[str, int]:
        """Cut the question to 64 tokens; returns it and the number of tokens left for the context.

        Raises BadInput if none is left.
        """
        options: dict[str, Any] = {"add_special_tokens": False}
        question = question.strip()
        encoded = self.tokenizer(question, return_offsets_mapping=True, **options)
        offsets = encoded["offset_mapping"][:QUESTION_TOKENS]
        question = question[: offsets[-1][1]] if offsets else question
        tokens = len(self.tokenizer(question, **options)["input_ids"])
        space = self.length - tokens - self.tokenizer.num_special_tokens_to_add(True)
        if space <= 0:
            raise BadInput(
                f"--max_seq_length {self.length}: the question {brief(question)!r} leaves no room "
                f"for its context; use {QUESTION_TOKENS + 32} or more"
            )
        return question, space

    def encode(self, question: str, context: str, overlap: int) -> BatchEncoding:
        """The windows as the tokenizer cuts them, with the offsets of their tokens."""
        return self.tokenizer(
            question,
            context,
            truncation="only_second",
            max_length=self.length,
            stride=overlap,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            # None: if the tokenizer has them.
            return_token_type_ids=None if self.segments else False,
        )

    def positions(
        self, encoded: BatchEncoding, i: int, tokens: numpy.ndarray, answer: numpy.ndarray
    ) -> tuple[int, int]:
        """First and last token of the answer in window i, or CLS twice if it is not all in there.

        tokens: positions of the context's tokens. answer: indices into them.
        """
        if len(answer) and answer[0] >= 0 and answer[-1] < len(tokens):
            start, end = tokens[answer[[0, -1]]].tolist()
            return start, end
        cls = cls_position(encoded["input_ids"][i], encoded.sequence_ids(i), self.tokenizer)
        return cls, cls


def cut_windows(
    batch: dict, tokenizer: PreTrainedTokenizerBase, length: int, stride: int, segments: bool
) -> dict:
    """The columns of `Windows.rows` for all questions of the batch. Raises BadInput."""
    windows = Windows(tokenizer, length, stride, segments)
    questions = zip(batch["question"], batch["context"], batch["answers"], strict=True)
    rows = [row for question in questions for row in windows.rows(*question)]
    return {name: [row[name] for row in rows] for name in rows[0]}


def answer_tokens(
    answers: dict[str, list], offsets: list[numpy.ndarray], step: int
) -> numpy.ndarray:
    """Indices of a context's tokens in the first answer. offsets: those of each window's tokens."""
    all_offsets = numpy.concatenate([*(part[:step] for part in offsets[:-1]), offsets[-1]])
    start = answers["answer_start"][0]
    stop = start + len(answers["text"][0])
    return ((all_offsets[:, 1] > start) & (all_offsets[:, 0] < stop)).nonzero()[0]


def cls_position(
    ids: list[int], sequence_ids: list[int | None], tokenizer: PreTrainedTokenizerBase
) -> int:
    """The position of CLS, which need not be the first (XLNet), or 0 if the tokenizer has none."""
    tokens = enumerate(zip(ids, sequence_ids, strict=True))
    return next((i for i, (id, text) in tokens if text is None and id == tokenizer.cls_token_id), 0)


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
