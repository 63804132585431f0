"""How texts become the inputs of a model, agreed between the model and its tokenizer."""

import inspect
from dataclasses import dataclass
from typing import Any

from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from lth_scale.config.arguments import Training
from lth_scale.config.notices import warn
from lth_scale.distributed.encoder import base_model
from lth_scale.tasks.probes import example, has_segments, longest_input, padding_side
from lth_scale.tasks.tokenizer_checks import warn_about_padding, warn_about_special_tokens


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

    Sets the side of padding on the tokenizer, and if need be the pad token on the model.
    equal_lengths: rows are never padded; only the encoder is run, because the product with a whole
    vocabulary would cost more. Raises BadInput if the model takes no row.
    """
    flag = f"--model_name_or_path {args.model_name_or_path}"
    _align_attention_mask(model, tokenizer)
    warn_about_padding(flag, model, tokenizer)
    warn_about_special_tokens(flag, model, tokenizer, texts)
    _warn_about_custom_code(flag, model, tokenizer)
    segments = has_segments(model)
    network: Any = base_model(model) if equal_lengths else model

    def row(length: int) -> BatchEncoding:
        return example(tokenizer, texts, length, segments)

    length = longest_input(flag, network, row, args.max_seq_length, tokenizer.model_max_length)
    if length < args.max_seq_length:
        warn(f"--max_seq_length {args.max_seq_length} is more than the model takes; using {length}")
    # The shortest row, in which padding is nearest to the text.
    shortest = row(tokenizer.num_special_tokens_to_add(pair=texts == 2) + texts)
    side = padding_side(network, tokenizer, shortest, length, may_pad_left)
    tokenizer.padding_side = side or "right"
    if side is None and not equal_lengths:
        warn(
            f"{type(model).__name__} gives other scores if a row is padded; all rows are padded to "
            f"{length} tokens"
        )
    return Inputs(length, segments, "longest" if side else "max_length")


def _align_attention_mask(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Have the tokenizer return an attention mask if, and only if, the model takes one."""
    others = [name for name in tokenizer.model_input_names if name != "attention_mask"]
    takes_mask = "attention_mask" in inspect.signature(model.forward).parameters
    if takes_mask != ("attention_mask" in tokenizer.model_input_names):
        tokenizer.model_input_names = [*others, *(["attention_mask"] if takes_mask else [])]


def _warn_about_custom_code(
    flag: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    for part, settings in ((model, model.config.to_dict()), (tokenizer, tokenizer.init_kwargs)):
        if settings.get("auto_map"):
            warn(
                f"{flag}: its own code (auto_map) is not run; it is loaded as transformers' "
                f"{type(part).__name__}"
            )
