"""A ticket: a binary mask over a pre-trained network's weights, and where it came from.

`python -m lth_scale.ticket PATH` prints one.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lth_scale import files
from lth_scale.arguments import BadInput, OneLineParser, exit_on_bad_input
from lth_scale.prunable import prunable

FORMAT = "lth_scale.ticket/1"


@dataclass
class Ticket:
    """masks: bool tensors of the parameters' shapes, True keeps; names are those of the base model.

    theta_sha256 is the digest (see `digest`) of the prunable weights at the rewind point; threshold is
    the largest |w| that the last cut pruned.
    """

    masks: dict[str, Tensor]
    base_model: str = ""
    base_revision: str = ""
    theta_sha256: str = ""
    task: str = ""
    threshold: float = 0.0
    arguments: dict[str, Any] = field(default_factory=dict)

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

    def save(self, path: str | Path) -> None:
        """Write the ticket file (DESIGN: safetensors, one bit a weight), whole or not at all."""
        packed = {
            name: torch.from_numpy(numpy.packbits(mask.cpu().numpy().reshape(-1), bitorder="little"))
            for name, mask in self.masks.items()
        }
        metadata = {
            "format": FORMAT,
            "shapes": json.dumps({name: list(mask.shape) for name, mask in self.masks.items()}),
            "base_model": self.base_model,
            "base_revision": self.base_revision,
            "theta_sha256": self.theta_sha256,
            "task": self.task,
            "sparsity": repr(self.sparsity),
            "pruned": str(self.pruned),
            "prunable": str(self.prunable),
            "threshold": repr(self.threshold),
            "arguments": json.dumps(self.arguments, ensure_ascii=False),
        }
        files.write_tensors(Path(path), packed, metadata)

    @classmethod
    def load(cls, path: str | Path) -> "Ticket":
        """Read a ticket file. Raises ValueError, naming the file and what is wrong, unless it is whole."""
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                packed = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except (SafetensorError, OSError) as problem:
            raise BadInput(f"{path}: cannot be read as a ticket ({problem}); give a ticket.safetensors") from None
        try:
            return cls._decode(metadata, packed)
        except (KeyError, TypeError, ValueError) as problem:
            raise BadInput(
                f"{path}: not a whole {FORMAT} file ({problem}); find or download the ticket again"
            ) from None

    @classmethod
    def _decode(cls, metadata: dict[str, str], packed: dict[str, numpy.ndarray]) -> "Ticket":
        if metadata.get("format") != FORMAT:
            raise ValueError(f"its format is {metadata.get('format')!r}")
        shapes = json.loads(metadata["shapes"])
        if set(shapes) != set(packed):
            raise ValueError("the names of shapes and tensors differ")
        ticket = cls(
            masks={name: _unpack(name, packed[name], shape) for name, shape in shapes.items()},
            threshold=float(metadata.get("threshold", "0.0")),
            arguments=json.loads(metadata["arguments"]),
            **{name: metadata[name] for name in ("base_model", "base_revision", "theta_sha256", "task")},
        )
        stated = (int(metadata["pruned"]), int(metadata["prunable"]))
        if stated != (ticket.pruned, ticket.prunable):
            raise ValueError(f"it states {stated} weights and holds {(ticket.pruned, ticket.prunable)}")
        return ticket

    def masks_for(self, model: nn.Module) -> dict[str, Tensor]:
        """The masks of `model`'s prunable set, in its order. A pooler that the ticket lacks is kept whole.

        Raises ValueError that names the parameter which is missing on either side or of another shape.
        """
        targets = prunable(model)
        masks = {}
        for name, weight in targets.items():
            mask = self.masks.get(name)
            if mask is None and name.startswith("pooler."):
                mask = torch.ones(weight.shape, dtype=torch.bool)
            if mask is None:
                raise BadInput(f"not a ticket of this model: it has no mask for {name}; it is for {self.base_model!r}")
            if mask.shape != weight.shape:
                raise BadInput(
                    f"not a ticket of this model: {name} is {tuple(mask.shape)} in the ticket and "
                    f"{tuple(weight.shape)} in the model; it is for {self.base_model!r}"
                )
            masks[name] = mask
        for name in self.masks:
            if name not in targets and not name.startswith("pooler."):
                raise BadInput(f"not a ticket of this model: the model has no {name}; it is for {self.base_model!r}")
        return masks

    def apply(self, model: nn.Module) -> nn.Module:
        """Zero the pruned weights of `model` in place and return it. Raises as `masks_for` does."""
        masks = self.masks_for(model)
        with torch.no_grad():
            for name, weight in prunable(model).items():
                weight.masked_fill_(~masks[name].to(weight.device), 0.0)
        return model

    def overlap(self, other: "Ticket") -> dict[str, float]:
        """Fraction of this ticket's kept weights that `other` keeps too: by matrix, and under `all` in all.

        Counted over the matrices both have (a pooler may be missing). NaN where nothing is kept.
        """
        common = [
            name for name, mask in self.masks.items() if mask.shape == getattr(other.masks.get(name), "shape", None)
        ]
        if not common:
            raise BadInput(f"tickets of two networks: {self.base_model!r} and {other.base_model!r} share no matrix")
        shared = {name: int((self.masks[name] & other.masks[name]).sum()) for name in common}
        kept = {name: int(self.masks[name].sum()) for name in common}
        shared["all"], kept["all"] = sum(shared.values()), sum(kept.values())
        return {name: shared[name] / kept[name] if kept[name] else float("nan") for name in shared}

    def union(self, other: "Ticket") -> "Ticket":
        """The ticket that keeps what either keeps, with this one's provenance. Raises as `intersect` does."""
        return self._combined(other, torch.logical_or, "union")

    def intersect(self, other: "Ticket") -> "Ticket":
        """The ticket that keeps what both keep. A pooler that one lacks stays as the other has it.

        Raises ValueError where the two are not about the same matrices.
        """
        return self._combined(other, torch.logical_and, "intersect")

    def _combined(self, other: "Ticket", how: Callable[[Tensor, Tensor], Tensor], name: str) -> "Ticket":
        masks = dict(self.masks)
        for key, mask in other.masks.items():
            if key in masks and masks[key].shape == mask.shape:
                masks[key] = how(masks[key], mask)
            elif key in masks or not key.startswith("pooler."):
                raise BadInput(f"tickets of two networks: {key} is in one alone or has another shape there")
            else:
                masks[key] = mask
        for key in self.masks:
            if key not in other.masks and not key.startswith("pooler."):
                raise BadInput(f"tickets of two networks: {key} is in one alone or has another shape there")
        found_by = f"{name} of a ticket of {self.task} and one of {other.task}"
        return replace(self, masks=masks, threshold=0.0, arguments={**self.arguments, "found_by": found_by})


