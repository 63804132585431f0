"""A checkpoint in a model with a task's head: every weight of the base model from there, the head from where it should.

transformers draws what it misses and says so in a report that nobody reads; here it is named, or refused.
"""

import re
from collections.abc import Iterable, Mapping
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
from lth_scale.distributed.encoder import base_model

POOLER = "pooler."
# Names that the classes do not know: of wrapped models, and of the MLM head in DeBERTa's releases.
OTHER_NAMES = {
    r"_orig_mod\.": "",
    r"^(?:(?:module|model)\.)+": "",
    r"^lm_predictions\.lm_head\.bias": "cls.predictions.bias",
    r"^lm_predictions\.lm_head\.": "cls.predictions.transform.",
}
# Constants of attention that older versions stored with the weights: masks and frequencies.
CONSTANT = re.compile(r"(attn|attention)\.(masked_)?bias$|\.inv_freq$|\.position_ids$")
# Classes in which a tensor of the base model may be tied to one of a head.
TYING = (AutoModelForMaskedLM, AutoModelForPreTraining, AutoModelForCausalLM)


@dataclass(frozen=True)
class Source:
    """What `from_pretrained` is given.

    flag: the flag and its value, for messages; names: of the checkpoint's tensors, as far as they are known before.
    """

    flag: str
    path: str
    revision: str | None
    options: dict[str, Any]
    names: frozenset[str]

    def read(self, kind: Any, **more: Any) -> "Found":
        """The checkpoint in a model of this class, in fp32. Raises what from_pretrained raises.

        Where weights of the base model are of other shapes, which may be of any size, the model is on the meta device.
        """
        try:
            return self._read(kind, **more)
        except RuntimeError as problem:
            if "ignore_mismatched_sizes" not in str(problem):
                raise
        more |= {"ignore_mismatched_sizes": True}
        found = self._read(kind, device_map="meta", **more)
        return self._read(kind, **more) if found.shapes.keys() <= found.head else found

    def _read(self, kind: Any, **more: Any) -> "Found":
        model, info = kind.from_pretrained(
            self.path,
            revision=self.revision
            or "main",  # by name, or transformers looks for no converted safetensors
            dtype="float32",
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **self.options,
            **more,
        )
        shapes = {
            name: (tuple(there), tuple(here)) for name, there, here in info["mismatched_keys"]
        }
        return Found(
            model, frozenset(info["missing_keys"]), shapes, frozenset(info["unexpected_keys"])
        )


class Found(NamedTuple):
    """A model, and the names in it that its checkpoint has not, has in another shape, or has beside."""

    model: PreTrainedModel
    missing: frozenset[str]
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    unexpected: frozenset[str]

    @property
    def lost(self) -> set[str]:
        """The names of what the checkpoint did not give."""
        return {*self.missing, *self.shapes}

    @property
    def prefix(self) -> str:
        """Of the base model's names; "" where the class does not hold it in a module of its own."""
        base = base_model(self.model)
        return next(
            f"{name}." if name else ""
            for name, module in self.model.named_modules()
            if module is base
        )

    @property
    def head(self) -> set[str]:
        """The names outside the base model, without those of tensors that are tied to one in it."""
        state = self.model.state_dict(keep_vars=True)
        own = {id(tensor) for name, tensor in state.items() if name.startswith(self.prefix)}
        return {name for name, tensor in state.items() if id(tensor) not in own}

    def wanted(self, with_head: bool) -> set[str]:
        """The names that a checkpoint has to have: all, or the base model's without a pooler that is nowhere there."""
        names = {*self.model.state_dict()}
        pooler = {name for name in names if name.startswith(self.prefix + POOLER)}
        return (
            names
            if with_head
            else names - self.head - (pooler if pooler <= self.missing else set())
        )

    def ordered(self, names: set[str]) -> list[str]:
        """Names in the order of the model."""
        return [name for name in self.model.state_dict() if name in names]

    def twice(self, names: Iterable[str]) -> tuple[str, str] | None:
        """Two of the checkpoint's names that stand for one weight of the base model, if there are any."""
        known: dict[str, str] = {}
        base = {name.removeprefix(self.prefix) for name in self.wanted(False)}
        for name in sorted(names):
            bare = re.sub(r"^((module|_orig_mod|model)\.)+", "", name).removeprefix(self.prefix)
            bare = bare.replace(".gamma", ".weight").replace(".beta", ".bias")
            if bare in base and known.setdefault(bare, name) != name:
                return known[bare], name
        return None

    def unexpected_layers(self) -> set[str]:
        """The names of weights in the base model's stacks of layers, or beside one, that no parameter there has."""
        base = base_model(self.model)
        stacks = (
            name for name, module in base.named_modules() if isinstance(module, nn.ModuleList)
        )
        homes = tuple(f"{name.rpartition('.')[0] or name}." for name in stacks)
        buffers = {name for name, _ in base.named_buffers()}
        prefix = f"{self.model.base_model_prefix}."
        names = {name: name.removeprefix(prefix) for name in self.unexpected}
        return {
            name
            for name, own in names.items()
            if own.startswith(homes) and own not in buffers and not CONSTANT.search(own)
        }


class OwnHead(NamedTuple):
    """The head that the checkpoint has to have: in words, and what helps where it has not."""

    words: str
    remedy: str


class LoadedWeights(NamedTuple):
    """A model, the names in it that were drawn, and those outside the base model that the checkpoint has.

    renamed: the checkpoint has some weights by other names.
    """

    model: PreTrainedModel
    drawn: frozenset[str]
    own: frozenset[str]
    renamed: bool = False


