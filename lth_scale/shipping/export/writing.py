"""Writing an export, loading it again, and comparing it with the network it was made from."""

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lth_scale.config.errors import Stopped
from lth_scale.config.redaction import without_secrets
from lth_scale.config.texts import printable
from lth_scale.pruning.prunable_set import digest
from lth_scale.shipping.export.loading import load_network, unique_state
from lth_scale.shipping.export.locations import FORMAT, write_manifest
from lth_scale.shipping.export.registry import FORMATS
from lth_scale.shipping.export.source import ExportSource, real_inputs
from lth_scale.tracking.machine import versions

TOLERANCE = 1e-4  # of an fp32 export, relative to the largest output


def describe(source: ExportSource, kind: str, dtype: str) -> dict[str, Any]:
    """Return the entries of export.json that are known before anything is written."""
    state = unique_state(source.model)
    return {
        "format": FORMAT,
        "kind": kind,
        "dtype": dtype,
        "architecture": type(source.model).__name__,
        "source": printable(without_secrets(str(source.path))),
        "source_sha256": digest(state),
        "sparsity": source.sparsity,
        "pruned": source.pruned,
        "prunable": source.prunable,
        "dense_bytes": sum(tensor.nbytes for tensor in state.values()),
        "versions": versions(),
    }


def write_export(directory: Path, source: ExportSource, manifest: dict[str, Any]) -> dict[str, Any]:
    """Write an export, load it again and compare. Returns export.json.

    manifest: from `describe`. Raises BadInput if the dtype cannot hold a value, and Stopped if an
    fp32 export does not give the outputs of its source, or a variant NaN or infinity.
    """
    kind, dtype = manifest["kind"], manifest["dtype"]
    spec = FORMATS[kind]
    config = copy.deepcopy(source.model.config)
    config.architectures = [manifest["architecture"]]
    config.dtype = spec.compute_dtype(dtype)
    config.save_pretrained(directory)
    if source.tokenizer:  # saved before it is used, which would add its padding to the file
        source.tokenizer.save_pretrained(directory)
    batches, description = real_inputs(source)
    path = directory / spec.file
    manifest = manifest | spec.make().write(source.model, path, dtype, batches[0])
    write_manifest(directory, manifest | {"difference": {}})
    measured = difference(source.model, load_network(directory), batches)
    if not measured["relative"] < (TOLERANCE if dtype == "float32" else math.inf):
        raise Stopped(
            f"--format {kind}: its outputs differ from the source's by {measured['relative']:.1e} "
            "of the largest; nothing was kept: use another --format"
        )
    manifest["difference"] = {**measured, "inputs": description}
    for name, file in spec.variants.items():
        measured = difference(source.model, load_network(directory, file=file), batches)
        manifest[f"difference_{name}"] = measured
        if not math.isfinite(measured["relative"]):
            raise Stopped(
                f"--format {kind}: outputs of {file} are NaN or infinite; "
                "nothing was kept: use another --format"
            )
    return write_manifest(directory, manifest)


def difference(
    source: PreTrainedModel, other: Any, batches: Sequence[dict[str, Tensor]]
) -> dict[str, float]:
    """Return the largest difference of any floating-point output over all batches.

    other: a model of transformers, or a module with its inputs, outputs and `device`. Returns
    `absolute`, and `relative` to the largest magnitude of the same output, both NaN if an output
    is.
    """
    zero = torch.zeros(())
    differences, magnitudes = dict[str, Tensor](), dict[str, Tensor]()
    with torch.inference_mode():
        for batch in batches:
            expected = source(**batch)
            actual = other(**{name: tensor.to(other.device) for name, tensor in batch.items()})
            for name, value in expected.items():
                if isinstance(value, Tensor) and value.is_floating_point():
                    apart = (actual[name].float().cpu() - value).abs().max()
                    # Unlike max() of Python, that of a tensor keeps NaN.
                    differences[name] = apart.maximum(differences.get(name, zero))
                    magnitudes[name] = value.abs().max().maximum(magnitudes.get(name, zero))
    absolute, largest = (torch.stack([*x.values()]) for x in (differences, magnitudes))
    relative = absolute / largest.clamp_min(1e-30)
    return {"absolute": float(absolute.max()), "relative": float(relative.max())}
