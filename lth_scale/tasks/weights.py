"""A checkpoint's weights in a model with a task head, complete or refused.

transformers initialises what a checkpoint lacks and reports it in a table; here a missing weight of
the base model is an error that names it, and the head comes from where the flags say.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    PreTrainedModel,
)

from lth_scale.config.errors import BadInput
from lth_scale.distributed.encoder import base_model
from lth_scale.tasks.checkpoint import CheckpointSource, LoadedCheckpoint

# Names that the classes do not know: of wrapped models, and of the MLM head in DeBERTa's releases.
OTHER_NAMES = {
    r"_orig_mod\.": "",
    r"^(?:(?:module|model)\.)+": "",
    r"^lm_predictions\.lm_head\.bias": "cls.predictions.bias",
    r"^lm_predictions\.lm_head\.": "cls.predictions.transform.",
}
# Classes in which a tensor of the base model may be tied to one of a head.
TYING = (AutoModelForMaskedLM, AutoModelForPreTraining, AutoModelForCausalLM)


class RequiredHead(NamedTuple):
    """A head that the checkpoint must have: a description, and the remedy if it does not."""

    description: str
    remedy: str


class LoadedWeights(NamedTuple):
    """A model, and where its weights come from.

    initialized: names that the checkpoint did not provide. own_head: names outside the base model
    that the checkpoint has. renamed: the checkpoint has some weights under other names.
    """

    model: PreTrainedModel
    initialized: frozenset[str]
    own_head: frozenset[str]
    renamed: bool = False


def load_weights(
    source: CheckpointSource, model_class: Any, seed: int, head: RequiredHead | None
) -> LoadedWeights:
    """Load a checkpoint with its own head, or with one initialised from `seed` if `head` is None.

    A pooler that the checkpoint lacks is initialised too. Initial values are those that
    `from_pretrained` gives a checkpoint without a head, whether or not this one has a head. Raises
    BadInput, and what from_pretrained raises.
    """
    set_seed(seed)
    checkpoint = source.read(model_class)
    tied: dict[str, Tensor] = {}
    renamed = bool(checkpoint.not_loaded & checkpoint.required(head is not None))
    if renamed:
        checkpoint = source.read(model_class, key_mapping=OTHER_NAMES)
        tied = _tied_elsewhere(source, checkpoint)
    check_complete(source, checkpoint, tied, head)
    own_head = frozenset(checkpoint.head - checkpoint.missing)
    initialized = checkpoint.not_loaded - tied.keys() | (set() if head else checkpoint.head)
    model = checkpoint.model
    if renamed or initialized != checkpoint.missing:
        model = _rebuilt(model, initialized, tied, seed)
    check_finite(source.flag, model)
    return LoadedWeights(model, frozenset(initialized), own_head, renamed)


def load_as_found(source: CheckpointSource, model_class: Any, seed: int) -> LoadedWeights:
    """Load a checkpoint with what it has of a head; initialise the rest, as version 0.1.0 did."""
    set_seed(seed)
    checkpoint = source.read(model_class)
    check_complete(source, checkpoint, {}, None)
    check_finite(source.flag, checkpoint.model)
    absent = checkpoint.not_loaded
    return LoadedWeights(checkpoint.model, frozenset(absent), frozenset(checkpoint.head - absent))


def _tied_elsewhere(source: CheckpointSource, checkpoint: LoadedCheckpoint) -> dict[str, Tensor]:
    """Tensors that the base model lacks and another class ties to a head's, per config.json."""
    missing = checkpoint.missing & checkpoint.required(False)
    bare_names = {name.removeprefix(checkpoint.prefix) for name in missing}
    for model_class in TYING if missing else ():
        try:
            other = source.read(model_class, key_mapping=OTHER_NAMES)
        except ValueError:  # transformers has no such class for this config
            continue
        weights = base_model(other.model).state_dict()
        has_all = bare_names <= weights.keys()
        if has_all and not {other.prefix + name for name in bare_names} & other.not_loaded:
            return {checkpoint.prefix + name: weights[name] for name in bare_names}
    return {}


def _rebuilt(
    model: PreTrainedModel, initialized: Collection[str], tied: Mapping[str, Tensor], seed: int
) -> PreTrainedModel:
    """A copy of the model with its `initialized` tensors drawn from `seed`, and `tied` set."""
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in initialized}
    set_seed(seed)
    model_class: Any = type(model)
    copy = model_class.from_pretrained(
        None, config=model.config, state_dict={**state, **tied}, dtype="float32"
    )
    copy.config.name_or_path = copy.name_or_path = model.name_or_path
    return copy


def check_complete(
    source: CheckpointSource,
    checkpoint: LoadedCheckpoint,
    tied: Collection[str],
    head: RequiredHead | None,
) -> None:
    """Raise BadInput if `checkpoint` and `tied` lack a weight, or there are extra layers."""
    flag, name = source.flag, type(checkpoint.model).__name__
    if not checkpoint.prefix:
        raise BadInput(
            f"{flag}: {name} does not separate its encoder from its head; use an encoder like BERT"
        )
    if pair := checkpoint.duplicate(source.names):
        raise BadInput(
            f"{flag}: the checkpoint has both {pair[0]} and {pair[1]} for the same weight; "
            "remove one of them"
        )
    check_shapes(flag, checkpoint)
    missing = checkpoint.missing - {*tied}
    if names := checkpoint.in_order(checkpoint.required(False) & missing):
        others = sorted(checkpoint.unexpected)
        hint = f" (it has {listed(others)}, which {name} does not use)" if others else ""
        raise BadInput(f"{flag}: the checkpoint lacks {listed(names)}{hint}; use a complete one")
    check_layers(flag, checkpoint)
    if head and (names := checkpoint.in_order(checkpoint.not_loaded - {*tied})):
        shapes = checkpoint.mismatched.get(names[0])
        shape = f" of shape {shapes[1]}" if shapes else ""
        raise BadInput(
            f"{flag}: the checkpoint lacks {listed(names)}{shape} of {head.description}; "
            f"{head.remedy}"
        )


def check_shapes(flag: str, checkpoint: LoadedCheckpoint) -> None:
    """Raise BadInput if a weight of the base model has another shape in the checkpoint."""
    if names := checkpoint.in_order(checkpoint.mismatched.keys() - checkpoint.head):
        theirs, ours = checkpoint.mismatched[names[0]]
        raise BadInput(
            f"{flag}: the checkpoint has {names[0]} of shape {theirs}, and its config.json says "
            f"{ours}; use the config.json that belongs to it"
        )


def check_layers(flag: str, checkpoint: LoadedCheckpoint) -> None:
    """Raise BadInput if weights in the checkpoint's layers would be ignored."""
    if names := sorted(checkpoint.unexpected_layers()):
        raise BadInput(
            f"{flag}: the checkpoint has {listed(names)} in its layers, which "
            f"{type(checkpoint.model).__name__} with its config.json does not have; use the "
            "config.json that belongs to it"
        )


def listed(names: list[str]) -> str:
    """The first of some weights, and how many more there are."""
    more = len(names) - 1
    return names[0] + (f" and {more} more weight{'s' if more > 1 else ''}" if more else "")


def check_finite(flag: str, model: nn.Module) -> None:
    """Raise BadInput if a weight is NaN or infinite. Takes 0.1 s for BERT-base."""
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        if not all(map(torch.isfinite, tensor.aminmax())):
            count = int((~tensor.isfinite()).sum())
            raise BadInput(
                f"{flag}: {count:,} of {tensor.numel():,} values of {name} are NaN or infinite; "
                "use a checkpoint with finite weights"
            )
