"""A checkpoint read into a model, and what transformers reports about it."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel

from lth_scale.distributed.encoder import base_model

POOLER = "pooler."
# Constants of attention that older versions stored with the weights: masks and frequencies.
CONSTANT = re.compile(r"(attn|attention)\.(masked_)?bias$|\.inv_freq$|\.position_ids$")
Shape = tuple[int, ...]


class LoadedCheckpoint(NamedTuple):
    """A model, and how its tensors differ from the checkpoint's.

    missing: names that the checkpoint lacks. mismatched: names → (shape in the checkpoint, shape in
    the model). unexpected: the checkpoint's names that the model lacks.
    """

    model: PreTrainedModel
    missing: frozenset[str]
    mismatched: dict[str, tuple[Shape, Shape]]
    unexpected: frozenset[str]

    @property
    def not_loaded(self) -> set[str]:
        """Names of the tensors that the checkpoint did not provide."""
        return {*self.missing, *self.mismatched}

    @property
    def prefix(self) -> str:
        """The prefix of the base model's names; "" if the class has no module for it."""
        base = base_model(self.model)
        modules = self.model.named_modules()
        name = next(name for name, module in modules if module is base)
        return f"{name}." if name else ""

    @property
    def head(self) -> set[str]:
        """Names outside the base model, except tensors tied to one inside it."""
        state = self.model.state_dict(keep_vars=True)
        encoder = {id(tensor) for name, tensor in state.items() if name.startswith(self.prefix)}
        return {name for name, tensor in state.items() if id(tensor) not in encoder}

    def required(self, with_head: bool) -> set[str]:
        """Names that the checkpoint must have: all, or the base model's.

        Without the head, the pooler may be missing as a whole.
        """
        names = {*self.model.state_dict()}
        if with_head:
            return names
        pooler = {name for name in names if name.startswith(self.prefix + POOLER)}
        return names - self.head - (pooler if pooler <= self.missing else set())

    def in_order(self, names: Iterable[str]) -> list[str]:
        """Names in the order of the model's state."""
        wanted = {*names}
        return [name for name in self.model.state_dict() if name in wanted]

    def duplicate(self, names: Iterable[str]) -> tuple[str, str] | None:
        """Two of the checkpoint's `names` for the same weight of the base model, or None."""
        first: dict[str, str] = {}
        base = {name.removeprefix(self.prefix) for name in self.required(False)}
        for name in sorted(names):
            bare = re.sub(r"^((module|_orig_mod|model)\.)+", "", name).removeprefix(self.prefix)
            bare = bare.replace(".gamma", ".weight").replace(".beta", ".bias")
            if bare in base and first.setdefault(bare, name) != name:
                return first[bare], name
        return None

    def unexpected_layers(self) -> set[str]:
        """Unexpected names inside the base model's stacks of layers, or next to one."""
        base = base_model(self.model)
        modules = base.named_modules()
        stacks = [name for name, module in modules if isinstance(module, nn.ModuleList)]
        parents = tuple(f"{name.rpartition('.')[0] or name}." for name in stacks)
        buffers = {name for name, _ in base.named_buffers()}
        prefix = f"{self.model.base_model_prefix}."
        bare_names = {name: name.removeprefix(prefix) for name in self.unexpected}
        return {
            name
            for name, bare in bare_names.items()
            if bare.startswith(parents) and bare not in buffers and not CONSTANT.search(bare)
        }


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

        If weights of the base model are of other shapes, which may be of any size, the model is on
        the meta device. Raises what from_pretrained raises.
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
        shapes = {
            name: (tuple(theirs), tuple(ours)) for name, theirs, ours in report["mismatched_keys"]
        }
        missing, unexpected = report["missing_keys"], report["unexpected_keys"]
        return LoadedCheckpoint(model, frozenset(missing), shapes, frozenset(unexpected))
