"""What the families of tasks share: the `Task` that training sees, and loading a model with its head."""

import inspect
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
import transformers
from accelerate.utils import set_seed
from datasets import Dataset
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers import logging as transformers_logging
from transformers.models.auto.tokenization_auto import get_tokenizer_config, tokenizer_class_from_name
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from lth_scale import caches
from lth_scale.arguments import EMBEDDED, BadInput, Training, brief, embedded_path, first_line, is_local
from lth_scale.prunable import base_model, prunable
from lth_scale.tasks.data import NO_NETWORK, settle_for_cache

log = logging.getLogger("lth_scale")
# A config may ask for other outputs, or for chunks of a fixed length: the scores are the same.
PLAIN: dict[str, Any] = {"return_dict": True, "output_attentions": False, "output_hidden_states": False,
                         "chunk_size_feed_forward": 0}  # fmt: skip
MOST = 100_000  # labels, or layers
COUNTS = r"layers?|groups|group_num"  # how the names end of what a config wants many of
OWN_CODE = (
    "is made by code of its own (auto_map), and code that comes with a checkpoint is never run here; "
    "give one that transformers itself has the classes of"
)
Batch = dict[str, Tensor]


@dataclass
class Task:
    """A model with its head, its data, and how to score it.

    train, validation: encoded rows. collate: rows → tensors of one batch, for either.
    loss(model, batch) → (scalar loss, outputs); outputs is one tensor, and a softmax goes over its last dimension:
    GLUE (n, classes), MLM (masked tokens, vocabulary), SQuAD (n, 2, length), the latter two fp32 and all of them
    finite. rows(outputs, batch) → float64 array (n, columns), which evaluation stacks over all batches and hands to
    `score` → {metric: value}. The first metric stands for the task. grouped: batch rows of similar length.
    more: further validation rows, scored in the same way and reported as metric_name.
    prunable: the prunable set, as names in the base model.
    """

    model: PreTrainedModel
    prunable: tuple[str, ...]
    tokenizer: PreTrainedTokenizerBase
    revision: str
    train: Dataset
    validation: Dataset
    collate: Callable[[list[dict]], Batch]
    eval_collate: Callable[[list[dict]], Batch]
    loss: Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]
    rows: Callable[[Tensor, Batch], numpy.ndarray]
    score: Callable[[numpy.ndarray], dict[str, float]]
    grouped: bool
    more: dict[str, Dataset] = field(default_factory=dict)


class Loaded(NamedTuple):
    """A model with its head. prunable: names in the base model; fresh: names in the model that no checkpoint gave."""

    model: PreTrainedModel
    prunable: tuple[str, ...]
    fresh: frozenset[str]


def prediction_rows(logits: Tensor, labels: Tensor) -> numpy.ndarray:
    """float64 (n, 3): prediction, label and loss of each example.

    logits: (n, classes); labels: (n,). One class is regression: the prediction is the logit, the loss its squared
    error. Else they are the likeliest class and the cross-entropy.
    """
    logits = logits.detach().float()
    if logits.shape[1] == 1:
        predicted, losses = logits[:, 0], (logits[:, 0] - labels) ** 2
    else:
        predicted, losses = logits.argmax(-1), F.cross_entropy(logits, labels, reduction="none")
    return torch.stack([predicted.double(), labels.double(), losses.double()], dim=1).cpu().numpy()


def prediction_scores(rows: numpy.ndarray, metric: Any) -> dict[str, float]:
    """What the `evaluate.Metric` makes of `prediction_rows`, and the mean `loss`."""
    predicted, labels, losses = rows.T
    return {**metric.compute(predictions=predicted, references=labels), "loss": float(losses.mean())}


def model_path(args: Training) -> str:
    """What `from_pretrained` is given."""
    return str(embedded_path("bert")) if args.model_name_or_path == EMBEDDED else args.model_name_or_path


class Notes(logging.Handler):
    """Keeps what is logged, instead of showing it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.notes: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record's text."""
        self.notes.append(record.getMessage())