def _unpack(name: str, packed: numpy.ndarray, shape: list[int]) -> Tensor:
    if not all(isinstance(side, int) and side >= 0 for side in shape):
        raise ValueError(f"{name} has the shape {shape}")
    count = int(numpy.prod(shape, dtype=numpy.int64))
    if packed.dtype != numpy.uint8 or packed.shape != ((count + 7) // 8,):
        raise ValueError(f"{name} has {packed.nbytes} bytes of {packed.dtype} for the shape {shape}")
    bits = numpy.unpackbits(packed, bitorder="little")
    if bits[count:].any():
        raise ValueError(f"{name} has bits set past its end")
    return torch.from_numpy(bits[:count].astype(bool)).view(shape)


def digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over name, shape and little-endian fp32 bytes of each weight, in the order given."""
    sha = hashlib.sha256()
    for name, weight in weights.items():
        sha.update(f"{name}{tuple(weight.shape)}".encode())
        sha.update(weight.detach().cpu().float().contiguous().numpy().astype("<f4", copy=False).data)
    return sha.hexdigest()


def describe(ticket: Ticket, path: str | Path) -> str:
    """Totals, provenance, and a bar a matrix, for a terminal."""
    source = f"{ticket.base_model}{'@' + ticket.base_revision if ticket.base_revision else ''}"
    lines = [
        f"ticket     {path}",
        f"sparsity   {ticket.sparsity:.4%} ({ticket.pruned:,} of {ticket.prunable:,} prunable weights)",
        f"threshold  |w| ≤ {ticket.threshold:.6g}",
        f"base       {source}",
        f"θ sha256   {ticket.theta_sha256}",
        f"task       {ticket.task}",
        "arguments  " + " ".join(f"--{k} {v}" for k, v in ticket.arguments.items() if v not in (None, False)),
        "",
    ]
    width = max(map(len, ticket.masks), default=0)
    for name, sparsity in ticket.layer_sparsity().items():
        lines.append(f"{name:<{width}}  {'█' * round(sparsity * 30):·<30} {sparsity:7.2%}")
    return "\n".join(lines)


def main() -> None:
    """Print the ticket that the command line names, or what it has in common with another."""
    parser: argparse.ArgumentParser = OneLineParser(prog="lth_scale.ticket", description="Print or combine tickets.")
    parser.add_argument("path", help="a ticket.safetensors, or the directory of a run or a round")
    parser.add_argument("--overlap", metavar="OTHER", help="print the share of kept weights that OTHER keeps too")
    parser.add_argument("--union", metavar="OTHER", help="keep what either keeps; needs --output")
    parser.add_argument("--intersect", metavar="OTHER", help="keep what both keep; needs --output")
    parser.add_argument("--output", metavar="FILE", help="where to write the combined ticket")
    args = parser.parse_args()
    ticket, path = _at(args.path)
    text = describe(ticket, path)
    if args.overlap:
        shared = ticket.overlap(_at(args.overlap)[0])
        width = max(map(len, shared))
        text = "\n".join(f"{name:<{width}}  {share:7.2%}" for name, share in shared.items())
    for name in ("union", "intersect"):
        other = getattr(args, name)
        if other and (args.output is None or Path(args.output).exists()):
            raise BadInput(f"--output {args.output}: --{name} writes a new file; name one that does not exist")
        if other:
            made = getattr(ticket, name)(_at(other)[0])
            made.save(args.output)
            text = describe(made, args.output)
    sys.stdout.write(text + "\n")


def _at(text: str) -> tuple[Ticket, Path]:
    path = Path(text)
    path = path / "ticket.safetensors" if path.is_dir() else path
    return Ticket.load(path), path


if __name__ == "__main__":
    exit_on_bad_input(main)
