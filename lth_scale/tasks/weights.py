"""A checkpoint's weights in a model with a task head, complete or refused.

transformers initialises what a checkpoint lacks and reports it in a table; here a missing weight of
the base model is an error that names it, and the head comes from where the flags say.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
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
from lth_scale.distributed.pieces import base_model
from lth_scale.tasks.checkpoint_checks import CONSTANT

# Names that the classes do not know: of wrapped models, and of the MLM head in DeBERTa's releases.
OTHER_NAMES = {
    r"_orig_mod\.": "",
    r"^(?:(?:module|model)\.)+": "",
    r"^lm_predictions\.lm_head\.bias": "cls.predictions.bias",
    r"^lm_predictions\.lm_head\.": "cls.predictions.transform.",
}
# Classes in which a tensor of the base model may be tied to one of a head.
TYING = (AutoModelForMaskedLM, AutoModelForPreTraining, AutoModelForCausalLM)


class LoadedCheckpoint(NamedTuple):
    """A model, and how its tensors differ from the checkpoint's.

    missing: names that the checkpoint lacks. mismatched: names → (shape in the checkpoint, shape in
    the model). unexpected: the checkpoint's names that the model lacks.
    """

    model: PreTrainedModel
    missing: frozenset[str]
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    unexpected: frozenset[str]

    @property
    def not_loaded(self) -> frozenset[str]:
        """Names of the tensors that the checkpoint did not provide."""
        return self.missing.union(self.mismatched)

    @property
    def prefix(self) -> str:
        """The prefix of the base model's names; "" if the class has no module for it."""
        names = {module: name for name, module in self.model.named_modules()}
        name = names[base_model(self.model)]
        return f"{name}." if name else ""

    @property
    def head(self) -> set[str]:
        """Names outside the base model, except tensors tied to one inside it."""
        state = self.model.state_dict(keep_vars=True)
        encoder = {id(tensor) for name, tensor in state.items() if name.startswith(self.prefix)}
        return {name for name, tensor in state.items() if id(tensor) not in encoder}

    @property
    def required(self) -> set[str]:
        """Names of the base model, without a pooler that is missing as a whole."""
        names = self.model.state_dict().keys() - self.head
        pooler = {name for name in names if name.startswith(f"{self.prefix}pooler.")}
        return names - pooler if pooler <= self.missing else names

    def in_order(self, names: Collection[str]) -> list[str]:
        """Names in the order of the model's state."""
        return [name for name in self.model.state_dict() if name in names]

    def duplicate(self, names: Iterable[str]) -> tuple[str, str] | None:
        """Two of the checkpoint's `names` for the same weight of the base model, or None."""
        first: dict[str, str] = {}
        base = {name.removeprefix(self.prefix) for name in self.required}
        for name in sorted(names):
            bare = re.sub(r"^((module|_orig_mod|model)\.)+", "", name).removeprefix(self.prefix)
            bare = bare.replace(".gamma", ".weight").replace(".beta", ".bias")
            if bare in base and first.setdefault(bare, name) != name:
                return first[bare], name
        return None


@dataclass(frozen=True)
class CheckpointSource:
    """Where a checkpoint comes from.

    flag: the flag and its value, for messages. options: config fields, or `config` itself.
    names: of the checkpoint's tensors, as far as they are known.
    """

    flag: str
    path: str
    revision: str | None
    options: dict[str, Any]
    names: frozenset[str] = frozenset()

    def read(self, model_class: Any, **options: Any) -> LoadedCheckpoint:
        """Load the checkpoint into a model of this class, in fp32.

        If weights of the base model have other shapes, which may be huge, the model is on the meta
        device. Raises what from_pretrained raises.
        """
        try:
            return self._read(model_class, **options)
        except RuntimeError as error:
            if "ignore_mismatched_sizes" not in str(error):
                raise
        options["ignore_mismatched_sizes"] = True
        checkpoint = self._read(model_class, device_map="meta", **options)
        if checkpoint.mismatched.keys() <= checkpoint.head:
            return self._read(model_class, **options)
        return checkpoint

    def _read(self, model_class: Any, **options: Any) -> LoadedCheckpoint:
        model, report = model_class.from_pretrained(
            self.path,
            # Named: without a revision transformers does not look for converted safetensors.
            revision=self.revision or "main",
            dtype="float32",
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **self.options,
            **options,
        )
        return LoadedCheckpoint(
            model,
            frozenset(report["missing_keys"]),
            {name: (tuple(saved), tuple(ours)) for name, saved, ours in report["mismatched_keys"]},
            frozenset(report["unexpected_keys"]),
        )


class LoadedWeights(NamedTuple):
    """A model, and where its weights come from.

    prefix: of the base model's names. initialized: names that the checkpoint did not provide.
    own_head: names outside the base model that the checkpoint has. renamed: the checkpoint has some
    weights under other names.
    """

    model: PreTrainedModel
    prefix: str
    initialized: frozenset[str]
    own_head: frozenset[str]
    renamed: bool = False


