"""What the families of tasks share: the `Task` that training sees, and loading a model with its head."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy
from accelerate.utils import set_seed
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers import logging as transformers_logging

from lth_scale.arguments import EMBEDDED, Arguments, BadInput, embedded_path, is_local
from lth_scale.prunable import base_model, prunable
from lth_scale.tasks.data import NO_NETWORK, first_line, settle_for_cache

log = logging.getLogger("lth_scale")
Batch = dict[str, Tensor]


@dataclass
class Task:
    """A model with its head, its data, and how to score it.

    train, validation: encoded rows. collate: rows → tensors of one batch, for either.
    loss(model, batch) → (scalar loss, outputs). rows(outputs, batch) → float array (n, columns), which
    evaluation stacks over all batches in order and hands to `score` → {metric: value}.
    The first metric stands for the task. grouped: batch rows of similar length.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    revision: str
    train: Dataset
    validation: Dataset
    collate: Callable[[list[dict]], Batch]
    eval_collate: Callable[[list[dict]], Batch]
    loss: Callable[[nn.Module, Batch], tuple[Tensor, Any]]
    rows: Callable[[Any, Batch], numpy.ndarray]
    score: Callable[[numpy.ndarray], dict[str, float]]
    grouped: bool


def model_path(args: Arguments) -> str:
    """What `from_pretrained` is given."""
    return str(embedded_path("bert")) if args.model_name_or_path == EMBEDDED else args.model_name_or_path


def load_tokenizer(args: Arguments) -> PreTrainedTokenizerBase:
    """The model's tokenizer. Raises BadInput where it has none."""
    if not is_local(args.model_name_or_path):
        settle_for_cache(args.model_name_or_path, "model")
    try:
        AutoConfig.from_pretrained(model_path(args), revision=args.model_revision)
        tokenizer = AutoTokenizer.from_pretrained(model_path(args), revision=args.model_revision)
    except Exception as problem:  # from_pretrained raises nearly every kind
        raise _unusable(args, problem) from None
    if tokenizer.pad_token_id is None or len(tokenizer) <= len(tokenizer.all_special_ids):
        raise BadInput(f"--model_name_or_path {args.model_name_or_path}: has no tokenizer; save one beside the model")
    return tokenizer


def load_model(args: Arguments, auto_class: Any, tokenizer: PreTrainedTokenizerBase, **options: Any) -> PreTrainedModel:
    """θ₀ in fp32 with a head drawn from --seed. Raises BadInput unless the encoder is in the checkpoint."""
    name = f"--model_name_or_path {args.model_name_or_path}"
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    set_seed(args.seed)
    try:
        model, info = auto_class.from_pretrained(
            model_path(args),
            revision=args.model_revision,
            dtype="float32",
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    except Exception as problem:
        raise _unusable(args, problem) from None
    finally:
        transformers_logging.set_verbosity(verbosity)
    weights = prunable(model)
    if not weights:
        raise BadInput(f"{name}: {type(model).__name__} has no layers of nn.Linear to prune; give an encoder like BERT")
    prefix = next(key for key, module in model.named_modules() if module is base_model(model))
    lost = [key for key in weights if f"{prefix}.{key}" in info["missing_keys"] and not key.startswith("pooler.")]
    if lost:
        raise BadInput(f"{name}: the checkpoint lacks {lost[0]} and {len(lost) - 1} more weights; give a whole one")
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise BadInput(
            f"{name}: its tokenizer has more tokens than its embeddings; give a model with its own tokenizer"
        )
    return model


def _unusable(args: Arguments, problem: Exception) -> BadInput:
    return BadInput(f"--model_name_or_path {args.model_name_or_path}: {first_line(problem)}; {NO_NETWORK}")


def sequence_length(args: Arguments, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """--max_seq_length, shortened (with a warning) to what the model has positions for."""
    limit = tokenizer.model_max_length
    for name, module in base_model(model).named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            offset = 0 if module.padding_idx is None else module.padding_idx + 1
            limit = min(limit, module.num_embeddings - offset)
    if args.max_seq_length > limit:
        log.warning("--max_seq_length %d is more than the model takes; using %d", args.max_seq_length, limit)
    return min(args.max_seq_length, limit)