@contextmanager
def quiet() -> Iterator[None]:
    """Without the notes and bars of transformers. What it has noted goes with an error that it raises."""
    library, handler, bar = transformers_logging.get_logger(), Notes(), transformers_logging.is_progress_bar_enabled()
    before, library.propagate, library.handlers = (library.propagate, library.handlers), False, [handler]
    transformers_logging.disable_progress_bar()
    try:
        yield
    except Exception as problem:
        for note in handler.notes:
            problem.add_note(note)
        raise
    finally:
        library.propagate, library.handlers = before
        if bar:
            transformers_logging.enable_progress_bar()


def load_tokenizer(args: Training) -> PreTrainedTokenizerBase:
    """The model's tokenizer. Raises BadInput where it has none."""
    if not is_local(args.model_name_or_path):
        settle_for_cache(args.model_name_or_path, "model")
    try:
        options: dict[str, Any] = {"revision": args.model_revision, "trust_remote_code": False}
        with quiet():
            check_counts(model_path(args), args.model_revision)
            config = AutoConfig.from_pretrained(model_path(args), **options)
            check_checkpoint(args, config)
            check_tokenizer_class(model_path(args), args.model_revision)
            tokenizer = AutoTokenizer.from_pretrained(model_path(args), **options)
    except Exception as problem:  # from_pretrained raises nearly every kind
        raise _unusable(args, problem) from problem
    check_encoder(args, config)
    if tokenizer.pad_token_id is None or len(tokenizer) <= len(tokenizer.all_special_ids):
        raise BadInput(f"--model_name_or_path {args.model_name_or_path}: has no tokenizer; save one beside the model")
    return tokenizer


def load_model(args: Training, auto_class: Any, tokenizer: PreTrainedTokenizerBase, **options: Any) -> Loaded:
    """θ₀ in fp32 with a head drawn from --seed. Raises BadInput unless the encoder is in the checkpoint."""
    name = f"--model_name_or_path {args.model_name_or_path}"
    set_seed(args.seed)
    try:
        with quiet():
            model, info = auto_class.from_pretrained(
                model_path(args),
                revision=args.model_revision or "main",  # by name, or transformers looks for no converted safetensors
                dtype="float32",
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **(options if "config" in options else PLAIN | options),
            )
    except Exception as problem:
        raise _unusable(args, problem) from problem
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
    return Loaded(model, tuple(weights), frozenset(info["missing_keys"]))


def check_counts(path: str, revision: str | None = None) -> None:
    """Raise ValueError where config.json counts what no network has so many of.

    Call it before a config is made, which takes a list as long as they say. Raises what from_pretrained raises.
    """
    written, _ = PreTrainedConfig.get_config_dict(path, revision=revision)
    for name, value in _fields(written):
        if name == "num_labels" and not (type(value) is int and 1 <= value <= MOST):
            raise ValueError(f"config.json needs num_labels from 1 to {MOST:,}, and has {value!r}")
        if type(value) is int and re.search(rf"({COUNTS})$", name) and value > MOST:
            raise ValueError(f"config.json has {name} {value}, more than the tensors of any checkpoint")
        if name == "id2label" and len(value or ()) > MOST:
            raise ValueError(f"config.json names {len(value):,} labels in id2label; {MOST:,} are the most")


