"""The model of a task: θ₀ with its head, and its tokenizer."""

import importlib.util
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from lth_scale.config import startup
from lth_scale.config.arguments import Training
from lth_scale.config.defaults import EMBEDDED
from lth_scale.config.errors import BadInput
from lth_scale.config.flags import absolute_if_local, is_local
from lth_scale.config.texts import brief, first_line
from lth_scale.tasks.checkpoint_checks import (
    check_checkpoint,
    check_counts,
    check_encoder,
    check_tokenizer_class,
    tensor_dtypes,
)
from lth_scale.tasks.libraries import NO_NETWORK, go_offline_unless_reachable, quiet
from lth_scale.tasks.locations import embedded_path
from lth_scale.tasks.registry import TASKS
from lth_scale.tasks.task import LoadedModel
from lth_scale.tasks.tokenizer import NO_TOKENIZER, check_ids, check_tokenizer
from lth_scale.tasks.weights import CheckpointSource, LoadedWeights, load_as_found, load_weights

# Config fields that change the form of outputs or the chunks of a computation, but no score.
PLAIN: dict[str, Any] = {
    "return_dict": True,
    "output_attentions": False,
    "output_hidden_states": False,
    "chunk_size_feed_forward": 0,
}
NO_PACKAGE = "needs the package {0}, which is not installed; pip install {0}"
# How transformers names the package that a tokenizer needs.
PACKAGE = re.compile(
    r"install (?!the\b)([\w-]+)|The (\w+) (?:dictionary|library) is not|requires the (\w+) library"
)


def model_path(args: Training) -> str:
    """What `from_pretrained` loads and a saved config names; absolute if it is a directory."""
    name = args.model_name_or_path
    return str(embedded_path("bert")) if name == EMBEDDED else absolute_if_local(name)


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
            if args.keep_head is None:  # version 0.1.0 began the run
                loaded = load_as_found(source, model_class, args.seed)
            else:
                loaded = load_weights(source, model_class, args.seed, _required_head(args))
    except BadInput:
        raise
    except Exception as error:
        raise _load_error(args, error) from error
    model = loaded.model
    if "finetuning_task" in vars(model.config):
        model.config.finetuning_task = args.task
    check_ids(flag, model, tokenizer)
    fresh = loaded.initialized.intersection(dict(model.named_parameters()))
    remark = _head_remark(args, loaded)
    return LoadedModel(model=model, tokenizer=tokenizer, fresh=fresh, remark=remark)


def _required_head(args: Training) -> str | None:
    """The head that the checkpoint must have and the remedy if not; None if it is initialised."""
    if args.keep_head:
        return "the head that --keep_head keeps; omit --keep_head to initialise one"
    if TASKS[args.task].own_head and not args.fresh_head:
        return (
            f"the head that --task {args.task} trains; use a checkpoint with one, or --fresh_head "
            "to initialise it from --seed"
        )
    return None


def _head_remark(args: Training, loaded: LoadedWeights) -> str:
    """Say where head and pooler come from; "" if nothing is out of the ordinary."""
    initialized, own = (
        _modules(name for name in names if not name.startswith(loaded.prefix))
        for names in (loaded.initialized, loaded.own_head)
    )
    is_old = args.keep_head is None
    parts = []
    if is_old and own:
        parts.append(
            f"the head ({own}) is the checkpoint's, as in version 0.1.0, which began this run"
        )
    elif initialized:
        unused = ", and the checkpoint's own is not used" if own else ""
        parts.append(f"the head ({initialized}) is initialised from --seed {args.seed}{unused}")
    elif args.keep_head or loaded.renamed:
        renamed = ", under another name there" if loaded.renamed else ""
        parts.append(f"the head ({own}) is the checkpoint's{renamed}")
    if pooler := _modules((n for n in loaded.initialized if n.startswith(loaded.prefix)), 3):
        pruned = "" if is_old else " and stays dense"
        parts.append(f"{pooler} is not in the checkpoint: it is initialised from --seed{pruned}")
    return "; ".join(parts)


def _modules(names: Iterable[str], depth: int = 1) -> str:
    """The modules of parameters, by the first parts of their names."""
    return " and ".join(sorted({".".join(name.split(".")[:-1][:depth]) for name in names}))


def check_labels(args: Training, labels: Sequence[str]) -> None:
    """Raise BadInput if the checkpoint names other labels than the task, or in another order."""
    config, _ = PreTrainedConfig.get_config_dict(model_path(args), revision=args.model_revision)
    by_number = config.get("id2label") or {}
    names = [str(by_number[number]) for number in sorted(by_number, key=int)]
    unnamed = all(name in (f"LABEL_{number}", str(number)) for number, name in enumerate(names))
    theirs, ours = (
        [re.sub(r"[\W_]+", "_", name.lower()) for name in each] for each in (names, labels)
    )
    if not unnamed and len(labels) > 1 and theirs != ours:
        raise BadInput(
            f"--keep_head: the checkpoint's labels are {brief(', '.join(names))}, and those of "
            f"--task {args.task} are {', '.join(labels)}, in this order; omit --keep_head, or if "
            "they mean the same rename them in config.json"
        )


def _load_error(args: Training, error: Exception) -> BadInput:
    """What from_pretrained raised, as one line with a remedy."""
    name, text = args.model_name_or_path, str(error)
    flag = f"--model_name_or_path {name}"
    if explanation := explain_load_error(error, Path(model_path(args))):
        return BadInput(f"{flag}: {explanation}")
    if refusal := startup.hub_cache_problem(error):
        return BadInput(refusal)
    auto_class = re.search(r"AutoModel\w+", text)
    if "Unrecognized configuration class" in text and auto_class:
        return BadInput(
            f"{flag}: --task {args.task} needs a network that {auto_class[0]} supports; use "
            "another model, or another task"
        )
    remedy = "use a complete directory of save_pretrained, in safetensors"
    if not is_local(name):
        remedy = NO_NETWORK
    if "does not recognize this architecture" in text:
        version = transformers.__version__
        remedy = f"use an encoder that transformers {version} supports, or install a newer version"
    return BadInput(f"{flag}: cannot be loaded ({first_line(error)}); {remedy}")


def explain_load_error(error: Exception, directory: Path) -> str | None:
    """The reason and the remedy if transformers' error names neither; None if it does.

    error: raised while a model or tokenizer was loaded from `directory`.
    """
    text = str(error).replace(str(directory), "")
    names = ("config.json", "tokenizer_config.json")
    needs_code = "custom code" in text or "trust_remote_code" in text
    no_class = "instantiate the backend tokenizer" in text
    if needs_code or (no_class and _has_code(directory / names[1])):
        files = [name for name in names if _has_code(directory / name)]
        return (
            f"requires custom code (auto_map in {' and '.join(files) or names[0]}), which is not "
            "run; use a model and a tokenizer that transformers has classes for"
        )
    if "tiktoken" in text or "sentencepiece" in text.lower():
        if directory.is_dir() and not any(directory.glob("*.model")):
            return NO_TOKENIZER
        if importlib.util.find_spec("sentencepiece") is None:
            return f"its tokenizer {NO_PACKAGE.format('sentencepiece')}"
        return (
            "its SentencePiece model cannot be read; replace it with a complete file, or save the "
            "tokenizer as tokenizer.json"
        )
    if isinstance(error, ImportError) and (match := PACKAGE.search(text)):
        package = next(filter(None, match.groups()))
        return NO_PACKAGE.format(package.lower().replace("_", "-"))
    return None


def _has_code(path: Path) -> bool:
    return path.is_file() and b'"auto_map"' in path.read_bytes()
