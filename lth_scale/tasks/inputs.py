"""How texts become the inputs of a model, found by running it with its tokenizer."""

import copy
import inspect
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    BatchEncoding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lth_scale.config.arguments import Training
from lth_scale.config.errors import BadInput, warn
from lth_scale.config.texts import first_line
from lth_scale.distributed.pieces import base_model
from lth_scale.tasks.tokenizer import SHORTEST

WORDS = "the cat sat on a mat and saw one good dog "
LONGEST_RUN = 2048  # the most tokens that a model is run on
LONGEST_PADDED = 64
RELATIVE_SEGMENTS = ("funnel", "xlnet")  # use token types without embedding them


@dataclass(frozen=True)
class Inputs:
    """The form of a model's inputs.

    length: the most tokens of a row. segments: whether two texts get different token_type_ids.
    padding: "longest" of a batch, or "max_length" if padding changes the model's outputs.
    """

    length: int
    segments: bool
    padding: str


def agree_on_inputs(
    args: Training,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: int = 1,
    *,
    equal_lengths: bool = False,
    may_pad_left: bool = True,
) -> Inputs:
    """Find the inputs that the model takes for rows of one text or two, by running it on a few.

    Sets the side of padding on the tokenizer, and the pad token on the model where its head needs
    it. equal_lengths: rows are never padded; only the encoder is run, because the product with a
    whole vocabulary would cost more. Raises BadInput if the model takes no row.
    """
    flag = f"--model_name_or_path {args.model_name_or_path}"
    names = [name for name in tokenizer.model_input_names if name != "attention_mask"]
    if "attention_mask" in inspect.signature(model.forward).parameters:
        names.append("attention_mask")
    if {*names} != {*tokenizer.model_input_names}:
        tokenizer.model_input_names = names
    _warn_about_tokenizer(flag, model, tokenizer, texts)
    segments = has_segments(model)
    network: Any = base_model(model) if equal_lengths else model

    def row(length: int) -> BatchEncoding:
        words = [WORDS * (length // 8 + 1)] * texts
        types = None if segments else False
        return tokenizer(
            *words,
            truncation=True,
            max_length=length,
            return_tensors="pt",
            return_token_type_ids=types,
        )

    length = longest_input(flag, network, row, args.max_seq_length, tokenizer.model_max_length)
    if length < args.max_seq_length:
        warn(f"--max_seq_length {args.max_seq_length} is more than the model takes; using {length}")
    # The shortest row, in which padding is nearest to the text.
    shortest = row(tokenizer.num_special_tokens_to_add(pair=texts == 2) + texts)
    side = _padding_side(network, tokenizer, shortest, length, may_pad_left)
    tokenizer.padding_side = side or "right"
    if side is None and not equal_lengths:
        warn(
            f"{type(model).__name__} gives other scores if a row is padded; all rows are padded to "
            f"{length} tokens"
        )
    return Inputs(length, segments, "longest" if side else "max_length")


def _warn_about_tokenizer(
    flag: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: int
) -> None:
    """Warn about another pad id, missing special tokens, lost emoji, and code that is not run."""
    pad, tables = tokenizer.pad_token_id, _position_tables(model)
    ids = [getattr(model.config, "pad_token_id", None), *(table.padding_idx for table in tables)]
    if others := [id for id in ids if id not in (None, pad)]:  # as RoBERTa counts positions
        warn(
            f"{flag}: its config.json or its positions take {others[0]} as the id of padding, and "
            f"its tokenizer pads with {pad}: if a text contains {others[0]}, positions may shift; "
            "use the model's own tokenizer"
        )
    before, after = special_tokens_around(tokenizer)
    is_encoder = type(model.config) in MODEL_FOR_MASKED_LM_MAPPING
    lacks_cls = tokenizer.cls_token_id not in [None, *before, *after]
    if lacks_cls or (is_encoder and not before + after):
        warn(
            f"{flag}: its tokenizer does not add {tokenizer.cls_token or '[CLS]'}, which encoders "
            "are pre-trained with and heads read; save the tokenizer with its post-processor"
        )
    elif texts == 2 and not _adds_separator(tokenizer):
        warn(
            f"{flag}: its tokenizer adds no token between two texts, so they run into each other; "
            "save it with a post-processor that does"
        )
    if getattr(tokenizer, "normalization", False) and getattr(tokenizer, "demojizer", True) is None:
        warn(f"{flag}: its tokenizer does not convert emoji; pip install emoji==0.6.0")
    for part, settings in ((model, model.config.to_dict()), (tokenizer, tokenizer.init_kwargs)):
        if settings.get("auto_map"):
            warn(
                f"{flag}: its own code (auto_map) is not run; it is loaded as transformers' "
                f"{type(part).__name__}"
            )


def special_tokens_around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer adds before and after a text."""
    bare = tokenizer(WORDS, add_special_tokens=False)["input_ids"]
    whole = tokenizer(WORDS, add_special_tokens=True)["input_ids"]
    count = len(whole) - len(bare)
    starts = [i for i in range(count + 1) if whole[i : i + len(bare)] == bare]
    before = starts[0] if bare and starts else (count + 1) // 2
    return whole[:before], whole[before + len(bare) :]


def _adds_separator(tokenizer: PreTrainedTokenizerBase) -> bool:
    bare = tokenizer(WORDS, add_special_tokens=False)["input_ids"]
    pair = tokenizer(WORDS, WORDS)["input_ids"]
    return all(pair[i : i + 2 * len(bare)] != bare * 2 for i in range(len(pair)))


def has_segments(model: PreTrainedModel) -> bool:
    """True if the model takes `token_type_ids` and distinguishes at least two."""
    takes_them = "token_type_ids" in inspect.signature(model.forward).parameters
    has_table = (getattr(model.config, "type_vocab_size", 0) or 0) >= 2
    return takes_them and (has_table or model.config.model_type in RELATIVE_SEGMENTS)


def _position_tables(model: nn.Module) -> list[nn.Embedding]:
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
    positions = getattr(model.config, "max_position_embeddings", None)
    declared = [positions] if isinstance(positions, int) and positions > 0 else []
    for table in _position_tables(model):
        unused = 0 if table.padding_idx is None else 1 + table.padding_idx
        declared.append(table.num_embeddings - unused)
    upper = min(*map(int, limits), *declared)
    longest = min(upper, LONGEST_RUN)
    error = _run_error(model, row(longest))
    if error is None:
        return upper
    lengths = range(SHORTEST, longest)
    accepted = bisect_left(lengths, True, key=lambda length: bool(_run_error(model, row(length))))
    if accepted == 0:
        raise BadInput(
            f"{flag}: {type(model).__name__} fails on its tokenizer's output "
            f"({type(error).__name__}: {first_line(error)}); use a text encoder with its own "
            "tokenizer"
        ) from None
    return lengths[accepted - 1]


def _run_error(model: PreTrainedModel, inputs: Mapping[str, Any]) -> Exception | None:
    """The error that the model raises on these inputs, or None."""
    try:
        _first_output(model, inputs)
    except Exception as error:  # an index out of range, shapes that differ, an unknown input …
        return error
    return None


def _first_output(model: PreTrainedModel, inputs: Mapping[str, Any]) -> Tensor:
    """The first output without dropout; leaves the mode and the random state as they were."""
    training = model.training
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            return model.eval()(**inputs)[0]
        finally:
            model.train(training)


def _padding_side(
    model: Any, tokenizer: PreTrainedTokenizerBase, row: BatchEncoding, length: int, left: bool
) -> str | None:
    """The side on which padding changes no output for a row, preferably the right; None if neither.

    left: whether the left side may be used. Heads that look for the last token find it by
    config.pad_token_id: it is set to the tokenizer's if that makes the right side neutral.
    """
    if is_neutral(model, tokenizer, row, length, "right"):
        return "right"
    pad_token_id = getattr(model.config, "pad_token_id", None)
    model.config.pad_token_id = tokenizer.pad_token_id
    if is_neutral(model, tokenizer, row, length, "right"):
        return "right"
    model.config.pad_token_id = pad_token_id
    return "left" if left and is_neutral(model, tokenizer, row, length, "left") else None


def is_neutral(
    model: Any, tokenizer: PreTrainedTokenizerBase, row: BatchEncoding, length: int, side: str
) -> bool:
    """True if padding a row on this side, to `length` or 64 tokens, changes no output."""
    count = row["input_ids"].shape[1]
    width = max(count, min(length, LONGEST_PADDED))
    padded_row = tokenizer.pad(
        copy.copy(row), "max_length", max_length=width, padding_side=side, return_tensors="pt"
    )
    try:
        alone, padded = _first_output(model, row), _first_output(model, padded_row)
    except Exception:  # Reformer needs whole chunks
        return False
    if padded.shape != alone.shape:  # one output per token
        padded = padded[:, :count] if side == "right" else padded[:, -count:]
    if padded.shape != alone.shape:
        return False
    visible = alone.abs() < 1e4  # masked logits would dominate the scale
    if not visible.any():  # NaN is reported when the whole network is tried
        return not alone.isfinite().any()
    return bool((padded - alone)[visible].abs().max() <= 1e-4 * alone[visible].abs().max())