def _fields(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The fields of a config and of the configs inside it."""
    for name, value in config.items():
        yield name, value
        if isinstance(value, dict):
            yield from _fields(value)


def check_encoder(args: Training, config: PreTrainedConfig) -> None:
    """Raise BadInput where a config asks for a network that would not be trained as it says."""
    for name in ("is_decoder", "add_cross_attention", "causal", "quantization_config"):
        value = getattr(config, name, None)
        if value or (name == "quantization_config" and value is not None):
            remedy = "give the network before quantization" if name == "quantization_config" else "set it to false"
            raise BadInput(
                f"--model_name_or_path {args.model_name_or_path}: config.json has {name} {brief(repr(value))}, "
                f"and what is trained is a whole encoder in both directions; {remedy}"
            )


def check_checkpoint(args: Training, config: PreTrainedConfig) -> None:
    """Raise ValueError for parts that are no safetensors, and for numbers that no network can have.

    One of a million layers would take hours to make, before anything is missed in the checkpoint.
    """
    names = tensor_names(args)
    for name, value in config.to_dict().items():
        if names and type(value) is int and re.search(rf"({COUNTS})$", name) and value > len(names):
            raise ValueError(f"config.json has {name} {value}, and the checkpoint {len(names)} tensors in all")
        if isinstance(value, float) and (not math.isfinite(value) or (name.endswith("_eps") and value <= 0)):
            raise ValueError(f"config.json has {name} {value}")
    if other := getattr(config, "transformers_weights", None):
        raise ValueError(f"config.json has transformers_weights {brief(repr(other))}; only {SAFE_WEIGHTS_NAME} is read")
    if getattr(config, "num_hidden_layers", 1) < 1:
        raise ValueError(f"config.json has num_hidden_layers {config.num_hidden_layers}")


def tensor_names(args: Training) -> list[str]:
    """The tensors of a checkpoint in safetensors, or []. Raises ValueError for other formats."""
    options: dict[str, Any] = dict.fromkeys(
        (f"_raise_exceptions_for_{what}" for what in ("missing_entries", "connection_errors")), False
    )
    options |= {"revision": args.model_revision or "main"}
    index = cached_file(model_path(args), SAFE_WEIGHTS_INDEX_NAME, **options)
    parts = json.loads(Path(index).read_bytes())["weight_map"] if index else {}
    for part in parts.values():
        if not re.fullmatch(r"[\w-][\w.-]*\.safetensors", part):
            raise ValueError(f"{SAFE_WEIGHTS_INDEX_NAME} names {part!r}, which is no safetensors file beside it")
    whole = cached_file(model_path(args), SAFE_WEIGHTS_NAME, **options)
    if whole is None:
        return list(parts)
    with safe_open(whole, framework="numpy") as file:
        return list(file.keys())


def check_tokenizer_class(path: str, revision: str | None = None) -> None:
    """Raise ValueError where a tokenizer's class comes with the checkpoint; transformers would take another one."""
    config = get_tokenizer_config(path, revision=revision)
    if config.get("auto_map") and not tokenizer_class_from_name(config.get("tokenizer_class") or "none"):
        raise ValueError("its tokenizer needs trust_remote_code")


def needs_code(problem: Exception) -> bool:
    """True where transformers would load a checkpoint with the code that comes with it alone."""
    return "trust_remote_code" in str(problem)


def _unusable(args: Training, problem: Exception) -> BadInput:
    name = args.model_name_or_path
    if "ignore_mismatched_sizes" in str(problem):
        problem = ValueError("its weights are of other shapes than its config.json says")
    if needs_code(problem):
        return BadInput(f"--model_name_or_path {name}: {OWN_CODE}")
    if refused := caches.refused_by_hub_cache(problem):
        return BadInput(refused)
    remedy = "give a whole directory of save_pretrained, in safetensors" if is_local(name) else NO_NETWORK
    if "does not recognize this architecture" in str(problem):
        remedy = f"give an encoder that transformers {transformers.__version__} has, or install a newer one"
    return BadInput(f"--model_name_or_path {name}: cannot be loaded ({first_line(problem)}); {remedy}")


def has_segments(model: PreTrainedModel) -> bool:
    """True where the model takes `token_type_ids` and has at least two of them."""
    takes_them = "token_type_ids" in inspect.signature(model.forward).parameters
    return takes_them and getattr(model.config, "type_vocab_size", 0) >= 2


def sequence_length(args: Training, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """--max_seq_length, shortened (with a warning) to what the model has positions for."""
    limit = tokenizer.model_max_length
    for name, module in base_model(model).named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            offset = 0 if module.padding_idx is None else module.padding_idx + 1
            limit = min(limit, module.num_embeddings - offset)
    if args.max_seq_length > limit and os.environ.get("RANK", "0") == "0":
        log.warning("--max_seq_length %d is more than the model takes; using %d", args.max_seq_length, limit)
    return min(args.max_seq_length, limit)
