"""What an export is made from: a dense network whose pruned weights are exactly zero, and inputs to try it on."""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lth_scale.config.arguments import Training
from lth_scale.config.errors import BadInput
from lth_scale.config.local_paths import is_local
from lth_scale.config.texts import first_line
from lth_scale.pruning.prunable_set import prunable
from lth_scale.pruning.ticket import Ticket
from lth_scale.shipping.export.locations import MANIFEST, locate
from lth_scale.tasks import tokenization, weights
from lth_scale.tasks.cache import settle_for_cache
from lth_scale.tasks.data import local_file
from lth_scale.tasks.jsonl import read_rows
from lth_scale.tasks.loading import (
    PLAIN,
    check_checkpoint,
    check_counts,
    check_tokenizer_class,
    model_path,
    quiet,
)
from lth_scale.tasks.locations import embedded_path

BATCH, LONGEST = (
    8,
    512,
)  # sentences in the padded batch; tokens of the long sequence, where the model takes as many
TOKENIZER_FILES = ("tokenizer*.json", "vocab.*", "*.model", "merges.txt")


@dataclass
class Source:
    """model: fp32, in eval mode, dense, pruned weights exactly 0. run: arguments.json of the search, or {}.

    tokenizer: None where there is none, or one that cannot pad. pruned of prunable weights are zero.
    """

    path: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    run: dict[str, Any]
    pruned: int
    prunable: int

    @property
    def sparsity(self) -> float:
        """pruned ÷ prunable."""
        return self.pruned / self.prunable


def load_source(path: str) -> Source:
    """The network of a search's --output_dir (its last round), of a round, of a checkpoint or of an export of ours.

    Raises BadInput where there is none, where it is damaged, holds other than safetensors, or has nothing to prune.
    """
    place = locate(path)
    from lth_scale.shipping.export.disk import load_network  # which knows of sources

    is_export = (place.model / MANIFEST).is_file()
    model = load_network(place.model, dense=True) if is_export else _of_checkpoint(str(place.model))
    matrices = prunable(model)
    if not matrices:
        raise BadInput(
            f"{path}: {type(model).__name__} has no matrices in its layers to prune; give one like BERT"
        )
    with torch.no_grad():
        for weight in matrices.values():
            weight.add_(0.0)  # −0.0, which a mask that is multiplied leaves, becomes 0
    pruned = sum(int((weight == 0).sum()) for weight in matrices.values())
    if place.ticket:
        ticket = Ticket.load(place.ticket)
        masks = ticket.masks_for(model)
        for name, mask in masks.items():
            if matrices[name][~mask].any():
                raise BadInput(
                    f"{place.model}: {name} is not zero where {place.ticket} prunes it; give a whole run"
                )
        pruned = sum(int((~mask).sum()) for mask in masks.values())
        matrices = {name: weight for name, weight in matrices.items() if name in ticket.masks}
    tokenizer = _tokenizer(str(place.model), model)
    return Source(
        Path(path),
        model,
        tokenizer,
        place.run,
        pruned,
        sum(each.numel() for each in matrices.values()),
    )


def _of_checkpoint(name: str) -> PreTrainedModel:
    args = Training(task="mlm", model_name_or_path=name)
    if not is_local(name):
        settle_for_cache(name, "model")
    try:
        with quiet():
            config = read_config(model_path(args))
            check_checkpoint(args, config)
            found = _load(args, config)
            weights.check_shapes(name, found)
    except BadInput:
        raise
    except Exception as problem:  # from_pretrained raises nearly every kind
        if why := tokenization.diagnosis(problem, Path(model_path(args))):
            raise BadInput(f"{name}: {why}") from problem
        network = "" if is_local(name) else "check the network, or "
        raise BadInput(
            f"{name}: cannot be loaded ({first_line(problem)}); {network}give a directory of "
            "save_pretrained, in safetensors"
        ) from problem
    if lost := found.ordered(found.lost):
        raise BadInput(f"{name}: the checkpoint lacks {weights.some(lost)}; give a whole one")
    weights.check_layers(name, found)
    weights.check_finite(name, found.model)
    return found.model.eval()


def _load(args: Training, config: PreTrainedConfig) -> weights.Found:
    """The network, without a pooler where the checkpoint has none."""
    encoder: Any = transformers.MODEL_MAPPING.get(type(config), None)
    config.architectures = config.architectures or [encoder.__name__]
    kind: Any = class_of(config)
    source = weights.Source(
        args.model_name_or_path, model_path(args), None, {"config": config}, frozenset()
    )
    found = source.read(kind)
    if all(key.startswith("pooler.") for key in found.missing or "-") and takes(
        kind, "add_pooling_layer"
    ):
        found = source.read(kind, add_pooling_layer=False)
    return found


