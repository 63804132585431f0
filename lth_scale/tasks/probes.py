"""Measurements on a model and its tokenizer: what they accept, found by running them."""

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from lth_scale.config.errors import BadInput
from lth_scale.config.texts import first_line
from lth_scale.distributed.encoder import base_model

WORDS = "the cat sat on a mat and saw one good dog "
SHORTEST = 5  # tokens of a row: two texts of one token between CLS, SEP and SEP
LONGEST_RUN = 2048  # the most tokens that a model is run on
LONGEST_PADDED = 64
RELATIVE_SEGMENTS = ("funnel", "xlnet")  # use token types without embedding them


def special_tokens_around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer adds before and after a text."""
    bare = tokenizer(WORDS, add_special_tokens=False)["input_ids"]
    whole = tokenizer(WORDS, add_special_tokens=True)["input_ids"]
    count = len(whole) - len(bare)
    starts = [i for i in range(count + 1) if whole[i : i + len(bare)] == bare]
    before = starts[0] if bare and starts else (count + 1) // 2
    return whole[:before], whole[before + len(bare) :]


def adds_separator(tokenizer: PreTrainedTokenizerBase) -> bool:
    """True if the tokenizer puts a special token between two texts."""
    bare = tokenizer(WORDS, add_special_tokens=False)["input_ids"]
    pair = tokenizer(WORDS, WORDS)["input_ids"]
    return all(pair[i : i + 2 * len(bare)] != bare * 2 for i in range(len(pair)))


def has_segments(model: PreTrainedModel) -> bool:
    """True if the model takes `token_type_ids` and distinguishes at least two."""
    takes_them = "token_type_ids" in inspect.signature(model.forward).parameters
    has_table = (getattr(model.config, "type_vocab_size", 0) or 0) >= 2
    return takes_them and (has_table or model.config.model_type in RELATIVE_SEGMENTS)


def example(
    tokenizer: PreTrainedTokenizerBase, texts: int, length: int, segments: bool
) -> BatchEncoding:
    """A row of `length` tokens, shape (1, length), of one text or two."""
    options: dict[str, Any] = {} if segments else {"return_token_type_ids": False}
    pair = [WORDS * (length // 8 + 1)] * texts
    return tokenizer(*pair, truncation=True, max_length=length, return_tensors="pt", **options)


def position_tables(model: nn.Module) -> list[nn.Embedding]:
    """The embeddings of absolute positions, recognised by their names."""
    return [
        module
        for name, module in base_model(model).named_modules()
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding)
    ]


def longest_input(
    flag: str, model: PreTrainedModel, row: Callable[[int], Mapping[str, Any]], *limits: int
) -> int:
    """The largest number of tokens, within `limits`, that the model takes.

    It follows from config.json, the position embeddings, and running the model on `row(length)`,
    inputs of `length` tokens. Raises BadInput if the model takes none; `flag` names the model.
    """
    upper = min(*map(int, limits), *_declared_limits(model))
    longest = min(upper, LONGEST_RUN)
    error = run_error(model, row(longest))
    if error is None:
        return upper
    accepted, refused = 0, longest
    while refused - accepted > 1:
        middle = (accepted + refused) // 2
        if middle < SHORTEST or run_error(model, row(middle)):
            refused = middle
        else:
            accepted = middle
    if accepted == 0:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise BadInput(
            f"{flag}: {type(model).__name__} fails on its tokenizer's output ({reason}); use a "
            "text encoder with its own tokenizer"
        ) from None
    return accepted


def _declared_limits(model: PreTrainedModel) -> list[int]:
    """The most positions by config.json and by the position embeddings."""
    positions = getattr(model.config, "max_position_embeddings", None)
    limits = [positions] if isinstance(positions, int) and positions > 0 else []
    for table in position_tables(model):
        unused = 0 if table.padding_idx is None else 1 + table.padding_idx
        limits.append(table.num_embeddings - unused)
    return limits


def run_error(model: PreTrainedModel, inputs: Mapping[str, Any]) -> Exception | None:
    """The error that the model raises on these inputs, or None."""
    try:
        first_output(model, inputs)
    except Exception as error:  # an index out of range, shapes that differ, an unknown input …
        return error
    return None


def first_output(model: PreTrainedModel, inputs: Mapping[str, Any]) -> Tensor:
    """The first output without dropout; leaves the mode and the random state as they were."""
    training = model.training
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            return model.eval()(**inputs)[0]
        finally:
            model.train(training)


def padding_side(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    row: BatchEncoding,
    length: int,
    may_be_left: bool = True,
) -> str | None:
    """The side on which padding changes no output for a row, preferably the right; None if neither.

    Heads that look for the last token find it by config.pad_token_id: it is set to the tokenizer's
    if that makes the right side neutral.
    """
    if is_neutral(model, tokenizer, row, length, "right"):
        return "right"
    pad_token_id = getattr(model.config, "pad_token_id", None)
    model.config.pad_token_id = tokenizer.pad_token_id
    if is_neutral(model, tokenizer, row, length, "right"):
        return "right"
    model.config.pad_token_id = pad_token_id
    return "left" if may_be_left and is_neutral(model, tokenizer, row, length, "left") else None


def is_neutral(
    model: Any, tokenizer: PreTrainedTokenizerBase, row: BatchEncoding, length: int, side: str
) -> bool:
    """True if padding a row on this side, to `length` or 64 tokens, changes no output."""
    count = row["input_ids"].shape[1]
    padded_row = tokenizer.pad(
        copy.copy(row),
        "max_length",
        max_length=max(count, min(length, LONGEST_PADDED)),
        padding_side=side,
        return_tensors="pt",
    )
    if run_error(model, row) or run_error(model, padded_row):  # Reformer needs whole chunks
        return False
    alone, padded = first_output(model, row), first_output(model, padded_row)
    if padded.shape != alone.shape:  # one output per token
        padded = padded[:, :count] if side == "right" else padded[:, -count:]
    visible = alone.abs() < 1e4  # masked logits would dominate the scale
    if padded.shape != alone.shape:
        return False
    if not visible.any():  # NaN is reported when the whole network is tried
        return not alone.isfinite().any()
    return bool((padded - alone)[visible].abs().max() <= 1e-4 * alone[visible].abs().max())
