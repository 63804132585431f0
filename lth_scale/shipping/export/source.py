"""What an export is made from: a dense network whose pruned weights are exactly zero."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lth_scale.config.arguments import Training
from lth_scale.config.errors import BadInput
from lth_scale.config.local_paths import is_local
from lth_scale.config.texts import first_line
from lth_scale.pruning.prunable_set import prunable
from lth_scale.pruning.ticket import Ticket
from lth_scale.shipping.export.architectures import accepts, class_of, read_config
from lth_scale.shipping.export.loading import load_dense
from lth_scale.shipping.export.locations import MANIFEST, NetworkLocation, locate
from lth_scale.tasks import weights
from lth_scale.tasks.checkpoint import CheckpointSource, LoadedCheckpoint
from lth_scale.tasks.loading import check_checkpoint, check_tokenizer_class, model_path, quiet
from lth_scale.tasks.offline import go_offline_unless_reachable
from lth_scale.tasks.tokenizer_checks import check_ids, explain_load_error

TOKENIZER_FILES = ("tokenizer*.json", "vocab.*", "*.model", "merges.txt")


@dataclass
class ExportSource:
    """A network to export or to time.

    model: fp32, in eval mode, pruned weights exactly 0. tokenizer: None if there is none that can
    pad. run: arguments.json of the search, or {}. pruned: of `prunable` weights.
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


def load_source(path: str) -> ExportSource:
    """Load the network of a search (its last round), a round, a checkpoint or an export.

    Raises BadInput if there is none, if it is damaged or not in safetensors, or has no prunable
    weights.
    """
    location = locate(path)
    name = str(location.model)
    is_export = (location.model / MANIFEST).is_file()
    model = load_dense(location.model) if is_export else load_checkpoint(name)
    matrices = prunable(model)
    if not matrices:
        raise BadInput(
            f"{path}: {type(model).__name__} has no prunable matrices; use an encoder like BERT"
        )
    with torch.no_grad():
        for weight in matrices.values():
            weight.add_(0.0)  # −0.0, which multiplication by a mask leaves, becomes 0
    pruned = sum(int((weight == 0).sum()) for weight in matrices.values())
    if location.ticket:
        ticket = Ticket.load(location.ticket)
        masks = ticket.masks_for(model)
        check_zeros(matrices, masks, location)
        pruned = sum(int((~mask).sum()) for mask in masks.values())
        matrices = {name: weight for name, weight in matrices.items() if name in ticket.masks}
    size = sum(weight.numel() for weight in matrices.values())
    return ExportSource(Path(path), model, load_tokenizer(name, model), location.run, pruned, size)


def check_zeros(
    matrices: Mapping[str, Tensor], masks: Mapping[str, Tensor], location: NetworkLocation
) -> None:
    """Raise BadInput if a weight that the ticket prunes is not zero."""
    for name, mask in masks.items():
        if matrices[name][~mask].any():
            raise BadInput(
                f"{location.model}: {name} is not zero where {location.ticket} prunes it; "
                "use the network and the ticket of one run"
            )


def load_checkpoint(name: str) -> PreTrainedModel:
    """Load a directory of `save_pretrained` or a Hub name. Raises BadInput if it is damaged."""
    args = Training(task="mlm", model_name_or_path=name)
    if not is_local(name):
        go_offline_unless_reachable(name, "model")
    try:
        with quiet():
            config = read_config(model_path(args))
            check_checkpoint(model_path(args), None, config)
            checkpoint = read_checkpoint(args, config)
            weights.check_shapes(name, checkpoint)
    except BadInput:
        raise
    except Exception as problem:  # from_pretrained raises nearly every kind
        if why := explain_load_error(problem, Path(model_path(args))):
            raise BadInput(f"{name}: {why}") from problem
        network = "" if is_local(name) else "check the network, or "
        raise BadInput(
            f"{name}: cannot be loaded ({first_line(problem)}); {network}use a directory of "
            "save_pretrained, in safetensors"
        ) from problem
    if lost := checkpoint.in_order(checkpoint.not_loaded):
        raise BadInput(
            f"{name}: the checkpoint lacks {weights.listed(lost)}; use a complete checkpoint"
        )
    weights.check_layers(name, checkpoint)
    weights.check_finite(name, checkpoint.model)
    return checkpoint.model.eval()


def read_checkpoint(args: Training, config: PreTrainedConfig) -> LoadedCheckpoint:
    """Return the network of a checkpoint, without a pooler if the checkpoint has none."""
    encoder: Any = transformers.MODEL_MAPPING.get(type(config), None)
    config.architectures = config.architectures or [encoder.__name__]
    cls = class_of(config)
    source = CheckpointSource(
        args.model_name_or_path, model_path(args), None, {"config": config}, frozenset()
    )
    checkpoint = source.read(cls)
    lacks_pooler = all(key.startswith("pooler.") for key in checkpoint.missing or "-")
    if lacks_pooler and accepts(cls, "add_pooling_layer"):
        return source.read(cls, add_pooling_layer=False)
    return checkpoint


def load_tokenizer(name: str, model: PreTrainedModel) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer beside a checkpoint, or None without one that can pad. Raises BadInput."""
    path = model_path(Training(task="mlm", model_name_or_path=name))
    saved = [file for pattern in TOKENIZER_FILES for file in Path(path).glob(pattern)]
    if is_local(name) and not saved:
        return None
    try:
        with quiet():
            check_tokenizer_class(path)
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as problem:
        why = explain_load_error(problem, Path(path)) or (
            f"its tokenizer cannot be loaded ({first_line(problem)}); repair or remove its files"
        )
        raise BadInput(f"{name}: {why}") from problem
    check_ids(name, model, tokenizer)
    usable = tokenizer.pad_token_id is not None and len(tokenizer) > len(tokenizer.all_special_ids)
    return tokenizer if usable else None