def read_config(path: str) -> PreTrainedConfig:
    """config.json of a directory or a Hub name; what it says of attention kernels, which may be code, is not followed.

    Raises BadInput for a quantized checkpoint, and what from_pretrained raises.
    """
    check_counts(path)
    config = AutoConfig.from_pretrained(path, trust_remote_code=False, **PLAIN)
    if getattr(config, "quantization_config", None) is not None:
        raise BadInput(
            f"{path}: config.json says that it is quantized already; give the network before that"
        )
    config._attn_implementation = None
    return config


def class_of(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class of transformers that `architectures` names. Raises BadInput where it is none, or of other configs."""
    name = (config.architectures or ["none"])[0]
    kind = getattr(transformers, name, None) if isinstance(name, str) else None
    if not (
        isinstance(kind, type) and issubclass(kind, PreTrainedModel)
    ) or kind.config_class is not type(config):
        raise BadInput(
            f"{config._name_or_path}: its config.json names the class {name!r}, which is no "
            f"{config.model_type} of transformers; give a directory of save_pretrained"
        )
    return kind


def takes(kind: Any, option: str) -> bool:
    """True where the class is made with this keyword."""
    return option in inspect.signature(kind.__init__).parameters


def _tokenizer(name: str, model: PreTrainedModel) -> PreTrainedTokenizerBase | None:
    where = model_path(Training(task="mlm", model_name_or_path=name))
    if is_local(name) and not any(
        path for form in TOKENIZER_FILES for path in Path(where).glob(form)
    ):
        return None
    try:
        with quiet():
            check_tokenizer_class(where)
            tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    except Exception as problem:
        why = f"its tokenizer cannot be loaded ({first_line(problem)}); mend it, or take it out"
        raise BadInput(
            f"{name}: {tokenization.diagnosis(problem, Path(where)) or why}"
        ) from problem
    tokenization.check_ids(name, model, tokenizer)
    usable = tokenizer.pad_token_id is not None and len(tokenizer) > len(tokenizer.all_special_ids)
    return tokenizer if usable else None


def real_inputs(source: Source) -> tuple[list[dict[str, Tensor]], str]:
    """A padded batch of 8 sentences of different lengths and a single long sequence, and a line that says what of.

    The tensors are int64, (8, n) and (1, up to 512), named as the model takes them. Without a tokenizer they are ids
    drawn with a fixed seed.
    """
    model, tokenizer = source.model, source.tokenizer
    limit = longest(model, tokenizer)
    if tokenizer is None:
        batches, line = _drawn(model, limit), "ids drawn at random, for want of a tokenizer"
    else:
        texts = sentences()
        spread = sorted(texts, key=len)[:: len(texts) // BATCH][:BATCH]
        options: dict[str, Any] = {"truncation": True, "max_length": limit, "return_tensors": "pt"}
        words = " ".join(texts).split()[:limit]  # at least a token each
        batches = [
            dict(tokenizer(each, padding=True, **options)) for each in (spread, [" ".join(words)])
        ]
        line = "English sentences of SST-2"
    known = inspect.signature(model.forward).parameters
    shapes = " and ".join("×".join(map(str, batch["input_ids"].shape)) for batch in batches)
    return [
        {key: value for key, value in batch.items() if key in known} for batch in batches
    ], f"{line}, {shapes}"


def sentences() -> list[str]:
    """The sentences of the embedded SST-2 validation data."""
    path = local_file(embedded_path("sst2"), "validation")
    return [row["sentence"] for row in read_rows(path, {"sentence": "string"}, None)]


def longest(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> int:
    """Tokens of the longest sequence that is tried: what the model has positions for, at most 512."""
    pad = getattr(model.config, "pad_token_id", None)

    def row(length: int) -> dict[str, Tensor]:
        return {"input_ids": torch.full((1, length), 0 if pad else 1)}

    limit = tokenizer.model_max_length if tokenizer else LONGEST
    return tokenization.longest(model.config._name_or_path, model, row, LONGEST, limit)


def _drawn(model: PreTrainedModel, limit: int) -> list[dict[str, Tensor]]:
    embeddings: Any = model.get_input_embeddings()
    pad = getattr(model.config, "pad_token_id", None) or 0
    source = torch.Generator().manual_seed(0)
    batches = []
    for lengths in ([max(1, limit * (i + 1) // (2 * BATCH)) for i in range(BATCH)], [limit]):
        mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
        ids = torch.randint(embeddings.num_embeddings - 1, mask.shape, generator=source)
        ids += ids >= pad  # the padding's own id stands for padding alone
        batches.append(
            {"input_ids": ids.where(mask.bool(), torch.tensor(pad)), "attention_mask": mask}
        )
    return batches
