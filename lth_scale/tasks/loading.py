"""Loading models and tokenizers for a task."""

import json
import logging
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import transformers
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers import logging as transformers_logging
from transformers.models.auto.tokenization_auto import (
    get_tokenizer_config,
    tokenizer_class_from_name,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from lth_scale.config import caches
from lth_scale.config.arguments import Training
from lth_scale.config.defaults import EMBEDDED
from lth_scale.config.errors import BadInput
from lth_scale.config.local_paths import absolute_model, is_local
from lth_scale.config.texts import brief, first_line
from lth_scale.distributed.encoder import base_model
from lth_scale.pruning.prunable_set import prunable
from lth_scale.pruning.ticket import base_digest
from lth_scale.tasks import tokenization, weights
from lth_scale.tasks.cache import settle_for_cache
from lth_scale.tasks.data import NO_NETWORK
from lth_scale.tasks.locations import embedded_path

# A config may ask for other outputs, or for chunks of a fixed length: the scores are the same.
PLAIN: dict[str, Any] = {
    "return_dict": True,
    "output_attentions": False,
    "output_hidden_states": False,
    "chunk_size_feed_forward": 0,
}
MOST = 100_000  # labels, or layers
LFS = b"version https://git-lfs"  # how a pointer begins that stands for a large file
COUNTS = r"layers?|groups|group_num"  # how the names end of what a config wants many of


class LoadedModel(NamedTuple):
    """A model with its head.

    prunable: names in the base model; fresh: names in the model of parameters that no checkpoint gave, those of a head
    that was drawn although the checkpoint has one included; remark: as in `Task`.
    """

    model: PreTrainedModel
    prunable: tuple[str, ...]
    fresh: frozenset[str]
    remark: str

    @property
    def base_sha256(self) -> str:
        """The digest of the encoder's weights, by which a ticket knows its base."""
        return base_digest(self.model, self.fresh)


def model_path(args: Training) -> str:
    """What `from_pretrained` is given, and what it writes into a saved config: absolute where it is a directory."""
    name = args.model_name_or_path
    return str(embedded_path("bert")) if name == EMBEDDED else absolute_model(name)


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
    library, handler, bar = (
        transformers_logging.get_logger(),
        Notes(),
        transformers_logging.is_progress_bar_enabled(),
    )
    before, library.propagate, library.handlers = (
        (library.propagate, library.handlers),
        False,
        [handler],
    )
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
    """The model's tokenizer. Raises BadInput where it has none, or one that cannot pad."""
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
    tokenization.check(f"--model_name_or_path {args.model_name_or_path}", tokenizer)
    return tokenizer


def load_model(
    args: Training, auto_class: Any, tokenizer: PreTrainedTokenizerBase, **options: Any
) -> LoadedModel:
    """θ₀ in fp32, with a head drawn from --seed or the checkpoint's own. Raises BadInput unless all else is there.

    options: what the config has to say of the task (see `labelled`); or `config`, one that says so already.
    """
    name = f"--model_name_or_path {args.model_name_or_path}"
    options = options if "config" in options else PLAIN | options
    try:
        with quiet():
            names = frozenset(tensor_kinds(args))
            source = weights.Source(name, model_path(args), args.model_revision, options, names)
            if args.keep_head is None:
                found = weights.load_as_found(source, auto_class, args.seed)
            else:
                found = weights.load_weights(source, auto_class, args.seed, needed_head(args))
    except BadInput:
        raise
    except Exception as problem:
        raise _unusable(args, problem) from problem
    model = found.model
    if hasattr(model.config, "finetuning_task"):
        model.config.finetuning_task = args.task
    tokenization.check_ids(name, model, tokenizer)
    fresh = frozenset(key for key, _ in model.named_parameters() if key in found.drawn)
    return LoadedModel(
        model, tuple(prunable(model, args.ignore or (), fresh)), fresh, remark(args, found)
    )


def needed_head(args: Training) -> weights.OwnHead | None:
    """The head that the checkpoint has to have, or None where one is drawn."""
    if args.task == "mlm" and not args.fresh_head:
        remedy = "give one that has it, or --fresh_head, which draws it from --seed"
        return weights.OwnHead("the MLM head that --task mlm trains", remedy)
    if args.keep_head:
        return weights.OwnHead(
            "the head that --keep_head keeps", "leave --keep_head out, and a head is drawn"
        )
    return None


def check_labels(args: Training, labels: Sequence[str]) -> None:
    """Raise BadInput where the checkpoint names its labels, and otherwise or in another order than the task does."""
    config, _ = PreTrainedConfig.get_config_dict(model_path(args), revision=args.model_revision)
    theirs = config.get("id2label") or {}
    names = [str(theirs[number]) for number in sorted(theirs, key=int)]
    unnamed = all(name in (f"LABEL_{number}", str(number)) for number, name in enumerate(names))
    if not unnamed and len(labels) > 1 and [*map(_plain, names)] != [*map(_plain, labels)]:
        raise BadInput(
            f"--keep_head: the checkpoint's labels are {brief(', '.join(names))}, and those of --task {args.task} are "
            f"{', '.join(labels)}, in this order; leave --keep_head out, or if they mean the same name them so there"
        )


def _plain(label: str) -> str:
    return re.sub(r"[\W_]+", "_", label.lower())


def remark(args: Training, found: weights.LoadedWeights) -> str:
    """A line on what is drawn, and on a head that is not; nothing where mlm trains the checkpoint's own."""
    base = next(
        f"{name}."
        for name, module in found.model.named_modules()
        if module is base_model(found.model)
    )
    drawn, own = (
        _modules(name for name in names if not name.startswith(base))
        for names in (found.drawn, found.own)
    )
    parts = []
    if args.keep_head is None and own:
        parts.append(f"the head ({own}) is the checkpoint's, as when version 0.1.0 began this run")
    elif drawn:
        instead = ", and the checkpoint's own is left out" if own else ""
        parts.append(f"the head ({drawn}) is drawn from --seed {args.seed}{instead}")
    elif args.keep_head or found.renamed:
        parts.append(
            f"the head ({own}) is the checkpoint's{', where it has another name' if found.renamed else ''}"
        )
    if pooler := _modules((name for name in found.drawn if name.startswith(base)), depth=3):
        pruned = "" if args.keep_head is None else " and is not prunable"
        parts.append(f"{pooler} is not in the checkpoint: it is drawn from --seed{pruned}")
    return "; ".join(parts)


def _modules(names: Iterable[str], depth: int = 1) -> str:
    """The modules of parameters, by the first parts of their names, in words."""
    return " and ".join(sorted({".".join(name.split(".")[:-1][:depth]) for name in names}))


def check_counts(path: str, revision: str | None = None) -> None:
    """Raise ValueError where config.json counts what no network has so many of.

    Call it before a config is made, which takes a list as long as they say. Raises what from_pretrained raises.
    """
    written, _ = PreTrainedConfig.get_config_dict(path, revision=revision)
    for name, value in _fields(written):
        if name == "num_labels" and not (type(value) is int and 1 <= value <= MOST):
            raise ValueError(f"config.json needs num_labels from 1 to {MOST:,}, and has {value!r}")
        if type(value) is int and re.search(rf"({COUNTS})$", name) and value > MOST:
            raise ValueError(
                f"config.json has {name} {value}, more than the tensors of any checkpoint"
            )
        if name == "id2label" and not _is_by_number(value):
            raise ValueError(
                f"config.json has id2label {brief(repr(value))}, and labels have numbers there"
            )
        if name == "id2label" and len(value or ()) > MOST:
            raise ValueError(
                f"config.json names {len(value):,} labels in id2label; {MOST:,} are the most"
            )


def _is_by_number(names: Any) -> bool:
    return names is None or (
        isinstance(names, dict) and all(re.fullmatch(r"\d+", str(key)) for key in names)
    )


def _fields(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The fields of a config and of the configs inside it."""
    for name, value in config.items():
        yield name, value
        if isinstance(value, dict):
            yield from _fields(value)


def check_encoder(args: Training, config: PreTrainedConfig) -> None:
    """Raise BadInput where a config asks for a network that would not be trained as it says."""
    if getattr(config, "is_encoder_decoder", False):
        raise BadInput(
            f"--model_name_or_path {args.model_name_or_path}: is an encoder-decoder ({config.model_type}), and what is "
            "trained is an encoder; give one such as BERT"
        )
    for name in ("is_decoder", "add_cross_attention", "causal", "quantization_config"):
        value = getattr(config, name, None)
        if value or (name == "quantization_config" and value is not None):
            remedy = (
                "give the network before quantization"
                if name == "quantization_config"
                else "set it to false"
            )
            raise BadInput(
                f"--model_name_or_path {args.model_name_or_path}: config.json has {name} {brief(repr(value))}, "
                f"and what is trained is a whole encoder in both directions; {remedy}"
            )


def check_checkpoint(args: Training, config: PreTrainedConfig) -> None:
    """Raise ValueError for parts that are no safetensors, and for numbers that no network can have.

    One of a million layers would take hours to make, before anything is missed in the checkpoint.
    """
    names = tensor_kinds(args)
    for name, kind in names.items():
        is_weight = re.search(r"(weight|bias)$", name) and not weights.CONSTANT.search(name)
        if is_weight and not kind.startswith(("F", "BF")):
            raise ValueError(f"its {name} holds {kind}, and a weight is a floating-point number")
    for name, value in config.to_dict().items():
        if names and type(value) is int and re.search(rf"({COUNTS})$", name) and value > len(names):
            raise ValueError(
                f"config.json has {name} {value}, and the checkpoint {len(names)} tensors in all"
            )
        if isinstance(value, float) and (
            not math.isfinite(value) or (name.endswith("_eps") and value <= 0)
        ):
            raise ValueError(f"config.json has {name} {value}")
    if other := getattr(config, "transformers_weights", None):
        raise ValueError(
            f"config.json has transformers_weights {brief(repr(other))}; only {SAFE_WEIGHTS_NAME} is read"
        )
    if getattr(config, "num_hidden_layers", 1) < 1:
        raise ValueError(f"config.json has num_hidden_layers {config.num_hidden_layers}")


def tensor_kinds(args: Training) -> dict[str, str]:
    """The tensors of a checkpoint in safetensors and their kinds of numbers (`F32`), or {}.

    Raises ValueError for other formats, and where an index and its parts do not agree.
    """
    options: dict[str, Any] = dict.fromkeys(
        (f"_raise_exceptions_for_{what}" for what in ("missing_entries", "connection_errors")),
        False,
    )
    options |= {"revision": args.model_revision or "main"}
    index = cached_file(model_path(args), SAFE_WEIGHTS_INDEX_NAME, **options)
    parts = json.loads(Path(index).read_bytes())["weight_map"] if index else {}
    for part in parts.values():
        if not re.fullmatch(r"[\w-][\w.-]*\.safetensors", part):
            raise ValueError(
                f"{SAFE_WEIGHTS_INDEX_NAME} names {part!r}, which is no safetensors file beside it"
            )
    whole = cached_file(model_path(args), SAFE_WEIGHTS_NAME, **options)
    if whole is not None:
        return _kinds(whole)
    kinds: dict[str, str] = {}
    for part in sorted(set(parts.values())):
        path = cached_file(model_path(args), part, **options)
        if path is None:
            raise ValueError(f"{SAFE_WEIGHTS_INDEX_NAME} names {part}, which is not there")
        kinds |= _kinds(path)
    if absent := sorted(parts.keys() - kinds.keys()):
        raise ValueError(
            f"{SAFE_WEIGHTS_INDEX_NAME} names {absent[0]}, which {parts[absent[0]]} has not"
        )
    return kinds


def _kinds(path: str) -> dict[str, str]:
    with open(path, "rb") as file:
        if file.read(len(LFS)) == LFS:
            raise ValueError(
                f"its {Path(path).name} is a pointer of Git LFS and not the file; run git lfs pull there"
            )
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118


def check_tokenizer_class(path: str, revision: str | None = None) -> None:
    """Raise ValueError where a tokenizer's class comes with the checkpoint; transformers would take another one."""
    config = get_tokenizer_config(path, revision=revision)
    if config.get("auto_map") and not tokenizer_class_from_name(
        config.get("tokenizer_class") or "none"
    ):
        raise ValueError("its tokenizer needs trust_remote_code")


def _unusable(args: Training, problem: Exception) -> BadInput:
    name = args.model_name_or_path
    if diagnosis := tokenization.diagnosis(problem, Path(model_path(args))):
        return BadInput(f"--model_name_or_path {name}: {diagnosis}")
    if refused := caches.refused_by_hub_cache(problem):
        return BadInput(refused)
    if "Unrecognized configuration class" in str(problem) and (
        head := re.search(r"AutoModel\w+", str(problem))
    ):
        return BadInput(
            f"--model_name_or_path {name}: --task {args.task} needs a network that {head[0]} knows, which "
            "its kind is not; take another task, or another model"
        )
    remedy = (
        "give a whole directory of save_pretrained, in safetensors"
        if is_local(name)
        else NO_NETWORK
    )
    if "does not recognize this architecture" in str(problem):
        remedy = f"give an encoder that transformers {transformers.__version__} has, or install a newer one"
    return BadInput(
        f"--model_name_or_path {name}: cannot be loaded ({first_line(problem)}); {remedy}"
    )
