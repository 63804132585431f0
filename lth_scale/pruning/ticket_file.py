"""The ticket's file: safetensors with one bit a weight, and its provenance as metadata."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lth_scale.config import files
from lth_scale.config.arguments import with_current_names
from lth_scale.config.checks import check_regexes
from lth_scale.config.errors import BadInput
from lth_scale.config.texts import brief
from lth_scale.pruning.registries import parse_pattern

FORMAT = "lth_scale.ticket/1"
PROVENANCE = ("base_model", "base_revision", "theta_sha256", "task")
COUNTS = ("sparsity", "pruned", "prunable")
REQUIRED = {"format", "shapes", *PROVENANCE, *COUNTS, "arguments"}
OPTIONAL = {"threshold", "content_sha256", "base_sha256"}  # not in tickets of every version
MAX_DIMENSIONS = 8
DTYPES = {"U8": "uint8", "I8": "int8"}  # names in safetensors: names in messages


def count(masks: Mapping[str, Tensor]) -> tuple[int, int]:
    """How many weights the masks prune, and how many they cover."""
    prunable = sum(mask.numel() for mask in masks.values())
    return prunable - sum(int(mask.count_nonzero()) for mask in masks.values()), prunable


def write(path: Path, masks: Mapping[str, Tensor], fields: Mapping[str, Any]) -> None:
    """Write a ticket file atomically; fields: the other fields of a `Ticket`."""
    packed = {
        name: numpy.packbits(mask.cpu().numpy().reshape(-1), bitorder="little")
        for name, mask in masks.items()
    }
    pruned, prunable = count(masks)
    metadata = {
        "format": FORMAT,
        "shapes": json.dumps({name: list(mask.shape) for name, mask in masks.items()}),
        **{name: fields[name] for name in PROVENANCE},
        **({"base_sha256": fields["base_sha256"]} if fields["base_sha256"] else {}),
        "sparsity": repr(pruned / prunable),
        "pruned": str(pruned),
        "prunable": str(prunable),
        "threshold": repr(fields["threshold"]),
        "arguments": json.dumps(fields["arguments"], ensure_ascii=False),
    }
    metadata["content_sha256"] = _checksum(metadata, packed)
    files.write_tensors(
        path, {name: torch.from_numpy(bits) for name, bits in packed.items()}, metadata
    )


def _checksum(metadata: Mapping[str, str], packed: Mapping[str, numpy.ndarray]) -> str:
    """SHA-256 over the metadata and the names and bytes of the masks, both sorted by name."""
    stated = sorted((name, text) for name, text in metadata.items() if name != "content_sha256")
    sha = hashlib.sha256(json.dumps([stated, sorted(packed)]).encode())
    for name in sorted(packed):
        sha.update(packed[name].data)
    return sha.hexdigest()


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read and check a ticket file; return its masks and the other fields of a `Ticket`.

    Raises BadInput that names the file and what is wrong.
    """
    try:
        files.check_regular(path)
        with safe_open(path, framework="numpy") as file:
            return _decode(file.metadata() or {}, file)
    except (SafetensorError, OSError) as problem:
        raise BadInput(
            f"{path}: cannot be read as a ticket ({problem}); use a ticket.safetensors"
        ) from problem
    except (KeyError, TypeError, ValueError, RecursionError) as problem:
        raise BadInput(
            f"{path}: not a valid {FORMAT} file ({problem}); search or download the ticket again"
        ) from problem


def _decode(metadata: dict[str, str], file: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if metadata.get("format") != FORMAT:
        raise ValueError(f"its format is {metadata.get('format')!r}")
    if unknown := metadata.keys() - REQUIRED - OPTIONAL:
        raise ValueError(f"unknown key {min(unknown)!r} in its metadata")
    if missing := REQUIRED - metadata.keys():
        raise ValueError(f"its metadata has no {min(missing)}")
    shapes, arguments = json.loads(metadata["shapes"]), json.loads(metadata["arguments"])
    if not (isinstance(shapes, dict) and isinstance(arguments, dict)):
        raise ValueError("its shapes or arguments are not a JSON object")
    if set(shapes) != set(file.keys()) or not shapes:
        raise ValueError("the names of shapes and tensors differ, or are empty")
    for name, shape in shapes.items():
        _check_size(name, shape, file.get_slice(name))
    parse_pattern(arguments.get("pattern", "unstructured"))
    check_regexes(arguments.get("ignore") or ())
    if (scope := arguments.get("scope") or "global") not in ("global", "layerwise"):
        raise ValueError(f"its scope is {scope!r}")
    base = metadata.get("base_sha256", "")
    if not re.fullmatch(r"([0-9a-f]{64})?", base):
        raise ValueError("its base_sha256 is not a SHA-256")
    packed = {name: file.get_tensor(name) for name in shapes}
    masks = {name: _unpack(name, packed[name], shape) for name, shape in shapes.items()}
    threshold = float(metadata.get("threshold", "0.0"))
    _check_counts(metadata, masks, threshold)
    if metadata.get("content_sha256", sha := _checksum(metadata, packed)) != sha:
        raise ValueError("it was altered: its content_sha256 differs")
    provenance = {name: metadata[name] for name in PROVENANCE}
    fields = {"threshold": threshold, "arguments": with_current_names(arguments)}
    fields |= {"base_sha256": base, **provenance}
    return masks, fields


def _check_size(name: str, shape: Any, stored: Any) -> None:
    """Raise ValueError unless `stored` (not read yet) has the bytes of a mask of this shape."""
    if not (
        isinstance(shape, list)
        and 0 < len(shape) <= MAX_DIMENSIONS
        and all(type(side) is int and side > 0 for side in shape)
    ):
        raise ValueError(f"{name} has the shape {brief(str(shape))}")
    size, dtype = math.prod(stored.get_shape()), stored.get_dtype()
    if dtype != "U8" or stored.get_shape() != [(math.prod(shape) + 7) // 8]:
        dtype = DTYPES.get(dtype, dtype)
        raise ValueError(f"{name} has {size} bytes of {dtype} for the shape {brief(str(shape))}")


def _unpack(name: str, packed: numpy.ndarray, shape: list[int]) -> Tensor:
    size, bits = math.prod(shape), numpy.unpackbits(packed, bitorder="little")
    if bits[size:].any():
        raise ValueError(f"{name} has bits set past its end")
    return torch.from_numpy(bits[:size].view(bool)).view(shape)


def _check_counts(metadata: dict[str, str], masks: dict[str, Tensor], threshold: float) -> None:
    stated, counted = (int(metadata["pruned"]), int(metadata["prunable"])), count(masks)
    if stated != counted:
        raise ValueError(f"it states {stated} weights and holds {counted}")
    sparsity = counted[0] / counted[1]
    if not (math.isfinite(threshold) and abs(float(metadata["sparsity"]) - sparsity) < 1e-4):
        raise ValueError(
            f"its sparsity {metadata['sparsity']} or threshold {threshold} is impossible"
        )