def load_weights(source: Source, kind: Any, seed: int, head: OwnHead | None) -> LoadedWeights:
    """The checkpoint in a model of this class, with its own head, or where that is None with one drawn from `seed`.

    A base model's pooler that the checkpoint lacks is drawn too. What is drawn is what `from_pretrained` would draw
    for a checkpoint without a head, whatever is there. Raises BadInput, and what from_pretrained raises.
    """
    set_seed(seed)
    found = source.read(kind)
    state: dict[str, Tensor] = {}
    if renamed := bool(found.lost & found.wanted(head is not None)):
        found = source.read(kind, key_mapping=OTHER_NAMES)
        state = _tied_elsewhere(source, found)
    check(source, found, state, head)
    drawn = found.lost - state.keys() | (set() if head else found.head)
    model = found.model
    if renamed or drawn != found.missing:
        known = {name: tensor for name, tensor in model.state_dict().items() if name not in drawn}
        set_seed(seed)
        model = _made_of(known | state, model)
    check_finite(source.flag, model)
    return LoadedWeights(model, frozenset(drawn), frozenset(found.head - found.missing), renamed)


def load_as_found(source: Source, kind: Any, seed: int) -> LoadedWeights:
    """The checkpoint in a model of this class, with what it has of a head; the rest is drawn (version 0.1.0)."""
    set_seed(seed)
    found = source.read(kind)
    check(source, found, {}, None)
    check_finite(source.flag, found.model)
    return LoadedWeights(found.model, frozenset(found.lost), frozenset(found.head - found.lost))


def _tied_elsewhere(source: Source, found: Found) -> dict[str, Tensor]:
    """What the base model lacks and another class of the library ties to a head's tensor, where config.json says so."""
    lost = {name.removeprefix(found.prefix) for name in found.missing & found.wanted(False)}
    for kind in TYING if lost else ():
        try:
            other = source.read(kind, key_mapping=OTHER_NAMES)
        except ValueError:  # the library has no such class for this config
            continue
        weights = base_model(other.model).state_dict()
        if lost <= weights.keys() and not {other.prefix + name for name in lost} & other.lost:
            return {found.prefix + name: weights[name] for name in lost}
    return {}


def _made_of(state: dict[str, Tensor], like: PreTrainedModel) -> PreTrainedModel:
    """A model like this one from these tensors; the others are drawn."""
    kind: Any = type(like)
    model = kind.from_pretrained(None, config=like.config, state_dict=state, dtype="float32")
    model.config.name_or_path = model.name_or_path = like.name_or_path
    return model


def check(source: Source, found: Found, given: Mapping[str, Tensor], head: OwnHead | None) -> None:
    """Raise BadInput unless the checkpoint and `given` have the base model and the head, and no other layers."""
    flag, kind = source.flag, type(found.model).__name__
    if not found.prefix:
        raise BadInput(
            f"{flag}: {kind} does not hold its encoder apart from its head; give an encoder like BERT"
        )
    if pair := found.twice(source.names):
        raise BadInput(
            f"{flag}: the checkpoint has both {pair[0]} and {pair[1]}, which are one weight; take one out"
        )
    check_shapes(flag, found)
    if names := found.ordered(found.wanted(False) & found.missing - given.keys()):
        beside = sorted(found.unexpected)
        also = f" (it has {some(beside)} that {kind} has no place for)" if beside else ""
        raise BadInput(f"{flag}: the checkpoint lacks {some(names)}{also}; give a whole one")
    check_layers(flag, found)
    if head and (names := found.ordered(found.lost - given.keys())):
        shape = f" of shape {found.shapes[names[0]][1]}" if names[0] in found.shapes else ""
        raise BadInput(
            f"{flag}: the checkpoint lacks {some(names)}{shape} of {head.words}; {head.remedy}"
        )


def check_shapes(flag: str, found: Found) -> None:
    """Raise BadInput where a weight of the base model has another shape in the checkpoint."""
    if names := found.ordered(found.shapes.keys() - found.head):
        there, here = found.shapes[names[0]]
        raise BadInput(
            f"{flag}: the checkpoint has {names[0]} of shape {there}, and by its config.json it is {here}; give the "
            "config.json that belongs to it"
        )


def check_layers(flag: str, found: Found) -> None:
    """Raise BadInput where the checkpoint has something in its layers that would be left out."""
    if names := sorted(found.unexpected_layers()):
        raise BadInput(
            f"{flag}: the checkpoint has {some(names)} in its layers, for which {type(found.model).__name__} has no "
            "place by its config.json; give the config.json that belongs to it"
        )


def some(names: list[str]) -> str:
    """The first of some weights, and how many more there are."""
    more = len(names) - 1
    return names[0] + (f" and {more} more weight{'s' if more > 1 else ''}" if more else "")


def check_finite(flag: str, model: nn.Module) -> None:
    """Raise BadInput where a weight is NaN or infinite. A tenth of a second for BERT-base."""
    for name, tensor in model.state_dict().items():
        if (
            tensor.is_floating_point()
            and tensor.numel()
            and not all(map(torch.isfinite, tensor.aminmax()))
        ):
            count = int((~tensor.isfinite()).sum())
            raise BadInput(
                f"{flag}: {count:,} of {tensor.numel():,} values of {name} are NaN or infinite; give a checkpoint "
                "without such"
            )
