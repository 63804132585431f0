"""The model of a task: θ₀ with its head, and its tokenizer."""

import re
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from lth_scale.config import caches
from lth_scale.config.arguments import Training
from lth_scale.config.defaults import EMBEDDED
from lth_scale.config.errors import BadInput
from lth_scale.config.local_paths import absolute_model, is_local
from lth_scale.config.texts import brief, first_line
from lth_scale.tasks.checkpoint import CheckpointSource
from lth_scale.tasks.checkpoint_checks import (
    check_checkpoint,
    check_counts,
    check_encoder,
    check_tokenizer_class,
    tensor_dtypes,
)
from lth_scale.tasks.head_remark import head_remark
from lth_scale.tasks.library_logs import quiet
from lth_scale.tasks.locations import embedded_path
from lth_scale.tasks.offline import NO_NETWORK, go_offline_unless_reachable
from lth_scale.tasks.registry import TASKS
from lth_scale.tasks.task import LoadedModel
from lth_scale.tasks.tokenizer_checks import check_ids, check_tokenizer, explain_load_error
from lth_scale.tasks.weights import LoadedWeights, RequiredHead, load_as_found, load_weights

# Config fields that change the form of outputs or the chunks of a computation, but no score.
PLAIN: dict[str, Any] = {
    "return_dict": True,
    "output_attentions": False,
    "output_hidden_states": False,
    "chunk_size_feed_forward": 0,
}


def model_path(args: Training) -> str:
    """What `from_pretrained` loads and a saved config names; absolute if it is a directory."""
    name = args.model_name_or_path
    return str(embedded_path("bert")) if name == EMBEDDED else absolute_model(name)


def load_tokenizer(args: Training) -> PreTrainedTokenizerBase:
    """Load the model's tokenizer, after checks of the checkpoint's files.

    Raises BadInput if there is none, if it cannot pad, or if the model is not an encoder.
    """
    flag, path = f"--model_name_or_path {args.model_name_or_path}", model_path(args)
    options: dict[str, Any] = {"revision": args.model_revision, "trust_remote_code": False}
    if not is_local(args.model_name_or_path):
        go_offline_unless_reachable(args.model_name_or_path, "model")
    try:
        with quiet():
            check_counts(path, args.model_revision)
            config = AutoConfig.from_pretrained(path, **options)
            check_checkpoint(path, args.model_revision, config)
            check_tokenizer_class(path, args.model_revision)
            tokenizer = AutoTokenizer.from_pretrained(path, **options)
    except Exception as error:  # from_pretrained raises nearly every kind
        raise _load_error(args, error) from error
    check_encoder(flag, config)
    check_tokenizer(flag, tokenizer)
    return tokenizer


class HeadSource(Enum):
    """Where the weights of a task's head come from."""

    SEED = "initialised from --seed, whatever the checkpoint has"
    CHECKPOINT = "the checkpoint's, which must have all of it"
    AS_FOUND = "what the checkpoint has of it, the rest initialised: runs begun by version 0.1.0"


def head_source(args: Training) -> HeadSource:
    """The source that the flags ask for; `keep_head` is None in runs begun by version 0.1.0."""
    if args.keep_head is None:
        return HeadSource.AS_FOUND
    uses_own = TASKS[args.task].own_head and not args.fresh_head
    return HeadSource.CHECKPOINT if args.keep_head or uses_own else HeadSource.SEED


def load_model(
    args: Training, model_class: Any, tokenizer: PreTrainedTokenizerBase, **options: Any
) -> LoadedModel:
    """Load θ₀ in fp32 with the head that the flags ask for.

    options: the task's config fields (see `label_config`), or `config`, which already has them.
    Raises BadInput if a weight of the encoder is missing.
    """
    flag, path = f"--model_name_or_path {args.model_name_or_path}", model_path(args)
    options = options if "config" in options else PLAIN | options
    try:
        with quiet():
            names = frozenset(tensor_dtypes(path, args.model_revision))
            source = CheckpointSource(flag, path, args.model_revision, options, names)
            loaded = _load_weights(args, source, model_class)
    except BadInput:
        raise
    except Exception as error:
        raise _load_error(args, error) from error
    model = loaded.model
    if "finetuning_task" in vars(model.config):
        model.config.finetuning_task = args.task
    check_ids(flag, model, tokenizer)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        fresh=frozenset(name for name, _ in model.named_parameters() if name in loaded.initialized),
        remark=head_remark(
            loaded,
            args.seed,
            keeps=bool(args.keep_head),
            as_found=head_source(args) is HeadSource.AS_FOUND,
        ),
    )


def _load_weights(args: Training, source: CheckpointSource, model_class: Any) -> LoadedWeights:
    head = None
    match head_source(args):
        case HeadSource.AS_FOUND:
            return load_as_found(source, model_class, args.seed)
        case HeadSource.CHECKPOINT if args.keep_head:
            remedy = "omit --keep_head to initialise one"
            head = RequiredHead("the head that --keep_head keeps", remedy)
        case HeadSource.CHECKPOINT:
            remedy = "use a checkpoint with one, or --fresh_head to initialise it from --seed"
            head = RequiredHead(f"the head that --task {args.task} trains", remedy)
    return load_weights(source, model_class, args.seed, head)


def check_labels(args: Training, labels: Sequence[str]) -> None:
    """Raise BadInput if the checkpoint names other labels than the task, or in another order."""
    config, _ = PreTrainedConfig.get_config_dict(model_path(args), revision=args.model_revision)
    by_number = config.get("id2label") or {}
    names = [str(by_number[number]) for number in sorted(by_number, key=int)]
    unnamed = all(name in (f"LABEL_{number}", str(number)) for number, name in enumerate(names))
    differ = [*map(_normalized, names)] != [*map(_normalized, labels)]
    if not unnamed and len(labels) > 1 and differ:
        raise BadInput(
            f"--keep_head: the checkpoint's labels are {brief(', '.join(names))}, and those of "
            f"--task {args.task} are {', '.join(labels)}, in this order; omit --keep_head, or if "
            "they mean the same rename them in config.json"
        )


def _normalized(label: str) -> str:
    return re.sub(r"[\W_]+", "_", label.lower())


def _load_error(args: Training, error: Exception) -> BadInput:
    """What from_pretrained raised, as one line with a remedy."""
    name, text = args.model_name_or_path, str(error)
    flag = f"--model_name_or_path {name}"
    if explanation := explain_load_error(error, Path(model_path(args))):
        return BadInput(f"{flag}: {explanation}")
    if refusal := caches.hub_cache_problem(error):
        return BadInput(refusal)
    auto_class = re.search(r"AutoModel\w+", text)
    if "Unrecognized configuration class" in text and auto_class:
        return BadInput(
            f"{flag}: --task {args.task} needs a network that {auto_class[0]} supports; use "
            "another model, or another task"
        )
    remedy = NO_NETWORK
    if is_local(name):
        remedy = "use a complete directory of save_pretrained, in safetensors"
    if "does not recognize this architecture" in text:
        version = transformers.__version__
        remedy = f"use an encoder that transformers {version} supports, or install a newer version"
    return BadInput(f"{flag}: cannot be loaded ({first_line(error)}); {remedy}")
