"""A ticket: a binary mask over a pre-trained network's weights, and where it came from.

`python -m lth_scale.ticket PATH` prints one.
"""

import hashlib
import json
import logging
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lth_scale.config import files, hub_access
from lth_scale.config.checks import check_regexes, parse_pattern
from lth_scale.config.errors import BadInput
from lth_scale.config.texts import brief
from lth_scale.distributed.encoder import base_model
from lth_scale.pruning.prunable_set import POOLER, is_ignored, not_linear, prunable

log = logging.getLogger("lth_scale")
FORMAT = "lth_scale.ticket/1"
# Its metadata, all of them strings. The optional ones are not in tickets of every origin; any other is a damaged one.
REQUIRED = {
    "format",
    "shapes",
    "base_model",
    "base_revision",
    "theta_sha256",
    "task",
    "sparsity",
    "pruned",
    "prunable",
    "arguments",
}
OPTIONAL = {"threshold", "content_sha256", "base_sha256"}


@dataclass
class Ticket:
    """masks: bool tensors of the parameters' shapes, True keeps; names are those of the base model.

    theta_sha256 is the digest (see `digest`) of the prunable weights at the rewind point; threshold is
    the largest |w| that the last cut pruned. base_sha256 tells the base model by its weights (see `base_digest`); ''
    where it is not known, as in tickets of version 0.1.0.
    """

    masks: dict[str, Tensor]
    base_model: str = ""
    base_revision: str = ""
    theta_sha256: str = ""
    task: str = ""
    threshold: float = 0.0
    arguments: dict[str, Any] = field(default_factory=dict)
    base_sha256: str = ""

    @property
    def prunable(self) -> int:
        """How many weights the mask is about."""
        return sum(mask.numel() for mask in self.masks.values())

    @property
    def pruned(self) -> int:
        """How many of them it prunes."""
        return sum(mask.numel() - int(mask.sum()) for mask in self.masks.values())

    @property
    def sparsity(self) -> float:
        """pruned ÷ prunable."""
        return self.pruned / self.prunable

    def layer_sparsity(self) -> dict[str, float]:
        """Sparsity of each matrix, in the order of the model."""
        return {name: 1 - int(mask.sum()) / mask.numel() for name, mask in self.masks.items()}

    def starved(self, transposed: Collection[str] = ()) -> dict[str, int]:
        """Matrices that keep fewer weights than they have outputs, and how many: most of these outputs are constant.

        transposed: the names of those whose outputs are dimension 1, as in `prunable_set.transposed`.
        """
        kept = {name: int(mask.sum()) for name, mask in self.masks.items()}
        outputs = {name: mask.shape[name in transposed] for name, mask in self.masks.items()}
        return {name: count for name, count in kept.items() if count < outputs[name]}

    def save(self, path: str | Path) -> None:
        """Write the ticket file (DESIGN: safetensors, one bit a weight), whole or not at all."""
        packed = {
            name: torch.from_numpy(
                numpy.packbits(mask.cpu().numpy().reshape(-1), bitorder="little")
            )
            for name, mask in self.masks.items()
        }
        metadata = {
            "format": FORMAT,
            "shapes": json.dumps({name: list(mask.shape) for name, mask in self.masks.items()}),
            "base_model": self.base_model,
            "base_revision": self.base_revision,
            **({"base_sha256": self.base_sha256} if self.base_sha256 else {}),
            "theta_sha256": self.theta_sha256,
            "task": self.task,
            "sparsity": repr(self.sparsity),
            "pruned": str(self.pruned),
            "prunable": str(self.prunable),
            "threshold": repr(self.threshold),
            "arguments": json.dumps(self.arguments, ensure_ascii=False),
        }
        metadata["content_sha256"] = _checksum(
            metadata, {name: bits.numpy() for name, bits in packed.items()}
        )
        files.write_tensors(Path(path), packed, metadata)

    @classmethod
    def load(cls, path: str | Path) -> "Ticket":
        """Read a ticket file, which may be anybody's: no memory is taken before the sizes are found to agree.

        Raises ValueError, naming the file and what is wrong, unless it is whole. A file that `save` wrote is refused
        where one byte of it has changed, or the change alters nothing that is read.
        """
        try:
            files.check_regular(Path(path))
            with safe_open(path, framework="numpy") as file:
                return cls._decode(file.metadata() or {}, file)
        except (SafetensorError, OSError) as problem:
            raise BadInput(
                f"{path}: cannot be read as a ticket ({problem}); give a ticket.safetensors"
            ) from problem
        except (KeyError, TypeError, ValueError, RecursionError) as problem:
            raise BadInput(
                f"{path}: not a whole {FORMAT} file ({problem}); find or download the ticket again"
            ) from problem

    @classmethod
    def from_pretrained(cls, name: str | Path, revision: str | None = None) -> "Ticket":
        """Load the ticket of a repository on the Hub (`user/name`), of a directory here, or a file.

        revision: branch, tag or commit of a repository. Raises as `load` does, and ValueError for a repository that
        is not there; Stopped (a RuntimeError) where the Hub cannot be reached.
        """
        if Path(name).is_dir():
            return cls.load(Path(name) / "ticket.safetensors")
        if Path(name).is_file():
            return cls.load(name)
        return cls.load(hub_access.ticket_file(str(name), revision))

    @classmethod
    def _decode(cls, metadata: dict[str, str], file: Any) -> "Ticket":
        if metadata.get("format") != FORMAT:
            raise ValueError(f"its format is {metadata.get('format')!r}")
        if unknown := metadata.keys() - REQUIRED - OPTIONAL:
            raise ValueError(f"its metadata has {min(unknown)!r}, which is no part of it")
        if lost := REQUIRED - metadata.keys():
            raise ValueError(f"its metadata has no {min(lost)}")
        shapes, arguments = json.loads(metadata["shapes"]), json.loads(metadata["arguments"])
        if not (isinstance(shapes, dict) and isinstance(arguments, dict)):
            raise ValueError("its shapes or arguments are no JSON object")
        if set(shapes) != set(file.keys()) or not shapes:
            raise ValueError("the names of shapes and tensors differ, or there are none")
        for name, shape in shapes.items():
            _check_size(name, shape, file.get_slice(name))
        packed = {name: file.get_tensor(name) for name in shapes}
        parse_pattern(arguments.get("pattern", "unstructured"))
        check_regexes(arguments.get("ignore") or ())
        if (scope := arguments.get("scope") or "global") not in ("global", "layerwise"):
            raise ValueError(f"its scope is {scope!r}")
        if not re.fullmatch(r"([0-9a-f]{64})?", base := metadata.get("base_sha256", "")):
            raise ValueError("its base_sha256 is no SHA-256")
        ticket = cls(
            masks={name: _unpack(name, packed[name], shape) for name, shape in shapes.items()},
            threshold=float(metadata.get("threshold", "0.0")),
            arguments=arguments,
            base_sha256=base,
            **{
                name: metadata[name]
                for name in ("base_model", "base_revision", "theta_sha256", "task")
            },
        )
        stated = (int(metadata["pruned"]), int(metadata["prunable"]))
        if stated != (ticket.pruned, ticket.prunable):
            raise ValueError(
                f"it states {stated} weights and holds {(ticket.pruned, ticket.prunable)}"
            )
        if not (
            math.isfinite(ticket.threshold)
            and abs(float(metadata["sparsity"]) - ticket.sparsity) < 1e-4
        ):
            raise ValueError(
                f"its sparsity {metadata['sparsity']} or threshold {ticket.threshold} cannot be"
            )
        if metadata.get("content_sha256", sha := _checksum(metadata, packed)) != sha:
            raise ValueError("it was changed since it was written: its content_sha256 differs")
        return ticket

    def masks_for(self, model: nn.Module) -> dict[str, Tensor]:
        """The masks of `model`'s prunable set, in its order. A pooler that the ticket lacks is kept whole.

        So is what the search that found it left out: by --ignore, or as version 0.1.0, whose only matrices were
        `nn.Linear`. Raises ValueError that names the parameter which is missing on either side or of another shape.
        """
        targets, left_out = prunable(model), self.arguments.get("ignore") or ()
        is_old = bool(self.arguments) and "ignore" not in self.arguments
        unknown = not_linear(model).keys() if is_old else ()
        masks = {}
        for name, weight in targets.items():
            mask = self.masks.get(name)
            if mask is None and (
                name.startswith(POOLER) or name in unknown or is_ignored(name, left_out)
            ):
                mask = torch.ones(weight.shape, dtype=torch.bool)
            if mask is None:
                raise BadInput(
                    f"not a ticket of this model: it has no mask for {name}; it is for {self.base_model!r}"
                )
            if mask.shape != weight.shape:
                raise BadInput(
                    f"not a ticket of this model: {name} is {tuple(mask.shape)} in the ticket and "
                    f"{tuple(weight.shape)} in the model; it is for {self.base_model!r}"
                )
            masks[name] = mask
        for name in self.masks:
            if name not in targets and not name.startswith(POOLER):
                raise BadInput(
                    f"not a ticket of this model: the model has no {name}; it is for {self.base_model!r}"
                )
        return masks

    def apply(self, model: nn.Module) -> nn.Module:
        """Zero the pruned weights of `model` in place and return it. Raises as `masks_for` does."""
        masks = self.masks_for(model)
        with torch.no_grad():
            for name, weight in prunable(model).items():
                weight.masked_fill_(~masks[name].to(weight.device), 0.0)
        return model

    def is_of_other_weights(self, base_sha256: str) -> bool:
        """True where this ticket is known to belong to another base than the one with this digest ('': not known)."""
        return "" not in (self.base_sha256, base_sha256) and self.base_sha256 != base_sha256

    def overlap(self, other: "Ticket", allow_other_weights: bool = False) -> dict[str, float]:
        """Fraction of this ticket's kept weights that `other` keeps too: by matrix, and under `all` in all.

        Counted over the matrices both have (a pooler may be missing). NaN where nothing is kept. Raises ValueError for
        tickets of two networks; with `allow_other_weights` their bases may differ in weights, though not in shapes.
        """
        common = [
            name
            for name, mask in self.masks.items()
            if mask.shape == getattr(other.masks.get(name), "shape", None)
        ]
        if not common:
            raise BadInput(
                f"tickets of two networks: {self.base_model!r} and {other.base_model!r} share no matrix"
            )
        self._check_same_base(other, allow_other_weights)
        shared = {name: int((self.masks[name] & other.masks[name]).sum()) for name in common}
        kept = {name: int(self.masks[name].sum()) for name in common}
        shared["all"], kept["all"] = sum(shared.values()), sum(kept.values())
        return {name: shared[name] / kept[name] if kept[name] else float("nan") for name in shared}

    def union(self, other: "Ticket", allow_other_weights: bool = False) -> "Ticket":
        """The ticket that keeps what either keeps, with this one's provenance. Raises as `intersect` does."""
        return self._combined(other, torch.logical_or, "union", allow_other_weights)

    def intersect(self, other: "Ticket", allow_other_weights: bool = False) -> "Ticket":
        """The ticket that keeps what both keep, with this one's provenance.

        A pooler that one lacks stays as the other has it. Raises ValueError where the two are not about the same
        matrices, or belong to bases of other weights; `allow_other_weights` takes the latter and notes it.
        """
        return self._combined(other, torch.logical_and, "intersect", allow_other_weights)

    def _check_same_base(self, other: "Ticket", allow_other_weights: bool) -> None:
        if self.is_of_other_weights(other.base_sha256) and not allow_other_weights:
            raise BadInput(
                f"tickets of two bases: base_sha256 {self.base_sha256[:12]}… of {self.base_model!r} and "
                f"{other.base_sha256[:12]}… of {other.base_model!r}, so their masks are about other weights; give "
                "tickets of one base, or --allow_other_weights (in Python allow_other_weights=True)"
            )

    def _combined(
        self,
        other: "Ticket",
        how: Callable[[Tensor, Tensor], Tensor],
        name: str,
        allow_other_weights: bool,
    ) -> "Ticket":
        masks = dict(self.masks)
        for key, mask in other.masks.items():
            if key in masks and masks[key].shape == mask.shape:
                masks[key] = how(masks[key], mask)
            elif key in masks or not key.startswith(POOLER):
                raise BadInput(
                    f"tickets of two networks: {key} is in one alone or has another shape there"
                )
            else:
                masks[key] = mask
        for key in self.masks:
            if key not in other.masks and not key.startswith(POOLER):
                raise BadInput(
                    f"tickets of two networks: {key} is in one alone or has another shape there"
                )
        self._check_same_base(other, allow_other_weights)
        added: dict[str, Any] = {
            "found_by": f"{name} of a ticket of {self.task} and one of {other.task}"
        }
        if self.is_of_other_weights(other.base_sha256):
            added["allow_other_weights"] = True
        return replace(self, masks=masks, threshold=0.0, arguments={**self.arguments, **added})