def load_weights(
    source: CheckpointSource, model_class: Any, seed: int, head: str | None
) -> LoadedWeights:
    """Load a checkpoint with its own head, or with one initialised from `seed` if `head` is None.

    head: the end of the error if a weight of it is missing: what it is, and the remedy. A pooler
    that the checkpoint lacks is initialised too. Initial values are those that `from_pretrained`
    gives a checkpoint without a head. Raises BadInput, and what from_pretrained raises.
    """
    set_seed(seed)
    checkpoint = source.read(model_class)
    tied: dict[str, Tensor] = {}
    renamed = bool(checkpoint.not_loaded if head else checkpoint.not_loaded & checkpoint.required)
    if renamed:
        checkpoint = source.read(model_class, key_mapping=OTHER_NAMES)
        tied = _tied_elsewhere(source, checkpoint)
    _check_complete(source, checkpoint, tied, head)
    initialized = checkpoint.not_loaded.difference(tied).union(() if head else checkpoint.head)
    model = checkpoint.model
    if renamed or initialized != checkpoint.missing:
        model = _rebuilt(model, initialized, tied, seed)
    check_finite(source.flag, model)
    own_head = frozenset(checkpoint.head - checkpoint.missing)
    return LoadedWeights(model, checkpoint.prefix, initialized, own_head, renamed)


def load_as_found(source: CheckpointSource, model_class: Any, seed: int) -> LoadedWeights:
    """Load a checkpoint with what it has of a head; initialise the rest, as version 0.1.0 did."""
    set_seed(seed)
    checkpoint = source.read(model_class)
    _check_complete(source, checkpoint, {}, None)
    check_finite(source.flag, checkpoint.model)
    initialized = checkpoint.not_loaded
    own_head = frozenset(checkpoint.head - initialized)
    return LoadedWeights(checkpoint.model, checkpoint.prefix, initialized, own_head)


def _tied_elsewhere(source: CheckpointSource, checkpoint: LoadedCheckpoint) -> dict[str, Tensor]:
    """Tensors that the base model lacks and another class ties to a head's, per config.json."""
    missing = checkpoint.missing & checkpoint.required
    bare_names = {name.removeprefix(checkpoint.prefix) for name in missing}
    for model_class in TYING if missing else ():
        try:
            other = source.read(model_class, key_mapping=OTHER_NAMES)
        except ValueError:  # transformers has no such class for this config
            continue
        weights = base_model(other.model).state_dict()
        loaded = weights.keys() - {name.removeprefix(other.prefix) for name in other.not_loaded}
        if bare_names <= loaded:
            return {checkpoint.prefix + name: weights[name] for name in bare_names}
    return {}


def _rebuilt(
    model: PreTrainedModel, initialized: Collection[str], tied: Mapping[str, Tensor], seed: int
) -> PreTrainedModel:
    """A copy of the model with its `initialized` tensors drawn from `seed`, and `tied` set."""
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in initialized}
    set_seed(seed)
    copy = type(model).from_pretrained(
        None, config=model.config, state_dict={**state, **tied}, dtype="float32"
    )
    copy.config.name_or_path = copy.name_or_path = model.name_or_path
    return copy


def _check_complete(
    source: CheckpointSource,
    checkpoint: LoadedCheckpoint,
    tied: Mapping[str, Any],
    head: str | None,
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
    if missing := checkpoint.missing.difference(tied) & checkpoint.required:
        others = sorted(checkpoint.unexpected)
        hint = f" (it has {listed(others)}, which {name} does not use)" if others else ""
        names = listed(checkpoint.in_order(missing))
        raise BadInput(f"{flag}: the checkpoint lacks {names}{hint}; use a complete one")
    check_layers(flag, checkpoint)
    if head and (absent := checkpoint.in_order(checkpoint.not_loaded.difference(tied))):
        shapes = checkpoint.mismatched.get(absent[0])
        shape = f" of shape {shapes[1]}" if shapes else ""
        raise BadInput(f"{flag}: the checkpoint lacks {listed(absent)}{shape} of {head}")


def check_shapes(flag: str, checkpoint: LoadedCheckpoint) -> None:
    """Raise BadInput if a weight of the base model has another shape in the checkpoint."""
    if names := checkpoint.in_order(checkpoint.mismatched.keys() - checkpoint.head):
        theirs, ours = checkpoint.mismatched[names[0]]
        raise BadInput(
            f"{flag}: the checkpoint has {names[0]} of shape {theirs}, and its config.json says "
            f"{ours}; use the config.json that belongs to it"
        )


def check_layers(flag: str, checkpoint: LoadedCheckpoint) -> None:
    """Raise BadInput if weights in the checkpoint's layers, or next to them, would be ignored."""
    model, base = checkpoint.model, base_model(checkpoint.model)
    modules = base.named_modules()
    stacks = [name for name, module in modules if isinstance(module, nn.ModuleList)]
    parents = tuple(f"{name.rpartition('.')[0] or name}." for name in stacks)
    buffers = dict(base.named_buffers())
    names = []
    for name in sorted(checkpoint.unexpected):
        bare = name.removeprefix(f"{model.base_model_prefix}.")
        if bare.startswith(parents) and bare not in buffers and not CONSTANT.search(bare):
            names.append(name)
    if names:
        raise BadInput(
            f"{flag}: the checkpoint has {listed(names)} in its layers, which "
            f"{type(model).__name__} with its config.json does not have; use the config.json that "
            "belongs to it"
        )


def check_finite(flag: str, model: nn.Module) -> None:
    """Raise BadInput if a weight is NaN or infinite. Takes 0.1 s for BERT-base."""
    for name, tensor in model.state_dict().items():
        has_values = tensor.is_floating_point() and tensor.numel()
        if has_values and not all(map(torch.isfinite, tensor.aminmax())):
            count = int((~tensor.isfinite()).sum())
            raise BadInput(
                f"{flag}: {count:,} of {tensor.numel():,} values of {name} are NaN or infinite; "
                "use a checkpoint with finite weights"
            )


def listed(names: list[str]) -> str:
    """The first of some weights, and how many more there are."""
    more = len(names) - 1
    return names[0] + (f" and {more} more weight{'s' if more > 1 else ''}" if more else "")