def _check_size(name: str, shape: Any, stored: Any) -> None:
    """Raise ValueError unless `stored` (not read yet) has the bytes of a mask of this shape."""
    if not (
        isinstance(shape, list)
        and 0 < len(shape) < 9
        and all(type(side) is int and side > 0 for side in shape)
    ):
        raise ValueError(f"{name} has the shape {brief(str(shape))}")
    held, kind = stored.get_shape(), stored.get_dtype()
    if kind != "U8" or held != [(math.prod(shape) + 7) // 8]:
        kind = {"U8": "uint8", "I8": "int8"}.get(kind, kind)
        raise ValueError(
            f"{name} has {math.prod(held)} bytes of {kind} for the shape {brief(str(shape))}"
        )


def _checksum(metadata: Mapping[str, str], packed: Mapping[str, numpy.ndarray]) -> str:
    """SHA-256 over the other metadata and over the names and bytes of the masks, each in the order of its name."""
    stated = sorted((name, text) for name, text in metadata.items() if name != "content_sha256")
    sha = hashlib.sha256(json.dumps([stated, sorted(packed)]).encode())
    for name in sorted(packed):
        sha.update(packed[name].data)
    return sha.hexdigest()


def _unpack(name: str, packed: numpy.ndarray, shape: list[int]) -> Tensor:
    count, bits = math.prod(shape), numpy.unpackbits(packed, bitorder="little")
    if bits[count:].any():
        raise ValueError(f"{name} has bits set past its end")
    return torch.from_numpy(bits[:count].view(bool)).view(shape)


def digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over name, shape and little-endian fp32 bytes of each weight, in the order given."""
    sha = hashlib.sha256()
    for name, weight in weights.items():
        sha.update(f"{name}{tuple(weight.shape)}".encode())
        sha.update(
            weight.detach().cpu().float().contiguous().numpy().astype("<f4", copy=False).data
        )
    return sha.hexdigest()


def base_digest(model: nn.Module, fresh: Collection[str] = ()) -> str:
    """`base_sha256`: SHA-256 over the encoder's weights, in the order of their names.

    That is `digest` of the base model's parameters, by their names there, in fp32, a tied one once; without the pooler
    and those that are `fresh` (names in `model`: what was not in the checkpoint). So it depends on the checkpoint
    alone: not on its files and dtype (those of bf16 and fp16 are what they are in fp32), and not on the head.
    """
    names = {weight: name for name, weight in model.named_parameters()}
    weights = {
        name: weight
        for name, weight in sorted(base_model(model).named_parameters())
        if not name.startswith("pooler.") and names[weight] not in fresh
    }
    return digest(weights)
